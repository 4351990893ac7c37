//! The oracle of a simulation that sees the broker from outside: what was sent, where it was said or seen to stand, and what follows
//! for everything that comes later.
//!
//! ```text
//!   sent ─► acknowledged at (epoch, offset) ─┐
//!           seen at (epoch, offset) ─────────┴─► owed, until a crash that its level does not survive
//! ```
//! A message is owed from the moment that anybody was told of it: an acknowledgement and a delivery promise the same.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap};

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::ids::{DurableLevel, Epoch, LogPosition, Nanos, QueueId, QueueOffset, TopicId};
use peregrine_protocol::message::BatchHead;
use peregrine_protocol::record::Batch;

use super::message::{Message, Number};
use crate::simulator::{Violation, promise};

/// A queue, by its topic's id.
pub type Queue = (TopicId, QueueId);

/// Where a message stands, as somebody was told.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// Of its entry, and of its record in the payload.
    pub position: Option<(LogPosition, u32)>,
    pub store_time: Option<Nanos>,
    /// The strongest promise that was made of it.
    level: DurableLevel,
    /// The power cuts that the broker had seen who spoke of it last.
    power_cuts: u64,
    /// Whether readers may see it: it was seen, or acknowledged as synced.
    is_visible: bool,
}

/// One message that was handed to a producer.
#[derive(Clone, Debug)]
pub struct Sent {
    pub message: Message,
    pub queue: Queue,
    pub producer: usize,
    level: DurableLevel,
    acknowledged: bool,
    /// The newest is the one that counts.
    places: Vec<Place>,
}

impl Sent {
    pub fn place(&self) -> Option<&Place> {
        self.places.last()
    }
}

/// What a topic is to the oracle.
#[derive(Clone, Copy, Debug, Default)]
struct Topic {
    /// Its deletion was asked for.
    is_doomed: bool,
    age: Option<Nanos>,
}

/// What one who tells of a message knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub epoch: Epoch,
    pub offset: QueueOffset,
    pub position: Option<(LogPosition, u32)>,
    pub store_time: Option<Nanos>,
    pub level: DurableLevel,
    /// Of the connection that it came by.
    pub power_cuts: u64,
    pub is_visible: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: Vec<Sent>,
    slots: HashMap<(Queue, Epoch, QueueOffset), Number>,
    of_queue: BTreeMap<Queue, Vec<Number>>,
    topics: BTreeMap<TopicId, Topic>,
    power_cuts: u64,
    /// Shards give up nothing by themselves.
    shards_keep_all: bool,
}

impl Ledger {
    pub fn new(shards_keep_all: bool) -> Self {
        Self { shards_keep_all, ..Self::default() }
    }

    pub fn power_cuts(&self) -> u64 {
        self.power_cuts
    }

    pub fn power_was_cut(&mut self) {
        self.power_cuts += 1;
    }

    /// The broker was stopped as it wants to be: all that it had is on the device.
    pub fn was_stopped(&mut self) {
        let power_cuts = self.power_cuts;
        for place in self.sent.iter_mut().filter_map(|sent| sent.places.last_mut()) {
            if place.power_cuts == power_cuts {
                place.level = place.level.max(DurableLevel::Synced);
            }
        }
    }

    // Topics.

    pub fn topic_made(&mut self, topic: TopicId, age: Option<Nanos>) {
        self.topics.entry(topic).or_default().age = age;
    }

    /// From here on it may be gone.
    pub fn topic_doomed(&mut self, topic: TopicId) {
        self.topics.entry(topic).or_default().is_doomed = true;
    }

    pub fn is_doomed(&self, topic: TopicId) -> bool {
        self.topics.get(&topic).is_some_and(|topic| topic.is_doomed)
    }

    /// Whether nothing of the topic may be given up.
    pub fn keeps_all(&self, topic: TopicId) -> bool {
        self.shards_keep_all && self.topics.get(&topic).is_some_and(|topic| topic.age.is_none())
    }

    // What is sent, and told.

    pub fn next_number(&self) -> Number {
        self.sent.len() as Number
    }

    /// The message of [`Self::next_number`].
    pub fn sends(&mut self, message: Message, queue: Queue, producer: usize, level: DurableLevel) {
        self.of_queue.entry(queue).or_default().push(message.number);
        self.sent.push(Sent { message, queue, producer, level, acknowledged: false, places: Vec::new() });
    }

    pub fn sent(&self, number: Number) -> Option<&Sent> {
        self.sent.get(number as usize)
    }

    pub fn count(&self) -> u64 {
        self.sent.len() as u64
    }

