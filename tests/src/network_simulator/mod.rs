//! The simulator of the whole broker: its processes on a simulated machine, and clients that talk to them over a simulated network.
//!
//! ```text
//!   seed ──► Configuration, Machine (disk, rings, clock, crashes), Network (delays, pieces, cuts)
//!     lives:  Process ── executors, connections, router, mesh, flushers, retention, scrub: the code of production
//!                │ bytes
//!             Link ── the client's own session: Producer, Reader, Inquirer, Administrator; and a Stranger, who has none
//!                │ what was acknowledged, seen, found
//!             Ledger ── the oracle
//!     finale: a start without disturbance; everything is sent to its end, read, and audited, twice
//! ```
//!
//! The simulator beside this one ([`crate::simulator`]) knows more of log and groups, and is faster; this one goes the way of the
//! bytes. The first promise that does not hold ends the seed with a [`Violation`].

mod administrator;
mod auditor;
mod catalogue;
mod clients;
mod configuration;
mod finale;
mod inquirer;
mod ledger;
mod link;
mod message;
mod producer;
mod reader;
mod simulation;
mod statistics;
mod stranger;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use crate::simulator::Violation;
use crate::simulator::sentence_of;
pub use configuration::Fault;
pub use statistics::Statistics;

/// What came of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub violation: Option<Violation>,
    /// A digest of all events, where the run ended without a panic.
    pub trace: u64,
    pub statistics: Statistics,
}

/// Runs one seed to its end or to its first violation. A panic of the broker's code is one.
pub fn run(seed: u64, planted: Option<Fault>, verbose: bool) -> Outcome {
    let mut simulation = simulation::Simulation::new(seed, planted, verbose);
    let violation = match catch_unwind(AssertUnwindSafe(|| simulation.run())) {
        Ok(result) => result.err(),
        Err(panic) => Some(Violation(format!("panic: {}", sentence_of(&*panic)))),
    };
    Outcome { violation, trace: simulation.trace(), statistics: simulation.statistics() }
}
