//! Members of a group that come and go at random while messages come: none is lost, none is out of order, and what comes twice says so.
//!
//! ```text
//!   quiet          churn          quiet          churn          as long as each other; the messages come all the time
//! ├──────────────┼──────────────┼──────────────┼──────────────┤
//!  all are there   join, leave    all are there   join, leave   at the end all leave, and one that joins gets what is left
//! ```
//!
//! What churn costs the queues that do not move is told beside what the same queues have while nobody comes or goes: the gaps between
//! their messages, the delay of each from send to arrival, and, for what is this process's own and the machine's, how late the sender
//! was. Members churn for `PEREGRINE_TEST_CHURN_SECONDS` (5) in all, `PEREGRINE_TEST_CHURN_MEMBERS` (16) of them at a time.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, DurableLevel, Message, Producer, QueueId, Receipt};
use peregrine_tests::broker::Settings;
use peregrine_tests::random::Random;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

const QUEUES: u32 = 8;
/// Messages are sent each tick, so many; 5,000 a second.
const TICK: Duration = Duration::from_millis(1);
const SENT_PER_TICK: u32 = 5;
/// A member stays so long, at the least and at the most, milliseconds; only time in which members churn counts.
const STAYS: (u64, u64) = (200, 3_000);
/// How long one that leaves without a word waits for a last message.
const IN_HAND_WITHIN: Duration = Duration::from_millis(100);
/// A queue does not move when it has been with its holder for so long, and a stretch is quiet so long after the last member came.
const SETTLED: Duration = Duration::from_millis(500);
/// A busy machine, the settling of a group.
const WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Stretches of equal length, the first one quiet.
#[derive(Clone, Copy)]
struct Schedule {
    began: Instant,
    stretch: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Quiet,
    Churn,
}

impl Schedule {
    const STRETCHES: u32 = 4;
    const CHURNING: u32 = 2;

    fn end(self) -> Instant {
        self.start_of(Self::STRETCHES)
    }

    fn start_of(self, stretch: u32) -> Instant {
        self.began + self.stretch * stretch
    }

    /// The number of the stretch that an instant is in; `None` before the first and after the last.
    fn stretch_at(self, at: Instant) -> Option<u32> {
        (0..Self::STRETCHES).find(|&stretch| (self.start_of(stretch)..self.start_of(stretch + 1)).contains(&at))
    }

    fn kind(stretch: u32) -> Kind {
        if stretch.is_multiple_of(2) { Kind::Quiet } else { Kind::Churn }
    }

    /// When somebody leaves who comes now: quiet stretches do not count as a part of the stay.
    fn leaves_at(self, now: Instant, mut stay: Duration) -> Instant {
        let mut now = now.max(self.began);
        while let Some(stretch) = self.stretch_at(now) {
            let end = self.start_of(stretch + 1);
            if Self::kind(stretch) == Kind::Churn {
                if stay < end - now {
                    return now + stay;
                }
                stay -= end - now;
            }
            now = end;
        }
        self.end()
    }
}

/// Each member that ever was has a number of its own.
type MemberNumber = u64;

/// One message in one member's hands.
#[derive(Clone, Debug)]
struct Arrival {
    member: MemberNumber,
    queue: QueueId,
    offset: u64,
    attempt: u16,
    /// From the send on.
    delay: Duration,
    at: Instant,
}

/// What has happened, in the order in which it did.
struct Record {
    arrivals: Vec<Arrival>,
    /// When a member had come, or had gone.
    changes: Vec<Instant>,
    /// For each tick of the sender when it was due, and how late it was.
    ticks: Vec<(Instant, Duration)>,
    stored: Vec<(QueueId, u64)>,
    joined: MemberNumber,
    dropped: u64,
}

impl Record {
    /// With room for so long a run and half as much again: a record that grows in the middle of it would be what is measured.
    fn of(run: Duration) -> Self {
        let ticks = (run.as_nanos() / TICK.as_nanos()) as usize * 3 / 2;
        let messages = ticks * SENT_PER_TICK as usize;
        Record {
            arrivals: Vec::with_capacity(messages),
            changes: Vec::new(),
            ticks: Vec::with_capacity(ticks),
            stored: Vec::with_capacity(messages),
            joined: 0,
            dropped: 0,
        }
    }
}

/// What members and the sender share.
#[derive(Clone)]
struct Stage {
    address: String,
    /// Send times are counted from here.
    zero: Instant,
    record: Arc<Mutex<Record>>,
}

/// A consumer, and under which number it joined.
struct Member {
    number: MemberNumber,
    consumer: Consumer,
}

