//! A shard's log: staging ring, flusher, segments, marks, and the one way to start. See DESIGN.md, "The log".
//!
//! Decisions are plain state machines; all I/O goes through the traits in [`disk`], so that the broker and the simulator run
//! the same code.

mod ahead;
mod chain;
mod counters;
pub mod damage;
pub mod disk;
mod error;
pub mod fault;
mod files;
mod flusher;
mod layout;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod log;
mod mark;
mod options;
mod placement;
mod reader;
mod recovery;
mod ring;
mod segment;
mod task;
#[cfg(test)]
mod tests;

pub use counters::LogCounters;
pub use error::{AppendRefused, CloseError, ReadError, StartError};
pub use log::{Appended, COPY_STEP, CloseState, LargeAppend, Log, Progress};
pub use options::{BootId, Directory, FlushOptions, LogOptions, OptionsError, Smallest};
pub use reader::{DiskBytes, LogReader};
pub use recovery::{Replay, RingFate, StartReport};
pub use ring::RingUnfit;
pub use task::{Completion, LogTask};
