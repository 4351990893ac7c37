//! A consumer that is far behind: it reads a topic from its beginning as fast as it comes, and begins again at the end.
//!
//! It shares the generator's thread instead of competing with it for the core: of each turn it takes one receive. So what it
//! moves in the tail of others is the broker's doing, but for the some 20 µs that such a receive takes. It checks that every batch is
//! whole and follows the one before it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Correlation, QueueId, QueueOffset, SubscriptionId, TopicId};
use peregrine_protocol::limits::FRAME_MAX_DEFAULT;
use peregrine_protocol::message::{
    Answer, Credit, Deliver, DescribeTopic, Mode, Request, Start, Subscribe, Unsubscribe,
};
use peregrine_protocol::placement::TopicHash;

use super::handshake::Link;
use crate::clock::{Clock, Ns, SECOND};
use crate::transport::TransportError;

/// One receive at the most.
const RECEIVE_BYTES: usize = 64 << 10;
/// Bytes and messages that the broker may send ahead.
const CREDIT_BYTES: u64 = 4 << 20;
const CREDIT_MESSAGES: u32 = 65_536;

/// What was replayed, for whoever reports it.
#[derive(Debug, Default)]
pub struct Replayed {
    bytes: AtomicU64,
    /// From the first receive to the last.
    nanoseconds: AtomicU64,
}

impl Replayed {
    /// Payload bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Payload bytes a second, in MiB.
    pub fn mib_per_s(&self) -> f64 {
        let seconds = self.nanoseconds.load(Ordering::Relaxed) as f64 / SECOND as f64;
        if seconds > 0.0 { self.bytes() as f64 / f64::from(1_u32 << 20) / seconds } else { 0.0 }
    }
}

/// Readers of one queue each, all of one thread.
#[derive(Debug)]
pub struct Replay {
    clock: Clock,
    started: Option<Ns>,
    readers: Vec<Reader>,
    replayed: Arc<Replayed>,
}

