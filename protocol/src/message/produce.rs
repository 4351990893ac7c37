//! Produce: one batch of one queue, and its acknowledgement. On a message's path: structs alone, nothing allocated.

use super::DecodeError;
use super::table::read_struct;
use crate::entry::{EntryFlags, EntryHeader};
use crate::frame::{self, FrameHead, Kind, Sender};
use crate::generated as wire;
use crate::ids::{
    Correlation, DurableLevel, Epoch, LogPosition, MessageId, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset,
    Sequence, ShardId, TopicId,
};
use crate::limits::{ENTRY_HEADER_LEN, FRAME_HEAD_LEN, RECORDS_MAX};

/// Bytes of a produce frame before its payload.
pub const PRODUCE_PREFIX_LEN: usize = FRAME_HEAD_LEN + 48;
/// Bytes of a produce answer's frame.
pub const PRODUCE_ANSWER_LEN: usize = FRAME_HEAD_LEN + 40;
/// On the wire: the position is not known any more.
const NO_POSITION: u64 = u64::MAX;

/// What a produce frame says of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceHead {
    pub topic: TopicId,
    pub queue: QueueId,
    /// [`ProducerId::NONE`]: not idempotent; epoch and sequence are then 0.
    pub producer_id: ProducerId,
    pub producer_epoch: ProducerEpoch,
    pub sequence: Sequence,
    /// CRC32 of the payload.
    pub payload_crc: u32,
    /// 1 to [`RECORDS_MAX`].
    pub record_count: u32,
    /// Codec and level asked for, as they will stand in the entry; always with a level, never control.
    pub flags: EntryFlags,
}

impl ProduceHead {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::ProduceHead(read_struct(header)?);
        let flags = EntryFlags::from_bits(head.flags()).ok_or(DecodeError::Field("flags"))?;
        if flags.level().is_none() || flags.is_control() {
            return Err(DecodeError::Field("flags"));
        }
        if !(1..=RECORDS_MAX).contains(&head.record_count()) {
            return Err(DecodeError::Field("record_count"));
        }
        if head.reserved_1() != 0 || head.reserved_2() != 0 {
            return Err(DecodeError::Header);
        }
        Ok(Self {
            topic: TopicId(head.topic()),
            queue: QueueId(head.queue()),
            producer_id: ProducerId(head.producer_id()),
            producer_epoch: ProducerEpoch(head.producer_epoch()),
            sequence: Sequence(head.sequence()),
            payload_crc: head.payload_crc(),
            record_count: head.record_count(),
            flags,
        })
    }

    /// The durable level asked for.
    pub fn level(&self) -> DurableLevel {
        self.flags.level().unwrap_or_default()
    }

    /// All of the frame before a payload of `payload_len` bytes; behind the payload come [`frame::filling`]'s zeros.
    pub fn encode_prefix(&self, correlation: Correlation, payload_len: usize) -> [u8; PRODUCE_PREFIX_LEN] {
        let header = wire::ProduceHead::new(
            self.topic.0,
            self.producer_id.0,
            self.sequence.0,
            self.queue.0,
            self.producer_epoch.0,
            self.payload_crc,
            self.record_count,
            self.flags.bits(),
            0,
            0,
        );
        let head = FrameHead::new(Kind::Produce, Sender::Client, correlation, header.0.len(), payload_len);
        let mut bytes = [0; PRODUCE_PREFIX_LEN];
        bytes[..FRAME_HEAD_LEN].copy_from_slice(&head.encode());
        bytes[FRAME_HEAD_LEN..].copy_from_slice(&header.0);
        bytes
    }
}

/// One batch of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produce<'a> {
    pub head: ProduceHead,
    /// The records, or what a codec made of them.
    pub payload: &'a [u8],
}

impl Produce<'_> {
    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head.encode_prefix(correlation, self.payload.len()));
        out.extend_from_slice(self.payload);
        out.extend_from_slice(frame::filling(self.payload.len()));
    }
}

/// The acknowledgement of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceAnswer {
    pub queue: QueueId,
    pub base_offset: QueueOffset,
    pub record_count: u32,
    pub epoch: Epoch,
    pub shard: ShardId,
    /// Of the entry; `None` for a duplicate whose position is not known any more.
    pub position: Option<LogPosition>,
    /// What is promised: at least what was asked for.
    pub level: DurableLevel,
    /// The batch had been stored before.
    pub duplicate: bool,
}

