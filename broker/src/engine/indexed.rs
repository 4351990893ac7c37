//! What the indexes of sealed segments have is dropped here, a slice at a time, and asked for there.
//!
//! ```text
//!   a batch begins a chunk ─► begun ──┐ in the order of the log       indexed(to)
//!                             kept ───┴─► drop_indexed: each chunk wholly below `to` goes; one that reaches above is kept
//! ```
//!
//! Each chunk that is held stands in one of the two lists, so that nothing is spent on queues that have nothing to drop. A
//! request that needs to know of a dropped batch is refused with a question ([`super::Refusal::LookUp`]); whoever asked it tells the
//! answer ([`Engine::answered`]) and decides again.

use std::collections::VecDeque;

use peregrine_protocol::ids::{LogPosition, QueueOffset};

use super::Engine;
use super::index::{Asked, IndexEntry};
use super::queue::{Queue, QueueKey, QueueSlot, Queues};
use super::slice::Slice;

/// What the indexes of sealed segments are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexQuestion {
    pub queue: QueueKey,
    pub asked: Asked,
    /// Batches from here on need not be looked for.
    pub below: QueueOffset,
}

impl IndexQuestion {
    pub fn of(queue: &Queue, asked: Asked) -> Self {
        Self { queue: queue.key, asked, below: queue.index.dropped_end() }
    }
}

/// The chunks that are held.
#[derive(Debug, Default)]
pub struct HeldChunks {
    /// By where they begin in the log.
    begun: VecDeque<(LogPosition, QueueSlot)>,
    /// Of queues whose oldest chunk reached above the end of what was indexed when it was looked at.
    kept: VecDeque<QueueSlot>,
    /// How many of those kept have not been looked at since the end moved.
    kept_due: usize,
}

impl HeldChunks {
    pub fn begun(&mut self, position: LogPosition, slot: QueueSlot) {
        self.begun.push_back((position, slot));
    }

    /// All that is held at the end of a start.
    pub fn recovered(&mut self, queues: &Queues) {
        let chunks = queues.in_slots().flat_map(|(slot, queue)| queue.index.chunks_begin().map(move |at| (at, slot)));
        let mut begun: Vec<_> = chunks.collect();
        begun.sort_unstable_by_key(|&(position, _)| position);
        *self = Self { begun: begun.into(), ..Self::default() };
    }

    fn next_below(&mut self, to: LogPosition) -> Option<QueueSlot> {
        if let Some(due) = self.kept_due.checked_sub(1) {
            self.kept_due = due;
            return self.kept.pop_front();
        }
        self.begun.pop_front_if(|(position, _)| *position < to).map(|(_, slot)| slot)
    }
}

impl Engine {
    /// Batches below `to` are looked up in the indexes of sealed segments from now on: call [`Engine::drop_indexed`] until there is
    /// nothing left.
    pub fn indexed(&mut self, to: LogPosition) {
        if to > self.indexed_to {
            self.indexed_to = to;
            self.chunks.kept_due = self.chunks.kept.len();
        }
    }

    /// Drops what is indexed. True where there is more of it.
    pub fn drop_indexed(&mut self, slice: &mut Slice) -> bool {
        while !slice.is_spent() {
            let Some(slot) = self.chunks.next_below(self.indexed_to) else { return false };
            slice.spend(1);
            // Its topic may have been deleted.
            if let Some(queue) = self.queues.get_mut(slot)
                && !queue.index.drop_first(self.indexed_to)
            {
                self.chunks.kept.push_back(slot);
            }
        }
        true
    }

    /// What the indexes said to a question: the batch asked for, if it stands below what the question says.
    pub fn answered(&mut self, question: &IndexQuestion, found: Option<&IndexEntry>) {
        if let Some(slot) = self.queues.find(question.queue)
            && let Some(queue) = self.queues.get_mut(slot)
        {
            queue.index.answered(question.asked, question.below, found);
        }
        self.place_found(question);
    }

    /// Bytes that the queues' indexes take.
    pub fn index_bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.index.heap_bytes()).sum()
    }
}
