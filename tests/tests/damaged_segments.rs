//! Sealed segments below the newest checkpoint that are damaged, in a real broker: no start reads them. Readers are told where, all
//! else is served, and retention goes past them.
//!
//! The long form harms more: `PEREGRINE_TEST_ROUNDS=200 cargo test -p peregrine-tests --test damaged_segments -- --nocapture`.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use peregrine_protocol::entry::ENTRY_MAGIC;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Epoch, QueueId, QueueOffset, TopicId};
use peregrine_protocol::limits::{ENTRY_HEADER_LEN, PAD_HEADER_LEN};
use peregrine_protocol::message::{Fetch, Request};
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::connection::{Connection, Reply, Sent};
use peregrine_tests::random::Random;

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const QUEUES: u32 = 3;
const ARGUMENTS: [&str; 1] = ["--checkpoint-age=100ms"];
/// Rounds of harm in the short form.
const ROUNDS: u64 = 8;

fn body(queue: u32, number: u64) -> String {
    format!("{queue}-{number:0>8192}")
}

/// One message per batch, to each queue in turn.
fn produce(broker: &Broker, topic: TopicId, numbers: Range<u64>) {
    let mut connection = Connection::open(broker.address(), None);
    for number in numbers {
        for queue in 0..QUEUES {
            let (level, bodies) = (DurableLevel::Synced, [body(queue, number)]);
            let sent = Sent { topic, queue: QueueId(queue), level, producer: None, bodies: &bodies };
            let reply = connection.produce(&sent);
            assert!(matches!(reply, Reply::Produced(_)), "{reply:?}");
        }
    }
}

/// Files of the only shard whose names begin so, in order.
fn files(broker: &Broker, prefix: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap().map(|entry| entry.unwrap().path());
    let has_prefix = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    let mut files: Vec<_> = files.filter(has_prefix).collect();
    files.sort();
    files
}

fn remove(files: &[PathBuf]) {
    for file in files {
        fs::remove_file(file).unwrap();
    }
}

/// Where the log stands that a segment, an index or a checkpoint begins with.
fn begin(path: &Path) -> u64 {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    name.trim_start_matches("checkpoint-")[..20].parse().unwrap()
}

/// An entry in a segment's file, as its header says.
#[derive(Clone, Debug)]
struct Stands {
    /// The topic's queue and the offset; `None` where it is no batch of it.
    message: Option<(u32, u64)>,
    /// Bytes of its header, and of its payload.
    header: Range<usize>,
    payload: Range<usize>,
}

/// The entries of a segment, one after the other.
fn entries(bytes: &[u8], topic: TopicId) -> Vec<Stands> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (mut all, mut at) = (Vec::new(), BLOCK);
    while at + ENTRY_HEADER_LEN <= bytes.len() && u32_at(at) == ENTRY_MAGIC {
        let is_pad = u64_at(at + 40) != topic.0 && bytes[at + 5] == PAD;
        let header = if is_pad { PAD_HEADER_LEN } else { ENTRY_HEADER_LEN };
        let length = u32_at(at + 16) as usize;
        let is_ours = bytes[at + 5] == BATCH && u64_at(at + 40) == topic.0;
        all.push(Stands {
            message: is_ours.then(|| (u32_at(at + 48), u64_at(at + 56))),
            header: at..at + header,
            // Of a pad nothing but the header is looked at.
            payload: at + header..at + header + if is_pad { 0 } else { length },
        });
        at += (header + length).next_multiple_of(64);
    }
    all
}

const PAD: u8 = peregrine_protocol::entry::EntryKind::Pad as u8;
const BATCH: u8 = peregrine_protocol::entry::EntryKind::Batch as u8;

/// The message that stands there, or why there is none.
fn fetch(connection: &mut Connection, topic: TopicId, queue: u32, offset: u64) -> Result<Option<String>, ErrorCode> {
    let (queue, offset, epoch) = (QueueId(queue), QueueOffset(offset), Epoch::ANY);
    let fetch = Fetch { topic, queue, epoch, offset, max_messages: 1, max_bytes: 1 };
    let mut tries = 0;
    loop {
        match connection.ask(&Request::Fetch(fetch)) {
            Reply::Fetched { bodies, .. } => return Ok(bodies.into_iter().next()),
            // It was dropped from memory since.
            Reply::Error { code: Some(ErrorCode::Busy), .. } if tries < 100 => sleep(Duration::from_millis(10)),
            Reply::Error { code, .. } => return Err(code.unwrap()),
            other => panic!("fetch was answered with {other:?}"),
        }
        tries += 1;
    }
}

