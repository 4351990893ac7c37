//! The task of a link: connects, serves the connection until it is lost, and comes back with growing delays. Owns the listeners and
//! the calls that wait for a connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use peregrine_protocol::ids::{Nanos, ShardId};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::socket::{Served, Socket};
use super::{Command, Encode, Generation, Happening, Identity, LinkEvent, Listener, Reply, Status};
use crate::error::Error;
use crate::idempotence::back_off::{BackOff, random_identity};

/// First delay after a lost connection: a broker that was killed is often back within tens of milliseconds.
const FIRST_DELAY: Nanos = Nanos::from_millis(10);
/// Longest delay between attempts: what a person waits at most for a broker that is back.
const LONGEST_DELAY: Nanos = Nanos::from_millis(1_000);
/// For one attempt, to a host that does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that wait for a connection: more callers than this wait for nothing good.
const WAITING_CALLS_MAX: usize = 1_024;

pub(super) struct LinkTask {
    identity: Arc<Identity>,
    shard: ShardId,
    inbox: mpsc::UnboundedReceiver<Command>,
    status: watch::Sender<Status>,
    generation: Generation,
    listeners: Vec<Listener>,
    waiting: VecDeque<(Encode, Reply)>,
    failed: Option<Error>,
}

impl LinkTask {
    pub fn new(
        identity: Arc<Identity>,
        shard: ShardId,
        inbox: mpsc::UnboundedReceiver<Command>,
        status: watch::Sender<Status>,
    ) -> Self {
        Self {
            identity,
            shard,
            inbox,
            status,
            generation: 0,
            listeners: Vec::new(),
            waiting: VecDeque::new(),
            failed: None,
        }
    }

    /// Ends when no handle is left.
    pub async fn run(mut self) {
        let mut back_off = BackOff::new(FIRST_DELAY, LONGEST_DELAY, random_identity());
        while self.failed.is_none() {
            let attempt = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.identity.broker.clone()));
            let Some(attempt) = self.while_down(attempt).await else { return };
            let reason = match attempt {
                Ok(Ok(stream)) => match self.serve(stream, &mut back_off).await {
                    Served::Lost(reason) => reason,
                    Served::Failed(error) => {
                        self.fail(error);
                        break;
                    }
                    Served::Abandoned => return,
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            self.status.send_replace(Status::Down(Some(reason.into())));
            let delay = back_off.next_delay().to_duration();
            if self.while_down(sleep(delay)).await.is_none() {
                return;
            }
        }
        while let Some(command) = self.inbox.recv().await {
            self.take_while_down(command);
        }
    }

    async fn serve(&mut self, stream: TcpStream, back_off: &mut BackOff) -> Served {
        self.generation += 1;
        let mut socket = Socket::open(stream, &self.identity, self.shard, self.generation);
        let opened = match self.while_down(socket.hello()).await {
            Some(Ok(broker)) => broker,
            Some(Err(served)) => return served,
            None => return Served::Abandoned,
        };
        let first = self.identity.first_seen.get_or_init(|| opened.clone());
        if (first.directory, first.shards) != (opened.directory, opened.shards) {
            return Served::Failed(Error::Replaced { broker: self.identity.broker.clone() });
        }
        back_off.reset();
        self.status.send_replace(Status::Up(Arc::new(opened)));
        self.tell(|| Happening::Connected);
        for (encode, reply) in self.waiting.drain(..) {
            socket.call(encode, reply);
        }
        let served = socket.serve(&mut self.inbox, &mut self.listeners).await;
        socket.close();
        self.tell(|| Happening::Disconnected);
        served
    }

    /// Drives `work` and takes commands meanwhile; `None` when all handles are gone.
    async fn while_down<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.inbox.recv() => self.take_while_down(command?),
            }
        }
    }

    fn take_while_down(&mut self, command: Command) {
        match command {
            Command::Call { encode, reply } => match &self.failed {
                Some(error) => reply(Err(error.clone())),
                None if self.waiting.len() < WAITING_CALLS_MAX => self.waiting.push_back((encode, reply)),
                None => reply(Err(Error::ConnectionLost)),
            },
            Command::Listen(listener) => {
                if let Some(error) = &self.failed {
                    let (shard, generation) = (self.shard, self.generation);
                    let _ = listener.send(LinkEvent { shard, generation, what: Happening::Failed(error.clone()) });
                }
                self.listeners.push(listener);
            }
            // Made for a connection that is gone: their makers are told so and will come back.
            Command::Produce { .. }
            | Command::Subscribe { .. }
            | Command::Credit { .. }
            | Command::Unsubscribe { .. }
            | Command::Member { .. } => {}
        }
    }

    fn fail(&mut self, error: Error) {
        self.status.send_replace(Status::Failed(error.clone()));
        for (_, reply) in self.waiting.drain(..) {
            reply(Err(error.clone()));
        }
        self.tell(|| Happening::Failed(error.clone()));
        self.failed = Some(error);
    }

    fn tell(&mut self, what: impl Fn() -> Happening) {
        let (shard, generation) = (self.shard, self.generation);
        self.listeners.retain(|listener| listener.send(LinkEvent { shard, generation, what: what() }).is_ok());
    }
}
