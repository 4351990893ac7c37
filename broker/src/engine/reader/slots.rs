//! Where readers stand. A slot is used again under a new generation, so that a key of one that is gone names nobody.

use peregrine_protocol::ids::{QueueOffset, SubscriptionId, TopicId};

use super::{Credit, Reader, ReaderOwner, ReaderState, Readers, Turn, add_credit};
use crate::engine::index::IndexCursor;
use crate::engine::queue::QueueSlot;
use crate::engine::refusal::Refusal;
use crate::limits;

/// Generations of a slot before they begin again: 22 bits, so that ids leave ten bits for the shard on the wire.
const GENERATIONS: u32 = (1 << 22) - 1;

/// Names a subscription within this engine, while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl ReaderKey {
    pub fn id(self) -> SubscriptionId {
        SubscriptionId(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    pub(super) fn of(id: SubscriptionId) -> Self {
        Self { index: id.0 as u32, generation: (id.0 >> 32) as u32 }
    }
}

#[derive(Debug)]
pub(super) struct ReaderSlot {
    pub(super) generation: u32,
    pub(super) reader: Option<Reader>,
}

impl Readers {
    pub(super) fn make(
        &mut self,
        owner: ReaderOwner,
        queue: QueueSlot,
        topic: TopicId,
        credit: Credit,
        turn: Option<Box<Turn>>,
    ) -> Result<ReaderKey, Refusal> {
        if self.len() >= limits::SUBSCRIPTIONS_MAX {
            return Err(Refusal::LimitReached("subscriptions"));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(ReaderSlot { generation: 0, reader: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[index as usize];
        let key = ReaderKey { index, generation: place.generation };
        let owned = self.by_owner.entry(owner).or_default();
        let reader = place.reader.insert(Reader {
            owner,
            queue,
            topic,
            next: QueueOffset(0),
            cursor: IndexCursor::default(),
            found: None,
            messages: 0,
            bytes: 0,
            state: ReaderState::StandBy,
            owned_at: owned.len() as u32,
            turn,
        });
        owned.push(key);
        add_credit(reader, credit);
        Ok(key)
    }

    pub(super) fn get(&self, key: ReaderKey) -> Option<&Reader> {
        let place = self.slots.get(key.index as usize)?;
        if place.generation == key.generation { place.reader.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, key: ReaderKey) -> Option<&mut Reader> {
        reader_mut(&mut self.slots, key)
    }

    /// The key of a subscription, if it is this owner's and its topic still exists.
    pub(super) fn owned(&self, owner: ReaderOwner, id: SubscriptionId) -> Result<ReaderKey, Refusal> {
        let key = ReaderKey::of(id);
        match self.get(key) {
            Some(reader) if reader.owner == owner && !matches!(reader.state, ReaderState::Ended(_)) => Ok(key),
            _ => Err(Refusal::UnknownSubscription),
        }
    }

    pub(super) fn remove(&mut self, key: ReaderKey) -> Reader {
        let place = &mut self.slots[key.index as usize];
        assert!(place.generation == key.generation, "a reader is removed once");
        place.generation = place.generation.wrapping_add(1) & GENERATIONS;
        let Some(reader) = place.reader.take() else { unreachable!("a reader is removed once") };
        self.free.push(key.index);
        self.found -= reader.found.as_ref().map_or(0, |found| found.batches.len());
        let Some(owned) = self.by_owner.get_mut(&reader.owner) else { unreachable!("a reader has an owner") };
        owned.swap_remove(reader.owned_at as usize);
        if let Some(&moved) = owned.get(reader.owned_at as usize) {
            let Some(moved) = reader_mut(&mut self.slots, moved) else { unreachable!("an owned reader lives") };
            moved.owned_at = reader.owned_at;
        } else if owned.is_empty() {
            self.by_owner.remove(&reader.owner);
        }
        reader
    }
}

pub(super) fn reader_mut(slots: &mut [ReaderSlot], key: ReaderKey) -> Option<&mut Reader> {
    let place = slots.get_mut(key.index as usize)?;
    if place.generation == key.generation { place.reader.as_mut() } else { None }
}
