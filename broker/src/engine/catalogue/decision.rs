//! Requests for changes of the catalogue, at home: each is a new entry, done already, or waits for one that is under way.

use std::ops::Bound;

use peregrine_protocol::entry::EntryDraft;
use peregrine_protocol::ids::{GroupId, LogPosition, Nanos, TopicId};
use peregrine_protocol::limits::{GROUP_TOPICS_MAX, QUEUES_PER_TOPIC_MAX};
use peregrine_protocol::message::TopicRetention;
use peregrine_protocol::name::check_name;

use super::change::CatalogueChange;
use super::topic_change::{ChangeKind, TopicChange};
use super::{Catalogue, ObjectId, RetentionSetting, Topic};
use crate::engine::group::{Group, GroupChange, GroupStart};
use crate::engine::{Refusal, StartAt};
use crate::limits;

/// What to do about a request to change a topic or (`T`) a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueDecision<T = Topic> {
    /// Append this entry; answer once it took effect and every shard was told.
    Append { draft: EntryDraft, payload: Vec<u8> },
    /// It is as the request wants it already.
    Done(T),
    /// A change of the same name is on its way to the disk: decide again when durable has reached this position.
    After(LogPosition),
}

impl<T> CatalogueDecision<T> {
    /// The same, with what it is done with as `convert` makes it.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> CatalogueDecision<U> {
        match self {
            Self::Append { draft, payload } => CatalogueDecision::Append { draft, payload },
            Self::Done(object) => CatalogueDecision::Done(convert(object)),
            Self::After(end) => CatalogueDecision::After(end),
        }
    }
}

/// Whether a group takes the queues that it is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fill {
    Fits,
    /// Changes that are not durable decide it: ask again when the log is durable up to here.
    Unknown(LogPosition),
    Over,
}

