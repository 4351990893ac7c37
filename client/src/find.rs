//! Looking messages up: one by its id or its place, all that have a key.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::limits::{FIND_KEY_MAX, FOUND_MAX};
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{Answer, Fetch, FindMessages, Found, GetMessage, Request};
use peregrine_protocol::placement::TopicHash;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Client, unexpected};
use crate::error::{Error, Result};
use crate::message::{Delivery, ReceivedBatch, found};

/// How long to wait before asking a busy broker again that does not say.
const BUSY_DELAY: Duration = Duration::from_millis(20);
/// What puts a request on the wire and answers its number.
type Send<'a> = &'a mut dyn FnMut(&Request<'_>) -> peregrine_protocol::ids::Correlation;

impl Client {
    /// The message of this id, as [`crate::Receipt::id`] and [`Delivery::id`] give it; `UnknownMessage` where there is none, and
    /// `MessageTooOld` where it is no longer kept. Never another one.
    pub async fn get_message(&self, id: MessageLocator) -> Result<Delivery> {
        let shard = id.id.shard();
        if shard.0 >= self.broker()?.shards {
            return Err(Error::said_here(ErrorCode::UnknownMessage, format!("there is no message {id}")));
        }
        let encode = move |send: Send<'_>| send(&Request::GetMessage(GetMessage { message: id }));
        let page = self.look(shard, encode).await?;
        // The broker compared it; a broker that did not must not be believed.
        page.messages.into_iter().find(|message| message.id == id).ok_or_else(|| Error::protocol("another message"))
    }

    /// The message at an offset of a queue: `UnknownMessage` where there is none yet, `OffsetTooOld` where it is no longer kept.
    pub async fn get_message_at(&self, topic: &str, queue: QueueId, offset: QueueOffset) -> Result<Delivery> {
        let known = self.topic(topic).await?;
        let (shard, _) = self.link_of(TopicHash::of(topic), queue)?;
        let fetch = Fetch { topic: known.id, queue, epoch: Epoch::ANY, offset, max_messages: 1, max_bytes: 1 };
        let convert = move |answer: Answer<'_>| match answer {
            Answer::Fetch(fetched) => Ok(fetched.batches.iter().next().map(|(head, payload)| ReceivedBatch {
                topic: Some(fetch.topic),
                queue,
                shard,
                head,
                payload: Bytes::copy_from_slice(payload),
                end: Some(offset + 1),
            })),
            other => Err(unexpected(&other)),
        };
        let encode = move |send: Send<'_>| send(&Request::Fetch(fetch));
        let patience = Patience::new(self);
        let batch = loop {
            match self.call(shard, encode, convert).await {
                Err(error) if error.code() == Some(ErrorCode::Busy) => patience.wait(error).await?,
                batch => break batch,
            }
        };
        let nothing = || {
            let sentence = format!("queue {queue} of topic \"{topic}\" has no message at offset {offset}");
            Error::said_here(ErrorCode::UnknownMessage, sentence)
        };
        let batch = match batch {
            Err(error) if error.code() == Some(ErrorCode::Truncated) => return Err(nothing()),
            batch => batch?.ok_or_else(nothing)?,
        };
        let messages = batch.messages(&known.name.as_str().into(), self.broker()?.directory)?;
        messages.into_iter().find(|message| message.offset == offset).ok_or_else(nothing)
    }

    /// Looks for the messages of a topic that have this key.
    ///
    /// ```no_run
    /// # async fn example(client: peregrine_client::Client) -> peregrine_client::Result<()> {
    /// let mut found = client.find("orders", "ann").start().await?;
    /// while let Some(message) = found.next().await {
    ///     println!("{:?}", message?.body);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn find(&self, topic: impl Into<String>, key: impl Into<Bytes>) -> FindBuilder {
        let (begin, end, page) = (Nanos::ZERO, Nanos::MAX, FOUND_MAX);
        FindBuilder { client: self.clone(), topic: topic.into(), key: key.into(), begin, end, page }
    }

    /// One page of messages that were looked up.
    async fn look(
        &self,
        shard: ShardId,
        encode: impl Fn(Send<'_>) -> peregrine_protocol::ids::Correlation + Clone + std::marker::Send + 'static,
    ) -> Result<Page> {
        let directory = self.broker()?.directory;
        let convert = move |answer: Answer<'_>| match answer {
            Answer::GetMessage(answer) | Answer::FindMessages(answer) => {
                let Found { name, shard, messages, next, .. } = answer;
                let name: Arc<str> = name.into();
                let messages =
                    messages.iter_filled().map(|(head, record)| found(&name, shard, directory, &head, record));
                Ok(Page { messages: messages.collect::<Result<_>>()?, next })
            }
            other => Err(unexpected(&other)),
        };
        let patience = Patience::new(self);
        loop {
            match self.call(shard, encode.clone(), convert).await {
                Ok(page) => return Ok(page),
                Err(error) => patience.wait(error).await?,
            }
        }
    }
}

