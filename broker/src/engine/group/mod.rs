//! Consumer groups: which exist, how far each has acknowledged the queues that it consumes, and who its members are.
//!
//! A group is an object of the catalogue like a topic. Its place in a queue is durable state of the shard that owns the queue,
//! kept in the same log as the queue's messages: whatever a crash takes, it takes messages and places alike, so that a place
//! never lies beyond its queue's end.
//!
//! - `change`, `registry`: groups in the catalogue
//! - `offsets`: the log entry that moves places
//! - `place`: the places that groups have in queues
//! - `commit`: deciding on acknowledgements and resets, and applying their entries
//! - `lag`: what is left for a group to read
//! - `assignment`: who is to hold which queue; `plan`, `levelling`: how the next one follows from the last
//! - `home`, `roster`, `making`, `joining`: who the members are, at the shard that sees them
//! - `holder`, `turns`, `following`, `attempts`: whose turn it is with a queue, at the shard that owns it
//! - `fault`: defects for the simulator to find

mod assignment;
mod attempts;
mod change;
mod commit;
mod fault;
mod following;
mod holder;
mod home;
mod joining;
mod lag;
mod levelling;
mod making;
mod offsets;
mod place;
mod plan;
mod registry;
mod roster;
mod turns;

pub use assignment::Assignment;
pub use attempts::Attempts;
pub use change::GroupChange;
pub use commit::{AckDecision, GroupAck, GroupPlace};
pub use fault::PlantedInGroups;
pub use holder::{Holders, Share};
pub use home::{HomeEffect, HomeView, Join, Joined, MemberView, Membership, MembershipOptions};
pub use lag::LagRow;
#[cfg(test)]
pub use offsets::OffsetRow;
pub use offsets::{OffsetEntry, OffsetsError};
pub use place::{CommittedPlace, GroupPlaces, GroupQueues};
pub use registry::{Group, GroupStart, GroupState, Groups};
pub use turns::AckChecked;

#[cfg(test)]
mod tests;
