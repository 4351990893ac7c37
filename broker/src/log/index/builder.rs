//! Makes the index of a sealed segment: reads it once from end to end, checks every entry on the way, and writes what it found.
//!
//! ```text
//! segment ─► window ─► entry, checked ─┬─► batches ─► sorter ─┐ full, or the segment's end
//!            of large                  └─► keys ────► sorter ─┴─► tree ─► tmp-index-… ─► sync ─► rename ─► directory synced
//!            direct reads                                          └─► at the end: entries, contents, header
//! ```
//!
//! It holds at most [`limits::INDEX_TREE_BATCHES`] batches and [`limits::INDEX_TREE_KEYS`] keys, 14 MiB; beside them the window
//! (64 KiB), a write (64 KiB), the first rows of one tree's leaves and 4 bytes for each 64 KiB of the segment: below 2 MiB for the
//! largest. A crash, a drop and an error leave a file that the next start unlinks; an error unlinks it here, if that can be done.

mod around;

use peregrine_protocol::checksum::Crc32;
use peregrine_protocol::entry::{Codec, Entry, EntryError, EntryHeader, EntryKind};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos};
use peregrine_protocol::limits::{RECORD_HEADER_LEN, SECTION_HEADER_LEN};
use peregrine_protocol::record::{RecordOutline, SectionNumber, SectionOutline};

use super::damage::PassedOver;
use super::format::{BlockSeal, Header, IndexCounts, Tree};
use super::pace::{self, Pace, Stop};
use super::row::{BatchRow, KeyRow, Row};
use super::sorter::{Merge, Sorter};
use super::writer::{BlockWriter, TreeError, io_error};
use super::{IndexError, KeyHasher, SealedSegment};
use crate::limits;
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::fault::Planted;
use crate::log::files;
use crate::log::options::LogOptions;
use crate::log::segment::Identity;
use crate::log::window::{BadEntry, Expected, Window};

/// What is wrong with a batch that contradicts those before it.
const NO_ORDER: &str = "its offsets do not follow those before it in its queue";

/// What an index was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexReport {
    /// The index's file, and its length.
    pub name: String,
    pub bytes: u64,
    pub counts: IndexCounts,
}

/// How much is sorted together, and read at once. Tests make trees of a few rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub tree_batches: usize,
    pub tree_keys: usize,
    pub run: usize,
    pub read: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            tree_batches: limits::INDEX_TREE_BATCHES,
            tree_keys: limits::INDEX_TREE_KEYS,
            run: limits::INDEX_SORTED_RUN,
            read: limits::INDEX_READ,
        }
    }
}

/// Makes the index of a segment whose entries up to its end are all durable, and gives it its name, durably. An index of that
/// name must not be there any more. Where it ends with an error nothing was changed, and it may be called again; once it is asked to
/// `stop` it never ends, and may be dropped.
pub async fn build_index<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    stop: Stop,
) -> Result<IndexReport, IndexError> {
    build_bounded(disk, options, segment, Bounds::default(), stop).await
}

/// The same of a segment of which [`build_index`] said that it is damaged: makes the index around what is, which it logs and of which
/// look-ups tell. `takes_unread`: what the device cannot read is damaged too.
pub(super) async fn build_index_over_damage<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    takes_unread: bool,
    stop: Stop,
) -> Result<IndexReport, IndexError> {
    let passed = PassedOver::new(options.shard, segment.name, takes_unread);
    build(disk, options, segment, Bounds::default(), Some(passed), stop).await
}

pub(super) async fn build_bounded<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    bounds: Bounds,
    stop: Stop,
) -> Result<IndexReport, IndexError> {
    build(disk, options, segment, bounds, None, stop).await
}

