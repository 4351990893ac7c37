//! The members of one group at its home, and the assignment that they share.

use std::collections::BTreeMap;
use std::sync::Arc;

use peregrine_protocol::ids::{GroupId, MemberId, Nanos, QueueId, TopicId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::assignment::{Assignment, Candidate, MemberHash};
use super::home::HomeEffect;
use crate::engine::reader::ReaderOwner;

/// Somebody who joined.
#[derive(Debug)]
pub struct Member {
    pub id: MemberId,
    pub hash: MemberHash,
    pub client: Box<str>,
    pub topics: Box<[TopicId]>,
    pub joined: Nanos,
    /// Its connection, while that is open.
    pub owner: Option<ReaderOwner>,
    /// When it was last heard of.
    pub heard: Nanos,
    /// Lost or silent: it has until `due` to come back.
    pub absent: bool,
    /// When it stands in the list of timers.
    pub due: Nanos,
    /// Of the assignment that it was told last; 0: none.
    pub told: u64,
    /// It has to be told its queues whether or not they change.
    pub untold: bool,
    pub queues: u32,
}

/// The members of one group.
#[derive(Debug)]
pub struct Roster {
    /// By name.
    pub members: BTreeMap<Arc<str>, Member>,
    pub names: FxHashMap<MemberId, Arc<str>>,
    pub assignment: Assignment,
    /// Of the assignment; 0 before the first.
    pub number: u64,
    pub settling: Option<Settling>,
    /// Members that are gone and that the owners were not told of.
    pub fenced: Vec<MemberId>,
    /// Stands in the list of those whose next assignment is due.
    pub stale: bool,
}

/// A group that waits for its first members to be complete.
#[derive(Clone, Copy, Debug)]
pub struct Settling {
    /// No later than this.
    pub latest: Nanos,
    /// When it stands in the list of timers.
    pub due: Nanos,
}

impl Roster {
    pub fn new(settled_latest: Nanos) -> Self {
        Self {
            members: BTreeMap::new(),
            names: FxHashMap::default(),
            assignment: Assignment::default(),
            number: 0,
            settling: Some(Settling { latest: settled_latest, due: settled_latest }),
            fenced: Vec::new(),
            stale: false,
        }
    }

    /// Makes the next assignment and returns the last.
    pub fn make_next(&mut self, queues_of: &impl Fn(TopicId) -> u32) -> Assignment {
        let candidates: Vec<Candidate<'_>> = self
            .members
            .values()
            .map(|member| Candidate { id: member.id, hash: member.hash, topics: &member.topics, absent: member.absent })
            .collect();
        let next = self.assignment.next(&candidates, queues_of);
        std::mem::replace(&mut self.assignment, next)
    }

    /// Tells those whose queues are not what they were `before`, and those who were told nothing since they joined.
    pub fn tell(&mut self, id: GroupId, before: &Assignment) -> Vec<HomeEffect> {
        let mut changed: FxHashSet<MemberId> =
            self.members.values().filter(|member| member.untold).map(|member| member.id).collect();
        let (mut old, mut new) = (before.iter().peekable(), self.assignment.iter().peekable());
        // Both ascend: what stands in one alone, or under another holder, has changed for each holder that it names.
        loop {
            match (old.peek().copied(), new.peek().copied()) {
                (Some(a), Some(b)) if (a.0, a.1) == (b.0, b.1) => {
                    if a.2 != b.2 {
                        changed.extend([a.2, b.2]);
                    }
                    old.next();
                    new.next();
                }
                (Some(a), b) if b.is_none_or(|b| (a.0, a.1) < (b.0, b.1)) => {
                    changed.insert(a.2);
                    old.next();
                }
                (_, Some(b)) => {
                    changed.insert(b.2);
                    new.next();
                }
                (_, None) => break,
            }
        }
        let mut queues: FxHashMap<MemberId, Vec<(TopicId, QueueId)>> = FxHashMap::default();
        for (topic, queue, holder) in self.assignment.iter().filter(|row| changed.contains(&row.2)) {
            queues.entry(holder).or_default().push((topic, queue));
        }
        let number = self.number;
        let mut effects = Vec::new();
        for member in self.members.values_mut().filter(|member| changed.contains(&member.id)) {
            let queues = queues.remove(&member.id).unwrap_or_default();
            (member.queues, member.told, member.untold) = (queues.len() as u32, number, false);
            if let Some(owner) = member.owner {
                effects.push(HomeEffect::Tell { owner, group: id, member: member.id, number, queues });
            }
        }
        effects
    }

    /// Bytes that the group takes, its tables taken as full.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let member = |(name, member): (&Arc<str>, &Member)| {
            let texts = name.len() + 2 * size_of::<usize>() + member.client.len();
            // A node of a tree is half full at the least.
            texts + member.topics.len() * size_of::<TopicId>() + 2 * size_of::<(Arc<str>, Member)>()
        };
        size_of::<(GroupId, Self)>()
            + self.members.iter().map(member).sum::<usize>()
            + self.names.capacity() * (size_of::<(MemberId, Arc<str>)>() + 1)
            + self.assignment.bytes()
    }
}
