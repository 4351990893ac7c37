//! A member of a group, as a client plays it: it joins, subscribes to what it is assigned, takes batches, acknowledges up to some
//! point, and tries everything again at its next heartbeat. It does not play by the rules all the time: it falls silent, keeps
//! what it should give up, and acknowledges late or not at all.

use std::collections::VecDeque;

use peregrine_broker::engine::{Credit, Group};
use peregrine_broker::log::disk::simulated::Random;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, QueueId, QueueOffset, SubscriptionId, TopicId};

use super::wire::{Push, Request};
use crate::simulator::violation::{Violation, promise};

/// A member that has been told its queues.
#[derive(Clone, Debug)]
struct Session {
    member: MemberId,
    number: u64,
    queues: Vec<(TopicId, QueueId)>,
}

/// A subscription, as its member knows it.
#[derive(Debug)]
struct Held {
    topic: TopicId,
    queue: QueueId,
    shard: usize,
    token: u64,
    id: Option<SubscriptionId>,
    /// Behind the last message received, and what of it was acknowledged and answered.
    received: Option<(Epoch, QueueOffset)>,
    answered: QueueOffset,
    /// The first message of the last batch, where an acknowledgement may end too.
    last_first: QueueOffset,
}

/// How a member goes about its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It takes and acknowledges everything.
    Diligent,
    /// It acknowledges now and then, and gives up what it should, mostly.
    Usual,
    /// It acknowledges seldom, and gives nothing up by itself.
    Slow,
}

#[derive(Debug)]
pub struct Member {
    pub name: String,
    /// The client instance that it is.
    pub client: String,
    pub group: GroupId,
    pub home: usize,
    pub topics: Vec<TopicId>,
    /// Whose connections it uses.
    pub speaks_for: usize,
    session: Option<Session>,
    /// What it was when it joined last.
    known: Option<MemberId>,
    /// What it was assigned last.
    last_queues: Vec<(TopicId, QueueId)>,
    held: Vec<Held>,
    /// It does nothing before.
    pub asleep_until: u64,
    pub next_beat: u64,
    pub inbox: VecDeque<(usize, Push)>,
    /// It has left, or was told to go.
    pub is_gone: bool,
    pub manner: Manner,
    tokens: u64,
    /// What it asks of which shard.
    pub requests: Vec<(usize, Request)>,
}

impl Member {
    pub fn new(
        name: String,
        (client, speaks_for): (String, usize),
        group: &Group,
        topics: Vec<TopicId>,
        shards: u16,
        manner: Manner,
    ) -> Self {
        Self {
            name,
            client,
            group: group.id,
            home: usize::from(group.home_shard(shards).0),
            topics,
            speaks_for,
            session: None,
            known: None,
            last_queues: Vec::new(),
            held: Vec::new(),
            asleep_until: 0,
            next_beat: 0,
            inbox: VecDeque::new(),
            is_gone: false,
            manner,
            tokens: 0,
            requests: Vec::new(),
        }
    }

    /// Its connections broke, as the process at their other end is gone.
    pub fn process_ended(&mut self) {
        self.held.clear();
        self.inbox.clear();
        self.requests.clear();
        self.session = None;
        (self.asleep_until, self.next_beat) = (0, 0);
    }

    /// One connection broke.
    pub fn disconnected(&mut self, shard: usize) {
        self.held.retain(|held| held.shard != shard);
        self.inbox.retain(|(of, _)| *of != shard);
        if shard == self.home {
            self.session = None;
        }
    }

    pub fn leave(&mut self) {
        if let Some(session) = self.session.take() {
            self.requests.push((self.home, Request::Leave { member: session.member }));
        }
        self.is_gone = true;
    }

    /// It joins anew, as another client or for other topics.
    pub fn rejoin(&mut self) {
        self.requests.push((self.home, Request::Join));
    }

