//! Decides what is written to the device and when, and how far the log is durable. It does no I/O and reads no clock: the log
//! asks it, the shard carries out the writes.
//!
//! ```text
//!        durable                                                   tail
//!  ─ done ──┤ write │ write │ write ┤ sealed unit │ sealed │ open unit ┤
//!           └─ in flight, in order ─┘ └──────── waiting ───────────────┘
//! ```
//!
//! A *flush unit* ends where an entry ends, at a block boundary (a pad sees to that), never crosses a segment's or the ring's
//! end, and is written by one write or, when one entry alone is large, by several. Durable moves only from unit end to unit
//! end, along the contiguous prefix of writes that returned: a cut never stands inside an entry, and a later write that
//! returns first releases nothing. The first failure poisons the flusher: it issues nothing more, durable stays where it is,
//! and writes that return afterwards no longer count.

use std::collections::VecDeque;

use peregrine_protocol::ids::{LogPosition, Nanos};
use peregrine_protocol::limits::BLOCK;

use super::options::FlushOptions;

/// A write that the flusher wants carried out: the ring's bytes from `start`, to the same position of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedWrite {
    /// Counts the writes of a run from 1.
    pub number: u64,
    pub start: LogPosition,
    /// A multiple of the block.
    pub len: usize,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// Fill the open unit's last block with a pad (none if it is full), call [`Flusher::seal`] and ask again.
    Seal,
    /// Issue this write; it counts as in flight from now on.
    Write(PlannedWrite),
}

/// A sealed flush unit of which some is still to be issued.
#[derive(Clone, Copy, Debug)]
struct Unit {
    issued: LogPosition,
    /// Where its writes end: before `end` where a large pad ends it, of which only the header's block is written.
    written_end: LogPosition,
    end: LogPosition,
}

/// The unit that appends still extend: from `start` to the tail.
#[derive(Clone, Copy, Debug)]
struct OpenUnit {
    start: LogPosition,
    end: LogPosition,
    /// Whether anything in it asks for more than `memory`.
    synced: bool,
    /// When its first entry was appended.
    since: Nanos,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u64,
    returned: bool,
    /// The unit's end, where this is its last write.
    unit_end: Option<LogPosition>,
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct Flusher {
    options: FlushOptions,
    sealed: VecDeque<Unit>,
    open: OpenUnit,
    in_flight: VecDeque<InFlight>,
    /// Writes in `in_flight` that have not returned: what the depth bounds.
    outstanding: usize,
    next_number: u64,
    durable: LogPosition,
    poisoned: bool,
    /// Nothing more will be appended: write what there is at once.
    draining: bool,
}

impl Flusher {
    /// A flusher for a log whose next entry stands at `start`, with a ring of `ring_bytes`.
    pub fn new(options: FlushOptions, start: LogPosition, ring_bytes: u64) -> Self {
        // Two neighbouring units that the flush size sealed are together longer than it; the ring's and segments' ends seal
        // a few more. The queues never grow on a message's path.
        let units = (2 * ring_bytes / options.flush_bytes + 64) as usize;
        Self {
            options,
            sealed: VecDeque::with_capacity(units),
            open: OpenUnit { start, end: start, synced: false, since: Nanos::ZERO },
            in_flight: VecDeque::with_capacity(units),
            outstanding: 0,
            next_number: 1,
            durable: start,
            poisoned: false,
            draining: false,
        }
    }

    /// Where the open unit starts; the tail, if it is empty.
    pub fn unit_start(&self) -> LogPosition {
        self.open.start
    }

    #[cfg(test)]
    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Writes that were issued and have not returned.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// An entry was appended to the open unit and ends at `end`.
    pub fn appended(&mut self, end: LogPosition, synced: bool, now: Nanos) {
        debug_assert!(end > self.open.end, "entries follow each other");
        if self.open.end == self.open.start {
            self.open.since = now;
        }
        self.open.end = end;
        self.open.synced |= synced;
    }

