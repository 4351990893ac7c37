//! One file as the device holds it. Reads see the newest contents, cached or not; a power cut goes back to what is durable,
//! except for such cached sectors as the device happened to have put down.
//!
//! ```text
//!   block 7:   durable ──► version (serial 12) ──► version (serial 15) = what a read sees
//!                          └── a sync issued after 12, before 15, moves "durable" here
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use super::random::Random;
use crate::log::disk::BLOCK;

/// The unit in which a real device may tear a write, bytes.
pub const SECTOR: usize = 512;
const SECTORS: usize = BLOCK / SECTOR;

pub type Block = [u8; BLOCK];

/// How a power cut, or a write that failed or lost its process, treats what was not synced.
#[derive(Clone, Copy, Debug)]
pub struct Tear {
    /// Whole blocks or single sectors.
    pub by_sector: bool,
    /// The chance of 16 that a unit got the newer bytes.
    pub survival: u64,
}

impl Tear {
    pub fn random(random: &mut Random) -> Self {
        Self { by_sector: random.coin(), survival: *random.pick(&[0, 1, 4, 8, 12, 15, 16]) }
    }

    /// `new` over `old`, torn.
    pub fn mix(self, old: &Rc<Block>, new: &Rc<Block>, random: &mut Random) -> Rc<Block> {
        if Rc::ptr_eq(old, new) {
            return Rc::clone(new);
        }
        if !self.by_sector {
            return Rc::clone(if random.below(16) < self.survival { new } else { old });
        }
        let mut mixed = **old;
        for sector in 0..SECTORS {
            if random.below(16) < self.survival {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                mixed[range.clone()].copy_from_slice(&new[range]);
            }
        }
        Rc::new(mixed)
    }
}

/// A file's contents.
#[derive(Debug)]
pub struct FileContents {
    seen: Vec<Rc<Block>>,
    durable: Vec<Rc<Block>>,
    /// Per block what was written since it was last durable, oldest first, with the serial of each write's completion.
    cached: BTreeMap<usize, Vec<(u64, Rc<Block>)>>,
    /// The process that made it, by the count of crashes before.
    made_by: u64,
    /// Whether a sync has made the size durable; before, a power cut may leave an empty file.
    size_durable: bool,
    /// Blocks that a durable write has filled; the log promises not to write a segment's again before they are cleared.
    appended: BTreeSet<usize>,
    /// Blocks that the device cannot read.
    unreadable: BTreeSet<usize>,
}

impl FileContents {
    /// A file of whole blocks; `initial` is what the disk happened to hold there.
    pub fn new(initial: Vec<Rc<Block>>, made_by: u64) -> Self {
        Self {
            durable: initial.clone(),
            seen: initial,
            cached: BTreeMap::new(),
            made_by,
            size_durable: false,
            appended: BTreeSet::new(),
            unreadable: BTreeSet::new(),
        }
    }

    pub fn made_by(&self) -> u64 {
        self.made_by
    }

    pub fn size(&self) -> u64 {
        (self.seen.len() * BLOCK) as u64
    }

    pub fn blocks(&self) -> &[Rc<Block>] {
        &self.seen
    }

