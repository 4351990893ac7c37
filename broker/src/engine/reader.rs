//! Subscriptions of readers: each stands in one queue at an offset and is served against its credit.
//!
//! ```text
//!            credit                     next_delivery                delivered
//!  Spent ──────────────►  Ready  ─────────────────────►  Taken  ───────────────►  Ready | Waiting | Spent
//!                           ▲                                                               │
//!                           └──────────── the queue's visible end moved ────────────────────┘
//! ```
//!
//! Only `Ready` ones stand in the list that the shard works through: one without credit or news costs nothing. A taken one
//! stays out of it until the shard says that it can take the next batch of it, which is how a slow socket or a read from disk
//! holds back its own subscriptions alone. Nothing here is durable: a crash ends connections and subscriptions with them.

use std::collections::{HashMap, VecDeque};

use peregrine_protocol::ids::{LogPosition, QueueOffset, SubscriptionId, TopicId};

use super::index::{IndexCursor, IndexEntry};
use super::queue::{Queue, QueueSlot, Queues};
use super::refusal::Refusal;
use crate::limits;

/// Whoever subscribes: the shard's number for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReaderOwner(pub u64);

/// Generations of a slot before they begin again: 22 bits, so that ids leave ten bits for the shard on the wire.
const GENERATIONS: u32 = (1 << 22) - 1;

/// Names a subscription within this engine, while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderKey {
    index: u32,
    generation: u32,
}

impl ReaderKey {
    fn id(self) -> SubscriptionId {
        SubscriptionId(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    fn of(id: SubscriptionId) -> Self {
        Self { index: id.0 as u32, generation: (id.0 >> 32) as u32 }
    }
}

/// How much a reader still takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    pub messages: u64,
    pub bytes: u64,
}

/// A batch to deliver: where it stands, and which of its messages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlace {
    /// Position of its entry header; the payload follows.
    pub position: LogPosition,
    /// Bytes of payload.
    pub length: u32,
    /// Offset of its first record.
    pub base_offset: QueueOffset,
    pub records: u32,
    /// Offset of the first record that the reader wants: within the batch.
    pub first_wanted: QueueOffset,
}

impl BatchPlace {
    /// The batch `entry` for a reader that stands at `next`.
    pub fn for_reader(entry: &IndexEntry, next: QueueOffset) -> Self {
        Self {
            position: entry.position,
            length: entry.length,
            base_offset: entry.offset,
            records: entry.records,
            first_wanted: next.max(entry.offset),
        }
    }

    /// The offset behind the batch.
    pub fn end_offset(&self) -> QueueOffset {
        self.base_offset + u64::from(self.records)
    }

    /// Messages of it that the reader wants.
    pub fn wanted(&self) -> u64 {
        self.end_offset() - self.first_wanted
    }
}

