//! A message's way through the engine, to a group's acknowledgement of it, allocates nothing but what the index grows by: a chunk
//! for every 64 batches.

use peregrine_broker::engine::{
    AckDecision, Acknowledgements, BatchOffer, CatalogueDecision, Credit, Delivery, Engine, EngineOptions, GroupAck,
    HOME, MemoryLevel, ProduceDecision, ReaderOwner, StartAt,
};
use peregrine_broker::limits;
use peregrine_protocol::entry::{EntryDraft, EntryFlags};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, GroupId, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence,
    SubscriptionId, TopicId,
};
use peregrine_protocol::message::TopicRetention;

const QUEUES: u64 = 8;
const GROUP: GroupId = GroupId(2);

/// Eight producers, eight queues, a reader on each that a group acknowledges, flushes that lag by ten messages.
struct Run {
    engine: Engine,
    waiting: Acknowledgements<u64>,
    end: LogPosition,
    sent: u64,
    answered: u64,
    delivered: u64,
    /// The readers, by queue.
    subscriptions: Vec<SubscriptionId>,
}

impl Run {
    fn acknowledge(&mut self, subscription: SubscriptionId, offset: QueueOffset, now: Nanos) {
        let queue = self.subscriptions.iter().position(|&known| known == subscription).expect("one of them") as u32;
        let ack = GroupAck {
            group: GROUP,
            topic: TopicId(1),
            queue: QueueId(queue),
            epoch: Epoch(1),
            offset,
            delivered_end: offset,
        };
        let Ok(AckDecision::Append(entry)) = self.engine.decide_ack(&ack, now) else { panic!("it goes on") };
        let header = entry.draft.at(self.end, Epoch(1));
        self.engine.apply(&header, &entry.payload).expect("it fits");
        self.end = header.end();
        self.engine.on_published(self.end);
    }

    fn message(&mut self) {
        let queue = self.sent % QUEUES;
        let level = if (self.sent / QUEUES).is_multiple_of(2) { DurableLevel::Synced } else { DurableLevel::Memory };
        let offer = BatchOffer {
            topic: TopicId(1),
            queue: QueueId(queue as u32),
            producer_id: ProducerId(queue + 1),
            producer_epoch: ProducerEpoch(0),
            sequence: Sequence(self.sent / QUEUES),
            level,
            flags: EntryFlags::NONE,
            payload_crc: self.sent as u32,
            length: 1024,
            records: 1,
        };
        let now = Nanos(1_700_000_000_000_000_000 + self.sent * 50_000);
        let Ok(ProduceDecision::Append(draft)) = self.engine.decide_produce(&offer, now) else { panic!("in sequence") };
        let header = draft.at(self.end, Epoch(1));
        self.engine.apply(&header, &[]).expect("it fits");
        self.end = header.end();
        self.waiting.wait(level, self.end, self.sent);
        self.sent += 1;
        self.engine.on_published(self.end);
        if self.sent.is_multiple_of(10) {
            self.engine.on_durable(self.end);
        }
        while self.waiting.next_released(self.engine.published(), self.engine.durable()).is_some() {
            self.answered += 1;
        }
        while let Some(Delivery::Batch { owner, subscription, batch }) = self.engine.next_delivery() {
            self.delivered += batch.wanted();
            self.acknowledge(subscription, batch.end_offset(), now);
            let credit = Credit { messages: batch.wanted(), bytes: u64::from(batch.length) };
            self.engine.credit(owner, subscription, credit).expect("it lives");
            self.engine.delivered(subscription);
        }
    }
}

#[test]
fn a_message_allocates_nothing_but_its_share_of_the_index() {
    let mut engine = Engine::new(EngineOptions {
        shard: HOME,
        shards: 1,
        memory_level: MemoryLevel::Kept,
        group_drain: Nanos::ZERO,
    });
    engine.recovered(LogPosition(0));
    let Ok(CatalogueDecision::Append { draft, payload }) =
        engine.decide_create("t", QUEUES as u32, TopicRetention::default(), Nanos(1))
    else {
        panic!("a new topic")
    };
    let mut end = change(&mut engine, LogPosition(0), &draft, &payload);
    let topics = [(TopicId(1), StartAt::Earliest)];
    let Ok(CatalogueDecision::Append { draft, payload }) = engine.decide_create_group("g", &topics, Nanos(1)) else {
        panic!("a new group")
    };
    end = change(&mut engine, end, &draft, &payload);
    let subscribe = |queue| {
        let credit = Credit { messages: 100, bytes: 1 << 20 };
        engine.subscribe(ReaderOwner(1), TopicId(1), QueueId(queue), StartAt::Latest, credit).expect("a queue").0
    };
    let subscriptions = (0..QUEUES as u32).map(subscribe).collect();
    let waiting = Acknowledgements::default();
    let mut run = Run { engine, waiting, end, sent: 0, answered: 0, delivered: 0, subscriptions };
    for _ in 0..10_000 {
        run.message();
    }
    let messages = 640_000;
    let ((), allocations) = peregrine_allocations::of_this_thread(|| (0..messages).for_each(|_| run.message()));
    assert_eq!((run.answered, run.delivered), (run.sent, run.sent));
    let chunks = messages / u64::from(limits::INDEX_CHUNK_BATCHES);
    // A chunk is made at the size of the one before and may grow once and shrink once; the lists of chunks grow by doubling.
    assert!(allocations <= 3 * chunks + 10 * QUEUES, "{allocations} allocations for {chunks} chunks");
}

/// Makes a change of the catalogue take effect; the end of its entry.
fn change(engine: &mut Engine, at: LogPosition, draft: &EntryDraft, payload: &[u8]) -> LogPosition {
    let header = draft.at(at, Epoch(1));
    engine.apply(&header, payload).expect("it fits");
    engine.on_published(header.end());
    engine.on_durable(header.end());
    header.end()
}
