//! Reads the sections of a checkpoint back, in order, each checked before it is handed on.

use std::io;

use super::head::{CheckpointHead, CheckpointName};
use super::writer::{SECTION_ALIGN, SECTION_HEAD, SECTION_MAX, section_crc};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::layout::u32_at;
use crate::log::sequential::SequentialFile;

/// Bytes of one direct read.
const READ: usize = 1 << 20;

/// Why a checkpoint is of no use. The one before it is, then, or the log as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    #[error("its first block is torn or damaged")]
    Head,
    #[error("checkpoint version {0}: another program wrote it")]
    Version(u32),
    #[error("it belongs to another data directory or shard")]
    Elsewhere,
    #[error("its first block names another begin, epoch or size")]
    Name,
    #[error("it belongs to another log of this data directory")]
    OtherLog,
    #[error("section {0} has a wrong checksum")]
    Section(u64),
    #[error("section {number} does not say what it should: {reason}")]
    Content { number: u64, reason: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Hands every section to `take`; an error of its own ends the reading.
pub(in crate::log) async fn read_sections<D: Disk>(
    disk: &D,
    head: &CheckpointHead,
    take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), CheckpointError> {
    read_sections_with(disk, head, false, take).await
}

/// The same, where a fault may be planted: sections are handed on whatever their checksums say.
pub(in crate::log) async fn read_sections_with<D: Disk>(
    disk: &D,
    head: &CheckpointHead,
    skips_checksums: bool,
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), CheckpointError> {
    let name = head.name();
    let file = disk.open(&name.to_string(), Access::Read).await?;
    let file = SequentialFile::new(file, READ);
    let mut sections =
        Sections { file, offset: BLOCK as u64, left: head.bytes, held: Vec::new(), at: 0, skips_checksums };
    for number in 0..head.sections {
        let bytes = sections.next(name, number).await?;
        take(bytes).map_err(|reason| CheckpointError::Content { number, reason })?;
    }
    Ok(())
}

struct Sections<F: DiskFile> {
    file: SequentialFile<F>,
    /// Where the next read begins, and how many bytes of sections are not read yet.
    offset: u64,
    left: u64,
    held: Vec<u8>,
    /// Where in `held` the next section begins.
    at: usize,
    /// A planted fault.
    skips_checksums: bool,
}

impl<F: DiskFile> Sections<F> {
    async fn next(&mut self, name: CheckpointName, number: u64) -> Result<&[u8], CheckpointError> {
        let bad = CheckpointError::Section(number);
        if !self.hold(SECTION_HEAD).await? {
            return Err(bad);
        }
        let (length, crc) = (u32_at(&self.held, self.at) as usize, u32_at(&self.held, self.at + 4));
        let whole = (SECTION_HEAD + length).next_multiple_of(SECTION_ALIGN);
        if length > SECTION_MAX || !self.hold(whole).await? {
            return Err(bad);
        }
        let from = self.at + SECTION_HEAD;
        self.at += whole;
        let bytes = &self.held[from..from + length];
        if section_crc(name, number, bytes) == crc || self.skips_checksums { Ok(bytes) } else { Err(bad) }
    }

    /// Whether `len` bytes stand at `at`; reads on until they do.
    async fn hold(&mut self, len: usize) -> io::Result<bool> {
        while self.held.len() - self.at < len {
            if self.left == 0 {
                return Ok(false);
            }
            self.held.drain(..std::mem::take(&mut self.at));
            let want = self.left.min(READ as u64) as usize;
            let read = self.file.read_at(self.offset).await?;
            if read.len() < want {
                return Ok(false);
            }
            self.held.extend_from_slice(&read[..want]);
            self.offset += want as u64;
            self.left -= want as u64;
        }
        Ok(true)
    }
}