/// What the shard does next for a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Send this batch; the credit for it is taken. Then call [`super::Engine::delivered`].
    Batch { owner: ReaderOwner, subscription: SubscriptionId, batch: BatchPlace },
    /// The topic was deleted and the subscription with it: say so.
    Ended { owner: ReaderOwner, subscription: SubscriptionId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderState {
    /// Without credit.
    Spent,
    /// Stands in its queue's list of those that wait for the visible end to move.
    Waiting,
    /// Stands in the list of those to be served.
    Ready,
    /// The shard is busy with its last batch.
    Taken,
    /// Its topic was deleted; stands in the list to be told.
    Ended,
}

#[derive(Debug)]
struct Reader {
    owner: ReaderOwner,
    queue: QueueSlot,
    topic: TopicId,
    next: QueueOffset,
    cursor: IndexCursor,
    /// May go below zero by one batch: a batch that is larger than the credit left is given whole, and paid back.
    messages: i64,
    bytes: i64,
    state: ReaderState,
    /// Its place in its owner's list.
    owned_at: u32,
}

impl Reader {
    fn has_credit(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }
}

/// The readers of this shard's queues.
#[derive(Debug, Default)]
pub struct Readers {
    slots: Vec<ReaderSlot>,
    free: Vec<u32>,
    /// May hold keys of readers that are gone or were served since; each is checked when its turn comes.
    ready: VecDeque<ReaderKey>,
    /// Owners are numbered by the shard, so that this map needs no secret; each list is as long as its owner's readers.
    by_owner: HashMap<ReaderOwner, Vec<ReaderKey>>,
}

#[derive(Debug)]
struct ReaderSlot {
    generation: u32,
    reader: Option<Reader>,
}

impl Readers {
    /// Adds a reader that wants the messages of `queue` from `start` on.
    pub fn add(
        &mut self,
        owner: ReaderOwner,
        slot: QueueSlot,
        queue: &mut Queue,
        start: QueueOffset,
        credit: Credit,
    ) -> Result<SubscriptionId, Refusal> {
        if self.len() >= limits::SUBSCRIPTIONS_MAX {
            return Err(Refusal::LimitReached("subscriptions"));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(ReaderSlot { generation: 0, reader: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[index as usize];
        let key = ReaderKey { index, generation: place.generation };
        let owned = self.by_owner.entry(owner).or_default();
        let reader = place.reader.insert(Reader {
            owner,
            queue: slot,
            topic: queue.key.topic,
            next: start,
            cursor: queue.index.seek(start),
            messages: 0,
            bytes: 0,
            state: ReaderState::Spent,
            owned_at: owned.len() as u32,
        });
        owned.push(key);
        add_credit(reader, credit);
        settle(reader, key, queue, &mut self.ready);
        Ok(key.id())
    }

    /// The reader may take this much more.
    pub fn credit(
        &mut self,
        owner: ReaderOwner,
        id: SubscriptionId,
        credit: Credit,
        queues: &mut Queues,
    ) -> Result<(), Refusal> {
        let key = self.owned(owner, id)?;
        let Some(reader) = self.get_mut(key) else { unreachable!("an owned reader lives") };
        add_credit(reader, credit);
        if reader.state == ReaderState::Spent {
            self.resettle(key, queues);
        }
        Ok(())
    }

    /// The queue in which the subscription stands.
    pub fn queue_of(&self, owner: ReaderOwner, id: SubscriptionId) -> Result<QueueSlot, Refusal> {
        let key = self.owned(owner, id)?;
        self.get(key).map(|reader| reader.queue).ok_or(Refusal::UnknownSubscription)
    }

    /// What to do next, or `None` when every reader is served, without credit, or busy.
    pub fn next_delivery(&mut self, queues: &mut Queues) -> Option<Delivery> {
        loop {
            let key = self.ready.pop_front()?;
            let Some(reader) = self.get_mut(key) else { continue };
            let (owner, subscription) = (reader.owner, key.id());
            if reader.state == ReaderState::Ended {
                self.remove(key);
                return Some(Delivery::Ended { owner, subscription });
            }
            if reader.state != ReaderState::Ready {
                continue;
            }
            let Some(queue) = queues.get_mut(reader.queue) else {
                unreachable!("a deleted queue's readers have ended")
            };
            if reader.next >= queue.visible {
                reader.state = ReaderState::Waiting;
                queue.waiting.push(key);
                continue;
            }
            let Some(entry) = queue.index.next(&mut reader.cursor) else {
                unreachable!("what is visible stands in the index")
            };
            assert!(entry.end() <= queue.visible, "the visible end is the end of a batch");
            let batch = BatchPlace::for_reader(&entry, reader.next);
            reader.next = entry.end();
            reader.messages -= batch.wanted() as i64;
            reader.bytes -= i64::from(batch.length);
            reader.state = ReaderState::Taken;
            return Some(Delivery::Batch { owner, subscription, batch });
        }
    }

    /// The shard can take the next batch of this subscription; one that ended meanwhile is nobody's concern any more.
    pub fn delivered(&mut self, id: SubscriptionId, queues: &mut Queues) {
        let key = ReaderKey::of(id);
        if self.get(key).is_some_and(|reader| reader.state == ReaderState::Taken) {
            self.resettle(key, queues);
        }
    }

    /// The queue's visible end moved: whoever waits for that is to be served.
    pub fn wake(&mut self, queue: &mut Queue) {
        for key in queue.waiting.drain(..) {
            if let Some(reader) = reader_mut(&mut self.slots, key)
                && reader.state == ReaderState::Waiting
            {
                reader.state = ReaderState::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// Ends one subscription of its owner.
    pub fn unsubscribe(&mut self, owner: ReaderOwner, id: SubscriptionId, queues: &mut Queues) -> Result<(), Refusal> {
        let key = self.owned(owner, id)?;
        self.leave(key, queues);
        Ok(())
    }

    /// Ends all subscriptions of an owner that is gone.
    pub fn detach(&mut self, owner: ReaderOwner, queues: &mut Queues) {
        while let Some(&key) = self.by_owner.get(&owner).and_then(|owned| owned.last()) {
            self.leave(key, queues);
        }
    }

    /// A topic was deleted: its readers are to be told. Looks at every reader, as deletion is rare.
    pub fn end_topic(&mut self, topic: TopicId) {
        for (index, place) in self.slots.iter_mut().enumerate() {
            let key = ReaderKey { index: index as u32, generation: place.generation };
            if let Some(reader) = place.reader.as_mut().filter(|reader| reader.topic == topic) {
                reader.state = ReaderState::Ended;
                self.ready.push_back(key);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Those of one owner, with those whose end it has still to be told.
    pub fn len_of(&self, owner: ReaderOwner) -> usize {
        self.by_owner.get(&owner).map_or(0, Vec::len)
    }

    fn get(&self, key: ReaderKey) -> Option<&Reader> {
        let place = self.slots.get(key.index as usize)?;
        if place.generation == key.generation { place.reader.as_ref() } else { None }
    }

    fn get_mut(&mut self, key: ReaderKey) -> Option<&mut Reader> {
        reader_mut(&mut self.slots, key)
    }

    /// The key of a subscription, if it is this owner's and its topic still exists.
    fn owned(&self, owner: ReaderOwner, id: SubscriptionId) -> Result<ReaderKey, Refusal> {
        let key = ReaderKey::of(id);
        match self.get(key) {
            Some(reader) if reader.owner == owner && reader.state != ReaderState::Ended => Ok(key),
            _ => Err(Refusal::UnknownSubscription),
        }
    }

    fn resettle(&mut self, key: ReaderKey, queues: &mut Queues) {
        let Some(reader) = reader_mut(&mut self.slots, key) else { unreachable!("the caller looked it up") };
        let Some(queue) = queues.get_mut(reader.queue) else { unreachable!("a deleted queue's readers have ended") };
        settle(reader, key, queue, &mut self.ready);
    }

    /// Removes a reader and its place in its queue's list.
    fn leave(&mut self, key: ReaderKey, queues: &mut Queues) {
        if let Some(reader) = self.get(key)
            && reader.state == ReaderState::Waiting
            && let Some(queue) = queues.get_mut(reader.queue)
        {
            queue.waiting.retain(|&other| other != key);
        }
        self.remove(key);
    }

    fn remove(&mut self, key: ReaderKey) {
        let place = &mut self.slots[key.index as usize];
        assert!(place.generation == key.generation, "a reader is removed once");
        place.generation = place.generation.wrapping_add(1) & GENERATIONS;
        let Some(reader) = place.reader.take() else { unreachable!("a reader is removed once") };
        self.free.push(key.index);
        let Some(owned) = self.by_owner.get_mut(&reader.owner) else { unreachable!("a reader has an owner") };
        owned.swap_remove(reader.owned_at as usize);
        if let Some(&moved) = owned.get(reader.owned_at as usize) {
            let Some(moved) = reader_mut(&mut self.slots, moved) else { unreachable!("an owned reader lives") };
            moved.owned_at = reader.owned_at;
        } else if owned.is_empty() {
            self.by_owner.remove(&reader.owner);
        }
    }
}

fn reader_mut(slots: &mut [ReaderSlot], key: ReaderKey) -> Option<&mut Reader> {
    let place = slots.get_mut(key.index as usize)?;
    if place.generation == key.generation { place.reader.as_mut() } else { None }
}

/// Puts a reader that is neither waiting nor ready where its credit and its queue say.
fn settle(reader: &mut Reader, key: ReaderKey, queue: &mut Queue, ready: &mut VecDeque<ReaderKey>) {
    reader.state = if !reader.has_credit() {
        ReaderState::Spent
    } else if reader.next < queue.visible {
        ready.push_back(key);
        ReaderState::Ready
    } else {
        queue.waiting.push(key);
        ReaderState::Waiting
    };
}

fn add_credit(reader: &mut Reader, credit: Credit) {
    reader.messages = reader.messages.saturating_add_unsigned(credit.messages);
    reader.bytes = reader.bytes.saturating_add_unsigned(credit.bytes);
}
