//! Retirement: segments leave the log at its front. Which ones, and when, is for whoever knows what they hold; the log sees that
//! what they said stands in checkpoints.
//!
//! ```text
//!   retired │ S3 │ S4 │ S5 ──┬── S6 ──┬── S7 (takes appends)
//!           └── next to go   └ begin of the older checkpoint: S3 and S4 may go
//! ```
//!
//! **Invariant**: a segment is retired only when the older of the two newest checkpoints covers its end, so that the loss of
//! either takes nothing. They are retired one after the other, each durably before the next, so that no crash leaves a gap.

use std::io;
use std::rc::Rc;

use peregrine_protocol::ids::LogPosition;

use super::Log;
use crate::log::disk::{BLOCK, Disk, DiskFile, RingHost};
use crate::log::fault::Planted;
use crate::log::reader::ReadableSegment;
use crate::log::retirement::{Keeping, RetiredFile, Retirement};
use crate::log::segment::SegmentName;
use crate::log::task::{LogTask, Work};

/// The oldest segment of a log, which takes no more appends and is durable to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldestSegment {
    pub base: LogPosition,
    pub end: LogPosition,
}

/// What goes on at the front of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Front {
    #[default]
    Rests,
    /// It is leaving.
    Busy(SegmentName),
    /// That failed: it is tried again before any other.
    Failed(SegmentName),
}

impl<D: Disk, H: RingHost> Log<D, H> {
    /// The segment that is retired next; none while one is being retired, or where there is only what takes the appends.
    pub fn oldest_segment(&self) -> Option<OldestSegment> {
        let open = self.segments.front().map(|segment| segment.identity.base)?;
        let (base, end) = self.reader.oldest()?;
        (self.front == Front::Rests && end <= open).then_some(OldestSegment { base, end })
    }

    /// Where the oldest segment begins that the log has.
    pub fn begins_at(&self) -> LogPosition {
        self.reader.oldest().map_or(LogPosition(0), |(base, _)| base)
    }

    /// Bytes of the log's segment files, with the one that takes the appends and the one made ahead. The spare behind that is not among
    /// them, nor is the file that waits to become one: they hold nothing that could be given up.
    pub fn disk_bytes(&self) -> u64 {
        self.reader.positions() + self.reader.segments() as u64 * BLOCK as u64
    }

    /// Whether two checkpoints know all that stands below `end`.
    pub fn may_retire(&self, end: LogPosition) -> bool {
        self.checkpoints.covered_to() >= end || self.has_planted(Planted::RetireTooEarly)
    }

    /// Takes the oldest segment out of the log: nothing of it is read any more. Run the task as any other.
    pub fn retire_oldest(&mut self) -> LogTask<D> {
        let Some(oldest) = self.oldest_segment() else { unreachable!("the caller looked") };
        assert!(self.may_retire(oldest.end), "what a retired segment said stands in two checkpoints");
        let Some(retired) = self.reader.retire_oldest() else { unreachable!("there is one") };
        self.indexes.retire(retired.base);
        let keeping = self.keeping(&retired);
        self.retire(retired.name, keeping)
    }

    /// What was to leave and could not: to be called now and then.
    pub fn retire_again(&mut self) -> Option<LogTask<D>> {
        match self.front {
            Front::Failed(name) => Some(self.retire(name, None)),
            Front::Rests | Front::Busy(_) => None,
        }
    }

    /// Whether the file of a segment that was just taken out is to be kept for the next spare. This run made it: what an earlier
    /// process had open is never written again. And nobody has it open beside the log, which read it through the descriptor that it
    /// wrote it with: who reads of what is retired is told that it is gone, and never of what comes after it.
    fn keeping(&self, retired: &ReadableSegment<D>) -> Option<Keeping> {
        let &ReadableSegment { name, base, ref file, .. } = retired;
        let file = file.as_ref().filter(|file| Rc::strong_count(file) == 1)?;
        let is_read = self.indexes.is_making_of(base) || self.scrubber.is_reading(base);
        let is_wanted = self.ahead.wants_retired(file.size(), |n| self.options.spare_segment(n));
        (name.epoch == self.epoch && !is_read && is_wanted).then(|| Keeping {
            size: file.size(),
            keep_free: self.options.keep_free,
            clears_at_once: self.has_planted(Planted::RecycleTooEarly),
        })
    }

    fn retire(&mut self, name: SegmentName, keeping: Option<Keeping>) -> LogTask<D> {
        self.front = Front::Busy(name);
        LogTask(Work::Retire(Retirement { disk: self.disk.clone(), name, keeping }))
    }

    pub(super) fn retired(&mut self, result: io::Result<Option<RetiredFile>>) {
        let Front::Busy(name) = self.front else { unreachable!("one is retired at a time") };
        self.front = match result {
            Ok(_) => Front::Rests,
            Err(_) => Front::Failed(name),
        };
        self.counters.retired += u64::from(result.is_ok());
        self.counters.retire_failures += u64::from(result.is_err());
        if let Ok(Some(file)) = result {
            self.ahead.keep_retired(file);
        }
    }

    pub(super) fn is_retiring(&self) -> bool {
        matches!(self.front, Front::Busy(_))
    }
}
