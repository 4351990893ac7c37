//! The member's core against [`super::model`], and what the model does not do, step by step.

use proptest::prelude::*;

use super::model::{CREDIT, HOME, QUEUES, SHARDS, TOPIC, World, core_of, head, key, new_core, refusal};
use super::{Action, MemberCore, Notice, Ticket, Token};
use crate::error::Error;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, MemberId, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId};
use peregrine_protocol::message::{
    AckAnswer, AssignedQueue, AssignedQueues, Assignment, JoinGroupAnswer, SubscribeAnswer,
};

const MEMBERS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Produce { queue: u32, count: u64 },
    Connect { client: usize, shard: u16 },
    Disconnect { client: usize, shard: u16 },
    EndGrace { client: usize },
    Assign { seed: u64 },
    Fence { queue: u32 },
    Reset { queue: u32, to: u64 },
    Kill,
    Power { keep: u64 },
    Sync { queue: u32 },
    Busy { requests: u32 },
    Process { client: usize, shard: u16, count: usize },
    Receive { client: usize, shard: u16, count: usize },
    Deliver { queue: u32, count: usize },
    Take { client: usize },
    Finish { client: usize, pick: usize },
    Close { client: usize },
    Wait { steps: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (client, shard, queue) = (0..MEMBERS, 0..SHARDS, 0..QUEUES);
    let place = (client.clone(), shard.clone());
    prop_oneof![
        6 => (queue.clone(), 1..6u64).prop_map(|(queue, count)| Step::Produce { queue, count }),
        6 => place.clone().prop_map(|(client, shard)| Step::Connect { client, shard }),
        2 => place.clone().prop_map(|(client, shard)| Step::Disconnect { client, shard }),
        1 => client.clone().prop_map(|client| Step::EndGrace { client }),
        3 => any::<u64>().prop_map(|seed| Step::Assign { seed }),
        2 => queue.clone().prop_map(|queue| Step::Fence { queue }),
        1 => (queue.clone(), any::<u64>()).prop_map(|(queue, to)| Step::Reset { queue, to }),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(|keep| Step::Power { keep }),
        1 => queue.clone().prop_map(|queue| Step::Sync { queue }),
        1 => (1..4u32).prop_map(|requests| Step::Busy { requests }),
        12 => (place.clone(), 1..6usize).prop_map(|((client, shard), count)| Step::Process { client, shard, count }),
        12 => (place, 1..6usize).prop_map(|((client, shard), count)| Step::Receive { client, shard, count }),
        10 => (queue, 1..6usize).prop_map(|(queue, count)| Step::Deliver { queue, count }),
        14 => client.clone().prop_map(|client| Step::Take { client }),
        12 => (client.clone(), any::<usize>()).prop_map(|(client, pick)| Step::Finish { client, pick }),
        1 => client.prop_map(|client| Step::Close { client }),
        3 => (1..4u64).prop_map(|steps| Step::Wait { steps }),
    ]
}

fn act(world: &mut World, step: &Step) {
    match *step {
        Step::Produce { queue, count } => world.produce(queue, count),
        Step::Connect { client, shard } => world.connect(client, ShardId(shard)),
        Step::Disconnect { client, shard } => world.disconnect(client, ShardId(shard)),
        Step::EndGrace { client } => world.end_grace(client),
        Step::Assign { seed } => world.assign(seed),
        Step::Fence { queue } => world.fence(queue),
        Step::Reset { queue, to } => world.reset(queue, to),
        Step::Kill => world.kill(),
        Step::Power { keep } => world.lose_power(keep),
        Step::Sync { queue } => world.sync(queue),
        Step::Busy { requests } => world.be_busy(requests),
        Step::Process { client, shard, count } => world.process(client, ShardId(shard), count),
        Step::Receive { client, shard, count } => world.receive(client, ShardId(shard), count),
        Step::Deliver { queue, count } => world.deliver(queue, count),
        Step::Take { client } => world.take(client),
        Step::Finish { client, pick } => world.finish(client, pick),
        // One stays, so that all comes to an end.
        Step::Close { client } if client > 0 => world.close(client),
        Step::Close { .. } => {}
        Step::Wait { steps } => world.wait(steps),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(3_000), ..ProptestConfig::default() })]

    /// Nothing is acknowledged that was not done, nothing is handed out twice while the queue is the member's, order is kept, and
    /// in the end all is done.
    #[test]
    fn a_group_loses_and_confuses_nothing(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new(MEMBERS);
        for client in 0..MEMBERS {
            world.connect(client, HOME);
            world.process(client, HOME, 1);
            world.receive(client, HOME, 2);
        }
        world.assign(0x210);
        for step in &steps {
            act(&mut world, step);
        }
        world.heal();
    }
}

