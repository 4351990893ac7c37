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

mod append;
mod checkpoint;
mod retention;
mod stop;
mod work;

use retention::Front;
pub use retention::OldestSegment;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use peregrine_protocol::entry::{EntryHeader, EntrySeal};
use peregrine_protocol::ids::{Epoch, LogPosition};

use crate::log::ahead::SegmentsAhead;
use crate::log::checkpoint::CheckpointKeeper;
use crate::log::counters::LogCounters;
use crate::log::disk::{BLOCK, Disk, RingHost};
use crate::log::error::{ReadError, StartError};
use crate::log::fault::Planted;
use crate::log::flusher::Flusher;
use crate::log::index::LogIndexes;
use crate::log::mark::MarkKeeper;
use crate::log::options::LogOptions;
use crate::log::reader::{DiskBytes, LogReader, ReadableSegment};
use crate::log::recovery::{self, CheckReport, Recovered, Replay, StartReport};
use crate::log::ring::Ring;
use crate::log::scrub::Scrubber;
use crate::log::task::{LogTask, OpenSegment};

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
    pub(crate) copied: usize,
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
    /// This completion told that no segment can be made for batches, or that one can be again.
    pub disk_full: Option<bool>,
    /// An index was made, or not: see [`LogIndexes::indexed_to`] and [`LogIndexes::changes`].
    pub indexed: bool,
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
    checkpoints: CheckpointKeeper,
    mark_file: Option<Rc<D::File>>,
    reader: LogReader<D>,
    front: Front,
    indexes: LogIndexes<D>,
    scrubber: Scrubber,
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
        let Recovered { fresh, ring, mut readable, sealed, checkpoints, report } = recovered;
        let start = ring.tail();
        readable.push(readable_segment(&fresh));
        let flush = options.fitted_flush();
        let log = Self {
            seal: options.seal(),
            epoch: fresh.identity.epoch,
            unit_bytes: flush.flush_bytes,
            flusher: Flusher::new(flush, start, options.ring_bytes),
            ring,
            ahead: SegmentsAhead::new(&options),
            marks: MarkKeeper::new(fresh.identity.durable),
            checkpoints: CheckpointKeeper::new(options.checkpoint, checkpoints, start),
            mark_file: None,
            reader: LogReader::new(disk.clone(), readable, options.block_cache),
            front: Front::default(),
            indexes: LogIndexes::new(disk.clone(), options.clone(), sealed),
            scrubber: Scrubber::new(options.shard, options.scrub),
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

    /// Verifies a whole log that no process has open, and changes nothing. `progress` is told how many bytes were read of how many.
    /// The caller holds the data directory's lock.
    pub async fn check(
        disk: D,
        rings: H,
        options: LogOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport, StartError> {
        options.check()?;
        recovery::check(&disk, &rings, &options, progress).await
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

    /// As far as a mark, or this run's own segment, says that it was durable.
    pub fn marked(&self) -> LogPosition {
        self.marks.marked()
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

    /// Whether batches are refused, where they would move on to another segment, because none can be made for them.
    pub fn is_disk_full(&self) -> bool {
        self.ahead.is_disk_full()
    }

    /// Whether that defect was planted by the simulator.
    pub fn has_planted(&self, planted: Planted) -> bool {
        self.options.faults.has(planted)
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

    /// A handle for look-ups in the indexes of sealed segments.
    pub fn indexes(&self) -> LogIndexes<D> {
        self.indexes.clone()
    }

    /// The segment that takes the appends.
    fn current(&self) -> &OpenSegment<D> {
        let Some(current) = self.segments.back() else { unreachable!("the last segment is never dropped") };
        current
    }
}

fn readable_segment<D: Disk>(segment: &OpenSegment<D>) -> ReadableSegment<D> {
    let identity = &segment.identity;
    ReadableSegment {
        name: identity.name(),
        base: identity.base,
        end: identity.end(),
        file: Some(Rc::clone(&segment.file)),
    }
}

fn next_block(position: LogPosition) -> LogPosition {
    LogPosition(position.0.next_multiple_of(BLOCK as u64))
}
