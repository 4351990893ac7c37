//! The places that groups have in queues: how far each has acknowledged.
//!
//! ```text
//!   queue ─► GroupPlaces: (group, epoch, offset, end of entry) … ascending by group     32 bytes each
//!   group ─► GroupQueues: the slots of the queues in which it has a place                8 bytes each
//! ```
//!
//! Both grow by a quarter, so that neither takes much more than what it holds. The second list is there for deletion alone: a
//! deleted group looks at its own queues and at no others.

use peregrine_protocol::ids::{Epoch, GroupId, LogPosition, QueueOffset};
use rustc_hash::FxHashMap;

use crate::engine::queue::{QueueSlot, Queues};

/// Where one group stands in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedPlace {
    pub group: GroupId,
    /// All below (epoch, offset) is done; `epoch` wrote the last message below.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// Where the entry that put it there ends: who acknowledges the same again waits for that.
    pub entry_end: LogPosition,
}

/// The places in one queue.
#[derive(Debug, Default)]
pub struct GroupPlaces {
    /// Ascending by group.
    places: Vec<CommittedPlace>,
}

impl GroupPlaces {
    pub fn get(&self, group: GroupId) -> Option<&CommittedPlace> {
        self.find(group).ok().map(|at| &self.places[at])
    }

    /// Puts a group there. True when it had no place in this queue.
    pub fn set(&mut self, place: CommittedPlace) -> bool {
        match self.find(place.group) {
            Ok(at) => {
                self.places[at] = place;
                false
            }
            Err(at) => {
                grow_by_a_quarter(&mut self.places);
                self.places.insert(at, place);
                true
            }
        }
    }

    pub fn remove(&mut self, group: GroupId) {
        if let Ok(at) = self.find(group) {
            self.places.remove(at);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &CommittedPlace> {
        self.places.iter()
    }

    /// Those of the groups above `group`.
    pub fn above(&self, group: GroupId) -> &[CommittedPlace] {
        &self.places[self.places.partition_point(|place| place.group <= group)..]
    }

    pub fn retain(&mut self, keeps: impl FnMut(&CommittedPlace) -> bool) {
        self.places.retain(keeps);
    }

    fn find(&self, group: GroupId) -> Result<usize, usize> {
        self.places.binary_search_by_key(&group, |place| place.group)
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        self.places.capacity() * size_of::<CommittedPlace>()
    }
}

/// In which queues of this shard each group has a place.
#[derive(Debug, Default)]
pub struct GroupQueues {
    slots: FxHashMap<GroupId, Vec<QueueSlot>>,
}

impl GroupQueues {
    /// The group has its first place in that queue.
    pub fn note(&mut self, group: GroupId, slot: QueueSlot) {
        let slots = self.slots.entry(group).or_default();
        grow_by_a_quarter(slots);
        slots.push(slot);
    }

    /// The group was deleted: so are its places.
    pub fn forget_group(&mut self, group: GroupId, queues: &mut Queues) {
        for slot in self.slots.remove(&group).unwrap_or_default() {
            if let Some(queue) = queues.get_mut(slot) {
                queue.groups.remove(group);
            }
        }
    }

    /// Queues in which this group had a place were deleted.
    pub fn forget_deleted_queues(&mut self, group: GroupId, queues: &Queues) {
        let Some(slots) = self.slots.get_mut(&group) else { return };
        slots.retain(|&slot| queues.get(slot).is_some());
        if slots.is_empty() {
            self.slots.remove(&group);
        }
    }

    /// Every place anew, of the queues that there are.
    pub fn restore(&mut self, queues: &Queues) {
        self.slots.clear();
        for (slot, queue) in queues.in_slots() {
            queue.groups.iter().for_each(|place| self.note(place.group, slot));
        }
    }

    /// Places of all groups together.
    pub fn places(&self) -> usize {
        self.slots.values().map(Vec::len).sum()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let slots: usize = self.slots.values().map(|slots| slots.capacity() * size_of::<QueueSlot>()).sum();
        slots + self.slots.capacity() * (size_of::<(GroupId, Vec<QueueSlot>)>() + 1)
    }
}

fn grow_by_a_quarter<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 1);
    }
}
