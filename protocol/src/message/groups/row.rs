//! A group and its topics, as requests and answers show them.

use flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};

use crate::generated as wire;
use crate::ids::{Epoch, GroupId, Nanos, TopicId};
use crate::limits::GROUP_TOPICS_MAX;
use crate::message::DecodeError;
use crate::message::list::{ListIn, list};
use crate::message::read::Start;

/// A topic of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTopic {
    pub topic: TopicId,
    /// Where the group starts in a queue in which nothing was acknowledged yet. An offset has no epoch here
    /// ([`Epoch::ANY`]). A broker answers `Latest` with the instant at which it was asked for.
    pub start: Start,
}

impl GroupTopic {
    fn check(row: &wire::GroupTopic) -> Result<Self, DecodeError> {
        if (row.reserved_1(), row.reserved_2(), row.reserved_3()) != (0, 0, 0) {
            return Err(DecodeError::Header);
        }
        let start = Start::from_wire(row.start(), Epoch::ANY.0, row.value())?;
        Ok(Self { topic: TopicId(row.topic()), start })
    }

    /// Of a row that was checked when its message was decoded.
    fn from_wire(row: &wire::GroupTopic) -> Self {
        Self::check(row).unwrap_or(Self { topic: TopicId(row.topic()), start: Start::Earliest })
    }

    fn to_wire(self) -> wire::GroupTopic {
        let (start, _, value) = self.start.to_wire();
        wire::GroupTopic::new(self.topic.0, value, start, 0, 0, 0)
    }
}

list!(
    /// At most [`GROUP_TOPICS_MAX`] topics.
    GroupTopics,
    GroupTopic,
    wire::GroupTopic,
    GroupTopic::from_wire
);
impl GroupTopics<'_> {
    pub(super) fn build<'b>(self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<Vector<'b, wire::GroupTopic>> {
        let rows: Vec<_> = self.iter().map(GroupTopic::to_wire).collect();
        builder.create_vector(&rows)
    }
}

/// Refuses too many topics, and a start that this version does not know.
pub(super) fn check_topics(topics: Vector<'_, wire::GroupTopic>) -> Result<(), DecodeError> {
    if topics.len() > GROUP_TOPICS_MAX {
        return Err(DecodeError::Field("topics"));
    }
    topics.iter().try_for_each(|row| GroupTopic::check(row).map(drop))
}

/// A consumer group as listings and answers show it.
#[derive(Clone, Copy, Debug)]
pub struct GroupRow<'a> {
    pub name: &'a str,
    pub id: GroupId,
    /// The store time of the entry that made it.
    pub created: Nanos,
    /// In the order of their ids.
    pub topics: GroupTopics<'a>,
}

impl<'a> GroupRow<'a> {
    pub(super) fn check(group: wire::Group<'a>) -> Result<Self, DecodeError> {
        check_topics(group.topics())?;
        Ok(Self::from_wire(group))
    }

    pub(super) fn from_wire(group: wire::Group<'a>) -> Self {
        Self {
            name: group.name(),
            id: GroupId(group.id()),
            created: Nanos(group.created()),
            topics: GroupTopics::from_wire(group.topics()),
        }
    }

    pub(super) fn build<'b>(&self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<wire::Group<'b>> {
        let name = Some(builder.create_string(self.name));
        let topics = Some(self.topics.build(builder));
        wire::Group::create(builder, &wire::GroupArgs { name, id: self.id.0, created: self.created.0, topics })
    }
}
