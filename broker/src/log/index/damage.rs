//! What the making of an index passes over in a segment that is damaged, and how that is told.
//!
//! ```text
//!   entry ── entry ── bad header ··· nothing is known ··· entry ── entry, payload is bad ── entry
//!                     └────── entries harmed, no rows ────┘        └ payload harmed, a row ┘
//! ```
//!
//! Where an entry's header is sound, its place and offsets are known: who reads it is refused by its checksum, and its neighbours are
//! served. Behind a bad header the next sound one is looked for, as a start does; what lies between may have been anybody's, and the
//! index says where it is, so that no look-up passes over missing offsets in silence. So it does with sound entries that contradict
//! those before them. Damage is logged with what is known of it.

use std::collections::HashMap;

use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{LogPosition, QueueOffset, ShardId};

use super::format::DAMAGED_MAX;
use crate::limits;
use crate::log::damage::Extent;
use crate::log::segment::SegmentName;

/// Lines of one segment in the broker's log.
const TOLD_MAX: usize = 100;

/// What an index was made around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) struct DamagedStretch {
    pub extent: Extent,
    pub harm: Harm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) enum Harm {
    /// The payload of the entry that stands there, which has its row if it is a batch.
    Payload,
    /// Entries of any queue.
    Entries,
}

impl DamagedStretch {
    pub fn of_entries(from: LogPosition, to: LogPosition) -> Self {
        Self { extent: Extent { from, to }, harm: Harm::Entries }
    }

    /// Whether entries that stood between two positions may have been here.
    fn hides(&self, from: LogPosition, to: LogPosition) -> bool {
        self.harm == Harm::Entries && self.extent.from < to && self.extent.to > from
    }
}

/// The last stretch between two positions that may have held entries of any queue.
pub(super) fn last_hiding(damaged: &[DamagedStretch], from: LogPosition, to: LogPosition) -> Option<Extent> {
    damaged.iter().rfind(|stretch| stretch.hides(from, to)).map(|stretch| stretch.extent)
}

/// The first one.
pub(super) fn first_hiding(damaged: &[DamagedStretch], from: LogPosition, to: LogPosition) -> Option<Extent> {
    damaged.iter().find(|stretch| stretch.hides(from, to)).map(|stretch| stretch.extent)
}

/// What was passed over so far.
pub(super) struct PassedOver {
    shard: ShardId,
    segment: SegmentName,
    /// Whether what the device cannot read is passed over too.
    pub takes_unread: bool,
    damaged: Vec<DamagedStretch>,
    /// Of each queue in the segment, up to [`limits::DAMAGED_QUEUES_MAX`]: where its last batch stands, and the offset behind it.
    ends: HashMap<(u64, u32), (LogPosition, QueueOffset)>,
    told: usize,
}

impl PassedOver {
    pub fn new(shard: ShardId, segment: SegmentName, takes_unread: bool) -> Self {
        Self { shard, segment, takes_unread, damaged: Vec::new(), ends: HashMap::new(), told: 0 }
    }

    /// What is damaged, in order of position: [`DAMAGED_MAX`] stretches at most, the last of which holds all behind it.
    pub fn into_stretches(self) -> Vec<DamagedStretch> {
        self.damaged
    }

    /// Nothing between these positions is known.
    pub fn gap(&mut self, extent: Extent, reason: &str) {
        self.note(DamagedStretch { extent, harm: Harm::Entries });
        if self.may_tell() {
            let (shard, segment, bytes) = (self.shard.0, self.segment, extent.to - extent.from);
            tracing::error!(shard, %segment, positions = %extent, bytes, reason, "a sealed segment is damaged");
        }
    }

    /// All of the entry but its header is bad, or with [`Harm::Entries`] the entry contradicts those before it.
    pub fn entry(&mut self, header: &EntryHeader, harm: Harm, reason: &str) {
        let extent = Extent { from: header.position, to: header.end() };
        self.note(DamagedStretch { extent, harm });
        if self.may_tell() {
            let (shard, segment, bytes) = (self.shard.0, self.segment, extent.to - extent.from);
            let (topic, queue) = (header.topic.0, header.queue.0);
            let (from, to) = (header.base_offset.0, header.end_offset().0);
            tracing::error!(
                shard, %segment, positions = %extent, bytes, topic, queue, from, to, reason,
                "an entry of a sealed segment is damaged"
            );
        }
    }

    /// Whether a batch follows those of its queue, as far as that is known. It tells which offsets the gap in front of it took.
    pub fn follows(&mut self, header: &EntryHeader) -> bool {
        let queue = (header.topic.0, header.queue.0);
        let before = self.ends.get(&queue).copied();
        if before.is_some_and(|(_, end)| header.base_offset < end) {
            return false;
        }
        if before.is_some() || self.ends.len() < limits::DAMAGED_QUEUES_MAX {
            self.ends.insert(queue, (header.position, header.end_offset()));
        }
        if let Some((position, end)) = before
            && end < header.base_offset
            && let Some(gap) = first_hiding(&self.damaged, position, header.position)
            && self.may_tell()
        {
            let (shard, segment) = (self.shard.0, self.segment);
            let (topic, queue) = queue;
            let (from, to) = (end.0, header.base_offset.0);
            tracing::error!(shard, %segment, positions = %gap, topic, queue, from, to, "offsets of a queue are damaged");
        }
        true
    }

    fn note(&mut self, stretch: DamagedStretch) {
        let is_full = self.damaged.len() == DAMAGED_MAX;
        match self.damaged.last_mut() {
            // All that there is no room for is one with the last, which may then hide entries.
            Some(last) if is_full => *last = DamagedStretch::of_entries(last.extent.from, stretch.extent.to),
            Some(last) if last.extent.to == stretch.extent.from && last.harm == stretch.harm => {
                last.extent.to = stretch.extent.to;
            }
            _ => self.damaged.push(stretch),
        }
    }

    fn may_tell(&mut self) -> bool {
        self.told += 1;
        if self.told == TOLD_MAX + 1 {
            let (shard, segment) = (self.shard.0, self.segment);
            tracing::error!(shard, %segment, "there is more damage: `peregrine-broker check` tells all");
        }
        self.told <= TOLD_MAX
    }
}
