//! Look-ups in the index of a segment: a few direct reads of 4 KiB each, every block checked before it is believed. Nothing is kept
//! between look-ups but the file and its list of trees, some kilobytes for the largest segment.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::damage::DamagedStretch;
use super::error::BadIndex;
use super::format::{BlockNumber, BlockSeal, CONTENT, Header, IndexCounts, LEAF_HEAD, PLACE, TREE, Tree};
use super::row::{BatchRow, KeyRow, Row};
use super::writer::io_error;
use super::{IndexError, KeyHash, SealedSegment};
use crate::limits;
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::files;
use crate::log::layout::{u16_at, u32_at};
use crate::log::options::LogOptions;

/// The index of a segment, open for look-ups; several may be under way at once.
pub struct SegmentIndex<D: Disk> {
    segment: SealedSegment,
    file: D::File,
    seal: BlockSeal,
    header: Header,
    batches: Vec<Tree>,
    keys: Vec<Tree>,
}

/// A batch as an index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedBatch {
    /// Offset of its first record.
    pub offset: QueueOffset,
    pub records: u32,
    /// Of its entry header.
    pub position: LogPosition,
    /// Payload bytes behind the header.
    pub length: u32,
    pub store_time: Nanos,
}

impl IndexedBatch {
    /// The offset after its last record.
    pub fn end(&self) -> QueueOffset {
        self.offset + u64::from(self.records)
    }
}

/// What a segment holds of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpan {
    pub first: IndexedBatch,
    pub last: IndexedBatch,
}

/// Where what a segment holds of a queue ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEnd {
    pub topic: TopicId,
    pub queue: QueueId,
    pub end: QueueOffset,
}

impl<D: Disk> SegmentIndex<D> {
    /// Opens the index of that segment. An error of which [`IndexError::is_bad_index`] holds, here or in any look-up, means that
    /// the file is to be unlinked and made again.
    pub async fn open(disk: &D, options: &LogOptions, segment: &SealedSegment) -> Result<Self, IndexError> {
        let name = files::index_name(segment.name);
        let file = disk.open(&name, Access::Read).await.map_err(io_error("open", &name))?;
        let bad = |reason| IndexError::Bad { segment: segment.name, reason };
        let block = read_block::<D>(&file, 0).await.map_err(bad)?;
        let header = Header::decode(&block, file.size(), options, segment).map_err(bad)?;
        let seal = BlockSeal::new(options, segment);
        let mut index = Self { segment: segment.clone(), file, seal, header, batches: Vec::new(), keys: Vec::new() };
        index.read_contents().await.map_err(bad)?;
        Ok(index)
    }

    pub fn counts(&self) -> IndexCounts {
        self.header.counts
    }

    /// What of the segment is damaged, as far as that was known when this was made.
    pub(super) fn damaged(&self) -> &[DamagedStretch] {
        &self.header.damaged
    }

    /// Store time of the segment's first entry, if it has any: no earlier one stands in it.
    pub fn first_time(&self) -> Option<Nanos> {
        (self.header.counts.entries > 0).then_some(self.header.first_time)
    }

    /// The batches of a queue from the one that holds `from` on, or from the first behind it where none does: at most `max` of
    /// them, and at most [`limits::INDEX_FOUND_MAX`]. None: the segment holds nothing of the queue from there on.
    pub async fn lookup(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        max: usize,
    ) -> Result<Vec<IndexedBatch>, IndexError> {
        let (queue, max) = ((topic.0, queue.0), max.min(limits::INDEX_FOUND_MAX));
        let mut found = Vec::new();
        for tree in &self.batches {
            let mut cursor = self.seek(tree, |row: &BatchRow| (row.queue(), row.offset) <= (queue, from.0)).await?;
            while found.len() < max
                && let Some(row) = cursor.next().await?
                && row.queue() <= queue
            {
                if row.queue() == queue && row.end() > from.0 {
                    found.push(self.batch(&row));
                }
            }
            if found.len() == max {
                break;
            }
        }
        Ok(found)
    }

    /// The first batch of a queue that was stored at `time` or later.
    pub async fn lookup_time(
        &self,
        topic: TopicId,
        queue: QueueId,
        time: Nanos,
    ) -> Result<Option<IndexedBatch>, IndexError> {
        let queue = (topic.0, queue.0);
        let time = time.saturating_sub(self.header.first_time);
        for tree in &self.batches {
            let mut cursor = self.seek(tree, |row: &BatchRow| (row.queue(), row.time) < (queue, time)).await?;
            while let Some(row) = cursor.next().await?
                && row.queue() <= queue
            {
                if row.queue() == queue && row.time >= time {
                    return Ok(Some(self.batch(&row)));
                }
            }
        }
        Ok(None)
    }

