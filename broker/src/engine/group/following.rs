//! What an owner does with the assignments that it is told: a slice at a time, as many subscriptions may be concerned.
//!
//! ```text
//!  assign ──► newest ─┬─► who is to hold a queue: read there, whenever somebody asks
//!                     └─► a walk over the group's queues in use here: turns that are over are revoked or ended, others begin
//! ```
//!
//! An assignment counts as a whole from the moment at which it is told. Rows are not copied anywhere, so that none of an older one
//! can outlast it; what the walk has not reached yet is brought up to date before anything is handed out of it, and members that
//! are fenced acknowledge nothing. A newer assignment takes the place of the one before, and the walk goes on from where it is,
//! once round: whatever comes how often, each queue is reached.

use std::collections::VecDeque;
use std::sync::Arc;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, MemberId, Nanos};
use rustc_hash::{FxHashMap, FxHashSet};

use super::assignment::Assignment;
use super::fault::PlantedInGroups;
use super::holder::{Active, Holders, Share};
use crate::engine::Engine;
use crate::engine::queue::QueueKey;
use crate::engine::reader::ReaderKey;
use crate::engine::slice::Slice;

/// Steps of one queue that the walk comes to: some trees are looked into, and a turn may end and another begin.
const STEPS_TO_FOLLOW: usize = 8;

/// The newest assignment of a group.
#[derive(Debug)]
struct Newest {
    number: u64,
    assignment: Arc<Assignment>,
    /// When it was told; drains begin then.
    since: Nanos,
    /// Members that are gone and may still have turns that the walk has to end.
    fenced: FxHashSet<MemberId>,
    walk: Option<Walk>,
}

/// Once round the queues of a group.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// The last queue that was reached; none before the first.
    at: Option<QueueKey>,
    /// The queue behind which it began, if not with the first. It ends there once it has come to the end and begun anew.
    began: Option<QueueKey>,
    is_second_half: bool,
}

/// The newest assignments of the groups that this shard was told of.
#[derive(Debug, Default)]
pub struct Following {
    groups: FxHashMap<GroupId, Newest>,
    /// Groups whose walk is not done; each once.
    walking: VecDeque<GroupId>,
}

impl Following {
    /// Takes in an assignment, unless a newer one is known.
    fn take_in(
        &mut self,
        group: GroupId,
        number: u64,
        assignment: &Arc<Assignment>,
        fenced: &[MemberId],
        now: Nanos,
        planted: Option<PlantedInGroups>,
    ) {
        let newest = self.groups.entry(group).or_insert_with(|| Newest {
            number: 0,
            assignment: Arc::default(),
            since: now,
            fenced: FxHashSet::default(),
            walk: None,
        });
        if number <= newest.number && planted != Some(PlantedInGroups::TakeOlderAssignment) {
            return;
        }
        newest.number = number;
        newest.assignment = assignment.clone();
        newest.since = now;
        newest.fenced.extend(fenced);
        let at = newest.walk.and_then(|walk| walk.at);
        let began = at.filter(|_| planted != Some(PlantedInGroups::WalkOnOnly));
        if newest.walk.replace(Walk { at, began, is_second_half: false }).is_none() {
            self.walking.push_back(group);
        }
    }

    /// The member that is to have the queue.
    pub fn holder(&self, share: Share) -> Option<MemberId> {
        self.groups.get(&share.group)?.assignment.holder(share.queue.topic, share.queue.queue)
    }

    /// When the newest assignment of the group came.
    pub fn since(&self, group: GroupId) -> Option<Nanos> {
        self.groups.get(&group).map(|newest| newest.since)
    }

    pub fn forget(&mut self, group: GroupId) {
        if self.groups.remove(&group).is_some_and(|newest| newest.walk.is_some()) {
            self.walking.retain(|&walking| walking != group);
        }
    }

    /// The walk of the group is done.
    fn arrive(&mut self, group: GroupId) {
        let arrived = self.walking.pop_front();
        assert!(arrived == Some(group), "one walks at a time");
        if let Some(newest) = self.groups.get_mut(&group) {
            newest.walk = None;
            newest.fenced = FxHashSet::default();
            if newest.assignment.has_no_members() {
                // The last member is gone, and with it the need to remember; the next first number is higher than any before.
                self.groups.remove(&group);
            }
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.walking.is_empty()
    }
}

impl Holders {
    /// Whether a walk is not done.
    pub fn are_behind(&self) -> bool {
        !self.following.walking.is_empty()
    }

