//! A segment file: its name, its identity block, and which positions it holds.
//!
//! ```text
//! file    0            4096                                              size
//!         ├────────────┼──────────────────────────────────────────────────┤
//!         │ identity   │ entries and pads, then zeros                      │
//!         └────────────┴──────────────────────────────────────────────────┘
//! position              base                                base + size − 4096 (the end)
//! ```
//!
//! A file is written whole (zeros), synced and given its identity before it gets its name, and its name is durable before its
//! first append: a crash at any point leaves either no such name or a segment that is ready.

use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::ids::{Epoch, LogPosition, ShardId};

use super::disk::BLOCK;
use super::layout::{bytes_at, crc_holds, put, put_crc, u16_at, u32_at, u64_at, u128_at};
use super::options::{BootId, Directory, LogOptions, RunId};

/// Where a segment's name leads: `{base:020}-{epoch:010}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    // The order of the fields is the order of age: the newest segment has the highest epoch, then the highest base.
    pub epoch: Epoch,
    pub base: LogPosition,
}

impl SegmentName {
    /// `None` for any other file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let (base, epoch) = name.split_once('-')?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(base) || !digits(epoch) {
            return None;
        }
        let parsed = Self { epoch: Epoch(epoch.parse().ok()?), base: LogPosition(base.parse().ok()?) };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020}-{:010}", self.base.0, self.epoch.0)
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"PgSegmnt");
const VERSION: u32 = 1;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_SHARD: usize = 12;
const AT_RING_LEN: usize = 14;
const AT_DIRECTORY: usize = 16;
const AT_SECRET: usize = 32;
const AT_BOOT: usize = 48;
const AT_BASE: usize = 64;
const AT_EPOCH: usize = 72;
const AT_SIZE: usize = 80;
const AT_PREVIOUS_END: usize = 88;
const AT_DURABLE: usize = 96;
const AT_LOSS: usize = 104;
const AT_LOG: usize = 112;
const AT_RUN: usize = 120;
const AT_RING: usize = 128;
const AT_CRC: usize = BLOCK - 4;

/// The longest path of a ring file that an identity block holds.
pub const RING_PATH_MAX: usize = AT_CRC - AT_RING;

/// What the first block of a segment says. Written once, before the segment has its name.
///
/// ```text
/// at 0  magic "PgSegmnt" u64 · 8 version u32 · 12 shard u16 · 14 length of the ring's path u16 · 16 directory id u128
/// 32 directory secret [16] · 48 boot id u128 · 64 base u64 · 72 epoch u64 · 80 size u64 · 88 previous end u64
/// 96 durable u64 · 104 position of a note of loss u64, 0 where there is none · 112 first run of the log u64 · 120 run id u64 · 128 path of the ring file · zeros · 4092 CRC32 of all before
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub directory: DirectoryId,
    pub secret: DirectorySecret,
    pub shard: ShardId,
    pub boot: BootId,
    /// The first run of the log.
    pub log: RunId,
    /// The run that made the segment.
    pub run: RunId,
    pub base: LogPosition,
    pub epoch: Epoch,
    /// Bytes of the file, this block included.
    pub size: u64,
    /// Where the segment before it in the log ends; 0 where there is none.
    pub previous_end: LogPosition,
    /// The durable position known when this was written.
    pub durable: LogPosition,
    /// Where in this segment the entry stands that names what the run's start gave up by `--accept-loss`, if it did.
    pub loss: Option<LogPosition>,
    /// The ring file of the run; `None` where its ring was anonymous memory.
    pub ring: Option<String>,
}

impl Identity {
    /// The identity of a segment that a run with these options makes.
    pub(super) fn of_run(
        options: &LogOptions,
        log: RunId,
        epoch: Epoch,
        base: LogPosition,
        size: u64,
        previous_end: LogPosition,
        durable: LogPosition,
    ) -> Self {
        Self {
            directory: options.directory.id,
            secret: options.directory.secret,
            shard: options.shard,
            boot: options.boot,
            log,
            run: options.run,
            base,
            epoch,
            size,
            previous_end,
            durable,
            loss: None,
            ring: options.ring.clone(),
        }
    }