/// One member with connections to both shards; every request is seen by the test.
struct Alone {
    core: MemberCore<u64>,
    now: Nanos,
}

impl Alone {
    fn joined(member: u64) -> Self {
        let mut alone = Self { core: new_core(0), now: Nanos(1) };
        alone.core.connected(HOME, alone.now);
        alone.core.connected(ShardId(1), alone.now);
        alone.join_as(member);
        alone
    }

    fn join_as(&mut self, member: u64) {
        assert!(self.actions().contains(&Action::Join(HOME)));
        let (number, second) = (0, Nanos::from_secs(1));
        let (heartbeat, silence, grace) = (second, second, second);
        let answer = JoinGroupAnswer { member: MemberId(member), number, heartbeat, silence, grace };
        self.core.joined(Ok(answer), self.now);
    }

    fn assign(&mut self, number: u64, queues: &[u32]) {
        let rows: Vec<_> = queues.iter().map(|&queue| AssignedQueue { topic: TOPIC, queue: QueueId(queue) }).collect();
        let (group, member) = (super::model::GROUP, self.core.member().expect("joined"));
        self.core.assigned(&Assignment { group, member, number, queues: AssignedQueues::of(&rows) }, self.now);
    }

    /// Answers the subscribe that must be among the actions.
    fn subscribe(&mut self, place: u64) -> Ticket {
        let actions = self.actions();
        self.answer_subscribe(&actions, place).unwrap_or_else(|| panic!("no subscribe in {actions:?}"))
    }

    fn answer_subscribe(&mut self, actions: &[Action], place: u64) -> Option<Ticket> {
        let ticket = actions.iter().find_map(|action| match action {
            Action::Subscribe(_, ticket, _) => Some(*ticket),
            _ => None,
        })?;
        let (start, end) = (QueueOffset(place), QueueOffset(place));
        let answer = SubscribeAnswer { subscription: SubscriptionId(ticket.0), epoch: Epoch(1), start, end };
        self.core.subscribed(ticket, Ok(answer), self.now);
        Some(ticket)
    }

    fn deliver(&mut self, ticket: Ticket, first: u64, count: usize) {
        let messages: Vec<u64> = (first..first + count as u64).collect();
        self.core.delivered(ticket, &head(first, count, 1), messages, self.now);
    }

    fn take(&mut self) -> Option<Token> {
        self.core.next_message(|_| false).map(|(token, _)| token)
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.next_action()).collect()
    }

    fn acks(&mut self) -> Vec<u64> {
        let ack = |action: &Action| match action {
            Action::Ack(_, _, ack) => Some(ack.offset.0),
            _ => None,
        };
        self.actions().iter().filter_map(ack).collect()
    }

    fn answer_ack(&mut self, ticket: Ticket, offset: u64) {
        let answer = AckAnswer { subscription: SubscriptionId(ticket.0), offset: QueueOffset(offset) };
        self.core.acked(ticket, Ok(answer), self.now);
    }
}

#[test]
fn acks_are_sent_at_once_and_then_as_answers_come() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 4);
    let tokens: Vec<_> = std::iter::from_fn(|| it.take()).collect();
    assert_eq!(tokens.len(), 4);
    it.core.done(&tokens[0], it.now);
    assert_eq!(it.acks(), [1]);
    for token in &tokens[1..] {
        it.core.done(token, it.now);
    }
    assert_eq!(it.acks(), [0; 0], "one is on its way");
    it.answer_ack(ticket, 1);
    assert_eq!(it.acks(), [4]);
    it.core.acked(ticket, Err(refusal(ErrorCode::Busy)), it.now);
    assert_eq!(it.acks(), [0; 0]);
    it.now = it.core.next_wake().expect("another try");
    it.core.wake(it.now);
    assert_eq!(it.acks(), [4]);
    it.answer_ack(ticket, 4);
    assert_eq!(it.acks(), [0; 0]);
}

#[test]
fn a_queue_that_comes_back_before_it_is_given_up_is_subscribed_to_anew() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let first = it.subscribe(0);
    it.deliver(first, 0, 4);
    let held = it.take().expect("a message");
    it.assign(2, &[]);
    assert_eq!(it.take(), None, "what was not handed out goes to others");
    it.assign(3, &[0]);
    it.core.done(&held, it.now);
    it.answer_ack(first, 1);
    assert!(it.actions().contains(&Action::Unsubscribe(HOME, first, SubscriptionId(first.0))));
    it.core.unsubscribed(first, it.now);
    let second = it.subscribe(1);
    it.deliver(second, 1, 3);
    assert_eq!(it.take().map(|token| token.offset.0), Some(1), "nothing is left out");
}

