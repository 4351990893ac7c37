//! Reads a segment's entries one after the other, through a window of large direct reads, and tells good from bad.
//!
//! A block that the device cannot read stands here as zeros, and is remembered: an entry that touches one is bad, whatever its
//! other bytes say, and its badness is never a torn tail, since nobody knows what the block hides. So a block that was given up
//! once stops no later start, and one that no entry needs stops none at all.

use std::collections::BTreeMap;

use peregrine_protocol::entry::{ENTRY_MAGIC, Entry, EntryError, EntrySeal, PadHeader};
use peregrine_protocol::ids::{Epoch, LogPosition};
use peregrine_protocol::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN, PAD_HEADER_LEN};

use crate::log::damage::Extent;
use crate::log::disk::{BLOCK, DiskFile};
use crate::log::sequential::SequentialFile;

/// Bytes of one direct read, unless said otherwise.
const READ: usize = 1 << 20;

/// Why no good entry stands at a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error(transparent)]
    Bytes(#[from] EntryError),
    #[error("an entry for position {0} stands here")]
    Position(LogPosition),
    #[error("an entry of epoch {0} stands here, out of order")]
    Epoch(Epoch),
    #[error("an entry reaches beyond the end")]
    End,
    /// It lies, in part or as a whole, in a block that cannot be read.
    #[error("the device cannot read it: {0}")]
    Unreadable(String),
}

/// What an entry must be to be accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub position: LogPosition,
    /// Not below its predecessor's,
    pub epoch_min: Epoch,
    /// nor above that of the run that wrote the place.
    pub epoch_max: Epoch,
    /// It ends at or below this.
    pub limit: LogPosition,
}

/// Checks all of an entry but its payload.
pub(super) fn decode_entry(header: &[u8], seal: EntrySeal, expected: &Expected) -> Result<Entry, BadEntry> {
    let entry = Entry::decode(header, seal)?;
    if entry.position() != expected.position {
        return Err(BadEntry::Position(entry.position()));
    }
    if !(expected.epoch_min..=expected.epoch_max).contains(&entry.epoch()) {
        return Err(BadEntry::Epoch(entry.epoch()));
    }
    if entry.end() > expected.limit {
        return Err(BadEntry::End);
    }
    Ok(entry)
}

/// A reader of one segment file.
pub(super) struct Window<F: DiskFile> {
    file: SequentialFile<F>,
    base: LogPosition,
    seal: EntrySeal,
    /// Where `bytes` start: a block boundary.
    from: LogPosition,
    bytes: Vec<u8>,
    /// The blocks so far that the device could not read, by their first positions, and why.
    unreadable: BTreeMap<LogPosition, String>,
    /// A planted fault.
    skips_checksums: bool,
}

impl<F: DiskFile> Window<F> {
    pub fn new(file: F, base: LogPosition, seal: EntrySeal) -> Self {
        let file = SequentialFile::new(file, READ);
        let (bytes, unreadable) = (Vec::new(), BTreeMap::new());
        Self { file, base, seal, from: base, bytes, unreadable, skips_checksums: false }
    }

    /// The same with direct reads of `read` bytes, a multiple of [`BLOCK`].
    pub fn reading(self, read: usize) -> Self {
        Self { file: self.file.reading(read), ..self }
    }

    /// The same with a fault planted: payloads are taken for sound.
    pub fn skipping_checksums(self, skips_checksums: bool) -> Self {
        Self { skips_checksums, ..self }
    }

    /// The bytes at `position`: `len` of them, or fewer where the file ends. Zeros stand for what cannot be read.
    pub async fn bytes(&mut self, position: LogPosition, len: usize) -> &[u8] {
        let held = self.from + self.bytes.len() as u64;
        if position < self.from || position + len as u64 > held {
            self.fill(position, len).await;
        }
        let at = ((position - self.from) as usize).min(self.bytes.len());
        let end = (at + len).min(self.bytes.len());
        &self.bytes[at..end]
    }

