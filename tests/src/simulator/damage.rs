//! The other side of "legal crashes are never called damage": a bit that turns over in a synced entry always is, the start says
//! where, and `--accept-loss` gives up that entry alone, once.

use peregrine_broker::log::disk::simulated::Crash;
use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::{LogPosition, ProducerId};
use peregrine_protocol::limits::{BLOCK, ENTRY_HEADER_LEN};

use super::producer::Producer;
use super::simulation::{ExpectedDamage, Simulation};
use super::violation::{Violation, promise};

/// Nanoseconds of quiet after which a mark says how far the log is durable: 100 ms, and what its writes take.
const MARKED_AFTER: u64 = 500_000_000;

impl Simulation {
    /// What came last before a power cut is known to have been durable by nothing but a mark, once it has been quiet for long
    /// enough: a bit that turns over there is damage and no torn tail.
    pub(super) fn damage_what_a_mark_knows(&mut self) -> Result<(), Violation> {
        let Some((topic, queue)) = self.any_queue() else { return Ok(()) };
        self.producers.push(Producer::new(topic, queue, ProducerId(self.random.next_u64() | 1)));
        let producer = self.producers.len() - 1;
        let mut shard = None;
        let came_up = self.live(|simulation, process| {
            shard = simulation.shard_of(process, topic, queue);
            // Behind the first batch come a checkpoint and the next segment, which say how far the log was durable by then.
            for quiet in [MARKED_AFTER / 2, MARKED_AFTER] {
                simulation.make_batch(producer);
                let _taken = simulation.send(process, producer)?;
                simulation.turn(process)?;
                simulation.pass_time(process, simulation.machine.now() + quiet)?;
            }
            simulation.machine.strike(Crash::Power)
        })?;
        promise!(!came_up, "a broker outlived the power");
        let Some(shard) = shard else { return Ok(()) };
        // A start that retention said once more may stand behind the last batch, too young for a mark to know it.
        let last = self.ledgers[shard].records().last().map(|record| record.header);
        let Some(position) = last.filter(|last| last.kind == EntryKind::Batch).map(|last| last.position) else {
            return Ok(());
        };
        let flipped = self.flip_in_entry(shard as u16, position)?;
        // One that comes up read nothing of it, because a checkpoint covers it, or the ledger says what is lost.
        let came_up = self.live(|_, _| Ok(()))?;
        let told = self.damage.take().is_some_and(|damage| damage.told);
        promise!(came_up != told, "a start neither came up nor told of the damage at position {position}");
        let (file, byte, bit) = flipped;
        self.machine.flip(shard, &file, byte, bit);
        self.live_undisturbed(|_, _| Ok(()))
    }

    /// Turns over a bit of an entry: where.
    fn flip_in_entry(&mut self, shard: u16, position: LogPosition) -> Result<(String, u64, u8), Violation> {
        let Some(record) = self.ledgers[usize::from(shard)].record(position) else {
            return Err(Violation(format!("no entry stands at position {position}")));
        };
        let byte = position + self.random.below(ENTRY_HEADER_LEN as u64 + u64::from(record.header.length));
        let names = self.machine.file_names(usize::from(shard));
        let Some((file, base)) = segment_of(&names, position) else {
            return Err(Violation(format!("no segment holds position {position}")));
        };
        let (file, byte, bit) = (file.to_owned(), byte - base + BLOCK, self.random.below(8) as u8);
        self.machine.flip(usize::from(shard), &file, byte, bit);
        self.statistics.damaged += 1;
        self.damage = Some(ExpectedDamage { shard, position, told: false });
        Ok((file, byte, bit))
    }

    /// Damages a batch of a log that stands still, and starts on it: as it is, with its loss accepted, and then as ever.
    pub(super) fn damage_an_entry(&mut self) -> Result<(), Violation> {
        let shard = self.random.below(u64::from(self.configuration.shards)) as u16;
        let ledger = &self.ledgers[usize::from(shard)];
        let batches: Vec<_> = ledger.records().filter(|record| record.header.kind == EntryKind::Batch).collect();
        if batches.is_empty() {
            return Ok(());
        }
        let position = self.random.pick(&batches).header.position;
        self.flip_in_entry(shard, position)?;
        let came_up = self.live(|_, _| Ok(()))?;
        let told = self.damage.is_some_and(|damage| damage.told);
        promise!(!came_up && told, "a bit turned over in the synced entry at position {position}, and a start took it");

        self.accepts_loss = true;
        self.ledgers[usize::from(shard)].give_up(position);
        // Whoever relied on the entry was told by the operator.
        self.readers.clear();
        self.producers.clear();
        self.consumers.forget();
        self.live_undisturbed(|_, _| Ok(()))?;
        self.accepts_loss = false;
        let mut states = Vec::new();
        for _ in 0..2 {
            self.live_undisturbed(|_, process| {
                states.push(process.shards.iter().map(|shard| shard.engine.digest()).collect::<Vec<_>>());
                Ok(())
            })?;
        }
        promise!(states[0] == states[1], "a restart after an accepted loss changed the engine's state");
        Ok(())
    }
}

/// The segment that holds a position of a log from which starts have unlinked what is no part of it: the highest base at or
/// below, and of several the highest epoch.
pub(super) fn segment_of(names: &[String], position: LogPosition) -> Option<(&str, LogPosition)> {
    let parsed = names.iter().filter_map(|name| {
        let (base, epoch) = base_and_epoch(name)?;
        Some((base, epoch, name.as_str()))
    });
    let (base, _, name) = parsed.filter(|(base, ..)| *base <= position).max()?;
    Some((name, base))
}

/// `None` where this is no segment's name.
pub(super) fn base_and_epoch(name: &str) -> Option<(LogPosition, u64)> {
    let (base, epoch) = name.split_once('-')?;
    Some((LogPosition(base.parse().ok()?), epoch.parse().ok()?))
}