    pub fn name(&self) -> SegmentName {
        SegmentName { epoch: self.epoch, base: self.base }
    }

    /// The position behind the last byte that the segment can hold.
    pub fn end(&self) -> LogPosition {
        self.base + (self.size - BLOCK as u64)
    }

    pub fn encode(&self, block: &mut [u8]) {
        let ring = self.ring.as_deref().unwrap_or_default();
        assert!(block.len() == BLOCK && ring.len() <= RING_PATH_MAX, "checked when the options were");
        block.fill(0);
        put(block, AT_MAGIC, MAGIC.to_le_bytes());
        put(block, AT_VERSION, VERSION.to_le_bytes());
        put(block, AT_SHARD, self.shard.0.to_le_bytes());
        put(block, AT_RING_LEN, (ring.len() as u16).to_le_bytes());
        put(block, AT_DIRECTORY, self.directory.0.to_le_bytes());
        put(block, AT_SECRET, self.secret.0);
        put(block, AT_BOOT, self.boot.0.to_le_bytes());
        put(block, AT_BASE, self.base.0.to_le_bytes());
        put(block, AT_EPOCH, self.epoch.0.to_le_bytes());
        put(block, AT_SIZE, self.size.to_le_bytes());
        put(block, AT_PREVIOUS_END, self.previous_end.0.to_le_bytes());
        put(block, AT_DURABLE, self.durable.0.to_le_bytes());
        put(block, AT_LOSS, self.loss.unwrap_or_default().0.to_le_bytes());
        put(block, AT_LOG, self.log.0.to_le_bytes());
        put(block, AT_RUN, self.run.0.to_le_bytes());
        block[AT_RING..AT_RING + ring.len()].copy_from_slice(ring.as_bytes());
        put_crc(block, 0, AT_CRC);
    }

    pub fn decode(block: &[u8]) -> Result<Self, IdentityError> {
        if block.len() < BLOCK {
            return Err(IdentityError::Short);
        }
        if u64_at(block, AT_MAGIC) != MAGIC {
            return Err(IdentityError::Magic);
        }
        if !crc_holds(block, 0, AT_CRC) {
            return Err(IdentityError::Checksum);
        }
        if u32_at(block, AT_VERSION) != VERSION {
            return Err(IdentityError::Version(u32_at(block, AT_VERSION)));
        }
        let ring_len = usize::from(u16_at(block, AT_RING_LEN));
        let path = block[..AT_CRC].get(AT_RING..AT_RING + ring_len).ok_or(IdentityError::Range)?;
        let path = std::str::from_utf8(path).map_err(|_| IdentityError::Range)?;
        let identity = Self {
            directory: DirectoryId(u128_at(block, AT_DIRECTORY)),
            secret: DirectorySecret(bytes_at(block, AT_SECRET)),
            shard: ShardId(u16_at(block, AT_SHARD)),
            boot: BootId(u128_at(block, AT_BOOT)),
            log: RunId(u64_at(block, AT_LOG)),
            run: RunId(u64_at(block, AT_RUN)),
            base: LogPosition(u64_at(block, AT_BASE)),
            epoch: Epoch(u64_at(block, AT_EPOCH)),
            size: u64_at(block, AT_SIZE),
            previous_end: LogPosition(u64_at(block, AT_PREVIOUS_END)),
            durable: LogPosition(u64_at(block, AT_DURABLE)),
            loss: Some(LogPosition(u64_at(block, AT_LOSS))).filter(|position| position.0 > 0),
            ring: (!path.is_empty()).then(|| path.to_owned()),
        };
        let block = BLOCK as u64;
        let sized = identity.size > block && identity.size.is_multiple_of(block);
        let placed = identity.base.0.is_multiple_of(block) && identity.previous_end <= identity.base;
        let ends = identity.base.0.checked_add(identity.size).is_some();
        let holds = |position| ends && (identity.base..identity.end()).contains(&position);
        if sized && placed && ends && identity.durable <= identity.end() && identity.loss.is_none_or(holds) {
            Ok(identity)
        } else {
            Err(IdentityError::Range)
        }
    }

