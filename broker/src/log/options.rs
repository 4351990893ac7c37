//! What a shard's log is told at its start, with the arithmetic of its bounds. The broker fills this from its table of
//! configuration, the simulator from its seed; nothing here is read from the environment.

use peregrine_protocol::entry::{DirectoryId, DirectorySecret, EntrySeal};
use peregrine_protocol::ids::{Epoch, Nanos, ShardId};
use peregrine_protocol::limits::{BLOCK, ENTRY_PER_RING, RING_MAX, RING_MIN};

use super::fault::Faults;
use super::segment::RING_PATH_MAX;
use crate::limits::BLOCK_CACHE;

/// The data directory that the shard belongs to. Its id and secret stand in every segment; device and inode tell a directory
/// from a copy of it, which has the same id and so the same ring file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    pub id: DirectoryId,
    pub secret: DirectorySecret,
    pub device: u64,
    pub inode: u64,
}

/// The boot of the machine (`/proc/sys/kernel/random/boot_id`): another one means that every tmpfs is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub u128);

/// One run of the broker, drawn at random at its start. A log is known by the id of its first run. Both stand in every segment
/// and in the ring's page, since epochs alone do not tell two logs apart that had the same place one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(pub u64);

/// When the flusher writes. The defaults come from measurements of group commit on io_uring; ARCHITECTURE.md names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushOptions {
    /// Writes in flight at most. 2 to 4 cost a few percent of latency for two to three times the throughput.
    pub depth: usize,
    /// A second write opens early when the oldest waiting byte is this old.
    pub age: Nanos,
    /// How long traffic that asks only for `memory` may wait for its flush, and
    pub memory_wait: Nanos,
    /// how many bytes of it.
    pub memory_bytes: u64,
    /// A flush is sealed before it grows beyond this, unless one entry alone does; no write is longer. A multiple of the
    /// block, at most 1 MiB: larger direct I/O has hung on some kernels.
    pub flush_bytes: u64,
}

impl Default for FlushOptions {
    fn default() -> Self {
        Self {
            depth: 2,
            age: Nanos::from_micros(50),
            memory_wait: Nanos::from_millis(1),
            memory_bytes: 256 << 10,
            flush_bytes: 256 << 10,
        }
    }
}

/// When the state of the log's reader is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// After so many bytes of log, which is what a start reads back at most, or
    pub bytes: u64,
    /// after so long, if anything came at all.
    pub age: Nanos,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self { bytes: 256 << 20, age: Nanos::from_secs(30) }
    }
}

/// How what is at rest is verified in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes that it reads in a second; `None`: it does not run.
    pub rate: Option<u64>,
    /// From the end of a round to the next. The first begins so long after a start, or [`crate::limits::SCRUB_FIRST`] if that is less.
    pub every: Nanos,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self { rate: None, every: Nanos::from_secs(7 * 24 * 3600) }
    }
}

/// All that a start of a shard's log needs to know.
#[derive(Clone, Debug)]
pub struct LogOptions {
    pub shard: ShardId,
    pub directory: Directory,
    pub boot: BootId,
    pub run: RunId,
    /// Path of the ring file on a tmpfs, named `{directory id}-{shard}`; `None` keeps the ring in anonymous memory, which no
    /// restart sees (`memory` must then be refused or raised to `synced` by the shard).
    pub ring: Option<String>,
    /// Bytes of the staging ring: a power of two from 1 MiB to 1 GiB.
    pub ring_bytes: u64,
    /// The size that segments grow to, a multiple of the block.
    pub segment_bytes: u64,
    /// The largest entry that will be appended, header included ([`peregrine_protocol::entry::entry_len`] of the largest
    /// batch). At most a quarter of the ring and a segment less its identity block.
    pub largest_entry: u64,
    /// Bytes that the block cache keeps of what was read from the disk.
    pub block_cache: usize,
    /// What segments leave free on the file system. Batches get none where that would not be left; what else must go on takes half
    /// of it, and the other half is for checkpoints, indexes and the next start.
    pub keep_free: u64,
    pub flush: FlushOptions,
    pub checkpoint: CheckpointOptions,
    pub scrub: ScrubOptions,
    pub smallest: Smallest,
    /// `--accept-loss`: go on behind damage, naming what was given up in the log.
    pub accept_loss: bool,
    /// `--discard-ring SHARD:EPOCH`: give up the ring of that epoch, and no other.
    pub discard_ring: Option<Epoch>,
    pub faults: Faults,
}

/// The smallest ring and segment that the options may name. The simulator alone sets others, so that a few entries make its
/// log roll and its ring wrap; nothing on disk depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smallest {
    pub ring: u64,
    /// What a first start waits for.
    pub segment: u64,
}

impl Default for Smallest {
    fn default() -> Self {
        Self { ring: RING_MIN, segment: 4 << 20 }
    }
}

/// Segments grow by this factor while spares are made. A spare is zeroed while the two before it are filled: at 2 that takes 1.3
/// times the speed of the appends, at 4 it takes 3.2 times, and where the disk did not give that, appends stood still for seconds.
const SEGMENT_GROWTH: u64 = 2;

