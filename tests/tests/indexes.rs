//! Messages of sealed segments: where they stand is known by the segments' indexes alone, and they are read as ever.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Epoch, Nanos, QueueId, QueueOffset, TopicId};
use peregrine_protocol::message::{Mode, Request, Start, Subscribe};
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::connection::{Connection, Reply, Sent};

/// Of 16 KiB each: several segments of 4 MiB, of which the ring holds the last.
const MESSAGES: usize = 1_200;

fn body(number: usize) -> String {
    format!("{number:0>16384}")
}

fn stored() -> (Broker, TopicId) {
    let broker = Settings::default().ring_bytes(4 << 20).segment_bytes(4 << 20).start();
    let mut connection = Connection::open(broker.address(), None);
    let topic = connection.create_topic("old", 1);
    for number in 0..MESSAGES {
        let bodies = [body(number)];
        let reply = connection.produce(&Sent {
            topic,
            queue: QueueId(0),
            level: DurableLevel::Synced,
            producer: None,
            bodies: &bodies,
        });
        assert!(matches!(reply, Reply::Produced(_)), "{reply:?}");
    }
    (broker, topic)
}

fn indexes(broker: &Broker) -> Vec<PathBuf> {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap().map(|entry| entry.unwrap().path());
    let is_index = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("index-");
    let mut indexes: Vec<_> = files.filter(is_index).collect();
    indexes.sort();
    indexes
}

fn wait_for_indexes(broker: &Broker, count: usize) {
    eventually("the indexes of the sealed segments", Duration::from_secs(60), || indexes(broker).len() >= count);
}

/// All messages are read in order, from the first on and from the middle, and times lead to them.
fn check(broker: &Broker, topic: TopicId) {
    let mut connection = Connection::open(broker.address(), None);
    let read = connection.read_all(topic, QueueId(0));
    assert_eq!(read.len(), MESSAGES);
    assert!(read.iter().enumerate().all(|(number, read)| *read == body(number)), "they are in order");
    for (start, offset) in [
        (Start::Time(Nanos(1)), 0),
        (Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(7) }, 7),
        (Start::Time(Nanos(u64::MAX)), MESSAGES as u64),
    ] {
        let (mode, credit_messages, credit_bytes) = (Mode::Reader, 1, 1);
        let asked = Subscribe { topic, queue: QueueId(0), mode, start, credit_messages, credit_bytes };
        let place = loop {
            match connection.ask(&Request::Subscribe(asked)) {
                Reply::Subscribed(answer) => break answer,
                // An index is made again.
                Reply::Error { code: Some(ErrorCode::Busy), .. } => {}
                other => panic!("{start:?}: {other:?}"),
            }
        };
        assert_eq!(place.start.0, offset, "{start:?}");
    }
}

#[test]
fn old_messages_are_read_through_indexes_after_kills_stops_and_damage() {
    let (mut broker, topic) = stored();
    wait_for_indexes(&broker, 4);
    check(&broker, topic);

    broker.kill_nine();
    let made = indexes(&broker);
    broker.start_again();
    wait_for_indexes(&broker, made.len() + 1);
    check(&broker, topic);

    assert!(broker.terminate().success());
    let damaged = indexes(&broker);
    fs::remove_file(&damaged[0]).unwrap();
    let mut bytes = fs::read(&damaged[1]).unwrap();
    for block in bytes.chunks_exact_mut(4096).skip(1) {
        block[100] ^= 1;
    }
    fs::write(&damaged[1], bytes).unwrap();
    broker.start_again();
    check(&broker, topic);
    wait_for_indexes(&broker, damaged.len());
    check(&broker, topic);
}
