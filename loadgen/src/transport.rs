//! What a generator drives: something that takes messages and tells what became of them.
//!
//! The real one is [`crate::wire`], a set of connections to a broker; [`crate::floor::echo`] speaks to a bare echo; the
//! tests have one in memory that drops, duplicates, swaps and damages messages to prove that the account sees it.

use crate::clock::Ns;
use crate::workload::Message;

/// What became of an offered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is on its way; one [`Events::acknowledged`] or [`Events::refused`] will follow.
    Taken,
    /// There is no room for it now; offer it again after a turn.
    Full,
}

/// Why a broker did not take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same message may be sent again, not before this many nanoseconds have passed.
    Retry {
        /// How long to wait.
        after: Ns,
    },
    /// It will never be taken.
    Final,
}

/// Where a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// For whom: the readers (0), or which group.
    pub audience: u32,
    /// The queue, counted over all topics of the run.
    pub queue: u32,
    /// The subscription, unique in the audience: another one means that the queue has changed hands.
    pub subscription: u64,
    /// The how many-th delivery to the group this is, as the broker says; 0 for readers.
    pub attempt: u16,
}

impl Origin {
    /// To a reader of `queue`.
    pub fn reader(queue: u32) -> Self {
        Self { audience: 0, queue, subscription: 0, attempt: 0 }
    }
}

/// Who learns what a turn of the transport brought. `now` is when the bytes were received.
pub trait Events {
    /// Message `index` reached its durable level.
    fn acknowledged(&mut self, index: u64, now: Ns);
    /// Message `index` was not taken.
    fn refused(&mut self, index: u64, refusal: Refusal, now: Ns);
    /// `body` was delivered.
    fn delivered(&mut self, origin: &Origin, body: &[u8], now: Ns);
}

/// A set of connections, driven by one thread.
pub trait Transport {
    /// Takes a message or says that there is no room. Neither blocks nor, once warm, allocates.
    fn offer(&mut self, message: &Message<'_>) -> Result<Offer, TransportError>;

    /// Sends what was taken, then reports what came. With `wait_until` it may sleep until something comes or that instant
    /// is there; without, it returns at once.
    fn turn(&mut self, wait_until: Option<Ns>, events: &mut impl Events) -> Result<(), TransportError>;

    /// Takes leave of the other side, where it would otherwise wait for more. Called once, when the run is over.
    fn close(&mut self, _events: &mut impl Events) -> Result<(), TransportError> {
        Ok(())
    }
}

/// Why a transport cannot go on. The run ends with it and is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The broker closed a connection.
    #[error("the broker closed {0}")]
    Closed(String),
    /// The system refused an operation on a connection.
    #[error("{context}: {source}")]
    Io {
        /// What was attempted.
        context: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The broker sent what the protocol does not allow, or an error that concerns no single message.
    #[error("{0}")]
    Protocol(String),
}
