//! Consuming in a group: the application's half. What the broker sends is kept by the member's core, which the application's calls and
//! a task take turns with.

mod builder;
mod shared;
mod task;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

pub use self::builder::ConsumerBuilder;
use self::shared::{Found, Shared};
use crate::admin::Group;
use crate::error::{Error, Result};
use crate::group::{QueueKey, Token};
use crate::message::Delivery;

/// A member of a consumer group. The queues of the group's topics are shared among its members: each queue's messages come to one member
/// alone, in order, from where the group is; what is acknowledged is not delivered again to any.
///
/// Connections that break and brokers that are started again are dealt with: what the application holds then is still its own where the
/// queue is. What it did not acknowledge in time goes to another member, with [`Delivery::attempt`] one higher; so work should bear
/// being done twice.
///
/// ```no_run
/// # async fn example(client: peregrine_client::Client) -> peregrine_client::Result<()> {
/// use peregrine_client::Start;
///
/// let mut consumer = client.consumer("billing").topic("orders").start(Start::Earliest).build().await?;
/// // A message is done when the next one is asked for.
/// while let Some(message) = consumer.next().await {
///     let message = message?;
///     println!("{} {}: {:?}", message.queue, message.offset, message.body);
/// }
/// consumer.close().await
/// # }
/// ```
///
/// Several at a time, each queue in order:
///
/// ```no_run
/// # async fn example(client: peregrine_client::Client) -> peregrine_client::Result<()> {
/// let mut consumer = client.consumer("billing").topics(["orders", "refunds"]).member("host-7").build().await?;
/// tokio::select! {
///     result = consumer.run(16, |message| async move { println!("{:?}", message.body) }) => result?,
///     _ = tokio::signal::ctrl_c() => {}
/// }
/// consumer.close().await // waits for the handlers, then gives the queues back
/// # }
/// ```
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    acks: Acks,
    name: String,
    group: Group,
    is_automatic: bool,
    drain: Duration,
    /// What `next` gave last, with automatic acknowledgement.
    last: Option<Token>,
    /// Those of `run`; they outlive its future, so that dropping that loses nothing.
    handlers: JoinSet<()>,
}

/// Acknowledges messages of a [`Consumer`], from wherever they are worked on. Cheap to clone. `close` waits for what is not acknowledged
/// while there is one.
#[derive(Debug, Clone)]
pub struct Acks {
    shared: Arc<Shared>,
    /// One more than the consumer's own: somebody may still acknowledge.
    handles: Arc<()>,
}

