//! The unit of a shard's log: a header of 96 bytes (64 for a pad), then the payload, filled with zeros to a multiple of 64.
//!
//! The header's CRC starts from the directory's secret and the shard ([`EntrySeal`]), so that neither a payload nor another
//! shard's entry can pass for one; the payload has a CRC of its own, which the producer computed. Whoever reads a log checks,
//! in this order: the header ([`Entry::decode`]), that its position is the expected one and its epoch not lower than its
//! predecessor's, then the payload ([`EntryHeader::check_payload`]). All integers are little endian.

mod fields;
mod flags;
mod header;
mod pad;
mod seal;

pub use flags::{Codec, EntryFlags};
pub use header::{EntryDraft, EntryHeader, EntryKind};
pub use pad::PadHeader;
pub use seal::{DirectoryId, DirectorySecret, EntrySeal};

use crate::ids::{Epoch, LogPosition};
use crate::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN, ENTRY_PAYLOAD_MAX, PAD_HEADER_LEN};

/// "PgEn": the first four bytes of every entry.
pub const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"PgEn");
/// The version of the entry format.
pub const ENTRY_VERSION: u8 = 1;

/// Bytes that an entry with `payload_len` bytes of payload takes in the log.
pub const fn entry_len(payload_len: u32) -> u64 {
    (ENTRY_HEADER_LEN as u64 + payload_len as u64).next_multiple_of(ENTRY_ALIGN)
}

/// A decoded header, of either size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Anything that carries meaning: a batch, a catalogue change, a note of lost extents.
    Full(EntryHeader),
    /// Fills the rest of a block, a segment or the ring.
    Pad(PadHeader),
}

impl Entry {
    /// Decodes the header at the start of `bytes`; the payload is not looked at.
    ///
    /// Everything in an accepted header is in range: a known kind, known flags, a length within the limits, a position and a
    /// total length that are multiples of 64, zero in what is reserved.
    pub fn decode(bytes: &[u8], seal: EntrySeal) -> Result<Self, EntryError> {
        let Some(start) = bytes.first_chunk::<PAD_HEADER_LEN>() else {
            return Err(EntryError::Short { needs: PAD_HEADER_LEN });
        };
        if fields::u32_at(start, fields::MAGIC) != ENTRY_MAGIC {
            return Err(EntryError::Magic);
        }
        if start[fields::VERSION] != ENTRY_VERSION {
            return Err(EntryError::Version(start[fields::VERSION]));
        }
        if start[fields::KIND] == EntryKind::Pad as u8 {
            return PadHeader::decode(start, seal).map(Self::Pad);
        }
        match bytes.first_chunk::<ENTRY_HEADER_LEN>() {
            Some(whole) => EntryHeader::decode(whole, seal).map(Self::Full),
            None => Err(EntryError::Short { needs: ENTRY_HEADER_LEN }),
        }
    }

    pub fn position(&self) -> LogPosition {
        match self {
            Self::Full(header) => header.position,
            Self::Pad(pad) => pad.position,
        }
    }

    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Full(header) => header.epoch,
            Self::Pad(pad) => pad.epoch,
        }
    }

    /// Bytes that the entry takes in the log: header, payload and filling.
    pub fn len(&self) -> u64 {
        match self {
            Self::Full(header) => header.len(),
            Self::Pad(pad) => pad.len(),
        }
    }

    /// An entry is never empty: its header is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The position behind the entry, where its successor starts.
    pub fn end(&self) -> LogPosition {
        self.position() + self.len()
    }
}

/// Why bytes are no entry, or not the one that they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    #[error("an entry's header needs {needs} bytes")]
    Short { needs: usize },
    #[error("no entry starts here")]
    Magic,
    #[error("entry version {0}, this program knows {ENTRY_VERSION}")]
    Version(u8),
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    #[error("unknown kind of entry {0}")]
    Kind(u8),
    #[error("unknown entry flags {0:#06x}")]
    Flags(u16),
    #[error("a reserved field is not zero")]
    Reserved,
    #[error("position {0} is not a multiple of {ENTRY_ALIGN}")]
    Position(LogPosition),
    #[error("length {0} is not allowed (at most {ENTRY_PAYLOAD_MAX}; a pad's ends at a multiple of {ENTRY_ALIGN})")]
    Length(u32),
    #[error("the payload's checksum is wrong")]
    PayloadChecksum,
}

#[cfg(test)]
mod tests;
