//! A model of the broker's half of a group for the property test: a home that assigns as it likes, owners that hold, drain and fence,
//! logs that a power cut shortens, and connections whose bytes arrive late or never. Members are [`MemberCore`]s.

mod broker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{
    Epoch, GroupId, LogPosition, MemberId, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::message::{
    AckAnswer, AssignedQueue, AssignedQueues, Assignment, BatchHead, HeartbeatAnswer, JoinGroupAnswer, SubscribeAnswer,
};
use peregrine_protocol::placement::TopicHash;

use super::{Action, MemberCore, MemberOptions, MemberTopic, Notice, QueueKey, Ticket, Token};
use crate::error::Refusal;

pub const QUEUES: u32 = 3;
pub const SHARDS: u16 = 2;
pub const HOME: ShardId = ShardId(0);
pub const TOPIC: TopicId = TopicId(7);
pub const GROUP: GroupId = GroupId(9);
const STEP: Nanos = Nanos::from_millis(500);
/// Messages that a member lets come, over all queues.
pub const CREDIT: u64 = 12;

/// What the broker sends on a connection.
#[derive(Debug)]
enum Sent {
    Joined(JoinGroupAnswer),
    Heartbeat(Result<HeartbeatAnswer, Refusal>),
    Left,
    Assigned { member: MemberId, number: u64, queues: Vec<AssignedQueue> },
    Subscribed(Ticket, Result<SubscribeAnswer, Refusal>),
    Delivered(Ticket, BatchHead, Vec<u64>),
    Revoked(Ticket),
    Ended(Ticket, Refusal),
    Acked(Ticket, Result<AckAnswer, Refusal>),
    Unsubscribed(Ticket),
}

#[derive(Debug, Default)]
struct Connection {
    to_broker: VecDeque<Action>,
    to_client: VecDeque<Sent>,
}

#[derive(Debug)]
struct Member {
    core: MemberCore<u64>,
    connections: BTreeMap<ShardId, Connection>,
    /// Shards that it wants a connection to.
    wanted: BTreeSet<ShardId>,
    hands: Vec<(Token, u64)>,
    /// Its leave was on a connection that was lost.
    lost_leave: bool,
    /// By queue, since it last lost it: the last message that it was handed.
    had: BTreeMap<QueueId, u64>,
    /// By queue, how often the group was set back since then.
    set_back: BTreeMap<QueueId, u32>,
}

#[derive(Debug)]
struct Subscription {
    id: SubscriptionId,
    ticket: Ticket,
    client: usize,
    member: MemberId,
    credit: i64,
    /// Behind the last message delivered, once it is active.
    next: Option<u64>,
    is_revoked: bool,
}

/// A member, or nobody.
type To = Option<MemberId>;

#[derive(Debug, Default)]
struct Queue {
    /// Epoch and message.
    log: Vec<(u64, u64)>,
    committed: u64,
    /// What a power cut leaves at least.
    durable: u64,
    holder: Option<MemberId>,
    /// Who gets it when the holder is drained.
    next_holder: Option<To>,
    subscriptions: Vec<Subscription>,
}

#[derive(Debug)]
pub struct World {
    members: Vec<Member>,
    queues: Vec<Queue>,
    /// At home: number and queues by client, while its grace lasts.
    joined: BTreeMap<usize, (MemberId, BTreeSet<QueueId>)>,
    /// Of them, those whose connection is lost.
    lost: BTreeSet<usize>,
    number: u64,
    epoch: u64,
    next_id: u64,
    next_message: u64,
    now: Nanos,
    busy: u32,
    /// Messages that an application was done with while they were its own.
    done: BTreeSet<u64>,
}

impl World {
    pub fn new(members: usize) -> Self {
        let mut world = Self {
            members: (0..members).map(member).collect(),
            queues: (0..QUEUES).map(|_| Queue::default()).collect(),
            joined: BTreeMap::new(),
            lost: BTreeSet::new(),
            number: 0,
            epoch: 1,
            next_id: 1,
            next_message: 0,
            now: Nanos(1),
            busy: 0,
            done: BTreeSet::new(),
        };
        (0..members).for_each(|client| world.collect(client));
        world
    }

    pub fn produce(&mut self, queue: u32, count: u64) {
        for _ in 0..count {
            self.queues[queue as usize].log.push((self.epoch, self.next_message));
            self.next_message += 1;
        }
    }

    pub fn connect(&mut self, client: usize, shard: ShardId) {
        let member = &mut self.members[client];
        if member.wanted.contains(&shard) && !member.connections.contains_key(&shard) {
            member.connections.insert(shard, Connection::default());
            member.core.connected(shard, self.now);
            self.collect(client);
        }
    }

