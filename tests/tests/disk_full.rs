//! A disk that is full, again and again, under load: producers are told `DiskFull` at once and keep what they have; acknowledgements of
//! a group and deletions go on; where space comes back, so does the broker, without a restart.
//!
//! ```text
//!   load      the rest of the disk is taken    what must go on goes on    space comes back
//! ├─────────┼────────────────────────────────┼──────────────────────────┼──────────────────┤   again and again, then kill -9
//! ```
//!
//! Space comes back because whoever took it gives it back (three cycles), or because retention gives segments up (two). Needs root and a
//! loop device, and says so where it has none.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, DurableLevel, Message, Producer, QueueId, Reader, Receipt, Start};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::TopicId;
use peregrine_protocol::message::{CreateTopic, DeleteTopic, Request, TopicRetention};
use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::connection::{Connection, Reply, Sent};
use peregrine_tests::mount::Mount;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const SHARDS: u16 = 2;
const TOPIC: &str = "orders";
const QUEUES: u32 = 4;
const LEVELS: [DurableLevel; 2] = [DurableLevel::Memory, DurableLevel::Synced];
const BODY_BYTES: usize = 2_000;
/// Batches that find out whether a disk is full, and how many of them two segments have room for.
const PROBE_BYTES: usize = 100 << 10;
const PROBES_MAX: usize = 80;
const BATCH_BYTES: usize = 64 << 10;
/// What producers may have under way: a disk that is full must stop them soon.
const BUFFER_BYTES: u32 = 256 << 10;

const IMAGE_BYTES: u64 = 160 << 20;
/// Messages that are older may go, where retention is asked for.
const RETENTION_AGE: Duration = Duration::from_secs(2);
/// What messages leave free, and
const KEEP_FREE: u64 = 8 << 20;
/// what a filler leaves where retention is to make room: without checkpoints it does not.
const LEFT_FOR_CHECKPOINTS: u64 = 6 << 20;
const MESSAGES_PER_CYCLE: usize = 4_000;
/// More than what is left, and what has room in the segments that take messages and those made ahead: 64 MB.
const MESSAGES_BESIDE_FILLER: usize = 32_000;
/// A sender's messages in a burst, and how long it rests behind one: together 8 MB a second, of which [`RETENTION_AGE`] leaves room.
const BURST: u32 = 8;
const REST: Duration = Duration::from_millis(4);
/// `DiskFull` is an answer and no time-out: far below the 60 s that a producer waits for its messages, above what a busy machine takes.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A busy machine.
const WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a message is: the producer that made it, and which of its messages for that queue.
type Stamp = (usize, u64);

fn body((producer, number): Stamp, queue: QueueId) -> String {
    let mut body = format!("{producer} {number} {queue} ");
    body.extend(std::iter::repeat_n('.', BODY_BYTES));
    body
}

#[track_caller]
fn stamp(delivery: &Delivery) -> Stamp {
    let text = delivery.text().expect("a body is text");
    let mut words = text.split(' ').map(str::parse::<u64>);
    let (Some(Ok(producer)), Some(Ok(number))) = (words.next(), words.next()) else { panic!("{text:?}") };
    let stamp = (producer as usize, number);
    assert_eq!(text, body(stamp, delivery.queue), "a payload is not what was sent");
    stamp
}

/// One queue's history, by offset.
#[derive(Default)]
struct Stream {
    delivered: Vec<Stamp>,
    acknowledged: Vec<Option<Stamp>>,
    /// Of each producer, the number that is next in the stream.
    next: [u64; LEVELS.len()],
    group_next: u64,
}

#[derive(Clone)]
struct Stage {
    streams: Arc<Mutex<Vec<Stream>>>,
    stop: Arc<AtomicBool>,
}

impl Stage {
    fn acknowledged(&self) -> usize {
        self.streams.lock().unwrap().iter().map(|stream| stream.acknowledged.len()).sum()
    }

    /// Waits until so many more messages are acknowledged.
    async fn stores_more(&self, messages: usize) {
        let before = self.acknowledged();
        until("messages are acknowledged", async || self.acknowledged() >= before + messages).await;
    }

