//! The layout of an index file, in blocks of 4 KiB that each end with a CRC32 of all before in the block:
//!
//! ```text
//! block 0      1                                                                       blocks
//!       ├──────┼───────────────────────┬───────────────────────┬───────────┬────────────┤
//!       │header│ tree                  │ tree …                │ entries   │ contents   │
//!       └──────┴───────────────────────┴───────────────────────┴───────────┴────────────┘
//! tree:   leaves │ their fences │ the fences' fences … │ root     a tree of one leaf is that leaf alone
//! leaf:   rows u16 · zeros u16 · rows (see `row`) · zeros
//! fences: one for each block of the level below, in order: its first row, as far as a search looks at it
//! entries: u32 for each 64 KiB of the segment: where the entry starts that holds its first byte, or the first one behind it, in
//!          units of 64 bytes from the base
//! contents: per tree kind u32 · first block u32 · leaves u32 · rows u32; those of batches and those of keys each in the order of
//!          what they hold, which is the order of position
//! header: at 0 magic "PgSIndex" u64 · 8 version u32 · 12 shard u16 · 14 zeros · 16 directory id u128 · 32 run of the segment u64
//!         40 base u64 · 48 epoch u64 · 56 end u64 · 64 first store time u64 · 72 checksum of what was given up u32 · 76 trees u32
//!         80 blocks u32 · 84 first block of the entries u32 · 88 of the contents u32 · 92 zeros · 96 entries u64 · 104 batches u64
//!         112 records u64 · 120 keys u64 · 128 batches whose keys cannot be read u64
//!         136 damaged stretches u32 · 140 zeros · 144 of each, in order: from u64 · length in units of 64 bytes u32 · what is
//!         damaged u32: 1 an entry's payload, 2 anything · zeros
//! ```
//!
//! The version is 1 where nothing is damaged, since nothing of that index tells it from one of version 1, and 2 else.
//!
//! A CRC starts from the directory's secret, the shard, what the index is of, and the number of the block: no block of another
//! index, nor one that stood in the file's place before, passes for one of this.

use peregrine_protocol::checksum::{Crc32, crc32};
use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, ShardId};
use peregrine_protocol::limits::ENTRY_ALIGN;

use super::SealedSegment;
use super::damage::{DamagedStretch, Harm};
use super::error::BadIndex;
use super::row::Row;
use crate::limits;
use crate::log::damage::Extent;
use crate::log::disk::BLOCK;
use crate::log::layout::{put, u16_at, u32_at, u64_at, u128_at};
use crate::log::options::{LogOptions, RunId};
use crate::log::segment::SegmentName;

const MAGIC: u64 = u64::from_le_bytes(*b"PgSIndex");
const VERSION: u32 = 1;
/// Of an index that was made around damage.
const VERSION_DAMAGED: u32 = 2;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_SHARD: usize = 12;
const AT_DIRECTORY: usize = 16;
const AT_RUN: usize = 32;
const AT_BASE: usize = 40;
const AT_EPOCH: usize = 48;
const AT_END: usize = 56;
const AT_FIRST_TIME: usize = 64;
const AT_GIVEN_UP: usize = 72;
const AT_TREES: usize = 76;
const AT_BLOCKS: usize = 80;
const AT_ENTRY_TABLE: usize = 84;
const AT_CONTENTS: usize = 88;
const AT_ENTRIES: usize = 96;
const AT_BATCHES: usize = 104;
const AT_RECORDS: usize = 112;
const AT_KEYS: usize = 120;
const AT_OPAQUE: usize = 128;
const AT_DAMAGED: usize = 136;
const AT_STRETCHES: usize = 144;
const AT_CRC: usize = BLOCK - 4;

/// Bytes of a block in front of its CRC.
pub(super) const CONTENT: usize = AT_CRC;
/// Bytes in front of a leaf's rows.
pub(super) const LEAF_HEAD: usize = 4;
/// Bytes of one place in the table of entries.
pub(super) const PLACE: usize = 4;
/// Bytes of one tree in the contents.
pub(super) const TREE: usize = 16;

/// Damaged stretches that an index names.
pub(super) const DAMAGED_MAX: usize = 240;
const STRETCH: usize = 16;
const _: () = assert!(AT_STRETCHES + DAMAGED_MAX * STRETCH <= AT_CRC, "they stand in the header's block");
const HARM_PAYLOAD: u32 = 1;
const HARM_ENTRIES: u32 = 2;

/// The number of a block in an index.
pub(super) type BlockNumber = u32;

/// What an index counts in its segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCounts {
    /// All but pads.
    pub entries: u64,
    pub batches: u64,
    pub records: u64,
    /// Records with a key that can be looked up.
    pub keys: u64,
    /// Batches whose records' keys are not in the index: they are compressed, or hold no records that this program can take apart.
    pub opaque_batches: u64,
}

/// The first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub first_time: Nanos,
    pub trees: u32,
    /// Of the whole file.
    pub blocks: u32,
    pub entry_table: BlockNumber,
    pub contents: BlockNumber,
    pub counts: IndexCounts,
    /// What the index was made around, in order of position.
    pub damaged: Vec<DamagedStretch>,
}

