//! One member of a group: the client's own core, and the frames between it and its connections.
//!
//! A request's correlation says what it asked and with which ticket, so that an answer needs no table:
//! `ticket · 8 + kind`; the broker pushes with 0, and no kind is 0. What is delivered is handed on, done and acknowledged in
//! the same turn, from where it stands in the input buffer: the core gets a message's number in its batch and nothing else.

use peregrine_client::Refusal;
use peregrine_client::group::{Action, MemberCore, MemberOptions, Ticket};
use peregrine_protocol::ids::{Correlation, MemberId, Nanos, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, Deliver, ErrorAnswer, Unsubscribe};
use peregrine_protocol::record::Batch;

use super::control::QueuePlace;
use crate::clock::Ns;
use crate::transport::{Events, Origin, TransportError};

const JOIN: u64 = 1;
const HEARTBEAT: u64 = 2;
const LEAVE: u64 = 3;
const SUBSCRIBE: u64 = 4;
const ACK: u64 = 5;
const UNSUBSCRIBE: u64 = 6;
const KINDS: u64 = 8;

/// A subscription of a member.
#[derive(Clone, Copy, Debug)]
struct Subscription {
    shard: ShardId,
    id: SubscriptionId,
    ticket: Ticket,
    queue: u32,
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    /// Its group's number in the run.
    pub group: u32,
    core: MemberCore<u32>,
    /// By shard: the connection's number, where it has one.
    pub connections: Vec<Option<usize>>,
    /// Asked for and not answered.
    asked: Vec<(Ticket, u32)>,
    /// Ascending by shard and id.
    subscriptions: Vec<Subscription>,
    /// An action that no output had room for.
    stalled: Option<Action>,
    /// It stands in the list of members with actions to carry out.
    pub is_touched: bool,
}

impl Member {
    pub fn new(group: u32, options: MemberOptions, connections: Vec<Option<usize>>) -> Self {
        Self {
            group,
            core: MemberCore::new(options),
            connections,
            asked: Vec::new(),
            subscriptions: Vec::new(),
            stalled: None,
            is_touched: false,
        }
    }

    /// The queues that it may be handed messages from: all that are assigned to it, if none of their subscriptions is missing.
    pub fn settled_queues(&self) -> Option<usize> {
        let assigned = self.core.assigned_queues().count();
        (self.core.member().is_some() && assigned == self.subscriptions.len()).then_some(assigned)
    }

    pub fn is_over(&self) -> bool {
        self.core.is_over()
    }

    pub fn next_wake(&self) -> Option<Ns> {
        self.core.next_wake().map(|at| at.0)
    }

    pub fn wake(&mut self, now: Ns) {
        self.core.wake(Nanos(now));
    }

    /// Hands nothing out any more, and leaves.
    pub fn leave(&mut self, now: Ns) {
        self.core.close(Nanos(now));
    }

    /// Why it has ended, if not of its own will.
    pub fn failure(&self) -> Option<TransportError> {
        self.core.failure().map(|error| TransportError::Protocol(format!("a group's member has ended: {error}")))
    }

