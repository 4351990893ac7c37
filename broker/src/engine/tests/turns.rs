//! Queues handed from member to member: each rule by itself, then everything at random against a model.

use std::sync::Arc;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{GroupId, MemberId, QueueOffset, SubscriptionId};
use proptest::prelude::*;

use super::*;

const GROUP: GroupId = GroupId(2);
const A: u64 = 1;
const B: u64 = 2;
const DRAIN: Nanos = ONE_SHARD.group_drain;

/// What the shard was given to do for members' subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// First offset wanted, the offset behind it, attempt.
    Batch(u64, u64, u64, u16),
    Revoked(u64),
    Ended(u64, ErrorCode),
}

/// A bench with a group on topic [`TOPIC`]. Member n speaks through connection n.
struct Turns {
    bench: Bench,
    number: u64,
    clock: Nanos,
    /// Subscriptions by member; the newest last.
    subscriptions: Vec<(u64, SubscriptionId)>,
    /// Credit for each subscription.
    credit: Credit,
    /// Of the slice that follows an assignment at once.
    steps: u32,
}

impl Turns {
    fn new(queues: u32) -> Self {
        Self::starting(queues, StartAt::Earliest)
    }

    fn starting(queues: u32, start: StartAt) -> Self {
        let mut bench = Bench::new(queues);
        bench.change(bench.engine.decide_create_group("g", &[(TOPIC, start)], bench.now));
        bench.harden();
        while bench.engine.next_catalogue_effect().is_some() {}
        let credit = Credit { messages: 1 << 40, bytes: 1 << 40 };
        Self { bench, number: 0, clock: Nanos(1), subscriptions: Vec::new(), credit, steps: u32::MAX }
    }

    /// So many batches of one message each, which everybody sees.
    fn store(&mut self, count: u32) {
        for _ in 0..count {
            self.bench.store(0, 1, Memory);
        }
        self.bench.publish();
    }

    fn assign_all(&mut self, holders: &[(u32, u64)], fenced: &[u64]) {
        self.number += 1;
        let holders: Vec<_> =
            holders.iter().map(|&(queue, member)| (TOPIC, QueueId(queue), MemberId(member))).collect();
        let fenced: Vec<_> = fenced.iter().copied().map(MemberId).collect();
        self.bench.engine.assign(GROUP, self.number, &Arc::new(Assignment::of(holders)), &fenced, self.clock);
        self.bench.engine.follow_assignments(&mut Slice::new(self.steps));
    }

    fn assign(&mut self, member: u64) {
        self.assign_all(&[(0, member)], &[]);
    }

    fn try_subscribe(&mut self, member: u64, queue: u32) -> Result<(SubscriptionId, QueuePlace), Refusal> {
        let (owner, id, queue) = (ReaderOwner(member), MemberId(member), QueueId(queue));
        self.bench.engine.subscribe_group(owner, GROUP, id, TOPIC, queue, self.credit)
    }

    fn subscribe(&mut self, member: u64) -> SubscriptionId {
        let (id, _) = self.try_subscribe(member, 0).expect("the group consumes the queue");
        self.subscriptions.push((member, id));
        id
    }

    fn member_of(&self, id: SubscriptionId) -> u64 {
        self.subscriptions.iter().find(|known| known.1 == id).expect("a known subscription").0
    }

    /// Writes down where the group begins, as a shard does at once.
    fn begin(&mut self) {
        while let Some(entry) = self.bench.engine.next_beginning(self.bench.now) {
            self.bench.append(&entry.draft, entry.payload.to_vec());
        }
    }

    fn see(&mut self, delivery: Delivery) -> Seen {
        match delivery {
            Delivery::Batch { subscription, batch, owner } => {
                let member = self.member_of(subscription);
                assert_eq!(owner, ReaderOwner(member));
                Seen::Batch(member, batch.first_wanted.0, batch.end_offset().0, batch.attempt)
            }
            Delivery::Revoked { subscription, .. } => Seen::Revoked(self.member_of(subscription)),
            Delivery::Ended { subscription, code, .. } => Seen::Ended(self.member_of(subscription), code),
            Delivery::LookUp { .. } | Delivery::Ask { .. } => unreachable!("nothing was dropped"),
        }
    }

