//! One thread's producers and consumers on their connections.
//!
//! A message's correlation is its index + 1 (0 is what the broker pushes with), so an answer needs no table to be
//! matched. A reader's credit is given back when half of it is used up.

use std::collections::BTreeMap;

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::ids::{Correlation, DurableLevel, ProducerEpoch, ProducerId, Sequence, ShardId};
use peregrine_protocol::limits::FRAME_ALIGN;
use peregrine_protocol::message::produce::PRODUCE_PREFIX_LEN;
use peregrine_protocol::message::{Answer, Mode, ProduceHead, Request, Start, Subscribe};
use peregrine_protocol::record::RecordDraft;

use super::RECORD_OVERHEAD;
use super::control::{QueuePlace, Topics};
use super::desk::{CREDIT_MESSAGES, Desk, Reading, Role};
use super::groups::Groups;
use super::handshake::Link;
use super::members::Members;
use super::replay::Replay;
use crate::audience::Listening;
use crate::cli::{Level, LoadArgs};
use crate::clock::{Clock, MILLISECOND, Ns, SECOND};
use crate::connection::Connections;
use crate::transport::{Events, Offer, Origin, Refusal, Transport, TransportError};
use crate::workload::Message;

/// Bytes that a reader lets the broker send ahead, per queue.
const CREDIT_BYTES_MIN: u64 = 4 << 20;
/// Bytes of a connection's buffers, at least: some bursts of small messages.
const BUFFER_BYTES_MIN: usize = 256 << 10;
/// Bytes of an assigned queue in the frame that tells a member of its queues, at most.
const ASSIGNED_BYTES: usize = 32;
/// How long the groups' members may take to share the queues out among them before the load begins.
const SETTLED_WITHIN: Ns = 30 * SECOND;
/// How long they may take to leave when it is over; who has not left then is fenced by the group's deletion.
const LEFT_WITHIN: Ns = 5 * SECOND;

/// The connections of one generator thread.
#[derive(Debug)]
pub struct Wire {
    clock: Clock,
    connections: Connections,
    producers: Vec<Producer>,
    threads: u32,
    queues: Vec<QueuePlace>,
    /// The groups whose members live here.
    groups: Vec<u32>,
    flags: EntryFlags,
    pen: Pen,
    desk: Desk,
    replay: Option<Replay>,
}

/// One producer of this thread.
#[derive(Debug)]
struct Producer {
    id: ProducerId,
    /// By shard: the connection's number; `None` where no queue of the run lives.
    connections: Vec<Option<usize>>,
}

/// Memory in which a message is made.
#[derive(Debug, Default)]
struct Pen {
    body: Vec<u8>,
    batch: Vec<u8>,
}

/// Bytes of a produce frame with one message of `size` bytes.
pub fn produce_frame_len(size: usize) -> usize {
    let record = RecordDraft { body: &[], ..RecordDraft::default() }.len() as usize + size;
    PRODUCE_PREFIX_LEN + record.next_multiple_of(FRAME_ALIGN)
}

/// What the consumers of `thread` listen to. Without groups queue q belongs to consumer q mod consumers, and consumer c to
/// thread c mod threads; group g belongs to thread g mod threads with all its members.
pub fn listening_of_thread(load: &LoadArgs, thread: u32, threads: u32) -> Listening {
    if load.groups > 0 {
        let mine = (thread..load.groups).step_by(threads as usize).collect();
        return Listening::Groups { mine, all: load.groups };
    }
    let mine = |queue: &u32| load.consumers > 0 && queue % load.consumers % threads == thread;
    Listening::Readers((0..load.topics * load.queues).filter(mine).collect())
}

impl Wire {
    /// Connects the producers and consumers of `thread` among `threads`, and subscribes the latter. Members of groups have
    /// their queues only when [`Self::settle`] has returned.
    pub fn connect(
        load: &LoadArgs,
        topics: &Topics,
        groups: Option<&Groups>,
        clock: Clock,
        (thread, threads): (u32, u32),
    ) -> Result<Self, TransportError> {
        let level = if load.level == Level::Memory { DurableLevel::Memory } else { DurableLevel::Synced };
        let connections = Connections::new(clock)
            .map_err(|source| TransportError::Io { context: "preparing to wait for events".to_owned(), source })?;
        let frame = produce_frame_len(load.size) + RECORD_OVERHEAD as usize;
        let buffer_bytes = BUFFER_BYTES_MIN.max(4 * frame).max(topics.queues.len() * ASSIGNED_BYTES);
        let mut wire = Self {
            clock,
            connections,
            producers: Vec::new(),
            threads,
            queues: topics.queues.clone(),
            groups: Vec::new(),
            flags: EntryFlags::for_level(level),
            pen: Pen { body: vec![0; load.size], batch: Vec::with_capacity(load.size + 2 * RECORD_OVERHEAD as usize) },
            desk: Desk {
                level,
                frame_max: 0,
                input_bytes: buffer_bytes,
                roles: Vec::new(),
                members: Members::default(),
                credit_bytes: CREDIT_BYTES_MIN.max(16 * load.size as u64),
                credit: Vec::with_capacity(BUFFER_BYTES_MIN),
                told: false,
            },
            replay: None,
        };
        for producer in (thread..load.producers).step_by(threads as usize) {
            wire.add_producer(load, producer)?;
        }
        match (groups, listening_of_thread(load, thread, threads)) {
            (Some(groups), Listening::Groups { mine, .. }) => {
                for member in mine.iter().flat_map(|group| (0..load.consumers).map(move |number| (*group, number))) {
                    wire.add_member(load, groups, member)?;
                }
                wire.groups = mine;
            }
            _ => {
                for consumer in (thread..load.consumers).step_by(threads as usize) {
                    wire.add_reader(load, consumer)?;
                }
            }
        }
        Ok(wire)
    }

