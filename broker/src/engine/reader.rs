//! Subscriptions of readers: each stands in one queue at an offset and is served against its credit.
//!
//! ```text
//!            credit                     next_delivery                delivered
//!  Spent ──────────────►  Ready  ─────────────────────►  Taken  ───────────────►  Ready | Waiting | Spent
//!                           ▲                                                               │
//!                           └──────────── the queue's visible end moved ────────────────────┘
//! ```
//!
//! A subscription of a group's member stands by until it is the queue's turn in the group that its member holds, and is served
//! like a reader from then on, until the queue is revoked (nothing more comes, but what came may be acknowledged) or it ends:
//!
//! ```text
//!            activate           revoke                  told             end
//!  StandBy ──────────► Ready … ────────► (LastTaken ►) Revoking ───────► Revoked ───────► Ended
//! ```
//!
//! Only `Ready` ones stand in the list that the shard works through: one without credit or news costs nothing. A taken one
//! stays out of it until the shard says that it can take the next batch of it, which is how a slow socket or a read from disk
//! holds back its own subscriptions alone. Nothing here is durable: a crash ends connections and subscriptions with them.

use std::collections::{HashMap, VecDeque};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, LogPosition, QueueOffset, SubscriptionId, TopicId};

use super::group::Attempts;
use super::index::{IndexCursor, IndexEntry};
use super::queue::{Queue, QueueKey, QueueSlot, Queues};
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
    pub fn id(self) -> SubscriptionId {
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
    /// For a group's member: how often that record has been handed out with this, 1 for the first time. 0 for a reader.
    pub attempt: u16,
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
            attempt: 0,
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
    /// The queue is to go to another member: say so. No batch follows. The member acknowledges what it is done with, or ends the
    /// subscription; else [`Delivery::Ended`] follows.
    Revoked { owner: ReaderOwner, subscription: SubscriptionId },
    /// The subscription has ended: say why. What was handed out and not sent yet is not to be sent any more.
    Ended { owner: ReaderOwner, subscription: SubscriptionId, code: ErrorCode },
}

/// What the subscription of a group's member is for.
#[derive(Clone, Debug)]
pub struct Turn {
    pub group: GroupId,
    pub queue: QueueKey,
    /// Of what is handed out again.
    pub attempts: Attempts,
}

