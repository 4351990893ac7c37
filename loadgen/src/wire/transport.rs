//! One thread's producers and readers on their connections.
//!
//! A message's correlation is its index + 1 (0 is what the broker pushes with), so an answer needs no table to be
//! matched. A reader's credit is given back when half of it is used up.

use std::collections::BTreeMap;

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Frame, Received};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, ProducerEpoch, ProducerId, Sequence, ShardId, SubscriptionId,
};
use peregrine_protocol::limits::FRAME_ALIGN;
use peregrine_protocol::message::produce::PRODUCE_PREFIX_LEN;
use peregrine_protocol::message::{Answer, Credit, Deliver, ErrorAnswer, Mode, ProduceHead, Request, Start, Subscribe};
use peregrine_protocol::record::{Batch, RecordDraft};

use super::RECORD_OVERHEAD;
use super::control::{QueuePlace, Topics};
use super::handshake::Link;
use crate::cli::{Level, LoadArgs};
use crate::clock::{Clock, MILLISECOND, Ns};
use crate::connection::{Connections, Output};
use crate::transport::{Events, Offer, Refusal, Transport, TransportError};
use crate::workload::Message;

/// Messages and bytes that a reader lets the broker send ahead, per queue.
const CREDIT_MESSAGES: u32 = 4_096;
const CREDIT_BYTES_MIN: u64 = 4 << 20;
/// Bytes of a connection's buffers, at least: some bursts of small messages.
const BUFFER_BYTES_MIN: usize = 256 << 10;
/// Before a refused message is sent again, where the broker does not say.
const RETRY_AFTER: Ns = MILLISECOND;

/// The connections of one generator thread.
#[derive(Debug)]
pub struct Wire {
    connections: Connections,
    producers: Vec<Producer>,
    threads: u32,
    queues: Vec<QueuePlace>,
    flags: EntryFlags,
    pen: Pen,
    desk: Desk,
}

/// One producer of this thread.
#[derive(Debug)]
struct Producer {
    id: ProducerId,
    /// By shard: the connection's number; `None` where no queue of the run lives.
    connections: Vec<Option<usize>>,
}

/// Memory in which a message is made.
#[derive(Debug, Default)]
struct Pen {
    body: Vec<u8>,
    batch: Vec<u8>,
}

/// What reading the connections needs.
#[derive(Debug)]
struct Desk {
    level: DurableLevel,
    frame_max: u32,
    input_bytes: usize,
    /// By connection: its subscriptions, ascending; producers have none.
    subscriptions: Vec<Vec<Reading>>,
    credit_bytes: u64,
    /// A credit frame in the making.
    credit: Vec<u8>,
    /// Whether a message that was refused for good has been told of.
    told: bool,
}

/// A subscription and what was delivered on it since credit was given last.
#[derive(Clone, Copy, Debug)]
struct Reading {
    subscription: SubscriptionId,
    queue: u32,
    messages: u32,
    bytes: u64,
}

/// Bytes of a produce frame with one message of `size` bytes.
pub fn produce_frame_len(size: usize) -> usize {
    let record = RecordDraft { body: &[], ..RecordDraft::default() }.len() as usize + size;
    PRODUCE_PREFIX_LEN + record.next_multiple_of(FRAME_ALIGN)
}

/// The queues, counted over all topics, that the consumers of `thread` read: queue q belongs to consumer q mod consumers,
/// consumer c to thread c mod threads.
pub fn queues_of_thread(load: &LoadArgs, thread: u32, threads: u32) -> Vec<u32> {
    let mine = |queue: &u32| load.consumers > 0 && queue % load.consumers % threads == thread;
    (0..load.topics * load.queues).filter(mine).collect()
}

impl Wire {
    /// Connects the producers and consumers of `thread` among `threads`, and subscribes the latter.
    pub fn connect(
        load: &LoadArgs,
        topics: &Topics,
        clock: Clock,
        (thread, threads): (u32, u32),
    ) -> Result<Self, TransportError> {
        let level = if load.level == Level::Memory { DurableLevel::Memory } else { DurableLevel::Synced };
        let connections = Connections::new(clock)
            .map_err(|source| TransportError::Io { context: "preparing to wait for events".to_owned(), source })?;
        let buffer_bytes = BUFFER_BYTES_MIN.max(4 * (produce_frame_len(load.size) + RECORD_OVERHEAD as usize));
        let mut wire = Self {
            connections,
            producers: Vec::new(),
            threads,
            queues: topics.queues.clone(),
            flags: EntryFlags::for_level(level),
            pen: Pen { body: vec![0; load.size], batch: Vec::with_capacity(load.size + 2 * RECORD_OVERHEAD as usize) },
            desk: Desk {
                level,
                frame_max: 0,
                input_bytes: buffer_bytes,
                subscriptions: Vec::new(),
                credit_bytes: CREDIT_BYTES_MIN.max(16 * load.size as u64),
                credit: Vec::with_capacity(BUFFER_BYTES_MIN),
                told: false,
            },
        };
        for producer in (thread..load.producers).step_by(threads as usize) {
            wire.add_producer(load, producer)?;
        }
        for consumer in (thread..load.consumers).step_by(threads as usize) {
            wire.add_consumer(load, consumer)?;
        }
        Ok(wire)
    }

