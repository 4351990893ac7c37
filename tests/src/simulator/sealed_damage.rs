//! A bit that turns over below the newest checkpoint, where no start reads: the start comes up, the look-ups of that entry alone say so,
//! and retention goes past its segment without giving up what later segments hold.

use peregrine_broker::log::disk::Disk;
use peregrine_broker::log::index::IndexLookUpError;
use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{LogPosition, ProducerId, QueueId, QueueOffset, TopicId};
use peregrine_protocol::limits::{BLOCK, ENTRY_HEADER_LEN};

use super::damage::{base_and_epoch, segment_of};
use super::producer::Producer;
use super::simulation::{Process, Simulation};
use super::violation::{Violation, promise};

/// Nanoseconds within which checkpoints are taken and indexes made.
const SETTLED_AFTER: u64 = 3_000_000_000;
/// Batches that come before the damage, and beside it.
const BATCHES: usize = 20;

/// What was damaged.
struct Flipped {
    shard: usize,
    file: String,
    byte: u64,
    bit: u8,
    entry: EntryHeader,
    in_header: bool,
    /// Its segment has no index, or none that is older than the damage.
    is_indexed_anew: bool,
}

impl Simulation {
    pub(super) fn damage_what_no_start_reads(&mut self) -> Result<(), Violation> {
        let Some((topic, queue)) = self.any_queue() else { return Ok(()) };
        self.live_undisturbed(|simulation, process| simulation.produce_on(process, topic, queue))?;
        let Some(flipped) = self.flip_below_checkpoint() else { return Ok(()) };
        self.statistics.damaged_at_rest += 1;
        self.live_undisturbed(|simulation, process| {
            simulation.pass_time(process, simulation.machine.now() + SETTLED_AFTER)?;
            simulation.look_everything_up(process, &flipped)?;
            let before = process.shards[flipped.shard].log.begins_at();
            simulation.produce_on(process, topic, queue)?;
            let begins_at = process.shards[flipped.shard].log.begins_at();
            let went = (before..begins_at).contains(&flipped.entry.position);
            simulation.statistics.damaged_given_up += u64::from(went);
            simulation.look_everything_up(process, &flipped)
        })?;
        self.mend_flipped(&flipped);
        self.live_undisturbed(|_, _| Ok(()))
    }

    fn produce_on(&mut self, process: &mut Process, topic: TopicId, queue: QueueId) -> Result<(), Violation> {
        self.producers.push(Producer::new(topic, queue, ProducerId(self.random.next_u64() | 1)));
        let producer = self.producers.len() - 1;
        for _ in 0..BATCHES {
            self.make_batch(producer);
            while self.send(process, producer)? {}
            self.pass_time(process, self.machine.now() + 20_000_000)?;
        }
        self.pass_time(process, self.machine.now() + SETTLED_AFTER)
    }

    /// Turns over a bit of a batch in a segment that the newest checkpoint of its shard covers; `None` where there is none.
    fn flip_below_checkpoint(&mut self) -> Option<Flipped> {
        let shard = self.random.below(u64::from(self.configuration.shards)) as usize;
        let names = self.machine.file_names(shard);
        let begins = names.iter().filter_map(|name| base_and_epoch(name.strip_prefix("checkpoint-")?));
        let begin = begins.map(|(begin, _)| begin).max()?;
        // The segment that holds the checkpoint's begin is read by the start.
        let (_, read) = segment_of(&names, begin)?;
        let batches = self.ledgers[shard].records().map(|record| record.header);
        let oldest = names.iter().filter_map(|name| base_and_epoch(name)).map(|(base, _)| base).min()?;
        let below: Vec<_> = batches
            .filter(|header| header.kind == EntryKind::Batch && (oldest..read).contains(&header.position))
            .collect();
        if below.is_empty() {
            return None;
        }
        let entry = *self.random.pick(&below);
        let (file, base) = segment_of(&names, entry.position)?;
        let in_header = self.random.coin();
        let within = if in_header {
            self.random.below(ENTRY_HEADER_LEN as u64)
        } else {
            ENTRY_HEADER_LEN as u64 + self.random.below(u64::from(entry.length))
        };
        let (file, byte, bit) = (file.to_owned(), entry.position + within - base + BLOCK, self.random.below(8) as u8);
        self.machine.flip(shard, &file, byte, bit);
        let is_indexed_anew = self.random.coin();
        if is_indexed_anew {
            self.take_index(shard, &file);
        }
        Some(Flipped { shard, file, byte, bit, entry, in_header, is_indexed_anew })
    }

    fn mend_flipped(&self, flipped: &Flipped) {
        let Flipped { shard, file, byte, bit, .. } = flipped;
        if self.machine.file_names(*shard).contains(file) {
            self.machine.flip(*shard, file, *byte, *bit);
            // It says that the entry is damaged.
            self.take_index(*shard, file);
        }
    }

    fn take_index(&self, shard: usize, file: &str) {
        let disk = self.machine.disk(shard);
        self.machine.block_on(async {
            // There may be none.
            let _ = disk.remove(&format!("index-{file}")).await;
            let _ = disk.sync_directory().await;
        });
    }

    /// Each batch in the sealed segments of that shard is found where it stands, but the one whose header is damaged.
    fn look_everything_up(&self, process: &Process, flipped: &Flipped) -> Result<(), Violation> {
        let shard = &process.shards[flipped.shard];
        let indexes = shard.log.indexes();
        let (sealed, made) = indexes.counts();
        promise!(sealed == made, "{made} of {sealed} segments have an index, and one is damaged");
        let (begin, end) = (shard.log.begins_at(), indexes.indexed_to());
        let batches = self.ledgers[flipped.shard].records().map(|record| record.header);
        for header in
            batches.filter(|header| header.kind == EntryKind::Batch && (begin..end).contains(&header.position))
        {
            let EntryHeader { topic, queue, base_offset, position, store_time, .. } = header;
            let found = indexes.lookup(topic, queue, base_offset, LogPosition(0), 5);
            let found = self.machine.block_on(found);
            let is_lost = position == flipped.entry.position && flipped.in_header && flipped.is_indexed_anew;
            match found {
                Ok(found) if !is_lost => promise!(
                    found.first().is_some_and(|found| (found.position, found.offset) == (position, base_offset)),
                    "offset {base_offset} of queue {topic}/{queue} stands at {position}, and {:?} was found",
                    found.first()
                ),
                Err(IndexLookUpError::Damaged(_)) if is_lost => {}
                other => {
                    return Err(Violation(format!(
                        "offset {base_offset} of queue {topic}/{queue} stands at {position}, which is {}: {other:?}",
                        if is_lost { "damaged" } else { "sound" }
                    )));
                }
            }
            let begins = indexes.lookup_time(topic, queue, store_time, QueueOffset(u64::MAX));
            let begins = self.machine.block_on(begins).map_err(|error| Violation(error.to_string()))?;
            promise!(
                begins.is_some_and(|begins| begins.offset <= base_offset),
                "offset {base_offset} of queue {topic}/{queue} was stored at {store_time}, where {begins:?} begins"
            );
        }
        Ok(())
    }
}
