//! A queue of the fake broker, and what it makes of a batch: stored once in its producer's order, or refused.

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::*;
use peregrine_protocol::message::*;

use super::State;

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) epoch: Epoch,
    pub(super) base: u64,
    pub(super) producer: (ProducerId, ProducerEpoch, Sequence),
    pub(super) level: DurableLevel,
    pub(super) records: u32,
    pub(super) crc: u32,
    pub(super) payload: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) batches: Vec<Stored>,
}

impl Stored {
    /// As it is delivered to somebody who stands at `next`.
    pub(super) fn head(&self, next: u64, attempt: u16) -> BatchHead {
        BatchHead {
            base_offset: QueueOffset(self.base),
            first_wanted: QueueOffset(self.base.max(next)),
            record_count: self.records,
            epoch: self.epoch,
            position: LogPosition(4096),
            store_time: Nanos(1),
            payload_crc: self.crc,
            payload_length: self.payload.len() as u32,
            flags: EntryFlags::for_level(self.level),
            attempt,
        }
    }
}

impl Queue {
    pub(super) fn end(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.base + u64::from(batch.records))
    }

    /// The first offset of the first later epoch, or the end.
    pub(super) fn valid_up_to(&self, epoch: Epoch) -> u64 {
        self.batches.iter().find(|batch| batch.epoch > epoch).map_or_else(|| self.end(), |batch| batch.base)
    }
}

impl State {
    pub(super) fn produce(&mut self, produce: &Produce<'_>) -> Result<ProduceAnswer, (ErrorCode, ErrorDetail)> {
        let head = produce.head;
        if !self.topics.values().any(|(id, _)| *id == head.topic) {
            return Err((ErrorCode::TopicDeleted, ErrorDetail::default()));
        }
        if crc32(produce.payload) != head.payload_crc {
            return Err((ErrorCode::CorruptPayload, ErrorDetail::default()));
        }
        let epoch = Epoch(self.epoch);
        let queue = self.queues.entry((head.topic, head.queue)).or_default();
        let of_producer = |batch: &&Stored| batch.producer.0 == head.producer_id;
        let newest = queue.batches.iter().rfind(of_producer).map(|batch| batch.producer);
        let detail = |expected| ErrorDetail { expected_sequence: Some(expected), ..ErrorDetail::default() };
        let expected = match newest {
            None if head.sequence.0 > 0 => return Err((ErrorCode::UnknownProducer, detail(0))),
            Some((_, epoch, _)) if head.producer_epoch < epoch => {
                return Err((ErrorCode::ProducerFenced, ErrorDetail::default()));
            }
            Some((_, epoch, newest)) if head.producer_epoch == epoch => newest.0 + 1,
            _ => 0,
        };
        if head.sequence.0 > expected {
            return Err((ErrorCode::OutOfSequence, detail(expected)));
        }
        let duplicate = head.sequence.0 < expected;
        let producer = (head.producer_id, head.producer_epoch, head.sequence);
        if !duplicate {
            let base = queue.end();
            queue.batches.push(Stored {
                epoch,
                base,
                producer,
                level: head.level(),
                records: head.record_count,
                crc: head.payload_crc,
                payload: produce.payload.to_vec(),
            });
        }
        let stored = queue.batches.iter().find(|batch| batch.producer == producer).expect("stored");
        assert_eq!(stored.payload, produce.payload, "a batch is sent again byte for byte");
        Ok(ProduceAnswer {
            queue: head.queue,
            base_offset: QueueOffset(stored.base),
            record_count: stored.records,
            epoch: stored.epoch,
            shard: ShardId(0),
            position: Some(LogPosition(4096)),
            level: stored.level,
            duplicate,
        })
    }
}