    fn add_producer(&mut self, load: &LoadArgs, producer: u32) -> Result<(), TransportError> {
        let shards = self.queues.iter().map(|queue| usize::from(queue.shard.0)).max().map_or(0, |last| last + 1);
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), producer);
        let mut connections = Vec::new();
        for shard in (0..shards).map(|shard| ShardId(shard as u16)) {
            if !self.queues.iter().any(|queue| queue.shard == shard) {
                connections.push(None);
                continue;
            }
            let client = format!("loadgen producer {producer}");
            let (link, greeting) = Link::open(&load.broker, Some(shard), &client)?;
            self.desk.frame_max = greeting.frame_max;
            connections.push(Some(self.adopt(link, Vec::new())?));
        }
        self.producers.push(Producer { id: ProducerId(random.max(1)), connections });
        Ok(())
    }

    fn add_consumer(&mut self, load: &LoadArgs, consumer: u32) -> Result<(), TransportError> {
        let mut by_shard: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (queue, place) in (0..).zip(&self.queues).filter(|(queue, _)| queue % load.consumers == consumer) {
            by_shard.entry(place.shard.0).or_default().push(queue);
        }
        for (shard, queues) in by_shard {
            let client = format!("loadgen consumer {consumer}");
            let (mut link, greeting) = Link::open(&load.broker, Some(ShardId(shard)), &client)?;
            self.desk.frame_max = greeting.frame_max;
            let mut readings = Vec::with_capacity(queues.len());
            for queue in queues {
                let place = self.queues[queue as usize];
                let subscribe = Subscribe {
                    topic: place.topic,
                    queue: place.queue,
                    mode: Mode::Reader,
                    start: Start::Earliest,
                    credit_messages: CREDIT_MESSAGES,
                    credit_bytes: self.desk.credit_bytes,
                };
                let subscription = link.ask(&Request::Subscribe(subscribe), |answer| match answer {
                    Answer::Subscribe(answer) => Some(answer.subscription),
                    _ => None,
                })?;
                readings.push(Reading { subscription, queue, messages: 0, bytes: 0 });
            }
            readings.sort_by_key(|reading| reading.subscription);
            self.adopt(link, readings)?;
        }
        Ok(())
    }

    fn adopt(&mut self, link: Link, readings: Vec<Reading>) -> Result<usize, TransportError> {
        let (stream, name, unread) = link.into_parts();
        let buffers = (self.desk.input_bytes, self.desk.input_bytes);
        self.desk.subscriptions.push(readings);
        let added = self.connections.add(stream, name, buffers, &unread);
        added.map_err(|source| TransportError::Io { context: "setting up a connection".to_owned(), source })
    }
}

impl Transport for Wire {
    fn offer(&mut self, message: &Message<'_>) -> Result<Offer, TransportError> {
        let producer = &self.producers[(message.place.producer / self.threads) as usize];
        let place = self.queues[message.place.queue as usize];
        let Some(number) = producer.connections[usize::from(place.shard.0)] else {
            unreachable!("a producer has a connection to the shard of each queue of the run")
        };
        let output = self.connections.output(number);
        let Some(frame) = output.reserve(produce_frame_len(message.len())) else { return Ok(Offer::Full) };
        let payload = self.pen.write(message);
        let head = ProduceHead {
            topic: place.topic,
            queue: place.queue,
            producer_id: producer.id,
            producer_epoch: ProducerEpoch(0),
            sequence: Sequence(message.place.sequence),
            payload_crc: crc32(payload),
            record_count: 1,
            flags: self.flags,
        };
        let (prefix, rest) = frame.split_at_mut(PRODUCE_PREFIX_LEN);
        prefix.copy_from_slice(&head.encode_prefix(Correlation(message.index + 1), payload.len()));
        // A batch of whole records is a multiple of 8 long, and needs no filling.
        rest.copy_from_slice(payload);
        Ok(Offer::Taken)
    }

    fn turn(&mut self, wait_until: Option<Ns>, events: &mut impl Events) -> Result<(), TransportError> {
        let desk = &mut self.desk;
        self.connections.turn(wait_until, |number, bytes, output, now| desk.read(number, bytes, output, now, events))
    }
}

impl Pen {
    /// The batch of one record that carries `message`.
    fn write(&mut self, message: &Message<'_>) -> &[u8] {
        message.write(&mut self.body);
        self.batch.clear();
        RecordDraft { body: &self.body, ..RecordDraft::default() }.append_to(&mut self.batch);
        &self.batch
    }
}

