//! Messages that stand only in the staging ring, because flushes are held back: acknowledged at `memory`, they outlive `kill -9`, a
//! second one at each step of the recovery, and a ring that was overwritten a hundred times.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, QueueId, ShardId, TopicId};
use peregrine_protocol::placement::shard_of_queue;
use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::connection::{Connection, Reply, Sent};
use peregrine_tests::dataset::Dataset;

const TOPIC: &str = "flights";
const RING_BYTES: usize = 1 << 20;
/// Steps of a recovery behind which the broker can be killed.
const RECOVERY_STEPS: usize = 11;

/// A broker with a topic of one queue per shard, stopped: its next start can have a test switch.
fn prepared(shards: u16) -> Broker {
    let mut broker = Settings::default().shards(shards).ring_bytes(RING_BYTES as u64).start();
    Connection::open(broker.address(), None).create_topic(TOPIC, u32::from(shards));
    assert!(broker.terminate().success(), "a clean stop is a success");
    broker
}

/// A connection to the shard that owns the queue.
fn connection_for(broker: &Broker, queue: QueueId, shards: u16) -> Connection {
    Connection::open(broker.address(), Some(shard_of_queue(TOPIC, queue, shards)))
}

/// A queue that holds so many messages, and how many go into a batch.
#[derive(Clone, Copy)]
struct Target {
    topic: TopicId,
    queue: QueueId,
    held: usize,
    batch_lines: usize,
}

/// Sends lines at `memory` until the ring has no room for another batch; returns those that were acknowledged.
fn fill(connection: &mut Connection, target: Target, lines: &[String]) -> Vec<String> {
    let Target { topic, queue, held, batch_lines } = target;
    let mut acknowledged = Vec::new();
    for bodies in lines.chunks(batch_lines).cycle() {
        let batch = Sent { topic, queue, level: DurableLevel::Memory, producer: None, bodies };
        match connection.produce(&batch) {
            Reply::Produced(answer) => {
                assert_eq!(answer.base_offset.0, (held + acknowledged.len()) as u64, "offsets are dense");
                acknowledged.extend_from_slice(bodies);
            }
            Reply::Error { code: Some(ErrorCode::Busy), .. } => return acknowledged,
            other => panic!("a batch was answered with {other:?}"),
        }
    }
    unreachable!("lines are sent again and again until the ring is full")
}

/// Fills the rings of all shards while flushes are held; what was acknowledged in each queue.
fn fill_all(broker: &Broker, shards: u16, lines: &[String]) -> Vec<Vec<String>> {
    let queues = (0..u32::from(shards)).map(QueueId);
    let filled: Vec<Vec<String>> = queues
        .map(|queue| {
            let mut connection = connection_for(broker, queue, shards);
            let topic = connection.topic(TOPIC);
            fill(&mut connection, Target { topic, queue, held: 0, batch_lines: 20 }, lines)
        })
        .collect();
    for acknowledged in &filled {
        let bytes: usize = acknowledged.iter().map(String::len).sum();
        assert!(bytes > RING_BYTES / 2, "only {bytes} bytes were acknowledged: the ring takes more");
    }
    filled
}

#[track_caller]
fn assert_held(broker: &Broker, shards: u16, expected: &[Vec<String>]) {
    for (queue, expected) in (0..).map(QueueId).zip(expected) {
        let mut connection = connection_for(broker, queue, shards);
        let topic = connection.topic(TOPIC);
        let found = connection.read_all(topic, queue);
        assert_eq!(found.len(), expected.len(), "messages of queue {queue}");
        assert!(found == *expected, "queue {queue} holds other messages, or in another order");
    }
}

fn all_come_back_after_one_kill(shards: u16) {
    let data = Dataset::flights(2_000);
    let mut broker = prepared(shards);
    broker.set_arguments(&["--test-fault=hold-flushes"]);
    broker.start_again();
    let acknowledged = fill_all(&broker, shards, data.lines());
    broker.kill_nine();
    broker.set_arguments(&[]);
    let ready = broker.start_again();
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    assert_eq!(ready.messages_from_ring, count as u64, "the ready line counts what came from the ring");
    assert_held(&broker, shards, &acknowledged);

    // From here on they stand on the disk: the ring is not needed any more.
    broker.kill_nine();
    assert_eq!(broker.start_again().messages_from_ring, 0);
    assert_held(&broker, shards, &acknowledged);
}

#[test]
fn what_stands_only_in_the_ring_comes_back_with_1_shard() {
    all_come_back_after_one_kill(1);
}

#[test]
fn what_stands_only_in_the_ring_comes_back_with_2_shards() {
    all_come_back_after_one_kill(2);
}

#[test]
fn what_stands_only_in_the_ring_outlives_a_second_kill_at_each_step_of_recovery() {
    let data = Dataset::flights(2_000);
    let mut broker = prepared(1);
    let mut held: Vec<String> = Vec::new();
    for step in 1..=RECOVERY_STEPS {
        broker.set_arguments(&["--test-fault=hold-flushes"]);
        broker.start_again();
        let mut connection = Connection::open(broker.address(), Some(ShardId(0)));
        let topic = connection.topic(TOPIC);
        let before = held.len();
        let target = Target { topic, queue: QueueId(0), held: before, batch_lines: 20 };
        held.extend(fill(&mut connection, target, data.lines()));
        let count = (held.len() - before) as u64;
        broker.kill_nine();

        broker.set_arguments(&[&format!("--test-fault=kill-after-step={step}")]);
        broker.start_killed();
        broker.set_arguments(&[]);
        let ready = broker.start_again();
        let from_ring = ready.messages_from_ring;
        assert!(from_ring == count || from_ring == 0, "step {step}: {from_ring} of {count} messages from the ring");
        assert_held(&broker, 1, std::slice::from_ref(&held));
        assert!(broker.terminate().success(), "a clean stop is a success");
    }
}

#[test]
fn what_stands_only_in_the_ring_comes_back_after_100_wrap_arounds() {
    const WRAP_AROUNDS: usize = 100;
    let data = Dataset::flights(20_000);
    let mut broker = prepared(1);
    // From that write on durable stands still, and what is acknowledged then stands only in the ring.
    broker.set_arguments(&["--test-fault=hold-write=3000"]);
    broker.start_again();
    let mut connection = Connection::open(broker.address(), Some(ShardId(0)));
    let topic = connection.topic(TOPIC);
    let target = Target { topic, queue: QueueId(0), held: 0, batch_lines: 1_000 };
    let acknowledged = fill(&mut connection, target, data.lines());
    let bytes: usize = acknowledged.iter().map(String::len).sum();
    assert!(bytes > WRAP_AROUNDS * RING_BYTES, "the ring was overwritten {} times only", bytes / RING_BYTES);

    broker.kill_nine();
    broker.set_arguments(&[]);
    let ready = broker.start_again();
    assert!(ready.messages_from_ring > 0, "the last messages stood only in the ring");
    assert_held(&broker, 1, &[acknowledged]);
}
