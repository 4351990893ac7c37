//! Harm done to the files of a shard, one piece at a time, and what a start, a check and a look-up make of each.
//!
//! ```text
//!   real broker ─► files, ring ─► State ──┬─ Harm (a flip, a cut, a block) ─► Medium ─► start, check, look-ups ─► Outcome
//!                                         └─ unharmed ─► Reference: what must be there
//! ```
//!
//! A harm is either *detected* (an error with a type, or a cache put aside) or *without effect*. A wrong payload, a message that is
//! missing without a word, and a panic are violations; a [`Violation`] names the command that replays it.
//!
//! - `medium`: files and rings in memory, behind the log's own traits
//! - `state`: what a real broker left, kept in a folder
//! - `kind`: the harms, as words and at random
//! - `trial`: what the log makes of one

mod kind;
mod medium;
mod state;
mod trial;

pub use kind::{Harm, Place};
pub use medium::Medium;
pub use state::{State, Stop};
pub use trial::{Outcome, Reference, Violation};
