//! The indexes of a log: which of its sealed segments have one, and look-ups across all of them.
//!
//! ```text
//!   start, roll ─► sealed segments, by position     ┌ indexed: looked up, open or not ┐┌ not yet: a look-up waits ┐
//!                                                   ├── S0 ──┬── S1 ──┬── S2 ──────────┼── S3 ──┬── S4 ────────────┤
//!                                                                              indexed_to ▲
//! ```
//!
//! The log makes one index at a time, the oldest first ([`super::super::LogTask`]). One that a look-up finds to be bad counts as not
//! made: it is made again, and who looks it up waits. Nothing here is anything but a cache: a crash leaves files that the next start
//! opens or makes anew.

mod spans;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::builder::build_index;
use super::pace::Stop;
use super::{IndexError, IndexedBatch, KeyHash, QueueEnd, SealedSegment, SegmentIndex};
use crate::limits;
use crate::log::disk::Disk;
use crate::log::files;
use crate::log::options::LogOptions;

/// Why a look-up has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexLookUpError {
    /// An index is being made that has to be asked. Ask again when [`LogIndexes::changes`] says something else.
    #[error("an index that is to be asked is not made yet")]
    NotMade,
    /// An index has to be asked that cannot be made of its segment.
    #[error("{0}")]
    Damaged(Rc<IndexError>),
}

/// The indexes of a log's sealed segments. A handle: copies see the same.
pub struct LogIndexes<D: Disk>(Rc<RefCell<Set<D>>>);

struct Set<D: Disk> {
    disk: D,
    options: LogOptions,
    /// By position.
    segments: VecDeque<Sealed<D>>,
    /// How many left at the front: places count them, so that a look-up keeps its own while segments retire.
    retired: usize,
    /// Bases of those whose indexes are open, the oldest first.
    open: VecDeque<LogPosition>,
    changes: u64,
    /// The one whose index is being made.
    making: Option<LogPosition>,
    stop: Stop,
    retry_at: Option<Nanos>,
}

struct Sealed<D: Disk> {
    segment: SealedSegment,
    state: State<D>,
}

enum State<D: Disk> {
    /// Nothing is known of an index, or the last attempt to make one failed for want of room or by the device.
    Unknown,
    /// There is one that is no good.
    Bad,
    /// None can be made: the segment is damaged, which the next start says too. One that could not be read is tried again.
    Damaged(Rc<IndexError>),
    /// `first_time`: of the segment's first entry, if it has any.
    Made { first_time: Option<Nanos>, open: Option<Rc<SegmentIndex<D>>> },
}

/// The making of an index.
pub(in crate::log) struct IndexWork<D: Disk> {
    disk: D,
    options: LogOptions,
    segment: SealedSegment,
    is_bad: bool,
    stop: Stop,
}

/// What that came to.
pub(in crate::log) struct IndexMade<D: Disk> {
    base: LogPosition,
    made: Result<SegmentIndex<D>, IndexError>,
}

impl<D: Disk> IndexWork<D> {
    /// Opens the index of the segment; makes it where there is none that is good. `None` where it was stopped.
    pub async fn run(self) -> Option<IndexMade<D>> {
        let stop = self.stop.clone();
        // What it leaves where it is given up is a file that the next start unlinks.
        stop.or_given_up(self.open_or_make()).await
    }

    async fn open_or_make(self) -> IndexMade<D> {
        let Self { disk, options, segment, is_bad, stop } = self;
        let made = async {
            let name = files::index_name(segment.name);
            if !is_bad {
                match SegmentIndex::open(&disk, &options, &segment).await {
                    Ok(index) => return Ok(index),
                    Err(error) => tracing::debug!(%error, "an index is made"),
                }
            }
            // It may not be there.
            let _ = disk.remove(&name).await;
            build_index(&disk, &options, &segment, stop).await?;
            SegmentIndex::open(&disk, &options, &segment).await
        };
        IndexMade { base: segment.name.base, made: made.await }
    }
}

impl<D: Disk> Clone for LogIndexes<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: Disk> LogIndexes<D> {
    pub(in crate::log) fn new(disk: D, options: LogOptions, sealed: Vec<SealedSegment>) -> Self {
        debug_assert!(sealed.is_sorted_by(|a, b| a.end <= b.name.base), "segments of the log do not overlap");
        let segments = sealed.into_iter().map(|segment| Sealed { segment, state: State::Unknown }).collect();
        let (open, making, stop, retry_at) = (VecDeque::new(), None, Stop::default(), None);
        Self(Rc::new(RefCell::new(Set {
            disk,
            options,
            segments,
            retired: 0,
            open,
            changes: 0,
            making,
            stop,
            retry_at,
        })))
    }

