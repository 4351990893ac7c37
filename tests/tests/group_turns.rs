//! Queues of a group as a running broker hands them over.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use peregrine_protocol::ids::{DurableLevel, GroupId, MemberId, QueueId, SubscriptionId, TopicId};
use peregrine_protocol::message::consume::Mode;
use peregrine_protocol::message::{
    Answer, CreateGroup, GroupTopic, JoinGroup, Request, Start, Subscribe, Unsubscribe,
};
use peregrine_tests::broker::Settings;
use peregrine_tests::wire::{Heard, Wire, whole};

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
    // Time itself: a log writes its mark when it has been quiet, and what wakes the shard for that would hide the failure.
    std::thread::sleep(Duration::from_millis(1500));
    first.wire.request(&Request::Unsubscribe(Unsubscribe { subscription }));
    second.delivered(BEFORE_THE_DRAIN_ENDS);
}
