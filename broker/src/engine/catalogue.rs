//! What topics exist. Shard 0's log is the home of the catalogue; the other shards hold copies that they are handed.
//!
//! At home a change goes: decided, appended, applied (it stands in `pending` now, seen by nobody), durable (it takes effect and
//! stands in `effects`), told to every shard, answered. Deciding waits for a pending change of the same name instead of
//! guessing how it ends, so that each decision rests on what is durable. A copy knows only changes that took effect at home.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use peregrine_protocol::entry::EntryDraft;
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, ShardId, TopicId};
use peregrine_protocol::limits::QUEUES_PER_TOPIC_MAX;
use peregrine_protocol::name::check_name;
use peregrine_protocol::placement::TopicHash;
use rustc_hash::FxHashMap;

use super::id_ranges::IdRanges;
use super::refusal::Refusal;
use super::topic_change::{ChangeKind, TopicChange};
use crate::limits;

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub id: TopicId,
    pub name: Arc<str>,
    /// Its queues are 0 to `queues` - 1.
    pub queues: u32,
    /// Store time of the entry that made it.
    pub created: Nanos,
    /// Of the name: where its queues lie.
    pub hash: TopicHash,
}

impl Topic {
    pub fn shard_of(&self, queue: QueueId, shards: u16) -> ShardId {
        self.hash.shard_of(queue, shards)
    }
}

/// What the catalogue says of an id, and what one shard tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// It exists, with this many queues.
    Live(Topic),
    /// It existed and was deleted.
    Deleted(TopicId),
    /// Never heard of.
    Unknown(TopicId),
}

/// The whole catalogue, for the start of the shards that are not its home.
#[derive(Clone, Debug, Default)]
pub struct CatalogueSnapshot {
    topics: Vec<Topic>,
    deleted: IdRanges,
    highest: TopicId,
    lossy: bool,
}

/// What to do about a request to change the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueDecision {
    /// Append this entry; answer once it took effect and every shard was told.
    Append { draft: EntryDraft, payload: Vec<u8> },
    /// It is as the request wants it already.
    Done(Topic),
    /// A change of the same topic is on its way to the disk: decide again when durable has reached this position.
    After(LogPosition),
}

/// Topics by id and by name.
#[derive(Debug, Default)]
pub struct Catalogue {
    topics: FxHashMap<TopicId, Topic>,
    names: BTreeMap<Arc<str>, TopicId>,
    deleted: IdRanges,
    /// The highest id seen anywhere; a new topic lies above it.
    highest: TopicId,
    /// A hole in the home's log was accepted: a topic that nobody knows may have been lost with it.
    lossy: bool,
    /// Changes whose entry is not durable, in the order of the log.
    pending: VecDeque<PendingChange>,
}

#[derive(Debug)]
struct PendingChange {
    /// Of its entry.
    end: LogPosition,
    store_time: Nanos,
    change: TopicChange,
}

impl Catalogue {
    pub fn get(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    pub fn named(&self, name: &str) -> Option<&Topic> {
        self.names.get(name).and_then(|id| self.topics.get(id))
    }

    pub fn state(&self, id: TopicId) -> TopicState {
        match self.topics.get(&id) {
            Some(topic) => TopicState::Live(topic.clone()),
            None if self.deleted.contains(id) => TopicState::Deleted(id),
            None => TopicState::Unknown(id),
        }
    }

    pub fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.contains(id)
    }

