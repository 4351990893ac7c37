//! Consumer groups on real brokers: real data shared by members, over `kill -9`, and who holds which queue as members come and go.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, Message, QueueId, Start};
use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::command_line::RunningCommand;
use peregrine_tests::dataset::{Dataset, KEY_DELIMITER, KEY_FIELD};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const LINES: usize = 20_000;
/// Those that are sent before the broker is killed.
const LINES_BEFORE: usize = LINES / 4 * 3;
const QUEUES: u32 = 8;
/// A busy machine, a restart of the broker, the settling of a group.
const WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One message in one member's hands.
#[derive(Clone, Debug)]
struct Taken {
    queue: QueueId,
    offset: u64,
    attempt: u16,
    line: String,
    /// Kills before it.
    life: usize,
}

/// What all members took, in the order in which they did.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<(Vec<Taken>, usize)>>);

impl Record {
    fn take(&self, message: &Delivery) {
        let mut record = self.0.lock().unwrap();
        let life = record.1;
        record.0.push(Taken {
            queue: message.queue,
            offset: message.offset.0,
            attempt: message.attempt,
            line: message.text().unwrap().to_owned(),
            life,
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
        Member { stop, task: tokio::spawn(run(consumer, record, stopped)) }
    }

    async fn close(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

async fn run(mut consumer: Consumer, record: Record, mut stopped: tokio::sync::oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            message = consumer.next() => record.take(&message.expect("a consumer goes on").unwrap()),
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
    let sent_before: BTreeSet<String> = lines[..LINES_BEFORE].iter().map(ToString::to_string).collect();
    let (go_on, gone_on) = std::sync::mpsc::channel();
    let sending = std::thread::spawn(move || {
        use std::io::Write;
        for (number, line) in lines.iter().enumerate() {
            if number == LINES_BEFORE {
                gone_on.recv().expect("the broker is killed first");
            }
            writeln!(input, "{line}").expect("the producer reads its input");
        }
    });
    until("half of the lines have come", async || record.distinct() > LINES / 2).await;
    let before = places(&client).await;
    broker.kill_nine();
    record.killed();
    broker.start_again();
    // Every queue has messages left, which come to who holds it then: what was done before and could not be acknowledged is, with them.
    go_on.send(()).unwrap();
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
    let mut twice = BTreeSet::new();
    for message in taken {
        let key = (message.queue, message.offset);
        let Some(first) = seen.get(&key) else {
            firsts.push(message.line.clone());
            seen.insert(key, message);
            continue;
        };
        // Twice is only what may have been delivered and not acknowledged when the broker was killed; the application may have taken
        // it from its consumer's hands only then.
        assert!(twice.insert(key), "three times: {first:?}, {message:?}");
        assert_eq!(first.line, message.line, "an offset means one message");
        let was_sent = sent_before.contains(&message.line);
        assert!(message.life == 1 && was_sent, "again without a reason: {first:?}, {message:?}");
        assert!(message.offset >= before[&message.queue], "again after it was acknowledged: {first:?}, {message:?}");
    }
    data.assert_delivered(&firsts);
    eprintln!("{shards} shards: {LINES} lines, {} of them twice", twice.len());

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
