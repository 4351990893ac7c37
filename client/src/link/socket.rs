//! One connection of a link, from its hello to its loss: moves bytes between socket and session, and answers to those who asked.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use peregrine_protocol::ids::{Correlation, QueueId, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, Deliver, Request, Unsubscribe};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::member::{MemberPending, Members};
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
    Member(MemberPending),
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
    members: Members,
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
            members: Members::default(),
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
        let is_owed = self.is_owed();
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
            Command::Member { generation, request, to } if generation == current => {
                self.note_request();
                let sent = Members::send(&request, to, &mut self.session, &mut self.outgoing);
                if let Some((correlation, pending)) = sent {
                    self.pending.insert(correlation, Pending::Member(pending));
                }
            }
            // Made for an earlier connection.
            Command::Produce { .. }
            | Command::Subscribe { .. }
            | Command::Credit { .. }
            | Command::Unsubscribe { .. }
            | Command::Member { .. } => {}
        }
    }

    /// Whether the broker is to say something sooner or later.
    fn is_owed(&self) -> bool {
        !self.pending.is_empty() || !self.subscriptions.is_empty() || !self.members.is_empty()
    }

    /// The broker owes nothing while nothing is asked of it: its silence counts from the first request.
    fn note_request(&mut self) {
        if !self.is_owed() {
            self.last_heard = Instant::now();
        }
    }

    fn handle_events(&mut self) -> Result<(), Served> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut result = Ok(());
        loop {
            match self.session.receive(&incoming) {
                Ok(Received::Event { event, len }) => {
                    self.handle(&event);
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

    fn handle(&mut self, event: &Event<'_>) {
        match *event {
            Event::Ready(_) => {}
            Event::Produced { correlation, answer } => {
                if let Some(Pending::Produce { ticket, to }) = self.pending.remove(&correlation) {
                    self.tell(&to, Happening::Produced { ticket, answer: Ok(answer) });
                }
            }
            Event::Delivered(ref deliver) => self.delivered(deliver),
            Event::Answered { correlation, answer } => self.answered(correlation, answer),
            Event::Refused { correlation, error } => self.refused(correlation, Refusal::from(&error)),
            Event::Ended { subscription, error } => {
                if let Some((queue, to)) = self.subscriptions.remove(&subscription) {
                    self.tell(&to, Happening::Ended { queue, subscription, refusal: Refusal::from(&error) });
                } else if let Some((to, event)) = self.members.ended(subscription, &error) {
                    self.tell(&to, Happening::Member(event));
                }
            }
            Event::Revoked(subscription) => {
                if let Some((to, event)) = self.members.revoked(subscription) {
                    self.tell(to, Happening::Member(event));
                }
            }
            Event::Assigned(ref assignment) => {
                if let Some((to, event)) = self.members.assigned(assignment) {
                    self.tell(to, Happening::Member(event));
                }
            }
            Event::Dismissed { member, error } => {
                if let Some((to, event)) = self.members.dismissed(member, &error) {
                    self.tell(&to, Happening::Member(event));
                }
            }
        }
    }

    fn delivered(&self, deliver: &Deliver<'_>) {
        if let Some((queue, to)) = self.subscriptions.get(&deliver.subscription) {
            let (payload, shard) = (Bytes::copy_from_slice(deliver.payload), self.shard);
            let batch = ReceivedBatch { topic: None, queue: *queue, shard, head: deliver.batch, payload, end: None };
            self.tell(to, Happening::Delivered { subscription: deliver.subscription, batch });
        } else if let Some((to, event)) = self.members.delivered(deliver, self.shard) {
            self.tell(to, Happening::Member(event));
        }
    }

    fn answered(&mut self, correlation: Correlation, answer: Answer<'_>) {
        match (self.pending.remove(&correlation), answer) {
            (Some(Pending::Subscribe { queue, to }), Answer::Subscribe(answer)) => {
                // Registered here, so that a batch in the same read finds it.
                self.subscriptions.insert(answer.subscription, (queue, to.clone()));
                self.tell(&to, Happening::Subscribed { queue, answer: Ok(answer) });
            }
            (Some(Pending::Member(pending)), answer) => {
                if let Some((to, event)) = self.members.answered(pending, &answer) {
                    self.tell(&to, Happening::Member(event));
                }
            }
            (Some(Pending::Call(reply)), answer) => reply(Ok(answer)),
            _ => {}
        }
    }

    fn refused(&mut self, correlation: Correlation, refusal: Refusal) {
        match self.pending.remove(&correlation) {
            Some(Pending::Call(reply)) => reply(Err(refusal.into())),
            Some(Pending::Produce { ticket, to }) => {
                self.tell(&to, Happening::Produced { ticket, answer: Err(refusal) });
            }
            Some(Pending::Subscribe { queue, to }) => {
                self.tell(&to, Happening::Subscribed { queue, answer: Err(refusal) });
            }
            Some(Pending::Member(pending)) => {
                let (to, event) = self.members.refused(pending, refusal);
                self.tell(&to, Happening::Member(event));
            }
            Some(Pending::Nobody) | None => {}
        }
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

fn lost(error: &std::io::Error) -> Served {
    Served::Lost(error.to_string())
}
