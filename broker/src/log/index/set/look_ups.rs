//! Look-ups across all indexes of a log. A place counts segments, those that retired included, so that a look-up keeps its own.
//!
//! What damage hides may have been anybody's. So a look-up that finds less than it was asked for, with damage where the rest stood, says
//! so; what comes behind is found by who asks for that.

use std::rc::Rc;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::{END, IndexLookUpError, LogIndexes};
use crate::limits;
use crate::log::damage::Extent;
use crate::log::disk::Disk;
use crate::log::index::damage::{first_hiding, last_hiding};
use crate::log::index::{IndexError, IndexedBatch, KeyHash, SegmentIndex};

/// What a queue has behind a position, as far as indexes know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBehind {
    /// It goes on at this offset.
    At(QueueOffset),
    /// It has nothing there.
    Nothing,
    /// Damage may have taken what comes first.
    Unknown,
}

impl<D: Disk> LogIndexes<D> {
    /// The batches of a queue from the one that holds `from` on, or from the first behind it where none does: at most `max`, all of
    /// one segment. None: no sealed segment has any. They stand behind `behind`, as far as the caller knows. Where damage may have
    /// taken what should come next, that is an error.
    pub async fn lookup(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        behind: LogPosition,
        max: usize,
    ) -> Result<Vec<IndexedBatch>, IndexLookUpError> {
        let mut passed = None;
        let mut place = self.begin(topic, queue, from, behind).await?;
        while let Some(base) = self.base_at(place) {
            let asked = async |index: &SegmentIndex<D>| index.lookup(topic, queue, from, max).await;
            let Some((mut found, damaged)) = self.ask_around(base, asked).await? else { continue };
            let Some(&first) = found.first() else {
                passed = passed.or(last_hiding(&damaged, behind, END).map(|extent| (base, extent)));
                place += 1;
                continue;
            };
            if first.offset > from {
                // What is missing stood in front of what is found.
                let hidden = last_hiding(&damaged, behind, first.position).map(|extent| (base, extent));
                if let Some((base, extent)) = passed.or(hidden) {
                    return Err(self.damaged_at(base, extent));
                }
            }
            let is_cut = |pair: &[IndexedBatch]| {
                let [a, b] = pair else { unreachable!("windows of two") };
                a.end() < b.offset && first_hiding(&damaged, a.position, b.position).is_some()
            };
            let cut = found.windows(2).position(is_cut);
            found.truncate(cut.map_or(found.len(), |last| last + 1));
            return Ok(found);
        }
        passed.map_or(Ok(Vec::new()), |(base, extent)| Err(self.damaged_at(base, extent)))
    }

    /// The first batch of a queue that can still be read, from the one that holds `from` on: what damage took is passed over.
    pub async fn first_readable(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
    ) -> Result<Option<IndexedBatch>, IndexLookUpError> {
        let mut place = self.begin(topic, queue, from, LogPosition(0)).await?;
        while let Some(base) = self.base_at(place) {
            let asked = async |index: &SegmentIndex<D>| index.lookup(topic, queue, from, 1).await;
            let Some((found, _)) = self.ask_around(base, asked).await? else { continue };
            if let Some(&first) = found.first() {
                return Ok(Some(first));
            }
            place += 1;
        }
        Ok(None)
    }

    /// Where a queue goes on in the segments that begin at `position` or behind and below `below`.
    pub async fn first_behind(
        &self,
        topic: TopicId,
        queue: QueueId,
        position: LogPosition,
        below: LogPosition,
    ) -> Result<FirstBehind, IndexLookUpError> {
        let mut place = self.0.borrow().place_behind(position);
        while let Some(base) = self.base_at(place).filter(|base| *base < below) {
            let asked = async |index: &SegmentIndex<D>| index.lookup(topic, queue, QueueOffset(0), 1).await;
            let Some((found, damaged)) = self.ask_around(base, asked).await? else { continue };
            let first = found.first();
            if first_hiding(&damaged, position, first.map_or(END, |first| first.position)).is_some() {
                return Ok(FirstBehind::Unknown);
            }
            if let Some(first) = first {
                return Ok(FirstBehind::At(first.offset));
            }
            place += 1;
        }
        Ok(FirstBehind::Nothing)
    }

    /// The offset behind the last batch of a queue that is known to stand in the segment at `base`.
    pub async fn known_end(
        &self,
        topic: TopicId,
        queue: QueueId,
        base: LogPosition,
    ) -> Result<Option<QueueOffset>, IndexLookUpError> {
        let asked = async |index: &SegmentIndex<D>| index.queue_span(topic, queue).await;
        let span = self.ask_around(base, asked).await?.and_then(|(span, _)| span);
        Ok(span.map(|span| span.last.end()))
    }

