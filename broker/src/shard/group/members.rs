//! Members of the groups whose home this shard is: they join, leave and say that they are there; what that changes is carried out
//! by a task of its own, a slice in each turn.
//!
//! ```text
//!   join, leave, lost, silent ─► members ─► next assignment ─┬─► every executor: who holds which queue (`Request::Assign`)
//!                                (at home)                   └─► each member whose queues changed (`Assignment`, pushed)
//! ```

use crate::engine::{HomeEffect, Join, ReaderOwner, Refusal, Slice};
use crate::limits::GROUP_SLICE;
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::{Assigned, Request};
use crate::shard::peers::PeerId;
use crate::shard::proxy;
use crate::shard::requests::refuse;
use crate::shard::router::{Asker, Wait};
use crate::shard::runtime::turn;
use crate::shard::state::Shard;
use peregrine_protocol::ids::{Correlation, GroupId, Nanos};
use peregrine_protocol::message::membership::AssignedQueue;
use peregrine_protocol::message::{Assignment, Heartbeat, HeartbeatAnswer, JoinGroup, JoinGroupAnswer, LeaveGroup};
use std::rc::Rc;
use std::sync::Arc;

pub fn join(
    executor: &Rc<Executor>,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &JoinGroup<'_>,
) -> Result<(), Wait> {
    let Some(peer) = proxy::peer_of(executor, asker) else { return Ok(()) };
    let joined = {
        let topics = asked.topics.iter().collect();
        let owner = ReaderOwner(peer.0);
        let join =
            Join { owner, group: asked.group, name: asked.member, client: asked.client, topics, joined: clock::wall() };
        shard.core.borrow_mut().engine.join_group(join, clock::monotonic())
    };
    match joined {
        Ok(joined) => {
            let settings = &executor.facts.groups;
            let answer = JoinGroupAnswer {
                member: joined.member,
                number: joined.number,
                heartbeat: settings.heartbeat(),
                silence: settings.silence,
                grace: settings.grace,
            };
            executor.answer(asker, |out| answer.encode(correlation, out));
            shard.work.raise();
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}

pub fn leave(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: LeaveGroup,
) -> Result<(), Wait> {
    let left = owner_at_home(executor, shard, asker, asked.group)
        .and_then(|owner| shard.core.borrow_mut().engine.leave_group(owner, asked.group, asked.member));
    match left {
        Ok(()) => {
            executor.answer(asker, |out| asked.encode_answer(correlation, out));
            shard.work.raise();
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}

pub fn heartbeat(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    given: Heartbeat,
) -> Result<(), Wait> {
    let Heartbeat { group, member, number } = given;
    let now = clock::monotonic();
    let heard = owner_at_home(executor, shard, asker, group)
        .and_then(|owner| shard.core.borrow_mut().engine.heartbeat(owner, group, member, number, now));
    match heard {
        Ok(number) => {
            executor.answer(asker, |out| HeartbeatAnswer { number }.encode(correlation, out));
            shard.work.raise();
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}

/// Who speaks for a member, if this shard is its group's home.
fn owner_at_home(executor: &Executor, shard: &Shard, asker: Asker, group: GroupId) -> Result<ReaderOwner, Refusal> {
    let home = shard.core.borrow().engine.check_group(group)?.home_shard(executor.layout.shards);
    if home != shard.id {
        return Err(Refusal::WrongShard(home));
    }
    let peer = proxy::known_peer_of(executor, asker).ok_or(Refusal::UnknownMember)?;
    Ok(ReaderOwner(peer.0))
}

/// Makes the assignments of this shard's groups and follows those of others, until the shard's log is closed. It is woken once
/// per turn, behind those who were runnable then: members that come or go together share one assignment.
pub async fn run(executor: Rc<Executor>, shard: Rc<Shard>) {
    while !shard.closed.get() {
        shard.group_work.wait().await;
        while work(&executor, &shard) {
            turn().await;
        }
    }
}

/// One slice of it. Whether anything is left to do.
fn work(executor: &Executor, shard: &Shard) -> bool {
    let mut slice = Slice::new(GROUP_SLICE);
    carry_out(executor, shard, &mut slice);
    let engine = &mut shard.core.borrow_mut().engine;
    engine.follow_assignments(&mut slice);
    // Those whose turn it is are served by the shard's task, which may have nothing else to wake it.
    shard.work.raise();
    engine.has_group_work()
}

/// Carries out what the homes of this shard's groups have decided.
fn carry_out(executor: &Executor, shard: &Shard, slice: &mut Slice) {
    loop {
        let effect = shard.core.borrow_mut().engine.next_home_effect(slice);
        match effect {
            None => return,
            Some(HomeEffect::Assign { group, number, assignment, fenced }) => {
                let assigned = Arc::new(Assigned { group, number, assignment, fenced });
                for peer in executor.mesh().peers() {
                    executor.mesh().request(peer, Request::Assign(assigned.clone()));
                }
                assign(executor, &assigned);
            }
            Some(HomeEffect::Tell { owner, group, member, number, queues }) => {
                let queues: Vec<AssignedQueue> =
                    queues.into_iter().map(|(topic, queue)| AssignedQueue { topic, queue }).collect();
                let assignment = Assignment { group, member, number, queues: queues[..].into() };
                executor.push_to(PeerId(owner.0), |out| assignment.encode(out));
            }
            Some(HomeEffect::Fence { owner, member, code, .. }) => {
                executor.push_to(PeerId(owner.0), |out| answers::member_ended(out, member, code));
            }
        }
    }
}

/// A home says who holds which queues; each shard here takes what is its own.
pub fn assign(executor: &Executor, assigned: &Assigned) {
    let now = clock::monotonic();
    for shard in executor.local_shards() {
        let Assigned { group, number, assignment, fenced } = assigned;
        shard.core.borrow_mut().engine.assign(*group, *number, assignment, fenced, now);
        shard.group_work.raise();
    }
}

impl Shard {
    /// Carries out what is due for groups: members that are silent, assignments that have settled, drains that take too long.
    pub fn tick_groups(&self, now: Nanos) {
        let engine = &mut self.core.borrow_mut().engine;
        if engine.next_group_deadline().is_some_and(|deadline| deadline <= now) {
            engine.group_tick(now);
            self.work.raise();
        }
    }
}
