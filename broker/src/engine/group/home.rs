//! The members of the groups whose home this shard is: who they are, whether they are there, and which queues each is to get.
//!
//! ```text
//!            join                       connection lost, silence
//!   (none) ────────►  here  ─────────────────────────────────────►  absent
//!              ▲       │  ▲                                          │   │
//!              │ leave │  └──── join under the name, heartbeat ──────┘   │ grace time passed
//!              └───────┴──────────────────────────────────────────────── ┘
//! ```
//!
//! Whatever changes who shares a group's queues makes its next assignment due; it is made (`making`) when effects are asked for,
//! so that changes of one turn count as one. Each has a number that is higher than all before it. The shards that own the queues
//! alone hand out messages: what they are told here they carry out, whatever else members believe.
//!
//! Nothing here is durable, and nothing is in the log. After a start all members join anew, under ids that were never used; the
//! group settles before its first assignment, so that members that come back together share the queues from the beginning. A
//! group without members takes nothing here, and a member that does nothing costs one look per silence time.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, Nanos, QueueId, ShardId, TopicId};
use rustc_hash::FxHashMap;

use super::assignment::{Assignment, MemberHash};
use super::making::Making;
use super::roster::{Member, Roster};
use crate::engine::reader::ReaderOwner;
use crate::engine::refusal::Refusal;
use crate::limits;

/// How a home treats its members.
#[derive(Clone, Copy, Debug)]
pub struct MembershipOptions {
    /// The home, and the epoch of its log. What is numbered here is u22 epoch ‖ u10 shard ‖ u32 count, so that a number from before
    /// a start, or of another home, never comes again. A run of 2^32 joins would carry into another home's numbers.
    pub shard: ShardId,
    pub epoch: Epoch,
    /// A member that is not heard of for this long is treated as if its connection were lost.
    pub silence: Nanos,
    /// How long a member whose connection is lost keeps its queues; 0: not at all.
    pub grace: Nanos,
}

/// A request to join a group.
#[derive(Clone, Debug)]
pub struct Join<'a> {
    pub owner: ReaderOwner,
    pub group: GroupId,
    /// The member's name within the group.
    pub name: &'a str,
    /// The client instance that the member is.
    pub client: &'a str,
    /// The topics that it wants: ascending, each once.
    pub topics: Vec<TopicId>,
    /// The wall clock, for those who look at the group.
    pub joined: Nanos,
}

/// What a member that joined is told at once; its queues follow as [`HomeEffect::Tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    pub member: MemberId,
    /// The group's newest assignment, 0 before the first.
    pub number: u64,
}

/// What the home's shard does next for its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HomeEffect {
    /// Tell every shard who holds which of its queues from now on: [`crate::engine::Engine::assign`].
    Assign {
        group: GroupId,
        number: u64,
        /// The whole of it. Queues that have no holder there are nobody's.
        assignment: Arc<Assignment>,
        /// Members that are gone: they lose what they were handed at once.
        fenced: Vec<MemberId>,
    },
    /// Push its whole list of queues to a member.
    Tell { owner: ReaderOwner, group: GroupId, member: MemberId, number: u64, queues: Vec<(TopicId, QueueId)> },
    /// Push an error that ends a member.
    Fence { owner: ReaderOwner, group: GroupId, member: MemberId, code: ErrorCode },
}

/// A member, for those who look at a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView<'a> {
    pub id: MemberId,
    pub name: &'a str,
    pub client: &'a str,
    /// When it joined first under this name, by the wall clock.
    pub joined: Nanos,
    /// False while it is absent and keeps its queues for the grace time.
    pub connected: bool,
    /// Queues that it is to hold.
    pub queues: u32,
}

/// A group, for those who look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HomeView {
    /// Of the newest assignment; 0: none yet.
    pub number: u64,
    /// The first assignment waits for more members to join.
    pub settling: bool,
    /// Another assignment is due or being made: something has changed since what the newest one is made of.
    pub due: bool,
    pub members: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Its members joined long enough ago.
    Settle(GroupId),
    /// The member was silent or absent for too long.
    Member(GroupId, MemberId),
}

