//! A well-behaved client without retries, queues or threads, for tests that must know of each message whether it was acknowledged:
//! it sends what it is told, and shows what comes in values of its own.

use std::net::SocketAddr;
use std::time::Duration;

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, Epoch, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, ShardId,
    SubscriptionId, TopicId,
};
use peregrine_protocol::message::{
    Answer, BatchHead, CreateTopic, Fetch, Hello, Metadata, Mode, Produce, ProduceAnswer, ProduceHead, Request, Start,
    Stats, Subscribe, SubscribeAnswer, TopicRetention,
};
use peregrine_protocol::preamble::PREAMBLE;
use peregrine_protocol::record::{Batch, RecordDraft};

use crate::wire::{Heard, Wire, whole};

/// Longest wait for an answer that must come.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What a broker sent, in values of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Hello { shard: ShardId, shards: u16 },
    Pong,
    Topic { id: TopicId, queues: u32 },
    NoTopic,
    Produced(ProduceAnswer),
    Fetched { end: QueueOffset, bodies: Vec<String> },
    Subscribed(SubscribeAnswer),
    Delivered { subscription: SubscriptionId, batch: BatchHead, bodies: Vec<String> },
    Stats(serde_json::Value),
    Error { code: Option<ErrorCode>, detail: ErrorDetail, sentence: String },
    Other,
}

/// One batch as a producer sends it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    pub topic: TopicId,
    pub queue: QueueId,
    pub level: DurableLevel,
    /// Id and sequence of an idempotent producer in its first epoch.
    pub producer: Option<(ProducerId, Sequence)>,
    pub bodies: &'a [String],
}

/// A connection that said hello.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
}

impl Connection {
    /// Connects and says hello, to the broker's shard of that number if there is one.
    ///
    /// # Panics
    /// If the broker does not answer.
    pub fn open(address: SocketAddr, shard: Option<ShardId>) -> Self {
        let mut connection = Connection { wire: Wire::connect(address) };
        connection.wire.send(&PREAMBLE).expect("the broker reads");
        let hello = Hello { client: "test", software: "peregrine-tests", shard, ..Hello::default() };
        match connection.ask(&Request::Hello(hello)) {
            Reply::Hello { .. } => connection,
            other => panic!("hello was answered with {other:?}"),
        }
    }

    /// Sends a request and waits for its answer; what else comes before it is dropped.
    ///
    /// # Panics
    /// If no answer comes.
    pub fn ask(&mut self, request: &Request<'_>) -> Reply {
        let asked = self.wire.request(request);
        loop {
            match self.next(ANSWER_WITHIN) {
                Some((correlation, reply)) if correlation == asked => return reply,
                Some(_) => {}
                None => panic!("the broker did not answer {request:?}"),
            }
        }
    }

