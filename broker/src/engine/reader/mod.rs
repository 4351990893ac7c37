//! Subscriptions of readers: each stands in one queue at an offset and is served against its credit.
//!
//! ```text
//!            credit                     next_delivery                delivered
//!  Spent ──────────────►  Ready  ─────────────────────►  Taken  ───────────────►  Ready | Waiting | Spent
//!                           │ the index dropped it  ┌─►  LookingUp  ── looked_up ─►  Ready | Spent
//!                           └───────────────────────┘
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

mod delivery;
mod found;
mod slots;
mod turn;

use std::collections::{HashMap, VecDeque};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{LogPosition, QueueOffset, SubscriptionId, TopicId};

use self::found::{Found, Next, next_batch};
use self::slots::{ReaderSlot, reader_mut};
use super::group::Share;
use super::index::IndexCursor;
use super::queue::{Queue, QueueSlot, Queues};
use super::refusal::Refusal;

pub use self::delivery::{BatchPlace, Delivery};
pub use self::slots::ReaderKey;
pub use self::turn::{Turn, TurnLeft};

/// Whoever subscribes: the shard's number for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReaderOwner(pub u64);

/// How much a reader still takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    pub messages: u64,
    pub bytes: u64,
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
    /// The shard looks up its next batches in the indexes of sealed segments. It may have ended, or have to end, before they come.
    LookingUp,
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
    /// While it reads what its queue's index dropped.
    found: Option<Box<Found>>,
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
    /// Batches that were looked up for readers and not handed out yet.
    found: usize,
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

    /// What to do next, or `None` when every reader is served, without credit, or busy. Comes back with the turn that would be
    /// handed something while it `is_behind`: its caller sees to that and asks again.
    pub fn next_delivery(
        &mut self,
        queues: &mut Queues,
        is_behind: impl Fn(&Turn) -> bool,
    ) -> Result<Option<Delivery>, Share> {
        loop {
            let Some(key) = self.ready.pop_front() else { return Ok(None) };
            let Some(reader) = reader_mut(&mut self.slots, key) else { continue };
            let (owner, subscription) = (reader.owner, key.id());
            match reader.state {
                ReaderState::Ready => {}
                ReaderState::Revoking => {
                    reader.state = ReaderState::Revoked;
                    return Ok(Some(Delivery::Revoked { owner, subscription }));
                }
                ReaderState::Ended(code) => {
                    self.remove(key);
                    return Ok(Some(Delivery::Ended { owner, subscription, code }));
                }
                _ => continue,
            }
            if let Some(turn) = reader.turn.as_deref().filter(|&turn| is_behind(turn)) {
                let share = Share { group: turn.group, queue: turn.queue };
                self.ready.push_front(key);
                return Err(share);
            }
            let Some(queue) = queues.get_mut(reader.queue) else {
                unreachable!("a deleted queue's readers have ended")
            };
            if reader.next < queue.start {
                if reader.turn.is_none() {
                    reader.state = ReaderState::Ended(ErrorCode::OffsetTooOld);
                    self.ready.push_back(key);
                    continue;
                }
                // What its group had not read is no longer kept.
                reader.next = queue.start;
                reader.cursor = queue.index.seek(queue.start);
                self.found -= reader.found.take().map_or(0, |found| found.batches.len());
            }
            if reader.next >= queue.visible {
                reader.state = ReaderState::Waiting;
                queue.waiting.push(key);
                continue;
            }
            let entry = match next_batch(reader, queue, &mut self.found) {
                Next::Batch(entry) => entry,
                Next::Elsewhere => {
                    reader.state = ReaderState::LookingUp;
                    let behind = reader.found.as_ref().map_or(LogPosition(0), |found| found.behind);
                    let (offset, below) = (reader.next, queue.index.dropped_end());
                    let queue = queue.key;
                    return Ok(Some(Delivery::LookUp { owner, subscription, queue, offset, below, behind }));
                }
                Next::Lost => {
                    reader.next = queue.visible;
                    reader.state = ReaderState::Waiting;
                    queue.waiting.push(key);
                    continue;
                }
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
            return Ok(Some(Delivery::Batch { owner, subscription, batch }));
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
