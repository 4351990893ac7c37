//! The names in a shard's directory, and what each kind of file is to a start.
//!
//! | name | what it is | at a start |
//! |---|---|---|
//! | `{base:020}-{epoch:010}` | a segment | read; a bad identity is damage |
//! | `mark-{epoch:010}` | the mark of a run | read, unlinked once a fresh segment says as much |
//! | `index-{base:020}-{epoch:010}` | the index of the segment of that name | opened behind the start, and made again if it is no good; unlinked if its segment is no part of the log |
//! | `checkpoint-{begin:020}-{epoch:010}` | a checkpoint | the newest good one is read, those before the newest two are unlinked |
//! | `spare-…` | a file of zeros, or that of a segment that was retired, waiting to become a segment | unlinked |
//! | `tmp-…` | a file that was never finished | unlinked |
//! | `damaged-…` | a checkpoint that is none any more; a segment of bad identity, given up by `--accept-loss` | left alone, for whoever wants to look into it |
//! | anything else | not ours | left alone |

use peregrine_protocol::ids::Epoch;

use super::checkpoint::CheckpointName;
use super::segment::SegmentName;

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment(SegmentName),
    Mark,
    Index(SegmentName),
    Checkpoint(CheckpointName),
    /// Of no use to another process than the one that made it.
    Leftover,
    Foreign,
}

impl FileKind {
    pub fn of(name: &str) -> Self {
        let is_mark = |epoch: &str| !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(segment) = SegmentName::parse(name) {
            Self::Segment(segment)
        } else if name.strip_prefix("mark-").is_some_and(is_mark) {
            Self::Mark
        } else if let Some(segment) = name.strip_prefix("index-").and_then(SegmentName::parse) {
            Self::Index(segment)
        } else if let Some(checkpoint) = CheckpointName::parse(name) {
            Self::Checkpoint(checkpoint)
        } else if name.starts_with("spare-") || name.starts_with("tmp-") {
            Self::Leftover
        } else {
            Self::Foreign
        }
    }
}

/// The n-th spare begun in a run.
pub(super) fn spare_name(epoch: Epoch, n: u32) -> String {
    format!("spare-{:010}-{n}", epoch.0)
}

/// The file of a segment that has left the log, and may become another one.
pub(super) fn retired_name(segment: SegmentName) -> String {
    format!("spare-{segment}")
}

pub(super) fn mark_name(epoch: Epoch) -> String {
    format!("mark-{:010}", epoch.0)
}

pub(super) fn temporary_mark_name(epoch: Epoch) -> String {
    format!("tmp-mark-{:010}", epoch.0)
}

/// The index of a sealed segment.
pub(super) fn index_name(segment: SegmentName) -> String {
    format!("index-{segment}")
}

/// The same before it counts.
pub(super) fn temporary_index_name(segment: SegmentName) -> String {
    format!("tmp-index-{segment}")
}

/// A checkpoint before it counts.
pub(super) fn temporary_checkpoint_name(epoch: Epoch) -> String {
    format!("tmp-checkpoint-{:010}", epoch.0)
}

/// Where a segment goes whose identity is bad and whose loss was accepted.
pub(super) fn damaged_name(segment: SegmentName) -> String {
    format!("damaged-{segment}")
}

/// Where a checkpoint goes that is none any more.
pub(super) fn damaged_checkpoint_name(checkpoint: CheckpointName) -> String {
    format!("damaged-{checkpoint}")
}

/// The segment that a start writes, before it counts.
pub(super) fn temporary_segment_name(epoch: Epoch) -> String {
    format!("tmp-segment-{:010}", epoch.0)
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::ids::LogPosition;

    use super::*;

    #[test]
    fn every_file_is_of_one_kind() {
        let segment = SegmentName { epoch: Epoch(3), base: LogPosition(4096) };
        assert_eq!(FileKind::of(&segment.to_string()), FileKind::Segment(segment));
        assert_eq!(FileKind::of(&mark_name(Epoch(3))), FileKind::Mark);
        assert_eq!(FileKind::of(&index_name(segment)), FileKind::Index(segment));
        let checkpoint = CheckpointName { begin: LogPosition(640), epoch: Epoch(3) };
        assert_eq!(FileKind::of(&checkpoint.to_string()), FileKind::Checkpoint(checkpoint));
        let temporary = [
            temporary_mark_name(Epoch(3)),
            temporary_segment_name(Epoch(3)),
            temporary_index_name(segment),
            temporary_checkpoint_name(Epoch(3)),
        ];
        for name in temporary.into_iter().chain([spare_name(Epoch(3), 7), retired_name(segment)]) {
            assert_eq!(FileKind::of(&name), FileKind::Leftover, "{name}");
        }
        assert_eq!(FileKind::of(&damaged_name(segment)), FileKind::Foreign);
        for name in ["lost+found", "mark-", "mark-1x", "4096-3", "checkpoint-1-2", "index-4096-3", ".."] {
            assert_eq!(FileKind::of(name), FileKind::Foreign, "{name}");
        }
    }
}
