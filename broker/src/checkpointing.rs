//! Takes checkpoints: what the engine saves in slices goes into the files that the log keeps. A state machine between the two,
//! run by the shard's background task and by the simulator alike.
//!
//! ```text
//!   Idle ─due─► opening ─► Saving ⇄ writing ─► finishing ─► Waiting ─durable─► publishing ─► Idle
//!     ▲                                                        │
//!     └── failed (tried again later), or given up as the log is poisoned or closed
//! ```
//!
//! Whoever drives it asks for the next task, runs it, and hands back what it came to. Each task writes one slice of the engine,
//! so that others have their turn between two of them.

use std::io;
use std::pin::Pin;

use peregrine_protocol::ids::{LogPosition, Nanos};

use crate::engine::{CheckpointSave, Engine};
use crate::log::disk::{Disk, RingHost};
use crate::log::fault::Planted;
use crate::log::{CheckpointWriter, CloseState, FinishedCheckpoint, Log, PublishedCheckpoint};

/// Takes one checkpoint after the other.
pub struct Checkpointing<D: Disk> {
    stage: Stage<D>,
    /// Bytes of one slice.
    slice: usize,
    /// What a slice is saved into, lent to the task that writes it.
    buffer: Vec<u8>,
}

enum Stage<D: Disk> {
    Idle,
    /// A task of the checkpoint that begins here is under way.
    Busy,
    Saving(CheckpointSave, CheckpointWriter<D>),
    /// Whole on the disk; it counts when the log is durable up to its end.
    Waiting(FinishedCheckpoint<D>),
}

/// What is to be done on the disk. Run it, and hand its outcome to [`Checkpointing::complete`].
pub type CheckpointTask<D> = Pin<Box<dyn Future<Output = CheckpointOutcome<D>>>>;

/// What a task came to.
pub struct CheckpointOutcome<D: Disk>(io::Result<Done<D>>);

enum Done<D: Disk> {
    Written(CheckpointSave, CheckpointWriter<D>, Vec<u8>),
    Finished(FinishedCheckpoint<D>),
    Published(PublishedCheckpoint),
}

impl<D: Disk> Checkpointing<D> {
    /// `slice`: bytes that are saved between two turns of whoever else has something to do.
    pub fn new(slice: usize) -> Self {
        Self { stage: Stage::Idle, slice, buffer: Vec::new() }
    }

    /// When [`Self::next_task`] may have something, if the log does not move until then: a time that has passed where it has
    /// something now, none while it waits for the log or for a task.
    pub fn next_deadline<H: RingHost>(&self, log: &Log<D, H>) -> Option<Nanos> {
        match &self.stage {
            Stage::Idle => log.checkpoint_due(),
            Stage::Busy => None,
            Stage::Saving(..) => Some(Nanos::ZERO),
            Stage::Waiting(finished) => (may_count(finished, log) || is_ending(log)).then_some(Nanos::ZERO),
        }
    }

    /// What is to be done now; nothing while a task is under way.
    pub fn next_task<H: RingHost>(
        &mut self,
        engine: &Engine,
        log: &mut Log<D, H>,
        now: Nanos,
    ) -> Option<CheckpointTask<D>> {
        match std::mem::replace(&mut self.stage, Stage::Busy) {
            Stage::Idle if log.checkpoint_due().is_some_and(|due| due <= now) => {
                let save = engine.begin_checkpoint();
                if !log.may_begin_checkpoint(save.begin()) {
                    self.stage = Stage::Idle;
                    return None;
                }
                let begun = log.begin_checkpoint(save.begin(), save.store_time(), now);
                let buffer = std::mem::take(&mut self.buffer);
                Some(task(async move { Ok(Done::Written(save, begun.await?, buffer)) }))
            }
            Stage::Saving(..) | Stage::Waiting(_) if is_ending(log) => {
                log.checkpoint_ended(None, now);
                self.stage = Stage::Idle;
                None
            }
            Stage::Saving(save, mut writer) => {
                if log.checkpoint_is_late() {
                    writer.hurry();
                }
                Some(self.save(engine, save, writer))
            }
            Stage::Waiting(finished) if may_count(&finished, log) => {
                let published = log.publish_checkpoint(finished);
                Some(task(async move { Ok(Done::Published(published.await?)) }))
            }
            unchanged => {
                self.stage = unchanged;
                None
            }
        }
    }

    fn save(
        &mut self,
        engine: &Engine,
        mut save: CheckpointSave,
        mut writer: CheckpointWriter<D>,
    ) -> CheckpointTask<D> {
        let mut buffer = std::mem::take(&mut self.buffer);
        engine.save_slice(&mut save, &mut buffer, self.slice);
        task(async move {
            writer.section(&buffer).await?;
            buffer.clear();
            match save.end() {
                None => Ok(Done::Written(save, writer, buffer)),
                Some(end) => Ok(Done::Finished(writer.finish(end).await?)),
            }
        })
    }

    /// Takes in what a task came to. Where a checkpoint counts from now on: its begin. An error ends the one under way; another
    /// is begun later.
    pub fn complete<H: RingHost>(
        &mut self,
        outcome: CheckpointOutcome<D>,
        log: &mut Log<D, H>,
        now: Nanos,
    ) -> io::Result<Option<LogPosition>> {
        self.stage = match outcome.0 {
            Ok(Done::Written(save, writer, buffer)) => {
                self.buffer = buffer;
                Stage::Saving(save, writer)
            }
            Ok(Done::Finished(finished)) => Stage::Waiting(finished),
            Ok(Done::Published(published)) => {
                log.checkpoint_ended(Some(published), now);
                self.stage = Stage::Idle;
                return Ok(Some(published.begin()));
            }
            Err(error) => {
                log.checkpoint_ended(None, now);
                self.stage = Stage::Idle;
                return Err(error);
            }
        };
        Ok(None)
    }
}

fn task<D: Disk>(work: impl Future<Output = io::Result<Done<D>>> + 'static) -> CheckpointTask<D> {
    Box::pin(async { CheckpointOutcome(work.await) })
}

/// A checkpoint never leads the log.
fn may_count<D: Disk, H: RingHost>(finished: &FinishedCheckpoint<D>, log: &Log<D, H>) -> bool {
    finished.end() <= log.durable() || log.has_planted(Planted::CheckpointAheadOfLog)
}

fn is_ending<D: Disk, H: RingHost>(log: &Log<D, H>) -> bool {
    log.is_poisoned() || log.close_state() != CloseState::Open
}
