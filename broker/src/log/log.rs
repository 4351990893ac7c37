//! A shard's log while it runs: appends go to the staging ring, the flusher carries them to segments, segments are made ahead.
//!
//! ```text
//!  append ──► ring ──► next_task() ─► LogTask ─► run() on the disk ─► Completion ─► complete() ──► Progress
//!            (published)    ▲                                                          │      (durable moved)
//!                           └──────────── next_deadline() ◄────────────────────────────┘
//! ```
//!
//! The shard owns the log, calls [`Log::next_task`] whenever something was appended or completed or a deadline has passed,
//! until it answers `None`, runs each task (at once, side by side), and hands each completion back. The log reads no clock:
//! `now` is the shard's monotonic clock. Nothing on the path of a small append allocates, locks or formats.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use peregrine_protocol::entry::{Entry, EntryDraft, EntryHeader, EntryKind, EntrySeal, PadHeader};
use peregrine_protocol::ids::{DurableLevel, Epoch, LogPosition, Nanos};
use peregrine_protocol::limits::{ENTRY_HEADER_LEN, PAD_HEADER_LEN};

use super::ahead::SegmentsAhead;
use super::counters::LogCounters;
use super::disk::{BLOCK, Disk, RingHost};
use super::error::{AppendRefused, CloseError, ReadError, StartError};
use super::fault::Planted;
use super::files;
use super::flusher::{Decision, Flusher, PlannedWrite};
use super::mark::{Mark, MarkKeeper};
use super::options::LogOptions;
use super::placement::{Placement, Surroundings};
use super::reader::{DiskBytes, LogReader, ReadableSegment};
use super::recovery::{self, Recovered, Replay, StartReport};
use super::ring::Ring;
use super::segment::Identity;
use super::task::{Completion, LogTask, OpenSegment, Outcome, Work};

/// Bytes of a large entry that are copied in one step.
pub const COPY_STEP: usize = 64 << 10;

/// Where an entry was appended. It is whole, and a kill cannot take it back, once [`Log::published`] is at or above `end`
/// (for [`Log::append`], unless a large append before it is still being copied: at once), and survives power loss once
/// [`Log::durable`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: LogPosition,
    pub end: LogPosition,
}

/// An entry whose place is reserved and whose payload is being copied. It must be copied to its end: nothing behind it is
/// published before.
#[derive(Debug)]
#[must_use = "nothing behind it is published until it is copied"]
pub struct LargeAppend {
    pub appended: Appended,
    /// As it stands in the log, for `apply`.
    pub header: EntryHeader,
    copied: usize,
}

/// What a completion changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where durable stands now, if this completion moved it. There is room in the ring again.
    pub durable: Option<LogPosition>,
    /// This completion poisoned the log; [`Log::poison_reason`] says why.
    pub poisoned: bool,
    /// A segment became ready, or a spare: a refused append may pass now.
    pub room: bool,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseState {
    /// [`Log::begin_close`] was not called.
    Open,
    /// There are tasks to run or to wait for.
    Closing,
    /// Everything is durable and the mark that closes the epoch is written, or the log is poisoned or the mark failed: call
    /// [`Log::finish_close`].
    Done,
}

/// A large append that is still being copied, or that others before it hold back.
struct Unpublished {
    start: LogPosition,
    whole: bool,
}

/// A shard's log. See the module.
pub struct Log<D: Disk, H: RingHost> {
    disk: D,
    rings: H,
    options: LogOptions,
    seal: EntrySeal,
    epoch: Epoch,
    unit_bytes: u64,
    ring: Ring<H::Memory>,
    flusher: Flusher,
    /// Those with bytes that are not yet durable; the last takes the appends.
    segments: VecDeque<OpenSegment<D>>,
    ahead: SegmentsAhead<D>,
    marks: MarkKeeper,
    mark_file: Option<Rc<D::File>>,
    reader: LogReader<D>,
    /// In order of position.
    large: VecDeque<Unpublished>,
    /// A write that a test holds back.
    held: Option<(u64, LogTask<D>)>,
    poison_reason: Option<String>,
    /// An entry was refused that the next segment cannot hold either.
    passes_over: Cell<bool>,
    close: CloseState,
    close_error: Option<std::io::Error>,
    counters: LogCounters,
}

