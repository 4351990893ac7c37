//! `kill -9` under load: the broker is killed again and again at random instants while producers send to several topics at both
//! levels and consumers read; after each kill nothing that was acknowledged is missing, out of order, twice, or other than it was
//! sent.
//!
//! ```text
//!   ready      load, everything acknowledged before is read        kill -9    start again
//! ├──────────┼──────────────────────────────────────── random ───┼──────────┼───────────┤   so many times
//! ```
//!
//! Every message says which producer made it for which queue, with which number, so that each queue's stream proves itself: the numbers
//! of a producer follow each other without a gap, and what an acknowledgement said of an offset stands there. 20 kills, or as many as
//! `PEREGRINE_TEST_KILLS` says; who says so also wants at least 20,000 acknowledged messages a second over all of it, restarts
//! included: `PEREGRINE_TEST_KILLS=200 cargo test -p peregrine-tests --test kill_nine -- --nocapture`.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, DurableLevel, Message, Producer, QueueId, Reader, Receipt, Start};
use peregrine_tests::broker::Settings;
use peregrine_tests::random::Random;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

const TOPICS: [&str; 2] = ["orders", "payments"];
const QUEUES: u32 = 4;
const SHARDS: u16 = 2;
/// For each topic one producer that asks for `memory`, one for `synced`, and one that asks for either in stretches.
const LEVELS: [Level; 3] = [Level::Always(DurableLevel::Memory), Level::Always(DurableLevel::Synced), Level::InTurn];
/// Each of them sends so many messages each tick: 30,000 a second in all.
const TICK: Duration = Duration::from_millis(2);
const SENT_PER_TICK: u64 = 10;
/// A producer that takes either level changes it after so many messages.
const STRETCH: u64 = 64;
/// Messages have a line that says what they are, and up to so many bytes behind it.
const FILL_BYTES_MAX: u64 = 160;
/// A kill comes so long after the last one's messages were read, at the most.
const KILL_WITHIN_MICROS: u64 = 600_000;
/// What the long form asks for, acknowledged messages a second.
const RATE_MIN: f64 = 20_000.0;
/// A busy machine.
const WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
enum Level {
    Always(DurableLevel),
    InTurn,
}

impl Level {
    fn of(self, number: u64) -> DurableLevel {
        match self {
            Level::Always(level) => level,
            Level::InTurn if (number / STRETCH).is_multiple_of(2) => DurableLevel::Memory,
            Level::InTurn => DurableLevel::Synced,
        }
    }
}

/// What a message is: the producer that made it, and which of its messages for that queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    producer: usize,
    number: u64,
}

impl Stamp {
    /// The body of that message, and of no other.
    fn body(self, topic: &str, queue: QueueId) -> String {
        let Stamp { producer, number } = self;
        let mut body = format!("{producer} {number} {topic} {queue} ");
        let length = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % FILL_BYTES_MAX;
        for at in 0..length / 4 {
            write!(body, "{:04x}", (number * 31 + producer as u64 * 7 + at * 2_654_435_761) & 0xFFFF).unwrap();
        }
        body
    }

    /// # Panics
    /// Where the body is not that of a message for this queue.
    #[track_caller]
    fn read(delivery: &Delivery) -> Self {
        let body = delivery.text().expect("a body is text");
        let mut words = body.split(' ').map(str::parse);
        let (Some(Ok(producer)), Some(Ok(number))) = (words.next(), words.next()) else {
            panic!("{} {} at {}: {body:?}", delivery.topic, delivery.queue, delivery.offset)
        };
        let stamp = Stamp { producer: producer as usize, number };
        assert_eq!(body, stamp.body(&delivery.topic, delivery.queue), "a payload is not what was sent");
        stamp
    }
}

/// One queue's history.
#[derive(Default)]
struct Stream {
    /// By offset, as the reader that was attached all the time got it.
    delivered: Vec<Stamp>,
    /// By offset, as producers were told.
    acknowledged: Vec<Option<Stamp>>,
    /// Of each producer, the number that is next in the stream.
    next: BTreeMap<usize, u64>,
    /// How far the consumer group has come.
    group_next: u64,
}

impl Stream {
    fn deliver(&mut self, delivery: &Delivery) {
        let stamp = Stamp::read(delivery);
        assert_eq!(delivery.offset.0, self.delivered.len() as u64, "offsets follow each other");
        let next = self.next.entry(stamp.producer).or_default();
        assert_eq!(
            stamp.number, *next,
            "{} {}: {stamp:?} is lost, twice or out of order",
            delivery.topic, delivery.queue
        );
        *next += 1;
        self.delivered.push(stamp);
    }

