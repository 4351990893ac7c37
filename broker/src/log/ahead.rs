//! The segments made ahead of the appends: one that has its name and waits for its first append, and behind it a spare file
//! of zeros. Appends never wait for allocation or for a journal while the two keep ahead of them.
//!
//! When the file system is full, what is left is a reserve: batches are refused before they would move on to the last ready
//! segment, which is kept for the entries that make room or let clients go on.

use std::io;
use std::rc::Rc;

use peregrine_protocol::ids::Nanos;

use super::counters::LogCounters;
use super::disk::Disk;
use super::error::AppendRefused;
use super::segment::Identity;
use super::task::{OpenSegment, Spare, SparePace, Work};

/// After a spare could not be made, when to try again.
const RETRY: Nanos = Nanos::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Idle,
    Making,
    Naming,
}

pub(super) struct SegmentsAhead<D: Disk> {
    next: Option<OpenSegment<D>>,
    spare: Option<Spare>,
    busy: Busy,
    /// Spares begun in this run: names and sizes follow from it.
    begun: u32,
    made: u32,
    retry_at: Nanos,
    disk_full: bool,
    pace: Rc<SparePace>,
}

impl<D: Disk> SegmentsAhead<D> {
    pub fn new() -> Self {
        Self {
            next: None,
            spare: None,
            busy: Busy::Idle,
            begun: 0,
            made: 0,
            retry_at: Nanos::ZERO,
            disk_full: false,
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
            && let Some(spare) = self.spare.take()
        {
            self.busy = Busy::Naming;
            let identity = identity_for(spare.size);
            return Some(Work::Name { disk: disk.clone(), spare, identity });
        }
        if self.spare.is_none() && now >= self.retry_at {
            self.busy = Busy::Making;
            let (name, size) = spare(self.begun, self.made);
            self.begun += 1;
            return Some(Work::Spare { disk: disk.clone(), name, size, pace: Rc::clone(&self.pace) });
        }
        None
    }

    /// When a spare is tried again; `None` while nothing is waited for.
    pub fn deadline(&self) -> Option<Nanos> {
        (!self.is_busy() && self.spare.is_none()).then_some(self.retry_at)
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
                self.made += u32::from(spare.is_some());
                self.disk_full &= spare.is_none();
                self.spare = spare;
            }
            Err(error) => {
                counters.spare_failures += 1;
                self.disk_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                self.retry_at = now + RETRY.0;
            }
        }
    }

    /// Naming failed or succeeded; in case of failure the caller poisons the log, since a flush of the directory may be what
    /// failed.
    pub fn named(&mut self, segment: Option<OpenSegment<D>>) {
        self.busy = Busy::Idle;
        self.next = segment;
    }

    /// Nothing more is made; what is being zeroed is left at the next step.
    pub fn stop(&mut self) {
        self.pace.stop.set(true);
    }
}
