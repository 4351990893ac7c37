//! Tests of the engine as a whole, over a log that is a plain list of entries.

mod aging;
mod catalogue;
mod checkpoint;
mod epochs;
mod group_history;
mod groups;
mod indexed;
mod joining;
mod offset_entries;
mod offsets;
mod producers;
mod readers;
mod slices;
mod starts;
mod turns;
mod visibility;

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{EntryDraft, EntryFlags, EntryHeader};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, Sequence, ShardId, TopicId,
};

use super::*;

/// An engine, its log, and a clock.
struct Bench {
    engine: Engine,
    log: Vec<(EntryHeader, Vec<u8>)>,
    end: LogPosition,
    epoch: Epoch,
    now: Nanos,
    /// The number of the newest assignment that was made here.
    assignments: u64,
}

const ONE_SHARD: EngineOptions =
    EngineOptions { shard: HOME, shards: 1, memory_level: MemoryLevel::Kept, group_drain: Nanos::from_secs(5) };

/// The first topic that [`Bench::new`] makes.
const TOPIC: TopicId = TopicId(1);

impl Bench {
    /// A single shard with one topic, `t`, of so many queues.
    fn new(queues: u32) -> Self {
        let mut bench = Self::empty(ONE_SHARD);
        bench.create("t", queues);
        bench
    }

    fn empty(options: EngineOptions) -> Self {
        let mut engine = Engine::new(options);
        engine.recovered(LogPosition(4096));
        Self {
            engine,
            log: Vec::new(),
            end: LogPosition(4096),
            epoch: Epoch(1),
            now: Nanos::from_secs(1_700_000_000),
            assignments: 0,
        }
    }

    fn append(&mut self, draft: &EntryDraft, payload: Vec<u8>) -> EntryHeader {
        let header = draft.at(self.end, self.epoch);
        self.engine.apply(&header, &payload).expect("what decide accepts fits");
        self.end = header.end();
        self.log.push((header, payload));
        header
    }

    /// Everything appended becomes published.
    fn publish(&mut self) {
        self.engine.on_published(self.end);
    }

    /// Everything appended becomes published and durable.
    fn harden(&mut self) {
        self.publish();
        self.engine.on_durable(self.end);
    }

    fn change<T: std::fmt::Debug>(&mut self, decision: Result<CatalogueDecision<T>, Refusal>) {
        match decision {
            Ok(CatalogueDecision::Append { draft, payload }) => {
                self.append(&draft, payload);
            }
            other => panic!("expected a change, found {other:?}"),
        }
    }

    /// A topic that is there for everyone.
    fn create(&mut self, name: &str, queues: u32) {
        self.change(self.engine.decide_create(name, queues, TopicRetention::default(), self.now));
        self.harden();
        while self.engine.next_catalogue_effect().is_some() {}
    }

    /// Stores a batch of a producer that is not idempotent.
    fn store(&mut self, queue: u32, records: u32, level: DurableLevel) -> EntryHeader {
        let offer = BatchOffer { level, records, ..offer(queue) };
        match self.engine.decide_produce(&offer, self.now) {
            Ok(ProduceDecision::Append(draft)) => self.append(&draft, Vec::new()),
            other => panic!("expected an append, found {other:?}"),
        }
    }

    /// A new process: everything below `cut` comes back, in a later epoch at a higher position.
    fn restart(&mut self, cut: LogPosition) {
        self.log.retain(|(header, _)| header.end() <= cut);
        self.engine = replay(self.engine.options, &self.log);
        self.epoch.0 += 1;
        self.end += 1 << 30;
        self.engine.recovered(self.end);
    }

    fn visible(&self, queue: u32) -> u64 {
        self.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).expect("the queue exists").visible_end.0
    }
}

/// An engine that read back `log`, and still is in its start.
fn replay(options: EngineOptions, log: &[(EntryHeader, Vec<u8>)]) -> Engine {
    let mut engine = Engine::new(options);
    for (header, payload) in log {
        engine.apply(header, payload).expect("a log can be read back");
    }
    engine
}

/// Where an entry stands.
fn extent_of(header: &EntryHeader) -> Range<LogPosition> {
    header.position..header.end()
}

/// A batch of one record, synced, from nobody in particular.
fn offer(queue: u32) -> BatchOffer {
    BatchOffer {
        topic: TOPIC,
        queue: QueueId(queue),
        producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        level: DurableLevel::Synced,
        flags: EntryFlags::NONE,
        payload_crc: crc32(b""),
        length: 0,
        records: 1,
    }
}