impl<D: Disk, H: RingHost> Log<D, H> {
    /// Recovers the shard's log and makes it ready for appends, as DESIGN.md's "Stop and start" says. The caller holds the
    /// data directory's lock. Every entry of the log is handed to `replay`, in order, whatever made it durable: what follows
    /// from it may be used once this returns, and not before.
    pub async fn start(
        disk: D,
        rings: H,
        options: LogOptions,
        replay: &mut dyn Replay,
    ) -> Result<(Self, StartReport), StartError> {
        options.check()?;
        let recovered = recovery::recover(&disk, &rings, &options, replay).await?;
        let Recovered { fresh, ring, mut readable, report } = recovered;
        let start = ring.tail();
        readable.push(readable_segment(&fresh));
        let flush = options.fitted_flush();
        let log = Self {
            seal: options.seal(),
            epoch: fresh.identity.epoch,
            unit_bytes: flush.flush_bytes,
            flusher: Flusher::new(flush, start, options.ring_bytes),
            ring,
            ahead: SegmentsAhead::new(),
            marks: MarkKeeper::new(fresh.identity.durable),
            mark_file: None,
            reader: LogReader::new(disk.clone(), readable),
            segments: VecDeque::from([fresh]),
            large: VecDeque::with_capacity((options.ring_bytes / COPY_STEP as u64) as usize),
            held: None,
            poison_reason: None,
            passes_over: Cell::new(false),
            close: CloseState::Open,
            close_error: None,
            counters: LogCounters::default(),
            disk,
            rings,
            options,
        };
        Ok((log, report))
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What tells this shard's entries from all others.
    pub fn seal(&self) -> EntrySeal {
        self.seal
    }

    /// Everything below is whole in the ring, and a kill cannot take it back (where the ring is a file).
    pub fn published(&self) -> LogPosition {
        self.ring.published()
    }

    /// Everything below is on the device, as both copies in the ring's page say.
    pub fn durable(&self) -> LogPosition {
        self.ring.durable()
    }

    /// The end of what is appended or reserved; the next entry stands here or, behind a pad, higher.
    pub fn tail(&self) -> LogPosition {
        self.ring.tail()
    }

    pub fn counters(&self) -> LogCounters {
        self.counters
    }

    pub fn is_poisoned(&self) -> bool {
        self.flusher.is_poisoned()
    }

    /// Why the log is poisoned, as a sentence.
    pub fn poison_reason(&self) -> Option<&str> {
        self.poison_reason.as_deref()
    }

    /// Whether batches are refused because no further segment can be made.
    pub fn is_disk_full(&self) -> bool {
        self.ahead.is_disk_full()
    }

    /// Appends an entry and publishes it. `payload` has the draft's length and checksum; it should not be longer than
    /// [`COPY_STEP`], or the copy takes too long a turn. A refused append changed nothing.
    pub fn append(&mut self, draft: &EntryDraft, payload: &[u8], now: Nanos) -> Result<Appended, AppendRefused> {
        let (appended, header) = self.reserve(draft, false, now)?;
        self.write_header(&header);
        self.write_payload(&header, 0, payload);
        self.publish();
        Ok(appended)
    }

    /// Whether [`Self::append`] of an entry of this length would find room now. `decide` is followed by a reservation that
    /// must not fail; so this is asked first.
    pub fn admit(&self, draft: &EntryDraft, large: bool) -> Result<(), AppendRefused> {
        self.find_place(draft, large).map(|_| ())
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

    /// Published bytes that still stand in the ring: an entry, or part of one.
    pub fn read_ring(&self, position: LogPosition, len: usize) -> Option<&[u8]> {
        self.ring.read(position, len)
    }

    /// Reads durable bytes, an entry or part of one, from the disk. The future borrows nothing.
    pub fn read_disk(
        &self,
        position: LogPosition,
        len: usize,
    ) -> impl Future<Output = Result<DiskBytes<D>, ReadError>> + use<D, H> {
        self.reader.clone().read(position, len)
    }

    /// A handle for reads from the disk that can outlive a borrow of the log.
    pub fn reader(&self) -> LogReader<D> {
        self.reader.clone()
    }

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
            CloseState::Open => [self.marks.due(), self.ahead.deadline()],
            CloseState::Closing | CloseState::Done => [None, None],
        };
        background.into_iter().chain([flush]).flatten().min()
    }

