//! Which queue offsets damage took: what a queue's next entry behind a lost stretch leaves out. Only a start that has met
//! damage pays for this second pass.

use std::collections::HashMap;

use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{QueueId, QueueOffset, TopicId};

use super::Replay;
use crate::log::damage::{Extent, LostOffsets};

/// A replay that compares each batch's first offset with its queue's end.
#[derive(Default)]
pub(super) struct OffsetGaps {
    ends: HashMap<(TopicId, QueueId), QueueOffset>,
    any_lost: bool,
    /// The log is not read from its first entry: how far queues were before is not known.
    begins_late: bool,
    lost: Vec<LostOffsets>,
}

impl OffsetGaps {
    /// `from_first`: the log is read from its first entry.
    pub fn new(from_first: bool) -> Self {
        Self { begins_late: !from_first, ..Self::default() }
    }

    pub fn lost(mut self) -> Vec<LostOffsets> {
        self.lost.sort_unstable();
        self.lost
    }
}

impl Replay for OffsetGaps {
    fn entry(&mut self, header: &EntryHeader, _payload: &[u8]) -> Result<(), String> {
        if header.kind == EntryKind::Batch {
            let first = if self.begins_late { header.base_offset } else { QueueOffset::default() };
            let end = self.ends.entry((header.topic, header.queue)).or_insert(first);
            if self.any_lost && header.base_offset > *end {
                let (topic, queue) = (header.topic, header.queue);
                self.lost.push(LostOffsets { topic, queue, from: *end, to: header.base_offset });
            }
            *end = header.end_offset();
        }
        Ok(())
    }

    fn lost(&mut self, _extent: Extent) {
        self.any_lost = true;
    }

    fn begin(&mut self) {}

    fn restore(&mut self, _section: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn restored(&mut self) -> Result<(), String> {
        Ok(())
    }
}