    fn add_producer(&mut self, load: &LoadArgs, producer: u32) -> Result<(), TransportError> {
        let shards = self.queues.iter().map(|queue| usize::from(queue.shard.0)).max().map_or(0, |last| last + 1);
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), producer);
        let mut connections = Vec::new();
        for shard in (0..shards).map(|shard| ShardId(shard as u16)) {
            if !self.queues.iter().any(|queue| queue.shard == shard) {
                connections.push(None);
                continue;
            }
            let client = format!("loadgen producer {producer}");
            let (link, greeting) = Link::open(&load.broker, Some(shard), &client)?;
            self.desk.frame_max = greeting.frame_max;
            connections.push(Some(self.adopt(link, Role::Producer)?));
        }
        self.producers.push(Producer { id: ProducerId(random.max(1)), connections });
        Ok(())
    }

    fn add_reader(&mut self, load: &LoadArgs, consumer: u32) -> Result<(), TransportError> {
        let mut by_shard: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (queue, place) in (0..).zip(&self.queues).filter(|(queue, _)| queue % load.consumers == consumer) {
            by_shard.entry(place.shard.0).or_default().push(queue);
        }
        for (shard, queues) in by_shard {
            let client = format!("loadgen consumer {consumer}");
            let (mut link, greeting) = Link::open(&load.broker, Some(ShardId(shard)), &client)?;
            self.desk.frame_max = greeting.frame_max;
            let mut readings = Vec::with_capacity(queues.len());
            for queue in queues {
                let place = self.queues[queue as usize];
                let subscribe = Subscribe {
                    topic: place.topic,
                    queue: place.queue,
                    mode: Mode::Reader,
                    start: Start::Earliest,
                    credit_messages: CREDIT_MESSAGES,
                    credit_bytes: self.desk.credit_bytes,
                };
                let subscription = link.ask(&Request::Subscribe(subscribe), |answer| match answer {
                    Answer::Subscribe(answer) => Some(answer.subscription),
                    _ => None,
                })?;
                readings.push(Reading { subscription, queue, messages: 0, bytes: 0 });
            }
            readings.sort_by_key(|reading| reading.subscription);
            self.adopt(link, Role::Reader(readings))?;
        }
        Ok(())
    }

    /// Member `number` of `group` has a connection to its home and to each shard with a queue of the run.
    fn add_member(
        &mut self,
        load: &LoadArgs,
        groups: &Groups,
        (group, number): (u32, u32),
    ) -> Result<(), TransportError> {
        let name = format!("m{number}");
        let client = format!("loadgen {}, member {name}", groups.all[group as usize].name);
        let mut connections = vec![None; usize::from(groups.shards)];
        let home = groups.all[group as usize].home;
        for shard in (0..groups.shards).map(ShardId) {
            if shard == home || self.queues.iter().any(|queue| queue.shard == shard) {
                let (link, greeting) = Link::open(&load.broker, Some(shard), &client)?;
                self.desk.frame_max = greeting.frame_max;
                let connection = self.adopt(link, Role::Member(self.desk.members.len(), shard))?;
                connections[usize::from(shard.0)] = Some(connection);
            }
        }
        let share = self.queues.len().div_ceil(load.consumers.max(1) as usize);
        let credit = (share, self.desk.credit_bytes);
        self.desk.members.add((groups, group), name, credit, connections);
        Ok(())
    }

    /// Lets this thread replay a topic, too. It does not sleep from then on.
    pub fn replay(&mut self, replay: Replay) {
        self.replay = Some(replay);
    }

    fn adopt(&mut self, link: Link, role: Role) -> Result<usize, TransportError> {
        let (stream, name, unread) = link.into_parts();
        let buffers = (self.desk.input_bytes, self.desk.input_bytes);
        self.desk.roles.push(role);
        let added = self.connections.add(stream, name, buffers, &unread);
        added.map_err(|source| TransportError::Io { context: "setting up a connection".to_owned(), source })
    }

    /// Waits until the members of this thread's groups have joined and have all queues.
    pub fn settle(&mut self) -> Result<(), TransportError> {
        let queues = self.queues.len();
        let is_settled = |members: &Members, groups: &[u32]| members.are_settled(groups, queues);
        if !self.turn_until(SETTLED_WITHIN, is_settled, &mut Nobody)? {
            let sentence = "the members of the groups did not get all queues in time";
            return Err(TransportError::Protocol(sentence.to_owned()));
        }
        Ok(())
    }

    /// Turns until `done`, at most for so long; whether it is.
    fn turn_until(
        &mut self,
        within: Ns,
        done: impl Fn(&Members, &[u32]) -> bool,
        events: &mut impl Events,
    ) -> Result<bool, TransportError> {
        let deadline = self.clock.now() + within;
        while !done(&self.desk.members, &self.groups) {
            let now = self.clock.now();
            if now >= deadline {
                return Ok(false);
            }
            self.turn(Some(now + 10 * MILLISECOND), events)?;
        }
        Ok(true)
    }
}