#[derive(Debug)]
struct Reader {
    stream: TcpStream,
    name: String,
    topic: TopicId,
    queue: QueueId,
    subscription: SubscriptionId,
    next: QueueOffset,
    end: QueueOffset,
    /// The end was reached, and the answer to another subscription is still to come.
    again: bool,
    /// Since credit was given last.
    messages: u32,
    bytes: u64,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Replay {
    /// Connects a reader for each queue of the topic, each to the shard of its queue.
    pub fn connect(address: &str, topic: &str, clock: Clock, replayed: Arc<Replayed>) -> Result<Self, TransportError> {
        let (mut link, greeting) = Link::open(address, None, "loadgen replay")?;
        let describe = DescribeTopic { name: topic, first_queue: QueueId(0), limit: 1 };
        let (id, queues) = link.ask(&Request::DescribeTopic(describe), |answer| match answer {
            Answer::DescribeTopic(answer) => Some((answer.topic.id, answer.topic.queues)),
            _ => None,
        })?;
        let hash = TopicHash::of(topic);
        let mut readers = Vec::new();
        for queue in (0..queues).map(QueueId) {
            let shard = hash.shard_of(queue, greeting.shards);
            let (mut link, _) = Link::open(address, Some(shard), "loadgen replay")?;
            let (subscription, next, end) =
                link.ask(&Request::Subscribe(from_the_start(id, queue)), |answer| match answer {
                    Answer::Subscribe(answer) => Some((answer.subscription, answer.start, answer.end)),
                    _ => None,
                })?;
            let (stream, name, input) = link.into_parts();
            let ready = stream.set_nonblocking(true);
            ready.map_err(|source| TransportError::Io { context: format!("preparing {name}"), source })?;
            let (messages, bytes, again, output) = (0, 0, false, Vec::new());
            readers.push(Reader {
                stream,
                name,
                topic: id,
                queue,
                subscription,
                next,
                end,
                again,
                messages,
                bytes,
                input,
                output,
            });
        }
        Ok(Self { clock, started: None, readers, replayed })
    }

    /// Receives once on each connection that has something, and asks for more.
    pub fn turn(&mut self) -> Result<(), TransportError> {
        let started = *self.started.get_or_insert_with(|| self.clock.now());
        for reader in &mut self.readers {
            let bytes = reader.turn()?;
            if bytes > 0 {
                self.replayed.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.replayed.nanoseconds.store(self.clock.now() - started, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn from_the_start(topic: TopicId, queue: QueueId) -> Subscribe {
    let (credit_messages, credit_bytes) = (CREDIT_MESSAGES, CREDIT_BYTES);
    Subscribe { topic, queue, mode: Mode::Reader, start: Start::Earliest, credit_messages, credit_bytes }
}

impl Reader {
    /// Payload bytes that came.
    fn turn(&mut self) -> Result<u64, TransportError> {
        let whole = self.input.len();
        self.input.resize(whole + RECEIVE_BYTES, 0);
        let received = self.stream.read(&mut self.input[whole..]);
        self.input.truncate(whole + received.as_ref().map_or(0, |bytes| *bytes));
        match received {
            Ok(0) => return Err(TransportError::Closed(self.name.clone())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(TransportError::Io { context: format!("reading from {}", self.name), source }),
        }
        let input = std::mem::take(&mut self.input);
        let (mut used, before) = (0, self.bytes);
        loop {
            match frame::decode(&input[used..], FRAME_MAX_DEFAULT) {
                Ok(Received::Frame(frame)) => {
                    used += frame.len();
                    let answer = Answer::decode(&frame).map_err(|error| self.wrong(&error.to_string()))?;
                    self.take(&answer)?;
                }
                Ok(Received::Missing(_)) => break,
                Err(error) => return Err(self.wrong(&error.to_string())),
            }
        }
        self.input = input;
        self.input.drain(..used);
        let bytes = self.bytes - before;
        self.ask();
        self.flush()?;
        Ok(bytes)
    }

    fn take(&mut self, answer: &Answer<'_>) -> Result<(), TransportError> {
        match answer {
            Answer::Deliver(delivery) => self.deliver(delivery),
            Answer::Subscribe(answer) => {
                (self.subscription, self.next, self.end) = (answer.subscription, answer.start, answer.end);
                self.again = false;
                Ok(())
            }
            Answer::Unsubscribe(_) => Ok(()),
            other => Err(self.wrong(&format!("{other:?}"))),
        }
    }

    fn deliver(&mut self, delivery: &Deliver<'_>) -> Result<(), TransportError> {
        if delivery.subscription != self.subscription {
            // It left before the broker heard that the subscription is over.
            return Ok(());
        }
        let batch = &delivery.batch;
        if batch.base_offset != self.next || crc32(delivery.payload) != batch.payload_crc {
            let sentence = format!("{} came where {} was due, or damaged", batch.base_offset, self.next);
            return Err(self.wrong(&sentence));
        }
        self.next += u64::from(batch.record_count);
        self.messages += batch.record_count;
        self.bytes += delivery.payload.len() as u64;
        Ok(())
    }

    /// Gives credit back, or begins again.
    fn ask(&mut self) {
        if self.next >= self.end {
            if std::mem::replace(&mut self.again, true) {
                return;
            }
            let subscription = self.subscription;
            Request::Unsubscribe(Unsubscribe { subscription }).encode(Correlation(1), &mut self.output);
            let subscribe = from_the_start(self.topic, self.queue);
            Request::Subscribe(subscribe).encode(Correlation(2), &mut self.output);
            (self.messages, self.bytes) = (0, 0);
        } else if self.bytes >= CREDIT_BYTES / 8 || self.messages >= CREDIT_MESSAGES / 8 {
            let credit = Credit { subscription: self.subscription, messages: self.messages, bytes: self.bytes };
            credit.encode(Correlation(0), &mut self.output);
            (self.messages, self.bytes) = (0, 0);
        }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(bytes) => drop(self.output.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(TransportError::Io { context: format!("sending to {}", self.name), source }),
            }
        }
        Ok(())
    }

    fn wrong(&self, what: &str) -> TransportError {
        TransportError::Protocol(format!("{}, queue {}: {what}", self.name, self.queue))
    }
}
