//! What executors say to each other.

use crate::engine::{Assignment, CatalogueId, CatalogueState};
use crate::shard::connection::socket::HandedSocket;
use crate::shard::peers::PeerId;
use crate::shard::reports::ShardReport;
use peregrine_protocol::ids::{GroupId, MemberId, Nanos, ShardId};
use std::sync::Arc;

/// From the executor that holds the connection, or that wants something, to the other; which one it comes from, its channel
/// says.
pub enum Request {
    /// A frame for a shard there. The sender took credit for it.
    Forward { shard: ShardId, connection: PeerId, received_at: Nanos, frame: Box<[u8]> },
    /// Batches came back from this shard and none is under way to it: it is to say when there is room, by `Room`.
    AskRoom { shard: ShardId },
    /// A connection that named a shard there in its hello.
    HandOver(Box<HandOver>),
    /// A connection whose requests were forwarded is gone.
    Gone { connection: PeerId },
    /// So many bytes of deliveries have left, or have room, at the connection's executor.
    Window { connection: PeerId, bytes: usize },
    /// Shard 0 tells what a topic or a group is from now on; each executor answers with `Told`.
    Catalogue { change: u64, state: CatalogueState },
    /// What is this topic or group? Asked of shard 0's executor.
    AskCatalogue { ticket: u64, asked: CatalogueAsked },
    /// A group's home says who holds which of its queues.
    Assign(Arc<Assigned>),
    /// Reports of all shards there are wanted.
    AskReports { ticket: u64 },
}

/// A topic or a group as a request names it.
pub enum CatalogueAsked {
    Id(CatalogueId),
    TopicNamed(Box<str>),
    GroupNamed(Box<str>),
}

/// An assignment of a group's queues to its members.
#[derive(Debug)]
pub struct Assigned {
    pub group: GroupId,
    pub number: u64,
    pub assignment: Arc<Assignment>,
    /// Members that are gone.
    pub fenced: Vec<MemberId>,
}

/// A connection on its way to another executor: a second descriptor of its socket, and all bytes that were received and not
/// handled, from its hello on. The client sends nothing more until that is answered.
pub struct HandOver {
    pub socket: HandedSocket,
    pub accepted_at: Nanos,
    pub unread: Vec<u8>,
}

/// What comes back.
pub enum Return {
    /// The answer to a forwarded request; the credit of its shard comes back with it. Empty where the request has no answer.
    Answer {
        connection: PeerId,
        shard: ShardId,
        frame: Box<[u8]>,
    },
    /// The answer to a forwarded request whose credit came back when it had to be held. It counts against the window.
    LateAnswer {
        connection: PeerId,
        frame: Box<[u8]>,
    },
    /// A forwarded frame of so many bytes is handled: nobody holds them any more.
    Handled {
        shard: ShardId,
        bytes: usize,
    },
    /// There is no room for this batch, or for one that came before it. Its place among the requests comes back with it; its bytes
    /// stay taken.
    Full {
        connection: PeerId,
        shard: ShardId,
        received_at: Nanos,
        frame: Box<[u8]>,
    },
    /// There is room again.
    Room {
        shard: ShardId,
    },
    /// A push: a delivery (which counts against the window) or an error.
    Push {
        connection: PeerId,
        frame: Box<[u8]>,
        counts: bool,
    },
    /// The other executor knows about a change.
    Told {
        change: u64,
    },
    /// What shard 0 knows of a topic or a group; none where it has none of that name.
    CatalogueIs {
        ticket: u64,
        state: Option<CatalogueState>,
    },
    Reports {
        ticket: u64,
        reports: Vec<ShardReport>,
    },
}
