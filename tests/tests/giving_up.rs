//! What a person may give up so that a broker starts again: one staging ring, by `--discard-ring`, and what is damaged, by
//! `--accept-loss`. Each refusal says what would be lost and which flag gives it up; nothing else is lost with it.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use peregrine_protocol::ids::{DurableLevel, Epoch, QueueId, QueueOffset, TopicId};
use peregrine_protocol::message::{Fetch, Request};
use peregrine_protocol::placement::shard_of_queue;
use peregrine_tests::broker::{Broker, Refusal, Settings, eventually};
use peregrine_tests::connection::{Connection, Reply, Sent};

const TOPIC: &str = "given-up";

/// A broker with a topic of so many queues, and the topic's id.
fn with_topic(shards: u16, queues: u32) -> (Broker, TopicId) {
    let broker = Settings::default().shards(shards).start();
    let topic = Connection::open(broker.address(), None).create_topic(TOPIC, queues);
    (broker, topic)
}

/// Sends one batch per message and waits for each acknowledgement; the messages are numbered from `from` on.
fn send(broker: &Broker, topic: TopicId, queue: QueueId, level: DurableLevel, numbers: std::ops::Range<u64>) {
    let mut connection = Connection::open(broker.address(), None);
    for number in numbers {
        let bodies = [body(queue, number)];
        match connection.produce(&Sent { topic, queue, level, producer: None, bodies: &bodies }) {
            Reply::Produced(answer) => assert_eq!(answer.base_offset, QueueOffset(number)),
            other => panic!("message {number} of queue {queue} was answered with {other:?}"),
        }
    }
}

fn body(queue: QueueId, number: u64) -> String {
    format!("this is message {number:06} of queue {queue:?}")
}

/// The numbers of the messages that stand below offset `end` of a queue, each read by itself.
fn held(broker: &Broker, topic: TopicId, queue: QueueId, end: u64) -> Vec<u64> {
    let mut connection = Connection::open(broker.address(), None);
    let mut numbers = Vec::new();
    for offset in (0..end).map(QueueOffset) {
        let fetch = Fetch { topic, queue, epoch: Epoch::ANY, offset, max_messages: 1, max_bytes: 1 << 20 };
        match connection.ask(&Request::Fetch(fetch)) {
            Reply::Fetched { bodies, .. } if bodies.is_empty() => break,
            Reply::Fetched { bodies, .. } => {
                // Where the offset is gone, the next message comes.
                let number = (offset.0..end).find(|&number| body(queue, number) == bodies[0]).unwrap();
                numbers.push(number);
            }
            other => panic!("fetch was answered with {other:?}"),
        }
    }
    numbers.dedup();
    numbers
}

/// The last line that the refused broker wrote.
#[track_caller]
fn sentence(refusal: &Refusal) -> &str {
    assert!(!refusal.stderr.to_lowercase().contains("panicked"), "a refusal, not a panic: {}", refusal.stderr);
    refusal.stderr.trim_end().lines().last().unwrap()
}

#[track_caller]
fn says(refusal: &Refusal, words: &[&str]) {
    let sentence = sentence(refusal);
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
}

/// A queue on each of two shards.
fn queue_of_each_shard() -> [QueueId; 2] {
    let on = |shard| (0..2).map(QueueId).find(|&queue| shard_of_queue(TOPIC, queue, 2).0 == shard).unwrap();
    [on(0), on(1)]
}

/// The ring file of a shard.
fn ring_file(broker: &Broker, shard: u16) -> PathBuf {
    let files = fs::read_dir(broker.ring_directory()).unwrap().map(|file| file.unwrap().path());
    let mut of_shard = files.filter(|path| path.to_string_lossy().ends_with(&format!("-{shard}")));
    of_shard.next().expect("a killed broker leaves its rings")
}

