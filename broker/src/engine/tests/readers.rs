//! Subscriptions and fetches: what is delivered, in what order, against how much credit.

use std::collections::HashMap;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{QueueOffset, SubscriptionId};
use proptest::prelude::*;

use super::*;

const ME: ReaderOwner = ReaderOwner(1);
const PLENTY: Credit = Credit { messages: 1 << 40, bytes: 1 << 40 };

impl Bench {
    /// Stores a memory batch of so many records and bytes.
    fn store_bytes(&mut self, queue: u32, records: u32, length: u32) {
        let offer = BatchOffer { records, length, level: Memory, ..offer(queue) };
        let Ok(ProduceDecision::Append(draft)) = self.engine.decide_produce(&offer, self.now) else { panic!() };
        self.append(&draft, Vec::new());
        self.publish();
    }

    fn subscribe(&mut self, start: StartAt, credit: Credit) -> SubscriptionId {
        self.engine.subscribe(ME, TOPIC, QueueId(0), start, credit).expect("the queue exists").0
    }

    /// Serves all that can be served; (base offset, first wanted, records) of each batch.
    fn serve(&mut self) -> Vec<(u64, u64, u32)> {
        let mut served = Vec::new();
        while let Some(delivery) = self.engine.next_delivery() {
            let Delivery::Batch { subscription, batch, .. } = delivery else { panic!("nothing ended") };
            served.push((batch.base_offset.0, batch.first_wanted.0, batch.records));
            self.engine.delivered(subscription);
        }
        served
    }
}

/// Three batches of 2, 3 and 4 records, stored at seconds 10, 20 and 30; what a reader gets that starts there.
#[track_caller]
fn check_start(start: StartAt, expected: &[(u64, u64, u32)]) {
    let mut bench = Bench::new(1);
    let zero = bench.now;
    for (records, seconds) in [(2, 10), (3, 20), (4, 30)] {
        bench.now = zero + Nanos::from_secs(seconds).0;
        bench.store_bytes(0, records, 100);
    }
    bench.subscribe(start, PLENTY);
    assert_eq!(bench.serve(), expected, "{start:?}");
    let mut fetched = Vec::new();
    let limits = FetchLimits { messages: u64::MAX, bytes: u64::MAX, batches: 100 };
    let place = bench.engine.fetch(TOPIC, QueueId(0), start, limits, None, &mut fetched).expect("a place");
    assert_eq!((place.visible_end.0, place.first.0), (9, 0));
    let fetched: Vec<_> = fetched.iter().map(|at| (at.base_offset.0, at.first_wanted.0, at.records)).collect();
    assert_eq!(fetched, expected, "a fetch reads what a subscription delivers");
}

#[test]
fn a_reader_starts_where_it_asks_to() {
    let all = [(0, 0, 2), (2, 2, 3), (5, 5, 4)];
    let at = |seconds: u64| StartAt::Time(Nanos::from_secs(1_700_000_000 + seconds));
    let offset = |offset: u64| StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(offset) };
    check_start(StartAt::Earliest, &all);
    check_start(StartAt::Latest, &[]);
    check_start(offset(0), &all);
    check_start(offset(3), &[(2, 3, 3), (5, 5, 4)]);
    check_start(offset(8), &[(5, 8, 4)]);
    check_start(offset(9), &[]);
    check_start(at(0), &all);
    check_start(at(20), &all[1..]);
    check_start(at(21), &all[2..]);
    check_start(at(31), &[]);
}

#[test]
fn a_batch_larger_than_the_credit_left_is_given_and_paid_back() {
    let mut bench = Bench::new(1);
    for _ in 0..4 {
        bench.store_bytes(0, 10, 1000);
    }
    let id = bench.subscribe(StartAt::Earliest, Credit { messages: 1, bytes: 5000 });
    assert_eq!(bench.serve(), [(0, 0, 10)]);
    bench.engine.credit(ME, id, Credit { messages: 9, bytes: 0 }).unwrap();
    assert_eq!(bench.serve(), []);
    bench.engine.credit(ME, id, Credit { messages: 1, bytes: 0 }).unwrap();
    assert_eq!(bench.serve(), [(10, 10, 10)]);
    bench.engine.credit(ME, id, Credit { messages: 1000, bytes: 0 }).unwrap();
    assert_eq!(bench.serve(), [(20, 20, 10), (30, 30, 10)]);
}

#[test]
fn a_taken_subscription_gets_nothing_until_the_shard_is_ready_for_it() {
    let mut bench = Bench::new(1);
    bench.store_bytes(0, 1, 10);
    bench.store_bytes(0, 1, 10);
    let id = bench.subscribe(StartAt::Earliest, PLENTY);
    assert!(matches!(bench.engine.next_delivery(), Some(Delivery::Batch { .. })));
    assert_eq!(bench.engine.next_delivery(), None);
    bench.engine.credit(ME, id, PLENTY).unwrap();
    bench.store_bytes(0, 1, 10);
    assert_eq!(bench.engine.next_delivery(), None);
    bench.engine.delivered(id);
    assert_eq!(bench.serve(), [(1, 1, 1), (2, 2, 1)]);
}