impl Transport for Wire {
    fn offer(&mut self, message: &Message<'_>) -> Result<Offer, TransportError> {
        let producer = &self.producers[(message.place.producer / self.threads) as usize];
        let place = self.queues[message.place.queue as usize];
        let Some(number) = producer.connections[usize::from(place.shard.0)] else {
            unreachable!("a producer has a connection to the shard of each queue of the run")
        };
        let output = self.connections.output(number);
        let Some(frame) = output.reserve(produce_frame_len(message.len())) else { return Ok(Offer::Full) };
        let payload = self.pen.write(message);
        let head = ProduceHead {
            topic: place.topic,
            queue: place.queue,
            producer_id: producer.id,
            producer_epoch: ProducerEpoch(0),
            sequence: Sequence(message.place.sequence),
            payload_crc: crc32(payload),
            record_count: 1,
            flags: self.flags,
        };
        let (prefix, rest) = frame.split_at_mut(PRODUCE_PREFIX_LEN);
        prefix.copy_from_slice(&head.encode_prefix(Correlation(message.index + 1), payload.len()));
        // A batch of whole records is a multiple of 8 long, and needs no filling.
        rest.copy_from_slice(payload);
        Ok(Offer::Taken)
    }

    fn turn(&mut self, wait_until: Option<Ns>, events: &mut impl Events) -> Result<(), TransportError> {
        let Self { desk, connections, queues, clock, replay, .. } = self;
        let mut wait_until = wait_until;
        if let Some(replay) = replay {
            replay.turn()?;
            wait_until = None;
        }
        if !desk.members.is_empty() {
            desk.members.turn(queues, connections, clock.now())?;
            wait_until = wait_until.map(|instant| instant.min(desk.members.wake_at()));
        }
        connections.turn(wait_until, |number, bytes, output, now| desk.read(number, bytes, output, now, events))
    }

    fn close(&mut self, events: &mut impl Events) -> Result<(), TransportError> {
        self.desk.members.leave(self.clock.now());
        self.turn_until(LEFT_WITHIN, |members, _| members.have_left(), events).map(drop)
    }
}

/// Before the load there is nothing to see.
struct Nobody;

impl Events for Nobody {
    fn acknowledged(&mut self, _index: u64, _now: Ns) {}
    fn refused(&mut self, _index: u64, _refusal: Refusal, _now: Ns) {}
    fn delivered(&mut self, _origin: &Origin, _body: &[u8], _now: Ns) {}
}

impl Pen {
    /// The batch of one record that carries `message`.
    fn write(&mut self, message: &Message<'_>) -> &[u8] {
        message.write(&mut self.body);
        self.batch.clear();
        RecordDraft { body: &self.body, ..RecordDraft::default() }.append_to(&mut self.batch);
        &self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;
    use peregrine_protocol::record::Batch;

    use crate::content::Content;
    use crate::schedule::Schedule;
    use crate::workload::Workload;

    #[test]
    fn a_frame_is_as_long_as_it_says_and_its_batch_is_whole() {
        for size in [48, 49, 1_000, 1_024] {
            let schedule = Schedule { rate: 1, warmup: 0, duration: SECOND, producers: 1, queues: 1, start: 0 };
            let workload = Workload { run: 1, size, schedule, content: Content::random(1) };
            let mut pen = Pen { body: vec![0; size], batch: Vec::new() };
            let payload = pen.write(&workload.message(0));
            assert_eq!(PRODUCE_PREFIX_LEN + payload.len(), produce_frame_len(size));
            assert!(payload.len() as u64 <= size as u64 + RECORD_OVERHEAD);
            let batch = Batch::new(payload, 1).unwrap();
            assert_eq!(batch.records().next().unwrap().unwrap().body().len(), size);
        }
    }
}
