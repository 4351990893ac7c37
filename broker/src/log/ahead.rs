//! The segments made ahead of the appends: one that has its name and waits for its first append, and behind it a spare file
//! of zeros. Appends never wait for allocation or for a journal while the two keep ahead of them.
//!
//! A spare is made of the file of a retired segment, where one waits, so that a log that gives up as much as it takes neither unlinks
//! nor allocates. One waits at the most: it is what the next spare would take.
//!
//! When the file system is full, or has no more left than what is to be kept free, what is left is a reserve: batches are refused
//! before they would move on to the last ready segment, which is kept for the entries that make room or let clients go on. Where that
//! is used up, small ones follow it, out of what is kept free and down to half of that; the other half is for checkpoints and indexes,
//! without which retention frees nothing.

use std::io;
use std::rc::Rc;

use peregrine_protocol::ids::Nanos;

use super::counters::LogCounters;
use super::disk::{Disk, is_full};
use super::error::AppendRefused;
use super::options::LogOptions;
use super::retirement::RetiredFile;
use super::segment::Identity;
use super::task::{NotNamed, OpenSegment, Spare, SpareIdentity, SpareOrder, SparePace, Work};

/// After a spare could not be made, or named, when to try again.
const RETRY: Nanos = Nanos::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Idle,
    Making,
    Naming { is_reserve: bool },
}

pub(super) struct SegmentsAhead<D: Disk> {
    next: Option<OpenSegment<D>>,
    spare: Option<Spare>,
    /// To be made the next spare.
    retired: Option<RetiredFile>,
    busy: Busy,
    /// Spares begun in this run: names and sizes follow from it.
    begun: u32,
    made: u32,
    retry_at: Nanos,
    /// No segment can be made that takes batches.
    disk_full: bool,
    /// What spares leave free on the file system.
    keep_free: u64,
    /// Size of a segment that takes no batches.
    reserve: u64,
    pace: Rc<SparePace>,
}

impl<D: Disk> SegmentsAhead<D> {
    pub fn new(options: &LogOptions) -> Self {
        Self {
            next: None,
            spare: None,
            retired: None,
            busy: Busy::Idle,
            begun: 0,
            made: 0,
            retry_at: Nanos::ZERO,
            disk_full: false,
            keep_free: options.keep_free,
            reserve: options.first_segment(0),
            pace: Rc::default(),
        }
    }

    pub fn next(&self) -> Option<&OpenSegment<D>> {
        self.next.as_ref()
    }

    pub fn take_next(&mut self) -> Option<OpenSegment<D>> {
        self.next.take()
    }

    pub fn is_disk_full(&self) -> bool {
        self.disk_full
    }

    pub fn is_busy(&self) -> bool {
        self.busy != Busy::Idle
    }

    /// Whether a batch may be appended, moving on to the next segment if it must.
    pub fn admit_batch(&self, rolls: bool) -> Result<(), AppendRefused> {
        if self.disk_full && (rolls || self.next.is_none()) { Err(AppendRefused::DiskFull) } else { Ok(()) }
    }

    /// Why there is no next segment to move on to.
    pub fn refusal(&self) -> AppendRefused {
        if self.disk_full { AppendRefused::DiskFull } else { AppendRefused::NoRoom }
    }

    /// What is to be done for the segments ahead. `spare` says the file name of the n-th spare begun in this run and the size
    /// of the m-th made, `identity_for` who the next segment is, given its size.
    pub fn next_work(
        &mut self,
        disk: &D,
        now: Nanos,
        spare: impl Fn(u32, u32) -> (String, u64),
        identity_for: impl Fn(u64) -> Identity,
    ) -> Option<Work<D>> {
        if self.is_busy() {
            return None;
        }
        if self.next.is_none()
            && now >= self.name_at()
            && let Some(mut spare) = self.spare.take()
        {
            self.busy = Busy::Naming { is_reserve: spare.is_reserve };
            if matches!(spare.identity, SpareIdentity::Open) {
                spare.identity = SpareIdentity::Chosen(identity_for(spare.size));
            }
            return Some(Work::Name { disk: disk.clone(), spare });
        }
        if self.spare.is_none() && now >= self.retry_at {
            self.busy = Busy::Making;
            let (name, size) = spare(self.begun, self.made);
            self.begun += 1;
            let reserve = self.next.is_none().then_some(self.reserve.min(size));
            let retired = self.retired.take_if(|retired| retired.size >= size);
            let order = SpareOrder { size, keep_free: self.keep_free, reserve, retired };
            return Some(Work::Spare { disk: disk.clone(), name, order, pace: Rc::clone(&self.pace) });
        }
        None
    }

