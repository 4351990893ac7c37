//! What a connection carries for members of groups: their requests, the answers, and what the broker pushes, each to the consumer that
//! it is for.

use std::collections::HashMap;

use bytes::Bytes;
use peregrine_protocol::ids::{Correlation, GroupId, MemberId, QueueId, ShardId, SubscriptionId, TopicId};
use peregrine_protocol::message::{
    AckAnswer, Answer, AssignedQueue, Deliver, ErrorAnswer, HeartbeatAnswer, JoinGroup, JoinGroupAnswer, Request,
    SubscribeAnswer, TopicIds, Unsubscribe,
};

use super::Listener;
use crate::error::Refusal;
use crate::group::{Action, Ticket};
use crate::message::ReceivedBatch;
use crate::session::Session;

/// What a consumer asks of a link.
#[derive(Debug)]
pub(crate) enum MemberRequest {
    Join {
        group: GroupId,
        name: String,
        topics: Vec<TopicId>,
        client: String,
    },
    /// Any but `Join` and `Connect`.
    Do(Action),
}

/// What a consumer hears, for its core.
#[derive(Debug)]
pub(crate) enum MemberEvent {
    Joined(Result<JoinGroupAnswer, Refusal>),
    Heartbeat(Result<HeartbeatAnswer, Refusal>),
    Left,
    Assigned { group: GroupId, member: MemberId, number: u64, queues: Vec<AssignedQueue> },
    Dismissed { member: MemberId, refusal: Refusal },
    Subscribed { ticket: Ticket, answer: Result<SubscribeAnswer, Refusal> },
    Delivered { ticket: Ticket, batch: ReceivedBatch },
    Revoked { ticket: Ticket },
    Ended { ticket: Ticket, refusal: Refusal },
    Acked { ticket: Ticket, answer: Result<AckAnswer, Refusal> },
    Unsubscribed { ticket: Ticket },
}

/// Who waits for an answer, and for which.
pub(super) struct MemberPending {
    what: Asked,
    to: Listener,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Join,
    Heartbeat,
    Leave(MemberId),
    Subscribe(Ticket, TopicId, QueueId),
    Ack(Ticket),
    Unsubscribe(Ticket, SubscriptionId),
}

/// A subscription of a member.
struct Opened {
    ticket: Ticket,
    topic: TopicId,
    queue: QueueId,
    to: Listener,
}

/// The members on one connection.
#[derive(Default)]
pub(super) struct Members {
    joined: HashMap<MemberId, Listener>,
    subscriptions: HashMap<SubscriptionId, Opened>,
}

