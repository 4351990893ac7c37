//! What is done to a broker rather than with messages: topics, groups, offsets, statistics, and whether it is there.

mod groups;

pub use self::groups::{Group, GroupDescription, Member, QueueLag, QueueReset};

use std::time::{Duration, Instant};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, Nanos, QueueId, QueueOffset, ShardId};
use peregrine_protocol::limits::PAGE_ITEMS_MAX;
use peregrine_protocol::message::{
    AlterTopic, Answer, CreateTopic, DeleteTopic, DescribeTopic, ListTopics, LookUp, Request, Start, Stats,
    TopicRetention,
};
use peregrine_protocol::name::check_name;
use peregrine_protocol::placement::TopicHash;

use crate::client::{Client, Topic, unexpected};
use crate::error::{Error, Result};

const HOME: ShardId = ShardId(0);

/// Made by [`Client::admin`].
///
/// ```no_run
/// # async fn example() -> peregrine_client::Result<()> {
/// let client = peregrine_client::Client::connect("127.0.0.1:7400").await?;
/// let admin = client.admin();
/// let (topic, is_new) = admin.create_topic("orders", 8).await?;
/// for queue in admin.describe_topic("orders").await?.queues {
///     println!("queue {} ends at {}", queue.queue, queue.end);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

/// A topic and its queues.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The topic.
    pub topic: Topic,
    /// Its queues, in order.
    pub queues: Vec<QueueState>,
}

/// A queue as its shard sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueState {
    /// Which queue.
    pub queue: QueueId,
    /// The shard that owns it.
    pub shard: ShardId,
    /// The epoch of its newest message.
    pub epoch: Epoch,
    /// The first offset that can be read.
    pub start: QueueOffset,
    /// The offset behind the last visible message.
    pub end: QueueOffset,
}

