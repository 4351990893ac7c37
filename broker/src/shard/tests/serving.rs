//! A broker's shards in this process, and a client as simple as can be: blocking, one socket, one buffer.

use crate::control::settings::{CheckpointTimes, Flush, GroupTimes, Identity, Idle, Settings, WithoutTmpfs};
use crate::log::ScrubOptions;
use crate::retaining::RetentionBounds;
use crate::shard::listener;
use crate::shard::run::{self, RunError};
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{DirectoryId, DirectorySecret, EntryFlags};
use peregrine_protocol::error::ErrorDetail;
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::*;
use peregrine_protocol::message::TopicRetention;
use peregrine_protocol::message::*;
use peregrine_protocol::preamble::PREAMBLE;
use peregrine_protocol::record::RecordDraft;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

static RUNS: AtomicU64 = AtomicU64::new(1);

/// A broker that stops when it is told to.
pub struct Serving {
    pub address: SocketAddr,
    pub messages_from_ring: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
}

pub fn settings(data: &Path, rings: &Path, shards: u16) -> Settings {
    Settings {
        data: data.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        shards,
        idle: Idle::Park,
        adaptive_spin: Duration::ZERO,
        ring_directory: Some(rings.to_owned()),
        without_tmpfs: WithoutTmpfs::Refuse,
        ring_bytes: 8 << 20,
        segment_bytes: 8 << 20,
        block_cache: 1 << 20,
        keep_free: 0,
        message_max: 1 << 20,
        frame_max: 2 << 20,
        batch_max: 1 << 20,
        largest_entry: 2 << 20,
        flush: Flush {
            depth: 2,
            age: Nanos::from_micros(50),
            max_bytes: 256 << 10,
            memory_wait: Nanos::from_millis(1),
            memory_bytes: 256 << 10,
        },
        retention: RetentionBounds::default(),
        scrub: ScrubOptions::default(),
        checkpoint: CheckpointTimes { bytes: 256 << 20, age: Nanos::from_secs(30) },
        groups: GroupTimes { silence: Nanos::from_secs(10), grace: Nanos::from_secs(10), drain: Nanos::from_secs(5) },
        accept_loss: false,
        discard_rings: Vec::new(),
        test_faults: Vec::new(),
    }
}

pub fn serve(settings: &Settings) -> Serving {
    let identity = Identity {
        id: DirectoryId(u128::from(std::process::id())),
        secret: DirectorySecret([7; 16]),
        shards: settings.shards,
        device: 1,
        inode: 2,
        boot: 3,
        run: RUNS.fetch_add(1, Ordering::Relaxed),
    };
    let listener = listener::bind(settings.listen).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = mpsc::channel();
    let thread = {
        let (settings, stop) = (settings.clone(), stop.clone());
        std::thread::spawn(move || {
            run::run(&settings, &identity, listener, &stop, |said| {
                let _ = ready.send(said.messages_from_ring);
            })
        })
    };
    let Ok(messages_from_ring) = is_ready.recv_timeout(Duration::from_secs(60)) else {
        panic!("the broker does not start: {:?}", thread.join());
    };
    Serving { address, messages_from_ring, stop, thread: Some(thread) }
}

impl Serving {
    pub fn client(&self, shard: Option<u16>) -> Client {
        Client::connect(self.address, shard)
    }

    pub fn stop(mut self) -> Result<(), RunError> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().expect("no panic"),
            None => Ok(()),
        }
    }
}

/// One connection.
pub struct Client {
    pub socket: TcpStream,
    buffer: Vec<u8>,
    next: u64,
    /// What came while an answer was waited for, for [`Self::until`].
    pushed: VecDeque<Said>,
    pub shards: u16,
    pub shard: ShardId,
}

/// An answer that outlives its frame, as far as the tests look at it.
#[derive(Debug)]
pub enum Said {
    Topic {
        id: TopicId,
    },
    Stored(ProduceAnswer),
    Subscribed(SubscribeAnswer),
    Batch {
        subscription: SubscriptionId,
        head: BatchHead,
        payload: Vec<u8>,
    },
    Fetched {
        end: QueueOffset,
        batches: Vec<(BatchHead, Vec<u8>)>,
    },
    Error {
        code: u16,
    },
    Acked {
        offset: QueueOffset,
    },
    Group {
        id: GroupId,
    },
    Joined {
        member: MemberId,
    },
    Assigned {
        member: MemberId,
        number: u64,
        queues: Vec<u32>,
    },
    /// The number of the member's assignment.
    Beat {
        number: u64,
    },
    Revoked {
        subscription: SubscriptionId,
    },
    MemberEnded {
        code: u16,
        member: u64,
    },
    Lag(Vec<LagRow>),
    Members(Vec<(String, u32)>),
    /// A subscription's end.
    Ended {
        code: u16,
        of: u64,
    },
    Json(String),
    /// The queues that a shard has of a topic.
    Described {
        queues: Vec<u32>,
    },
    /// What names were resolved to.
    Resolved(Vec<TopicId>),
    Other,
}

impl Client {
    pub fn connect(address: SocketAddr, shard: Option<u16>) -> Self {
        let socket = TcpStream::connect(address).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        let mut client =
            Client { socket, buffer: Vec::new(), next: 1, pushed: VecDeque::new(), shards: 0, shard: ShardId(0) };
        client.socket.write_all(&PREAMBLE).expect("preamble");
        let hello = Hello { client: "test", shard: shard.map(ShardId), ..Hello::default() };
        let correlation = client.send(&Request::Hello(hello));
        let frame = client.receive_frame();
        let Ok(Received::Frame(frame)) = frame::decode(&frame, u32::MAX) else { panic!("no frame") };
        assert_eq!(frame.head.correlation, correlation);
        match Answer::decode(&frame) {
            Ok(Answer::Hello(answer)) => (client.shards, client.shard) = (answer.shards, answer.shard),
            other => panic!("hello was answered with {other:?}"),
        }
        client
    }

