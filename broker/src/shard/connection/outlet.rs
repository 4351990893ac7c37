//! What a peer is to be sent once there is room: batches that its subscriptions were given, and fetches that it asked for.
//!
//! The engine hands out at most one batch per subscription until it hears that the batch is on its way, so that what is held
//! is bounded by subscriptions and outstanding requests. Nothing here is a copy of a message, except one block of the log that
//! was read from disk for a peer that is behind the ring.

use crate::engine::{BatchPlace, FetchLimits, IndexEntry, StartAt};
use crate::limits::FETCH_BYTES;
use crate::shard::event::Event;
use crate::shard::search::SearchPlace;
use crate::shard::state::{NoBytes, Shard};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, LogPosition, Nanos, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::limits::FETCH_BATCHES_MAX;
use peregrine_protocol::message::{BatchHead, ErrorAnswer, Fetch, FetchAnswer, FetchBody};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Something to be sent.
#[derive(Debug)]
pub enum Held {
    Delivery { shard: ShardId, subscription: SubscriptionId, batch: BatchPlace, handed_out_at: Nanos },
    Fetch(Box<HeldFetch>),
    Found(Box<FoundAnswer>),
}

impl Held {
    /// Whether it answers a request.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Held::Delivery { .. })
    }
}

/// The answer to a look-up of messages, which keeps its place among those of the shard until it leaves.
#[derive(Debug)]
pub struct FoundAnswer {
    pub frame: Vec<u8>,
    _place: SearchPlace,
}

impl FoundAnswer {
    pub fn new(frame: Vec<u8>, place: SearchPlace) -> Self {
        Self { frame, _place: place }
    }
}

/// A fetch that waits for its turn, and then its answer in the making. Which batches it gets is looked up at its turn, so that
/// one that waits is small.
#[derive(Debug)]
pub struct HeldFetch {
    pub shard: ShardId,
    pub correlation: Correlation,
    pub asked: Fetch,
    pub found: Option<Found>,
    /// What the indexes of sealed segments have of it, below that offset, where they were asked.
    indexed: Option<(Vec<IndexEntry>, QueueOffset)>,
    is_damaged: bool,
    /// Why nothing was found.
    refused: ErrorCode,
}

/// What a fetch found.
#[derive(Debug)]
pub struct Found {
    end: QueueOffset,
    batches: Vec<BatchPlace>,
    /// The first batch that is not in the body yet.
    next: usize,
    body: FetchBody,
}

impl HeldFetch {
    pub fn new(shard: ShardId, correlation: Correlation, asked: Fetch) -> Self {
        Self {
            shard,
            correlation,
            asked,
            found: None,
            indexed: None,
            is_damaged: false,
            refused: ErrorCode::TopicDeleted,
        }
    }

    /// What the indexes have of it; `None` where they cannot be asked.
    pub fn looked_up(&mut self, batches: Option<Vec<IndexEntry>>, below: QueueOffset) {
        self.is_damaged = batches.is_none();
        self.indexed = batches.map(|batches| (batches, below));
    }

    /// Adds the batches whose bytes are at hand. It is whole once nothing is missing.
    pub fn fill(&mut self, shard: &Shard, cold: Option<&ColdBlock>) -> Result<(), NoBytes> {
        if self.is_damaged {
            return Err(NoBytes::Gone(ErrorCode::Damaged));
        }
        if self.found.is_none() {
            self.found = self.look_up(shard);
        }
        let Some(Found { batches, next, body, .. }) = &mut self.found else { return Ok(()) };
        while let Some(batch) = batches.get(*next) {
            shard.with_entry(batch, cold, |header, payload| {
                body.push(&BatchHead::of(header, batch.first_wanted), payload);
            })?;
            *next += 1;
        }
        Ok(())
    }

    /// The batches; `None` where the queue is gone since the fetch was taken.
    fn look_up(&mut self, shard: &Shard) -> Option<Found> {
        let Fetch { topic, queue, epoch, offset, max_messages, max_bytes } = self.asked;
        let limits = FetchLimits {
            messages: u64::from(max_messages),
            bytes: u64::from(max_bytes).min(FETCH_BYTES),
            batches: FETCH_BATCHES_MAX as usize,
        };
        let mut batches = Vec::new();
        let core = shard.core.borrow();
        let indexed = self.indexed.as_ref().map(|(batches, below)| (&batches[..], *below));
        let start = StartAt::Offset { epoch, offset };
        let end = match core.engine.fetch(topic, queue, start, limits, indexed, &mut batches) {
            Ok(place) => place.visible_end,
            Err(refusal) => {
                // Also of what was dropped since the fetch was taken: it is to come again.
                self.refused = refusal.code();
                return None;
            }
        };
        Some(Found { end, batches, next: 0, body: FetchBody::default() })
    }

    /// Appends the answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.found {
            Some(found) => {
                FetchAnswer { end: found.end, batches: found.body.parts() }.encode(self.correlation, out);
            }
            None => ErrorAnswer::new(self.refused).encode(self.correlation, out),
        }
    }
}

/// Bytes of a shard's log, read from disk.
pub struct ColdBlock {
    pub shard: ShardId,
    pub start: LogPosition,
    /// None: they could not be read.
    pub bytes: Box<dyn std::ops::Deref<Target = [u8]>>,
    /// What of the executor's budget it takes.
    pub charged: usize,
}

impl ColdBlock {
    /// Stands for bytes that could not be read.
    pub fn unreadable(shard: ShardId, start: LogPosition) -> Self {
        ColdBlock { shard, start, bytes: Box::new(&[][..]), charged: 0 }
    }

    /// The bytes from `position` on, at most `len` of them; `None` where the block holds none of them.
    pub fn get(&self, shard: ShardId, position: LogPosition, len: usize) -> Option<&[u8]> {
        let at = position.0.checked_sub(self.start.0)? as usize;
        let rest = self.bytes.get(at..).filter(|rest| shard == self.shard && !rest.is_empty())?;
        Some(&rest[..len.min(rest.len())])
    }

    /// Whether the batch at `position` could not be read.
    pub fn is_unreadable_at(&self, shard: ShardId, position: LogPosition) -> bool {
        self.bytes.is_empty() && (self.shard, self.start) == (shard, position)
    }
}

/// A peer's queue of what is held for it.
#[derive(Default)]
pub struct Outlet {
    pub held: RefCell<VecDeque<Held>>,
    pub cold: RefCell<Option<ColdBlock>>,
    /// The batch that was last read to its end, to see that its disk gives it.
    pub probed: Cell<Option<(ShardId, LogPosition)>>,
    /// Raised when there is something to do for whoever sends.
    pub news: Event,
}

impl Outlet {
    pub fn hold(&self, held: Held) {
        self.held.borrow_mut().push_back(held);
        self.news.raise();
    }

    /// Who wanted bytes that cannot be read was told; for who asks for them again, they are tried again.
    pub fn forget_unreadable(&self) {
        self.cold.borrow_mut().take_if(|block| block.bytes.is_empty());
    }

    /// A subscription has ended: no delivery of it follows.
    pub fn forget(&self, of: ShardId, id: SubscriptionId) {
        self.held.borrow_mut().retain(
            |held| !matches!(held, Held::Delivery { shard, subscription, .. } if (*shard, *subscription) == (of, id)),
        );
    }
}
