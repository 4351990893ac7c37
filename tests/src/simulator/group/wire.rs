//! What is on its way: between shards, and between members and shards. Each link keeps the order of its messages; two links do
//! not keep theirs, as on the mesh and between sockets.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use peregrine_broker::engine::{Assignment, CatalogueState, Credit, Joined};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, QueueId, QueueOffset, SubscriptionId, TopicId};

/// A client's connection to one shard, over which several members may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Whatever keeps the order of what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Mesh {
        from: usize,
        to: usize,
    },
    /// From a member to a shard.
    Up(ConnectionId),
    /// From a shard to a member.
    Down(ConnectionId),
    /// What takes a shard a while.
    Own(usize),
}

/// Who holds which queues, from a home to an owner.
#[derive(Debug)]
pub struct Assigned {
    pub group: GroupId,
    pub number: u64,
    pub assignment: Arc<Assignment>,
    /// What it says, for the oracles.
    pub holders: Vec<(TopicId, QueueId, MemberId)>,
    pub fenced: Vec<MemberId>,
}

#[derive(Clone, Debug)]
pub enum Message {
    News {
        to: usize,
        state: CatalogueState,
    },
    Assign {
        to: usize,
        assigned: Rc<Assigned>,
    },
    Request {
        from: ConnectionId,
        member: usize,
        request: Request,
    },
    Closed {
        from: ConnectionId,
    },
    Push {
        to: ConnectionId,
        /// Whose request it answers; none where it is for whoever knows what it is about.
        member: Option<usize>,
        push: Push,
    },
    /// The socket has taken a batch.
    Sent {
        shard: usize,
        subscription: SubscriptionId,
    },
}

/// What a member asks.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    Join,
    Leave { member: MemberId },
    Heartbeat { member: MemberId, number: u64 },
    Subscribe { token: u64, member: MemberId, topic: TopicId, queue: QueueId, credit: Credit },
    Unsubscribe { subscription: SubscriptionId },
    Credit { subscription: SubscriptionId, credit: Credit },
    Ack { subscription: SubscriptionId, epoch: Epoch, offset: QueueOffset },
}

/// What a member is told.
#[derive(Clone, Debug)]
pub enum Push {
    Joined(Result<Joined, ErrorCode>),
    Heard(Result<u64, ErrorCode>),
    Assignment { member: MemberId, number: u64, queues: Vec<(TopicId, QueueId)> },
    Fenced { member: MemberId, code: ErrorCode },
    Subscribed { token: u64, answer: Result<SubscriptionId, ErrorCode> },
    Batch { subscription: SubscriptionId, epoch: Epoch, first: QueueOffset, end: QueueOffset },
    Revoked { subscription: SubscriptionId },
    Ended { subscription: SubscriptionId },
    Acknowledged { subscription: SubscriptionId, offset: QueueOffset },
}

/// All messages on their way, by the time at which they arrive.
#[derive(Debug, Default)]
pub struct Wire {
    messages: BTreeMap<(u64, u64), Message>,
    /// When the last message of a link arrives.
    last: BTreeMap<Link, u64>,
    sent: u64,
}

impl Wire {
    /// Sends a message that arrives `delay` after `now`, or right behind the one before it.
    pub fn send(&mut self, link: Link, now: u64, delay: u64, message: Message) {
        let last = self.last.entry(link).or_default();
        *last = (now + delay).max(*last);
        self.messages.insert((*last, self.sent), message);
        self.sent += 1;
    }

    /// The next message that has arrived by `now`.
    pub fn take_due(&mut self, now: u64) -> Option<Message> {
        let (&key, _) = self.messages.first_key_value().filter(|((due, _), _)| *due <= now)?;
        self.messages.remove(&key)
    }

    pub fn next_due(&self) -> Option<u64> {
        self.messages.first_key_value().map(|((due, _), _)| *due)
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// A connection broke without a word: what was under way to the shard is lost.
    pub fn lose_requests(&mut self, connection: ConnectionId) {
        self.messages.retain(|_, message| !matches!(message, Message::Request { from, .. } if *from == connection));
    }

    /// Connections and mesh end with the process.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.last.clear();
    }
}
