//! What the shard does for a subscription: the batch that it sends, or what it says.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{LogPosition, QueueOffset, SubscriptionId};

use super::ReaderOwner;
use crate::engine::index::IndexEntry;
use crate::engine::indexed::IndexQuestion;
use crate::engine::queue::QueueKey;

/// A batch to deliver: where it stands, and which of its messages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlace {
    /// Position of its entry header; the payload follows.
    pub position: LogPosition,
    /// Bytes of payload.
    pub length: u32,
    /// Offset of its first record.
    pub base_offset: QueueOffset,
    pub records: u32,
    /// Offset of the first record that the reader wants: within the batch.
    pub first_wanted: QueueOffset,
    /// For a group's member: how often that record has been handed out with this, 1 for the first time. 0 for a reader.
    pub attempt: u16,
}

impl BatchPlace {
    /// The batch `entry` for a reader that stands at `next`.
    pub fn for_reader(entry: &IndexEntry, next: QueueOffset) -> Self {
        Self {
            position: entry.position,
            length: entry.length,
            base_offset: entry.offset,
            records: entry.records,
            first_wanted: next.max(entry.offset),
            attempt: 0,
        }
    }

    /// The offset behind the batch.
    pub fn end_offset(&self) -> QueueOffset {
        self.base_offset + u64::from(self.records)
    }

    /// Messages of it that the reader wants.
    pub fn wanted(&self) -> u64 {
        self.end_offset() - self.first_wanted
    }
}

/// What the shard does next for a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Send this batch; the credit for it is taken. Then call [`crate::engine::Engine::delivered`].
    Batch { owner: ReaderOwner, subscription: SubscriptionId, batch: BatchPlace },
    /// Look up the batches of this queue from `offset` on in the indexes of sealed segments, at most [`crate::limits::LOOK_UP_BATCHES`]
    /// of them; they stand behind `behind`. Then call [`crate::engine::Engine::looked_up`] with what is found, and with `below`, from
    /// where on the queue is known here.
    LookUp {
        owner: ReaderOwner,
        subscription: SubscriptionId,
        queue: QueueKey,
        offset: QueueOffset,
        below: QueueOffset,
        behind: LogPosition,
    },
    /// Look up one batch there, and call [`crate::engine::Engine::answered`].
    Ask { question: IndexQuestion },
    /// The queue is to go to another member: say so. No batch follows. The member acknowledges what it is done with, or ends the
    /// subscription; else [`Delivery::Ended`] follows.
    Revoked { owner: ReaderOwner, subscription: SubscriptionId },
    /// The subscription has ended: say why. What was handed out and not sent yet is not to be sent any more.
    Ended { owner: ReaderOwner, subscription: SubscriptionId, code: ErrorCode },
}