    /// A segment was sealed and is durable to its end.
    pub(in crate::log) fn extend(&self, segments: impl IntoIterator<Item = SealedSegment>) {
        let sealed = segments.into_iter().map(|segment| Sealed { segment, state: State::Unknown });
        self.0.borrow_mut().segments.extend(sealed);
    }

    /// The oldest segment, if it is this one, is no part of the log any more.
    pub(in crate::log) fn retire(&self, base: LogPosition) {
        let set = &mut *self.0.borrow_mut();
        if set.segments.pop_front_if(|sealed| sealed.segment.name.base == base).is_some() {
            set.retired += 1;
            set.open.retain(|open| *open != base);
        }
    }

    /// The queues of the segment at `base` behind `after`: see [`SegmentIndex::queue_ends`].
    pub async fn queue_ends(
        &self,
        base: LogPosition,
        after: Option<(TopicId, QueueId)>,
        max: usize,
    ) -> Result<Vec<QueueEnd>, IndexLookUpError> {
        let ends = self.ask(base, async |index| index.queue_ends(after, max).await).await?;
        ends.ok_or(IndexLookUpError::NotMade)
    }

    /// When the first entry was stored that stands at `position` or behind, as far as indexes know.
    pub fn first_time_behind(&self, position: LogPosition) -> Option<Nanos> {
        let set = self.0.borrow();
        let mut behind = set.segments.iter().filter(|sealed| sealed.segment.name.base >= position);
        behind.find_map(|sealed| match sealed.state {
            // One without entries says nothing.
            State::Made { first_time: None, .. } => None,
            State::Made { first_time: Some(time), .. } => Some(Some(time)),
            State::Unknown | State::Bad | State::Damaged(_) => Some(None),
        })?
    }

    /// The next index to be made, unless one is being made or the last attempt failed a moment ago.
    pub(in crate::log) fn next_work(&self, now: Nanos) -> Option<IndexWork<D>> {
        let set = &mut *self.0.borrow_mut();
        if set.making.is_some() || set.retry_at.is_some_and(|retry_at| now < retry_at) {
            return None;
        }
        set.retry_at = None;
        let is_due = |sealed: &&Sealed<D>| match &sealed.state {
            State::Unknown | State::Bad => true,
            State::Damaged(error) => error.may_pass(),
            State::Made { .. } => false,
        };
        let due = set.segments.iter().find(is_due)?;
        set.making = Some(due.segment.name.base);
        let is_bad = matches!(due.state, State::Bad);
        let (disk, options, stop) = (set.disk.clone(), set.options.clone(), set.stop.clone());
        Some(IndexWork { disk, options, segment: due.segment.clone(), is_bad, stop })
    }

    /// The first segment behind the one at `last` that has an index, and where it is read.
    pub(in crate::log) fn indexed_behind(&self, last: Option<LogPosition>) -> Option<(D, LogOptions, SealedSegment)> {
        let set = self.0.borrow();
        let is_next = |sealed: &&Sealed<D>| {
            matches!(sealed.state, State::Made { .. }) && last.is_none_or(|last| sealed.segment.name.base > last)
        };
        let next = set.segments.iter().find(is_next)?;
        Some((set.disk.clone(), set.options.clone(), next.segment.clone()))
    }

    /// Whether the segment at `base` has an index.
    pub(in crate::log) fn is_made(&self, base: LogPosition) -> bool {
        let set = self.0.borrow();
        set.place_of(base).is_some_and(|place| matches!(set.segments[place].state, State::Made { .. }))
    }

    /// The index of the segment at `base` is bad: it is made again.
    pub(in crate::log) fn found_bad(&self, base: LogPosition) {
        self.0.borrow_mut().found_bad(base);
    }

    /// What is being made is given up.
    pub(in crate::log) fn stop(&self) {
        self.0.borrow().stop.ask();
    }

    pub(in crate::log) fn is_making(&self) -> bool {
        self.0.borrow().making.is_some()
    }

    /// When to call [`Self::next_work`] again though nothing happens.
    pub(in crate::log) fn retry_at(&self) -> Option<Nanos> {
        let set = self.0.borrow();
        set.retry_at.filter(|_| set.making.is_none())
    }

