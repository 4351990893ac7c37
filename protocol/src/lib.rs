//! Peregrine's wire and log formats: everything that two processes, or a process and its successor, must agree on.
//!
//! Sans-IO: all of it works on slices, opens nothing, reads no clock, and decoding allocates nothing. Broker, client, load
//! generator, simulator and fuzzers use the same code.
//!
//! - [`ids`], [`limits`], [`error`], [`name`]: newtypes, bounds, the table of errors, what a name may be;
//! - [`locator`]: how a message is named;
//! - [`checksum`], [`placement`]: CRC32, and which shard and queue a message belongs to;
//! - [`entry`]: the unit of the log; [`record`]: the messages in a batch;
//! - [`preamble`], [`frame`]: how a connection is cut into frames; [`message`]: what they mean.

pub mod checksum;
pub mod entry;
pub mod error;
pub mod frame;
mod generated;
pub mod ids;
pub mod limits;
pub mod locator;
pub mod message;
pub mod name;
pub mod placement;
pub mod preamble;
pub mod record;