/// Which messages of a queue, from `from` on, are told to be damaged. Every other one comes as it was sent, up to the end.
fn damaged(broker: &Broker, topic: TopicId, queue: u32, from: u64, end: u64) -> BTreeSet<u64> {
    let mut connection = Connection::open(broker.address(), None);
    let mut damaged = BTreeSet::new();
    for offset in from..end {
        // A payload is checked by who reads it: a connection of this harness panics.
        let fetched = catch_unwind(AssertUnwindSafe(|| fetch(&mut connection, topic, queue, offset)));
        let fetched = fetched.unwrap_or_else(|_| {
            connection = Connection::open(broker.address(), None);
            Err(ErrorCode::Damaged)
        });
        match fetched {
            Ok(Some(found)) => assert!(found == body(queue, offset), "offset {offset} of queue {queue} is another"),
            Ok(None) => panic!("queue {queue} ends at offset {offset}, not at {end}"),
            Err(ErrorCode::Damaged) => drop(damaged.insert(offset)),
            Err(other) => panic!("offset {offset} of queue {queue}: {other:?}"),
        }
    }
    assert_eq!(fetch(&mut connection, topic, queue, end), Ok(None));
    damaged
}

/// The first message that a queue keeps.
fn first_kept(broker: &Broker, topic: TopicId, queue: u32) -> u64 {
    let mut connection = Connection::open(broker.address(), None);
    let fetch = Fetch {
        topic,
        queue: QueueId(queue),
        epoch: Epoch::ANY,
        offset: QueueOffset(0),
        max_messages: 1,
        max_bytes: 1,
    };
    match connection.ask(&Request::Fetch(fetch)) {
        Reply::Error { code: Some(ErrorCode::OffsetTooOld), detail, .. } => detail.offset.unwrap(),
        Reply::Fetched { .. } | Reply::Error { code: Some(ErrorCode::Damaged), .. } => 0,
        other => panic!("fetch was answered with {other:?}"),
    }
}

/// A broker with a few sealed segments below its checkpoints, that was stopped cleanly; how many messages each queue has.
fn filled() -> (Broker, TopicId, u64) {
    let mut broker = Settings::default().argument(ARGUMENTS[0]).start();
    let topic = Connection::open(broker.address(), None).create_topic("t", QUEUES);
    let count = 700;
    produce(&broker, topic, 0..count);
    let second = begin(&files(&broker, "0")[2]);
    let covered = || files(&broker, "checkpoint-").iter().filter(|path| begin(path) > second).count() == 2;
    eventually("checkpoints cover two segments", LIMIT, covered);
    eventually("three segments have indexes", LIMIT, || files(&broker, "index-").len() >= 3);
    assert!(broker.terminate().success());
    (broker, topic, count)
}

/// Turns bits over, or makes a block zeros; the same again undoes it.
struct Harm {
    path: PathBuf,
    was: Vec<u8>,
    /// Bytes of the file that are others now.
    touched: Vec<usize>,
}

impl Harm {
    fn random(path: &Path, topic: TopicId, random: &mut Random) -> Self {
        let was = fs::read(path).unwrap();
        let all = entries(&was, topic);
        let mut now = was.clone();
        for _ in 0..=random.below(3) {
            let entry = match random.below(4) {
                0 => &all[0],
                1 => all.last().unwrap(),
                _ => &all[random.below(all.len() as u64) as usize],
            };
            let header = || entry.header.clone();
            let range = match random.below(6) {
                0 => header().start..header().start + 4,
                1 | 2 => header(),
                3 | 4 if !entry.payload.is_empty() => entry.payload.clone(),
                _ => {
                    // A whole block, which may hold parts of several entries.
                    let block = entry.header.start / BLOCK * BLOCK;
                    now[block..block + BLOCK].fill(0);
                    continue;
                }
            };
            let at = range.start + random.below(range.len() as u64) as usize;
            now[at] ^= 1 << random.below(8);
        }
        let touched = (0..was.len()).filter(|&at| was[at] != now[at]).collect();
        fs::File::options().write(true).open(path).unwrap().write_all_at(&now, 0).unwrap();
        Self { path: path.to_owned(), was, touched }
    }

