//! Appends: where an entry goes, and its bytes on their way into the ring. `decide`, a reservation and `apply` happen in one
//! turn; a large payload is copied in steps after it, and nothing behind it is published before it is whole.

use peregrine_protocol::entry::{EntryDraft, EntryHeader, EntryKind, PadHeader};
use peregrine_protocol::ids::{DurableLevel, LogPosition, Nanos};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;

use super::{Appended, COPY_STEP, CloseState, LargeAppend, Log, Unpublished, next_block};
use crate::log::disk::{Disk, RingHost};
use crate::log::error::AppendRefused;
use crate::log::placement::{Placement, Surroundings};
use crate::log::task::OpenSegment;

impl<D: Disk, H: RingHost> Log<D, H> {
    /// Appends an entry and publishes it. `payload` has the draft's length and checksum; it should not be longer than
    /// [`COPY_STEP`], or the copy takes too long a turn. A refused append changed nothing.
    pub fn append(&mut self, draft: &EntryDraft, payload: &[u8], now: Nanos) -> Result<Appended, AppendRefused> {
        let (appended, header) = self.reserve(draft, false, now)?;
        self.write_header(&header);
        self.write_payload(&header, 0, payload);
        self.publish();
        Ok(appended)
    }

    /// Whether [`Self::append`], or [`Self::begin_large`], of an entry of so many bytes would find room now.
    pub fn admit(&self, kind: EntryKind, len: u64, large: bool) -> Result<(), AppendRefused> {
        self.find_place(kind, len, large).map(drop)
    }

    /// Reserves the place of a large entry, on a block boundary; [`Self::copy_step`] then fills it.
    pub fn begin_large(&mut self, draft: &EntryDraft, now: Nanos) -> Result<LargeAppend, AppendRefused> {
        let (appended, header) = self.reserve(draft, true, now)?;
        self.large.push_back(Unpublished { start: appended.position, whole: false });
        self.write_header(&header);
        self.seal_unit(next_block(appended.end));
        self.publish();
        Ok(LargeAppend { appended, header, copied: 0 })
    }

    /// Copies the next [`COPY_STEP`] bytes of `payload`, the whole payload of this entry. True when the entry is whole; it
    /// is published at once unless one before it is not.
    pub fn copy_step(&mut self, large: &mut LargeAppend, payload: &[u8]) -> bool {
        assert_eq!(payload.len(), large.header.length as usize, "the payload that the place was reserved for");
        let to = payload.len().min(large.copied + COPY_STEP);
        self.write_payload(&large.header, large.copied, &payload[large.copied..to]);
        large.copied = to;
        if to < payload.len() {
            return false;
        }
        if let Some(entry) = self.large.iter_mut().find(|entry| entry.start == large.appended.position) {
            entry.whole = true;
        }
        while self.large.front().is_some_and(|entry| entry.whole) {
            self.large.pop_front();
        }
        self.publish();
        true
    }

    fn find_place(&self, kind: EntryKind, len: u64, large: bool) -> Result<Placement, AppendRefused> {
        if self.flusher.is_poisoned() {
            return Err(AppendRefused::Poisoned);
        }
        if self.close != CloseState::Open {
            return Err(AppendRefused::Closing);
        }
        if len > self.options.largest_entry {
            return Err(AppendRefused::TooLarge);
        }
        let around = Surroundings {
            tail: self.ring.tail(),
            unit_start: self.flusher.unit_start(),
            unit_bytes: self.unit_bytes,
            ring_bytes: self.ring.size(),
            segment_end: self.current().end(),
            next_segment_end: self.ahead.next().map(OpenSegment::end),
        };
        let Some(placement) = Placement::find(&around, len, large) else {
            let next_is_unfit = self.ahead.next().is_some() && !self.ahead.is_disk_full();
            self.passes_over.set(next_is_unfit);
            return Err(if next_is_unfit { AppendRefused::NoRoom } else { self.ahead.refusal() });
        };
        if kind == EntryKind::Batch {
            self.ahead.admit_batch(placement.rolls)?;
        }
        // With the pad that will fill its last block.
        if !self.ring.has_room_to(next_block(placement.start + len)) {
            return Err(AppendRefused::NoRoom);
        }
        Ok(placement)
    }

