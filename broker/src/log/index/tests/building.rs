//! The making of an index: what it refuses, and what a crash, a failing device and an accepted loss make of it.

use peregrine_protocol::entry::{Codec, EntryError, EntryKind};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::lookups::check;
use super::segment::{BASE, Bench, Draft, FIRST_TIME, mixed, small_bounds};
use crate::log::damage::Extent;
use crate::log::disk::simulated::{Conditions, Crash};
use crate::log::disk::{BLOCK, Disk};
use crate::log::index::builder::Bounds;
use crate::log::index::{BadIndex, IndexError, SealedSegment};
use crate::log::options::RunId;
use crate::log::window::BadEntry;

fn assert_nothing_is_left(bench: &Bench) {
    assert_eq!(bench.names(), [bench.segment.name().to_string()]);
}

/// The position and the reason of the bad entry that ends the making.
fn bad_entry(bench: &Bench) -> (LogPosition, BadEntry) {
    let bad = match bench.build(Bounds::default()) {
        Err(IndexError::Entry { position, reason, .. }) => (position, reason),
        other => panic!("not a bad entry: {other:?}"),
    };
    assert_nothing_is_left(bench);
    bad
}

#[test]
fn a_flipped_bit_in_any_entry_is_named() {
    let draft = mixed();
    for &(start, _) in draft.entries.iter().step_by(7) {
        let bench = Bench::of(&draft);
        let name = bench.segment.name().to_string();
        bench.machine.flip(0, &name, start - BASE + BLOCK as u64 + 30, 3);
        let (position, reason) = bad_entry(&bench);
        assert_eq!((position, reason), (start, EntryError::HeaderChecksum.into()));
    }
    for (_, _, batch) in draft.batches.iter().step_by(5) {
        let bench = Bench::of(&draft);
        let last = batch.position - BASE + BLOCK as u64 + 96 + u64::from(batch.length) - 1;
        bench.machine.flip(0, &bench.segment.name().to_string(), last, 3);
        assert_eq!(bad_entry(&bench), (batch.position, EntryError::PayloadChecksum.into()));
    }
}

#[test]
fn a_segment_is_indexed_up_to_the_end_of_an_entry() {
    let draft = mixed();
    let whole = draft.identity();
    let last = draft.entries.last().unwrap().0;
    let bench = Bench::seeded(1, &draft, SealedSegment::new(&whole, draft.end() + 64, &[]));
    assert_eq!(bad_entry(&bench), (draft.end(), EntryError::Magic.into()));
    let bench = Bench::seeded(1, &draft, SealedSegment::new(&whole, last + 64, &[]));
    assert_eq!(bad_entry(&bench), (last, BadEntry::End));
    let bench = Bench::seeded(1, &draft, SealedSegment::new(&whole, last, &[]));
    bench.build(Bounds::default()).unwrap();
    bench.open().unwrap();
}

#[test]
fn an_entry_of_a_later_run_ends_it() {
    let mut draft = mixed();
    let end = draft.end();
    draft.epoch = Epoch(8);
    draft.push_other(EntryKind::Catalogue, b"later");
    draft.epoch = Epoch(7);
    assert_eq!(bad_entry(&Bench::of(&draft)), (end, BadEntry::Epoch(Epoch(8))));
}

#[test]
fn sound_entries_that_contradict_each_other_end_it() {
    let disorder = |draft: &Draft, bounds| {
        let bench = Bench::of(draft);
        let Err(IndexError::Disorder { position, .. }) = bench.build(bounds) else { panic!("no disorder") };
        assert_nothing_is_left(&bench);
        position
    };
    let mut draft = mixed();
    let end = draft.end();
    draft.time = Nanos(FIRST_TIME);
    draft.push_other(EntryKind::Catalogue, b"too early");
    assert_eq!(disorder(&draft, small_bounds()), end);

    let mut draft = mixed();
    let end = draft.end();
    draft.ends.insert((TopicId(1), QueueId(0)), QueueOffset(2));
    draft.push_batch(1, 0, 0, Codec::None, &[None], 10);
    assert_eq!(disorder(&draft, Bounds::default()), end);
}

#[test]
fn a_file_that_is_not_the_segment_ends_it() {
    let draft = mixed();
    let mut bench = Bench::of(&draft);
    bench.options.shard.0 += 1;
    assert!(matches!(bench.build(Bounds::default()), Err(IndexError::Segment { .. })));
    let mut bench = Bench::of(&draft);
    let mut other_run = draft.identity();
    other_run.run = RunId(99);
    bench.segment = SealedSegment::new(&other_run, draft.end(), &[]);
    assert!(matches!(bench.build(Bounds::default()), Err(IndexError::End { .. })));
    bench.segment = SealedSegment::new(&draft.identity(), draft.identity().end() + 64, &[]);
    assert!(matches!(bench.build(Bounds::default()), Err(IndexError::End { .. })));
    assert_nothing_is_left(&bench);
}

