//! What frames mean: every request, answer and push, typed, with its encoder and decoder.
//!
//! [`Request`] is what a client sends, [`Answer`] what a broker sends; each variant's type is used in both directions. Decoded
//! values borrow from the frame, and decoding allocates nothing. Values are checked: lengths of texts, numbers with a meaning,
//! counts against the limits. What is wrong in itself is [`ErrorCode::Malformed`] (the connection ends); what a later version
//! might mean is an error of that request alone.
//!
//! - [`session`]: hello, ping, error; [`topics`]: metadata, create, alter, delete, list, describe;
//! - [`produce`], [`consume`] (subscribe, credit, deliver, ack, revoke), [`read`] (fetch, offset look-up), [`find`] (messages by id
//!   and by key), [`stats`];
//! - [`groups`]: consumer groups made, deleted, listed, described, their lag and offsets; [`membership`]: join, leave, heartbeat,
//!   assignment.

pub mod consume;
pub mod find;
pub mod groups;
mod list;
pub mod membership;
pub mod parts;
pub mod produce;
pub mod read;
pub mod session;
pub mod stats;
mod table;
pub mod topics;

pub use consume::{Ack, AckAnswer, Credit, Deliver, Mode, Revoke, Subscribe, SubscribeAnswer, Unsubscribe};
pub use find::{FindMessages, Found, FoundBody, FoundHead, FoundMessages, GetMessage};
pub use groups::{
    CreateGroup, DeleteGroup, DescribeGroup, DescribeGroupAnswer, GroupAnswer, GroupLag, GroupLagAnswer, GroupRow,
    GroupRows, GroupTopic, GroupTopics, LagRow, LagRows, ListGroups, ListGroupsAnswer, MemberRow, MemberRows,
    ResetOffset, ResetOffsetAnswer,
};
pub use membership::{
    AssignedQueue, AssignedQueues, Assignment, Heartbeat, HeartbeatAnswer, JoinGroup, JoinGroupAnswer, LeaveGroup,
    TopicIds,
};
pub use parts::{PartHead, Parts, PartsBody};
pub use produce::{BatchHead, Produce, ProduceAnswer, ProduceHead};
pub use read::{Fetch, FetchAnswer, FetchBody, FetchedBatches, LookUp, LookUpAnswer, Start};
pub use session::{ErrorAnswer, Hello, HelloAnswer};
pub use stats::{Stats, StatsAnswer};
pub use topics::{
    AlterTopic, CreateTopic, DeleteTopic, DescribeTopic, DescribeTopicAnswer, ListTopics, ListTopicsAnswer, Metadata,
    MetadataAnswer, Names, QueueRow, QueueRows, TopicAnswer, TopicRetention, TopicRow, TopicRows,
};

