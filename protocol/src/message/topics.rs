//! What exists: metadata, and topics made, changed, deleted, listed and described.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, WIPOffset};

use super::DecodeError;
use super::list::{ListIn, list};
use super::session::directory;
use super::table::{self, Envelope};
use crate::entry::DirectoryId;
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use crate::limits::{NAME_MAX, PAGE_ITEMS_MAX, QUEUES_PER_TOPIC_MAX};
use crate::name::check_name;

/// How long a topic keeps its messages by itself. What its shards give up goes all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicRetention {
    /// Messages that were stored so long ago are given up; never 0.
    pub age: Option<Nanos>,
}

impl TopicRetention {
    /// Whether anything is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn from_wire(age: u64) -> Self {
        Self { age: Some(Nanos(age)).filter(|age| *age != Nanos::ZERO) }
    }

    fn to_wire(self) -> u64 {
        self.age.map_or(0, |age| age.0)
    }
}

/// A topic as listings and answers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicRow<'a> {
    pub name: &'a str,
    pub id: TopicId,
    pub queues: u32,
    /// The store time of the entry that made it.
    pub created: Nanos,
    pub retention: TopicRetention,
}

impl<'a> TopicRow<'a> {
    fn from_wire(topic: wire::Topic<'a>) -> Self {
        let retention = TopicRetention::from_wire(topic.retention_age());
        let (queues, created) = (topic.queues(), Nanos(topic.created()));
        Self { name: topic.name(), id: TopicId(topic.id()), queues, created, retention }
    }

    fn build<'b>(&self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<wire::Topic<'b>> {
        let name = Some(builder.create_string(self.name));
        let args = wire::TopicArgs {
            name,
            id: self.id.0,
            queues: self.queues,
            created: self.created.0,
            retention_age: self.retention.to_wire(),
        };
        wire::Topic::create(builder, &args)
    }
}

/// A queue as a description shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRow {
    pub queue: QueueId,
    pub epoch: Epoch,
    /// The first offset that can be read.
    pub start: QueueOffset,
    /// The visible end.
    pub end: QueueOffset,
}

impl QueueRow {
    fn from_wire(row: &wire::QueueRow) -> Self {
        Self {
            queue: QueueId(row.queue()),
            epoch: Epoch(row.epoch()),
            start: QueueOffset(row.start()),
            end: QueueOffset(row.end()),
        }
    }
}

list!(
    /// At most [`PAGE_ITEMS_MAX`] topics.
    TopicRows,
    TopicRow<'a>,
    ForwardsUOffset<wire::Topic<'a>>,
    TopicRow::from_wire
);
list!(
    /// At most [`PAGE_ITEMS_MAX`] names.
    Names,
    &'a str,
    ForwardsUOffset<&'a str>,
    std::convert::identity
);
list!(
    /// At most [`PAGE_ITEMS_MAX`] queues.
    QueueRows,
    QueueRow,
    wire::QueueRow,
    QueueRow::from_wire
);

impl TopicRows<'_> {
    fn build<'b>(self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<WireTopics<'b>> {
        let rows: Vec<_> = self.iter().map(|row| row.build(builder)).collect();
        builder.create_vector(&rows)
    }
}

type WireTopics<'b> = flatbuffers::Vector<'b, ForwardsUOffset<wire::Topic<'b>>>;

/// Resolves names to ids, or asks for a page of all topics.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    /// Empty: all topics, in the order of their names.
    pub names: Names<'a>,
    /// With all topics: only names above this one. Empty: from the first.
    pub after: &'a str,
    /// With all topics: how many, 1 to [`PAGE_ITEMS_MAX`].
    pub limit: u32,
}

impl<'a> Metadata<'a> {
    /// Asks for these names, at most [`PAGE_ITEMS_MAX`].
    pub fn of(names: &'a [&'a str]) -> Self {
        Self { names: names.into(), after: "", limit: PAGE_ITEMS_MAX }
    }

    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Metadata<'a>>(header)?;
        let names = table.names().map_or(Names::from(&[][..]), Names::from_wire);
        if names.len() > PAGE_ITEMS_MAX as usize || names.iter().any(|name| name.len() > NAME_MAX) {
            return Err(DecodeError::Field("names"));
        }
        let after = table::bounded(table.after(), NAME_MAX, "after")?;
        Ok(Self { names, after, limit: table::page_limit(table.limit(), PAGE_ITEMS_MAX)? })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::Metadata, correlation).write(out, |builder| {
            let names: Vec<_> = self.names.iter().map(|name| builder.create_string(name)).collect();
            let args = wire::MetadataArgs {
                names: Some(builder.create_vector(&names)),
                after: Some(builder.create_string(self.after)),
                limit: self.limit,
            };
            wire::Metadata::create(builder, &args)
        });
    }
}