async fn build<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    bounds: Bounds,
    passed: Option<PassedOver>,
    stop: Stop,
) -> Result<IndexReport, IndexError> {
    let (temporary, name) = (files::temporary_index_name(segment.name), files::index_name(segment.name));
    let window = open_segment(disk, options, segment, passed.is_some()).await?.reading(bounds.read);
    // Left by an attempt that failed.
    let _ = disk.remove(&temporary).await;
    let named = async {
        let file = disk.create(&temporary, BLOCK as u64).await.map_err(io_error("make", &temporary))?;
        let out = BlockWriter::new(disk.clone(), file, BlockSeal::new(options, segment));
        let mut builder = Builder::new(Pace::new(disk.clone(), stop), segment, window, out, bounds);
        builder.passed = passed;
        let (bytes, counts) = builder.build(options).await?;
        disk.rename(&temporary, &name).await.map_err(io_error("name", &name))?;
        Ok((bytes, counts))
    };
    match named.await {
        Ok((bytes, counts)) => {
            disk.sync_directory().await.map_err(io_error("sync the directory of", &name))?;
            Ok(IndexReport { name, bytes, counts })
        }
        Err(error) => {
            // Whether it exists and can be removed or not, the next start unlinks what is left.
            let _ = disk.remove(&temporary).await;
            Err(error)
        }
    }
}

/// Opens the segment and looks at its identity, unless it is known to be damaged: every entry names its place and its log.
async fn open_segment<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    is_damaged: bool,
) -> Result<Window<D::File>, IndexError> {
    let SealedSegment { name, run, end, .. } = *segment;
    let file_name = name.to_string();
    let file = disk.open(&file_name, Access::Read).await.map_err(io_error("open", &file_name))?;
    if is_damaged {
        return Ok(Window::new(file, name.base, options.seal()));
    }
    let block = file.read_at(0, BLOCK).await.map_err(|error| {
        let reason = BadEntry::Unreadable(format!("its identity block: {error}"));
        IndexError::Entry { segment: name, position: name.base, reason }
    })?;
    let identity = Identity::decode(&block).and_then(|identity| {
        identity.check(name, file.size(), &options.directory, options.shard)?;
        Ok(identity)
    });
    let identity = identity.map_err(|reason| IndexError::Segment { segment: name, reason })?;
    let is_within = (name.base..=identity.end()).contains(&end) && end.0 - name.base.0 <= limits::INDEX_SEGMENT_MAX;
    if identity.run != run || !is_within {
        return Err(IndexError::End { segment: name, end });
    }
    Ok(Window::new(file, name.base, options.seal()))
}

struct Builder<'a, D: Disk> {
    segment: &'a SealedSegment,
    window: Window<D::File>,
    out: BlockWriter<D>,
    pace: Pace<D>,
    batches: Sorter<BatchRow>,
    keys: Sorter<KeyRow>,
    trees: Vec<Tree>,
    /// See the table of entries in [`super::format`].
    places: Vec<u32>,
    first_time: Option<Nanos>,
    last_time: Nanos,
    counts: IndexCounts,
    /// Where damage does not end it.
    passed: Option<PassedOver>,
    /// A planted fault.
    forgets: bool,
}

impl<'a, D: Disk> Builder<'a, D> {
    fn new(
        pace: Pace<D>,
        segment: &'a SealedSegment,
        window: Window<D::File>,
        out: BlockWriter<D>,
        bounds: Bounds,
    ) -> Self {
        Self {
            segment,
            window,
            out,
            pace,
            batches: Sorter::new(bounds.tree_batches, bounds.run),
            keys: Sorter::new(bounds.tree_keys, bounds.run),
            trees: Vec::new(),
            places: Vec::with_capacity(segment.stretches() as usize),
            first_time: None,
            last_time: Nanos::ZERO,
            counts: IndexCounts::default(),
            passed: None,
            forgets: false,
        }
    }

    /// The bytes of the file, which is durable, and what it counts.
    async fn build(mut self, options: &LogOptions) -> Result<(u64, IndexCounts), IndexError> {
        self.forgets = options.faults.has(Planted::ForgetIndexRow);
        self.read().await?;
        self.write_batches().await?;
        self.write_keys().await?;
        let name = files::temporary_index_name(self.segment.name);
        let entry_table = self.out.next();
        self.out.push_places(&self.places, &mut self.pace).await.map_err(io_error("write", &name))?;
        let contents = self.out.next();
        self.out.push_contents(&self.trees).await.map_err(io_error("write", &name))?;
        let header = Header {
            first_time: self.first_time.unwrap_or_default(),
            trees: self.trees.len() as u32,
            blocks: self.out.next(),
            entry_table,
            contents,
            counts: self.counts,
            damaged: self.passed.map(PassedOver::into_stretches).unwrap_or_default(),
        };
        let bytes = self.out.finish(&header, options, self.segment).await.map_err(io_error("write", &name))?;
        Ok((bytes, self.counts))
    }

