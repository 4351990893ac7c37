//! Sealed segments below the checkpoint that are damaged, which no start reads: what look-ups answer there.

use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::bench::{Bench, Process};
use super::damage::damage as damage_of;
use crate::limits::{INDEX_ATTEMPTS, INDEX_RETRY};
use crate::log::disk::{BLOCK, Disk};
use crate::log::index::{FirstBehind, IndexError, IndexLookUpError, IndexedBatch};
use crate::log::options::ScrubOptions;

const FIRST: &str = "00000000000000000000-0000000001";
/// Where the second segment begins: each has 4 MiB, its identity included.
const SECOND: LogPosition = LogPosition((4 << 20) - BLOCK as u64);
const BATCHES: u64 = 2500;
const QUEUE: (TopicId, QueueId) = (TopicId(1), QueueId(0));

fn lookup(process: &Process, from: u64, behind: LogPosition) -> Result<Vec<IndexedBatch>, IndexLookUpError> {
    let indexes = process.log.indexes();
    process.machine.block_on(indexes.lookup(QUEUE.0, QUEUE.1, QueueOffset(from), behind, 1000))
}

/// Where a queue's messages of that time begin, where batches from `below` on are known elsewhere.
fn lookup_time(process: &Process, time: u64, below: u64) -> Option<u64> {
    let indexes = process.log.indexes();
    let at = indexes.lookup_time(QUEUE.0, QUEUE.1, Nanos(time), QueueOffset(below));
    process.machine.block_on(at).unwrap().map(|batch| batch.offset.0)
}

fn first_behind(process: &Process, position: LogPosition, below: LogPosition) -> FirstBehind {
    process.machine.block_on(process.log.indexes().first_behind(QUEUE.0, QUEUE.1, position, below)).unwrap()
}

/// Whether the index of a segment knows where all queues end that have anything there.
fn knows_ends(process: &Process, base: LogPosition) -> bool {
    process.machine.block_on(process.log.indexes().queue_ends(base, None, 10)).unwrap().is_some()
}

fn settle(process: &mut Process) {
    process.wait_until(|log| {
        let (sealed, made) = log.indexes().counts();
        sealed == made
    });
}

fn offsets(batches: &[IndexedBatch]) -> Vec<u64> {
    batches.iter().map(|batch| batch.offset.0).collect()
}

fn assert_damaged(process: &Process, from: u64, behind: LogPosition, at: &IndexedBatch) {
    let Err(IndexLookUpError::Damaged(error)) = lookup(process, from, behind) else {
        panic!("{:?} is no word of damage", lookup(process, from, behind));
    };
    let IndexError::Damaged { extent, .. } = &*error else { panic!("{error}") };
    assert!(extent.contains(at.position), "{error}");
}

/// Batches that are sealed and indexed, a checkpoint that knows them all, and those of the first two segments.
fn stored(bench: &Bench) -> [Vec<IndexedBatch>; 2] {
    let mut process = bench.start();
    process.append_all(0..BATCHES, Synced, 5000);
    process.checkpoint(&(0..BATCHES).collect::<Vec<_>>());
    settle(&mut process);
    let first = lookup(&process, 0, LogPosition(0)).unwrap();
    let second = lookup(&process, first.last().unwrap().end().0, LogPosition(0)).unwrap();
    assert!(first.last().unwrap().position < SECOND && second[0].position >= SECOND);
    process.close().unwrap();
    [first, second]
}

/// The name of the segment that holds a position.
fn name_of(position: LogPosition) -> String {
    format!("{:020}-0000000001", if position < SECOND { 0 } else { SECOND.0 })
}

fn take_index(bench: &Bench, position: LogPosition) {
    let name = format!("index-{}", name_of(position));
    bench.machine.block_on(bench.machine.disk(0).remove(&name)).unwrap();
}

/// Flips a bit in the headers of these batches and takes the index away.
fn damage(bench: &Bench, batches: &[IndexedBatch]) {
    for batch in batches {
        let base = if batch.position < SECOND { LogPosition(0) } else { SECOND };
        bench.flip(&name_of(batch.position), base, batch.position + 30);
    }
    take_index(bench, batches[0].position);
}

