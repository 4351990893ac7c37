//! The one error of this crate. Each variant says in a sentence what happened; [`Error::is_retriable`] says whether the same call,
//! made again unchanged, may succeed.

use std::sync::Arc;

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{QueueId, QueueOffset};

/// Why a call to the broker did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made in the time allowed.
    #[error("cannot reach the broker at {broker}: {reason}")]
    Unreachable {
        /// As given by the caller.
        broker: String,
        /// What the last attempt met.
        reason: String,
    },
    /// The address now leads to a broker with another data directory or number of shards.
    #[error(
        "the broker at {broker} has another data directory than before; what this client knows does not hold there"
    )]
    Replaced {
        /// As given by the caller.
        broker: String,
    },
    /// The connection broke before the answer came; whether the request was carried out is unknown.
    #[error("the connection to the broker was lost before it answered")]
    ConnectionLost,
    /// The broker answered with an error.
    #[error("{0}")]
    Refused(Arc<Refusal>),
    /// The bytes that came are not the protocol's.
    #[error("the broker sent what the protocol does not allow: {0}")]
    Protocol(Arc<str>),
    /// The time set for a message or a call has passed.
    #[error("no answer in the time allowed{}", if *maybe_stored { "; the message may have been stored all the same" } else { "" })]
    TimedOut {
        /// The message was sent, so that it may stand in the log although nobody said so.
        maybe_stored: bool,
    },
    /// The queue's messages from an offset on were lost with the failure of an earlier run; reading goes on there.
    #[error("queue {queue} was cut at offset {at}: messages from there on that had been read before are gone")]
    Truncated {
        /// Which queue.
        queue: QueueId,
        /// The first offset that now means another message than before.
        at: QueueOffset,
    },
    /// The messages at the reader's place are no longer kept; reading goes on at the first that are.
    #[error("queue {queue} keeps its messages from offset {first} on: those before, which had not been read, are gone")]
    TooOld {
        /// Which queue.
        queue: QueueId,
        /// The first offset that the queue still keeps.
        first: QueueOffset,
    },
    /// A message does not match its checksum.
    #[error("the message at offset {offset} of queue {queue} does not match its checksum")]
    Corrupt {
        /// Which queue.
        queue: QueueId,
        /// First offset of the batch that is wrong.
        offset: QueueOffset,
    },
    /// The caller's argument cannot be right, whatever the broker says.
    #[error("{0}")]
    InvalidArgument(Arc<str>),
    /// The client, producer or reader was closed.
    #[error("it is closed")]
    Closed,
}

/// An error answer of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Number on the wire; one that this client does not know has no [`ErrorCode`].
    pub number: u16,
    /// Whether the broker says that the same request may succeed later.
    pub retriable: bool,
    /// The broker's sentence.
    pub sentence: Box<str>,
    /// What comes with some codes.
    pub detail: ErrorDetail,
}

impl Refusal {
    /// The code, if this client knows it.
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.number)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{} ({code})", self.sentence),
            None => write!(f, "{} (error {})", self.sentence, self.number),
        }
    }
}

impl Error {
    /// Whether the same call may succeed when made again. A message for which this is true may nevertheless have been stored, see
    /// [`Self::TimedOut`]; producers retry by themselves and without duplicates until their time is up.
    pub fn is_retriable(&self) -> bool {
        match self {
            // Behind a cut the reader goes on by itself.
            Self::Unreachable { .. }
            | Self::ConnectionLost
            | Self::TimedOut { .. }
            | Self::Truncated { .. }
            | Self::TooOld { .. } => true,
            Self::Refused(refusal) => refusal.retriable,
            Self::Replaced { .. }
            | Self::Protocol(_)
            | Self::Corrupt { .. }
            | Self::InvalidArgument(_)
            | Self::Closed => false,
        }
    }

    /// The broker's code, where the broker said no.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => refusal.code(),
            _ => None,
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into().into())
    }

    /// What the broker would say of a name that its metadata does not have.
    pub(crate) fn unknown_topic(name: &str) -> Self {
        Self::said_here(ErrorCode::UnknownTopic, format!("there is no topic \"{name}\""))
    }

    /// What the broker would say of a group that its listing does not have.
    pub(crate) fn unknown_group(name: &str) -> Self {
        Self::said_here(ErrorCode::UnknownGroup, format!("there is no consumer group \"{name}\""))
    }

    /// One of the broker's errors, found out by this client.
    pub(crate) fn said_here(code: ErrorCode, sentence: String) -> Self {
        let (number, retriable, sentence) = (code.number(), code.is_retriable(), sentence.into());
        Refusal { number, retriable, sentence, detail: ErrorDetail::default() }.into()
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument(what.into().into())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Arc::new(refusal))
    }
}

/// What the calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_is_one_and_says_its_subject() {
        let refusal =
            Refusal { number: 40, retriable: true, sentence: "no room".into(), detail: ErrorDetail::default() };
        assert_eq!(Error::from(refusal.clone()).to_string(), "no room (Busy)");
        assert!(Error::from(refusal.clone()).is_retriable());
        assert_eq!(Error::from(Refusal { number: 65_000, ..refusal }).to_string(), "no room (error 65000)");
        assert!(Error::TimedOut { maybe_stored: true }.to_string().contains("may have been stored"));
        assert!(!Error::TimedOut { maybe_stored: false }.to_string().contains("stored"));
    }
}