impl Stage {
    async fn join(&self) -> Member {
        let number = {
            let mut record = self.record.lock().unwrap();
            record.joined += 1;
            record.joined
        };
        let client = Client::connect(self.address.clone()).await.unwrap();
        let builder = client.consumer("billing").topic("flights").member(format!("member-{number}"));
        let consumer = builder.build().await.unwrap();
        self.changed();
        Member { number, consumer }
    }

    fn changed(&self) {
        self.record.lock().unwrap().changes.push(Instant::now());
    }

    fn take(&self, member: MemberNumber, message: &Delivery) {
        let at = Instant::now();
        let sent = self.zero + Duration::from_nanos(message.text().unwrap().parse().unwrap());
        let (queue, offset, attempt) = (message.queue, message.offset.0, message.attempt);
        let arrival = Arrival { member, queue, offset, attempt, delay: at - sent, at };
        self.record.lock().unwrap().arrivals.push(arrival);
    }

    /// One member after another, until the schedule ends.
    async fn come_and_go(self, schedule: Schedule, mut random: Random, mut member: Member) {
        loop {
            let stay = Duration::from_millis(STAYS.0 + random.below(STAYS.1 - STAYS.0));
            let leaves = schedule.leaves_at(Instant::now(), stay);
            while let Ok(message) = timeout_at(leaves, member.consumer.next()).await {
                self.take(member.number, &message.expect("a consumer goes on").unwrap());
            }
            if random.below(4) == 0 {
                self.record.lock().unwrap().dropped += 1;
                // What it has in hand then is not done, and comes to another member.
                if let Ok(message) = timeout(IN_HAND_WITHIN, member.consumer.next()).await {
                    self.take(member.number, &message.expect("a consumer goes on").unwrap());
                }
                drop(member);
            } else {
                member.consumer.close().await.unwrap();
            }
            self.changed();
            if Instant::now() >= schedule.end() {
                return;
            }
            member = self.join().await;
        }
    }

    /// Sends until the schedule ends, and waits until all is stored.
    async fn send(&self, schedule: Schedule, producer: Producer) {
        let mut due = schedule.began;
        while due < schedule.end() {
            sleep_until(due).await;
            self.record.lock().unwrap().ticks.push((due, due.elapsed()));
            for _ in 0..SENT_PER_TICK {
                let record = self.record.clone();
                let record_it = move |acknowledged: peregrine_client::Result<Receipt>| {
                    let receipt = acknowledged.expect("stored");
                    record.lock().unwrap().stored.push((receipt.queue, receipt.offset.0));
                };
                let message = Message::new(self.zero.elapsed().as_nanos().to_string());
                producer.send_with(message, record_it).await.unwrap();
            }
            due += TICK;
        }
        producer.flush().await;
    }
}

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_nothing() {
    let seconds = setting("PEREGRINE_TEST_CHURN_SECONDS", 5);
    let members = setting("PEREGRINE_TEST_CHURN_MEMBERS", 16);
    let mut random = Random::for_test();
    let broker = Settings::default().shards(2).start();
    broker.command_line().create_topic("flights", QUEUES);
    let stretch = Duration::from_secs(seconds.into()) / Schedule::CHURNING;
    let record = Arc::new(Mutex::new(Record::of(stretch * Schedule::STRETCHES)));
    let stage = Stage { address: broker.address().to_string(), zero: Instant::now(), record: record.clone() };
    let mut seats = Vec::new();
    for _ in 0..members {
        seats.push(stage.join().await);
    }
    let client = Client::connect(stage.address.clone()).await.unwrap();
    let producer = client.producer("flights").level(DurableLevel::Memory).build().await.unwrap();

    let schedule = Schedule { began: Instant::now() + TICK, stretch };
    let coming_and_going: Vec<_> = seats
        .into_iter()
        .map(|member| tokio::spawn(stage.clone().come_and_go(schedule, random.fork(), member)))
        .collect();
    stage.send(schedule, producer).await;
    for seat in coming_and_going {
        seat.await.unwrap();
    }
    // Who is there at the end gets what is left.
    let mut last = stage.join().await;
    let all = record.lock().unwrap().stored.len();
    let have_come = || {
        let record = record.lock().unwrap();
        record.arrivals.iter().map(|arrival| (arrival.queue, arrival.offset)).collect::<BTreeSet<_>>().len()
    };
    let deadline = Instant::now() + WITHIN;
    while have_come() < all {
        assert!(Instant::now() < deadline, "not every message has come after {WITHIN:?}");
        let look = Instant::now() + LOOK_EVERY;
        while let Ok(message) = timeout_at(look, last.consumer.next()).await {
            stage.take(last.number, &message.expect("a consumer goes on").unwrap());
        }
    }
    last.consumer.close().await.unwrap();

    let record = record.lock().unwrap();
    let twice = assert_in_order_and_complete(&record);
    assert!(record.joined > 2 * u64::from(members), "only {} members came", record.joined);
    println!(
        "{all} messages, {} members joined and {} of them left without a word: 0 lost, 0 out of order, {twice} twice",
        record.joined, record.dropped
    );
    for kind in [Kind::Quiet, Kind::Churn] {
        println!("{}", Times::of(kind, &record, schedule));
    }
}

