//! Step 4: the segment that a run begins with. It holds what stood only in the ring, and a note of the damage that was
//! accepted; its rename is the instant at which the start counts.

use std::rc::Rc;

use peregrine_protocol::entry::{EntryDraft, EntryFlags, EntryKind, PadHeader};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos};
use peregrine_protocol::limits::{ENTRY_HEADER_LEN, PAD_HEADER_LEN, RING_MAX};

use super::io_error;
use super::survey::Survey;
use crate::log::chain::Chain;
use crate::log::damage::{Extent, encode_loss};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::error::StartError;
use crate::log::fault::{Planted, RecoveryStep};
use crate::log::files;
use crate::log::options::{LogOptions, RunId};
use crate::log::segment::Identity;
use crate::log::task::{OpenSegment, zero};

/// Bytes of one write.
const WRITE: usize = 512 << 10;

/// Where the fresh segment goes and what it holds at first.
pub(super) struct Fresh {
    log: RunId,
    pub epoch: Epoch,
    pub base: LogPosition,
    pub previous_end: LogPosition,
    /// From `base` on, whole blocks.
    pub content: Vec<u8>,
    /// Where in it the note of what was given up stands.
    loss: Option<LogPosition>,
}

impl Fresh {
    /// `cut`: where the log ends on the device. `highest`: above every position that was ever known, if any was.
    pub fn place(
        options: &LogOptions,
        survey: &Survey,
        chain: &Chain,
        cut: LogPosition,
        with_ring: bool,
        highest: Option<LogPosition>,
    ) -> Self {
        let block = BLOCK as u64;
        let above_all = |highest: LogPosition| LogPosition((highest.0 / block + 1) * block + RING_MAX);
        let base = match highest {
            _ if with_ring => cut,
            None => LogPosition(0),
            Some(_) if options.faults.has(Planted::UsePositionTwice) => LogPosition(cut.0.next_multiple_of(block)),
            Some(highest) => above_all(highest.max(cut)),
        };
        // A segment of the log that begins at the cut holds nothing: the fresh one takes its place.
        let replaced = chain.links.iter().find(|link| link.base == cut);
        let previous_end = replaced.map_or(cut, |link| survey.segments[link.index].previous_end);
        let log = survey.newest().map_or(options.run, |newest| newest.log);
        let epoch = Epoch(survey.highest_epoch().0 + 1);
        Self { log, epoch, base, previous_end, content: Vec::new(), loss: None }
    }

    /// Adds entries that stood in the ring, verbatim.
    pub fn take_ring(&mut self, pieces: [&[u8]; 2]) {
        for piece in pieces {
            self.content.extend_from_slice(piece);
        }
    }

    /// Adds the note of what was given up, so that the next start does not ask again. Its store time is that of the last
    /// entry, since store times never go back within a shard.
    pub fn note_loss(&mut self, options: &LogOptions, extents: &[Extent], store_time: Nanos) {
        let payload = encode_loss(extents);
        let draft = EntryDraft {
            flags: EntryFlags::NONE.with_control(),
            ..EntryDraft::without_records(EntryKind::Loss, &payload, store_time)
        };
        let header = draft.at(self.end(), self.epoch);
        self.loss = Some(header.position);
        let mut bytes = [0; ENTRY_HEADER_LEN];
        header.encode(options.seal(), &mut bytes);
        let end = self.content.len() + header.len() as usize;
        self.content.extend_from_slice(&bytes);
        self.content.extend_from_slice(&payload);
        self.content.resize(end, 0);
    }

    /// Fills the last block with a pad.
    pub fn fill_block(&mut self, options: &LogOptions, durable: LogPosition) {
        let (from, len) = (self.end(), self.content.len().next_multiple_of(BLOCK));
        if len > self.content.len() {
            let end = self.base + len as u64;
            let pad = PadHeader::filling(from, end, self.epoch, durable, options.node());
            let mut bytes = [0; PAD_HEADER_LEN];
            pad.encode(options.seal(), &mut bytes);
            self.content.extend_from_slice(&bytes);
            self.content.resize(len, 0);
        }
    }

    /// The position behind the content.
    pub fn end(&self) -> LogPosition {
        self.base + self.content.len() as u64
    }

    /// Writes the segment, gives it its name and opens it for appends.
    pub async fn write<D: Disk>(&self, disk: &D, options: &LogOptions) -> Result<OpenSegment<D>, StartError> {
        let io = |doing: &'static str| io_error(options, move || doing.to_owned());
        let temporary = files::temporary_segment_name(self.epoch);
        let size = options.first_segment(self.content.len() as u64);
        let identity = Identity::of_run(options, self.log, self.epoch, self.base, size, self.previous_end, self.end());
        let identity = Identity { loss: self.loss, ..identity };
        let file = disk.create(&temporary, size).await.map_err(io("make the run's first segment"))?;
        let written = async {
            let mut block = disk.buffer(BLOCK);
            identity.encode(&mut block);
            file.write_at(block, 0).await?;
            write_all(disk, &file, BLOCK as u64, &self.content).await?;
            zero(disk, &file, (BLOCK + self.content.len()) as u64, size, None).await
        };
        written.await.map_err(io("write the run's first segment"))?;
        drop(file);
        options.faults.reached(RecoveryStep::FreshWritten);
        let name = identity.name().to_string();
        disk.rename(&temporary, &name).await.map_err(io("name the run's first segment"))?;
        options.faults.reached(RecoveryStep::Renamed);
        disk.sync_directory().await.map_err(io("make the name of the run's first segment durable"))?;
        options.faults.reached(RecoveryStep::DirectorySynced);
        let file = disk.open(&name, Access::Append).await.map_err(io("open the run's first segment"))?;
        Ok(OpenSegment { identity, file: Rc::new(file) })
    }

    /// A planted fault: goes on in the file that the cut stands in. `None` where that has no room.
    pub async fn write_into_old<D: Disk>(
        &mut self,
        disk: &D,
        options: &LogOptions,
        survey: &Survey,
        chain: &Chain,
    ) -> Result<Option<OpenSegment<D>>, StartError> {
        let Some(link) = chain.links.iter().rfind(|link| link.base <= self.base) else { return Ok(None) };
        let identity = survey.segments[link.index].clone();
        if self.end() >= identity.end() || Some(&identity) != survey.newest() {
            return Ok(None);
        }
        let io = |doing: &'static str| io_error(options, move || doing.to_owned());
        let file = disk.open(&identity.name().to_string(), Access::Append).await.map_err(io("open the old segment"))?;
        let offset = self.base - identity.base + BLOCK as u64;
        write_all(disk, &file, offset, &self.content).await.map_err(io("write to the old segment"))?;
        self.epoch = identity.epoch;
        Ok(Some(OpenSegment { identity, file: Rc::new(file) }))
    }
}

async fn write_all<D: Disk>(disk: &D, file: &D::File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    for (n, part) in bytes.chunks(WRITE).enumerate() {
        let mut buffer = disk.buffer(part.len());
        buffer.copy_from_slice(part);
        file.write_at(buffer, offset + (n * WRITE) as u64).await?;
    }
    Ok(())
}
