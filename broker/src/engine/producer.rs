//! Idempotent producers: what each has written to a queue, so that a batch sent twice is stored once.
//!
//! A sequence counts batches, dense per (producer, queue) within a producer epoch. The state lives in its queue and goes with
//! it. Idle for [`limits::PRODUCER_IDLE_NS`] it is forgotten: a pure question of two store times, the state's and that of the
//! entry at hand, so that production and every replay decide alike. [`Ageing`] only gives the memory of the forgotten back.

use std::collections::VecDeque;

use peregrine_protocol::ids::{LogPosition, Nanos, ProducerEpoch, ProducerId, QueueOffset, Sequence};

use super::queue::{QueueSlot, Queues};
use super::refusal::Refusal;
use crate::limits;

/// A batch as its producer's state remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub offset: QueueOffset,
    /// Where its entry starts.
    pub position: LogPosition,
    pub payload_crc: u32,
    /// Bytes of payload.
    pub length: u32,
    pub records: u32,
}

/// One producer in one queue.
#[derive(Debug)]
pub struct ProducerState {
    epoch: ProducerEpoch,
    /// The sequence that the next batch has.
    next: Sequence,
    /// Store time of the last batch.
    last_used: Nanos,
    /// The newest batches, those of the sequences up to `next`.
    recent: VecDeque<Remembered>,
}

/// A batch's place in its producer's count, as request and entry carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSequence {
    pub epoch: ProducerEpoch,
    pub sequence: Sequence,
}

/// What a sequence means to a producer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    /// It is the next one.
    Next,
    /// It was stored; whether what was stored is the same batch is for the asker to compare.
    Stored(Remembered),
}

impl ProducerState {
    pub fn new(time: Nanos) -> Self {
        Self { epoch: ProducerEpoch(0), next: Sequence(0), last_used: time, recent: VecDeque::new() }
    }

    /// The state that [`Self::parts`] told of; `None` where nothing or too much is remembered.
    pub fn restored(
        epoch: ProducerEpoch,
        next: Sequence,
        last_used: Nanos,
        recent: impl ExactSizeIterator<Item = Remembered>,
    ) -> Option<Self> {
        let fits = (1..=limits::PRODUCER_BATCHES_REMEMBERED).contains(&recent.len()) && next.0 >= recent.len() as u64;
        fits.then(|| Self { epoch, next, last_used, recent: recent.collect() })
    }

    /// Whether it has counted the batch at `position`, which is one of its own.
    pub fn has_counted(&self, position: LogPosition) -> bool {
        self.recent.back().is_some_and(|newest| position <= newest.position)
    }

    /// Whether it was idle for so long at `time` that it counts as unknown.
    pub fn is_forgotten(&self, time: Nanos) -> bool {
        time.saturating_sub(self.last_used) >= limits::PRODUCER_IDLE_NS.0
    }

    fn check(&self, batch: BatchSequence) -> Result<SequenceCheck, Refusal> {
        if batch.epoch < self.epoch {
            return Err(Refusal::ProducerFenced);
        }
        let next = if batch.epoch > self.epoch { Sequence(0) } else { self.next };
        if batch.sequence > next {
            return Err(Refusal::OutOfSequence { expected: next });
        }
        if batch.sequence == next {
            return Ok(SequenceCheck::Next);
        }
        let back = (next - batch.sequence) as usize;
        match self.recent.len().checked_sub(back) {
            Some(index) => Ok(SequenceCheck::Stored(self.recent[index])),
            None => Err(Refusal::SequenceConflict),
        }
    }

    /// Whether `batch` is the next one.
    pub fn follows(&self, batch: BatchSequence) -> bool {
        matches!(self.check(batch), Ok(SequenceCheck::Next))
    }

    /// Whether `batch` lies further on in the producer's count than what was stored.
    pub fn is_behind(&self, batch: BatchSequence) -> bool {
        (batch.epoch, batch.sequence) >= (self.epoch, self.next)
    }

    /// Takes in a batch that stands in the log. Where an accepted loss took batches, the count goes on behind them.
    pub fn store(&mut self, batch: BatchSequence, remembered: Remembered, time: Nanos) {
        assert!(batch.epoch >= self.epoch, "a fenced epoch was refused");
        if batch.epoch > self.epoch || batch.sequence != self.next {
            self.recent.clear();
        }
        if self.recent.len() == limits::PRODUCER_BATCHES_REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(remembered);
        self.epoch = batch.epoch;
        self.next = batch.sequence + 1;
        self.last_used = time;
    }

