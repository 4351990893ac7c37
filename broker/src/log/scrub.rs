//! The background scrub: every sealed segment is read from end to end and its index compared with it, one after the other and at a
//! bounded rate, so that damage is told of when it comes, and not when somebody asks for what it took.
//!
//! ```text
//!   rests ─round is due─► oldest segment that has an index ─► next one ─► … ─► there is none: rests for `every`
//!                           ├ index is bad ─► made again, as one that a look-up finds to be bad
//!                           └ entry is bad ─► told and counted; whoever reads it is refused, as ever
//! ```
//!
//! Of a segment it tells the first bad entry; `peregrine-broker check` tells of all. It does not read what the making of an index is
//! still to read (the segments without one, and the one that takes the appends), nor checkpoints, which are made anew all the time.

use peregrine_protocol::ids::{LogPosition, Nanos, ShardId};

use super::counters::LogCounters;
use super::disk::Disk;
use super::index::{IndexError, LogIndexes, Reading, SealedSegment, Stop, compare_index};
use super::options::{LogOptions, ScrubOptions};
use crate::limits::SCRUB_FIRST;

/// Goes round a log's sealed segments.
#[derive(Debug)]
pub(super) struct Scrubber {
    shard: ShardId,
    options: ScrubOptions,
    /// When the next segment may be read; `None` before the log was first asked what is to be done.
    due: Option<Nanos>,
    /// Base of the last one of this round.
    last: Option<LogPosition>,
    is_busy: bool,
    stop: Stop,
}

/// The reading of one segment.
pub(super) struct ScrubWork<D: Disk> {
    disk: D,
    options: LogOptions,
    segment: SealedSegment,
    rate: u64,
    stop: Stop,
}

/// What that came to.
pub(super) struct Scrubbed {
    segment: SealedSegment,
    found: Result<(), IndexError>,
}

impl<D: Disk> ScrubWork<D> {
    /// `None` where it was stopped.
    pub async fn run(self) -> Option<Scrubbed> {
        let Self { disk, options, segment, rate, stop } = self;
        let reading = Reading::Paced { rate };
        let found = stop.or_given_up(compare_index(&disk, &options, &segment, reading, stop.clone())).await?;
        Some(Scrubbed { segment, found })
    }
}

impl Scrubber {
    pub fn new(shard: ShardId, options: ScrubOptions) -> Self {
        Self { shard, options, due: None, last: None, is_busy: false, stop: Stop::default() }
    }

    /// When to call [`Self::next_work`] again though nothing happens.
    pub fn deadline(&self) -> Option<Nanos> {
        let is_waiting = self.options.rate.is_some() && !self.is_busy;
        is_waiting.then(|| self.due.unwrap_or(Nanos::ZERO))
    }

    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Whether the segment at `base` is being read.
    pub fn is_reading(&self, base: LogPosition) -> bool {
        self.is_busy && self.last == Some(base)
    }

    /// What is being read is given up.
    pub fn stop(&self) {
        self.stop.ask();
    }

    /// The next segment of the round, if one is due.
    pub fn next_work<D: Disk>(
        &mut self,
        indexes: &LogIndexes<D>,
        counters: &mut LogCounters,
        now: Nanos,
    ) -> Option<ScrubWork<D>> {
        let rate = self.options.rate?;
        let first = self.options.every.min(SCRUB_FIRST);
        if self.is_busy || now < *self.due.get_or_insert(now + first.0) {
            return None;
        }
        let Some((disk, options, segment)) = indexes.indexed_behind(self.last) else {
            counters.scrub_rounds += u64::from(self.last.take().is_some());
            self.due = Some(now + self.options.every.0);
            return None;
        };
        self.last = Some(segment.name().base);
        self.is_busy = true;
        Some(ScrubWork { disk, options, segment, rate, stop: self.stop.clone() })
    }

    /// Takes in what the reading of a segment came to; `None` where it was given up.
    pub fn returned<D: Disk>(
        &mut self,
        scrubbed: Option<Scrubbed>,
        indexes: &LogIndexes<D>,
        counters: &mut LogCounters,
    ) {
        self.is_busy = false;
        let Some(Scrubbed { segment, found }) = scrubbed else { return };
        counters.scrubbed_segments += 1;
        counters.scrubbed_bytes += segment.bytes();
        let (base, shard) = (segment.name().base, self.shard.0);
        match found {
            Ok(()) => {}
            // It retired meanwhile, or its index is being made again anyway.
            Err(_) if !indexes.is_made(base) => {}
            Err(error) if error.is_bad_index() => {
                tracing::warn!(shard, %error, "the scrub found an index that is bad: it is made again");
                counters.scrub_bad_indexes += 1;
                indexes.found_bad(base);
            }
            Err(error) if error.may_pass() => {
                tracing::error!(shard, %error, "the scrub could not read a segment: it is tried again in the next round");
                counters.scrub_unread += 1;
            }
            Err(error) => {
                tracing::error!(
                    shard,
                    %error,
                    "the scrub found a segment that is damaged: `peregrine-broker check` tells all that it took"
                );
                counters.scrub_damaged += 1;
            }
        }
    }
}
