//! The table of errors that go over the wire: number, name, whether the same request may succeed later, sentence.
//!
//! Numbers are part of the protocol: one is never given a second meaning. A client that meets a number that it does not know
//! still has the retriable flag and the sentence, which travel with it.

use std::fmt;

macro_rules! error_table {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $retriable:expr, $sentence:literal;)*) => {
        /// What went wrong, as a number on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* #[doc = $sentence] $name = $number,)*
        }

        impl ErrorCode {
            /// All codes, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Whether the same request, sent again unchanged, may succeed.
            pub const fn is_retriable(self) -> bool {
                match self {
                    $(Self::$name => $retriable,)*
                }
            }

            /// The general sentence; an answer may carry a more exact one.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }
        }
    };
}

const RETRIABLE: bool = true;
const FINAL: bool = false;

error_table! {
    // The frame itself.
    UnknownKind = 1, FINAL, "this broker does not know that kind of request";
    UnknownVersion = 2, FINAL, "this broker does not speak that version of the protocol";
    /// The connection is closed after this answer.
    Malformed = 3, FINAL, "the frame does not follow the protocol";
    TooLarge = 4, FINAL, "the message, batch or frame is larger than this broker's limit";
    HelloExpected = 5, FINAL, "a connection begins with one hello and waits for its answer";
    UnsupportedMechanism = 6, FINAL, "this broker does not offer that authentication mechanism";
    InvalidArgument = 7, FINAL, "a field of the request is out of its range";
    LimitReached = 8, FINAL, "a limit of this broker is reached";

    // What exists.
    UnknownTopic = 20, FINAL, "there is no such topic";
    UnknownQueue = 21, FINAL, "the topic has no such queue";
    TopicDeleted = 22, FINAL, "the topic was deleted";
    TopicExists = 23, FINAL, "a topic of that name exists with another number of queues or another retention";
    InvalidName = 24, FINAL, "a name has 1 to 127 letters, digits or %|_-";
    /// Carries the shard.
    WrongShard = 25, RETRIABLE, "the queue lives on another shard";
    UnknownGroup = 26, FINAL, "there is no such consumer group";
    GroupDeleted = 27, FINAL, "the consumer group was deleted";
    GroupInUse = 28, FINAL, "the consumer group has members";
    /// There never was one, another one has its place, or it is not to be seen yet.
    UnknownMessage = 29, FINAL, "there is no such message";
    MessageTooOld = 30, FINAL, "the message is no longer kept";

    // The state of the shard.
    /// Carries the time to wait.
    Busy = 40, RETRIABLE, "the broker has no room for this now";
    /// For a batch that was taken in, the outcome is unknown until the same sequence is sent again.
    Poisoned = 41, RETRIABLE, "a write of this shard's log failed; it acknowledges nothing until the broker is started again";
    DiskFull = 42, RETRIABLE, "the data directory's file system is full";
    ShuttingDown = 43, RETRIABLE, "the broker is shutting down";
    Damaged = 44, FINAL, "the log is damaged at that place";

    // Producing.
    /// Carries the expected sequence.
    OutOfSequence = 60, RETRIABLE, "an earlier batch of this producer is missing";
    /// Carries the expected sequence, 0.
    UnknownProducer = 61, FINAL, "the broker does not know this producer, and its sequence is not 0";
    SequenceConflict = 62, FINAL, "another batch, or one too old to compare, has this sequence";
    ProducerFenced = 63, FINAL, "the producer has a higher epoch in this queue";
    LevelUnavailable = 64, FINAL, "this broker cannot give that durable level";
    CorruptPayload = 65, FINAL, "the payload's checksum or its records are wrong";

    // Consuming.
    /// Carries the offset up to which the asker's epoch is valid.
    Truncated = 80, FINAL, "the queue was cut below that offset, or ends before it";
    NotHolder = 81, FINAL, "the message or queue is held by another consumer";
    UnknownSubscription = 82, FINAL, "the connection has no such subscription";
    /// Ends a subscription of a group; another one goes on where the offset was set.
    OffsetReset = 84, RETRIABLE, "the group's offset in the queue was set; subscribe again";
    /// The client joins again.
    UnknownMember = 85, FINAL, "the group has no such member";
    MemberFenced = 86, FINAL, "another consumer joined the group under this name";
    /// Carries the first offset that is kept. Ends a subscription too, which may go on from there.
    OffsetTooOld = 87, FINAL, "the queue no longer keeps the messages at that offset";
}

impl ErrorCode {
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an error answer may carry beside code and sentence, each for the codes that say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorDetail {
    /// `OutOfSequence`, `UnknownProducer`: the sequence that would be accepted.
    pub expected_sequence: Option<u64>,
    /// `Truncated`: the queue offset up to which the asker's epoch is valid. `OffsetTooOld`: the first that the queue still keeps.
    pub offset: Option<u64>,
    /// `WrongShard`: where the queue lives.
    pub shard: Option<u64>,
    /// `Busy`: nanoseconds after which another try makes sense.
    pub retry_after_ns: Option<u64>,
    /// Any code: the subscription that ends with this error; such an error is pushed with correlation 0.
    pub subscription: Option<u64>,
    /// `MemberFenced`, `GroupDeleted`: the member that ends with this error; such an error is pushed with correlation 0.
    pub member: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_lead_back() {
        assert!(ErrorCode::ALL.is_sorted_by(|a, b| a.number() < b.number()));
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(code));
            assert!(
                !code.sentence().ends_with('.') && !code.sentence().is_empty(),
                "{code}: one sentence, no full stop"
            );
        }
        assert_eq!(ErrorCode::from_number(0), None);
    }

    #[test]
    fn retriable_are_those_that_the_design_names() {
        use ErrorCode::*;
        for code in [Busy, Poisoned, DiskFull, OutOfSequence, OffsetReset] {
            assert!(code.is_retriable(), "{code}");
        }
        for code in [
            TopicDeleted,
            UnknownProducer,
            SequenceConflict,
            ProducerFenced,
            Truncated,
            NotHolder,
            OffsetTooOld,
            MemberFenced,
        ] {
            assert!(!code.is_retriable(), "{code}");
        }
    }
}
