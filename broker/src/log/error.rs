//! How a log's start, an append, a read and a stop can fail, each as a sentence that an operator or a client can act on.

use std::io;

use peregrine_protocol::ids::{Epoch, LogPosition, ShardId};

use super::damage::Damage;
use super::options::OptionsError;
use super::ring::RingUnfit;

/// Why a shard's log did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("shard {shard}: cannot {doing}: {source}")]
    Io { shard: ShardId, doing: String, source: io::Error },
    #[error("{0}")]
    Damage(Box<Damage>),
    /// The newest segment's run left a ring that does not fit, or none. Acknowledged `memory` messages may stand only in it.
    #[error(
        "shard {shard}: the staging ring {path} of epoch {epoch} cannot be used: {reason}; messages acknowledged at memory may \
         stand only there: bring it back, or give it up with --discard-ring {shard}:{epoch}"
    )]
    Ring { shard: ShardId, epoch: Epoch, path: String, reason: RingUnfit },
    /// The configured ring file is in use for something else.
    #[error(
        "shard {shard}: the staging ring file {path} cannot be taken: {reason}; move it away or configure another directory"
    )]
    RingTaken { shard: ShardId, path: String, reason: RingUnfit },
}

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendRefused {
    /// The ring is full of what is not yet durable, or the next segment is not ready. Either passes: wait for
    /// [`super::Progress`], at most 100 ms, then answer `Busy`.
    #[error("the staging ring is full")]
    NoRoom,
    /// A flush failed: nothing is appended or acknowledged until the broker is started again.
    #[error("a write to the log failed; the shard takes nothing until the broker is started again")]
    Poisoned,
    /// The file system has no room for another segment. Entries that are no batches are still taken, from the reserve.
    #[error("the disk is full")]
    DiskFull,
    /// Larger than [`super::LogOptions::largest_entry`].
    #[error("the entry is larger than the log takes")]
    TooLarge,
    /// The log is being stopped.
    #[error("the log is being stopped")]
    Closing,
}

/// Why stored bytes were not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No segment of the log holds these positions.
    #[error("position {0} is not in the log")]
    NotInLog(LogPosition),
    #[error("cannot read position {position}: {source}")]
    Io { position: LogPosition, source: io::Error },
}

/// Why a stop was not a clean one. The ring file stays, and the next start reads it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    #[error(
        "shard {shard}: a write failed, so the log could not be flushed; {messages} messages stand only in the staging ring {ring}"
    )]
    Poisoned { shard: ShardId, messages: u64, ring: String },
    #[error("shard {shard}: cannot {doing}: {source}")]
    Io { shard: ShardId, doing: &'static str, source: io::Error },
}
