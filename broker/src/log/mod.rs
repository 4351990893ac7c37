//! A shard's log: staging ring, flusher, segments, marks, and the one way to start. See DESIGN.md, "The log".
//!
//! | where | what |
//! |---|---|
//! | [`Log`] | the log while it runs: appends, tasks for the disk, their completions, the stop |
//! | `recovery`, `chain`, `damage` | the start: what the log is, where it was cut, what is missing from it |
//! | `ring`, `placement` | the newest bytes; where the next entry goes |
//! | `flusher` | which bytes are written when, and how far the log is durable |
//! | `segment`, `ahead`, `retirement`, `task` | segment files, those made ahead, those given up, the work that the disk is asked for |
//! | `checkpoint` | what the log says up to a position, so that a start reads only what came since |
//! | `mark` | how far the log was durable, for a start that finds nothing else |
//! | `reader` | old entries, from the disk |
//! | [`index`] | the indexes of sealed segments: made in the background, and asked |
//! | [`search`] | messages by position and by key |
//! | `scrub` | sealed segments and their indexes, verified in the background |
//! | `window` | the entries of a segment one after the other, good told from bad |
//! | [`disk`] | the traits that all I/O goes through; io_uring and tmpfs, and the simulated machine |
//! | [`fault`] | switches for tests and the simulator's planted defects |
//!
//! Decisions are plain state machines without I/O or clock, so that the broker and the simulator run the same code.

mod ahead;
pub mod cache;
mod chain;
mod checkpoint;
mod counters;
pub mod damage;
pub mod disk;
mod error;
pub mod fault;
mod files;
mod flusher;
mod gaps;
pub mod index;
mod layout;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod log;
mod mark;
mod options;
mod placement;
mod reader;
mod recovery;
mod retirement;
mod ring;
mod scrub;
pub mod search;
mod segment;
mod sequential;
mod task;
#[cfg(test)]
mod tests;
mod turns;
mod window;

pub use checkpoint::{CheckpointError, CheckpointWriter, FinishedCheckpoint, PublishedCheckpoint};
pub use counters::LogCounters;
pub use error::{AppendRefused, CloseError, ReadError, StartError};
pub use log::{Appended, COPY_STEP, CloseState, LargeAppend, Log, OldestSegment, Progress};
pub use options::{
    BootId, CheckpointOptions, Directory, FlushOptions, LogOptions, OptionsError, RunId, ScrubOptions, Smallest,
};
pub use reader::{DiskBytes, LogReader};
pub use recovery::{CheckReport, Replay, RingFate, StartReport};
pub use ring::RingUnfit;
pub use segment::{Identity, SegmentName};
pub use task::{Completion, LogTask};
