//! What the trees of an index hold: batches, and keys. Each kind knows its order, and how it stands in a leaf and in a fence.
//!
//! ```text
//! leaf of batches:  per row, as varints, the first of a leaf always with its queue
//!                   records × 4 + 0 │                              │ position step │ length │ time step    behind the one before
//!                   records × 4 + 1 │ hole in offsets              │ position step │ length │ time step    the same with a hole
//!                   records × 4 + 2 │ topic │ queue │ first offset │ position      │ length │ time         of another queue
//! fence of batches: topic u64 · queue u32 · first offset u64 · time u64
//! leaf and fence of keys: hash u64 · position u32
//! ```
//!
//! Positions count from the segment's base, those of batches in units of 64 bytes and those of keys in units of 8; times from the
//! segment's first store time, in nanoseconds.

use crate::log::layout::{put, u32_at, u64_at};
use crate::varint;

/// A kind of row. The order is that of the tree.
pub(super) trait Row: Copy + Ord {
    /// The number of the kind in the index's contents.
    const KIND: u32;
    /// Bytes of a fence: what the levels above the leaves say of the first row below.
    const FENCE: usize;

    fn put_fence(&self, fence: &mut [u8]);
    /// A row that has of the fenced one what a search looks at.
    fn of_fence(fence: &[u8]) -> Self;

    /// Appends the row to a leaf, behind `before`.
    fn encode(&self, before: Option<&Self>, leaf: &mut Vec<u8>);
    /// Reads at `*at` what [`Self::encode`] wrote there behind the same row; `None` where nothing such stands there.
    fn decode(leaf: &[u8], at: &mut usize, before: Option<&Self>) -> Option<Self>;

    /// Where in the segment the row leads, bytes from its base.
    fn place(&self) -> u64;
    /// Whether it may come behind a lesser row.
    fn follows(&self, before: &Self) -> bool;
}

/// A batch of the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchRow {
    // The order of the fields is the order of the rows.
    pub topic: u64,
    pub queue: u32,
    /// Of its entry header, from the segment's base in units of 64 bytes.
    pub position: u32,
    /// Of its first record.
    pub offset: u64,
    /// From the segment's first store time.
    pub time: u64,
    pub records: u32,
    /// Payload bytes.
    pub length: u32,
}

const _: () = assert!(size_of::<BatchRow>() == 40, "the arithmetic of limits.rs");
const _: () = assert!(size_of::<KeyRow>() == 16, "the arithmetic of limits.rs");

impl BatchRow {
    pub const UNIT: u64 = 64;

    const BEHIND: u64 = 0;
    const BEHIND_HOLE: u64 = 1;
    const OTHER_QUEUE: u64 = 2;

    pub fn queue(&self) -> (u64, u32) {
        (self.topic, self.queue)
    }

    /// The offset behind its last record.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.records.into())
    }
}

impl Row for BatchRow {
    const KIND: u32 = 1;
    const FENCE: usize = 28;

    fn put_fence(&self, fence: &mut [u8]) {
        put(fence, 0, self.topic.to_le_bytes());
        put(fence, 8, self.queue.to_le_bytes());
        put(fence, 12, self.offset.to_le_bytes());
        put(fence, 20, self.time.to_le_bytes());
    }

    fn of_fence(fence: &[u8]) -> Self {
        let (topic, queue) = (u64_at(fence, 0), u32_at(fence, 8));
        Self { topic, queue, offset: u64_at(fence, 12), time: u64_at(fence, 20), ..Self::default() }
    }

    fn encode(&self, before: Option<&Self>, leaf: &mut Vec<u8>) {
        let records = u64::from(self.records) << 2;
        let origin = if let Some(before) = before.filter(|before| before.queue() == self.queue()) {
            match self.offset - before.end() {
                0 => varint::put(leaf, records | Self::BEHIND),
                hole => {
                    varint::put(leaf, records | Self::BEHIND_HOLE);
                    varint::put(leaf, hole);
                }
            }
            *before
        } else {
            varint::put(leaf, records | Self::OTHER_QUEUE);
            varint::put(leaf, self.topic);
            varint::put(leaf, self.queue.into());
            varint::put(leaf, self.offset);
            Self::default()
        };
        varint::put(leaf, (self.position - origin.position).into());
        varint::put(leaf, self.length.into());
        varint::put(leaf, self.time - origin.time);
    }

    fn decode(leaf: &[u8], at: &mut usize, before: Option<&Self>) -> Option<Self> {
        let mut next = || varint::take(leaf, at);
        let first = next()?;
        let (origin, offset) = match (first & 3, before) {
            (Self::BEHIND, Some(before)) => (*before, before.end()),
            (Self::BEHIND_HOLE, Some(before)) => (*before, before.end().checked_add(next()?)?),
            (Self::OTHER_QUEUE, _) => {
                let (topic, queue) = (next()?, next()?.try_into().ok()?);
                (Self { topic, queue, ..Self::default() }, next()?)
            }
            _ => return None,
        };
        Some(Self {
            position: origin.position.checked_add(next()?.try_into().ok()?)?,
            offset,
            records: (first >> 2).try_into().ok()?,
            length: next()?.try_into().ok()?,
            time: origin.time.checked_add(next()?)?,
            ..origin
        })
    }