    pub fn disconnect(&mut self, client: usize, shard: ShardId) {
        let Some(connection) = self.members[client].connections.remove(&shard) else { return };
        let leaves = |action: &Action| matches!(action, Action::Leave(..));
        self.members[client].lost_leave |= connection.to_broker.iter().any(leaves);
        if shard == HOME {
            self.lost.insert(client);
        }
        for queue in (0..QUEUES).map(QueueId).filter(|&queue| owner(queue) == shard) {
            let member = &mut self.members[client];
            if !member.core.assigned_queues().any(|key| key.queue == queue) {
                member.had.remove(&queue);
            }
            let state = &mut self.queues[queue.0 as usize];
            let was_active = state.subscriptions.iter().any(|it| it.client == client && it.next.is_some());
            state.subscriptions.retain(|it| it.client != client);
            if was_active && let Some(next) = state.next_holder.take() {
                self.hand_over(queue, next);
            }
        }
        self.members[client].core.disconnected(shard, self.now);
        self.collect(client);
    }

    /// The home does not wait for a member any longer.
    pub fn end_grace(&mut self, client: usize) {
        if self.lost.contains(&client) && self.joined.remove(&client).is_some() {
            self.assign(client as u64);
        }
    }

    /// Gives each queue to whichever member `seed` says.
    pub fn assign(&mut self, seed: u64) {
        let clients: Vec<usize> = self.joined.keys().copied().collect();
        self.number += 1;
        for (_, queues) in self.joined.values_mut() {
            queues.clear();
        }
        for queue in (0..QUEUES).map(QueueId) {
            let draw = seed >> (queue.0 * 4);
            let to = clients.get(draw as usize % clients.len().max(1)).map(|client| {
                let (member, queues) = self.joined.get_mut(client).expect("joined");
                queues.insert(queue);
                *member
            });
            let state = &mut self.queues[queue.0 as usize];
            let active = state.subscriptions.iter_mut().find(|it| it.next.is_some() && Some(it.member) == state.holder);
            match active {
                Some(active) if Some(active.member) != to => {
                    state.next_holder = Some(to);
                    if !std::mem::replace(&mut active.is_revoked, true) {
                        let (client, ticket) = (active.client, active.ticket);
                        self.send(client, owner(queue), Sent::Revoked(ticket));
                    }
                }
                // It was revoked once: it gets the queue back when it subscribes again.
                Some(active) if active.is_revoked => state.next_holder = Some(to),
                Some(_) => {}
                None => self.hand_over(queue, to),
            }
        }
        for client in clients {
            self.push_assignment(client);
        }
    }

    /// The time for draining is over.
    pub fn fence(&mut self, queue: u32) {
        if let Some(next) = self.queues[queue as usize].next_holder.take() {
            self.hand_over(QueueId(queue), next);
        }
    }

    pub fn reset(&mut self, queue: u32, to: u64) {
        let state = &mut self.queues[queue as usize];
        state.committed = to % (state.log.len() as u64 + 1);
        state.durable = state.committed;
        for member in &mut self.members {
            *member.set_back.entry(QueueId(queue)).or_default() += 1;
        }
        let state = &mut self.queues[queue as usize];
        let active: Vec<_> = state.subscriptions.extract_if(.., |it| it.next.is_some()).collect();
        let next = state.next_holder.take();
        for it in active {
            self.send(it.client, owner(QueueId(queue)), Sent::Ended(it.ticket, refusal(ErrorCode::OffsetReset)));
        }
        if let Some(next) = next {
            self.hand_over(QueueId(queue), next);
        }
    }

    /// The broker is killed and started again.
    pub fn kill(&mut self) {
        for client in 0..self.members.len() {
            for shard in 0..SHARDS {
                self.disconnect(client, ShardId(shard));
            }
        }
        self.joined.clear();
        self.epoch += 1;
        for queue in &mut self.queues {
            (queue.holder, queue.next_holder) = (None, None);
        }
    }

    /// The power fails: what was not synced is gone, `keep` says how much of it is not.
    pub fn lose_power(&mut self, keep: u64) {
        self.kill();
        for queue in &mut self.queues {
            queue.committed = queue.durable + keep % (queue.committed - queue.durable + 1);
            let least = queue.committed.max(queue.durable);
            queue.log.truncate((least + keep % (queue.log.len() as u64 - least + 1)) as usize);
        }
        for member in &mut self.members {
            (0..QUEUES).for_each(|queue| *member.set_back.entry(QueueId(queue)).or_default() += 1);
        }
    }

