//! What a peer is to be sent once there is room: batches that its subscriptions were given, and fetches that it asked for.
//!
//! The engine hands out at most one batch per subscription until it hears that the batch is on its way, so that what is held
//! is bounded by subscriptions and outstanding requests. Nothing here is a copy of a message, except one block of the log that
//! was read from disk for a peer that is behind the ring.

use super::outbox::LogBytes;
use crate::engine::BatchPlace;
use crate::shard::event::Event;
use crate::shard::router::Asker;
use crate::shard::state::Shard;
use peregrine_protocol::ids::{Correlation, LogPosition, Nanos, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::message::{BatchHead, FetchAnswer, FetchBody};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Something to be sent.
#[derive(Debug)]
pub enum Held {
    Delivery { shard: ShardId, subscription: SubscriptionId, batch: BatchPlace, visible_at: Nanos },
    Fetch(Box<HeldFetch>),
}

/// A fetch whose batches are known, and its answer in the making.
#[derive(Debug)]
pub struct HeldFetch {
    pub shard: ShardId,
    pub asker: Asker,
    pub correlation: Correlation,
    pub end: QueueOffset,
    pub batches: Vec<BatchPlace>,
    /// The first batch that is not in the body yet.
    pub next: usize,
    pub body: FetchBody,
}

impl HeldFetch {
    /// Adds the batches whose bytes are at hand. `Some`: these have to be read first.
    pub fn fill(&mut self, shard: &Shard, cold: Option<&ColdBlock>) -> Option<LogBytes> {
        while let Some(batch) = self.batches.get(self.next) {
            let found = shard.with_entry(batch, cold, |header, payload| {
                self.body.push(&BatchHead::of(header, batch.first_wanted), payload);
            });
            if let Err(missing) = found {
                return Some(missing);
            }
            self.next += 1;
        }
        None
    }

    /// Appends the answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        FetchAnswer { end: self.end, batches: self.body.batches() }.encode(self.correlation, out);
    }
}

/// Bytes of a shard's log, read from disk.
pub struct ColdBlock {
    pub shard: ShardId,
    pub start: LogPosition,
    pub bytes: Box<dyn std::ops::Deref<Target = [u8]>>,
    /// What of the executor's budget it takes.
    pub charged: usize,
}

impl ColdBlock {
    /// The bytes from `position` on, at most `len` of them; `None` where the block holds none of them.
    pub fn get(&self, shard: ShardId, position: LogPosition, len: usize) -> Option<&[u8]> {
        let at = position.0.checked_sub(self.start.0)? as usize;
        let rest = self.bytes.get(at..).filter(|rest| shard == self.shard && !rest.is_empty())?;
        Some(&rest[..len.min(rest.len())])
    }
}

/// A peer's queue of what is held for it.
#[derive(Default)]
pub struct Outlet {
    pub held: RefCell<VecDeque<Held>>,
    pub cold: RefCell<Option<ColdBlock>>,
    /// Raised when there is something to do for whoever sends.
    pub news: Event,
    pub subscriptions: Cell<usize>,
}

impl Outlet {
    pub fn hold(&self, held: Held) {
        self.held.borrow_mut().push_back(held);
        self.news.raise();
    }

    /// A subscription has ended: no delivery of it follows.
    pub fn forget(&self, of: ShardId, id: SubscriptionId) {
        self.subscriptions.set(self.subscriptions.get().saturating_sub(1));
        self.held.borrow_mut().retain(
            |held| !matches!(held, Held::Delivery { shard, subscription, .. } if (*shard, *subscription) == (of, id)),
        );
    }
}
