//! The oracle of a group's home: who may be fenced, and why, and who may be assigned what.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::engine::{Engine, ReaderOwner, TopicState};
use peregrine_protocol::ids::{GroupId, MemberId, Nanos, QueueId, TopicId};

use super::wire::Assigned;
use crate::simulator::violation::{Violation, promise};

/// A member as its home was told of it.
#[derive(Debug)]
struct Known {
    owner: ReaderOwner,
    topics: Vec<TopicId>,
    /// Those that it wanted earlier, before the newest assignment, which may have been begun before it said so.
    topics_before: Vec<TopicId>,
    heard: Nanos,
    /// When the home learned that its connection is gone.
    lost: Option<Nanos>,
    left: bool,
    /// Another client joined under its name.
    replaced: bool,
}

/// Members of all groups, as long as the process lives.
#[derive(Debug, Default)]
pub struct Roll {
    silence: Nanos,
    grace: Nanos,
    members: BTreeMap<(GroupId, MemberId), Known>,
    names: BTreeMap<(GroupId, String), MemberId>,
    numbers: BTreeMap<GroupId, u64>,
    /// Every id that was given, through all lives.
    given: BTreeSet<MemberId>,
}

impl Roll {
    pub fn new(silence: Nanos, grace: Nanos) -> Self {
        Self { silence, grace, ..Self::default() }
    }

    /// The process ended, and its members with it.
    pub fn crashed(&mut self) {
        self.members.clear();
        self.names.clear();
        self.numbers.clear();
    }

    pub fn joined(
        &mut self,
        group: GroupId,
        name: &str,
        member: MemberId,
        owner: ReaderOwner,
        topics: &[TopicId],
        now: Nanos,
    ) -> Result<(), Violation> {
        if !self.members.contains_key(&(group, member)) {
            promise!(self.given.insert(member), "member id {member} was given before");
        }
        let before = self.names.insert((group, name.to_owned()), member);
        if let Some(before) = before
            && before != member
            && let Some(known) = self.members.get_mut(&(group, before))
        {
            known.replaced = true;
        }
        // Another id under the same name takes over what the one before it had, in an assignment that was begun before.
        let before = before.and_then(|before| self.members.get(&(group, before)));
        let topics_before = before.map(|known| [&known.topics[..], &known.topics_before].concat()).unwrap_or_default();
        let topics = topics.to_vec();
        let known = Known { owner, topics, topics_before, heard: now, lost: None, left: false, replaced: false };
        self.members.insert((group, member), known);
        Ok(())
    }

    pub fn heard(&mut self, group: GroupId, member: MemberId, now: Nanos) {
        if let Some(known) = self.members.get_mut(&(group, member)) {
            known.heard = now;
        }
    }

    pub fn left(&mut self, group: GroupId, member: MemberId) {
        if let Some(known) = self.members.get_mut(&(group, member)) {
            known.left = true;
        }
    }

    pub fn detached(&mut self, owner: ReaderOwner, now: Nanos) {
        for known in self.members.values_mut().filter(|known| known.owner == owner) {
            known.lost.get_or_insert(now);
        }
    }

    pub fn group_deleted(&mut self, group: GroupId) {
        self.members.retain(|(of, _), _| *of != group);
        self.names.retain(|(of, _), _| *of != group);
    }

    /// A home has made an assignment. Returns why each member that it fences is gone.
    pub fn assigned(&mut self, home: &Engine, assigned: &Assigned, now: Nanos) -> Result<Vec<&'static str>, Violation> {
        let &Assigned { group, number, ref holders, ref fenced, .. } = assigned;
        let before = self.numbers.insert(group, number);
        promise!(
            before.is_none_or(|before| before < number),
            "assignment {number} of group {group} follows {before:?}"
        );
        let mut reasons = Vec::new();
        for &member in fenced {
            let Some(known) = self.members.remove(&(group, member)) else {
                return Err(Violation(format!(
                    "member {member} of group {group} is fenced, and no such member joined"
                )));
            };
            self.names.retain(|_, named| *named != member);
            reasons.push(self.reason(&known, now).ok_or_else(|| {
                Violation(format!("member {member} of group {group} is fenced for no reason: {known:?} at {now}"))
            })?);
        }
        promise!(
            holders.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)),
            "assignment {number} of group {group} names a queue twice"
        );
        // What changed while it was made waits for the next one, and who joins a group that begins anew for that to settle.
        let view = home.group_home(group);
        let is_newest = !view.due && !view.settling;
        for (topic, queue, member) in holders {
            let wants =
                |known: &Known| known.topics.contains(topic) || !is_newest && known.topics_before.contains(topic);
            promise!(
                self.members.get(&(group, *member)).is_some_and(wants),
                "queue {topic}/{queue} went to member {member} of group {group}, which is gone or does not want it"
            );
        }
        for (_, known) in self.members.iter_mut().filter(|((of, _), _)| *of == group) {
            known.topics_before.clear();
        }
        if is_newest {
            self.check_complete(home, assigned, now)?;
        }
        Ok(reasons)
    }

    fn reason(&self, known: &Known, now: Nanos) -> Option<&'static str> {
        if known.left {
            Some("left")
        } else if known.replaced {
            Some("replaced")
        } else if known.lost.is_some_and(|lost| lost + self.grace.0 <= now) {
            Some("lost for the grace time")
        } else if known.heard + (self.silence.0 + self.grace.0) <= now {
            Some("silent for the grace time")
        } else {
            None
        }
    }

    /// What somebody who is there wants, somebody has.
    fn check_complete(&self, home: &Engine, assigned: &Assigned, now: Nanos) -> Result<(), Violation> {
        let held: BTreeSet<(TopicId, QueueId)> =
            assigned.holders.iter().map(|(topic, queue, _)| (*topic, *queue)).collect();
        let there = |known: &&Known| known.lost.is_none() && known.heard + self.silence.0 > now;
        let of_group = self.members.iter().filter(|((group, _), _)| *group == assigned.group);
        for topic in of_group.map(|(_, known)| known).filter(there).flat_map(|known| &known.topics) {
            let TopicState::Live(found) = home.topic(*topic) else { continue };
            let missing = (0..found.queues).map(QueueId).find(|queue| !held.contains(&(*topic, *queue)));
            promise!(missing.is_none(), "queue {topic}/{missing:?} of group {} is nobody's", assigned.group);
        }
        Ok(())
    }
}