    fn next(&mut self) -> Option<Seen> {
        self.begin();
        let delivery = self.bench.engine.next_delivery()?;
        Some(self.see(delivery))
    }

    /// All that is to be done, with sockets that take everything.
    fn serve(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.begin();
        while let Some(delivery) = self.bench.engine.next_delivery() {
            seen.push(self.see(delivery));
            if let Delivery::Batch { subscription, .. } = delivery {
                self.bench.engine.delivered(subscription);
            }
        }
        seen
    }

    /// Acknowledges what is below `offset`; the level is reached at once.
    fn ack(&mut self, member: u64, id: SubscriptionId, offset: u64) -> Result<(), Refusal> {
        let checked = self.bench.engine.ack_checked(ReaderOwner(member), id, Epoch::ANY, QueueOffset(offset))?;
        let AckChecked::Group(ack) = checked else { panic!("{checked:?}") };
        if let AckDecision::Append(entry) = self.bench.engine.decide_ack(&ack, self.bench.now)? {
            self.bench.append(&entry.draft, entry.payload.to_vec());
            self.bench.publish();
        }
        Ok(())
    }

    fn pass(&mut self, nanos: u64) {
        self.clock += nanos;
        self.bench.engine.group_tick(self.clock);
        assert!(self.bench.engine.next_group_deadline().is_none_or(|due| due > self.clock), "what is due was done");
    }

    fn place(&self) -> u64 {
        self.bench.engine.group_place(GROUP, TOPIC, QueueId(0)).expect("it consumes it").offset.0
    }
}

/// Batches of one message each from `first` on.
fn batches(member: u64, offsets: Range<u64>, attempt: u16) -> Vec<Seen> {
    offsets.map(|offset| Seen::Batch(member, offset, offset + 1, attempt)).collect()
}

/// Two members that subscribed; A is the holder, and has been handed four messages.
fn held_by_a() -> (Turns, SubscriptionId, SubscriptionId) {
    let mut turns = Turns::new(1);
    turns.store(4);
    let (a, b) = (turns.subscribe(A), turns.subscribe(B));
    turns.assign(A);
    assert_eq!(turns.serve(), batches(A, 0..4, 1));
    (turns, a, b)
}

#[test]
fn nobody_is_served_before_the_home_says_whose_queue_it_is() {
    let mut turns = Turns::new(1);
    turns.store(2);
    turns.subscribe(A);
    assert_eq!(turns.serve(), []);
    turns.assign(B);
    assert_eq!(turns.serve(), []);
    turns.assign(A);
    assert_eq!(turns.serve(), batches(A, 0..2, 1));
    turns.store(1);
    assert_eq!(turns.serve(), batches(A, 2..3, 1));
    assert_eq!(turns.bench.engine.holder(GROUP, TOPIC, QueueId(0)), Some(MemberId(A)));
}

#[test]
fn a_queue_is_drained_before_the_next_member_gets_it() {
    let (mut turns, a, b) = held_by_a();
    turns.ack(A, a, 1).unwrap();
    turns.assign(B);
    turns.store(1);
    assert_eq!(turns.serve(), [Seen::Revoked(A)]);
    turns.ack(A, a, 3).unwrap();
    assert_eq!(turns.serve(), []);
    assert_eq!(turns.ack(B, b, 3), Err(Refusal::NotHolder));
    turns.ack(A, a, 4).unwrap();
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 4..5, 1)].concat());
    assert_eq!(turns.ack(A, a, 4), Err(Refusal::NotHolder));
    turns.ack(B, b, 5).unwrap();
    assert_eq!(turns.bench.engine.next_group_deadline(), None);
}

