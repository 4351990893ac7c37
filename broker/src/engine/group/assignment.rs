//! Who holds which queue of a group: made at the group's home by a [`super::plan::Plan`], then shared with every shard as it is.
//!
//! ```text
//!  topics   t1 ─► [0, 2, -, 1]      queues 0, 1, …: the index of the holder, or none
//!           t2 ─► [1, 1]
//!  members  [m7, m3, nobody]        by index: who that is now
//! ```
//!
//! Rows name members by their indexes, so that nothing has to look at them where a member gets another id or is gone, and what is
//! as long as the group's queues is made once and never copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use xxhash_rust::xxh64::xxh64;

/// No member.
pub(super) const NOBODY: MemberId = MemberId(0);
/// No candidate, as an index.
pub(super) const NONE: u32 = u32::MAX;

/// XXH64 of a member's name: what decides between members that hold equally many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberHash(pub(super) u64);

impl MemberHash {
    pub fn of(name: &str) -> Self {
        Self(xxh64(name.as_bytes(), 0))
    }
}

/// A member that queues may be assigned to.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub id: MemberId,
    pub hash: MemberHash,
    /// The topics that it wants: ascending, each once.
    pub topics: Arc<[TopicId]>,
    /// It keeps what it holds for now, and gets nothing that anyone present wants.
    pub absent: bool,
}

/// By topic, the holders of queues 0, 1, … as indexes of members.
pub(super) type Rows = BTreeMap<TopicId, Vec<u32>>;

/// The holders of a group's queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    members: Vec<MemberId>,
    topics: Arc<Rows>,
}

impl Assignment {
    pub(super) fn new(members: Vec<MemberId>, topics: Rows) -> Self {
        Self { members, topics: Arc::new(topics) }
    }

    pub fn holder(&self, topic: TopicId, queue: QueueId) -> Option<MemberId> {
        self.member(*self.topics.get(&topic)?.get(queue.0 as usize)?)
    }

    /// Every queue that has a holder, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, QueueId, MemberId)> + '_ {
        self.topics.iter().flat_map(move |(&topic, holders)| {
            (0..).zip(holders).filter_map(move |(queue, &holder)| Some((topic, QueueId(queue), self.member(holder)?)))
        })
    }

    /// Nobody holds anything, as there is nobody.
    pub fn has_no_members(&self) -> bool {
        self.members.iter().all(|&member| member == NOBODY)
    }

    /// The queues of one member, ascending.
    pub(super) fn queues_of(&self, member: MemberId) -> Vec<(TopicId, QueueId)> {
        let Some(index) = self.members.iter().position(|&known| known == member) else { return Vec::new() };
        let index = index as u32;
        let mut queues = Vec::new();
        for (&topic, holders) in &*self.topics {
            let held = (0..).zip(holders).filter(|&(_, &holder)| holder == index);
            queues.extend(held.map(|(queue, _)| (topic, QueueId(queue))));
        }
        queues
    }

    /// Queues, whether or not somebody holds them.
    pub(super) fn rows(&self) -> usize {
        self.topics.values().map(Vec::len).sum()
    }

    /// Another id stands for the same member from now on.
    pub fn rename(&mut self, old: MemberId, new: MemberId) {
        for member in self.members.iter_mut().filter(|member| **member == old) {
            *member = new;
        }
    }

    pub(super) fn member(&self, index: u32) -> Option<MemberId> {
        self.members.get(index as usize).copied().filter(|&member| member != NOBODY)
    }

    /// The holders of topics from this one on, ascending.
    pub(super) fn topics_from(&self, topic: TopicId) -> impl Iterator<Item = (TopicId, &[u32])> {
        self.topics.range(topic..).map(|(&topic, holders)| (topic, &holders[..]))
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let rows: usize = self.topics.values().map(|holders| holders.capacity() * size_of::<u32>()).sum();
        rows + self.members.capacity() * size_of::<MemberId>()
    }

    /// These rows, ascending.
    #[cfg(test)]
    pub fn of(rows: impl IntoIterator<Item = (TopicId, QueueId, MemberId)>) -> Self {
        let mut members: Vec<MemberId> = Vec::new();
        let mut topics = Rows::new();
        for (topic, queue, member) in rows {
            let index = members.iter().position(|&known| known == member).unwrap_or_else(|| {
                members.push(member);
                members.len() - 1
            });
            let holders = topics.entry(topic).or_default();
            holders.resize(queue.0 as usize, NONE);
            holders.push(index as u32);
        }
        Self::new(members, topics)
    }
}
