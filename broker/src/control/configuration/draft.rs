//! Values on their way from the table to [`Settings`]: each was checked alone, here they are checked together.
//!
//! A draft is no [`Settings`] with holes: in a half-made one the shards could not tell a value that was never settled from one that
//! is. What both have in common is moved over once, field by field, and the compiler sees that none is forgotten.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use peregrine_protocol::entry::entry_len;
use peregrine_protocol::ids::{Epoch, Nanos, ShardId};
use peregrine_protocol::limits::{
    BLOCK, ENTRY_HEADER_LEN, ENTRY_PER_RING, FRAME_MAX_DEFAULT, FRAME_OVERHEAD, MESSAGE_MAX_DEFAULT, RECORD_ALIGN,
    batch_max,
};

use super::quantity::show_size;
use crate::control::logging::LogSettings;
use crate::control::settings::{CheckpointTimes, Flush, GroupTimes, Idle, Settings, TestFault, WithoutTmpfs};
use crate::log::ScrubOptions;
use crate::retaining::RetentionBounds;

/// What the sources said; `None` where the default depends on other values.
#[derive(Clone, Debug)]
pub struct Draft {
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub shards: Option<u16>,
    pub idle: Idle,
    pub adaptive_spin: Duration,
    pub ring_directory: Option<PathBuf>,
    pub without_tmpfs: WithoutTmpfs,
    pub ring_bytes: u64,
    pub segment_bytes: u64,
    pub block_cache: usize,
    pub keep_free: u64,
    pub message_max: Option<u32>,
    pub frame_max: Option<u32>,
    pub flush: Flush,
    pub checkpoint: CheckpointTimes,
    pub retention: RetentionBounds,
    pub scrub: ScrubOptions,
    pub groups: GroupTimes,
    pub log: LogSettings,
    pub accept_loss: bool,
    pub discard_rings: Vec<(ShardId, Epoch)>,
    pub test_faults: Vec<TestFault>,
}

impl Draft {
    /// Before the table's defaults are taken.
    pub fn empty() -> Self {
        Self {
            data: None,
            listen: None,
            shards: None,
            idle: Idle::default(),
            adaptive_spin: Duration::ZERO,
            ring_directory: None,
            without_tmpfs: WithoutTmpfs::default(),
            ring_bytes: 0,
            segment_bytes: 0,
            block_cache: 0,
            keep_free: 0,
            message_max: None,
            frame_max: None,
            flush: Flush { depth: 0, age: Nanos::ZERO, max_bytes: 0, memory_wait: Nanos::ZERO, memory_bytes: 0 },
            retention: RetentionBounds::default(),
            scrub: ScrubOptions::default(),
            checkpoint: CheckpointTimes { bytes: 0, age: Nanos::ZERO },
            groups: GroupTimes { silence: Nanos::ZERO, grace: Nanos::ZERO, drain: Nanos::ZERO },
            log: LogSettings::default(),
            accept_loss: false,
            discard_rings: Vec::new(),
            test_faults: Vec::new(),
        }
    }

    /// The settings, with `shards` as the data directory has it. An error is a sentence that says what to change.
    pub fn settle(self, data: PathBuf, listen: SocketAddr, shards: u16) -> Result<Settings, String> {
        let sizes = Sizes::of(&self)?;
        if let Some((shard, _)) = self.discard_rings.iter().find(|(shard, _)| shard.0 >= shards) {
            return Err(format!("discard_ring names shard {shard}, but there are only {shards}, counted from 0"));
        }
        Ok(Settings {
            data,
            listen,
            shards,
            idle: self.idle,
            adaptive_spin: self.adaptive_spin,
            ring_directory: self.ring_directory,
            without_tmpfs: self.without_tmpfs,
            ring_bytes: self.ring_bytes,
            segment_bytes: self.segment_bytes,
            block_cache: self.block_cache,
            keep_free: self.keep_free,
            message_max: sizes.message_max,
            frame_max: sizes.frame_max,
            batch_max: sizes.batch_max,
            largest_entry: sizes.largest_entry,
            flush: self.flush,
            checkpoint: self.checkpoint,
            retention: self.retention,
            scrub: self.scrub,
            groups: self.groups,
            accept_loss: self.accept_loss,
            discard_rings: self.discard_rings,
            test_faults: self.test_faults,
        })
    }
}

/// The chain of bounds: ring and segment → entry → batch → frame and message.
///
/// ```text
/// largest entry     min(ring / 4, segment - 4 KiB)
/// largest batch     largest entry - 96, a multiple of 8
/// largest frame     largest batch + 256      (a configured one may be smaller and then bounds the batch)
/// largest message   largest batch
/// ```
struct Sizes {
    message_max: u32,
    frame_max: u32,
    batch_max: u32,
    largest_entry: u64,
}

impl Sizes {
    fn of(draft: &Draft) -> Result<Self, String> {
        let entry = (draft.ring_bytes / ENTRY_PER_RING).min(draft.segment_bytes - BLOCK);
        let batch = (entry - ENTRY_HEADER_LEN as u64) / RECORD_ALIGN as u64 * RECORD_ALIGN as u64;
        let batch = u32::try_from(batch).unwrap_or(u32::MAX - FRAME_OVERHEAD);
        let (ring, segment) = (show_size(draft.ring_bytes), show_size(draft.segment_bytes));
        let frame_max = match draft.frame_max {
            Some(frame) if batch_max(frame) > batch => {
                return Err(format!(
                    "frame_max is {}, but a staging ring of {ring} and segments of {segment} take frames of at most {} bytes; \
                     raise ring_size or segment_size, or lower frame_max",
                    show_size(u64::from(frame)),
                    batch + FRAME_OVERHEAD
                ));
            }
            Some(frame) => frame,
            None => FRAME_MAX_DEFAULT.min(batch + FRAME_OVERHEAD),
        };
        let batch_max = batch_max(frame_max);
        let message_max = match draft.message_max {
            Some(message) if message > batch_max => {
                return Err(format!(
                    "message_max is {}, but a staging ring of {ring}, segments of {segment} and frames of {} take messages of \
                     at most {batch_max} bytes; raise ring_size, segment_size or frame_max, or lower message_max",
                    show_size(u64::from(message)),
                    show_size(u64::from(frame_max)),
                ));
            }
            Some(message) => message,
            None => MESSAGE_MAX_DEFAULT.min(batch_max),
        };
        Ok(Self { message_max, frame_max, batch_max, largest_entry: entry_len(batch_max) })
    }
}
