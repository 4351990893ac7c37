//! How a connection begins: the preamble, then one hello, which names the shard that the connection is for.

use crate::shard::connection::Connection;
use crate::shard::executor::Executor;
use crate::shard::router::Wait;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::Frame;
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::limits::PREAMBLE_LEN;
use peregrine_protocol::message::{ErrorAnswer, HelloAnswer, Request};
use peregrine_protocol::preamble::{PreambleError, check_preamble};
use std::rc::Rc;

/// What the broker says of itself in its hello.
pub const SOFTWARE: &str = concat!("peregrine-broker/", env!("CARGO_PKG_VERSION"));

/// What the first bytes are.
pub enum Greeting {
    Partial,
    /// The preamble, of so many bytes.
    Taken(usize),
    /// No client of ours, or one of another version, which was told.
    Refused,
}

/// Looks at the first bytes of a connection.
pub fn preamble(connection: &Connection, bytes: &[u8]) -> Greeting {
    match check_preamble(bytes) {
        Ok(true) => Greeting::Taken(PREAMBLE_LEN),
        Ok(false) => Greeting::Partial,
        Err(error) => {
            tracing::debug!(%error, "a connection is refused");
            if matches!(error, PreambleError::Version(_)) {
                let _ = refuse(connection, Correlation(0), ErrorCode::UnknownVersion);
            }
            Greeting::Refused
        }
    }
}

/// Handles the first frame, which must be a hello. One for a shard of another executor is to be handed over.
pub fn hello(executor: &Rc<Executor>, connection: &Connection, frame: &Frame<'_>) -> Result<(), Wait> {
    let correlation = frame.head.correlation;
    let hello = match Request::decode(frame) {
        Ok(Request::Hello(hello)) => hello,
        Ok(_) => return refuse(connection, correlation, ErrorCode::HelloExpected),
        Err(error) => return refuse(connection, correlation, error.code()),
    };
    if !hello.mechanism.is_empty() {
        return refuse(connection, correlation, ErrorCode::UnsupportedMechanism);
    }
    if !hello.namespace.is_empty() {
        return refuse(connection, correlation, ErrorCode::InvalidArgument);
    }
    let shard = match hello.shard {
        Some(shard) if shard.0 >= executor.layout.shards => {
            return refuse(connection, correlation, ErrorCode::InvalidArgument);
        }
        Some(shard) => shard,
        None => any_shard(executor),
    };
    if executor.shard(shard).is_none() {
        return Err(Wait::HandOver(shard));
    }
    connection.shard.set(shard);
    connection.greeted.set(true);
    let facts = &executor.facts;
    let answer = HelloAnswer {
        challenge: None,
        directory: facts.directory,
        capabilities: 0,
        shards: executor.layout.shards,
        shard,
        message_max: facts.message_max,
        frame_max: facts.frame_max,
        software: SOFTWARE,
    };
    connection.send(|out| answer.encode(correlation, out));
    connection.answered();
    Ok(())
}

/// For a client that does not mind: the first shard of this executor.
fn any_shard(executor: &Executor) -> ShardId {
    executor.layout.shards_of(executor.index).next().unwrap_or(crate::engine::HOME)
}

/// Tells the client why the connection ends.
fn refuse(connection: &Connection, correlation: Correlation, code: ErrorCode) -> Result<(), Wait> {
    connection.send(|out| ErrorAnswer::new(code).encode(correlation, out));
    Err(Wait::End)
}
