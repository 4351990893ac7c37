//! Messages looked up in the log: one by its position, those of a key. For people and programs that ask now and then: all of it runs in
//! the background, in steps with a turn of the reactor between them, and reads what it needs through the block cache.
//!
//! ```text
//!   position ─► the entry that holds it: backwards to the nearest sealed header ─┐
//!   key ─► indexed segments: its hash ─► positions ─► the entries that hold them ─┴─► payload checked ─► records ─► the key compared
//!      └─► the others: entry after entry ───────────────────────────────────────────────┘
//! ```
//!
//! - Sealed headers carry their own position and a checksum that no payload can have: the nearest one in front of a position is that of
//!   the entry around it, and is no further away than the largest entry.
//! - An entry counts if it lies in a segment of the log, below what is published, and was not given up after damage. Whether its messages
//!   may be seen (the topic lives, the queue keeps them, their levels are reached) is for the engine to say.
//! - A crash ends those who asked.

mod keys;
#[cfg(test)]
mod tests;
mod window;

pub use keys::{KeyAsked, KeySearch, Next};
pub use window::{FoundRecord, Records, SearchWindow, record_checksum};

use super::error::ReadError;
use peregrine_protocol::entry::EntrySeal;
use peregrine_protocol::ids::LogPosition;
use std::ops::{Deref, Range};

/// A log as a search sees it.
pub trait SearchedLog {
    fn seal(&self) -> EntrySeal;

    /// The first stretch of the log, all in one segment and published, that reaches beyond `position`.
    fn stretch(&self, position: LogPosition) -> Option<Range<LogPosition>>;

    /// Bytes from `position` on: `need` of them, which lie in one entry, or as many of `wish` as can be had together.
    fn read(
        &self,
        position: LogPosition,
        need: usize,
        wish: usize,
    ) -> impl Future<Output = Result<Box<dyn Deref<Target = [u8]>>, ReadError>>;

    /// Lets everybody else have a turn.
    fn rest(&self) -> impl Future<Output = ()>;
}

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the log is damaged at position {0}")]
    Damaged(LogPosition),
}
