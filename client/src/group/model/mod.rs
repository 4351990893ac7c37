//! A model of the broker's half of a group for the property test: a home that assigns as it likes, owners that hold, drain and fence,
//! logs that a power cut shortens, and connections whose bytes arrive late or never. Members are [`MemberCore`]s.

mod accidents;
mod broker;
mod member;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{
    Epoch, GroupId, LogPosition, MemberId, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::message::{
    AckAnswer, AssignedQueue, BatchHead, HeartbeatAnswer, JoinGroupAnswer, SubscribeAnswer,
};
use peregrine_protocol::placement::TopicHash;

pub use self::member::{core_of, new_core};
use super::{Action, MemberCore, QueueKey, Ticket, Token};
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
            members: (0..members).map(Member::new).collect(),
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

    pub fn wait(&mut self, steps: u64) {
        self.now += STEP.0 * steps;
        for client in 0..self.members.len() {
            self.members[client].core.wake(self.now);
            self.collect(client);
        }
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
