//! Peregrine's load generator: what a user would have waited, to p99.996, beside what the machine itself costs.
//!
//! It is an open loop: each message has an instant at which it is due, fixed before the run, and every latency counts
//! from it. Every message is accounted for: its body says which it is and when it was due, its reader checks every
//! byte. A run that the generator itself slowed down says INVALID. The modules, from what needs nobody to what needs all:
//!
//! - [`clock`], [`schedule`], [`stamp`], [`content`], [`workload`]: which messages there are;
//! - [`latency`], [`audience`], [`tally`]: what came of them;
//! - [`transport`], [`lanes`], [`generator`]: one thread that sends and sees them, over anything;
//! - [`connection`], [`wire`]: the connections to a broker; [`floor`]: the machine without one;
//! - [`run`], [`find_rate`], [`report`], [`markdown`], [`cli`]: a run from its flags to its table.

pub mod audience;
mod bits;
pub mod cli;
pub mod clock;
pub mod connection;
pub mod content;
pub mod cores;
pub mod find_rate;
pub mod floor;
pub mod generator;
pub mod lanes;
pub mod latency;
pub mod markdown;
pub mod report;
pub mod run;
pub mod schedule;
pub mod stamp;
pub mod tally;
pub mod timer;
pub mod transport;
pub mod wire;
pub mod workload;