    /// Sends until it is told to stop, whether the disk is full or not; every message is stored in the end.
    async fn send(self, producer: Producer, of: usize) {
        let mut numbers = [0; QUEUES as usize];
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let queue = QueueId(turn % QUEUES);
            turn = turn.wrapping_add(1);
            let number = &mut numbers[queue.0 as usize];
            let stamp = (of, *number);
            *number += 1;
            let streams = self.streams.clone();
            let note = move |result: peregrine_client::Result<Receipt>| {
                let receipt = result.expect("every message is stored in the end");
                assert!(receipt.level >= LEVELS[of] && receipt.queue == queue, "{receipt:?}");
                let stream = &mut streams.lock().unwrap()[queue.0 as usize];
                let at = receipt.offset.0 as usize;
                if stream.acknowledged.len() <= at {
                    stream.acknowledged.resize(at + 1, None);
                }
                assert_eq!(stream.acknowledged[at].replace(stamp), None, "offset {at} was acknowledged twice");
            };
            let message = Message::new(body(stamp, queue)).queue(queue).level(LEVELS[of]);
            producer.send_with(message, note).await.unwrap();
            if turn % BURST == 0 {
                sleep(REST).await;
            }
        }
        producer.flush().await;
        assert_eq!(producer.lost(), 0);
    }

    /// Reads all the time: nothing is missing, twice or out of order.
    async fn read(self, mut reader: Reader) {
        while let Some(delivery) = reader.next().await {
            let delivery = delivery.expect("nothing is taken back from a reader");
            let (producer, number) = stamp(&delivery);
            let stream = &mut self.streams.lock().unwrap()[delivery.queue.0 as usize];
            assert_eq!(delivery.offset.0, stream.delivered.len() as u64, "offsets follow each other");
            assert_eq!(number, stream.next[producer], "lost, twice or out of order: {producer} in {}", delivery.queue);
            stream.next[producer] += 1;
            stream.delivered.push((producer, number));
        }
        unreachable!("a reader without patience and without an end goes on");
    }

    /// A member of the group, which has every message and acknowledges it.
    async fn consume(self, mut consumer: Consumer) {
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.expect("a member goes on");
            stamp(&delivery);
            let next = &mut self.streams.lock().unwrap()[delivery.queue.0 as usize].group_next;
            assert!(delivery.offset.0 <= *next, "the group missed {next}..{} of {}", delivery.offset, delivery.queue);
            *next = (*next).max(delivery.offset.0 + 1);
        }
    }

    /// Waits until the reader has all that was acknowledged, and looks whether it is the same.
    async fn all_read(&self) {
        let ends: Vec<usize> = self.streams.lock().unwrap().iter().map(|stream| stream.acknowledged.len()).collect();
        let has_come = async || {
            let streams = self.streams.lock().unwrap();
            streams.iter().zip(&ends).all(|(stream, &end)| stream.delivered.len() >= end)
        };
        until("what was acknowledged is read", has_come).await;
        for stream in self.streams.lock().unwrap().iter() {
            let both = stream.delivered.iter().zip(&stream.acknowledged).enumerate();
            for (offset, (delivered, acknowledged)) in both {
                assert!(acknowledged.is_none_or(|it| it == *delivered), "offset {offset}: {acknowledged:?}");
            }
        }
    }
}

/// Waits until the condition holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let held = async {
        while !condition().await {
            sleep(LOOK_EVERY).await;
        }
    };
    assert!(timeout(WITHIN, held).await.is_ok(), "{what}: not so after {WITHIN:?}");
}

/// What the group has acknowledged is what each queue holds.
async fn group_has_all(client: &Client) -> Vec<u64> {
    let mut places = Vec::new();
    until("the group has acknowledged everything", async || {
        let Ok(lag) = client.admin().group_lag("billing").await else { return false };
        places = lag.iter().map(|queue| queue.offset.0).collect();
        lag.len() == QUEUES as usize && lag.iter().all(|queue| queue.messages() == 0)
    })
    .await;
    places
}

/// Takes the rest of a file system but for `left` bytes.
struct Filler<'a>(&'a Path);

impl<'a> Filler<'a> {
    fn take(path: &'a Path, left: u64) -> Self {
        let file = File::create(path).unwrap();
        let free = || {
            let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
            // SAFETY: the descriptor is open, and the call fills the memory that it is lent.
            let stat = unsafe {
                assert_eq!(libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()), 0);
                stat.assume_init()
            };
            stat.f_bavail * stat.f_frsize
        };
        // The file system counts some of it for itself, and others take and give back meanwhile.
        let mut size = 0;
        let mut step = free().saturating_sub(left);
        while step > 0 {
            // SAFETY: a plain system call without memory of ours.
            let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), size as i64, step as i64) };
            if error == 0 {
                size += step;
                step = free().saturating_sub(left);
            } else {
                assert_eq!(error, libc::ENOSPC);
                step = if step > 4096 { step / 2 } else { 0 };
            }
        }
        Self(path)
    }
}

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

