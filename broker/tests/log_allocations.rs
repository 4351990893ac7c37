//! A message's way into the log and out of its ring allocates nothing.

use peregrine_allocations::of_this_thread;
use peregrine_broker::log::damage::Extent;
use peregrine_broker::log::disk::simulated::{Conditions, Machine};
use peregrine_broker::log::{AppendRefused, BootId, Directory, Log, LogOptions, Replay, RunId};
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{DirectoryId, DirectorySecret, EntryDraft, EntryFlags, EntryHeader, EntryKind};
use peregrine_protocol::ids::{
    DurableLevel, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, ShardId, TopicId,
};

struct Nothing;

impl Replay for Nothing {
    fn entry(&mut self, _header: &EntryHeader, _payload: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn lost(&mut self, _extent: Extent) {}

    fn begin(&mut self) {}

    fn restore(&mut self, _section: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn restored(&mut self) -> Result<(), String> {
        Ok(())
    }
}

fn draft(payload: &[u8], level: DurableLevel) -> EntryDraft {
    EntryDraft {
        kind: EntryKind::Batch,
        flags: EntryFlags::for_level(level),
        payload_crc: crc32(payload),
        length: payload.len() as u32,
        record_count: 1,
        topic: TopicId(1),
        queue: QueueId(0),
        producer_epoch: ProducerEpoch(0),
        base_offset: QueueOffset(0),
        store_time: Nanos(0),
        producer_id: ProducerId::NONE,
        sequence: Sequence(0),
    }
}

#[test]
fn appends_and_reads_of_the_tail_allocate_nothing() {
    let machine = Machine::new(1, 1, Conditions::default());
    let directory = Directory { id: DirectoryId(1), secret: DirectorySecret([2; 16]), device: 3, inode: 4 };
    let mut options = LogOptions::new(ShardId(0), directory, BootId(5), RunId(6), Some("/dev/shm/1-0".to_owned()));
    options.ring_bytes = 1 << 20;
    options.segment_bytes = 4 << 20;
    options.largest_entry = 256 << 10;
    let started = machine.block_on(Log::start(machine.disk(0), machine.rings(), options, &mut Nothing));
    let Ok((mut log, _)) = started else { panic!("an empty directory starts") };
    let now = || Nanos(machine.now());
    let payload = vec![7; 1024];
    let large_payload = vec![7; 200 << 10];
    let (mut appended, mut refused, mut larges) = (0, 0, 0);
    for round in 0..400 {
        let level = if round % 2 == 0 { DurableLevel::Memory } else { DurableLevel::Synced };
        let ((), allocations) = of_this_thread(|| {
            for _ in 0..50 {
                match log.append(&draft(&payload, level), &payload, now()) {
                    Ok(place) => {
                        appended += 1;
                        let read = log.read_ring(place.position, (place.end - place.position) as usize);
                        assert!(read.is_some_and(|bytes| bytes[96..96 + 1024] == payload[..]));
                    }
                    Err(AppendRefused::NoRoom) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            if round % 10 == 0
                && let Ok(mut large) = log.begin_large(&draft(&large_payload, level), now())
            {
                while !log.copy_step(&mut large, &large_payload) {}
                larges += 1;
            }
        });
        assert_eq!(allocations, 0, "in round {round}");
        while let Some(task) = log.next_task(now()) {
            let completion = machine.block_on(task.run());
            log.complete(completion, now());
        }
        let (task, allocations) = of_this_thread(|| log.next_task(now()));
        assert!(task.is_none());
        assert_eq!(allocations, 0, "asking for work where there is none");
    }
    assert!(appended > 10_000 && larges > 10, "{appended} appended, {refused} refused, {larges} large");
}
