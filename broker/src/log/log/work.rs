//! What the log wants done on the disk, one task after the other, and what their completions change: durable, segments made
//! ahead, marks. The first failed write poisons the log.

use std::rc::Rc;

use peregrine_protocol::ids::{LogPosition, Nanos};

use super::{CloseState, Log, Progress, next_block, readable_segment};
use crate::log::disk::{BLOCK, Disk, RingHost};
use crate::log::fault::Planted;
use crate::log::files;
use crate::log::flusher::{Decision, PlannedWrite};
use crate::log::index::SealedSegment;
use crate::log::mark::Mark;
use crate::log::segment::Identity;
use crate::log::task::{Completion, LogTask, Outcome, Work};

impl<D: Disk, H: RingHost> Log<D, H> {
    /// What is to be carried out now. Call until `None`; writes come first.
    pub fn next_task(&mut self, now: Nanos) -> Option<LogTask<D>> {
        self.pass_over();
        if let Some(write) = self.next_write(now) {
            return Some(write);
        }
        if self.is_poisoned() {
            return None;
        }
        match self.close {
            CloseState::Open => self.next_background(now),
            CloseState::Closing => self.closing_mark(),
            CloseState::Done => None,
        }
    }

    /// When [`Self::next_task`] will have something although nothing happens until then. A time that has passed already asks
    /// for a call at once.
    pub fn next_deadline(&self) -> Option<Nanos> {
        if self.is_poisoned() {
            return None;
        }
        let flush =
            if self.options.faults.flushes_held() { None } else { self.flusher.deadline(self.ring.published()) };
        let background = match self.close {
            CloseState::Open => {
                [self.marks.due(), self.ahead.deadline(), self.indexes.retry_at(), self.scrubber.deadline()]
            }
            CloseState::Closing | CloseState::Done => [None; 4],
        };
        background.into_iter().chain([flush]).flatten().min()
    }

    /// Takes in what a task came to.
    pub fn complete(&mut self, completion: Completion<D>, now: Nanos) -> Progress {
        let (was_poisoned, was_full) = (self.is_poisoned(), self.is_disk_full());
        let mut progress = Progress::default();
        match completion.0 {
            Outcome::Written { number, result } => progress.durable = self.write_returned(number, result, now),
            Outcome::SpareMade(result) => {
                self.ahead.spare_made(result, now, &mut self.counters);
                progress.room = true;
            }
            Outcome::Named(result) => {
                progress.room = true;
                if let Ok(segment) = &result {
                    // All that a roll needs is allocated here: it happens in the middle of an append.
                    self.segments.reserve(1);
                    self.reader.push(readable_segment(segment));
                }
                if let Err(error) = self.ahead.named(result, now) {
                    self.poison(&format!("the next segment could not be put in place: {error}"));
                }
            }
            Outcome::Retired(result) => self.retired(result),
            Outcome::Marked(result) => self.mark_returned(result, now),
            Outcome::Indexed(made) => {
                self.indexes.made(made, now);
                progress.indexed = true;
            }
            Outcome::Scrubbed(scrubbed) => self.scrubber.returned(scrubbed, &self.indexes, &mut self.counters),
        }
        progress.disk_full = (self.is_disk_full() != was_full).then_some(self.is_disk_full());
        progress.poisoned = self.is_poisoned() && !was_poisoned;
        progress
    }

    fn next_write(&mut self, now: Nanos) -> Option<LogTask<D>> {
        if let Some((_, task)) = self.held.take_if(|(number, _)| !self.options.faults.is_held(*number)) {
            self.reader.gaps().flush_began();
            return Some(task);
        }
        if self.options.faults.flushes_held() {
            return None;
        }
        loop {
            match self.flusher.decide(self.ring.published(), now) {
                Decision::Nothing => return None,
                Decision::Seal => {
                    self.seal_unit(next_block(self.ring.tail()));
                    self.publish();
                }
                Decision::Write(planned) => {
                    let task = self.write_task(planned);
                    if !self.options.faults.is_held(planned.number) {
                        self.reader.gaps().flush_began();
                        return Some(task);
                    }
                    self.held = Some((planned.number, task));
                }
            }
        }
    }