    /// The last batch of a queue that was stored before `time`.
    pub(super) async fn last_before(
        &self,
        topic: TopicId,
        queue: QueueId,
        time: Nanos,
    ) -> Result<Option<IndexedBatch>, IndexError> {
        let queue = (topic.0, queue.0);
        let time = time.saturating_sub(self.header.first_time);
        let is_before = |row: &BatchRow| (row.queue(), row.time) < (queue, time);
        for tree in self.batches.iter().rev() {
            let mut cursor = self.seek(tree, is_before).await?;
            let mut last = None;
            while let Some(row) = cursor.next().await?
                && is_before(&row)
            {
                last = Some(row).filter(|row| row.queue() == queue);
            }
            if let Some(last) = last {
                return Ok(Some(self.batch(&last)));
            }
        }
        Ok(None)
    }

    /// Where records start whose key has that hash, in order of position from `from` on: at most `max` of them, and at most
    /// [`limits::INDEX_FOUND_MAX`]. Whether it is the key only the record says.
    pub async fn lookup_key(
        &self,
        hash: KeyHash,
        from: LogPosition,
        max: usize,
    ) -> Result<Vec<LogPosition>, IndexError> {
        let max = max.min(limits::INDEX_FOUND_MAX);
        let from = from.0.saturating_sub(self.segment.name.base.0);
        let mut found = Vec::new();
        for tree in &self.keys {
            let mut cursor = self.seek(tree, |row: &KeyRow| (row.hash, row.place()) <= (hash.0, from)).await?;
            while found.len() < max
                && let Some(row) = cursor.next().await?
                && row.hash <= hash.0
            {
                if row.hash == hash.0 && row.place() >= from {
                    found.push(self.segment.name.base + row.place());
                }
            }
            if found.len() == max {
                break;
            }
        }
        Ok(found)
    }

    /// Where to begin to go from entry to entry for the one that holds `position`, which lies in the segment: at an entry's header
    /// at or below it, [`limits::INDEX_STRETCH`] away at the most or in front of one long entry. Only where `position` was given up
    /// may it lie above. Entries follow each other, but for what was given up.
    pub async fn entry_at(&self, position: LogPosition) -> Result<LogPosition, IndexError> {
        let SealedSegment { name, end, .. } = self.segment;
        assert!((name.base..end).contains(&position), "a position of the segment is looked up");
        let stretch = (position - name.base) / limits::INDEX_STRETCH;
        let (block, at) = (stretch as usize / (CONTENT / PLACE), stretch as usize % (CONTENT / PLACE));
        let number = self.header.entry_table + block as BlockNumber;
        let block = self.block(number).await.map_err(|reason| self.bad(reason))?;
        let start = name.base + u64::from(u32_at(&block, at * PLACE)) * BatchRow::UNIT;
        if start <= end { Ok(start) } else { Err(self.bad(BadIndex::Contents(number))) }
    }

    /// The first and the last batch of a queue.
    pub async fn queue_span(&self, topic: TopicId, queue: QueueId) -> Result<Option<QueueSpan>, IndexError> {
        let first = self.lookup(topic, queue, QueueOffset(0), 1).await?;
        let Some(&first) = first.first() else { return Ok(None) };
        let queue = (topic.0, queue.0);
        for tree in self.batches.iter().rev() {
            let mut cursor = self.seek(tree, |row: &BatchRow| row.queue() <= queue).await?;
            let mut last = None;
            while let Some(row) = cursor.next().await?
                && row.queue() <= queue
            {
                last = Some(row).filter(|row| row.queue() == queue);
            }
            if let Some(last) = last {
                return Ok(Some(QueueSpan { first, last: self.batch(&last) }));
            }
        }
        Ok(Some(QueueSpan { first, last: first }))
    }

    /// The queues behind `after`, in ascending order and at most `max` of them, each with the end of its last batch: what a queue
    /// loses with this segment.
    pub async fn queue_ends(&self, after: Option<(TopicId, QueueId)>, max: usize) -> Result<Vec<QueueEnd>, IndexError> {
        let after = after.map(|(topic, queue)| (topic.0, queue.0));
        let is_met = |row: &BatchRow| after.is_some_and(|after| row.queue() <= after);
        // Each tree has all queues of its part of the segment: the first so many of any are the first so many of all.
        let mut ends: BTreeMap<(u64, u32), u64> = BTreeMap::new();
        for tree in &self.batches {
            let mut cursor = self.seek(tree, is_met).await?;
            while let Some(row) = cursor.next().await? {
                if is_met(&row) {
                    continue;
                }
                if ends.len() == max && ends.last_key_value().is_some_and(|(last, _)| row.queue() > *last) {
                    break;
                }
                let end = ends.entry(row.queue()).or_default();
                *end = row.end().max(*end);
                if ends.len() > max {
                    ends.pop_last();
                }
            }
        }
        let end_of =
            |((topic, queue), end)| QueueEnd { topic: TopicId(topic), queue: QueueId(queue), end: QueueOffset(end) };
        Ok(ends.into_iter().map(end_of).collect())
    }