    /// The first batch of a queue that was stored at `time` or later. Batches from `below` on are known elsewhere. Where damage may have
    /// taken it, what is returned stands for all that is missing there, so that who begins with it is told.
    pub async fn lookup_time(
        &self,
        topic: TopicId,
        queue: QueueId,
        time: Nanos,
        below: QueueOffset,
    ) -> Result<Option<IndexedBatch>, IndexLookUpError> {
        let (mut place, mut found, mut is_sure) = (self.0.borrow().place_at(time), None, true);
        while let Some(base) = self.base_at(place) {
            let asked = async |index: &SegmentIndex<D>| index.lookup_time(topic, queue, time).await;
            let Some((first, damaged)) = self.ask_around(base, asked).await? else { continue };
            let to = first.map_or(END, |first: IndexedBatch| first.position);
            is_sure &= first_hiding(&damaged, LogPosition(0), to).is_none();
            found = first;
            if found.is_some() {
                break;
            }
            place += 1;
        }
        if is_sure {
            return Ok(found);
        }
        let before = self.last_before(topic, queue, time, place).await?.map_or(QueueOffset(0), |before| before.end());
        let next = found.map_or(below, |found| found.offset);
        if next <= before {
            return Ok(found);
        }
        let records = u32::try_from(next - before).unwrap_or(u32::MAX);
        Ok(Some(IndexedBatch { offset: before, records, position: LogPosition(0), length: 0, store_time: time }))
    }

    /// The last batch of a queue that was stored before `time`, in the segment in that place or before.
    async fn last_before(
        &self,
        topic: TopicId,
        queue: QueueId,
        time: Nanos,
        place: usize,
    ) -> Result<Option<IndexedBatch>, IndexLookUpError> {
        let (first, last) = {
            let set = self.0.borrow();
            (set.retired, (set.retired + set.segments.len()).saturating_sub(1).min(place))
        };
        for place in (first..=last).rev() {
            let Some(base) = self.base_at(place) else { break };
            let asked = async |index: &SegmentIndex<D>| index.last_before(topic, queue, time).await;
            let before = self.ask_around(base, asked).await?.and_then(|(before, _)| before);
            if before.is_some() {
                return Ok(before);
            }
        }
        Ok(None)
    }

    /// Where records stand whose key has that hash, from `from` on, in one segment: at most `max` of them. And where to go on:
    /// `None` behind the last segment. Where keys may be missing, that is an error: whoever goes from entry to entry is told where.
    pub async fn lookup_key(
        &self,
        hash: KeyHash,
        from: LogPosition,
        max: usize,
    ) -> Result<(Vec<LogPosition>, Option<LogPosition>), IndexLookUpError> {
        let Some(base) = self.base_at(self.0.borrow().place_behind(from)) else { return Ok((Vec::new(), None)) };
        let asked = async |index: &SegmentIndex<D>| {
            let damaged = index.damaged().iter().map(|stretch| stretch.extent).find(|extent| extent.to > from);
            Ok((index.lookup_key(hash, from, max).await?, damaged))
        };
        let Some((found, damaged)) = self.ask(base, asked).await? else { return Ok((Vec::new(), self.base_at(0))) };
        if let Some(extent) = damaged {
            return Err(self.damaged_at(base, extent));
        }
        let go_on = match found.last() {
            Some(&last) if found.len() == max.min(limits::INDEX_FOUND_MAX) => Some(last + 1),
            _ => self.0.borrow().end_of(base),
        };
        Ok((found, go_on))
    }

    /// Where to begin to go from entry to entry for the one that holds `position`; `None` where no sealed segment has it.
    pub async fn entry_at(&self, position: LogPosition) -> Result<Option<LogPosition>, IndexLookUpError> {
        let Some(base) = self.base_at(self.0.borrow().place_behind(position)) else { return Ok(None) };
        if position < base {
            return Ok(None);
        }
        self.ask(base, async |index| index.entry_at(position).await).await
    }

    fn damaged_at(&self, base: LogPosition, extent: Extent) -> IndexLookUpError {
        let set = self.0.borrow();
        match set.place_of(base).map(|place| set.segments[place].segment.name) {
            Some(segment) => IndexLookUpError::Damaged(Rc::new(IndexError::Damaged { segment, extent })),
            // It retired meanwhile, and the queue's start moved: ask again.
            None => IndexLookUpError::NotMade,
        }
    }

    /// The place in which to begin to look for the batch that holds `from`, which stands behind `behind`.
    async fn begin(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        behind: LogPosition,
    ) -> Result<usize, IndexLookUpError> {
        if behind > LogPosition(0) {
            return Ok(self.0.borrow().place_behind(behind));
        }
        self.seek(topic, queue, from).await
    }

    /// The place of the last segment whose first batch of the queue begins at or below `from`; 0 where there is none.
    async fn seek(&self, topic: TopicId, queue: QueueId, from: QueueOffset) -> Result<usize, IndexLookUpError> {
        let (mut low, mut high) = {
            let set = self.0.borrow();
            (set.retired, set.retired + set.segments.len())
        };
        while high - low > 1 {
            let middle = low.midpoint(high);
            let mut probe = middle;
            // A segment without the queue says nothing, and one that cannot be read: the next one that has it does.
            let first = loop {
                if probe == high {
                    break None;
                }
                let Some(base) = self.base_at(probe) else { break None };
                let asked = async |index: &SegmentIndex<D>| index.lookup(topic, queue, QueueOffset(0), 1).await;
                let first = match self.ask(base, asked).await {
                    Err(IndexLookUpError::Damaged(_)) => Some(Vec::new()),
                    first => first?,
                };
                let Some(first) = first else { continue };
                if let Some(first) = first.first() {
                    break Some(first.offset);
                }
                probe += 1;
            };
            match first {
                Some(first) if first <= from => low = probe,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}
