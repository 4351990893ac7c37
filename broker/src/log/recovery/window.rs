//! Reads a segment's entries one after the other, through a window of large direct reads, and tells good from bad.

use peregrine_protocol::entry::{ENTRY_MAGIC, Entry, EntryError, EntrySeal, PadHeader};
use peregrine_protocol::ids::{Epoch, LogPosition};
use peregrine_protocol::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN};

use crate::log::disk::{BLOCK, DiskFile};

/// Bytes of one direct read.
const READ: usize = 1 << 20;

/// Why no good entry stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadEntry {
    #[error(transparent)]
    Bytes(#[from] EntryError),
    #[error("an entry for position {0} stands here")]
    Position(LogPosition),
    #[error("an entry of epoch {0} stands here, out of order")]
    Epoch(Epoch),
    #[error("an entry reaches beyond the end")]
    End,
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
    file: F,
    base: LogPosition,
    seal: EntrySeal,
    /// Take blocks that the device cannot read for zeros, which are no entries: with `--accept-loss` alone. Without it a
    /// failed read ends the start, since it may pass, and what it hides must not be taken for a torn tail.
    unreadable_is_zero: bool,
    /// Where `bytes` start: a block boundary.
    from: LogPosition,
    bytes: Vec<u8>,
}

impl<F: DiskFile> Window<F> {
    pub fn new(file: F, base: LogPosition, seal: EntrySeal, unreadable_is_zero: bool) -> Self {
        Self { file, base, seal, unreadable_is_zero, from: base, bytes: Vec::new() }
    }

    /// The bytes at `position`: `len` of them, or fewer where the file ends.
    pub async fn bytes(&mut self, position: LogPosition, len: usize) -> std::io::Result<&[u8]> {
        let held = self.from + self.bytes.len() as u64;
        if position < self.from || position + len as u64 > held {
            self.fill(position, len).await?;
        }
        let at = ((position - self.from) as usize).min(self.bytes.len());
        let end = (at + len).min(self.bytes.len());
        Ok(&self.bytes[at..end])
    }

    async fn fill(&mut self, position: LogPosition, len: usize) -> std::io::Result<()> {
        self.bytes.clear();
        self.from = LogPosition(position.0 / BLOCK as u64 * BLOCK as u64);
        let wanted = ((position - self.from) as usize + len).next_multiple_of(READ);
        while self.bytes.len() < wanted {
            let offset = self.from - self.base + (BLOCK + self.bytes.len()) as u64;
            let len = match self.file.read_at(offset, READ).await {
                Ok(read) => {
                    self.bytes.extend_from_slice(&read);
                    read.len()
                }
                Err(_) if self.unreadable_is_zero => self.fill_readable(offset).await,
                Err(error) => return Err(error),
            };
            if len < READ {
                break;
            }
        }
        Ok(())
    }

    /// Reads block by block where a long read failed. The bytes up to the file's end, [`READ`] at most.
    async fn fill_readable(&mut self, offset: u64) -> usize {
        let len = READ.min(self.file.size().saturating_sub(offset) as usize);
        for at in (0..len).step_by(BLOCK) {
            match self.file.read_at(offset + at as u64, BLOCK).await {
                Ok(block) => self.bytes.extend_from_slice(&block),
                Err(_) => self.bytes.resize(self.bytes.len() + BLOCK, 0),
            }
        }
        len
    }

    /// The entry that stands where one is expected, its payload checked.
    pub async fn entry(&mut self, expected: &Expected) -> std::io::Result<Result<Entry, BadEntry>> {
        let seal = self.seal;
        let header = self.bytes(expected.position, ENTRY_HEADER_LEN).await?;
        let entry = match decode_entry(header, seal, expected) {
            Ok(entry) => entry,
            Err(bad) => return Ok(Err(bad)),
        };
        if let Entry::Full(header) = entry
            && let Err(bad) = header.check_payload(self.payload(header.payload_position(), header.length).await?)
        {
            return Ok(Err(bad.into()));
        }
        Ok(Ok(entry))
    }

    pub async fn payload(&mut self, position: LogPosition, length: u32) -> std::io::Result<&[u8]> {
        self.bytes(position, length as usize).await
    }

    /// The first good entry at or behind `expected.position` that ends at or below its limit.
    pub async fn next_good(&mut self, mut expected: Expected) -> std::io::Result<Option<LogPosition>> {
        while let Some(position) = self.next_magic(expected.position, expected.limit).await? {
            expected.position = position;
            if self.entry(&expected).await?.is_ok() {
                return Ok(Some(position));
            }
            expected.position += ENTRY_ALIGN;
        }
        Ok(None)
    }

    /// The first good pad at or behind `expected.position`, whatever stands around it.
    pub async fn next_pad(&mut self, mut expected: Expected) -> std::io::Result<Option<PadHeader>> {
        let seal = self.seal;
        while let Some(position) = self.next_magic(expected.position, expected.limit).await? {
            expected.position = position;
            let header = self.bytes(position, ENTRY_HEADER_LEN).await?;
            if let Ok(Entry::Pad(pad)) = decode_entry(header, seal, &expected) {
                return Ok(Some(pad));
            }
            expected.position += ENTRY_ALIGN;
        }
        Ok(None)
    }

    /// The first position from `position` on where an entry could start, by its first four bytes.
    async fn next_magic(&mut self, position: LogPosition, limit: LogPosition) -> std::io::Result<Option<LogPosition>> {
        const STRIDE: usize = 64 << 10;
        let magic = ENTRY_MAGIC.to_le_bytes();
        let mut at = position;
        while at < limit {
            let len = ((limit - at) as usize).min(STRIDE);
            let bytes = self.bytes(at, len).await?;
            let found = bytes.chunks(ENTRY_ALIGN as usize).position(|chunk| chunk.starts_with(&magic));
            if let Some(chunk) = found {
                return Ok(Some(at + chunk as u64 * ENTRY_ALIGN));
            }
            if bytes.len() < len {
                return Ok(None);
            }
            at += len as u64;
        }
        Ok(None)
    }
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
    fn an_unreadable_block_ends_the_start_unless_loss_is_accepted() {
        let seal = EntrySeal::new(&DirectorySecret([1; 16]), ShardId(0));
        let window = |lenient| Window::new(Failing { blocks: 300, bad: 280 }, LogPosition(0), seal, lenient);
        let all = 299 * BLOCK;
        assert!(block_on(window(false).bytes(LogPosition(0), all)).is_err());
        let mut window = window(true);
        let bytes = block_on(window.bytes(LogPosition(0), all)).unwrap();
        assert_eq!(bytes.len(), all);
        let zeros: Vec<_> = bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.contains(&0)).collect();
        assert_eq!(zeros, [(279, &[0; BLOCK][..])], "position 0 is in the file's second block");
    }
}