    /// Takes in what a task came to.
    pub fn complete(&mut self, completion: Completion<D>, now: Nanos) -> Progress {
        let was_poisoned = self.is_poisoned();
        let mut progress = Progress::default();
        match completion.0 {
            Outcome::Written { number, result } => progress.durable = self.write_returned(number, result, now),
            Outcome::SpareMade(result) => {
                self.ahead.spare_made(result, now, &mut self.counters);
                progress.room = true;
            }
            Outcome::Named(result) => {
                progress.room = true;
                match result {
                    Ok(segment) => {
                        // All that a roll needs is allocated here: it happens in the middle of an append.
                        self.segments.reserve(1);
                        self.reader.push(readable_segment(&segment));
                        self.ahead.named(Some(segment));
                    }
                    Err(error) => {
                        self.ahead.named(None);
                        self.poison(&format!("the next segment could not be put in place: {error}"));
                    }
                }
            }
            Outcome::Marked(result) => self.mark_returned(result, now),
        }
        progress.poisoned = self.is_poisoned() && !was_poisoned;
        progress
    }

    /// Begins a clean stop: appends are refused from now on, everything published is flushed, and then the mark that closes
    /// the epoch is written. Go on running tasks until [`Self::close_state`] is `Done`. Large appends must be copied to
    /// their ends.
    pub fn begin_close(&mut self) {
        if self.close == CloseState::Open {
            self.close = CloseState::Closing;
            self.flusher.drain();
            self.ahead.stop();
        }
    }

    /// `Done` is reported only when no task is in flight.
    pub fn close_state(&self) -> CloseState {
        let idle = self.flusher.outstanding() == 0 && !self.ahead.is_busy() && !self.marks.is_in_flight();
        match self.close {
            CloseState::Closing if self.is_poisoned() && idle => CloseState::Done,
            CloseState::Done if !idle => CloseState::Closing,
            state => state,
        }
    }

    /// Ends a stop: unlinks the ring after a clean one; leaves it, and says what stands only in it, otherwise.
    pub fn finish_close(mut self) -> Result<(), CloseError> {
        let shard = self.options.shard;
        if self.is_poisoned() {
            let ring = self.options.ring.take().unwrap_or_else(|| "in anonymous memory".to_owned());
            return Err(CloseError::Poisoned { shard, messages: self.messages_only_in_ring(), ring });
        }
        if let Some(source) = self.close_error {
            return Err(CloseError::Io { shard, doing: "write the mark that closes the log", source });
        }
        assert!(self.close == CloseState::Done, "a stop is finished when it is done");
        drop(self.ring);
        match self.options.ring {
            Some(path) => self.rings.remove(&path).map_err(|source| CloseError::Io {
                shard,
                doing: "unlink the staging ring",
                source,
            }),
            None => Ok(()),
        }
    }

