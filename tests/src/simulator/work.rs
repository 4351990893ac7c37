//! What clients and time do to a running broker, one random step after the other.

use std::rc::Rc;

use peregrine_broker::engine::{
    BatchPlace, CatalogueState, Credit, Delivery, ProduceDecision, ReaderOwner, Refusal, StartAt, StoredBatch,
    TopicState,
};
use peregrine_broker::log::AppendRefused;
use peregrine_protocol::entry::entry_len;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Nanos, ProducerId, QueueId, SubscriptionId, TopicId};

use super::group::Consumers;
use super::process::{Append, ColdRead, Shard, Waiting};
use super::producer::Producer;
use super::reader::Reader;
use super::simulation::{Process, Simulation};
use super::violation::{Violation, promise};

pub const TOPICS_MAX: usize = 4;
const PRODUCERS_MAX: usize = 10;
const READERS_MAX: usize = 8;
/// Batches that one step sends at most.
const BURST: u64 = 6;
/// Nanoseconds between two slices of work: on assignments of groups, on checkpoints, on retention.
const SLICE_EVERY: u64 = 50_000;
/// Nanoseconds after which a shard looks for what is to be done although nothing has happened.
const LOOK_EVERY: u64 = 500_000_000;

impl Simulation {
    /// The work of a usual life.
    pub(super) fn work_until_the_end(&mut self, process: &mut Process) -> Result<(), Violation> {
        self.connect(process)?;
        for _ in 0..self.configuration.actions {
            self.act(process)?;
            self.turn(process)?;
        }
        self.devices_recover(process)
    }

    /// Readers go on where they were.
    pub(super) fn connect(&mut self, process: &mut Process) -> Result<(), Violation> {
        (0..self.readers.len()).try_for_each(|reader| self.subscribe(process, reader))
    }

    fn act(&mut self, process: &mut Process) -> Result<(), Violation> {
        if self.random.one_in(self.consumers.settings.one_in) {
            return self.act_on_groups(process);
        }
        match self.random.below(100) {
            0..45 => self.produce_some(process),
            45..72 => {
                let target = self.machine.now() + self.random.below(100_000);
                self.pass_time(process, target)
            }
            72..82 => {
                let target = self.machine.now() + self.random.below(3_000_000);
                self.pass_time(process, target)
            }
            82..84 => {
                let target = self.machine.now() + self.random.between(50_000_000, 1_500_000_000);
                self.pass_time(process, target)
            }
            84..90 => self.add_producer(process),
            90..95 => self.change_readers(process),
            _ => self.change_catalogue(process),
        }
    }

    /// Completes operations and keeps deadlines until `target`.
    pub(super) fn pass_time(&mut self, process: &mut Process, target: u64) -> Result<(), Violation> {
        loop {
            let now = self.machine.now();
            let of_logs = process.shards.iter().filter_map(|shard| shard.next_deadline_behind(Nanos(now)));
            let tick = self.consumers.settings.tick;
            let of_groups = process.shards.iter().filter_map(|shard| shard.engine.next_group_deadline());
            let of_groups = of_groups.map(|deadline| deadline.0.next_multiple_of(tick));
            let has_work = process.shards.iter().any(|shard| shard.engine.has_group_work() || shard.has_woken());
            let next_slice = has_work.then_some(now + SLICE_EVERY);
            let deadlines = of_logs.map(|deadline| deadline.0).chain(of_groups).chain(next_slice);
            let deadlines = deadlines.chain(self.consumers.next_due());
            let until = deadlines.filter(|deadline| *deadline > now).min();
            // Retention looks now and then.
            let until = until.unwrap_or(target).min(target).min(now + LOOK_EVERY);
            let completed = self.machine.advance(until);
            self.turn(process)?;
            if !completed && self.machine.now() >= target {
                return Ok(());
            }
        }
    }

