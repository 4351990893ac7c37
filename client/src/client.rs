//! The entry point: a broker's address, its shards, and one [`Link`] to each shard that is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use peregrine_protocol::ids::{QueueId, ShardId, TopicId};
use peregrine_protocol::message::{Answer, Metadata, Request, TopicRetention};
use peregrine_protocol::placement::TopicHash;

use crate::admin::Admin;
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, Result};
use crate::idempotence::back_off::random_identity;
use crate::link::{Identity, Link, Status};
use crate::producer::ProducerBuilder;
use crate::reader::ReaderBuilder;
use crate::session::BrokerInfo;

/// Where the catalogue lives; every broker has it.
const HOME: ShardId = ShardId(0);
/// For calls, unless set: long enough for a broker that is being started again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one broker. Cheap to clone; clones share the connections, which are made when they are needed, kept up, and closed when
/// the last clone, producer, reader and consumer are gone.
///
/// ```no_run
/// use peregrine_client::{Client, Message, Start};
///
/// # async fn example() -> peregrine_client::Result<()> {
/// let client = Client::connect("127.0.0.1:7400").await?;
/// client.admin().create_topic("orders", 8).await?;
///
/// let producer = client.producer("orders").build().await?;
/// let receipt = producer.send(Message::new("42 apples").key("customer-7")).await?;
/// println!("stored at {} of queue {}", receipt.offset, receipt.queue);
///
/// let mut reader = client.reader("orders").from(Start::Earliest).build().await?;
/// while let Some(message) = reader.next().await {
///     println!("{:?}", message?.body);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identity: Arc<Identity>,
    timeout: Duration,
    broker: OnceLock<Arc<BrokerInfo>>,
    links: Mutex<HashMap<ShardId, Link>>,
}

/// Sets up a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    broker: String,
    timeout: Duration,
}

/// A topic as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id, never given to another topic.
    pub id: TopicId,
    /// How many queues it has.
    pub queues: u32,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub created: peregrine_protocol::ids::Nanos,
    /// How long it keeps its messages by itself.
    pub retention: TopicRetention,
}

impl Client {
    /// Connects to `HOST:PORT` with the default settings.
    pub async fn connect(broker: impl Into<String>) -> Result<Self> {
        Self::builder(broker).connect().await
    }

    /// A client of the broker at `HOST:PORT`.
    pub fn builder(broker: impl Into<String>) -> ClientBuilder {
        ClientBuilder { broker: broker.into(), timeout: DEFAULT_TIMEOUT }
    }

    /// Sets up a producer for a topic.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// Sets up a reader of a topic.
    pub fn reader(&self, topic: impl Into<String>) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), topic.into())
    }

    /// Sets up a member of a consumer group, which is made if it is not there.
    pub fn consumer(&self, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), group.into())
    }

    /// What is done to the broker rather than with messages: topics, groups, offsets, statistics.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// What the broker said of itself.
    pub fn broker(&self) -> Result<Arc<BrokerInfo>> {
        self.inner.broker.get().cloned().ok_or(Error::Closed)
    }

    /// The catalogue's word on a topic; `UnknownTopic` where there is none of that name.
    pub async fn topic(&self, name: &str) -> Result<Topic> {
        let asked = name.to_owned();
        let found = self
            .call(
                HOME,
                move |send| send(&Request::Metadata(Metadata::of(&[asked.as_str()]))),
                |answer| match answer {
                    Answer::Metadata(metadata) => Ok(metadata.topics.iter().next().map(Topic::from)),
                    other => Err(unexpected(&other)),
                },
            )
            .await?;
        found.ok_or_else(|| Error::unknown_topic(name))
    }

    /// One request to one shard, made again while its time lasts if the connection was lost. For requests that may be carried out
    /// twice without harm.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        shard: ShardId,
        encode: impl Fn(&mut dyn FnMut(&Request<'_>) -> Number) -> Number + Clone + Send + 'static,
        convert: impl Fn(Answer<'_>) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        let link = self.link(shard);
        let attempts = async {
            loop {
                let result = link.call(encode.clone(), convert.clone()).await;
                if !matches!(result, Err(Error::ConnectionLost)) {
                    return result;
                }
            }
        };
        match tokio::time::timeout(self.inner.timeout, attempts).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out(&link)),
        }
    }

    /// The link to a shard, made if there is none yet.
    pub(crate) fn link(&self, shard: ShardId) -> Link {
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.entry(shard).or_insert_with(|| Link::start(self.inner.identity.clone(), shard)).clone()
    }

    /// The link to the shard of a queue, and that shard.
    pub(crate) fn link_of(&self, topic: TopicHash, queue: QueueId) -> Result<(ShardId, Link)> {
        let shard = topic.shard_of(queue, self.broker()?.shards);
        Ok((shard, self.link(shard)))
    }

    /// Names the client instance: unique among those that run now.
    pub(crate) fn instance(&self) -> &str {
        &self.inner.identity.client
    }

    /// How long a call may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// The error of a time that ran out: the broker could not be reached, or it did not answer.
    pub(crate) fn timed_out(&self, link: &Link) -> Error {
        match link.status() {
            Status::Down(reason) => Error::Unreachable {
                broker: self.inner.identity.broker.clone(),
                reason: reason.map_or_else(|| "no answer".to_owned(), |reason| reason.to_string()),
            },
            Status::Failed(error) => error,
            Status::Up(_) => Error::TimedOut { maybe_stored: false },
        }
    }
}

type Number = peregrine_protocol::ids::Correlation;

impl ClientBuilder {
    /// How long connecting and each call may take in all, attempts included. Producers and readers have times of their own.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects: tries until the time is up, and learns the broker's shards.
    pub async fn connect(self) -> Result<Client> {
        let identity = Arc::new(Identity {
            broker: self.broker,
            client: format!("{:016x}", random_identity()),
            first_seen: OnceLock::new(),
        });
        let inner = Inner { identity, timeout: self.timeout, broker: OnceLock::new(), links: Mutex::default() };
        let client = Client { inner: Arc::new(inner) };
        let link = client.link(HOME);
        let broker = match tokio::time::timeout(self.timeout, link.up()).await {
            Ok(result) => result?,
            Err(_) => return Err(client.timed_out(&link)),
        };
        client.inner.broker.get_or_init(|| broker);
        Ok(client)
    }
}

impl From<peregrine_protocol::message::TopicRow<'_>> for Topic {
    fn from(row: peregrine_protocol::message::TopicRow<'_>) -> Self {
        Self {
            name: row.name.to_owned(),
            id: row.id,
            queues: row.queues,
            created: row.created,
            retention: row.retention,
        }
    }
}

/// The broker answered a request with another one's answer.
pub(crate) fn unexpected(answer: &Answer<'_>) -> Error {
    Error::protocol(format!("an answer that was not asked for: {answer:?}"))
}
