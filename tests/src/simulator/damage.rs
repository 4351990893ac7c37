//! The other side of "legal crashes are never called damage": a bit that turns over in a synced entry always is, the start says
//! where, and `--accept-loss` gives up that entry alone, once.

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::LogPosition;
use peregrine_protocol::limits::{BLOCK, ENTRY_HEADER_LEN};

use super::simulation::{ExpectedDamage, Simulation};
use super::violation::{Violation, promise};

impl Simulation {
    /// Damages a batch of a log that stands still, and starts on it: as it is, with its loss accepted, and then as ever.
    pub(super) fn damage_an_entry(&mut self) -> Result<(), Violation> {
        let shard = self.random.below(u64::from(self.configuration.shards)) as u16;
        let ledger = &self.ledgers[usize::from(shard)];
        let batches: Vec<_> = ledger.records().filter(|record| record.header.kind == EntryKind::Batch).collect();
        if batches.is_empty() {
            return Ok(());
        }
        let header = self.random.pick(&batches).header;
        let position = header.position;
        let byte = position + self.random.below(ENTRY_HEADER_LEN as u64 + u64::from(header.length));
        let names = self.machine.file_names(usize::from(shard));
        let Some((file, base)) = segment_of(&names, position) else {
            return Err(Violation(format!("no segment holds position {position}")));
        };
        self.machine.flip(usize::from(shard), file, byte - base + BLOCK, self.random.below(8) as u8);
        self.statistics.damaged += 1;
        self.damage = Some(ExpectedDamage { shard, position, told: false });
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
fn segment_of(names: &[String], position: LogPosition) -> Option<(&str, LogPosition)> {
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