/// What was stored is what came, in its order; says how many came again.
fn assert_in_order_and_complete(record: &Record) -> u64 {
    let mut next: BTreeMap<QueueId, u64> = BTreeMap::new();
    let mut twice = 0;
    for arrival in &record.arrivals {
        let next = next.entry(arrival.queue).or_default();
        assert!(arrival.offset <= *next, "offset {next} of queue {} was skipped: {arrival:?}", arrival.queue);
        if arrival.offset < *next {
            twice += 1;
            assert!(arrival.attempt > 1, "again without a reason: {arrival:?}");
        } else {
            *next += 1;
        }
    }
    let mut stored = record.stored.clone();
    stored.sort_unstable();
    let expected: Vec<_> = next.iter().flat_map(|(&queue, &end)| (0..end).map(move |offset| (queue, offset))).collect();
    assert_eq!(stored, expected, "what was stored is what came");
    twice
}

/// What was measured in the stretches of one kind.
struct Times {
    kind: Kind,
    /// Between two messages of a queue that does not move.
    gaps: Vec<Duration>,
    /// Of messages of such queues.
    delays: Vec<Duration>,
    /// Of the sender.
    late: Vec<Duration>,
}

impl Times {
    fn of(kind: Kind, record: &Record, schedule: Schedule) -> Self {
        // The stretch that an instant counts for. Who goes in one stretch may have its successor come in the next.
        let counted_from: Vec<Instant> = (0..Schedule::STRETCHES)
            .map(|stretch| match Schedule::kind(stretch) {
                Kind::Churn => schedule.start_of(stretch),
                Kind::Quiet => {
                    let of_stretch = record.changes.iter().filter(|&&at| schedule.stretch_at(at) == Some(stretch));
                    of_stretch.max().copied().unwrap_or(schedule.start_of(stretch)) + SETTLED
                }
            })
            .collect();
        let counts_for = |at: Instant| {
            let stretch = schedule.stretch_at(at)?;
            (Schedule::kind(stretch) == kind && at >= counted_from[stretch as usize]).then_some(stretch)
        };

        let mut times = Times { kind, gaps: Vec::new(), delays: Vec::new(), late: Vec::new() };
        // Of each queue: since when its holder has it, and the message before.
        let mut held: BTreeMap<QueueId, (Instant, &Arrival)> = BTreeMap::new();
        for arrival in &record.arrivals {
            let before = held.get(&arrival.queue).copied().filter(|(_, before)| before.member == arrival.member);
            let since = before.map_or(arrival.at, |(since, _)| since);
            held.insert(arrival.queue, (since, arrival));
            let Some((_, before)) = before.filter(|(_, before)| before.at >= since + SETTLED) else { continue };
            let Some(stretch) = counts_for(arrival.at) else { continue };
            times.delays.push(arrival.delay);
            if counts_for(before.at) == Some(stretch) {
                times.gaps.push(arrival.at - before.at);
            }
        }
        times.late = record.ticks.iter().filter(|(due, _)| counts_for(*due).is_some()).map(|&(_, late)| late).collect();
        for sample in [&mut times.gaps, &mut times.delays, &mut times.late] {
            sample.sort_unstable();
        }
        times
    }
}

impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Quiet { "quiet" } else { "churn" };
        for (what, sample) in [("gap", &self.gaps), ("delay", &self.delays), ("sender late", &self.late)] {
            write!(formatter, "{kind}: {what:<11} of {:>6}:", sample.len())?;
            let rank = |share: f64| (sample.len() as f64 * share) as usize;
            for (name, rank) in [("median", rank(0.5)), ("p99", rank(0.99)), ("p99.9", rank(0.999))] {
                write!(formatter, " {name} {},", milliseconds(sample.get(rank)))?;
            }
            write!(formatter, " largest {}", milliseconds(sample.last()))?;
            if what != "sender late" {
                writeln!(formatter)?;
            }
        }
        Ok(())
    }
}

fn milliseconds(time: Option<&Duration>) -> String {
    time.map_or_else(|| "none".to_owned(), |time| format!("{:7.3} ms", time.as_secs_f64() * 1e3))
}
