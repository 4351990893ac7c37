//! The header of a full entry, and the draft that an engine hands to the log.

use super::fields::{self, put, u16_at, u32_at, u64_at};
use super::{ENTRY_MAGIC, ENTRY_VERSION, EntryError, EntryFlags, EntrySeal, entry_len};
use crate::checksum::crc32;
use crate::ids::{Epoch, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, TopicId};
use crate::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN, ENTRY_PAYLOAD_MAX};

/// What an entry is. Numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum EntryKind {
    /// Records of one queue.
    Batch = 1,
    /// Filling; its header is a [`super::PadHeader`], so no [`EntryHeader`] has this kind.
    Pad = 2,
    /// A change of the catalogue.
    Catalogue = 3,
    /// Extents of the log that were given up by `--accept-loss`.
    Loss = 4,
    /// How far consumer groups are in queues of the shard.
    GroupOffsets = 5,
    /// From where on queues of the shard keep their messages.
    QueueStarts = 6,
}

impl EntryKind {
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Batch),
            2 => Some(Self::Pad),
            3 => Some(Self::Catalogue),
            4 => Some(Self::Loss),
            5 => Some(Self::GroupOffsets),
            6 => Some(Self::QueueStarts),
            _ => None,
        }
    }
}

/// The header of an entry that is no pad.
///
/// ```text
///  0              4      5      6        8              12
/// ┌──────────────┬──────┬──────┬────────┬──────────────┬──────────────┐
/// │ magic "PgEn" │ vers │ kind │ flags  │ header CRC   │ payload CRC  │  0
/// ├──────────────┴──────┴──────┼────────┴──────────────┼──────────────┘
/// │ length       (at 16, u32)  │ record count (at 20)  │
/// ├────────────────────────────┼───────────────────────┤
/// │ position           u64     │ epoch           u64   │ 24, 32
/// ├────────────────────────────┼──────────┬────────────┤
/// │ topic id           u64     │ queue u32│ prod. epoch│ 40, 48, 52
/// ├────────────────────────────┼──────────┴────────────┤
/// │ base queue offset  u64     │ store time ns   u64   │ 56, 64
/// ├────────────────────────────┼───────────────────────┤
/// │ producer id        u64     │ sequence        u64   │ 72, 80
/// ├────────────────────────────┼───────────────────────┘
/// │ reserved, zero     u64     │ 88
/// └────────────────────────────┘ 96, then the payload, then zeros to a multiple of 64
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    pub kind: EntryKind,
    pub flags: EntryFlags,
    /// CRC32 of the payload, as the producer computed it.
    pub payload_crc: u32,
    /// Bytes of payload; at most [`ENTRY_PAYLOAD_MAX`].
    pub length: u32,
    /// Records in a batch, which take as many queue offsets; 0 in other kinds.
    pub record_count: u32,
    /// Where the header starts in the shard's log.
    pub position: LogPosition,
    /// The run of the shard that wrote it.
    pub epoch: Epoch,
    pub topic: TopicId,
    pub queue: QueueId,
    /// Of an idempotent producer, as are `producer_id` and `sequence`.
    pub producer_epoch: ProducerEpoch,
    /// The queue offset of the first record.
    pub base_offset: QueueOffset,
    /// When the broker took it; never goes back within a shard.
    pub store_time: Nanos,
    pub producer_id: ProducerId,
    pub sequence: Sequence,
}

impl EntryHeader {
    /// Bytes that the entry takes in the log.
    pub fn len(&self) -> u64 {
        entry_len(self.length)
    }

    /// An entry is never empty: its header is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The position behind the entry.
    pub fn end(&self) -> LogPosition {
        self.position + self.len()
    }

    /// Where the payload starts.
    pub fn payload_position(&self) -> LogPosition {
        self.position + ENTRY_HEADER_LEN as u64
    }

    /// The queue offset behind the last record.
    pub fn end_offset(&self) -> QueueOffset {
        self.base_offset + u64::from(self.record_count)
    }