fn shard_statistic(broker: &Broker, what: &str) -> Vec<serde_json::Value> {
    let figures = Connection::open(broker.address(), None).shard_statistics();
    figures["shards"].as_array().unwrap().iter().map(|shard| shard.pointer(what).unwrap().clone()).collect()
}

fn refusals(broker: &Broker) -> u64 {
    shard_statistic(broker, "/log/refused_disk_full").iter().filter_map(serde_json::Value::as_u64).sum()
}

/// Sends to each shard until it says that the disk is full: what it has room for is stored, and every answer comes soon.
fn assert_disk_full(broker: &Broker, topic: TopicId) {
    let bodies = ["x".repeat(PROBE_BYTES)];
    let mut connection = Connection::open(broker.address(), None);
    for queue in (0..u32::from(SHARDS)).map(QueueId) {
        let batch = Sent { topic, queue, level: DurableLevel::Synced, producer: None, bodies: &bodies };
        let is_full = (0..PROBES_MAX).any(|_| {
            let asked = Instant::now();
            let reply = connection.produce(&batch);
            assert!(asked.elapsed() < AT_ONCE, "the answer took {:?}", asked.elapsed());
            match reply {
                Reply::Produced(_) => false,
                Reply::Error { code, sentence, .. } => {
                    assert_eq!(code, Some(ErrorCode::DiskFull), "{sentence}");
                    true
                }
                reply => panic!("a full disk answered {reply:?}"),
            }
        });
        assert!(is_full, "{PROBES_MAX} batches found room");
    }
}

/// A broker on a small disk of its own, and those who use it.
struct Play {
    broker: Broker,
    client: Client,
    stage: Stage,
    probed: TopicId,
    senders: Vec<JoinHandle<()>>,
    consumers: Vec<JoinHandle<()>>,
    filler: PathBuf,
    /// Behind the broker, which has files on it.
    _mount: Mount,
}

impl Play {
    /// `None` where no disk can be had.
    async fn begin(arguments: &[String]) -> Option<Self> {
        let settings = Settings::default().shards(SHARDS).argument("--checkpoint-size=4MiB");
        let settings = settings.argument("--checkpoint-age=500ms").argument(format!("--keep-free={KEEP_FREE}"));
        let mut broker = arguments.iter().fold(settings, Settings::argument).prepare();
        let (image, mounted) = (broker.home().join("image"), broker.home().join("disk"));
        fs::create_dir(&mounted).unwrap();
        let mount = Mount::image(&mounted, &image, IMAGE_BYTES)?;
        broker.set_data(mount.path().join("data"));
        broker.start_again();

        let stage = Stage { streams: Arc::default(), stop: Arc::default() };
        stage.streams.lock().unwrap().resize_with(QUEUES as usize, Stream::default);
        let client = Client::connect(broker.address().to_string()).await.unwrap();
        client.admin().create_topic(TOPIC, QUEUES).await.unwrap();
        let probed = client.admin().create_topic("probed", SHARDS.into()).await.unwrap().0.id;
        let reader = client.reader(TOPIC).from(Start::Earliest).build().await.unwrap();
        let member = client.consumer("billing").topic(TOPIC).start(Start::Earliest).build().await.unwrap();
        let consumers = vec![tokio::spawn(stage.clone().read(reader)), tokio::spawn(stage.clone().consume(member))];
        let mut senders = Vec::new();
        for (number, level) in LEVELS.into_iter().enumerate() {
            let client = Client::connect(broker.address().to_string()).await.unwrap();
            let producer = client.producer(TOPIC).level(level).batch_bytes(BATCH_BYTES).buffer_bytes(BUFFER_BYTES);
            senders.push(tokio::spawn(stage.clone().send(producer.build().await.unwrap(), number)));
        }
        let filler = mount.path().join("filler");
        Some(Self { broker, client, stage, probed, senders, consumers, filler, _mount: mount })
    }

    fn assert_all_go_on(&self) {
        for task in self.senders.iter().chain(&self.consumers) {
            assert!(!task.is_finished(), "a task has failed; its panic stands above");
        }
    }

    /// Everything is there, in order, once: for those who were there all the time, and for who comes after a `kill -9`.
    async fn end(self) {
        let Self { _mount, mut broker, client, stage, senders, consumers, .. } = self;
        stage.stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.await.unwrap();
        }
        stage.all_read().await;
        let places = group_has_all(&client).await;
        broker.kill_nine();
        broker.start_again();
        assert_eq!(group_has_all(&client).await, places, "the places of the group outlive the broker");
        consumers.iter().for_each(JoinHandle::abort);