/// The topics asked for that exist; a name that is missing here does not.
#[derive(Clone, Copy, Debug)]
pub struct MetadataAnswer<'a> {
    pub topics: TopicRows<'a>,
    /// With all topics: more follow behind the last name.
    pub more: bool,
    pub shards: u16,
    pub directory: DirectoryId,
}

impl<'a> MetadataAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::MetadataAnswer<'a>>(header)?;
        if table.shards() == 0 {
            return Err(DecodeError::Field("shards"));
        }
        Ok(Self {
            topics: TopicRows::from_wire(table.topics()),
            more: table.more(),
            shards: table.shards(),
            directory: directory(table.directory_high(), table.directory_low()),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::Metadata, correlation).write(out, |builder| {
            let args = wire::MetadataAnswerArgs {
                topics: Some(self.topics.build(builder)),
                more: self.more,
                shards: self.shards,
                directory_high: (self.directory.0 >> 64) as u64,
                directory_low: self.directory.0 as u64,
            };
            wire::MetadataAnswer::create(builder, &args)
        });
    }
}

/// Makes a topic. One that exists with as many queues, and with that retention where one is asked for, is an answer with `changed`
/// false; one that differs is `TopicExists`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopic<'a> {
    pub name: &'a str,
    /// 1 to [`QUEUES_PER_TOPIC_MAX`].
    pub queues: u32,
    pub retention: TopicRetention,
}

impl<'a> CreateTopic<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::CreateTopic<'a>>(header)?;
        check_name(table.name())?;
        let (queues, retention) = (check_queues(table.queues())?, TopicRetention::from_wire(table.retention_age()));
        Ok(Self { name: table.name(), queues, retention })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::CreateTopic, correlation).write(out, |builder| {
            let name = Some(builder.create_string(self.name));
            let retention_age = self.retention.to_wire();
            wire::CreateTopic::create(builder, &wire::CreateTopicArgs { name, queues: self.queues, retention_age })
        });
    }
}

/// Changes what a topic has. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlterTopic<'a> {
    pub name: &'a str,
    /// Adds queues up to this number, 1 to [`QUEUES_PER_TOPIC_MAX`]; fewer than there are is `InvalidArgument`.
    pub queues: Option<u32>,
    pub retention: Option<TopicRetention>,
}

impl<'a> AlterTopic<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::AlterTopic<'a>>(header)?;
        check_name(table.name())?;
        let queues = Some(table.queues()).filter(|queues| *queues != 0).map(check_queues).transpose()?;
        Ok(Self { name: table.name(), queues, retention: table.retention_age().map(TopicRetention::from_wire) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::AlterTopic, correlation).write(out, |builder| {
            let name = Some(builder.create_string(self.name));
            let retention_age = self.retention.map(TopicRetention::to_wire);
            let queues = self.queues.unwrap_or(0);
            wire::AlterTopic::create(builder, &wire::AlterTopicArgs { name, queues, retention_age })
        });
    }
}

fn check_queues(queues: u32) -> Result<u32, DecodeError> {
    if (1..=QUEUES_PER_TOPIC_MAX).contains(&queues) { Ok(queues) } else { Err(DecodeError::Field("queues")) }
}

/// Deletes a topic and all its messages, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteTopic<'a> {
    pub name: &'a str,
    /// Only if the topic has this id; so that a deletion sent twice does not take a namesake made between.
    pub id: Option<TopicId>,
}

impl<'a> DeleteTopic<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DeleteTopic<'a>>(header)?;
        check_name(table.name())?;
        Ok(Self { name: table.name(), id: Some(TopicId(table.id())).filter(|id| id.0 != 0) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::DeleteTopic, correlation).write(out, |builder| {
            let name = Some(builder.create_string(self.name));
            wire::DeleteTopic::create(builder, &wire::DeleteTopicArgs { name, id: self.id.map_or(0, |id| id.0) })
        });
    }
}