/// The answer to an offset look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offset {
    /// What was asked for.
    pub offset: QueueOffset,
    /// The epoch that holds there.
    pub epoch: Epoch,
    /// The first offset that can be read.
    pub start: QueueOffset,
    /// The offset behind the last visible message.
    pub end: QueueOffset,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes a topic; the flag says whether it is new. One that exists with another number of queues is `TopicExists`.
    pub async fn create_topic(&self, name: &str, queues: u32) -> Result<(Topic, bool)> {
        self.create_topic_with(name, queues, TopicRetention::default()).await
    }

    /// The same with a retention of its own. One that exists with another retention is `TopicExists`; where none is asked for, it
    /// is taken as it is.
    pub async fn create_topic_with(&self, name: &str, queues: u32, retention: TopicRetention) -> Result<(Topic, bool)> {
        check_name(name).map_err(|error| Error::invalid(error.to_string()))?;
        check_retention(retention)?;
        let name = name.to_owned();
        let encode = move |send: Send<'_>| send(&Request::CreateTopic(CreateTopic { name: &name, queues, retention }));
        let (topic, is_new) = self.client.call(HOME, encode, changed_topic).await?;
        took(&topic, Some(retention).filter(|retention| !retention.is_none()))?;
        Ok((topic, is_new))
    }

    /// Adds queues to a topic up to this number; the flag says whether any were missing. Keys go to other queues afterwards.
    pub async fn alter_topic(&self, name: &str, queues: u32) -> Result<(Topic, bool)> {
        self.alter_topic_with(name, Some(queues), None).await
    }

    /// Adds queues to a topic, and sets how long it keeps its messages; what is `None` stays as it is. The flag says whether
    /// anything changed. What a shorter retention gives up is gone for ever.
    pub async fn alter_topic_with(
        &self,
        name: &str,
        queues: Option<u32>,
        retention: Option<TopicRetention>,
    ) -> Result<(Topic, bool)> {
        check_name(name).map_err(|error| Error::invalid(error.to_string()))?;
        check_retention(retention.unwrap_or_default())?;
        let name = name.to_owned();
        let encode = move |send: Send<'_>| send(&Request::AlterTopic(AlterTopic { name: &name, queues, retention }));
        let (topic, changed) = self.client.call(HOME, encode, changed_topic).await?;
        took(&topic, retention)?;
        Ok((topic, changed))
    }

    /// Deletes a topic and all its messages, for ever.
    pub async fn delete_topic(&self, name: &str) -> Result<Topic> {
        let topic = self.client.topic(name).await?;
        let (name, id) = (name.to_owned(), topic.id);
        let encode = move |send: Send<'_>| send(&Request::DeleteTopic(DeleteTopic { name: &name, id: Some(id) }));
        match self.client.call(HOME, encode, changed_topic).await {
            // A first try that lost its answer has done it: the topic was there a moment ago, and no other has its id.
            Err(error) if matches!(error.code(), Some(ErrorCode::UnknownTopic | ErrorCode::TopicDeleted)) => Ok(topic),
            result => result.map(|(topic, _)| topic),
        }
    }

    /// All topics whose names start with `prefix`, in the order of their names.
    pub async fn list_topics(&self, prefix: &str) -> Result<Vec<Topic>> {
        let mut topics: Vec<Topic> = Vec::new();
        loop {
            let after = topics.last().map_or_else(String::new, |topic| topic.name.clone());
            let prefix = prefix.to_owned();
            let encode = move |send: Send<'_>| {
                send(&Request::ListTopics(ListTopics { prefix: &prefix, after: &after, limit: PAGE_ITEMS_MAX }))
            };
            let convert = |answer: Answer<'_>| match answer {
                Answer::ListTopics(page) => Ok((page.topics.iter().map(Topic::from).collect::<Vec<_>>(), page.more)),
                other => Err(unexpected(&other)),
            };
            let (page, more) = self.client.call(HOME, encode, convert).await?;
            let is_empty = page.is_empty();
            topics.extend(page);
            if !more || is_empty {
                return Ok(topics);
            }
        }
    }

    /// A topic and the state of each of its queues, asked of every shard that has one.
    pub async fn describe_topic(&self, name: &str) -> Result<Description> {
        let topic = self.client.topic(name).await?;
        let mut queues = Vec::new();
        for shard in self.shards_of(&topic)? {
            let mut first_queue = QueueId(0);
            loop {
                let (page, more) = self.describe_page(shard, name, first_queue).await?;
                let last = page.last().map(|row| row.queue);
                queues.extend(page);
                match last {
                    Some(last) if more => first_queue = QueueId(last.0 + 1),
                    _ => break,
                }
            }
        }
        queues.sort_by_key(|state| state.queue);
        Ok(Description { topic, queues })
    }

    /// The offset that `start` means in a queue now.
    pub async fn look_up(&self, topic: &str, queue: QueueId, start: Start) -> Result<Offset> {
        let found = self.client.topic(topic).await?;
        let (shard, _) = self.client.link_of(TopicHash::of(topic), queue)?;
        let request = LookUp { topic: found.id, queue, start };
        let convert = |answer: Answer<'_>| match answer {
            Answer::LookUp(it) => Ok(Offset { offset: it.offset, epoch: it.epoch, start: it.start, end: it.end }),
            other => Err(unexpected(&other)),
        };
        self.client.call(shard, move |send: Send<'_>| send(&Request::LookUp(request)), convert).await
    }

    /// One of the broker's statistics, as the JSON document that it made.
    pub async fn stats(&self, what: Stats) -> Result<String> {
        let convert = |answer: Answer<'_>| match answer {
            Answer::Stats(stats) => {
                String::from_utf8(stats.json.to_vec()).map_err(|_| Error::protocol("statistics that are not UTF-8"))
            }
            other => Err(unexpected(&other)),
        };
        self.client.call(HOME, move |send: Send<'_>| send(&Request::Stats(what)), convert).await
    }

    /// Asks a shard whether it is there, and answers how long that took.
    pub async fn ping(&self, shard: ShardId) -> Result<Duration> {
        let asked = Instant::now();
        let convert = |answer: Answer<'_>| match answer {
            Answer::Ping => Ok(()),
            other => Err(unexpected(&other)),
        };
        self.client.call(shard, |send: Send<'_>| send(&Request::Ping), convert).await?;
        Ok(asked.elapsed())
    }

    /// The shards that own queues of a topic.
    fn shards_of(&self, topic: &Topic) -> Result<Vec<ShardId>> {
        let shards = self.client.broker()?.shards;
        let hash = TopicHash::of(&topic.name);
        Ok((0..topic.queues.min(shards.into())).map(|queue| hash.shard_of(QueueId(queue), shards)).collect())
    }

    async fn describe_page(&self, shard: ShardId, name: &str, first_queue: QueueId) -> Result<(Vec<QueueState>, bool)> {
        let name = name.to_owned();
        let encode = move |send: Send<'_>| {
            send(&Request::DescribeTopic(DescribeTopic { name: &name, first_queue, limit: PAGE_ITEMS_MAX }))
        };
        let convert = |answer: Answer<'_>| match answer {
            Answer::DescribeTopic(page) => {
                let shard = page.shard;
                let state = |row: peregrine_protocol::message::QueueRow| QueueState {
                    queue: row.queue,
                    shard,
                    epoch: row.epoch,
                    start: row.start,
                    end: row.end,
                };
                Ok((page.queues.iter().map(state).collect(), page.more))
            }
            other => Err(unexpected(&other)),
        };
        self.client.call(shard, encode, convert).await
    }
}

/// What puts a request on the wire and answers its number.
type Send<'a> = &'a mut dyn FnMut(&Request<'_>) -> peregrine_protocol::ids::Correlation;

fn check_retention(retention: TopicRetention) -> Result<()> {
    if retention.age == Some(Nanos::ZERO) { Err(Error::invalid("a retention age is longer than 0")) } else { Ok(()) }
}

/// A broker of before retention passes over what it does not know.
fn took(topic: &Topic, retention: Option<TopicRetention>) -> Result<()> {
    match retention {
        Some(retention) if retention != topic.retention => Err(Error::protocol(
            "the topic's retention was not set: the broker does not know of it, or somebody else set it",
        )),
        _ => Ok(()),
    }
}

fn changed_topic(answer: Answer<'_>) -> Result<(Topic, bool)> {
    match answer {
        Answer::CreateTopic(it) | Answer::AlterTopic(it) | Answer::DeleteTopic(it) => {
            Ok((Topic::from(it.topic), it.changed))
        }
        other => Err(unexpected(&other)),
    }
}
