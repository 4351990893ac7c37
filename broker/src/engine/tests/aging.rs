//! What is too old for its topic: found in memory, or by the indexes of sealed segments, and nothing younger with it.

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::QueueOffset;

use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::message::TopicRetention;

use super::*;
use crate::engine::index::Asked;
use crate::log::damage::Extent;
use crate::log::disk::simulated::{Conditions, Machine};
use crate::log::index::IndexedBatch;
use crate::log::{BootId, Directory, Log, LogOptions, Replay, RunId};
use crate::retaining_topics::{IndexAnswer, RetainingTopics, TopicsTurn};

const QUEUE: QueueKey = QueueKey { topic: TOPIC, queue: QueueId(0) };
const START: u64 = 1_000_000;

/// A queue to which a batch of two messages was stored in each nanosecond from [`START`] on, all visible.
fn bench(batches: u64) -> Bench {
    let mut bench = Bench::new(1);
    bench.now = Nanos(bench.now.0.max(START));
    for _ in 0..batches {
        bench.store(0, 2, Memory);
        bench.now += 1;
    }
    bench.harden();
    bench
}

/// When the batch of that number was stored.
fn time(bench: &Bench, batch: usize) -> Nanos {
    bench.log[1 + batch].0.store_time
}

fn keep_from(bench: &mut Bench, start: QueueOffset) {
    let entry = bench.engine.decide_starts(&[QueueStart { queue: QUEUE, start }], bench.now).expect("it moves");
    bench.append(&entry.draft, entry.payload);
}

fn found(bench: &Bench, question: &IndexQuestion) -> Option<IndexEntry> {
    let Asked::Time(time) = question.asked else { panic!("{question:?}") };
    let to = bench.engine.indexed_to;
    let batches = bench.log[1..].iter().map(|(header, _)| header);
    let first = batches.filter(|header| header.position < to).find(|header| header.store_time >= time)?;
    Some(IndexEntry {
        offset: first.base_offset,
        records: first.record_count,
        position: first.position,
        length: first.length,
        store_time: first.store_time,
    })
}

#[test]
fn what_is_older_is_given_up_and_the_batch_of_that_very_time_is_kept() {
    let mut bench = bench(10);
    let (third, last) = (time(&bench, 3), time(&bench, 9));
    assert_eq!(bench.engine.aged(QUEUE, time(&bench, 0)), Aged::Keeps(Some(time(&bench, 0))));
    assert_eq!(bench.engine.aged(QUEUE, third), Aged::Start(QueueOffset(6), Some(third)));
    assert_eq!(bench.engine.aged(QUEUE, last + 1), Aged::Start(QueueOffset(20), None));
    keep_from(&mut bench, QueueOffset(6));
    assert_eq!(bench.engine.aged(QUEUE, third), Aged::Keeps(Some(third)));
    keep_from(&mut bench, QueueOffset(20));
    assert_eq!(bench.engine.aged(QUEUE, last + 1), Aged::Keeps(None), "it is empty");
    assert_eq!(bench.engine.aged(QueueKey { queue: QueueId(9), ..QUEUE }, last), Aged::Keeps(None));
}

#[test]
fn what_is_not_visible_is_kept_however_old_it_is() {
    let mut bench = bench(3);
    bench.store(0, 2, Synced);
    bench.publish();
    let late = bench.now + 1_000;
    assert_eq!(bench.engine.aged(QUEUE, late), Aged::Start(QueueOffset(6), time(&bench, 3).into()));
    keep_from(&mut bench, QueueOffset(6));
    assert_eq!(bench.engine.aged(QUEUE, late), Aged::Keeps(None));
    bench.harden();
    assert_eq!(bench.engine.aged(QUEUE, late), Aged::Start(QueueOffset(8), None));
}

#[test]
fn what_memory_dropped_is_asked_for_once() {
    let mut bench = bench(200);
    let to = bench.log[1 + 150].0.position;
    bench.engine.indexed(to);
    while bench.engine.drop_indexed(&mut Slice::new(3)) {}
    let ask = |bench: &mut Bench, time| match bench.engine.aged(QUEUE, time) {
        Aged::Ask(question) => question,
        other => panic!("{other:?}"),
    };
    // The first is kept: known from then on.
    let first = time(&bench, 0);
    let question = ask(&mut bench, first);
    let answer = found(&bench, &question);
    assert_eq!(bench.engine.aged_by_index(&question, answer.as_ref()), Aged::Keeps(Some(first)));
    assert_eq!(bench.engine.aged(QUEUE, first), Aged::Keeps(Some(first)));

    let fifth = time(&bench, 5);
    let question = ask(&mut bench, fifth);
    let answer = found(&bench, &question);
    assert_eq!(bench.engine.aged_by_index(&question, answer.as_ref()), Aged::Start(QueueOffset(10), Some(fifth)));
    keep_from(&mut bench, QueueOffset(10));
    bench.engine.keeps_since(QUEUE, fifth);
    assert_eq!(bench.engine.aged(QUEUE, fifth), Aged::Keeps(Some(fifth)));
    // Above what was dropped memory knows.
    let held = time(&bench, 140);
    assert_eq!(bench.engine.aged(QUEUE, held), Aged::Start(QueueOffset(280), Some(held)));
}

