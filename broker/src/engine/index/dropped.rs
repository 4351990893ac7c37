//! What a queue's index still knows of the batches that it dropped, because the indexes of sealed segments have them.

use std::collections::VecDeque;

use peregrine_protocol::ids::{Nanos, QueueOffset};

use super::IndexEntry;
use crate::limits;

/// The answer stands in the indexes of sealed segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld;

/// What may have to be looked up there: one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The first that was stored at that time or later.
    Time(Nanos),
    /// The one that holds that offset, or the first behind it.
    Offset(QueueOffset),
}

#[derive(Debug, Default)]
struct Known(VecDeque<(Asked, QueueOffset, Nanos)>);

#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Batches from here on are held; 0 where none was dropped.
    pub end: u64,
    /// None of those dropped was stored later.
    pub last_time: u64,
    /// What was looked up, and where the batch begins and when it was stored. It stays true, as nothing is put before what is
    /// stored. Boxed, since hardly any queue is asked.
    found: Option<Box<Known>>,
}

impl Dropped {
    /// The first batch dropped that was stored at `time` or later; `None` where all were stored before.
    pub fn at_time(&self, time: Nanos) -> Result<Option<QueueOffset>, NotHeld> {
        if self.end == 0 || time.0 > self.last_time {
            return Ok(None);
        }
        self.find(Asked::Time(time)).map(|(offset, _)| Some(offset))
    }

    /// When the batch dropped that holds `offset` was stored.
    pub fn time_at(&self, offset: QueueOffset) -> Result<Nanos, NotHeld> {
        self.find(Asked::Offset(offset)).map(|(_, time)| time)
    }

    /// The indexes were asked for a batch of those below `below`.
    pub fn answered(&mut self, asked: Asked, below: QueueOffset, found: Option<&IndexEntry>) {
        let answer = match (found, asked) {
            (Some(entry), _) => (entry.offset, entry.store_time),
            // They lack what was lost: as if it had been stored last.
            (None, Asked::Offset(_)) => (below, Nanos(self.last_time)),
            (None, Asked::Time(time)) => {
                // Else more was dropped meanwhile, of which nothing was asked.
                if below.0 == self.end {
                    self.last_time = self.last_time.min(time.0.saturating_sub(1));
                }
                return;
            }
        };
        let Known(known) = &mut **self.found.get_or_insert_default();
        if known.len() == limits::BATCHES_FOUND_MAX {
            known.pop_front();
        }
        known.push_back((asked, answer.0, answer.1));
    }

    fn find(&self, asked: Asked) -> Result<(QueueOffset, Nanos), NotHeld> {
        let mut known = self.found.iter().flat_map(|known| known.0.iter());
        known.find(|(other, ..)| *other == asked).map(|&(_, offset, time)| (offset, time)).ok_or(NotHeld)
    }
}