/// Asks again while the broker has too much to look up, for as long as a call may take.
struct Patience {
    deadline: Instant,
}

impl Patience {
    fn new(client: &Client) -> Self {
        Self { deadline: Instant::now() + client.timeout() }
    }

    /// Waits where the call is to be made again.
    async fn wait(&self, error: Error) -> Result<()> {
        let delay = match &error {
            Error::Refused(refusal) if refusal.code() == Some(ErrorCode::Busy) => {
                refusal.detail.retry_after_ns.map_or(BUSY_DELAY, Duration::from_nanos)
            }
            _ => return Err(error),
        };
        if Instant::now() + delay > self.deadline {
            return Err(error);
        }
        sleep(delay).await;
        Ok(())
    }
}

/// Messages found, and where to go on.
struct Page {
    messages: VecDeque<Delivery>,
    next: Option<LogPosition>,
}

/// Made by [`Client::find`].
#[derive(Debug, Clone)]
pub struct FindBuilder {
    client: Client,
    topic: String,
    key: Bytes,
    begin: Nanos,
    end: Nanos,
    page: u32,
}

impl FindBuilder {
    /// Only messages that were stored at or after `begin`, and before `end`: nanoseconds since the Unix epoch.
    pub fn between(mut self, begin: Nanos, end: Nanos) -> Self {
        (self.begin, self.end) = (begin, end);
        self
    }

    /// How many messages to ask a shard for at once, 256 at the most: who wants few asks for few.
    pub fn page(mut self, messages: u32) -> Self {
        self.page = messages.clamp(1, FOUND_MAX);
        self
    }

    /// Looks the topic up. Shards are asked as messages are wanted.
    pub async fn start(self) -> Result<Find> {
        if self.key.len() > FIND_KEY_MAX {
            return Err(Error::invalid(format!("a key that is looked up has at most {FIND_KEY_MAX} bytes")));
        }
        let topic = self.client.topic(&self.topic).await?;
        let shards = self.client.broker()?.shards;
        let hash = TopicHash::of(&topic.name);
        let owners = (0..topic.queues.min(shards.into())).map(|queue| hash.shard_of(QueueId(queue), shards));
        let sources = owners.map(|shard| Source { shard, next: Some(LogPosition(0)), messages: VecDeque::new() });
        Ok(Find { sources: sources.collect(), topic: topic.id, asked: self })
    }
}

/// The messages of a key, in the order in which they were stored, over all queues of the topic. Those of a shard are in its order; where
/// two shards' messages lie within the difference of their clocks, either may come first.
#[derive(Debug)]
pub struct Find {
    asked: FindBuilder,
    topic: TopicId,
    sources: Vec<Source>,
}

/// What a shard has.
#[derive(Debug)]
struct Source {
    shard: ShardId,
    /// Where to go on; none at its end.
    next: Option<LogPosition>,
    messages: VecDeque<Delivery>,
}

impl Find {
    /// The next message; `None` when there are no more. After an error it may be asked again.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        if let Err(error) = self.fill().await {
            return Some(Err(error));
        }
        let first = |source: &&mut Source| source.messages.front().map(|message| (message.store_time, message.id));
        let filled = self.sources.iter_mut().filter(|source| !source.messages.is_empty());
        Some(Ok(filled.min_by_key(first)?.messages.pop_front()?))
    }

    /// Asks each shard of which nothing is at hand, side by side.
    async fn fill(&mut self) -> Result<()> {
        let mut asked = JoinSet::new();
        for (place, source) in self.sources.iter().enumerate() {
            let (true, Some(from)) = (source.messages.is_empty(), source.next) else { continue };
            asked.spawn(next_page(self.asked.clone(), self.topic, source.shard, from, place));
        }
        let mut outcome = Ok(());
        while let Some(done) = asked.join_next().await {
            match done {
                Ok((place, Ok(page))) => {
                    self.sources[place].messages = page.messages;
                    self.sources[place].next = page.next;
                }
                Ok((_, Err(error))) => outcome = Err(error),
                Err(_) => outcome = Err(Error::Closed),
            }
        }
        outcome
    }
}

/// Goes on in one shard until something is found, or nothing is left.
async fn next_page(
    asked: FindBuilder,
    topic: TopicId,
    shard: ShardId,
    mut from: LogPosition,
    place: usize,
) -> (usize, Result<Page>) {
    loop {
        let FindBuilder { client, key, begin, end, page: limit, .. } = asked.clone();
        let encode = move |send: Send<'_>| {
            send(&Request::FindMessages(FindMessages { topic, key: &key, begin, end, from, limit }))
        };
        match client.look(shard, encode).await {
            Ok(Page { messages, next: Some(next) }) if messages.is_empty() => {
                if next <= from {
                    return (place, Err(Error::protocol("a look-up that does not get on")));
                }
                from = next;
            }
            Ok(page) => return (place, Ok(page)),
            Err(error) => return (place, Err(error)),
        }
    }
}
