//! A write of the log fails: nothing is acknowledged any more, what was visible is still served, the stop says what stands only in
//! the ring, and the next start has it all.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, ProducerId, QueueId, Sequence, TopicId};
use peregrine_protocol::message::{CreateTopic, Request, TopicRetention};
use peregrine_tests::broker::Settings;
use peregrine_tests::connection::{Connection, Reply, Sent};

const TOPIC: &str = "poisoned";
const PRODUCER: ProducerId = ProducerId(5);

fn produce(connection: &mut Connection, topic: TopicId, queue: u32, sequence: u64, level: DurableLevel) -> Reply {
    let bodies = [format!("message {sequence} of queue {queue}")];
    let producer = Some((PRODUCER, Sequence(sequence)));
    connection.produce(&Sent { topic, queue: QueueId(queue), level, producer, bodies: &bodies })
}

#[track_caller]
fn assert_poisoned(reply: &Reply) {
    let Reply::Error { code, sentence, .. } = reply else { panic!("a poisoned log answered {reply:?}") };
    assert_eq!(*code, Some(ErrorCode::Poisoned), "{sentence}");
}

#[test]
fn a_failed_write_is_never_taken_for_success() {
    let mut broker = Settings::default().start();
    Connection::open(broker.address(), None).create_topic(TOPIC, 2);
    let mut connection = Connection::open(broker.address(), None);
    let topic = connection.topic(TOPIC);
    let first = produce(&mut connection, topic, 0, 0, DurableLevel::Synced);
    assert!(matches!(first, Reply::Produced(_)), "{first:?}");
    assert!(broker.terminate().success(), "a clean stop is a success");

    broker.set_arguments(&["--test-fault=fail-write=1"]);
    broker.start_again();
    let mut connection = Connection::open(broker.address(), None);
    assert_poisoned(&produce(&mut connection, topic, 0, 1, DurableLevel::Synced));
    assert_poisoned(&produce(&mut connection, topic, 0, 2, DurableLevel::Synced));
    assert_poisoned(&produce(&mut connection, topic, 1, 0, DurableLevel::Memory));
    assert_poisoned(&connection.ask(&Request::CreateTopic(CreateTopic {
        name: "another",
        queues: 1,
        retention: TopicRetention::default(),
    })));
    assert_eq!(connection.read_all(topic, QueueId(0)), ["message 0 of queue 0"], "what was visible is still served");
    assert!(!broker.terminate().success(), "the stop of a poisoned broker is a failure");
    let log = broker.log();
    assert!(log.contains("poisoned"), "the log says what happened: {log}");

    // The outcome of the batch whose write failed was unknown; sent again, it is found in the ring.
    broker.set_arguments(&[]);
    assert_eq!(broker.start_again().messages_from_ring, 1);
    let mut connection = Connection::open(broker.address(), None);
    match produce(&mut connection, topic, 0, 1, DurableLevel::Synced) {
        Reply::Produced(answer) => assert_eq!((answer.base_offset.0, answer.duplicate), (1, true)),
        other => panic!("a batch sent again was answered with {other:?}"),
    }
    let next = produce(&mut connection, topic, 0, 2, DurableLevel::Synced);
    assert!(matches!(next, Reply::Produced(answer) if answer.base_offset.0 == 2 && !answer.duplicate), "{next:?}");
    assert_eq!(connection.read_all(topic, QueueId(1)), Vec::<String>::new());
}