        // Who comes later sees the same, as far as it is kept.
        let mut again: Vec<Vec<Stamp>> = vec![Vec::new(); QUEUES as usize];
        let mut starts = vec![None; QUEUES as usize];
        let mut reader = client.reader(TOPIC).from(Start::Earliest).until_end().build().await.unwrap();
        while let Some(delivery) = reader.next().await {
            let delivery = match delivery {
                // Retention goes on while it reads: what it has is one stretch again from there on.
                Err(peregrine_client::Error::TooOld { queue, .. }) => {
                    again[queue.0 as usize].clear();
                    starts[queue.0 as usize] = None;
                    continue;
                }
                delivery => delivery.unwrap(),
            };
            let queue = delivery.queue.0 as usize;
            starts[queue].get_or_insert(delivery.offset.0 as usize);
            again[queue].push(stamp(&delivery));
        }
        let streams = stage.streams.lock().unwrap();
        for ((stream, again), start) in streams.iter().zip(&again).zip(starts) {
            let start = start.unwrap_or(stream.delivered.len());
            assert!(stream.delivered[start..] == again[..], "a reader that comes later sees another history");
            assert!(stream.acknowledged.iter().all(Option::is_some), "each offset was acknowledged once");
            assert_eq!(stream.acknowledged.len(), stream.delivered.len());
        }
        let all: usize = streams.iter().map(|stream| stream.delivered.len()).sum();
        println!("{all} messages acknowledged: 0 lost, 0 reordered, 0 twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_is_left_without_a_restart() {
    let Some(play) = Play::begin(&[]).await else { return };
    let Play { broker, client, stage, .. } = &play;
    for cycle in 0..3 {
        let name = format!("topic-{cycle}");
        // A shard finds out within its next attempt that there is space again.
        until("a topic can be made", async || client.admin().create_topic(&name, 1).await.is_ok()).await;
        stage.stores_more(MESSAGES_PER_CYCLE).await;
        let began = Instant::now();
        let taken = Filler::take(&play.filler, 0);
        until("no shard stores batches", async || {
            let before = stage.acknowledged();
            sleep(LOOK_EVERY * 20).await;
            stage.acknowledged() == before && shard_statistic(broker, "/disk_full").iter().all(|it| it == true)
        })
        .await;
        assert_disk_full(broker, play.probed);
        // Who has messages left gets them, and what is acknowledged counts; a topic can be deleted, and none be made.
        stage.all_read().await;
        group_has_all(client).await;
        let mut connection = Connection::open(broker.address(), None);
        let reply = connection.ask(&Request::CreateTopic(CreateTopic {
            name: "another",
            queues: 1,
            retention: TopicRetention::default(),
        }));
        assert!(matches!(reply, Reply::Error { code: Some(ErrorCode::DiskFull), .. }), "{reply:?}");
        let deleted = connection.ask(&Request::DeleteTopic(DeleteTopic { name: &name, id: None }));
        assert!(!matches!(deleted, Reply::Error { .. }), "{deleted:?}");
        let full = began.elapsed();
        drop(taken);
        stage.stores_more(MESSAGES_PER_CYCLE).await;
        play.assert_all_go_on();
        println!("cycle {cycle}: {} messages acknowledged, full for {full:?}", stage.acknowledged());
    }
    play.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_makes_room_on_a_disk_that_another_filled() {
    let Some(play) = Play::begin(&[format!("--retention-age={}s", RETENTION_AGE.as_secs())]).await else { return };
    let Play { broker, stage, .. } = &play;
    for cycle in 0..2 {
        // There is something to give up, which is looked at when it is old.
        until("each shard has sealed segments", async || {
            shard_statistic(broker, "/log/sealed_segments").iter().all(|segments| segments.as_u64() >= Some(2))
        })
        .await;
        let began = Instant::now();
        let taken = Filler::take(&play.filler, LEFT_FOR_CHECKPOINTS);
        // The filler stays: what is stored from some time on is stored where something was given up.
        let before = refusals(broker);
        stage.stores_more(MESSAGES_BESIDE_FILLER).await;
        let (full, refused) = (began.elapsed(), refusals(broker) - before);
        drop(taken);
        stage.stores_more(MESSAGES_PER_CYCLE).await;
        play.assert_all_go_on();
        println!(
            "cycle {cycle}: {} messages acknowledged, {MESSAGES_BESIDE_FILLER} of them within {full:?} on a full disk, \
             {refused} batches refused",
            stage.acknowledged()
        );
    }
    play.end().await;
}