    /// What is held of the bytes at `position`, one to `max` of them; none at the end of the file. Whoever goes through a long
    /// payload so reads nothing twice.
    pub async fn part(&mut self, position: LogPosition, max: usize) -> &[u8] {
        let held = (self.from + self.bytes.len() as u64).0.saturating_sub(position.0) as usize;
        let len = if position < self.from || held == 0 { max.min(self.file.read() - BLOCK) } else { max.min(held) };
        self.bytes(position, len).await
    }

    /// Reads on behind what is held, or anew where that does not touch `position`.
    async fn fill(&mut self, position: LogPosition, len: usize) {
        let (held, from) = (self.from + self.bytes.len() as u64, block_of(position));
        if (self.from..=held).contains(&from) {
            self.bytes.drain(..(from - self.from) as usize);
        } else {
            self.bytes.clear();
        }
        self.from = from;
        let wanted = (position - from) as usize + len;
        while self.bytes.len() < wanted {
            let offset = self.from - self.base + (BLOCK + self.bytes.len()) as u64;
            let len = match self.file.read_at(offset).await {
                Ok(read) => {
                    self.bytes.extend_from_slice(&read);
                    read.len()
                }
                Err(_) => self.fill_readable(offset).await,
            };
            if len < self.file.read() {
                break;
            }
        }
    }

    /// Reads block by block where a long read failed. The bytes up to the file's end, one read at most.
    async fn fill_readable(&mut self, offset: u64) -> usize {
        let file = self.file.file();
        let len = self.file.read().min(file.size().saturating_sub(offset) as usize);
        for at in (0..len).step_by(BLOCK) {
            match file.read_at(offset + at as u64, BLOCK).await {
                Ok(block) => self.bytes.extend_from_slice(&block),
                Err(error) => {
                    let position = self.from + self.bytes.len() as u64;
                    self.unreadable.insert(position, error.to_string());
                    self.bytes.resize(self.bytes.len() + BLOCK, 0);
                }
            }
        }
        len
    }

    /// The blocks between two positions that could not be read, as far as they were asked for, each with the reason.
    pub fn unreadable(&self, from: LogPosition, to: LogPosition) -> impl Iterator<Item = (Extent, &str)> {
        let blocks = self.unreadable.range(block_of(from)..to.max(block_of(from)));
        blocks.map(|(&from, reason)| (Extent { from, to: from + BLOCK as u64 }, reason.as_str()))
    }

    /// The end of the unreadable blocks that follow each other from the first one at or behind `position`.
    pub fn unreadable_end(&self, position: LogPosition) -> LogPosition {
        let mut end = None;
        for &block in self.unreadable.range(block_of(position)..).map(|(block, _)| block) {
            if end.is_some_and(|end| end < block) {
                break;
            }
            end = Some(block + BLOCK as u64);
        }
        end.unwrap_or(position)
    }

    /// The entry that stands where one is expected, its payload not looked at.
    pub async fn header(&mut self, expected: &Expected) -> Result<Entry, BadEntry> {
        let (seal, position) = (self.seal, expected.position);
        let decoded = decode_entry(self.bytes(position, ENTRY_HEADER_LEN).await, seal, expected);
        // A pad's header is shorter, and an entry may end with its block: only what is needed counts.
        let header_len = if matches!(decoded, Ok(Entry::Pad(_))) { PAD_HEADER_LEN } else { ENTRY_HEADER_LEN };
        self.check_readable(position, (position + header_len as u64).min(expected.limit))?;
        decoded
    }

    /// The entry that stands where one is expected, its payload checked.
    pub async fn entry(&mut self, expected: &Expected) -> Result<Entry, BadEntry> {
        let entry = self.header(expected).await?;
        if let Entry::Full(header) = entry {
            let (payload, skips) = (header.payload_position(), self.skips_checksums);
            let sound = header.check_payload(self.payload(payload, header.length).await);
            let sound = if skips { Ok(()) } else { sound };
            self.check_readable(payload, payload + u64::from(header.length))?;
            sound?;
        }
        Ok(entry)
    }

    /// Whether no block between two positions, as far as they were asked for, is one that the device cannot read.
    pub fn check_readable(&self, from: LogPosition, to: LogPosition) -> Result<(), BadEntry> {
        self.unreadable(from, to).next().map_or(Ok(()), |(_, reason)| Err(BadEntry::Unreadable(reason.to_owned())))
    }