#[test]
fn subscriptions_belong_to_their_owner() {
    let mut bench = Bench::new(1);
    let id = bench.subscribe(StartAt::Latest, PLENTY);
    let thief = ReaderOwner(2);
    assert_eq!(bench.engine.credit(thief, id, PLENTY), Err(Refusal::UnknownSubscription));
    assert_eq!(bench.engine.unsubscribe(thief, id), Err(Refusal::UnknownSubscription));
    assert_eq!(bench.engine.check_read(thief, id, Epoch::ANY, QueueOffset(0)), Err(Refusal::UnknownSubscription));
    assert_eq!(bench.engine.check_read(ME, id, Epoch::ANY, QueueOffset(0)), Ok(()));
    assert_eq!(
        bench.engine.check_read(ME, id, Epoch::ANY, QueueOffset(1)),
        Err(Refusal::Truncated { at: QueueOffset(0) })
    );
    assert_eq!(bench.engine.unsubscribe(ME, id), Ok(()));
    let other = bench.subscribe(StartAt::Latest, PLENTY);
    assert_ne!(other, id, "an id names one subscription");
    assert_eq!(bench.engine.unsubscribe(ME, id), Err(Refusal::UnknownSubscription));
}

#[test]
fn a_connection_takes_its_subscriptions_along() {
    let mut bench = Bench::new(1);
    for owner in [1, 2, 1, 2, 1] {
        bench.engine.subscribe(ReaderOwner(owner), TOPIC, QueueId(0), StartAt::Latest, PLENTY).unwrap();
    }
    bench.engine.detach(ME, Nanos::ZERO);
    assert_eq!(bench.engine.counts().subscriptions, 2);
    bench.store_bytes(0, 1, 10);
    assert_eq!(bench.serve().len(), 2);
    bench.engine.detach(ReaderOwner(2), Nanos::ZERO);
    assert_eq!(bench.engine.counts().subscriptions, 0);
}

#[test]
fn readers_of_a_deleted_topic_are_told_once() {
    let mut bench = Bench::new(1);
    bench.store_bytes(0, 1, 10);
    let taken = bench.subscribe(StartAt::Earliest, PLENTY);
    assert!(bench.engine.next_delivery().is_some());
    let waiting = bench.subscribe(StartAt::Latest, PLENTY);
    let spent = bench.subscribe(StartAt::Latest, Credit::default());
    bench.change(bench.engine.decide_delete("t", None, bench.now));
    bench.harden();
    assert_eq!(bench.engine.credit(ME, spent, PLENTY), Err(Refusal::UnknownSubscription));
    let mut ended = Vec::new();
    while let Some(delivery) = bench.engine.next_delivery() {
        let Delivery::Ended { owner: ME, subscription, code: ErrorCode::TopicDeleted } = delivery else {
            panic!("{delivery:?}")
        };
        ended.push(subscription);
    }
    assert_eq!(ended, [taken, waiting, spent]);
    bench.engine.delivered(taken);
    assert_eq!(bench.engine.counts().subscriptions, 0);
}

/// A batch was found damaged while the deletion of its topic waited to be told: the connection's count ended one too low.
#[test]
fn a_subscription_that_ends_in_two_ways_is_counted_once() {
    let mut bench = Bench::new(1);
    bench.store_bytes(0, 1, 10);
    let both = bench.subscribe(StartAt::Earliest, PLENTY);
    bench.subscribe(StartAt::Latest, PLENTY);
    let other = ReaderOwner(2);
    bench.engine.subscribe(other, TOPIC, QueueId(0), StartAt::Latest, PLENTY).unwrap();
    assert!(bench.engine.next_delivery().is_some());
    assert_eq!((bench.engine.subscriptions_of(ME), bench.engine.subscriptions_of(other)), (2, 1));
    bench.change(bench.engine.decide_delete("t", None, bench.now));
    bench.harden();
    assert_eq!(bench.engine.unsubscribe(ME, both), Err(Refusal::UnknownSubscription));
    assert_eq!(bench.engine.subscriptions_of(ME), 2, "they have still to be told");
    for left in [1, 0] {
        assert!(matches!(bench.engine.next_delivery(), Some(Delivery::Ended { owner: ME, .. })));
        assert_eq!(bench.engine.subscriptions_of(ME), left);
    }
    assert_eq!(bench.engine.subscriptions_of(other), 1);
}

/// What one fetch of 5 batches of 2 records and 100 bytes each returns, in batches.
#[track_caller]
fn check_fetch(messages: u64, bytes: u64, batches: usize, expected: usize) {
    let mut bench = Bench::new(1);
    (0..5).for_each(|_| bench.store_bytes(0, 2, 100));
    let mut found = Vec::new();
    let limits = FetchLimits { messages, bytes, batches };
    bench.engine.fetch(TOPIC, QueueId(0), StartAt::Earliest, limits, None, &mut found).unwrap();
    assert_eq!(found.len(), expected);
}

