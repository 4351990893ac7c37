//! Shards and members of a running broker: what has arrived is taken in, homes are asked what follows, owners hand out.
//!
//! It does what the shard's glommio side does in production. News of the catalogue and assignments take their time to other
//! shards; what a shard does not know it asks of shard 0.

use std::rc::Rc;

use peregrine_broker::engine::{
    BatchPlace, CatalogueState, Delivery, Engine, GroupStart, GroupState, HomeEffect, Join, MembershipOptions,
    ReaderOwner, Refusal, Slice, TopicState,
};
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Nanos, QueueId, ShardId, SubscriptionId, TopicId};

use super::group_ledger::Share;
use super::wire::{Assigned, ConnectionId, Link, Message, Push, Request};
use crate::simulator::process::Shard;
use crate::simulator::simulation::{Process, Simulation};
use crate::simulator::violation::{Violation, promise};

/// How often a shard asks shard 0 about one request, at most: about its group and about its topic.
const QUESTIONS_MAX: usize = 3;

impl Simulation {
    /// Homes begin to take members in.
    pub fn start_groups(&self, shard: u16, started: &mut Shard) {
        let settings = &self.consumers.settings;
        let (silence, grace, epoch) = (settings.silence, settings.grace, started.log.epoch());
        started.engine.start_groups(MembershipOptions { shard: ShardId(shard), epoch, silence, grace });
    }

    /// Everything about groups that can go on without time passing.
    pub fn serve_groups(&mut self, process: &mut Process) -> Result<(), Violation> {
        while let Some(message) = self.consumers.wire.take_due(self.machine.now()) {
            self.arrives(process, message)?;
        }
        self.consumers.ledger.check_drains(self.now())?;
        for shard in 0..process.shards.len() {
            let now = self.now();
            let engine = &mut process.shards[shard].engine;
            let tick = self.consumers.settings.tick;
            if engine.next_group_deadline().is_some_and(|deadline| deadline.0.next_multiple_of(tick) <= now.0) {
                engine.group_tick(now);
            }
            // A full log may put it off for longer.
            if !self.random.one_in(4) {
                self.write_beginnings(process, shard)?;
            }
            self.work_for_groups(process, shard)?;
        }
        self.members_act(process)
    }

    /// A change of the catalogue took effect at shard 0: the others hear of it.
    pub fn tell_others(&mut self, process: &mut Process, state: &CatalogueState) -> Result<(), Violation> {
        if let CatalogueState::Group(state) = state {
            self.statistics.groups_deleted += u64::from(matches!(state, GroupState::Deleted(_)));
            self.consumers.known.effect(state)?;
        }
        if let CatalogueState::Topic(TopicState::Deleted(topic)) = state {
            self.consumers.known.topic_deleted(*topic);
        }
        self.news_taken_in(0, state);
        for to in 1..process.shards.len() {
            self.dispatch(Link::Mesh { from: 0, to }, Message::News { to, state: state.clone() });
        }
        Ok(())
    }

    fn dispatch(&mut self, link: Link, message: Message) {
        let delay = self.delay();
        self.consumers.wire.send(link, self.machine.now(), delay, message);
    }

    fn delay(&mut self) -> u64 {
        let max = self.consumers.settings.delay_max;
        let max = if self.random.one_in(4) { max } else { max.min(100_000) };
        self.random.between(1_000, max)
    }

    fn answer_member(&mut self, to: ConnectionId, member: usize, push: Push) {
        self.dispatch(Link::Down(to), Message::Push { to, member: Some(member), push });
    }

    pub fn push_to(&mut self, owner: ReaderOwner, push: Push) {
        let to = ConnectionId(owner.0);
        self.dispatch(Link::Down(to), Message::Push { to, member: None, push });
    }

    fn arrives(&mut self, process: &mut Process, message: Message) -> Result<(), Violation> {
        match message {
            Message::News { to, state } => {
                self.teach(process, to, &state);
                Ok(())
            }
            Message::Assign { to, assigned } => {
                self.assign(process, to, &assigned);
                Ok(())
            }
            Message::Request { from, member, request } => self.requested(process, from, member, request),
            Message::Closed { from } => {
                self.closed(process, from);
                Ok(())
            }
            Message::Sent { shard, subscription } => {
                process.shards[shard].engine.delivered(subscription);
                Ok(())
            }
            Message::Push { to, member, push } => {
                // Its client may have given the connection up.
                if let Some((client, shard)) = self.consumers.connections.get(&to).copied()
                    && self.consumers.clients[client][shard] == Some(to)
                {
                    let members = self.consumers.members.iter_mut().enumerate();
                    let wanted = |index| member.is_none_or(|member| member == index);
                    for (_, member) in members.filter(|(index, member)| member.speaks_for == client && wanted(*index)) {
                        member.inbox.push_back((shard, push.clone()));
                    }
                }
                Ok(())
            }
        }
    }

