//! What topics and groups exist. Shard 0's log is the home of the catalogue; the other shards hold copies that they are handed.
//!
//! At home a change goes: decided, appended, applied (it stands in `pending` now, seen by nobody), durable (it takes effect and
//! stands in the engine's effects), told to every shard, answered. Deciding waits for a pending change of the same name instead
//! of guessing how it ends, so that each decision rests on what is durable. A copy knows only changes that took effect at home.
//!
//! - `object`: ids and states of topics and groups alike
//! - `decision`: what is to become of a request for a change
//! - `change`, `topic_change`: changes as entries say them (those of groups: `group::change`)
//! - `retention_setting`: how long a topic keeps its messages
//! - `effect`: what changes do, once they are durable
//! - `id_ranges`: what was deleted

mod change;
mod decision;
mod effect;
mod id_ranges;
mod object;
mod retention_setting;
mod topic_change;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use peregrine_protocol::ids::{GroupId, Nanos, QueueId, ShardId, TopicId};
use peregrine_protocol::placement::TopicHash;
use rustc_hash::FxHashMap;

pub use change::{CatalogueChange, CatalogueChangeError, VERSION};
pub use decision::CatalogueDecision;
pub use effect::{Removed, Settled};
pub use id_ranges::IdRanges;
pub use object::{CatalogueId, CatalogueState, ObjectId};
pub use retention_setting::RetentionSetting;
pub use topic_change::{ChangeKind, TopicChange};

use super::group::{Group, GroupState, Groups};
use effect::PendingChange;

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
    pub retention: RetentionSetting,
}

impl Topic {
    pub fn shard_of(&self, queue: QueueId, shards: u16) -> ShardId {
        self.hash.shard_of(queue, shards)
    }
}

/// What the catalogue says of a topic's id.
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
    groups: Vec<Group>,
    deleted: IdRanges,
    highest: ObjectId,
    lossy: bool,
}

/// Topics and groups by id and by name.
#[derive(Debug, Default)]
pub struct Catalogue {
    topics: FxHashMap<TopicId, Topic>,
    names: BTreeMap<Arc<str>, TopicId>,
    groups: Groups,
    /// Ids of either.
    deleted: IdRanges,
    /// The highest id seen anywhere; a new topic or group lies above it.
    highest: ObjectId,
    /// A hole in the home's log was accepted: what nobody knows may have been lost with it.
    lossy: bool,
    /// Changes whose entry is not durable, in the order of the log.
    pending: VecDeque<PendingChange>,
    /// Live topics that have a retention other than the one they had when it was last asked for.
    retention_news: BTreeSet<TopicId>,
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
            None if self.is_deleted(id) => TopicState::Deleted(id),
            None => TopicState::Unknown(id),
        }
    }

    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id)
    }

    pub fn group_named(&self, name: &str) -> Option<&Group> {
        self.groups.named(name)
    }

    pub fn group_state(&self, id: GroupId) -> GroupState {
        match self.groups.get(id) {
            Some(group) => GroupState::Live(group.clone()),
            None if self.is_deleted(id) => GroupState::Deleted(id),
            None => GroupState::Unknown(id),
        }
    }

    pub fn is_deleted(&self, id: impl Into<ObjectId>) -> bool {
        self.deleted.contains(id.into())
    }

    /// Topics in the order of their names, those behind `after`.
    pub fn after(&self, after: Option<&str>) -> impl Iterator<Item = &Topic> + '_ {
        self.topics_from(after.map_or(Bound::Unbounded, Bound::Excluded))
    }

    /// The same of those whose names begin with `prefix`.
    pub fn with_prefix(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Topic> {
        self.topics_from(page_start(prefix, after)).take_while(move |topic| topic.name.starts_with(prefix))
    }

    fn topics_from(&self, start: Bound<&str>) -> impl Iterator<Item = &Topic> + use<'_> {
        self.names.range::<str, _>((start, Bound::Unbounded)).filter_map(|(_, id)| self.topics.get(id))
    }

    /// Groups in the order of their names, those behind `after`.
    pub fn groups_after(&self, after: Option<&str>) -> impl Iterator<Item = &Group> + '_ {
        self.groups.from(after.map_or(Bound::Unbounded, Bound::Excluded))
    }

    /// The same of those whose names begin with `prefix`.
    pub fn groups_with_prefix(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Group> {
        self.groups.from(page_start(prefix, after)).take_while(move |group| group.name.starts_with(prefix))
    }

    /// A topic whose retention changed, or that came to be with one of its own, since this was last asked for it.
    pub fn next_retention_news(&mut self) -> Option<TopicId> {
        self.retention_news.pop_first()
    }

    fn retention_changed(&mut self, before: Option<RetentionSetting>, topic: &Topic) {
        if before.unwrap_or_default().wanted != topic.retention.wanted {
            self.retention_news.insert(topic.id);
        }
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn highest(&self) -> ObjectId {
        self.highest
    }

    /// Ids up to `id` were seen: none of them is given to a new topic or group.
    pub fn raise_highest(&mut self, id: impl Into<ObjectId>) {
        self.highest = self.highest.max(id.into());
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

    /// Adds ids that were deleted, above all that are known to be; false where they are not above.
    #[must_use]
    pub fn restore_deleted(&mut self, first: ObjectId, last: ObjectId) -> bool {
        self.deleted.push(first, last)
    }

    pub fn snapshot(&self) -> CatalogueSnapshot {
        let topics = self.after(None).cloned().collect();
        let groups = self.groups_after(None).cloned().collect();
        CatalogueSnapshot { topics, groups, deleted: self.deleted.clone(), highest: self.highest, lossy: self.lossy }
    }

    pub fn install(&mut self, snapshot: CatalogueSnapshot) {
        assert!(self.topics.is_empty(), "a copy is installed once, before anything is applied");
        for topic in snapshot.topics {
            self.retention_changed(None, &topic);
            self.names.insert(topic.name.clone(), topic.id);
            self.topics.insert(topic.id, topic);
        }
        snapshot.groups.iter().for_each(|group| self.groups.merge(group));
        self.deleted = snapshot.deleted;
        self.lossy = snapshot.lossy;
        self.highest = self.highest.max(snapshot.highest);
    }
}

/// Where a page of the names that begin with `prefix` starts, behind `after`.
fn page_start<'a>(prefix: &'a str, after: &'a str) -> Bound<&'a str> {
    if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) }
}