    /// Whether this is the identity of a segment of that name and file size in that directory's shard.
    pub fn check(
        &self,
        name: SegmentName,
        size: u64,
        directory: &Directory,
        shard: ShardId,
    ) -> Result<(), IdentityError> {
        if self.directory != directory.id || self.secret != directory.secret || self.shard != shard {
            Err(IdentityError::Elsewhere)
        } else if self.name() != name || self.size != size {
            Err(IdentityError::Name)
        } else {
            Ok(())
        }
    }
}

/// Why a file with a segment's name is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the file is shorter than a block")]
    Short,
    #[error("it does not open with a segment's magic")]
    Magic,
    #[error("the identity block's checksum is wrong")]
    Checksum,
    #[error("segment version {0}, this program knows {VERSION}")]
    Version(u32),
    #[error("the identity block says what cannot be")]
    Range,
    #[error("it belongs to another data directory or shard")]
    Elsewhere,
    #[error("its identity block names another base, epoch or size")]
    Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            directory: DirectoryId(7),
            secret: DirectorySecret([9; 16]),
            shard: ShardId(3),
            boot: BootId(11),
            log: RunId(12),
            run: RunId(13),
            base: LogPosition(8192),
            epoch: Epoch(5),
            size: 4 << 20,
            previous_end: LogPosition(6144),
            durable: LogPosition(12_288),
            loss: Some(LogPosition(8256)),
            ring: Some("/dev/shm/7-3".to_owned()),
        }
    }

    #[test]
    fn names_read_back_and_others_do_not_pass() {
        let name = identity().name();
        assert_eq!(name.to_string(), "00000000000000008192-0000000005");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
        let highest = SegmentName { epoch: Epoch(u64::MAX), base: LogPosition(u64::MAX) };
        assert_eq!(SegmentName::parse(&highest.to_string()), Some(highest));
        for other in
            ["", "mark-0000000001", "8192-5", "0000000000000008192-00000000005", "+0000000000000008192-0000000005"]
        {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
        let older = SegmentName { epoch: Epoch(4), base: LogPosition(1 << 40) };
        assert!(older < name, "the epoch comes first");
    }

    #[test]
    fn identity_reads_back_and_any_flipped_bit_is_seen() {
        let identity = identity();
        let mut block = vec![0xAA; BLOCK];
        identity.encode(&mut block);
        assert_eq!(Identity::decode(&block), Ok(identity.clone()));
        for bit in 0..BLOCK * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let without_ring = Identity { ring: None, loss: None, ..identity };
        without_ring.encode(&mut block);
        assert_eq!(Identity::decode(&block), Ok(without_ring));
    }

    #[test]
    fn an_identity_holds_for_its_own_file_alone() {
        let identity = identity();
        let directory = Directory { id: identity.directory, secret: identity.secret, device: 0, inode: 0 };
        let check = |name, size, directory: &Directory, shard| identity.check(name, size, directory, shard);
        assert_eq!(check(identity.name(), identity.size, &directory, ShardId(3)), Ok(()));
        assert_eq!(check(identity.name(), identity.size, &directory, ShardId(2)), Err(IdentityError::Elsewhere));
        assert_eq!(check(identity.name(), 8 << 20, &directory, ShardId(3)), Err(IdentityError::Name));
        let other = Directory { id: DirectoryId(8), ..directory };
        assert_eq!(check(identity.name(), identity.size, &other, ShardId(3)), Err(IdentityError::Elsewhere));
        let renamed = SegmentName { epoch: Epoch(6), ..identity.name() };
        assert_eq!(check(renamed, identity.size, &directory, ShardId(3)), Err(IdentityError::Name));
    }
}
