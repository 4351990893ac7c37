//! Newtypes for every number that must not be mixed up with another: positions, offsets, epochs, ids.
//!
//! All are plain integers on the wire and on disk (little endian), `Copy`, ordered, and open (`pub` inner field): their
//! worth is that a queue offset cannot be handed in where a log position is wanted.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use crate::limits::SHARDS_MAX;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

/// A newtype that counts along a line: `a + n` moves forward, `a - b` is a distance.
macro_rules! line {
    ($name:ident) => {
        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, distance: u64) -> Self {
                Self(self.0 + distance)
            }
        }
        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, distance: u64) {
                self.0 += distance;
            }
        }
        impl Sub for $name {
            type Output = u64;
            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }
    };
}

newtype!(
    /// One of the broker's shards, 0-based; below [`SHARDS_MAX`].
    ShardId(u16)
);
newtype!(
    /// A topic, for ever: ids are never reused. 0 is no topic.
    TopicId(u64)
);
newtype!(
    /// A consumer group, for ever: ids are never reused, nor shared with topics. 0 is no group.
    GroupId(u64)
);
newtype!(
    /// A member of a group from its join to its end, chosen by the group's home shard; one from before the home's last start is
    /// never chosen again. 0 is no member.
    MemberId(u64)
);
newtype!(
    /// A queue of a topic, 0-based.
    QueueId(u32)
);
newtype!(
    /// The place of a message in its queue, dense from 0.
    QueueOffset(u64)
);
newtype!(
    /// A byte position in a shard's log.
    LogPosition(u64)
);
newtype!(
    /// A run of a shard: each start writes under a higher one. On the wire [`Epoch::ANY`] asks for whatever is there now.
    Epoch(u64)
);
newtype!(
    /// Chosen at random by a producer; 0 means that the producer is not idempotent.
    ProducerId(u64)
);
newtype!(
    /// The producer's own epoch within one queue; a higher one starts its sequence at 0 again.
    ProducerEpoch(u32)
);
newtype!(
    /// Counts the batches of one producer in one queue, dense from 0 within a producer epoch.
    Sequence(u64)
);
newtype!(
    /// Nanoseconds: since the Unix epoch where an instant is meant, a length of time where the name says so.
    Nanos(u64)
);
newtype!(
    /// Ties an answer to its request within a connection; chosen by the client.
    Correlation(u64)
);
newtype!(
    /// A subscription within a connection; chosen by the broker.
    SubscriptionId(u64)
);
newtype!(
    /// Where a record lies in the cluster's logs: 10 bits of shard, 54 bits of log position in units of 8 bytes.
    MessageId(u64)
);

line!(QueueOffset);
line!(LogPosition);
line!(Sequence);
line!(Nanos);

impl Epoch {
    /// In fetch, subscribe and ack: no expectation about the epoch.
    pub const ANY: Self = Self(u64::MAX);
}

impl ProducerId {
    /// A producer that does not ask for idempotence.
    pub const NONE: Self = Self(0);

    pub fn is_idempotent(self) -> bool {
        self != Self::NONE
    }
}

impl Nanos {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    pub const fn from_micros(micros: u64) -> Self {
        Self(micros * 1_000)
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000_000)
    }

    pub const fn saturating_sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub const fn to_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl From<Duration> for Nanos {
    /// A duration beyond 584 years becomes [`Nanos::MAX`].
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl MessageId {
    const POSITION_BITS: u32 = 54;
    /// A record's start is a multiple of this many bytes.
    const UNIT: u64 = 8;
    /// Records start below this position.
    pub const POSITION_LIMIT: u64 = Self::UNIT << Self::POSITION_BITS;

    /// The id of the record at `position` (a multiple of 8, below 2^57) of `shard`.
    pub fn new(shard: ShardId, position: LogPosition) -> Self {
        let units = position.0 / Self::UNIT;
        assert!(shard.0 < SHARDS_MAX, "a shard id is below {SHARDS_MAX}");
        assert!(position.0.is_multiple_of(Self::UNIT), "records start at multiples of 8");
        assert!(units >> Self::POSITION_BITS == 0, "a log ends before 2^57 bytes");
        Self((shard.0 as u64) << Self::POSITION_BITS | units)
    }

    /// The same of numbers that came from elsewhere.
    pub fn checked(shard: ShardId, position: LogPosition) -> Option<Self> {
        let fits = position.0 < Self::POSITION_LIMIT && position.0.is_multiple_of(Self::UNIT) && shard.0 < SHARDS_MAX;
        fits.then(|| Self::new(shard, position))
    }

    pub fn shard(self) -> ShardId {
        ShardId((self.0 >> Self::POSITION_BITS) as u16)
    }

    pub fn position(self) -> LogPosition {
        LogPosition((self.0 & ((1 << Self::POSITION_BITS) - 1)) * Self::UNIT)
    }
}

/// What an acknowledgement promises; each level includes the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DurableLevel {
    /// Survives kill -9 of the broker.
    Memory = 1,
    /// Survives power loss.
    #[default]
    Synced = 2,
    /// Survives the loss of a machine.
    Replicated = 3,
}

impl DurableLevel {
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Memory),
            2 => Some(Self::Synced),
            3 => Some(Self::Replicated),
            _ => None,
        }
    }

    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The word of the command line, the configuration and the metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Synced => "synced",
            Self::Replicated => "replicated",
        }
    }
}

impl fmt::Display for DurableLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl std::str::FromStr for DurableLevel {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        [Self::Memory, Self::Synced, Self::Replicated]
            .into_iter()
            .find(|level| level.word() == word)
            .ok_or_else(|| UnknownLevel(word.to_owned()))
    }
}

/// A word that names no durable level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no durable level; choose memory, synced or replicated")]
pub struct UnknownLevel(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_id_holds_the_largest_shard_and_position() {
        let position = LogPosition(((1 << 54) - 1) * 8);
        let id = MessageId::new(ShardId(SHARDS_MAX - 1), position);
        assert_eq!(id.0, u64::MAX);
        assert_eq!((id.shard(), id.position()), (ShardId(1023), position));
        let id = MessageId::new(ShardId(1), LogPosition(4096 + 96));
        assert_eq!((id.0, id.shard(), id.position()), (1 << 54 | 0x20C, ShardId(1), LogPosition(4192)));
    }

    #[test]
    fn levels_are_ordered_by_what_they_survive() {
        assert!(DurableLevel::Memory < DurableLevel::Synced && DurableLevel::Synced < DurableLevel::Replicated);
        for number in 0..=u8::MAX {
            if let Some(level) = DurableLevel::from_number(number) {
                assert_eq!(level.number(), number);
                assert_eq!(level.word().parse(), Ok(level));
            }
        }
        assert!("sync".parse::<DurableLevel>().is_err());
    }
}
