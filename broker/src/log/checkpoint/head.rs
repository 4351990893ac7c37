//! The first block of a checkpoint: whose it is, and what it covers. Written when the sections are whole.
//!
//! ```text
//! at 0  magic "PgChkpnt" u64 · 8 version u32 · 12 shard u16 · 14 zeros · 16 directory id u128 · 32 first run of the log u64
//! 40 epoch of the run that made it u64 · 48 begin u64 · 56 end u64 · 64 store time u64 · 72 sections u64 · 80 their bytes u64
//! 88 zeros · 4092 CRC32 of all before
//! ```

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, ShardId};

use crate::log::disk::BLOCK;
use crate::log::layout::{crc_holds, put, put_crc, u16_at, u32_at, u64_at, u128_at};
use crate::log::options::{LogOptions, RunId};

use super::reader::CheckpointError;

/// Where a checkpoint's name leads: `checkpoint-{begin:020}-{epoch:010}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointName {
    // The order of the fields is the order of age.
    pub begin: LogPosition,
    pub epoch: Epoch,
}

impl CheckpointName {
    const PREFIX: &str = "checkpoint-";

    /// `None` for any other file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let (begin, epoch) = name.strip_prefix(Self::PREFIX)?.split_once('-')?;
        let parsed = Self { begin: LogPosition(begin.parse().ok()?), epoch: Epoch(epoch.parse().ok()?) };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:020}-{:010}", Self::PREFIX, self.begin.0, self.epoch.0)
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"PgChkpnt");
const VERSION: u32 = 1;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_SHARD: usize = 12;
const AT_DIRECTORY: usize = 16;
const AT_LOG: usize = 32;
const AT_EPOCH: usize = 40;
const AT_BEGIN: usize = 48;
const AT_END: usize = 56;
const AT_STORE_TIME: usize = 64;
const AT_SECTIONS: usize = 72;
const AT_BYTES: usize = 80;
const AT_CRC: usize = BLOCK - 4;

/// What the first block of a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHead {
    pub directory: DirectoryId,
    pub shard: ShardId,
    /// The first run of the log.
    pub log: RunId,
    /// Of the run that made it: no entry from `begin` on has a lower one.
    pub epoch: Epoch,
    /// Replay begins here: between two entries.
    pub begin: LogPosition,
    /// No section is current beyond this; the log was durable up to here before the checkpoint got its name.
    pub end: LogPosition,
    /// Of the last entry before `begin`.
    pub store_time: Nanos,
    pub sections: u64,
    /// Of the sections with their heads, as they stand behind this block.
    pub bytes: u64,
}

impl CheckpointHead {
    pub fn name(&self) -> CheckpointName {
        CheckpointName { begin: self.begin, epoch: self.epoch }
    }

    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        put(block, AT_MAGIC, MAGIC.to_le_bytes());
        put(block, AT_VERSION, VERSION.to_le_bytes());
        put(block, AT_SHARD, self.shard.0.to_le_bytes());
        put(block, AT_DIRECTORY, self.directory.0.to_le_bytes());
        put(block, AT_LOG, self.log.0.to_le_bytes());
        put(block, AT_EPOCH, self.epoch.0.to_le_bytes());
        put(block, AT_BEGIN, self.begin.0.to_le_bytes());
        put(block, AT_END, self.end.0.to_le_bytes());
        put(block, AT_STORE_TIME, self.store_time.0.to_le_bytes());
        put(block, AT_SECTIONS, self.sections.to_le_bytes());
        put(block, AT_BYTES, self.bytes.to_le_bytes());
        put_crc(block, 0, AT_CRC);
    }

    /// The head of a file of that name and size in that shard's directory.
    pub fn decode(
        block: &[u8],
        name: CheckpointName,
        size: u64,
        options: &LogOptions,
    ) -> Result<Self, CheckpointError> {
        if block.len() < BLOCK || u64_at(block, AT_MAGIC) != MAGIC || !crc_holds(block, 0, AT_CRC) {
            return Err(CheckpointError::Head);
        }
        if u32_at(block, AT_VERSION) != VERSION {
            return Err(CheckpointError::Version(u32_at(block, AT_VERSION)));
        }
        let head = Self {
            directory: DirectoryId(u128_at(block, AT_DIRECTORY)),
            shard: ShardId(u16_at(block, AT_SHARD)),
            log: RunId(u64_at(block, AT_LOG)),
            epoch: Epoch(u64_at(block, AT_EPOCH)),
            begin: LogPosition(u64_at(block, AT_BEGIN)),
            end: LogPosition(u64_at(block, AT_END)),
            store_time: Nanos(u64_at(block, AT_STORE_TIME)),
            sections: u64_at(block, AT_SECTIONS),
            bytes: u64_at(block, AT_BYTES),
        };
        if head.directory != options.directory.id || head.shard != options.shard {
            return Err(CheckpointError::Elsewhere);
        }
        let whole = head.begin <= head.end && head.bytes <= size.saturating_sub(BLOCK as u64);
        if head.name() != name || !whole {
            return Err(CheckpointError::Name);
        }
        Ok(head)
    }
}
