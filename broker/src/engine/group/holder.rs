//! Whose turn it is with each queue of each group, at the shard that owns the queue.
//!
//! ```text
//!  holder ──► the member that the group's home wants to have the queue; it may not have subscribed yet
//!  active ──► the one subscription that is served: its member is the holder, or the queue is being drained
//!  waiting ─► subscriptions of other members, one of each, whose turn may come
//! ```
//!
//! This is the table alone; `turns` carries out what follows from it. A queue stands here while it has a holder or a
//! subscription, or while messages of it that were handed out are not acknowledged. Nothing here is durable: a start ends the
//! subscriptions, and the homes assign anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use peregrine_protocol::ids::{GroupId, MemberId, Nanos, QueueId, QueueOffset, TopicId};
use rustc_hash::FxHashMap;

use super::attempts::Attempts;
use super::fault::PlantedInGroups;
use crate::engine::queue::QueueKey;
use crate::engine::reader::ReaderKey;

/// A queue in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    pub group: GroupId,
    pub queue: QueueKey,
}

/// The subscription that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    pub member: MemberId,
    pub reader: ReaderKey,
    /// The queue is to go to somebody else, and does so at this time at the latest.
    pub drained_by: Option<Nanos>,
}

/// Whose turn it is with one queue in one group.
#[derive(Debug, Default)]
pub struct Holding {
    pub holder: Option<MemberId>,
    pub active: Option<Active>,
    /// In the order in which they came, one of each member.
    pub waiting: Vec<(MemberId, ReaderKey)>,
    pub attempts: Attempts,
    /// Where the group began, until its place stands in the log: a second member must not begin behind what a first one had.
    pub began: Option<QueueOffset>,
}

impl Holding {
    /// Takes out the waiting subscription of the holder.
    pub fn take_next(&mut self) -> Option<(MemberId, ReaderKey)> {
        let holder = self.holder?;
        let at = self.waiting.iter().position(|&(member, _)| member == holder)?;
        Some(self.waiting.remove(at))
    }

    fn is_blank(&self) -> bool {
        let Self { holder, active, waiting, attempts, began } = self;
        holder.is_none() && active.is_none() && waiting.is_empty() && attempts.is_empty() && began.is_none()
    }

    /// Its subscriptions, the active one first.
    pub fn readers(&self) -> impl Iterator<Item = ReaderKey> {
        self.active.map(|active| active.reader).into_iter().chain(self.waiting.iter().map(|&(_, reader)| reader))
    }
}

/// The queues of this shard that are in use by groups.
#[derive(Debug, Default)]
pub struct Holders {
    holdings: BTreeMap<Share, Holding>,
    /// The newest assignment of each group.
    numbers: FxHashMap<GroupId, u64>,
    drains: BTreeSet<(Nanos, Share)>,
    /// Queues in which a group began and has no place in the log.
    begun: VecDeque<Share>,
    pub planted: Option<PlantedInGroups>,
}

impl Holders {
    pub fn get(&self, share: Share) -> Option<&Holding> {
        self.holdings.get(&share)
    }

    pub fn get_mut(&mut self, share: Share) -> Option<&mut Holding> {
        self.holdings.get_mut(&share)
    }

    pub fn find_or_make(&mut self, share: Share) -> &mut Holding {
        self.holdings.entry(share).or_default()
    }

    /// Forgets what says nothing any more.
    pub fn tidy(&mut self, share: Share) {
        if self.holdings.get(&share).is_some_and(Holding::is_blank) {
            self.holdings.remove(&share);
        }
    }

    /// Takes in an assignment, unless a newer one is known. Returns the group's queues here, those that lost their holder
    /// included.
    pub fn assign(
        &mut self,
        group: GroupId,
        number: u64,
        holders: &BTreeMap<QueueKey, MemberId>,
    ) -> Option<Vec<Share>> {
        let newest = self.numbers.entry(group).or_default();
        if number <= *newest && self.planted != Some(PlantedInGroups::TakeOlderAssignment) {
            return None;
        }
        *newest = number;
        if holders.is_empty() {
            // The last member is gone, and with it the need to remember; the next first number is higher than any before.
            self.numbers.remove(&group);
        }
        for (&queue, &holder) in holders {
            self.find_or_make(Share { group, queue }).holder = Some(holder);
        }
        let shares = self.shares_of(group);
        for share in &shares {
            if let Some(holding) = self.holdings.get_mut(share).filter(|_| !holders.contains_key(&share.queue)) {
                holding.holder = None;
            }
        }
        Some(shares)
    }

    fn shares_of(&self, group: GroupId) -> Vec<Share> {
        let first = Share { group, queue: QueueKey { topic: TopicId(0), queue: QueueId(0) } };
        let last = Share { group, queue: QueueKey { topic: TopicId(u64::MAX), queue: QueueId(u32::MAX) } };
        self.holdings.range(first..=last).map(|(&share, _)| share).collect()
    }

    // Drains.

    pub fn begin_drain(&mut self, share: Share, until: Nanos) {
        if let Some(active) = self.holdings.get_mut(&share).and_then(|holding| holding.active.as_mut()) {
            active.drained_by = Some(until);
            self.drains.insert((until, share));
        }
    }

    /// The active subscription's turn is over.
    pub fn take_active(&mut self, share: Share) -> Option<Active> {
        let active = self.holdings.get_mut(&share)?.active.take()?;
        if let Some(until) = active.drained_by {
            self.drains.remove(&(until, share));
        }
        Some(active)
    }

    pub fn next_deadline(&self) -> Option<Nanos> {
        self.drains.first().map(|&(until, _)| until)
    }

    /// A queue whose drain must end now.
    pub fn overdue(&self, now: Nanos) -> Option<Share> {
        self.drains.first().filter(|&&(until, _)| until <= now).map(|&(_, share)| share)
    }

    // Beginnings.

    /// The group begins in that queue at `place`, and nothing in the log says so yet.
    pub fn note_beginning(&mut self, share: Share, place: QueueOffset) {
        if let Some(holding) = self.holdings.get_mut(&share)
            && holding.began.is_none()
            && self.planted != Some(PlantedInGroups::BeginAnew)
        {
            holding.began = Some(place);
            self.begun.push_back(share);
        }
    }

    /// A queue whose group's beginning has still to be written down, and that beginning.
    pub fn first_beginning(&mut self) -> Option<(Share, QueueOffset)> {
        loop {
            let &share = self.begun.front()?;
            if let Some(place) = self.holdings.get(&share).and_then(|holding| holding.began) {
                return Some((share, place));
            }
            self.begun.pop_front();
        }
    }

    // Ends.

    /// The group is gone. Returns the subscriptions that end with it.
    pub fn forget_group(&mut self, group: GroupId) -> Vec<ReaderKey> {
        self.numbers.remove(&group);
        self.shares_of(group).into_iter().flat_map(|share| self.forget(share)).collect()
    }

    /// The topic is gone, and its subscriptions have ended. Looks at every queue in use, as deletion is rare.
    pub fn forget_topic(&mut self, topic: TopicId) {
        let shares: Vec<Share> = self.holdings.keys().copied().filter(|share| share.queue.topic == topic).collect();
        for share in shares {
            self.forget(share);
        }
    }

    fn forget(&mut self, share: Share) -> Vec<ReaderKey> {
        let readers = self.holdings.get(&share).map(|holding| holding.readers().collect()).unwrap_or_default();
        self.take_active(share);
        self.holdings.remove(&share);
        readers
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.numbers.is_empty() && self.drains.is_empty()
    }
}
