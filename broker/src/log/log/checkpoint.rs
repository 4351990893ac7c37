//! Checkpoints of a running log: the log says when and keeps the files; what is in them comes from whoever reads the log.
//!
//! ```text
//!   checkpoint_due ─► begin_checkpoint ─► section … ─► finish ─► durable ≥ its end ─► publish_checkpoint ─► checkpoint_ended
//! ```

use std::io;

use peregrine_protocol::ids::{LogPosition, Nanos};

use super::{CloseState, Log};
use crate::log::checkpoint::{CheckpointWriter, FinishedCheckpoint, PublishedCheckpoint};
use crate::log::disk::{Disk, RingHost};
use crate::log::fault::Planted;

impl<D: Disk, H: RingHost> Log<D, H> {
    /// When the next checkpoint is to begin, as far as the log has come by now; none on a poisoned log.
    pub fn checkpoint_due(&self) -> Option<Nanos> {
        if self.is_poisoned() || self.close != CloseState::Open {
            return None;
        }
        self.checkpoints.due(self.tail())
    }

    /// Whether a checkpoint that begins there is worth taking.
    pub fn may_begin_checkpoint(&self, begin: LogPosition) -> bool {
        self.checkpoints.may_begin(begin)
    }

    pub fn is_taking_checkpoint(&self) -> bool {
        self.checkpoints.is_under_way()
    }

    /// Begins a checkpoint of the state at `begin`, where the last entry ends that the state knows; that entry's store time is
    /// `store_time`. One at a time, each ended by [`Self::checkpoint_ended`].
    pub fn begin_checkpoint(
        &mut self,
        begin: LogPosition,
        store_time: Nanos,
        now: Nanos,
    ) -> impl Future<Output = io::Result<CheckpointWriter<D>>> + use<D, H> {
        assert!(begin <= self.tail(), "no state is ahead of its log");
        self.checkpoints.begin(self.tail(), now);
        let (disk, options, current) = (self.disk.clone(), self.options.clone(), self.current().identity.clone());
        async move { CheckpointWriter::begin(disk, &options, &current, begin, store_time).await }
    }

    /// Whether the one under way is to be written without rests, so that what a start reads back stays near what was configured.
    pub fn checkpoint_is_late(&self) -> bool {
        self.checkpoints.is_late(self.tail())
    }

    /// Makes a checkpoint count. The log must be durable up to its end by now, and not poisoned.
    pub fn publish_checkpoint(
        &self,
        finished: FinishedCheckpoint<D>,
    ) -> impl Future<Output = io::Result<PublishedCheckpoint>> + use<D, H> {
        let is_durable = finished.end() <= self.durable() || self.has_planted(Planted::CheckpointAheadOfLog);
        assert!(is_durable && !self.is_poisoned(), "a checkpoint never leads the log");
        finished.publish(self.checkpoints.superseded())
    }

    /// The checkpoint that was begun counts, or failed, or was given up (`None`).
    pub fn checkpoint_ended(&mut self, published: Option<PublishedCheckpoint>, now: Nanos) {
        self.checkpoints.end(published.map(|published| published.0), now);
    }
}
