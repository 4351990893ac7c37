//! How an index can fail: to be made, because of its segment or the disk, and to be read, because it is no good.

use std::io;

use peregrine_protocol::ids::LogPosition;

use crate::log::damage::Extent;
use crate::log::segment::{IdentityError, SegmentName};
use crate::log::window::BadEntry;

/// Why there is no index, or no answer from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    #[error("cannot {doing} {file}: {source}")]
    Io { doing: &'static str, file: String, source: io::Error },
    /// The segment's file is none, or not this shard's.
    #[error("segment {segment}: {reason}")]
    Segment { segment: SegmentName, reason: IdentityError },
    /// What the log holds there is damage, unless it was given up.
    #[error("segment {segment}, position {position}: {reason}")]
    Entry { segment: SegmentName, position: LogPosition, reason: BadEntry },
    /// A sound entry contradicts those before it.
    #[error("segment {segment}, position {position}: {what}")]
    Disorder { segment: SegmentName, position: LogPosition, what: &'static str },
    /// The segment does not end there, or is larger than an index can say.
    #[error("segment {segment} cannot be indexed up to position {end}")]
    End { segment: SegmentName, end: LogPosition },
    /// What is asked for stood in what the index was made around.
    #[error("segment {segment}: positions {extent} are damaged")]
    Damaged { segment: SegmentName, extent: Extent },
    /// See [`Self::is_bad_index`].
    #[error("the index of segment {segment} cannot be used: {reason}")]
    Bad { segment: SegmentName, reason: BadIndex },
}

impl IndexError {
    /// Whether the index file is at fault: unlink it and have it made again. All that it says stands in its segment.
    pub fn is_bad_index(&self) -> bool {
        matches!(self, Self::Bad { .. })
    }

    /// Whether the segment is at fault, so that an index can be made around what is: see [`Self::may_pass`] for what may mend itself.
    pub fn is_of_segment(&self) -> bool {
        matches!(self, Self::Entry { .. } | Self::Segment { .. } | Self::Disorder { .. } | Self::End { .. })
    }

    /// Whether another attempt may do better though nobody mends the segment.
    pub fn may_pass(&self) -> bool {
        let is_unread = matches!(self, Self::Entry { reason: BadEntry::Unreadable(_), .. });
        is_unread || matches!(self, Self::Io { .. } | Self::Bad { .. })
    }
}

/// Why an index file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadIndex {
    #[error("it has {0} bytes, which is not its length")]
    Length(u64),
    #[error("it does not open with an index's magic")]
    Magic,
    #[error("index version {0} is not known to this program")]
    Version(u32),
    #[error("it belongs to another data directory or shard")]
    Elsewhere,
    #[error("it is of another segment, or of one with another end or other losses")]
    Segment,
    #[error("the checksum of block {0} is wrong")]
    Checksum(u32),
    #[error("block {0} says what cannot be")]
    Contents(u32),
    /// Its checksum holds.
    #[error("block {0} is not what its segment says")]
    Differs(u32),
    #[error("the device cannot read block {0}: {1}")]
    Unreadable(u32, String),
}