    /// Ends the open unit at `end`, a block boundary: behind its last entry, or behind the pad that fills it. An empty unit is
    /// none.
    pub fn seal(&mut self, end: LogPosition) {
        assert!(end >= self.open.end && end.0.is_multiple_of(BLOCK), "a flush unit ends at a block boundary");
        if end > self.open.start {
            // With the block that holds the pad's header; where there is no pad, the last block is an entry's.
            let written_end = LogPosition((self.open.end.0 / BLOCK + 1) * BLOCK).min(end);
            self.sealed.push_back(Unit { issued: self.open.start, written_end, end });
        }
        self.open = OpenUnit { start: end, end, synced: false, since: Nanos::ZERO };
    }

    /// What to do now that everything below `published` is whole.
    pub fn decide(&mut self, published: LogPosition, now: Nanos) -> Decision {
        if self.poisoned || self.outstanding >= self.options.depth {
            return Decision::Nothing;
        }
        if let Some(unit) = self.sealed.front() {
            return if unit.end <= published { Decision::Write(self.issue()) } else { Decision::Nothing };
        }
        match self.open_due(published) {
            Some(due) if due <= now => Decision::Seal,
            _ => Decision::Nothing,
        }
    }

    /// When [`Self::decide`] will want something although nothing else happens until then.
    pub fn deadline(&self, published: LogPosition) -> Option<Nanos> {
        if self.poisoned || self.outstanding >= self.options.depth {
            return None;
        }
        match self.sealed.front() {
            Some(unit) => (unit.end <= published).then_some(Nanos::ZERO),
            None => self.open_due(published),
        }
    }

    /// A write returned. The position that durable moved to, if it moved.
    pub fn returned(&mut self, number: u64, written: bool) -> Option<LogPosition> {
        let first = self.in_flight.front()?.number;
        let write = self.in_flight.get_mut(number.checked_sub(first)? as usize)?;
        if !std::mem::replace(&mut write.returned, true) {
            self.outstanding -= 1;
        }
        self.poisoned |= !written;
        if self.poisoned {
            return None;
        }
        let before = self.durable;
        while let Some(write) = self.in_flight.front()
            && write.returned
        {
            self.durable = write.unit_end.unwrap_or(self.durable);
            self.in_flight.pop_front();
        }
        (self.durable > before).then_some(self.durable)
    }

    /// Nothing is issued any more and durable stays.
    pub fn poison(&mut self) {
        self.poisoned = true;
    }

    /// From now on nothing waits for company.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// When the open unit is to be written, given a free slot; `None` while it is empty or not whole.
    fn open_due(&self, published: LogPosition) -> Option<Nanos> {
        let open = &self.open;
        if open.end == open.start || published < open.end {
            return None;
        }
        let bytes = open.end - open.start;
        let wait = if self.draining {
            0
        } else if !open.synced {
            if bytes >= self.options.memory_bytes { 0 } else { self.options.memory_wait.0 }
        } else if self.outstanding == 0 || bytes >= BLOCK {
            0
        } else {
            self.options.age.0
        };
        Some(open.since + wait)
    }

    /// The next write of the first sealed unit.
    fn issue(&mut self) -> PlannedWrite {
        let Some(unit) = self.sealed.front_mut() else { unreachable!("asked only while a unit is sealed") };
        let start = unit.issued;
        let len = (unit.written_end - start).min(self.options.flush_bytes);
        unit.issued = start + len;
        let unit_end = (unit.issued == unit.written_end).then_some(unit.end);
        if unit_end.is_some() {
            self.sealed.pop_front();
        }
        let number = self.next_number;
        self.next_number += 1;
        self.outstanding += 1;
        self.in_flight.push_back(InFlight { number, returned: false, unit_end });
        PlannedWrite { number, start, len: len as usize }
    }
}

#[cfg(test)]
mod tests;
