//! The test that matters: random histories, with checkpoints whose slices come between any two steps of them.

use peregrine_protocol::ids::{GroupId, QueueOffset};
use proptest::prelude::*;

use super::world::{GROUPS, TOPICS, World};
use super::*;
use crate::limits::PRODUCER_IDLE_NS;

/// Shards, topics, queues and groups are named by small numbers; what does not exist, or is another shard's, does nothing.
#[derive(Clone, Debug)]
enum Step {
    Store {
        shard: usize,
        topic: usize,
        queue: u32,
        batches: usize,
        producer: u64,
        raise: bool,
    },
    /// Acknowledges so far beyond the group's place in each of these queues, in one entry.
    Ack {
        shard: usize,
        group: usize,
        queues: Vec<(usize, u32)>,
        ahead: u64,
    },
    Begin {
        shard: usize,
        group: usize,
        queues: Vec<(usize, u32)>,
    },
    Reset {
        shard: usize,
        group: usize,
        queues: Vec<(usize, u32)>,
        to: u64,
    },
    /// Messages are kept from so many on behind the start of each of these queues.
    Retain {
        shard: usize,
        queues: Vec<(usize, u32)>,
        ahead: u64,
    },
    Subscribe {
        shard: usize,
        topic: usize,
        queue: u32,
    },
    Detach {
        shard: usize,
    },
    CreateTopic(usize, u32),
    AlterTopic(usize, u32),
    AgeTopic(usize, Option<u64>),
    DeleteTopic(usize),
    CreateGroup(usize, Vec<usize>),
    DeleteGroup(usize),
    Harden {
        shard: usize,
        entries: usize,
    },
    Tell(usize),
    Wait(u64),
    Slice {
        shard: usize,
        budget: usize,
    },
    Crash([usize; 2]),
}

fn step() -> impl Strategy<Value = Step> {
    let (shard, topic, queue, group) = (0..2usize, 0..TOPICS.len(), 0..4u32, 0..GROUPS.len());
    let queues = prop::collection::vec((topic.clone(), queue.clone()), 1..4);
    let batches = prop_oneof![20 => 1..3usize, 1 => 60..140usize];
    let store = (shard.clone(), topic.clone(), queue.clone(), batches, 0..4u64, prop::bool::weighted(0.05));
    let store = store.prop_map(|(shard, topic, queue, batches, producer, raise)| Step::Store {
        shard,
        topic,
        queue,
        batches,
        producer,
        raise,
    });
    let retain = (shard.clone(), queues.clone(), 0..4u64);
    let places = (shard.clone(), group.clone(), queues);
    let ack =
        (places.clone(), 0..4u64).prop_map(|((shard, group, queues), ahead)| Step::Ack { shard, group, queues, ahead });
    let begin = places.clone().prop_map(|(shard, group, queues)| Step::Begin { shard, group, queues });
    let reset = (places, 0..6u64).prop_map(|((shard, group, queues), to)| Step::Reset { shard, group, queues, to });
    let subscribe = (shard.clone(), topic.clone(), queue.clone());
    let wait = prop_oneof![0..PRODUCER_IDLE_NS.0 / 4, PRODUCER_IDLE_NS.0 - 2..PRODUCER_IDLE_NS.0 + 2];
    let budget = prop_oneof![12 => 1..40usize, 4 => 64..300usize, 1 => 2000..8000usize];
    let topics = prop::collection::vec(topic.clone(), 1..3);
    prop_oneof![
        30 => store,
        12 => ack,
        4 => begin,
        3 => reset,
        6 => retain.prop_map(|(shard, queues, ahead)| Step::Retain { shard, queues, ahead }),
        2 => subscribe.prop_map(|(shard, topic, queue)| Step::Subscribe { shard, topic, queue }),
        1 => shard.clone().prop_map(|shard| Step::Detach { shard }),
        6 => (topic.clone(), 1..5u32).prop_map(|(topic, queues)| Step::CreateTopic(topic, queues)),
        4 => (topic.clone(), 1..5u32).prop_map(|(topic, queues)| Step::AlterTopic(topic, queues)),
        4 => (topic.clone(), prop::option::of(1..5u64)).prop_map(|(topic, age)| Step::AgeTopic(topic, age)),
        3 => topic.prop_map(Step::DeleteTopic),
        6 => (group.clone(), topics).prop_map(|(group, topics)| Step::CreateGroup(group, topics)),
        2 => group.prop_map(Step::DeleteGroup),
        25 => (shard.clone(), 1..6usize).prop_map(|(shard, entries)| Step::Harden { shard, entries }),
        10 => (1..4usize).prop_map(Step::Tell),
        2 => wait.prop_map(Step::Wait),
        50 => (shard, budget).prop_map(|(shard, budget)| Step::Slice { shard, budget }),
        1 => ((0..4usize), (0..4usize)).prop_map(|(home, copy)| Step::Crash([home, copy])),
    ]
}