    pub fn sync(&mut self, queue: u32) {
        let queue = &mut self.queues[queue as usize];
        queue.durable = queue.committed;
    }

    /// The next requests are answered so.
    pub fn be_busy(&mut self, requests: u32) {
        self.busy = requests;
    }

    pub fn wait(&mut self, steps: u64) {
        self.now += STEP.0 * steps;
        for client in 0..self.members.len() {
            self.members[client].core.wake(self.now);
            self.collect(client);
        }
    }

    /// The broker takes requests of one connection.
    pub fn process(&mut self, client: usize, shard: ShardId, count: usize) {
        for _ in 0..count {
            let connection = self.members[client].connections.get_mut(&shard);
            let Some(action) = connection.and_then(|connection| connection.to_broker.pop_front()) else { return };
            self.answer(client, action);
        }
    }

    /// The member takes what has come on one connection.
    pub fn receive(&mut self, client: usize, shard: ShardId, count: usize) {
        for _ in 0..count {
            let connection = self.members[client].connections.get_mut(&shard);
            let Some(sent) = connection.and_then(|connection| connection.to_client.pop_front()) else { return };
            self.heard(client, sent);
            self.collect(client);
        }
    }

    /// The owner sends a batch to whoever has the queue, as its credit allows.
    pub fn deliver(&mut self, queue: u32, count: usize) {
        let state = &mut self.queues[queue as usize];
        let Some(it) = state.subscriptions.iter_mut().find(|it| it.next.is_some() && !it.is_revoked) else { return };
        assert_eq!(Some(it.member), state.holder, "one member alone has a queue");
        let next = it.next.expect("active");
        let Some(&(epoch, _)) = state.log.get(next as usize).filter(|_| it.credit > 0) else { return };
        let messages: Vec<u64> = state.log[next as usize..]
            .iter()
            .take(count)
            .take_while(|(other, _)| *other == epoch)
            .map(|(_, message)| *message)
            .collect();
        it.credit -= messages.len() as i64;
        it.next = Some(next + messages.len() as u64);
        let (client, sent) = (it.client, Sent::Delivered(it.ticket, head(next, messages.len(), epoch), messages));
        self.send(client, owner(QueueId(queue)), sent);
    }

    /// The application takes a message.
    pub fn take(&mut self, client: usize) {
        let member = &mut self.members[client];
        let Some((token, message)) = member.core.next_message(|_| false) else { return };
        if let Some(last) = member.had.insert(token.key.queue, message).filter(|last| *last >= message) {
            let allowed = member.set_back.entry(token.key.queue).or_default();
            assert!(*allowed > 0, "{client} got {message} after {last}");
            *allowed -= 1;
        }
        member.hands.push((token, message));
    }

    /// The application is done with one of those that it has.
    pub fn finish(&mut self, client: usize, pick: usize) {
        let member = &mut self.members[client];
        if member.hands.is_empty() {
            return;
        }
        let (token, message) = member.hands.swap_remove(pick % member.hands.len());
        if member.core.done(&token, self.now) {
            self.done.insert(message);
        }
        assert!(!member.core.done(&token, self.now), "done twice");
        self.collect(client);
    }

    pub fn close(&mut self, client: usize) {
        self.members[client].core.close(self.now);
        self.collect(client);
    }

    /// No more failures: all that is stored is done, then all leave, and nothing stays behind.
    pub fn heal(&mut self) {
        self.busy = 0;
        self.come_to_rest(|world| world.queues.iter().all(|queue| queue.committed == queue.log.len() as u64));
        (0..self.members.len()).for_each(|client| self.close(client));
        self.come_to_rest(|world| world.members.iter().all(|member| member.core.is_over()));
        for client in 0..self.members.len() {
            let is_gone = self.members[client].lost_leave || !self.joined.contains_key(&client);
            assert!(is_gone, "{client} left and is still there");
        }
        assert!(self.queues.iter().all(|queue| queue.subscriptions.is_empty()), "a subscription is left over");
        assert!(self.members.iter().all(|member| member.core.failure().is_none()));
    }

