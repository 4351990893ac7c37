//! Client.
pub mod error;
pub mod idempotence;
