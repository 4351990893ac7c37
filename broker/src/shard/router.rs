//! Which shard a request is for, and the way there: a call where the shard lives on this executor, the mesh where it does not.
//!
//! A request goes first to the shard that its connection named; the shard's copy of the catalogue knows whose it is. What cannot
//! be done at once is a [`Wait`]: it tells the reader what to wait for before the frame is tried again, so that nothing is
//! queued here and a socket whose requests must wait is not read.

use crate::engine::{CatalogueId, HOME, IndexQuestion};
use crate::limits::STEP;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::{CatalogueAsked, Request};
use crate::shard::peers::PeerId;
use crate::shard::{answers, catalogue, large, look_ups, requests};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Frame, Kind, Sender};
use peregrine_protocol::ids::{Nanos, ShardId};
use peregrine_protocol::message::Request as Asked;
use std::rc::Rc;

/// Who asked, and so where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A connection of this executor.
    Here(PeerId),
    /// A connection of another executor; its request came to `shard` over the mesh.
    There { executor: u16, connection: PeerId, shard: ShardId },
}

/// What a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Room in this shard's ring; for a shard of another executor, until batches may be sent to it again.
    Room(ShardId),
    /// Nothing: it is another shard's.
    Elsewhere(ShardId),
    /// Several turns: its payload is checked and copied in steps.
    Large(ShardId),
    /// What shard 0 says about a topic or a group; without news the request is answered with `otherwise`.
    Catalogue { shard: ShardId, about: CatalogueId, otherwise: ErrorCode },
    /// What shard 0 says about the topic or the group that the request names.
    Named,
    /// What the indexes of this shard's sealed segments say.
    LookUp { shard: ShardId, question: IndexQuestion },
    /// Credit for requests to this shard.
    Credit(ShardId),
    /// The connection belongs to this shard's executor.
    HandOver(ShardId),
    /// Nothing: the connection ends.
    End,
}

/// Handles a frame, or says what it waits for. A frame that was handled is answered, sooner or later, exactly once.
pub fn route(executor: &Rc<Executor>, asker: Asker, frame: &Frame<'_>, received_at: Nanos) -> Result<(), Wait> {
    let shard = match Kind::from_number(frame.head.kind) {
        Some(Kind::CreateTopic | Kind::AlterTopic | Kind::DeleteTopic | Kind::CreateGroup | Kind::DeleteGroup) => HOME,
        Some(Kind::Credit | Kind::Ack | Kind::Unsubscribe) => match requests::subscription_shard(frame) {
            Some(shard) if shard.0 < executor.layout.shards => shard,
            _ => executor.shard_of_asker(asker),
        },
        Some(Kind::GetMessage) => match requests::message_shard(frame) {
            Some(shard) if shard.0 < executor.layout.shards => shard,
            _ => executor.shard_of_asker(asker),
        },
        _ => executor.shard_of_asker(asker),
    };
    match route_to(executor, shard, asker, frame, received_at) {
        Err(Wait::Elsewhere(owner)) => route_to(executor, owner, asker, frame, received_at),
        routed => routed,
    }
}

/// Handles a frame at a shard.
fn route_to(
    executor: &Rc<Executor>,
    shard: ShardId,
    asker: Asker,
    frame: &Frame<'_>,
    received_at: Nanos,
) -> Result<(), Wait> {
    if let Some(shard) = executor.shard(shard) {
        return requests::handle(executor, &shard, asker, frame, received_at);
    }
    let Asker::Here(connection) = asker else {
        // It came over the mesh to the shard that its origin took for the owner, and is not sent on a second time.
        executor.refuse_with(asker, frame.head.correlation, &answers::wrong_shard(shard));
        return Ok(());
    };
    if is_batch(frame) && !executor.gate(shard).is_open() {
        return Err(Wait::Room(shard));
    }
    if !executor.credit(shard).take(frame.len()) {
        return Err(Wait::Credit(shard));
    }
    forward(executor, shard, connection, frame, received_at);
    Ok(())
}

/// Sends a frame over the mesh; credit for it was taken.
fn forward(executor: &Executor, shard: ShardId, connection: PeerId, frame: &Frame<'_>, received_at: Nanos) {
    // Its writer may have ended while its reader had this frame: the other executor was told of its end, and would serve
    // what came behind that for ever.
    let Some(asking) = executor.peers.connection(connection) else { return give_back(executor, shard, frame) };
    executor.note_proxied(&asking, shard);
    let mut bytes = Vec::with_capacity(frame.len());
    let kind = Kind::from_number(frame.head.kind).unwrap_or(Kind::Error);
    frame::encode(kind, Sender::Client, frame.head.correlation, frame.header, frame.body, &mut bytes);
    let bytes = bytes.into_boxed_slice();
    assert_eq!(bytes.len(), frame.len(), "what was taken is what comes back");
    executor.counters.forwarded.set(executor.counters.forwarded.get() + 1);
    executor
        .mesh()
        .request(executor.layout.executor_of(shard), Request::Forward { shard, connection, received_at, frame: bytes });
}