use crate::error::ErrorCode;
use crate::frame::{Frame, Kind, Sender};
use crate::ids::Correlation;
use crate::name::NameError;
use crate::preamble::PROTOCOL_VERSION;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Hello(Hello<'a>),
    Ping,
    Metadata(Metadata<'a>),
    CreateTopic(CreateTopic<'a>),
    AlterTopic(AlterTopic<'a>),
    DeleteTopic(DeleteTopic<'a>),
    ListTopics(ListTopics<'a>),
    DescribeTopic(DescribeTopic<'a>),
    Produce(Produce<'a>),
    Fetch(Fetch),
    LookUp(LookUp),
    GetMessage(GetMessage),
    FindMessages(FindMessages<'a>),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    /// Not answered, unless it is wrong.
    Credit(Credit),
    Ack(Ack),
    Stats(Stats),
    CreateGroup(CreateGroup<'a>),
    DeleteGroup(DeleteGroup<'a>),
    ListGroups(ListGroups<'a>),
    DescribeGroup(DescribeGroup<'a>),
    GroupLag(GroupLag),
    ResetOffset(ResetOffset),
    JoinGroup(JoinGroup<'a>),
    LeaveGroup(LeaveGroup),
    Heartbeat(Heartbeat),
}

impl<'a> Request<'a> {
    pub fn decode(frame: &Frame<'a>) -> Result<Self, DecodeError> {
        let kind = kind_from(frame, Sender::Client)?;
        if !matches!(kind, Kind::Produce) && !frame.body.is_empty() {
            return Err(DecodeError::Body);
        }
        let header = frame.header;
        Ok(match kind {
            Kind::Hello => Self::Hello(Hello::decode(header)?),
            Kind::Ping => table::nothing(header).map(|()| Self::Ping)?,
            Kind::Metadata => Self::Metadata(Metadata::decode(header)?),
            Kind::CreateTopic => Self::CreateTopic(CreateTopic::decode(header)?),
            Kind::AlterTopic => Self::AlterTopic(AlterTopic::decode(header)?),
            Kind::DeleteTopic => Self::DeleteTopic(DeleteTopic::decode(header)?),
            Kind::ListTopics => Self::ListTopics(ListTopics::decode(header)?),
            Kind::DescribeTopic => Self::DescribeTopic(DescribeTopic::decode(header)?),
            Kind::Produce => Self::Produce(Produce { head: ProduceHead::decode(header)?, payload: frame.body }),
            Kind::Fetch => Self::Fetch(Fetch::decode(header)?),
            Kind::LookUp => Self::LookUp(LookUp::decode(header)?),
            Kind::GetMessage => Self::GetMessage(GetMessage::decode(header)?),
            Kind::FindMessages => Self::FindMessages(FindMessages::decode(header)?),
            Kind::Subscribe => Self::Subscribe(Subscribe::decode(header)?),
            Kind::Unsubscribe => Self::Unsubscribe(Unsubscribe::decode(header)?),
            Kind::Credit => Self::Credit(Credit::decode(header)?),
            Kind::Ack => Self::Ack(Ack::decode(header)?),
            Kind::Stats => Self::Stats(Stats::decode(header)?),
            Kind::CreateGroup => Self::CreateGroup(CreateGroup::decode(header)?),
            Kind::DeleteGroup => Self::DeleteGroup(DeleteGroup::decode(header)?),
            Kind::ListGroups => Self::ListGroups(ListGroups::decode(header)?),
            Kind::DescribeGroup => Self::DescribeGroup(DescribeGroup::decode(header)?),
            Kind::GroupLag => Self::GroupLag(GroupLag::decode(header)?),
            Kind::ResetOffset => Self::ResetOffset(ResetOffset::decode(header)?),
            Kind::JoinGroup => Self::JoinGroup(JoinGroup::decode(header)?),
            Kind::LeaveGroup => Self::LeaveGroup(LeaveGroup::decode(header)?),
            Kind::Heartbeat => Self::Heartbeat(Heartbeat::decode(header)?),
            Kind::Deliver | Kind::Revoke | Kind::Assignment | Kind::Error => {
                return Err(DecodeError::Kind(kind as u8));
            }
        })
    }

    /// Appends the request's frame.
    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        match self {
            Self::Hello(request) => request.encode(correlation, out),
            Self::Ping => crate::frame::encode(Kind::Ping, Sender::Client, correlation, &[], &[], out),
            Self::Metadata(request) => request.encode(correlation, out),
            Self::CreateTopic(request) => request.encode(correlation, out),
            Self::AlterTopic(request) => request.encode(correlation, out),
            Self::DeleteTopic(request) => request.encode(correlation, out),
            Self::ListTopics(request) => request.encode(correlation, out),
            Self::DescribeTopic(request) => request.encode(correlation, out),
            Self::Produce(request) => request.encode(correlation, out),
            Self::Fetch(request) => request.encode(correlation, out),
            Self::LookUp(request) => request.encode(correlation, out),
            Self::GetMessage(request) => request.encode(correlation, out),
            Self::FindMessages(request) => request.encode(correlation, out),
            Self::Subscribe(request) => request.encode(correlation, out),
            Self::Unsubscribe(request) => request.encode(correlation, out),
            Self::Credit(request) => request.encode(correlation, out),
            Self::Ack(request) => request.encode(correlation, out),
            Self::Stats(request) => request.encode(correlation, out),
            Self::CreateGroup(request) => request.encode(correlation, out),
            Self::DeleteGroup(request) => request.encode(correlation, out),
            Self::ListGroups(request) => request.encode(correlation, out),
            Self::DescribeGroup(request) => request.encode(correlation, out),
            Self::GroupLag(request) => request.encode(correlation, out),
            Self::ResetOffset(request) => request.encode(correlation, out),
            Self::JoinGroup(request) => request.encode(correlation, out),
            Self::LeaveGroup(request) => request.encode(correlation, out),
            Self::Heartbeat(request) => request.encode(correlation, out),
        }
    }
}

/// What a broker sends: answers, errors, and what it pushes.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    Hello(HelloAnswer<'a>),
    Ping,
    Metadata(MetadataAnswer<'a>),
    CreateTopic(TopicAnswer<'a>),
    AlterTopic(TopicAnswer<'a>),
    DeleteTopic(TopicAnswer<'a>),
    ListTopics(ListTopicsAnswer<'a>),
    DescribeTopic(DescribeTopicAnswer<'a>),
    Produce(ProduceAnswer),
    Fetch(FetchAnswer<'a>),
    LookUp(LookUpAnswer),
    GetMessage(Found<'a>),
    FindMessages(Found<'a>),
    Subscribe(SubscribeAnswer),
    Unsubscribe(Unsubscribe),
    /// Pushed.
    Deliver(Deliver<'a>),
    Ack(AckAnswer),
    /// Pushed.
    Revoke(Revoke),
    Stats(StatsAnswer<'a>),
    CreateGroup(GroupAnswer<'a>),
    DeleteGroup(GroupAnswer<'a>),
    ListGroups(ListGroupsAnswer<'a>),
    DescribeGroup(DescribeGroupAnswer<'a>),
    GroupLag(GroupLagAnswer<'a>),
    ResetOffset(ResetOffsetAnswer),
    JoinGroup(JoinGroupAnswer),
    LeaveGroup(LeaveGroup),
    Heartbeat(HeartbeatAnswer),
    /// Pushed.
    Assignment(Assignment<'a>),
    /// Instead of an answer; pushed where it ends a subscription or a membership.
    Error(ErrorAnswer<'a>),
}

impl<'a> Answer<'a> {
    pub fn decode(frame: &Frame<'a>) -> Result<Self, DecodeError> {
        let kind = kind_from(frame, Sender::Broker)?;
        if !has_body(kind) && !frame.body.is_empty() {
            return Err(DecodeError::Body);
        }
        let header = frame.header;
        Ok(match kind {
            Kind::Hello => Self::Hello(HelloAnswer::decode(header)?),
            Kind::Ping => table::nothing(header).map(|()| Self::Ping)?,
            Kind::Metadata => Self::Metadata(MetadataAnswer::decode(header)?),
            Kind::CreateTopic => Self::CreateTopic(TopicAnswer::decode(header)?),
            Kind::AlterTopic => Self::AlterTopic(TopicAnswer::decode(header)?),
            Kind::DeleteTopic => Self::DeleteTopic(TopicAnswer::decode(header)?),
            Kind::ListTopics => Self::ListTopics(ListTopicsAnswer::decode(header)?),
            Kind::DescribeTopic => Self::DescribeTopic(DescribeTopicAnswer::decode(header)?),
            Kind::Produce => Self::Produce(ProduceAnswer::decode(header)?),
            Kind::Fetch => Self::Fetch(FetchAnswer::decode(header, frame.body)?),
            Kind::LookUp => Self::LookUp(LookUpAnswer::decode(header)?),
            Kind::GetMessage => Self::GetMessage(Found::decode(header, frame.body)?),
            Kind::FindMessages => Self::FindMessages(Found::decode(header, frame.body)?),
            Kind::Subscribe => Self::Subscribe(SubscribeAnswer::decode(header)?),
            Kind::Unsubscribe => Self::Unsubscribe(Unsubscribe::decode_answer(header)?),
            Kind::Deliver => Self::Deliver(Deliver::decode(header, frame.body)?),
            Kind::Ack => Self::Ack(AckAnswer::decode(header)?),
            Kind::Revoke => Self::Revoke(Revoke::decode(header)?),
            Kind::Stats => Self::Stats(StatsAnswer::decode(header, frame.body)?),
            Kind::CreateGroup => Self::CreateGroup(GroupAnswer::decode(header)?),
            Kind::DeleteGroup => Self::DeleteGroup(GroupAnswer::decode(header)?),
            Kind::ListGroups => Self::ListGroups(ListGroupsAnswer::decode(header)?),
            Kind::DescribeGroup => Self::DescribeGroup(DescribeGroupAnswer::decode(header)?),
            Kind::GroupLag => Self::GroupLag(GroupLagAnswer::decode(header)?),
            Kind::ResetOffset => Self::ResetOffset(ResetOffsetAnswer::decode(header)?),
            Kind::JoinGroup => Self::JoinGroup(JoinGroupAnswer::decode(header)?),
            Kind::LeaveGroup => Self::LeaveGroup(LeaveGroup::decode(header)?),
            Kind::Heartbeat => Self::Heartbeat(HeartbeatAnswer::decode(header)?),
            Kind::Assignment => Self::Assignment(Assignment::decode(header, frame.body)?),
            Kind::Error => Self::Error(ErrorAnswer::decode(header)?),
            Kind::Credit => return Err(DecodeError::Kind(kind as u8)),
        })
    }

    /// Appends the answer's frame. What is pushed (a delivery, a revoke, an assignment) has correlation 0 whatever is given here.
    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        match self {
            Self::Hello(answer) => answer.encode(correlation, out),
            Self::Ping => crate::frame::encode(Kind::Ping, Sender::Broker, correlation, &[], &[], out),
            Self::Metadata(answer) => answer.encode(correlation, out),
            Self::CreateTopic(answer) => answer.encode(Kind::CreateTopic, correlation, out),
            Self::AlterTopic(answer) => answer.encode(Kind::AlterTopic, correlation, out),
            Self::DeleteTopic(answer) => answer.encode(Kind::DeleteTopic, correlation, out),
            Self::ListTopics(answer) => answer.encode(correlation, out),
            Self::DescribeTopic(answer) => answer.encode(correlation, out),
            Self::Produce(answer) => answer.encode(correlation, out),
            Self::Fetch(answer) => answer.encode(correlation, out),
            Self::LookUp(answer) => answer.encode(correlation, out),
            Self::GetMessage(answer) => answer.encode(Kind::GetMessage, correlation, out),
            Self::FindMessages(answer) => answer.encode(Kind::FindMessages, correlation, out),
            Self::Subscribe(answer) => answer.encode(correlation, out),
            Self::Unsubscribe(answer) => answer.encode_answer(correlation, out),
            Self::Deliver(delivery) => delivery.encode(out),
            Self::Ack(answer) => answer.encode(correlation, out),
            Self::Revoke(revoke) => revoke.encode(out),
            Self::Stats(answer) => answer.encode(correlation, out),
            Self::CreateGroup(answer) => answer.encode(Kind::CreateGroup, correlation, out),
            Self::DeleteGroup(answer) => answer.encode(Kind::DeleteGroup, correlation, out),
            Self::ListGroups(answer) => answer.encode(correlation, out),
            Self::DescribeGroup(answer) => answer.encode(correlation, out),
            Self::GroupLag(answer) => answer.encode(correlation, out),
            Self::ResetOffset(answer) => answer.encode(correlation, out),
            Self::JoinGroup(answer) => answer.encode(correlation, out),
            Self::LeaveGroup(answer) => answer.encode_answer(correlation, out),
            Self::Heartbeat(answer) => answer.encode(correlation, out),
            Self::Assignment(assignment) => assignment.encode(out),
            Self::Error(answer) => answer.encode(correlation, out),
        }
    }
}

/// Whether answers of this kind, or what is pushed as it, may have a body.
fn has_body(kind: Kind) -> bool {
    use Kind::{Assignment, Deliver, Fetch, FindMessages, GetMessage, Stats};
    matches!(kind, Fetch | GetMessage | FindMessages | Deliver | Stats | Assignment)
}

/// Why a whole frame is no request or no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("protocol version {0}, this program speaks {PROTOCOL_VERSION}")]
    Version(u8),
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    #[error("the frame's header is not what its kind asks for")]
    Header,
    #[error("the frame's body is not what its kind asks for")]
    Body,
    #[error("the field {0} is out of its range")]
    Field(&'static str),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl DecodeError {
    /// What the asker is told.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Version(_) => ErrorCode::UnknownVersion,
            Self::Kind(_) => ErrorCode::UnknownKind,
            Self::Header | Self::Body => ErrorCode::Malformed,
            Self::Field(_) => ErrorCode::InvalidArgument,
            Self::Name(_) => ErrorCode::InvalidName,
        }
    }

    /// Whether the connection ends with it.
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Header | Self::Body)
    }
}

fn kind_from(frame: &Frame<'_>, sender: Sender) -> Result<Kind, DecodeError> {
    if frame.head.version != PROTOCOL_VERSION {
        return Err(DecodeError::Version(frame.head.version));
    }
    match Kind::from_number(frame.head.kind) {
        Some(kind) if frame.head.sender() == sender => Ok(kind),
        _ => Err(DecodeError::Kind(frame.head.kind)),
    }
}

#[cfg(test)]
mod tests;
