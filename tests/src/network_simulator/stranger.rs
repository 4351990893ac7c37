//! Who keeps to no protocol: sends garbage, half a frame and then nothing, or more than it announces, and stays. Nobody else may feel
//! it; the ledger and every other client's patience say so.

use peregrine_broker::log::disk::simulated::Random;
use peregrine_broker::simulated::{Wire, WireState};
use peregrine_client::session::{Session, SessionOptions};
use peregrine_protocol::frame::{FrameHead, Kind, Sender};
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::preamble::PREAMBLE;

use super::world::World;
use crate::simulator::{Violation, promise};

/// Within which a broker gets rid of one that says nothing whole: its hello is due, or its frame is to make progress.
const RID_WITHIN: u64 = 45_000_000_000;

pub struct Stranger {
    wire: Wire,
    outgoing: Vec<u8>,
    /// Ends its sending direction behind what it sends.
    finishes: bool,
    leaves_at: u64,
    life: u64,
    since: u64,
    /// What was open in the life in which it came.
    was_open: bool,
    sink: Vec<u8>,
}

impl Stranger {
    pub fn new(world: &mut World) -> Self {
        let leaves_at = if world.random.coin() { u64::MAX } else { world.now() + world.random.below(50_000_000) };
        world.statistics.strangers += 1;
        Self {
            wire: world.network.connect(),
            outgoing: gibberish(&mut world.random),
            finishes: world.random.one_in(3),
            leaves_at,
            life: world.life,
            since: world.now(),
            was_open: false,
            sink: Vec::new(),
        }
    }

    pub fn next_wake(&self) -> u64 {
        self.leaves_at
    }

    /// False: it is gone.
    pub fn act(&mut self, world: &mut World) -> Result<bool, Violation> {
        self.was_open |= self.wire.state() == WireState::Open && self.life == world.life;
        self.wire.receive(&mut self.sink);
        self.sink.clear();
        if self.wire.state() == WireState::Ended || world.now() >= self.leaves_at {
            world.statistics.strangers_refused += u64::from(self.was_open && self.leaves_at > world.now());
            return Ok(false);
        }
        let sent = self.wire.send(&self.outgoing);
        self.outgoing.drain(..sent);
        if self.outgoing.is_empty() && self.finishes {
            self.wire.finish();
            self.finishes = false;
        }
        if let (Some(serving_since), true) = (world.serving_since, self.was_open) {
            promise!(
                world.now() < serving_since.max(self.since) + RID_WITHIN + world.patience,
                "a connection that says nothing whole is kept for {} ms",
                (world.now() - self.since) / 1_000_000
            );
        }
        Ok(true)
    }
}

/// What it sends; never a whole request behind its hello.
fn gibberish(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    let noise = |random: &mut Random| {
        let mut noise = vec![0; random.between(1, 3_000) as usize];
        random.fill(&mut noise);
        noise
    };
    let shard = *random.pick(&[None, Some(ShardId(0)), Some(ShardId(999))]);
    let options = SessionOptions { client: "stranger", shard };
    match random.below(6) {
        0 => bytes = noise(random),
        1 => {
            bytes.extend_from_slice(&PREAMBLE);
            bytes.extend(noise(random));
        }
        2 => {
            Session::open(options, &mut bytes);
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        3 => {
            Session::open(options, &mut bytes);
            bytes.extend(noise(random));
        }
        kind => {
            // A frame that announces more than comes.
            Session::open(options, &mut bytes);
            let body = if kind == 4 { random.between(100, 14_000) } else { 1 << 31 };
            let head = FrameHead::new(Kind::Produce, Sender::Client, Correlation(2), 48, body as usize);
            bytes.extend_from_slice(&head.encode());
            let length = random.below(body.min(8_000)) as usize;
            bytes.resize(bytes.len() + length, 7);
        }
    }
    bytes
}
