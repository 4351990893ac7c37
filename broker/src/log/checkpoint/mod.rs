//! Checkpoints: what the log says up to a position, as its reader keeps it, so that a start reads no more than what came since.
//!
//! ```text
//!   log        ──────────────┬─────────────────┬──────────────────►
//!                            B begin           E end
//!   checkpoint: the state in sections, each current up to a position of its own in [B, E]
//! ```
//!
//! It is *fuzzy*: begun at B, saved in slices while the log goes on; a start restores the sections and replays the log from B,
//! and whatever a section knows already it passes over. So it holds nothing up, and it counts only once the log is durable up
//! to E: then, and not before, the file gets its name. What is in the sections is its reader's business.
//!
//! - `head`: the block that says what a checkpoint covers, and its file's name
//! - `writer`, `reader`: the sections in the file
//! - `keeper`: when one is due, and which are kept

mod head;
mod keeper;
mod reader;
mod writer;

pub(super) use head::{CheckpointHead, CheckpointName};
pub(super) use keeper::{CHECKPOINTS_KEPT, CheckpointKeeper};
pub use reader::CheckpointError;
pub(super) use reader::{read_sections, read_sections_with};
pub use writer::{CheckpointWriter, FinishedCheckpoint, PublishedCheckpoint};
