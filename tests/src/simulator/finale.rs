//! How a seed ends: a broker that nothing disturbs any more must answer everybody, hold every batch once, show all of it to a
//! reader that starts at the beginning, and come back the same from a clean stop and from a kill.

use std::collections::BTreeMap;

use peregrine_broker::engine::StartAt;
use peregrine_broker::limits::{RETENTION_RETRY, TOPIC_RETENTION_PARTS};
use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::{DurableLevel, QueueOffset, ShardId};
use peregrine_protocol::limits::BLOCK;

use super::ledger::{BatchMark, Ledger};
use super::process::Shard;
use super::producer::Producer;
use super::reader::Reader;
use super::simulation::{Process, Simulation};
use super::violation::{Violation, promise};

/// Simulated time that answering everybody may take, nanoseconds, and how often one looks.
const SETTLE_MAX: u64 = 60_000_000_000;
const SETTLE_STEP: u64 = 5_000_000;
/// And giving up what is too old, beside the part of its age that a topic may take: an append may be refused, and is tried again.
const AGING_MAX: u64 = RETENTION_RETRY.0 + 20_000_000;

impl Simulation {
    pub(super) fn finale(&mut self) -> Result<(), Violation> {
        while self.has_incident() {
            self.live(|_, _| Ok(()))?;
            self.mend()?;
        }
        let digests = |process: &Process| -> Vec<u64> {
            process.shards.iter().map(|shard| shard.engine.digest_beside_index()).collect()
        };
        self.consumers.retire();
        let mut produced = Vec::new();
        self.live_undisturbed(|simulation, process| {
            simulation.settle(process)?;
            produced = digests(process);
            Ok(())
        })?;
        self.statistics.epochs_raised = self.producers.iter().map(Producer::epochs_raised).sum();
        self.check_delivered()?;
        for reads_all in [false, !self.configuration.gives_up()] {
            if reads_all {
                self.damage_checkpoints();
            }
            let mut recovered = Vec::new();
            self.live_undisturbed(|_, process| {
                recovered = digests(process);
                Ok(())
            })?;
            let from = if reads_all { "the whole log" } else { "the newest checkpoint" };
            promise!(produced == recovered, "a restart from {from}, without work, changed the engine's state");
        }
        if self.random.coin() {
            self.damage_what_no_start_reads()?;
        }
        if self.configuration.gives_up() || !self.random.one_in(3) {
            return Ok(());
        }
        self.damage_what_a_mark_knows()?;
        self.damage_checkpoints();
        self.damage_an_entry()
    }

    /// One bit in each: the next start reads the whole log.
    fn damage_checkpoints(&mut self) {
        for shard in 0..usize::from(self.configuration.shards) {
            for name in self.machine.file_names(shard) {
                if name.starts_with("checkpoint-") {
                    // In the first block, or where the first section begins behind it.
                    let offset =
                        if self.random.coin() { self.random.below(BLOCK) } else { BLOCK + self.random.below(64) };
                    let bit = self.random.below(8) as u8;
                    self.machine.flip(shard, &name, offset, bit);
                }
            }
        }
    }

