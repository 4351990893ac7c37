//! A producer as DESIGN.md wants clients to be: it pipelines, sends again what is unanswered, raises its epoch in the queue
//! when acknowledged batches were lost, and so stores each batch exactly once.
//!
//! A batch's payload is its identity: every record's body opens with the batch's number.

use std::collections::VecDeque;
use std::rc::Rc;

use peregrine_broker::engine::{BatchOffer, Refusal, StoredBatch};
use peregrine_broker::log::disk::simulated::Random;
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::ids::{DurableLevel, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, TopicId};
use peregrine_protocol::record::RecordDraft;

use super::ledger::BatchMark;
use super::violation::{Violation, promise};

/// Batches that a producer of the simulation sends ahead of their acknowledgements.
const WINDOW: usize = 8;

/// A batch from the moment it is made until it is acknowledged.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub payload: Rc<[u8]>,
    pub mark: BatchMark,
    records: u32,
    sequence: Sequence,
    level: DurableLevel,
    /// The broker took it and owes an answer.
    in_flight: bool,
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    pub mark: BatchMark,
    pub epoch: ProducerEpoch,
    pub sequence: Sequence,
    pub level: DurableLevel,
    pub offset: QueueOffset,
}

/// One producer of one queue.
#[derive(Debug)]
pub struct Producer {
    pub topic: TopicId,
    pub queue: QueueId,
    id: ProducerId,
    epoch: ProducerEpoch,
    next: Sequence,
    outgoing: VecDeque<Outgoing>,
    /// Acknowledged batches of the present epoch; of a producer that is not idempotent, all.
    delivered: Vec<Delivered>,
    /// Acknowledged batches of earlier epochs, which still count.
    settled: Vec<Delivered>,
    /// Acknowledged `memory` batches that a power cut took.
    pub lost: u64,
    /// The epoch rises once all below this sequence are answered.
    renumber_from: Option<Sequence>,
    /// The topic is gone: nothing more is sent.
    pub ended: bool,
}