/// Answers create, alter and delete: the topic as it is now, or was when it was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicAnswer<'a> {
    pub topic: TopicRow<'a>,
    /// False: it was so before.
    pub changed: bool,
}

impl<'a> TopicAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::TopicAnswer<'a>>(header)?;
        Ok(Self { topic: TopicRow::from_wire(table.topic()), changed: table.changed() })
    }

    pub fn encode(&self, kind: Kind, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(kind, correlation).write(out, |builder| {
            let topic = Some(self.topic.build(builder));
            wire::TopicAnswer::create(builder, &wire::TopicAnswerArgs { topic, changed: self.changed })
        });
    }
}

/// A page of the topics whose names start with `prefix`, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTopics<'a> {
    pub prefix: &'a str,
    /// Only names above this one. Empty: from the first.
    pub after: &'a str,
    /// 1 to [`PAGE_ITEMS_MAX`].
    pub limit: u32,
}

impl<'a> ListTopics<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ListTopics<'a>>(header)?;
        Ok(Self {
            prefix: table::bounded(table.prefix(), NAME_MAX, "prefix")?,
            after: table::bounded(table.after(), NAME_MAX, "after")?,
            limit: table::page_limit(table.limit(), PAGE_ITEMS_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::ListTopics, correlation).write(out, |builder| {
            let args = wire::ListTopicsArgs {
                prefix: Some(builder.create_string(self.prefix)),
                after: Some(builder.create_string(self.after)),
                limit: self.limit,
            };
            wire::ListTopics::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ListTopicsAnswer<'a> {
    pub topics: TopicRows<'a>,
    /// More follow behind the last name.
    pub more: bool,
}

impl<'a> ListTopicsAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ListTopicsAnswer<'a>>(header)?;
        Ok(Self { topics: TopicRows::from_wire(table.topics()), more: table.more() })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::ListTopics, correlation).write(out, |builder| {
            let topics = Some(self.topics.build(builder));
            wire::ListTopicsAnswer::create(builder, &wire::ListTopicsAnswerArgs { topics, more: self.more })
        });
    }
}

/// A topic and a page of its queues: those that live on the shard that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeTopic<'a> {
    pub name: &'a str,
    /// Queues below this one are left out.
    pub first_queue: QueueId,
    /// 1 to [`PAGE_ITEMS_MAX`].
    pub limit: u32,
}

impl<'a> DescribeTopic<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DescribeTopic<'a>>(header)?;
        check_name(table.name())?;
        Ok(Self {
            name: table.name(),
            first_queue: QueueId(table.first_queue()),
            limit: table::page_limit(table.limit(), PAGE_ITEMS_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::DescribeTopic, correlation).write(out, |builder| {
            let args = wire::DescribeTopicArgs {
                name: Some(builder.create_string(self.name)),
                first_queue: self.first_queue.0,
                limit: self.limit,
            };
            wire::DescribeTopic::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug)]
pub struct DescribeTopicAnswer<'a> {
    pub topic: TopicRow<'a>,
    /// The shard that answers, and that owns these queues.
    pub shard: ShardId,
    /// In the order of their ids.
    pub queues: QueueRows<'a>,
    /// More of this shard's queues follow behind the last.
    pub more: bool,
}

impl<'a> DescribeTopicAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DescribeTopicAnswer<'a>>(header)?;
        Ok(Self {
            topic: TopicRow::from_wire(table.topic()),
            shard: ShardId(table.shard()),
            queues: QueueRows::from_wire(table.queues()),
            more: table.more(),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::DescribeTopic, correlation).write(out, |builder| {
            let wire_row = |row: QueueRow| wire::QueueRow::new(row.epoch.0, row.start.0, row.end.0, row.queue.0, 0);
            let rows: Vec<_> = self.queues.iter().map(wire_row).collect();
            let args = wire::DescribeTopicAnswerArgs {
                topic: Some(self.topic.build(builder)),
                shard: self.shard.0,
                queues: Some(builder.create_vector(&rows)),
                more: self.more,
            };
            wire::DescribeTopicAnswer::create(builder, &args)
        });
    }
}
