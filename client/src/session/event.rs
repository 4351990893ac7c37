//! What comes from a broker. Events borrow from the receive buffer; nothing is copied.

use peregrine_protocol::ids::{Correlation, MemberId, SubscriptionId};
use peregrine_protocol::message::{Answer, Assignment, Deliver, ErrorAnswer, ProduceAnswer};

use super::BrokerInfo;
use crate::error::{Error, Refusal, Result};

/// What the bytes received so far hold.
#[derive(Debug)]
pub enum Received<'a> {
    /// One event, which took the first `len` bytes.
    Event {
        /// What came.
        event: Event<'a>,
        /// Bytes to drop from the receive buffer.
        len: usize,
    },
    /// At least so many bytes more must come before another call makes sense.
    Missing(usize),
}

/// One thing that the broker said.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The hello was answered: requests may be sent.
    Ready(BrokerInfo),
    /// A batch was stored.
    Produced {
        /// Of the produce request.
        correlation: Correlation,
        /// Where it stands.
        answer: ProduceAnswer,
    },
    /// A batch for a subscription.
    Delivered(Deliver<'a>),
    /// The queue of a subscription is to go to another member of the group.
    Revoked(SubscriptionId),
    /// The queues of a member of a group.
    Assigned(Assignment<'a>),
    /// The answer to any other request.
    Answered {
        /// Of the request.
        correlation: Correlation,
        /// Never `Hello`, `Produce`, `Error`, nor what is pushed.
        answer: Answer<'a>,
    },
    /// The broker said no to a request.
    Refused {
        /// Of the request.
        correlation: Correlation,
        /// Why.
        error: ErrorAnswer<'a>,
    },
    /// A subscription has ended.
    Ended {
        /// Which.
        subscription: SubscriptionId,
        /// Why.
        error: ErrorAnswer<'a>,
    },
    /// A membership in a group has ended.
    Dismissed {
        /// Whose.
        member: MemberId,
        /// Why.
        error: ErrorAnswer<'a>,
    },
}

impl<'a> Event<'a> {
    /// An error frame: of a request, of a subscription, of a member, or of the connection, which it ends.
    pub(super) fn of_error(correlation: Correlation, error: ErrorAnswer<'a>) -> Result<Self> {
        match (error.detail.subscription, error.detail.member) {
            _ if correlation.0 != 0 => Ok(Self::Refused { correlation, error }),
            (Some(subscription), _) => Ok(Self::Ended { subscription: SubscriptionId(subscription), error }),
            (None, Some(member)) => Ok(Self::Dismissed { member: MemberId(member), error }),
            (None, None) => Err(Error::from(Refusal::from(&error))),
        }
    }
}

impl From<&ErrorAnswer<'_>> for Refusal {
    fn from(error: &ErrorAnswer<'_>) -> Self {
        Self { number: error.code, retriable: error.retriable, sentence: error.sentence.into(), detail: error.detail }
    }
}