    pub(super) fn live_undisturbed(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Process) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let finished = self.live(work)?;
        promise!(finished, "a start that nothing disturbs did not come up");
        Ok(())
    }

    /// Sends all that waits until it is answered, then reads every queue from its beginning.
    fn settle(&mut self, process: &mut Process) -> Result<(), Violation> {
        self.connect(process)?;
        let until = self.machine.now() + SETTLE_MAX;
        loop {
            for producer in 0..self.producers.len() {
                while self.send(process, producer)? {}
            }
            self.pass_time(process, self.machine.now() + SETTLE_STEP)?;
            let quiet = process.shards.iter().all(Shard::is_quiet);
            if quiet && self.producers.iter().all(Producer::is_idle) {
                break;
            }
            promise!(self.machine.now() < until, "producers wait for answers that do not come");
        }
        self.groups_consume_everything(process)?;
        self.read_everything(process)?;
        self.pass_time(process, self.machine.now() + AGING_MAX)?;
        self.check_aged()?;
        // What was given up last is to be durable as well.
        while !process.shards.iter().all(Shard::is_quiet) {
            self.pass_time(process, self.machine.now() + SETTLE_STEP)?;
            promise!(self.machine.now() < until + SETTLE_MAX, "what was given up does not become durable");
        }
        Ok(())
    }

    /// Whatever happened before, no topic keeps for long what is too old for it.
    fn check_aged(&self) -> Result<(), Violation> {
        let wall = self.wall();
        for topic in self.catalogue.live() {
            let Some(age) = topic.retention.wanted.age else { continue };
            let too_old = wall.0.saturating_sub(age.0 + age.0 / TOPIC_RETENTION_PARTS + AGING_MAX);
            for ledger in &self.ledgers {
                let batches = ledger.records().map(|record| &record.header);
                for header in batches.filter(|header| header.kind == EntryKind::Batch && header.topic == topic.id) {
                    let start = ledger.start_of(topic.id, header.queue);
                    promise!(
                        header.store_time.0 > too_old || header.end_offset() <= start,
                        "queue {}/{} starts at {start} at {wall}, and {} was stored at {}: its topic keeps it for {age}",
                        topic.id,
                        header.queue,
                        header.base_offset,
                        header.store_time
                    );
                }
            }
        }
        Ok(())
    }

    fn read_everything(&mut self, process: &mut Process) -> Result<(), Violation> {
        let shards = self.configuration.shards;
        let mut ends = Vec::new();
        for shard in 0..shards {
            let queues = self.catalogue.queues(&process.shards[0].engine, ShardId(shard), shards);
            let ledger = &self.ledgers[usize::from(shard)];
            for (topic, queue) in queues {
                let batches = ledger
                    .records()
                    .map(|record| &record.header)
                    .filter(|header| header.kind == EntryKind::Batch && header.topic == topic && header.queue == queue);
                let end = batches.map(|header| u64::from(header.record_count)).sum();
                ends.push((self.readers.len(), QueueOffset(end)));
                self.readers.push(Reader::new(topic, queue, StartAt::Earliest));
            }
        }
        self.connect(process)?;
        for _ in 0..1_000 {
            // Those that were overtaken by what is given up subscribe again.
            self.connect(process)?;
            self.grant_credit(process)?;
            self.pass_time(process, self.machine.now() + SETTLE_STEP)?;
            if ends.iter().all(|(reader, end)| self.readers[*reader].place().is_some_and(|(_, next)| next == *end)) {
                return Ok(());
            }
        }
        for (reader, end) in ends {
            let reader = &self.readers[reader];
            promise!(
                reader.place().is_some_and(|(_, next)| next == end),
                "a reader of queue {}/{} from the beginning ended at {:?}, but {end} messages are stored",
                reader.topic,
                reader.queue,
                reader.place()
            );
        }
        Ok(())
    }

    /// Each acknowledged batch stands where its answer said; only `memory` ones may have been taken, by a power cut.
    fn check_delivered(&self) -> Result<(), Violation> {
        // Of batches alone no two have the same checksum.
        let headers = self.ledgers.iter().flat_map(Ledger::records).map(|record| &record.header);
        let batches = headers.filter(|header| header.kind == EntryKind::Batch);
        let stored: BTreeMap<BatchMark, QueueOffset> =
            batches.map(|header| (header.payload_crc, header.base_offset)).collect();
        for delivered in self.producers.iter().flat_map(Producer::delivered) {
            match stored.get(&delivered.mark) {
                Some(offset) => promise!(
                    *offset == delivered.offset,
                    "batch {:08x} was answered with offset {} and stands at {offset}",
                    delivered.mark,
                    delivered.offset
                ),
                None => promise!(
                    delivered.level == DurableLevel::Memory && self.taken.contains(&delivered.mark),
                    "batch {:08x}, acknowledged at {:?}, is gone",
                    delivered.mark,
                    delivered.level
                ),
            }
        }
        for producer in self.producers.iter().filter(|producer| producer.is_idempotent()) {
            let mut kept: Vec<_> = producer.delivered().filter(|batch| stored.contains_key(&batch.mark)).collect();
            kept.sort_by_key(|batch| (batch.epoch, batch.sequence));
            for (earlier, later) in kept.iter().zip(kept.iter().skip(1)) {
                promise!(
                    earlier.offset < later.offset,
                    "batches {:08x} and {:08x} were sent in this order and stand at offsets {} and {}",
                    earlier.mark,
                    later.mark,
                    earlier.offset,
                    later.offset
                );
            }
        }
        Ok(())
    }
}
