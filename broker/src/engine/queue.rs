//! The queues of this shard that hold messages or have a reader or a group's place: made when first used, so that a queue that exists only in the
//! catalogue costs nothing here.
//!
//! A queue that once wrote and is idle now takes well under 1 KiB: this struct, one index chunk, its producers. A slot names a
//! queue without hashing; slots carry a generation, so that one kept beyond its topic's deletion finds nothing, never a
//! stranger.

use std::collections::HashMap;
use std::ops::Range;

use peregrine_protocol::ids::{LogPosition, Nanos, ProducerId, QueueId, QueueOffset, TopicId};
use rustc_hash::FxHashMap;

use super::epochs::EpochList;
use super::group::GroupPlaces;
use super::index::QueueIndex;
use super::producer::ProducerState;
use super::reader::ReaderKey;
use super::visibility::PendingChain;

/// Names a queue for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey {
    pub topic: TopicId,
    pub queue: QueueId,
}

/// Names a queue within this engine, while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSlot {
    index: u32,
    generation: u32,
}

impl QueueSlot {
    /// Its number, for a walk over all slots.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// What this shard knows of one queue.
#[derive(Debug)]
pub struct Queue {
    pub key: QueueKey,
    /// The first offset that the queue still has; `end` where it has none.
    pub start: QueueOffset,
    /// From `start` on nothing was stored before, as far as anybody looked: so that what the indexes say is asked for once.
    pub kept_since: Nanos,
    /// The offset that the next message gets.
    pub end: QueueOffset,
    /// The end of what readers may see; at most `end`.
    pub visible: QueueOffset,
    pub epochs: EpochList,
    pub index: QueueIndex,
    /// Clients choose producer ids, so this map hashes with a secret key.
    pub producers: HashMap<ProducerId, ProducerState>,
    /// How far consumer groups have acknowledged.
    pub groups: GroupPlaces,
    /// Batches that are not visible yet.
    pub pending: PendingChain,
    /// Readers that have credit and wait for the visible end to move.
    pub waiting: Vec<ReaderKey>,
}

impl Queue {
    pub fn new(key: QueueKey) -> Self {
        Self {
            key,
            start: QueueOffset(0),
            kept_since: Nanos::ZERO,
            end: QueueOffset(0),
            visible: QueueOffset(0),
            epochs: EpochList::default(),
            index: QueueIndex::default(),
            producers: HashMap::new(),
            groups: GroupPlaces::default(),
            pending: PendingChain::default(),
            waiting: Vec::new(),
        }
    }

    /// Whether it holds nothing that the log would have to tell again: no more than one that was never used.
    pub fn is_blank(&self) -> bool {
        self.end.0 == 0 && self.groups.is_empty()
    }

    /// Forgets where the batches stood that an accepted loss took.
    pub fn lose(&mut self, lost: &Range<LogPosition>) {
        if let Some(first) = self.index.lose(lost)
            && first.offset <= self.start
        {
            let left = self.index.next(&mut self.index.seek(self.start));
            self.start = left.map_or(self.end, |entry| entry.offset.max(self.start));
        }
    }

    /// Whether it has taken in the batch at `position`, which is one of its own.
    pub fn has_stored(&self, position: LogPosition) -> bool {
        self.end.0 > 0 && position <= self.index.last_position()
    }

    #[cfg(test)]
    /// Bytes that this queue takes, its hash table entries not counted.
    pub fn bytes(&self) -> usize {
        let producers: usize = self.producers.values().map(ProducerState::heap_bytes).sum();
        size_of::<Self>()
            + self.epochs.heap_bytes()
            + self.index.heap_bytes()
            + self.producers.capacity() * size_of::<(ProducerId, ProducerState)>()
            + producers
            + self.groups.heap_bytes()
            + self.waiting.capacity() * size_of::<ReaderKey>()
    }
}

/// All queues in use, by key and by slot.
#[derive(Debug, Default)]
pub struct Queues {
    by_key: FxHashMap<QueueKey, QueueSlot>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    queue: Option<Box<Queue>>,
}

impl Queues {
    pub fn find(&self, key: QueueKey) -> Option<QueueSlot> {
        self.by_key.get(&key).copied()
    }