/// The members of all groups whose home this shard is.
#[derive(Debug)]
pub struct Membership {
    options: MembershipOptions,
    /// Groups that have members.
    pub(super) groups: FxHashMap<GroupId, Roster>,
    /// The members of each open connection.
    by_owner: FxHashMap<ReaderOwner, BTreeSet<(GroupId, MemberId)>>,
    /// One per member and one per group that settles.
    pub(super) timers: BTreeSet<(Nanos, Timer)>,
    /// Groups whose next assignment is due.
    pub(super) stale: VecDeque<GroupId>,
    pub(super) making: Option<Making>,
    pub(super) effects: VecDeque<HomeEffect>,
    /// Members that are to be told their queues once more.
    pub(super) tell_again: VecDeque<(GroupId, MemberId)>,
    members: usize,
    last_member: u64,
    pub(super) last_number: u64,
}

impl Membership {
    pub fn new(options: MembershipOptions) -> Self {
        let before_first = options.epoch.0 << 42 | u64::from(options.shard.0) << 32;
        Self {
            options,
            groups: FxHashMap::default(),
            by_owner: FxHashMap::default(),
            timers: BTreeSet::new(),
            stale: VecDeque::new(),
            making: None,
            effects: VecDeque::new(),
            tell_again: VecDeque::new(),
            members: 0,
            last_member: before_first,
            last_number: before_first,
        }
    }

    // What members do.

    /// A member joins, or comes back. The newest under a name wins: an earlier connection is told that it is fenced. Who comes
    /// back from the same client, or after the connection was lost, is the same member; another client gets an id of its own,
    /// and the queues of the one that it replaces.
    pub fn join(&mut self, join: Join<'_>, now: Nanos) -> Result<Joined, Refusal> {
        let Join { owner, group: id, name, client, topics, joined } = join;
        assert!(topics.is_sorted_by(|a, b| a < b), "topics ascend, each once");
        let known = self.groups.get(&id).map(|group| (group.members.len(), group.members.contains_key(name)));
        if !matches!(known, Some((_, true))) {
            let members = known.map_or(0, |(members, _)| members);
            if members >= limits::GROUP_MEMBERS_MAX || self.members >= limits::MEMBERS_MAX {
                return Err(Refusal::LimitReached("members"));
            }
        }
        let group = self.groups.entry(id).or_insert_with(|| Roster::new(now + limits::GROUP_SETTLED_WITHIN.0));
        if let Some(settling) = &mut group.settling {
            self.timers.remove(&(settling.due, Timer::Settle(id)));
            settling.due = settling.latest.min(now + limits::GROUP_SETTLED_AFTER.0);
            self.timers.insert((settling.due, Timer::Settle(id)));
        }
        let mut fresh = || {
            self.last_member += 1;
            MemberId(self.last_member)
        };
        if let Some(member) = group.members.get_mut(name) {
            self.timers.remove(&(member.due, Timer::Member(id, member.id)));
            let is_another = |old| old != owner || &*member.client != client;
            if let Some(old) = member.owner.filter(|&old| is_another(old)) {
                disown(&mut self.by_owner, old, id, member.id);
                let code = ErrorCode::MemberFenced;
                self.effects.push_back(HomeEffect::Fence { owner: old, group: id, member: member.id, code });
                if &*member.client != client {
                    let new = fresh();
                    Arc::make_mut(&mut group.assignment).rename(member.id, new);
                    if let Some(making) = &mut self.making {
                        making.renamed(id, member.id, new);
                    }
                    group.fenced.push(member.id);
                    if let Some(name) = group.names.remove(&member.id) {
                        group.names.insert(new, name);
                    }
                    member.id = new;
                }
            }
            member.client = client.into();
            member.topics = topics.into();
            member.owner = Some(owner);
        } else {
            let name: Arc<str> = name.into();
            let member = Member {
                id: fresh(),
                hash: MemberHash::of(&name),
                client: client.into(),
                topics: topics.into(),
                joined,
                owner: Some(owner),
                heard: now,
                absent: false,
                due: now,
                told: 0,
                untold: true,
                told_again: false,
                queues: 0,
            };
            group.names.insert(member.id, name.clone());
            group.members.insert(name, member);
            self.members += 1;
        }
        let Some(member) = group.members.get_mut(name) else { unreachable!("it joined above") };
        (member.heard, member.absent, member.untold) = (now, false, true);
        member.due = now + self.options.silence.0;
        self.timers.insert((member.due, Timer::Member(id, member.id)));
        self.by_owner.entry(owner).or_default().insert((id, member.id));
        let joined = Joined { member: member.id, number: group.number };
        self.make_stale(id);
        Ok(joined)
    }