    // The catalogue.

    /// A shard that keeps a copy of the catalogue learns something of it.
    pub fn teach(&mut self, process: &mut Process, shard: usize, state: &CatalogueState) {
        process.shards[shard].engine.catalogue_changed(state);
        self.news_taken_in(shard, state);
    }

    fn news_taken_in(&mut self, shard: usize, state: &CatalogueState) {
        let ledger = &mut self.consumers.ledger;
        match state {
            CatalogueState::Topic(TopicState::Deleted(topic)) => ledger.deleted(shard, |share| share.topic == *topic),
            CatalogueState::Group(GroupState::Deleted(group)) => {
                ledger.deleted(shard, |share| share.group == *group);
                let home = self.consumers.members.iter().any(|member| member.group == *group && member.home == shard);
                if home {
                    self.consumers.roll.group_deleted(*group);
                }
            }
            _ => {}
        }
    }

    /// What a shard says, after it has asked shard 0 for what it does not know.
    pub fn asking<T>(
        &mut self,
        process: &mut Process,
        shard: usize,
        mut request: impl FnMut(&mut Engine) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut questions = 0;
        loop {
            match request(&mut process.shards[shard].engine) {
                Err(Refusal::AskHome { about, .. }) if questions < QUESTIONS_MAX => {
                    questions += 1;
                    self.statistics.asked_home += 1;
                    let state = process.shards[0].engine.catalogue_state(about);
                    self.teach(process, shard, &state);
                }
                Err(Refusal::LookUp(question)) => {
                    let Shard { engine, look_ups, .. } = &mut process.shards[shard];
                    if !look_ups.answer(engine, &question, &self.machine) {
                        return Err(Refusal::Busy { retry_after: Nanos(0) });
                    }
                }
                other => return other,
            }
        }
    }

    // Members.

    fn requested(
        &mut self,
        process: &mut Process,
        from: ConnectionId,
        index: usize,
        request: Request,
    ) -> Result<(), Violation> {
        let Some((_, shard)) = self.consumers.connections.get(&from).copied() else { return Ok(()) };
        let (owner, now, wall) = (ReaderOwner(from.0), self.now(), self.wall());
        let member = &self.consumers.members[index];
        let (group, name, client, topics) =
            (member.group, member.name.clone(), member.client.clone(), member.topics.clone());
        match request {
            Request::Join => {
                let joined = self.asking(process, shard, |engine| {
                    let topics = topics.clone();
                    let join = Join { owner, group, name: &name, client: &client, topics, joined: wall };
                    engine.join_group(join, now)
                });
                self.machine.note(&("joins", &name, shard, format!("{joined:?}")));
                if let Ok(joined) = joined {
                    self.statistics.joined += 1;
                    self.consumers.roll.joined(group, &name, joined.member, owner, &topics, now)?;
                }
                self.answer_member(from, index, Push::Joined(joined.map_err(|refusal| refusal.code())));
            }
            Request::Leave { member } => {
                if process.shards[shard].engine.leave_group(owner, group, member).is_ok() {
                    self.machine.note(&("leaves", &name, member));
                    self.consumers.roll.left(group, member);
                }
            }
            Request::Heartbeat { member, number } => {
                let heard = process.shards[shard].engine.heartbeat(owner, group, member, number, now);
                if heard.is_ok() {
                    self.consumers.roll.heard(group, member, now);
                }
                self.answer_member(from, index, Push::Heard(heard.map_err(|refusal| refusal.code())));
            }
            Request::Subscribe { token, member, topic, queue, credit } => {
                let share = Share { group, topic, queue };
                let subscribed = self.asking(process, shard, |engine| {
                    engine.subscribe_group(owner, group, member, topic, queue, credit)
                });
                let answer = match subscribed {
                    Ok((id, place)) => {
                        self.machine.note(&("subscribes", &name, share, shard, id, place.offset));
                        let start = start_of(&process.shards[shard].engine, share)?;
                        let ledger = &mut self.consumers.ledger;
                        ledger.subscribed(
                            (shard, id),
                            share,
                            (member, owner),
                            start,
                            place.offset,
                            &self.ledgers[shard],
                        )?;
                        Ok(id)
                    }
                    Err(refusal) => {
                        promise!(
                            !matches!(refusal, Refusal::WrongShard(_) | Refusal::Truncated { .. }),
                            "a member of {share:?} was refused at shard {shard}: {refusal}"
                        );
                        Err(refusal.code())
                    }
                };
                self.answer_member(from, index, Push::Subscribed { token, answer });
            }
            Request::Unsubscribe { subscription } => {
                if process.shards[shard].engine.unsubscribe(owner, subscription).is_ok() {
                    self.machine.note(&("gives up", &name, shard, subscription));
                    self.consumers.ledger.left(shard, subscription);
                }
            }
            Request::Credit { subscription, credit } => {
                // It may have ended; its member is told by and by.
                let granted = process.shards[shard].engine.credit(owner, subscription, credit);
                promise!(matches!(granted, Ok(()) | Err(Refusal::UnknownSubscription)), "credit: {granted:?}");
            }
            Request::Ack { subscription, epoch, offset } => {
                self.acknowledged_by_member(process, (shard, from), subscription, (epoch, offset))?;
            }
        }
        Ok(())
    }