    /// What a direct read returns; short at the end of the file, an error where one block cannot be read.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let first = (offset as usize / BLOCK).min(self.seen.len());
        let last = (first + len / BLOCK).min(self.seen.len());
        if let Some(block) = self.unreadable.range(first..last).next() {
            return Err(io::Error::other(format!("block {block} is bad")));
        }
        let mut bytes = Vec::with_capacity((last - first) * BLOCK);
        for block in &self.seen[first..last] {
            bytes.extend_from_slice(&block[..]);
        }
        Ok(bytes)
    }

    /// The file gets longer by these blocks; a power cut may take all of it before the next sync.
    pub fn extend(&mut self, initial: Vec<Rc<Block>>) {
        self.durable.extend(initial.iter().cloned());
        self.seen.extend(initial);
        self.size_durable = false;
    }

    /// From now on a block can be read or cannot: what a failing device does, and one that was only loosely plugged in.
    pub fn set_readable(&mut self, block: usize, readable: bool) {
        if readable {
            self.unreadable.remove(&block);
        } else {
            self.unreadable.insert(block);
        }
    }

    /// A write that arrived whole. Returns the first block that a durable write hit for the second time.
    pub fn write(&mut self, first: usize, blocks: &[Rc<Block>], serial: u64, durable: bool) -> Option<usize> {
        let mut rewritten = None;
        for (index, block) in (first..).zip(blocks) {
            self.seen[index] = Rc::clone(block);
            // The device puts another in its place.
            self.unreadable.remove(&index);
            if durable {
                self.durable[index] = Rc::clone(block);
                self.cached.remove(&index);
                if !self.appended.insert(index) && rewritten.is_none() {
                    rewritten = Some(index);
                }
            } else {
                self.appended.remove(&index);
                self.cached.entry(index).or_default().push((serial, Rc::clone(block)));
            }
        }
        rewritten
    }

    /// A write of which only some units arrive, in the cache.
    pub fn write_torn(&mut self, first: usize, blocks: &[Rc<Block>], serial: u64, tear: Tear, random: &mut Random) {
        for (index, block) in (first..).zip(blocks) {
            let mixed = tear.mix(&self.seen[index], block, random);
            if !Rc::ptr_eq(&mixed, &self.seen[index]) {
                self.seen[index] = Rc::clone(&mixed);
                self.cached.entry(index).or_default().push((serial, mixed));
            }
        }
    }

    /// Makes durable what completed at or before `serial`.
    pub fn sync(&mut self, serial: u64) {
        self.size_durable = true;
        let durable = &mut self.durable;
        self.cached.retain(|&index, versions| {
            let covered = versions.iter().take_while(|(written, _)| *written <= serial).count();
            if let Some((_, block)) = versions.drain(..covered).next_back() {
                durable[index] = block;
            }
            !versions.is_empty()
        });
    }

    /// Whether a power cut leaves the bytes from one offset up to another as a read sees them, and the file's length.
    pub fn is_durable(&self, from: u64, to: u64) -> bool {
        let same = |index: usize| {
            let start = (index * BLOCK) as u64;
            let (at, end) = (from.saturating_sub(start) as usize, to.saturating_sub(start).min(BLOCK as u64) as usize);
            at >= end || self.seen[index][at..end] == self.durable[index][at..end]
        };
        self.size_durable && self.cached.keys().all(|&index| same(index))
    }

    /// Turns one bit over, in the cache and below it: what no crash does and a failing device may.
    pub fn flip(&mut self, offset: u64, bit: u8) {
        let (index, at) = (offset as usize / BLOCK, offset as usize % BLOCK);
        let flipped = |block: &Rc<Block>| {
            let mut block = **block;
            block[at] ^= 1 << bit;
            Rc::new(block)
        };
        self.seen[index] = flipped(&self.seen[index]);
        self.durable[index] = flipped(&self.durable[index]);
        for (_, block) in self.cached.get_mut(&index).into_iter().flatten() {
            *block = flipped(block);
        }
    }

    /// The power fails: per unit any one of its versions since the last sync stays.
    pub fn lose_power(&mut self, tear: Tear, random: &mut Random) {
        for (index, versions) in std::mem::take(&mut self.cached) {
            for (_, block) in versions {
                self.durable[index] = tear.mix(&self.durable[index], &block, random);
            }
        }
        if !self.size_durable && random.coin() {
            self.durable.clear();
        }
        self.size_durable = true;
        self.seen.clone_from(&self.durable);
    }
}

/// A buffer cut into blocks; all-zero blocks share one allocation.
pub fn blocks_of(bytes: &[u8], zero: &Rc<Block>) -> Vec<Rc<Block>> {
    assert!(bytes.len().is_multiple_of(BLOCK), "a direct write of {} bytes, not whole blocks", bytes.len());
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    blocks.iter().map(|block| if *block == **zero { Rc::clone(zero) } else { Rc::new(*block) }).collect()
}
