//! When a message may be seen: once it, and all before it in its queue, have reached the level their producers asked for.
//!
//! Batches that are appended and not yet durable stand here in the order of the log; each also knows the next one of its queue:
//!
//! ```text
//!  number:    41        42        43        44        45
//!           ┌─────────┬─────────┬─────────┬─────────┬─────────┐
//!  durable ►│ q7 sync │ q3 mem  │ q7 mem  │ q3 mem  │ q7 sync │◄ newest
//!           └────┬────┴─────────┴─▲──┬────┴─────────┴─▲───────┘
//!                └── next of q7 ──┘  └── next of q7 ──┘
//! ```
//!
//! Published passing a `memory` batch shows it if it is the first of its queue that is not visible. Durable passing a batch
//! shows it, since all before it in the log is durable too, and then the published `memory` batches of its queue behind it. Each
//! batch is touched when it comes, when published passes it and when durable does: no work grows with the number of queues.
//! There are as many of them as entries fit between durable and published: at most ring size / 128.

use std::collections::VecDeque;

use peregrine_protocol::ids::{DurableLevel, LogPosition, QueueOffset};

use super::queue::{Queue, QueueSlot, Queues};

/// No batch.
const NONE: u64 = u64::MAX;

/// A queue's batches that are not visible yet: numbers of the first and the last.
#[derive(Clone, Copy, Debug)]
pub struct PendingChain {
    first: u64,
    last: u64,
}

impl Default for PendingChain {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

#[derive(Debug)]
struct Pending {
    /// The end of its entry.
    end: LogPosition,
    end_offset: QueueOffset,
    queue: QueueSlot,
    level: DurableLevel,
    /// Number of the next batch of the same queue.
    next: u64,
}

/// The batches between durable and the end of the log.
#[derive(Debug, Default)]
pub struct Visibility {
    pending: VecDeque<Pending>,
    /// Number of the first in `pending`.
    first: u64,
    /// Number of the first that is not published.
    unpublished: u64,
}

impl Visibility {
    /// A batch was appended to `queue`, its entry ending at `end`; the queue's end is the batch's.
    pub fn push(&mut self, slot: QueueSlot, queue: &mut Queue, level: DurableLevel, end: LogPosition) {
        assert!(self.pending.back().is_none_or(|last| last.end < end), "batches come in the order of the log");
        let number = self.first + self.pending.len() as u64;
        if queue.pending.first == NONE {
            queue.pending.first = number;
        } else {
            let last = (queue.pending.last - self.first) as usize;
            self.pending[last].next = number;
        }
        queue.pending.last = number;
        self.pending.push_back(Pending { end, end_offset: queue.end, queue: slot, level, next: NONE });
    }

    /// Published moved to `to`. `moved` is told each queue whose visible end moved.
    pub fn publish(&mut self, to: LogPosition, queues: &mut Queues, mut moved: impl FnMut(&mut Queue)) {
        while let Some(batch) = self.pending.get((self.unpublished - self.first) as usize) {
            if batch.end > to {
                break;
            }
            let number = self.unpublished;
            self.unpublished += 1;
            if batch.level != DurableLevel::Memory {
                continue;
            }
            if let Some(queue) = queues.get_mut(batch.queue)
                && queue.pending.first == number
            {
                show(queue, batch);
                moved(queue);
            }
        }
    }

    /// Durable moved to `to`, which published has reached. `moved` is told each queue whose visible end moved.
    pub fn harden(&mut self, to: LogPosition, queues: &mut Queues, mut moved: impl FnMut(&mut Queue)) {
        while let Some(batch) = self.pending.pop_front_if(|batch| batch.end <= to) {
            let number = self.first;
            self.first += 1;
            assert!(number < self.unpublished, "what is durable was published before");
            let Some(queue) = queues.get_mut(batch.queue) else { continue };
            if queue.pending.first != number {
                continue;
            }
            show(queue, &batch);
            while queue.pending.first < self.unpublished {
                let next = &self.pending[(queue.pending.first - self.first) as usize];
                if next.level != DurableLevel::Memory {
                    break;
                }
                show(queue, next);
            }
            moved(queue);
        }
    }

    /// Batches that are not durable.
    pub fn len(&self) -> usize {
        self.pending.len()
    }
}

/// Makes the first pending batch of its queue visible.
fn show(queue: &mut Queue, batch: &Pending) {
    assert!(
        queue.visible < batch.end_offset && batch.end_offset <= queue.end,
        "the visible end moves up to the queue's end"
    );
    queue.visible = batch.end_offset;
    queue.pending.first = batch.next;
}
