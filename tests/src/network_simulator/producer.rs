//! A producer: the client's core over connections, to the shards of its queues or through one that has them forwarded.

use std::fmt;

use peregrine_client::idempotence::{
    Acknowledgement, BatchLimits, BatchToSend, CoreOptions, Loss, Outcome, ProducerCore, Ticket,
};
use peregrine_protocol::entry::EntryFlags;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Nanos, ProducerId, QueueId, ShardId};
use peregrine_protocol::message::{ProduceAnswer, ProduceHead};
use peregrine_protocol::placement::TopicHash;

use super::catalogue::Topic;
use super::ledger::Told;
use super::link::{Link, Said};
use super::message::{Message, Number};
use super::world::World;
use crate::simulator::{Violation, promise};

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Bytes of a usual message, and of the largest batch.
    pub usual_bytes: u64,
    pub batch_bytes: u64,
    /// Messages of one burst, at most, and nanoseconds between two, at most.
    pub burst: u64,
    pub pause: u64,
    /// Messages in all.
    pub messages: u64,
}

pub struct Producer {
    number: usize,
    topic: Topic,
    manner: Manner,
    core: ProducerCore<(Number, QueueId)>,
    links: Vec<(Vec<ShardId>, Link<Ticket>)>,
    levels: Vec<DurableLevel>,
    left: u64,
    next_burst: u64,
    lost: u64,
    is_over: bool,
}

impl Producer {
    pub fn new(world: &mut World, number: usize, topic: &Topic, manner: Manner) -> Self {
        let seed = world.random.next_u64();
        let options = CoreOptions {
            topic: TopicHash::of(&topic.name),
            shards: world.shards,
            limits: BatchLimits { bytes: manner.batch_bytes as usize, records: world.random.between(1, 20) as usize },
            // Every message is to be stored in the end.
            timeout: Nanos::MAX,
            seed,
        };
        let all: Vec<ShardId> = (0..world.shards).map(ShardId).collect();
        let link = |shard: Option<ShardId>| Link::new(format!("producer-{number}"), shard, seed);
        let links = match world.random.below(4) {
            0 => vec![(all, link(None))],
            1 => vec![(all, link(Some(ShardId(world.pick_shard()))))],
            _ => all.into_iter().map(|shard| (vec![shard], link(Some(shard)))).collect(),
        };
        let levels = match world.random.below(4) {
            0 => vec![DurableLevel::Memory],
            1 => vec![DurableLevel::Synced],
            _ => vec![DurableLevel::Memory, DurableLevel::Synced],
        };
        let (core, left) = (ProducerCore::new(options), manner.messages);
        Self { number, topic: topic.clone(), manner, core, links, levels, left, next_burst: 0, lost: 0, is_over: false }
    }

    /// Whether all that it has to send was acknowledged.
    pub fn is_idle(&self) -> bool {
        self.is_over || (self.left == 0 && self.core.is_idle())
    }

    /// What it has not begun to send stays unsent.
    pub fn finish(&mut self) {
        self.left = 0;
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        if self.is_over {
            return u64::MAX;
        }
        let links = self.links.iter().map(|(_, link)| link.next_wake(now));
        let core = self.core.next_wake().map_or(u64::MAX, |at| at.0);
        let burst = if self.left > 0 { self.next_burst } else { u64::MAX };
        links.chain([core, burst]).min().unwrap_or(u64::MAX)
    }