    /// Topics in the order of their names, those behind `after`.
    pub fn after(&self, after: Option<&str>) -> impl Iterator<Item = &Topic> + '_ {
        self.from(after.map_or(Bound::Unbounded, Bound::Excluded))
    }

    /// The same of those whose names begin with `prefix`.
    pub fn with_prefix(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Topic> {
        let start = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        self.from(start).take_while(move |topic| topic.name.starts_with(prefix))
    }

    fn from(&self, start: Bound<&str>) -> impl Iterator<Item = &Topic> + use<'_> {
        self.names.range::<str, _>((start, Bound::Unbounded)).filter_map(|(_, id)| self.topics.get(id))
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn highest(&self) -> TopicId {
        self.highest
    }

    /// Ids up to `id` were seen: none of them is given to a new topic.
    pub fn raise_highest(&mut self, id: TopicId) {
        self.highest = self.highest.max(id);
    }

    pub fn is_lossy(&self) -> bool {
        self.lossy
    }

    /// What the home's log says may have holes from here on.
    pub fn accept_hole(&mut self) {
        self.lossy = true;
    }

    pub fn deleted(&self) -> &IdRanges {
        &self.deleted
    }

    pub fn snapshot(&self) -> CatalogueSnapshot {
        let topics = self.after(None).cloned().collect();
        CatalogueSnapshot { topics, deleted: self.deleted.clone(), highest: self.highest, lossy: self.lossy }
    }

    pub fn install(&mut self, snapshot: CatalogueSnapshot) {
        assert!(self.topics.is_empty(), "a copy is installed once, before anything is applied");
        for topic in snapshot.topics {
            self.names.insert(topic.name.clone(), topic.id);
            self.topics.insert(topic.id, topic);
        }
        self.deleted = snapshot.deleted;
        self.lossy = snapshot.lossy;
        self.highest = self.highest.max(snapshot.highest);
    }

    // Deciding, at home.

    pub fn decide_create(&self, name: &str, queues: u32, time: Nanos) -> Result<CatalogueDecision, Refusal> {
        check_name(name).map_err(|_| Refusal::InvalidName)?;
        check_queues(queues)?;
        if let Some(end) = self.pending_of(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.named(name) {
            Some(topic) if topic.queues == queues => return Ok(CatalogueDecision::Done(topic.clone())),
            Some(topic) => return Err(Refusal::TopicExists { queues: topic.queues }),
            None => {}
        }
        if self.topics.len() + self.pending.len() >= limits::TOPICS_MAX {
            return Err(Refusal::LimitReached("topics"));
        }
        self.change(ChangeKind::Create, TopicId(self.highest.0 + 1), name, queues, time)
    }

    pub fn decide_alter(&self, name: &str, queues: u32, time: Nanos) -> Result<CatalogueDecision, Refusal> {
        check_queues(queues)?;
        if let Some(end) = self.pending_of(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.named(name) {
            None => Err(Refusal::UnknownTopic),
            Some(topic) if queues < topic.queues => Err(Refusal::InvalidArgument("a topic never loses queues")),
            Some(topic) if queues == topic.queues => Ok(CatalogueDecision::Done(topic.clone())),
            Some(topic) => self.change(ChangeKind::Alter, topic.id, name, queues, time),
        }
    }

    pub fn decide_delete(&self, name: &str, id: Option<TopicId>, time: Nanos) -> Result<CatalogueDecision, Refusal> {
        if let Some(end) = self.pending_of(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.named(name).filter(|topic| id.is_none_or(|id| id == topic.id)) {
            None if id.is_some_and(|id| self.deleted.contains(id)) => Err(Refusal::TopicDeleted),
            None => Err(Refusal::UnknownTopic),
            Some(topic) => self.change(ChangeKind::Delete, topic.id, name, 0, time),
        }
    }

    fn pending_of(&self, name: &str) -> Option<LogPosition> {
        self.pending.iter().rev().find(|pending| pending.change.name == name).map(|pending| pending.end)
    }

    fn change(
        &self,
        kind: ChangeKind,
        topic: TopicId,
        name: &str,
        queues: u32,
        time: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        if self.pending.len() >= limits::CATALOGUE_CHANGES_PENDING_MAX {
            return Err(Refusal::Busy { retry_after: limits::CATALOGUE_RETRY });
        }
        let (draft, payload) = TopicChange { kind, topic, name: name.to_owned(), queues }.draft(time);
        Ok(CatalogueDecision::Append { draft, payload })
    }

    // Applying.

    /// Whether `change` can follow what the catalogue holds, pending changes of other names aside; else what is wrong.
    pub fn fits(&self, change: &TopicChange) -> Result<(), &'static str> {
        let live = self.named(&change.name).filter(|topic| topic.id == change.topic);
        if self.pending_of(&change.name).is_some() {
            return Err("it follows a change of the same topic that was not durable yet");
        }
        match (change.kind, live) {
            (ChangeKind::Create, _) if self.named(&change.name).is_some() => Err("a topic of that name exists"),
            (ChangeKind::Create, _) if change.topic <= self.highest => Err("the topic's id was given before"),
            (ChangeKind::Create, _) if check_queues(change.queues).is_err() => {
                Err("the number of queues is out of range")
            }
            (ChangeKind::Create, _) => Ok(()),
            (_, None) => Err("there is no such topic"),
            (ChangeKind::Alter, Some(topic)) if change.queues <= topic.queues => Err("alter only adds queues"),
            (ChangeKind::Alter | ChangeKind::Delete, Some(_)) => Ok(()),
        }
    }

    /// A change that fits was appended, its entry ending at `end`.
    pub fn append(&mut self, change: TopicChange, end: LogPosition, store_time: Nanos) {
        self.raise_highest(change.topic);
        self.pending.push_back(PendingChange { end, store_time, change });
    }

    /// The next change whose entry `durable` covers takes effect; what its topic is from now on, and what it was.
    pub fn settle_next(&mut self, durable: LogPosition) -> Option<(TopicState, Option<Topic>)> {
        let PendingChange { store_time, change, .. } = self.pending.pop_front_if(|pending| pending.end <= durable)?;
        let state = self.state_after(&change, store_time);
        let before = self.set(&state);
        Some((state, before))
    }

    /// What `change`, whose entry was stored at `time`, makes of its topic.
    pub fn state_after(&self, change: &TopicChange, time: Nanos) -> TopicState {
        match change.kind {
            ChangeKind::Create | ChangeKind::Alter => TopicState::Live(Topic {
                id: change.topic,
                name: change.name.as_str().into(),
                queues: change.queues,
                created: self.topics.get(&change.topic).map_or(time, |topic| topic.created),
                hash: TopicHash::of(&change.name),
            }),
            ChangeKind::Delete => TopicState::Deleted(change.topic),
        }
    }

    /// Makes the catalogue say `state`. News may come late or twice: nothing deleted lives again, no topic loses queues.
    /// Returns what was there before.
    pub fn set(&mut self, state: &TopicState) -> Option<Topic> {
        match state {
            TopicState::Live(topic) => {
                self.raise_highest(topic.id);
                let before = self.topics.get(&topic.id).cloned();
                if self.deleted.contains(topic.id) || before.as_ref().is_some_and(|old| old.queues >= topic.queues) {
                    return before;
                }
                self.names.insert(topic.name.clone(), topic.id);
                self.topics.insert(topic.id, topic.clone())
            }
            TopicState::Deleted(id) => {
                self.raise_highest(*id);
                self.deleted.insert(*id);
                let before = self.topics.remove(id)?;
                if self.names.get(&before.name) == Some(id) {
                    self.names.remove(&before.name);
                }
                Some(before)
            }
            TopicState::Unknown(_) => None,
        }
    }
}

fn check_queues(queues: u32) -> Result<(), Refusal> {
    if (1..=QUEUES_PER_TOPIC_MAX).contains(&queues) {
        Ok(())
    } else {
        Err(Refusal::InvalidArgument("a topic has 1 to 65536 queues"))
    }
}
