//! What a real broker left in a shard's directory and in its ring, taken into memory: two lives that were killed and stopped, a
//! checkpoint, and a third life whose end is chosen. It can be kept in a folder, so that a harm is done to the same bytes again.
//!
//! ```text
//!   broker: > 4 MiB, a roll ─ kill -9 ─ more, a group ─ stop │ checkpoints, by the library │ broker: both levels ─ Stop │ indexes
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures_lite::future::block_on;
use peregrine_broker::log::disk::BLOCK;
use peregrine_broker::log::index::{self, SealedSegment, build_index};
use peregrine_broker::log::{BootId, CloseState, Directory, Identity, Log, LogOptions, RunId, Smallest};
use peregrine_broker::shard::run::shard_directory;
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{
    DurableLevel, LogPosition, Nanos, ProducerId, QueueId, QueueOffset, Sequence, ShardId, TopicId,
};
use serde_json::{Value, json};

use super::kind::Place;
use super::medium::Medium;
use super::trial::Replayed;
use crate::broker::{Broker, Settings};
use crate::connection::{Connection, Reply, Sent};
use crate::random::Random;

const TOPIC: &str = "harmed";
const QUEUES: u32 = 3;
const SHARD: ShardId = ShardId(0);
/// The page of a ring says something up to here.
const PAGE_USED: usize = 512;
/// A block of a mark says something up to here.
const MARK_USED: usize = 64;
/// The third life's writes are held from this one on where it is killed: what comes later stands in the ring alone.
const HELD_WRITE: u32 = 80;

/// How the third life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Clean,
    Kill,
    /// Killed, and the machine started anew: the ring is gone.
    Power,
}

/// A stretch of a file that a harm may fall on.
#[derive(Clone, Debug)]
pub struct Span {
    pub place: Place,
    pub file: String,
    pub from: usize,
    pub to: usize,
}

/// A message that was acknowledged: what it said, by its checksum.
pub type Promised = BTreeMap<(TopicId, QueueId, QueueOffset), (DurableLevel, u32)>;

pub struct State {
    pub medium: Medium,
    pub stop: Stop,
    /// Empty for a state that was kept in a folder.
    pub promised: Promised,
    device: u64,
    inode: u64,
    boot: u128,
    identities: Vec<Identity>,
    written: BTreeMap<String, usize>,
}

impl State {
    /// Has a broker make one.
    pub fn after(stop: Stop, random: &mut Random) -> Self {
        let mut broker = Settings::default().start();
        let topic = Connection::open(broker.address(), None).create_topic(TOPIC, QUEUES);
        let mut writer = Writer { topic, promised: Promised::new(), sequences: [0; QUEUES as usize] };
        writer.write(&broker, random, 700, Synced, true);
        broker.kill_nine();
        broker.start_again();
        writer.write(&broker, random, 300, Synced, true);
        broker.command_line().run(&["consume", TOPIC, "--group", "billing"]).succeeded();
        assert!(broker.terminate().success());

        let held = format!("--test-fault=hold-write={HELD_WRITE}");
        if stop != Stop::Clean {
            broker.set_arguments(&[&held]);
        }
        let state = Self::of(&broker, stop, Promised::new());
        for _ in 0..2 {
            state.checkpoint();
        }
        state.store_to(&shard_directory(broker.data(), SHARD));
        broker.start_again();
        writer.write(&broker, random, 40, Synced, false);
        writer.write(&broker, random, 800, Memory, false);
        if stop == Stop::Clean {
            assert!(broker.terminate().success());
        } else {
            broker.kill_nine();
        }
        let mut state = Self::of(&broker, stop, writer.promised);
        if stop == Stop::Power {
            state.medium.remove_rings();
            state.boot ^= 1;
            state.promised.retain(|_, (level, _)| *level >= Synced);
        }
        state.index();
        state.survey();
        state
    }

    fn of(broker: &Broker, stop: Stop, promised: Promised) -> Self {
        let about = fs::metadata(broker.data()).unwrap();
        let medium = Medium::default();
        for (name, path) in files_in(&shard_directory(broker.data(), SHARD)) {
            medium.put(&name, &fs::read(path).unwrap());
        }
        for (_, path) in files_in(broker.ring_directory()) {
            medium.put_ring(&path.to_string_lossy(), fs::read(&path).unwrap());
        }
        let (device, inode) = (about.dev(), about.ino());
        let mut state =
            Self { medium, stop, promised, device, inode, boot: 0, identities: Vec::new(), written: BTreeMap::new() };
        state.survey();
        state.boot = state.newest().boot.0;
        state
    }