    /// # Panics
    /// Where this offset was acknowledged before, for whatever message.
    fn acknowledge(&mut self, receipt: &Receipt, stamp: Stamp) {
        let at = receipt.offset.0 as usize;
        if self.acknowledged.len() <= at {
            self.acknowledged.resize(at + 1, None);
        }
        let before = self.acknowledged[at].replace(stamp);
        assert_eq!(before, None, "offset {at} of {} was acknowledged twice", receipt.queue);
    }

    /// What was acknowledged is what was read, as far as that has come.
    fn assert_agrees(&self) {
        for (offset, (delivered, acknowledged)) in self.delivered.iter().zip(&self.acknowledged).enumerate() {
            assert!(acknowledged.is_none_or(|it| it == *delivered), "offset {offset}: {acknowledged:?}, {delivered:?}");
        }
    }
}

#[derive(Default)]
struct Record {
    /// Of each topic, of each queue.
    streams: Vec<Vec<Stream>>,
    sent: u64,
    acknowledged: u64,
    at_memory: u64,
    /// Found stored when they were sent again.
    found_again: u64,
    /// What the group got more than once.
    group_again: u64,
}

/// What producers and consumers share.
#[derive(Clone)]
struct Stage {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
}

impl Stage {
    /// Sends at its rate until it is told to stop, whether the broker is there or not; then waits for the last acknowledgement.
    async fn send(self, producer: Producer, topic: usize, of: usize, level: Level) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut numbers = [0; QUEUES as usize];
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            for _ in 0..SENT_PER_TICK {
                let queue = QueueId(turn % QUEUES);
                turn = turn.wrapping_add(1);
                let number = &mut numbers[queue.0 as usize];
                let stamp = Stamp { producer: of, number: *number };
                *number += 1;
                let level = level.of(stamp.number);
                let message = Message::new(stamp.body(TOPICS[topic], queue)).queue(queue).level(level);
                self.record.lock().unwrap().sent += 1;
                let record = self.record.clone();
                let note = move |result: peregrine_client::Result<Receipt>| {
                    let receipt = result.expect("every message is stored in the end");
                    assert!(receipt.level >= level && receipt.queue == queue, "{receipt:?}");
                    let mut record = record.lock().unwrap();
                    record.acknowledged += 1;
                    record.at_memory += u64::from(level == DurableLevel::Memory);
                    record.found_again += u64::from(receipt.duplicate);
                    record.streams[topic][queue.0 as usize].acknowledge(&receipt, stamp);
                };
                producer.send_with(message, note).await.unwrap();
            }
        }
        producer.flush().await;
        assert_eq!(producer.lost(), 0, "a kill takes nothing that was acknowledged");
    }

    /// Reads one topic over all kills, for ever.
    async fn read(self, mut reader: Reader, topic: usize) {
        while let Some(delivery) = reader.next().await {
            let delivery = delivery.expect("a kill takes nothing back from a reader");
            self.record.lock().unwrap().streams[topic][delivery.queue.0 as usize].deliver(&delivery);
        }
        unreachable!("a reader without patience and without an end goes on");
    }

    /// A member of a group on the first topic, for ever: what is new comes in order and without a gap.
    async fn consume(self, mut consumer: Consumer) {
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.expect("a member goes on");
            Stamp::read(&delivery);
            let mut record = self.record.lock().unwrap();
            let next = &mut record.streams[0][delivery.queue.0 as usize].group_next;
            assert!(delivery.offset.0 <= *next, "the group missed {next}..{} of {}", delivery.offset, delivery.queue);
            let is_new = delivery.offset.0 == *next;
            *next += u64::from(is_new);
            record.group_again += u64::from(!is_new);
        }
    }

    /// Of each queue how far it is acknowledged.
    fn acknowledged(&self) -> Vec<usize> {
        let record = self.record.lock().unwrap();
        record.streams.iter().flatten().map(|stream| stream.acknowledged.len()).collect()
    }

    /// Waits until the attached reader has everything up to these offsets, and looks whether it is what was acknowledged.
    async fn all_read(&self, up_to: &[usize]) {
        let has_come = || {
            let record = self.record.lock().unwrap();
            record.streams.iter().flatten().zip(up_to).all(|(stream, &end)| stream.delivered.len() >= end)
        };
        until("what was acknowledged before the kill is read", has_come).await;
        self.record.lock().unwrap().streams.iter().flatten().for_each(Stream::assert_agrees);
    }
}