    /// The next so many things that the broker sends.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for(&mut self, count: usize) -> Vec<(Correlation, Reply)> {
        let next = |connection: &mut Self| connection.next(ANSWER_WITHIN).expect("the broker has something to say");
        (0..count).map(|_| next(self)).collect()
    }

    /// What came up to the answer of a ping sent now, without it: all that the broker had to say until then.
    pub fn said_so_far(&mut self) -> Vec<(Correlation, Reply)> {
        let asked = self.wire.request(&Request::Ping);
        let mut said = Vec::new();
        loop {
            match self.next(ANSWER_WITHIN) {
                Some((correlation, Reply::Pong)) if correlation == asked => return said,
                Some(other) => said.push(other),
                None => panic!("the broker did not answer a ping"),
            }
        }
    }

    /// The next thing that the broker sends, or `None` where nothing whole comes within that time.
    pub fn next(&mut self, within: Duration) -> Option<(Correlation, Reply)> {
        match self.wire.hear(within) {
            Heard::Frame(bytes) => {
                let frame = whole(&bytes);
                let reply = Reply::of(&Answer::decode(&frame).expect("the broker sends answers"));
                Some((frame.head.correlation, reply))
            }
            Heard::Silence => None,
            Heard::Closed => panic!("the broker closed the connection"),
        }
    }

    /// Creates a topic and returns its id.
    ///
    /// # Panics
    /// Unless it was created.
    pub fn create_topic(&mut self, name: &str, queues: u32) -> TopicId {
        match self.ask(&Request::CreateTopic(CreateTopic { name, queues, retention: TopicRetention::default() })) {
            Reply::Topic { id, .. } => id,
            other => panic!("the topic was not created: {other:?}"),
        }
    }

    /// # Panics
    /// If there is no topic of that name.
    pub fn topic(&mut self, name: &str) -> TopicId {
        match self.ask(&Request::Metadata(Metadata::of(&[name]))) {
            Reply::Topic { id, .. } => id,
            other => panic!("metadata was answered with {other:?}"),
        }
    }

    /// Sends a batch of one message per body, and returns without waiting for the answer.
    pub fn send_batch(&mut self, batch: &Sent<'_>) -> Correlation {
        let payload = payload_of(batch.bodies);
        let (producer_id, sequence) = batch.producer.unwrap_or((ProducerId::NONE, Sequence(0)));
        let head = ProduceHead {
            topic: batch.topic,
            queue: batch.queue,
            producer_id,
            producer_epoch: ProducerEpoch(0),
            sequence,
            payload_crc: crc32(&payload),
            record_count: batch.bodies.len() as u32,
            flags: EntryFlags::for_level(batch.level),
        };
        self.wire.request(&Request::Produce(Produce { head, payload: &payload }))
    }

    /// Sends a batch and waits for its answer.
    pub fn produce(&mut self, batch: &Sent<'_>) -> Reply {
        let asked = self.send_batch(batch);
        loop {
            match self.next(ANSWER_WITHIN) {
                Some((correlation, reply)) if correlation == asked => return reply,
                Some(_) => {}
                None => panic!("the broker did not answer a batch"),
            }
        }
    }

    /// Subscribes to a queue from its visible end on, with more credit than any test uses.
    pub fn subscribe_latest(&mut self, topic: TopicId, queue: QueueId) -> SubscriptionId {
        let (credit_messages, credit_bytes) = (1 << 20, 1 << 30);
        let request =
            Subscribe { topic, queue, mode: Mode::Reader, start: Start::Latest, credit_messages, credit_bytes };
        match self.ask(&Request::Subscribe(request)) {
            Reply::Subscribed(answer) => answer.subscription,
            other => panic!("subscribe was answered with {other:?}"),
        }
    }

    /// The bodies of all that a reader sees in a queue.
    pub fn read_all(&mut self, topic: TopicId, queue: QueueId) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let offset = QueueOffset(all.len() as u64);
            let fetch = Fetch { topic, queue, epoch: Epoch::ANY, offset, max_messages: 10_000, max_bytes: 1 << 20 };
            match self.ask(&Request::Fetch(fetch)) {
                Reply::Fetched { end, bodies } => {
                    assert!(!bodies.is_empty() || end == offset, "nothing comes at {offset}, below the end {end}");
                    if bodies.is_empty() {
                        return all;
                    }
                    all.extend(bodies);
                }
                other => panic!("fetch was answered with {other:?}"),
            }
        }
    }

    /// `peregrine stats shards`, as the broker says it.
    pub fn shard_statistics(&mut self) -> serde_json::Value {
        match self.ask(&Request::Stats(Stats::Shards)) {
            Reply::Stats(value) => value,
            other => panic!("stats was answered with {other:?}"),
        }
    }
}

impl Reply {
    fn of(answer: &Answer<'_>) -> Self {
        match answer {
            Answer::Hello(hello) => Self::Hello { shard: hello.shard, shards: hello.shards },
            Answer::Ping => Self::Pong,
            Answer::Metadata(metadata) => match metadata.topics.iter().next() {
                Some(topic) => Self::Topic { id: topic.id, queues: topic.queues },
                None => Self::NoTopic,
            },
            Answer::CreateTopic(answer) => Self::Topic { id: answer.topic.id, queues: answer.topic.queues },
            Answer::Produce(answer) => Self::Produced(*answer),
            Answer::Fetch(answer) => Self::Fetched {
                end: answer.end,
                bodies: answer.batches.iter().flat_map(|(head, payload)| wanted_bodies(&head, payload)).collect(),
            },
            Answer::Subscribe(answer) => Self::Subscribed(*answer),
            Answer::Deliver(delivery) => Self::Delivered {
                subscription: delivery.subscription,
                batch: delivery.batch,
                bodies: wanted_bodies(&delivery.batch, delivery.payload),
            },
            Answer::Stats(answer) => Self::Stats(serde_json::from_slice(answer.json).expect("statistics are JSON")),
            Answer::Error(error) => {
                Self::Error { code: error.known_code(), detail: error.detail, sentence: error.sentence.to_owned() }
            }
            _ => Self::Other,
        }
    }
}

fn payload_of(bodies: &[String]) -> Vec<u8> {
    let mut payload = Vec::new();
    for body in bodies {
        RecordDraft { body: body.as_bytes(), ..RecordDraft::default() }.append_to(&mut payload);
    }
    payload
}

/// The bodies of a batch from the first wanted message on, after its checksums were checked.
fn wanted_bodies(head: &BatchHead, payload: &[u8]) -> Vec<String> {
    assert_eq!(crc32(payload), head.payload_crc, "a payload arrived damaged");
    let batch = Batch::new(payload, head.record_count).expect("a batch holds records");
    batch.check_contents().expect("records have their checksums");
    let skipped = (head.first_wanted - head.base_offset) as usize;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("tests send text");
    batch.records().skip(skipped).map(|record| text(record.expect("a record is whole").body())).collect()
}