impl Catalogue {
    pub fn decide_create(
        &self,
        name: &str,
        queues: u32,
        retention: TopicRetention,
        time: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        check_name(name).map_err(|_| Refusal::InvalidName)?;
        check_queues(queues)?;
        if let Some(end) = self.pending_of_topic(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.named(name) {
            // Who says nothing of its retention takes it as it is.
            Some(topic) if topic.queues == queues && (retention.is_none() || retention == topic.retention.wanted) => {
                return Ok(CatalogueDecision::Done(topic.clone()));
            }
            Some(topic) => return Err(Refusal::TopicExists { queues: topic.queues }),
            None => {}
        }
        if self.topics.len() + self.pending.len() >= limits::TOPICS_MAX {
            return Err(Refusal::LimitReached("topics"));
        }
        let setting = RetentionSetting::default().changed_to(retention);
        self.change_topic(ChangeKind::Create, TopicId(self.next_id().0), name, (queues, setting), time)
    }

    /// What is `None` stays as it is.
    pub fn decide_alter(
        &self,
        name: &str,
        queues: Option<u32>,
        retention: Option<TopicRetention>,
        time: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        queues.map_or(Ok(()), check_queues)?;
        if let Some(end) = self.pending_of_topic(name) {
            return Ok(CatalogueDecision::After(end));
        }
        let topic = self.named(name).ok_or(Refusal::UnknownTopic)?;
        let queues = queues.unwrap_or(topic.queues);
        let setting = retention.map_or(topic.retention, |wanted| topic.retention.changed_to(wanted));
        if queues < topic.queues {
            return Err(Refusal::InvalidArgument("a topic never loses queues"));
        }
        if (queues, setting) == (topic.queues, topic.retention) {
            return Ok(CatalogueDecision::Done(topic.clone()));
        }
        match if queues == topic.queues { Fill::Fits } else { self.fill_after(topic, queues) } {
            Fill::Fits => self.change_topic(ChangeKind::Alter, topic.id, name, (queues, setting), time),
            Fill::Unknown(end) => Ok(CatalogueDecision::After(end)),
            Fill::Over => Err(Refusal::LimitReached("queues of a group")),
        }
    }

    pub fn decide_delete(&self, name: &str, id: Option<TopicId>, time: Nanos) -> Result<CatalogueDecision, Refusal> {
        if let Some(end) = self.pending_of_topic(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.named(name).filter(|topic| id.is_none_or(|id| id == topic.id)) {
            None if id.is_some_and(|id| self.is_deleted(id)) => Err(Refusal::TopicDeleted),
            None => Err(Refusal::UnknownTopic),
            Some(topic) => {
                self.change_topic(ChangeKind::Delete, topic.id, name, (0, RetentionSetting::default()), time)
            }
        }
    }

    /// `now` is the wall clock, and `time` the store time.
    pub fn decide_create_group(
        &self,
        name: &str,
        topics: &[(TopicId, StartAt)],
        now: Nanos,
        time: Nanos,
    ) -> Result<CatalogueDecision<Group>, Refusal> {
        check_name(name).map_err(|_| Refusal::InvalidName)?;
        if let Some(&(unknown, _)) = topics.iter().find(|&&(topic, _)| self.get(topic).is_none()) {
            return Err(if self.is_deleted(unknown) { Refusal::TopicDeleted } else { Refusal::UnknownTopic });
        }
        if let Some(end) = self.pending_of_group(name) {
            return Ok(CatalogueDecision::After(end));
        }
        let known = self.group_named(name);
        if known.is_none() && self.groups.len() + self.pending.len() >= limits::GROUPS_MAX {
            return Err(Refusal::LimitReached("groups"));
        }
        let made = || Group { id: GroupId(self.next_id().0), name: name.into(), created: time, topics: Vec::new() };
        let mut group = known.cloned().unwrap_or_else(made);
        for &(topic, start) in topics {
            group.add(topic, GroupStart::asked(start, now));
        }
        let fill = self.fill(self.queues_of(&group));
        match known {
            _ if fill == Fill::Over => Err(Refusal::LimitReached("queues of a group")),
            _ if group.topics.len() > GROUP_TOPICS_MAX => Err(Refusal::LimitReached("topics of a group")),
            Some(known) if known.topics.len() == group.topics.len() => Ok(CatalogueDecision::Done(group)),
            _ => match fill {
                Fill::Unknown(end) => Ok(CatalogueDecision::After(end)),
                _ => self.change(&CatalogueChange::Group(GroupChange::Is(group)), time),
            },
        }
    }

    pub fn decide_delete_group(
        &self,
        name: &str,
        id: Option<GroupId>,
        time: Nanos,
    ) -> Result<CatalogueDecision<Group>, Refusal> {
        if let Some(end) = self.pending_of_group(name) {
            return Ok(CatalogueDecision::After(end));
        }
        match self.group_named(name).filter(|group| id.is_none_or(|id| id == group.id)) {
            None if id.is_some_and(|id| self.is_deleted(id)) => Err(Refusal::GroupDeleted),
            None => Err(Refusal::UnknownGroup),
            Some(group) => {
                let deleted = GroupChange::Deleted { group: group.id, name: name.to_owned() };
                self.change(&CatalogueChange::Group(deleted), time)
            }
        }
    }

    /// Queues that the members of a group share.
    fn queues_of(&self, group: &Group) -> u64 {
        group.topics.iter().filter_map(|&(topic, _)| self.get(topic)).map(|topic| u64::from(topic.queues)).sum()
    }

    /// Whether every group still has few enough queues when that topic has so many. Looks at every group, as this is rare.
    fn fill_after(&self, topic: &Topic, queues: u32) -> Fill {
        let more = u64::from(queues - topic.queues);
        let pending = self.pending.iter().filter_map(|pending| match &pending.change {
            CatalogueChange::Group(GroupChange::Is(group)) => Some((group, Some(pending.end))),
            _ => None,
        });
        let groups = self.groups.from(Bound::Unbounded).map(|group| (group, None)).chain(pending);
        let consuming = groups.filter(|(group, _)| group.start_in(topic.id).is_some());
        let fills = consuming.map(|(group, pending)| match (self.fill(self.queues_of(group) + more), pending) {
            // It may not come to be.
            (Fill::Over, Some(end)) => Fill::Unknown(end),
            (fill, _) => fill,
        });
        fills.max().unwrap_or(Fill::Fits)
    }

    /// Whether a group may have so many queues, which do not count what pending changes add to its topics.
    fn fill(&self, queues: u64) -> Fill {
        let growth = self.pending.iter().map(|pending| match &pending.change {
            CatalogueChange::Topic(TopicChange { kind: ChangeKind::Alter, topic, queues, .. }) => {
                u64::from(queues.saturating_sub(self.get(*topic).map_or(0, |topic| topic.queues)))
            }
            _ => 0,
        });
        match self.pending.back() {
            _ if queues > limits::GROUP_QUEUES_MAX => Fill::Over,
            Some(last) if queues + growth.sum::<u64>() > limits::GROUP_QUEUES_MAX => Fill::Unknown(last.end),
            _ => Fill::Fits,
        }
    }

    /// Where the newest pending change of that topic ends.
    pub(super) fn pending_of_topic(&self, name: &str) -> Option<LogPosition> {
        self.pending_of(|change| matches!(change, CatalogueChange::Topic(change) if change.name == name))
    }

    /// Where the newest pending change of that group ends.
    pub(super) fn pending_of_group(&self, name: &str) -> Option<LogPosition> {
        self.pending_of(|change| matches!(change, CatalogueChange::Group(change) if change.name() == name))
    }

    fn pending_of(&self, is_wanted: impl Fn(&CatalogueChange) -> bool) -> Option<LogPosition> {
        self.pending.iter().rev().find(|pending| is_wanted(&pending.change)).map(|pending| pending.end)
    }

    fn next_id(&self) -> ObjectId {
        ObjectId(self.highest.0 + 1)
    }

    fn change_topic(
        &self,
        kind: ChangeKind,
        topic: TopicId,
        name: &str,
        (queues, retention): (u32, RetentionSetting),
        time: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        let change = TopicChange { kind, topic, name: name.to_owned(), queues, retention };
        self.change(&CatalogueChange::Topic(change), time)
    }

    fn change<T>(&self, change: &CatalogueChange, time: Nanos) -> Result<CatalogueDecision<T>, Refusal> {
        if self.pending.len() >= limits::CATALOGUE_CHANGES_PENDING_MAX {
            return Err(Refusal::Busy { retry_after: limits::CATALOGUE_RETRY });
        }
        let (draft, payload) = change.draft(time);
        Ok(CatalogueDecision::Append { draft, payload })
    }
}

pub(super) fn check_queues(queues: u32) -> Result<(), Refusal> {
    if (1..=QUEUES_PER_TOPIC_MAX).contains(&queues) {
        Ok(())
    } else {
        Err(Refusal::InvalidArgument("a topic has 1 to 65536 queues"))
    }
}