#[test]
fn a_restarted_broker_finds_its_member_with_what_it_holds() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 3);
    let held = [it.take(), it.take()].map(|token| token.expect("a message"));
    for shard in [HOME, ShardId(1)] {
        it.core.disconnected(shard, it.now);
    }
    it.core.connected(HOME, it.now);
    it.join_as(2);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 5);
    assert_eq!(it.take().map(|token| token.offset.0), Some(2), "the first two are in its hands");
    assert!(held.iter().all(|token| it.core.done(token, it.now)));
    assert_eq!(it.acks(), [1]);
}

/// What was done before the connection was lost was delivered again after the consumer had been closed.
#[test]
fn closing_acknowledges_what_was_done_before_the_broker_was_killed() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0, 2]);
    it.core.ended(Ticket(2), refusal(ErrorCode::NotHolder), it.now);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 5);
    for _ in 0..3 {
        let token = it.take().expect("a message");
        it.core.done(&token, it.now);
    }
    assert_eq!(it.acks(), [1], "one is on its way");
    for shard in [HOME, ShardId(1)] {
        it.core.disconnected(shard, it.now);
    }
    it.core.close(it.now);
    it.core.connected(HOME, it.now);
    it.join_as(2);
    assert!(it.actions().is_empty(), "which queues it has is not known yet");
    it.assign(1, &[0, 2]);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 5);
    assert_eq!((it.take(), it.acks()), (None, vec![3]), "nothing is handed out any more");
    it.answer_ack(ticket, 3);
    assert_eq!(it.actions(), [Action::Unsubscribe(HOME, ticket, SubscriptionId(ticket.0))]);
    it.core.unsubscribed(ticket, it.now);
    assert!(matches!(it.actions()[..], [Action::Leave(..)]));
    it.core.left();
    assert!(it.core.is_over());
}

#[test]
fn a_lost_queue_s_messages_mean_nothing_any_more() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0, 1]);
    it.actions();
    it.core.ended(Ticket(1), refusal(ErrorCode::NotHolder), it.now);
    let ticket = it.subscribe(5);
    it.deliver(ticket, 5, 1);
    let held = it.take().expect("a message");
    it.core.ended(ticket, refusal(ErrorCode::OffsetReset), it.now);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 6);
    assert!(!it.core.done(&held, it.now));
    assert_eq!(std::iter::from_fn(|| it.take()).map(|token| token.offset.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn fenced_and_deleted_are_the_end() {
    for code in [ErrorCode::MemberFenced, ErrorCode::GroupDeleted] {
        let mut it = Alone::joined(1);
        it.assign(1, &[0]);
        it.subscribe(0);
        it.core.member_ended(MemberId(9), refusal(code));
        assert!(!it.core.is_over(), "another one's end");
        it.core.member_ended(MemberId(1), refusal(code));
        assert!(it.core.is_over());
        assert_eq!(it.core.failure().and_then(Error::code), Some(code));
        assert_eq!(it.core.next_wake(), None);
    }
}

#[test]
fn a_deleted_topic_is_told_and_ends_nothing_else() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.core.ended(ticket, refusal(ErrorCode::TopicDeleted), it.now);
    let refusal = refusal(ErrorCode::TopicDeleted);
    assert_eq!(it.core.next_notice(), Some(Notice::Refused { key: key(0), refusal }));
    assert!(!it.core.is_over() && it.core.assigned_queues().next().is_none());
}

#[test]
fn silence_is_broken_by_heartbeats_and_an_unknown_member_joins_again() {
    let mut it = Alone::joined(1);
    it.assign(4, &[]);
    it.now = it.core.next_wake().expect("a heartbeat");
    it.core.wake(it.now);
    match it.actions()[..] {
        [Action::Heartbeat(HOME, heartbeat)] => assert_eq!((heartbeat.member, heartbeat.number), (MemberId(1), 4)),
        ref other => panic!("{other:?}"),
    }
    assert!(it.core.next_wake().is_some_and(|at| at > it.now));
    it.core.heartbeat_answered(Err(refusal(ErrorCode::UnknownMember)), it.now);
    it.join_as(2);
    assert_eq!(it.core.member(), Some(MemberId(2)));
}

#[test]
fn credit_is_shared_among_the_queues_and_given_back_when_messages_are_done() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0, 2]);
    let credit = |actions: &[Action]| {
        actions
            .iter()
            .map(|action| if let Action::Credit(_, credit) = action { credit.messages } else { 0 })
            .sum::<u32>()
    };
    let asked: Vec<_> = it.actions();
    assert_eq!(asked.len(), 2);
    for action in asked {
        let Action::Subscribe(_, ticket, subscribe) = action else { panic!("{action:?}") };
        assert_eq!(u64::from(subscribe.credit_messages), CREDIT / 2);
        let (start, end) = (QueueOffset(0), QueueOffset(0));
        let answer = SubscribeAnswer { subscription: SubscriptionId(ticket.0), epoch: Epoch(1), start, end };
        it.core.subscribed(ticket, Ok(answer), it.now);
    }
    it.deliver(Ticket(1), 0, 6);
    assert_eq!(credit(&it.actions()), 0, "all of it is in line");
    let tokens: Vec<_> = std::iter::from_fn(|| it.take()).collect();
    it.core.done(&tokens[1], it.now);
    assert_eq!(credit(&it.actions()), 0, "a slow message holds the others back");
    it.core.done(&tokens[0], it.now);
    assert_eq!(credit(&it.actions()), 2);
    it.assign(2, &[0]);
    assert_eq!(credit(&it.actions()), CREDIT as u32 / 2, "its share has grown");
}

