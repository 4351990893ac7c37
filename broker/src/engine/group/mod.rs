//! Consumer groups.
//!
//! - `assignment`: who is to hold which queue
//! - `home`, `roster`: who the members are, at the shard that sees them

mod assignment;
mod home;
mod roster;

pub use home::{HomeEffect, HomeView, Join, Joined, MemberView, Membership, MembershipOptions};

#[cfg(test)]
mod tests;