impl Desk {
    /// Takes all whole frames of `bytes`; how many bytes that were.
    fn read(
        &mut self,
        number: usize,
        bytes: &[u8],
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<usize, TransportError> {
        let mut used = 0;
        loop {
            match frame::decode(&bytes[used..], self.frame_max) {
                Ok(Received::Frame(frame)) => {
                    used += frame.len();
                    self.take(number, &frame, output, now, events)?;
                }
                Ok(Received::Missing(missing)) if bytes.len() - used + missing <= self.input_bytes => return Ok(used),
                Ok(Received::Missing(missing)) => {
                    let sentence = format!("a frame of {missing} bytes more than the run's messages have");
                    return Err(TransportError::Protocol(sentence));
                }
                Err(error) => return Err(TransportError::Protocol(format!("the broker sent no frame: {error}"))),
            }
        }
    }

    fn take(
        &mut self,
        number: usize,
        frame: &Frame<'_>,
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        let answer = Answer::decode(frame).map_err(|error| TransportError::Protocol(error.to_string()))?;
        let index = frame.head.correlation.0.checked_sub(1);
        match (answer, index) {
            (Answer::Produce(answer), Some(index)) => {
                if answer.level < self.level {
                    let sentence = format!("{} was asked for, {} acknowledged", self.level, answer.level);
                    return Err(TransportError::Protocol(sentence));
                }
                events.acknowledged(index, now);
            }
            (Answer::Deliver(delivery), None) => self.deliver(number, &delivery, output, now, events)?,
            (Answer::Error(error), Some(index)) => events.refused(index, self.refusal(&error), now),
            (Answer::Error(error), None) => return Err(TransportError::Protocol(error.sentence.to_owned())),
            (other, _) => {
                return Err(TransportError::Protocol(format!("the broker sent what nobody asked for: {other:?}")));
            }
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        number: usize,
        delivery: &Deliver<'_>,
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        let readings = &mut self.subscriptions[number];
        let Ok(at) = readings.binary_search_by_key(&delivery.subscription, |reading| reading.subscription) else {
            return Err(TransportError::Protocol(format!("a delivery for no subscription, {}", delivery.subscription)));
        };
        let reading = &mut readings[at];
        match Batch::new(delivery.payload, delivery.batch.record_count) {
            Ok(batch) => {
                let skipped = (delivery.batch.first_wanted - delivery.batch.base_offset) as usize;
                for record in batch.records().skip(skipped) {
                    // A record that cannot be read is counted as corrupt, as its empty body is.
                    events.delivered(reading.queue, record.as_ref().map_or(&[], |record| record.body()), now);
                }
            }
            Err(_) => events.delivered(reading.queue, &[], now),
        }
        reading.messages += delivery.batch.record_count;
        reading.bytes += delivery.payload.len() as u64;
        if reading.messages >= CREDIT_MESSAGES / 2 || reading.bytes >= self.credit_bytes / 2 {
            let credit =
                Credit { subscription: reading.subscription, messages: reading.messages, bytes: reading.bytes };
            self.credit.clear();
            credit.encode(Correlation(0), &mut self.credit);
            if output.push(&self.credit) {
                (reading.messages, reading.bytes) = (0, 0);
            }
        }
        Ok(())
    }

    fn refusal(&mut self, error: &ErrorAnswer<'_>) -> Refusal {
        if !error.retriable {
            if !std::mem::replace(&mut self.told, true) {
                eprintln!("peregrine-loadgen: a message was refused for good: {}", error.sentence);
            }
            return Refusal::Final;
        }
        let behind_another = error.known_code() == Some(ErrorCode::OutOfSequence);
        let after = error.detail.retry_after_ns.unwrap_or(if behind_another { 0 } else { RETRY_AFTER });
        Refusal::Retry { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;
    use crate::content::Content;
    use crate::schedule::Schedule;
    use crate::workload::Workload;

    #[test]
    fn a_frame_is_as_long_as_it_says_and_its_batch_is_whole() {
        for size in [48, 49, 1_000, 1_024] {
            let schedule = Schedule { rate: 1, warmup: 0, duration: SECOND, producers: 1, queues: 1, start: 0 };
            let workload = Workload { run: 1, size, schedule, content: Content::random(1) };
            let mut pen = Pen { body: vec![0; size], batch: Vec::new() };
            let payload = pen.write(&workload.message(0));
            assert_eq!(PRODUCE_PREFIX_LEN + payload.len(), produce_frame_len(size));
            assert!(payload.len() as u64 <= size as u64 + RECORD_OVERHEAD);
            let batch = Batch::new(payload, 1).unwrap();
            assert_eq!(batch.records().next().unwrap().unwrap().body().len(), size);
        }
    }
}
