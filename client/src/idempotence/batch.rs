//! What goes into a lane and what comes out: batches with their number, tickets of attempts, answers, outcomes, losses.

use std::collections::VecDeque;

use bytes::Bytes;
use peregrine_protocol::ids::{DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, QueueId, QueueOffset, Sequence};

use crate::error::Error;

/// One attempt to send one batch. An answer is brought back with it; answers to attempts that were given up are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The queue that the batch belongs to.
    pub queue: QueueId,
    /// A number that no other attempt of the same queue has.
    pub attempt: u64,
}

/// A batch as it goes on the wire. Sent again, it is the same in every byte.
#[derive(Debug, Clone)]
pub struct BatchToSend {
    /// Comes back with the answer.
    pub ticket: Ticket,
    /// The durable level that the batch asks for.
    pub level: DurableLevel,
    /// The producer epoch of this queue.
    pub epoch: ProducerEpoch,
    /// The batch's number within that epoch.
    pub sequence: Sequence,
    /// How many records the payload holds.
    pub records: u32,
    /// CRC32 of the payload.
    pub payload_crc: u32,
    /// The records.
    pub payload: Bytes,
}

/// The broker's yes to a whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Offset of the batch's first record.
    pub base_offset: QueueOffset,
    /// The epoch of the log that the batch stands in.
    pub epoch: Epoch,
    /// The batch's position in its shard's log; `None` for a duplicate whose position the broker does not know any more.
    pub position: Option<LogPosition>,
    /// The level that the batch has reached.
    pub level: DurableLevel,
    /// The broker had the batch already: an earlier attempt's answer was lost.
    pub duplicate: bool,
}

/// Messages that had been acknowledged and that a failure took back which their level does not survive. It is noticed with the next
/// batch to the queue, unless the producer had to start a new epoch for a finally refused batch in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Where.
    pub queue: QueueId,
    /// How many; if not `exact`, at least so many.
    pub messages: u64,
    /// Whether this is the whole number. It is unless more is gone than a producer remembers (1,024 batches), or a second power cut
    /// came before anything was synced after a first one.
    pub exact: bool,
}

/// What became of a message, by the token that it was pushed with, or of acknowledged ones.
#[derive(Debug)]
pub enum Outcome<T> {
    /// The message stands at `acknowledgement.base_offset + index`.
    Acknowledged { token: T, queue: QueueId, index: u32, record: RecordPlace, acknowledgement: Acknowledgement },
    /// The message failed. `error` says whether its outcome is unknown.
    Failed { token: T, queue: QueueId, error: Error },
    /// Messages acknowledged earlier were lost.
    Lost(Loss),
}

/// A message's record in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPlace {
    /// Where it starts in the payload.
    pub start: u32,
    /// The CRC32 that it carries.
    pub checksum: u32,
}

/// A message whose fate somebody waits for.
#[derive(Debug)]
pub(super) struct Pending<T> {
    pub token: T,
    pub index: u32,
    /// Where its record starts in the payload.
    pub start: u32,
    pub deadline: Nanos,
}

/// Messages that wait for a number: the batch to be.
#[derive(Debug)]
pub(super) struct Chunk<T> {
    pub level: DurableLevel,
    pub payload: Vec<u8>,
    /// Length of each record in `payload`, and who waits for it.
    pub records: VecDeque<(usize, T, Nanos)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent (again). `maybe_stored`: a copy was sent and the broker never said that it does not have it.
    Unsent { maybe_stored: bool },
    /// Sent under this attempt number, unanswered.
    InFlight { attempt: u64 },
    /// Answered with an acknowledgement.
    Acknowledged,
    /// Answered with a final no.
    Rejected,
}

/// A numbered batch. Its number is its place in the window; its bytes never change.
#[derive(Debug)]
pub(super) struct Batch<T> {
    pub level: DurableLevel,
    pub payload: Bytes,
    pub payload_crc: u32,
    pub records: u32,
    /// Who still waits. Empty where all gave up: the batch is sent on all the same, so that the numbers behind it stay true.
    pub pending: Vec<Pending<T>>,
    pub state: State,
    /// A copy was sent on a connection that was given up, so that the broker may still come to read it.
    pub is_orphaned: bool,
}

impl<T> Chunk<T> {
    pub fn new(level: DurableLevel) -> Self {
        Self { level, payload: Vec::new(), records: VecDeque::new() }
    }

    /// Closes the chunk: from here on its bytes and its order are fixed.
    pub fn into_batch(self) -> Batch<T> {
        let records = self.records.len() as u32;
        let mut start = 0;
        let pending = (0..records)
            .zip(self.records)
            .map(|(index, (len, token, deadline))| {
                let pending = Pending { token, index, start, deadline };
                start += len as u32;
                pending
            })
            .collect();
        Batch {
            level: self.level,
            payload_crc: crc32fast::hash(&self.payload),
            payload: Bytes::from(self.payload),
            records,
            pending,
            state: State::Unsent { maybe_stored: false },
            is_orphaned: false,
        }
    }
}

impl<T> Batch<T> {
    /// The record that starts there. Once the batch is acknowledged, its bytes are gone.
    pub fn record(&self, start: u32) -> RecordPlace {
        let checksum = self.payload.get(start as usize + 4..).and_then(<[u8]>::first_chunk);
        RecordPlace { start, checksum: checksum.map_or(0, |bytes| u32::from_le_bytes(*bytes)) }
    }

    pub fn is_answered(&self) -> bool {
        matches!(self.state, State::Acknowledged | State::Rejected)
    }
}
