//! A shard's log for as long as it is open. A stop takes it away; who still comes for its bytes then finds none.

use crate::log::{AppendRefused, Appended, LargeAppend};
use crate::shard::state::ShardLog;
use peregrine_protocol::entry::EntryDraft;
use peregrine_protocol::ids::Nanos;
use std::ops::{Deref, DerefMut};

pub struct OpenLog(Option<ShardLog>);

impl OpenLog {
    pub fn new(log: ShardLog) -> Self {
        OpenLog(Some(log))
    }

    pub fn get(&self) -> Option<&ShardLog> {
        self.0.as_ref()
    }

    /// [`crate::log::Log::append`]. A request that outlives the stop is refused as one that comes during it.
    pub fn append(&mut self, draft: &EntryDraft, payload: &[u8], now: Nanos) -> Result<Appended, AppendRefused> {
        self.0.as_mut().ok_or(AppendRefused::Closing)?.append(draft, payload, now)
    }

    /// [`crate::log::Log::begin_large`].
    pub fn begin_large(&mut self, draft: &EntryDraft, now: Nanos) -> Result<LargeAppend, AppendRefused> {
        self.0.as_mut().ok_or(AppendRefused::Closing)?.begin_large(draft, now)
    }

    /// [`crate::log::Log::copy_step`]. True after the stop, too: a poisoned log does not wait for a copy in progress, whose
    /// producer was told of the poison.
    pub fn copy_step(&mut self, large: &mut LargeAppend, payload: &[u8]) -> bool {
        self.0.as_mut().is_none_or(|log| log.copy_step(large, payload))
    }

    /// The log, for its stop.
    pub fn take(&mut self) -> Option<ShardLog> {
        self.0.take()
    }
}

impl Deref for OpenLog {
    type Target = ShardLog;

    fn deref(&self) -> &ShardLog {
        let Some(log) = &self.0 else { unreachable!("nothing is asked of a shard after its stop") };
        log
    }
}

impl DerefMut for OpenLog {
    fn deref_mut(&mut self) -> &mut ShardLog {
        let Some(log) = &mut self.0 else { unreachable!("nothing is asked of a shard after its stop") };
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peregrine_protocol::entry::{EntryFlags, EntryKind};
    use peregrine_protocol::ids::*;

    #[test]
    fn a_copy_in_progress_when_a_poisoned_log_is_closed_ends_and_what_comes_later_is_refused() {
        let mut stopped = OpenLog(None);
        let payload = [7; 100];
        let draft = EntryDraft {
            kind: EntryKind::Batch,
            flags: EntryFlags::default(),
            payload_crc: 0,
            length: payload.len() as u32,
            record_count: 1,
            topic: TopicId(1),
            queue: QueueId(0),
            producer_epoch: ProducerEpoch(0),
            base_offset: QueueOffset(0),
            store_time: Nanos(0),
            producer_id: ProducerId(0),
            sequence: Sequence(0),
        };
        let appended = Appended { position: LogPosition(0), end: LogPosition(256) };
        let mut large = LargeAppend { appended, header: draft.at(LogPosition(0), Epoch(1)), copied: 0 };
        assert!(stopped.copy_step(&mut large, &payload), "its task ends");
        assert_eq!(stopped.append(&draft, &payload, Nanos(0)), Err(AppendRefused::Closing));
        assert_eq!(stopped.begin_large(&draft, Nanos(0)).map(|_| ()), Err(AppendRefused::Closing));
    }
}