    /// Takes the place of an entry: seals, pads and rolls as it demands, moves the tail. Writes no byte of the entry.
    fn reserve(
        &mut self,
        draft: &EntryDraft,
        large: bool,
        now: Nanos,
    ) -> Result<(Appended, EntryHeader), AppendRefused> {
        let placement = match self.find_place(draft.kind, draft.len(), large) {
            Ok(placement) => placement,
            Err(refused) => {
                self.counters.refused_no_room += u64::from(refused == AppendRefused::NoRoom);
                self.counters.refused_disk_full += u64::from(refused == AppendRefused::DiskFull);
                return Err(refused);
            }
        };
        for &end in placement.seals() {
            self.seal_unit(end);
        }
        if placement.rolls {
            self.roll();
        }
        let header = draft.at(placement.start, self.epoch);
        let end = header.end();
        self.ring.reserve(end);
        let synced = draft.flags.level() != Some(DurableLevel::Memory);
        self.flusher.appended(end, synced, now);
        self.counters.entries += 1;
        self.counters.payload_bytes += u64::from(draft.length);
        Ok((Appended { position: placement.start, end }, header))
    }

    fn write_header(&mut self, header: &EntryHeader) {
        let bytes = self.ring.slice_mut(header.position, ENTRY_HEADER_LEN);
        let Some(bytes) = bytes.first_chunk_mut() else { unreachable!("a slice has the length asked for") };
        header.encode(self.seal, bytes);
    }

    /// Copies part of an entry's payload, and behind its last byte the zeros that fill the entry.
    fn write_payload(&mut self, header: &EntryHeader, at: usize, part: &[u8]) {
        let end = at + part.len();
        assert!(end <= header.length as usize, "the payload that the place was reserved for");
        let whole = end == header.length as usize;
        let fill = if whole { (header.len() as usize - ENTRY_HEADER_LEN) - end } else { 0 };
        let bytes = self.ring.slice_mut(header.payload_position() + at as u64, part.len() + fill);
        bytes[..part.len()].copy_from_slice(part);
        bytes[part.len()..].fill(0);
    }

    /// Publishes all that is whole.
    pub(super) fn publish(&mut self) {
        let whole = self.large.front().map_or(self.ring.tail(), |entry| entry.start);
        if whole > self.ring.published() {
            self.ring.publish(whole);
        }
    }

    /// Ends the open flush unit at `end`, with a pad from the tail where that is below. Not published yet.
    pub(super) fn seal_unit(&mut self, end: LogPosition) {
        let tail = self.ring.tail();
        if end > tail {
            let pad = PadHeader::filling(tail, end, self.epoch, self.ring.durable(), self.options.node());
            self.ring.reserve(end);
            // The rest of the header's block goes to the device too; old bytes must not.
            let written = (next_block(tail + 1) - tail).min(end - tail) as usize;
            let bytes = self.ring.slice_mut(tail, written);
            if let Some((header, rest)) = bytes.split_first_chunk_mut() {
                pad.encode(self.seal, header);
                rest.fill(0);
            }
            self.counters.pads += 1;
            self.counters.pad_bytes += end - tail;
        }
        self.flusher.seal(end);
    }

    /// Moves on to the next segment, which cannot hold an entry that waits, so that the one behind it gets made. What is left
    /// of this segment is shorter than half the ring: at most one end of the ring lies in it.
    pub(super) fn pass_over(&mut self) {
        let (end, is_open) = (self.current().end(), self.close == CloseState::Open && !self.is_poisoned());
        if !self.passes_over.get() || !is_open || self.ahead.next().is_none() || !self.ring.has_room_to(end) {
            return;
        }
        self.passes_over.set(false);
        // The open unit may end at the ring's end.
        self.seal_unit(next_block(self.ring.tail()));
        let lap_end = self.ring.lap_end(self.ring.tail());
        if lap_end < end {
            self.seal_unit(lap_end);
        }
        self.seal_unit(end);
        self.roll();
        self.publish();
    }

    fn roll(&mut self) {
        let Some(next) = self.ahead.take_next() else { unreachable!("placed in the next segment because it is ready") };
        assert_eq!(next.identity.base, self.current().end(), "segments of a run follow each other");
        self.segments.push_back(next);
        self.counters.rolls += 1;
    }
}