    pub fn send(&mut self, request: &Request<'_>) -> Correlation {
        let correlation = Correlation(self.next);
        self.next += 1;
        let mut bytes = Vec::new();
        request.encode(correlation, &mut bytes);
        self.socket.write_all(&bytes).expect("send");
        correlation
    }

    pub fn receive_frame(&mut self) -> Vec<u8> {
        loop {
            if let Ok(Received::Frame(frame)) = frame::decode(&self.buffer, u32::MAX) {
                let len = frame.len();
                return self.buffer.drain(..len).collect();
            }
            let mut more = vec![0; 65536];
            let count = self.socket.read(&mut more).expect("receive");
            assert!(count > 0, "the broker closed the connection");
            self.buffer.extend_from_slice(&more[..count]);
        }
    }

    pub fn receive(&mut self) -> (Correlation, Said) {
        let bytes = self.receive_frame();
        let Ok(Received::Frame(frame)) = frame::decode(&bytes, u32::MAX) else { panic!("no frame") };
        let said = match Answer::decode(&frame).expect("an answer") {
            Answer::CreateTopic(answer) | Answer::AlterTopic(answer) | Answer::DeleteTopic(answer) => {
                Said::Topic { id: answer.topic.id }
            }
            Answer::Produce(answer) => Said::Stored(answer),
            Answer::Subscribe(answer) => Said::Subscribed(answer),
            Answer::Deliver(delivery) => Said::Batch {
                subscription: delivery.subscription,
                head: delivery.batch,
                payload: delivery.payload.to_vec(),
            },
            Answer::Fetch(answer) => Said::Fetched {
                end: answer.end,
                batches: answer.batches.iter().map(|(head, payload)| (head, payload.to_vec())).collect(),
            },
            Answer::Error(ErrorAnswer { code, detail: ErrorDetail { subscription: Some(of), .. }, .. }) => {
                Said::Ended { code, of }
            }
            Answer::Error(ErrorAnswer { code, detail: ErrorDetail { member: Some(member), .. }, .. }) => {
                Said::MemberEnded { code, member }
            }
            Answer::Error(error) => Said::Error { code: error.code },
            Answer::Ack(answer) => Said::Acked { offset: answer.offset },
            Answer::CreateGroup(answer) | Answer::DeleteGroup(answer) => Said::Group { id: answer.group.id },
            Answer::JoinGroup(answer) => Said::Joined { member: answer.member },
            Answer::Assignment(assignment) => Said::Assigned {
                member: assignment.member,
                number: assignment.number,
                queues: assignment.queues.iter().map(|assigned| assigned.queue.0).collect(),
            },
            Answer::Heartbeat(answer) => Said::Beat { number: answer.number },
            Answer::Revoke(revoke) => Said::Revoked { subscription: revoke.subscription },
            Answer::GroupLag(answer) => Said::Lag(answer.rows.iter().collect()),
            Answer::DescribeGroup(answer) => {
                Said::Members(answer.members.iter().map(|member| (member.name.to_owned(), member.queues)).collect())
            }
            Answer::DescribeTopic(answer) => {
                Said::Described { queues: answer.queues.iter().map(|row| row.queue.0).collect() }
            }
            Answer::Metadata(answer) => Said::Resolved(answer.topics.iter().map(|row| row.id).collect()),
            Answer::Stats(answer) => Said::Json(String::from_utf8_lossy(answer.json).into_owned()),
            _ => Said::Other,
        };
        (frame.head.correlation, said)
    }

    pub fn ask(&mut self, request: &Request<'_>) -> Said {
        let correlation = self.send(request);
        loop {
            let (to, said) = self.receive();
            if to == correlation {
                return said;
            }
            self.pushed.push_back(said);
        }
    }

    /// Takes what comes until it is what is looked for; the rest is dropped.
    pub fn until<T>(&mut self, mut find: impl FnMut(Said) -> Option<T>) -> T {
        loop {
            let said = self.pushed.pop_front().unwrap_or_else(|| self.receive().1);
            if let Some(found) = find(said) {
                return found;
            }
        }
    }

    pub fn create(&mut self, name: &str, queues: u32) -> TopicId {
        match self.ask(&Request::CreateTopic(CreateTopic { name, queues, retention: TopicRetention::default() })) {
            Said::Topic { id } => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn subscribe(&mut self, topic: TopicId, queue: u32) -> SubscribeAnswer {
        let asked = Subscribe {
            topic,
            queue: QueueId(queue),
            mode: Mode::Reader,
            start: Start::Earliest,
            credit_messages: 1_000_000,
            credit_bytes: 1 << 30,
        };
        match self.ask(&Request::Subscribe(asked)) {
            Said::Subscribed(answer) => answer,
            other => panic!("{other:?}"),
        }
    }
}

/// A batch of one record with this body.
pub fn batch(body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    RecordDraft { body, ..RecordDraft::default() }.append_to(&mut payload);
    payload
}

pub fn head(topic: TopicId, queue: u32, level: DurableLevel, payload: &[u8]) -> ProduceHead {
    ProduceHead {
        topic,
        queue: QueueId(queue),
        producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        payload_crc: crc32(payload),
        record_count: 1,
        flags: EntryFlags::for_level(level),
    }
}
