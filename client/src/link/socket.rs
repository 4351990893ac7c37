//! One connection of a link, from its hello to its loss: moves bytes between socket and session, and answers to those who asked.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use peregrine_protocol::ids::{Correlation, QueueId, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, Request, Unsubscribe};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Command, Encode, Generation, Happening, Identity, LinkEvent, Listener, Reply};
use crate::error::{Error, Refusal};
use crate::idempotence::Ticket;
use crate::message::ReceivedBatch;
use crate::session::{BrokerInfo, Event, Received, Session, SessionOptions};

/// The broker wants the hello within 10 s; it gets as long to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a broker that owes something is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(8);
/// Silence after which the connection counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(20);
/// No commands are taken while so many bytes wait for the socket: what waits longer becomes larger batches.
const OUTGOING_HIGH: usize = 256 << 10;
/// A receive buffer at rest; it grows with a frame that is larger and has begun to arrive.
const INCOMING: usize = 64 << 10;

/// How a connection ended.
pub(super) enum Served {
    /// To be tried again.
    Lost(String),
    /// Not to be tried again.
    Failed(Error),
    /// Nobody needs it any more.
    Abandoned,
}

/// Who waits for an answer.
enum Pending {
    Call(Reply),
    Produce {
        ticket: Ticket,
        to: Listener,
    },
    Subscribe {
        queue: QueueId,
        to: Listener,
    },
    /// Credit and pings: an answer is good news or none.
    Nobody,
}

pub(super) struct Socket {
    stream: TcpStream,
    session: Session,
    shard: ShardId,
    generation: Generation,
    incoming: BytesMut,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are written.
    written: usize,
    pending: HashMap<Correlation, Pending>,
    subscriptions: HashMap<SubscriptionId, (QueueId, Listener)>,
    last_heard: Instant,
    pinged: bool,
}

impl Socket {
    pub fn open(stream: TcpStream, identity: &Identity, shard: ShardId, generation: Generation) -> Self {
        let _ = stream.set_nodelay(true); // slower without, never wrong
        let mut outgoing = Vec::new();
        let session = Session::open(SessionOptions { client: &identity.client, shard: Some(shard) }, &mut outgoing);
        Self {
            stream,
            session,
            shard,
            generation,
            incoming: BytesMut::new(),
            outgoing,
            written: 0,
            pending: HashMap::new(),
            subscriptions: HashMap::new(),
            last_heard: Instant::now(),
            pinged: false,
        }
    }

    /// Sends the hello and waits for its answer.
    pub async fn hello(&mut self) -> Result<BrokerInfo, Served> {
        match timeout(HELLO_TIMEOUT, self.exchange_hello()).await {
            Ok(result) => result,
            Err(_) => Err(Served::Lost("it does not answer the hello".to_owned())),
        }
    }

    async fn exchange_hello(&mut self) -> Result<BrokerInfo, Served> {
        while self.written < self.outgoing.len() {
            self.stream.writable().await.map_err(|error| lost(&error))?;
            self.write()?;
        }
        loop {
            match self.session.receive(&self.incoming) {
                Ok(Received::Event { event: Event::Ready(broker), len }) => {
                    self.incoming.advance(len);
                    return Ok(broker);
                }
                Ok(Received::Event { .. }) => return Err(Served::Lost("it does not answer the hello".to_owned())),
                Ok(Received::Missing(_)) => {}
                Err(Error::Refused(refusal)) if refusal.retriable => return Err(Served::Lost(refusal.to_string())),
                Err(error @ Error::Refused(_)) => return Err(Served::Failed(error)),
                Err(error) => return Err(Served::Lost(error.to_string())),
            }
            self.stream.readable().await.map_err(|error| lost(&error))?;
            self.read()?;
        }
    }

    /// Serves until the connection is lost or nobody needs it.
    pub async fn serve(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
        listeners: &mut Vec<Listener>,
    ) -> Served {
        loop {
            match self.turn(inbox, listeners).await {
                Ok(()) => {}
                Err(served) => return served,
            }
        }
    }

    async fn turn(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
        listeners: &mut Vec<Listener>,
    ) -> Result<(), Served> {
        self.handle_events()?;
        self.write()?;
        let waiting = self.outgoing.len() - self.written;
        let is_owed = !self.pending.is_empty() || !self.subscriptions.is_empty();
        tokio::select! {
            readable = self.stream.readable() => {
                readable.map_err(|error| lost(&error))?;
                self.read()?;
            }
            writable = self.stream.writable(), if waiting > 0 => {
                writable.map_err(|error| lost(&error))?;
            }
            command = inbox.recv(), if waiting < OUTGOING_HIGH => {
                let mut next = command.ok_or(Served::Abandoned)?;
                loop {
                    self.take(next, listeners);
                    if self.outgoing.len() - self.written >= OUTGOING_HIGH {
                        break;
                    }
                    match inbox.try_recv() {
                        Ok(command) => next = command,
                        Err(_) => break,
                    }
                }
            }
            () = sleep_until(self.last_heard + if self.pinged { LOST_AFTER } else { PING_AFTER }), if is_owed => {
                if self.pinged {
                    return Err(Served::Lost("it has stopped answering".to_owned()));
                }
                self.pinged = true;
                let correlation = self.session.request(&Request::Ping, &mut self.outgoing);
                self.pending.insert(correlation, Pending::Nobody);
            }
        }
        Ok(())
    }

    /// Sends a call that waited for the connection.
    pub fn call(&mut self, encode: Encode, reply: Reply) {
        self.note_request();
        let correlation = encode(&mut self.session, &mut self.outgoing);
        self.pending.insert(correlation, Pending::Call(reply));
    }

