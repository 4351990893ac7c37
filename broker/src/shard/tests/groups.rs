//! Consumer groups over sockets, with shards on two executors: homes, owners of queues, and members that come and go.

use super::directories;
use super::room::switch;
use super::serving::{Client, Said, Serving, batch, head, serve, settings};
use crate::control::settings::{GroupTimes, Settings, Switch, TestFault, WithoutTmpfs};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{
    DurableLevel, Epoch, GroupId, MemberId, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::message::{
    Ack, CreateGroup, DeleteGroup, DescribeGroup, GroupLag, GroupTopic, Heartbeat, JoinGroup, LeaveGroup, Mode,
    Produce, Request, ResetOffset, Start, Subscribe, Unsubscribe,
};
use peregrine_protocol::placement::{group_home, shard_of_queue};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

const QUEUES: u32 = 4;

/// A topic with one message in each queue, and a group that consumes it.
struct Scene {
    serving: Serving,
    topic: TopicId,
    group: GroupId,
    client: Client,
}

impl Scene {
    fn new(settings: &Settings) -> Self {
        let serving = serve(settings);
        let mut client = serving.client(Some(0));
        let topic = client.create("orders", QUEUES);
        let topics = [GroupTopic { topic, start: Start::Earliest }];
        let create = CreateGroup { name: "billing", topics: topics[..].into() };
        let group = match client.ask(&Request::CreateGroup(create)) {
            Said::Group { id } => id,
            other => panic!("{other:?}"),
        };
        let mut scene = Scene { serving, topic, group, client };
        (0..QUEUES).for_each(|queue| scene.produce(queue));
        scene
    }

    fn produce(&mut self, queue: u32) {
        let payload = batch(&queue.to_le_bytes());
        let head = head(self.topic, queue, DurableLevel::Memory, &payload);
        match self.client.ask(&Request::Produce(Produce { head, payload: &payload })) {
            Said::Stored(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn join(&self, name: &str) -> Member {
        let client = self.serving.client(Some(1));
        let id = MemberId(0);
        let mut joined = Member { client, topic: self.topic, group: self.group, id, subscriptions: BTreeMap::new() };
        joined.join(name);
        joined
    }

    fn lag(&mut self) -> BTreeMap<u32, (u64, u64)> {
        let mut rows = BTreeMap::new();
        for shard in 0..2 {
            let mut client = self.serving.client(Some(shard));
            let lag = GroupLag { group: self.group, topic: self.topic, first_queue: QueueId(0), limit: 100 };
            match client.ask(&Request::GroupLag(lag)) {
                Said::Lag(found) => rows.extend(found.iter().map(|row| (row.queue.0, (row.offset.0, row.end.0)))),
                other => panic!("{other:?}"),
            }
        }
        rows
    }
}

/// A member whose requests all go through one connection, whatever shard they are for.
struct Member {
    client: Client,
    topic: TopicId,
    group: GroupId,
    id: MemberId,
    subscriptions: BTreeMap<u32, SubscriptionId>,
}

impl Member {
    fn join(&mut self, name: &str) {
        let topics = [self.topic];
        let join = JoinGroup { group: self.group, member: name, topics: topics[..].into(), client: name };
        match self.client.ask(&Request::JoinGroup(join)) {
            Said::Joined { member } => self.id = member,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for an assignment of so many queues.
    fn assigned(&mut self, count: usize) -> Vec<u32> {
        let member = self.id;
        self.client.until(|said| match said {
            Said::Assigned { member: of, queues, .. } if of == member && queues.len() == count => Some(queues),
            _ => None,
        })
    }

    fn subscribe(&mut self, queue: u32) {
        let subscribe = Subscribe {
            topic: self.topic,
            queue: QueueId(queue),
            mode: Mode::Group { group: self.group, member: self.id },
            start: Start::Earliest,
            credit_messages: 100,
            credit_bytes: 1 << 20,
        };
        match self.client.ask(&Request::Subscribe(subscribe)) {
            Said::Subscribed(answer) => self.subscriptions.insert(queue, answer.subscription),
            other => panic!("{other:?}"),
        };
    }

    /// The next batches, by queue: their first offset and attempt.
    fn received(&mut self, count: usize) -> BTreeMap<u32, (u64, u16)> {
        let mut batches = BTreeMap::new();
        while batches.len() < count {
            let (of, head) = self.client.until(|said| match said {
                Said::Batch { subscription, head, .. } => Some((subscription, head)),
                _ => None,
            });
            let (&queue, _) =
                self.subscriptions.iter().find(|(_, id)| **id == of).expect("a subscription of this member");
            assert_eq!(batches.insert(queue, (head.first_wanted.0, head.attempt)), None, "one batch of each queue");
        }
        batches
    }

    fn ack(&mut self, queue: u32, offset: u64) -> Said {
        let ack = Ack { subscription: self.subscriptions[&queue], epoch: Epoch::ANY, offset: QueueOffset(offset) };
        self.client.ask(&Request::Ack(ack))
    }

    fn acks(&mut self, queue: u32, offset: u64) {
        match self.ack(queue, offset) {
            Said::Acked { offset: done } => assert_eq!(done, QueueOffset(offset)),
            other => panic!("{other:?}"),
        }
    }

    fn leave(&mut self) {
        for subscription in std::mem::take(&mut self.subscriptions).into_values() {
            self.client.ask(&Request::Unsubscribe(Unsubscribe { subscription }));
        }
        let left = self.client.ask(&Request::LeaveGroup(LeaveGroup { group: self.group, member: self.id }));
        assert!(matches!(left, Said::Other), "{left:?}");
    }
}

#[track_caller]
fn assert_code(said: &Said, code: ErrorCode) {
    assert!(matches!(said, Said::Error { code: found } if *found == code.number()), "{said:?} is not {code}");
}

#[test]
fn what_one_member_acknowledged_the_next_one_does_not_get() {
    let (data, rings) = directories();
    let mut scene = Scene::new(&settings(data.path(), rings.path(), 2));
    let mut first = scene.join("first");
    let all = first.assigned(QUEUES as usize);
    assert_eq!(all, [0, 1, 2, 3]);
    for &queue in &all {
        first.subscribe(queue);
    }
    let got = first.received(4);
    assert!(got.values().all(|&batch| batch == (0, 1)), "{got:?}");
    (0..3).for_each(|queue| first.acks(queue, 1));
    assert_code(&first.ack(3, 2), ErrorCode::Truncated);
    let beat = Heartbeat { group: first.group, member: first.id, number: 0 };
    let before = first.client.ask(&Request::Heartbeat(beat));
    let Said::Beat { number } = before else { panic!("{before:?}") };
    let told = first.client.until(|said| match said {
        Said::Assigned { number, .. } => Some(number),
        _ => None,
    });
    assert_eq!(told, number, "who knows an old assignment is told the newest");
    first.leave();
    assert_eq!(scene.lag(), BTreeMap::from([(0, (1, 1)), (1, (1, 1)), (2, (1, 1)), (3, (0, 1))]));

    let mut second = scene.join("second");
    second.assigned(4).iter().for_each(|&queue| second.subscribe(queue));
    assert_eq!(second.received(1), BTreeMap::from([(3, (0, 2))]), "handed out before, and not acknowledged");
    (0..4).for_each(|queue| scene.produce(queue));
    let got = second.received(4);
    assert_eq!(got, (0..4).map(|queue| (queue, (1, 1))).collect());
    assert!(scene.serving.stop().is_ok());
}

#[test]
fn a_member_that_comes_gets_half_of_the_queues_once_the_first_is_done_with_them() {
    let (data, rings) = directories();
    let scene = Scene::new(&settings(data.path(), rings.path(), 2));
    let mut first = scene.join("first");
    first.assigned(4).iter().for_each(|&queue| first.subscribe(queue));
    first.received(4);
    let mut second = scene.join("second");
    let moved = second.assigned(2);
    for &queue in &moved {
        second.subscribe(queue);
    }
    let mut revoked = Vec::new();
    while revoked.len() < 2 {
        revoked.push(first.client.until(|said| match said {
            Said::Revoked { subscription } => Some(subscription),
            _ => None,
        }));
    }
    let expected: Vec<_> = moved.iter().map(|queue| first.subscriptions[queue]).collect();
    assert!(revoked.iter().all(|id| expected.contains(id)), "{revoked:?} of {expected:?}");
    // One is acknowledged and moves on with nothing left; the other is given back.
    first.acks(moved[0], 1);
    first.client.ask(&Request::Unsubscribe(Unsubscribe { subscription: first.subscriptions[&moved[1]] }));
    assert_eq!(second.received(1), BTreeMap::from([(moved[1], (0, 2))]));
    assert_code(&first.ack(moved[0], 1), ErrorCode::NotHolder);
    let kept: Vec<u32> = (0..4).filter(|queue| !moved.contains(queue)).collect();
    for &queue in &kept {
        first.acks(queue, 1);
    }
    let describe = DescribeGroup { name: "billing", after: "", limit: 10 };
    match second.client.ask(&Request::DescribeGroup(describe)) {
        Said::Members(members) => assert_eq!(members, [("first".to_owned(), 2), ("second".to_owned(), 2)]),
        other => panic!("{other:?}"),
    }
    assert!(scene.serving.stop().is_ok());
}

#[test]
fn a_lost_member_keeps_its_queues_for_the_grace_time_and_a_name_has_one_bearer() {
    let (data, rings) = directories();
    let (silence, grace, drain) = (Nanos::from_secs(10), Nanos::from_millis(500), Nanos::from_secs(5));
    let groups = GroupTimes { silence, grace, drain };
    let scene = Scene::new(&Settings { groups, ..settings(data.path(), rings.path(), 2) });
    let mut lost = scene.join("a");
    lost.assigned(4).iter().for_each(|&queue| lost.subscribe(queue));
    lost.received(4);
    lost.acks(0, 1);
    let before = lost.id;
    drop(lost);
    // It is back in time: the same member, with its queues; what it had and did not acknowledge comes again.
    let mut back = scene.join("a");
    assert_eq!(back.id, before);
    back.assigned(4).iter().for_each(|&queue| back.subscribe(queue));
    assert_eq!(back.received(3), (1..4).map(|queue| (queue, (0, 2))).collect());
    // Another client takes the name.
    let mut other = scene.join("b");
    other.join("a");
    let member = back.id;
    back.client.until(|said| match said {
        Said::MemberEnded { code, member: ended } if code == ErrorCode::MemberFenced.number() => {
            assert_eq!(ended, member.0);
            Some(())
        }
        _ => None,
    });
    drop((back, other));
    let mut heir = scene.join("heir");
    heir.assigned(4).iter().for_each(|&queue| heir.subscribe(queue));
    let got = heir.received(3);
    assert_eq!(got.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(scene.serving.stop().is_ok());
}

#[test]
fn a_reset_ends_the_subscription_and_a_deleted_group_its_members() {
    let (data, rings) = directories();
    let mut scene = Scene::new(&settings(data.path(), rings.path(), 2));
    let mut member = scene.join("a");
    member.assigned(4).iter().for_each(|&queue| member.subscribe(queue));
    member.received(4);
    (0..4).for_each(|queue| member.acks(queue, 1));
    for queue in 0..4 {
        let reset =
            ResetOffset { group: scene.group, topic: scene.topic, queue: QueueId(queue), start: Start::Earliest };
        assert!(matches!(scene.client.ask(&Request::ResetOffset(reset)), Said::Other));
        let of = member.subscriptions[&queue];
        let code = member.client.until(|said| match said {
            Said::Ended { code, .. } => Some(code),
            _ => None,
        });
        assert_eq!(code, ErrorCode::OffsetReset.number());
        assert_code(&member.ack(queue, 1), ErrorCode::NotHolder);
        member.subscribe(queue);
        assert_ne!(member.subscriptions[&queue], of);
        assert_eq!(member.received(1), BTreeMap::from([(queue, (0, 1))]), "a reset begins anew");
    }
    let delete = DeleteGroup { name: "billing", id: Some(scene.group) };
    assert!(matches!(scene.client.ask(&Request::DeleteGroup(delete)), Said::Group { .. }));
    let (mut subscriptions, mut members) = (0, 0);
    member.client.until(|said| {
        let code = match said {
            Said::Ended { code, .. } => {
                subscriptions += 1;
                code
            }
            Said::MemberEnded { code, .. } => {
                members += 1;
                code
            }
            _ => return None,
        };
        assert_eq!(code, ErrorCode::GroupDeleted.number());
        (subscriptions == 4 && members == 1).then_some(())
    });
    let topics = [scene.topic];
    let join = JoinGroup { group: scene.group, member: "late", topics: topics[..].into(), client: "late" };
    assert_code(&member.client.ask(&Request::JoinGroup(join)), ErrorCode::GroupDeleted);
    assert!(scene.serving.stop().is_ok());
}

/// A description by name was refused without asking shard 0.
#[test]
fn a_shard_that_missed_the_news_of_a_group_asks_for_it_by_name_and_by_id() {
    let (data, rings) = directories();
    let mut settings = settings(data.path(), rings.path(), 2);
    settings.test_faults.push(TestFault::MissNews);
    let serving = serve(&settings);
    let mut home = serving.client(Some(0));
    let mut other = serving.client(Some(1));
    let topic = home.create("orders", QUEUES);
    let topics = [GroupTopic { topic, start: Start::Earliest }];
    let at = |shard| (0..).map(|n| format!("billing-{n}")).filter(move |name| group_home(name, 2) == ShardId(shard));
    // Of these some have the shard that missed the news as their home, and some the one that it must ask.
    for name in at(1).take(2).chain(at(0).take(2)) {
        let create = CreateGroup { name: &name, topics: topics[..].into() };
        let Said::Group { id } = home.ask(&Request::CreateGroup(create)) else { panic!("{name} is not made") };
        let describe = DescribeGroup { name: &name, after: "", limit: 10 };
        match other.ask(&Request::DescribeGroup(describe)) {
            Said::Members(members) => assert!(members.is_empty()),
            said => panic!("{name}: {said:?}"),
        }
        let create = CreateGroup { name: &format!("{name}-by-id"), topics: topics[..].into() };
        let Said::Group { id: unheard } = home.ask(&Request::CreateGroup(create)) else { panic!("it is not made") };
        for group in [id, unheard] {
            let lag = GroupLag { group, topic, first_queue: QueueId(0), limit: 100 };
            assert!(matches!(other.ask(&Request::GroupLag(lag)), Said::Lag(_)));
        }
    }
    let unknown = DescribeGroup { name: "never-made", after: "", limit: 10 };
    for client in [&mut home, &mut other] {
        assert_code(&client.ask(&Request::DescribeGroup(unknown)), ErrorCode::UnknownGroup);
    }
    assert!(serving.stop().is_ok());
}

/// An acknowledgement that says nothing new adds nothing to the log, but its answer waits like any other.
#[test]
fn acknowledgements_that_are_repeated_wait_in_no_more_places_than_there_are() {
    const PLACES: usize = 4;
    const ACKS: usize = 7;
    let (data, rings) = directories();
    // Without a ring that survives, acknowledgements wait for a flush.
    let mut settings =
        Settings { ring_directory: None, without_tmpfs: WithoutTmpfs::Raise, ..settings(data.path(), rings.path(), 2) };
    let held = switch(false);
    settings.test_faults = vec![TestFault::HoldFlushesWhile(Switch(held)), TestFault::AcknowledgementPlaces(PLACES)];
    let mut scene = Scene::new(&settings);
    let mut member = scene.join("a");
    member.assigned(4).iter().for_each(|&queue| member.subscribe(queue));
    member.received(4);
    held.store(true, Ordering::Relaxed);
    // One that lies on the connection's own shard.
    let here = |queue: &u32| shard_of_queue("orders", QueueId(*queue), 2) == ShardId(1);
    let queue = (0..QUEUES).find(here).expect("half of the queues");
    let ack = Ack { subscription: member.subscriptions[&queue], epoch: Epoch::ANY, offset: QueueOffset(1) };
    for _ in 0..ACKS {
        member.client.send(&Request::Ack(ack));
    }
    for _ in PLACES..ACKS {
        assert_code(&member.client.receive().1, ErrorCode::Busy);
    }
    held.store(false, Ordering::Relaxed);
    // It lets the shard see that.
    scene.produce(queue);
    for _ in 0..PLACES {
        let said = member.client.receive().1;
        assert!(matches!(said, Said::Acked { offset: QueueOffset(1) }), "{said:?}");
    }
    member.acks(queue, 1);
    assert!(scene.serving.stop().is_ok());
}