    /// Carries out what the core wants, until `send(connection, frame)` has no room. Whether nothing is left to do.
    pub fn pump(
        &mut self,
        queues: &[QueuePlace],
        frame: &mut Vec<u8>,
        now: Ns,
        mut send: impl FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, TransportError> {
        while let Some(action) = self.stalled.take().or_else(|| self.core.next_action()) {
            frame.clear();
            let shard = match action {
                Action::Connect(shard) => {
                    self.connection(shard)?;
                    self.core.connected(shard, Nanos(now));
                    continue;
                }
                Action::Join(shard) => {
                    self.core.join_request().encode(Correlation(JOIN), frame);
                    shard
                }
                Action::Heartbeat(shard, heartbeat) => {
                    heartbeat.encode(Correlation(HEARTBEAT), frame);
                    shard
                }
                Action::Leave(shard, leave) => {
                    leave.encode(Correlation(LEAVE), frame);
                    shard
                }
                Action::Subscribe(shard, ticket, subscribe) => {
                    subscribe.encode(correlation(ticket, SUBSCRIBE), frame);
                    shard
                }
                Action::Ack(shard, ticket, ack) => {
                    ack.encode(correlation(ticket, ACK), frame);
                    shard
                }
                Action::Credit(shard, credit) => {
                    credit.encode(Correlation(0), frame);
                    shard
                }
                Action::Unsubscribe(shard, ticket, subscription) => {
                    Unsubscribe { subscription }.encode(correlation(ticket, UNSUBSCRIBE), frame);
                    shard
                }
            };
            if !send(self.connection(shard)?, frame) {
                self.stalled = Some(action);
                return Ok(false);
            }
            if let Action::Subscribe(_, ticket, subscribe) = action {
                let here = |place: &QueuePlace| (place.topic, place.queue) == (subscribe.topic, subscribe.queue);
                let queue = queues.iter().position(here).unwrap_or(usize::MAX);
                self.asked.push((ticket, queue as u32));
            }
        }
        Ok(true)
    }

    /// The broker sent `answer` on the connection to `shard`.
    pub fn take(
        &mut self,
        shard: ShardId,
        correlation: Correlation,
        answer: Answer<'_>,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        let at = Nanos(now);
        let (ticket, kind) = (Ticket(correlation.0 / KINDS), correlation.0 % KINDS);
        match answer {
            Answer::Deliver(delivery) => self.deliver(shard, &delivery, now, events)?,
            Answer::Ack(answer) => self.core.acked(ticket, Ok(answer), at),
            Answer::JoinGroup(answer) => self.core.joined(Ok(answer), at),
            Answer::Heartbeat(answer) => self.core.heartbeat_answered(Ok(answer), at),
            Answer::LeaveGroup(_) => self.core.left(),
            Answer::Assignment(assignment) => self.core.assigned(&assignment, at),
            Answer::Subscribe(answer) => {
                self.subscribed(shard, answer.subscription, ticket)?;
                self.core.subscribed(ticket, Ok(answer), at);
            }
            Answer::Unsubscribe(_) => {
                self.subscriptions.retain(|known| known.ticket != ticket);
                self.core.unsubscribed(ticket, at);
            }
            Answer::Revoke(revoke) => {
                if let Some(place) = self.find(shard, revoke.subscription) {
                    self.core.revoked(self.subscriptions[place].ticket, at);
                }
            }
            Answer::Error(error) if kind == 0 => self.pushed(shard, &error, at)?,
            Answer::Error(error) => self.refused(ticket, kind, &error, at),
            other => {
                return Err(TransportError::Protocol(format!("the broker sent what no member asked for: {other:?}")));
            }
        }
        Ok(())
    }

    fn subscribed(&mut self, shard: ShardId, id: SubscriptionId, ticket: Ticket) -> Result<(), TransportError> {
        let unasked = || TransportError::Protocol("a subscription was opened that nobody asked for".to_owned());
        let asked = self.asked.iter().position(|(asked, _)| *asked == ticket).ok_or_else(unasked)?;
        let (_, queue) = self.asked.swap_remove(asked);
        // One that a refused ack has ended stands here still.
        self.subscriptions.retain(|known| known.queue != queue);
        let place = self.subscriptions.partition_point(|known| (known.shard, known.id) < (shard, id));
        self.subscriptions.insert(place, Subscription { shard, id, ticket, queue });
        Ok(())
    }

    fn deliver(
        &mut self,
        shard: ShardId,
        delivery: &Deliver<'_>,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        // What was on its way when the subscription ended is another's by now.
        let Some(place) = self.find(shard, delivery.subscription) else { return Ok(()) };
        let Subscription { ticket, queue, id, .. } = self.subscriptions[place];
        let head = &delivery.batch;
        let origin = Origin { audience: self.group, queue, subscription: id.0, attempt: head.attempt };
        let wanted = (head.end_offset().0 - head.first_wanted.0) as u32;
        self.core.delivered(ticket, head, 0..wanted, Nanos(now));
        let skipped = (head.first_wanted.0 - head.base_offset.0) as usize;
        let batch = Batch::new(delivery.payload, head.record_count).ok();
        let mut records = batch.iter().flat_map(Batch::records).skip(skipped);
        let mut next = 0;
        while let Some((token, number)) = self.core.next_message(|_| false) {
            if number < next || token.offset != head.first_wanted + u64::from(number) {
                return Err(TransportError::Protocol("a member was handed a message of another batch".to_owned()));
            }
            let record = records.nth((number - next) as usize);
            next = number + 1;
            // What cannot be read is counted as corrupt, as its empty body is.
            let record = record.and_then(Result::ok);
            events.delivered(&origin, record.as_ref().map_or(&[], |record| record.body()), now);
            self.core.done(&token, Nanos(now));
        }
        Ok(())
    }

    /// An error that answers nothing: the end of a subscription, of the membership, or of the connection.
    fn pushed(&mut self, shard: ShardId, error: &ErrorAnswer<'_>, at: Nanos) -> Result<(), TransportError> {
        if let Some(subscription) = error.detail.subscription {
            if let Some(place) = self.find(shard, SubscriptionId(subscription)) {
                let ended = self.subscriptions.remove(place);
                self.core.ended(ended.ticket, refusal(error), at);
            }
        } else if let Some(member) = error.detail.member {
            self.core.member_ended(MemberId(member), refusal(error));
        } else {
            return Err(TransportError::Protocol(error.sentence.to_owned()));
        }
        Ok(())
    }

    fn refused(&mut self, ticket: Ticket, kind: u64, error: &ErrorAnswer<'_>, at: Nanos) {
        let refusal = refusal(error);
        match kind {
            JOIN => self.core.joined(Err(refusal), at),
            HEARTBEAT => self.core.heartbeat_answered(Err(refusal), at),
            LEAVE => self.core.left(),
            SUBSCRIBE => {
                self.asked.retain(|(asked, _)| *asked != ticket);
                self.core.subscribed(ticket, Err(refusal), at);
            }
            ACK => {
                self.core.acked(ticket, Err(refusal), at);
            }
            _ => {
                self.subscriptions.retain(|known| known.ticket != ticket);
                self.core.unsubscribed(ticket, at);
            }
        }
    }

    fn find(&self, shard: ShardId, id: SubscriptionId) -> Option<usize> {
        self.subscriptions.binary_search_by_key(&(shard, id), |known| (known.shard, known.id)).ok()
    }

    fn connection(&self, shard: ShardId) -> Result<usize, TransportError> {
        let connection = self.connections.get(usize::from(shard.0)).copied().flatten();
        connection.ok_or_else(|| TransportError::Protocol(format!("a member has no connection to shard {shard}")))
    }
}

fn correlation(ticket: Ticket, kind: u64) -> Correlation {
    Correlation(ticket.0 * KINDS + kind)
}

fn refusal(error: &ErrorAnswer<'_>) -> Refusal {
    Refusal { number: error.code, retriable: error.retriable, sentence: error.sentence.into(), detail: error.detail }
}