    /// Fails what was not answered.
    pub fn close(&mut self) {
        for (_, pending) in self.pending.drain() {
            if let Pending::Call(reply) = pending {
                reply(Err(Error::ConnectionLost));
            }
        }
    }

    fn take(&mut self, command: Command, listeners: &mut Vec<Listener>) {
        let current = self.generation;
        match command {
            Command::Call { encode, reply } => self.call(encode, reply),
            Command::Listen(listener) => {
                self.tell(&listener, Happening::Connected);
                listeners.push(listener);
            }
            Command::Produce { generation, head, payload, ticket, to } if generation == current => {
                self.note_request();
                let correlation = self.session.produce(head, &payload, &mut self.outgoing);
                self.pending.insert(correlation, Pending::Produce { ticket, to });
            }
            Command::Subscribe { generation, subscribe, to } if generation == current => {
                self.note_request();
                let correlation = self.session.request(&Request::Subscribe(subscribe), &mut self.outgoing);
                self.pending.insert(correlation, Pending::Subscribe { queue: subscribe.queue, to });
            }
            Command::Credit { generation, credit } if generation == current => {
                self.session.credit(&credit, &mut self.outgoing);
            }
            Command::Unsubscribe { generation, subscription } if generation == current => {
                self.subscriptions.remove(&subscription);
                let request = Request::Unsubscribe(Unsubscribe { subscription });
                let correlation = self.session.request(&request, &mut self.outgoing);
                self.pending.insert(correlation, Pending::Nobody);
            }
            // Made for an earlier connection.
            Command::Produce { .. }
            | Command::Subscribe { .. }
            | Command::Credit { .. }
            | Command::Unsubscribe { .. } => {}
        }
    }

    /// The broker owes nothing while nothing is asked of it: its silence counts from the first request.
    fn note_request(&mut self) {
        if self.pending.is_empty() && self.subscriptions.is_empty() {
            self.last_heard = Instant::now();
        }
    }

    fn handle_events(&mut self) -> Result<(), Served> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut result = Ok(());
        loop {
            match self.session.receive(&incoming) {
                Ok(Received::Event { event, len }) => {
                    handle(&event, self.shard, self.generation, &mut self.pending, &mut self.subscriptions);
                    incoming.advance(len);
                }
                Ok(Received::Missing(len)) => {
                    incoming.reserve(len.max(if incoming.is_empty() { 0 } else { INCOMING }));
                    break;
                }
                Err(error) => {
                    result = Err(Served::Lost(error.to_string()));
                    break;
                }
            }
        }
        self.incoming = incoming;
        result
    }

    fn read(&mut self) -> Result<(), Served> {
        self.incoming.reserve(INCOMING);
        match self.stream.try_read_buf(&mut self.incoming) {
            Ok(0) => Err(Served::Lost("it closed the connection".to_owned())),
            Ok(_) => {
                self.last_heard = Instant::now();
                self.pinged = false;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(lost(&error)),
        }
    }

    fn write(&mut self) -> Result<(), Served> {
        while let Some(bytes) = self.outgoing.get(self.written..).filter(|bytes| !bytes.is_empty()) {
            match self.stream.try_write(bytes) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(lost(&error)),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Ok(())
    }

    fn tell(&self, listener: &Listener, what: Happening) {
        // A listener that is gone has no interest.
        let _ = listener.send(LinkEvent { shard: self.shard, generation: self.generation, what });
    }
}

fn handle(
    event: &Event<'_>,
    shard: ShardId,
    generation: Generation,
    pending: &mut HashMap<Correlation, Pending>,
    subscriptions: &mut HashMap<SubscriptionId, (QueueId, Listener)>,
) {
    let tell = |to: &Listener, what| {
        let _ = to.send(LinkEvent { shard, generation, what }); // a listener that is gone has no interest
    };
    match *event {
        Event::Ready(_) => {}
        Event::Produced { correlation, answer } => {
            if let Some(Pending::Produce { ticket, to }) = pending.remove(&correlation) {
                tell(&to, Happening::Produced { ticket, answer: Ok(answer) });
            }
        }
        Event::Delivered(ref deliver) => {
            if let Some((queue, to)) = subscriptions.get(&deliver.subscription) {
                let payload = Bytes::copy_from_slice(deliver.payload);
                let batch = ReceivedBatch { queue: *queue, shard, head: deliver.batch, payload, end: None };
                tell(to, Happening::Delivered { subscription: deliver.subscription, batch });
            }
        }
        Event::Answered { correlation, answer } => match (pending.remove(&correlation), answer) {
            (Some(Pending::Subscribe { queue, to }), Answer::Subscribe(answer)) => {
                // Registered here, so that a batch in the same read finds it.
                subscriptions.insert(answer.subscription, (queue, to.clone()));
                tell(&to, Happening::Subscribed { queue, answer: Ok(answer) });
            }
            (Some(Pending::Call(reply)), answer) => reply(Ok(answer)),
            _ => {}
        },
        Event::Refused { correlation, error } => {
            let refusal = Refusal::from(&error);
            match pending.remove(&correlation) {
                Some(Pending::Call(reply)) => reply(Err(refusal.into())),
                Some(Pending::Produce { ticket, to }) => {
                    tell(&to, Happening::Produced { ticket, answer: Err(refusal) });
                }
                Some(Pending::Subscribe { queue, to }) => {
                    tell(&to, Happening::Subscribed { queue, answer: Err(refusal) });
                }
                Some(Pending::Nobody) | None => {}
            }
        }
        Event::Ended { subscription, error } => {
            if let Some((queue, to)) = subscriptions.remove(&subscription) {
                tell(&to, Happening::Ended { queue, subscription, refusal: Refusal::from(&error) });
            }
        }
    }
}

fn lost(error: &std::io::Error) -> Served {
    Served::Lost(error.to_string())
}
