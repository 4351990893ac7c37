//! The commit log of one shard: entries in a staging ring, flushed to segments, read back after any stop.
pub mod disk;
