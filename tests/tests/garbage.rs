//! Connections that break the protocol: each gets an error or is closed, and nobody else notices.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Kind, Sender};
use peregrine_protocol::ids::{Correlation, DurableLevel, TopicId};
use peregrine_protocol::limits::FRAME_HEAD_LEN;
use peregrine_protocol::message::{Answer, Produce, Request};
use peregrine_protocol::preamble::PREAMBLE;
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::wire::{Heard, Wire, batch_of, produce_head};

/// What is wrong at once is answered or closed at once.
const AT_ONCE: Duration = Duration::from_secs(10);
/// A hello must have come after 10 s; and some time for a busy machine.
const HELLO_OVERDUE: Duration = Duration::from_secs(20);
/// A frame without progress is given up after 30 s; and some time for a busy machine.
const FRAME_OVERDUE: Duration = Duration::from_secs(45);

const STALLED_SOCKETS: usize = 1_000;
const ANNOUNCED_BYTES: u32 = 16 << 20;
const MEMORY_GROWTH_MAX: u64 = 64 << 20;
const STEADY_MESSAGES: usize = 2_000;

fn ping(wire: &mut Wire) {
    wire.ask(&Request::Ping, |answer| assert!(matches!(answer, Answer::Ping), "{answer:?}"));
}

/// The head of a client's frame with these fields, and nothing behind it.
fn head(length: u32, version: u8, kind: u8, flags: u16, header_length: u32) -> [u8; FRAME_HEAD_LEN] {
    let mut bytes = [0; FRAME_HEAD_LEN];
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
    bytes[4] = version;
    bytes[5] = kind;
    bytes[6..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..12].copy_from_slice(&header_length.to_le_bytes());
    bytes[16..24].copy_from_slice(&77u64.to_le_bytes());
    bytes
}

#[test]
fn what_is_no_peregrine_connection_is_closed() {
    let broker = Settings::default().start();
    let mut steady = Wire::open(broker.address());
    let noise: Vec<u8> = (0u32..100_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let openings: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: peregrine\r\n\r\n",
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        &[0; 64],
        &[0xff; 10_000],
        &noise,
    ];
    for opening in openings {
        let mut wire = Wire::connect(broker.address());
        // The broker may close before all of it has left.
        let _ = wire.send(opening);
        assert!(wire.is_closed_within(AT_ONCE), "still open after {:02x?}", &opening[..8]);
        ping(&mut steady);
    }
}

#[test]
fn another_version_of_the_protocol_is_told_so_and_closed() {
    let broker = Settings::default().start();
    let mut wire = Wire::connect(broker.address());
    let mut preamble = PREAMBLE;
    preamble[4] = 9;
    wire.send(&preamble).unwrap();
    assert_eq!(wire.hear_error(AT_ONCE), Some(ErrorCode::UnknownVersion.number()));
    assert!(wire.is_closed_within(AT_ONCE));
}

#[test]
fn silence_before_the_hello_is_closed() {
    let broker = Settings::default().start();
    let mut silent = Wire::connect(broker.address());
    let mut half = Wire::connect(broker.address());
    half.send(&PREAMBLE[..5]).unwrap();
    let mut no_hello = Wire::connect(broker.address());
    no_hello.send(&PREAMBLE).unwrap();
    for wire in [&mut silent, &mut half, &mut no_hello] {
        assert!(wire.is_closed_within(HELLO_OVERDUE));
    }
}

#[test]
fn a_request_before_the_hello_is_refused() {
    let broker = Settings::default().start();
    let mut wire = Wire::connect(broker.address());
    wire.send(&PREAMBLE).unwrap();
    wire.request(&Request::Ping);
    assert!(matches!(wire.hear_error(AT_ONCE), None | Some(5)), "a hello is expected");
    assert_eq!(ErrorCode::HelloExpected.number(), 5);
}

#[test]
fn a_frame_of_an_unknown_version_or_kind_is_answered_and_the_connection_goes_on() {
    let broker = Settings::default().start();
    let mut wire = Wire::open(broker.address());
    let mut unknown = head(16, 9, Kind::Ping as u8, 0xffff, 0xffff_ffff).to_vec();
    unknown.extend([0xee; 16]);
    wire.send(&unknown).unwrap();
    assert_eq!(wire.hear_error(AT_ONCE), Some(ErrorCode::UnknownVersion.number()));
    wire.send(&head(0, 1, 99, 0, 0)).unwrap();
    assert_eq!(wire.hear_error(AT_ONCE), Some(ErrorCode::UnknownKind.number()));
    ping(&mut wire);
}