impl Header {
    /// Writes all but the CRC.
    pub fn encode(&self, options: &LogOptions, segment: &SealedSegment, block: &mut [u8]) {
        block.fill(0);
        put(block, AT_MAGIC, MAGIC.to_le_bytes());
        let version = if self.damaged.is_empty() { VERSION } else { VERSION_DAMAGED };
        put(block, AT_VERSION, version.to_le_bytes());
        put(block, AT_SHARD, options.shard.0.to_le_bytes());
        put(block, AT_DIRECTORY, options.directory.id.0.to_le_bytes());
        put(block, AT_RUN, segment.run.0.to_le_bytes());
        put(block, AT_BASE, segment.name.base.0.to_le_bytes());
        put(block, AT_EPOCH, segment.name.epoch.0.to_le_bytes());
        put(block, AT_END, segment.end.0.to_le_bytes());
        put(block, AT_FIRST_TIME, self.first_time.0.to_le_bytes());
        put(block, AT_GIVEN_UP, given_up_checksum(segment).to_le_bytes());
        put(block, AT_TREES, self.trees.to_le_bytes());
        put(block, AT_BLOCKS, self.blocks.to_le_bytes());
        put(block, AT_ENTRY_TABLE, self.entry_table.to_le_bytes());
        put(block, AT_CONTENTS, self.contents.to_le_bytes());
        put(block, AT_ENTRIES, self.counts.entries.to_le_bytes());
        put(block, AT_BATCHES, self.counts.batches.to_le_bytes());
        put(block, AT_RECORDS, self.counts.records.to_le_bytes());
        put(block, AT_KEYS, self.counts.keys.to_le_bytes());
        put(block, AT_OPAQUE, self.counts.opaque_batches.to_le_bytes());
        put(block, AT_DAMAGED, (self.damaged.len() as u32).to_le_bytes());
        for (place, stretch) in self.damaged.iter().enumerate() {
            let at = AT_STRETCHES + place * STRETCH;
            let units = (stretch.extent.to - stretch.extent.from) / ENTRY_ALIGN;
            let harm = match stretch.harm {
                Harm::Payload => HARM_PAYLOAD,
                Harm::Entries => HARM_ENTRIES,
            };
            put(block, at, stretch.extent.from.0.to_le_bytes());
            put(block, at + 8, (units as u32).to_le_bytes());
            put(block, at + 12, harm.to_le_bytes());
        }
    }

    /// The header of the index of that segment, in a file of `size` bytes.
    pub fn decode(block: &[u8], size: u64, options: &LogOptions, segment: &SealedSegment) -> Result<Self, BadIndex> {
        if block.len() < BLOCK {
            return Err(BadIndex::Length(size));
        }
        if u64_at(block, AT_MAGIC) != MAGIC {
            return Err(BadIndex::Magic);
        }
        let version = u32_at(block, AT_VERSION);
        if ![VERSION, VERSION_DAMAGED].contains(&version) {
            return Err(BadIndex::Version(version));
        }
        let (directory, shard) = (DirectoryId(u128_at(block, AT_DIRECTORY)), ShardId(u16_at(block, AT_SHARD)));
        if (directory, shard) != (options.directory.id, options.shard) {
            return Err(BadIndex::Elsewhere);
        }
        let (base, epoch) = (LogPosition(u64_at(block, AT_BASE)), Epoch(u64_at(block, AT_EPOCH)));
        let (run, end) = (RunId(u64_at(block, AT_RUN)), LogPosition(u64_at(block, AT_END)));
        let is_of_it = SegmentName { epoch, base } == segment.name && (run, end) == (segment.run, segment.end);
        if !is_of_it || u32_at(block, AT_GIVEN_UP) != given_up_checksum(segment) {
            return Err(BadIndex::Segment);
        }
        BlockSeal::new(options, segment).check(0, block)?;
        let header = Self {
            first_time: Nanos(u64_at(block, AT_FIRST_TIME)),
            trees: u32_at(block, AT_TREES),
            blocks: u32_at(block, AT_BLOCKS),
            entry_table: u32_at(block, AT_ENTRY_TABLE),
            contents: u32_at(block, AT_CONTENTS),
            counts: IndexCounts {
                entries: u64_at(block, AT_ENTRIES),
                batches: u64_at(block, AT_BATCHES),
                records: u64_at(block, AT_RECORDS),
                keys: u64_at(block, AT_KEYS),
                opaque_batches: u64_at(block, AT_OPAQUE),
            },
            damaged: decode_damaged(block, segment).ok_or(BadIndex::Contents(0))?,
        };
        if header.damaged.is_empty() != (version == VERSION) {
            return Err(BadIndex::Contents(0));
        }
        if size != u64::from(header.blocks) * BLOCK as u64 {
            return Err(BadIndex::Length(size));
        }
        let contents_blocks = (header.trees as usize).div_ceil(CONTENT / TREE) as u64;
        let entry_blocks = (segment.stretches() as usize).div_ceil(CONTENT / PLACE) as u64;
        let parts = u64::from(header.entry_table) + entry_blocks == u64::from(header.contents)
            && u64::from(header.contents) + contents_blocks == u64::from(header.blocks);
        if parts { Ok(header) } else { Err(BadIndex::Contents(0)) }
    }
}