/// Memory knows of the last batch that it dropped only that it was stored no later than the next one.
#[test]
fn where_the_indexes_have_nothing_so_young_all_that_was_dropped_is_old() {
    let mut bench = bench(64);
    bench.now += 100;
    for _ in 0..3 {
        bench.store(0, 2, Memory);
        bench.now += 1;
    }
    bench.harden();
    let (to, between) = (bench.log[1 + 64].0.position, time(&bench, 63) + 1);
    bench.engine.indexed(to);
    while bench.engine.drop_indexed(&mut Slice::new(3)) {}
    let Aged::Ask(question) = bench.engine.aged(QUEUE, between) else { panic!("it cannot know") };
    assert_eq!(found(&bench, &question), None);
    let first_kept = time(&bench, 64);
    assert_eq!(bench.engine.aged_by_index(&question, None), Aged::Start(QueueOffset(128), Some(first_kept)));
}

/// A log of which nothing is replayed.
struct Nothing;

impl Replay for Nothing {
    fn entry(&mut self, _: &EntryHeader, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn lost(&mut self, _: Extent) {}

    fn begin(&mut self) {}

    fn restore(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn restored(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Where a topic that keeps its messages for 101 ns comes to ask an index, and is altered to keep them for so long before the
/// answer: the start that is moved to then.
fn start_given_while_an_index_is_asked(altered_to: Option<u64>) -> Option<QueueOffset> {
    let mut bench = bench(200);
    let alter = |bench: &mut Bench, age: Option<u64>| {
        let retention = TopicRetention { age: age.map(Nanos) };
        bench.change(bench.engine.decide_alter("t", None, Some(retention), bench.now));
        bench.harden();
    };
    alter(&mut bench, Some(101));
    let to = bench.log[1 + 150].0.position;
    bench.engine.indexed(to);
    while bench.engine.drop_indexed(&mut Slice::new(3)) {}

    let machine = Machine::new(1, 1, Conditions::default());
    let directory = Directory { id: DirectoryId(7), secret: DirectorySecret([9; 16]), device: 1, inode: 2 };
    let options = LogOptions::new(HOME, directory, BootId(1), RunId(1), None);
    let options = LogOptions { ring_bytes: 1 << 20, largest_entry: 1 << 18, ..options };
    let started = machine.block_on(Log::start(machine.disk(0), machine.rings(), options, &mut Nothing));
    let (mut log, _) = started.expect("a first start");
    let times = (bench.now, bench.now);
    let mut topics = RetainingTopics::default();
    let turned = topics.turn(&mut bench.engine, &mut log, times, |_, _, _| panic!("memory cannot know yet"));
    assert!(matches!(turned, TopicsTurn::Ask(_)));
    if altered_to != Some(101) {
        alter(&mut bench, altered_to);
    }
    let first = bench.log[1 + 100].0;
    let found = IndexedBatch {
        offset: first.base_offset,
        records: first.record_count,
        position: first.position,
        length: first.length,
        store_time: first.store_time,
    };
    let question =
        IndexQuestion { queue: QUEUE, asked: Asked::Time(first.store_time), below: bench.log[1 + 128].0.base_offset };
    let mut moved = None;
    let answer = IndexAnswer { question, found: Ok(Some(found)) };
    topics.answered(&answer, &mut bench.engine, &mut log, times, |_, _, _| {
        moved = Some(first.base_offset);
        Ok(())
    });
    moved
}

/// It gave up what the age asked for that had been said before.
#[test]
fn a_topic_that_is_altered_while_an_index_is_asked_gives_up_nothing_by_that_answer() {
    assert_eq!(start_given_while_an_index_is_asked(Some(101)), Some(QueueOffset(200)));
    assert_eq!(start_given_while_an_index_is_asked(None), None);
    assert_eq!(start_given_while_an_index_is_asked(Some(1_000)), None);
}