    /// Epoch, next sequence, last use, and what is remembered, oldest first.
    pub fn parts(&self) -> (ProducerEpoch, Sequence, Nanos, impl ExactSizeIterator<Item = &Remembered>) {
        (self.epoch, self.next, self.last_used, self.recent.iter())
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        self.recent.capacity() * size_of::<Remembered>()
    }
}

/// What `batch` means to a producer whose state is `state`, if there is one, at the store time that the batch would get.
pub fn check(state: Option<&ProducerState>, batch: BatchSequence, time: Nanos) -> Result<SequenceCheck, Refusal> {
    match state.filter(|state| !state.is_forgotten(time)) {
        Some(state) => state.check(batch),
        None if batch.sequence == Sequence(0) => Ok(SequenceCheck::Next),
        None => Err(Refusal::UnknownProducer),
    }
}

/// Every producer state of the shard, in the order in which it comes up for forgetting.
///
/// A state looked at while in use goes to the back, so one is given back between 7 and 14 days after its last batch. A deleted
/// topic's states are gone at once; their places here go as they come up, or together once they are half of all.
///
/// Places are numbered, for a walk over all states while they move: a state that moves gets a higher number than all before it.
#[derive(Debug, Default)]
pub struct Ageing {
    order: VecDeque<Aged>,
    gone: usize,
    /// Number of the first in `order`.
    first: u64,
}

#[derive(Debug)]
struct Aged {
    queue: QueueSlot,
    producer: ProducerId,
    since: Nanos,
}

impl Ageing {
    /// Whether another state has room.
    pub fn has_room(&self) -> bool {
        self.order.len() < limits::PRODUCER_STATES_MAX
    }

    /// States that live.
    pub fn len(&self) -> usize {
        self.order.len() - self.gone
    }

    /// A state was made at `time`.
    pub fn push(&mut self, queue: QueueSlot, producer: ProducerId, time: Nanos) {
        self.order.push_back(Aged { queue, producer, since: time });
    }

    /// A queue was removed with `states` producer states.
    pub fn removed(&mut self, states: usize, queues: &Queues) {
        self.gone += states;
        if self.gone > self.order.len() / 2 {
            self.first += self.order.len() as u64;
            self.order.retain(|aged| queues.get(aged.queue).is_some());
            self.gone = 0;
        }
    }

    /// Of the place of that number, or the first one above it: its number, and the queue and the producer whose state it is.
    pub fn from(&self, number: u64) -> Option<(u64, QueueSlot, ProducerId)> {
        let number = number.max(self.first);
        self.order.get((number - self.first) as usize).map(|aged| (number, aged.queue, aged.producer))
    }

    /// Every state anew, of the queues that there are, by its last use.
    pub fn restore(&mut self, queues: &Queues) {
        let states = queues.in_slots().flat_map(|(slot, queue)| {
            let of = move |(&producer, state): (&ProducerId, &ProducerState)| Aged {
                queue: slot,
                producer,
                since: state.last_used,
            };
            queue.producers.iter().map(of)
        });
        let mut order: Vec<Aged> = states.collect();
        // To the last field: the map's own order is another one in every process.
        order.sort_unstable_by_key(|aged| (aged.since, aged.queue.index(), aged.producer));
        *self = Self { order: order.into(), ..Self::default() };
    }

    /// Gives back what is forgotten at `time`, a bounded number of states at a call.
    pub fn advance(&mut self, time: Nanos, queues: &mut Queues) {
        for _ in 0..limits::PRODUCER_STATES_AGED_PER_BATCH {
            let due = |aged: &mut Aged| time.saturating_sub(aged.since) >= limits::PRODUCER_IDLE_NS.0;
            let Some(aged) = self.order.pop_front_if(due) else { return };
            self.first += 1;
            let Some(queue) = queues.get_mut(aged.queue) else {
                self.gone -= 1;
                continue;
            };
            match queue.producers.get(&aged.producer) {
                Some(state) if state.is_forgotten(time) => {
                    queue.producers.remove(&aged.producer);
                }
                Some(_) => self.order.push_back(Aged { since: time, ..aged }),
                None => unreachable!("a state leaves its queue here alone"),
            }
        }
    }
}
