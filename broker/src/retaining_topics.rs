//! Gives up what is too old for its topic, where that has a retention of its own: the starts of its queues move, and nothing else.
//! Bytes go with their segments. A state machine between engine, indexes and log, run by the shard's background task and by the
//! simulator alike, beside [`crate::retaining`].
//!
//! ```text
//!   due, by time ─► walk of the topic's queues, a slice at a time ⇄ an index is asked
//!     ▲                    │ an entry for each slice in which starts move
//!     └────────────────────┘ again when its oldest message will be too old, and not before a 16th of the age has passed
//! ```
//!
//! So topics without a retention cost nothing, and idle ones one walk in their age. All of this is in memory: a start walks each topic
//! once. A crash leaves starts that have moved or not, as their entries are there or not.

use std::collections::BTreeSet;
use std::pin::Pin;

use peregrine_protocol::ids::{Nanos, QueueId, QueueOffset, TopicId};
use rustc_hash::FxHashMap;

use crate::engine::{Aged, Asked, Engine, IndexEntry, IndexQuestion, QueueKey, QueueStart, StartsEntry};
use crate::limits::{RETENTION_RETRY, TOPIC_RETENTION_EVERY, TOPIC_RETENTION_PARTS, TOPIC_RETENTION_SLICE};
use crate::log::disk::{Disk, RingHost};
use crate::log::fault::Planted;
use crate::log::index::{IndexLookUpError, IndexedBatch};
use crate::log::{AppendRefused, CloseState, Log};

/// Gives up messages of one topic after the other.
#[derive(Default)]
pub struct RetainingTopics {
    /// When which topic is walked next, by the clock of store times.
    due: BTreeSet<(Nanos, TopicId)>,
    due_at: FxHashMap<TopicId, Nanos>,
    walk: Option<Walk>,
    /// An index is asked.
    is_asking: bool,
    not_before: Nanos,
}

/// A topic that is being walked.
#[derive(Clone, Copy, Debug)]
struct Walk {
    topic: TopicId,
    /// What its topic asked for when the queue was last looked at.
    age: Nanos,
    began: Nanos,
    /// The queue that is looked at next.
    next: u32,
    /// When the oldest message was stored of those that the queues walked so far keep.
    oldest: Option<Nanos>,
}

/// What a turn came to.
pub enum TopicsTurn {
    /// Nothing is due.
    Rests,
    /// There is more to do, after others had their turn.
    More,
    /// Run it, and hand its outcome to [`RetainingTopics::answered`].
    Ask(IndexTask),
}

pub type IndexTask = Pin<Box<dyn Future<Output = IndexAnswer>>>;

/// What an index said.
pub struct IndexAnswer {
    pub(crate) question: IndexQuestion,
    pub(crate) found: Result<Option<IndexedBatch>, IndexLookUpError>,
}

impl RetainingTopics {
    /// Takes the topic that is due a slice further. `now` is the shard's monotonic clock, `wall` that of store times; `append` appends
    /// an entry and applies it, in one turn.
    pub fn turn<D: Disk, H: RingHost>(
        &mut self,
        engine: &mut Engine,
        log: &mut Log<D, H>,
        (now, wall): (Nanos, Nanos),
        append: impl FnOnce(&mut Engine, &mut Log<D, H>, &StartsEntry) -> Result<(), AppendRefused>,
    ) -> TopicsTurn {
        if self.is_asking || now < self.not_before || log.is_poisoned() || log.close_state() != CloseState::Open {
            return TopicsTurn::Rests;
        }
        for _ in 0..TOPIC_RETENTION_SLICE {
            let Some(topic) = engine.next_retention_news() else { break };
            self.schedule(topic, Nanos::ZERO);
        }
        let Some(mut walk) = self.walk.take().or_else(|| self.next_walk(wall)) else { return TopicsTurn::Rests };
        // Deleted, or altered to keep its messages as its shards do.
        let Some((age, queues)) = engine.own_age(walk.topic) else { return TopicsTurn::More };
        walk.age = age;
        self.walk = Some(walk);
        let mut moved = Vec::new();
        let mut question = None;
        for _ in 0..TOPIC_RETENTION_SLICE {
            // What was stored exactly `age` ago is too old.
            let Some(time) = wall.0.checked_sub(age.0).map(|gone| Nanos(gone + 1)).filter(|_| walk.next < queues)
            else {
                break;
            };
            let key = QueueKey { topic: walk.topic, queue: QueueId(walk.next) };
            let aged = if engine.owns(key.topic, key.queue) { engine.aged(key, time) } else { Aged::Keeps(None) };
            match aged {
                Aged::Keeps(first) => walk.keeps(first),
                Aged::Start(start, first) => {
                    moved.push((key, start, first));
                    walk.keeps(first);
                }
                Aged::Ask(asked) => {
                    question = Some(asked);
                    break;
                }
            }
            walk.next += 1;
        }
        if !self.give_up(&moved, engine, log, (now, wall), append) {
            return TopicsTurn::Rests;
        }
        self.walk = Some(walk);
        if let Some(question) = question {
            return TopicsTurn::Ask(self.ask(question, log));
        }
        if walk.next >= queues || wall < age {
            self.walk = None;
            self.schedule(walk.topic, walk.due_again(age));
        }
        TopicsTurn::More
    }

