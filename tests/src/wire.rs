//! A connection to the broker that says what a test wants, right or wrong: bytes, frames, requests, and silence.
//!
//! Blocking, one thread, every wait with a bound. Applications use the client library; this is for what no client would do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::frame::{self, Frame, Received};
use peregrine_protocol::ids::{Correlation, DurableLevel, ProducerEpoch, ProducerId, QueueId, Sequence, TopicId};
use peregrine_protocol::limits::FRAME_MAX_CEILING;
use peregrine_protocol::message::{Answer, CreateTopic, Hello, Produce, ProduceHead, Request, TopicRetention};
use peregrine_protocol::preamble::PREAMBLE;
use peregrine_protocol::record::RecordDraft;

/// An answer that takes longer is missing.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    received: Vec<u8>,
    correlation: u64,
}

/// What came from the broker.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The bytes of a whole frame.
    Frame(Vec<u8>),
    /// The broker closed the connection.
    Closed,
    /// Nothing whole came in time.
    Silence,
}

impl Wire {
    /// Connects, and says nothing.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the broker takes connections");
        stream.set_nodelay(true).expect("a socket option");
        Wire { stream, received: Vec::new(), correlation: 0 }
    }

    /// Connects, and opens the connection as a client does.
    pub fn open(address: SocketAddr) -> Self {
        let mut wire = Self::connect(address);
        wire.send(&PREAMBLE).expect("the connection is open");
        let hello = Request::Hello(Hello { client: "wire", software: "peregrine-tests", ..Hello::default() });
        wire.ask(&hello, |answer| assert!(matches!(answer, Answer::Hello(_)), "{answer:?}"));
        wire
    }

    /// Sends bytes as they are; an error where the broker has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request and returns its correlation.
    pub fn request(&mut self, request: &Request<'_>) -> Correlation {
        self.correlation += 1;
        let correlation = Correlation(self.correlation);
        let mut bytes = Vec::new();
        request.encode(correlation, &mut bytes);
        self.send(&bytes).expect("the connection is open");
        correlation
    }

    /// Sends a request and looks at its answer.
    ///
    /// # Panics
    /// If another frame comes, or none.
    pub fn ask<T>(&mut self, request: &Request<'_>, look: impl FnOnce(Answer<'_>) -> T) -> T {
        let correlation = self.request(request);
        let Heard::Frame(bytes) = self.hear(ANSWER_WITHIN) else { panic!("no answer to {request:?}") };
        let frame = whole(&bytes);
        assert_eq!(frame.head.correlation, correlation, "the answer to another request");
        look(Answer::decode(&frame).expect("an answer that this version knows"))
    }

    /// Waits for one frame.
    pub fn hear(&mut self, limit: Duration) -> Heard {
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(Received::Frame(frame)) = frame::decode(&self.received, FRAME_MAX_CEILING) {
                let len = frame.len();
                let rest = self.received.split_off(len);
                return Heard::Frame(std::mem::replace(&mut self.received, rest));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence;
            }
            self.stream.set_read_timeout(Some(left)).expect("a timeout above zero");
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Heard::Closed,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset: the broker closed while bytes of ours were on their way.
                Err(_) => return Heard::Closed,
            }
        }
    }

    /// The code of the error that comes next; `None` if the connection is closed without one.
    ///
    /// # Panics
    /// If anything else comes, or nothing.
    #[track_caller]
    pub fn hear_error(&mut self, limit: Duration) -> Option<u16> {
        match self.hear(limit) {
            Heard::Closed => None,
            Heard::Frame(bytes) => match Answer::decode(&whole(&bytes)) {
                Ok(Answer::Error(error)) => Some(error.code),
                other => panic!("an error was due, not {other:?}"),
            },
            Heard::Silence => panic!("neither an error nor the end of the connection within {limit:?}"),
        }
    }

    /// Whether the broker has closed the connection within the time; frames before that are passed over.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.hear(deadline.saturating_duration_since(Instant::now())) {
                Heard::Frame(_) => {}
                Heard::Closed => return true,
                Heard::Silence => return false,
            }
        }
    }

    /// Creates a topic and returns its id.
    pub fn create_topic(&mut self, name: &str, queues: u32) -> TopicId {
        self.ask(&Request::CreateTopic(CreateTopic { name, queues, retention: TopicRetention::default() }), |answer| {
            match answer {
                Answer::CreateTopic(created) => created.topic.id,
                other => panic!("the topic was not created: {other:?}"),
            }
        })
    }

    /// Sends one message to the topic's first queue, not idempotent, and waits for its acknowledgement; returns how long that
    /// took.
    pub fn produce(&mut self, topic: TopicId, level: DurableLevel, body: &[u8]) -> Duration {
        self.produce_to(topic, QueueId(0), level, body)
    }

    /// The same, to any queue.
    pub fn produce_to(&mut self, topic: TopicId, queue: QueueId, level: DurableLevel, body: &[u8]) -> Duration {
        let payload = batch_of(body);
        let head = ProduceHead { queue, ..produce_head(topic, level, &payload) };
        let started = Instant::now();
        self.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| {
            assert!(matches!(answer, Answer::Produce(_)), "not acknowledged: {answer:?}");
        });
        started.elapsed()
    }
}

/// A batch of one record.
pub fn batch_of(body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    RecordDraft { body, ..RecordDraft::default() }.append_to(&mut payload);
    payload
}

/// For a batch of one record in the topic's first queue, not idempotent.
pub fn produce_head(topic: TopicId, level: DurableLevel, payload: &[u8]) -> ProduceHead {
    ProduceHead {
        topic,
        queue: QueueId(0),
        producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        payload_crc: peregrine_protocol::checksum::crc32(payload),
        record_count: 1,
        flags: EntryFlags::for_level(level),
    }
}

/// The frame whose bytes [`Heard::Frame`] holds.
pub fn whole(bytes: &[u8]) -> Frame<'_> {
    match frame::decode(bytes, FRAME_MAX_CEILING) {
        Ok(Received::Frame(frame)) => frame,
        other => panic!("a frame was whole and is {other:?}"),
    }
}