/// A member's subscription that is gone.
#[derive(Debug)]
pub struct TurnLeft {
    pub key: ReaderKey,
    pub group: GroupId,
    pub queue: QueueKey,
    /// The offset behind the last message that it was handed.
    pub delivered_end: QueueOffset,
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
    /// Of a member whose turn has not come.
    StandBy,
    /// Its member has to give the queue up, and the shard is busy with its last batch.
    LastTaken,
    /// Its member has to give the queue up; stands in the list to be told.
    Revoking,
    /// It was told, and may acknowledge what it was handed.
    Revoked,
    /// It has ended for this reason; stands in the list to be told.
    Ended(ErrorCode),
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
    /// Of a group's member; none for a reader.
    turn: Option<Box<Turn>>,
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
        let key = self.make(owner, slot, queue.key.topic, credit, None)?;
        self.begin(key, queue, start);
        Ok(key.id())
    }

    /// Adds the subscription of a group's member; it stands by until [`Self::activate`].
    pub fn add_turn(
        &mut self,
        owner: ReaderOwner,
        slot: QueueSlot,
        turn: Turn,
        credit: Credit,
    ) -> Result<ReaderKey, Refusal> {
        self.make(owner, slot, turn.queue.topic, credit, Some(Box::new(turn)))
    }

    fn make(
        &mut self,
        owner: ReaderOwner,
        queue: QueueSlot,
        topic: TopicId,
        credit: Credit,
        turn: Option<Box<Turn>>,
    ) -> Result<ReaderKey, Refusal> {
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
            queue,
            topic,
            next: QueueOffset(0),
            cursor: IndexCursor::default(),
            messages: 0,
            bytes: 0,
            state: ReaderState::StandBy,
            owned_at: owned.len() as u32,
            turn,
        });
        owned.push(key);
        add_credit(reader, credit);
        Ok(key)
    }

    fn begin(&mut self, key: ReaderKey, queue: &mut Queue, start: QueueOffset) {
        let Some(reader) = reader_mut(&mut self.slots, key) else { unreachable!("the caller looked it up") };
        reader.next = start;
        reader.cursor = queue.index.seek(start);
        settle(reader, key, queue, &mut self.ready);
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
            match reader.state {
                ReaderState::Ready => {}
                ReaderState::Revoking => {
                    reader.state = ReaderState::Revoked;
                    return Some(Delivery::Revoked { owner, subscription });
                }
                ReaderState::Ended(code) => {
                    self.remove(key);
                    return Some(Delivery::Ended { owner, subscription, code });
                }
                _ => continue,
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
            let mut batch = BatchPlace::for_reader(&entry, reader.next);
            if let Some(turn) = &reader.turn {
                batch.attempt = turn.attempts.before(batch.first_wanted).saturating_add(1);
            }
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
        let Some(reader) = self.get_mut(key) else { return };
        match reader.state {
            ReaderState::Taken => self.resettle(key, queues),
            ReaderState::LastTaken => {
                reader.state = ReaderState::Revoking;
                self.ready.push_back(key);
            }
            _ => {}
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

    /// Ends one subscription of its owner; that of a group's member is returned.
    pub fn unsubscribe(
        &mut self,
        owner: ReaderOwner,
        id: SubscriptionId,
        queues: &mut Queues,
    ) -> Result<Option<TurnLeft>, Refusal> {
        let key = self.owned(owner, id)?;
        Ok(self.leave(key, queues))
    }

    /// Ends all subscriptions of an owner that is gone; those of group's members are returned.
    pub fn detach(&mut self, owner: ReaderOwner, queues: &mut Queues) -> Vec<TurnLeft> {
        let mut turns = Vec::new();
        while let Some(&key) = self.by_owner.get(&owner).and_then(|owned| owned.last()) {
            turns.extend(self.leave(key, queues));
        }
        turns
    }

    // Subscriptions of groups' members.

    /// It is this subscription's turn: its messages come from `start` on.
    pub fn activate(&mut self, key: ReaderKey, start: QueueOffset, attempts: Attempts, queues: &mut Queues) {
        let Some(reader) = self.get_mut(key) else { unreachable!("a subscription that stands by lives") };
        assert!(reader.state == ReaderState::StandBy, "a turn begins once");
        if let Some(turn) = &mut reader.turn {
            turn.attempts = attempts;
        }
        let Some(queue) = queues.get_mut(reader.queue) else { unreachable!("a deleted queue's readers have ended") };
        self.begin(key, queue, start);
    }

    /// Nothing more comes; its owner is to be told, after the last batch.
    pub fn revoke(&mut self, key: ReaderKey, queues: &mut Queues) {
        match self.get_mut(key) {
            Some(reader) if reader.state == ReaderState::Taken => reader.state = ReaderState::LastTaken,
            _ => self.stop(key, ReaderState::Revoking, queues),
        }
    }

    /// It ends; its owner is to be told why.
    pub fn end(&mut self, key: ReaderKey, code: ErrorCode, queues: &mut Queues) {
        self.stop(key, ReaderState::Ended(code), queues);
    }

    /// The offset behind the last message that it was handed.
    pub fn delivered_end(&self, key: ReaderKey) -> QueueOffset {
        let Some(reader) = self.get(key) else { unreachable!("a turn's subscription lives") };
        reader.next
    }

    /// What an owner's subscription is for: `None` for a reader; the offset behind the last message that it was handed.
    pub fn turn_of(
        &self,
        owner: ReaderOwner,
        id: SubscriptionId,
    ) -> Result<Option<(&Turn, ReaderKey, QueueOffset)>, Refusal> {
        let key = self.owned(owner, id)?;
        let Some(reader) = self.get(key) else { unreachable!("an owned reader lives") };
        Ok(reader.turn.as_deref().map(|turn| (turn, key, reader.next)))
    }

    fn stop(&mut self, key: ReaderKey, state: ReaderState, queues: &mut Queues) {
        let Some(reader) = reader_mut(&mut self.slots, key) else { unreachable!("the caller looked it up") };
        if reader.state == ReaderState::Waiting
            && let Some(queue) = queues.get_mut(reader.queue)
        {
            queue.waiting.retain(|&other| other != key);
        }
        reader.state = state;
        self.ready.push_back(key);
    }

    /// A topic was deleted: its readers are to be told. Looks at every reader, as deletion is rare.
    pub fn end_topic(&mut self, topic: TopicId) {
        for (index, place) in self.slots.iter_mut().enumerate() {
            let key = ReaderKey { index: index as u32, generation: place.generation };
            if let Some(reader) = place.reader.as_mut().filter(|reader| reader.topic == topic) {
                reader.state = ReaderState::Ended(ErrorCode::TopicDeleted);
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
            Some(reader) if reader.owner == owner && !matches!(reader.state, ReaderState::Ended(_)) => Ok(key),
            _ => Err(Refusal::UnknownSubscription),
        }
    }

    fn resettle(&mut self, key: ReaderKey, queues: &mut Queues) {
        let Some(reader) = reader_mut(&mut self.slots, key) else { unreachable!("the caller looked it up") };
        let Some(queue) = queues.get_mut(reader.queue) else { unreachable!("a deleted queue's readers have ended") };
        settle(reader, key, queue, &mut self.ready);
    }

    /// Removes a reader and its place in its queue's list.
    fn leave(&mut self, key: ReaderKey, queues: &mut Queues) -> Option<TurnLeft> {
        if let Some(reader) = self.get(key)
            && reader.state == ReaderState::Waiting
            && let Some(queue) = queues.get_mut(reader.queue)
        {
            queue.waiting.retain(|&other| other != key);
        }
        let reader = self.remove(key);
        // One that has ended was taken out of its group's turns before.
        let turn = reader.turn.filter(|_| !matches!(reader.state, ReaderState::Ended(_)))?;
        Some(TurnLeft { key, group: turn.group, queue: turn.queue, delivered_end: reader.next })
    }

    fn remove(&mut self, key: ReaderKey) -> Reader {
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
        reader
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