impl LogOptions {
    /// The defaults of DESIGN.md: a ring of 64 MiB, segments up to 256 MiB, entries up to a quarter of the ring.
    pub fn new(shard: ShardId, directory: Directory, boot: BootId, run: RunId, ring: Option<String>) -> Self {
        Self {
            shard,
            directory,
            boot,
            run,
            ring,
            ring_bytes: 64 << 20,
            segment_bytes: 256 << 20,
            largest_entry: (64 << 20) / ENTRY_PER_RING,
            block_cache: BLOCK_CACHE,
            keep_free: 0,
            flush: FlushOptions::default(),
            checkpoint: CheckpointOptions::default(),
            scrub: ScrubOptions::default(),
            smallest: Smallest::default(),
            accept_loss: false,
            discard_ring: None,
            faults: Faults::default(),
        }
    }

    /// The largest entry that a ring and segments of these sizes take.
    pub fn entry_bound(ring_bytes: u64, segment_bytes: u64) -> u64 {
        (ring_bytes / ENTRY_PER_RING).min(segment_bytes.saturating_sub(BLOCK))
    }

    pub fn check(&self) -> Result<(), OptionsError> {
        if !self.ring_bytes.is_power_of_two() || !(self.smallest.ring..=RING_MAX).contains(&self.ring_bytes) {
            return Err(OptionsError::Ring(self.ring_bytes));
        }
        if self.segment_bytes < self.smallest.segment || !self.segment_bytes.is_multiple_of(BLOCK) {
            return Err(OptionsError::Segment(self.segment_bytes));
        }
        if self.ring.as_ref().is_some_and(|path| path.is_empty() || path.len() > RING_PATH_MAX) {
            return Err(OptionsError::RingPath);
        }
        let bound = Self::entry_bound(self.ring_bytes, self.segment_bytes);
        if self.largest_entry > bound {
            return Err(OptionsError::Entry { largest: self.largest_entry, bound });
        }
        let flush = &self.flush;
        if flush.depth == 0
            || !flush.flush_bytes.is_multiple_of(BLOCK)
            || !(BLOCK..=1 << 20).contains(&flush.flush_bytes)
        {
            return Err(OptionsError::Flush);
        }
        Ok(())
    }

    pub fn seal(&self) -> EntrySeal {
        EntrySeal::new(&self.directory.secret, self.shard)
    }

    /// Who trusts the durable positions in this node's pads. Without a cluster a node is its data directory.
    pub(super) fn node(&self) -> u64 {
        self.directory.id.0 as u64
    }

    /// File size of the segment that a start makes: 4 MiB, or what the largest entry needs, beside `content` bytes that it
    /// must hold already.
    pub(super) fn first_segment(&self, content: u64) -> u64 {
        let smallest = self.smallest.segment;
        let least =
            (self.largest_entry + BLOCK).next_multiple_of(smallest.min(1 << 20)).clamp(smallest, self.segment_bytes);
        (least + content).next_multiple_of(BLOCK)
    }

    /// File size of the n-th segment made ahead in this run (from 0).
    pub(super) fn spare_segment(&self, n: u32) -> u64 {
        let grown = SEGMENT_GROWTH.checked_pow(n + 1).and_then(|factor| self.first_segment(0).checked_mul(factor));
        grown.unwrap_or(u64::MAX).min(self.segment_bytes)
    }

    /// The bounds of the flusher that fit the ring: several flushes must fit in the smallest.
    pub(super) fn fitted_flush(&self) -> FlushOptions {
        let part = (self.ring_bytes / 8).next_multiple_of(BLOCK);
        FlushOptions {
            flush_bytes: self.flush.flush_bytes.min(part),
            memory_bytes: self.flush.memory_bytes.min(part),
            ..self.flush
        }
    }
}

/// Why a log cannot work with these options; a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("a staging ring of {0} bytes: it must be a power of two from 1 MiB to 1 GiB")]
    Ring(u64),
    #[error("the path of the staging ring must have 1 to {RING_PATH_MAX} bytes: it stands in each segment")]
    RingPath,
    #[error("segments of {0} bytes: the size must be a multiple of 4096 and at least 4 MiB")]
    Segment(u64),
    #[error(
        "an entry may have {largest} bytes, but ring and segments take at most {bound}; lower the message limit or enlarge them"
    )]
    Entry { largest: u64, bound: u64 },
    #[error("the flush depth must be at least 1, the flush size a multiple of 4096 up to 1 MiB")]
    Flush,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_grow_to_the_configured_size() {
        let directory = Directory { id: DirectoryId(1), secret: DirectorySecret([2; 16]), device: 3, inode: 4 };
        let mut options = LogOptions::new(ShardId(0), directory, BootId(5), RunId(6), None);
        options.largest_entry = 1 << 20;
        assert_eq!(options.check(), Ok(()));
        assert_eq!(options.first_segment(0), 4 << 20);
        let sizes: Vec<_> = (0..5).map(|n| options.spare_segment(n) >> 20).collect();
        assert_eq!(sizes, [8, 16, 32, 64, 128]);
        assert_eq!((options.spare_segment(5) >> 20, options.spare_segment(60) >> 20), (256, 256));
        options.segment_bytes = 4 << 20;
        assert_eq!((options.first_segment(0), options.spare_segment(0)), (4 << 20, 4 << 20));
        options.largest_entry = 16 << 20;
        assert_eq!(options.check(), Err(OptionsError::Entry { largest: 16 << 20, bound: (4 << 20) - 4096 }));
        options.ring_bytes = 3 << 20;
        assert_eq!(options.check(), Err(OptionsError::Ring(3 << 20)));
    }
}
