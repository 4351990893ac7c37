//! The broker: shards, log, engine and what is around them.
pub mod log;
