//! Consumer groups of the fake broker: members get their queues by name, round about, as soon as they join; a queue changes hands when
//! the one that has it unsubscribes, loses its connection, or is fenced by the test.

use std::collections::{BTreeMap, HashMap};

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::*;
use peregrine_protocol::message::*;
use peregrine_protocol::placement::shard_of_queue;

use super::connection::Connection;
use super::queue::Queue;
use super::{FakeBroker, State};

type Key = (TopicId, QueueId);

#[derive(Debug, Default)]
pub struct Groups {
    by_name: BTreeMap<String, Group>,
    last_member: u64,
}

#[derive(Debug)]
struct Group {
    id: GroupId,
    topics: Vec<GroupTopic>,
    members: BTreeMap<String, Member>,
    number: u64,
    places: HashMap<Key, Place>,
}

#[derive(Debug)]
struct Member {
    id: MemberId,
    client: String,
    connection: Option<u64>,
    queues: Vec<Key>,
    /// The assignment that it was told.
    told: u64,
    /// Another one has its name, or the group is gone.
    ended: Option<ErrorCode>,
}

#[derive(Debug, Default)]
struct Place {
    committed: u64,
    is_committed: bool,
    holder: Option<MemberId>,
    /// Why the holder before has lost it.
    reason: Option<ErrorCode>,
    /// Below this it was delivered before, so often.
    delivered: u64,
    attempts: u16,
}

pub struct GroupSubscription {
    id: SubscriptionId,
    group: GroupId,
    member: MemberId,
    key: Key,
    /// Behind what was delivered; `None`: another has the queue.
    next: Option<u64>,
    is_revoked: bool,
    messages: i64,
    bytes: i64,
}

impl FakeBroker {
    /// The members are forgotten, as by a broker that was killed.
    pub(super) fn forget_members(&self) {
        for group in self.state.lock().unwrap().groups.by_name.values_mut() {
            group.members.clear();
            group.places.values_mut().for_each(|place| place.holder = None);
        }
    }

    /// Takes a queue from its member.
    pub fn fence(&self, group: &str, topic: &str, queue: u32) {
        let mut state = self.state.lock().unwrap();
        let topic = state.topics[topic].0;
        let place = state.groups.by_name.get_mut(group).unwrap().places.get_mut(&(topic, QueueId(queue))).unwrap();
        place.reason = place.holder.take().map(|_| ErrorCode::NotHolder);
        let _ = self.moved.send(());
    }

    /// Where the group is in a queue.
    pub fn committed(&self, group: &str, topic: &str, queue: u32) -> u64 {
        let state = self.state.lock().unwrap();
        let key = (state.topics[topic].0, QueueId(queue));
        state.groups.by_name[group].places.get(&key).map_or(0, |place| place.committed)
    }

    /// How many members a group has.
    pub fn members(&self, group: &str) -> usize {
        self.state.lock().unwrap().groups.by_name[group].members.len()
    }
}

impl Groups {
    fn find(&mut self, id: GroupId) -> Option<&mut Group> {
        self.by_name.values_mut().find(|group| group.id == id)
    }
}

impl Group {
    fn row<'a>(&'a self, name: &'a str) -> GroupRow<'a> {
        GroupRow { name, id: self.id, created: Nanos(1), topics: self.topics[..].into() }
    }

    /// Spreads the queues over the members.
    fn assign(&mut self, topics: &BTreeMap<String, (TopicId, u32)>) {
        self.number += 1;
        let mut keys = Vec::new();
        for (id, queues) in topics.values().filter(|(id, _)| self.topics.iter().any(|topic| topic.topic == *id)) {
            keys.extend((0..*queues).map(|queue| (*id, QueueId(queue))));
        }
        let count = self.members.values().filter(|member| member.ended.is_none()).count();
        let members = self.members.values_mut().filter(|member| member.ended.is_none());
        for (index, member) in members.enumerate() {
            member.queues = keys.iter().skip(index).step_by(count).copied().collect();
        }
    }

    fn wanted(&self, key: Key) -> Option<MemberId> {
        self.members.values().find(|member| member.queues.contains(&key)).map(|member| member.id)
    }
}

