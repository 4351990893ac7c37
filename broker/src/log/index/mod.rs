//! The index of a sealed segment: a file beside it from which its batches are found by queue and offset, by queue and time and by
//! key, and its entries by position. It holds nothing but what the segment's entries say, so a bad one is unlinked and made again.
//!
//! | where | what |
//! |---|---|
//! | `format` | the file, block by block; what ties it to its segment |
//! | `row` | batches and keys as they stand in its trees |
//! | `builder` | [`build_index`]: one pass over the segment; `sorter`, `writer` and `pace` are its parts |
//! | `damage` | what an index is made around where its segment is damaged |
//! | `compare` | whether an index says what its segment says |
//! | `reader` | [`SegmentIndex`]: the look-ups |
//! | `set` | [`LogIndexes`]: all of a log; which are made when, and which is asked |
//!
//! Batches and keys stand in trees of blocks, sorted, packed and never changed: leaves of 4 KiB, above them fences down which a
//! look-up finds its leaf in as many reads as the tree is high, three at the most. What is sorted at once is bounded, so that a
//! segment of very small entries has several trees of each kind, each for a stretch of it; a look-up then asks one after the other.
//!
//! Keys are those that can be read without more ado: of compressed batches, whose records only readers take apart, none are here,
//! and [`IndexCounts::opaque_batches`] says how many such there are. A key is known by its hash alone: whoever looks one up reads
//! the record and compares.

mod builder;
mod compare;
mod damage;
mod error;
mod format;
mod pace;
mod reader;
mod row;
mod set;
mod sorter;
#[cfg(test)]
pub(in crate::log) mod tests;
mod writer;

pub use builder::{IndexReport, build_index};
pub(super) use compare::{Reading, compare_index};
pub use error::{BadIndex, IndexError};
pub use format::IndexCounts;
pub use pace::Stop;
pub use reader::{IndexedBatch, QueueEnd, QueueSpan, SegmentIndex};
pub use set::{FirstBehind, IndexLookUpError, LogIndexes};
pub(super) use set::{IndexMade, IndexWork};

use peregrine_protocol::ids::{LogPosition, TopicId};
use xxhash_rust::xxh64::Xxh64;

use super::damage::Extent;
use super::options::RunId;
use super::segment::{Identity, SegmentName};

/// A segment to which nothing is added any more, as its log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    name: SegmentName,
    run: RunId,
    end: LogPosition,
    /// In order of position.
    given_up: Vec<Extent>,
}

impl SealedSegment {
    /// The segment of that identity, up to where the log goes on elsewhere. `given_up`: what starts gave up by `--accept-loss`, in
    /// this segment or elsewhere; an index that was made before that is not taken for one of this.
    pub fn new(identity: &Identity, end: LogPosition, given_up: &[Extent]) -> Self {
        assert!(identity.base <= end, "a segment ends behind its base");
        let is_within = |extent: &&Extent| extent.from < end && extent.to > identity.base;
        let mut given_up: Vec<_> = given_up.iter().filter(is_within).copied().collect();
        given_up.sort_unstable();
        Self { name: identity.name(), run: identity.run, end, given_up }
    }

    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// What its entries take.
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.name.base
    }

    /// Whether any of that lies in it.
    pub(super) fn overlaps(&self, extent: &Extent) -> bool {
        extent.from < self.end && extent.to > self.name.base
    }

    /// Where reading goes on if what stands at this position was given up.
    fn given_up_to(&self, position: LogPosition) -> Option<LogPosition> {
        self.given_up.iter().filter(|extent| extent.contains(position)).map(|extent| extent.to).max()
    }
}

/// A key of a topic as indexes know it: XXH64 with seed 0 of the topic's id (little endian) and the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    pub fn of(topic: TopicId, key: &[u8]) -> Self {
        let mut hasher = KeyHasher::new(topic.0);
        hasher.update(key);
        hasher.finish()
    }
}

/// The same of a key that comes in parts.
struct KeyHasher(Xxh64);

impl KeyHasher {
    fn new(topic: u64) -> Self {
        let mut hasher = Xxh64::new(0);
        hasher.update(&topic.to_le_bytes());
        Self(hasher)
    }

    fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    fn finish(&self) -> KeyHash {
        KeyHash(self.0.digest())
    }
}
