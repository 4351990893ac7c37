//! Members of a consumer group at its home shard: join, leave, heartbeat, and the assignment that the home pushes. Heartbeats are
//! structs, and so is an assignment, whose queues are its body: a member may have more than a header holds.
//!
//! ```text
//!  JoinGroup ──────►  home shard  ──────► Assignment (number 1: queues 0, 3)
//!  Heartbeat(1) ───►              ──────► its answer: number 2, and the assignment once more
//!  Subscribe ──────►  the shard that owns a queue: it alone delivers, and takes a queue back with Revoke
//! ```

use super::DecodeError;
use super::list::{ListIn, list};
use super::table::{self, Envelope, read_struct};
use crate::frame::{self, Kind, Sender};
use crate::generated as wire;
use crate::ids::{Correlation, GroupId, MemberId, Nanos, QueueId, TopicId};
use crate::limits::{CLIENT_TEXT_MAX, GROUP_TOPICS_MAX, MEMBER_QUEUES_MAX};
use crate::name::check_name;

list!(
    /// At most [`GROUP_TOPICS_MAX`] topics.
    TopicIds,
    TopicId,
    u64,
    TopicId
);

/// Makes this connection's client a member of a group, under a name of its choice. The newest join under a name wins: the one on
/// another connection ends with `MemberFenced`. A name that comes back within the grace time gets its id and its queues back.
#[derive(Clone, Copy, Debug)]
pub struct JoinGroup<'a> {
    pub group: GroupId,
    /// The member's name, unique in the group.
    pub member: &'a str,
    /// Topics of the group whose queues it takes; at least one.
    pub topics: TopicIds<'a>,
    /// The client instance.
    pub client: &'a str,
}

impl<'a> JoinGroup<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::JoinGroup<'a>>(header)?;
        check_name(table.member())?;
        if !(1..=GROUP_TOPICS_MAX).contains(&table.topics().len()) {
            return Err(DecodeError::Field("topics"));
        }
        Ok(Self {
            group: GroupId(table.group()),
            member: table.member(),
            topics: TopicIds::from_wire(table.topics()),
            client: table::bounded(table.client(), CLIENT_TEXT_MAX, "client")?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::JoinGroup, correlation).write(out, |builder| {
            let topics: Vec<_> = self.topics.iter().map(|topic| topic.0).collect();
            let args = wire::JoinGroupArgs {
                group: self.group.0,
                member: Some(builder.create_string(self.member)),
                topics: Some(builder.create_vector(&topics)),
                client: Some(builder.create_string(self.client)),
            };
            wire::JoinGroup::create(builder, &args)
        });
    }
}

/// The client is a member. Its queues follow in an [`Assignment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinGroupAnswer {
    pub member: MemberId,
    /// Of the last assignment; 0: none since the home's start.
    pub number: u64,
    /// How often to send a [`Heartbeat`].
    pub heartbeat: Nanos,
    /// Without one for so long, the member counts as lost.
    pub silence: Nanos,
    /// How long the queues of a lost member wait for it.
    pub grace: Nanos,
}

impl JoinGroupAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::JoinGroupAnswer<'_>>(header)?;
        Ok(Self {
            member: MemberId(table.member()),
            number: table.number(),
            heartbeat: Nanos(table.heartbeat_ns()),
            silence: Nanos(table.silence_ns()),
            grace: Nanos(table.grace_ns()),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::JoinGroup, correlation).write(out, |builder| {
            let args = wire::JoinGroupAnswerArgs {
                member: self.member.0,
                number: self.number,
                heartbeat_ns: self.heartbeat.0,
                silence_ns: self.silence.0,
                grace_ns: self.grace.0,
            };
            wire::JoinGroupAnswer::create(builder, &args)
        });
    }
}

/// Ends a membership; its queues go to the others at once. The answer is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaveGroup {
    pub group: GroupId,
    pub member: MemberId,
}

impl LeaveGroup {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::LeaveGroup<'_>>(header)?;
        Ok(Self { group: GroupId(table.group()), member: MemberId(table.member()) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        self.write(Envelope::request(Kind::LeaveGroup, correlation), out);
    }

    pub fn encode_answer(&self, correlation: Correlation, out: &mut Vec<u8>) {
        self.write(Envelope::answer(Kind::LeaveGroup, correlation), out);
    }

    fn write(self, envelope: Envelope<'_>, out: &mut Vec<u8>) {
        envelope.write(out, |builder| {
            let args = wire::LeaveGroupArgs { group: self.group.0, member: self.member.0 };
            wire::LeaveGroup::create(builder, &args)
        });
    }
}

/// The member is alive. `UnknownMember` where the home does not know it any more: it joins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub group: GroupId,
    pub member: MemberId,
    /// Of the assignment that it knows; if that is not the last, the home pushes the last one again.
    pub number: u64,
}

