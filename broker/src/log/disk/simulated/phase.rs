//! What part of its work a log was at when a crash struck: told by the files that operations in flight are for. A crash can be armed
//! to strike within a part of the work that is rare.

use super::directory::Directory;
use super::operation::Request;
use crate::log::files::FileKind;

/// A part of a log's work on its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Writes to the segments of the log.
    Flush,
    /// Making and naming segments ahead of the appends.
    Segments,
    Marks,
    Checkpoints,
    Indexes,
    /// Unlinking segments that are given up, or giving their files the names of spares.
    Retirement,
    /// The segment that a start begins with.
    Start,
}

impl Phase {
    pub const ALL: [Self; 7] =
        [Self::Flush, Self::Segments, Self::Marks, Self::Checkpoints, Self::Indexes, Self::Retirement, Self::Start];

    /// The part that an operation belongs to, as far as the name of its file says.
    pub(super) fn of(request: &Request, directory: &Directory) -> Option<Self> {
        match request {
            Request::Remove { name } if matches!(FileKind::of(name), FileKind::Segment(_)) => Some(Self::Retirement),
            Request::Rename { from, to } if retires(from, to) => Some(Self::Retirement),
            Request::Make { name, .. } | Request::Remove { name } => Self::of_name(name),
            Request::Rename { from, .. } => Self::of_name(from),
            Request::Write { inode, durable: true, .. } => {
                let name = directory.name_of(*inode);
                let is_segment = matches!(FileKind::of(name), FileKind::Segment(_));
                if is_segment { Some(Self::Flush) } else { Self::of_name(name) }
            }
            Request::Write { inode, .. } | Request::Sync { inode, .. } | Request::Extend { inode, .. } => {
                Self::of_name(directory.name_of(*inode))
            }
            Request::List
            | Request::Open { .. }
            | Request::Read { .. }
            | Request::SyncDirectory { .. }
            | Request::Pause { .. } => None,
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        let unfinished = name.strip_prefix("tmp-").unwrap_or(name);
        let phases = [
            ("spare-", Self::Segments),
            ("mark-", Self::Marks),
            ("checkpoint-", Self::Checkpoints),
            ("index-", Self::Indexes),
            ("segment-", Self::Start),
        ];
        phases.into_iter().find(|(prefix, _)| unfinished.starts_with(prefix)).map(|(_, phase)| phase)
    }
}

fn retires(from: &str, to: &str) -> bool {
    matches!((FileKind::of(from), FileKind::of(to)), (FileKind::Segment(_), FileKind::Leftover))
}

/// A crash that is to strike within a part of the work.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArmedIn<C> {
    pub phase: Phase,
    /// Operations of that part to let pass.
    pub operations: u64,
    /// Steps behind the submission of the next one.
    pub steps: u64,
    pub crash: C,
}
