//! Looking messages up: one by its id, those of a key, and the messages found.

use super::DecodeError;
use super::parts::{PartHead, Parts, PartsBody};
use super::table::{self, Envelope};
use crate::entry::EntryFlags;
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, LogPosition, MessageId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use crate::limits::{FIND_KEY_MAX, FOUND_MAX, RECORD_ALIGN, RECORD_HEADER_LEN};
use crate::locator::MessageLocator;
use crate::name::check_name;

/// Asks for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetMessage {
    pub message: MessageLocator,
}

impl GetMessage {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::GetMessage<'_>>(header)?;
        Ok(Self { message: MessageLocator { id: MessageId(table.id()), check: table.check() } })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::GetMessage, correlation).write(out, |builder| {
            let MessageLocator { id, check } = self.message;
            wire::GetMessage::create(builder, &wire::GetMessageArgs { id: id.0, check })
        });
    }
}

/// Asks for the messages of a topic that have a key, and that the shard that is asked owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FindMessages<'a> {
    pub topic: TopicId,
    /// At most [`FIND_KEY_MAX`] bytes.
    pub key: &'a [u8],
    /// Stored at or after this instant,
    pub begin: Nanos,
    /// and before this one.
    pub end: Nanos,
    /// Where to go on; 0, or what an answer said.
    pub from: LogPosition,
    /// Messages of one answer, at most [`FOUND_MAX`]; 0 asks for as many.
    pub limit: u32,
}

impl<'a> FindMessages<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::FindMessages<'_>>(header)?;
        let key = table.key().bytes();
        if key.len() > FIND_KEY_MAX {
            return Err(DecodeError::Field("key"));
        }
        Ok(Self {
            topic: TopicId(table.topic()),
            key,
            begin: Nanos(table.begin()),
            end: Nanos(table.end()),
            from: LogPosition(table.from()),
            limit: table::page_limit(table.limit(), FOUND_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::FindMessages, correlation).write(out, |builder| {
            let args = wire::FindMessagesArgs {
                topic: self.topic.0,
                key: Some(builder.create_vector(self.key)),
                begin: self.begin.0,
                end: self.end.0,
                from: self.from.0,
                limit: self.limit,
            };
            wire::FindMessages::create(builder, &args)
        });
    }
}

/// What was found, as both requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub topic: TopicId,
    /// The topic's name.
    pub name: &'a str,
    /// Whose log the messages stand in.
    pub shard: ShardId,
    pub messages: FoundMessages<'a>,
    /// Where to go on; none where all was looked at.
    pub next: Option<LogPosition>,
}

impl<'a> Found<'a> {
    pub fn decode(header: &'a [u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Found<'_>>(header)?;
        check_name(table.name())?;
        Ok(Self {
            topic: TopicId(table.topic()),
            name: table.name(),
            shard: ShardId(table.shard()),
            messages: FoundMessages::check(body, table.count())?,
            next: table.next().map(LogPosition),
        })
    }

    /// `kind`: of the request.
    pub fn encode(&self, kind: Kind, correlation: Correlation, out: &mut Vec<u8>) {
        let envelope = Envelope { body: self.messages.body(), ..Envelope::answer(kind, correlation) };
        envelope.write(out, |builder| {
            let args = wire::FoundArgs {
                topic: self.topic.0,
                name: Some(builder.create_string(self.name)),
                shard: self.shard.0,
                count: self.messages.count(),
                next: self.next.map(|next| next.0),
            };
            wire::Found::create(builder, &args)
        });
    }
}

/// What an answer says of a message beside its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundHead {
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub epoch: Epoch,
    /// Of the record in its shard's log.
    pub position: LogPosition,
    pub store_time: Nanos,
    pub record_length: u32,
    /// Of the entry.
    pub flags: EntryFlags,
}

impl FoundHead {
    /// Bytes on the wire.
    pub const LEN: usize = 48;

    fn from_wire(head: &wire::FoundHead) -> Result<Self, DecodeError> {
        if head.reserved_1() != 0 || head.reserved_2() != 0 {
            return Err(DecodeError::Header);
        }
        let position = head.position();
        if position >= MessageId::POSITION_LIMIT || !position.is_multiple_of(RECORD_ALIGN as u64) {
            return Err(DecodeError::Field("position"));
        }
        if (head.record_length() as usize) < RECORD_HEADER_LEN {
            return Err(DecodeError::Header);
        }
        Ok(Self {
            queue: QueueId(head.queue()),
            offset: QueueOffset(head.offset()),
            epoch: Epoch(head.epoch()),
            position: LogPosition(position),
            store_time: Nanos(head.store_time()),
            record_length: head.record_length(),
            flags: EntryFlags::from_bits(head.flags()).ok_or(DecodeError::Field("flags"))?,
        })
    }

    fn to_wire(self) -> wire::FoundHead {
        wire::FoundHead::new(
            self.offset.0,
            self.epoch.0,
            self.position.0,
            self.store_time.0,
            self.queue.0,
            self.record_length,
            self.flags.bits(),
            0,
            0,
        )
    }
}

impl PartHead for FoundHead {
    const WIRE_LEN: usize = Self::LEN;
    const PARTS_MAX: u32 = FOUND_MAX;

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_wire(&wire::FoundHead(bytes.try_into().map_err(|_| DecodeError::Body)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_wire().0);
    }

    fn announced(&self) -> usize {
        self.record_length as usize
    }
}

/// Messages in an answer in the making, each with its record, without filling.
pub type FoundBody = PartsBody<FoundHead>;

/// Messages in an answer, in the order of the log. A batch holds its records filled.
pub type FoundMessages<'a> = Parts<'a, FoundHead>;
