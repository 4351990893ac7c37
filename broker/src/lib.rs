//! The broker: shards, log, engine and what is around them.
pub mod checkpointing;
pub mod control;
pub mod engine;
pub mod limits;
pub mod log;
pub mod retaining;
pub mod retaining_topics;
pub mod shard;
pub mod simulated;
pub mod varint;
