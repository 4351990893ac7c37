//! A client's connection: the real session over a simulated wire, made again when it is lost. It keeps the promise that every request
//! is answered once, in time, and with the right number, and that the broker ends no connection of its own accord.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::simulated::{Wire, WireState};
use peregrine_client::error::{Error, Refusal};
use peregrine_client::idempotence::back_off::BackOff;
use peregrine_client::session::{Event, Received, Session, SessionOptions};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Received as ReceivedFrame};
use peregrine_protocol::ids::{Correlation, Nanos, ShardId, SubscriptionId};
use peregrine_protocol::limits::FRAME_MAX_CEILING;
use peregrine_protocol::message::{Answer, BatchHead, Credit, ProduceAnswer, ProduceHead, Request};

use super::world::World;
use crate::simulator::{Violation, promise};

const FIRST_DELAY: Nanos = Nanos::from_millis(1);
const LONGEST_DELAY: Nanos = Nanos::from_millis(100);

/// What the broker said, with what it had been asked.
pub enum Said<T> {
    Ready,
    /// What was asked and not answered never will be.
    Lost,
    Stored {
        asked: T,
        answer: ProduceAnswer,
    },
    Answered {
        asked: T,
        answer: Reply,
    },
    Refused {
        asked: T,
        refusal: Refusal,
    },
    Delivered {
        subscription: SubscriptionId,
        head: BatchHead,
        payload: Vec<u8>,
    },
    Ended {
        subscription: SubscriptionId,
        refusal: Refusal,
    },
}

/// An answer's frame.
pub struct Reply(Vec<u8>);

impl Reply {
    /// What it says; it was decoded once before.
    pub fn answer(&self) -> Option<Answer<'_>> {
        match frame::decode(&self.0, FRAME_MAX_CEILING) {
            Ok(ReceivedFrame::Frame(frame)) => Answer::decode(&frame).ok(),
            _ => None,
        }
    }
}

/// A request that is not answered.
struct Waiting<T> {
    asked: T,
    since: u64,
}

struct Connection<T> {
    wire: Wire,
    session: Session,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    waiting: BTreeMap<Correlation, Waiting<T>>,
    credits: BTreeSet<Correlation>,
    since: u64,
    is_ready: bool,
    /// The broker's life in which it was found open.
    open_in: Option<u64>,
}

/// See the module.
pub struct Link<T> {
    name: String,
    shard: Option<ShardId>,
    back_off: BackOff,
    connection: Option<Box<Connection<T>>>,
    again_at: u64,
    deaf_until: u64,
    /// The power cuts that the broker had seen when the connection was ready.
    power_cuts: u64,
    served_by: ShardId,
    /// When an answer is overdue.
    impatient_at: u64,
}

impl<T> Link<T> {
    pub fn new(name: String, shard: Option<ShardId>, seed: u64) -> Self {
        let back_off = BackOff::new(FIRST_DELAY, LONGEST_DELAY, seed);
        Self {
            name,
            shard,
            back_off,
            connection: None,
            again_at: 0,
            deaf_until: 0,
            power_cuts: 0,
            served_by: ShardId(0),
            impatient_at: u64::MAX,
        }
    }

    /// Whether requests may be sent.
    pub fn is_ready(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_ready)
    }

    /// What it says belongs to a broker that had seen so many power cuts.
    pub fn power_cuts(&self) -> u64 {
        self.power_cuts
    }

    /// The shard that serves it.
    pub fn served_by(&self) -> ShardId {
        self.served_by
    }

    /// Requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.waiting.len())
    }

    /// Takes nothing from the wire for a while.
    pub fn turn_deaf(&mut self, until: u64) {
        self.deaf_until = until;
    }

    /// Resets the connection; another one is made.
    pub fn reset(&mut self, world: &World) {
        self.connection = None;
        self.again_at = world.now() + self.back_off.next_delay().0;
    }

    /// When it wants [`Self::turn`] beside what arrives.
    pub fn next_wake(&self, now: u64) -> u64 {
        match self.connection {
            None => self.again_at,
            Some(_) if self.deaf_until > now => self.deaf_until,
            Some(_) => self.impatient_at,
        }
    }

    pub fn request(&mut self, now: u64, request: &Request<'_>, asked: T) {
        if let Some(connection) = &mut self.connection {
            let correlation = connection.session.request(request, &mut connection.outgoing);
            connection.waiting.insert(correlation, Waiting { asked, since: now });
            connection.flush();
        }
    }

    pub fn produce(&mut self, now: u64, head: ProduceHead, payload: &[u8], asked: T) {
        if let Some(connection) = &mut self.connection {
            let correlation = connection.session.produce(head, payload, &mut connection.outgoing);
            connection.waiting.insert(correlation, Waiting { asked, since: now });
            connection.flush();
        }
    }

    pub fn credit(&mut self, credit: &Credit) {
        if let Some(connection) = &mut self.connection {
            let correlation = connection.session.credit(credit, &mut connection.outgoing);
            connection.credits.insert(correlation);
            connection.flush();
        }
    }

    /// Moves bytes, and takes what the broker said.
    pub fn turn(&mut self, world: &mut World) -> Result<Vec<Said<T>>, Violation> {
        let now = world.now();
        let Some(connection) = &mut self.connection else {
            if now >= self.again_at {
                self.connect(world);
            }
            return Ok(Vec::new());
        };
        connection.flush();
        let state = connection.wire.state();
        if state == WireState::Open && connection.open_in.is_none() {
            connection.open_in = Some(world.life);
        }
        if self.deaf_until > now && state != WireState::Ended {
            return Ok(Vec::new());
        }
        let mut said = Vec::new();
        let mut farewell = None;
        if connection.wire.receive(&mut connection.incoming) > 0 {
            farewell = connection.hear(&self.name, &mut said)?;
        }
        if said.iter().any(|said| matches!(said, Said::Ready)) {
            self.back_off.reset();
            self.power_cuts = world.ledger.power_cuts();
            if let Some(broker) = connection.session.broker() {
                self.served_by = broker.shard;
                world.count_connection(broker.shard);
            }
        }
        if state == WireState::Ended {
            self.ended(world, farewell.as_ref())?;
            said.push(Said::Lost);
            return Ok(said);
        }
        self.impatient_at = u64::MAX;
        let (name, connection) = (&self.name, &self.connection);
        if let (Some(connection), Some(serving_since)) = (connection, world.serving_since) {
            let not_before = serving_since.max(self.deaf_until);
            self.impatient_at = connection.check_patience(name, world.patience, now, not_before)?;
        }
        Ok(said)
    }

    fn connect(&mut self, world: &mut World) {
        let mut outgoing = Vec::new();
        let options = SessionOptions { client: &self.name, shard: self.shard };
        let session = Session::open(options, &mut outgoing);
        world.statistics.connections += 1;
        self.connection = Some(Box::new(Connection {
            wire: world.network.connect(),
            session,
            outgoing,
            incoming: Vec::new(),
            waiting: BTreeMap::new(),
            credits: BTreeSet::new(),
            since: world.now(),
            is_ready: false,
            open_in: None,
        }));
    }

    /// The broker ends no connection that keeps to the protocol, unless it ends itself.
    fn ended(&mut self, world: &mut World, farewell: Option<&Error>) -> Result<(), Violation> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        self.again_at = world.now() + self.back_off.next_delay().0;
        let same_life = connection.open_in == Some(world.life) && world.serving_since.is_some();
        promise!(
            !same_life || connection.wire.was_cut(),
            "the broker ended the connection of {} while it served: {}",
            self.name,
            farewell.map_or("without a word".to_owned(), Error::to_string)
        );
        Ok(())
    }
}

