//! The groups that the catalogue knows, by id and by name.
//!
//! A group only gains topics; it loses one when that is deleted. Two states of a group can therefore be merged whatever the
//! order in which they come: its topics are all that any of them named, less those that are deleted.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use peregrine_protocol::ids::{GroupId, Nanos, QueueOffset, ShardId, TopicId};
use peregrine_protocol::placement::group_home;
use rustc_hash::FxHashMap;

use crate::engine::StartAt;
use crate::engine::catalogue::IdRanges;

/// Where a group begins in a queue in which it has no place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupStart {
    /// At the first message that is still there.
    Earliest,
    /// At the first message stored at or after that instant.
    Time(Nanos),
    /// At that offset, or at the nearest one that the queue has.
    Offset(QueueOffset),
}

impl GroupStart {
    /// What a request asks for that is decided at `now`. "Latest" becomes that instant: the same in every queue, whenever the
    /// group first reads it, and in queues that are added later. It is the wall clock's, which all shards have in common: the store
    /// time of shard 0 may be ahead of another shard's, whose next messages would not be the group's.
    pub fn asked(start: StartAt, now: Nanos) -> Self {
        match start {
            StartAt::Earliest => Self::Earliest,
            StartAt::Latest => Self::Time(now),
            StartAt::Time(instant) => Self::Time(instant),
            StartAt::Offset { offset, .. } => Self::Offset(offset),
        }
    }

    /// Kind and value, as the log has them.
    pub fn numbers(self) -> (u32, u64) {
        match self {
            Self::Earliest => (1, 0),
            Self::Time(time) => (2, time.0),
            Self::Offset(offset) => (3, offset.0),
        }
    }

    /// `None` for a kind that this program does not know.
    pub fn from_numbers(kind: u64, value: u64) -> Option<Self> {
        match kind {
            1 => Some(Self::Earliest),
            2 => Some(Self::Time(Nanos(value))),
            3 => Some(Self::Offset(QueueOffset(value))),
            _ => None,
        }
    }
}

/// A group that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub id: GroupId,
    pub name: Arc<str>,
    /// Store time of the entry that made it.
    pub created: Nanos,
    /// What it consumes, and from where; ascending by topic.
    pub topics: Vec<(TopicId, GroupStart)>,
}

impl Group {
    /// The shard that sees the group's members and assigns queues to them.
    pub fn home_shard(&self, shards: u16) -> ShardId {
        group_home(&self.name, shards)
    }

    /// Where it begins in that topic's queues; `None` for a topic that it does not consume.
    pub fn start_in(&self, topic: TopicId) -> Option<GroupStart> {
        self.find(topic).ok().map(|at| self.topics[at].1)
    }

    /// Adds a topic; one that is there keeps its start. Whether that changed anything.
    pub fn add(&mut self, topic: TopicId, start: GroupStart) -> bool {
        let Err(at) = self.find(topic) else { return false };
        self.topics.reserve_exact(1);
        self.topics.insert(at, (topic, start));
        true
    }

    fn find(&self, topic: TopicId) -> Result<usize, usize> {
        self.topics.binary_search_by_key(&topic, |&(topic, _)| topic)
    }
}

/// What the catalogue says of a group's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It exists, and consumes these topics.
    Live(Group),
    /// It existed and was deleted.
    Deleted(GroupId),
    /// Never heard of.
    Unknown(GroupId),
}

/// All groups.
#[derive(Debug, Default)]
pub struct Groups {
    by_id: FxHashMap<GroupId, Group>,
    names: BTreeMap<Arc<str>, GroupId>,
}

impl Groups {
    pub fn get(&self, id: GroupId) -> Option<&Group> {
        self.by_id.get(&id)
    }

    pub fn named(&self, name: &str) -> Option<&Group> {
        self.names.get(name).and_then(|id| self.by_id.get(id))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Groups in the order of their names, from `start` on.
    pub fn from(&self, start: Bound<&str>) -> impl Iterator<Item = &Group> + use<'_> {
        self.names.range::<str, _>((start, Bound::Unbounded)).filter_map(|(_, id)| self.by_id.get(id))
    }

    /// Takes in what `news` says beyond what is known.
    pub fn merge(&mut self, news: &Group) {
        if let Some(known) = self.by_id.get_mut(&news.id) {
            for &(topic, start) in &news.topics {
                known.add(topic, start);
            }
            return;
        }
        self.names.insert(news.name.clone(), news.id);
        self.by_id.insert(news.id, news.clone());
    }

    pub fn remove(&mut self, id: GroupId) -> Option<Group> {
        let group = self.by_id.remove(&id)?;
        if self.names.get(&group.name) == Some(&id) {
            self.names.remove(&group.name);
        }
        Some(group)
    }

    /// A topic was deleted: no group consumes it any more. Looks at every group, as deletion is rare.
    pub fn forget_topic(&mut self, topic: TopicId) {
        for group in self.by_id.values_mut() {
            if let Ok(at) = group.find(topic) {
                group.topics.remove(at);
            }
        }
    }

    /// Drops the groups that are among `deleted`, and of the others the topics that are.
    pub fn drop_deleted(&mut self, deleted: &IdRanges) {
        let gone: Vec<GroupId> = self.by_id.keys().copied().filter(|&id| deleted.contains(id.into())).collect();
        for id in gone {
            self.remove(id);
        }
        for group in self.by_id.values_mut() {
            group.topics.retain(|&(topic, _)| !deleted.contains(topic.into()));
        }
    }

    /// Bytes that the groups take here, the nodes of the name tree taken as full.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        // The text with its two counts, and the topics.
        let of = |group: &Group| group.name.len() + 16 + group.topics.capacity() * size_of::<(TopicId, GroupStart)>();
        self.by_id.values().map(of).sum::<usize>()
            + self.by_id.capacity() * (size_of::<(GroupId, Group)>() + 1)
            + self.names.len() * size_of::<(Arc<str>, GroupId)>()
    }
}