#[test]
fn lengths_that_cannot_be_close_that_connection_alone() {
    let broker = Settings::default().start();
    let mut steady = Wire::open(broker.address());
    let heads = [
        ("a frame of 4 GiB", head(u32::MAX - 7, 1, Kind::Produce as u8, 0, 48)),
        ("a frame above the limit", head(64 << 20, 1, Kind::Produce as u8, 0, 48)),
        ("a length that is no multiple of 8", head(13, 1, Kind::Ping as u8, 0, 0)),
        ("a header longer than its frame", head(16, 1, Kind::Metadata as u8, 0, 4096)),
        ("a header of 2 GiB", head(64, 1, Kind::Metadata as u8, 0, 1 << 31)),
        ("unknown flags", head(0, 1, Kind::Ping as u8, 0x8000, 0)),
    ];
    for (what, head) in heads {
        let mut wire = Wire::open(broker.address());
        wire.send(&head).unwrap();
        let code = wire.hear_error(AT_ONCE);
        let expected = [ErrorCode::Malformed, ErrorCode::TooLarge].map(ErrorCode::number);
        assert!(code.is_none_or(|code| expected.contains(&code)), "{what}: error {code:?}");
        assert!(wire.is_closed_within(AT_ONCE), "{what}: still open");
        ping(&mut steady);
    }
}

#[test]
fn a_header_that_is_none_closes_that_connection_alone() {
    let broker = Settings::default().start();
    let mut steady = Wire::open(broker.address());
    for kind in Kind::ALL {
        let mut wire = Wire::open(broker.address());
        let mut bytes = Vec::new();
        frame::encode(*kind, Sender::Client, Correlation(7), &[0xff; 40], &[0xee; 24], &mut bytes);
        wire.send(&bytes).unwrap();
        // Some kinds take these bytes for a header with foreign ids; all of them answer with an error, or close.
        let _ = wire.hear_error(AT_ONCE);
        ping(&mut steady);
    }
}

#[test]
fn a_batch_that_is_not_what_it_says_is_refused_and_not_stored() {
    let broker = Settings::default().start();
    let mut wire = Wire::open(broker.address());
    let topic = wire.create_topic("garbage", 1);
    let payload = batch_of(b"a message");
    let good = produce_head(topic, DurableLevel::Synced, &payload);
    let mut wrong_crc = good;
    wrong_crc.payload_crc ^= 1;
    let mut wrong_count = good;
    wrong_count.record_count = 2;
    let mut unknown_topic = good;
    unknown_topic.topic = TopicId(topic.0 + 1_000);
    let cases = [
        (wrong_crc, ErrorCode::CorruptPayload),
        (wrong_count, ErrorCode::CorruptPayload),
        (unknown_topic, ErrorCode::UnknownTopic),
    ];
    for (head, expected) in cases {
        let code = wire.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| match answer {
            Answer::Error(error) => error.code,
            other => panic!("{expected} was due, not {other:?}"),
        });
        assert_eq!(code, expected.number(), "{expected} was due");
    }
    wire.produce(topic, DurableLevel::Synced, b"the only message");
    assert_eq!(broker.command_line().consume_all("garbage"), ["the only message"]);
}

/// Must not happen: that whoever announces much and sends little takes the memory, or the time, of the others.
#[test]
fn a_thousand_sockets_that_announce_16_mib_and_stall() {
    raise_limit_of_open_files();
    // A ring and segments that take frames of that size.
    let broker = Settings::default().ring_bytes(64 << 20).segment_bytes(32 << 20).start();
    let mut steady = Wire::open(broker.address());
    let topic = steady.create_topic("steady", 1);
    let before = steady_percentiles(&mut steady, topic);
    let memory_before = broker.resident_bytes();

    let announcing = head(ANNOUNCED_BYTES - FRAME_HEAD_LEN as u32, 1, Kind::Produce as u8, 0, 48);
    let mut stalled: Vec<Wire> = (0..STALLED_SOCKETS)
        .map(|_| {
            let mut wire = Wire::open(broker.address());
            wire.send(&announcing).unwrap();
            wire.send(&[0xaa; 1024]).unwrap();
            wire
        })
        .collect();
    let beside = steady_percentiles(&mut steady, topic);
    let grown = broker.resident_bytes().saturating_sub(memory_before);
    println!(
        "{STALLED_SOCKETS} stalled sockets: memory grew by {} KiB; synced acknowledgements of another connection, \
         p50/p99: {:?}/{:?} before, {:?}/{:?} beside",
        grown >> 10,
        before.0,
        before.1,
        beside.0,
        beside.1
    );
    assert!(grown <= MEMORY_GROWTH_MAX, "the broker's memory grew by {grown} bytes");

    eventually("the stalled sockets are closed", FRAME_OVERDUE, || {
        ping(&mut steady);
        stalled.retain_mut(|wire| !matches!(wire.hear(Duration::from_micros(1)), Heard::Closed));
        stalled.is_empty()
    });
    assert_steady_ends_well(broker, steady, topic);
}

fn assert_steady_ends_well(mut broker: Broker, mut steady: Wire, topic: TopicId) {
    steady.produce(topic, DurableLevel::Synced, b"last");
    assert!(broker.terminate().success());
}

/// The median and the 99th percentile of synced acknowledgements on this connection.
fn steady_percentiles(steady: &mut Wire, topic: TopicId) -> (Duration, Duration) {
    let mut times: Vec<Duration> =
        (0..STEADY_MESSAGES).map(|_| steady.produce(topic, DurableLevel::Synced, &[7; 1024])).collect();
    times.sort();
    (times[STEADY_MESSAGES / 2], times[STEADY_MESSAGES * 99 / 100])
}

/// The soft limit is 1,024 on most machines; the hard one is far above.
fn raise_limit_of_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one rlimit, which lives across it.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads one rlimit, which lives across it.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
