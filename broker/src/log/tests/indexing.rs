//! Indexes beside a log that runs and starts.

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, TopicId};

use super::bench::{Bench, Process};
use crate::log::disk::simulated::{Crash, Machine};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::index::{IndexLookUpError, IndexedBatch, SealedSegment, SegmentIndex, Stop, build_index};
use crate::log::segment::{Identity, SegmentName};

/// The segments in the directory, by age.
fn segments(machine: &Machine) -> Vec<Identity> {
    let mut names: Vec<_> = machine.file_names(0).iter().filter_map(|name| SegmentName::parse(name)).collect();
    names.sort_unstable();
    let disk = machine.disk(0);
    let identity = async |name: SegmentName| {
        let file = disk.open(&name.to_string(), Access::Read).await.unwrap();
        Identity::decode(&file.read_at(0, BLOCK).await.unwrap()).unwrap()
    };
    names.into_iter().map(|name| machine.block_on(identity(name))).collect()
}

/// Flushes, pads, a roll, a kill that leaves the newest entries in the ring, and what the next run makes of it.
#[test]
fn each_sealed_segment_of_a_log_has_its_batches_in_its_index() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..1200, Synced, 5000);
    process.wait_durable();
    process.append_all(1200..1230, Memory, 700);
    bench.crash(process, Crash::Kill);
    let mut process = bench.start();
    process.append_all(1230..2000, Synced, 5000);
    process.wait_durable();
    process.close().unwrap();
    let process = bench.start();
    let batches: Vec<_> = process.seen.headers.iter().filter(|header| header.kind == EntryKind::Batch).collect();
    assert_eq!(batches.len(), 2000);

    let identities = segments(&bench.machine);
    let disk = bench.machine.disk(0);
    let mut found = 0;
    // The last one is this run's. Each other ends where the log goes on: a segment that was named ahead and never reached says more
    // than the run after it.
    for (n, identity) in identities.iter().enumerate() {
        let ends = identities[n + 1..].iter().map(|next| next.previous_end).filter(|&end| end > identity.base);
        let Some(end) = ends.min() else { continue };
        let end = end.min(identity.end());
        let segment = SealedSegment::new(identity, end, &[]);
        let report = bench.machine.block_on(build_index(&disk, &bench.options, &segment, Stop::default())).unwrap();
        let index = bench.machine.block_on(SegmentIndex::open(&disk, &bench.options, &segment)).unwrap();
        let within = |position: LogPosition| (identity.base..end).contains(&position);
        let expected: Vec<_> = batches.iter().filter(|header| within(header.position)).collect();
        assert_eq!(report.counts.batches, expected.len() as u64);
        found += expected.len();
        for header in expected {
            let asked = index.lookup(TopicId(1), QueueId(0), header.base_offset, 1);
            let batch = IndexedBatch {
                offset: header.base_offset,
                records: header.record_count,
                position: header.position,
                length: header.length,
                store_time: header.store_time,
            };
            assert_eq!(bench.machine.block_on(asked).unwrap(), [batch]);
        }
    }
    assert_eq!(found, 2000);
    let asked = async |segment| {
        let index = SegmentIndex::open(&disk, &bench.options, &segment).await.unwrap();
        index.lookup(TopicId(1), QueueId(0), QueueOffset(0), 1).await.unwrap()
    };
    let first = &identities[0];
    let end = identities[1].previous_end;
    assert_eq!(bench.machine.block_on(asked(SealedSegment::new(first, end, &[])))[0].offset, QueueOffset(0));
}

#[test]
fn a_start_leaves_indexes_alone_and_unlinks_those_that_were_never_finished() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..10, Synced, 500);
    process.wait_durable();
    process.close().unwrap();
    let index = "index-00000000000000000000-0000000001";
    bench.machine.block_on(async {
        let disk = bench.machine.disk(0);
        for name in [index, "tmp-index-00000000000000000000-0000000001"] {
            drop(disk.create(name, BLOCK as u64).await.unwrap());
        }
    });
    let process = bench.start();
    let indexes: Vec<_> = bench.names().into_iter().filter(|name| name.contains("index")).collect();
    assert_eq!(indexes, [index]);
    assert_eq!(process.seen.numbers, (0..10).collect::<Vec<_>>());
}

/// Appends so much that segments are sealed, and lets the log make their indexes.
fn indexed(bench: &Bench) -> Process {
    let mut process = bench.start();
    process.append_all(0..2500, Synced, 5000);
    process.wait_durable();
    settle(&mut process);
    process
}

/// Until every sealed segment has its index.
fn settle(process: &mut Process) {
    process.wait_until(|log| {
        let (sealed, made) = log.indexes().counts();
        sealed == made
    });
}

/// All batches below what is indexed, read through the indexes.
fn read_through(bench: &Bench, process: &Process) -> Vec<QueueOffset> {
    let indexes = process.log.indexes();
    let (mut from, mut behind, mut offsets) = (QueueOffset(0), LogPosition(0), Vec::new());
    loop {
        let found = bench.machine.block_on(indexes.lookup(TopicId(1), QueueId(0), from, behind, 100)).unwrap();
        let Some(last) = found.last() else { return offsets };
        (from, behind) = (last.end(), last.position);
        offsets.extend(found.iter().map(|batch| batch.offset));
    }
}

