//! Consumer groups, as a shard serves them.
//!
//! - `members`: who joins a group whose home this is, and what follows for those who own its queues
//! - `places`: how far groups are in this shard's queues: acknowledgements, resets, beginnings
//! - `listings`: what exists and how it stands

pub mod listings;
pub mod members;
pub mod places;
