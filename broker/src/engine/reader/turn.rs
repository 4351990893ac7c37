//! Subscriptions of groups' members: their turn begins, is revoked, ends.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, QueueOffset, SubscriptionId};

use super::slots::reader_mut;
use super::{Credit, ReaderKey, ReaderOwner, ReaderState, Readers};
use crate::engine::group::Attempts;
use crate::engine::queue::{QueueKey, QueueSlot, Queues};
use crate::engine::refusal::Refusal;

/// What the subscription of a group's member is for.
#[derive(Clone, Debug)]
pub struct Turn {
    pub group: GroupId,
    pub queue: QueueKey,
    /// Of what is handed out again.
    pub attempts: Attempts,
}

/// A member's subscription that is gone.
#[derive(Debug)]
pub struct TurnLeft {
    pub key: ReaderKey,
    pub group: GroupId,
    pub queue: QueueKey,
    /// The offset behind the last message that it was handed.
    pub delivered_end: QueueOffset,
}

impl Readers {
    /// Adds the subscription of a group's member; it stands by until [`Self::activate`].
    pub fn add_turn(
        &mut self,
        owner: ReaderOwner,
        slot: QueueSlot,
        turn: Turn,
        credit: Credit,
    ) -> Result<ReaderKey, Refusal> {
        self.make(owner, slot, turn.queue.topic, credit, Some(Box::new(turn)))
    }

    /// It is this subscription's turn: its messages come from `start` on.
    pub fn activate(&mut self, key: ReaderKey, start: QueueOffset, attempts: Attempts, queues: &mut Queues) {
        let Some(reader) = self.get_mut(key) else { unreachable!("a subscription that stands by lives") };
        assert!(reader.state == ReaderState::StandBy, "a turn begins once");
        if let Some(turn) = &mut reader.turn {
            turn.attempts = attempts;
        }
        let Some(queue) = queues.get_mut(reader.queue) else { unreachable!("a deleted queue's readers have ended") };
        self.begin(key, queue, start);
    }

    /// Nothing more comes; its owner is to be told, after the last batch.
    pub fn revoke(&mut self, key: ReaderKey, queues: &mut Queues) {
        match self.get_mut(key) {
            Some(reader) if reader.state == ReaderState::Taken => reader.state = ReaderState::LastTaken,
            _ => self.stop(key, ReaderState::Revoking, queues),
        }
    }

    /// It ends; its owner is to be told why.
    pub fn end(&mut self, key: ReaderKey, code: ErrorCode, queues: &mut Queues) {
        self.stop(key, ReaderState::Ended(code), queues);
    }

    /// The offset behind the last message that it was handed.
    pub fn delivered_end(&self, key: ReaderKey) -> QueueOffset {
        let Some(reader) = self.get(key) else { unreachable!("a turn's subscription lives") };
        reader.next
    }

    /// What an owner's subscription is for: `None` for a reader; the offset behind the last message that it was handed.
    pub fn turn_of(
        &self,
        owner: ReaderOwner,
        id: SubscriptionId,
    ) -> Result<Option<(&Turn, ReaderKey, QueueOffset)>, Refusal> {
        let key = self.owned(owner, id)?;
        let Some(reader) = self.get(key) else { unreachable!("an owned reader lives") };
        Ok(reader.turn.as_deref().map(|turn| (turn, key, reader.next)))
    }

    fn stop(&mut self, key: ReaderKey, state: ReaderState, queues: &mut Queues) {
        let Some(reader) = reader_mut(&mut self.slots, key) else { unreachable!("the caller looked it up") };
        if reader.state == ReaderState::Waiting
            && let Some(queue) = queues.get_mut(reader.queue)
        {
            queue.waiting.retain(|&other| other != key);
        }
        reader.state = state;
        self.ready.push_back(key);
    }
}
