//! What the whole-system tests stand on: real broker processes, the command line, and a real data set.
//!
//! `broker` starts, kills, stops and restarts `peregrine-broker` in directories of its own; `command_line` runs `peregrine` against
//! it; `dataset` gives lines of real data with keys; `fuzz` holds the fuzz bodies. A test reads as what it provokes:
//!
//! ```no_run
//! let mut broker = peregrine_tests::broker::Settings::default().shards(2).start();
//! broker.kill_nine();
//! let ready = broker.start_again();
//! assert_eq!(ready.messages_from_ring, 0);
//! ```
//!
//! The programs are taken from the target directory that the test itself was built into: `cargo build --workspace --bins` first.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

pub mod broker;
pub mod command_line;
pub mod connection;
pub mod dataset;
pub mod fuzz;
pub mod harm;
pub mod mount;
pub mod network_simulator;
pub mod programs;
pub mod random;
pub mod simulator;
pub mod wire;
