//! What goes in and out of a member's core.

use peregrine_protocol::ids::{Epoch, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId};
use peregrine_protocol::message::{Ack, Credit, Heartbeat, LeaveGroup, Subscribe};

use crate::error::Refusal;

/// A queue, among all topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey {
    /// The topic.
    pub topic: TopicId,
    /// Its queue.
    pub queue: QueueId,
}

/// One attempt to subscribe to a queue, and all that follows from it. Never used again, so that what belongs to an earlier attempt is
/// told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A message in the application's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// Where it came from.
    pub key: QueueKey,
    /// Its place there.
    pub offset: QueueOffset,
    /// The epoch that it stands in.
    pub epoch: Epoch,
    /// For how long the queue has been this member's without interruption; a lost queue's tokens mean nothing any more.
    pub(crate) tenure: u64,
}

/// What the caller is to do, at which shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Keep a connection to the shard from now on, and tell `connected` and `disconnected`.
    Connect(ShardId),
    /// Send what `join_request` says, and tell `joined`.
    Join(ShardId),
    /// Tell `heartbeat_answered`.
    Heartbeat(ShardId, Heartbeat),
    /// Tell `left`.
    Leave(ShardId, LeaveGroup),
    /// Tell `subscribed`, then `delivered`, `revoked` and `ended`, all with the ticket.
    Subscribe(ShardId, Ticket, Subscribe),
    /// Tell `acked` with the ticket.
    Ack(ShardId, Ticket, Ack),
    /// Not answered.
    Credit(ShardId, Credit),
    /// Tell `unsubscribed` with the ticket.
    Unsubscribe(ShardId, Ticket, SubscriptionId),
}

/// What the application should know, and what ends nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The queue's messages from an offset on were lost with the failure of an earlier run; the group goes on there.
    Truncated {
        /// Which queue.
        key: QueueKey,
        /// The first offset that now means another message than before.
        at: QueueOffset,
    },
    /// The broker says that nothing comes from the queue. If the refusal is retriable, or the queue damaged, it is tried again.
    Refused {
        /// Which queue.
        key: QueueKey,
        /// Why.
        refusal: Refusal,
    },
}
