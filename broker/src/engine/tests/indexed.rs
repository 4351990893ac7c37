//! What the indexes of sealed segments have is dropped, and read through look-ups there as if it were held.

use std::collections::HashMap;

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{QueueOffset, SubscriptionId};
use proptest::prelude::*;

use super::*;
use crate::engine::index::Asked;

const ME: ReaderOwner = ReaderOwner(1);

impl Bench {
    /// What the indexes have of a queue, in order.
    fn in_indexes(&self, queue: QueueKey) -> impl Iterator<Item = IndexEntry> + '_ {
        let to = self.engine.indexed_to;
        self.batches(queue).filter(move |batch| batch.position < to)
    }

    fn batches(&self, queue: QueueKey) -> impl Iterator<Item = IndexEntry> + '_ {
        let of_queue = move |header: &&EntryHeader| {
            header.kind == EntryKind::Batch && (header.topic, header.queue) == (queue.topic, queue.queue)
        };
        self.log.iter().map(|(header, _)| header).filter(of_queue).map(|header| IndexEntry {
            offset: header.base_offset,
            records: header.record_count,
            position: header.position,
            length: header.length,
            store_time: header.store_time,
        })
    }

    fn answer(&mut self, question: &IndexQuestion) {
        let found = match question.asked {
            Asked::Time(time) => self.in_indexes(question.queue).find(|batch| batch.store_time >= time),
            Asked::Offset(offset) => self.in_indexes(question.queue).find(|batch| batch.end() > offset),
        };
        self.engine.answered(question, found.as_ref());
    }

    /// Asks until nothing has to be looked up for it any more.
    fn asking<T>(&mut self, ask: impl Fn(&mut Engine) -> Result<T, Refusal>) -> T {
        for _ in 0..3 {
            match ask(&mut self.engine) {
                Err(Refusal::LookUp(question)) => self.answer(&question),
                asked => return asked.expect("the queue exists"),
            }
        }
        panic!("an answer is taken in");
    }

    fn drop_all(&mut self, to: LogPosition) {
        self.engine.indexed(to);
        while self.engine.drop_indexed(&mut Slice::new(3)) {}
    }
}

/// One step of a history, with numbers to choose by.
#[derive(Clone, Copy, Debug)]
enum Step {
    Store { queue: u32, records: u32, later: u64 },
    Harden,
    Index { back: usize, slices: u32 },
    Subscribe { queue: u32, start: u64, kind: u8 },
    Credit { reader: usize, messages: u64 },
    Leave { reader: usize },
    Serve { deliveries: u32, found: usize },
    Fetch { queue: u32, start: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..2u32, 1..4u32, 0..3u64).prop_map(|(queue, records, later)| Step::Store { queue, records, later }),
        3 => Just(Step::Harden),
        2 => (0..200usize, 0..4u32).prop_map(|(back, slices)| Step::Index { back, slices }),
        2 => (0..2u32, 0..400u64, 0..4u8).prop_map(|(queue, start, kind)| Step::Subscribe { queue, start, kind }),
        3 => (0..8usize, 1..50u64).prop_map(|(reader, messages)| Step::Credit { reader, messages }),
        1 => (0..8usize).prop_map(|reader| Step::Leave { reader }),
        5 => (1..20u32, 1..70usize).prop_map(|(deliveries, found)| Step::Serve { deliveries, found }),
        1 => (0..2u32, 0..400u64).prop_map(|(queue, start)| Step::Fetch { queue, start }),
    ]
}

/// What a reader is to get next.
#[derive(Debug)]
struct Expected {
    queue: QueueKey,
    next: QueueOffset,
}

struct History {
    bench: Bench,
    readers: Vec<SubscriptionId>,
    expected: HashMap<SubscriptionId, Expected>,
    /// Look-ups that are under way.
    under_way: Vec<Delivery>,
    looked_up: u64,
}