/// Waits until the condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let held = async {
        while !condition() {
            sleep(LOOK_EVERY).await;
        }
    };
    assert!(timeout(WITHIN, held).await.is_ok(), "{what}: not so after {WITHIN:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_reordered_by_kills_under_load() {
    let asked =
        std::env::var("PEREGRINE_TEST_KILLS").ok().map(|kills| kills.parse::<u32>().expect("a number of kills"));
    let kills = asked.unwrap_or(20);
    let mut random = Random::for_test();
    let mut broker = Settings::default().shards(SHARDS).ring_bytes(8 << 20).segment_bytes(16 << 20).start();
    let streams = || (0..QUEUES).map(|_| Stream::default()).collect();
    let record = Record { streams: TOPICS.iter().map(|_| streams()).collect(), ..Record::default() };
    let stage = Stage { record: Arc::new(Mutex::new(record)), stop: Arc::new(AtomicBool::new(false)) };

    let client = Client::connect(broker.address().to_string()).await.unwrap();
    let mut consumers = Vec::new();
    let mut senders = Vec::new();
    for (topic, name) in TOPICS.into_iter().enumerate() {
        client.admin().create_topic(name, QUEUES).await.unwrap();
        let reader = client.reader(name).from(Start::Earliest).build().await.unwrap();
        consumers.push(tokio::spawn(stage.clone().read(reader, topic)));
        for (number, level) in LEVELS.into_iter().enumerate() {
            // One connection each, as processes of their own would have.
            let client = Client::connect(broker.address().to_string()).await.unwrap();
            let producer = client.producer(name).build().await.unwrap();
            senders.push(tokio::spawn(stage.clone().send(producer, topic, topic * LEVELS.len() + number, level)));
        }
    }
    let member = client.consumer("billing").topic(TOPICS[0]).start(Start::Earliest).build().await.unwrap();
    consumers.push(tokio::spawn(stage.clone().consume(member)));

    let began = Instant::now();
    let (mut restarts, mut from_ring) = (Vec::new(), 0);
    for kill in 1..=kills {
        let before = stage.acknowledged();
        until("messages are acknowledged", || stage.acknowledged().iter().zip(&before).all(|(now, then)| now > then))
            .await;
        // Where in the stream the kill falls is chance: a pause that stands for no condition.
        sleep(Duration::from_micros(random.below(KILL_WITHIN_MICROS))).await;
        broker.kill_nine();
        let promised = stage.acknowledged();
        let restarted = Instant::now();
        from_ring += broker.start_again().messages_from_ring;
        restarts.push(restarted.elapsed());
        stage.all_read(&promised).await;
        assert!(
            senders.iter().chain(&consumers).all(|task| !task.is_finished()),
            "a task has failed; its panic stands above"
        );
        if kill % 20 == 0 {
            eprintln!("{kill} kills, {} acknowledged", promised.iter().sum::<usize>());
        }
    }
    stage.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    let promised = stage.acknowledged();
    stage.all_read(&promised).await;
    let ends: Vec<u64> = promised[..QUEUES as usize].iter().map(|&end| end as u64).collect();
    let group_has_all = || {
        let record = stage.record.lock().unwrap();
        record.streams[0].iter().zip(&ends).all(|(stream, end)| stream.group_next == *end)
    };
    until("the group has everything", group_has_all).await;
    for consumer in consumers {
        consumer.abort();
    }

    // A clean stop and another start change nothing.
    assert!(broker.terminate().success(), "a clean stop is a success");
    assert_eq!(broker.start_again().messages_from_ring, 0, "a clean stop leaves nothing in the ring alone");
    for (topic, name) in TOPICS.into_iter().enumerate() {
        let mut again: Vec<Stream> = streams();
        let mut reader = client.reader(name).from(Start::Earliest).until_end().build().await.unwrap();
        while let Some(delivery) = reader.next().await {
            let delivery = delivery.unwrap();
            again[delivery.queue.0 as usize].deliver(&delivery);
        }
        for (stream, again) in stage.record.lock().unwrap().streams[topic].iter().zip(&again) {
            assert!(stream.delivered == again.delivered, "a reader that comes later sees another history");
            assert!(stream.acknowledged.iter().all(Option::is_some), "each offset was acknowledged once");
        }
    }
    let record = stage.record.lock().unwrap();
    let delivered: usize = record.streams.iter().flatten().map(|stream| stream.delivered.len()).sum();
    assert_eq!((record.acknowledged, delivered as u64), (record.sent, record.sent));
    restarts.sort_unstable();
    let rate = record.acknowledged as f64 / seconds;
    println!(
        "{kills} kills, {} messages acknowledged ({} at memory), {rate:.0} a second over {seconds:.1} s with the restarts: 0 lost, \
         0 reordered, 0 twice; {from_ring} came back from the ring, {} were found stored when sent again, {} came to the group again",
        record.acknowledged, record.at_memory, record.found_again, record.group_again
    );
    let [min, median, max] = [0, restarts.len() / 2, restarts.len() - 1].map(|at| restarts[at].as_secs_f64() * 1e3);
    println!("restart to ready: min {min:.0} ms, median {median:.0} ms, max {max:.0} ms");
    assert!(asked.is_none() || rate >= RATE_MIN, "{rate:.0} messages a second are too few to show anything");
}