    fn write_task(&mut self, planned: PlannedWrite) -> LogTask<D> {
        let PlannedWrite { number, mut start, mut len } = planned;
        self.options.faults.panic_if_at(number);
        let Some(segment) = self.segments.iter().find(|segment| start < segment.end()) else {
            unreachable!("a segment stays open until it is durable to its end")
        };
        if self.options.faults.has(Planted::RewriteSyncedBlock)
            && start > segment.identity.base
            && self.ring.read(LogPosition(start.0 - BLOCK as u64), len + BLOCK).is_some()
        {
            start.0 -= BLOCK as u64;
            len += BLOCK;
        }
        let Some(bytes) = self.ring.read(start, len) else {
            unreachable!("what is published and not durable stands in the ring in one piece")
        };
        let mut buffer = self.disk.buffer(len);
        buffer.copy_from_slice(bytes);
        self.counters.writes += 1;
        self.counters.written_bytes += len as u64;
        LogTask(Work::Write {
            number,
            file: Rc::clone(&segment.file),
            buffer,
            offset: segment.offset(start),
            fails: self.options.faults.fails(number),
            early: self.options.faults.has(Planted::AcknowledgeBeforeWrite),
        })
    }

    fn write_returned(&mut self, number: u64, result: std::io::Result<()>, now: Nanos) -> Option<LogPosition> {
        self.reader.gaps().flush_ended();
        let durable = self.flusher.returned(number, result.is_ok());
        if let Err(error) = result {
            self.poison(&format!("a write to the log failed: {error}"));
        }
        let durable = durable?;
        self.ring.set_durable(durable);
        self.marks.durable_moved(now);
        self.counters.durable_moves += 1;
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.end() <= durable) {
            let sealed = self.segments.pop_front();
            // What was given up lies before this run.
            self.indexes.extend(sealed.map(|sealed| SealedSegment::new(&sealed.identity, sealed.end(), &[])));
        }
        Some(durable)
    }

    fn poison(&mut self, reason: &str) {
        self.flusher.poison();
        self.poison_reason.get_or_insert_with(|| reason.to_owned());
    }

    fn next_background(&mut self, now: Nanos) -> Option<LogTask<D>> {
        let current = &self.current().identity;
        let left = current.end() - self.ring.tail();
        self.ahead.press(left);
        let (options, durable, base) = (&self.options, self.ring.durable(), current.end());
        let log = current.log;
        let spare = |begun, made| (files::spare_name(self.epoch, begun), options.spare_segment(made));
        let identity_for = |size| Identity::of_run(options, log, self.epoch, base, size, base, durable);
        if let Some(work) = self.ahead.next_work(&self.disk, now, spare, identity_for) {
            return Some(LogTask(work));
        }
        if self.marks.due().is_some_and(|due| due <= now) {
            if !self.options.faults.has(Planted::ForgetMark) {
                return Some(self.mark_task(false));
            }
            self.marks.begin(durable);
            self.marks.finish(true, now);
        }
        if let Some(work) = self.indexes.next_work(now) {
            return Some(LogTask(Work::Index(work)));
        }
        let scrub = self.scrubber.next_work(&self.indexes, &mut self.counters, now)?;
        Some(LogTask(Work::Scrub(scrub)))
    }

    pub(super) fn mark_task(&mut self, closes: bool) -> LogTask<D> {
        let durable = self.ring.durable();
        let mark = Mark {
            directory: self.options.directory.id,
            shard: self.options.shard,
            epoch: self.epoch,
            sequence: self.marks.begin(durable),
            durable,
            closes,
        };
        if closes {
            self.close = CloseState::Done;
        }
        LogTask(Work::Mark { disk: self.disk.clone(), file: self.mark_file.clone(), mark })
    }

    fn mark_returned(&mut self, result: std::io::Result<Rc<D::File>>, now: Nanos) {
        self.marks.finish(result.is_ok(), now);
        self.counters.marks += u64::from(result.is_ok());
        match result {
            Ok(file) => self.mark_file = Some(file),
            Err(error) if self.close == CloseState::Done => self.close_error = Some(error),
            // A mark may lag: it is tried again.
            Err(_) => {}
        }
    }
}
