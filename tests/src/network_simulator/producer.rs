//! A producer: the client's idempotent core over links of the simulation.

use std::collections::BTreeMap;

use peregrine_broker::log::disk::simulated::Random;
use peregrine_broker::simulated::Network;
use peregrine_client::error::Refusal;
use peregrine_client::idempotence::{
    Acknowledgement, BatchLimits, CoreOptions, Outcome, ProducerCore, RecordPlace, Ticket,
};
use peregrine_client::session::Event;
use peregrine_protocol::entry::{DirectoryId, EntryFlags};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, LogPosition, MessageId, Nanos, ProducerId, QueueId, ShardId, TopicId,
};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{ProduceAnswer, ProduceHead};
use peregrine_protocol::placement::TopicHash;

use super::archive::Archive;
use super::configuration::DIRECTORY;
use super::link::Link;
use super::message::record_of;
use super::statistics::Statistics;
use crate::simulator::{Violation, promise};

/// Long enough for every trouble of a simulation.
const TIMEOUT: Nanos = Nanos::from_secs(3600);
/// After a connection was lost.
const BACK_OFF: u64 = 3_000_000;
/// Messages that wait for their answers.
const PENDING_MAX: usize = 40;

struct Connection {
    link: Option<Link>,
    /// When the next one is made.
    again_at: u64,
    in_flight: BTreeMap<Correlation, Ticket>,
    was_ready: bool,
}

/// What is pushed and not answered for yet.
struct Pushed {
    number: u64,
}

pub struct Producer {
    topic: TopicId,
    id: ProducerId,
    core: ProducerCore<Pushed>,
    queues: Vec<QueueId>,
    /// By the shard that is named in the hello; `None` is the one connection of a client that knows of no shards.
    connections: BTreeMap<Option<ShardId>, Connection>,
    shards: u16,
    pending: usize,
}

impl Producer {
    /// `is_aware`: it has a connection to each shard, and not one for all.
    pub fn new(
        id: u64,
        topic: TopicId,
        name: &str,
        queues: Vec<QueueId>,
        shards: u16,
        is_aware: bool,
        random: &mut Random,
    ) -> Self {
        let options = CoreOptions {
            topic: TopicHash::of(name),
            shards,
            limits: BatchLimits { bytes: 40_000, records: 20 },
            timeout: TIMEOUT,
            seed: random.next_u64(),
        };
        let named: Vec<Option<ShardId>> =
            if is_aware { (0..shards).map(|shard| Some(ShardId(shard))).collect() } else { vec![None] };
        let connection = || Connection { link: None, again_at: 0, in_flight: BTreeMap::new(), was_ready: false };
        Self {
            topic,
            id: ProducerId(id),
            core: ProducerCore::new(options),
            queues,
            connections: named.into_iter().map(|shard| (shard, connection())).collect(),
            shards,
            pending: 0,
        }
    }

    pub fn has_room(&self) -> bool {
        self.pending < PENDING_MAX
    }

    /// All that was sent is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    /// What it waits for.
    pub fn state(&self) -> String {
        let connections = self.connections.iter().map(|(shard, one)| {
            let is_ready = one.link.as_ref().map(Link::is_ready);
            format!("{shard:?}: ready {is_ready:?}, {} unanswered", one.in_flight.len())
        });
        format!("{} messages, {}", self.pending, connections.collect::<Vec<_>>().join("; "))
    }

    /// Sends another message, to one of its queues.
    pub fn push(&mut self, number: u64, level: DurableLevel, now: u64, random: &mut Random) {
        let queue = *random.pick(&self.queues);
        self.pending += 1;
        self.core.push(queue, level, &record_of(number), Pushed { number }, Nanos(now));
    }

    pub fn next_wake(&self) -> u64 {
        let connects = self.connections.values().filter(|one| one.link.is_none()).map(|one| one.again_at);
        connects.chain(self.core.next_wake().map(|at| at.0)).min().unwrap_or(u64::MAX)
    }

    pub fn act(
        &mut self,
        network: &Network,
        now: u64,
        archive: &mut Archive,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        self.core.wake(Nanos(now));
        let links = self.connections.values().filter_map(|connection| connection.link.as_ref());
        let said_before = links.map(|link| link.power_cuts).min().unwrap_or(archive.power_cuts());
        let named: Vec<Option<ShardId>> = self.connections.keys().copied().collect();
        for &shard in &named {
            self.serve(shard, network, now, archive.power_cuts(), statistics)?;
        }
        self.send(now);
        for connection in self.connections.values_mut() {
            if let Some(link) = &mut connection.link {
                link.flush();
            }
        }
        self.report(archive, said_before, statistics)
    }