    /// Takes in what the making of an index came to; `None` where it was given up.
    pub(in crate::log) fn made(&self, made: Option<IndexMade<D>>, now: Nanos) {
        let set = &mut *self.0.borrow_mut();
        set.making = None;
        let Some(IndexMade { base, made }) = made else { return };
        let Some(place) = set.place_of(base) else { return };
        set.changes += 1;
        match made {
            Ok(index) => set.keep_open(place, Rc::new(index)),
            Err(error) => {
                tracing::warn!(%error, "the index of a segment cannot be made; it is tried again");
                if error.may_pass() {
                    set.retry_at = Some(now + limits::INDEX_RETRY.0);
                }
                set.segments[place].state = match error {
                    IndexError::Io { .. } | IndexError::Bad { .. } => State::Unknown,
                    damaged => State::Damaged(Rc::new(damaged)),
                };
            }
        }
    }

    /// Entries below are found in the indexes, from the first segment on without a gap.
    pub fn indexed_to(&self) -> LogPosition {
        let set = self.0.borrow();
        let made = set.segments.iter().take_while(|sealed| matches!(sealed.state, State::Made { .. })).last();
        made.map_or(LogPosition(0), |sealed| sealed.segment.end)
    }

    /// Changes with every index that is made, or cannot be.
    pub fn changes(&self) -> u64 {
        self.0.borrow().changes
    }

    /// Sealed segments, and those of them that have an index.
    pub fn counts(&self) -> (usize, usize) {
        let set = self.0.borrow();
        let made = set.segments.iter().filter(|sealed| matches!(sealed.state, State::Made { .. })).count();
        (set.segments.len(), made)
    }

    /// The batches of a queue from the one that holds `from` on, or from the first behind it where none does: at most `max`, all of
    /// one segment. None: no sealed segment has any. They stand behind `behind`, as far as the caller knows.
    pub async fn lookup(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        behind: LogPosition,
        max: usize,
    ) -> Result<Vec<IndexedBatch>, IndexLookUpError> {
        let mut place = self.0.borrow().place_behind(behind);
        if behind == LogPosition(0) {
            place = self.seek(topic, queue, from).await?;
        }
        while let Some(base) = self.base_at(place) {
            let found = self.ask(base, async |index| index.lookup(topic, queue, from, max).await).await?;
            let Some(found) = found else { continue };
            if !found.is_empty() {
                return Ok(found);
            }
            place += 1;
        }
        Ok(Vec::new())
    }

    /// The first batch of a queue that was stored at `time` or later.
    pub async fn lookup_time(
        &self,
        topic: TopicId,
        queue: QueueId,
        time: Nanos,
    ) -> Result<Option<IndexedBatch>, IndexLookUpError> {
        let mut place = self.0.borrow().place_at(time);
        while let Some(base) = self.base_at(place) {
            let found = self.ask(base, async |index| index.lookup_time(topic, queue, time).await).await?;
            let Some(found) = found else { continue };
            if found.is_some() {
                return Ok(found);
            }
            place += 1;
        }
        Ok(None)
    }

