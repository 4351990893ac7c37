//! One write of the log is held back: until it returns, nothing that it or anything behind it holds is acknowledged at `synced` or
//! seen by a reader, however many later writes finish before it.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use peregrine_protocol::ids::{Correlation, DurableLevel, ProducerId, QueueId, Sequence, TopicId};
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::connection::{Connection, Reply, Sent};

const TOPIC: &str = "held";
const HELD: QueueId = QueueId(0);
const BEHIND: QueueId = QueueId(1);
const MEMORY: QueueId = QueueId(2);
const QUEUES: [QueueId; 3] = [HELD, BEHIND, MEMORY];
const PRODUCER: ProducerId = ProducerId(77);

/// A broker whose first write does not return, with a topic of three queues.
fn with_first_write_held() -> Broker {
    let mut broker = Settings::default().start();
    Connection::open(broker.address(), None).create_topic(TOPIC, QUEUES.len() as u32);
    assert!(broker.terminate().success(), "a clean stop is a success");
    broker.set_arguments(&["--test-fault=hold-write=1"]);
    broker.start_again();
    broker
}

fn body(queue: QueueId, number: u64) -> Vec<String> {
    vec![format!("message {number} of queue {queue}")]
}

/// Device writes that the only shard has issued in this run.
fn writes(connection: &mut Connection) -> u64 {
    connection.shard_statistics()["shards"][0]["log"]["writes"].as_u64().expect("shards count their writes")
}

fn send(connection: &mut Connection, topic: TopicId, queue: QueueId, number: u64, level: DurableLevel) -> Correlation {
    let bodies = body(queue, number);
    connection.send_batch(&Sent { topic, queue, level, producer: Some((PRODUCER, Sequence(number))), bodies: &bodies })
}

#[test]
fn later_writes_release_nothing_that_is_behind_a_held_one() {
    let mut broker = with_first_write_held();
    let mut reader = Connection::open(broker.address(), None);
    let topic = reader.topic(TOPIC);
    for queue in QUEUES {
        reader.subscribe_latest(topic, queue);
    }
    let mut producer = Connection::open(broker.address(), None);
    let mut observer = Connection::open(broker.address(), None);

    // The first batch is in the held write. Two writes may be in flight, so that the fourth is issued only when the second and
    // the third have returned.
    send(&mut producer, topic, HELD, 0, DurableLevel::Synced);
    eventually("the first write is issued", Duration::from_secs(10), || writes(&mut observer) >= 1);
    let mut sent = 0;
    eventually("later writes finish", Duration::from_secs(20), || {
        send(&mut producer, topic, BEHIND, sent, DurableLevel::Synced);
        sent += 1;
        writes(&mut observer) >= 4
    });
    // Memory messages: one behind a synced one of its queue, one in a queue of its own.
    let behind = send(&mut producer, topic, HELD, 1, DurableLevel::Memory);
    let alone = send(&mut producer, topic, MEMORY, 0, DurableLevel::Memory);

    let mut said = producer.wait_for(2);
    said.extend(producer.said_so_far());
    let mut answered: Vec<Correlation> = said.iter().map(|&(correlation, _)| correlation).collect();
    answered.sort_unstable();
    assert_eq!(answered, [behind, alone], "only what asked for memory is acknowledged: {said:?}");
    for (_, reply) in &said {
        let Reply::Produced(answer) = reply else { panic!("a batch was answered with {reply:?}") };
        assert_eq!((answer.level, answer.duplicate), (DurableLevel::Memory, false));
    }
    let mut seen = reader.wait_for(1);
    seen.extend(reader.said_so_far());
    assert_eq!(delivered(seen), [body(MEMORY, 0)], "a reader sees only what is not behind the held write");
    assert_eq!(reader.read_all(topic, HELD), Vec::<String>::new());
    assert_eq!(reader.read_all(topic, BEHIND), Vec::<String>::new());
    assert_eq!(reader.read_all(topic, MEMORY), body(MEMORY, 0));

    // All of it stands in the ring, and the producer learns so when it sends again what was not answered.
    broker.kill_nine();
    broker.set_arguments(&[]);
    let ready = broker.start_again();
    assert_eq!(ready.messages_from_ring, sent + 3);
    let mut producer = Connection::open(broker.address(), None);
    assert!(sent <= 64, "the broker remembers 64 batches of a producer");
    for number in 0..sent {
        let bodies = body(BEHIND, number);
        let known = Some((PRODUCER, Sequence(number)));
        let batch = Sent { topic, queue: BEHIND, level: DurableLevel::Synced, producer: known, bodies: &bodies };
        match producer.produce(&batch) {
            Reply::Produced(answer) => assert_eq!((answer.base_offset.0, answer.duplicate), (number, true)),
            other => panic!("a batch sent again was answered with {other:?}"),
        }
    }
    assert_eq!(producer.read_all(topic, HELD), [body(HELD, 0), body(HELD, 1)].concat());
    assert_eq!(producer.read_all(topic, MEMORY), body(MEMORY, 0));
    let behind: Vec<String> = (0..sent).flat_map(|number| body(BEHIND, number)).collect();
    assert_eq!(producer.read_all(topic, BEHIND), behind);
}

fn delivered(said: Vec<(Correlation, Reply)>) -> Vec<Vec<String>> {
    said.into_iter()
        .map(|(_, reply)| match reply {
            Reply::Delivered { bodies, .. } => bodies,
            other => panic!("a reader was sent {other:?}"),
        })
        .collect()
}
