//! One connection's protocol, without I/O and without a clock: bytes in, events out; requests in, bytes out.
//!
//! ```text
//!            open ──► preamble, hello ──►  wire
//!   request/produce ──► frames ─────────►  wire
//!           events ◄── receive(buffer) ◄── wire
//! ```
//! The caller owns both buffers and decides when to read, when to write, and how long to wait. A [`Session`] numbers the requests,
//! checks what comes against the limits of the hello, and keeps nothing else: which request a [`Correlation`] belongs to is the
//! caller's to know. Producing, credit and deliveries allocate nothing once the caller's buffers have their size; the tokio front
//! and the load generator's pinned threads drive the same code.

mod broker;
mod event;

pub use self::broker::BrokerInfo;
pub use self::event::{Event, Received};

use peregrine_protocol::frame;
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::limits::FRAME_MAX_DEFAULT;
use peregrine_protocol::message::produce::PRODUCE_PREFIX_LEN;
use peregrine_protocol::message::{Answer, Credit, Hello, Produce, ProduceHead, Request};
use peregrine_protocol::preamble::PREAMBLE;

use crate::error::{Error, Refusal, Result};

/// The correlation of the hello; requests count up from the next one. 0 is the broker's, for what it pushes.
const HELLO: Correlation = Correlation(1);

/// How a connection introduces itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionOptions<'a> {
    /// Names the client instance: unique among those that run now.
    pub client: &'a str,
    /// The shard that the connection is for; `None`: whichever.
    pub shard: Option<ShardId>,
}

/// The protocol's state on one connection. See the module for how it is driven.
#[derive(Debug)]
pub struct Session {
    broker: Option<BrokerInfo>,
    next_correlation: Correlation,
}

impl Session {
    /// Begins a connection: appends the preamble and the hello to `out`. Nothing else may be sent before [`Event::Ready`].
    pub fn open(options: SessionOptions<'_>, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&PREAMBLE);
        let hello = Hello {
            client: options.client,
            software: concat!("peregrine-client ", env!("CARGO_PKG_VERSION")),
            shard: options.shard,
            ..Hello::default()
        };
        hello.encode(HELLO, out);
        Self { broker: None, next_correlation: Correlation(HELLO.0 + 1) }
    }

    /// What the broker said of itself; `None` before [`Event::Ready`].
    pub fn broker(&self) -> Option<&BrokerInfo> {
        self.broker.as_ref()
    }

    /// Appends any request and answers the number under which its answer comes.
    pub fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Correlation {
        let correlation = self.number();
        request.encode(correlation, out);
        correlation
    }

    /// Appends a whole produce frame: one batch of one queue.
    pub fn produce(&mut self, head: ProduceHead, payload: &[u8], out: &mut Vec<u8>) -> Correlation {
        let correlation = self.number();
        Produce { head, payload }.encode(correlation, out);
        correlation
    }

    /// For gather writes: what goes before the payload. Behind it go the zeros of [`frame::filling`] for its length.
    pub fn produce_prefix(&mut self, head: ProduceHead, payload_len: usize) -> (Correlation, [u8; PRODUCE_PREFIX_LEN]) {
        let correlation = self.number();
        (correlation, head.encode_prefix(correlation, payload_len))
    }

    /// Appends credit for a subscription. It has no answer unless it is wrong.
    pub fn credit(&mut self, credit: &Credit, out: &mut Vec<u8>) -> Correlation {
        let correlation = self.number();
        credit.encode(correlation, out);
        correlation
    }

    /// Takes the first event from the bytes received so far. The caller drops [`Received::Event`]'s `len` bytes when it is done with
    /// the event, and calls again. An error ends the connection.
    pub fn receive<'a>(&mut self, bytes: &'a [u8]) -> Result<Received<'a>> {
        let frame_max = self.broker.as_ref().map_or(FRAME_MAX_DEFAULT, |broker| broker.frame_max);
        let frame = match frame::decode(bytes, frame_max) {
            Ok(frame::Received::Frame(frame)) => frame,
            Ok(frame::Received::Missing(len)) => return Ok(Received::Missing(len)),
            Err(error) => return Err(Error::protocol(error.to_string())),
        };
        let answer = Answer::decode(&frame).map_err(|error| Error::protocol(error.to_string()))?;
        let event = self.event(frame.head.correlation, answer)?;
        Ok(Received::Event { event, len: frame.len() })
    }

    fn event<'a>(&mut self, correlation: Correlation, answer: Answer<'a>) -> Result<Event<'a>> {
        if self.broker.is_none() {
            return self.ready(correlation, &answer);
        }
        Ok(match answer {
            Answer::Deliver(deliver) => Event::Delivered(deliver),
            Answer::Produce(answer) => Event::Produced { correlation, answer },
            Answer::Revoke(revoke) => Event::Revoked(revoke.subscription),
            Answer::Assignment(assignment) => Event::Assigned(assignment),
            Answer::Error(error) => Event::of_error(correlation, error)?,
            Answer::Hello(_) => return Err(Error::protocol("a second answer to the hello")),
            answer => Event::Answered { correlation, answer },
        })
    }

    /// The first answer must be the hello's.
    fn ready<'a>(&mut self, correlation: Correlation, answer: &Answer<'a>) -> Result<Event<'a>> {
        match answer {
            Answer::Hello(hello) if correlation == HELLO => {
                if hello.challenge.is_some() {
                    return Err(Error::protocol(
                        "the broker asks for an authentication that this client does not have",
                    ));
                }
                let broker = BrokerInfo::from(hello);
                self.broker = Some(broker.clone());
                Ok(Event::Ready(broker))
            }
            Answer::Error(error) => Err(Refusal::from(error).into()),
            _ => Err(Error::protocol("an answer before the hello's")),
        }
    }

    fn number(&mut self) -> Correlation {
        let correlation = self.next_correlation;
        self.next_correlation = Correlation(correlation.0 + 1);
        correlation
    }
}

#[cfg(test)]
mod tests;