#[test]
fn a_queue_of_which_all_is_acknowledged_moves_at_once() {
    let (mut turns, a, _) = held_by_a();
    turns.ack(A, a, 4).unwrap();
    turns.assign(B);
    turns.store(1);
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 4..5, 1)].concat());
}

#[test]
fn a_drain_ends_after_its_time_and_the_rest_comes_again() {
    let (mut turns, a, b) = held_by_a();
    turns.ack(A, a, 1).unwrap();
    turns.assign(B);
    assert_eq!(turns.serve(), [Seen::Revoked(A)]);
    turns.pass(DRAIN.0 - 1);
    assert_eq!(turns.serve(), []);
    turns.ack(A, a, 2).unwrap();
    turns.pass(1);
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 2..4, 2)].concat());
    assert_eq!(turns.ack(A, a, 4), Err(Refusal::NotHolder));
    turns.ack(B, b, 4).unwrap();
}

#[test]
fn who_gives_a_revoked_queue_up_ends_the_drain_and_who_loses_the_connection_does_not() {
    for by_detaching in [false, true] {
        let (mut turns, a, _) = held_by_a();
        turns.assign(B);
        assert_eq!(turns.serve(), [Seen::Revoked(A)]);
        if by_detaching {
            turns.bench.engine.detach(ReaderOwner(A), turns.clock);
            turns.pass(DRAIN.0 - 1);
            assert_eq!(turns.serve(), []);
            turns.pass(1);
        } else {
            turns.bench.engine.unsubscribe(ReaderOwner(A), a).unwrap();
        }
        assert_eq!(turns.serve(), batches(B, 0..4, 2));
        assert_eq!(turns.bench.engine.next_group_deadline(), None);
    }
}

/// The turn of the one that waits came when the other was found gone: the broker panicked over a subscription that had ended too.
#[test]
fn a_connection_that_ends_hands_no_queue_to_another_member_of_its_own() {
    let mut turns = Turns::new(1);
    turns.store(4);
    let owner = ReaderOwner(7);
    let mut subscribe = |member| {
        let member = MemberId(member);
        let began = turns.bench.engine.subscribe_group(owner, GROUP, member, TOPIC, QueueId(0), turns.credit);
        began.expect("the group consumes the queue").0
    };
    let (b, a) = (subscribe(B), subscribe(A));
    turns.subscriptions.extend([(A, a), (B, b)]);
    turns.assign(A);
    while let Some(delivery) = turns.bench.engine.next_delivery() {
        assert!(matches!(delivery, Delivery::Batch { .. }));
        turns.bench.engine.delivered(a);
    }
    turns.assign(B);
    turns.bench.engine.detach(owner, turns.clock);
    assert_eq!(turns.serve(), []);
    assert_eq!(turns.bench.engine.counts().subscriptions, 0);
    turns.subscribe(B);
    turns.pass(DRAIN.0);
    assert_eq!(turns.serve(), batches(B, 0..4, 2));
}

#[test]
fn the_revocation_follows_the_last_batch() {
    let mut turns = Turns::new(1);
    turns.store(2);
    let (a, _) = (turns.subscribe(A), turns.subscribe(B));
    turns.assign(A);
    assert_eq!(turns.next(), Some(Seen::Batch(A, 0, 1, 1)));
    turns.assign(B);
    assert_eq!(turns.next(), None, "the shard is busy with the batch");
    turns.bench.engine.delivered(a);
    assert_eq!(turns.next(), Some(Seen::Revoked(A)));
    assert_eq!(turns.next(), None);
    turns.ack(A, a, 1).unwrap();
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 1..2, 1)].concat());
}

