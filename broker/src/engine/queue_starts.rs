//! Retention: queues that keep their messages from an offset on, and how that moves.
//!
//! Which messages are too old is decided outside, by time and by bytes; here it becomes an entry and, applied, the queue's *start*.
//! A reader behind it is told, a group's member goes on at it. The bytes go only later, when checkpoints know the start too.
//!
//! The payload of a `QueueStarts` entry, little endian:
//!
//! ```text
//!  0              4               8
//! ┌──────────────┬───────────────┬──────────────┬───────────┬──────────┬────────────┐
//! │ version  u32 │ rows      u32 │ topic id u64 │ queue u32 │ zero u32 │ offset u64 │ × rows
//! └──────────────┴───────────────┴──────────────┴───────────┴──────────┴────────────┘
//! ```
//!
//! Rows ascend by (topic, queue). A start never goes back.

use peregrine_protocol::entry::{EntryDraft, EntryFlags, EntryHeader, EntryKind};
use peregrine_protocol::ids::{DurableLevel, LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::queue::QueueKey;
use super::{Applied, ApplyErrorReason, Engine, Phase};
use crate::limits::{QUEUE_SLOTS_LOOKED_AT, QUEUE_STARTS_ROWS, QUEUES_SURVEYED};

const VERSION: u32 = 1;
const HEAD: usize = 8;
const ROW: usize = 24;

/// From where on a queue is to keep its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStart {
    pub queue: QueueKey,
    pub start: QueueOffset,
}

/// What memory has of a queue behind a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepingQueue {
    pub queue: QueueKey,
    /// The first of its messages that memory knows to stand there; its visible end where there is none.
    pub held: QueueOffset,
    /// What memory dropped of the queue, which the indexes of sealed segments know, stands below.
    pub dropped_to: LogPosition,
}

/// An entry that moves starts: append `draft` with `payload` and apply it in the same turn, or drop it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartsEntry {
    pub draft: EntryDraft,
    pub payload: Vec<u8>,
}

/// Why a `QueueStarts` entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartsError {
    #[error("queue starts of version {0}, this program knows {VERSION}: a newer program wrote them")]
    Version(u32),
    #[error("{0} bytes of queue starts do not hold what they announce")]
    Length(usize),
    #[error("the rows of queue starts do not ascend")]
    Order,
}

impl Engine {
    /// Decides to move the starts of queues, [`QUEUE_STARTS_ROWS`] at most, in ascending order. What no reader sees yet stays;
    /// queues that are there already, or whose topic is gone, are passed over; none where all are.
    pub fn decide_starts(&self, wanted: &[QueueStart], now: Nanos) -> Option<StartsEntry> {
        assert!(
            wanted.len() <= QUEUE_STARTS_ROWS && self.phase == Phase::Running,
            "a slice of a running engine's queues"
        );
        let rows: Vec<QueueStart> = wanted
            .iter()
            .filter_map(|&QueueStart { queue: key, start }| {
                let queue = self.queues.by_key(key)?;
                let start = start.min(queue.visible);
                (queue.start < start).then_some(QueueStart { queue: key, start })
            })
            .collect();
        self.starts_entry(&rows, now)
    }

    /// Says once more where a queue's messages begin, whichever queue: an entry that changes nothing, for whoever waits for the log to
    /// go on. None where no queue has had a message: a start does not know the others again.
    pub fn restate_a_start(&self, now: Nanos) -> Option<StartsEntry> {
        let queue = self.queues.iter().find(|queue| queue.end > QueueOffset(0))?;
        self.starts_entry(&[QueueStart { queue: queue.key, start: queue.start }], now)
    }

    fn starts_entry(&self, rows: &[QueueStart], now: Nanos) -> Option<StartsEntry> {
        let first = rows.first()?.queue;
        let payload = encode(rows);
        let draft = EntryDraft {
            flags: EntryFlags::for_level(DurableLevel::Memory),
            topic: first.topic,
            queue: first.queue,
            ..EntryDraft::without_records(EntryKind::QueueStarts, &payload, self.store_time_at(now))
        };
        Some(StartsEntry { draft, payload })
    }