    pub fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        if self.is_over {
            return Ok(());
        }
        let now = Nanos(world.now());
        for index in 0..self.links.len() {
            for said in self.links[index].1.turn(world)? {
                self.heard(world, index, said)?;
            }
        }
        if self.core.next_wake().is_some_and(|at| at <= now) {
            self.core.wake(now);
        }
        if self.left > 0 && now.0 >= self.next_burst {
            self.push(world);
        }
        self.send(world);
        self.report(world)
    }

    fn heard(&mut self, world: &mut World, index: usize, said: Said<Ticket>) -> Result<(), Violation> {
        let now = Nanos(world.now());
        match said {
            Said::Ready => self.links[index].0.iter().for_each(|shard| self.core.connected(*shard, now)),
            Said::Lost => self.links[index].0.iter().for_each(|shard| self.core.disconnected(*shard, now)),
            Said::Stored { asked, answer } => {
                let ProduceAnswer { base_offset, epoch, position, level, duplicate, .. } = answer;
                promise!(
                    answer.queue == asked.queue && answer.shard == self.core.shard_of(asked.queue),
                    "a batch for {:?} was answered {answer:?}",
                    asked.queue
                );
                world.statistics.duplicates += u64::from(duplicate);
                self.core.answered(asked, Ok(Acknowledgement { base_offset, epoch, position, level, duplicate }), now);
            }
            Said::Refused { asked, refusal } => {
                world.statistics.batches_refused += 1;
                self.core.answered(asked, Err(refusal), now);
            }
            _ => return Err(Violation(format!("producer {} was told what it did not ask", self.number))),
        }
        Ok(())
    }

    /// Makes messages and hands them to the core.
    fn push(&mut self, world: &mut World) {
        let Manner { usual_bytes, batch_bytes, burst, pause, .. } = self.manner;
        let queues = world.catalogue.find(self.topic.id).map_or(self.topic.queues, |topic| topic.queues);
        for _ in 0..world.random.between(1, burst).min(self.left) {
            let queue = QueueId(world.random.below(u64::from(queues)) as u32);
            let level = *world.random.pick(&self.levels);
            let number = world.ledger.next_number();
            let message = Message::random(&mut world.random, number, usual_bytes, batch_bytes - 128);
            world.ledger.sends(message, (self.topic.id, queue), self.number, level);
            let now = Nanos(world.now());
            self.core.push(queue, level, &message.record(), (number, queue), now);
            self.left -= 1;
            world.statistics.sent += 1;
        }
        self.next_burst = world.now() + world.random.below(pause + 1);
    }

    fn send(&mut self, world: &mut World) {
        let now = world.now();
        while let Some((shard, batch)) = self.core.next_batch(Nanos(now)) {
            let BatchToSend { ticket, level, epoch, sequence, records, payload_crc, payload } = batch;
            let head = ProduceHead {
                topic: self.topic.id,
                queue: ticket.queue,
                producer_id: ProducerId(self.number as u64 + 1),
                producer_epoch: epoch,
                sequence,
                payload_crc,
                record_count: records,
                flags: EntryFlags::for_level(level),
            };
            let route = self.links.iter_mut().find(|(shards, _)| shards.contains(&shard));
            if let Some((_, link)) = route {
                link.produce(now, head, &payload, ticket);
                world.statistics.batches += 1;
                world.count_request(link.served_by(), shard);
            }
        }
    }

    fn report(&mut self, world: &mut World) -> Result<(), Violation> {
        while let Some(outcome) = self.core.next_outcome() {
            match outcome {
                Outcome::Acknowledged { token: (number, queue), index, record, acknowledgement, .. } => {
                    let Acknowledgement { base_offset, epoch, position, level, .. } = acknowledgement;
                    let shard = self.core.shard_of(queue);
                    let link = self.links.iter().find(|(shards, _)| shards.contains(&shard));
                    let told = Told {
                        epoch,
                        offset: base_offset + u64::from(index),
                        position: position.map(|position| (position, record.start)),
                        store_time: None,
                        level,
                        power_cuts: link.map_or(0, |(_, link)| link.power_cuts()),
                        is_visible: level > DurableLevel::Memory,
                    };
                    world.ledger.acknowledged(number, told)?;
                    world.statistics.acknowledged += 1;
                }
                Outcome::Failed { token: (number, _), error, .. } => {
                    let gone = matches!(error.code(), Some(ErrorCode::TopicDeleted | ErrorCode::UnknownTopic));
                    promise!(
                        gone && world.ledger.is_doomed(self.topic.id),
                        "message {number} of producer {} failed: {error}",
                        self.number
                    );
                    self.is_over = true;
                }
                Outcome::Lost(loss) => self.lost(world, &loss)?,
            }
        }
        Ok(())
    }

    /// What is reported lost was acknowledged at `memory`, and a power cut came.
    fn lost(&mut self, world: &mut World, loss: &Loss) -> Result<(), Violation> {
        let losable = world.ledger.losable((self.topic.id, loss.queue), self.number);
        promise!(
            loss.messages <= losable,
            "producer {} was told that {} messages of queue {} are lost, of which at most {losable} could be",
            self.number,
            loss.messages,
            loss.queue
        );
        self.lost += loss.messages;
        world.statistics.lost += loss.messages;
        Ok(())
    }
}

impl fmt::Display for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links: Vec<_> = self.links.iter().map(|(_, link)| (link.is_ready(), link.outstanding())).collect();
        write!(f, "producer {} of {:?} (connections ready, requests unanswered: {links:?})", self.number, self.topic.id)
    }
}
