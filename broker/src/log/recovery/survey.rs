//! What stands in a shard's directory at a start: segments by their identities, marks, and files of no further use.

use peregrine_protocol::ids::{Epoch, LogPosition};

use super::io_error;
use crate::log::checkpoint::{CheckpointError, CheckpointHead, CheckpointName};
use crate::log::damage::Extent;
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::error::StartError;
use crate::log::files::FileKind;
use crate::log::mark::Mark;
use crate::log::options::LogOptions;
use crate::log::ring::RingPage;
use crate::log::segment::{Identity, SegmentName};

/// A file with a segment's name that is none.
pub(super) struct BadSegment {
    pub name: SegmentName,
    /// No position of it lies above: its file ends there.
    pub end: LogPosition,
    pub reason: String,
}

impl BadSegment {
    fn new(name: SegmentName, size: u64, reason: String) -> Self {
        Self { name, end: LogPosition(name.base.0.saturating_add(size)), reason }
    }
}

/// A checkpoint that no start can use.
pub(super) struct BadCheckpoint {
    pub name: CheckpointName,
    pub reason: CheckpointError,
}

impl BadCheckpoint {
    /// Whether its bytes are not what was written; else it is somebody else's.
    pub fn is_damaged(&self) -> bool {
        use CheckpointError::{Content, Head, Io, Name, Section};
        matches!(self.reason, Head | Name | Section(_) | Content { .. } | Io(_))
    }
}

#[derive(Default)]
pub(super) struct Survey {
    pub segments: Vec<Identity>,
    pub bad: Vec<BadSegment>,
    pub marks: Vec<Mark>,
    pub mark_files: Vec<String>,
    /// Those of the mark files that the device cannot read, and why.
    pub unreadable_marks: Vec<(String, String)>,
    /// Those that have a block which is neither a mark nor one that was never written.
    pub torn_marks: Vec<String>,
    /// Good by their first blocks, ascending.
    pub checkpoints: Vec<CheckpointHead>,
    pub bad_checkpoints: Vec<BadCheckpoint>,
    /// Segments that have an index.
    pub indexes: Vec<SegmentName>,
    /// Temporary files and spares of earlier processes.
    pub leftovers: Vec<String>,
}

impl Survey {
    pub async fn read<D: Disk>(disk: &D, options: &LogOptions) -> Result<Self, StartError> {
        let mut survey = Self::default();
        let mut names = disk.list().await.map_err(io_error(options, || "list the shard's directory".to_owned()))?;
        names.sort_unstable();
        for name in names {
            match FileKind::of(&name) {
                FileKind::Segment(segment) => survey.read_segment(disk, options, segment).await?,
                FileKind::Mark => survey.read_marks(disk, options, name).await?,
                FileKind::Checkpoint(checkpoint) => survey.read_checkpoint(disk, options, checkpoint).await,
                FileKind::Leftover => survey.leftovers.push(name),
                FileKind::Index(segment) => survey.indexes.push(segment),
                FileKind::Foreign => {}
            }
        }
        survey.set_other_logs_aside();
        Ok(survey)
    }

    async fn read_segment<D: Disk>(
        &mut self,
        disk: &D,
        options: &LogOptions,
        name: SegmentName,
    ) -> Result<(), StartError> {
        let file_name = name.to_string();
        let doing = || format!("read the identity of segment {name}");
        let file = disk.open(&file_name, Access::Read).await.map_err(io_error(options, doing))?;
        let size = file.size();
        let block = match file.read_at(0, BLOCK).await {
            Ok(block) => block,
            Err(error) => {
                let reason = format!("the device cannot read its identity block: {error}");
                self.bad.push(BadSegment::new(name, size, reason));
                return Ok(());
            }
        };
        let identity = Identity::decode(&block).and_then(|identity| {
            identity.check(name, size, &options.directory, options.shard)?;
            Ok(identity)
        });
        match identity {
            Ok(identity) => self.segments.push(identity),
            Err(error) => self.bad.push(BadSegment::new(name, size, error.to_string())),
        }
        Ok(())
    }