impl Consumer {
    /// The next message of any queue; `None` when there will be none, after an error that ends the consumer. With automatic
    /// acknowledgement, asking for it says that the one before is done. Dropping the future loses nothing.
    ///
    /// After [`Error::Truncated`] (a power cut took back messages that had been delivered) and [`Error::Corrupt`] (a batch did not match
    /// its checksums, and is asked for again) it goes on.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        loop {
            match self.find() {
                Found::Message(message) => return Some(Ok(*message)),
                Found::Error(error) => return Some(Err(error)),
                Found::End => return None,
                Found::Nothing => self.shared.news.notified().await,
            }
        }
    }

    /// The next message if one is here already; `None` says only that one would have to be waited for. With automatic acknowledgement
    /// the one before is done with this, too.
    pub fn try_next(&mut self) -> Option<Result<Delivery>> {
        match self.find() {
            Found::Message(message) => Some(Ok(*message)),
            Found::Error(error) => Some(Err(error)),
            Found::End | Found::Nothing => None,
        }
    }

    /// Says that a message is done. The order does not matter: all that is done is acknowledged up to the first message of its queue
    /// that is not. `false`: the message is not this consumer's any more (its queue moved, or was set to another place), and comes to
    /// another member; or it was done before.
    pub fn ack(&self, message: &Delivery) -> bool {
        self.acks.ack(message)
    }

    /// A handle that acknowledges, for where the messages go.
    pub fn acks(&self) -> Acks {
        self.acks.clone()
    }

    /// Gives each message to `handler`, at most `concurrency` at once and one at a time of each queue, so that its order is kept. With
    /// automatic acknowledgement a message is done when its handler has returned; a handler that panics ends the process's consumer
    /// with that panic, and its message comes again.
    ///
    /// Returns with an error alone; after one that [`Error::is_retriable`], or [`Error::Corrupt`], it can be called again. Dropping the
    /// future stops handing out; the handlers that run go on, and [`Self::close`] waits for them.
    pub async fn run<F, Fut>(&mut self, concurrency: usize, handler: F) -> Result<()>
    where
        F: Fn(Delivery) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        loop {
            while let Some(ended) = self.handlers.try_join_next() {
                resume_panic(ended);
            }
            if self.handlers.len() >= concurrency.max(1) {
                if let Some(ended) = self.handlers.join_next().await {
                    resume_panic(ended);
                }
                continue;
            }
            match self.find() {
                Found::Message(message) => self.handle(&handler, *message),
                Found::Error(error) => return Err(error),
                Found::End => return Err(Error::Closed),
                Found::Nothing => tokio::select! {
                    () = self.shared.news.notified() => {}
                    Some(ended) = self.handlers.join_next() => resume_panic(ended),
                },
            }
        }
    }

    /// Takes no more messages; waits for those in the application's hands to be done (at most [`ConsumerBuilder::drain`]; with manual
    /// acknowledgement only while there is an [`Acks`]), acknowledges, and leaves the group, so that its queues go to other members at
    /// once and nothing that was done is delivered again.
    ///
    /// With automatic acknowledgement, the last message that `next` gave counts as done. To give it back instead, drop the consumer.
    pub async fn close(mut self) -> Result<()> {
        let deadline = Instant::now() + self.drain;
        self.finish_last();
        self.shared.with(|state, now| {
            state.is_over = true;
            state.core.close(now);
        });
        self.shared.changed.notify_one();
        while !self.handlers.is_empty() {
            match timeout_at(deadline, self.handlers.join_next()).await {
                Ok(Some(ended)) => resume_panic(ended),
                Ok(None) | Err(_) => break,
            }
        }
        if Arc::strong_count(&self.acks.handles) > 1 {
            let _ = timeout_at(deadline, self.over()).await; // what is not done by then is given up
        }
        self.shared.with(|state, now| state.core.abandon(now));
        self.shared.changed.notify_one();
        self.over().await;
        let failure = self.shared.lock().failure().cloned();
        failure.map_or(Ok(()), Err)
    }

    /// The member's name.
    pub fn member(&self) -> &str {
        &self.name
    }

    /// The group as it was when the consumer was built.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// How many queues are this member's now.
    pub fn queues(&self) -> usize {
        self.shared.lock().core.assigned_queues().count()
    }

    fn find(&mut self) -> Found {
        self.finish_last();
        let found = self.shared.with(|state, _| state.next());
        if let (true, Found::Message(message)) = (self.is_automatic, &found) {
            self.last = message.token;
        }
        found
    }

    fn finish_last(&mut self) {
        if let Some(token) = self.last.take() {
            self.shared.done(&token); // lost in the meantime: it comes to another member
        }
    }

    fn handle<F, Fut>(&mut self, handler: &F, message: Delivery)
    where
        F: Fn(Delivery) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.last = None; // done when the handler says so
        let Some(token) = message.token else { return };
        self.shared.lock().busy.insert(token.key);
        let busy = Busy { shared: self.shared.clone(), key: token.key };
        let is_automatic = self.is_automatic;
        let work = handler(message);
        self.handlers.spawn(async move {
            work.await;
            if is_automatic {
                busy.shared.done(&token);
            }
        });
    }

    /// Waits until the group has taken the member in.
    async fn joined(&mut self) -> Result<()> {
        loop {
            {
                let state = self.shared.lock();
                match (state.failure(), state.core.member()) {
                    (Some(error), _) => return Err(error.clone()),
                    (None, Some(_)) => break,
                    (None, None) => {}
                }
            }
            self.shared.news.notified().await;
        }
        self.shared.news.notify_one(); // what came with it is still to be looked at
        Ok(())
    }

    /// Waits until the member has left, or cannot.
    async fn over(&self) {
        loop {
            {
                let state = self.shared.lock();
                if state.core.is_over() || state.failure().is_some() {
                    return;
                }
            }
            self.shared.news.notified().await;
        }
    }
}

impl Drop for Consumer {
    /// Leaves in the background; what was not acknowledged goes to other members.
    fn drop(&mut self) {
        self.shared.with(|state, now| {
            state.is_over = true;
            state.core.abandon(now);
        });
        self.shared.changed.notify_one();
    }
}

impl Acks {
    /// As [`Consumer::ack`].
    pub fn ack(&self, message: &Delivery) -> bool {
        message.token.is_some_and(|token| self.shared.done(&token))
    }
}

/// A queue of which a handler has a message; free again when the handler is gone, however it ended.
struct Busy {
    shared: Arc<Shared>,
    key: QueueKey,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.lock().busy.remove(&self.key);
        self.shared.news.notify_one();
    }
}

fn resume_panic(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
