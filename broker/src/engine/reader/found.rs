//! Readers of what the queue's index dropped: they are served from what was looked up for them in the indexes of sealed segments.

use std::collections::VecDeque;

use peregrine_protocol::ids::{LogPosition, QueueOffset, SubscriptionId};

use super::slots::{ReaderKey, reader_mut};
use super::{Reader, ReaderState, Readers};
use crate::engine::index::IndexEntry;
use crate::engine::queue::{Queue, Queues};
use crate::limits;

/// What was looked up for a reader.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub batches: VecDeque<IndexEntry>,
    /// The last batch that it was given of them.
    pub behind: LogPosition,
}

/// The next batch of a reader.
pub(super) enum Next {
    Batch(IndexEntry),
    /// It has to be looked up.
    Elsewhere,
    /// What was visible was lost, up to the visible end.
    Lost,
}

/// Takes the reader's next batch; `all_found` counts what is held for readers.
pub(super) fn next_batch(reader: &mut Reader, queue: &Queue, all_found: &mut usize) -> Next {
    if let Some(found) = &mut reader.found {
        while let Some(batch) = found.batches.pop_front() {
            *all_found -= 1;
            found.behind = batch.position;
            // Else the queue's start moved beyond it.
            if batch.end() > reader.next {
                return Next::Batch(batch);
            }
        }
        if queue.index.is_held(reader.next) {
            reader.found = None;
            reader.cursor = queue.index.seek(reader.next);
        }
    }
    if !queue.index.is_held(reader.next) {
        return Next::Elsewhere;
    }
    let before = reader.cursor;
    match queue.index.next_at(&mut reader.cursor, reader.next) {
        Some(batch) if batch.end() <= queue.visible => Next::Batch(batch),
        _ => {
            reader.cursor = before;
            Next::Lost
        }
    }
}

impl Readers {
    /// See [`crate::engine::Engine::looked_up`].
    pub fn looked_up(&mut self, id: SubscriptionId, below: QueueOffset, batches: Vec<IndexEntry>, queues: &mut Queues) {
        let key = ReaderKey::of(id);
        let Some(reader) = reader_mut(&mut self.slots, key).filter(|reader| reader.state == ReaderState::LookingUp)
        else {
            return;
        };
        let Some(queue) = queues.get_mut(reader.queue) else { unreachable!("a deleted queue's readers have ended") };
        let behind_all = if batches.is_empty() { below.min(queue.visible) } else { queue.visible };
        let found = reader.found.get_or_insert_default();
        assert!(found.batches.is_empty(), "what was found is handed out before more is looked up");
        let room = limits::LOOKED_UP_BATCHES_MAX.saturating_sub(self.found).max(1);
        let visible = batches.into_iter().take_while(|batch| batch.end() <= queue.visible);
        found.batches.extend(visible.filter(|batch| batch.end() > reader.next).take(room));
        self.found += found.batches.len();
        // One that stands where nothing is kept any more is told so.
        if found.batches.is_empty() && reader.next >= queue.start {
            reader.next = reader.next.max(behind_all);
        }
        self.resettle(key, queues);
    }

    /// Batches that were looked up and not handed out yet.
    #[cfg(test)]
    pub fn found(&self) -> usize {
        self.found
    }
}
