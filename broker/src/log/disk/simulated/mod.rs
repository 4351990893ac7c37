//! A deterministic machine to run the log on: a disk, rings on a tmpfs, a clock, and crashes, all from one seed.
//!
//! ```text
//!   process (log, engine, simulator's shard)      survives:   kill        power
//!     │ futures of Disk/DiskFile                              no          no
//!     ▼
//!   Machine ── operations in flight ───────────────────────── land late   torn, then gone
//!     ├── Directory: names, files ──┬── device cache ──────── yes         any subset of sectors
//!     │                             └── durable ───────────── yes         yes
//!     └── rings (tmpfs) ───────────────────────────────────── yes         no
//! ```
//!
//! Every operation stays pending until [`Machine::advance`] completes it at a random later instant of simulated time, so
//! operations finish in any order. A crash strikes at an armed step: a disk operation, one store into a ring, or a turn of
//! the scheduler; it unwinds out of the process's code at exactly that instruction. There are no threads, no real clock and
//! no randomly seeded maps: the same seed gives the same run, which [`Machine::trace`] proves.

mod directory;
mod disk;
mod failures;
mod file;
mod machine;
mod operation;
mod phase;
mod random;
mod ring;
mod tasks;
mod watch;
mod world;

#[cfg(test)]
mod tests;

pub use disk::{SimulatedDisk, SimulatedFile};
pub use failures::Failures;
pub use machine::{Conditions, Crash, Machine};
pub use phase::Phase;
pub use random::Random;
pub use ring::{SimulatedRing, SimulatedRings};
pub use tasks::Tasks;
pub use watch::Breach;