    /// What it does every so often: it says that it is there and tries again what came to nothing.
    pub fn beat(&mut self, random: &mut Random, route: &impl Fn(TopicId, QueueId) -> Option<usize>) {
        let Some(session) = self.session.clone() else {
            if !self.is_diligent() && random.one_in(6) {
                self.subscribe_as_before(random, route);
            }
            return self.rejoin();
        };
        let Session { member, number, ref queues } = session;
        self.requests.push((self.home, Request::Heartbeat { member, number }));
        for &(topic, queue) in queues {
            if self.held.iter().all(|held| (held.topic, held.queue) != (topic, queue)) {
                self.subscribe(random, (topic, queue), route);
            }
        }
        for at in 0..self.held.len() {
            let held = &self.held[at];
            let Some(subscription) = held.id else { continue };
            let credit = self.credit(random);
            self.requests.push((self.held[at].shard, Request::Credit { subscription, credit }));
            if self.is_diligent() || self.manner == Manner::Usual && random.coin() {
                self.acknowledge(at, true, random);
            }
        }
    }

    /// Acknowledges some queue up to some point.
    pub fn acknowledge_some(&mut self, random: &mut Random) {
        if !self.held.is_empty() {
            let at = random.below(self.held.len() as u64) as usize;
            let all = random.coin();
            self.acknowledge(at, all, random);
        }
    }

    fn is_diligent(&self) -> bool {
        self.manner == Manner::Diligent
    }

    fn credit(&self, random: &mut Random) -> Credit {
        if self.is_diligent() {
            return Credit { messages: 1 << 20, bytes: 1 << 30 };
        }
        Credit { messages: random.between(1, 60), bytes: random.between(1_000, 300_000) }
    }

    fn subscribe(
        &mut self,
        random: &mut Random,
        (topic, queue): (TopicId, QueueId),
        route: &impl Fn(TopicId, QueueId) -> Option<usize>,
    ) {
        let (Some(session), Some(shard)) = (&self.session, route(topic, queue)) else { return };
        let member = session.member;
        self.tokens += 1;
        let token = self.tokens;
        let credit = self.credit(random);
        self.requests.push((shard, Request::Subscribe { token, member, topic, queue, credit }));
        self.held.push(Held {
            topic,
            queue,
            shard,
            token,
            id: None,
            received: None,
            answered: QueueOffset(0),
            last_first: QueueOffset(0),
        });
    }

    /// It does not know that it is a member no more.
    fn subscribe_as_before(&mut self, random: &mut Random, route: &impl Fn(TopicId, QueueId) -> Option<usize>) {
        let Some(member) = self.known.filter(|_| !self.last_queues.is_empty()) else { return };
        let (topic, queue) = *random.pick(&self.last_queues);
        let credit = self.credit(random);
        if let Some(shard) = route(topic, queue) {
            self.requests.push((shard, Request::Subscribe { token: 0, member, topic, queue, credit }));
        }
    }

    fn acknowledge(&mut self, at: usize, all: bool, random: &mut Random) {
        let held = &self.held[at];
        let (Some(subscription), Some((epoch, end))) = (held.id, held.received) else { return };
        if end <= held.answered {
            return;
        }
        let (epoch, offset) =
            if all { (epoch, end) } else { (Epoch::ANY, QueueOffset(random.between(held.last_first.0, end.0))) };
        self.requests.push((held.shard, Request::Ack { subscription, epoch, offset }));
    }

