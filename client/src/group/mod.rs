//! A member of a consumer group, without I/O and without a clock: what DESIGN.md's "Groups" asks of the side that consumes.
//!
//! ```text
//!            join ──► home shard ──► assignment: which queues
//!                                        │ one [`claim::Claim`] each
//!  owner shards ◄── subscribe ───────────┘
//!       │ deliveries ──► [`window::Window`] ──► next_message ──► application
//!       ◄── cumulative ack ◄── done, in any order ◄───────────────┘
//! ```
//! The caller tells a [`MemberCore`] which shards are reachable, carries its [`Action`]s, and brings back every answer with the
//! ticket that it went out with. What the application holds survives lost connections: what comes again and is still held, or done
//! and not yet acknowledged, is not handed out a second time. A queue is lost only when its owner says so.

mod action;
mod claim;
mod core;
mod membership;
#[cfg(test)]
mod model;
mod queues;
#[cfg(test)]
mod tests;
mod window;

pub use self::action::{Action, Notice, QueueKey, Ticket, Token};
pub use self::core::{MemberCore, MemberOptions, MemberTopic};
