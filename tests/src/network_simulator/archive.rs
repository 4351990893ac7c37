//! The oracle: what was acknowledged and what was seen, at which level, and what of it a crash may have taken since.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::ids::{DurableLevel, Nanos, QueueId, QueueOffset, ShardId};
use peregrine_protocol::locator::MessageLocator;

use crate::simulator::{Violation, promise};

/// A message that the broker answers for.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub number: u64,
    pub level: DurableLevel,
    /// Losses of power before the life of the broker that said so. What it said may arrive when the next one runs.
    power_cuts: u64,
    /// Where it is found by itself; known of what was acknowledged.
    pub locator: Option<MessageLocator>,
    /// Known of what was seen.
    pub store_time: Option<Nanos>,
}

#[derive(Debug, Default)]
struct Queue {
    acknowledged: BTreeMap<QueueOffset, Kept>,
    seen: BTreeMap<QueueOffset, Kept>,
}

/// Everything that was promised of one topic's queues.
#[derive(Debug)]
pub struct Archive {
    queues: BTreeMap<QueueId, Queue>,
    shards: BTreeMap<QueueId, ShardId>,
    power_cuts: u64,
    /// The broker gives messages up by age or bytes.
    pub gives_up: bool,
}

impl Archive {
    pub fn new(shards: BTreeMap<QueueId, ShardId>, gives_up: bool) -> Self {
        let queues = shards.keys().map(|&queue| (queue, Queue::default())).collect();
        Self { queues, shards, power_cuts: 0, gives_up }
    }

    pub fn power_was_cut(&mut self) {
        self.power_cuts += 1;
    }

    /// Whether a message may be gone, or an offset mean another one.
    pub fn power_cuts(&self) -> u64 {
        self.power_cuts
    }

    pub fn shard_of(&self, queue: QueueId) -> ShardId {
        self.shards[&queue]
    }

    pub fn queues(&self) -> Vec<QueueId> {
        self.shards.keys().copied().collect()
    }

    /// Whether nothing may have taken it.
    pub fn is_owed(&self, kept: &Kept) -> bool {
        kept.level != DurableLevel::Memory || kept.power_cuts == self.power_cuts
    }

    fn queue(&mut self, queue: QueueId) -> Result<&mut Queue, Violation> {
        self.queues.get_mut(&queue).ok_or_else(|| Violation(format!("there is no queue {queue}")))
    }

    /// A message was acknowledged.
    pub fn acknowledged(
        &mut self,
        queue: QueueId,
        offset: QueueOffset,
        number: u64,
        level: DurableLevel,
        locator: Option<MessageLocator>,
        power_cuts: u64,
    ) -> Result<(), Violation> {
        let kept = Kept { number, level, power_cuts, locator, store_time: None };
        if !self.is_owed(&kept) {
            return Ok(());
        }
        if let Some(other) = self.owed_at(queue, offset) {
            promise!(
                other.number == number,
                "queue {queue}: message {number} was acknowledged at offset {offset}, where message {} stands",
                other.number
            );
        }
        self.queue(queue)?.acknowledged.insert(offset, kept);
        Ok(())
    }

    /// A message was given to somebody.
    pub fn seen(
        &mut self,
        queue: QueueId,
        offset: QueueOffset,
        number: u64,
        level: DurableLevel,
        store_time: Nanos,
        power_cuts: u64,
    ) -> Result<(), Violation> {
        let kept = Kept { number, level, power_cuts, locator: None, store_time: Some(store_time) };
        if !self.is_owed(&kept) {
            return Ok(());
        }
        if let Some(other) = self.owed_at(queue, offset) {
            promise!(
                other.number == number,
                "queue {queue}: message {number} was seen at offset {offset}, where message {} stands",
                other.number
            );
        }
        self.queue(queue)?.seen.insert(offset, kept);
        Ok(())
    }

    fn owed_at(&self, queue: QueueId, offset: QueueOffset) -> Option<Kept> {
        let of = self.queues.get(&queue)?;
        let all = [of.acknowledged.get(&offset), of.seen.get(&offset)];
        all.into_iter().flatten().find(|kept| self.is_owed(kept)).copied()
    }

    /// What was acknowledged of a queue and must be there, in order.
    pub fn acknowledged_of(&self, queue: QueueId) -> impl Iterator<Item = (QueueOffset, &Kept)> {
        let all = self.queues.get(&queue).into_iter().flat_map(|of| &of.acknowledged);
        all.filter(|(_, kept)| self.is_owed(kept)).map(|(offset, kept)| (*offset, kept))
    }

    /// The end of what of a queue must be visible: a `memory` message waits for those before it that are to be synced.
    pub fn visible_end(&self, queue: QueueId) -> QueueOffset {
        let synced = self.acknowledged_of(queue).filter(|(_, kept)| kept.level == DurableLevel::Synced);
        let ends = synced.chain(self.seen_of(queue)).map(|(offset, _)| offset + 1);
        ends.max().unwrap_or_default()
    }

    /// What was seen of a queue and must be there, in order.
    pub fn seen_of(&self, queue: QueueId) -> impl Iterator<Item = (QueueOffset, &Kept)> {
        let all = self.queues.get(&queue).into_iter().flat_map(|of| &of.seen);
        all.filter(|(_, kept)| self.is_owed(kept)).map(|(offset, kept)| (*offset, kept))
    }

    /// Compares with all that a queue holds in the end.
    pub fn check(
        &self,
        queue: QueueId,
        start: QueueOffset,
        found: &BTreeMap<QueueOffset, u64>,
    ) -> Result<(), Violation> {
        promise!(
            self.gives_up || start == QueueOffset(0),
            "queue {queue} begins at offset {start}, and nothing is given up"
        );
        let mut next = start;
        let mut numbers = BTreeSet::new();
        let mut before = None;
        for (&offset, &number) in found {
            promise!(offset == next, "queue {queue}: offset {offset} follows {next}");
            promise!(numbers.insert(number), "queue {queue}: message {number} is stored twice");
            promise!(
                before.is_none_or(|before| before < number),
                "queue {queue}: message {number} stands behind message {before:?}"
            );
            before = Some(number);
            next = offset + 1;
        }
        let acknowledged = self.acknowledged_of(queue).map(|kept| ("acknowledged", kept));
        let seen = self.seen_of(queue).map(|kept| ("seen", kept));
        for (how, (offset, kept)) in acknowledged.chain(seen).filter(|(_, (offset, _))| *offset >= start) {
            promise!(
                found.get(&offset) == Some(&kept.number),
                "queue {queue}: message {} was {how} at offset {offset}, level {:?}, and there is {:?}",
                kept.number,
                kept.level,
                found.get(&offset)
            );
        }
        Ok(())
    }
}
