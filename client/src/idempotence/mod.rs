//! The client's half of idempotent producing, without I/O and without a clock: what DESIGN.md's "Idempotent producers" asks of the
//! side that sends.
//!
//! ```text
//! push ─► waiting chunks ─► window of ≤ 64 numbered batches ─► next_batch ─► wire
//!                                ▲                                            │
//!                                └──────── answered / disconnected ◄──────────┘
//! ```
//! A [`ProducerCore`] holds one [`lane::Lane`] per queue it has sent to; lanes know nothing of each other. The caller tells it which
//! shards are reachable, carries the batches it hands out, and brings every answer back with the ticket of the attempt.

pub mod back_off;
mod batch;
mod core;
mod lane;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use self::batch::{Acknowledgement, BatchToSend, Loss, Outcome, RecordPlace, Ticket};
pub use self::core::{CoreOptions, ProducerCore};
pub use self::lane::BatchLimits;