    /// A torn block of a mark file is no damage: a mark may lag, and the other block holds the one before. One that cannot be
    /// read is, since it may hold the only durable position that tells damage from a torn tail.
    async fn read_marks<D: Disk>(&mut self, disk: &D, options: &LogOptions, name: String) -> Result<(), StartError> {
        let doing = || format!("read {name}");
        let file = disk.open(&name, Access::Read).await.map_err(io_error(options, doing))?;
        for offset in [0, BLOCK as u64] {
            match file.read_at(offset, BLOCK).await {
                Ok(block) => match Mark::decode(&block, options.directory.id, options.shard) {
                    Some(mark) => self.marks.push(mark),
                    None if block.iter().all(|byte| *byte == 0) => {}
                    None => self.torn_marks.push(name.clone()),
                },
                Err(error) => self.unreadable_marks.push((name.clone(), format!("the device cannot read it: {error}"))),
            }
        }
        self.mark_files.push(name);
        Ok(())
    }

    async fn read_checkpoint<D: Disk>(&mut self, disk: &D, options: &LogOptions, name: CheckpointName) {
        let head = async {
            let file = disk.open(&name.to_string(), Access::Read).await?;
            let block = file.read_at(0, BLOCK).await?;
            CheckpointHead::decode(&block, name, file.size(), options)
        };
        match head.await {
            Ok(head) => self.checkpoints.push(head),
            Err(reason) => self.bad_checkpoints.push(BadCheckpoint { name, reason }),
        }
    }

    /// Checkpoints of a log that had this place before or after this one say nothing about it. Where no segment is good, those
    /// that are here tell of the log that is gone.
    fn set_other_logs_aside(&mut self) {
        self.checkpoints.sort_unstable_by_key(CheckpointHead::name);
        let Some(log) = self.newest().map(|newest| newest.log) else { return };
        for other in self.checkpoints.extract_if(.., |head| head.log != log) {
            self.bad_checkpoints.push(BadCheckpoint { name: other.name(), reason: CheckpointError::OtherLog });
        }
    }

    /// The segment of the highest epoch, then the highest base.
    pub fn newest(&self) -> Option<&Identity> {
        self.segments.iter().max_by_key(|identity| identity.name())
    }

    /// The highest epoch that any file names; 0 where there is none.
    pub fn highest_epoch(&self) -> Epoch {
        let segments = self.segments.iter().map(|identity| identity.epoch);
        let bad = self.bad.iter().map(|bad| bad.name.epoch);
        let marks = self.marks.iter().map(|mark| mark.epoch);
        let checkpoints = self.checkpoints.iter().map(|head| head.epoch);
        segments.chain(bad).chain(marks).chain(checkpoints).max().unwrap_or_default()
    }

    /// The newest durable position that identities, marks and checkpoints state.
    pub fn durable(&self) -> LogPosition {
        let segments = self.segments.iter().map(|identity| identity.durable);
        let marks = self.marks.iter().map(|mark| mark.durable);
        let checkpoints = self.checkpoints.iter().map(|head| head.end);
        segments.chain(marks).chain(checkpoints).max().unwrap_or_default()
    }

    /// The highest position that any file names, used or not; `None` where there is no file at all.
    pub fn highest_position(&self) -> Option<LogPosition> {
        let segments = self.segments.iter().map(|identity| identity.base);
        // What stood in it is not known, so it may have been full.
        let bad = self.bad.iter().map(|bad| bad.end);
        let marks = self.marks.iter().map(|mark| mark.durable);
        let checkpoints = self.checkpoints.iter().map(|head| head.end);
        segments.chain(bad).chain(marks).chain(checkpoints).max()
    }

    /// Whether no file but such as hold what was given up has a name that says more than the file itself. A start that gave
    /// up a bad segment and was killed before it put that aside left it there.
    pub fn is_sound(&self, given_up: &[Extent]) -> bool {
        let is_given_up = |bad: &BadSegment| given_up.iter().any(|extent| extent.contains(bad.name.base));
        self.bad.iter().all(is_given_up) && self.unreadable_marks.is_empty()
    }

    /// Whether that ready ring is of this log, or of one that had this place before or after it. Where no identity is good that
    /// cannot be told.
    pub fn is_of_this_log(&self, page: &RingPage) -> bool {
        let has_run = page.epoch <= self.highest_epoch();
        match self.newest() {
            Some(newest) => has_run && newest.log == page.log,
            None => has_run,
        }
    }

    pub fn closes(&self, epoch: Epoch) -> bool {
        self.marks.iter().any(|mark| mark.closes && mark.epoch == epoch)
    }
}
