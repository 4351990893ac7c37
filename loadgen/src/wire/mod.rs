//! The connections to a broker, as its own clients would make them: a connection per producer or consumer and shard it
//! needs, one produce frame per message, push delivery against credit.
//!
//! A consumer group's members are the client's own: [`member`] drives `peregrine_client::group`. For the rest it speaks
//! `peregrine_protocol` directly instead of through the client library: what a client must keep of a message until it is
//! acknowledged, the generator can make again, and so needs no memory per message. All set-up is blocking ([`control`],
//! [`handshake`]); from then on the sockets are non-blocking and belong to one thread ([`transport`]).

mod control;
mod desk;
mod groups;
mod handshake;
mod member;
mod members;
mod replay;
mod transport;

pub use control::{BrokerFacts, Control, Topics};
pub use groups::Groups;
pub use replay::{Replay, Replayed};
pub use transport::{Wire, listening_of_thread, produce_frame_len};

/// Bytes that a message's record adds to its body, at most.
pub const RECORD_OVERHEAD: u64 = 64;