#[test]
fn a_fenced_member_loses_its_queues_at_once() {
    let (mut turns, a, b) = held_by_a();
    turns.assign_all(&[(0, B)], &[A]);
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 0..4, 2)].concat());
    assert_eq!(turns.ack(A, a, 4), Err(Refusal::NotHolder));
    turns.assign_all(&[], &[B]);
    assert_eq!(turns.serve(), [Seen::Ended(B, ErrorCode::NotHolder)]);
    assert_eq!(turns.ack(B, b, 4), Err(Refusal::NotHolder));
    assert_eq!(turns.place(), 0);
}

#[test]
fn a_fenced_member_that_waits_ends_too() {
    let (mut turns, ..) = held_by_a();
    turns.assign_all(&[(0, A)], &[B]);
    assert_eq!(turns.serve(), [Seen::Ended(B, ErrorCode::NotHolder)]);
}

#[test]
fn a_second_subscription_of_a_member_replaces_the_first() {
    let (mut turns, a, b) = held_by_a();
    turns.ack(A, a, 2).unwrap();
    let again = turns.subscribe(A);
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(A, 2..4, 2)].concat());
    assert_eq!(turns.ack(A, a, 3), Err(Refusal::NotHolder));
    turns.ack(A, again, 3).unwrap();
    turns.subscribe(B);
    assert_eq!(turns.serve(), [Seen::Ended(B, ErrorCode::NotHolder)], "one that waits");
    assert_eq!(turns.bench.engine.unsubscribe(ReaderOwner(B), b), Err(Refusal::UnknownSubscription));
}

#[test]
fn a_holder_that_comes_back_goes_on_where_the_group_is() {
    let (mut turns, a, _) = held_by_a();
    turns.ack(A, a, 3).unwrap();
    turns.bench.engine.detach(ReaderOwner(A), turns.clock);
    assert_eq!(turns.serve(), [], "B waits: the queue is still A's");
    turns.subscribe(A);
    assert_eq!(turns.serve(), batches(A, 3..4, 2));
}

#[test]
fn attempts_are_counted_for_what_was_handed_out() {
    let mut turns = Turns::new(1);
    turns.store(6);
    turns.assign(A);
    let subscribe = |turns: &mut Turns, messages| {
        turns.credit.messages = messages;
        let id = turns.subscribe(A);
        let seen = turns.serve();
        turns.bench.engine.unsubscribe(ReaderOwner(A), id).unwrap();
        seen
    };
    assert_eq!(subscribe(&mut turns, 4), batches(A, 0..4, 1));
    assert_eq!(subscribe(&mut turns, 2), batches(A, 0..2, 2));
    let third = [batches(A, 0..2, 3), batches(A, 2..4, 2), batches(A, 4..6, 1)].concat();
    assert_eq!(subscribe(&mut turns, 6), third);
    turns.credit.messages = 3;
    let id = turns.subscribe(A);
    assert_eq!(turns.serve(), [batches(A, 0..2, 4), batches(A, 2..3, 3)].concat());
    turns.ack(A, id, 2).unwrap();
    turns.bench.engine.unsubscribe(ReaderOwner(A), id).unwrap();
    assert_eq!(subscribe(&mut turns, 9), [batches(A, 2..3, 4), batches(A, 3..4, 3), batches(A, 4..6, 2)].concat());
}

#[test]
fn a_reset_ends_the_active_subscription_and_the_next_begins_there() {
    let (mut turns, a, _) = held_by_a();
    turns.ack(A, a, 4).unwrap();
    let start = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(1) };
    let entry = turns.bench.engine.decide_reset(GROUP, TOPIC, QueueId(0), start, turns.bench.now).unwrap();
    turns.bench.append(&entry.draft, entry.payload.to_vec());
    assert_eq!(turns.serve(), [Seen::Ended(A, ErrorCode::OffsetReset)]);
    assert_eq!(turns.ack(A, a, 4), Err(Refusal::NotHolder));
    turns.subscribe(A);
    assert_eq!(turns.serve(), batches(A, 1..4, 1), "asked for again, not tried again");
}

