//! Consumer groups on real brokers: real data shared by members, over `kill -9`, and who holds which queue as members come and go.
//!
//! Members come and go for `PEREGRINE_TEST_CHURN_SECONDS` (5), `PEREGRINE_TEST_CHURN_MEMBERS` (16) of them at a time.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, DurableLevel, Message, QueueId, Start};
use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::command_line::RunningCommand;
use peregrine_tests::dataset::{Dataset, KEY_DELIMITER, KEY_FIELD};
use peregrine_tests::random::Random;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const LINES: usize = 20_000;
const QUEUES: u32 = 8;
/// A busy machine, a restart of the broker, the settling of a group.
const WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One message in one member's hands.
#[derive(Clone, Debug)]
struct Taken {
    member: String,
    queue: QueueId,
    offset: u64,
    attempt: u16,
    line: String,
    /// Kills before it.
    life: usize,
    at: Instant,
}

/// What all members took, in the order in which they did.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<(Vec<Taken>, usize)>>);

impl Record {
    fn take(&self, member: &str, message: &Delivery) {
        let mut record = self.0.lock().unwrap();
        let life = record.1;
        record.0.push(Taken {
            member: member.to_owned(),
            queue: message.queue,
            offset: message.offset.0,
            attempt: message.attempt,
            line: message.text().unwrap().to_owned(),
            life,
            at: Instant::now(),
        });
    }

    fn killed(&self) {
        self.0.lock().unwrap().1 += 1;
    }

    fn all(&self) -> Vec<Taken> {
        self.0.lock().unwrap().0.clone()
    }

    fn distinct(&self) -> usize {
        self.all().iter().map(|taken| (taken.queue, taken.offset)).collect::<BTreeSet<_>>().len()
    }
}