    /// Goes through the segment.
    async fn read(&mut self) -> Result<(), IndexError> {
        let SealedSegment { name, end, .. } = *self.segment;
        let mut position = name.base;
        let mut epoch_min = Epoch(0);
        while position < end {
            if let Some(to) = self.segment.given_up_to(position) {
                position = to.min(end);
                continue;
            }
            let expected = Expected { position, epoch_min, epoch_max: name.epoch, limit: end };
            self.pace.spend(pace::ENTRY).await;
            let entry = match self.window.header(&expected).await {
                Ok(entry) => entry,
                Err(reason) => {
                    position = self.pass_over(&expected, reason).await?;
                    continue;
                }
            };
            if let Entry::Full(header) = entry {
                self.take(&header).await?;
            }
            self.note_places(position, entry.end());
            (epoch_min, position) = (entry.epoch(), entry.end());
        }
        self.note_places(end, LogPosition(u64::MAX));
        Ok(())
    }

    /// The stretches that begin in front of `end` lead to `start`.
    fn note_places(&mut self, start: LogPosition, end: LogPosition) {
        let base = self.segment.name.base;
        while (self.places.len() as u64) < self.segment.stretches()
            && base + self.places.len() as u64 * limits::INDEX_STRETCH < end
        {
            self.places.push(((start - base) / BatchRow::UNIT) as u32);
        }
    }

    /// Takes in an entry whose header is good.
    async fn take(&mut self, header: &EntryHeader) -> Result<(), IndexError> {
        let first_time = *self.first_time.get_or_insert(header.store_time);
        if header.store_time < self.last_time {
            return self.pass_contradiction(header, "its store time lies before its predecessor's");
        }
        let is_batch = header.kind == EntryKind::Batch;
        if is_batch && self.passed.as_mut().is_some_and(|passed| !passed.follows(header)) {
            return self.pass_contradiction(header, NO_ORDER);
        }
        let checked = self.check_payload(header).await;
        let is_sound = checked.is_ok();
        if let Err(reason) = checked {
            self.pass_payload(header, reason)?;
        }
        self.last_time = header.store_time;
        self.counts.entries += 1;
        if !is_batch {
            return Ok(());
        }
        self.counts.batches += 1;
        if self.forgets && self.counts.batches.is_multiple_of(5) {
            return Ok(());
        }
        self.counts.records += u64::from(header.record_count);
        self.pace.spend(row_cost(&self.batches)).await;
        self.batches.push(BatchRow {
            topic: header.topic.0,
            queue: header.queue.0,
            position: ((header.position - self.segment.name.base) / BatchRow::UNIT) as u32,
            offset: header.base_offset.0,
            time: header.store_time - first_time,
            records: header.record_count,
            length: header.length,
        });
        if self.batches.is_full() {
            self.write_batches().await?;
        }
        if !is_sound || header.flags.codec() != Codec::None || !self.take_keys(header).await? {
            self.counts.opaque_batches += 1;
        }
        // A long payload was read twice.
        match self.window.check_readable(header.position, header.end()) {
            Err(reason) if is_sound => self.pass_payload(header, reason),
            _ => Ok(()),
        }
    }

    async fn check_payload(&mut self, header: &EntryHeader) -> Result<(), BadEntry> {
        let (mut at, end) = (header.payload_position(), header.payload_position() + u64::from(header.length));
        let mut crc = Crc32::new();
        while at < end {
            let max = limits::INDEX_PART.min((end - at) as usize);
            self.pace.spend_bytes(max).await;
            let part = self.window.part(at, max).await;
            if part.is_empty() {
                return Err(BadEntry::End);
            }
            crc.update(part);
            at += part.len() as u64;
        }
        self.window.check_readable(header.payload_position(), end)?;
        if crc.finish() == header.payload_crc { Ok(()) } else { Err(EntryError::PayloadChecksum.into()) }
    }