    /// Messages that are published and not durable.
    pub fn messages_only_in_ring(&self) -> u64 {
        let (mut at, end, mut messages) = (self.ring.durable(), self.ring.published(), 0);
        while at < end {
            let header = self.ring.read(at, ENTRY_HEADER_LEN).or_else(|| self.ring.read(at, PAD_HEADER_LEN));
            match header.map(|bytes| Entry::decode(bytes, self.seal)) {
                Some(Ok(entry)) => {
                    at = entry.end();
                    if let Entry::Full(header) = entry {
                        messages += u64::from(header.record_count);
                    }
                }
                _ => break,
            }
        }
        messages
    }

    fn find_place(&self, draft: &EntryDraft, large: bool) -> Result<Placement, AppendRefused> {
        if self.flusher.is_poisoned() {
            return Err(AppendRefused::Poisoned);
        }
        if self.close != CloseState::Open {
            return Err(AppendRefused::Closing);
        }
        let len = draft.len();
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
        if draft.kind == EntryKind::Batch {
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
        let placement = match self.find_place(draft, large) {
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
    fn publish(&mut self) {
        let whole = self.large.front().map_or(self.ring.tail(), |entry| entry.start);
        if whole > self.ring.published() {
            self.ring.publish(whole);
        }
    }

    /// Ends the open flush unit at `end`, with a pad from the tail where that is below. Not published yet.
    fn seal_unit(&mut self, end: LogPosition) {
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

    /// The segment that takes the appends.
    fn current(&self) -> &OpenSegment<D> {
        let Some(current) = self.segments.back() else { unreachable!("the last segment is never dropped") };
        current
    }

    /// Moves on to the next segment, which cannot hold an entry that waits, so that the one behind it gets made. What is left
    /// of this segment is shorter than half the ring: at most one end of the ring lies in it.
    fn pass_over(&mut self) {
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

    fn next_write(&mut self, now: Nanos) -> Option<LogTask<D>> {
        if let Some((_, task)) = self.held.take_if(|(number, _)| !self.options.faults.is_held(*number)) {
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
                        return Some(task);
                    }
                    self.held = Some((planned.number, task));
                }
            }
        }
    }

    fn write_task(&mut self, planned: PlannedWrite) -> LogTask<D> {
        let PlannedWrite { number, mut start, mut len } = planned;
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
        let durable = self.flusher.returned(number, result.is_ok());
        if let Err(error) = result {
            self.poison(&format!("a write to the log failed: {error}"));
        }
        let durable = durable?;
        self.ring.set_durable(durable);
        self.marks.durable_moved(now);
        self.counters.durable_moves += 1;
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.end() <= durable) {
            self.segments.pop_front();
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
        self.ahead.press(left < current.size / 2);
        let (options, durable, base) = (&self.options, self.ring.durable(), current.end());
        let spare = |begun, made| (files::spare_name(self.epoch, begun), options.spare_segment(made));
        let identity_for = |size| Identity::of_run(options, self.epoch, base, size, base, durable);
        if let Some(work) = self.ahead.next_work(&self.disk, now, spare, identity_for) {
            return Some(LogTask(work));
        }
        if self.marks.due().is_some_and(|due| due <= now) { Some(self.mark_task(false)) } else { None }
    }

    /// The last task of a stop, once everything is durable and nothing is in flight.
    fn closing_mark(&mut self) -> Option<LogTask<D>> {
        let flushed = self.ring.durable() == self.ring.tail() && self.flusher.outstanding() == 0;
        if flushed && !self.ahead.is_busy() && !self.marks.is_in_flight() { Some(self.mark_task(true)) } else { None }
    }

    fn mark_task(&mut self, closes: bool) -> LogTask<D> {
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

fn readable_segment<D: Disk>(segment: &OpenSegment<D>) -> ReadableSegment<D> {
    let identity = &segment.identity;
    let name = identity.name().to_string();
    ReadableSegment { name, base: identity.base, end: identity.end(), file: Some(Rc::clone(&segment.file)) }
}

fn next_block(position: LogPosition) -> LogPosition {
    LogPosition(position.0.next_multiple_of(BLOCK as u64))
}
