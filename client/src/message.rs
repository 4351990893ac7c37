//! Messages as applications see them: what is sent, and what is received.
//!
//! A received message borrows nothing and copies nothing: its parts are slices of the batch that it came in, which lives as long as
//! any of them.

use std::sync::Arc;

use bytes::Bytes;
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{Codec, DirectoryId};
use peregrine_protocol::ids::{DurableLevel, Epoch, MessageId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{BatchHead, FoundHead};
use peregrine_protocol::record::{Batch, Record, RecordDraft, SectionNumber, push_property};

use crate::error::{Error, Result};
use crate::group::Token;

/// A message to send.
///
/// ```
/// use peregrine_client::Message;
///
/// let message = Message::new("42 apples").key("customer-7").tag("fruit").property("origin", "orchard");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    body: Bytes,
    key: Option<Bytes>,
    tag: Option<String>,
    properties: Vec<u8>,
    /// A property did not fit its field.
    is_oversized: bool,
    queue: Option<QueueId>,
    level: Option<DurableLevel>,
}

impl Message {
    /// A message of these bytes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the key. Messages of one key go to one queue and stay in order.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the tag that consumers may filter by.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// Adds a property. Sending fails where its name or its value is longer than 65,535 bytes.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.is_oversized |= !push_property(&mut self.properties, name, value);
        self
    }

    /// Sends to this queue, whatever the key says.
    pub fn queue(mut self, queue: QueueId) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Asks for this durable level instead of the producer's.
    pub fn level(mut self, level: DurableLevel) -> Self {
        self.level = Some(level);
        self
    }

    /// Whether it can be sent at all.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_oversized {
            return Err(Error::invalid("a property's name and value have at most 65,535 bytes each"));
        }
        Ok(())
    }

    pub(crate) fn chosen_queue(&self) -> Option<QueueId> {
        self.queue
    }

    pub(crate) fn chosen_level(&self) -> Option<DurableLevel> {
        self.level
    }

    pub(crate) fn key_bytes(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    pub(crate) fn draft(&self, born_time: Nanos) -> RecordDraft<'_> {
        RecordDraft {
            key: self.key.as_deref(),
            tag: self.tag.as_deref(),
            properties: (!self.properties.is_empty()).then_some(&self.properties[..]),
            body: &self.body,
            born_time: Some(born_time),
            ..RecordDraft::default()
        }
    }
}

/// A message received.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The topic that it came from.
    pub topic: Arc<str>,
    /// The queue that it came from.
    pub queue: QueueId,
    /// Its place in that queue.
    pub offset: QueueOffset,
    /// The epoch of the log that it stands in: with the offset, what to go on from.
    pub epoch: Epoch,
    /// When the broker stored it, in nanoseconds since the Unix epoch.
    pub store_time: Nanos,
    /// When the producer made it, if it said so.
    pub born_time: Option<Nanos>,
    /// Its id in the whole broker, for ever: what [`crate::Client::get_message`] takes.
    pub id: MessageLocator,
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The tag, if any.
    pub tag: Option<String>,
    /// Names and values.
    pub properties: Vec<(String, String)>,
    /// The message itself.
    pub body: Bytes,
    /// To a member of a group: 1 where this is the first delivery of its batch to the group, 2 for the second, and so on; above 1, an
    /// earlier one was not acknowledged. To a reader: 0.
    pub attempt: u16,
    /// What acknowledges it.
    pub(crate) token: Option<Token>,
}

/// A batch as it came, before it is taken apart.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedBatch {
    /// Where its receiver has several.
    pub topic: Option<TopicId>,
    pub queue: QueueId,
    pub shard: ShardId,
    pub head: BatchHead,
    pub payload: Bytes,
    /// Messages from here on are not wanted.
    pub end: Option<QueueOffset>,
}

impl ReceivedBatch {
    /// Messages in it that the reader has not had.
    pub fn wanted(&self) -> u64 {
        self.head.end_offset() - self.head.first_wanted
    }

    /// Leaves out what stands at `end` and behind it.
    pub fn until(mut self, end: QueueOffset) -> Self {
        self.end = Some(end);
        self
    }

    /// Checks the payload's checksum and every record's, and answers the wanted messages in order. `directory`: the broker's.
    pub fn messages(&self, topic: &Arc<str>, directory: DirectoryId) -> Result<Vec<Delivery>> {
        let corrupt = Error::Corrupt { queue: self.queue, offset: self.head.base_offset };
        if self.head.flags.codec() != Codec::None {
            return Err(Error::protocol("a batch that is compressed in a way that this client does not know"));
        }
        if crc32(&self.payload) != self.head.payload_crc {
            return Err(corrupt);
        }
        let batch = Batch::new(&self.payload, self.head.record_count).map_err(|_| corrupt.clone())?;
        let skipped = self.head.first_wanted.0.saturating_sub(self.head.base_offset.0) as usize;
        (0..)
            .zip(batch.records())
            .skip(skipped)
            .take_while(|(index, _)| self.end.is_none_or(|end| self.head.base_offset + *index < end))
            .map(|(index, record)| self.message(topic, directory, index, &record.map_err(|_| corrupt.clone())?))
            .collect()
    }