    /// Levels of the trees of batches and of those of keys.
    #[cfg(test)]
    pub(super) fn heights(&self) -> (Vec<usize>, Vec<usize>) {
        let batches = self.batches.iter().map(|tree| tree.levels::<BatchRow>().len());
        (batches.collect(), self.keys.iter().map(|tree| tree.levels::<KeyRow>().len()).collect())
    }

    async fn read_contents(&mut self) -> Result<(), BadIndex> {
        let mut left = self.header.trees as usize;
        for number in self.header.contents..self.header.blocks {
            let block = self.block(number).await?;
            for tree in block[..CONTENT].chunks_exact(TREE).take(left).map(Tree::decode) {
                left -= 1;
                match tree.kind {
                    BatchRow::KIND if tree.fits::<BatchRow>(&self.header) => self.batches.push(tree),
                    KeyRow::KIND if tree.fits::<KeyRow>(&self.header) => self.keys.push(tree),
                    _ => return Err(BadIndex::Contents(number)),
                }
            }
        }
        Ok(())
    }

    /// A cursor at the first leaf that can hold a row of which `is_before` is false, or the last one of which it is true:
    /// `is_before` holds of the rows of a tree up to one, and of none behind it.
    async fn seek<R: Row>(&self, tree: &Tree, is_before: impl Fn(&R) -> bool) -> Result<Cursor<'_, D, R>, IndexError> {
        let levels = tree.levels::<R>();
        let mut at = 0;
        for pair in levels.windows(2).rev() {
            let [(_, below), (first, _)] = *pair else { unreachable!("windows of two") };
            let number = (first + u64::from(at)) as BlockNumber;
            let block = self.block(number).await.map_err(|reason| self.bad(reason))?;
            let from = at * Tree::fan_out::<R>();
            let fences = (below - from).min(Tree::fan_out::<R>()) as usize;
            let fence = |n: usize| R::of_fence(&block[n * R::FENCE..][..R::FENCE]);
            at = from + partition_point(0..fences, |n| is_before(&fence(n))).saturating_sub(1) as u32;
        }
        Ok(Cursor { index: self, leaves: tree.first + at..tree.first + tree.leaves, leaf: None, kind: PhantomData })
    }

    async fn block(&self, number: BlockNumber) -> Result<<D::File as DiskFile>::Bytes, BadIndex> {
        let block = read_block::<D>(&self.file, number).await?;
        self.seal.check(number, &block)?;
        Ok(block)
    }

    fn batch(&self, row: &BatchRow) -> IndexedBatch {
        IndexedBatch {
            offset: QueueOffset(row.offset),
            records: row.records,
            position: self.segment.name.base + row.place(),
            length: row.length,
            store_time: Nanos(self.header.first_time.0.saturating_add(row.time)),
        }
    }

    fn bad(&self, reason: BadIndex) -> IndexError {
        IndexError::Bad { segment: self.segment.name, reason }
    }
}

/// Goes through the rows of a tree.
struct Cursor<'a, D: Disk, R> {
    index: &'a SegmentIndex<D>,
    /// Those not read yet.
    leaves: Range<BlockNumber>,
    leaf: Option<OpenLeaf<<D::File as DiskFile>::Bytes, R>>,
    kind: PhantomData<R>,
}

/// A leaf of which some rows were read.
struct OpenLeaf<B, R> {
    number: BlockNumber,
    block: B,
    /// Of the next row.
    at: usize,
    rows_left: u16,
    before: Option<R>,
}

impl<D: Disk, R: Row> Cursor<'_, D, R> {
    /// The next row; `None` at the tree's end.
    async fn next(&mut self) -> Result<Option<R>, IndexError> {
        loop {
            if let Some(leaf) = self.leaf.as_mut().filter(|leaf| leaf.rows_left > 0) {
                let row = R::decode(&leaf.block[..CONTENT], &mut leaf.at, leaf.before.as_ref());
                leaf.before = Some(row.ok_or(self.index.bad(BadIndex::Contents(leaf.number)))?);
                leaf.rows_left -= 1;
                return Ok(leaf.before);
            }
            let Some(number) = self.leaves.next() else { return Ok(None) };
            let block = self.index.block(number).await.map_err(|reason| self.index.bad(reason))?;
            let rows_left = u16_at(&block, 0);
            self.leaf = Some(OpenLeaf { number, block, at: LEAF_HEAD, rows_left, before: None });
        }
    }
}

async fn read_block<D: Disk>(file: &D::File, number: BlockNumber) -> Result<<D::File as DiskFile>::Bytes, BadIndex> {
    let block = file.read_at(u64::from(number) * BLOCK as u64, BLOCK).await;
    block.map_err(|error| BadIndex::Unreadable(number, error.to_string()))
}

/// The first number of which `is_before` does not hold.
fn partition_point(numbers: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    let Range { start: mut from, end: mut to } = numbers;
    while from < to {
        let middle = from.midpoint(to);
        if is_before(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}
