//! A session against the answers of a broker, encoded by the protocol itself.

use peregrine_protocol::entry::{DirectoryId, EntryFlags};
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::frame::{self, Received as FrameReceived};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, TopicId,
};
use peregrine_protocol::message::{ErrorAnswer, HelloAnswer, ProduceAnswer};

use super::*;

fn hello_answer() -> HelloAnswer<'static> {
    HelloAnswer {
        challenge: None,
        directory: DirectoryId(7),
        capabilities: 0,
        shards: 2,
        shard: ShardId(1),
        message_max: 1 << 20,
        frame_max: 1 << 21,
        software: "test",
    }
}

fn open() -> Session {
    let mut out = Vec::new();
    let mut session = Session::open(SessionOptions { client: "c", shard: Some(ShardId(1)) }, &mut out);
    let mut answer = Vec::new();
    hello_answer().encode(HELLO, &mut answer);
    assert!(matches!(session.receive(&answer), Ok(Received::Event { event: Event::Ready(_), .. })));
    session
}

fn error(code: ErrorCode, correlation: u64, detail: ErrorDetail) -> Vec<u8> {
    let mut bytes = Vec::new();
    ErrorAnswer::new(code).with(detail).encode(Correlation(correlation), &mut bytes);
    bytes
}

#[test]
fn opens_with_preamble_and_hello_for_the_shard() {
    let mut out = Vec::new();
    let session = Session::open(SessionOptions { client: "me", shard: Some(ShardId(1)) }, &mut out);
    assert!(session.broker().is_none());
    let frame = match frame::decode(&out[PREAMBLE.len()..], FRAME_MAX_DEFAULT) {
        Ok(FrameReceived::Frame(frame)) => frame,
        other => panic!("{other:?}"),
    };
    assert_eq!(out.len(), PREAMBLE.len() + frame.len());
    match Request::decode(&frame) {
        Ok(Request::Hello(hello)) => assert_eq!((hello.client, hello.shard), ("me", Some(ShardId(1)))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn learns_the_broker_from_the_hello_whatever_the_cuts() {
    let mut answer = Vec::new();
    hello_answer().encode(HELLO, &mut answer);
    for end in 0..answer.len() {
        let mut session = Session { broker: None, next_correlation: Correlation(2) };
        assert!(
            matches!(session.receive(&answer[..end]), Ok(Received::Missing(n)) if n > 0 && n <= answer.len() - end)
        );
    }
    let session = open();
    let broker = session.broker().expect("ready");
    assert_eq!((broker.shards, broker.shard, broker.directory), (2, ShardId(1), DirectoryId(7)));
}

#[test]
fn produces_and_hears_of_it() {
    let mut session = open();
    let head = ProduceHead {
        topic: TopicId(1),
        queue: QueueId(3),
        producer_id: ProducerId(9),
        producer_epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        payload_crc: 0,
        record_count: 1,
        flags: EntryFlags::for_level(DurableLevel::Memory),
    };
    let mut out = Vec::new();
    let first = session.produce(head, b"12345678", &mut out);
    let (second, prefix) = session.produce_prefix(head, 8);
    assert_ne!(first, second);
    assert_eq!(prefix.len() + 8, out.len());
    let answer = ProduceAnswer {
        queue: QueueId(3),
        base_offset: QueueOffset(4),
        record_count: 1,
        epoch: Epoch(1),
        shard: ShardId(1),
        position: None,
        level: DurableLevel::Memory,
        duplicate: false,
    };
    let mut bytes = Vec::new();
    answer.encode(first, &mut bytes);
    match session.receive(&bytes) {
        Ok(Received::Event { event: Event::Produced { correlation, answer: got }, len }) => {
            assert_eq!((correlation, got, len), (first, answer, bytes.len()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_are_of_a_request_a_subscription_or_the_connection() {
    let mut session = open();
    let bytes = error(ErrorCode::Busy, 5, ErrorDetail::default());
    assert!(matches!(
        session.receive(&bytes),
        Ok(Received::Event { event: Event::Refused { correlation: Correlation(5), .. }, .. })
    ));
    let bytes = error(ErrorCode::TopicDeleted, 0, ErrorDetail { subscription: Some(8), ..ErrorDetail::default() });
    assert!(matches!(
        session.receive(&bytes),
        Ok(Received::Event { event: Event::Ended { subscription, .. }, .. }) if subscription.0 == 8
    ));
    let bytes = error(ErrorCode::Malformed, 0, ErrorDetail::default());
    assert_eq!(session.receive(&bytes).err().and_then(|error| error.code()), Some(ErrorCode::Malformed));
}

#[test]
fn nothing_but_the_hello_is_taken_first() {
    let mut out = Vec::new();
    let mut session = Session::open(SessionOptions::default(), &mut out);
    let mut bytes = Vec::new();
    Answer::Ping.encode(HELLO, &mut bytes);
    assert!(matches!(session.receive(&bytes), Err(Error::Protocol(_))));
    let bytes = error(ErrorCode::UnknownVersion, HELLO.0, ErrorDetail::default());
    assert_eq!(session.receive(&bytes).err().and_then(|error| error.code()), Some(ErrorCode::UnknownVersion));
    assert!(session.receive(&[0xff; 64]).is_err(), "garbage");
}
