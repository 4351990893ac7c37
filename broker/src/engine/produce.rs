//! The decision about a batch that a producer offers: append it, answer it as stored before, or refuse it.

use peregrine_protocol::entry::{EntryDraft, EntryFlags, EntryHeader, EntryKind, entry_len};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, TopicId,
};
use peregrine_protocol::limits::RECORDS_MAX;
use peregrine_protocol::message::ProduceHead;

use super::producer::{self, BatchSequence, Remembered, SequenceCheck};
use super::queue::{Queue, QueueKey};
use super::refusal::Refusal;
use super::{Engine, MemoryLevel, Phase};

/// A batch that a producer offers. Its payload was checked: the CRC is the payload's, and it holds so many whole records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOffer {
    pub topic: TopicId,
    pub queue: QueueId,
    /// [`ProducerId::NONE`] for a producer that is not idempotent; epoch and sequence say nothing then.
    pub producer_id: ProducerId,
    pub producer_epoch: ProducerEpoch,
    pub sequence: Sequence,
    pub level: DurableLevel,
    /// How the producer made the payload: codec and encryption. A level in it is not looked at.
    pub flags: EntryFlags,
    pub payload_crc: u32,
    /// Bytes of payload.
    pub length: u32,
    pub records: u32,
}

impl BatchOffer {
    /// The offer that a produce frame makes whose payload has so many bytes.
    pub fn of_request(head: &ProduceHead, length: u32) -> Self {
        Self {
            topic: head.topic,
            queue: head.queue,
            producer_id: head.producer_id,
            producer_epoch: head.producer_epoch,
            sequence: head.sequence,
            level: head.level(),
            flags: head.flags,
            payload_crc: head.payload_crc,
            length,
            records: head.record_count,
        }
    }
}

/// What to do with an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProduceDecision {
    /// Append this, apply it, and answer with [`StoredBatch::of_header`] once the log has reached its end at its level.
    Append(EntryDraft),
    /// It was stored before: answer with this once the log has reached its end at its level.
    Duplicate(StoredBatch),
}

/// A batch in the log, as its acknowledgement states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    pub base_offset: QueueOffset,
    pub records: u32,
    pub epoch: Epoch,
    /// Where its entry starts and ends.
    pub position: LogPosition,
    pub end: LogPosition,
    /// The level to wait for, and to state: the one asked for, or the one it was raised to.
    pub level: DurableLevel,
}

impl StoredBatch {
    /// The batch whose entry has this header.
    pub fn of_header(header: &EntryHeader) -> Self {
        Self {
            base_offset: header.base_offset,
            records: header.record_count,
            epoch: header.epoch,
            position: header.position,
            end: header.end(),
            level: header.flags.level().unwrap_or_default(),
        }
    }
}

impl Engine {
    /// Decides on an offer at `now`, the wall clock. An accepted draft must be appended and applied in the same turn, or dropped.
    pub fn decide_produce(&self, offer: &BatchOffer, now: Nanos) -> Result<ProduceDecision, Refusal> {
        assert!(self.phase != Phase::Recovering, "no request is decided before the start is done");
        if self.is_poisoned() {
            return Err(Refusal::Poisoned);
        }
        self.check_queue(offer.topic, offer.queue)?;
        if offer.records == 0 || offer.records > RECORDS_MAX {
            return Err(Refusal::InvalidArgument("a batch has 1 to 65536 records"));
        }
        if offer.flags.is_transactional() || offer.flags.is_control() {
            return Err(Refusal::InvalidArgument("this broker takes neither transactional nor control batches"));
        }
        let level = self.level_given(offer.level)?;
        let store_time = self.store_time_at(now);
        let queue = self.queues.by_key(QueueKey { topic: offer.topic, queue: offer.queue });
        if offer.producer_id.is_idempotent() {
            let state = queue.and_then(|queue| queue.producers.get(&offer.producer_id));
            let batch = BatchSequence { epoch: offer.producer_epoch, sequence: offer.sequence };
            match (producer::check(state, batch, store_time)?, queue) {
                (SequenceCheck::Stored(stored), Some(queue)) => return duplicate(offer, &stored, queue, level),
                (SequenceCheck::Stored(_), None) => unreachable!("what was stored stands in its queue"),
                (SequenceCheck::Next, _) if state.is_none() && !self.ageing.has_room() => {
                    return Err(Refusal::LimitReached("producers"));
                }
                (SequenceCheck::Next, _) => {}
            }
        }
        Ok(ProduceDecision::Append(EntryDraft {
            kind: EntryKind::Batch,
            flags: flags_at(offer.flags, level),
            payload_crc: offer.payload_crc,
            length: offer.length,
            record_count: offer.records,
            topic: offer.topic,
            queue: offer.queue,
            producer_epoch: offer.producer_epoch,
            base_offset: queue.map_or(QueueOffset(0), |queue| queue.end),
            store_time,
            producer_id: offer.producer_id,
            sequence: offer.sequence,
        }))
    }

    /// The level at which a batch is stored that asks for `asked`.
    fn level_given(&self, asked: DurableLevel) -> Result<DurableLevel, Refusal> {
        match (asked, self.options.memory_level) {
            (DurableLevel::Replicated, _) | (DurableLevel::Memory, MemoryLevel::Refused) => {
                Err(Refusal::LevelUnavailable)
            }
            (DurableLevel::Memory, MemoryLevel::Raised) | (DurableLevel::Synced, _) => Ok(DurableLevel::Synced),
            (DurableLevel::Memory, MemoryLevel::Kept) => Ok(DurableLevel::Memory),
        }
    }
}

/// The answer to an offer whose sequence was stored, if what was stored is the same batch.
fn duplicate(
    offer: &BatchOffer,
    stored: &Remembered,
    queue: &Queue,
    level: DurableLevel,
) -> Result<ProduceDecision, Refusal> {
    let offered = (offer.payload_crc, offer.length, offer.records);
    if offered != (stored.payload_crc, stored.length, stored.records) {
        return Err(Refusal::SequenceConflict);
    }
    Ok(ProduceDecision::Duplicate(StoredBatch {
        base_offset: stored.offset,
        records: stored.records,
        epoch: queue.epochs.at(stored.offset),
        position: stored.position,
        end: stored.position + entry_len(stored.length),
        level,
    }))
}

fn flags_at(made: EntryFlags, level: DurableLevel) -> EntryFlags {
    let flags = EntryFlags::for_level(level).with_codec(made.codec());
    if made.is_encrypted() { flags.with_encrypted() } else { flags }
}
