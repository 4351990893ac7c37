//! Reading without a subscription: fetch from a position in a queue, and offsets by time, earliest and latest.

use super::DecodeError;
use super::parts::{PartHead, Parts, PartsBody};
use super::produce::BatchHead;
use super::table::{self, Envelope};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, Nanos, QueueId, QueueOffset, TopicId};
use crate::limits::FETCH_BATCHES_MAX;

/// Where to begin in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first message that is still there.
    Earliest,
    /// Behind the last visible message.
    Latest,
    /// That offset, if the epoch still holds there; [`Epoch::ANY`] for whatever is there now.
    Offset { epoch: Epoch, offset: QueueOffset },
    /// The first message stored at or after that instant.
    Time(Nanos),
}

impl Start {
    pub(super) fn from_wire(start: u8, epoch: u64, value: u64) -> Result<Self, DecodeError> {
        match start {
            1 => Ok(Self::Earliest),
            2 => Ok(Self::Latest),
            3 => Ok(Self::Offset { epoch: Epoch(epoch), offset: QueueOffset(value) }),
            4 => Ok(Self::Time(Nanos(value))),
            _ => Err(DecodeError::Field("start")),
        }
    }

    pub(super) fn to_wire(self) -> (u8, u64, u64) {
        match self {
            Self::Earliest => (1, 0, 0),
            Self::Latest => (2, 0, 0),
            Self::Offset { epoch, offset } => (3, epoch.0, offset.0),
            Self::Time(instant) => (4, 0, instant.0),
        }
    }
}

/// Asks once for batches from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub topic: TopicId,
    pub queue: QueueId,
    /// Of the offset; [`Epoch::ANY`] for whatever is there now.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// The answer stops when it holds so many messages or payload bytes; the first batch always fits. Both above 0.
    pub max_messages: u32,
    pub max_bytes: u32,
}

impl Fetch {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Fetch<'_>>(header)?;
        if table.max_messages() == 0 || table.max_bytes() == 0 {
            return Err(DecodeError::Field("max_messages or max_bytes"));
        }
        Ok(Self {
            topic: TopicId(table.topic()),
            queue: QueueId(table.queue()),
            epoch: Epoch(table.epoch()),
            offset: QueueOffset(table.offset()),
            max_messages: table.max_messages(),
            max_bytes: table.max_bytes(),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::Fetch, correlation).write(out, |builder| {
            let args = wire::FetchArgs {
                topic: self.topic.0,
                queue: self.queue.0,
                epoch: self.epoch.0,
                offset: self.offset.0,
                max_messages: self.max_messages,
                max_bytes: self.max_bytes,
            };
            wire::Fetch::create(builder, &args)
        });
    }
}

/// The batches found, none where the offset is the visible end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchAnswer<'a> {
    /// The visible end of the queue.
    pub end: QueueOffset,
    pub batches: FetchedBatches<'a>,
}

impl<'a> FetchAnswer<'a> {
    pub fn decode(header: &[u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::FetchAnswer<'_>>(header)?;
        let batches = FetchedBatches::check(body, table.count())?;
        Ok(Self { end: QueueOffset(table.end()), batches })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let envelope = Envelope { body: self.batches.body(), ..Envelope::answer(Kind::Fetch, correlation) };
        envelope.write(out, |builder| {
            let args = wire::FetchAnswerArgs { end: self.end.0, count: self.batches.count() };
            wire::FetchAnswer::create(builder, &args)
        });
    }
}

impl PartHead for BatchHead {
    const WIRE_LEN: usize = Self::LEN;
    const PARTS_MAX: u32 = FETCH_BATCHES_MAX;

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_wire(&wire::BatchHead(bytes.try_into().map_err(|_| DecodeError::Body)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_wire().0);
    }

    fn announced(&self) -> usize {
        self.payload_length as usize
    }
}

/// Batches of a fetch answer in the making, each with its payload.
pub type FetchBody = PartsBody<BatchHead>;

/// Batches in a fetch answer, in the order of their offsets.
pub type FetchedBatches<'a> = Parts<'a, BatchHead>;

/// Asks for the offset of a place in a queue. [`Start::Offset`] asks whether that offset is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUp {
    pub topic: TopicId,
    pub queue: QueueId,
    pub start: Start,
}

impl LookUp {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::LookUp<'_>>(header)?;
        Ok(Self {
            topic: TopicId(table.topic()),
            queue: QueueId(table.queue()),
            start: Start::from_wire(table.start(), table.start_epoch(), table.start_value())?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let (start, start_epoch, start_value) = self.start.to_wire();
        Envelope::request(Kind::LookUp, correlation).write(out, |builder| {
            let (topic, queue) = (self.topic.0, self.queue.0);
            wire::LookUp::create(builder, &wire::LookUpArgs { topic, queue, start, start_epoch, start_value })
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUpAnswer {
    /// The place asked for, and its epoch.
    pub offset: QueueOffset,
    pub epoch: Epoch,
    /// The first offset that can be read.
    pub start: QueueOffset,
    /// The visible end.
    pub end: QueueOffset,
}

impl LookUpAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::LookUpAnswer<'_>>(header)?;
        Ok(Self {
            offset: QueueOffset(table.offset()),
            epoch: Epoch(table.epoch()),
            start: QueueOffset(table.start()),
            end: QueueOffset(table.end()),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::LookUp, correlation).write(out, |builder| {
            let args = wire::LookUpAnswerArgs {
                offset: self.offset.0,
                epoch: self.epoch.0,
                start: self.start.0,
                end: self.end.0,
            };
            wire::LookUpAnswer::create(builder, &args)
        });
    }
}
