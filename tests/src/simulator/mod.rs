//! The simulator: the real log and the real engine on a simulated machine, under random work and random crashes, judged by an
//! oracle that remembers what was promised.
//!
//! ```text
//!   seed ──► Configuration, Machine (disk, rings, clock, crashes)
//!     lives:  start ─► Process { Shard { Log, Engine } … } ─► crash, clean stop, or poison
//!                │             ▲ produce, read, create, delete
//!     Incident ──┤             │     between lives: tampered rings, bad identities, a log that is gone
//!                ▼             ├ Members of groups, by way of a Wire: see `group`
//!             Ledger per shard ┴ Producers, Readers (outlive the process)
//!     finale: a start without disturbance, everything read, restarted twice, compared
//! ```
//!
//! The first promise that does not hold ends the seed with a [`Violation`]. A seed's run depends on nothing but the seed, the
//! planted fault and the code; `scripts/simulate --seeds N..N --verbose` replays it with its events.

mod catalogue;
mod changes;
mod configuration;
mod damage;
mod fault;
mod finale;
mod group;
mod incident;
mod ledger;
mod look_ups;
mod mending;
mod process;
mod producer;
mod reader;
mod sealed_damage;
mod simulation;
mod starts;
mod statistics;
mod violation;
mod work;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use fault::Fault;
pub use statistics::Statistics;
pub(crate) use statistics::statistics;
pub use violation::Violation;
pub(crate) use violation::promise;

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

pub(crate) fn sentence_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind")
}
