//! Setting up a consumer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peregrine_protocol::limits::GROUP_TOPICS_MAX;
use peregrine_protocol::message::Start;
use peregrine_protocol::name::check_name;
use peregrine_protocol::placement::{TopicHash, group_home};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::shared::Shared;
use super::task::ConsumerTask;
use super::{Acks, Consumer};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::group::{MemberCore, MemberOptions, MemberTopic};
use crate::idempotence::back_off::random_identity;

/// Messages on their way to the application and in its hands, over all queues.
const MESSAGES: u64 = 16_384;
/// Bytes on their way to the application and in its hands, over all queues.
const BYTES: u64 = 16 << 20;
/// Consumers of this process so far.
static CONSUMERS: AtomicU64 = AtomicU64::new(0);
/// How long `close` waits for what the application holds: as long as a broker waits by default when a queue moves.
const DRAIN: Duration = Duration::from_secs(5);

/// Made by [`Client::consumer`].
#[derive(Debug)]
pub struct ConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<String>,
    member: Option<String>,
    start: Start,
    messages: u64,
    bytes: u64,
    is_automatic: bool,
    drain: Duration,
    patience: Option<Duration>,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, group: String) -> Self {
        Self {
            client,
            group,
            topics: Vec::new(),
            member: None,
            start: Start::Earliest,
            messages: MESSAGES,
            bytes: BYTES,
            is_automatic: true,
            drain: DRAIN,
            patience: None,
        }
    }

    /// Adds a topic; at least one is needed.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Adds topics.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// The member's name: unique in the group, and the same again after a restart of the application, so that it gets its queues back
    /// where it is quick. The newest consumer under a name wins; the one before it ends with `MemberFenced`. Default: a name of its own.
    pub fn member(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }

    /// Where the group begins in topics that it has not consumed yet. An offset holds for every queue. Default: earliest.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How many messages and bytes may be on their way to the application and in its hands, over all queues. One batch per queue may
    /// exceed it. With manual acknowledgement, nothing more comes when so much is not acknowledged.
    pub fn credit(mut self, messages: u64, bytes: u64) -> Self {
        (self.messages, self.bytes) = (messages, bytes);
        self
    }

    /// A message counts as done when the application asks for the next one, when its handler has returned, or on `close`. The default.
    pub fn automatic_ack(mut self) -> Self {
        self.is_automatic = true;
        self
    }

    /// A message counts as done when the application says so, with [`Consumer::ack`] or [`Acks::ack`].
    pub fn manual_ack(mut self) -> Self {
        self.is_automatic = false;
        self
    }

    /// How long `close` waits for messages that are still in the application's hands. Default: 5 s.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Gives up when the broker cannot be reached for so long. Default: never.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Makes the group if it is not there, or adds the topics to it, and joins.
    pub async fn build(self) -> Result<Consumer> {
        let invalid = |error: peregrine_protocol::name::NameError| Error::invalid(error.to_string());
        check_name(&self.group).map_err(invalid)?;
        let name =
            self.member.unwrap_or_else(|| format!("{}-{:08x}", self.client.instance(), random_identity() as u32));
        check_name(&name).map_err(invalid)?;
        if self.topics.is_empty() || self.topics.len() > GROUP_TOPICS_MAX {
            return Err(Error::invalid(format!("a consumer has 1 to {GROUP_TOPICS_MAX} topics")));
        }
        let (mut topics, mut names, mut starts) = (Vec::new(), HashMap::new(), Vec::new());
        for topic in &self.topics {
            let topic = self.client.topic(topic).await?;
            if names.insert(topic.id, Arc::<str>::from(topic.name.as_str())).is_none() {
                topics.push(MemberTopic { id: topic.id, hash: TopicHash::of(&topic.name) });
                starts.push((topic.id, self.start));
            }
        }
        let (group, _) = self.client.admin().create_group_of(&self.group, starts).await?;
        let broker = self.client.broker()?;
        let (shards, directory) = (broker.shards, broker.directory);
        let home = group_home(&self.group, shards);
        let options = MemberOptions {
            group: group.id,
            home,
            name: name.clone(),
            // Each consumer is one of its own, so that two under one name fence each other on one connection too.
            client: format!("{}/{}", self.client.instance(), CONSUMERS.fetch_add(1, Ordering::Relaxed)),
            topics,
            shards,
            credit_messages: self.messages.max(1),
            credit_bytes: self.bytes.max(1),
            seed: random_identity(),
        };
        let (listener, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(MemberCore::new(options), self.client.clone(), listener, names));
        shared.with(|_, _| ()); // connects to the home
        let task = ConsumerTask {
            shared: shared.clone(),
            directory,
            events,
            patience: self.patience,
            leaving_max: self.drain + DRAIN,
        };
        tokio::spawn(task.run());
        let mut consumer = Consumer {
            acks: Acks { shared: shared.clone(), handles: Arc::new(()) },
            shared,
            name,
            group,
            is_automatic: self.is_automatic,
            drain: self.drain,
            last: None,
            handlers: JoinSet::new(),
        };
        match tokio::time::timeout(self.client.timeout(), consumer.joined()).await {
            Ok(result) => result?,
            Err(_) => return Err(self.client.timed_out(&self.client.link(home))),
        }
        Ok(consumer)
    }
}
