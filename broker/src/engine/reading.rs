//! Requests to read: where a queue begins and ends, subscribing, one-shot fetches, and the check of a reader's place.
//!
//! A reader's place is (epoch, offset): see `epochs` for when it is still valid. Readers see a queue up to its visible end.

use peregrine_protocol::ids::{Epoch, QueueId, QueueOffset, SubscriptionId, TopicId};

use super::index::{Asked, IndexEntry, NotHeld};
use super::indexed::IndexQuestion;
use super::queue::{Queue, QueueKey};
use super::reader::{BatchPlace, Credit, ReaderOwner};
use super::refusal::Refusal;
use super::{Engine, Phase, StartAt, Topic};

/// A place in a queue, and where the queue begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// The offset asked for, and the epoch to name beside it.
    pub offset: QueueOffset,
    pub epoch: Epoch,
    /// The first message that the queue has.
    pub first: QueueOffset,
    /// The end of what readers see.
    pub visible_end: QueueOffset,
    /// The queue's end: what is beyond `visible_end` was taken in and has not reached its level.
    pub end: QueueOffset,
}

/// How much one fetch returns. The first batch comes whole, however large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    pub messages: u64,
    pub bytes: u64,
    /// Batches; at most the protocol's bound of an answer.
    pub batches: usize,
}

impl Engine {
    /// Where a reader that begins at `start` stands.
    pub fn look_up(&self, topic: TopicId, queue: QueueId, start: StartAt) -> Result<QueuePlace, Refusal> {
        assert!(self.phase != Phase::Recovering, "no request is decided before the start is done");
        self.check_queue(topic, queue)?;
        match self.queues.by_key(QueueKey { topic, queue }) {
            Some(queue) => place_in(queue, start),
            None => place_in(&Queue::new(QueueKey { topic, queue }), start),
        }
    }

    /// Begins a subscription; its batches come from [`Engine::next_delivery`] as its credit allows.
    pub fn subscribe(
        &mut self,
        owner: ReaderOwner,
        topic: TopicId,
        queue: QueueId,
        start: StartAt,
        credit: Credit,
    ) -> Result<(SubscriptionId, QueuePlace), Refusal> {
        let place = self.look_up(topic, queue, start)?;
        let slot = self.queues.find_or_make(QueueKey { topic, queue });
        let Some(queue) = self.queues.get_mut(slot) else { unreachable!("a queue just found lives") };
        let id = self.readers.add(owner, slot, queue, place.offset, credit)?;
        Ok((id, place))
    }

    /// A reader's acknowledgement of all below (epoch, offset). A reader keeps its own place, so this only checks it.
    pub fn check_read(
        &self,
        owner: ReaderOwner,
        id: SubscriptionId,
        epoch: Epoch,
        offset: QueueOffset,
    ) -> Result<(), Refusal> {
        let slot = self.readers.queue_of(owner, id)?;
        let queue = self.queues.get(slot).ok_or(Refusal::UnknownSubscription)?;
        queue.epochs.check(epoch, offset, queue.end).map_err(|at| Refusal::Truncated { at })
    }

    /// Whether the batches from `offset` on are known here; else a fetch needs what the indexes of sealed segments say, below the
    /// offset returned.
    pub fn is_held(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> Result<(), QueueOffset> {
        match self.queues.by_key(QueueKey { topic, queue }) {
            Some(queue) if !queue.index.is_held(offset) => Err(queue.index.dropped_end()),
            _ => Ok(()),
        }
    }

    /// Whether whoever looks a message up by other means may see it: its queue keeps it, and it has reached its level.
    pub fn is_shown(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> Result<bool, Refusal> {
        self.check_queue(topic, queue)?;
        match self.queues.by_key(QueueKey { topic, queue }) {
            Some(queue) if offset < queue.start => Err(Refusal::OffsetTooOld { first: queue.start }),
            Some(queue) => Ok(offset < queue.visible),
            None => Ok(false),
        }
    }

    /// The topic of that id, for whoever asks for it by nothing else.
    pub fn known_topic(&self, topic: TopicId) -> Result<&Topic, Refusal> {
        self.check_topic(topic)
    }

    /// One round of reading from (epoch, offset): the visible batches from there on that the limits allow go into `batches`.
    ///
    /// `found`: what the indexes of sealed segments have from there on, where it was looked up: see [`Refusal::LookUp`].
    pub fn fetch(
        &self,
        topic: TopicId,
        queue: QueueId,
        start: StartAt,
        limits: FetchLimits,
        found: Option<(&[IndexEntry], QueueOffset)>,
        batches: &mut Vec<BatchPlace>,
    ) -> Result<QueuePlace, Refusal> {
        let place = self.look_up(topic, queue, start)?;
        let Some(queue) = self.queues.by_key(QueueKey { topic, queue }) else { return Ok(place) };
        let (mut messages, mut bytes) = (0, 0);
        let (looked_up, behind) = found.unwrap_or((&[], QueueOffset(0)));
        let is_held = queue.index.is_held(place.offset.max(behind));
        if looked_up.is_empty() && !is_held {
            return Err(Refusal::LookUp(IndexQuestion::of(queue, Asked::Offset(place.offset))));
        }
        let mut looked_up = looked_up.iter().copied();
        // What was looked up is one round; behind it is the next one.
        let mut cursor = (looked_up.len() == 0).then(|| queue.index.seek(place.offset));
        while batches.len() < limits.batches && messages < limits.messages {
            let next = match &mut cursor {
                Some(cursor) => queue.index.next(cursor),
                None => looked_up.next(),
            };
            let Some(entry) = next.filter(|entry| entry.end() <= queue.visible) else { break };
            if entry.end() <= place.offset {
                continue;
            }
            let batch = BatchPlace::for_reader(&entry, place.offset);
            if !batches.is_empty() && bytes + u64::from(batch.length) > limits.bytes {
                break;
            }
            messages += batch.wanted();
            bytes += u64::from(batch.length);
            batches.push(batch);
        }
        Ok(place)
    }
}

/// Where a reader of `queue` that begins at `start` stands.
pub(super) fn place_in(queue: &Queue, start: StartAt) -> Result<QueuePlace, Refusal> {
    let (offset, epoch) = match start {
        StartAt::Earliest => (queue.start.min(queue.visible), None),
        StartAt::Latest => (queue.visible, None),
        StartAt::Time(time) => {
            let first = queue.index.at_time(time);
            let first = first.map_err(|NotHeld| Refusal::LookUp(IndexQuestion::of(queue, Asked::Time(time))))?;
            (first.map_or(queue.visible, |first| first.max(queue.start)).min(queue.visible), None)
        }
        StartAt::Offset { epoch, offset } => {
            queue.epochs.check(epoch, offset, queue.end).map_err(|at| Refusal::Truncated { at })?;
            if offset < queue.start {
                return Err(Refusal::OffsetTooOld { first: queue.start });
            }
            (offset, (epoch != Epoch::ANY).then_some(epoch))
        }
    };
    Ok(QueuePlace {
        offset,
        epoch: epoch.unwrap_or_else(|| queue.epochs.at(offset)),
        first: queue.start,
        visible_end: queue.visible,
        end: queue.end,
    })
}
