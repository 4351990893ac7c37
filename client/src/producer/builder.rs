//! Setting up a producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use peregrine_protocol::ids::DurableLevel;
use tokio::sync::{Semaphore, mpsc};

use super::task::ProducerTask;
use super::{Producer, Shared};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::idempotence::{BatchLimits, Loss};

/// Bytes of a batch: large enough to share a flush among hundreds of messages, small against the broker's steps of 64 KiB.
const BATCH_BYTES: usize = 256 << 10;
/// Records of a batch.
const BATCH_RECORDS: usize = 4_096;
/// Bytes that a producer buffers before `enqueue` waits: 64 full batches and as much again.
const BUFFER_BYTES: u32 = 32 << 20;
/// How long a message may take.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Made by [`Client::producer`].
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    level: DurableLevel,
    timeout: Duration,
    limits: BatchLimits,
    buffer_bytes: u32,
    on_loss: Option<OnLoss>,
}

pub(super) type OnLoss = Box<dyn Fn(Loss) + Send>;

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        Self {
            client,
            topic,
            level: DurableLevel::default(),
            timeout: TIMEOUT,
            limits: BatchLimits { bytes: BATCH_BYTES, records: BATCH_RECORDS },
            buffer_bytes: BUFFER_BYTES,
            on_loss: None,
        }
    }

    /// What acknowledgements promise, unless a message asks for another level. Default: `synced`.
    pub fn level(mut self, level: DurableLevel) -> Self {
        self.level = level;
        self
    }

    /// How long a message may take from `enqueue` to its acknowledgement, attempts included. Default: 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Largest batch in bytes; a larger message goes alone. Default: 256 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// Bytes that may wait for their acknowledgement; beyond that `enqueue` waits. Default: 32 MiB.
    pub fn buffer_bytes(mut self, bytes: u32) -> Self {
        self.buffer_bytes = bytes.max(1);
        self
    }

    /// Called when the broker turns out to have lost messages that it had acknowledged at a level that does not survive what happened
    /// (`memory`, and the power failed). Messages not yet acknowledged are sent again and are not among them.
    pub fn on_loss(mut self, call: impl Fn(Loss) + Send + 'static) -> Self {
        self.on_loss = Some(Box::new(call));
        self
    }

    /// Looks the topic up and starts the producer.
    pub async fn build(self) -> Result<Producer> {
        let topic = self.client.topic(&self.topic).await?;
        if topic.queues == 0 {
            return Err(Error::protocol(format!("topic \"{}\" has no queues", topic.name)));
        }
        let broker = self.client.broker()?;
        let (inputs, inbox) = mpsc::unbounded_channel();
        let lost = Arc::new(AtomicU64::new(0));
        // A batch goes in one frame, beside its headers.
        let frame_room = (broker.frame_max as usize).saturating_sub(1 << 10);
        let limits = BatchLimits { bytes: self.limits.bytes.min(frame_room), ..self.limits };
        let task = ProducerTask::new(self.client, &topic, limits, self.timeout, inbox, lost.clone(), self.on_loss)?;
        tokio::spawn(task.run());
        let shared = Shared {
            inputs,
            budget: Arc::new(Semaphore::new(self.buffer_bytes as usize)),
            budget_bytes: self.buffer_bytes,
            topic,
            message_max: broker.message_max,
            level: self.level,
            next_queue: AtomicU32::new(0),
            lost,
        };
        Ok(Producer { shared: Arc::new(shared) })
    }
}
