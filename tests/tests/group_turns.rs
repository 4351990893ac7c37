//! Queues of a group as a running broker hands them over, and places that find no room to move.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, GroupId, MemberId, QueueId, SubscriptionId, TopicId};
use peregrine_protocol::message::consume::Mode;
use peregrine_protocol::message::{
    Answer, CreateGroup, GroupTopic, JoinGroup, Produce, ProduceHead, Request, ResetOffset, Start, Subscribe,
    Unsubscribe,
};
use peregrine_tests::broker::{Settings, eventually};
use peregrine_tests::connection::Connection;
use peregrine_tests::wire::{Heard, Wire, batch_of, produce_head, whole};

const TOPIC: &str = "turns";
const QUEUES: [QueueId; 2] = [QueueId(0), QueueId(1)];

/// What takes longer does not come.
const WITHIN: Duration = Duration::from_secs(20);
/// Below the time of a drain, behind which a queue moves in any case.
const BEFORE_THE_DRAIN_ENDS: Duration = Duration::from_secs(3);

/// A group of one topic with two queues.
fn prepare(wire: &mut Wire) -> (TopicId, GroupId) {
    let topic = wire.create_topic(TOPIC, QUEUES.len() as u32);
    let topics = [GroupTopic { topic, start: Start::Earliest }];
    let group = wire.ask(&Request::CreateGroup(CreateGroup { name: "g", topics: topics[..].into() }), |answer| {
        let Answer::CreateGroup(created) = answer else { panic!("{answer:?}") };
        created.group.id
    });
    (topic, group)
}

/// A member with a connection of its own.
struct Member {
    wire: Wire,
    group: GroupId,
    topic: TopicId,
    id: MemberId,
}

impl Member {
    fn join(broker: SocketAddr, (topic, group): (TopicId, GroupId), name: &str) -> Self {
        let mut wire = Wire::open(broker);
        let topics = [topic];
        let join = JoinGroup { group, member: name, topics: topics[..].into(), client: name };
        let id = wire.ask(&Request::JoinGroup(join), |answer| {
            let Answer::JoinGroup(joined) = answer else { panic!("{answer:?}") };
            joined.member
        });
        Self { wire, group, topic, id }
    }

    /// Passes over what comes until something is looked for.
    #[track_caller]
    fn until<T>(&mut self, within: Duration, mut look: impl FnMut(Answer<'_>) -> Option<T>) -> T {
        loop {
            let Heard::Frame(bytes) = self.wire.hear(within) else { panic!("it did not come") };
            if let Some(found) = look(Answer::decode(&whole(&bytes)).expect("an answer that this version knows")) {
                return found;
            }
        }
    }

    /// The queues of the first assignment that names so many.
    fn assigned(&mut self, count: usize) -> Vec<QueueId> {
        self.until(WITHIN, |answer| match answer {
            Answer::Assignment(told) if told.queues.len() == count => {
                Some(told.queues.iter().map(|q| q.queue).collect())
            }
            _ => None,
        })
    }

    fn subscribe(&mut self, queue: QueueId) -> SubscriptionId {
        let subscribe = Subscribe {
            topic: self.topic,
            queue,
            mode: Mode::Group { group: self.group, member: self.id },
            start: Start::Earliest,
            credit_messages: 1000,
            credit_bytes: 1 << 20,
        };
        self.wire.request(&Request::Subscribe(subscribe));
        self.until(WITHIN, |answer| match answer {
            Answer::Subscribe(began) => Some(began.subscription),
            Answer::Error(error) => panic!("{error:?}"),
            _ => None,
        })
    }

    fn delivered(&mut self, within: Duration) -> SubscriptionId {
        self.until(within, |answer| match answer {
            Answer::Deliver(delivery) => Some(delivery.subscription),
            _ => None,
        })
    }
}

/// The shard's task had nothing that told it to go on: on a quiet shard the queue was nobody's until something else happened.
#[test]
fn a_queue_that_is_given_back_on_a_quiet_shard_reaches_the_next_member() {
    let broker = Settings::default().shards(2).start();
    let mut wire = Wire::open(broker.address());
    let consumed = prepare(&mut wire);
    for queue in QUEUES {
        wire.produce_to(consumed.0, queue, DurableLevel::Synced, b"one");
    }
    let mut first = Member::join(broker.address(), consumed, "first");
    assert_eq!(first.assigned(2), QUEUES);
    let subscriptions = QUEUES.map(|queue| {
        let subscription = first.subscribe(queue);
        assert_eq!(first.delivered(WITHIN), subscription);
        subscription
    });
    let mut second = Member::join(broker.address(), consumed, "second");
    let moved = second.assigned(1)[0];
    second.subscribe(moved);
    let subscription = first.until(WITHIN, |answer| match answer {
        Answer::Revoke(revoke) => Some(revoke.subscription),
        _ => None,
    });
    assert_eq!(subscription, subscriptions[moved.0 as usize]);
    // A log writes its mark when it has been quiet, and what wakes the shard for that would hide the failure.
    let mut observer = Connection::open(broker.address(), None);
    eventually("all that the logs hold is durable and marked", WITHIN, || {
        let figures = observer.shard_statistics();
        let shards = figures["shards"].as_array().expect("a list of shards");
        shards.iter().all(|shard| shard["published"] == shard["durable"] && shard["durable"] == shard["marked"])
    });
    first.wire.request(&Request::Unsubscribe(Unsubscribe { subscription }));
    second.delivered(BEFORE_THE_DRAIN_ENDS);
}

/// They came back over the mesh like batches, but were not held back like them: the 513th ended the broker with a panic.
#[test]
fn what_moves_places_and_finds_no_room_on_another_executor_is_answered() {
    const RESETS: usize = 1500;
    /// Some find the last room, and wait for a flush that never ends.
    const BUSY: usize = 1000;
    let mut broker = Settings::default().shards(2).ring_bytes(1 << 20).start();
    let (topic, group) = prepare(&mut Wire::open(broker.address()));
    assert!(broker.terminate().success());
    broker.set_arguments(&["--test-fault=hold-flushes"]);
    broker.start_again();
    let mut producer = Wire::open(broker.address());
    for queue in QUEUES {
        for size in [32 << 10, 1] {
            while stores(&mut producer, topic, queue, &vec![b'x'; size]) {}
        }
    }
    // One of the queues lies on another executor than the connection.
    let mut wire = Wire::open(broker.address());
    for queue in QUEUES {
        let reset = ResetOffset { group, topic, queue, start: Start::Latest };
        for _ in 0..RESETS {
            wire.request(&Request::ResetOffset(reset));
        }
        for _ in 0..BUSY {
            assert_eq!(wire.hear_error(WITHIN), Some(ErrorCode::Busy as u16));
        }
    }
    wire.request(&Request::Ping);
    let alive = |wire: &mut Wire| match wire.hear(WITHIN) {
        Heard::Frame(bytes) => matches!(Answer::decode(&whole(&bytes)), Ok(Answer::Ping)),
        gone => panic!("{gone:?}"),
    };
    while !alive(&mut wire) {}
}

/// Whether the broker takes one more message.
fn stores(producer: &mut Wire, topic: TopicId, queue: QueueId, body: &[u8]) -> bool {
    let payload = batch_of(body);
    let head = ProduceHead { queue, ..produce_head(topic, DurableLevel::Memory, &payload) };
    producer.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| match answer {
        Answer::Produce(_) => true,
        Answer::Error(error) if error.code == ErrorCode::Busy as u16 => false,
        other => panic!("{other:?}"),
    })
}