    /// A producer was told that its message is stored.
    pub fn acknowledged(&mut self, number: Number, told: Told) -> Result<(), Violation> {
        let Some(sent) = self.sent.get_mut(number as usize) else { return Ok(()) };
        promise!(!sent.acknowledged, "message {number} was acknowledged twice");
        sent.acknowledged = true;
        promise!(
            told.level >= sent.level,
            "message {number} asked for {:?} and was acknowledged at {:?}",
            sent.level,
            told.level
        );
        self.stands(number, told)
    }

    /// A batch came to somebody who wants `wanted` of `queue`: its records are ours, whole, and where they may be.
    pub fn seen(
        &mut self,
        queue: Queue,
        head: &BatchHead,
        payload: &[u8],
        power_cuts: u64,
    ) -> Result<Vec<Number>, Violation> {
        let at = (head.epoch.0, head.base_offset.0);
        promise!(crc32(payload) == head.payload_crc, "the batch at {at:?} of {queue:?} does not match its checksum");
        let batch = match Batch::new(payload, head.record_count) {
            Ok(batch) => batch,
            Err(error) => return Err(Violation(format!("the batch at {at:?} of {queue:?} is none: {error}"))),
        };
        let mut numbers = Vec::new();
        for (index, record) in (0..).zip(batch.records()) {
            let record = record.map_err(|error| Violation(format!("a record of {at:?} of {queue:?}: {error}")))?;
            let Some(number) = Message::number_of(&record) else {
                return Err(Violation(format!("a message of {queue:?} at {at:?} has no number")));
            };
            self.is_ours(number, queue, record.bytes())?;
            let told = Told {
                epoch: head.epoch,
                offset: head.base_offset + index,
                position: Some((head.position, record.payload_offset())),
                store_time: Some(head.store_time),
                level: head.flags.level().unwrap_or_default(),
                power_cuts,
                is_visible: true,
            };
            self.stands(number, told)?;
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// A message came from `queue`: it is one that was sent there, byte for byte.
    pub fn is_ours(&self, number: Number, queue: Queue, record: &[u8]) -> Result<(), Violation> {
        let Some(sent) = self.sent(number) else {
            return Err(Violation(format!("message {number} of {queue:?} was never sent")));
        };
        promise!(sent.queue == queue, "message {number} was sent to {:?} and stands in {queue:?}", sent.queue);
        let expected = sent.message.record();
        promise!(expected.get(..record.len()) == Some(record), "message {number} of {queue:?} has other bytes");
        promise!(expected.len() - record.len() < 8, "message {number} of {queue:?} lacks bytes");
        Ok(())
    }

    /// Somebody was told that the message stands there.
    pub fn stands(&mut self, number: Number, told: Told) -> Result<(), Violation> {
        let Some(sent) = self.sent.get_mut(number as usize) else { return Ok(()) };
        match self.slots.entry((sent.queue, told.epoch, told.offset)) {
            std::collections::hash_map::Entry::Vacant(slot) => drop(slot.insert(number)),
            std::collections::hash_map::Entry::Occupied(slot) => promise!(
                *slot.get() == number,
                "messages {} and {number} stand both at offset {} of {:?} in epoch {}",
                slot.get(),
                told.offset,
                sent.queue,
                told.epoch
            ),
        }
        let at = (told.epoch, told.offset);
        if let Some(place) = sent.places.iter_mut().find(|place| (place.epoch, place.offset) == at) {
            promise!(
                place.position.is_none() || told.position.is_none() || place.position == told.position,
                "message {number} stands at {:?} and at {:?} of its log",
                place.position,
                told.position
            );
            promise!(
                place.store_time.is_none() || told.store_time.is_none() || place.store_time == told.store_time,
                "message {number} was stored at {:?} and at {:?}",
                place.store_time,
                told.store_time
            );
            place.position = place.position.or(told.position);
            place.store_time = place.store_time.or(told.store_time);
            place.level = place.level.max(told.level);
            place.power_cuts = place.power_cuts.max(told.power_cuts);
            place.is_visible |= told.is_visible;
            return Ok(());
        }
        let place = Place {
            epoch: told.epoch,
            offset: told.offset,
            position: told.position,
            store_time: told.store_time,
            level: told.level,
            power_cuts: told.power_cuts,
            is_visible: told.is_visible,
        };
        sent.places.push(place);
        sent.places.sort_by_key(|place| place.epoch);
        for (earlier, later) in sent.places.iter().zip(sent.places.iter().skip(1)) {
            promise!(
                earlier.level == DurableLevel::Memory
                    && earlier.power_cuts < later.power_cuts
                    && earlier.epoch < later.epoch,
                "message {number} of {:?} is stored twice: {earlier:?}, {later:?}",
                sent.queue
            );
        }
        Ok(())
    }

    // What follows.

    fn is_owed_at(&self, place: &Place) -> bool {
        place.level > DurableLevel::Memory || place.power_cuts == self.power_cuts
    }

    /// Where a message must stand now, given up or not; `None` where it may be gone, or may never have been stored.
    pub fn owed(&self, number: Number) -> Option<&Place> {
        let sent = self.sent(number)?;
        sent.place().filter(|place| !self.is_doomed(sent.queue.0) && self.is_owed_at(place))
    }

    /// Messages of a queue that must stand in it now.
    pub fn owed_in(&self, queue: Queue) -> impl Iterator<Item = (Number, &Place)> {
        let numbers = self.of_queue.get(&queue).into_iter().flatten();
        numbers.filter_map(|&number| self.owed(number).map(|place| (number, place)))
    }

    /// The visible end is at or above this.
    pub fn visible_floor(&self, queue: Queue) -> QueueOffset {
        let visible = self.owed_in(queue).filter(|(_, place)| place.is_visible);
        visible.map(|(_, place)| place.offset + 1).max().unwrap_or_default()
    }

    /// Messages of a queue that readers must see, with their places.
    pub fn visible_in(&self, queue: Queue) -> impl Iterator<Item = (Number, &Place)> {
        let floor = self.visible_floor(queue);
        self.owed_in(queue).filter(move |(_, place)| place.offset < floor)
    }

    pub fn queues(&self) -> impl Iterator<Item = Queue> {
        self.of_queue.keys().copied().filter(|(topic, _)| !self.is_doomed(*topic))
    }

    /// A reader of an epoch was told that its queue was cut at `at`: nothing that is owed was cut off.
    pub fn cut(&self, queue: Queue, epoch: Epoch, at: QueueOffset) -> Result<(), Violation> {
        for (number, place) in self.owed_in(queue) {
            promise!(
                place.offset < at || place.epoch > epoch,
                "queue {queue:?} was cut at {at} for a reader of epoch {epoch}, and message {number} is owed: {place:?}"
            );
        }
        Ok(())
    }

    /// Somebody was told that a queue keeps nothing below `start`.
    pub fn given_up(&self, queue: Queue, start: QueueOffset, wall: u64) -> Result<(), Violation> {
        let topic = self.topics.get(&queue.0).copied().unwrap_or_default();
        for (number, place) in self.owed_in(queue).filter(|(_, place)| place.offset < start) {
            promise!(!self.keeps_all(queue.0), "queue {queue:?} starts at {start} and keeps all: {number} {place:?}");
            if let (Some(age), Some(stored), true) = (topic.age, place.store_time, self.shards_keep_all) {
                promise!(
                    stored.0 + age.0 <= wall,
                    "queue {queue:?} starts at {start} at {wall}; message {number}, stored at {stored}, is to be kept for {age}"
                );
            }
        }
        Ok(())
    }

    /// All that `queue` holds from `start` to its end, in order: nothing is missing, nothing twice, nothing out of order.
    pub fn audit(&self, queue: Queue, start: QueueOffset, found: &[Number]) -> Result<(), Violation> {
        let mut seen = BTreeSet::new();
        let mut newest: BTreeMap<usize, Number> = BTreeMap::new();
        for &number in found {
            promise!(seen.insert(number), "message {number} stands twice in {queue:?}");
            let Some(sent) = self.sent(number) else { continue };
            match newest.entry(sent.producer) {
                Entry::Vacant(slot) => drop(slot.insert(number)),
                Entry::Occupied(mut slot) => {
                    promise!(
                        *slot.get() < number,
                        "messages {number} and {} of {queue:?} stand out of order",
                        slot.get()
                    );
                    slot.insert(number);
                }
            }
        }
        for (number, place) in self.owed_in(queue) {
            promise!(
                place.offset < start || seen.contains(&number),
                "message {number} of {queue:?} is lost, which begins at {start}: {place:?}"
            );
        }
        Ok(())
    }

    /// Of a producer's messages in a queue, those acknowledged that a power cut may have taken.
    pub fn losable(&self, queue: Queue, producer: usize) -> u64 {
        let numbers = self.of_queue.get(&queue).into_iter().flatten();
        let sent = numbers.filter_map(|&number| self.sent(number));
        let taken = |sent: &&Sent| {
            let place = sent.places.first();
            sent.producer == producer
                && sent.acknowledged
                && place.is_some_and(|place| place.level == DurableLevel::Memory && !self.is_owed_at(place))
        };
        sent.filter(taken).count() as u64
    }
}