    pub fn find_or_make(&mut self, key: QueueKey) -> QueueSlot {
        match self.find(key) {
            Some(slot) => slot,
            None => self.add(Queue::new(key)),
        }
    }

    /// Adds a queue whose key is new.
    pub fn add(&mut self, queue: Queue) -> QueueSlot {
        let key = queue.key;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, queue: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[index as usize];
        place.queue = Some(Box::new(queue));
        let slot = QueueSlot { index, generation: place.generation };
        let before = self.by_key.insert(key, slot);
        assert!(before.is_none(), "a queue is made once");
        slot
    }

    /// `None` when the queue's topic was deleted since.
    pub fn get(&self, slot: QueueSlot) -> Option<&Queue> {
        let place = &self.slots[slot.index as usize];
        if place.generation == slot.generation { place.queue.as_deref() } else { None }
    }

    pub fn get_mut(&mut self, slot: QueueSlot) -> Option<&mut Queue> {
        let place = &mut self.slots[slot.index as usize];
        if place.generation == slot.generation { place.queue.as_deref_mut() } else { None }
    }

    pub fn by_key(&self, key: QueueKey) -> Option<&Queue> {
        self.get(self.find(key)?)
    }

    /// Forgets a queue whose topic was deleted, and returns it.
    pub fn remove(&mut self, key: QueueKey) -> Option<Box<Queue>> {
        let slot = self.by_key.remove(&key)?;
        let place = &mut self.slots[slot.index as usize];
        assert!(place.generation == slot.generation, "a key leads to the living queue");
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot.index);
        place.queue.take()
    }

    /// Removes the queues for which `keeps` is false; it may change the others.
    pub fn retain(&mut self, mut keeps: impl FnMut(&mut Queue) -> bool) {
        let gone: Vec<QueueKey> = self.iter_mut().filter_map(|queue| (!keeps(queue)).then_some(queue.key)).collect();
        for key in gone {
            self.remove(key);
        }
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// All queues, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Queue> {
        self.slots.iter().filter_map(|place| place.queue.as_deref())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.slots.iter_mut().filter_map(|place| place.queue.as_deref_mut())
    }

    /// All queues with their slots.
    pub fn in_slots(&self) -> impl Iterator<Item = (QueueSlot, &Queue)> {
        (0..self.slots()).filter_map(|index| self.in_slot(index))
    }

    /// How many slots there are, to walk them by number: a queue keeps its slot for as long as it lives.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The queue in the slot of that number, if there is one.
    pub fn in_slot(&self, index: u32) -> Option<(QueueSlot, &Queue)> {
        let place = self.slots.get(index as usize)?;
        let queue = place.queue.as_deref()?;
        Some((QueueSlot { index, generation: place.generation }, queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(topic: u64, queue: u32) -> QueueKey {
        QueueKey { topic: TopicId(topic), queue: QueueId(queue) }
    }

    #[test]
    fn a_slot_kept_beyond_deletion_finds_nothing() {
        let mut queues = Queues::default();
        let old = queues.find_or_make(key(1, 0));
        assert_eq!(queues.find_or_make(key(1, 0)), old);
        assert!(queues.remove(key(1, 0)).is_some());
        let new = queues.find_or_make(key(2, 0));
        assert!(queues.get(old).is_none() && queues.get_mut(old).is_none());
        assert_eq!(queues.get(new).map(|queue| queue.key), Some(key(2, 0)));
        assert_eq!((queues.len(), queues.iter().count()), (1, 1));
    }

    #[test]
    fn a_queue_without_messages_is_small() {
        let mut queues = Queues::default();
        queues.find_or_make(key(1, 0));
        assert!(queues.iter().all(|queue| queue.bytes() < 320), "{:?}", queues.iter().map(Queue::bytes).max());
    }
}
