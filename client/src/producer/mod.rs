//! Sending: the application's half. Messages get their queue and their bytes here, in the caller's thread; a task with the
//! [`ProducerCore`](crate::idempotence::ProducerCore) does the rest.

mod builder;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use peregrine_protocol::ids::{DurableLevel, Epoch, Nanos, QueueId, QueueOffset};
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::placement::queue_of_key;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use self::builder::ProducerBuilder;
use crate::client::Topic;
use crate::error::{Error, Result};
use crate::message::Message;

/// Sends messages to one topic: pipelined, in order per queue, each stored once however often connections break or the broker is
/// started again. Cheap to clone; clones share the order.
///
/// What waits while batches are on their way goes as the next batch; nothing waits for company. Retriable errors are retried until the
/// message's time is up.
///
/// ```no_run
/// # async fn example(client: peregrine_client::Client) -> peregrine_client::Result<()> {
/// use std::time::Duration;
/// use peregrine_client::{DurableLevel, Message};
///
/// let producer = client.producer("orders").level(DurableLevel::Memory).timeout(Duration::from_secs(10)).build().await?;
/// // Pipelined: the second does not wait for the first one's acknowledgement.
/// let first = producer.enqueue(Message::new("one")).await?;
/// let second = producer.enqueue(Message::new("two")).await?;
/// println!("{} {}", first.acknowledged().await?.offset, second.acknowledged().await?.offset);
/// // Without anybody waiting.
/// producer.send_with(Message::new("three"), |result| println!("{result:?}")).await?;
/// producer.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inputs: mpsc::UnboundedSender<Input>,
    /// Bytes that may still be buffered.
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    topic: Topic,
    message_max: u32,
    level: DurableLevel,
    next_queue: AtomicU32,
    lost: Arc<AtomicU64>,
}

/// Where a message stands, and what is promised for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The queue that it went to.
    pub queue: QueueId,
    /// Its offset there.
    pub offset: QueueOffset,
    /// Its id in the whole broker, for ever: what [`crate::Client::get_message`] takes. None where an earlier attempt had stored it so
    /// long ago that the broker does not know where.
    pub id: Option<MessageLocator>,
    /// The epoch of the log that it stands in.
    pub epoch: Epoch,
    /// The durable level that it has reached: at least the one asked for.
    pub level: DurableLevel,
    /// An earlier attempt had stored it; this says that it is there once, not twice.
    pub duplicate: bool,
}

/// The acknowledgement of a message to come.
#[derive(Debug)]
pub struct Acknowledged {
    receiver: oneshot::Receiver<Result<Receipt>>,
}

enum Input {
    Push { queue: QueueId, level: DurableLevel, record: Vec<u8>, completion: Completion },
    Flush(oneshot::Sender<()>),
}

/// Who is told, and the room in the buffer that is given back then.
struct Completion {
    notify: Notify,
    _room: OwnedSemaphorePermit,
}

enum Notify {
    Waiter(oneshot::Sender<Result<Receipt>>),
    Callback(Box<dyn FnOnce(Result<Receipt>) + Send>),
}

impl Producer {
    /// Sends a message and waits for its acknowledgement.
    pub async fn send(&self, message: Message) -> Result<Receipt> {
        self.enqueue(message).await?.acknowledged().await
    }

    /// Takes a message as soon as the buffer has room, and answers with its acknowledgement to come. Messages of one queue are stored
    /// in the order in which this was awaited. Dropping the answer does not take the message back.
    pub async fn enqueue(&self, message: Message) -> Result<Acknowledged> {
        let (sender, receiver) = oneshot::channel();
        self.push(&message, Notify::Waiter(sender)).await?;
        Ok(Acknowledged { receiver })
    }

    /// Takes a message as soon as the buffer has room, and calls back with its fate: from the producer's task, so be quick.
    pub async fn send_with(
        &self,
        message: Message,
        callback: impl FnOnce(Result<Receipt>) + Send + 'static,
    ) -> Result<()> {
        self.push(&message, Notify::Callback(Box::new(callback))).await
    }

    /// Waits until no message is on its way: each was acknowledged or has failed.
    pub async fn flush(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.shared.inputs.send(Input::Flush(sender)).is_ok() {
            let _ = receiver.await; // the task ends only when nothing is left
        }
    }

    /// Flushes, then ends this producer; clones of it go on. Without it, dropping the last clone sends on in the background what is
    /// buffered.
    pub async fn close(self) {
        self.flush().await;
    }

    /// The topic as it was when the producer was built.
    pub fn topic(&self) -> &Topic {
        &self.shared.topic
    }

    /// How many messages that had been acknowledged were lost by failures that their level does not survive, as far as they were
    /// noticed (see [`ProducerBuilder::on_loss`]).
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    async fn push(&self, message: &Message, notify: Notify) -> Result<()> {
        let shared = &*self.shared;
        message.check()?;
        let draft = message.draft(wall_clock());
        if draft.len() > u64::from(shared.message_max) {
            let (len, max) = (draft.len(), shared.message_max);
            return Err(Error::invalid(format!("the message has {len} bytes, the broker takes at most {max}")));
        }
        let queue = self.choose_queue(message)?;
        let mut record = Vec::with_capacity(draft.len() as usize + 8);
        draft.append_to(&mut record);
        let room = (record.len() as u32).min(shared.budget_bytes);
        let room = shared.budget.clone().acquire_many_owned(room).await.map_err(|_| Error::Closed)?;
        let level = message.chosen_level().unwrap_or(shared.level);
        let completion = Completion { notify, _room: room };
        shared.inputs.send(Input::Push { queue, level, record, completion }).map_err(|_| Error::Closed)
    }

    /// Chosen once, before the first attempt, and kept.
    fn choose_queue(&self, message: &Message) -> Result<QueueId> {
        let queues = self.shared.topic.queues;
        match (message.chosen_queue(), message.key_bytes()) {
            (Some(queue), _) if queue.0 < queues => Ok(queue),
            (Some(queue), _) => {
                let name = &self.shared.topic.name;
                Err(Error::invalid(format!("topic \"{name}\" has {queues} queues, there is no queue {queue}")))
            }
            (None, Some(key)) => Ok(queue_of_key(key, queues)),
            (None, None) => Ok(QueueId(self.shared.next_queue.fetch_add(1, Ordering::Relaxed) % queues)),
        }
    }
}

impl Acknowledged {
    /// Waits for it.
    pub async fn acknowledged(self) -> Result<Receipt> {
        self.receiver.await.unwrap_or(Err(Error::Closed))
    }
}

impl Completion {
    fn complete(self, result: Result<Receipt>) {
        match self.notify {
            Notify::Waiter(waiter) => {
                let _ = waiter.send(result); // nobody may wait any more
            }
            Notify::Callback(callback) => callback(result),
        }
    }
}

/// Now, since the Unix epoch; 0 on a machine whose clock stands before it.
fn wall_clock() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(Nanos::ZERO, Nanos::from)
}