    /// The messages of which a byte was harmed.
    fn took(&self, topic: TopicId) -> BTreeSet<(u32, u64)> {
        let is_hit = |range: &Range<usize>| self.touched.iter().any(|at| range.contains(at));
        let hit = |entry: &Stands| entry.message.filter(|_| is_hit(&entry.header) || is_hit(&entry.payload));
        entries(&self.was, topic).iter().filter_map(hit).collect()
    }

    fn undo(&self) {
        fs::File::options().write(true).open(&self.path).unwrap().write_all_at(&self.was, 0).unwrap();
    }
}

/// What was harmed is told, message by message, and everything else is served; with indexes that are older than the damage, and
/// with such as are made around it.
#[test]
fn what_is_harmed_is_told_and_everything_else_is_served() {
    let rounds = std::env::var("PEREGRINE_TEST_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut random = Random::for_test();
    let (mut broker, topic, count) = filled();
    let mut harmed = 0;
    for round in 0..rounds {
        let segments = files(&broker, "0");
        let harms: Vec<_> = segments[..2].iter().map(|path| Harm::random(path, topic, &mut random)).collect();
        if random.below(3) > 0 {
            let indexes = files(&broker, "index-");
            remove(&indexes[..indexes.len().min(2)]);
        }
        broker.start_again();
        let took: BTreeSet<_> = harms.iter().flat_map(|harm| harm.took(topic)).collect();
        for queue in 0..QUEUES {
            let expected: BTreeSet<_> = took.iter().filter(|message| message.0 == queue).map(|took| took.1).collect();
            assert_eq!(damaged(&broker, topic, queue, 0, count), expected, "round {round}, queue {queue}");
        }
        harmed += took.len();
        assert!(broker.terminate().success());
        harms.iter().for_each(Harm::undo);
        // Those made around the damage say less than the segments do now.
        remove(&files(&broker, "index-"));
    }
    println!("{rounds} rounds, {harmed} messages harmed: each told, all others served");
    broker.start_again();
    for queue in 0..QUEUES {
        assert_eq!(damaged(&broker, topic, queue, 0, count), BTreeSet::new());
    }
}

/// A queue keeps what it has in the segments that are left: not less because of damage in the ones that went.
#[test]
fn retention_goes_past_damaged_segments_and_takes_nothing_else() {
    let mut random = Random::for_test();
    let (mut broker, topic, mut count) = filled();
    let segments = files(&broker, "0");
    let bytes = fs::read(&segments[0]).unwrap();
    // A header in the midst, and the last one: who had it is not known.
    let all: Vec<_> = entries(&bytes, topic).into_iter().filter(|entry| entry.message.is_some()).collect();
    let file = fs::File::options().write(true).open(&segments[0]).unwrap();
    for entry in [&all[random.below(all.len() as u64) as usize], all.last().unwrap()] {
        let at = entry.header.start + 30;
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    }
    let second = Harm::random(&segments[1], topic, &mut random);
    assert!(!second.touched.is_empty());
    remove(&files(&broker, "index-"));

    broker.set_arguments(&[ARGUMENTS[0], "--retention-size=16MiB"]);
    broker.start_again();
    eventually("the damaged segments are given up", LIMIT, || {
        produce(&broker, topic, count..count + 20);
        count += 20;
        !segments[0].exists() && !segments[1].exists()
    });
    assert!(broker.terminate().success());
    broker.set_arguments(&ARGUMENTS);
    broker.start_again();
    // What each segment that is left has first of each queue. The oldest may have been given up as well, and be there still.
    let firsts = files(&broker, "0").into_iter().map(|path| {
        let mut firsts = BTreeMap::new();
        for (queue, offset) in entries(&fs::read(path).unwrap(), topic).iter().filter_map(|entry| entry.message) {
            firsts.entry(queue).or_insert(offset);
        }
        firsts
    });
    let firsts: Vec<_> = firsts.filter(|firsts| firsts.len() == QUEUES as usize).collect();
    let kept: BTreeMap<_, _> = (0..QUEUES).map(|queue| (queue, first_kept(&broker, topic, queue))).collect();
    assert!(firsts.iter().take(2).any(|firsts| *firsts == kept), "{kept:?} is kept, and there are {firsts:?}");
    for (queue, first) in kept {
        assert_eq!(damaged(&broker, topic, queue, first, count), BTreeSet::new(), "queue {queue}");
    }
}