impl World {
    fn step(&mut self, step: &Step) {
        self.members.iter_mut().for_each(|member| member.bench.now.0 += 1);
        match *step {
            Step::Store { shard, topic, queue, batches, producer, raise } => {
                let Some(topic) = self.topic(topic) else { return };
                self.store(shard, QueueKey { topic, queue: QueueId(queue) }, batches, producer, raise);
            }
            Step::Ack { shard, group, ref queues, ahead } => {
                self.places(shard, group, queues, |world, engine, group, key, now| {
                    let offset = world.ahead_of_place(shard, group, key, ahead);
                    let QueueKey { topic, queue } = key;
                    let delivered_end = QueueOffset(u64::MAX);
                    let ack = GroupAck { group, topic, queue, epoch: Epoch::ANY, offset, delivered_end };
                    match engine.decide_ack(&ack, now)? {
                        AckDecision::Append(entry) => Ok(Some(entry)),
                        AckDecision::Done { .. } => Ok(None),
                    }
                });
            }
            Step::Begin { shard, group, ref queues } => {
                let Some(group) = self.group(group) else { return };
                let keys: Vec<_> = self.keys(queues).collect();
                let bench = &mut self.members[shard].bench;
                // What is refused is another shard's, or not the group's.
                let rows = keys.into_iter().filter_map(|key| {
                    bench.engine.group_place(group, key.topic, key.queue).ok()?;
                    let entry = bench.begin(group, key.topic, key.queue)?;
                    Some((QueueKey { topic: entry.draft.topic, queue: entry.draft.queue }, entry))
                });
                let rows = rows.collect();
                self.move_places(shard, rows);
            }
            Step::Reset { shard, group, ref queues, to } => {
                let start = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(to) };
                self.places(shard, group, queues, |_, engine, group, key, now| {
                    engine.decide_reset(group, key.topic, key.queue, start, now).map(Some)
                });
            }
            Step::Retain { shard, ref queues, ahead } => {
                let mut keys: Vec<_> = self.keys(queues).collect();
                keys.sort();
                keys.dedup();
                let bench = &mut self.members[shard].bench;
                let start = |&key: &QueueKey| Some(bench.engine.queues.by_key(key)?.start + ahead);
                let wanted = keys.iter().filter_map(|key| Some(QueueStart { queue: *key, start: start(key)? }));
                if let Some(entry) = bench.engine.decide_starts(&wanted.collect::<Vec<_>>(), bench.now) {
                    bench.append(&entry.draft, entry.payload);
                }
            }
            Step::Subscribe { shard, topic, queue } => {
                let Some(topic) = self.topic(topic) else { return };
                let engine = &mut self.members[shard].bench.engine;
                let credit = Credit { messages: 5, bytes: 5 };
                // It may be another shard's.
                let _refused =
                    engine.subscribe(ReaderOwner(1), topic, QueueId(queue), StartAt::Latest, credit).is_err();
            }
            Step::Detach { shard } => {
                let bench = &mut self.members[shard].bench;
                bench.engine.detach(ReaderOwner(1), bench.now);
            }
            Step::CreateTopic(name, queues) => {
                self.change(|engine, now| engine.decide_create(TOPICS[name], queues, TopicRetention::default(), now));
            }
            Step::AlterTopic(name, queues) => {
                self.change(|engine, now| engine.decide_alter(TOPICS[name], Some(queues), None, now));
            }
            Step::AgeTopic(name, age) => {
                let wanted = TopicRetention { age: age.map(Nanos) };
                self.change(|engine, now| engine.decide_alter(TOPICS[name], None, Some(wanted), now));
            }
            Step::DeleteTopic(name) => self.change(|engine, now| engine.decide_delete(TOPICS[name], None, now)),
            Step::CreateGroup(name, ref topics) => {
                let known = topics.iter().filter_map(|&topic| self.topic(topic));
                let topics: Vec<_> = known.map(|topic| (topic, StartAt::Earliest)).collect();
                self.change(|engine, now| engine.decide_create_group(GROUPS[name], &topics, now));
            }
            Step::DeleteGroup(name) => {
                self.change(|engine, now| engine.decide_delete_group(GROUPS[name], None, now));
            }
            Step::Harden { shard, entries } => self.harden(shard, entries),
            Step::Tell(changes) => self.tell(changes),
            Step::Wait(time) => self.members.iter_mut().for_each(|member| member.bench.now.0 += time),
            Step::Slice { shard, budget } => self.save(shard, budget),
            Step::Crash(beyond) => self.crash(beyond),
        }
    }

    /// One entry of what `decide` says for each of the queues.
    fn keys(&self, queues: &[(usize, u32)]) -> impl Iterator<Item = QueueKey> {
        let key = |&(topic, queue): &(usize, u32)| Some(QueueKey { topic: self.topic(topic)?, queue: QueueId(queue) });
        queues.iter().filter_map(key)
    }

    fn places(
        &mut self,
        shard: usize,
        group: usize,
        queues: &[(usize, u32)],
        decide: impl Fn(&Self, &Engine, GroupId, QueueKey, Nanos) -> Result<Option<OffsetEntry>, Refusal>,
    ) {
        let Some(group) = self.group(group) else { return };
        let bench = &self.members[shard].bench;
        // What is refused is another shard's, or not the group's.
        let decided = self.keys(queues).filter_map(|key| {
            let entry = decide(self, &bench.engine, group, key, bench.now).ok()??;
            Some((key, entry))
        });
        let rows = decided.collect();
        self.move_places(shard, rows);
    }
}

/// What may be lost: so many entries behind such a part, in 256ths, of what the shard's checkpoint leaves to read back.
fn hole() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..2usize, 0..256usize, 1..12usize)
}

proptest! {
    #[test]
    fn a_checkpoint_and_the_log_behind_its_begin_are_the_whole_log(
        steps in prop::collection::vec(step(), 1..400), hole in hole(),
    ) {
        let mut world = World::new();
        for topic in 0..TOPICS.len() {
            world.step(&Step::CreateTopic(topic, 4));
        }
        world.step(&Step::Harden { shard: 0, entries: 3 });
        world.step(&Step::Tell(3));
        for step in &steps {
            world.step(step);
        }
        for shard in 0..2 {
            world.check(shard);
        }
        world.lose(hole);
    }
}
