//! Indexes that are made around damage: what is not damaged is found, and what is has its place in the index.

use peregrine_protocol::entry::{Codec, EntryKind};
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::lookups::check;
use super::segment::{BASE, Bench, Draft, FIRST_TIME, mixed};
use crate::log::damage::Extent;
use crate::log::disk::BLOCK;
use crate::log::disk::simulated::SimulatedDisk;
use crate::log::index::builder::{Bounds, build_index_over_damage};
use crate::log::index::damage::{DamagedStretch, Harm};
use crate::log::index::format::{BlockSeal, DAMAGED_MAX};
use crate::log::index::{BadIndex, IndexError, SegmentIndex, Stop};
use crate::log::window::BadEntry;

fn try_around(bench: &Bench, takes_unread: bool) -> Result<SegmentIndex<SimulatedDisk>, IndexError> {
    let made = build_index_over_damage(&bench.disk, &bench.options, &bench.segment, takes_unread, Stop::default());
    bench.machine.block_on(made).map(|_| bench.open().unwrap())
}

fn flip(bench: &Bench, position: LogPosition) {
    bench.machine.flip(0, &bench.segment.name().to_string(), position - BASE + BLOCK as u64, 3);
}

fn entries(extent: Extent) -> DamagedStretch {
    DamagedStretch::of_entries(extent.from, extent.to)
}

fn extent_of(draft: &Draft, start: LogPosition) -> Extent {
    let &(from, to) = draft.entries.iter().find(|entry| entry.0 == start).unwrap();
    Extent { from, to }
}

#[test]
fn a_bad_header_takes_its_batch_and_nothing_else() {
    for batch in (0..mixed().batches.len()).step_by(5) {
        let mut draft = mixed();
        let bench = Bench::of(&draft);
        let lost = extent_of(&draft, draft.batches[batch].2.position);
        flip(&bench, lost.from + 30);
        assert!(matches!(bench.build(Bounds::default()), Err(IndexError::Entry { .. })), "nobody asked for it");
        let index = try_around(&bench, false).unwrap();
        assert_eq!(index.damaged(), [entries(lost)]);
        draft.batches.remove(batch);
        draft.keys.retain(|key| !lost.contains(key.2));
        draft.entries.retain(|entry| entry.0 != lost.from);
        bench.machine.block_on(check(&index, &draft));
    }
}

#[test]
fn a_batch_whose_payload_is_bad_keeps_its_place_and_lacks_its_keys() {
    let mut draft = mixed();
    let bench = Bench::of(&draft);
    let (_, _, batch) = draft.batches[21];
    let damaged = extent_of(&draft, batch.position);
    flip(&bench, batch.position + (95 + u64::from(batch.length)));
    let index = try_around(&bench, false).unwrap();
    assert_eq!(index.damaged(), [DamagedStretch { extent: damaged, harm: Harm::Payload }]);
    let before = draft.keys.len();
    draft.keys.retain(|key| !damaged.contains(key.2));
    assert!(draft.keys.len() < before);
    bench.machine.block_on(check(&index, &draft));
}

#[test]
fn the_end_of_a_segment_may_be_damaged_and_so_may_its_first_block() {
    let mut draft = mixed();
    draft.push_batch(1, 0, 0, Codec::None, &[None], 10);
    let bench = Bench::of(&draft);
    let (_, _, last) = draft.batches.pop().unwrap();
    flip(&bench, last.position + 3);
    bench.machine.flip(0, &bench.segment.name().to_string(), 9, 1);
    assert!(matches!(bench.build(Bounds::default()), Err(IndexError::Segment { .. })));
    let index = try_around(&bench, false).unwrap();
    assert_eq!(index.damaged(), [DamagedStretch::of_entries(last.position, draft.end())]);
    draft.entries.pop();
    bench.machine.block_on(check(&index, &draft));
}

#[test]
fn what_the_device_cannot_read_is_passed_over_only_where_that_is_asked_for() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.machine.set_readable(0, &bench.segment.name().to_string(), 3, false);
    let unread = try_around(&bench, false).err().unwrap();
    assert!(matches!(unread, IndexError::Entry { reason: BadEntry::Unreadable(_), .. }), "{unread}");
    let index = try_around(&bench, true).unwrap();
    let block = Extent { from: BASE + 2 * BLOCK as u64, to: BASE + 3 * BLOCK as u64 };
    let damaged = index.damaged();
    let is_within = damaged[0].extent.from <= block.from && damaged[damaged.len() - 1].extent.to >= block.to;
    assert!(is_within, "{damaged:?}");
    for (topic, queue, batch) in draft.batches.iter().filter(|batch| batch.2.position >= block.to) {
        let found = bench.machine.block_on(index.lookup(*topic, *queue, batch.offset, 1)).unwrap();
        assert_eq!(found, [*batch]);
    }
}