    /// Checks the payload's CRC. A shard that must not stop for long sums it in steps with [`crate::checksum::Crc32`] instead.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), EntryError> {
        if payload.len() == self.length as usize && crc32(payload) == self.payload_crc {
            Ok(())
        } else {
            Err(EntryError::PayloadChecksum)
        }
    }

    pub fn encode(&self, seal: EntrySeal, bytes: &mut [u8; ENTRY_HEADER_LEN]) {
        assert!(self.kind != EntryKind::Pad, "a pad has a header of its own");
        assert!(self.length <= ENTRY_PAYLOAD_MAX, "the length was checked before");
        assert!(self.position.0.is_multiple_of(ENTRY_ALIGN), "entries are aligned");
        *bytes = [0; ENTRY_HEADER_LEN];
        put(bytes, fields::MAGIC, ENTRY_MAGIC.to_le_bytes());
        bytes[fields::VERSION] = ENTRY_VERSION;
        bytes[fields::KIND] = self.kind as u8;
        put(bytes, fields::FLAGS, self.flags.bits().to_le_bytes());
        put(bytes, fields::PAYLOAD_CRC, self.payload_crc.to_le_bytes());
        put(bytes, fields::LENGTH, self.length.to_le_bytes());
        put(bytes, fields::RECORD_COUNT, self.record_count.to_le_bytes());
        put(bytes, fields::POSITION, self.position.0.to_le_bytes());
        put(bytes, fields::EPOCH, self.epoch.0.to_le_bytes());
        put(bytes, fields::TOPIC, self.topic.0.to_le_bytes());
        put(bytes, fields::QUEUE, self.queue.0.to_le_bytes());
        put(bytes, fields::PRODUCER_EPOCH, self.producer_epoch.0.to_le_bytes());
        put(bytes, fields::BASE_OFFSET, self.base_offset.0.to_le_bytes());
        put(bytes, fields::STORE_TIME, self.store_time.0.to_le_bytes());
        put(bytes, fields::PRODUCER_ID, self.producer_id.0.to_le_bytes());
        put(bytes, fields::SEQUENCE, self.sequence.0.to_le_bytes());
        let crc = seal.crc(bytes, fields::HEADER_CRC);
        put(bytes, fields::HEADER_CRC, crc.to_le_bytes());
    }

    /// Magic and version were checked by [`super::Entry::decode`].
    pub(super) fn decode(bytes: &[u8; ENTRY_HEADER_LEN], seal: EntrySeal) -> Result<Self, EntryError> {
        if seal.crc(bytes, fields::HEADER_CRC) != u32_at(bytes, fields::HEADER_CRC) {
            return Err(EntryError::HeaderChecksum);
        }
        let kind = match EntryKind::from_number(bytes[fields::KIND]) {
            Some(kind) if kind != EntryKind::Pad => kind,
            _ => return Err(EntryError::Kind(bytes[fields::KIND])),
        };
        let flags = u16_at(bytes, fields::FLAGS);
        let header = Self {
            kind,
            flags: EntryFlags::from_bits(flags).ok_or(EntryError::Flags(flags))?,
            payload_crc: u32_at(bytes, fields::PAYLOAD_CRC),
            length: u32_at(bytes, fields::LENGTH),
            record_count: u32_at(bytes, fields::RECORD_COUNT),
            position: LogPosition(u64_at(bytes, fields::POSITION)),
            epoch: Epoch(u64_at(bytes, fields::EPOCH)),
            topic: TopicId(u64_at(bytes, fields::TOPIC)),
            queue: QueueId(u32_at(bytes, fields::QUEUE)),
            producer_epoch: ProducerEpoch(u32_at(bytes, fields::PRODUCER_EPOCH)),
            base_offset: QueueOffset(u64_at(bytes, fields::BASE_OFFSET)),
            store_time: Nanos(u64_at(bytes, fields::STORE_TIME)),
            producer_id: ProducerId(u64_at(bytes, fields::PRODUCER_ID)),
            sequence: Sequence(u64_at(bytes, fields::SEQUENCE)),
        };
        if u64_at(bytes, fields::RESERVED) != 0 {
            return Err(EntryError::Reserved);
        }
        if header.length > ENTRY_PAYLOAD_MAX {
            return Err(EntryError::Length(header.length));
        }
        if !header.position.0.is_multiple_of(ENTRY_ALIGN) {
            return Err(EntryError::Position(header.position));
        }
        Ok(header)
    }
}

/// An entry as the engine decides on it: all but where it will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryDraft {
    pub kind: EntryKind,
    pub flags: EntryFlags,
    pub payload_crc: u32,
    /// Bytes of payload.
    pub length: u32,
    pub record_count: u32,
    pub topic: TopicId,
    pub queue: QueueId,
    pub producer_epoch: ProducerEpoch,
    pub base_offset: QueueOffset,
    pub store_time: Nanos,
    pub producer_id: ProducerId,
    pub sequence: Sequence,
}

impl EntryDraft {
    /// An entry that holds no records: everything that speaks of producers and queues is zero.
    pub fn without_records(kind: EntryKind, payload: &[u8], store_time: Nanos) -> Self {
        Self {
            kind,
            flags: EntryFlags::NONE,
            payload_crc: crc32(payload),
            length: payload.len() as u32,
            record_count: 0,
            topic: TopicId(0),
            queue: QueueId(0),
            producer_epoch: ProducerEpoch(0),
            base_offset: QueueOffset(0),
            store_time,
            producer_id: ProducerId::NONE,
            sequence: Sequence(0),
        }
    }

    /// The header of this entry at `position`, written in `epoch`.
    pub fn at(&self, position: LogPosition, epoch: Epoch) -> EntryHeader {
        EntryHeader {
            kind: self.kind,
            flags: self.flags,
            payload_crc: self.payload_crc,
            length: self.length,
            record_count: self.record_count,
            position,
            epoch,
            topic: self.topic,
            queue: self.queue,
            producer_epoch: self.producer_epoch,
            base_offset: self.base_offset,
            store_time: self.store_time,
            producer_id: self.producer_id,
            sequence: self.sequence,
        }
    }

    /// Bytes that the entry will take in the log.
    pub fn len(&self) -> u64 {
        entry_len(self.length)
    }

    /// An entry is never empty: its header is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }
}