impl ProduceAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::ProduceAnswerHead(read_struct(header)?);
        if head.reserved() != 0 || head.duplicate() > 1 {
            return Err(DecodeError::Header);
        }
        Ok(Self {
            queue: QueueId(head.queue()),
            base_offset: QueueOffset(head.base_offset()),
            record_count: head.record_count(),
            epoch: Epoch(head.epoch()),
            shard: ShardId(head.shard()),
            position: Some(head.position()).filter(|&position| position != NO_POSITION).map(LogPosition),
            level: DurableLevel::from_number(head.level()).ok_or(DecodeError::Field("level"))?,
            duplicate: head.duplicate() == 1,
        })
    }

    /// The whole frame.
    pub fn to_frame(&self, correlation: Correlation) -> [u8; PRODUCE_ANSWER_LEN] {
        let header = wire::ProduceAnswerHead::new(
            self.base_offset.0,
            self.epoch.0,
            self.position.map_or(NO_POSITION, |position| position.0),
            self.queue.0,
            self.record_count,
            self.shard.0,
            self.level.number(),
            u8::from(self.duplicate),
            0,
        );
        let head = FrameHead::new(Kind::Produce, Sender::Broker, correlation, header.0.len(), 0);
        let mut bytes = [0; PRODUCE_ANSWER_LEN];
        bytes[..FRAME_HEAD_LEN].copy_from_slice(&head.encode());
        bytes[FRAME_HEAD_LEN..].copy_from_slice(&header.0);
        bytes
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_frame(correlation));
    }
}

/// What deliveries and fetch answers say of a stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    pub base_offset: QueueOffset,
    /// The first offset that the reader wants: `base_offset` or one within the batch.
    pub first_wanted: QueueOffset,
    pub record_count: u32,
    pub epoch: Epoch,
    /// Of the entry.
    pub position: LogPosition,
    pub store_time: Nanos,
    /// CRC32 of the payload.
    pub payload_crc: u32,
    pub payload_length: u32,
    /// The entry's: codec, and the level that its producer asked for.
    pub flags: EntryFlags,
    /// To a member of a group: 1 where the message at `first_wanted` is delivered to the group for the first time, 2 for the
    /// second, and so on. 0: to a reader.
    pub attempt: u16,
}

impl BatchHead {
    pub(super) const LEN: usize = 56;

    /// Of a batch in the log, for a reader that wants what is at or above `first_wanted`.
    pub fn of(header: &EntryHeader, first_wanted: QueueOffset) -> Self {
        Self {
            base_offset: header.base_offset,
            first_wanted: first_wanted.max(header.base_offset),
            record_count: header.record_count,
            epoch: header.epoch,
            position: header.position,
            store_time: header.store_time,
            payload_crc: header.payload_crc,
            payload_length: header.length,
            flags: header.flags,
            attempt: 0,
        }
    }

    /// The queue offset behind the last record.
    pub fn end_offset(&self) -> QueueOffset {
        self.base_offset + u64::from(self.record_count)
    }

    /// The id of the record that starts at `payload_offset` of the payload; `shard` is the queue's. `None` where the position
    /// came from a peer that invented it.
    pub fn message_id(&self, shard: ShardId, payload_offset: u32) -> Option<MessageId> {
        let start = self.position.0.checked_add(ENTRY_HEADER_LEN as u64 + u64::from(payload_offset))?;
        MessageId::checked(shard, LogPosition(start))
    }

    pub(super) fn from_wire(head: &wire::BatchHead) -> Result<Self, DecodeError> {
        let batch = Self {
            base_offset: QueueOffset(head.base_offset()),
            first_wanted: QueueOffset(head.first_wanted()),
            record_count: head.record_count(),
            epoch: Epoch(head.epoch()),
            position: LogPosition(head.position()),
            store_time: Nanos(head.store_time()),
            payload_crc: head.payload_crc(),
            payload_length: head.payload_length(),
            flags: EntryFlags::from_bits(head.flags()).ok_or(DecodeError::Field("flags"))?,
            attempt: head.attempt(),
        };
        if !(1..=RECORDS_MAX).contains(&batch.record_count) {
            return Err(DecodeError::Header);
        }
        let end = batch.base_offset.0.checked_add(u64::from(batch.record_count)).ok_or(DecodeError::Header)?;
        if (batch.base_offset.0..end).contains(&batch.first_wanted.0) { Ok(batch) } else { Err(DecodeError::Header) }
    }

    pub(super) fn to_wire(self) -> wire::BatchHead {
        wire::BatchHead::new(
            self.base_offset.0,
            self.first_wanted.0,
            self.epoch.0,
            self.position.0,
            self.store_time.0,
            self.payload_crc,
            self.record_count,
            self.payload_length,
            self.flags.bits(),
            self.attempt,
        )
    }
}