    /// Everything that can go on without time passing, once for each shard.
    pub(super) fn turn(&mut self, process: &mut Process) -> Result<(), Violation> {
        for shard in 0..process.shards.len() {
            let now = self.now();
            let was_poisoned = process.shards[shard].engine.is_poisoned();
            process.shards[shard].turn(&mut self.random, &mut self.ledgers[shard], now)?;
            let wall = self.wall();
            process.shards[shard].retain(&mut self.random, &mut self.ledgers[shard], (now, wall))?;
            process.shards[shard].retain_topics(&mut self.random, &mut self.ledgers[shard], (now, wall))?;
            self.statistics.aged += process.shards[shard].take_aged();
            self.statistics.retired += process.shards[shard].take_retired();
            self.statistics.recycled += process.shards[shard].take_recycled();
            self.statistics.rolls += process.shards[shard].take_rolls();
            self.statistics.scrubbed += process.shards[shard].take_scrubbed();
            let (damaged, bad_indexes) = process.shards[shard].found_by_scrub();
            promise!(
                damaged == 0 || self.statistics.damaged + self.statistics.damaged_at_rest > 0,
                "the scrub of shard {shard} finds damage that nobody did"
            );
            // An index that the device does not give back is as bad as one that it changed.
            promise!(bad_indexes == 0 || self.devices_fail(), "the scrub of shard {shard} finds an index that is bad");
            self.statistics.looked_up += process.shards[shard].look_ups.take_answered();
            self.statistics.checkpoints += process.shards[shard].take_checkpoints();
            let is_poisoned = process.shards[shard].engine.is_poisoned();
            promise!(is_poisoned || !self.machine.flush_failed(shard), "a flush failed, and shard {shard} goes on");
            if is_poisoned && !was_poisoned {
                self.poisoned(process, shard);
            }
            while let Some(waiting) = process.shards[shard].next_released() {
                self.answer(shard, &waiting)?;
            }
            for reader in process.shards[shard].look_ups.take_damaged() {
                self.told_of_trouble(process, shard, reader);
            }
            while let Some(read) = process.shards[shard].cold_reads.poll(&mut self.random) {
                self.statistics.read_from_disk += 1;
                let ColdRead { owner, subscription, batch, bytes } = read;
                let running = &mut process.shards[shard];
                let is_retired = batch.position < running.log.begins_at();
                if bytes.is_err() && (is_retired || self.devices_fail()) {
                    self.told_of_trouble(process, shard, (owner, subscription));
                    continue;
                }
                let bytes = bytes.map_err(|error| Violation(format!("a read of the log failed: {error}")))?;
                self.deliver(&mut process.shards[shard], shard, (owner, subscription), &batch, &bytes)?;
            }
        }
        self.catalogue_takes_effect(process)?;
        self.serve_groups(process)?;
        self.catalogue_takes_effect(process)?;
        (0..process.shards.len()).try_for_each(|shard| self.deliver_all(process, shard))
    }

    /// What a reader or a member was to be sent was retired meanwhile, or cannot be read: it is told so, and comes again.
    fn told_of_trouble(
        &mut self,
        process: &mut Process,
        shard: usize,
        (owner, subscription): (ReaderOwner, SubscriptionId),
    ) {
        let gone = process.shards[shard].engine.unsubscribe(owner, subscription);
        if !Consumers::is_member(owner) {
            self.readers[owner.0 as usize].disconnected();
        } else if gone.is_ok() {
            self.turn_was_given_up(shard, owner, subscription);
        }
    }

    /// What is durable of the catalogue counts, and the other shards hear of it by and by.
    fn catalogue_takes_effect(&mut self, process: &mut Process) -> Result<(), Violation> {
        while let Some(state) = process.shards[0].engine.next_catalogue_effect() {
            self.machine.note(&("takes effect", format!("{state:?}")));
            if let CatalogueState::Topic(state) = &state {
                self.statistics.deleted += u64::from(matches!(state, TopicState::Deleted(_)));
                self.catalogue.effect(state)?;
            }
            self.tell_others(process, &state)?;
        }
        Ok(())
    }