/// `None` where no such stretches can stand there.
fn decode_damaged(block: &[u8], segment: &SealedSegment) -> Option<Vec<DamagedStretch>> {
    let count = u32_at(block, AT_DAMAGED) as usize;
    if count > DAMAGED_MAX {
        return None;
    }
    let stretch = |at: usize| {
        let from = LogPosition(u64_at(block, at));
        let to = LogPosition(from.0.checked_add(u64::from(u32_at(block, at + 8)) * ENTRY_ALIGN)?);
        let harm = match u32_at(block, at + 12) {
            HARM_PAYLOAD => Harm::Payload,
            HARM_ENTRIES => Harm::Entries,
            _ => return None,
        };
        let is_within = segment.name.base <= from && from < to && to <= segment.end;
        is_within.then_some(DamagedStretch { extent: Extent { from, to }, harm })
    };
    let stretches: Option<Vec<_>> = (0..count).map(|place| stretch(AT_STRETCHES + place * STRETCH)).collect();
    stretches.filter(|all| all.is_sorted_by(|a, b| a.extent.to <= b.extent.from))
}

/// Tells what was given up from what another start gave up.
fn given_up_checksum(segment: &SealedSegment) -> u32 {
    let extents = segment.given_up.iter().flat_map(|extent| [extent.from.0, extent.to.0]);
    crc32(&extents.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// Makes and checks the CRCs of one index's blocks.
#[derive(Clone, Copy)]
pub(super) struct BlockSeal(u32);

impl BlockSeal {
    pub fn new(options: &LogOptions, segment: &SealedSegment) -> Self {
        let mut of = options.directory.id.0.to_le_bytes().to_vec();
        for part in [segment.run.0, segment.name.base.0, segment.name.epoch.0, segment.end.0] {
            of.extend_from_slice(&part.to_le_bytes());
        }
        of.extend_from_slice(&given_up_checksum(segment).to_le_bytes());
        Self(options.seal().checksum(MAGIC, &of))
    }

    pub fn put(self, number: BlockNumber, block: &mut [u8]) {
        let crc = self.crc(number, &block[..CONTENT]);
        put(block, AT_CRC, crc.to_le_bytes());
    }

    pub fn check(self, number: BlockNumber, block: &[u8]) -> Result<(), BadIndex> {
        if block.len() == BLOCK && u32_at(block, AT_CRC) == self.crc(number, &block[..CONTENT]) {
            Ok(())
        } else {
            Err(BadIndex::Checksum(number))
        }
    }

    fn crc(self, number: BlockNumber, content: &[u8]) -> u32 {
        let mut crc = Crc32::after(self.0);
        crc.update(&number.to_le_bytes());
        crc.update(content);
        crc.finish()
    }
}

/// Where a tree stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    /// [`Row::KIND`] of what it holds.
    pub kind: u32,
    /// Its first leaf.
    pub first: BlockNumber,
    pub leaves: u32,
    pub rows: u32,
}

impl Tree {
    /// Fences of a block.
    pub const fn fan_out<R: Row>() -> u32 {
        (CONTENT / R::FENCE) as u32
    }

    /// First block and blocks of each level, from the leaves to the root.
    pub fn levels<R: Row>(&self) -> Vec<(u64, u32)> {
        let mut levels = vec![(u64::from(self.first), self.leaves)];
        while let Some(&(first, blocks)) = levels.last()
            && blocks > 1
        {
            levels.push((first + u64::from(blocks), blocks.div_ceil(Self::fan_out::<R>())));
        }
        levels
    }

    pub fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, self.kind.to_le_bytes());
        put(bytes, 4, self.first.to_le_bytes());
        put(bytes, 8, self.leaves.to_le_bytes());
        put(bytes, 12, self.rows.to_le_bytes());
    }

    pub fn decode(bytes: &[u8]) -> Self {
        Self { kind: u32_at(bytes, 0), first: u32_at(bytes, 4), leaves: u32_at(bytes, 8), rows: u32_at(bytes, 12) }
    }

    /// Whether it can stand between the header and the table of entries.
    pub fn fits<R: Row>(&self, header: &Header) -> bool {
        let end = self.levels::<R>().last().map(|&(first, blocks)| first + u64::from(blocks));
        self.first > 0 && self.leaves > 0 && end.is_some_and(|end| end <= u64::from(header.entry_table))
    }
}

impl SealedSegment {
    /// Stretches of [`limits::INDEX_STRETCH`] bytes, the last one perhaps shorter.
    pub(super) fn stretches(&self) -> u64 {
        (self.end - self.name.base).div_ceil(limits::INDEX_STRETCH)
    }
}