impl History {
    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let key = |queue| QueueKey { topic: TOPIC, queue: QueueId(queue) };
        match step {
            Step::Store { queue, records, later } => {
                self.bench.now += later;
                self.bench.store(queue, records, if later == 0 { Memory } else { Synced });
                self.bench.publish();
            }
            Step::Harden => self.bench.harden(),
            Step::Index { back, slices } => {
                let at = self.bench.log.len().saturating_sub(back + 1);
                let to = self.bench.log[at].0.position.min(self.bench.engine.durable());
                self.bench.engine.indexed(to);
                for _ in 0..slices {
                    self.bench.engine.drop_indexed(&mut Slice::new(1));
                }
            }
            Step::Subscribe { queue, start, kind } => {
                let end = self.bench.visible(queue);
                let (start, expected) = self.start(key(queue), start % (end + 1), kind);
                let credit = Credit { messages: 5, bytes: 1 << 40 };
                let (id, place) =
                    self.bench.asking(|engine| engine.subscribe(ME, TOPIC, QueueId(queue), start, credit));
                prop_assert_eq!(place.offset, expected, "{:?}", start);
                self.expected.insert(id, Expected { queue: key(queue), next: expected });
                self.readers.push(id);
            }
            Step::Credit { reader, messages } => {
                if let Some(&id) = self.readers.get(reader) {
                    self.bench.engine.credit(ME, id, Credit { messages, bytes: 0 }).expect("it lives");
                }
            }
            Step::Leave { reader } => {
                if reader < self.readers.len() {
                    let id = self.readers.swap_remove(reader);
                    self.expected.remove(&id);
                    self.bench.engine.unsubscribe(ME, id).expect("it lives");
                }
            }
            Step::Serve { deliveries, found } => self.serve(deliveries, found)?,
            Step::Fetch { queue, start } => {
                let start = QueueOffset(start % (self.bench.visible(queue) + 1));
                self.fetch(key(queue), start)?;
            }
        }
        Ok(())
    }

    /// Where a reader that starts there is to stand, by all that was ever stored.
    fn start(&self, queue: QueueKey, number: u64, kind: u8) -> (StartAt, QueueOffset) {
        let visible = QueueOffset(self.bench.visible(queue.queue.0));
        match kind {
            0 => (StartAt::Earliest, QueueOffset(0)),
            1 => {
                let time = Nanos(1_700_000_000 * 1_000_000_000 + number);
                let first = self.bench.batches(queue).find(|batch| batch.store_time >= time);
                (StartAt::Time(time), first.map_or(visible, |batch| batch.offset.min(visible)))
            }
            _ => (StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(number) }, QueueOffset(number)),
        }
    }

    fn serve(&mut self, deliveries: u32, found: usize) -> Result<(), TestCaseError> {
        for look_up in std::mem::take(&mut self.under_way) {
            let Delivery::LookUp { subscription, queue, offset, below, .. } = look_up else { unreachable!() };
            let batches = self.bench.in_indexes(queue).filter(|batch| batch.end() > offset).take(found).collect();
            self.bench.engine.looked_up(subscription, below, batches);
        }
        for _ in 0..deliveries {
            let Some(delivery) = self.bench.engine.next_delivery() else { break };
            match delivery {
                Delivery::Batch { subscription, batch, .. } => {
                    let expected = self.expected.get_mut(&subscription).expect("it did not leave");
                    prop_assert_eq!(batch.first_wanted, expected.next);
                    expected.next = batch.end_offset();
                    let queue = expected.queue;
                    let stored = self.bench.batches(queue).find(|stored| stored.position == batch.position);
                    let stored = stored.expect("it was stored");
                    let place = (stored.offset, stored.records, stored.length);
                    prop_assert_eq!((batch.base_offset, batch.records, batch.length), place);
                    prop_assert!(batch.end_offset().0 <= self.bench.visible(queue.queue.0));
                    self.bench.engine.delivered(subscription);
                }
                Delivery::LookUp { behind, offset, queue, .. } => {
                    let wanted = self.bench.batches(queue).find(|batch| batch.end() > offset).expect("it is visible");
                    prop_assert!(behind < wanted.position);
                    self.looked_up += 1;
                    self.under_way.push(delivery);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        Ok(())
    }

    fn fetch(&mut self, key: QueueKey, start: QueueOffset) -> Result<(), TestCaseError> {
        let QueueKey { topic, queue } = key;
        let limits = FetchLimits { messages: 20, bytes: 1 << 30, batches: 100 };
        let found = self.bench.engine.is_held(topic, queue, start).err().map(|below| {
            let found: Vec<_> = self.bench.in_indexes(key).filter(|batch| batch.end() > start).take(9).collect();
            (found, below)
        });
        let found = found.as_ref().map(|(found, below)| (&found[..], *below));
        let mut batches = Vec::new();
        let start_at = StartAt::Offset { epoch: Epoch::ANY, offset: start };
        let place = self.bench.engine.fetch(topic, queue, start_at, limits, found, &mut batches).expect("it is there");
        let mut next = start;
        for batch in &batches {
            prop_assert_eq!(batch.first_wanted, next);
            next = batch.end_offset();
        }
        prop_assert_eq!(batches.is_empty(), start == place.visible_end);
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_history_with_drops_reads_as_one_without(steps in prop::collection::vec(step(), 1..400)) {
        let mut history = History {
            bench: Bench::new(2),
            readers: Vec::new(),
            expected: HashMap::new(),
            under_way: Vec::new(),
            looked_up: 0,
        };
        for step in steps {
            history.take(step)?;
        }
        // In the end everybody gets all there is.
        history.bench.harden();
        let end = history.bench.end;
        history.bench.drop_all(end);
        for &id in &history.readers {
            history.bench.engine.credit(ME, id, Credit { messages: 1 << 40, bytes: 0 }).expect("it lives");
        }
        for _ in 0..2_000 {
            history.serve(100, 50)?;
        }
        for expected in history.expected.values() {
            prop_assert_eq!(expected.next.0, history.bench.visible(expected.queue.queue.0));
        }
        prop_assert_eq!(history.bench.engine.readers.found(), 0);
    }
}

/// Two hundred batches of a queue, all of them indexed and dropped.
fn dropped() -> Bench {
    let mut bench = Bench::new(1);
    for _ in 0..200 {
        bench.now += 10;
        bench.store(0, 1, Synced);
    }
    bench.harden();
    bench.drop_all(bench.end);
    bench
}

fn begin(bench: &mut Bench) -> (SubscriptionId, QueueOffset) {
    let credit = Credit { messages: 1 << 40, bytes: 1 << 40 };
    let (id, _) = bench.engine.subscribe(ME, TOPIC, QueueId(0), StartAt::Earliest, credit).expect("it exists");
    match bench.engine.next_delivery() {
        Some(Delivery::LookUp { subscription, below, .. }) if subscription == id => (id, below),
        other => panic!("expected a look-up, found {other:?}"),
    }
}

#[test]
fn a_subscription_that_ended_while_it_was_looked_up_for_is_left_alone() {
    let mut bench = dropped();
    let found: Vec<_> = bench.in_indexes(QueueKey { topic: TOPIC, queue: QueueId(0) }).take(5).collect();
    let (id, below) = begin(&mut bench);
    bench.engine.unsubscribe(ME, id).expect("it lives");
    bench.engine.looked_up(id, below, found.clone());
    assert_eq!(bench.engine.next_delivery(), None);

    let (id, below) = begin(&mut bench);
    bench.engine.detach(ME, bench.now);
    bench.engine.looked_up(id, below, found.clone());
    assert_eq!(bench.engine.next_delivery(), None);

    let (id, below) = begin(&mut bench);
    bench.change(bench.engine.decide_delete("t", None, bench.now));
    bench.harden();
    bench.engine.looked_up(id, below, found);
    assert!(matches!(bench.engine.next_delivery(), Some(Delivery::Ended { subscription, .. }) if subscription == id));
    assert_eq!(bench.engine.next_delivery(), None);
}

#[test]
fn a_reader_in_a_stretch_that_an_accepted_loss_took_goes_on_behind_it() {
    let mut bench = dropped();
    let (id, below) = begin(&mut bench);
    bench.engine.looked_up(id, below, Vec::new());
    assert_eq!(bench.engine.next_delivery(), None, "all that was stored is lost");
    bench.store(0, 1, Synced);
    bench.harden();
    let Some(Delivery::Batch { batch, .. }) = bench.engine.next_delivery() else { panic!("it was served") };
    assert_eq!(batch.base_offset, QueueOffset(200));
}

#[test]
fn what_is_looked_up_for_readers_is_bounded_and_given_back() {
    let mut bench = dropped();
    let found: Vec<_> = bench.in_indexes(QueueKey { topic: TOPIC, queue: QueueId(0) }).collect();
    let (id, below) = begin(&mut bench);
    bench.engine.looked_up(id, below, found.clone());
    assert_eq!(bench.engine.readers.found(), 200);
    let Some(Delivery::Batch { .. }) = bench.engine.next_delivery() else { panic!("it was served") };
    assert_eq!(bench.engine.readers.found(), 199);
    bench.engine.unsubscribe(ME, id).expect("it lives");
    assert_eq!(bench.engine.readers.found(), 0);
}

#[test]
fn a_chunk_that_reaches_above_what_is_indexed_is_dropped_with_the_next_segment() {
    let mut bench = Bench::new(1);
    for _ in 0..100 {
        bench.store(0, 1, Synced);
    }
    bench.harden();
    // Behind the catalogue's entry: in the middle of the second chunk.
    let middle = bench.log[80].0.position;
    let held = |bench: &Bench| bench.engine.queues.iter().map(|queue| queue.index.iter().count()).sum::<usize>();
    bench.drop_all(middle);
    assert_eq!(held(&bench), 36);
    bench.drop_all(middle);
    assert_eq!(held(&bench), 36);
    bench.drop_all(bench.end);
    assert_eq!(held(&bench), 0);
}

/// A bench for figures: `cargo test -p peregrine-broker --lib what_a_million -- --ignored --nocapture`.
#[test]
#[ignore = "it prints figures and proves nothing"]
fn what_a_million_batches_take() {
    let mut bench = Bench::new(16);
    for number in 0..1_000_000u32 {
        bench.now += 50_000;
        bench.store(number % 16, 1, Synced);
    }
    bench.harden();
    println!("held: {} bytes", bench.engine.index_bytes());
    bench.engine.indexed(bench.end);
    let (mut slices, mut longest) = (0u64, std::time::Duration::ZERO);
    loop {
        let started = std::time::Instant::now();
        let more = bench.engine.drop_indexed(&mut Slice::new(crate::limits::INDEX_DROP_SLICE));
        longest = longest.max(started.elapsed());
        slices += 1;
        if !more {
            break;
        }
    }
    println!("indexed: {} bytes; dropped in {slices} slices, the longest {longest:?}", bench.engine.index_bytes());
}