    /// Whoever waits hears that the outcome is unknown and asks again after the next start.
    fn poisoned(&mut self, process: &mut Process, shard: usize) {
        self.machine.note(&("poisoned", shard));
        self.statistics.poisoned += 1;
        for waiting in process.shards[shard].waiting.drain() {
            if let Waiting::Batch { producer, .. } = waiting {
                self.producers[producer].disconnected();
            }
        }
    }

    fn answer(&mut self, shard: usize, waiting: &Waiting) -> Result<(), Violation> {
        promise!(!self.machine.flush_failed(shard), "shard {shard} answered {waiting:?} after a failed flush");
        match waiting {
            Waiting::Batch { producer, mark, stored } => {
                self.machine.note(&("acknowledged", shard, stored.position, stored.level));
                self.statistics.acknowledged += 1;
                let record = self.ledgers[shard].acknowledged(stored.position, stored.level)?;
                promise!(
                    record.header.payload_crc == *mark && record.header.base_offset == stored.base_offset,
                    "batch {mark:08x} was answered with position {}, where another one stands",
                    stored.position
                );
                self.producers[*producer].acknowledged(*mark, stored)
            }
            Waiting::Place(waiting) => self.place_is_safe(shard, waiting),
            Waiting::Change { position } => self.ledgers[shard].acknowledged(*position, DurableLevel::Synced).map(drop),
        }
    }

    // Producing.