impl<T> Connection<T> {
    /// Sends what the wire takes now.
    fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            let sent = self.wire.send(&self.outgoing);
            self.outgoing.drain(..sent);
        }
    }

    /// Takes all whole frames; the last error is what the broker ended the connection with.
    fn hear(&mut self, name: &str, said: &mut Vec<Said<T>>) -> Result<Option<Error>, Violation> {
        let mut taken = 0;
        let mut farewell = None;
        loop {
            let rest = &self.incoming[taken..];
            let (event, len) = match self.session.receive(rest) {
                Ok(Received::Event { event, len }) => (event, len),
                Ok(Received::Missing(_)) => break,
                Err(error @ Error::Refused(_)) => {
                    farewell = Some(error);
                    taken = self.incoming.len();
                    break;
                }
                Err(error) => return Err(Violation(format!("{name} was sent what is no answer: {error}"))),
            };
            let waiting = &mut self.waiting;
            let mut take = |correlation: Correlation| match waiting.remove(&correlation) {
                Some(waiting) => Ok(waiting.asked),
                None => Err(Violation(format!("{name} was answered what it did not ask, or twice: {correlation:?}"))),
            };
            match event {
                Event::Ready(_) => {
                    self.is_ready = true;
                    said.push(Said::Ready);
                }
                Event::Produced { correlation, answer } => {
                    said.push(Said::Stored { asked: take(correlation)?, answer });
                }
                Event::Delivered(deliver) => said.push(Said::Delivered {
                    subscription: deliver.subscription,
                    head: deliver.batch,
                    payload: deliver.payload.to_vec(),
                }),
                Event::Answered { correlation, .. } => {
                    said.push(Said::Answered { asked: take(correlation)?, answer: Reply(rest[..len].to_vec()) });
                }
                Event::Refused { correlation, error } if self.credits.remove(&correlation) => promise!(
                    error.known_code() == Some(ErrorCode::UnknownSubscription),
                    "credit of {name} was refused: {}",
                    error.sentence
                ),
                Event::Refused { correlation, error } => {
                    said.push(Said::Refused { asked: take(correlation)?, refusal: Refusal::from(&error) });
                }
                Event::Ended { subscription, error } => {
                    said.push(Said::Ended { subscription, refusal: Refusal::from(&error) });
                }
                other => return Err(Violation(format!("{name} was told {other:?}"))),
            }
            taken += len;
        }
        self.incoming.drain(..taken);
        Ok(farewell)
    }

    /// Until when the oldest answer may come.
    fn check_patience(&self, name: &str, patience: u64, now: u64, not_before: u64) -> Result<u64, Violation> {
        let oldest = self.waiting.first_key_value().map(|(correlation, waiting)| (*correlation, waiting.since));
        let oldest = oldest.or((!self.is_ready && self.open_in.is_some()).then_some((Correlation(1), self.since)));
        let Some((correlation, since)) = oldest else { return Ok(u64::MAX) };
        let until = since.max(not_before) + patience;
        promise!(
            now < until,
            "{name} has waited {} ms for the answer to request {} on an open connection",
            (now - since) / 1_000_000,
            correlation.0
        );
        Ok(until)
    }
}
