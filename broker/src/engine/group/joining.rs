//! What members ask of their group's home, checked against the catalogue.
//!
//! The home works from [`Engine::start_groups`] on. It takes time from a clock that never goes back, the same one for all calls
//! that say so; what people read (when a member joined) is the wall clock's.

use peregrine_protocol::ids::{GroupId, MemberId, Nanos, TopicId};
use peregrine_protocol::limits::GROUP_TOPICS_MAX;
use peregrine_protocol::name::check_name;

use super::home::{HomeEffect, HomeView, Join, Joined, MemberView, Membership, MembershipOptions};
use crate::engine::catalogue::CatalogueId;
use crate::engine::reader::ReaderOwner;
use crate::engine::refusal::Refusal;
use crate::engine::slice::Slice;
use crate::engine::{Engine, Phase};
use crate::limits;

impl Engine {
    /// From here on members may join the groups whose home this shard is. Once, after [`Engine::recovered`].
    pub fn start_groups(&mut self, options: MembershipOptions) {
        assert!(self.membership.is_none() && self.phase != Phase::Recovering, "members join what has started");
        self.membership = Some(Membership::new(options));
    }

    /// A member joins, comes back, or wants other topics than before: see [`Membership::join`]. `now` is monotonic.
    pub fn join_group(&mut self, mut join: Join<'_>, now: Nanos) -> Result<Joined, Refusal> {
        check_name(join.name).map_err(|_| Refusal::InvalidName)?;
        join.topics.sort_unstable();
        join.topics.dedup();
        if !(1..=GROUP_TOPICS_MAX).contains(&join.topics.len()) {
            return Err(Refusal::InvalidArgument("a member wants 1 to 64 topics"));
        }
        let home = self.check_group(join.group)?.home_shard(self.options.shards);
        if home != self.options.shard {
            return Err(Refusal::WrongShard(home));
        }
        // A topic may have been deleted since the member learned of it; it goes on with the others.
        if join.topics.iter().any(|&topic| !self.catalogue.is_deleted(topic)) {
            join.topics.retain(|&topic| !self.catalogue.is_deleted(topic));
        }
        for &topic in &join.topics {
            self.check_topic(topic)?;
            if self.check_group(join.group)?.start_in(topic).is_none() {
                let refusal = Refusal::InvalidArgument("the group does not consume that topic");
                return Err(self.unknown(CatalogueId::Group(join.group), refusal));
            }
        }
        self.members()?.join(join, now)
    }

    /// The member is done with the group: its queues go to others at once.
    pub fn leave_group(&mut self, owner: ReaderOwner, group: GroupId, member: MemberId) -> Result<(), Refusal> {
        self.check_group(group)?;
        self.members()?.leave(owner, group, member)
    }

    /// The member is there and knows that assignment: see [`Membership::heartbeat`]. `now` is monotonic.
    pub fn heartbeat(
        &mut self,
        owner: ReaderOwner,
        group: GroupId,
        member: MemberId,
        number: u64,
        now: Nanos,
    ) -> Result<u64, Refusal> {
        self.check_group(group)?;
        self.members()?.heartbeat(owner, group, member, number, now)
    }

    /// What to do next for the groups of this home; ask after whatever concerns members, topics or groups, and after
    /// [`Engine::group_tick`]. None also where the slice is spent: see [`Engine::has_group_work`].
    pub fn next_home_effect(&mut self, slice: &mut Slice) -> Option<HomeEffect> {
        let catalogue = &self.catalogue;
        let queues_of = |topic: TopicId| catalogue.get(topic).map_or(0, |topic| topic.queues);
        self.membership.as_mut()?.next_effect(queues_of, slice)
    }

    /// Whether one more slice has anything to do: [`Engine::next_home_effect`] or [`Engine::follow_assignments`].
    pub fn has_group_work(&self) -> bool {
        self.membership.as_ref().is_some_and(Membership::has_work) || self.holders.are_behind()
    }

    /// A group of this home as its members see it.
    pub fn group_home(&self, group: GroupId) -> HomeView {
        self.membership.as_ref().map(|membership| membership.group(group)).unwrap_or_default()
    }

    /// Members of a group of this home in the order of their names, those behind `after`.
    pub fn members_after<'a>(&'a self, group: GroupId, after: &'a str) -> impl Iterator<Item = MemberView<'a>> {
        self.membership.iter().flat_map(move |membership| membership.members_after(group, after))
    }

    /// Carries out what is due for groups at `now`, which is monotonic.
    pub fn group_tick(&mut self, now: Nanos) {
        if let Some(membership) = &mut self.membership {
            membership.tick(now);
        }
        self.end_drains(now);
    }

    /// When [`Engine::group_tick`] has something to do next.
    pub fn next_group_deadline(&self) -> Option<Nanos> {
        let home = self.membership.as_ref().and_then(Membership::next_deadline);
        home.into_iter().chain(self.holders.next_deadline()).min()
    }

    fn members(&mut self) -> Result<&mut Membership, Refusal> {
        let retry_after = limits::BUSY_RETRY_AFTER.into();
        self.membership.as_mut().ok_or(Refusal::Busy { retry_after })
    }
}
