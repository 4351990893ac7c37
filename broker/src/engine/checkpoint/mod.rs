//! Saving the engine's durable state while it changes, and putting it back at a start, so that the log need not be read from its
//! beginning.
//!
//! A checkpoint is *fuzzy*. It is saved in slices, between which the engine goes on:
//!
//! ```text
//!   log   ───────────────┬──────────────────────────────────────────┬───────────────►
//!                      begin      a ▲  b ▲  c ▲ …   objects saved    end
//!                        │                                          │
//!   a start:  restore all, then apply entries from begin on         │
//!                        └── covered: each object ignores what ─────┴── as ever: everything is checked
//!                            it had when it was saved
//! ```
//!
//! It holds only where durable has passed its end. What makes it right:
//!
//! - **Every object knows the newest entry that it holds**: a queue the position of its last batch, a producer's state that of the
//!   last batch it remembers, a group's place the end of the entry that put it there. Each takes in what is newer, and nothing
//!   else. So they need not be saved together, and a queue with many producers, groups or batches is saved in many slices.
//! - **What is not saved was made behind begin**, and the covered entries make it again: begin lies at or below every change of the
//!   catalogue that had not taken effect.
//! - **What was deleted meanwhile** may have been saved before or not at all. The list of deleted ids is saved last, behind every
//!   queue; entries of what stands in it are skipped. What is deleted later had been saved whole.
//! - **Catalogue changes can be taken in twice and late**: nothing deleted lives again, topics gain queues only, groups topics only.
//!   Covered ones count by themselves. From the end on the catalogue is exactly what it was, and each change must fit.
//! - **A producer's state that was forgotten meanwhile** may be missing though covered batches went on from it. They are counted
//!   from where they begin; the state that this makes is forgotten at the end too.
//!
//! A copy of the catalogue (every shard but shard 0) saves none of it: it has the final one from shard 0 before it restores.
//!
//! - `record`: the format
//! - `save`, `restore`: the two directions

mod record;
mod restore;
mod save;

use peregrine_protocol::ids::LogPosition;

pub use restore::{RestoreError, Restored};
pub use save::CheckpointSave;

use super::Engine;

impl Engine {
    /// Whether what the entry at `position` says may have been restored already.
    pub(super) fn is_covered(&self, position: LogPosition) -> bool {
        position < self.covered_to
    }

    /// Whether entries may be missing before the one at `position`. Where shard 0 lost a deletion, a copy may have dropped queues
    /// for it that live again, and whose covered batches do not begin at 0.
    pub(super) fn is_torn(&self, position: LogPosition) -> bool {
        self.holes || self.is_covered(position) && self.catalogue.is_lossy()
    }
}