#[test]
fn a_block_that_the_device_cannot_read_is_named() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    let name = bench.segment.name().to_string();
    bench.machine.set_readable(0, &name, 0, false);
    let (position, reason) = bad_entry(&bench);
    assert!(position == BASE && matches!(reason, BadEntry::Unreadable(_)), "its identity: {reason}");
    bench.machine.set_readable(0, &name, 0, true);
    bench.machine.set_readable(0, &name, 3, false);
    let within = BASE + 2 * BLOCK as u64;
    let (position, reason) = bad_entry(&bench);
    let entry = draft.entries.iter().find(|entry| entry.1 > within).unwrap();
    assert_eq!(position, entry.0);
    assert!(matches!(reason, BadEntry::Unreadable(_)), "{reason}");
    bench.machine.set_readable(0, &name, 3, true);
    bench.build(Bounds::default()).unwrap();
}

/// What was given up is passed over even where it can be read, as a start passes over it.
#[test]
fn what_was_given_up_is_not_in_the_index() {
    let draft = mixed();
    let (from, to) = (draft.entries[10].0, draft.entries[25].1);
    let given_up = [Extent { from, to }, Extent { from: BASE + (1 << 30), to: BASE + (2 << 30) }];
    let mut bench = Bench::seeded(1, &draft, draft.sealed());
    bench.build(Bounds::default()).unwrap();
    bench.open().unwrap();
    bench.segment = draft.sealed_without(&given_up);
    // One that was made before the loss.
    let Err(bad @ IndexError::Bad { reason: BadIndex::Segment, .. }) = bench.open() else { panic!("it passed") };
    assert!(bad.is_bad_index());
    bench.machine.block_on(bench.disk.remove(&bench.index_name())).unwrap();
    bench.machine.flip(0, &bench.segment.name().to_string(), from - BASE + BLOCK as u64, 0);
    bench.build(Bounds::default()).unwrap();
    let index = bench.open().unwrap();
    let mut rest = draft;
    let is_left = |position: LogPosition| !given_up[0].contains(position);
    rest.batches.retain(|(_, _, batch)| is_left(batch.position));
    rest.keys.retain(|(_, _, position)| is_left(*position));
    let lost = rest.entries.iter().copied().filter(|entry| !is_left(entry.0)).collect::<Vec<_>>();
    rest.entries.retain(|entry| is_left(entry.0));
    bench.machine.block_on(async {
        check(&index, &rest).await;
        for (start, _) in lost {
            let found = index.entry_at(start).await.unwrap();
            assert!(rest.entries.iter().any(|entry| entry.0 == found), "an entry that is not lost");
        }
    });
}

#[test]
fn segments_without_batches_have_an_index_too() {
    let empty = Draft::new();
    let mut without_batches = Draft::new();
    for _ in 0..3 {
        without_batches.push_other(EntryKind::Catalogue, &[1; 300]);
        without_batches.push_pad(64);
        without_batches.push_other(EntryKind::GroupOffsets, &vec![1; 70_000]);
    }
    without_batches.push_pad(100_032);
    for draft in [empty, without_batches] {
        let bench = Bench::of(&draft);
        let report = bench.build(Bounds::default()).unwrap();
        assert_eq!((report.counts.batches, report.counts.records, report.counts.keys), (0, 0, 0));
        let index = bench.open().unwrap();
        bench.machine.block_on(check(&index, &draft));
    }
}

/// Whenever a crash strikes, an index under its name is whole, and what else is left stops no second attempt.
#[test]
fn a_crash_at_any_step_leaves_an_index_or_none() {
    let draft = mixed();
    let (mut none, mut whole) = (0, 0);
    for crash in [Crash::Kill, Crash::Power] {
        for step in 0.. {
            let bench = Bench::seeded(step, &draft, draft.sealed());
            bench.machine.arm(step, crash);
            let ended = bench.machine.survive(|| bench.build(small_bounds()).map(drop));
            bench.machine.disarm();
            if let Ok(built) = ended {
                built.unwrap();
                assert!(step > 30, "a crash struck at each of some steps, not {step}");
                break;
            }
            bench.machine.crash(crash);
            if bench.names().contains(&bench.index_name()) {
                whole += 1;
            } else {
                none += 1;
                bench.build(small_bounds()).unwrap();
            }
            let index = bench.open().unwrap();
            bench.machine.block_on(check(&index, &draft));
        }
    }
    assert!(none > 30 && whole > 0, "{none} without an index, {whole} with one");
}

#[test]
fn a_device_that_fails_leaves_nothing_and_may_be_asked_again() {
    let draft = mixed();
    let failing = |one_in| Conditions {
        fail_write_one_in: one_in,
        fail_sync_one_in: one_in,
        disk_full_one_in: one_in,
        ..Conditions::default()
    };
    let mut failed = 0;
    for seed in 0..100 {
        let bench = Bench::seeded(seed, &draft, draft.sealed());
        bench.machine.set_conditions(failing(8));
        let built = bench.build(small_bounds());
        bench.machine.set_conditions(Conditions::default());
        if let Err(error) = built {
            failed += 1;
            assert!(matches!(error, IndexError::Io { .. }), "{error}");
            if !bench.names().contains(&bench.index_name()) {
                assert_nothing_is_left(&bench);
                bench.build(small_bounds()).unwrap();
            }
        }
        let index = bench.open().unwrap();
        bench.machine.block_on(check(&index, &draft));
    }
    assert!((20..100).contains(&failed), "{failed} failed");
}