    fn message(&self, topic: &Arc<str>, directory: DirectoryId, index: u64, record: &Record<'_>) -> Result<Delivery> {
        let offset = self.head.base_offset + index;
        let place = Place {
            topic,
            queue: self.queue,
            offset,
            epoch: self.head.epoch,
            store_time: self.head.store_time,
            id: self.head.message_id(self.shard, record.payload_offset()),
            attempt: self.head.attempt,
        };
        place.delivery(directory, &self.payload, record).ok_or(Error::Corrupt { queue: self.queue, offset })
    }
}

/// Where a message stands.
struct Place<'a> {
    topic: &'a Arc<str>,
    queue: QueueId,
    offset: QueueOffset,
    epoch: Epoch,
    store_time: Nanos,
    id: Option<MessageId>,
    attempt: u16,
}

impl Place<'_> {
    /// The message of a record that lies in `bytes`; none where it makes no sense.
    fn delivery(self, directory: DirectoryId, bytes: &Bytes, record: &Record<'_>) -> Option<Delivery> {
        let slice = |part: &[u8]| bytes.slice_ref(part);
        let mut properties = Vec::new();
        for pair in record.properties() {
            let (name, value) = pair.ok()?;
            properties.push((name.to_owned(), value.to_owned()));
        }
        Some(Delivery {
            topic: self.topic.clone(),
            queue: self.queue,
            offset: self.offset,
            epoch: self.epoch,
            store_time: self.store_time,
            born_time: record.instant(SectionNumber::BornTime),
            id: MessageLocator::new(directory, self.id?, record.checksum()),
            key: record.key().map(slice),
            tag: record.tag().map(str::to_owned),
            properties,
            body: record.section(SectionNumber::Body).map(slice).unwrap_or_default(),
            attempt: self.attempt,
            token: None,
        })
    }
}

/// A message that was looked up, with its record filled as a batch holds it.
pub(crate) fn found(
    topic: &Arc<str>,
    shard: ShardId,
    directory: DirectoryId,
    head: &FoundHead,
    record: &[u8],
) -> Result<Delivery> {
    let corrupt = || Error::Corrupt { queue: head.queue, offset: head.offset };
    let bytes = Bytes::copy_from_slice(record);
    let batch = Batch::new(&bytes, 1).map_err(|_| corrupt())?;
    let record = batch.records().next().ok_or_else(corrupt)?.map_err(|_| corrupt())?;
    let &FoundHead { queue, offset, epoch, position, store_time, .. } = head;
    let id = Some(MessageId::new(shard, position));
    let place = Place { topic, queue, offset, epoch, store_time, id, attempt: 0 };
    place.delivery(directory, &bytes, &record).ok_or_else(corrupt)
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::entry::EntryFlags;
    use peregrine_protocol::ids::LogPosition;

    use super::*;

    fn batch(bodies: &[&str]) -> ReceivedBatch {
        let mut payload = Vec::new();
        for body in bodies {
            Message::new(body.to_string()).key("k").property("a", "b").draft(Nanos(5)).append_to(&mut payload);
        }
        ReceivedBatch {
            topic: None,
            queue: QueueId(3),
            shard: ShardId(1),
            head: BatchHead {
                base_offset: QueueOffset(10),
                first_wanted: QueueOffset(10),
                record_count: bodies.len() as u32,
                epoch: Epoch(2),
                position: LogPosition(4096),
                store_time: Nanos(9),
                payload_crc: crc32(&payload),
                payload_length: payload.len() as u32,
                flags: EntryFlags::for_level(DurableLevel::Memory),
                attempt: 0,
            },
            payload: payload.into(),
            end: None,
        }
    }

    #[test]
    fn a_batch_gives_its_wanted_messages_with_their_offsets() {
        let mut received = batch(&["one", "", "three"]);
        let messages = received.messages(&"t".into(), DirectoryId(1)).expect("whole");
        assert_eq!(messages.iter().map(|m| m.offset.0).collect::<Vec<_>>(), [10, 11, 12]);
        assert_eq!(messages[2].body, "three");
        assert_eq!(messages[1].body, "");
        assert_eq!(messages[0].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(messages[0].properties, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(messages[0].id.id, MessageId::new(ShardId(1), LogPosition(4096 + 96)));
        received.head.first_wanted = QueueOffset(12);
        let messages = received.messages(&"t".into(), DirectoryId(1)).expect("whole");
        assert_eq!((messages.len(), messages[0].offset, received.wanted()), (1, QueueOffset(12), 1));
    }

    #[test]
    fn any_flipped_byte_is_found() {
        let whole = batch(&["one", "two"]);
        for at in 0..whole.payload.len() {
            let mut bytes = whole.payload.to_vec();
            bytes[at] ^= 0x10;
            let flipped = ReceivedBatch { payload: bytes.into(), ..whole.clone() };
            assert!(matches!(flipped.messages(&"t".into(), DirectoryId(1)), Err(Error::Corrupt { .. })), "byte {at}");
        }
    }
}