#[test]
fn a_turn_that_was_over_when_a_reset_came_is_not_ended_by_the_reset() {
    let (mut turns, a, _) = held_by_a();
    turns.ack(A, a, 4).unwrap();
    turns.steps = 0;
    turns.assign(B);
    let start = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(1) };
    let entry = turns.bench.engine.decide_reset(GROUP, TOPIC, QueueId(0), start, turns.bench.now).unwrap();
    turns.bench.append(&entry.draft, entry.payload.to_vec());
    let over = [Seen::Ended(A, ErrorCode::NotHolder), Seen::Ended(B, ErrorCode::OffsetReset)];
    assert_eq!(turns.serve(), over, "nothing of it was left to do");
}

#[test]
fn a_deleted_group_ends_all_its_subscriptions() {
    let (mut turns, ..) = held_by_a();
    turns.bench.change(turns.bench.engine.decide_delete_group("g", None, turns.bench.now));
    turns.bench.harden();
    let deleted = |member| Seen::Ended(member, ErrorCode::GroupDeleted);
    assert_eq!(turns.serve(), [deleted(A), deleted(B)]);
    turns.assign(B);
    assert!(turns.bench.engine.holders.is_empty(), "what is late leaves nothing");
    assert_eq!(turns.try_subscribe(A, 0), Err(Refusal::GroupDeleted));
    assert_eq!(turns.bench.engine.counts().subscriptions, 0);
}

#[test]
fn a_deleted_topic_ends_all_its_subscriptions() {
    let (mut turns, ..) = held_by_a();
    turns.assign(B);
    turns.bench.change(turns.bench.engine.decide_delete("t", None, turns.bench.now));
    turns.bench.harden();
    let deleted = |member| Seen::Ended(member, ErrorCode::TopicDeleted);
    assert_eq!(turns.serve(), [deleted(A), deleted(B)]);
    turns.pass(2 * DRAIN.0);
    turns.assign(A);
    assert_eq!(turns.bench.engine.holder(GROUP, TOPIC, QueueId(0)), None);
    turns.assign_all(&[], &[]);
    assert!(turns.bench.engine.holders.is_empty());
}

#[test]
fn an_older_assignment_says_nothing() {
    let (mut turns, ..) = held_by_a();
    turns.number -= 1;
    turns.assign_all(&[(0, B)], &[A]);
    assert_eq!(turns.serve(), []);
    assert_eq!(turns.bench.engine.holder(GROUP, TOPIC, QueueId(0)), Some(MemberId(A)));
}

/// The home may know of a topic's queues, and of a group, before the owner's copy of the catalogue does.
#[test]
fn an_assignment_that_is_ahead_of_the_catalogue_is_kept() {
    let mut turns = Turns::new(1);
    turns.assign_all(&[(0, A), (1, A)], &[]);
    let later = GroupId(77);
    let rows = [(TopicId(70), QueueId(0), MemberId(A))];
    turns.bench.engine.assign(later, 1, &Arc::new(Assignment::of(rows)), &[], turns.clock);
    assert_eq!(turns.bench.engine.holder(later, TopicId(70), QueueId(0)), Some(MemberId(A)));
    turns.bench.engine.assign(later, 2, &Arc::default(), &[], turns.clock);
    turns.bench.change(turns.bench.engine.decide_alter("t", Some(2), None, turns.bench.now));
    turns.bench.harden();
    turns.bench.store(1, 1, Memory);
    turns.bench.publish();
    let (id, _) = turns.try_subscribe(A, 1).unwrap();
    turns.subscriptions.push((A, id));
    assert_eq!(turns.serve(), batches(A, 0..1, 1));
}