    /// Something came from a shard.
    pub fn receive(
        &mut self,
        shard: usize,
        push: Push,
        random: &mut Random,
        route: &impl Fn(TopicId, QueueId) -> Option<usize>,
    ) -> Result<(), Violation> {
        let found = |held: &Held, id| held.shard == shard && held.id == Some(id);
        match push {
            Push::Joined(Ok(joined)) => {
                if self.is_gone {
                    self.requests.push((self.home, Request::Leave { member: joined.member }));
                    return Ok(());
                }
                // The same member keeps its subscriptions at the other shards; another one begins anew.
                if self.known != Some(joined.member) {
                    let keep = self.held.iter().filter_map(|held| Some((held.shard, held.id?)));
                    for (shard, subscription) in keep.collect::<Vec<_>>() {
                        if self.is_diligent() || random.coin() {
                            self.requests.push((shard, Request::Unsubscribe { subscription }));
                        }
                    }
                    self.held.clear();
                    self.known = Some(joined.member);
                }
                if self.session.as_ref().is_none_or(|session| session.member != joined.member) {
                    self.session = Some(Session { member: joined.member, number: 0, queues: Vec::new() });
                }
            }
            Push::Joined(Err(code)) => {
                self.is_gone |= !matches!(code, ErrorCode::Busy);
            }
            Push::Heard(Ok(_)) => {}
            Push::Heard(Err(_)) => self.session = None,
            Push::Assignment { member, number, queues } => {
                let Some(session) = self.session.as_mut().filter(|session| session.member == member) else {
                    return Ok(());
                };
                if number < session.number {
                    return Ok(());
                }
                (session.number, session.queues) = (number, queues.clone());
                self.last_queues.clone_from(&queues);
                for &(topic, queue) in &queues {
                    if self.held.iter().all(|held| (held.topic, held.queue) != (topic, queue)) {
                        self.subscribe(random, (topic, queue), route);
                    }
                }
            }
            Push::Fenced { member, code } => {
                if self.session.as_ref().is_some_and(|session| session.member == member) {
                    self.session = None;
                    self.is_gone |= code == ErrorCode::GroupDeleted
                        || code == ErrorCode::MemberFenced && (self.manner == Manner::Diligent || random.coin());
                }
            }
            Push::Subscribed { token, answer } => {
                let Some(at) = self.held.iter().position(|held| held.token == token) else {
                    if let Ok(subscription) = answer
                        && (self.is_diligent() || random.coin())
                    {
                        self.requests.push((shard, Request::Unsubscribe { subscription }));
                    }
                    return Ok(());
                };
                match answer {
                    Ok(id) => self.held[at].id = Some(id),
                    Err(_) => drop(self.held.remove(at)),
                }
            }
            Push::Batch { subscription, epoch, first, end } => {
                let Some(at) = self.held.iter().position(|held| found(held, subscription)) else { return Ok(()) };
                let held = &mut self.held[at];
                if let Some((_, next)) = held.received {
                    // What its group had not read may be given up; the ledger knows how far.
                    promise!(next <= first, "a member at offset {next} received {first}");
                }
                (held.received, held.last_first) = (Some((epoch, end)), first);
                let often = if self.manner == Manner::Slow { 12 } else { 3 };
                if self.is_diligent() || random.one_in(often) {
                    let all = self.is_diligent() || random.coin();
                    self.acknowledge(at, all, random);
                }
                if random.one_in(4) {
                    let credit = self.credit(random);
                    self.requests.push((shard, Request::Credit { subscription, credit }));
                }
            }
            Push::Revoked { subscription } => {
                let Some(at) = self.held.iter().position(|held| found(held, subscription)) else { return Ok(()) };
                match self.manner {
                    Manner::Slow => {}
                    Manner::Usual if random.one_in(3) => {
                        // Nothing more comes of it, no end either.
                        self.held.remove(at);
                        self.requests.push((shard, Request::Unsubscribe { subscription }));
                    }
                    Manner::Usual | Manner::Diligent => self.acknowledge(at, true, random),
                }
            }
            Push::Ended { subscription } => {
                let Some(at) = self.held.iter().position(|held| found(held, subscription)) else { return Ok(()) };
                let Held { topic, queue, .. } = self.held.remove(at);
                let wanted = self.session.as_ref().is_some_and(|session| session.queues.contains(&(topic, queue)));
                if wanted && random.coin() {
                    self.subscribe(random, (topic, queue), route);
                }
            }
            Push::Acknowledged { subscription, offset } => {
                if let Some(held) = self.held.iter_mut().find(|held| found(held, subscription)) {
                    held.answered = held.answered.max(offset);
                }
            }
        }
        Ok(())
    }
}
