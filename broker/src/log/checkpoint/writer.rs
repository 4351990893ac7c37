//! Writes a checkpoint: sections as they come, in writes of one size, at leisure; the head when they are whole.
//!
//! ```text
//!   temporary file: [ head, written last ] [ length u32 | CRC32 u32 | bytes, filled to 8 ] × sections
//! ```
//!
//! The CRC of a section covers its number, the checkpoint's begin and epoch, its length and its bytes: what stood in the file's
//! place before, or elsewhere in it, does not pass for it.

use std::io;
use std::time::Duration;

use peregrine_protocol::checksum::Crc32;
use peregrine_protocol::ids::{LogPosition, Nanos};

use super::head::{CheckpointHead, CheckpointName};
use crate::log::disk::{BLOCK, Disk, DiskFile};
use crate::log::files;
use crate::log::options::LogOptions;
use crate::log::segment::Identity;

/// Bytes of one write. With the rest behind each: 64 MB/s, which hardly shows in the latency of flushes. There is none once the log
/// grows faster than that writes a large state, which a start would have to read back.
const WRITE: usize = 128 << 10;
const REST: Duration = Duration::from_millis(2);
/// The file grows by this much.
const GROWTH: u64 = 1 << 20;

/// Length and CRC before the bytes of a section.
pub(super) const SECTION_HEAD: usize = 8;
pub(super) const SECTION_ALIGN: usize = 8;

/// A section has at most so many bytes: a slice of some ten microseconds gives far less, one object may be larger.
pub const SECTION_MAX: usize = 8 << 20;

/// A checkpoint that is being written.
pub struct CheckpointWriter<D: Disk> {
    disk: D,
    file: D::File,
    head: CheckpointHead,
    /// What is not written yet, and where in the file it goes.
    rest: Vec<u8>,
    offset: u64,
    in_a_hurry: bool,
}

/// A checkpoint that is whole and synced, and has no name yet.
pub struct FinishedCheckpoint<D: Disk> {
    disk: D,
    head: CheckpointHead,
}

/// One that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedCheckpoint(pub(in crate::log) CheckpointName);

impl PublishedCheckpoint {
    /// Where starts read the log from that go on from it.
    pub fn begin(&self) -> LogPosition {
        self.0.begin
    }
}

impl<D: Disk> CheckpointWriter<D> {
    /// Begins one of the state at `begin`, the end of an entry of the run whose segment `current` is. `store_time` is that of the
    /// last entry before.
    pub(in crate::log) async fn begin(
        disk: D,
        options: &LogOptions,
        current: &Identity,
        begin: LogPosition,
        store_time: Nanos,
    ) -> io::Result<Self> {
        let head = CheckpointHead {
            directory: options.directory.id,
            shard: options.shard,
            log: current.log,
            epoch: current.epoch,
            begin,
            end: begin,
            store_time,
            sections: 0,
            bytes: 0,
        };
        let temporary = files::temporary_checkpoint_name(head.epoch);
        // Left by one that was given up.
        let _ = disk.remove(&temporary).await;
        let file = disk.create(&temporary, GROWTH).await?;
        Ok(Self { disk, file, head, rest: Vec::with_capacity(2 * WRITE), offset: BLOCK as u64, in_a_hurry: false })
    }

    /// From here on without rests.
    pub fn hurry(&mut self) {
        self.in_a_hurry = true;
    }

    /// Adds a section.
    pub async fn section(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() <= SECTION_MAX, "a section of {} bytes", bytes.len());
        let crc = section_crc(self.head.name(), self.head.sections, bytes);
        self.rest.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.rest.extend_from_slice(&crc.to_le_bytes());
        self.rest.extend_from_slice(bytes);
        self.rest.resize(self.rest.len().next_multiple_of(SECTION_ALIGN), 0);
        self.head.sections += 1;
        while self.rest.len() >= WRITE {
            self.write(WRITE).await?;
            if !self.in_a_hurry {
                self.disk.pause(REST).await;
            }
        }
        Ok(())
    }

    /// All sections are there, none of them current beyond `end`. Makes the file durable; it has no name yet.
    pub async fn finish(mut self, end: LogPosition) -> io::Result<FinishedCheckpoint<D>> {
        assert!(self.head.begin <= end, "a checkpoint ends where it began or behind");
        self.head.end = end;
        self.head.bytes = self.offset - BLOCK as u64 + self.rest.len() as u64;
        if !self.rest.is_empty() {
            self.rest.resize(self.rest.len().next_multiple_of(BLOCK), 0);
            self.write(self.rest.len()).await?;
        }
        let mut block = self.disk.buffer(BLOCK);
        self.head.encode(&mut block);
        self.file.write_at(block, 0).await?;
        self.file.sync().await?;
        Ok(FinishedCheckpoint { disk: self.disk, head: self.head })
    }

    async fn write(&mut self, len: usize) -> io::Result<()> {
        let end = self.offset + len as u64;
        if end > self.file.size() {
            self.file.extend(end.next_multiple_of(GROWTH)).await?;
        }
        let mut buffer = self.disk.buffer(len);
        buffer.copy_from_slice(&self.rest[..len]);
        self.file.write_at(buffer, self.offset).await?;
        self.rest.drain(..len);
        self.offset = end;
        Ok(())
    }
}

impl<D: Disk> FinishedCheckpoint<D> {
    /// The log must be durable up to here before [`Self::publish`].
    pub fn end(&self) -> LogPosition {
        self.head.end
    }

    /// Gives it its name. From then on starts begin with it, and older ones than the one before it are removed.
    pub(in crate::log) async fn publish(self, superseded: Vec<String>) -> io::Result<PublishedCheckpoint> {
        let name = self.head.name();
        let temporary = files::temporary_checkpoint_name(self.head.epoch);
        // Left by an attempt of which only the sync of the directory failed.
        let _ = self.disk.remove(&name.to_string()).await;
        self.disk.rename(&temporary, &name.to_string()).await?;
        self.disk.sync_directory().await?;
        for name in superseded {
            // One that stays is removed by the next start.
            let _ = self.disk.remove(&name).await;
        }
        Ok(PublishedCheckpoint(name))
    }
}

/// What stands beside a section in the file.
pub(super) fn section_crc(of: CheckpointName, number: u64, bytes: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    for value in [of.begin.0, of.epoch.0, number, bytes.len() as u64] {
        crc.update(&value.to_le_bytes());
    }
    crc.update(bytes);
    crc.finish()
}