    pub async fn payload(&mut self, position: LogPosition, length: u32) -> &[u8] {
        self.bytes(position, length as usize).await
    }

    /// The first good entry at or behind `expected.position` that ends at or below its limit.
    pub async fn next_good(&mut self, mut expected: Expected) -> Option<LogPosition> {
        while let Some(position) = self.next_magic(expected.position, expected.limit).await {
            expected.position = position;
            if self.entry(&expected).await.is_ok() {
                return Some(position);
            }
            expected.position += ENTRY_ALIGN;
        }
        None
    }

    /// The first good pad at or behind `expected.position`, whatever stands around it.
    pub async fn next_pad(&mut self, mut expected: Expected) -> Option<PadHeader> {
        let seal = self.seal;
        while let Some(position) = self.next_magic(expected.position, expected.limit).await {
            expected.position = position;
            let header = self.bytes(position, ENTRY_HEADER_LEN).await;
            if let Ok(Entry::Pad(pad)) = decode_entry(header, seal, &expected) {
                return Some(pad);
            }
            expected.position += ENTRY_ALIGN;
        }
        None
    }

    /// The first position from `position` on where an entry could start, by its first four bytes.
    pub async fn next_magic(&mut self, position: LogPosition, limit: LogPosition) -> Option<LogPosition> {
        const STRIDE: usize = 64 << 10;
        let magic = ENTRY_MAGIC.to_le_bytes();
        let mut at = position;
        while at < limit {
            let len = ((limit - at) as usize).min(STRIDE);
            let bytes = self.bytes(at, len).await;
            let found = bytes.chunks(ENTRY_ALIGN as usize).position(|chunk| chunk.starts_with(&magic));
            if let Some(chunk) = found {
                return Some(at + chunk as u64 * ENTRY_ALIGN);
            }
            if bytes.len() < len {
                return None;
            }
            at += len as u64;
        }
        None
    }
}

/// Where the block of a position starts: bases of segments are block boundaries.
fn block_of(position: LogPosition) -> LogPosition {
    LogPosition(position.0 / BLOCK as u64 * BLOCK as u64)
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_lite::future::block_on;
    use peregrine_protocol::entry::DirectorySecret;
    use peregrine_protocol::ids::ShardId;

    use super::*;

    /// A file of blocks of which one cannot be read.
    struct Failing {
        blocks: usize,
        bad: u64,
    }

    impl DiskFile for Failing {
        type Buffer = Vec<u8>;
        type Bytes = Vec<u8>;

        fn size(&self) -> u64 {
            (self.blocks * BLOCK) as u64
        }

        async fn extend(&self, _size: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn write_at(&self, _buffer: Vec<u8>, _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            let end = self.size().min(offset + len as u64);
            let bad = self.bad * BLOCK as u64;
            if (offset..end).contains(&bad) {
                Err(io::Error::other("a bad block"))
            } else {
                Ok(vec![7; (end - offset) as usize])
            }
        }

        async fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_unreadable_block_reads_as_zeros_and_is_remembered() {
        let seal = EntrySeal::new(&DirectorySecret([1; 16]), ShardId(0));
        let mut window = Window::new(Failing { blocks: 300, bad: 280 }, LogPosition(0), seal);
        let all = 299 * BLOCK;
        let bytes = block_on(window.bytes(LogPosition(0), all));
        assert_eq!(bytes.len(), all);
        let zeros: Vec<_> = bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.contains(&0)).collect();
        assert_eq!(zeros, [(279, &[0; BLOCK][..])], "position 0 is in the file's second block");
        let (from, to) = (LogPosition(279 * BLOCK as u64), LogPosition(280 * BLOCK as u64));
        let unreadable =
            |window: &Window<_>, from, to| window.unreadable(from, to).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(unreadable(&window, LogPosition(0), LogPosition(u64::MAX)), [Extent { from, to }]);
        assert_eq!(unreadable(&window, from + 64, from + 128), [Extent { from, to }], "any part of it");
        assert_eq!((unreadable(&window, LogPosition(0), from), unreadable(&window, to, to + 64)), (vec![], vec![]));
        assert_eq!((window.unreadable_end(from + 64), window.unreadable_end(to)), (to, to));
    }
}