#[test]
fn a_running_log_indexes_what_it_seals_and_a_start_what_it_finds() {
    let bench = Bench::new();
    let process = indexed(&bench);
    let (sealed, _) = process.log.indexes().counts();
    assert!(sealed >= 2, "{sealed} segments are sealed");
    let to = process.log.indexes().indexed_to();
    let offsets = read_through(&bench, &process);
    assert_eq!(offsets, (0..offsets.len() as u64).map(QueueOffset).collect::<Vec<_>>());
    assert!(offsets.len() > 1000 && to > LogPosition(4 << 20));

    bench.crash(process, Crash::Kill);
    let mut process = bench.start();
    assert_eq!(process.log.indexes().indexed_to(), LogPosition(0), "a start does not wait for indexes");
    assert_eq!(process.seen.numbers.len(), 2500);
    settle(&mut process);
    assert!(process.log.indexes().indexed_to() > to, "the segment that was open is indexed too");
    assert_eq!(read_through(&bench, &process).len(), 2500);
}

#[test]
fn look_ups_by_offset_and_time_find_their_segment() {
    let bench = Bench::new();
    let process = indexed(&bench);
    process.close().unwrap();
    let mut process = bench.start();
    settle(&mut process);
    let indexes = process.log.indexes();
    for header in process.seen.headers.iter().filter(|header| header.kind == EntryKind::Batch).step_by(97) {
        let at = indexes.lookup(TopicId(1), QueueId(0), header.base_offset, LogPosition(0), 1);
        assert_eq!(bench.machine.block_on(at).unwrap()[0].position, header.position);
        let at = indexes.lookup_time(TopicId(1), QueueId(0), header.store_time, QueueOffset(2500));
        let found = bench.machine.block_on(at).unwrap().unwrap();
        assert!(found.store_time == header.store_time && found.offset <= header.base_offset);
        let before = bench.machine.block_on(indexes.entry_at(header.position)).unwrap().unwrap();
        assert!(before <= header.position);
    }
    let none = indexes.lookup(TopicId(1), QueueId(1), QueueOffset(0), LogPosition(0), 1);
    assert_eq!(bench.machine.block_on(none).unwrap(), []);
}

#[test]
fn an_index_that_goes_bad_is_made_again_and_look_ups_wait_for_it() {
    let bench = Bench::new();
    let process = indexed(&bench);
    let name = bench.names().into_iter().find(|name| name.starts_with("index-")).unwrap();
    let all = read_through(&bench, &process);
    bench.crash(process, Crash::Kill);
    // Every block but the header: only a look-up finds out.
    let blocks = bench.read_whole(&name).len() / BLOCK;
    for block in 1..blocks - 1 {
        bench.flip_at(&name, (block * BLOCK) as u64 + 9);
    }
    let mut process = bench.start();
    settle(&mut process);
    let indexes = process.log.indexes();
    let asked = indexes.lookup(TopicId(1), QueueId(0), QueueOffset(0), LogPosition(0), 1);
    let found = bench.machine.block_on(asked);
    assert!(matches!(found, Err(IndexLookUpError::NotMade)), "{found:?}");
    settle(&mut process);
    assert!(read_through(&bench, &process).starts_with(&all));
}

#[test]
fn an_index_whose_segment_is_gone_is_unlinked() {
    let bench = Bench::new();
    let process = bench.start();
    bench.crash(process, Crash::Kill);
    let gone = "index-00000000004294967296-0000000001";
    bench.write_whole(gone, &[0; BLOCK]);
    let _process = bench.start();
    assert!(!bench.names().contains(&gone.to_owned()));
}

#[test]
fn a_stop_gives_up_the_index_that_is_being_made() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..2500, Synced, 5000);
    process.close().unwrap();
    assert!(bench.names().iter().all(|name| !name.starts_with("index-00000000000000000000")), "{:?}", bench.names());
    let mut process = bench.start();
    settle(&mut process);
    assert_eq!(read_through(&bench, &process).len(), 2500);
}

#[test]
fn a_segment_that_the_device_could_not_read_once_is_indexed_later() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..1, Synced, 5000);
    process.wait_durable();
    let first = "00000000000000000000-0000000001";
    bench.machine.set_readable(0, first, 1, false);
    process.append_all(1..2500, Synced, 5000);
    process.wait_durable();
    let ask = |process: &Process| {
        let indexes = process.log.indexes();
        bench.machine.block_on(indexes.lookup(TopicId(1), QueueId(0), QueueOffset(0), LogPosition(1), 1))
    };
    process.wait_until(|log| log.indexes().changes() > 0);
    let told = ask(&process);
    assert!(matches!(told, Err(IndexLookUpError::Damaged(_))), "whoever asks meanwhile is told: {told:?}");
    bench.machine.set_readable(0, first, 1, true);
    settle(&mut process);
    assert_eq!(ask(&process).unwrap()[0].offset, QueueOffset(0));
}
