//! What changes do to the catalogue: at home when their entry is durable, in a copy when it is told.

use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{LogPosition, Nanos, TopicId};
use peregrine_protocol::placement::TopicHash;

use super::change::CatalogueChange;
use super::decision::check_queues;
use super::topic_change::{ChangeKind, TopicChange};
use super::{Catalogue, CatalogueState, Topic, TopicState};
use crate::engine::group::{Group, GroupChange, GroupState};

/// A change whose entry is not durable.
#[derive(Debug)]
pub struct PendingChange {
    /// Where its entry starts and ends.
    pub position: LogPosition,
    pub end: LogPosition,
    pub store_time: Nanos,
    pub change: CatalogueChange,
}

/// What was deleted just now, as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    Topic(Topic),
    Group(Group),
}

/// A change that took effect.
#[derive(Debug)]
pub struct Settled {
    /// What its object is from now on.
    pub state: CatalogueState,
    pub removed: Option<Removed>,
    /// It gives no group other queues: a topic that nobody can consume yet, or one that keeps its messages otherwise.
    pub leaves_groups: bool,
}

impl Catalogue {
    /// Whether `change` can follow what the catalogue holds, pending changes of other names aside; else what is wrong.
    pub fn fits(&self, change: &CatalogueChange) -> Result<(), &'static str> {
        match change {
            CatalogueChange::Topic(change) => self.fits_topic(change),
            CatalogueChange::Group(change) => self.fits_group(change),
        }
    }

    fn fits_topic(&self, change: &TopicChange) -> Result<(), &'static str> {
        let live = self.named(&change.name).filter(|topic| topic.id == change.topic);
        if self.pending_of_topic(&change.name).is_some() {
            return Err("it follows a change of the same topic that was not durable yet");
        }
        match (change.kind, live) {
            (ChangeKind::Create, _) if self.named(&change.name).is_some() => Err("a topic of that name exists"),
            (ChangeKind::Create, _) if self.highest >= change.topic.into() => Err("the topic's id was given before"),
            (ChangeKind::Create, _) if check_queues(change.queues).is_err() => {
                Err("the number of queues is out of range")
            }
            (ChangeKind::Alter | ChangeKind::Delete, None) => Err("there is no such topic"),
            (ChangeKind::Alter, Some(topic)) if change.queues < topic.queues => Err("a topic never loses queues"),
            (ChangeKind::Alter, Some(topic)) if change.retention.revision < topic.retention.revision => {
                Err("its retention is older than the topic's")
            }
            (ChangeKind::Alter, Some(topic))
                if (change.queues, change.retention) == (topic.queues, topic.retention) =>
            {
                Err("it changes nothing")
            }
            _ => Ok(()),
        }
    }

    fn fits_group(&self, change: &GroupChange) -> Result<(), &'static str> {
        if self.pending_of_group(change.name()).is_some() {
            return Err("it follows a change of the same group that was not durable yet");
        }
        match (change, self.group_named(change.name())) {
            (GroupChange::Is(group), None) if self.highest >= group.id.into() => Err("the group's id was given before"),
            (GroupChange::Is(group), Some(known)) if known.id != group.id => Err("a group of that name exists"),
            (GroupChange::Is(group), Some(known)) if !says_all_of(group, known) => {
                Err("it takes from the group what it had")
            }
            // Its deletion may have been under way when the change was decided.
            (GroupChange::Is(group), _)
                if group.topics.iter().any(|&(topic, _)| self.get(topic).is_none() && !self.is_deleted(topic)) =>
            {
                Err("a topic of the group is neither live nor deleted")
            }
            (GroupChange::Is(_), _) => Ok(()),
            (GroupChange::Deleted { group, .. }, Some(known)) if known.id == *group => Ok(()),
            (GroupChange::Deleted { .. }, _) => Err("there is no such group"),
        }
    }

    /// A change that fits was appended with this header.
    pub fn append(&mut self, change: CatalogueChange, header: &EntryHeader) {
        self.raise_highest(change.object());
        let (position, end, store_time) = (header.position, header.end(), header.store_time);
        self.pending.push_back(PendingChange { position, end, store_time, change });
    }

    /// Position and store time of the oldest entry that has not taken effect.
    pub fn first_pending(&self) -> Option<(LogPosition, Nanos)> {
        self.pending.front().map(|pending| (pending.position, pending.store_time))
    }

    /// The next change whose entry `durable` covers takes effect.
    pub fn settle_next(&mut self, durable: LogPosition) -> Option<Settled> {
        let PendingChange { store_time, change, .. } = self.pending.pop_front_if(|pending| pending.end <= durable)?;
        let leaves_groups = matches!(&change, CatalogueChange::Topic(change) if change.kind == ChangeKind::Create
            || self.get(change.topic).is_some_and(|topic| topic.queues == change.queues));
        let removed = self.set(&self.state_after(&change, store_time));
        // As it is now: a topic that was deleted meanwhile is not among a group's.
        let state = match change {
            CatalogueChange::Topic(change) => self.state(change.topic).into(),
            CatalogueChange::Group(change) => self.group_state(change.group()).into(),
        };
        Some(Settled { state, removed, leaves_groups })
    }

    /// Takes in a change by itself: where an accepted hole took what came between it and what is known, or a checkpoint knows it
    /// already, and maybe what came behind it. What it deleted: an older namesake, whose own deletion was lost, or its object.
    pub fn mend(&mut self, change: &CatalogueChange, time: Nanos) -> Vec<Removed> {
        let namesake: Option<CatalogueState> = match change {
            CatalogueChange::Topic(change) => {
                let namesake = self.named(&change.name).map(|topic| topic.id);
                namesake.filter(|&id| id < change.topic).map(|id| TopicState::Deleted(id).into())
            }
            CatalogueChange::Group(change) => {
                let namesake = self.group_named(change.name()).map(|group| group.id);
                namesake.filter(|&id| id < change.group()).map(|id| GroupState::Deleted(id).into())
            }
        };
        let after = self.state_after(change, time);
        namesake.into_iter().chain([after]).filter_map(|state| self.set(&state)).collect()
    }

    /// What `change`, whose entry was stored at `time`, makes of its object.
    pub fn state_after(&self, change: &CatalogueChange, time: Nanos) -> CatalogueState {
        match change {
            CatalogueChange::Topic(TopicChange { kind: ChangeKind::Delete, topic, .. }) => {
                TopicState::Deleted(*topic).into()
            }
            CatalogueChange::Topic(TopicChange { topic, name, queues, retention, .. }) => TopicState::Live(Topic {
                id: *topic,
                name: name.as_str().into(),
                queues: *queues,
                created: self.get(*topic).map_or(time, |topic| topic.created),
                hash: TopicHash::of(name),
                retention: *retention,
            })
            .into(),
            CatalogueChange::Group(GroupChange::Is(group)) => GroupState::Live(group.clone()).into(),
            CatalogueChange::Group(GroupChange::Deleted { group, .. }) => GroupState::Deleted(*group).into(),
        }
    }

    /// Makes the catalogue say `state`. News may come late or twice: nothing deleted lives again, no topic loses queues, and no
    /// group topics, and of what a topic's retention was said to be the newest counts. Returns what it deleted.
    pub fn set(&mut self, state: &CatalogueState) -> Option<Removed> {
        match state {
            CatalogueState::Topic(TopicState::Live(topic)) => {
                self.set_topic(topic);
                None
            }
            CatalogueState::Group(GroupState::Live(group)) => {
                self.set_group(group);
                None
            }
            CatalogueState::Topic(TopicState::Deleted(id)) => {
                self.raise_highest(*id);
                self.deleted.insert((*id).into());
                self.remove_topic(*id).map(Removed::Topic)
            }
            CatalogueState::Group(GroupState::Deleted(id)) => {
                self.raise_highest(*id);
                self.deleted.insert((*id).into());
                self.groups.remove(*id).map(Removed::Group)
            }
            CatalogueState::Topic(TopicState::Unknown(_)) | CatalogueState::Group(GroupState::Unknown(_)) => None,
        }
    }

    /// Drops what is known and was deleted: the list of what was deleted came behind the rest.
    pub fn drop_deleted(&mut self) {
        let deleted: Vec<TopicId> = self.topics.keys().copied().filter(|&id| self.is_deleted(id)).collect();
        for id in deleted {
            self.remove_topic(id);
        }
        self.groups.drop_deleted(&self.deleted);
    }

    fn set_topic(&mut self, topic: &Topic) {
        self.raise_highest(topic.id);
        if self.is_deleted(topic.id) {
            return;
        }
        let known = self.get(topic.id);
        let before = known.map(|known| known.retention);
        let newest = known.filter(|known| known.queues >= topic.queues).unwrap_or(topic).clone();
        let topic = Topic { retention: topic.retention.newer(before.unwrap_or_default()), ..newest };
        if known == Some(&topic) {
            return;
        }
        self.retention_changed(before, &topic);
        self.names.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, topic);
    }

    fn set_group(&mut self, group: &Group) {
        self.raise_highest(group.id);
        if self.is_deleted(group.id) {
            return;
        }
        if group.topics.iter().any(|&(topic, _)| self.is_deleted(topic)) {
            let mut group = group.clone();
            group.topics.retain(|&(topic, _)| !self.is_deleted(topic));
            self.groups.merge(&group);
        } else {
            self.groups.merge(group);
        }
    }

    fn remove_topic(&mut self, id: TopicId) -> Option<Topic> {
        self.groups.forget_topic(id);
        self.retention_news.remove(&id);
        let topic = self.topics.remove(&id)?;
        if self.names.get(&topic.name) == Some(&id) {
            self.names.remove(&topic.name);
        }
        Some(topic)
    }
}

/// Whether `group` has all topics of `known`, with their starts, and its instant of creation.
fn says_all_of(group: &Group, known: &Group) -> bool {
    group.created == known.created && known.topics.iter().all(|&(topic, start)| group.start_in(topic) == Some(start))
}
