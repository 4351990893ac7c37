//! Indexes beside a log that runs and starts.

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, TopicId};

use super::bench::Bench;
use crate::log::disk::simulated::{Crash, Machine};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::index::{IndexedBatch, SealedSegment, SegmentIndex, build_index};
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
        let report = bench.machine.block_on(build_index(&disk, &bench.options, &segment)).unwrap();
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
