//! The members of one group at its home, and the assignment that they share.

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(test)]
use peregrine_protocol::ids::GroupId;
use peregrine_protocol::ids::{MemberId, Nanos, TopicId};
use rustc_hash::FxHashMap;

use super::assignment::{Assignment, MemberHash};
use crate::engine::reader::ReaderOwner;

/// Somebody who joined.
#[derive(Debug)]
pub struct Member {
    pub id: MemberId,
    pub hash: MemberHash,
    pub client: Box<str>,
    pub topics: Arc<[TopicId]>,
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
    /// It was told the same a second time.
    pub told_again: bool,
    pub queues: u32,
}

/// The members of one group.
#[derive(Debug)]
pub struct Roster {
    /// By name.
    pub members: BTreeMap<Arc<str>, Member>,
    pub names: FxHashMap<MemberId, Arc<str>>,
    pub assignment: Arc<Assignment>,
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
            assignment: Arc::default(),
            number: 0,
            settling: Some(Settling { latest: settled_latest, due: settled_latest }),
            fenced: Vec::new(),
            stale: false,
        }
    }

    pub fn member_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.get_mut(self.names.get(&id)?)
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