    /// Whether the file of a segment of that size is to be kept for the next spare; `spare` says the size of the m-th made. Where
    /// there is no room for batches, space is worth more than a file.
    pub fn wants_retired(&self, size: u64, spare: impl Fn(u32) -> u64) -> bool {
        let next = self.made + u32::from(self.busy == Busy::Making);
        self.retired.is_none() && !self.disk_full && size == spare(next)
    }

    /// Keeps it.
    pub fn keep_retired(&mut self, file: RetiredFile) {
        assert!(self.retired.is_none(), "none was there when this one was wanted");
        self.retired = Some(file);
    }

    /// When a spare is tried again, or its name; `None` while nothing is waited for.
    pub fn deadline(&self) -> Option<Nanos> {
        if self.is_busy() {
            return None;
        }
        match self.spare {
            None => Some(self.retry_at),
            Some(_) => self.next.is_none().then(|| self.name_at()),
        }
    }

    /// From when on the spare may be named: at once, unless that was tried.
    fn name_at(&self) -> Nanos {
        let was_tried = self.spare.as_ref().is_some_and(|spare| matches!(spare.identity, SpareIdentity::Written(_)));
        if was_tried { self.retry_at } else { Nanos::ZERO }
    }

    /// Tells the spare in the making what room for appends is left: `left_in_current` and the segment that follows.
    pub fn press(&self, left_in_current: u64) {
        let room = left_in_current + self.next.as_ref().map_or(0, |next| next.identity.size);
        if self.busy != Busy::Making {
            self.pace.room.set(room);
        }
        self.pace.used.set(self.pace.room.get().saturating_sub(room));
    }

    pub fn spare_made(&mut self, result: io::Result<Option<Spare>>, now: Nanos, counters: &mut LogCounters) {
        self.busy = Busy::Idle;
        match result {
            Ok(spare) => {
                let is_whole = spare.as_ref().is_some_and(|spare| !spare.is_reserve);
                let is_reserve = spare.as_ref().is_some_and(|spare| spare.is_reserve);
                self.made += u32::from(is_whole);
                self.disk_full = is_reserve || self.disk_full && !is_whole;
                counters.spare_failures += u64::from(is_reserve);
                counters.recycled += u64::from(spare.as_ref().is_some_and(|spare| spare.is_recycled));
                self.retry_at = if is_reserve { now + RETRY.0 } else { self.retry_at };
                self.spare = spare;
            }
            Err(error) => {
                counters.spare_failures += 1;
                self.disk_full = is_full(&error);
                self.retry_at = now + RETRY.0;
            }
        }
    }

    /// A spare became a segment, or not. An error is for the caller, who poisons the log: a flush may be what failed.
    pub fn named(&mut self, result: Result<OpenSegment<D>, NotNamed>, now: Nanos) -> io::Result<()> {
        let is_reserve = self.busy == Busy::Naming { is_reserve: true };
        self.busy = Busy::Idle;
        match result {
            Ok(segment) => {
                self.disk_full &= is_reserve;
                self.next = Some(segment);
                Ok(())
            }
            Err(NotNamed::NoSpace(spare)) => {
                self.disk_full = true;
                self.retry_at = now + RETRY.0;
                self.spare = Some(*spare);
                Ok(())
            }
            Err(NotNamed::Failed(error)) => Err(error),
        }
    }

    /// Nothing more is made; what is being zeroed is left at the next step.
    pub fn stop(&mut self) {
        self.pace.stop.set(true);
    }
}