impl Connection {
    pub(super) fn answer_group(&mut self, state: &mut State, request: Request<'_>, correlation: Correlation) {
        let out = &mut self.out;
        let error = |code: ErrorCode, out: &mut Vec<u8>| ErrorAnswer::new(code).encode(correlation, out);
        let State { groups, topics, queues, shards, .. } = state;
        match request {
            Request::CreateGroup(asked) => {
                let id = GroupId(100 + groups.by_name.len() as u64);
                let (members, places) = (BTreeMap::new(), HashMap::new());
                let new = Group { id, topics: Vec::new(), members, number: 0, places };
                let group = groups.by_name.entry(asked.name.to_owned()).or_insert(new);
                let mut changed = false;
                for topic in asked.topics.iter() {
                    if group.topics.iter().all(|known| known.topic != topic.topic) {
                        group.topics.push(topic);
                        changed = true;
                    }
                }
                let answer = GroupAnswer { group: group.row(asked.name), changed };
                Answer::CreateGroup(answer).encode(correlation, out);
            }
            Request::DeleteGroup(asked) => match groups.by_name.remove(asked.name) {
                Some(group) => Answer::DeleteGroup(GroupAnswer { group: group.row(asked.name), changed: true })
                    .encode(correlation, out),
                None => error(ErrorCode::UnknownGroup, out),
            },
            Request::ListGroups(asked) => {
                let found = groups.by_name.iter();
                let found = found.filter(|(name, _)| name.starts_with(asked.prefix) && name.as_str() > asked.after);
                let rows: Vec<_> = found.map(|(name, group)| group.row(name)).collect();
                // Pages of two, so that paging is seen.
                let page = &rows[..rows.len().min(2)];
                Answer::ListGroups(ListGroupsAnswer { groups: page.into(), more: rows.len() > 2 })
                    .encode(correlation, out);
            }
            Request::DescribeGroup(asked) => match groups.by_name.get(asked.name) {
                Some(group) => {
                    let rows: Vec<_> = group
                        .members
                        .iter()
                        .filter(|(name, _)| name.as_str() > asked.after)
                        .map(|(name, member)| MemberRow {
                            name,
                            id: member.id,
                            client: &member.client,
                            joined: Nanos(1),
                            connected: member.connection.is_some(),
                            queues: member.queues.len() as u32,
                        })
                        .collect();
                    let answer = DescribeGroupAnswer {
                        group: group.row(asked.name),
                        home: ShardId(self.shard),
                        number: group.number,
                        settling: false,
                        members: rows[..rows.len().min(2)].into(),
                        more: rows.len() > 2,
                    };
                    Answer::DescribeGroup(answer).encode(correlation, out);
                }
                None => error(ErrorCode::UnknownGroup, out),
            },
            Request::GroupLag(asked) => {
                let Some(group) = groups.find(asked.group) else { return error(ErrorCode::UnknownGroup, out) };
                let (name, count) =
                    topics.iter().find(|(_, (id, _))| *id == asked.topic).map_or(("", 0), |(n, t)| (n, t.1));
                let rows: Vec<_> = (asked.first_queue.0..count)
                    .map(QueueId)
                    .filter(|&queue| shard_of_queue(name, queue, *shards).0 == self.shard)
                    .map(|queue| {
                        let place = group.places.get(&(asked.topic, queue));
                        let offset = place.map_or(0, |place| place.committed);
                        let end = queues.get(&(asked.topic, queue)).map_or(0, Queue::end);
                        LagRow {
                            queue,
                            offset: QueueOffset(offset),
                            epoch: Epoch(1),
                            committed: place.is_some_and(|place| place.is_committed),
                            end: QueueOffset(end),
                            oldest_unread: (offset < end).then_some(Nanos(1)),
                            holder: place.and_then(|place| place.holder),
                        }
                    })
                    .collect();
                let (shard, now, more) = (ShardId(self.shard), Nanos(1_000_000_001), rows.len() > 2);
                let rows = rows[..rows.len().min(2)].into();
                Answer::GroupLag(GroupLagAnswer { shard, rows, now, more }).encode(correlation, out);
            }
            Request::ResetOffset(asked) => {
                let key = (asked.topic, asked.queue);
                let end = queues.get(&key).map_or(0, Queue::end);
                let Some(group) = groups.find(asked.group) else { return error(ErrorCode::UnknownGroup, out) };
                let place = group.places.entry(key).or_default();
                place.committed = match asked.start {
                    Start::Latest => end,
                    Start::Offset { offset, .. } => offset.0.min(end),
                    _ => 0,
                };
                (place.is_committed, place.delivered, place.attempts) = (true, 0, 0);
                place.reason = place.holder.take().map(|_| ErrorCode::OffsetReset);
                let offset = QueueOffset(place.committed);
                Answer::ResetOffset(ResetOffsetAnswer { epoch: Epoch(1), offset }).encode(correlation, out);
            }
            Request::JoinGroup(asked) => {
                groups.last_member += 1;
                let next = MemberId(state.epoch << 32 | groups.last_member);
                let Some(group) = groups.find(asked.group) else { return error(ErrorCode::UnknownGroup, out) };
                let name = asked.member.to_owned();
                let fenced = group.members.get(&name).is_some_and(|member| member.connection.is_some());
                if fenced {
                    let mut old = group.members.remove(&name).unwrap();
                    (old.ended, old.queues) = (Some(ErrorCode::MemberFenced), Vec::new());
                    group.members.insert(format!("{name} {}", old.id), old);
                }
                let client = asked.client.to_owned();
                let new = Member { id: next, client, connection: None, queues: Vec::new(), told: 0, ended: None };
                let member = group.members.entry(name).or_insert(new);
                (member.connection, member.told) = (Some(self.number), 0);
                let answer = JoinGroupAnswer {
                    member: member.id,
                    number: group.number,
                    heartbeat: Nanos::from_millis(50),
                    silence: Nanos::from_secs(10),
                    grace: Nanos::from_secs(10),
                };
                Answer::JoinGroup(answer).encode(correlation, out);
                group.assign(topics);
            }
            Request::LeaveGroup(asked) => {
                if let Some(group) = groups.find(asked.group) {
                    group.members.retain(|_, member| member.id != asked.member);
                    group.assign(topics);
                }
                Answer::LeaveGroup(asked).encode(correlation, out);
            }
            Request::Heartbeat(asked) => {
                let group = groups.find(asked.group);
                match group.and_then(|group| {
                    group.members.values().any(|member| member.id == asked.member).then_some(group.number)
                }) {
                    Some(number) => Answer::Heartbeat(HeartbeatAnswer { number }).encode(correlation, out),
                    None => error(ErrorCode::UnknownMember, out),
                }
            }
            other => panic!("not of groups: {other:?}"),
        }
        let _ = self.moved.send(());
    }

