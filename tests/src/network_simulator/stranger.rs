//! A connection that does not keep to the protocol. It must harm nobody but itself.

use peregrine_broker::log::disk::simulated::Random;
use peregrine_broker::simulated::{Network, Wire, WireState};
use peregrine_protocol::frame;
use peregrine_protocol::ids::Correlation;
use peregrine_protocol::message::{Hello, Request};
use peregrine_protocol::preamble::PREAMBLE;

use super::statistics::Statistics;

pub struct Stranger {
    wire: Option<Wire>,
    says: Vec<u8>,
    finishes: bool,
    until: u64,
}

impl Stranger {
    pub fn new() -> Self {
        Self { wire: None, says: Vec::new(), finishes: false, until: 0 }
    }

    pub fn next_wake(&self) -> u64 {
        self.until
    }

    pub fn act(&mut self, network: &Network, now: u64, random: &mut Random, statistics: &mut Statistics) {
        if now >= self.until {
            self.until = now + random.below(20_000_000);
            self.finishes = random.coin();
            self.says = gibberish(random);
            // What it had before is dropped without a word.
            self.wire = Some(network.connect());
            statistics.strangers += 1;
            return;
        }
        let Some(wire) = &self.wire else { return };
        match wire.state() {
            WireState::Connecting => {}
            WireState::Open => {
                let sent = wire.send(&self.says);
                self.says.drain(..sent);
                if self.says.is_empty() && self.finishes {
                    wire.finish();
                }
                if random.coin() {
                    wire.receive(&mut Vec::new());
                }
            }
            WireState::Ended => self.wire = None,
        }
    }
}

/// Noise; or a beginning that is right, and then noise, silence, or a frame that lies about itself.
fn gibberish(random: &mut Random) -> Vec<u8> {
    let mut says = Vec::new();
    if random.one_in(4) {
        says.resize(random.between(1, 300) as usize, 0);
        random.fill(&mut says);
        return says;
    }
    says.extend_from_slice(&PREAMBLE);
    let hello = Hello { client: "stranger", ..Hello::default() };
    Request::Hello(hello).encode(Correlation(1), &mut says);
    let begins = says.len();
    Request::Ping.encode(Correlation(2), &mut says);
    match random.below(4) {
        0 => says.truncate(random.between(1, says.len() as u64) as usize),
        1 => {
            let at = random.between(begins as u64, says.len() as u64 - 1) as usize;
            says[at] ^= 1 << random.below(8);
        }
        2 => {
            // A frame of which the rest never comes.
            says.truncate(begins + 4);
            says[begins..].copy_from_slice(&60_000_u32.to_le_bytes());
        }
        _ => {
            let mut noise = vec![0; random.between(1, 2_000) as usize];
            random.fill(&mut noise);
            says.extend_from_slice(&noise);
            says.extend_from_slice(frame::filling(noise.len()));
        }
    }
    says
}