#[test]
fn a_fetch_keeps_to_its_limits_but_returns_one_batch_at_least() {
    check_fetch(100, 1000, 100, 5);
    check_fetch(100, 350, 100, 3);
    check_fetch(100, 1, 100, 1);
    check_fetch(3, 1000, 100, 2);
    check_fetch(100, 1000, 2, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Store {
        queue: u32,
        records: u32,
        level: DurableLevel,
    },
    Publish,
    Harden,
    Subscribe {
        queue: u32,
        back: u64,
        messages: u64,
    },
    Credit {
        reader: usize,
        messages: u64,
    },
    /// Deliver so many; the shard stays busy with every other one until the next round.
    Serve(usize),
    Unsubscribe(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let level = prop_oneof![Just(Memory), Just(Synced)];
    let step = prop_oneof![
        8 => (0u32..2, 1u32..4, level).prop_map(|(queue, records, level)| Step::Store { queue, records, level }),
        4 => Just(Step::Publish),
        3 => Just(Step::Harden),
        2 => (0u32..2, 0u64..10, 0u64..9).prop_map(|(queue, back, messages)| Step::Subscribe { queue, back, messages }),
        4 => (0usize..8, 1u64..9).prop_map(|(reader, messages)| Step::Credit { reader, messages }),
        6 => (1usize..9).prop_map(Step::Serve),
        1 => (0usize..8).prop_map(Step::Unsubscribe),
    ];
    prop::collection::vec(step, 1..300)
}

/// A reader as a model: the next offset that it is owed, and its credit.
struct Owed {
    queue: u32,
    next: u64,
    messages: i64,
    taken: bool,
}

proptest! {
    #[test]
    fn each_reader_gets_every_visible_message_once_in_order_within_its_credit(steps in steps()) {
        let mut bench = Bench::new(2);
        let mut readers: HashMap<SubscriptionId, Owed> = HashMap::new();
        let mut order: Vec<SubscriptionId> = Vec::new();
        for step in steps {
            match step {
                Step::Store { queue, records, level } => {
                    bench.store(queue, records, level);
                }
                Step::Publish => bench.publish(),
                Step::Harden => bench.harden(),
                Step::Subscribe { queue, back, messages } => {
                    let end = bench.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).unwrap().end.0;
                    let offset = end.saturating_sub(back);
                    let start = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(offset) };
                    let credit = Credit { messages, bytes: 1 << 40 };
                    let (id, _) = bench.engine.subscribe(ME, TOPIC, QueueId(queue), start, credit).unwrap();
                    order.push(id);
                    readers.insert(id, Owed { queue, next: offset, messages: messages as i64, taken: false });
                }
                Step::Credit { reader, messages } => if let Some(&id) = order.get(reader) {
                    bench.engine.credit(ME, id, Credit { messages, bytes: 0 }).unwrap();
                    readers.get_mut(&id).unwrap().messages += messages as i64;
                },
                Step::Unsubscribe(reader) => if reader < order.len() {
                    let id = order.remove(reader);
                    bench.engine.unsubscribe(ME, id).unwrap();
                    readers.remove(&id);
                },
                Step::Serve(count) => {
                    for served in 0..count {
                        let Some(delivery) = bench.engine.next_delivery() else { break };
                        let Delivery::Batch { subscription, batch, owner: ME } = delivery else { panic!() };
                        let owed = readers.get_mut(&subscription).expect("it lives");
                        prop_assert!(!owed.taken && owed.messages > 0);
                        prop_assert_eq!(batch.first_wanted.0, owed.next);
                        prop_assert!(batch.base_offset.0 <= owed.next && owed.next < batch.end_offset().0);
                        owed.messages -= (batch.end_offset().0 - owed.next) as i64;
                        owed.next = batch.end_offset().0;
                        prop_assert!(owed.next <= bench.visible(owed.queue));
                        owed.taken = served % 2 == 1;
                        if !owed.taken {
                            bench.engine.delivered(subscription);
                        }
                    }
                    for (&id, owed) in readers.iter_mut().filter(|(_, owed)| owed.taken) {
                        owed.taken = false;
                        bench.engine.delivered(id);
                    }
                }
            }
        }
        while let Some(delivery) = bench.engine.next_delivery() {
            let Delivery::Batch { subscription, batch, .. } = delivery else { panic!() };
            let owed = readers.get_mut(&subscription).expect("it lives");
            prop_assert_eq!(batch.first_wanted.0, owed.next);
            owed.messages -= (batch.end_offset().0 - owed.next) as i64;
            owed.next = batch.end_offset().0;
            bench.engine.delivered(subscription);
        }
        for owed in readers.values() {
            let visible = bench.visible(owed.queue);
            prop_assert!(owed.messages <= 0 || owed.next >= visible, "a reader with credit was left behind");
        }
    }
}