    /// The member is done: its queues go to others at once.
    pub fn leave(&mut self, owner: ReaderOwner, group: GroupId, member: MemberId) -> Result<(), Refusal> {
        self.owned(owner, group, member)?;
        self.remove(group, member);
        Ok(())
    }

    /// The member is there, and knows the assignment of that number. Returns the number of the one that it was told.
    ///
    /// One that knows an older one is told its queues again, once until they change: what it was told is on its way, as nothing
    /// is lost on a connection that lives, or it was lost within the client, which then asks so.
    pub fn heartbeat(
        &mut self,
        owner: ReaderOwner,
        id: GroupId,
        member: MemberId,
        number: u64,
        now: Nanos,
    ) -> Result<u64, Refusal> {
        let due = now + self.options.silence.0;
        let known = self.owned(owner, id, member)?;
        known.heard = now;
        let (told, comes_back) = (known.told, std::mem::take(&mut known.absent));
        let is_behind = number < told && !known.untold && !std::mem::replace(&mut known.told_again, true);
        if comes_back {
            let before = std::mem::replace(&mut known.due, due);
            self.timers.remove(&(before, Timer::Member(id, member)));
            self.timers.insert((due, Timer::Member(id, member)));
            self.make_stale(id);
        }
        if is_behind {
            self.tell_again.push_back((id, member));
        }
        Ok(told)
    }

    // What happens to members.

    /// A connection is gone: its members have the grace time to come back.
    pub fn detach(&mut self, owner: ReaderOwner, now: Nanos) {
        for (group, id) in self.by_owner.remove(&owner).unwrap_or_default() {
            let grace = self.options.grace;
            let Some(member) = self.member(group, id) else { unreachable!("a connection's members live") };
            member.owner = None;
            // The grace time of a silent one runs already.
            if !member.absent {
                self.miss(group, id, now + grace.0);
            }
        }
        if self.options.grace == Nanos::ZERO {
            self.tick(now);
        }
    }

    /// Carries out what is due at `now`.
    pub fn tick(&mut self, now: Nanos) {
        while let Some(&(due, timer)) = self.timers.first().filter(|&&(due, _)| due <= now) {
            match timer {
                Timer::Settle(id) => {
                    self.timers.pop_first();
                    if let Some(group) = self.groups.get_mut(&id) {
                        group.settling = None;
                        self.make_stale(id);
                    }
                }
                Timer::Member(group, id) => {
                    let silence = self.options.silence.0;
                    let grace = self.options.grace.0;
                    let Some(member) = self.member(group, id) else { unreachable!("timers of members end with them") };
                    let quiet_until = member.heard + silence;
                    if member.absent {
                        if let Some(owner) = member.owner {
                            let code = ErrorCode::UnknownMember;
                            self.effects.push_back(HomeEffect::Fence { owner, group, member: id, code });
                        }
                        self.remove(group, id);
                    } else if quiet_until > now {
                        member.due = quiet_until;
                        self.timers.remove(&(due, timer));
                        self.timers.insert((quiet_until, timer));
                    } else {
                        self.miss(group, id, now + grace);
                    }
                }
            }
        }
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timers.first().map(|&(due, _)| due)
    }

    // What happens to what they consume.

    /// A topic has more queues than before, or was deleted. Looks at every member of this home, as that is rare.
    pub fn topic_changed(&mut self, topic: TopicId) {
        let wants = |group: &Roster| group.members.values().any(|member| member.topics.contains(&topic));
        let groups: Vec<GroupId> = self.groups.iter().filter(|(_, group)| wants(group)).map(|(&id, _)| id).collect();
        for id in groups {
            self.make_stale(id);
        }
    }

    /// The group was deleted, and its members end with it. The owners of its queues learn that by themselves.
    pub fn group_deleted(&mut self, id: GroupId) {
        // An assignment that waits for the next slice would speak of members that nobody knows any more.
        let is_moot = |effect: &HomeEffect| match effect {
            HomeEffect::Assign { group, .. } | HomeEffect::Tell { group, .. } => *group == id,
            HomeEffect::Fence { .. } => false,
        };
        self.effects.retain(|effect| !is_moot(effect));
        let Some(group) = self.groups.remove(&id) else { return };
        if let Some(making) = &mut self.making {
            making.abandon(id);
        }
        if let Some(settling) = group.settling {
            self.timers.remove(&(settling.due, Timer::Settle(id)));
        }
        self.members -= group.members.len();
        for member in group.members.into_values() {
            self.timers.remove(&(member.due, Timer::Member(id, member.id)));
            if let Some(owner) = member.owner {
                disown(&mut self.by_owner, owner, id, member.id);
                let code = ErrorCode::GroupDeleted;
                self.effects.push_back(HomeEffect::Fence { owner, group: id, member: member.id, code });
            }
        }
    }