    /// A shard learns that a connection is gone.
    fn closed(&mut self, process: &mut Process, from: ConnectionId) {
        let Some((client, shard)) = self.consumers.connections.remove(&from) else { return };
        let (owner, now) = (ReaderOwner(from.0), self.now());
        self.machine.note(&("connection lost", client, shard));
        self.consumers.ledger.detached(shard, owner);
        self.consumers.roll.detached(owner, now);
        process.shards[shard].engine.detach(owner, now);
    }

    /// Members read what has come, and say that they are there.
    fn members_act(&mut self, process: &Process) -> Result<(), Violation> {
        let now = self.machine.now();
        let shards = self.configuration.shards;
        let route = |topic: TopicId, queue: QueueId| match process.shards[0].engine.topic(topic) {
            TopicState::Live(topic) => Some(usize::from(topic.shard_of(queue, shards).0)),
            _ => None,
        };
        for index in 0..self.consumers.members.len() {
            let heartbeat = self.consumers.heartbeat();
            let member = &mut self.consumers.members[index];
            if member.asleep_until > now {
                continue;
            }
            while let Some((shard, push)) = member.inbox.pop_front() {
                member.receive(shard, push, &mut self.random, &route)?;
            }
            if member.next_beat <= now && !member.is_gone {
                member.beat(&mut self.random, &route);
                member.next_beat = now + heartbeat;
            }
            self.send_requests(index);
        }
        Ok(())
    }

    pub fn send_requests(&mut self, index: usize) {
        for (shard, request) in std::mem::take(&mut self.consumers.members[index].requests) {
            let connection = self.connection(index, shard);
            self.dispatch(Link::Up(connection), Message::Request { from: connection, member: index, request });
        }
    }

    fn connection(&mut self, index: usize, shard: usize) -> ConnectionId {
        let consumers = &mut self.consumers;
        let client = consumers.members[index].speaks_for;
        if let Some(connection) = consumers.clients[client][shard] {
            return connection;
        }
        consumers.last_connection += 1;
        let connection = ConnectionId(consumers.last_connection);
        consumers.clients[client][shard] = Some(connection);
        consumers.connections.insert(connection, (client, shard));
        connection
    }

    // Homes.

    /// One slice of the work on assignments: makes those of this shard's groups, and follows those that it was told.
    fn work_for_groups(&mut self, process: &mut Process, shard: usize) -> Result<(), Violation> {
        let mut slice = Slice::new(self.consumers.settings.slice);
        self.carry_out(process, shard, &mut slice)?;
        let engine = &mut process.shards[shard].engine;
        if self.random.one_in(self.consumers.settings.follow_one_in) {
            engine.follow_assignments(&mut slice);
        }
        self.statistics.slices_left_work += u64::from(engine.has_group_work());
        Ok(())
    }

    /// Carries out what the homes of this shard's groups have decided.
    fn carry_out(&mut self, process: &mut Process, shard: usize, slice: &mut Slice) -> Result<(), Violation> {
        while let Some(effect) = process.shards[shard].engine.next_home_effect(slice) {
            match effect {
                HomeEffect::Assign { group, number, assignment, fenced } => {
                    let holders = assignment.iter().collect();
                    let assigned = Rc::new(Assigned { group, number, assignment, holders, fenced });
                    self.machine.note(&("assigns", format!("{assigned:?}")));
                    self.statistics.assignments += 1;
                    let now = self.now();
                    let reasons = self.consumers.roll.assigned(&process.shards[shard].engine, &assigned, now)?;
                    self.statistics.fenced += reasons.len() as u64;
                    for (member, reason) in assigned.fenced.iter().zip(reasons) {
                        self.machine.note(&("fences", member, reason));
                    }
                    for to in (0..process.shards.len()).filter(|to| *to != shard) {
                        let assigned = Rc::clone(&assigned);
                        self.dispatch(Link::Mesh { from: shard, to }, Message::Assign { to, assigned });
                    }
                    self.assign(process, shard, &assigned);
                    self.consumers.assigned.push(assigned);
                }
                HomeEffect::Tell { owner, member, number, queues, .. } => {
                    self.push_to(owner, Push::Assignment { member, number, queues });
                }
                HomeEffect::Fence { owner, member, code, .. } => {
                    self.machine.note(&("ends member", member, code.number()));
                    self.push_to(owner, Push::Fenced { member, code });
                }
            }
        }
        Ok(())
    }