    fn produce_some(&mut self, process: &mut Process) -> Result<(), Violation> {
        if self.producers.is_empty() {
            return self.add_producer(process);
        }
        let producer = self.random.below(self.producers.len() as u64) as usize;
        for _ in 0..self.random.between(1, BURST) {
            if self.producers[producer].has_window() {
                self.make_batch(producer);
            }
            if !self.send(process, producer)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn make_batch(&mut self, producer: usize) {
        let number = self.next_number;
        self.next_number += 1;
        let bytes = if self.random.one_in(40) {
            self.random.below(self.configuration.payload_max() - 1_000)
        } else {
            self.random.below(self.configuration.batch_bytes)
        };
        let level = if self.random.coin() { DurableLevel::Memory } else { DurableLevel::Synced };
        let marks = &self.marks;
        let fresh = |mark| !marks.contains(&mark);
        let mark = self.producers[producer].make_batch(&mut self.random, number, bytes, level, fresh);
        self.marks.insert(mark);
    }

    /// Sends the producer's next batch. False where there is none or it was not taken.
    pub(super) fn send(&mut self, process: &mut Process, producer: usize) -> Result<bool, Violation> {
        let Some((offer, payload)) = self.producers[producer].next_offer() else { return Ok(false) };
        let (topic, queue, mark) = (offer.topic, offer.queue, offer.payload_crc);
        let Some(index) = self.shard_of(process, topic, queue) else {
            self.producers[producer].ended = true;
            return Ok(false);
        };
        let (wall, now) = (self.wall(), self.now());
        let decided = self.asking(process, index, |engine| engine.decide_produce(&offer, wall));
        let shard = &mut process.shards[index];
        let stored = match decided {
            Ok(ProduceDecision::Duplicate(stored)) => {
                self.statistics.duplicates += 1;
                stored
            }
            Ok(ProduceDecision::Append(draft)) => {
                self.machine.note(&("append", index, mark, draft.base_offset, draft.length, draft.flags));
                // From here on a crash leaves the outcome unknown.
                self.producers[producer].sent(mark, true);
                match shard.append(&draft, &payload, &mut self.ledgers[index], now)? {
                    Append::Done(header) => {
                        self.statistics.appended += 1;
                        self.machine.note(&("appended", header.position, header.epoch));
                        StoredBatch::of_header(&header)
                    }
                    Append::Refused(refused) => {
                        self.producers[producer].sent(mark, false);
                        return self.not_appended(refused).map(|()| false);
                    }
                }
            }
            Err(refusal) => {
                self.machine.note(&("refused", index, mark, refusal.code().number()));
                self.producers[producer].refused(mark, &refusal)?;
                return Ok(false);
            }
        };
        self.producers[producer].sent(mark, true);
        shard.waiting.wait(stored.level, stored.end, Waiting::Batch { producer, mark, stored });
        Ok(true)
    }

    pub(super) fn not_appended(&mut self, refused: AppendRefused) -> Result<(), Violation> {
        self.statistics.refused += 1;
        let expected = match refused {
            AppendRefused::NoRoom | AppendRefused::Poisoned => true,
            AppendRefused::DiskFull => self.devices_fail(),
            _ => false,
        };
        promise!(expected, "an append was refused: {refused}");
        Ok(())
    }

    fn add_producer(&mut self, process: &mut Process) -> Result<(), Violation> {
        if self.catalogue.len() == 0 {
            return self.change_catalogue(process);
        }
        if self.producers.len() >= PRODUCERS_MAX {
            return Ok(());
        }
        if let Some((topic, queue)) = self.any_queue() {
            let id = if self.random.one_in(5) { ProducerId::NONE } else { ProducerId(self.random.next_u64() | 1) };
            self.producers.push(Producer::new(topic, queue, id));
        }
        Ok(())
    }

    pub(super) fn any_queue(&mut self) -> Option<(TopicId, QueueId)> {
        let live: Vec<_> = self.catalogue.live().map(|topic| (topic.id, topic.queues)).collect();
        if live.is_empty() {
            return None;
        }
        let (topic, queues) = *self.random.pick(&live);
        Some((topic, QueueId(self.random.below(u64::from(queues)) as u32)))
    }

    /// The shard of a queue; `None` once its topic is gone.
    pub(super) fn shard_of(&self, process: &Process, topic: TopicId, queue: QueueId) -> Option<usize> {
        match process.shards[0].engine.topic(topic) {
            TopicState::Live(topic) => Some(usize::from(topic.shard_of(queue, self.configuration.shards).0)),
            TopicState::Deleted(_) | TopicState::Unknown(_) => None,
        }
    }

    // Reading.

    fn change_readers(&mut self, process: &mut Process) -> Result<(), Violation> {
        if self.readers.len() < READERS_MAX && (self.readers.is_empty() || self.random.one_in(3)) {
            let Some((topic, queue)) = self.any_queue() else { return Ok(()) };
            let start = match self.random.below(4) {
                0 => StartAt::Latest,
                1 => StartAt::Time(Nanos(self.wall().0.saturating_sub(self.random.below(10_000_000)))),
                _ => StartAt::Earliest,
            };
            self.readers.push(Reader::new(topic, queue, start));
            return self.subscribe(process, self.readers.len() - 1);
        }
        if self.readers.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.readers.len() as u64) as usize;
        let reader = &mut self.readers[index];
        let (topic, queue) = (reader.topic, reader.queue);
        let Some(id) = reader.subscription else { return self.subscribe(process, index) };
        let place = reader.place();
        let Some(shard) = self.shard_of(process, topic, queue) else { return Ok(()) };
        let engine = &mut process.shards[shard].engine;
        let owner = ReaderOwner(index as u64);
        let done = match self.random.below(4) {
            0 => {
                self.readers[index].disconnected();
                engine.unsubscribe(owner, id)
            }
            1 => place.map_or(Ok(()), |(epoch, offset)| engine.check_read(owner, id, epoch, offset)),
            _ => {
                engine.credit(owner, id, Credit { messages: self.random.below(40), bytes: self.random.below(100_000) })
            }
        };
        // Its topic's end may be on its way to it.
        promise!(
            matches!(done, Ok(()) | Err(Refusal::UnknownSubscription)),
            "a connected reader was refused: {done:?}"
        );
        Ok(())
    }

    fn subscribe(&mut self, process: &mut Process, index: usize) -> Result<(), Violation> {
        let reader = &mut self.readers[index];
        if reader.ended || reader.subscription.is_some() {
            return Ok(());
        }
        let (topic, queue) = (reader.topic, reader.queue);
        let Some(shard) = self.shard_of(process, topic, queue) else {
            self.readers[index].ended = true;
            return Ok(());
        };
        let credit = Credit { messages: self.random.between(1, 200), bytes: self.random.between(1_000, 1_000_000) };
        let start = self.readers[index].start();
        let owner = ReaderOwner(index as u64);
        let subscribed = self.asking(process, shard, |engine| engine.subscribe(owner, topic, queue, start, credit));
        let reader = &mut self.readers[index];
        match subscribed {
            Ok((id, place)) => reader.subscribed(id, place.epoch, place.offset, &self.ledgers[shard]),
            Err(refusal) => {
                self.statistics.too_old += u64::from(matches!(refusal, Refusal::OffsetTooOld { .. }));
                self.statistics.truncated += u64::from(matches!(refusal, Refusal::Truncated { .. }));
                self.machine.note(&("reader refused", index, refusal.code().number()));
                reader.refused(&refusal, &self.ledgers[shard])
            }
        }
    }

    /// Credit for more than any queue of a simulation holds.
    pub(super) fn grant_credit(&mut self, process: &mut Process) -> Result<(), Violation> {
        for index in 0..self.readers.len() {
            let reader = &self.readers[index];
            let (Some(id), Some(shard)) = (reader.subscription, self.shard_of(process, reader.topic, reader.queue))
            else {
                continue;
            };
            let credit = Credit { messages: 1 << 20, bytes: 1 << 30 };
            let granted = process.shards[shard].engine.credit(ReaderOwner(index as u64), id, credit);
            promise!(granted.is_ok(), "a connected reader's credit was refused: {granted:?}");
        }
        Ok(())
    }

    fn deliver_all(&mut self, process: &mut Process, index: usize) -> Result<(), Violation> {
        let shard = &mut process.shards[index];
        while let Some(delivery) = shard.engine.next_delivery() {
            match delivery {
                Delivery::Ended { owner, .. } | Delivery::Revoked { owner, .. } if Consumers::is_member(owner) => {
                    self.turn_is_over(index, delivery)?;
                }
                Delivery::LookUp { .. } | Delivery::Ask { .. } => shard.look_ups.ask(delivery),
                // It asks again, and hears from where on messages are kept.
                Delivery::Ended { owner, code: ErrorCode::OffsetTooOld, .. } => {
                    self.readers[owner.0 as usize].disconnected();
                }
                Delivery::Ended { owner, .. } => self.readers[owner.0 as usize].ended = true,
                Delivery::Revoked { .. } => unreachable!("readers are in no group"),
                Delivery::Batch { owner, subscription, batch } => {
                    if Consumers::is_member(owner) {
                        self.handed_to_member(index, subscription, &batch)?;
                    }
                    let len = entry_len(batch.length) as usize;
                    if let Some(bytes) = shard.log.read_ring(batch.position, len) {
                        let bytes: Rc<[u8]> = bytes.into();
                        self.deliver(shard, index, (owner, subscription), &batch, &bytes)?;
                        continue;
                    }
                    let read = shard.log.read_disk(batch.position, len);
                    shard.cold_reads.spawn(async move { ColdRead { owner, subscription, batch, bytes: read.await } });
                }
            }
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        shard: &mut Shard,
        index: usize,
        (owner, subscription): (ReaderOwner, SubscriptionId),
        batch: &BatchPlace,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let header = shard.check_entry(bytes, batch.position)?;
        if Consumers::is_member(owner) {
            self.deliver_to_member((shard, index), (owner, subscription), batch, &header);
            return Ok(());
        }
        let reader = owner.0 as usize;
        self.statistics.seen += 1;
        self.machine.note(&("seen", index, reader, batch.position, header.base_offset));
        let reader = &mut self.readers[reader];
        // It may have left while the disk was read.
        if reader.subscription == Some(subscription) && !reader.ended {
            reader.received(batch, &header, &self.ledgers[index])?;
        }
        shard.engine.delivered(subscription);
        Ok(())
    }
}