    /// Takes in the keys of a batch's records. False where its payload is not made of records; then some may have been taken.
    async fn take_keys(&mut self, header: &EntryHeader) -> Result<bool, IndexError> {
        let (mut at, end) = (header.payload_position(), header.payload_position() + u64::from(header.length));
        while at < end {
            self.pace.spend(pace::RECORD).await;
            let outline = match self.head(at, end).await.map(RecordOutline::decode) {
                Some(Ok(outline)) if outline.filled_length() <= end - at => outline,
                _ => return Ok(false),
            };
            if let Some((key, len)) = self.find_key(at, &outline).await {
                let hash = self.hash_key(header.topic.0, key, len).await;
                let position = ((at - self.segment.name.base) / KeyRow::UNIT) as u32;
                self.counts.keys += 1;
                self.pace.spend(row_cost(&self.keys)).await;
                self.keys.push(KeyRow { hash, position });
                if self.keys.is_full() {
                    self.write_keys().await?;
                }
            }
            at += outline.filled_length();
        }
        Ok(true)
    }

    /// Where a record's key starts, and its length. Sections stand in the order of their numbers, and only one number is lower than
    /// a key's.
    async fn find_key(&mut self, record: LogPosition, outline: &RecordOutline) -> Option<(LogPosition, u32)> {
        let end = record + u64::from(outline.length);
        let mut at = record + RECORD_HEADER_LEN as u64;
        for _ in 0..outline.sections.min(2) {
            let section = SectionOutline::decode(self.head(at, end).await?);
            let bytes = at + SECTION_HEADER_LEN as u64;
            if section.number == SectionNumber::Key as u16 {
                return (u64::from(section.length) <= end - bytes).then_some((bytes, section.length));
            }
            at = bytes + u64::from(section.length);
            if section.number > SectionNumber::Key as u16 || at >= end {
                break;
            }
        }
        None
    }

    async fn hash_key(&mut self, topic: u64, mut at: LogPosition, len: u32) -> u64 {
        let mut hasher = KeyHasher::new(topic);
        let end = at + u64::from(len);
        while at < end {
            let max = limits::INDEX_PART.min((end - at) as usize);
            self.pace.spend_bytes(max).await;
            let part = self.window.part(at, max).await;
            hasher.update(part);
            // It was there before, for the payload's checksum; should it be gone, the loop ends all the same.
            at += part.len().max(1) as u64;
        }
        hasher.finish().0
    }

    /// The `N` bytes at a position, unless they end behind `end`.
    async fn head<const N: usize>(&mut self, at: LogPosition, end: LogPosition) -> Option<&[u8; N]> {
        if at + N as u64 > end {
            return None;
        }
        self.window.bytes(at, N).await.first_chunk()
    }

    async fn write_batches(&mut self) -> Result<(), IndexError> {
        let rows = self.batches.drain();
        self.write_tree(rows).await
    }

    async fn write_keys(&mut self) -> Result<(), IndexError> {
        let rows = self.keys.drain();
        self.write_tree(rows).await
    }

    async fn write_tree<R: Row>(&mut self, rows: Merge<R>) -> Result<(), IndexError> {
        if rows.len() > 0 {
            let tree = self.out.push_tree(rows, &mut self.pace).await;
            let tree = tree.map_err(|error| self.tree_error(error))?;
            self.trees.push(tree);
        }
        Ok(())
    }

    fn tree_error(&self, error: TreeError) -> IndexError {
        match error {
            TreeError::Io(source) => io_error("write", &files::temporary_index_name(self.segment.name))(source),
            TreeError::Disorder(place) => self.disorder(self.segment.name.base + place, NO_ORDER),
        }
    }

    fn bad(&self, position: LogPosition, reason: BadEntry) -> IndexError {
        IndexError::Entry { segment: self.segment.name, position, reason }
    }

    fn disorder(&self, position: LogPosition, what: &'static str) -> IndexError {
        IndexError::Disorder { segment: self.segment.name, position, what }
    }
}

/// Of one row more.
fn row_cost<R: Row>(sorter: &Sorter<R>) -> u64 {
    pace::ROW + if sorter.ends_run() { pace::RUN } else { 0 }
}
