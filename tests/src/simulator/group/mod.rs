//! Consumer groups in the simulator: members that come and go, homes and owners that tell each other with delays, and the oracles
//! that know who may be handed what.
//!
//! ```text
//!   Member ──requests──► Wire ──► shard: the real engine ──► Wire ──pushes──► Member
//!                          ▲             │ assignments, news of the catalogue
//!                          └─────────────┘
//!   KnownGroups   which groups exist            Roll          who is a member, and why one is fenced
//!   GroupLedger   who was handed what, and where each group stands
//! ```

mod acting;
mod finishing;
mod group_ledger;
mod known_groups;
mod member;
mod membership;
mod places;
mod serving;
mod wire;

use std::collections::BTreeMap;
use std::rc::Rc;

use peregrine_broker::engine::{Engine, ReaderOwner};
use peregrine_broker::limits::GROUP_SLICE;
use peregrine_broker::log::disk::simulated::Random;
use peregrine_protocol::ids::Nanos;

use group_ledger::GroupLedger;
use known_groups::KnownGroups;
use member::Member;
use membership::Roll;
pub use places::PlaceWaiting;
use wire::{Assigned, ConnectionId, Wire};

use super::ledger::Ledger;
use super::violation::Violation;

/// Connections of members, as owners of subscriptions; those below are readers.
const FIRST_CONNECTION: u64 = 1 << 32;

/// How long a member may acknowledge what it was handed of a queue that moves on.
pub const GROUP_DRAIN: Nanos = Nanos::from_secs(5);

/// How a seed's groups are treated.
#[derive(Clone, Copy, Debug)]
pub struct GroupSettings {
    /// One action in so many is about groups; 0: none ever.
    pub one_in: u64,
    pub silence: Nanos,
    pub grace: Nanos,
    /// How often shards look for what is due, nanoseconds.
    pub tick: u64,
    /// Steps of a slice of work on an assignment.
    pub slice: u32,
    /// A shard follows what it was told in one turn of so many.
    pub follow_one_in: u64,
    /// How long a message is under way, at most.
    pub delay_max: u64,
    pub groups_max: usize,
    pub members_max: usize,
}

impl GroupSettings {
    pub fn random(random: &mut Random) -> Self {
        Self {
            one_in: *random.pick(&[0, 2, 3]),
            silence: Nanos::from_millis(*random.pick(&[400, 1_000, 3_000])),
            grace: Nanos::from_millis(*random.pick(&[0, 300, 2_000])),
            tick: *random.pick(&[1, 100_000_000]),
            slice: *random.pick(&[1, 20, GROUP_SLICE]),
            follow_one_in: *random.pick(&[1, 1, 50]),
            delay_max: *random.pick(&[50_000, 2_000_000, 200_000_000]),
            groups_max: random.between(1, 3) as usize,
            members_max: random.between(2, 7) as usize,
        }
    }
}

/// Everything about groups that outlives a process, and what is under way within one.
#[derive(Debug)]
pub struct Consumers {
    pub settings: GroupSettings,
    known: KnownGroups,
    ledger: GroupLedger,
    roll: Roll,
    members: Vec<Member>,
    wire: Wire,
    /// By client and shard.
    clients: Vec<Vec<Option<ConnectionId>>>,
    /// The client and the shard at the ends of each connection that its shard has not seen closed.
    connections: BTreeMap<ConnectionId, (usize, usize)>,
    last_connection: u64,
    /// Names of members and clients made so far.
    names: u64,
    /// Assignments of this life, of which a home may repeat one.
    assigned: Vec<Rc<Assigned>>,
}

impl Consumers {
    pub fn new(settings: GroupSettings) -> Self {
        let roll = Roll::new(settings.silence, settings.grace);
        Self {
            settings,
            known: KnownGroups::default(),
            ledger: GroupLedger::default(),
            roll,
            members: Vec::new(),
            wire: Wire::default(),
            clients: Vec::new(),
            connections: BTreeMap::new(),
            last_connection: FIRST_CONNECTION,
            names: 0,
            assigned: Vec::new(),
        }
    }

    /// Whether that owner of a subscription is a member's connection.
    pub fn is_member(owner: ReaderOwner) -> bool {
        owner.0 >= FIRST_CONNECTION
    }

    /// The process is gone, and with it all that was under way and all that is not in a log.
    pub fn process_ended(&mut self) {
        self.wire.clear();
        self.connections.clear();
        self.clients.iter_mut().for_each(|client| client.fill(None));
        self.assigned.clear();
        self.ledger.crashed();
        self.roll.crashed();
        self.members.retain(|member| !member.is_gone);
        self.members.iter_mut().for_each(Member::process_ended);
    }

    /// Nothing is asked of groups any more: their logs were damaged on purpose.
    pub fn forget(&mut self) {
        self.members.clear();
        self.ledger.forget();
    }

    /// The members of before are gone, so that others may begin.
    pub fn retire(&mut self) {
        self.members.clear();
    }

    /// When something is to be done next.
    pub fn next_due(&self) -> Option<u64> {
        let members = self.members.iter().filter(|member| !member.is_gone);
        let members = members.map(|member| member.next_beat.max(member.asleep_until));
        members.chain(self.wire.next_due()).min()
    }

    /// A shard's log came up.
    pub fn log_recovered(&mut self, shard: usize, ledger: &Ledger) {
        self.ledger.recovered(shard, ledger);
    }

    /// The catalogue came up.
    pub fn recovered(&mut self, home: &Engine) -> Result<(), Violation> {
        self.known.recovered(home)
    }

    pub fn check_places(&mut self, shard: usize, engine: &Engine, ledger: &Ledger) -> Result<(), Violation> {
        self.ledger.check_places(shard, engine, ledger)
    }

    fn heartbeat(&self) -> u64 {
        self.settings.silence.0 / 3
    }
}