    /// A home's word reaches an owner.
    pub fn assign(&mut self, process: &mut Process, shard: usize, assigned: &Assigned) {
        let now = self.now();
        self.machine.note(&("takes in", shard, assigned.group, assigned.number));
        let engine = &mut process.shards[shard].engine;
        let shards = self.configuration.shards;
        // Whether the owner knows the topic or not, its queues are where shard 0 says.
        let topics: Vec<TopicState> = assigned.holders.iter().map(|row| engine.topic(row.0)).collect();
        let mine = |topic: TopicId, queue: QueueId| {
            let at = assigned.holders.iter().position(|row| row.0 == topic);
            match at.map(|at| &topics[at]) {
                Some(TopicState::Live(found)) => usize::from(found.shard_of(queue, shards).0) == shard,
                Some(TopicState::Deleted(_)) | None => false,
                Some(TopicState::Unknown(_)) => true,
            }
        };
        if !matches!(engine.group(assigned.group), GroupState::Deleted(_)) {
            self.consumers.ledger.assigned((shard, &self.ledgers[shard]), assigned, mine, now);
        }
        let Assigned { group, number, assignment, fenced, .. } = assigned;
        engine.assign(*group, *number, assignment, fenced, now);
    }

    // Owners.

    /// A batch is handed to a member's subscription.
    pub fn handed_to_member(
        &mut self,
        shard: usize,
        subscription: SubscriptionId,
        batch: &BatchPlace,
    ) -> Result<(), Violation> {
        let handed = self.consumers.ledger.handed((shard, subscription), batch, &self.ledgers[shard])?;
        self.machine.note(&("hands out", shard, subscription, batch.first_wanted, batch.end_offset(), batch.attempt));
        self.statistics.handed_out += 1;
        self.statistics.handed_again += u64::from(handed.before > 0);
        self.statistics.skipped += u64::from(handed.skipped);
        Ok(())
    }

    /// Its bytes are there.
    pub fn deliver_to_member(
        &mut self,
        shard: (&mut Shard, usize),
        (owner, subscription): (ReaderOwner, SubscriptionId),
        batch: &BatchPlace,
        header: &EntryHeader,
    ) {
        let (running, index) = shard;
        // What was handed out and not sent is not sent any more once its turn has ended.
        if self.consumers.ledger.is_alive(index, subscription) {
            let (epoch, first, end) = (header.epoch, batch.first_wanted, batch.end_offset());
            self.push_to(owner, Push::Batch { subscription, epoch, first, end });
        }
        if self.random.one_in(6) {
            self.dispatch(Link::Own(index), Message::Sent { shard: index, subscription });
        } else {
            running.engine.delivered(subscription);
        }
    }

    /// What a member was to be sent is no longer kept: its shard gave its subscription up, and it hears of that.
    pub fn turn_was_given_up(&mut self, shard: usize, owner: ReaderOwner, subscription: SubscriptionId) {
        self.machine.note(&("gave up", shard, subscription));
        self.consumers.ledger.left(shard, subscription);
        self.push_to(owner, Push::Ended { subscription });
    }

    /// A member's turn is to end, or has ended.
    pub fn turn_is_over(&mut self, shard: usize, delivery: Delivery) -> Result<(), Violation> {
        let now: Nanos = self.now();
        match delivery {
            Delivery::Batch { .. } => unreachable!("batches are handed out elsewhere"),
            Delivery::LookUp { .. } | Delivery::Ask { .. } => unreachable!("nobody's turn is over"),
            Delivery::Revoked { owner, subscription } => {
                self.machine.note(&("revokes", shard, subscription));
                self.statistics.revoked += 1;
                self.consumers.ledger.revoked(shard, subscription)?;
                self.push_to(owner, Push::Revoked { subscription });
            }
            Delivery::Ended { owner, subscription, code } => {
                let reason = self.consumers.ledger.ended((shard, &self.ledgers[shard]), subscription, code, now)?;
                self.machine.note(&("ends", shard, subscription, code.number(), reason));
                self.statistics.overdue_drains += u64::from(reason == "not done within the drain");
                self.statistics.turns_reset += u64::from(code == ErrorCode::OffsetReset);
                self.push_to(owner, Push::Ended { subscription });
            }
        }
        Ok(())
    }
}

/// Where a group begins in a queue, as its owner knows it.
fn start_of(owner: &Engine, share: Share) -> Result<GroupStart, Violation> {
    let start = match owner.group(share.group) {
        GroupState::Live(group) => group.start_in(share.topic),
        _ => None,
    };
    start.ok_or_else(|| Violation(format!("{share:?} was subscribed to and is not consumed")))
}
