//! What every disk is tested against.

pub mod contract;
