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

mod look_ups;
mod spans;

pub use look_ups::FirstBehind;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, TopicId};

use super::builder::{build_index, build_index_over_damage};
use super::damage::{DamagedStretch, first_hiding};
use super::pace::Stop;
use super::{IndexError, QueueEnd, SealedSegment, SegmentIndex};
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

/// Above every position.
const END: LogPosition = LogPosition(u64::MAX);

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
    /// How often it could not be read, since it was read as a whole.
    unread: u32,
}

impl<D: Disk> Sealed<D> {
    fn new(segment: SealedSegment) -> Self {
        Self { segment, state: State::Unknown, unread: 0 }
    }
}

enum State<D: Disk> {
    /// Nothing is known of an index, or the last attempt to make one failed for want of room or by the device.
    Unknown,
    /// There is one that is no good.
    Bad,
    /// None could be made: the segment cannot be read, which may pass, or nothing that is known helps.
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
    /// What cannot be read is taken for damaged: it was tried often enough.
    takes_unread: bool,
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
        let Self { disk, options, segment, is_bad, takes_unread, stop } = self;
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
            match build_index(&disk, &options, &segment, stop.clone()).await {
                Err(error) if error.is_of_segment() && (takes_unread || !error.may_pass()) => {
                    tracing::error!(%error, "a sealed segment is damaged: its index is made around that");
                    build_index_over_damage(&disk, &options, &segment, takes_unread, stop).await?;
                }
                made => drop(made?),
            }
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
        let segments = sealed.into_iter().map(Sealed::new).collect();
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
        self.0.borrow_mut().segments.extend(segments.into_iter().map(Sealed::new));
    }

    /// The oldest segment, if it is this one, is no part of the log any more.
    pub(in crate::log) fn retire(&self, base: LogPosition) {
        let set = &mut *self.0.borrow_mut();
        if set.segments.pop_front_if(|sealed| sealed.segment.name.base == base).is_some() {
            set.retired += 1;
            set.open.retain(|open| *open != base);
        }
    }

    /// The queues of the segment at `base` behind `after`: see [`SegmentIndex::queue_ends`]. `None` where damage may hide others.
    pub async fn queue_ends(
        &self,
        base: LogPosition,
        after: Option<(TopicId, QueueId)>,
        max: usize,
    ) -> Result<Option<Vec<QueueEnd>>, IndexLookUpError> {
        // One index says both: another attempt to make it may find damage that this one did not.
        let asked = async |index: &SegmentIndex<D>| match first_hiding(index.damaged(), LogPosition(0), END) {
            Some(_) => Ok(None),
            None => index.queue_ends(after, max).await.map(Some),
        };
        match self.ask(base, asked).await {
            Err(IndexLookUpError::Damaged(error)) if !error.may_pass() => Ok(None),
            ends => ends?.ok_or(IndexLookUpError::NotMade),
        }
    }

    /// When the first entry was stored that stands at `position` or behind, as far as indexes know.
    pub fn first_time_behind(&self, position: LogPosition) -> Option<Nanos> {
        let set = self.0.borrow();
        let mut behind = set.segments.iter().filter(|sealed| sealed.segment.name.base >= position);
        behind.find_map(|sealed| match sealed.state {
            // One without entries says nothing.
            State::Made { first_time: None, .. } => None,
            State::Made { first_time: Some(time), .. } => Some(Some(time)),
            // Of one that cannot be indexed nobody knows; what stands behind was stored later.
            State::Damaged(ref error) if !error.may_pass() => None,
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
        let takes_unread = due.unread >= limits::INDEX_ATTEMPTS;
        let (disk, options, stop) = (set.disk.clone(), set.options.clone(), set.stop.clone());
        Some(IndexWork { disk, options, segment: due.segment.clone(), is_bad, takes_unread, stop })
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

    /// Whether the index of the segment at `base` is being made.
    pub(in crate::log) fn is_making_of(&self, base: LogPosition) -> bool {
        self.0.borrow().making == Some(base)
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
            Ok(index) => {
                if index.damaged().is_empty() {
                    set.segments[place].unread = 0;
                }
                set.keep_open(place, Rc::new(index));
            }
            Err(error) => {
                let again = error.may_pass();
                tracing::warn!(%error, again, "the index of a segment cannot be made");
                if again {
                    set.retry_at = Some(now + limits::INDEX_RETRY.0);
                }
                let sealed = &mut set.segments[place];
                sealed.unread += u32::from(error.is_of_segment() && error.may_pass());
                sealed.state = match error {
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

    /// The same, with what the index was made around. A segment of which none can be made is damaged as a whole: nothing is known of it.
    async fn ask_around<T: Default>(
        &self,
        base: LogPosition,
        question: impl AsyncFn(&SegmentIndex<D>) -> Result<T, IndexError>,
    ) -> Result<Option<(T, Vec<DamagedStretch>)>, IndexLookUpError> {
        let asked = async |index: &SegmentIndex<D>| Ok((question(index).await?, index.damaged().to_vec()));
        match self.ask(base, asked).await {
            Err(IndexLookUpError::Damaged(error)) if !error.may_pass() => {
                let end = self.0.borrow().place_of(base).map(|place| self.0.borrow().segments[place].segment.end);
                Ok(end.map(|end| (T::default(), vec![DamagedStretch::of_entries(base, end)])))
            }
            answer => answer,
        }
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
