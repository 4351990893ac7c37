//! All lanes of one producer on one topic: which of them may send, which want to be woken, and on which shard each lives. Work per
//! call is in proportion to the lanes concerned, not to the queues of the topic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use peregrine_protocol::ids::{DurableLevel, Nanos, QueueId, ShardId};
use peregrine_protocol::placement::TopicHash;

use super::back_off::BackOff;
use super::batch::{Acknowledgement, BatchToSend, Outcome, Ticket};
use super::lane::{BatchLimits, Lane};
use crate::error::{Error, Refusal};

/// First delay after a retriable refusal.
const FIRST_DELAY: Nanos = Nanos::from_millis(5);
/// Longest delay between tries: a poisoned shard or a full disk waits for a person.
const LONGEST_DELAY: Nanos = Nanos::from_millis(1_000);

/// What a [`ProducerCore`] is made for.
#[derive(Debug, Clone, Copy)]
pub struct CoreOptions {
    /// Hash of the topic's name, for placement.
    pub topic: TopicHash,
    /// The broker's shards.
    pub shards: u16,
    /// What bounds a batch.
    pub limits: BatchLimits,
    /// How long a message may take until it is reported as timed out.
    pub timeout: Nanos,
    /// Seed of the back-off's jitter.
    pub seed: u64,
}

/// The sending half of one idempotent producer. `T` is handed back with each message's outcome.
#[derive(Debug)]
pub struct ProducerCore<T> {
    options: CoreOptions,
    lanes: BTreeMap<QueueId, Entry<T>>,
    connected: BTreeSet<ShardId>,
    ready: VecDeque<QueueId>,
    wakes: BTreeSet<(Nanos, QueueId)>,
    outcomes: VecDeque<Outcome<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    lane: Lane<T>,
    shard: ShardId,
    is_ready: bool,
    wake: Option<Nanos>,
}

impl<T> ProducerCore<T> {
    /// A producer that has sent nothing and knows of no connection.
    pub fn new(options: CoreOptions) -> Self {
        Self {
            options,
            lanes: BTreeMap::new(),
            connected: BTreeSet::new(),
            ready: VecDeque::new(),
            wakes: BTreeSet::new(),
            outcomes: VecDeque::new(),
        }
    }

    /// The shard that `queue` lives on.
    pub fn shard_of(&self, queue: QueueId) -> ShardId {
        self.options.topic.shard_of(queue, self.options.shards)
    }

    /// Takes one encoded record (a multiple of 8 bytes) for a queue that exists.
    pub fn push(&mut self, queue: QueueId, level: DurableLevel, record: &[u8], token: T, now: Nanos) {
        let shard = self.shard_of(queue);
        let options = self.options;
        let is_connected = self.connected.contains(&shard);
        let entry = self.lanes.entry(queue).or_insert_with(|| {
            let back_off = BackOff::new(FIRST_DELAY, LONGEST_DELAY, options.seed ^ u64::from(queue.0));
            Entry {
                lane: Lane::new(queue, options.limits, back_off, is_connected, now),
                shard,
                is_ready: false,
                wake: None,
            }
        });
        let deadline = Nanos(now.0.saturating_add(options.timeout.0));
        entry.lane.push(level, record, token, deadline, &mut self.outcomes);
        self.update(queue, now);
    }

    /// The next batch to send and the shard to send it to; lanes take turns.
    pub fn next_batch(&mut self, now: Nanos) -> Option<(ShardId, BatchToSend)> {
        while let Some(queue) = self.ready.pop_front() {
            let Some(entry) = self.lanes.get_mut(&queue) else { continue };
            entry.is_ready = false;
            let batch = entry.lane.next_batch(now).map(|batch| (entry.shard, batch));
            self.update(queue, now);
            if batch.is_some() {
                return batch;
            }
        }
        None
    }

    /// Brings the answer to a batch that [`Self::next_batch`] gave.
    pub fn answered(&mut self, ticket: Ticket, answer: Result<Acknowledgement, Refusal>, now: Nanos) {
        if let Some(entry) = self.lanes.get_mut(&ticket.queue) {
            entry.lane.answered(ticket.attempt, answer, now, &mut self.outcomes);
            self.update(ticket.queue, now);
        }
    }

    /// A shard can be reached (again); batches without an answer are sent again.
    pub fn connected(&mut self, shard: ShardId, now: Nanos) {
        self.connected.insert(shard);
        for queue in self.queues_of(shard) {
            if let Some(entry) = self.lanes.get_mut(&queue) {
                entry.lane.connected();
            }
            self.update(queue, now);
        }
    }

    /// The connection to a shard is gone: no answer to what was sent on it will come.
    pub fn disconnected(&mut self, shard: ShardId, now: Nanos) {
        self.connected.remove(&shard);
        for queue in self.queues_of(shard) {
            if let Some(entry) = self.lanes.get_mut(&queue) {
                entry.lane.disconnected();
            }
            self.update(queue, now);
        }
    }

    /// When [`Self::wake`] is due next.
    pub fn next_wake(&self) -> Option<Nanos> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Does what time asks for: timeouts, and sending again after a back-off.
    pub fn wake(&mut self, now: Nanos) {
        while let Some(&(at, queue)) = self.wakes.first()
            && at <= now
        {
            self.wakes.pop_first();
            if let Some(entry) = self.lanes.get_mut(&queue) {
                entry.wake = None;
                entry.lane.expire(now, &mut self.outcomes);
            }
            self.update(queue, now);
        }
    }

    /// Fails all that is pending, for one reason; nothing is taken any more for the queues used so far.
    pub fn close(&mut self, error: &Error) {
        for entry in self.lanes.values_mut() {
            entry.lane.close(error, &mut self.outcomes);
        }
    }

    /// What became of messages, in the order in which it became known.
    pub fn next_outcome(&mut self) -> Option<Outcome<T>> {
        self.outcomes.pop_front()
    }

    /// Whether every message had its outcome, and each was taken.
    pub fn is_idle(&self) -> bool {
        self.outcomes.is_empty() && self.lanes.values().all(|entry| entry.lane.is_idle())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.is_empty() && self.lanes.values().all(|entry| entry.lane.is_empty())
    }

    fn queues_of(&self, shard: ShardId) -> Vec<QueueId> {
        self.lanes.iter().filter(|(_, entry)| entry.shard == shard).map(|(queue, _)| *queue).collect()
    }

    /// Puts a lane that changed where it is found again: among the ready ones, among those to be woken.
    fn update(&mut self, queue: QueueId, now: Nanos) {
        let Some(entry) = self.lanes.get_mut(&queue) else { return };
        if !entry.is_ready && entry.lane.can_send(now) {
            entry.is_ready = true;
            self.ready.push_back(queue);
        }
        // A wake that is registered too early does no harm: it finds nothing due and is set anew.
        if let Some(wake) = entry.lane.next_wake()
            && entry.wake.is_none_or(|registered| wake < registered)
        {
            if let Some(registered) = entry.wake.replace(wake) {
                self.wakes.remove(&(registered, queue));
            }
            self.wakes.insert((wake, queue));
        }
    }
}