    pub(super) fn subscribe_member(&mut self, state: &mut State, asked: &Subscribe, correlation: Correlation) {
        let Mode::Group { group, member } = asked.mode else { panic!("a member") };
        let key = (asked.topic, asked.queue);
        let Some(found) = state.groups.find(group) else {
            return ErrorAnswer::new(ErrorCode::GroupDeleted).encode(correlation, &mut self.out);
        };
        let place = found.places.entry(key).or_default();
        // Readers count from 1, one by one; members' numbers must not be taken for theirs.
        self.last_subscription += 1;
        let id = SubscriptionId(1_000 + self.last_subscription);
        let (messages, bytes) = (asked.credit_messages.into(), asked.credit_bytes as i64);
        let (next, is_revoked) = (None, false);
        self.group_subscriptions.push(GroupSubscription { id, group, member, key, next, is_revoked, messages, bytes });
        let end = QueueOffset(state.queues.get(&key).map_or(0, Queue::end));
        let (epoch, start) = (Epoch(state.epoch), QueueOffset(place.committed));
        Answer::Subscribe(SubscribeAnswer { subscription: id, epoch, start, end }).encode(correlation, &mut self.out);
    }

    pub(super) fn ack_member(&mut self, state: &mut State, ack: &Ack, correlation: Correlation) {
        let it = self.group_subscriptions.iter().find(|it| it.id == ack.subscription);
        let place = it.and_then(|it| {
            let place = state.groups.find(it.group)?.places.get_mut(&it.key)?;
            (place.holder == Some(it.member) && it.next.is_some()).then_some((it, place))
        });
        let Some((it, place)) = place else {
            return ErrorAnswer::new(ErrorCode::NotHolder).encode(correlation, &mut self.out);
        };
        assert!(Some(ack.offset.0) <= it.next, "acknowledged and not delivered");
        place.committed = place.committed.max(ack.offset.0);
        place.is_committed = true;
        Answer::Ack(AckAnswer { subscription: ack.subscription, offset: ack.offset })
            .encode(correlation, &mut self.out);
    }

    pub(super) fn unsubscribe_member(&mut self, state: &mut State, id: SubscriptionId) {
        let Some(at) = self.group_subscriptions.iter().position(|it| it.id == id) else { return };
        release(state, &self.group_subscriptions.swap_remove(at));
        let _ = self.moved.send(());
    }

