//! The 4 KiB page that opens a ring file: whose ring it is, and the two positions that a restart needs.
//!
//! ```text
//! at 0    magic "PgStRing" u64, stored last; "PgUnread" while the ring is being set up
//!    8    version u32 · 12 shard u16 · 16 directory id u128 · 32 directory's device u64 · 40 its inode u64
//!    48   boot id u128 · 64 segment epoch u64 · 72 size u64 (bytes of ring, the page not counted) · 80 first run of the log u64 · 88 run id u64
//!    96   CRC32 of 8..96
//!    128  published u64, and once more at 192          } each in a cache line of its own, stored twice
//!    256  durable u64, and once more at 320            } before anything relies on it
//! 4096    the ring
//! ```
//!
//! A kill between the two stores of a position leaves two values; whoever reads takes the larger published (its bytes were
//! whole before the first store) and the lower durable (what it promises held before either).

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Epoch, LogPosition, ShardId};

use crate::log::layout::{crc_holds, put, put_crc, u16_at, u32_at, u64_at, u128_at};
use crate::log::options::{BootId, Directory, LogOptions, RunId};
use crate::log::segment::Identity;

/// Bytes before the ring.
pub const PAGE_LEN: usize = 4096;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"PgStRing");
/// In the magic's place of a ring that is not ready. It is there before any segment names the ring; zeros are nobody's, so that a page
/// that was lost is not taken for one that was never written.
pub(super) const SETTING_UP: u64 = u64::from_le_bytes(*b"PgUnread");
const VERSION: u32 = 1;

pub(super) const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_SHARD: usize = 12;
const AT_DIRECTORY: usize = 16;
const AT_DEVICE: usize = 32;
const AT_INODE: usize = 40;
const AT_BOOT: usize = 48;
const AT_EPOCH: usize = 64;
const AT_SIZE: usize = 72;
const AT_LOG: usize = 80;
const AT_RUN: usize = 88;
const AT_CRC: usize = 96;
pub(super) const AT_PUBLISHED: [usize; 2] = [128, 192];
pub(super) const AT_DURABLE: [usize; 2] = [256, 320];

/// The fixed fields of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPage {
    pub directory: DirectoryId,
    pub device: u64,
    pub inode: u64,
    pub shard: ShardId,
    pub boot: BootId,
    /// The first run of the log.
    pub log: RunId,
    /// The run that made the ring ready.
    pub run: RunId,
    /// Epoch of the run, and of the segment that it opened.
    pub epoch: Epoch,
    /// Bytes of ring behind the page.
    pub size: u64,
}

/// What the page of a ring file says; the ring's bytes are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// It is being set up: never ready.
    Unready,
    Ready {
        page: RingPage,
        published: LogPosition,
        durable: LogPosition,
    },
}

/// Why a ring file is not the one that a segment's identity speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingUnfit {
    #[error("there is no such file")]
    Missing,
    #[error("it does not open with a ring's magic")]
    Magic,
    #[error("its page has a wrong checksum")]
    Checksum,
    #[error("ring version {0}, this program knows {VERSION}")]
    Version(u32),
    #[error("it belongs to the data directory {0}")]
    Directory(DirectoryId),
    #[error("it belongs to another copy of this data directory (device {device}, inode {inode})")]
    Copy { device: u64, inode: u64 },
    #[error("it belongs to shard {0}")]
    Shard(ShardId),
    #[error("its epoch is {0}")]
    Epoch(Epoch),
    #[error("another log of this data directory has used it since")]
    OtherLog,
    #[error("it is {file} bytes long, but its page speaks of {page} bytes of ring")]
    Size { file: u64, page: u64 },
    #[error("published is {published} and durable {durable}, which cannot be in a ring of {size} bytes")]
    Positions { published: LogPosition, durable: LogPosition, size: u64 },
    #[error("the damaged identity of the newest segment does not tell which file it is")]
    Unnamed,
    #[error("the log that it belongs to is not here")]
    LogGone,
    #[error("its durable position {durable} lies below {known}, which is known to be durable")]
    Behind { durable: LogPosition, known: LogPosition },
}

/// The two copies of each position as they stand in a page.
#[derive(Clone, Copy, Debug)]
pub struct StoredPositions {
    published: [u64; 2],
    durable: [u64; 2],
}

