//! Whose turn it is with each queue of each group, at the shard that owns the queue.
//!
//! ```text
//!  holder ──► the member that the group's home wants to have the queue; it may not have subscribed yet (`following`)
//!  active ──► the one subscription that is served: its member is the holder, or the queue is being drained
//!  waiting ─► subscriptions of other members, one of each, whose turn may come
//! ```
//!
//! This is the table alone; `turns` carries out what follows from it. A queue stands here while it has a subscription, or while
//! messages of it that were handed out are not acknowledged; who is to hold which stands in the newest assignment of each group.
//! Nothing here is durable: a start ends the subscriptions, and the homes assign anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use peregrine_protocol::ids::{GroupId, MemberId, Nanos, QueueId, QueueOffset, TopicId};

use super::attempts::Attempts;
use super::fault::PlantedInGroups;
use super::following::Following;
use crate::engine::indexed::IndexQuestion;
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

/// A member that was handed what is not acknowledged, and whose subscription was lost with its connection: it may still work on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub member: MemberId,
    /// When another member may have the queue at the latest; `None` while no other is to have it.
    pub until: Option<Nanos>,
}

/// Whose turn it is with one queue in one group.
#[derive(Debug, Default)]
pub struct Holding {
    /// Of the newest assignment that was looked at for it.
    pub followed: u64,
    pub active: Option<Active>,
    /// While nobody is served.
    pub lost: Option<Lost>,
    /// In the order in which they came, one of each member.
    pub waiting: Vec<(MemberId, ReaderKey)>,
    pub attempts: Attempts,
    /// Where the group began, until its place stands in the log: a second member must not begin behind what a first one had.
    pub began: Option<QueueOffset>,
}

impl Holding {
    /// Takes out the waiting subscription of the holder.
    pub fn take_next(&mut self, holder: MemberId) -> Option<(MemberId, ReaderKey)> {
        let at = self.waiting.iter().position(|&(member, _)| member == holder)?;
        Some(self.waiting.remove(at))
    }

    fn is_blank(&self) -> bool {
        let Self { followed: _, active, lost, waiting, attempts, began } = self;
        active.is_none() && lost.is_none() && waiting.is_empty() && attempts.is_empty() && began.is_none()
    }

    /// Its subscriptions, the active one first.
    pub fn readers(&self) -> impl Iterator<Item = ReaderKey> {
        self.active.map(|active| active.reader).into_iter().chain(self.waiting.iter().map(|&(_, reader)| reader))
    }
}

/// The queues of this shard that are in use by groups.
#[derive(Debug, Default)]
pub struct Holders {
    pub(super) holdings: BTreeMap<Share, Holding>,
    pub following: Following,
    drains: BTreeSet<(Nanos, Share)>,
    /// Queues in which a group began and has no place in the log.
    begun: VecDeque<Share>,
    /// Queues whose next turn waits until it was looked up where the group begins.
    unplaced: BTreeMap<Share, IndexQuestion>,
    /// What is to be looked up for them.
    questions: VecDeque<IndexQuestion>,
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

    /// The group's first queue here behind that one.
    pub fn next_of(&self, group: GroupId, behind: Option<QueueKey>) -> Option<Share> {
        let first = Share { group, queue: QueueKey { topic: TopicId(0), queue: QueueId(0) } };
        let from = behind.map_or(Bound::Included(first), |queue| Bound::Excluded(Share { group, queue }));
        let (&share, _) = self.holdings.range((from, Bound::Unbounded)).next()?;
        (share.group == group).then_some(share)
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

    /// The active subscription of that member is lost, with messages in its hands.
    pub fn note_lost(&mut self, share: Share, lost: Lost) {
        if let Some(holding) = self.holdings.get_mut(&share) {
            holding.lost = Some(lost);
            self.drains.extend(lost.until.map(|until| (until, share)));
        }
    }

    /// Nobody waits for the member that was lost any longer.
    pub fn forget_lost(&mut self, share: Share) {
        let lost = self.holdings.get_mut(&share).and_then(|holding| holding.lost.take());
        if let Some(until) = lost.and_then(|lost| lost.until) {
            self.drains.remove(&(until, share));
        }
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

    /// Where the group begins in that queue has to be looked up before it is anybody's turn.
    pub fn note_unplaced(&mut self, share: Share, question: IndexQuestion) {
        if self.unplaced.insert(share, question).is_none() {
            self.questions.push_back(question);
        }
    }

    pub fn next_question(&mut self) -> Option<IndexQuestion> {
        self.questions.pop_front()
    }

    /// A queue that waited for the answer to that question.
    pub fn take_unplaced(&mut self, question: &IndexQuestion) -> Option<Share> {
        let share = self.unplaced.iter().find(|(_, asked)| *asked == question).map(|(&share, _)| share)?;
        self.unplaced.remove(&share);
        Some(share)
    }

    // Ends.

    /// The group is gone. Returns the subscriptions that end with it.
    pub fn forget_group(&mut self, group: GroupId) -> Vec<ReaderKey> {
        self.following.forget(group);
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
        self.forget_lost(share);
        self.holdings.remove(&share);
        readers
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.following.is_empty() && self.drains.is_empty()
    }
}