    /// As [`Self::keep`] left it.
    pub fn kept(folder: &Path) -> Self {
        let about: Value = serde_json::from_slice(&fs::read(folder.join("about")).unwrap()).unwrap();
        let medium = Medium::default();
        for (name, path) in files_in(&folder.join("files")) {
            medium.put(&name, &fs::read(path).unwrap());
        }
        if let Some(path) = about["ring"].as_str() {
            medium.put_ring(path, fs::read(folder.join("ring")).unwrap());
        }
        let number = |name: &str| about[name].as_u64().unwrap();
        let stop = match about["stop"].as_str().unwrap() {
            "Clean" => Stop::Clean,
            "Kill" => Stop::Kill,
            _ => Stop::Power,
        };
        let mut state = Self {
            medium,
            stop,
            promised: Promised::new(),
            device: number("device"),
            inode: number("inode"),
            boot: about["boot"].as_str().unwrap().parse().unwrap(),
            identities: Vec::new(),
            written: BTreeMap::new(),
        };
        state.survey();
        state
    }

    /// Keeps it in a folder of its own, which stays.
    pub fn keep(&self) -> PathBuf {
        let folder =
            tempfile::Builder::new().prefix("harm-").tempdir_in(crate::programs::disk_folder()).unwrap().keep();
        fs::create_dir(folder.join("files")).unwrap();
        self.store_to(&folder.join("files"));
        let rings = self.medium.ring_names();
        if let Some(ring) = rings.first() {
            fs::write(folder.join("ring"), self.medium.get(ring)).unwrap();
        }
        let about = json!({
            "stop": format!("{:?}", self.stop), "device": self.device, "inode": self.inode, "boot": self.boot.to_string(),
            "ring": rings.first(),
        });
        fs::write(folder.join("about"), about.to_string()).unwrap();
        folder
    }

    /// The same without checkpoints: every start reads the whole log.
    pub fn without_checkpoints(&self) -> Self {
        let medium = self.medium.copy();
        for name in medium.names().iter().filter(|name| name.starts_with("checkpoint-")) {
            medium.remove_file(name);
        }
        let (identities, written) = (self.identities.clone(), self.written.clone());
        Self { medium, promised: self.promised.clone(), identities, written, ..*self }
    }

    /// What a start of this shard is told. The smallest segment is smaller than a broker's, so that starts are quick.
    pub fn options(&self) -> LogOptions {
        let newest = self.newest();
        let directory =
            Directory { id: newest.directory, secret: newest.secret, device: self.device, inode: self.inode };
        let mut options = LogOptions::new(SHARD, directory, BootId(self.boot), RunId(1), newest.ring.clone());
        options.ring_bytes = 1 << 20;
        options.segment_bytes = 4 << 20;
        options.largest_entry = 256 << 10;
        options.smallest = Smallest { segment: 64 << 10, ..Smallest::default() };
        options
    }

    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    fn newest(&self) -> &Identity {
        self.identities.last().expect("a broker left a segment")
    }

    /// The segment file that the log ends in, as far as it was written.
    pub fn last_written(&self) -> String {
        let written = |identity: &&Identity| self.written(&identity.name().to_string()) > BLOCK;
        self.identities.iter().rfind(written).expect("a broker wrote something").name().to_string()
    }

    /// Where the bytes of a file end that are not zero; all of a ring.
    pub fn written(&self, file: &str) -> usize {
        self.written.get(file).copied().unwrap_or_else(|| self.medium.len(file))
    }