#[test]
fn look_ups_are_told_of_what_damage_took_and_served_around_it() {
    let bench = Bench::new();
    let [batches, _] = stored(&bench);
    let last = batches.len() - 1;
    assert!(last > 200, "{last} batches in the first segment");
    damage(&bench, &[batches[100], batches[last]]);
    // The second start finds the index, and what it says of the damage.
    for _ in 0..2 {
        let mut process = bench.start();
        assert_eq!(process.seen.numbers.len() as u64, BATCHES);
        settle(&mut process);
        let before = lookup(&process, 0, LogPosition(0)).unwrap();
        assert_eq!(offsets(&before), (0..100).collect::<Vec<_>>(), "what stands in front of it is found");
        assert_damaged(&process, 100, before[99].position, &batches[100]);
        assert_damaged(&process, 100, LogPosition(0), &batches[100]);
        let between = lookup(&process, 101, LogPosition(0)).unwrap();
        assert_eq!(offsets(&between), (101..last as u64).collect::<Vec<_>>());
        assert_damaged(&process, last as u64, between.last().unwrap().position, &batches[last]);
        assert_damaged(&process, last as u64, LogPosition(0), &batches[last]);
        let behind = last as u64 + 1;
        assert_eq!(lookup(&process, behind, LogPosition(0)).unwrap()[0].offset, QueueOffset(behind));

        let indexes = process.log.indexes();
        let readable = |from| bench.machine.block_on(indexes.first_readable(QUEUE.0, QUEUE.1, QueueOffset(from)));
        assert_eq!(readable(100).unwrap().unwrap().offset, QueueOffset(101));
        assert_eq!(readable(last as u64).unwrap().unwrap().offset, QueueOffset(behind));
        assert!(!knows_ends(&process, LogPosition(0)), "it may have held other queues");
        assert!(knows_ends(&process, SECOND));
        process.close().unwrap();
    }
}

/// A group that begins with a time was put behind what damage took of that time, and never told.
#[test]
fn what_damage_took_of_a_time_is_part_of_that_time() {
    let bench = Bench::new();
    let [batches, _] = stored(&bench);
    let last = batches.len() as u64 - 1;
    damage(&bench, &[batches[0], batches[100], batches[101], batches[last as usize]]);
    let mut process = bench.start();
    settle(&mut process);
    // What is missing was stored no later than what comes behind it.
    for (time, offset) in [(0, 0), (1, 0), (2, 2), (99, 99), (100, 100), (101, 100), (102, 100), (103, 103)] {
        assert_eq!(lookup_time(&process, time, BATCHES), Some(offset), "at time {time}");
    }
    for (time, offset) in [(last - 1, last - 1), (last, last), (last + 1, last), (last + 2, last + 2)] {
        assert_eq!(lookup_time(&process, time, BATCHES), Some(offset), "at time {time}");
    }
    process.close().unwrap();
}

#[test]
fn what_damage_took_of_the_last_sealed_batches_is_part_of_their_time() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..1000, Synced, 5000);
    process.wait_until(|log| log.indexes().counts() == (1, 1));
    let sealed = lookup(&process, 0, LogPosition(0)).unwrap();
    let last = sealed.len() as u64 - 1;
    damage(&bench, &sealed[last as usize..]);
    process.log.indexes().found_bad(LogPosition(0));
    settle(&mut process);
    assert_eq!(lookup_time(&process, last, last + 1), Some(last), "it is missing");
    assert_eq!(lookup_time(&process, last, last), None, "memory has it");
}

/// Retention gave up what a later segment still had.
#[test]
fn damage_in_front_of_a_queue_leaves_open_where_it_goes_on() {
    let bench = Bench::new();
    let [first, second] = stored(&bench);
    damage(&bench, &first[10..11]);
    let mut process = bench.start();
    settle(&mut process);
    let end = LogPosition(u64::MAX);
    assert_eq!(first_behind(&process, SECOND, end), FirstBehind::At(second[0].offset));
    assert_eq!(first_behind(&process, SECOND, SECOND), FirstBehind::Nothing, "memory has it from there on");
    process.close().unwrap();

    damage(&bench, &second[20..21]);
    let mut process = bench.start();
    settle(&mut process);
    assert_eq!(first_behind(&process, SECOND, end), FirstBehind::At(second[0].offset), "the damage stands behind it");
    process.close().unwrap();

    damage(&bench, &second[..1]);
    let mut process = bench.start();
    settle(&mut process);
    assert_eq!(first_behind(&process, SECOND, end), FirstBehind::Unknown);
    let indexes = process.log.indexes();
    let known = indexes.known_end(QUEUE.0, QUEUE.1, LogPosition(0));
    assert_eq!(bench.machine.block_on(known).unwrap(), Some(first.last().unwrap().end()));
}

