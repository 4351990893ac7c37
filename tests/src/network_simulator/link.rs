//! A client's connection: the client's own session over a wire of the simulated network.

use peregrine_broker::simulated::{Network, Wire, WireState};
use peregrine_client::error::Error;
use peregrine_client::session::{Event, Received, Session, SessionOptions};
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::message::Request;

use crate::simulator::Violation;

/// What a client says on its connection.
pub struct Speaker {
    pub session: Session,
    pub out: Vec<u8>,
}

impl Speaker {
    pub fn ask(&mut self, request: &Request<'_>) -> Correlation {
        self.session.request(request, &mut self.out)
    }
}

/// A connection that lasts until it is lost.
pub struct Link {
    wire: Wire,
    pub speaker: Speaker,
    received: Vec<u8>,
    is_ready: bool,
    /// Losses of power before it was opened.
    pub power_cuts: u64,
}

impl Link {
    pub fn open(network: &Network, client: &str, shard: Option<ShardId>, power_cuts: u64) -> Self {
        let mut out = Vec::new();
        let session = Session::open(SessionOptions { client, shard }, &mut out);
        Self {
            wire: network.connect(),
            speaker: Speaker { session, out },
            received: Vec::new(),
            is_ready: false,
            power_cuts,
        }
    }

    /// Whether requests may be sent.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Sends and receives what can be. False where the connection is lost.
    pub fn pump(
        &mut self,
        mut hear: impl FnMut(&mut Speaker, Event<'_>) -> Result<(), Violation>,
    ) -> Result<bool, Violation> {
        let is_over = self.wire.state() == WireState::Ended;
        self.wire.receive(&mut self.received);
        let received = std::mem::take(&mut self.received);
        let mut at = 0;
        loop {
            match self.speaker.session.receive(&received[at..]) {
                Ok(Received::Missing(_)) => break,
                Ok(Received::Event { event, len }) => {
                    self.is_ready |= matches!(event, Event::Ready(_));
                    hear(&mut self.speaker, event)?;
                    at += len;
                }
                // The broker ends the connection, and says why.
                Err(Error::Refused(_)) => return Ok(false),
                Err(error) => return Err(Violation(format!("a client takes offence: {error}"))),
            }
        }
        self.received = received;
        self.received.drain(..at);
        self.flush();
        Ok(!is_over)
    }

    /// Sends what the wire takes.
    pub fn flush(&mut self) {
        let sent = self.wire.send(&self.speaker.out);
        self.speaker.out.drain(..sent);
    }
}