    fn place(&self) -> u64 {
        u64::from(self.position) * Self::UNIT
    }

    fn follows(&self, before: &Self) -> bool {
        self.queue() != before.queue() || (self.offset >= before.end() && self.time >= before.time)
    }
}

/// A record with a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyRow {
    /// A [`super::KeyHash`].
    pub hash: u64,
    /// Where the record starts, from the segment's base in units of 8 bytes.
    pub position: u32,
}

impl KeyRow {
    pub const UNIT: u64 = 8;
}

impl Row for KeyRow {
    const KIND: u32 = 2;
    const FENCE: usize = 12;

    fn put_fence(&self, fence: &mut [u8]) {
        put(fence, 0, self.hash.to_le_bytes());
        put(fence, 8, self.position.to_le_bytes());
    }

    fn of_fence(fence: &[u8]) -> Self {
        Self { hash: u64_at(fence, 0), position: u32_at(fence, 8) }
    }

    fn encode(&self, _before: Option<&Self>, leaf: &mut Vec<u8>) {
        leaf.extend_from_slice(&self.hash.to_le_bytes());
        leaf.extend_from_slice(&self.position.to_le_bytes());
    }

    fn decode(leaf: &[u8], at: &mut usize, _before: Option<&Self>) -> Option<Self> {
        let row = leaf.get(*at..*at + Self::FENCE)?;
        *at += Self::FENCE;
        Some(Self::of_fence(row))
    }

    fn place(&self) -> u64 {
        u64::from(self.position) * Self::UNIT
    }

    fn follows(&self, _before: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<BatchRow>> {
        let step = (0u64..3, 0u32..3, prop_oneof![4 => Just(0u64), 1 => 1u64..1 << 40], 1u32..70_000, any::<u32>());
        prop::collection::vec((step, 0u64..1 << 40, 1u32..1 << 20), 0..60).prop_map(|steps| {
            let (mut time, mut position) = (0, 0);
            let mut rows: Vec<BatchRow> = Vec::new();
            for ((topic, queue, hole, records, length), wait, step) in steps {
                time += wait;
                position += step;
                let last = rows.iter().rfind(|row| row.queue() == (topic, queue));
                let offset = last.map_or(0, BatchRow::end) + hole;
                rows.push(BatchRow { topic, queue, position, offset, time, records, length });
            }
            rows.sort_unstable();
            rows
        })
    }

    proptest! {
        #[test]
        fn batches_read_back_and_follow_each_other(rows in rows()) {
            let mut leaf = Vec::new();
            let mut before = None;
            for row in &rows {
                prop_assert!(before.is_none_or(|before| row.follows(before)));
                row.encode(before, &mut leaf);
                before = Some(row);
            }
            let (mut at, mut before) = (0, None);
            for row in &rows {
                let read = BatchRow::decode(&leaf, &mut at, before.as_ref());
                prop_assert_eq!(read, Some(*row));
                before = read;
            }
            prop_assert_eq!(at, leaf.len());
        }

        #[test]
        fn bytes_that_are_no_rows_do_no_harm(leaf in prop::collection::vec(any::<u8>(), 0..80)) {
            let (mut at, mut before) = (0, None);
            while let Some(row) = BatchRow::decode(&leaf, &mut at, before.as_ref()) {
                before = Some(row);
            }
            prop_assert!(at <= leaf.len());
        }
    }

    #[test]
    fn a_steady_queue_takes_about_eight_bytes_a_batch() {
        let mut leaf = Vec::new();
        let mut before = None;
        for step in 0..1000 {
            let (offset, position, time) = (u64::from(step), step * 18, u64::from(step) * 50_000);
            let row = BatchRow { topic: 1, queue: 0, position, offset, time, records: 1, length: 1100 };
            row.encode(before.as_ref(), &mut leaf);
            before = Some(row);
        }
        assert!(leaf.len() < 7100, "{} bytes", leaf.len());
    }

    #[test]
    fn an_offset_or_time_that_goes_back_does_not_follow() {
        let row = BatchRow { topic: 1, queue: 2, position: 3, offset: 10, time: 5, records: 2, length: 64 };
        assert!(BatchRow { position: 4, offset: 12, ..row }.follows(&row));
        assert!(!BatchRow { position: 4, offset: 11, ..row }.follows(&row));
        assert!(!BatchRow { position: 4, offset: 12, time: 4, ..row }.follows(&row));
        assert!(BatchRow { queue: 3, offset: 0, ..row }.follows(&row));
    }
}