    /// Queues that keep anything, from the slot of that number on, and what memory has of each behind `position`: [`QUEUES_SURVEYED`]
    /// at most. And where to go on; `None` behind the last.
    pub fn keeping_queues(&self, from: u32, position: LogPosition) -> (Vec<KeepingQueue>, Option<u32>) {
        let (mut keeping, mut next) = (Vec::new(), from);
        let to = self.queues.slots().min(from.saturating_add(QUEUE_SLOTS_LOOKED_AT));
        while next < to && keeping.len() < QUEUES_SURVEYED {
            let queue = self.queues.in_slot(next).map(|(_, queue)| queue);
            keeping.extend(queue.filter(|queue| queue.start < queue.visible).map(|queue| KeepingQueue {
                queue: queue.key,
                held: queue.index.first_behind(position).map_or(queue.visible, |entry| entry.offset),
                dropped_to: queue.index.dropped_to().min(self.indexed_to),
            }));
            next += 1;
        }
        (keeping, Some(next).filter(|next| *next < self.queues.slots()))
    }

    pub(super) fn apply_queue_starts(
        &mut self,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<Applied, ApplyErrorReason> {
        let rows = decode(payload)?;
        let is_torn = self.is_torn(header.position);
        for row in &rows {
            let QueueStart { queue: QueueKey { topic, queue }, start } = *row;
            let end = self.queues.by_key(row.queue).map(|found| found.end);
            if self.check_stored_queue(topic, queue)? && !is_torn && end.is_none_or(|end| end < start) {
                return Err(ApplyErrorReason::QueueStart(topic, queue, start));
            }
        }
        for row in rows {
            let slot = self.queues.find(row.queue);
            if let Some(queue) = slot.and_then(|slot| self.queues.get_mut(slot)) {
                queue.start = queue.start.max(row.start.min(queue.end));
            }
        }
        Ok(Applied::QueueStarts)
    }
}

fn encode(rows: &[QueueStart]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + rows.len() * ROW);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    for QueueStart { queue, start } in rows {
        bytes.extend_from_slice(&queue.topic.0.to_le_bytes());
        bytes.extend_from_slice(&queue.queue.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&start.0.to_le_bytes());
    }
    bytes
}

fn decode(payload: &[u8]) -> Result<Vec<QueueStart>, StartsError> {
    let length = || StartsError::Length(payload.len());
    let (head, rest) = payload.split_first_chunk::<HEAD>().ok_or_else(length)?;
    let (version, count) = (u32_at(head, 0), u32_at(head, 4));
    if version != VERSION {
        return Err(StartsError::Version(version));
    }
    let (rows, remainder) = rest.as_chunks::<ROW>();
    if !remainder.is_empty()
        || rows.len() != count as usize
        || count == 0
        || rows.iter().any(|row| u32_at(row, 12) != 0)
    {
        return Err(length());
    }
    let rows: Vec<QueueStart> = rows
        .iter()
        .map(|row| QueueStart {
            queue: QueueKey { topic: TopicId(u64_at(row, 0)), queue: QueueId(u32_at(row, 8)) },
            start: QueueOffset(u64_at(row, 16)),
        })
        .collect();
    if rows.is_sorted_by(|a, b| a.queue < b.queue) { Ok(rows) } else { Err(StartsError::Order) }
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(topic: u64, queue: u32, start: u64) -> QueueStart {
        QueueStart { queue: QueueKey { topic: TopicId(topic), queue: QueueId(queue) }, start: QueueOffset(start) }
    }

    /// The bytes of version 1. If this fails, old logs can no longer be read: raise [`VERSION`] instead.
    #[test]
    fn golden_bytes_of_version_1() {
        let expected = [
            &[1, 0, 0, 0, 1, 0, 0, 0][..],
            &[0x22, 1, 0, 0, 0, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0, 0x44, 0, 0, 0, 0, 0, 0, 0x80],
        ];
        assert_eq!(encode(&[row(0x0122, 0x33, 0x44 | 1 << 63)]), expected.concat());
        assert_eq!(EntryKind::QueueStarts as u8, 6);
    }

    #[test]
    fn what_is_cut_unknown_or_out_of_order_is_refused() {
        let good = encode(&[row(1, 1, 5), row(1, 2, 5)]);
        for end in 0..good.len() {
            assert_eq!(decode(&good[..end]), Err(StartsError::Length(end)));
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            decode(&bytes)
        };
        assert_eq!(changed(0, 2), Err(StartsError::Version(2)));
        assert_eq!(changed(HEAD + 12, 1), Err(StartsError::Length(good.len())));
        assert_eq!(changed(HEAD + 8, 2), Err(StartsError::Order), "the same queue twice");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(rows) = decode(&bytes) {
                prop_assert_eq!(encode(&rows), bytes);
            }
        }
    }
}