    /// Where records stand whose key has that hash, from `from` on, in one segment: at most `max` of them. And where to go on:
    /// `None` behind the last segment.
    pub async fn lookup_key(
        &self,
        hash: KeyHash,
        from: LogPosition,
        max: usize,
    ) -> Result<(Vec<LogPosition>, Option<LogPosition>), IndexLookUpError> {
        let Some(base) = self.base_at(self.0.borrow().place_behind(from)) else { return Ok((Vec::new(), None)) };
        let found = self.ask(base, async |index| index.lookup_key(hash, from, max).await).await?;
        let Some(found) = found else { return Ok((Vec::new(), self.base_at(0))) };
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

    /// The place of the last segment whose first batch of the queue begins at or below `from`; 0 where there is none.
    async fn seek(&self, topic: TopicId, queue: QueueId, from: QueueOffset) -> Result<usize, IndexLookUpError> {
        let (mut low, mut high) = {
            let set = self.0.borrow();
            (set.retired, set.retired + set.segments.len())
        };
        while high - low > 1 {
            let middle = low.midpoint(high);
            let mut probe = middle;
            // A segment without the queue says nothing: the next one that has it does.
            let first = loop {
                if probe == high {
                    break None;
                }
                let Some(base) = self.base_at(probe) else { break None };
                let first = self.ask(base, async |index| index.lookup(topic, queue, QueueOffset(0), 1).await).await?;
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

    /// The segment in that place; the oldest where that one retired.
    fn base_at(&self, place: usize) -> Option<LogPosition> {
        let set = self.0.borrow();
        set.segments.get(place.saturating_sub(set.retired)).map(|sealed| sealed.segment.name.base)
    }

    /// Asks the index of the segment at `base`; `None` where that retired. One that proves to be bad is made again.
    async fn ask<T>(
        &self,
        base: LogPosition,
        question: impl AsyncFn(&SegmentIndex<D>) -> Result<T, IndexError>,
    ) -> Result<Option<T>, IndexLookUpError> {
        let answer = match self.open(base).await {
            Ok(index) => question(&index).await.map(Some).map_err(Some),
            Err(error) => Err(error),
        };
        if answer.is_err() && self.0.borrow().place_of(base).is_none() {
            return Ok(None);
        }
        answer.map_err(|error| match error {
            None => match self.0.borrow().damaged(base) {
                Some(error) => IndexLookUpError::Damaged(error),
                None => IndexLookUpError::NotMade,
            },
            Some(error) => {
                tracing::warn!(%error, "the index of a segment cannot be read; it is made again");
                self.0.borrow_mut().found_bad(base);
                IndexLookUpError::NotMade
            }
        })
    }

    /// The index of the segment at `base`, open. `None` as an error: it is not made.
    async fn open(&self, base: LogPosition) -> Result<Rc<SegmentIndex<D>>, Option<IndexError>> {
        let (disk, options, segment) = {
            let set = self.0.borrow();
            let sealed = set.place_of(base).map(|place| &set.segments[place]).ok_or(None)?;
            match &sealed.state {
                State::Made { open: Some(index), .. } => return Ok(Rc::clone(index)),
                State::Made { open: None, .. } => {}
                State::Unknown | State::Bad | State::Damaged(_) => return Err(None),
            }
            (set.disk.clone(), set.options.clone(), sealed.segment.clone())
        };
        let index = Rc::new(SegmentIndex::open(&disk, &options, &segment).await.map_err(Some)?);
        let mut set = self.0.borrow_mut();
        if let Some(place) = set.place_of(base)
            && matches!(set.segments[place].state, State::Made { open: None, .. })
        {
            set.keep_open(place, Rc::clone(&index));
        }
        Ok(index)
    }
}

impl<D: Disk> Set<D> {
    fn place_of(&self, base: LogPosition) -> Option<usize> {
        self.segments.binary_search_by_key(&base, |sealed| sealed.segment.name.base).ok()
    }

    /// The segment that holds `position`, or the first behind it.
    fn place_behind(&self, position: LogPosition) -> usize {
        self.retired + self.segments.partition_point(|sealed| sealed.segment.end <= position)
    }

    fn end_of(&self, base: LogPosition) -> Option<LogPosition> {
        let place = self.place_of(base)?;
        self.segments.get(place + 1).map(|_| self.segments[place].segment.end)
    }

    /// Where to begin to look for what was stored at `time` or later: in the last segment that begins before.
    fn place_at(&self, time: Nanos) -> usize {
        let mut place = self.retired;
        for (at, sealed) in self.segments.iter().enumerate() {
            match &sealed.state {
                State::Made { first_time: Some(first_time), .. } if *first_time < time => place = self.retired + at,
                State::Made { first_time: None, .. } => {}
                // Or it is not known whether it begins before.
                _ => break,
            }
        }
        place
    }

    fn damaged(&self, base: LogPosition) -> Option<Rc<IndexError>> {
        match &self.segments[self.place_of(base)?].state {
            State::Damaged(error) => Some(Rc::clone(error)),
            _ => None,
        }
    }

    fn found_bad(&mut self, base: LogPosition) {
        if let Some(place) = self.place_of(base)
            && matches!(self.segments[place].state, State::Made { .. })
        {
            self.segments[place].state = State::Bad;
            self.open.retain(|open| *open != base);
        }
    }

    /// Keeps an index open for later look-ups, in place of the one that was opened first where there are too many.
    fn keep_open(&mut self, place: usize, index: Rc<SegmentIndex<D>>) {
        if self.open.len() == limits::INDEXES_OPEN_MAX
            && let Some(base) = self.open.pop_front()
            && let Some(oldest) = self.place_of(base)
            && let State::Made { open, .. } = &mut self.segments[oldest].state
        {
            *open = None;
        }
        let sealed = &mut self.segments[place];
        self.open.push_back(sealed.segment.name.base);
        sealed.state = State::Made { first_time: index.first_time(), open: Some(index) };
    }
}