#[test]
fn a_ring_that_is_gone_is_given_up_by_its_name_alone() {
    let [first, second] = queue_of_each_shard();
    let (mut broker, topic) = with_topic(2, 2);
    for queue in [first, second] {
        send(&broker, topic, queue, DurableLevel::Synced, 0..20);
    }
    assert!(broker.terminate().success(), "a clean stop is a success");
    // From here on nothing is flushed: these stand only in the rings.
    broker.set_arguments(&["--test-fault=hold-flushes"]);
    broker.start_again();
    for queue in [first, second] {
        send(&broker, topic, queue, DurableLevel::Memory, 20..30);
    }
    broker.kill_nine();
    fs::remove_file(ring_file(&broker, 0)).unwrap();

    broker.set_arguments(&[]);
    let refusal = broker.start_refused();
    says(&refusal, &["shard 0", "staging ring", "memory", "--discard-ring 0:2"]);
    for other in ["0:1", "0:3"] {
        broker.set_arguments(&["--discard-ring", other]);
        says(&broker.start_refused(), &["--discard-ring 0:2"]);
    }
    broker.set_arguments(&["--discard-ring", "0:2"]);
    let ready = broker.start_again();
    assert_eq!(ready.messages_from_ring, 10, "the other shard's ring is read");
    let shown = |queue, held| assert_eq!(self::held(&broker, topic, queue, 30), held, "queue {queue:?}");
    shown(first, (0..20).collect::<Vec<_>>());
    shown(second, (0..30).collect());

    broker.kill_nine();
    broker.set_arguments(&[]);
    broker.start_again();
    assert_eq!(held(&broker, topic, first, 30), (0..20).collect::<Vec<_>>());
    assert_eq!(held(&broker, topic, second, 30), (0..30).collect::<Vec<_>>());
}

/// A line of the log that takes longer is missing.
const LOG_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// Turns over a bit of the one segment of shard 0 that holds these bytes.
fn flip_in_segment(broker: &Broker, bytes: &[u8]) {
    let folder = broker.data().join("shard-0000");
    let mut flipped = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mut contents = fs::read(&path).unwrap();
        let found: Vec<_> = contents.windows(bytes.len()).enumerate().filter(|(_, part)| *part == bytes).collect();
        let places: Vec<usize> = found.into_iter().map(|(at, _)| at).collect();
        for at in places {
            contents[at] ^= 1;
            flipped += 1;
            fs::write(&path, &contents).unwrap();
        }
    }
    assert_eq!(flipped, 1, "a message is written once");
}

#[test]
fn a_flipped_byte_is_given_up_once_and_nothing_else_with_it() {
    let queue = QueueId(0);
    for end in ["kill", "stop"] {
        let (mut broker, topic) = with_topic(1, 1);
        send(&broker, topic, queue, DurableLevel::Synced, 0..30);
        match end {
            "kill" => broker.kill_nine(),
            _ => assert!(broker.terminate().success(), "a clean stop is a success"),
        }
        flip_in_segment(&broker, body(queue, 11).as_bytes());

        let lost = format!("topic {topic} queue 0: offsets 11..12 are lost");
        for _ in 0..2 {
            let refusal = broker.start_refused();
            says(&refusal, &["shard 0", "positions", "checksum", &lost, "--accept-loss"]);
        }
        broker.set_arguments(&["--accept-loss"]);
        broker.start_again();
        let kept: Vec<u64> = (0..30).filter(|&number| number != 11).collect();
        assert_eq!(held(&broker, topic, queue, 30), kept);
        send(&broker, topic, queue, DurableLevel::Synced, 30..35);
        broker.kill_nine();

        broker.set_arguments(&[]);
        broker.start_again();
        // The log is written beside the shards, and may come a moment after the ready line.
        eventually("the log says what was passed over", LOG_WITHIN, || {
            broker.log().contains("passed over what --accept-loss gave up before")
        });
        let kept: Vec<u64> = (0..35).filter(|&number| number != 11).collect();
        assert_eq!(held(&broker, topic, queue, 35), kept);
        assert!(broker.terminate().success(), "a clean stop is a success");
    }
}