/// A payload that is bad hides nobody's batches: who asks for offsets that `--accept-loss` gave up is not told of it.
#[test]
fn a_bad_payload_is_its_readers_alone() {
    let bench = Bench::new();
    let [batches, _] = stored(&bench);
    bench.flip(FIRST, LogPosition(0), batches[100].position + 200);
    take_index(&bench, LogPosition(0));
    let mut process = bench.start();
    settle(&mut process);
    let found = lookup(&process, 0, LogPosition(0)).unwrap();
    assert_eq!(offsets(&found), (0..batches.len() as u64).collect::<Vec<_>>(), "it has its place");
    assert!(knows_ends(&process, LogPosition(0)));
    let indexes = process.log.indexes();
    let other = indexes.lookup(TopicId(1), QueueId(7), QueueOffset(0), LogPosition(0), 10);
    assert_eq!(bench.machine.block_on(other).unwrap(), []);
}

#[test]
fn a_segment_that_stays_unreadable_is_indexed_around_that_in_the_end() {
    let mut bench = Bench::new();
    let [batches, _] = stored(&bench);
    take_index(&bench, LogPosition(0));
    bench.set_readable(FIRST, LogPosition(0), batches[100].position, false);
    bench.options.scrub = ScrubOptions { rate: Some(64 << 20), every: Nanos::from_secs(1000) };
    let mut process = bench.start();
    let began = process.now();
    settle(&mut process);
    assert!(process.now() - began >= u64::from(INDEX_ATTEMPTS - 1) * INDEX_RETRY.0, "it may have passed");
    let before = lookup(&process, 0, LogPosition(0)).unwrap();
    let lost = before.last().unwrap().end().0;
    assert!((98..=100).contains(&lost), "{lost}");
    assert_damaged(&process, lost, LogPosition(0), &batches[lost as usize]);
    assert_eq!(lookup(&process, 102, LogPosition(0)).unwrap()[0].offset, QueueOffset(102));

    // The device gives it again: the scrub finds an index that says less than its segment.
    bench.set_readable(FIRST, LogPosition(0), batches[100].position, true);
    process.wait_until(|log| log.counters().scrub_bad_indexes > 0);
    settle(&mut process);
    assert_eq!(lookup(&process, 0, LogPosition(0)).unwrap().len(), batches.len());
}

/// It was tried again for ever, and who looked anything up there waited for ever.
#[test]
fn an_identity_that_stays_unreadable_keeps_nothing_from_its_readers() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..1, Synced, 5000);
    process.wait_durable();
    bench.machine.set_readable(0, FIRST, 0, false);
    process.append_all(1..1000, Synced, 5000);
    process.wait_durable();
    process.wait_until(|log| log.indexes().counts().0 > 0);
    settle(&mut process);
    assert_eq!(lookup(&process, 0, LogPosition(0)).unwrap()[0].offset, QueueOffset(0));
    assert!(knows_ends(&process, LogPosition(0)));
}

/// A start went on from its checkpoint and never looked: who read on came out behind it, and nobody said so.
#[test]
fn a_segment_that_is_gone_below_the_checkpoint_is_damage() {
    for is_there in [false, true] {
        for number in if is_there { 0..2 } else { 1..2 } {
            let bench = Bench::new();
            let [first, second] = stored(&bench);
            let (lost, kept) = if number == 0 { (&first, &second) } else { (&second, &first) };
            let name = name_of(lost[0].position);
            if is_there {
                bench.flip_at(&name, 70);
            } else {
                bench.machine.block_on(bench.machine.disk(0).remove(&name)).unwrap();
            }
            let found = damage_of(&bench);
            assert_eq!((found.files.len(), found.extents.len()), if is_there { (1, 0) } else { (0, 1) }, "{found}");

            let process = bench.try_start_with(|options| options.accept_loss = true).unwrap_or_else(|e| panic!("{e}"));
            let accepted: Vec<_> = process.report.accepted.iter().map(|damaged| damaged.extent).collect();
            assert_eq!(accepted.len(), 1);
            assert!(lost.iter().all(|batch| accepted[0].contains(batch.position)), "{accepted:?}");
            assert!(!kept.iter().any(|batch| accepted[0].contains(batch.position)), "{accepted:?}");
            process.close().unwrap();
            for _ in 0..2 {
                let mut process = bench.start();
                assert_eq!((process.report.accepted.len(), &process.report.given_up), (0, &accepted));
                settle(&mut process);
                let behind = lookup(&process, lost[0].offset.0, LogPosition(0)).unwrap()[0].offset;
                assert_eq!(behind, lost.last().unwrap().end(), "what was accepted is passed over");
                process.close().unwrap();
            }
        }
    }
}