impl Heartbeat {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::HeartbeatHead(read_struct(header)?);
        Ok(Self { group: GroupId(head.group()), member: MemberId(head.member()), number: head.number() })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let header = wire::HeartbeatHead::new(self.group.0, self.member.0, self.number);
        frame::encode(Kind::Heartbeat, Sender::Client, correlation, &header.0, &[], out);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// Of the last assignment.
    pub number: u64,
}

impl HeartbeatAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::HeartbeatAnswerHead(read_struct(header)?);
        Ok(Self { number: head.number() })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let header = wire::HeartbeatAnswerHead::new(self.number);
        frame::encode(Kind::Heartbeat, Sender::Broker, correlation, &header.0, &[], out);
    }
}

/// A queue in an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignedQueue {
    pub topic: TopicId,
    pub queue: QueueId,
}

impl AssignedQueue {
    /// Bytes of one in an assignment's body.
    const LEN: usize = size_of::<wire::AssignedQueue>();

    fn from_wire(row: &wire::AssignedQueue) -> Self {
        Self { topic: TopicId(row.topic()), queue: QueueId(row.queue()) }
    }

    fn to_wire(self) -> wire::AssignedQueue {
        wire::AssignedQueue::new(self.topic.0, self.queue.0, 0)
    }
}

/// Pushed by the home: all queues that are the member's now, in the order of topic and queue. It subscribes to each at the
/// queue's shard; of a queue that is missing here it acks what is done, and unsubscribes.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    pub group: GroupId,
    pub member: MemberId,
    /// Counts the assignments of a group up, and goes on counting where the home was started again.
    pub number: u64,
    /// At most [`MEMBER_QUEUES_MAX`].
    pub queues: AssignedQueues<'a>,
}

impl<'a> Assignment<'a> {
    pub fn decode(header: &[u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let head = wire::AssignmentHead(read_struct(header)?);
        Ok(Self {
            group: GroupId(head.group()),
            member: MemberId(head.member()),
            number: head.number(),
            queues: AssignedQueues::check(body)?,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = wire::AssignmentHead::new(self.group.0, self.member.0, self.number);
        let body: Vec<u8> = self.queues.iter().flat_map(|row| row.to_wire().0).collect();
        frame::encode(Kind::Assignment, Sender::Broker, Correlation(0), &header.0, &body, out);
    }
}

/// The queues of an assignment: a slice of the sender's, or the receiver's bytes, which were checked when they were decoded.
#[derive(Clone, Copy)]
pub struct AssignedQueues<'a>(ListIn<'a, AssignedQueue, &'a [[u8; AssignedQueue::LEN]]>);

impl<'a> AssignedQueues<'a> {
    /// A list of these queues.
    pub const fn of(queues: &'a [AssignedQueue]) -> Self {
        Self(ListIn::Rows(queues))
    }

    fn check(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (rows, rest) = body.as_chunks::<{ AssignedQueue::LEN }>();
        if !rest.is_empty() || rows.iter().any(|row| wire::AssignedQueue(*row).reserved() != 0) {
            return Err(DecodeError::Body);
        }
        if rows.len() > MEMBER_QUEUES_MAX {
            return Err(DecodeError::Field("queues"));
        }
        Ok(Self(ListIn::Wire(rows)))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            ListIn::Rows(rows) => rows.len(),
            ListIn::Wire(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = AssignedQueue> + use<'a> {
        let list = self.0;
        (0..self.len()).map(move |index| match &list {
            ListIn::Rows(rows) => rows[index],
            ListIn::Wire(rows) => AssignedQueue::from_wire(&wire::AssignedQueue(rows[index])),
        })
    }
}

impl<'a> From<&'a [AssignedQueue]> for AssignedQueues<'a> {
    fn from(queues: &'a [AssignedQueue]) -> Self {
        Self::of(queues)
    }
}

impl std::fmt::Debug for AssignedQueues<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