/// The home gave up a consumer whose process had stood still, and the consumer took that for its end.
#[test]
fn a_member_that_was_silent_for_too_long_joins_again() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    it.core.member_ended(MemberId(1), refusal(ErrorCode::UnknownMember));
    it.join_as(2);
    assert!(!it.core.is_over() && it.core.member() == Some(MemberId(2)));
}

/// A join that named a topic that had been deleted long before was refused, and ended the consumer of all others.
#[test]
fn a_join_names_no_topic_that_was_deleted() {
    let other = TopicId(TOPIC.0 + 1);
    let mut it = Alone { core: core_of(0, &[TOPIC, other]), now: Nanos(1) };
    it.core.connected(HOME, it.now);
    it.core.connected(ShardId(1), it.now);
    it.join_as(1);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.core.ended(ticket, refusal(ErrorCode::TopicDeleted), it.now);
    it.core.disconnected(HOME, it.now);
    it.core.connected(HOME, it.now);
    assert_eq!(it.core.join_request().topics.iter().collect::<Vec<_>>(), [other]);
}

/// What stood before a hole in the queue was dropped when what stands behind it came, and counted as done.
#[test]
fn messages_before_a_hole_are_handed_out_and_done_first() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let ticket = it.subscribe(0);
    it.deliver(ticket, 0, 3);
    it.deliver(ticket, 10, 2);
    it.deliver(ticket, 12, 1);
    let before: Vec<_> = std::iter::from_fn(|| it.take()).collect();
    assert_eq!(before.iter().map(|token| token.offset.0).collect::<Vec<_>>(), [0, 1, 2]);
    for token in &before {
        assert!(it.core.done(token, it.now));
    }
    it.answer_ack(ticket, 1);
    it.answer_ack(ticket, 3);
    let actions = it.actions();
    assert!(actions.contains(&Action::Unsubscribe(HOME, ticket, SubscriptionId(ticket.0))), "{actions:?}");
    it.core.unsubscribed(ticket, it.now);
    let ticket = it.subscribe(3);
    it.deliver(ticket, 10, 3);
    let behind: Vec<_> = std::iter::from_fn(|| it.take()).map(|token| token.offset.0).collect();
    assert_eq!(behind, [10, 11, 12]);
}

/// A damaged batch was asked for anew every 20 ms for ever, and told as often.
#[test]
fn trouble_that_lasts_is_told_once_and_tried_more_and_more_rarely() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    let mut ticket = it.subscribe(0);
    let mut delays = Vec::new();
    for _ in 0..12 {
        it.deliver(ticket, 0, 3);
        it.core.ended(ticket, refusal(ErrorCode::Damaged), it.now);
        let since = it.now;
        ticket = loop {
            it.now = it.core.next_wake().expect("another try");
            it.core.wake(it.now);
            let actions = it.actions();
            if let Some(ticket) = it.answer_subscribe(&actions, 0) {
                break ticket;
            }
        };
        delays.push(it.now.0 - since.0);
    }
    assert!(delays[11] > 10 * delays[0], "{delays:?}");
    assert_eq!(std::iter::from_fn(|| it.core.next_notice()).count(), 1);
}

/// More queues than the broker serves over one connection: what it refuses is tried again, and the member goes on.
#[test]
fn a_queue_beyond_the_broker_s_limit_ends_nothing() {
    let mut it = Alone::joined(1);
    it.assign(1, &[0]);
    it.core.subscribed(Ticket(1), Err(refusal(ErrorCode::LimitReached)), it.now);
    assert!(!it.core.is_over());
    assert!(matches!(it.core.next_notice(), Some(Notice::Refused { .. })));
    it.actions();
    it.now = it.core.next_wake().expect("another try");
    it.core.wake(it.now);
    it.subscribe(0);
}
