//! Setting up a reader.

use std::time::Duration;

use peregrine_protocol::ids::QueueId;
use peregrine_protocol::message::Start;
use peregrine_protocol::placement::TopicHash;
use tokio::sync::mpsc;

use super::place::Place;
use super::task::{CreditWindow, ReaderTask};
use super::{Queues, Reader};
use crate::client::Client;
use crate::error::{Error, Result};

/// Messages on their way to the application, over all queues.
const MESSAGES: u64 = 16_384;
/// Bytes on their way to the application, over all queues.
const BYTES: u64 = 16 << 20;

/// Made by [`Client::reader`].
#[derive(Debug)]
pub struct ReaderBuilder {
    client: Client,
    topic: String,
    queues: Queues,
    start: Start,
    messages: u64,
    bytes: u64,
    stops_at_end: bool,
    patience: Option<Duration>,
}

impl ReaderBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        Self {
            client,
            topic,
            queues: Queues::All,
            start: Start::Latest,
            messages: MESSAGES,
            bytes: BYTES,
            stops_at_end: false,
            patience: None,
        }
    }

    /// Reads these queues only. Default: all of the topic.
    pub fn queues(mut self, queues: impl IntoIterator<Item = QueueId>) -> Self {
        self.queues = Queues::These(queues.into_iter().collect());
        self
    }

    /// Where to begin, in each queue. Default: latest.
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How many messages and bytes may be on their way to the application, over all queues. One batch per queue may exceed it.
    pub fn credit(mut self, messages: u64, bytes: u64) -> Self {
        (self.messages, self.bytes) = (messages, bytes);
        self
    }

    /// Ends when each queue has reached what was its end at the start.
    pub fn until_end(mut self) -> Self {
        self.stops_at_end = true;
        self
    }

    /// Gives up when the broker cannot be reached for so long. Default: never.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Looks the topic up and starts the reader.
    pub async fn build(self) -> Result<Reader> {
        let topic = self.client.topic(&self.topic).await?;
        let queues = match self.queues {
            Queues::All => (0..topic.queues).map(QueueId).collect(),
            Queues::These(queues) => queues,
        };
        let hash = TopicHash::of(&topic.name);
        let mut places = Vec::with_capacity(queues.len());
        for queue in queues {
            if queue.0 >= topic.queues {
                let (name, count) = (&topic.name, topic.queues);
                return Err(Error::invalid(format!("topic \"{name}\" has {count} queues, there is no queue {queue}")));
            }
            let (shard, _) = self.client.link_of(hash, queue)?;
            places.push(Place::new(queue, shard, self.start, self.stops_at_end));
        }
        let share = places.len().max(1) as u64;
        let window = CreditWindow { messages: (self.messages / share).max(1), bytes: (self.bytes / share).max(1) };
        let (pieces_out, pieces) = mpsc::unbounded_channel();
        let (consumed, consumed_in) = mpsc::unbounded_channel();
        let directory = self.client.broker()?.directory;
        let task = ReaderTask::new(self.client, topic.id, places, window, self.patience, pieces_out, consumed_in);
        tokio::spawn(task.run());
        let ready = std::collections::VecDeque::new();
        Ok(Reader { topic: topic.name.into(), directory, pieces, consumed, ready, due: None })
    }
}
