//! [`MemberCore`]: the member as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, MemberId, Nanos, ShardId, TopicId};
use peregrine_protocol::message::{
    AckAnswer, Assignment, BatchHead, Heartbeat, HeartbeatAnswer, JoinGroup, JoinGroupAnswer, LeaveGroup,
    SubscribeAnswer, TopicIds,
};
use peregrine_protocol::placement::TopicHash;

use super::action::{Action, Notice, QueueKey, Ticket, Token};
use super::claim::{AckOutcome, Claim, Slot};
use super::membership::{Membership, Standing};
use crate::error::{Error, Refusal};

/// What a member is made of.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// The group, which exists.
    pub group: GroupId,
    /// Its home shard.
    pub home: ShardId,
    /// The member's name, unique in the group.
    pub name: String,
    /// The client instance.
    pub client: String,
    /// Topics of the group that it takes.
    pub topics: Vec<MemberTopic>,
    /// How many shards the broker has.
    pub shards: u16,
    /// How many messages may be on their way and not yet done, over all queues.
    pub credit_messages: u64,
    /// And how many bytes.
    pub credit_bytes: u64,
    /// Spreads delays, so that clients do not all come back in one instant.
    pub seed: u64,
}

/// A topic of a member.
#[derive(Debug, Clone, Copy)]
pub struct MemberTopic {
    /// Its id.
    pub id: TopicId,
    /// Of its name.
    pub hash: TopicHash,
}

/// A member of a consumer group; `M` is what the caller makes of a message. See the module for how it is driven.
#[derive(Debug)]
pub struct MemberCore<M> {
    pub(super) options: MemberOptions,
    /// Those of its topics that it joins for: all but the deleted ones, as long as there are others.
    pub(super) topic_ids: Vec<TopicId>,
    pub(super) membership: Membership,
    pub(super) claims: BTreeMap<QueueKey, Claim<M>>,
    /// How many of them are assigned.
    pub(super) assigned: usize,
    pub(super) tickets: HashMap<Ticket, QueueKey>,
    pub(super) next_ticket: u64,
    /// Shards that the caller was asked to connect to, and those that are connected.
    pub(super) known: HashSet<ShardId>,
    pub(super) connected: HashSet<ShardId>,
    /// Queues with messages for the application.
    pub(super) ready: VecDeque<QueueKey>,
    pub(super) retries: BTreeSet<(Nanos, QueueKey)>,
    pub(super) actions: VecDeque<Action>,
    pub(super) notices: VecDeque<Notice>,
    /// Joined as another member than before: which queues stay is not known yet, so what is held of all of them is kept.
    pub(super) awaits_assignment: bool,
    pub(super) is_closing: bool,
    pub(super) failure: Option<Error>,
}

impl<M> MemberCore<M> {
    /// A member that has not joined yet.
    pub fn new(options: MemberOptions) -> Self {
        let mut core = Self {
            topic_ids: options.topics.iter().map(|topic| topic.id).collect(),
            membership: Membership::new(options.seed),
            claims: BTreeMap::new(),
            assigned: 0,
            tickets: HashMap::new(),
            next_ticket: 1,
            known: HashSet::new(),
            connected: HashSet::new(),
            ready: VecDeque::new(),
            retries: BTreeSet::new(),
            actions: VecDeque::new(),
            notices: VecDeque::new(),
            awaits_assignment: false,
            is_closing: false,
            failure: None,
            options,
        };
        core.connect(core.options.home);
        core
    }