impl Members {
    /// Whether the broker owes somebody something.
    pub fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.subscriptions.is_empty()
    }

    /// Appends the request to `out`; what waits for its answer, if anything does.
    pub fn send(
        request: &MemberRequest,
        to: Listener,
        session: &mut Session,
        out: &mut Vec<u8>,
    ) -> Option<(Correlation, MemberPending)> {
        let (what, request) = match *request {
            MemberRequest::Join { group, ref name, ref topics, ref client } => {
                let topics = TopicIds::from(&topics[..]);
                (Asked::Join, Request::JoinGroup(JoinGroup { group, member: name, topics, client }))
            }
            MemberRequest::Do(Action::Heartbeat(_, heartbeat)) => (Asked::Heartbeat, Request::Heartbeat(heartbeat)),
            MemberRequest::Do(Action::Leave(_, leave)) => (Asked::Leave(leave.member), Request::LeaveGroup(leave)),
            MemberRequest::Do(Action::Subscribe(_, ticket, it)) => {
                (Asked::Subscribe(ticket, it.topic, it.queue), Request::Subscribe(it))
            }
            MemberRequest::Do(Action::Ack(_, ticket, ack)) => (Asked::Ack(ticket), Request::Ack(ack)),
            MemberRequest::Do(Action::Unsubscribe(_, ticket, subscription)) => {
                (Asked::Unsubscribe(ticket, subscription), Request::Unsubscribe(Unsubscribe { subscription }))
            }
            MemberRequest::Do(Action::Credit(_, credit)) => {
                session.credit(&credit, out);
                return None;
            }
            MemberRequest::Do(Action::Connect(_) | Action::Join(_)) => return None,
        };
        Some((session.request(&request, out), MemberPending { what, to }))
    }

    /// The answer to a request; what is pushed from now on finds its consumer.
    pub fn answered(&mut self, pending: MemberPending, answer: &Answer<'_>) -> Option<(Listener, MemberEvent)> {
        let MemberPending { what, to } = pending;
        let event = match (what, answer) {
            (Asked::Join, Answer::JoinGroup(answer)) => {
                self.joined.insert(answer.member, to.clone());
                MemberEvent::Joined(Ok(*answer))
            }
            (Asked::Heartbeat, Answer::Heartbeat(answer)) => MemberEvent::Heartbeat(Ok(*answer)),
            (Asked::Leave(member), _) => {
                self.joined.remove(&member);
                MemberEvent::Left
            }
            (Asked::Subscribe(ticket, topic, queue), Answer::Subscribe(answer)) => {
                self.subscriptions.insert(answer.subscription, Opened { ticket, topic, queue, to: to.clone() });
                MemberEvent::Subscribed { ticket, answer: Ok(*answer) }
            }
            (Asked::Ack(ticket), Answer::Ack(answer)) => MemberEvent::Acked { ticket, answer: Ok(*answer) },
            (Asked::Unsubscribe(ticket, subscription), _) => {
                self.subscriptions.remove(&subscription);
                MemberEvent::Unsubscribed { ticket }
            }
            _ => return None,
        };
        Some((to, event))
    }

    /// The broker said no to a request.
    pub fn refused(&mut self, pending: MemberPending, refusal: Refusal) -> (Listener, MemberEvent) {
        let event = match pending.what {
            Asked::Join => MemberEvent::Joined(Err(refusal)),
            Asked::Heartbeat => MemberEvent::Heartbeat(Err(refusal)),
            Asked::Leave(member) => {
                self.joined.remove(&member);
                MemberEvent::Left
            }
            Asked::Subscribe(ticket, ..) => MemberEvent::Subscribed { ticket, answer: Err(refusal) },
            Asked::Ack(ticket) => MemberEvent::Acked { ticket, answer: Err(refusal) },
            Asked::Unsubscribe(ticket, subscription) => {
                self.subscriptions.remove(&subscription);
                MemberEvent::Unsubscribed { ticket }
            }
        };
        (pending.to, event)
    }

    /// A batch; `None`: for no member.
    pub fn delivered(&self, deliver: &Deliver<'_>, shard: ShardId) -> Option<(&Listener, MemberEvent)> {
        let Opened { ticket, topic, queue, to } = self.subscriptions.get(&deliver.subscription)?;
        let payload = Bytes::copy_from_slice(deliver.payload);
        let batch =
            ReceivedBatch { topic: Some(*topic), queue: *queue, shard, head: deliver.batch, payload, end: None };
        Some((to, MemberEvent::Delivered { ticket: *ticket, batch }))
    }

    pub fn revoked(&self, subscription: SubscriptionId) -> Option<(&Listener, MemberEvent)> {
        let Opened { ticket, to, .. } = self.subscriptions.get(&subscription)?;
        Some((to, MemberEvent::Revoked { ticket: *ticket }))
    }

    pub fn ended(&mut self, subscription: SubscriptionId, error: &ErrorAnswer<'_>) -> Option<(Listener, MemberEvent)> {
        let Opened { ticket, to, .. } = self.subscriptions.remove(&subscription)?;
        Some((to, MemberEvent::Ended { ticket, refusal: Refusal::from(error) }))
    }

    pub fn assigned(
        &self,
        assignment: &peregrine_protocol::message::Assignment<'_>,
    ) -> Option<(&Listener, MemberEvent)> {
        let to = self.joined.get(&assignment.member)?;
        let queues = assignment.queues.iter().collect();
        let (group, member, number) = (assignment.group, assignment.member, assignment.number);
        Some((to, MemberEvent::Assigned { group, member, number, queues }))
    }

    pub fn dismissed(&mut self, member: MemberId, error: &ErrorAnswer<'_>) -> Option<(Listener, MemberEvent)> {
        let to = self.joined.remove(&member)?;
        Some((to, MemberEvent::Dismissed { member, refusal: Refusal::from(error) }))
    }
}