    fn come_to_rest(&mut self, is_done: impl Fn(&Self) -> bool) {
        for round in 0..300 {
            for client in 0..self.members.len() {
                if self.members[client].core.is_over() {
                    self.end_grace(client);
                }
                for shard in (0..SHARDS).map(ShardId) {
                    self.connect(client, shard);
                    self.process(client, shard, usize::MAX);
                    self.receive(client, shard, usize::MAX);
                }
                (0..100).for_each(|_| self.take(client));
                while !self.members[client].hands.is_empty() {
                    self.finish(client, 0);
                }
            }
            if is_done(self) {
                return;
            }
            if round % 10 == 5 {
                self.assign(0x210 + round);
            }
            (0..QUEUES).for_each(|queue| self.deliver(queue, 5));
            self.wait(1);
        }
        panic!("the group does not come to rest: {self:#?}");
    }

    fn heard(&mut self, client: usize, sent: Sent) {
        let now = self.now;
        let member = &mut self.members[client];
        let core = &mut member.core;
        match sent {
            Sent::Joined(answer) => {
                if core.member() != Some(answer.member) {
                    member.had.clear();
                }
                core.joined(Ok(answer), now);
            }
            Sent::Heartbeat(answer) => core.heartbeat_answered(answer, now),
            Sent::Left => core.left(),
            Sent::Assigned { member: id, number, queues } => {
                member.had.retain(|queue, _| queues.iter().any(|row| row.queue == *queue));
                let queues = AssignedQueues::from(&queues[..]);
                core.assigned(&Assignment { group: GROUP, member: id, number, queues }, now);
            }
            Sent::Subscribed(ticket, answer) => core.subscribed(ticket, answer, now),
            Sent::Delivered(ticket, head, messages) => core.delivered(ticket, &head, messages, now),
            Sent::Revoked(ticket) => core.revoked(ticket, now),
            Sent::Ended(ticket, refusal) => {
                member.had.clear();
                core.ended(ticket, refusal, now);
            }
            Sent::Acked(ticket, answer) => {
                if answer.as_ref().is_err_and(|refusal| !refusal.retriable) {
                    member.had.clear();
                }
                core.acked(ticket, answer, now);
            }
            Sent::Unsubscribed(ticket) => core.unsubscribed(ticket, now),
        }
    }

    fn collect(&mut self, client: usize) {
        let member = &mut self.members[client];
        while let Some(action) = member.core.next_action() {
            let shard = match action {
                Action::Connect(shard) => {
                    member.wanted.insert(shard);
                    continue;
                }
                Action::Join(shard)
                | Action::Heartbeat(shard, _)
                | Action::Leave(shard, _)
                | Action::Subscribe(shard, ..)
                | Action::Ack(shard, ..)
                | Action::Credit(shard, _)
                | Action::Unsubscribe(shard, ..) => shard,
            };
            let connection = member.connections.get_mut(&shard).expect("nothing is sent where there is no connection");
            connection.to_broker.push_back(action);
        }
        while let Some(notice) = member.core.next_notice() {
            assert!(matches!(notice, Notice::Truncated { .. }), "{notice:?}");
        }
    }
}

fn member(number: usize) -> Member {
    let (core, connections, wanted) = (new_core(number), BTreeMap::new(), BTreeSet::new());
    let (hands, had, set_back) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    Member { core, connections, wanted, hands, lost_leave: false, had, set_back }
}

/// A member that has not joined yet.
pub fn new_core(number: usize) -> MemberCore<u64> {
    let options = MemberOptions {
        group: GROUP,
        home: HOME,
        name: format!("member-{number}"),
        client: "client".to_owned(),
        topics: vec![MemberTopic { id: TOPIC, hash: TopicHash(0) }],
        shards: SHARDS,
        credit_messages: CREDIT,
        credit_bytes: 1 << 20,
        seed: number as u64,
    };
    MemberCore::new(options)
}

/// As [`TopicHash`] 0 places it.
fn owner(queue: QueueId) -> ShardId {
    TopicHash(0).shard_of(queue, SHARDS)
}

pub fn refusal(code: ErrorCode) -> Refusal {
    Refusal {
        number: code.number(),
        retriable: code.is_retriable(),
        sentence: code.sentence().into(),
        detail: ErrorDetail::default(),
    }
}

pub fn head(first: u64, count: usize, epoch: u64) -> BatchHead {
    BatchHead {
        base_offset: QueueOffset(first),
        first_wanted: QueueOffset(first),
        record_count: count as u32,
        epoch: Epoch(epoch),
        position: LogPosition(0),
        store_time: Nanos(0),
        payload_crc: 0,
        payload_length: count as u32,
        flags: EntryFlags::NONE,
        attempt: 1,
    }
}

pub fn key(queue: u32) -> QueueKey {
    QueueKey { topic: TOPIC, queue: QueueId(queue) }
}