    /// Whether the newest assignment was not looked at yet for a queue in use.
    pub fn is_behind(&self, share: Share) -> bool {
        if !self.are_behind() || self.planted == Some(PlantedInGroups::HandOutBehind) {
            return false;
        }
        let Some(newest) = self.following.groups.get(&share.group).filter(|newest| newest.walk.is_some()) else {
            return false;
        };
        self.get(share).is_some_and(|holding| holding.followed < newest.number)
    }

    /// Whether the home has said that this member is gone, though it may still have a turn here.
    pub fn is_fenced(&self, share: Share, member: MemberId) -> bool {
        self.are_behind()
            && self.following.groups.get(&share.group).is_some_and(|newest| newest.fenced.contains(&member))
    }

    /// Looks at the newest assignment for a queue in use.
    fn follow(&mut self, share: Share) -> Option<Followed> {
        let newest = self.following.groups.get(&share.group)?;
        let holding = self.holdings.get_mut(&share)?;
        holding.followed = newest.number;
        let is_fenced = |member: MemberId| newest.fenced.contains(&member);
        Some(Followed {
            holder: newest.assignment.holder(share.queue.topic, share.queue.queue),
            since: newest.since,
            is_fenced: holding.active.is_some_and(|active| is_fenced(active.member)),
            gone: holding.waiting.extract_if(.., |(member, _)| is_fenced(*member)).map(|(_, reader)| reader).collect(),
            active: holding.active,
        })
    }

    /// The next queue that a walk comes to.
    fn next_to_follow(&mut self) -> Option<Share> {
        while let Some(&group) = self.following.walking.front() {
            let walk = self.following.groups.get(&group).and_then(|newest| newest.walk);
            let Some(mut walk) = walk else { unreachable!("what walks is known") };
            let mut found = self.next_of(group, walk.at);
            if found.is_none() && !walk.is_second_half && walk.began.is_some() {
                walk.is_second_half = true;
                found = self.next_of(group, None);
            }
            let is_round = |share: &Share| walk.is_second_half && walk.began.is_some_and(|began| share.queue > began);
            match found.filter(|share| !is_round(share)) {
                Some(share) => {
                    walk.at = Some(share.queue);
                    if let Some(newest) = self.following.groups.get_mut(&group) {
                        newest.walk = Some(walk);
                    }
                    return Some(share);
                }
                None => self.following.arrive(group),
            }
        }
        None
    }
}

/// What a queue's turns have to follow.
struct Followed {
    holder: Option<MemberId>,
    since: Nanos,
    active: Option<Active>,
    /// The member whose turn it is is gone.
    is_fenced: bool,
    /// Subscriptions of members that are gone.
    gone: Vec<ReaderKey>,
}

impl Engine {
    /// The group's home says who holds which of its queues. Those without a holder are nobody's. Members that are `fenced` lose
    /// what they have at once; others are to be done with what they were handed before a queue moves on. An assignment that is
    /// not newer than one before says nothing. [`Engine::follow_assignments`] carries it out.
    ///
    /// A group or topic that this shard does not know yet is kept in mind: its subscriptions will come. One that is deleted is not.
    pub fn assign(
        &mut self,
        group: GroupId,
        number: u64,
        assignment: &Arc<Assignment>,
        fenced: &[MemberId],
        now: Nanos,
    ) {
        if !self.catalogue.is_deleted(group) {
            let planted = self.holders.planted;
            self.holders.following.take_in(group, number, assignment, fenced, now, planted);
        }
    }

    /// Goes on with the assignments that were told, until all is done or the slice is spent: [`Engine::has_group_work`].
    pub fn follow_assignments(&mut self, slice: &mut Slice) {
        while !slice.is_spent()
            && let Some(share) = self.holders.next_to_follow()
        {
            slice.spend(STEPS_TO_FOLLOW);
            self.follow_in(share);
        }
    }

    /// The queue's holder may be another one than before.
    pub(in crate::engine) fn follow_in(&mut self, share: Share) {
        let Some(followed) = self.holders.follow(share) else { return };
        for reader in followed.gone {
            self.readers.end(reader, ErrorCode::NotHolder, &mut self.queues);
        }
        if let Some(Active { member, reader, drained_by }) = followed.active {
            if followed.is_fenced {
                self.end_turn(share, ErrorCode::NotHolder);
            } else if followed.holder != Some(member) && drained_by.is_none() {
                let undrained = self.holders.planted == Some(PlantedInGroups::HandOnUndrained);
                if undrained || self.readers.delivered_end(reader) <= self.place_in(share) {
                    self.end_turn(share, ErrorCode::NotHolder);
                } else {
                    self.holders.begin_drain(share, followed.since + self.options.group_drain.0);
                    self.readers.revoke(reader, &mut self.queues);
                }
            }
        }
        self.hand_on(share);
    }
}
