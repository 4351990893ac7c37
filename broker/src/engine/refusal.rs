//! Why the engine does not do what a request asks, and how that reads on the wire.

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{Nanos, QueueOffset, Sequence, ShardId};

use super::catalogue::CatalogueId;
use super::indexed::IndexQuestion;

/// A request's refusal. The state is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not known here; shard 0 may know more. Ask it ([`super::Engine::catalogue_state`]), hand what it says to
    /// [`super::Engine::catalogue_changed`] and decide again; where it knows no more, the answer is `otherwise`.
    #[error("shard 0 may know more of {about}; otherwise {otherwise}")]
    AskHome { about: CatalogueId, otherwise: ErrorCode },
    /// The indexes of sealed segments know. Look it up there, tell what was found ([`super::Engine::answered`]) and decide again.
    #[error("the indexes of sealed segments are to be asked first")]
    LookUp(IndexQuestion),
    #[error("there is no such topic")]
    UnknownTopic,
    #[error("the topic has no such queue")]
    UnknownQueue,
    #[error("the topic was deleted")]
    TopicDeleted,
    #[error("the topic exists with {queues} queues")]
    TopicExists { queues: u32 },
    #[error("there is no such consumer group")]
    UnknownGroup,
    #[error("the consumer group was deleted")]
    GroupDeleted,
    #[error("a name has 1 to 127 letters, digits or %|_-")]
    InvalidName,
    #[error("{0}")]
    InvalidArgument(&'static str),
    #[error("the broker holds as many {0} as it may")]
    LimitReached(&'static str),
    #[error("the queue lives on shard {0}")]
    WrongShard(ShardId),
    #[error("too much is waiting for the disk")]
    Busy { retry_after: Nanos },
    #[error("a write of this shard's log failed; it acknowledges nothing until the broker is started again")]
    Poisoned,
    #[error("an earlier batch of this producer is missing; expected sequence {expected}")]
    OutOfSequence { expected: Sequence },
    #[error("the broker does not know this producer, and its sequence is not 0")]
    UnknownProducer,
    #[error("another batch, or one too old to compare, has this sequence")]
    SequenceConflict,
    #[error("the producer has a higher epoch in this queue")]
    ProducerFenced,
    #[error("this broker cannot give that durable level")]
    LevelUnavailable,
    #[error("the queue was cut or ends at offset {at}")]
    Truncated { at: QueueOffset },
    #[error("the queue keeps its messages from offset {first} on")]
    OffsetTooOld { first: QueueOffset },
    #[error("the connection has no such subscription")]
    UnknownSubscription,
    #[error("the group has no such member")]
    UnknownMember,
    #[error("the queue is held by another member of the group")]
    NotHolder,
}

impl Refusal {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::AskHome { otherwise, .. } => *otherwise,
            Self::UnknownTopic => ErrorCode::UnknownTopic,
            Self::UnknownQueue => ErrorCode::UnknownQueue,
            Self::TopicDeleted => ErrorCode::TopicDeleted,
            Self::TopicExists { .. } => ErrorCode::TopicExists,
            Self::UnknownGroup => ErrorCode::UnknownGroup,
            Self::GroupDeleted => ErrorCode::GroupDeleted,
            Self::InvalidName => ErrorCode::InvalidName,
            Self::InvalidArgument(_) => ErrorCode::InvalidArgument,
            Self::LimitReached(_) => ErrorCode::LimitReached,
            Self::WrongShard(_) => ErrorCode::WrongShard,
            Self::LookUp(_) | Self::Busy { .. } => ErrorCode::Busy,
            Self::Poisoned => ErrorCode::Poisoned,
            Self::OutOfSequence { .. } => ErrorCode::OutOfSequence,
            Self::UnknownProducer => ErrorCode::UnknownProducer,
            Self::SequenceConflict => ErrorCode::SequenceConflict,
            Self::ProducerFenced => ErrorCode::ProducerFenced,
            Self::LevelUnavailable => ErrorCode::LevelUnavailable,
            Self::Truncated { .. } => ErrorCode::Truncated,
            Self::OffsetTooOld { .. } => ErrorCode::OffsetTooOld,
            Self::UnknownSubscription => ErrorCode::UnknownSubscription,
            Self::UnknownMember => ErrorCode::UnknownMember,
            Self::NotHolder => ErrorCode::NotHolder,
        }
    }

    /// What the error answer carries beside code and sentence.
    pub fn detail(&self) -> ErrorDetail {
        let none = ErrorDetail::default();
        match self {
            Self::OutOfSequence { expected } => ErrorDetail { expected_sequence: Some(expected.0), ..none },
            Self::UnknownProducer => ErrorDetail { expected_sequence: Some(0), ..none },
            Self::Truncated { at } => ErrorDetail { offset: Some(at.0), ..none },
            Self::OffsetTooOld { first } => ErrorDetail { offset: Some(first.0), ..none },
            Self::WrongShard(shard) => ErrorDetail { shard: Some(u64::from(shard.0)), ..none },
            Self::Busy { retry_after } => ErrorDetail { retry_after_ns: Some(retry_after.0), ..none },
            _ => none,
        }
    }
}