    /// Takes in what an index said.
    pub fn answered<D: Disk, H: RingHost>(
        &mut self,
        answer: &IndexAnswer,
        engine: &mut Engine,
        log: &mut Log<D, H>,
        (now, wall): (Nanos, Nanos),
        append: impl FnOnce(&mut Engine, &mut Log<D, H>, &StartsEntry) -> Result<(), AppendRefused>,
    ) {
        self.is_asking = false;
        let IndexAnswer { question, found } = answer;
        let Some(mut walk) = self.walk.filter(|_| !log.is_poisoned()) else { return };
        // Altered while the index was asked: that queue is looked at again.
        if engine.own_age(walk.topic).is_none_or(|(age, _)| age != walk.age) {
            return;
        }
        let Ok(found) = found else {
            // Its index is being made, or cannot be: that queue is looked at again with its topic.
            walk.keeps(Some(Nanos::ZERO));
            walk.next += 1;
            self.walk = Some(walk);
            return;
        };
        let found = found.as_ref().map(entry);
        match engine.aged_by_index(question, found.as_ref()) {
            Aged::Start(start, first) => {
                if !self.give_up(&[(question.queue, start, first)], engine, log, (now, wall), append) {
                    return;
                }
                // All that memory had dropped is given up: it knows of the rest, and is asked next.
                if found.is_none() {
                    return;
                }
                walk.keeps(first);
            }
            Aged::Keeps(first) => walk.keeps(first),
            Aged::Ask(_) => unreachable!("it was asked"),
        }
        walk.next += 1;
        self.walk = Some(walk);
    }

    /// Moves the starts of these queues. False where that has to be tried again.
    fn give_up<D: Disk, H: RingHost>(
        &mut self,
        moved: &[(QueueKey, QueueOffset, Option<Nanos>)],
        engine: &mut Engine,
        log: &mut Log<D, H>,
        (now, wall): (Nanos, Nanos),
        append: impl FnOnce(&mut Engine, &mut Log<D, H>, &StartsEntry) -> Result<(), AppendRefused>,
    ) -> bool {
        if moved.is_empty() {
            return true;
        }
        let excess = u64::from(log.has_planted(Planted::GiveUpTooYoung));
        let start_of = |&(queue, start, _): &(QueueKey, QueueOffset, _)| QueueStart { queue, start: start + excess };
        let starts: Vec<_> = moved.iter().map(start_of).collect();
        if let Some(entry) = engine.decide_starts(&starts, wall)
            && append(engine, log, &entry).is_err()
        {
            self.not_before = now + RETENTION_RETRY.0;
            return false;
        }
        for &(queue, _, first) in moved {
            if let Some(first) = first {
                engine.keeps_since(queue, first);
            }
        }
        true
    }

    fn next_walk(&mut self, wall: Nanos) -> Option<Walk> {
        let &(_, topic) = self.due.first().filter(|(due, _)| *due <= wall)?;
        self.due.pop_first();
        self.due_at.remove(&topic);
        Some(Walk { topic, age: Nanos::MAX, began: wall, next: 0, oldest: None })
    }

    fn schedule(&mut self, topic: TopicId, at: Nanos) {
        if let Some(before) = self.due_at.get(&topic).copied() {
            if before <= at {
                return;
            }
            self.due.remove(&(before, topic));
        }
        self.due_at.insert(topic, at);
        self.due.insert((at, topic));
    }

    fn ask<D: Disk, H: RingHost>(&mut self, question: IndexQuestion, log: &Log<D, H>) -> IndexTask {
        self.is_asking = true;
        let indexes = log.indexes();
        Box::pin(async move {
            let Asked::Time(time) = question.asked else { unreachable!("times are asked for") };
            let found = indexes.lookup_time(question.queue.topic, question.queue.queue, time, question.below).await;
            IndexAnswer { question, found }
        })
    }
}

impl Walk {
    /// The queue keeps a message that was stored then, and none that is older.
    fn keeps(&mut self, first: Option<Nanos>) {
        self.oldest = self.oldest.into_iter().chain(first).min();
    }

    /// When its oldest message is too old, or one that came meanwhile.
    fn due_again(&self, age: Nanos) -> Nanos {
        let oldest = self.oldest.map_or(self.began, |oldest| oldest.min(self.began));
        let spacing = Nanos(age.0 / TOPIC_RETENTION_PARTS).min(TOPIC_RETENTION_EVERY);
        let due = oldest.0.saturating_add(age.0);
        Nanos(due.max(self.began.0.saturating_add(spacing.0)))
    }
}

fn entry(found: &IndexedBatch) -> IndexEntry {
    let &IndexedBatch { offset, records, position, length, store_time } = found;
    IndexEntry { offset, records, position, length, store_time }
}
