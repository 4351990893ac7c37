//! The header of a pad: what fills a flush's last block, a segment's end and the ring's end.

use super::fields::{self, put, u16_at, u32_at, u64_at};
use super::{ENTRY_MAGIC, ENTRY_VERSION, EntryError, EntryKind, EntrySeal};
use crate::ids::{Epoch, LogPosition};
use crate::limits::{ENTRY_ALIGN, PAD_HEADER_LEN};

/// The header of a pad. Its payload, `length` bytes up to the next multiple of 64, is neither read nor checked.
///
/// ```text
///  0              4      5      6        8              12
/// ┌──────────────┬──────┬──────┬────────┬──────────────┬──────────────┐
/// │ magic "PgEn" │ vers │ 2    │ 0      │ header CRC   │ 0            │  0
/// ├──────────────┴──────┴──────┼────────┴──────────────┼──────────────┘
/// │ length       (at 16, u32)  │ 0            (at 20)  │
/// ├────────────────────────────┼───────────────────────┤
/// │ position           u64     │ epoch           u64   │ 24, 32
/// ├────────────────────────────┼───────────────────────┤
/// │ durable position   u64     │ node id         u64   │ 40, 48
/// ├────────────────────────────┼───────────────────────┘
/// │ reserved, zero     u64     │ 56
/// └────────────────────────────┘ 64
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PadHeader {
    /// Bytes after the header; header and these together are a multiple of 64.
    pub length: u32,
    pub position: LogPosition,
    pub epoch: Epoch,
    /// The durable position known when the pad was written: everything below is on the device.
    pub durable: LogPosition,
    /// The node that wrote it: no other trusts its durable position. 0 without a cluster.
    pub node: u64,
}

impl PadHeader {
    /// A pad that fills `[position, end)`; both multiples of 64, less than 4 GiB apart, and not equal.
    pub fn filling(position: LogPosition, end: LogPosition, epoch: Epoch, durable: LogPosition, node: u64) -> Self {
        let total = end - position;
        assert!(total >= PAD_HEADER_LEN as u64, "a pad holds its header");
        let Ok(length) = u32::try_from(total - PAD_HEADER_LEN as u64) else { panic!("a pad ends within 4 GiB") };
        Self { length, position, epoch, durable, node }
    }

    /// Bytes that the pad takes in the log.
    pub fn len(&self) -> u64 {
        PAD_HEADER_LEN as u64 + u64::from(self.length)
    }

    /// A pad is never empty: its header is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The position behind the pad.
    pub fn end(&self) -> LogPosition {
        self.position + self.len()
    }

    pub fn encode(&self, seal: EntrySeal, bytes: &mut [u8; PAD_HEADER_LEN]) {
        assert!(self.position.0.is_multiple_of(ENTRY_ALIGN), "entries are aligned");
        assert!(self.len().is_multiple_of(ENTRY_ALIGN), "a pad ends where the next entry starts");
        *bytes = [0; PAD_HEADER_LEN];
        put(bytes, fields::MAGIC, ENTRY_MAGIC.to_le_bytes());
        bytes[fields::VERSION] = ENTRY_VERSION;
        bytes[fields::KIND] = EntryKind::Pad as u8;
        put(bytes, fields::LENGTH, self.length.to_le_bytes());
        put(bytes, fields::POSITION, self.position.0.to_le_bytes());
        put(bytes, fields::EPOCH, self.epoch.0.to_le_bytes());
        put(bytes, fields::PAD_DURABLE, self.durable.0.to_le_bytes());
        put(bytes, fields::PAD_NODE, self.node.to_le_bytes());
        let crc = seal.crc(bytes, fields::HEADER_CRC);
        put(bytes, fields::HEADER_CRC, crc.to_le_bytes());
    }

    /// Magic, version and kind were checked by [`super::Entry::decode`].
    pub(super) fn decode(bytes: &[u8; PAD_HEADER_LEN], seal: EntrySeal) -> Result<Self, EntryError> {
        if seal.crc(bytes, fields::HEADER_CRC) != u32_at(bytes, fields::HEADER_CRC) {
            return Err(EntryError::HeaderChecksum);
        }
        let pad = Self {
            length: u32_at(bytes, fields::LENGTH),
            position: LogPosition(u64_at(bytes, fields::POSITION)),
            epoch: Epoch(u64_at(bytes, fields::EPOCH)),
            durable: LogPosition(u64_at(bytes, fields::PAD_DURABLE)),
            node: u64_at(bytes, fields::PAD_NODE),
        };
        if u16_at(bytes, fields::FLAGS) != 0 {
            return Err(EntryError::Flags(u16_at(bytes, fields::FLAGS)));
        }
        let reserved = [u32_at(bytes, fields::PAYLOAD_CRC), u32_at(bytes, fields::RECORD_COUNT)];
        if reserved != [0, 0] || u64_at(bytes, fields::PAD_RESERVED) != 0 {
            return Err(EntryError::Reserved);
        }
        if !pad.len().is_multiple_of(ENTRY_ALIGN) {
            return Err(EntryError::Length(pad.length));
        }
        if !pad.position.0.is_multiple_of(ENTRY_ALIGN) {
            return Err(EntryError::Position(pad.position));
        }
        Ok(pad)
    }
}
