//! A clean stop: everything published is flushed, the epoch is closed by a mark, the ring is unlinked. Of a poisoned log the
//! ring stays, and the error says how many messages stand only in it.

use peregrine_protocol::entry::Entry;
use peregrine_protocol::limits::{ENTRY_HEADER_LEN, PAD_HEADER_LEN};

use super::{CloseState, Log};
use crate::log::disk::{Disk, RingHost};
use crate::log::error::CloseError;
use crate::log::fault::Planted;
use crate::log::task::LogTask;

impl<D: Disk, H: RingHost> Log<D, H> {
    /// Begins a clean stop: appends are refused from now on, everything published is flushed, and then the mark that closes
    /// the epoch is written. Go on running tasks until [`Self::close_state`] is `Done`. Large appends must be copied to
    /// their ends, a checkpoint under way is to be given up.
    pub fn begin_close(&mut self) {
        if self.close == CloseState::Open {
            self.close = CloseState::Closing;
            self.flusher.drain();
            self.ahead.stop();
            self.indexes.stop();
            self.scrubber.stop();
        }
    }

    /// `Done` is reported only when no task is in flight.
    pub fn close_state(&self) -> CloseState {
        let idle = self.flusher.outstanding() == 0 && self.is_quiet_beside_flushes();
        match self.close {
            CloseState::Closing if self.is_poisoned() && idle => CloseState::Done,
            CloseState::Done if !idle => CloseState::Closing,
            state => state,
        }
    }

    /// Ends a stop: unlinks the ring after a clean one; leaves it, and says what stands only in it, otherwise.
    pub fn finish_close(mut self) -> Result<(), CloseError> {
        let shard = self.options.shard;
        if self.is_poisoned() {
            let ring = self.options.ring.take().unwrap_or_else(|| "in anonymous memory".to_owned());
            return Err(CloseError::Poisoned { shard, messages: self.messages_only_in_ring(), ring });
        }
        if let Some(source) = self.close_error {
            return Err(CloseError::Io { shard, doing: "write the mark that closes the log", source });
        }
        assert!(self.close == CloseState::Done, "a stop is finished when it is done");
        drop(self.ring);
        match self.options.ring {
            Some(path) => self.rings.remove(&path).map_err(|source| CloseError::Io {
                shard,
                doing: "unlink the staging ring",
                source,
            }),
            None => Ok(()),
        }
    }

    /// Messages that are published and not durable.
    pub fn messages_only_in_ring(&self) -> u64 {
        let (mut at, end, mut messages) = (self.ring.durable(), self.ring.published(), 0);
        while at < end {
            let header = self.ring.read(at, ENTRY_HEADER_LEN).or_else(|| self.ring.read(at, PAD_HEADER_LEN));
            match header.map(|bytes| Entry::decode(bytes, self.seal)) {
                Some(Ok(entry)) => {
                    at = entry.end();
                    if let Entry::Full(header) = entry {
                        messages += u64::from(header.record_count);
                    }
                }
                _ => break,
            }
        }
        messages
    }

    /// The last task of a stop, once everything is durable and nothing is in flight.
    pub(super) fn closing_mark(&mut self) -> Option<LogTask<D>> {
        let flushed = self.ring.durable() == self.ring.tail() && self.flusher.outstanding() == 0;
        if !flushed || !self.is_quiet_beside_flushes() {
            return None;
        }
        if self.options.faults.has(Planted::ForgetClosingMark) {
            self.close = CloseState::Done;
            return None;
        }
        Some(self.mark_task(true))
    }

    fn is_quiet_beside_flushes(&self) -> bool {
        let Self { ahead, marks, checkpoints, indexes, scrubber, .. } = self;
        !ahead.is_busy()
            && !marks.is_in_flight()
            && !checkpoints.is_under_way()
            && !indexes.is_making()
            && !scrubber.is_busy()
            && !self.is_retiring()
    }
}