/// A frame that credit was taken for is not sent.
fn give_back(executor: &Executor, shard: ShardId, frame: &Frame<'_>) {
    executor.credit(shard).place_back();
    executor.credit(shard).bytes_back(frame.len());
}

/// What waiting came to.
pub enum Waited {
    /// The frame is handled.
    Handled,
    /// It is to be tried again.
    Again,
    /// It has to wait for something else.
    Then(Wait),
}

/// Waits for what a frame needs and, where it is one that takes several turns, handles it.
pub async fn wait(executor: &Rc<Executor>, asker: Asker, frame: &Frame<'_>, received_at: Nanos, wait: Wait) -> Waited {
    let correlation = frame.head.correlation;
    match wait {
        Wait::Room(shard) => {
            let deadline = received_at + executor.seams.room_within().0;
            let here = executor.shard(shard);
            let came = match &here {
                Some(shard) => shard.room(deadline).await,
                None => executor.gate(shard).opened(deadline).await,
            };
            if came {
                return Waited::Again;
            }
            match here {
                Some(shard) => shard.counters.busy.set(shard.counters.busy.get() + 1),
                None => executor.count_busy_elsewhere(),
            }
            executor.refuse_with(asker, correlation, &answers::busy());
            Waited::Handled
        }
        Wait::Large(shard) => {
            let Some(shard) = executor.shard(shard) else { return Waited::Again };
            match large::produce(executor, &shard, asker, frame, received_at).await {
                Ok(()) => Waited::Handled,
                Err(wait) => Waited::Then(wait),
            }
        }
        Wait::Catalogue { shard, about, otherwise } => {
            // A request that shard 0 knows nothing new about is answered; else it is decided with the news.
            if catalogue::ask_home(executor, shard, about).await {
                return Waited::Again;
            }
            executor.refuse(asker, correlation, otherwise);
            Waited::Handled
        }
        Wait::Named => {
            let (asked, otherwise) = match Asked::decode(frame) {
                Ok(Asked::DescribeTopic(asked)) => {
                    (CatalogueAsked::TopicNamed(asked.name.into()), ErrorCode::UnknownTopic)
                }
                Ok(Asked::DescribeGroup(asked)) => {
                    (CatalogueAsked::GroupNamed(asked.name.into()), ErrorCode::UnknownGroup)
                }
                _ => unreachable!("only a description is asked for by name alone"),
            };
            if catalogue::ask_home_by_name(executor, asked).await {
                return Waited::Again;
            }
            executor.refuse(asker, correlation, otherwise);
            Waited::Handled
        }
        Wait::LookUp { shard, question } => {
            let Some(shard) = executor.shard(shard) else { return Waited::Again };
            match look_ups::answer(&shard, &question).await {
                Ok(()) => return Waited::Again,
                Err(ErrorCode::Busy) => executor.refuse_with(asker, correlation, &answers::busy()),
                Err(code) => executor.refuse(asker, correlation, code),
            }
            Waited::Handled
        }
        Wait::Credit(shard) => {
            executor.credit(shard).taken(frame.len()).await;
            if is_batch(frame) && !executor.gate(shard).is_open() {
                give_back(executor, shard, frame);
                return Waited::Then(Wait::Room(shard));
            }
            let Asker::Here(connection) = asker else { unreachable!("only connections forward") };
            forward(executor, shard, connection, frame, received_at);
            Waited::Handled
        }
        Wait::Elsewhere(shard) => match route_to(executor, shard, asker, frame, received_at) {
            Ok(()) => Waited::Handled,
            Err(wait) => Waited::Then(wait),
        },
        Wait::HandOver(_) | Wait::End => unreachable!("the reader sees to these itself"),
    }
}

/// Whether it is a batch to be stored, or moves a group's place: what may have to wait for room.
pub fn is_batch(frame: &Frame<'_>) -> bool {
    [Kind::Produce, Kind::Ack, Kind::ResetOffset].iter().any(|&kind| frame.head.kind == kind as u8)
}

/// Whether a payload of so many bytes is handled in steps.
pub fn is_large(payload: usize) -> bool {
    payload > STEP
}