impl StoredPositions {
    /// `file` is at least as long as a page.
    pub fn read(file: &[u8]) -> Self {
        Self { published: AT_PUBLISHED.map(|at| u64_at(file, at)), durable: AT_DURABLE.map(|at| u64_at(file, at)) }
    }

    /// Whether both copies of each say the same.
    pub fn agree(&self) -> bool {
        self.published[0] == self.published[1] && self.durable[0] == self.durable[1]
    }

    /// The larger copy: what was whole before either was stored.
    pub fn published(&self) -> LogPosition {
        LogPosition(self.published[0].max(self.published[1]))
    }

    /// The lower copy: what both promise.
    pub fn durable(&self) -> LogPosition {
        LogPosition(self.durable[0].min(self.durable[1]))
    }
}

impl RingPage {
    pub(in crate::log) fn new(options: &LogOptions, segment: &Identity) -> Self {
        Self {
            directory: options.directory.id,
            device: options.directory.device,
            inode: options.directory.inode,
            shard: options.shard,
            boot: options.boot,
            log: segment.log,
            run: segment.run,
            epoch: segment.epoch,
            size: options.ring_bytes,
        }
    }

    /// Writes all fields but magic and positions into `page`.
    pub(super) fn encode(&self, page: &mut [u8]) {
        put(page, AT_VERSION, VERSION.to_le_bytes());
        put(page, AT_SHARD, self.shard.0.to_le_bytes());
        put(page, AT_SHARD + 2, [0; 2]);
        put(page, AT_DIRECTORY, self.directory.0.to_le_bytes());
        put(page, AT_DEVICE, self.device.to_le_bytes());
        put(page, AT_INODE, self.inode.to_le_bytes());
        put(page, AT_BOOT, self.boot.0.to_le_bytes());
        put(page, AT_EPOCH, self.epoch.0.to_le_bytes());
        put(page, AT_SIZE, self.size.to_le_bytes());
        put(page, AT_LOG, self.log.0.to_le_bytes());
        put(page, AT_RUN, self.run.0.to_le_bytes());
        put_crc(page, AT_VERSION, AT_CRC);
    }

    /// Whether it is the ring of this shard of this very directory; epochs and positions are the caller's to judge.
    pub fn check_owner(&self, directory: &Directory, shard: ShardId) -> Result<(), RingUnfit> {
        if self.directory != directory.id {
            Err(RingUnfit::Directory(self.directory))
        } else if (self.device, self.inode) != (directory.device, directory.inode) {
            Err(RingUnfit::Copy { device: self.device, inode: self.inode })
        } else if self.shard != shard {
            Err(RingUnfit::Shard(self.shard))
        } else {
            Ok(())
        }
    }
}

impl PageState {
    /// Reads the page of a ring file of these bytes.
    pub fn read(file: &[u8]) -> Result<Self, RingUnfit> {
        if file.len() < PAGE_LEN {
            return Err(RingUnfit::Magic);
        }
        match u64_at(file, AT_MAGIC) {
            MAGIC => {}
            SETTING_UP => return Ok(Self::Unready),
            _ => return Err(RingUnfit::Magic),
        }
        if !crc_holds(file, AT_VERSION, AT_CRC) {
            return Err(RingUnfit::Checksum);
        }
        if u32_at(file, AT_VERSION) != VERSION {
            return Err(RingUnfit::Version(u32_at(file, AT_VERSION)));
        }
        let page = RingPage {
            directory: DirectoryId(u128_at(file, AT_DIRECTORY)),
            device: u64_at(file, AT_DEVICE),
            inode: u64_at(file, AT_INODE),
            shard: ShardId(u16_at(file, AT_SHARD)),
            boot: BootId(u128_at(file, AT_BOOT)),
            log: RunId(u64_at(file, AT_LOG)),
            run: RunId(u64_at(file, AT_RUN)),
            epoch: Epoch(u64_at(file, AT_EPOCH)),
            size: u64_at(file, AT_SIZE),
        };
        let stored = StoredPositions::read(file);
        Ok(Self::Ready { page, published: stored.published(), durable: stored.durable() })
    }
}