impl Producer {
    pub fn new(topic: TopicId, queue: QueueId, id: ProducerId) -> Self {
        Self {
            topic,
            queue,
            id,
            epoch: ProducerEpoch(0),
            next: Sequence(0),
            outgoing: VecDeque::new(),
            delivered: Vec::new(),
            settled: Vec::new(),
            lost: 0,
            renumber_from: None,
            ended: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.ended || self.outgoing.is_empty()
    }

    pub fn has_window(&self) -> bool {
        !self.ended && self.renumber_from.is_none() && self.outgoing.len() < WINDOW
    }

    /// Puts a new batch behind those that wait. `fresh` says whether a payload's CRC is used for the first time.
    pub fn make_batch(
        &mut self,
        random: &mut Random,
        number: u64,
        bytes: u64,
        level: DurableLevel,
        fresh: impl Fn(BatchMark) -> bool,
    ) -> BatchMark {
        let records = random.between(1, 4) as u32;
        let mut salt = 0;
        let (payload, mark) = loop {
            let (payload, mark) = batch_payload(number, salt, records, bytes);
            if fresh(mark) {
                break (payload, mark);
            }
            salt += 1;
        };
        let sequence = self.next;
        self.next += 1;
        self.outgoing.push_back(Outgoing { payload: payload.into(), mark, records, sequence, level, in_flight: false });
        mark
    }

    /// The next batch to send, the oldest first.
    pub fn next_offer(&self) -> Option<(BatchOffer, Rc<[u8]>)> {
        let mut waiting = self.outgoing.iter().filter(|batch| !batch.in_flight);
        let batch = waiting.next().filter(|batch| self.renumber_from.is_none_or(|from| batch.sequence < from))?;
        let offer = BatchOffer {
            topic: self.topic,
            queue: self.queue,
            producer_id: self.id,
            producer_epoch: self.epoch,
            sequence: batch.sequence,
            level: batch.level,
            flags: EntryFlags::NONE,
            payload_crc: batch.mark,
            length: batch.payload.len() as u32,
            records: batch.records,
        };
        Some((offer, Rc::clone(&batch.payload)))
    }

    /// Whether the broker has the batch and owes an answer.
    pub fn sent(&mut self, mark: BatchMark, in_flight: bool) {
        if let Some(batch) = self.outgoing.iter_mut().find(|batch| batch.mark == mark) {
            batch.in_flight = in_flight;
        }
    }

    /// The connection broke: whatever was not answered is sent again; a batch without a sequence would be stored twice and is
    /// given up, its outcome unknown.
    pub fn disconnected(&mut self) {
        if !self.id.is_idempotent() {
            self.outgoing.retain(|batch| !batch.in_flight);
        }
        for batch in &mut self.outgoing {
            batch.in_flight = false;
        }
    }

    pub fn acknowledged(&mut self, mark: BatchMark, stored: &StoredBatch) -> Result<(), Violation> {
        let Some(index) = self.outgoing.iter().position(|batch| batch.mark == mark) else {
            return Err(Violation(format!("batch {mark:08x} was answered twice")));
        };
        let Some(batch) = self.outgoing.remove(index) else { return Ok(()) };
        promise!(
            stored.records == batch.records && stored.level >= batch.level,
            "batch {mark:08x} asked for {:?} with {} records and was answered {stored:?}",
            batch.level,
            batch.records
        );
        let level = stored.level;
        let (epoch, sequence, offset) = (self.epoch, batch.sequence, stored.base_offset);
        self.delivered.push(Delivered { mark, epoch, sequence, level, offset });
        self.renumber_when_answered();
        Ok(())
    }

    /// The broker refused the offer that [`Producer::next_offer`] gave.
    pub fn refused(&mut self, mark: BatchMark, refusal: &Refusal) -> Result<(), Violation> {
        match refusal {
            Refusal::Busy { .. } | Refusal::Poisoned => Ok(()),
            Refusal::TopicDeleted => {
                self.ended = true;
                Ok(())
            }
            Refusal::LevelUnavailable => {
                for batch in &mut self.outgoing {
                    batch.level = DurableLevel::Synced;
                }
                Ok(())
            }
            Refusal::OutOfSequence { expected } => self.expected(mark, *expected),
            Refusal::UnknownProducer => self.expected(mark, Sequence(0)),
            other => Err(Violation(format!("batch {mark:08x} was refused: {other}"))),
        }
    }

    fn expected(&mut self, mark: BatchMark, expected: Sequence) -> Result<(), Violation> {
        let lost = self.delivered.iter().filter(|batch| batch.sequence >= expected);
        let mut losses = 0;
        for batch in lost {
            losses += 1;
            promise!(
                batch.level == DurableLevel::Memory,
                "batch {:08x}, acknowledged at {:?} with sequence {}, is lost: {expected} is expected",
                batch.mark,
                batch.level,
                batch.sequence
            );
        }
        promise!(
            losses > 0 || self.outgoing.front().is_some_and(|first| first.sequence <= expected),
            "batch {mark:08x}: sequence {expected} is expected, which was neither acknowledged nor waits to be sent"
        );
        for batch in self.outgoing.iter_mut().filter(|batch| batch.sequence >= expected) {
            batch.in_flight = false;
        }
        if losses > 0 {
            self.lost += losses;
            self.delivered.retain(|batch| batch.sequence < expected);
            self.renumber_from = Some(expected);
            self.renumber_when_answered();
        }
        Ok(())
    }

    /// Raises the epoch once all below the sequence that the broker expects are answered.
    fn renumber_when_answered(&mut self) {
        let Some(from) = self.renumber_from else { return };
        if self.outgoing.front().is_some_and(|first| first.sequence < from) {
            return;
        }
        self.renumber_from = None;
        self.settled.append(&mut self.delivered);
        self.epoch.0 += 1;
        self.next = Sequence(0);
        for batch in &mut self.outgoing {
            batch.sequence = self.next;
            self.next += 1;
        }
    }

    /// Forgets acknowledgements that a power cut has taken back, where the producer has no sequence to learn it from.
    pub fn taken_back(&mut self, mark: BatchMark) {
        if !self.id.is_idempotent() {
            let before = self.delivered.len();
            self.delivered.retain(|batch| batch.mark != mark);
            self.lost += (before - self.delivered.len()) as u64;
        }
    }

    /// How often it went on under a higher epoch.
    pub fn epochs_raised(&self) -> u64 {
        u64::from(self.epoch.0)
    }

    pub fn is_idempotent(&self) -> bool {
        self.id.is_idempotent()
    }

    /// What was acknowledged and not reported lost since.
    pub fn delivered(&self) -> impl Iterator<Item = &Delivered> {
        self.settled.iter().chain(&self.delivered)
    }
}

/// A batch of `records` records and about `bytes` bytes, and its CRC.
fn batch_payload(number: u64, salt: u64, records: u32, bytes: u64) -> (Vec<u8>, BatchMark) {
    let each = (bytes / u64::from(records)).max(24) as usize;
    let mut payload = Vec::with_capacity(bytes as usize + 64 * records as usize);
    let mut body = vec![number as u8; each];
    body[..8].copy_from_slice(&number.to_le_bytes());
    body[8..16].copy_from_slice(&salt.to_le_bytes());
    for record in 0..records {
        body[16..20].copy_from_slice(&record.to_le_bytes());
        RecordDraft { body: &body, ..RecordDraft::default() }.append_to(&mut payload);
    }
    let mark = crc32(&payload);
    (payload, mark)
}
