//! A broker's process on a simulated machine: its executors as schedulers of one thread, its clock the machine's, its sockets those
//! of a simulated network. The code of the shards is that of production; everything that happens follows from one seed.
//!
//! ```text
//!   Process ── executors ──► Scheduler 0, 1, … ── tasks of crate::shard
//!     │  turn()                  │ timers           │ sockets          │ files, rings
//!     ▼                          ▼                  ▼                  ▼
//!   what is due next ◄──────── Timers            Network            log::disk::simulated::Machine ── the one clock
//!                                                   ▲
//!                                                 Wire: a client's end
//! ```
//!
//! A crash is the machine's: it unwinds out of [`Process::turn`], and dropping the process ends its tasks and its connections.

mod channel;
mod network;
mod pipe;
mod process;
mod scheduler;

#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use network::{HandedSocket, Network, NetworkConditions, Socket, Wire, WireState};
pub use process::{Process, ProcessOptions};
pub use scheduler::{Scheduler, Sleep, Task};