    /// The next thing to do; to be asked after every call.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What the application should know.
    pub fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// What [`Action::Join`] sends.
    pub fn join_request(&self) -> JoinGroup<'_> {
        JoinGroup {
            group: self.options.group,
            member: &self.options.name,
            topics: TopicIds::of(&self.topic_ids),
            client: &self.options.client,
        }
    }

    /// The member's number, once it has joined.
    pub fn member(&self) -> Option<MemberId> {
        self.membership.member
    }

    /// The queues that are this member's now.
    pub fn assigned_queues(&self) -> impl Iterator<Item = QueueKey> + use<'_, M> {
        self.claims.iter().filter(|(_, claim)| claim.is_assigned).map(|(key, _)| *key)
    }

    /// Why the member has ended, if not by [`Self::close`].
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// It has left, or has failed: nothing more comes, and nothing is acknowledged any more.
    pub fn is_over(&self) -> bool {
        self.membership.standing == Standing::Gone
    }

    /// When [`Self::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Nanos> {
        let retry = self.retries.first().map(|(at, _)| *at);
        [self.membership.next_wake(), retry].into_iter().flatten().min()
    }

    /// Sends heartbeats and tries again what is due.
    pub fn wake(&mut self, now: Nanos) {
        if self.membership.retry_at.is_some_and(|at| at <= now) {
            self.membership.retry_at = None;
            self.join();
        }
        if self.membership.takes_heartbeat(now)
            && let Some(member) = self.membership.member
        {
            let heartbeat = Heartbeat { group: self.options.group, member, number: self.membership.number };
            self.actions.push_back(Action::Heartbeat(self.options.home, heartbeat));
        }
        while let Some(&(at, key)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            if let Some(claim) = self.claims.get_mut(&key)
                && claim.retry_at == Some(at)
            {
                claim.retry_at = None;
            }
            self.settle(key, now);
        }
    }

    /// There is a connection to the shard.
    pub fn connected(&mut self, shard: ShardId, now: Nanos) {
        self.connected.insert(shard);
        if shard == self.options.home {
            self.membership.retry_at = None;
            self.join();
        }
        for key in self.keys_of(shard) {
            self.settle(key, now);
        }
    }

    /// The connection is lost, with all that was not answered. What the application holds stays its own.
    pub fn disconnected(&mut self, shard: ShardId, now: Nanos) {
        self.connected.remove(&shard);
        if shard == self.options.home {
            match self.membership.standing {
                Standing::Joining | Standing::Joined => self.membership.standing = Standing::Out,
                // It has left, or its grace time will say so; joining again to make sure would stir the group up.
                Standing::Leaving => self.membership.standing = Standing::Gone,
                Standing::Out | Standing::Gone => {}
            }
        }
        for key in self.keys_of(shard) {
            self.set_slot(key, Slot::Idle);
            self.settle(key, now);
        }
    }

    /// The answer to [`Action::Join`].
    pub fn joined(&mut self, answer: Result<JoinGroupAnswer, Refusal>, now: Nanos) {
        if self.membership.standing != Standing::Joining {
            return;
        }
        match answer {
            Ok(answer) => {
                if self.membership.joined(&answer, now) {
                    self.begin_anew(now);
                } else {
                    self.settle_all(now);
                }
                self.leave_if_settled();
            }
            Err(refusal) if refusal.retriable => {
                self.membership.standing = Standing::Out;
                self.membership.wait(refusal.detail.retry_after_ns, now);
            }
            Err(refusal) => self.fail(refusal),
        }
    }

    /// The answer to [`Action::Heartbeat`].
    pub fn heartbeat_answered(&mut self, answer: Result<HeartbeatAnswer, Refusal>, _now: Nanos) {
        match answer {
            Err(refusal) if refusal.code() == Some(ErrorCode::UnknownMember) => self.join_again(),
            Err(refusal) if !refusal.retriable => self.fail(refusal),
            // An assignment that was missed is pushed once more; a home that is busy is told again in time.
            Ok(_) | Err(_) => {}
        }
    }

    /// The home pushed the member's queues.
    pub fn assigned(&mut self, assignment: &Assignment<'_>, now: Nanos) {
        let is_mine = assignment.group == self.options.group && Some(assignment.member) == self.membership.member;
        if !is_mine || assignment.number < self.membership.number || self.is_over() {
            return;
        }
        self.membership.number = assignment.number;
        self.awaits_assignment = false;
        let mine: BTreeSet<QueueKey> =
            assignment.queues.iter().map(|row| QueueKey { topic: row.topic, queue: row.queue }).collect();
        for &key in &mine {
            let Some(topic) = self.options.topics.iter().find(|topic| topic.id == key.topic) else { continue };
            let shard = topic.hash.shard_of(key.queue, self.options.shards);
            let seed = self.options.seed ^ u64::from(key.queue.0) << 1;
            self.claims.entry(key).or_insert_with(|| Claim::new(shard, seed));
            self.connect(shard);
        }
        for (key, claim) in &mut self.claims {
            claim.is_assigned = mine.contains(key);
        }
        self.assigned = self.claims.values().filter(|claim| claim.is_assigned).count();
        // Also those that stay: their share of the credit is another.
        self.settle_all(now);
    }

    /// The broker says that the membership is over: fenced by another join under its name, the group deleted, or silent for too
    /// long, after which it joins again.
    pub fn member_ended(&mut self, member: MemberId, refusal: Refusal) {
        if Some(member) != self.membership.member {
            return;
        }
        if refusal.code() == Some(ErrorCode::UnknownMember) {
            self.join_again();
        } else {
            // There is nothing to leave.
            self.membership.standing = Standing::Out;
            self.fail(refusal);
        }
    }

    /// The answer to [`Action::Leave`], whatever it is.
    pub fn left(&mut self) {
        if self.membership.standing == Standing::Leaving {
            self.membership.standing = Standing::Gone;
        }
    }

    /// The answer to [`Action::Subscribe`].
    pub fn subscribed(&mut self, ticket: Ticket, answer: Result<SubscribeAnswer, Refusal>, now: Nanos) {
        let Some((key, claim)) = self.claim(ticket) else { return };
        let Slot::Asked(asked) = claim.slot else { return };
        match answer {
            Ok(answer) => {
                claim.subscribed(asked, &answer);
                if Some(asked.member) == self.membership.member {
                    self.settle(key, now);
                } else {
                    self.unsubscribe(key);
                }
            }
            Err(refusal) => self.closed_by_broker(key, refusal, now),
        }
    }

    /// A batch came for a subscription: its wanted messages, in order, each checked.
    pub fn delivered(
        &mut self,
        ticket: Ticket,
        head: &BatchHead,
        messages: impl IntoIterator<Item = M, IntoIter: ExactSizeIterator>,
        now: Nanos,
    ) {
        let Some((key, claim)) = self.claim(ticket) else { return };
        if let Some(at) = claim.delivered(ticket, head, messages.into_iter()) {
            self.notices.push_back(Notice::Truncated { key, at });
        }
        self.settle(key, now);
    }

    /// A batch came whose checksums are wrong: it is asked for once more, after a while. Nothing is skipped.
    pub fn unreadable(&mut self, ticket: Ticket, now: Nanos) {
        let Some((key, claim)) = self.claim(ticket) else { return };
        claim.wait(None, now);
        self.note_retry(key);
        self.unsubscribe(key);
    }

    /// Another member waits for the queue.
    pub fn revoked(&mut self, ticket: Ticket, now: Nanos) {
        let Some((key, claim)) = self.claim(ticket) else { return };
        if let Slot::Open(open) = &mut claim.slot {
            open.is_revoked = true;
        }
        self.settle(key, now);
    }

    /// The broker has ended a subscription.
    pub fn ended(&mut self, ticket: Ticket, refusal: Refusal, now: Nanos) {
        if let Some((key, _)) = self.claim(ticket) {
            self.closed_by_broker(key, refusal, now);
        }
    }

    /// The answer to [`Action::Unsubscribe`], whatever it is.
    pub fn unsubscribed(&mut self, ticket: Ticket, now: Nanos) {
        if let Some((key, claim)) = self.claim(ticket)
            && matches!(claim.slot, Slot::Closing(_))
        {
            self.set_slot(key, Slot::Idle);
            self.settle(key, now);
        }
    }

    /// The answer to [`Action::Ack`].
    pub fn acked(&mut self, ticket: Ticket, answer: Result<AckAnswer, Refusal>, now: Nanos) {
        let Some((key, claim)) = self.claim(ticket) else { return };
        match claim.acked(answer.as_ref().map(|answer| answer.offset), now) {
            AckOutcome::Fine => {
                self.note_retry(key);
                self.settle(key, now);
            }
            AckOutcome::Truncated(at) => {
                self.notices.push_back(Notice::Truncated { key, at });
                self.settle(key, now);
            }
            AckOutcome::Lost => {
                if let Err(refusal) = answer {
                    self.closed_by_broker(key, refusal, now);
                }
            }
        }
    }

    /// The next message for the application, in order within each queue; none of the queues that are to be skipped.
    pub fn next_message(&mut self, skip: impl Fn(QueueKey) -> bool) -> Option<(Token, M)> {
        if self.is_closing {
            return None;
        }
        for _ in 0..self.ready.len() {
            let key = self.ready.pop_front()?;
            let Some(claim) = self.claims.get_mut(&key).filter(|claim| claim.has_line()) else {
                if let Some(claim) = self.claims.get_mut(&key) {
                    claim.is_listed = false;
                }
                continue;
            };
            let message = if skip(key) { None } else { claim.hand_out(key) };
            claim.is_listed = claim.has_line();
            if claim.is_listed {
                self.ready.push_back(key);
            }
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// The application is done with a message. `false`: it is not this member's any more, and will come to whoever has its queue.
    pub fn done(&mut self, token: &Token, now: Nanos) -> bool {
        let Some(claim) = self.claims.get_mut(&token.key) else { return false };
        let is_held = claim.complete(token);
        if is_held {
            self.settle(token.key, now);
        }
        is_held
    }

    /// Hands out nothing more; leaves once all that the application holds is done and acknowledged, and the home can be reached.
    pub fn close(&mut self, now: Nanos) {
        self.is_closing = true;
        self.settle_all(now);
        self.leave_if_settled();
    }

    /// Does not wait for what the application holds any longer: it goes to other members.
    pub fn abandon(&mut self, now: Nanos) {
        for claim in self.claims.values_mut() {
            claim.drop_held();
        }
        self.close(now);
    }

    pub(super) fn connect(&mut self, shard: ShardId) {
        if self.known.insert(shard) {
            self.actions.push_back(Action::Connect(shard));
        }
    }

    /// The home does not know this member any more.
    fn join_again(&mut self) {
        if self.membership.standing == Standing::Joined {
            self.membership.standing = Standing::Out;
            self.join();
        }
    }

    /// The topic was deleted: a join that names it would be refused. With the last one the membership has no sense, and ends.
    pub(super) fn forget_topic(&mut self, topic: TopicId) {
        if self.topic_ids.len() > 1 {
            self.topic_ids.retain(|&known| known != topic);
        }
    }

    pub(super) fn join(&mut self) {
        if self.membership.standing != Standing::Out || !self.connected.contains(&self.options.home) {
            return;
        }
        if self.is_closing && self.membership.member.is_none() {
            self.membership.standing = Standing::Gone;
            return;
        }
        self.membership.standing = Standing::Joining;
        self.actions.push_back(Action::Join(self.options.home));
    }

    /// It is another member than before, with no queues yet and no subscription that counts.
    pub(super) fn begin_anew(&mut self, now: Nanos) {
        self.assigned = 0;
        self.awaits_assignment = true;
        for key in self.claims.keys().copied().collect::<Vec<_>>() {
            let Some(claim) = self.claims.get_mut(&key) else { continue };
            claim.is_assigned = false;
            self.unsubscribe(key);
            self.settle(key, now);
        }
    }

    pub(super) fn leave_if_settled(&mut self) {
        if !self.is_closing || !self.claims.is_empty() {
            return;
        }
        match (self.membership.standing, self.membership.member) {
            (Standing::Joined, Some(member)) => {
                self.membership.standing = Standing::Leaving;
                let leave = LeaveGroup { group: self.options.group, member };
                self.actions.push_back(Action::Leave(self.options.home, leave));
            }
            // Out of the home's reach, it joins once more as soon as it can be heard, and leaves then: only who is there can leave, and
            // nobody need wait for its grace time.
            (Standing::Out, Some(_)) => self.join(),
            (Standing::Out, None) => self.membership.standing = Standing::Gone,
            _ => {}
        }
    }

    pub(super) fn fail(&mut self, refusal: Refusal) {
        if self.is_over() {
            return;
        }
        self.failure = Some(refusal.into());
        // Where the home still counts on it, nobody need wait for its silence.
        if let (Standing::Joined, Some(member)) = (self.membership.standing, self.membership.member) {
            let leave = LeaveGroup { group: self.options.group, member };
            self.actions.push_back(Action::Leave(self.options.home, leave));
        }
        self.membership.standing = Standing::Gone;
        for key in self.claims.keys().copied().collect::<Vec<_>>() {
            self.unsubscribe(key);
        }
        self.claims.clear();
        self.tickets.clear();
        self.retries.clear();
        self.ready.clear();
        self.assigned = 0;
    }
}
