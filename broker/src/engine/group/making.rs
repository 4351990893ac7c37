//! How a home makes the assignments that are due, one after the other, a slice at a time.
//!
//! ```text
//!  due ─► gather the members ─► plan ─► publish: a number, and the word to every shard ─► tell the members ─► dismantle
//!                                         (one step: `HomeEffect::Assign`)                (each `HomeEffect::Tell`)
//! ```
//!
//! Members come and go between slices. Who joins, or wants other topics, makes one more assignment due and waits for it; who goes
//! is taken out of the plan. So an assignment that was begun is always published: changes, however many there are, cannot hold up
//! those before them.
//!
//! What a member is told is read when it is told, from the assignment that every shard was told before.

use std::ops::Bound;
use std::sync::Arc;

use peregrine_protocol::ids::{GroupId, MemberId, TopicId};

use super::assignment::{Candidate, NOBODY};
use super::home::{HomeEffect, Membership, Timer};
use super::plan::Plan;
use crate::engine::slice::Slice;

/// Steps of what goes out to a shard or to a member, whatever it says.
const STEPS_TO_TELL: usize = 10;
/// Steps of a member that is looked up by its id and then by its name.
const STEPS_TO_FIND: usize = 4;
/// Rows of an assignment, or of a member's list, that are one step where nothing is done but to copy or to compare them.
const ROWS_IN_A_STEP: usize = 16;

/// The assignment that is being made.
#[derive(Debug)]
pub struct Making {
    group: GroupId,
    plan: Plan,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Members behind this name.
    Gather(Option<Arc<str>>),
    Plan,
    /// Members from this index on.
    Tell(u32),
    Dismantle,
}

impl Making {
    pub fn new(group: GroupId) -> Self {
        Self { group, plan: Plan::new(), stage: Stage::Gather(None) }
    }

    /// Whether it is of that group and the shards are still to be told of it.
    pub fn is_unpublished(&self, group: GroupId) -> bool {
        self.group == group && matches!(self.stage, Stage::Gather(_) | Stage::Plan)
    }

    /// The member has another id.
    pub fn renamed(&mut self, group: GroupId, old: MemberId, new: MemberId) {
        if self.is_unpublished(group) {
            self.plan.rename(old, new);
        } else {
            // What the shards know is the old one's.
            self.gone(group, old);
        }
    }

    pub fn gone(&mut self, group: GroupId, member: MemberId) {
        if self.group == group {
            self.plan.gone(member);
        }
    }

    /// Nobody is there who could be told anything.
    pub fn abandon(&mut self, group: GroupId) {
        if self.group == group {
            self.stage = Stage::Dismantle;
        }
    }
}

impl Membership {
    /// What to do next; makes the assignments that are due. None when nothing is left to do, or when the slice is spent: see
    /// [`Self::has_work`]. `queues_of` says how many queues a topic has, 0 where there is none.
    pub fn next_effect(&mut self, queues_of: impl Fn(TopicId) -> u32, slice: &mut Slice) -> Option<HomeEffect> {
        while !slice.is_spent() {
            // First, so that nobody is told of an assignment before the shards are.
            if let Some(effect) = self.effects.pop_front() {
                slice.spend(STEPS_TO_TELL);
                return Some(effect);
            }
            if let Some((group, member)) = self.tell_again.pop_front() {
                if let Some(effect) = self.told_again(group, member, slice) {
                    return Some(effect);
                }
            } else if let Some(making) = self.making.take() {
                self.making = self.go_on(making, &queues_of, slice);
            } else {
                self.making = self.begin();
                if self.making.is_none() && self.stale.is_empty() {
                    return None;
                }
                slice.spend(1);
            }
        }
        None
    }

    /// Whether [`Self::next_effect`] has anything to do.
    pub fn has_work(&self) -> bool {
        let Self { effects, tell_again, making, stale, .. } = self;
        !effects.is_empty() || !tell_again.is_empty() || making.is_some() || !stale.is_empty()
    }

    /// Begins the next assignment that is due.
    fn begin(&mut self) -> Option<Making> {
        let id = self.stale.pop_front()?;
        let group = self.groups.get_mut(&id).filter(|group| group.stale)?;
        group.stale = false;
        (group.settling.is_none() || group.members.is_empty()).then(|| Making::new(id))
    }