#[test]
fn acknowledgements_stay_within_what_was_handed_out() {
    let (mut turns, a, _) = held_by_a();
    turns.store(2);
    assert!(matches!(turns.ack(A, a, 5), Err(Refusal::InvalidArgument(_))));
    assert_eq!(turns.ack(B, a, 1), Err(Refusal::NotHolder), "another connection's");
    turns.ack(A, a, 3).unwrap();
    turns.ack(A, a, 2).unwrap();
    assert_eq!(turns.place(), 3, "it never goes back");
    let reader = turns.bench.engine.subscribe(ReaderOwner(9), TOPIC, QueueId(0), StartAt::Earliest, turns.credit);
    let checked = turns.bench.engine.ack_checked(ReaderOwner(9), reader.unwrap().0, Epoch::ANY, QueueOffset(1));
    assert_eq!(checked, Ok(AckChecked::Reader));
}

/// What is stored and not yet seen by anybody when the first member comes: the group begins before it, for the second one too.
#[test]
fn a_group_that_began_is_not_begun_anew_by_its_second_member() {
    let mut turns = Turns::starting(1, StartAt::Time(Nanos::from_secs(1_800_000_000)));
    turns.store(2);
    turns.bench.store(0, 3, Synced);
    turns.assign(A);
    let a = turns.subscribe(A);
    assert_eq!(turns.bench.engine.next_delivery(), None);
    assert!(matches!(turns.ack(A, a, 2), Err(Refusal::Busy { .. })), "the log does not say yet where it began");
    turns.bench.harden();
    turns.bench.engine.unsubscribe(ReaderOwner(A), a).unwrap();
    let b = turns.subscribe(B);
    turns.assign(B);
    assert_eq!(turns.serve(), [Seen::Batch(B, 2, 5, 1)]);
    assert_eq!(turns.bench.engine.next_beginning(turns.bench.now), None);
    turns.ack(B, b, 5).unwrap();
    assert_eq!(turns.place(), 5);
}

#[test]
fn a_poisoned_owner_goes_on_handing_out_and_acknowledges_nothing() {
    let (mut turns, a, _) = held_by_a();
    turns.bench.engine.on_poisoned();
    assert_eq!(turns.ack(A, a, 4), Err(Refusal::Poisoned));
    turns.assign(B);
    assert_eq!(turns.serve(), [Seen::Revoked(A)]);
    turns.pass(DRAIN.0);
    assert_eq!(turns.serve(), [vec![Seen::Ended(A, ErrorCode::NotHolder)], batches(B, 0..4, 2)].concat());
}

mod random;

/// A member came back within its grace time and lost the queue to another that was served at once, while it still worked on what it
/// had been handed.
#[test]
fn a_queue_lost_with_a_connection_is_drained_before_another_member_gets_it() {
    let drain = ONE_SHARD.group_drain;
    let lost = || {
        let mut turns = Turns::new(1);
        turns.store(4);
        turns.assign(A);
        turns.subscribe(A);
        assert!(!turns.serve().is_empty());
        turns.bench.engine.detach(ReaderOwner(A), turns.clock);
        turns
    };
    let batch_of = |seen: &[Seen], member| seen.iter().any(|seen| matches!(seen, Seen::Batch(of, ..) if *of == member));

    let mut turns = lost();
    turns.assign(B);
    turns.subscribe(B);
    assert!(!batch_of(&turns.serve(), B), "the first may still work on what it has");
    turns.bench.engine.group_tick(turns.clock + (drain.0 - 1));
    assert!(!batch_of(&turns.serve(), B));
    turns.bench.engine.group_tick(turns.clock + drain.0);
    assert!(batch_of(&turns.serve(), B), "no longer than a drain");

    let mut turns = lost();
    turns.subscribe(A);
    assert!(batch_of(&turns.serve(), A), "it comes back to its own");

    let mut turns = lost();
    turns.assign(B);
    turns.subscribe(B);
    turns.assign_all(&[(0, B)], &[A]);
    assert!(batch_of(&turns.serve(), B), "a fenced one is not waited for");

    let mut turns = lost();
    turns.assign_all(&[(0, B)], &[A]);
    turns.subscribe(B);
    assert!(batch_of(&turns.serve(), B), "nor by one that subscribes later");
}