/// A consumer that takes messages until it is told to close.
struct Member {
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Member {
    async fn join(broker: &Broker, name: &str, record: Record) -> Self {
        let client = Client::connect(broker.address().to_string()).await.unwrap();
        let builder = client.consumer("billing").topic("flights").member(name).start(Start::Earliest);
        let consumer = builder.build().await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let name = name.to_owned();
        Member { stop, task: tokio::spawn(run(consumer, name, record, stopped)) }
    }

    async fn close(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

async fn run(mut consumer: Consumer, name: String, record: Record, mut stopped: tokio::sync::oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            message = consumer.next() => record.take(&name, &message.expect("a consumer goes on").unwrap()),
        }
    }
    consumer.close().await.unwrap();
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not so after {WITHIN:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// How far the group is in each queue.
async fn places(client: &Client) -> BTreeMap<QueueId, u64> {
    let lag = client.admin().group_lag("billing").await.unwrap();
    lag.into_iter().map(|row| (row.queue, row.offset.0)).collect()
}

/// Which queues each member holds, as the owners of the queues say.
async fn holders(client: &Client) -> BTreeMap<String, BTreeSet<QueueId>> {
    let admin = client.admin();
    let members = admin.describe_group("billing").await.unwrap().members;
    let mut held: BTreeMap<_, _> = members.iter().map(|member| (member.name.clone(), BTreeSet::new())).collect();
    for row in admin.group_lag("billing").await.unwrap() {
        if let Some(member) = members.iter().find(|member| Some(member.id) == row.holder) {
            held.get_mut(&member.name).unwrap().insert(row.queue);
        }
    }
    held
}

fn sizes(held: &BTreeMap<String, BTreeSet<QueueId>>) -> Vec<usize> {
    let mut sizes: Vec<usize> = held.values().map(BTreeSet::len).collect();
    sizes.sort_unstable();
    sizes
}

fn produce(broker: &Broker) -> RunningCommand {
    let key_field = KEY_FIELD.to_string();
    let arguments = ["produce", "flights", "-", "--key-delimiter", KEY_DELIMITER, "--key-field", &key_field];
    let mut command = broker.command_line().command(&arguments);
    command.stdin(Stdio::piped());
    RunningCommand::spawn(command)
}

#[test]
fn a_group_gets_every_line_over_a_kill_of_1_shard() {
    survives_a_kill(1);
}

#[test]
fn a_group_gets_every_line_over_a_kill_of_2_shards() {
    survives_a_kill(2);
}

#[test]
fn a_group_gets_every_line_over_a_kill_of_4_shards() {
    survives_a_kill(4);
}

/// Three members share eight queues while the data comes, and the broker is killed and started again in the middle.
#[tokio::main]
async fn survives_a_kill(shards: u16) {
    let data = Dataset::flights(LINES);
    let mut broker = Settings::default().shards(shards).start();
    broker.command_line().create_topic("flights", QUEUES);
    let record = Record::default();
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(Member::join(&broker, name, record.clone()).await);
    }
    let client = Client::connect(broker.address().to_string()).await.unwrap();
    until("the queues are shared", async || sizes(&holders(&client).await) == [2, 3, 3]).await;

    let mut producer = produce(&broker);
    let mut input = producer.take_input();
    let lines = data.lines().to_vec();
    let sending = std::thread::spawn(move || {
        use std::io::Write;
        for line in &lines {
            writeln!(input, "{line}").expect("the producer reads its input");
        }
    });
    until("half of the lines have come", async || record.distinct() > LINES / 2).await;
    let before = places(&client).await;
    broker.kill_nine();
    record.killed();
    broker.start_again();
    sending.join().unwrap();
    producer.wait().succeeded();
    until("every line has come", async || record.distinct() >= LINES).await;
    for member in members {
        member.close().await;
    }

    // Each line, in order per key, counted when it came first.
    let taken = record.all();
    let mut seen: BTreeMap<(QueueId, u64), Taken> = BTreeMap::new();
    let mut firsts = Vec::new();
    let mut twice = 0;
    for message in taken {
        let key = (message.queue, message.offset);
        let Some(first) = seen.get(&key) else {
            firsts.push(message.line.clone());
            seen.insert(key, message);
            continue;
        };
        // Twice is only what was delivered and not acknowledged when the broker was killed.
        twice += 1;
        assert_eq!(first.line, message.line, "an offset means one message");
        assert!((first.life, message.life) == (0, 1), "again without a reason: {first:?}, {message:?}");
        assert!(message.offset >= before[&message.queue], "again after it was acknowledged: {first:?}, {message:?}");
    }
    data.assert_delivered(&firsts);
    eprintln!("{shards} shards: {LINES} lines, {twice} of them twice");

    // All is acknowledged: who joins now gets what comes now, exactly once.
    let late = Record::default();
    let mut members = Vec::new();
    for name in ["d", "e"] {
        members.push(Member::join(&broker, name, late.clone()).await);
    }
    until("the queues are shared again", async || sizes(&holders(&client).await) == [4, 4]).await;
    let producer = client.producer("flights").build().await.unwrap();
    for number in 0..100 {
        producer.send(Message::new(format!("late {number}")).key(number.to_string())).await.unwrap();
    }
    until("the late messages have come", async || late.all().len() >= 100).await;
    for member in members {
        member.close().await;
    }
    let mut came: Vec<String> = late.all().into_iter().map(|taken| taken.line).collect();
    let mut sent: Vec<String> = (0..100).map(|number| format!("late {number}")).collect();
    came.sort_unstable();
    sent.sort_unstable();
    assert_eq!(came, sent, "exactly once");
    assert!(late.all().iter().all(|taken| taken.attempt == 1));
    until("nothing is left", async || {
        let lag = client.admin().group_lag("billing").await.unwrap();
        lag.iter().all(|row| row.messages() == 0)
    })
    .await;
}

/// 8 queues and 3 members on 2 shards: 3, 3 and 2. Who leaves gives its queues to the others and moves no other; who joins takes as
/// many as evenness needs.
#[tokio::test]
async fn queues_are_shared_evenly_and_move_only_where_they_must() {
    let broker = Settings::default().shards(2).start();
    broker.command_line().create_topic("flights", QUEUES);
    let record = Record::default();
    let mut members = BTreeMap::new();
    for name in ["a", "b", "c"] {
        members.insert(name, Member::join(&broker, name, record.clone()).await);
    }
    let client = Client::connect(broker.address().to_string()).await.unwrap();
    until("3/3/2", async || sizes(&holders(&client).await) == [2, 3, 3]).await;
    let before = holders(&client).await;

    members.remove("b").unwrap().close().await;
    until("4/4", async || sizes(&holders(&client).await) == [4, 4]).await;
    let after = holders(&client).await;
    for (name, queues) in &after {
        assert!(queues.is_superset(&before[name]), "{name} had {:?} and has {queues:?}", before[name]);
    }

    members.insert("d", Member::join(&broker, "d", record.clone()).await);
    until("3/3/2 again", async || sizes(&holders(&client).await) == [2, 3, 3]).await;
    let last = holders(&client).await;
    assert_eq!(last["d"].len(), 2, "as many as evenness needs: {last:?}");
    for name in ["a", "c"] {
        assert!(last[name].is_subset(&after[name]), "{name} had {:?} and has {:?}", after[name], last[name]);
    }
    for member in members.into_values() {
        member.close().await;
    }
}

/// Messages a second while members come and go.
const CHURN_RATE: u32 = 5_000;
/// A member stays so long, at the least and at the most, milliseconds.
const STAYS: (u64, u64) = (200, 3_000);

/// How long one that leaves without a word waits for a last message.
const IN_HAND_WITHIN: Duration = Duration::from_millis(100);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Members join and leave at random, some of them without a word, while messages come: none is lost, none is out of order, and what
/// comes twice says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_nothing() {
    let seconds = setting("PEREGRINE_TEST_CHURN_SECONDS", 5);
    let slots = setting("PEREGRINE_TEST_CHURN_MEMBERS", 16);
    let mut random = Random::for_test();
    let broker = Settings::default().shards(2).start();
    broker.command_line().create_topic("flights", QUEUES);
    let record = Record::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    let address = broker.address().to_string();
    let mut churning = Vec::new();
    for slot in 0..slots {
        let (address, record, mut random) = (address.clone(), record.clone(), random.fork());
        churning.push(tokio::spawn(async move {
            let (mut joined, mut dropped) = (0_u64, 0_u64);
            while Instant::now() < end {
                let client = Client::connect(address.clone()).await.unwrap();
                let name = format!("member-{slot}-{joined}");
                let mut consumer = client.consumer("billing").topic("flights").member(&name).build().await.unwrap();
                joined += 1;
                let until = Instant::now() + Duration::from_millis(STAYS.0 + random.below(STAYS.1 - STAYS.0));
                while let Ok(message) = tokio::time::timeout_at(until, consumer.next()).await {
                    record.take(&name, &message.expect("a consumer goes on").unwrap());
                }
                if random.below(4) == 0 {
                    dropped += 1;
                    // What it has in hand then is not done, and comes to another member.
                    if let Ok(message) = tokio::time::timeout(IN_HAND_WITHIN, consumer.next()).await {
                        record.take(&name, &message.expect("a consumer goes on").unwrap());
                    }
                    drop(consumer);
                } else {
                    consumer.close().await.unwrap();
                }
            }
            (joined, dropped)
        }));
    }
    let client = Client::connect(address).await.unwrap();
    let producer = client.producer("flights").level(DurableLevel::Memory).build().await.unwrap();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    while Instant::now() < end {
        tick.tick().await;
        for _ in 0..CHURN_RATE / 100 {
            let sent = sent.clone();
            let record_it = move |acknowledged: peregrine_client::Result<peregrine_client::Receipt>| {
                let receipt = acknowledged.expect("stored");
                sent.lock().unwrap().push((receipt.queue, receipt.offset.0));
            };
            producer.send_with(Message::new("x"), record_it).await.unwrap();
        }
    }
    producer.flush().await;
    let (mut joined, mut dropped) = (0, 0);
    for slot in churning {
        let (more, gone) = slot.await.unwrap();
        (joined, dropped) = (joined + more, dropped + gone);
    }
    // Who is there at the end gets what is left.
    let last = Member::join(&broker, "last", record.clone()).await;
    let all = sent.lock().unwrap().len();
    until("every message has come", async || record.distinct() >= all).await;
    last.close().await;

    let mut next: BTreeMap<QueueId, u64> = BTreeMap::new();
    let mut twice = 0_u64;
    let mut before: BTreeMap<QueueId, Taken> = BTreeMap::new();
    let mut gaps = Vec::new();
    for taken in record.all() {
        let next = next.entry(taken.queue).or_default();
        assert!(taken.offset <= *next, "offset {next} of queue {} was skipped: {taken:?}", taken.queue);
        if taken.offset < *next {
            twice += 1;
            assert!(taken.attempt > 1, "again without a reason: {taken:?}");
        } else {
            *next += 1;
        }
        // The gaps of a queue that did not move.
        if let Some(before) = before.insert(taken.queue, taken.clone()).filter(|before| before.member == taken.member) {
            gaps.push(taken.at - before.at);
        }
    }
    let mut stored = sent.lock().unwrap().clone();
    stored.sort_unstable();
    let expected: Vec<_> = next.iter().flat_map(|(&queue, &end)| (0..end).map(move |offset| (queue, offset))).collect();
    assert_eq!(stored, expected, "what was stored is what came");
    gaps.sort_unstable();
    println!(
        "{all} messages, {joined} members joined and {dropped} of them left without a word: 0 lost, 0 out of order, {twice} twice; \
         gaps in queues that did not move: median {:?}, p99.9 {:?}, largest {:?}",
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1 - gaps.len() / 1000],
        gaps[gaps.len() - 1]
    );
}