#[test]
fn more_damage_than_there_is_room_for_is_told_as_one() {
    let mut draft = Draft::new();
    for _ in 0..2 * DAMAGED_MAX + 100 {
        draft.push_batch(1, 0, 0, Codec::None, &[None], 10);
    }
    let bench = Bench::of(&draft);
    for (_, _, batch) in draft.batches.iter().step_by(2) {
        flip(&bench, batch.position + 3);
    }
    let index = try_around(&bench, false).unwrap();
    let last = draft.batches[2 * DAMAGED_MAX - 2].2.position;
    assert_eq!(index.damaged().len(), DAMAGED_MAX);
    let all = extent_of(&draft, draft.batches[draft.batches.len() - 2].2.position);
    assert_eq!(index.damaged()[DAMAGED_MAX - 1], DamagedStretch::of_entries(last, all.to));
    let found = bench.machine.block_on(index.lookup(TopicId(1), QueueId(0), QueueOffset(0), 1000)).unwrap();
    let left: Vec<_> = draft.batches.iter().skip(1).step_by(2).map(|batch| batch.2).collect();
    assert_eq!(found, left);
}

/// Whatever their payloads are.
#[test]
fn entries_that_contradict_those_before_them_are_passed_over() {
    for is_bad in [false, true] {
        let mut draft = mixed();
        let right = (draft.batches.clone(), draft.ends.clone());
        let end = draft.end();
        draft.ends.insert((TopicId(1), QueueId(0)), QueueOffset(2));
        draft.push_batch(1, 0, 0, Codec::None, &[None], 10);
        let early = draft.end();
        let time = std::mem::replace(&mut draft.time, Nanos(FIRST_TIME));
        draft.push_other(EntryKind::Catalogue, b"too early");
        let behind = draft.end();
        draft.time = time;
        (draft.batches, draft.ends) = right;
        draft.push_batch(1, 0, 0, Codec::None, &[None], 10);
        let bench = Bench::of(&draft);
        if is_bad {
            flip(&bench, end + 100);
            flip(&bench, early + 100);
        }
        let index = try_around(&bench, false).unwrap();
        assert_eq!(index.damaged(), [DamagedStretch::of_entries(end, behind)]);
        draft.entries.retain(|entry| !(end..behind).contains(&entry.0));
        bench.machine.block_on(check(&index, &draft));
    }
}

#[test]
fn an_identity_that_the_device_cannot_read_may_pass_and_in_the_end_is_done_without() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.machine.set_readable(0, &bench.segment.name().to_string(), 0, false);
    let error = bench.build(Bounds::default()).err().unwrap();
    assert!(error.may_pass() && error.is_of_segment(), "{error}");
    let index = try_around(&bench, true).unwrap();
    assert_eq!(index.damaged(), []);
    bench.machine.block_on(check(&index, &draft));
}

/// A program that knows version 1 alone makes such an index again, where this one would have missed what is hidden.
#[test]
fn an_index_around_damage_has_a_version_of_its_own() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    assert_eq!(bench.read_index()[8..12], 1_u32.to_le_bytes(), "what is not damaged is as it was");
    bench.machine.block_on(async {
        use crate::log::disk::Disk;
        bench.disk.remove(&bench.index_name()).await.unwrap();
    });
    let lost = extent_of(&draft, draft.batches[7].2.position);
    flip(&bench, lost.from + 30);
    try_around(&bench, false).unwrap();
    let file = bench.read_index();
    assert_eq!(file[8..12], 2_u32.to_le_bytes());
    let changed = |at: usize, value: u32| {
        let mut other = file.clone();
        other[at..at + 4].copy_from_slice(&value.to_le_bytes());
        BlockSeal::new(&bench.options, &bench.segment).put(0, &mut other[..BLOCK]);
        bench.replace_index(&other);
        match bench.open() {
            Err(IndexError::Bad { reason, .. }) => reason,
            other => panic!("it was taken: {:?}", other.map(|index| index.damaged().to_vec())),
        }
    };
    assert_eq!(changed(8, 1), BadIndex::Contents(0), "version 1 knows no damage");
    assert_eq!(changed(8, 3), BadIndex::Version(3));
    assert_eq!(changed(136, 0), BadIndex::Contents(0), "and version 2 is for nothing else");
    assert_eq!(changed(136, DAMAGED_MAX as u32 + 1), BadIndex::Contents(0));
    assert_eq!(changed(144 + 8, 0), BadIndex::Contents(0), "a stretch without a byte");
    assert_eq!(changed(144 + 8, u32::MAX), BadIndex::Contents(0), "a stretch that ends elsewhere");
    assert_eq!(changed(144 + 12, 3), BadIndex::Contents(0), "nobody knows what that is");
    bench.replace_index(&file);
    assert_eq!(bench.open().unwrap().damaged(), [entries(lost)]);
}