    pub fn places(&self) -> Vec<Place> {
        let mut places: Vec<_> = self.spans().iter().map(|span| span.place).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// What there is to harm.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for file in self.medium.names().into_iter().chain(self.medium.ring_names()) {
            let (written, len) = (self.written(&file), self.medium.len(&file));
            let mut add = |place, from, to| {
                if from < to {
                    spans.push(Span { place, file: file.clone(), from, to });
                }
            };
            if file.starts_with("mark-") {
                // Most of a mark's blocks says nothing.
                for block in (0..len).step_by(BLOCK) {
                    add(Place::Mark, block, block + MARK_USED);
                }
                add(Place::Mark, 0, len);
            } else if file.starts_with("checkpoint-") {
                add(Place::Checkpoint, 0, written);
            } else if file.starts_with("index-") {
                add(Place::Index, 0, len);
            } else if file.contains('/') {
                add(Place::RingPage, 0, PAGE_USED);
                add(Place::RingBytes, BLOCK, len);
            } else if self.identities.iter().any(|identity| identity.name().to_string() == file) {
                add(Place::Identity, 0, BLOCK);
                add(Place::Entries, BLOCK, written);
                add(Place::Unwritten, written.max(BLOCK), len);
            }
        }
        spans
    }

    /// The segments that the log goes on behind, each up to where it does: read back from the newest, as `chain` says.
    pub fn sealed(&self) -> Vec<SealedSegment> {
        let mut sealed = Vec::new();
        let mut previous_end = self.newest().previous_end;
        while let Some(identity) = self.identities.iter().rfind(|identity| identity.base < previous_end) {
            // The newest run may not have come to the one that it made ahead.
            if identity.epoch < self.newest().epoch {
                sealed.push(SealedSegment::new(identity, previous_end.min(identity.end()), &[]));
            }
            previous_end = identity.previous_end;
        }
        sealed
    }

    fn survey(&mut self) {
        let names = self.medium.names();
        let is_segment = |name: &&String| name.len() == 31 && name.as_bytes()[20] == b'-';
        let identity = |name: &String| Identity::decode(&self.medium.read(name, 0, BLOCK)).unwrap();
        self.identities = names.iter().filter(is_segment).map(identity).collect();
        self.identities.sort_unstable_by_key(Identity::name);
        for name in names {
            let bytes = self.medium.get(&name);
            let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            self.written.insert(name, end.next_multiple_of(64).min(bytes.len()));
        }
    }

    /// A run that saves its state and is stopped, by the library alone.
    fn checkpoint(&self) {
        let mut replayed = Replayed::new();
        let now = Nanos::from_secs(1);
        let (medium, options) = (self.medium.clone(), self.options());
        let (mut log, _) = block_on(Log::start(medium.clone(), medium, options, &mut replayed)).unwrap();
        let engine = &mut replayed.engine;
        engine.recovered(log.durable());
        let mut save = engine.begin_checkpoint();
        // Of this run: what it appended before anything else is nothing, and a checkpoint begins behind the entries of earlier runs.
        let begin = save.begin().max(log.tail());
        let mut writer = block_on(log.begin_checkpoint(begin, replayed.store_time, now)).unwrap();
        loop {
            let mut section = Vec::new();
            let is_all = engine.save_slice(&mut save, &mut section, 4 << 10);
            block_on(writer.section(&section)).unwrap();
            if is_all {
                break;
            }
        }
        let finished = block_on(writer.finish(save.end().unwrap().max(begin))).unwrap();
        let published = block_on(log.publish_checkpoint(finished)).unwrap();
        log.checkpoint_ended(Some(published), now);
        log.begin_close();
        let mut now = now;
        while log.close_state() != CloseState::Done {
            match log.next_task(now) {
                Some(task) => {
                    let done = block_on(task.run());
                    log.complete(done, now);
                }
                None => now = log.next_deadline().unwrap_or(now).max(now + 1_000_000),
            }
        }
        log.finish_close().unwrap();
    }

    /// Makes the indexes that are not there.
    fn index(&mut self) {
        self.survey();
        for segment in self.sealed() {
            if !self.medium.names().contains(&format!("index-{}", segment.name())) {
                block_on(build_index(&self.medium, &self.options(), &segment, index::Stop::default())).unwrap();
            }
        }
    }

    /// Leaves a folder with these files and no others.
    fn store_to(&self, folder: &Path) {
        for (_, path) in files_in(folder) {
            fs::remove_file(path).unwrap();
        }
        for name in self.medium.names() {
            fs::write(folder.join(&name), self.medium.get(&name)).unwrap();
        }
    }

    /// Position of a byte of a segment's file.
    pub fn position(&self, file: &str, offset: usize) -> Option<LogPosition> {
        let identity = self.identities.iter().find(|identity| identity.name().to_string() == file)?;
        Some(identity.base + offset.checked_sub(BLOCK)? as u64)
    }

    /// Where in a segment's file a position stands; `None` where it cannot.
    pub fn offset(&self, file: &str, position: LogPosition) -> Option<usize> {
        let identity = self.identities.iter().find(|identity| identity.name().to_string() == file)?;
        let within = (identity.base..identity.end()).contains(&position);
        within.then(|| BLOCK + (position - identity.base) as usize)
    }
}

/// Sends and remembers what was acknowledged.
struct Writer {
    topic: TopicId,
    promised: Promised,
    sequences: [u64; QUEUES as usize],
}

impl Writer {
    fn write(&mut self, broker: &Broker, random: &mut Random, batches: usize, level: DurableLevel, with_large: bool) {
        let mut connection = Connection::open(broker.address(), None);
        for number in 0..batches {
            let queue = QueueId(random.below(QUEUES.into()) as u32);
            let sequence = &mut self.sequences[queue.0 as usize];
            let length = if with_large && number % 16 == 0 { 100_000 } else { random.below(600) as usize };
            let count = 1 + random.below(4);
            let letter = char::from(b'a' + random.below(26) as u8).to_string();
            let bodies: Vec<String> = (0..count)
                .map(|it| format!("{queue} {sequence} {it} {}", letter.repeat(length / count as usize)))
                .collect();
            let producer = Some((ProducerId(7 + u64::from(queue.0)), Sequence(*sequence)));
            let sent = Sent { topic: self.topic, queue, level, producer, bodies: &bodies };
            let answer = loop {
                match connection.produce(&sent) {
                    Reply::Produced(answer) => break answer,
                    Reply::Error { code: Some(ErrorCode::Busy), .. } => {}
                    other => panic!("a batch was answered with {other:?}"),
                }
            };
            *sequence += 1;
            for (offset, body) in (answer.base_offset.0..).zip(&bodies) {
                let what = (answer.level.min(level), crc32(body.as_bytes()));
                self.promised.insert((self.topic, queue, QueueOffset(offset)), what);
            }
        }
    }
}

fn files_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect()
}