    /// Returns what is left to do of it.
    fn go_on(&mut self, mut making: Making, queues_of: &impl Fn(TopicId) -> u32, slice: &mut Slice) -> Option<Making> {
        match &mut making.stage {
            Stage::Gather(last) => {
                let Some(group) = self.groups.get(&making.group) else { unreachable!("it was abandoned else") };
                let behind = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut found = None;
                for (name, member) in group.members.range::<str, _>((behind, Bound::Unbounded)) {
                    if slice.is_spent() {
                        break;
                    }
                    let (id, hash, topics, absent) = (member.id, member.hash, member.topics.clone(), member.absent);
                    making.plan.add(Candidate { id, hash, topics, absent }, queues_of, slice);
                    found = Some(name.clone());
                }
                making.stage = found.map_or(Stage::Plan, |name| Stage::Gather(Some(name)));
            }
            Stage::Plan => {
                let Some(group) = self.groups.get(&making.group) else { unreachable!("it was abandoned else") };
                if making.plan.step(&group.assignment, slice) {
                    self.publish(&mut making);
                }
            }
            Stage::Tell(next) => {
                let index = *next;
                *next += 1;
                slice.spend(STEPS_TO_FIND);
                match making.plan.member(index) {
                    None => making.stage = Stage::Dismantle,
                    Some(NOBODY) => {}
                    Some(member) => self.tell(&mut making, index, member, slice),
                }
            }
            Stage::Dismantle => {
                if making.plan.dismantle(slice) {
                    return None;
                }
            }
        }
        Some(making)
    }

    /// The plan is done: it counts from here on.
    fn publish(&mut self, making: &mut Making) {
        let Some(group) = self.groups.get_mut(&making.group) else { unreachable!("the caller looked it up") };
        let is_new = making.plan.has_changed() || !group.fenced.is_empty() || group.number == 0;
        group.assignment = Arc::new(making.plan.take_assignment());
        if is_new {
            self.last_number += 1;
            group.number = self.last_number;
            self.effects.push_back(HomeEffect::Assign {
                group: making.group,
                number: group.number,
                assignment: group.assignment.clone(),
                fenced: std::mem::take(&mut group.fenced),
            });
        }
        making.stage = Stage::Tell(0);
        if group.members.is_empty() {
            making.stage = Stage::Dismantle;
            if let Some(settling) = self.groups.remove(&making.group).and_then(|group| group.settling) {
                self.timers.remove(&(settling.due, Timer::Settle(making.group)));
            }
        }
    }

    /// Tells a member its queues, if they are not what they were, or if it was told nothing since it joined.
    fn tell(&mut self, making: &mut Making, index: u32, id: MemberId, slice: &mut Slice) {
        let Some(group) = self.groups.get_mut(&making.group) else { unreachable!("it was abandoned else") };
        let number = group.number;
        let Some(member) = group.member_mut(id) else { unreachable!("who goes is taken out of the plan") };
        if !making.plan.is_changed(index) && !member.untold {
            return;
        }
        let queues = making.plan.take_queues(index);
        (member.queues, member.told, member.untold, member.told_again) = (queues.len() as u32, number, false, false);
        slice.spend(queues.len() / ROWS_IN_A_STEP);
        if let Some(owner) = member.owner {
            self.effects.push_back(HomeEffect::Tell { owner, group: making.group, member: id, number, queues });
        }
    }

    fn told_again(&mut self, id: GroupId, member: MemberId, slice: &mut Slice) -> Option<HomeEffect> {
        slice.spend(STEPS_TO_TELL);
        let group = self.groups.get_mut(&id)?;
        let (number, assignment) = (group.number, group.assignment.clone());
        // Who joined anew is told as soon as the assignment is made that is due then.
        let known = group.member_mut(member).filter(|known| !known.untold)?;
        let owner = known.owner?;
        known.told = number;
        slice.spend(assignment.rows() / ROWS_IN_A_STEP);
        Some(HomeEffect::Tell { owner, group: id, member, number, queues: assignment.queues_of(member) })
    }
}
