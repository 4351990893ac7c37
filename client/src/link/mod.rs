//! A link: the client's one connection to one shard, kept up for as long as somebody holds a [`Link`].
//!
//! ```text
//!  calls ─────────┐                        ┌──► answers, once
//!  producers ─────┼──► commands ──► task ──┼──► LinkEvent to each listener, in order
//!  readers ───────┘                 │ ▲    └──► batches to subscribers
//!                                socket
//! ```
//! Each connection has a *generation*. Commands of producers, readers and consumers carry the one they were made for and are dropped when it is
//! over: what was sent on a lost connection is theirs to send again, once they have seen `Connected`. Calls wait for a connection.
//! The channels are unbounded; what fills them is bounded by the batches in flight, by credit, and by the callers that wait.

mod member;
mod socket;
mod task;

pub(crate) use self::member::{MemberEvent, MemberRequest};

use std::sync::{Arc, OnceLock};

use peregrine_protocol::ids::{Correlation, QueueId, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, Credit, ProduceAnswer, ProduceHead, Request, Subscribe};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Refusal, Result};
use crate::idempotence::Ticket;
use crate::message::ReceivedBatch;
use crate::session::{BrokerInfo, Session};

/// Which connection of a link; counts from 1.
pub(crate) type Generation = u64;

/// What all links of a client have in common.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Host and port, as given.
    pub broker: String,
    /// Name of the client instance.
    pub client: String,
    /// What the first hello said; later ones must agree on directory and shards.
    pub first_seen: OnceLock<BrokerInfo>,
}

/// A handle to the connection to one shard.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<Status>,
}

/// How the connection is.
#[derive(Debug, Clone)]
pub(crate) enum Status {
    /// Not there; why the last one ended or the last attempt failed.
    Down(Option<Arc<str>>),
    /// There.
    Up(Arc<BrokerInfo>),
    /// Never again.
    Failed(Error),
}

/// What a producer, reader or consumer hears of a link that it listens to.
#[derive(Debug)]
pub(crate) struct LinkEvent {
    pub shard: ShardId,
    pub generation: Generation,
    pub what: Happening,
}

#[derive(Debug)]
pub(crate) enum Happening {
    Connected,
    Disconnected,
    /// No connection will ever be made again.
    Failed(Error),
    Produced {
        ticket: Ticket,
        answer: Result<ProduceAnswer, Refusal>,
    },
    Subscribed {
        queue: QueueId,
        answer: Result<peregrine_protocol::message::SubscribeAnswer, Refusal>,
    },
    Delivered {
        subscription: SubscriptionId,
        batch: ReceivedBatch,
    },
    Ended {
        queue: QueueId,
        subscription: SubscriptionId,
        refusal: Refusal,
    },
    Member(MemberEvent),
}

/// Where a listener hears.
pub(crate) type Listener = mpsc::UnboundedSender<LinkEvent>;

type Encode = Box<dyn FnOnce(&mut Session, &mut Vec<u8>) -> Correlation + Send>;
type Reply = Box<dyn FnOnce(Result<Answer<'_>>) + Send>;

/// What a link is asked to do.
enum Command {
    Call { encode: Encode, reply: Reply },
    Listen(Listener),
    Produce { generation: Generation, head: ProduceHead, payload: bytes::Bytes, ticket: Ticket, to: Listener },
    Subscribe { generation: Generation, subscribe: Subscribe, to: Listener },
    Credit { generation: Generation, credit: Credit },
    Unsubscribe { generation: Generation, subscription: SubscriptionId },
    Member { generation: Generation, request: MemberRequest, to: Listener },
}

impl Link {
    /// Starts the task that keeps the connection to `shard`.
    pub fn start(identity: Arc<Identity>, shard: ShardId) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (status_out, status) = watch::channel(Status::Down(None));
        tokio::spawn(task::LinkTask::new(identity, shard, inbox, status_out).run());
        Self { commands, status }
    }

    /// How the connection is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the connection is there, or never will be.
    pub async fn up(&self) -> Result<Arc<BrokerInfo>> {
        let mut status = self.status.clone();
        loop {
            match &*status.borrow_and_update() {
                Status::Up(broker) => return Ok(broker.clone()),
                Status::Failed(error) => return Err(error.clone()),
                Status::Down(_) => {}
            }
            status.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// One request and its answer. Waits for a connection; fails where it is lost before the answer.
    pub async fn call<T: Send + 'static>(
        &self,
        encode: impl FnOnce(&mut dyn FnMut(&Request<'_>) -> Correlation) -> Correlation + Send + 'static,
        convert: impl FnOnce(Answer<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let encode: Encode = Box::new(move |session, out| encode(&mut |request| session.request(request, out)));
        let reply: Reply = Box::new(move |result| {
            let _ = answer.send(result.and_then(convert)); // the caller may have given up
        });
        self.send(Command::Call { encode, reply });
        answered.await.unwrap_or(Err(Error::Closed))
    }

    /// Sends `to` all that happens from now on, `Connected` first if it is.
    pub fn listen(&self, to: Listener) {
        self.send(Command::Listen(to));
    }

    /// One batch; the answer goes to `to`.
    pub fn produce(
        &self,
        generation: Generation,
        head: ProduceHead,
        payload: bytes::Bytes,
        ticket: Ticket,
        to: Listener,
    ) {
        self.send(Command::Produce { generation, head, payload, ticket, to });
    }

    /// Opens a subscription; answer and batches go to `to`.
    pub fn subscribe(&self, generation: Generation, subscribe: Subscribe, to: Listener) {
        self.send(Command::Subscribe { generation, subscribe, to });
    }

    /// Gives a subscription credit.
    pub fn credit(&self, generation: Generation, credit: Credit) {
        self.send(Command::Credit { generation, credit });
    }

    /// Closes a subscription.
    pub fn unsubscribe(&self, generation: Generation, subscription: SubscriptionId) {
        self.send(Command::Unsubscribe { generation, subscription });
    }

    /// A request of a group's member; what comes of it goes to `to`.
    pub fn member(&self, generation: Generation, request: MemberRequest, to: Listener) {
        self.send(Command::Member { generation, request, to });
    }

    fn send(&self, command: Command) {
        // The task lives as long as its handles, unless the runtime is shutting down; then nobody waits.
        let _ = self.commands.send(command);
    }
}