    pub(super) fn credit_member(&mut self, credit: &Credit) {
        if let Some(it) = self.group_subscriptions.iter_mut().find(|it| it.id == credit.subscription) {
            it.messages += i64::from(credit.messages);
            it.bytes += credit.bytes as i64;
        }
    }

    /// Pushes what is to be pushed to this connection's members, and gives its subscriptions what they may have.
    pub(super) fn deliver_to_members(&mut self, state: &mut State) {
        for group in state.groups.by_name.values_mut() {
            for member in group.members.values_mut().filter(|member| member.connection == Some(self.number)) {
                if let Some(code) = member.ended {
                    member.connection = None; // told once
                    let detail = ErrorDetail { member: Some(member.id.0), ..ErrorDetail::default() };
                    ErrorAnswer::new(code).with(detail).encode(Correlation(0), &mut self.out);
                } else if member.told < group.number {
                    member.told = group.number;
                    let rows: Vec<_> =
                        member.queues.iter().map(|&(topic, queue)| AssignedQueue { topic, queue }).collect();
                    let (group, member, number) = (group.id, member.id, group.number);
                    Answer::Assignment(Assignment { group, member, number, queues: rows[..].into() })
                        .encode(Correlation(0), &mut self.out);
                }
            }
        }
        for it in std::mem::take(&mut self.group_subscriptions) {
            if let Some(kept) = self.serve_member(state, it) {
                self.group_subscriptions.push(kept);
            }
        }
    }

    /// `None`: the subscription has ended.
    fn serve_member(&mut self, state: &mut State, mut it: GroupSubscription) -> Option<GroupSubscription> {
        let subscription = it.id;
        let detail = ErrorDetail { subscription: Some(it.id.0), ..ErrorDetail::default() };
        let Some(group) = state.groups.find(it.group) else {
            ErrorAnswer::new(ErrorCode::GroupDeleted).with(detail).encode(Correlation(0), &mut self.out);
            return None;
        };
        let wanted = group.wanted(it.key);
        let place = group.places.get_mut(&it.key)?;
        if it.next.is_some() && place.holder != Some(it.member) {
            let code = place.reason.take().unwrap_or(ErrorCode::NotHolder);
            ErrorAnswer::new(code).with(detail).encode(Correlation(0), &mut self.out);
            let _ = self.moved.send(());
            return None;
        }
        if it.next.is_none() && place.holder.is_none() && place.reason.is_none() && wanted == Some(it.member) {
            place.holder = Some(it.member);
            place.attempts = if place.committed < place.delivered { place.attempts + 1 } else { 1 };
            it.next = Some(place.committed);
        }
        if it.next.is_some() && wanted != Some(it.member) && !it.is_revoked {
            it.is_revoked = true;
            Answer::Revoke(Revoke { subscription }).encode(Correlation(0), &mut self.out);
        }
        let Some(next) = it.next.filter(|_| !it.is_revoked) else { return Some(it) };
        let mut next = next;
        for batch in state.queues.get(&it.key).into_iter().flat_map(|queue| &queue.batches) {
            let end = batch.base + u64::from(batch.records);
            if end <= next || it.messages <= 0 || it.bytes <= 0 {
                continue;
            }
            let first = batch.base.max(next);
            let head = batch.head(first, if first < place.delivered { place.attempts } else { 1 });
            it.messages -= (end - first) as i64;
            it.bytes -= batch.payload.len() as i64;
            next = end;
            Deliver { subscription, batch: head, payload: &batch.payload }.encode(&mut self.out);
        }
        place.delivered = place.delivered.max(next);
        it.next = Some(next);
        Some(it)
    }

    /// The connection is lost: its members' queues wait for them.
    pub(super) fn lose_members(&mut self) {
        let mut state = self.state.lock().unwrap();
        for group in state.groups.by_name.values_mut() {
            for member in group.members.values_mut().filter(|member| member.connection == Some(self.number)) {
                member.connection = None;
            }
        }
        for it in self.group_subscriptions.drain(..) {
            release(&mut state, &it);
        }
        let _ = self.moved.send(());
    }
}

/// The queue is free for the member that it is assigned to.
fn release(state: &mut State, it: &GroupSubscription) {
    let place = state.groups.find(it.group).and_then(|group| group.places.get_mut(&it.key));
    if let Some(place) = place.filter(|_| it.next.is_some()) {
        place.holder = place.holder.filter(|holder| *holder != it.member);
        place.reason = None;
    }
}