    fn shards_of(&self, named: Option<ShardId>) -> Vec<ShardId> {
        named.map_or_else(|| (0..self.shards).map(ShardId).collect(), |shard| vec![shard])
    }

    fn serve(
        &mut self,
        named: Option<ShardId>,
        network: &Network,
        now: u64,
        power_cuts: u64,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        let shards = self.shards_of(named);
        let Some(connection) = self.connections.get_mut(&named) else { return Ok(()) };
        let core = &mut self.core;
        let Some(link) = &mut connection.link else {
            if now >= connection.again_at {
                connection.link = Some(Link::open(network, "producer", named, power_cuts));
                statistics.connections += 1;
            }
            return Ok(());
        };
        let in_flight = &mut connection.in_flight;
        let is_up = link.pump(|_, event| {
            let (correlation, answer) = match event {
                Event::Produced { correlation, answer } => (correlation, Ok(acknowledgement(&answer))),
                Event::Refused { correlation, error } => (correlation, Err(Refusal::from(&error))),
                Event::Ready(_) => return Ok(()),
                other => return Err(Violation(format!("a producer was told {other:?}"))),
            };
            let Some(ticket) = in_flight.remove(&correlation) else {
                return Err(Violation(format!("request {correlation:?} was answered twice, or never asked")));
            };
            statistics.refused += u64::from(answer.is_err());
            core.answered(ticket, answer, Nanos(now));
            Ok(())
        })?;
        if !is_up {
            statistics.disconnections += 1;
            connection.link = None;
            connection.again_at = now + BACK_OFF;
            connection.in_flight.clear();
            if std::mem::take(&mut connection.was_ready) {
                for shard in shards {
                    core.disconnected(shard, Nanos(now));
                }
            }
        } else if link.is_ready() && !std::mem::replace(&mut connection.was_ready, true) {
            for shard in shards {
                core.connected(shard, Nanos(now));
            }
        }
        Ok(())
    }

    fn send(&mut self, now: u64) {
        while let Some((shard, batch)) = self.core.next_batch(Nanos(now)) {
            let named = if self.connections.contains_key(&None) { None } else { Some(shard) };
            let Some(Connection { link: Some(link), in_flight, .. }) = self.connections.get_mut(&named) else {
                continue;
            };
            let head = ProduceHead {
                topic: self.topic,
                queue: batch.ticket.queue,
                producer_id: self.id,
                producer_epoch: batch.epoch,
                sequence: batch.sequence,
                payload_crc: batch.payload_crc,
                record_count: batch.records,
                flags: EntryFlags::for_level(batch.level),
            };
            let speaker = &mut link.speaker;
            let correlation = speaker.session.produce(head, &batch.payload, &mut speaker.out);
            in_flight.insert(correlation, batch.ticket);
        }
    }

    fn report(&mut self, archive: &mut Archive, power_cuts: u64, statistics: &mut Statistics) -> Result<(), Violation> {
        while let Some(outcome) = self.core.next_outcome() {
            match outcome {
                Outcome::Acknowledged { token, queue, index, record, acknowledgement } => {
                    self.pending -= 1;
                    statistics.acknowledged += 1;
                    statistics.duplicates += u64::from(acknowledgement.duplicate);
                    let shard = self.core.shard_of(queue);
                    let id = acknowledgement.position.and_then(|entry| record_id(shard, entry, record));
                    let locator = id.map(|id| MessageLocator::new(DirectoryId(DIRECTORY), id, record.checksum));
                    let offset = acknowledgement.base_offset + u64::from(index);
                    archive.acknowledged(queue, offset, token.number, acknowledgement.level, locator, power_cuts)?;
                }
                Outcome::Failed { token, queue, error } => {
                    return Err(Violation(format!("message {} of queue {queue} failed: {error}", token.number)));
                }
                Outcome::Lost(loss) => {
                    promise!(
                        archive.power_cuts() > 0,
                        "{} acknowledged messages of queue {} are lost, and no power was",
                        loss.messages,
                        loss.queue
                    );
                    statistics.told_lost += loss.messages;
                }
            }
        }
        Ok(())
    }
}

fn acknowledgement(answer: &ProduceAnswer) -> Acknowledgement {
    Acknowledgement {
        base_offset: answer.base_offset,
        epoch: answer.epoch,
        position: answer.position,
        level: answer.level,
        duplicate: answer.duplicate,
    }
}

fn record_id(shard: ShardId, entry: LogPosition, record: RecordPlace) -> Option<MessageId> {
    let start = entry.0.checked_add(ENTRY_HEADER_LEN as u64 + u64::from(record.start))?;
    MessageId::checked(shard, LogPosition(start))
}