    // Looking.

    pub fn group(&self, id: GroupId) -> HomeView {
        self.groups.get(&id).map_or_else(HomeView::default, |group| HomeView {
            number: group.number,
            settling: group.settling.is_some(),
            due: group.stale || self.making.as_ref().is_some_and(|making| making.is_unpublished(id)),
            members: group.members.len(),
        })
    }

    /// Members of a group in the order of their names, those behind `after`.
    pub fn members_after<'a>(&'a self, id: GroupId, after: &'a str) -> impl Iterator<Item = MemberView<'a>> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        self.groups.get(&id).into_iter().flat_map(move |group| group.members.range::<str, _>(behind)).map(
            |(name, member)| MemberView {
                id: member.id,
                name,
                client: &member.client,
                joined: member.joined,
                connected: !member.absent,
                queues: member.queues,
            },
        )
    }

    /// Members of all groups.
    pub fn len(&self) -> usize {
        self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// Whether a group's next assignment is due.
    #[cfg(test)]
    pub fn is_due(&self) -> bool {
        !self.stale.is_empty() || self.making.is_some()
    }

    /// Bytes that the members take here, tables taken as full; what waits to be told is not counted.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let owned = size_of::<(ReaderOwner, BTreeSet<(GroupId, MemberId)>)>() + 1;
        self.groups.values().map(Roster::bytes).sum::<usize>()
            + self.by_owner.capacity() * owned
            + self
                .by_owner
                .values()
                .map(|members| members.len().max(11) * size_of::<(GroupId, MemberId)>())
                .sum::<usize>()
            + 2 * self.timers.len() * size_of::<(Nanos, Timer)>()
    }

    // Changing.

    fn member(&mut self, group: GroupId, id: MemberId) -> Option<&mut Member> {
        self.groups.get_mut(&group)?.member_mut(id)
    }

    /// A member that this connection speaks for.
    fn owned(&mut self, owner: ReaderOwner, group: GroupId, id: MemberId) -> Result<&mut Member, Refusal> {
        self.member(group, id).filter(|member| member.owner == Some(owner)).ok_or(Refusal::UnknownMember)
    }

    /// The member is absent, and ends at `until` unless it comes back.
    fn miss(&mut self, group: GroupId, id: MemberId, until: Nanos) {
        let Some(member) = self.member(group, id) else { unreachable!("the caller looked it up") };
        member.absent = true;
        let before = std::mem::replace(&mut member.due, until);
        self.timers.remove(&(before, Timer::Member(group, id)));
        self.timers.insert((until, Timer::Member(group, id)));
    }

    fn remove(&mut self, id: GroupId, member: MemberId) {
        let Some(group) = self.groups.get_mut(&id) else { unreachable!("the caller looked it up") };
        let name = group.names.remove(&member);
        let Some(gone) = name.and_then(|name| group.members.remove(&name)) else { unreachable!("it has a name") };
        group.fenced.push(member);
        if let Some(making) = &mut self.making {
            making.gone(id, member);
        }
        self.members -= 1;
        self.timers.remove(&(gone.due, Timer::Member(id, member)));
        if let Some(owner) = gone.owner {
            disown(&mut self.by_owner, owner, id, member);
        }
        self.make_stale(id);
    }

    /// The group's next assignment is due, unless it settles.
    fn make_stale(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if (group.settling.is_none() || group.members.is_empty()) && !std::mem::replace(&mut group.stale, true) {
            self.stale.push_back(id);
        }
    }
}

/// The connection does not speak for that member any more.
fn disown(
    by_owner: &mut FxHashMap<ReaderOwner, BTreeSet<(GroupId, MemberId)>>,
    owner: ReaderOwner,
    group: GroupId,
    member: MemberId,
) {
    if let Some(members) = by_owner.get_mut(&owner) {
        members.remove(&(group, member));
        if members.is_empty() {
            by_owner.remove(&owner);
        }
    }
}
