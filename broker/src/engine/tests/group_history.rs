//! Random histories of groups, with crashes: what comes back is what had been there at the cut, and no place ever lies beyond its
//! queue or goes back but by a reset.

use std::collections::BTreeMap;

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{GroupId, QueueOffset};
use proptest::prelude::*;

use super::*;

const GROUPS: [&str; 2] = ["g", "h"];
/// `t` is never deleted, so that histories have something to go on with; `u` comes and goes.
const QUEUES: [(&str, u32); 3] = [("t", 0), ("t", 1), ("u", 0)];

#[derive(Clone, Copy, Debug)]
enum Step {
    Store {
        queue: usize,
        records: u32,
        memory: bool,
    },
    /// Acknowledges so far beyond the group's place, less `back`.
    Ack {
        group: usize,
        queue: usize,
        ahead: u64,
        back: u64,
    },
    Begin {
        group: usize,
        queue: usize,
    },
    Reset {
        group: usize,
        queue: usize,
        to: u64,
    },
    CreateGroup(usize),
    DeleteGroup(usize),
    CreateTopic,
    DeleteTopic,
    /// Everything but so many of the newest entries comes back.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (group, queue) = (0..GROUPS.len(), 0..QUEUES.len());
    let store = (queue.clone(), 1u32..4, any::<bool>()).prop_map(|(queue, records, memory)| Step::Store {
        queue,
        records,
        memory,
    });
    let back = prop_oneof![5 => Just(0u64), 1 => 1u64..4];
    let ack = (group.clone(), queue.clone(), 0u64..5, back).prop_map(|(group, queue, ahead, back)| Step::Ack {
        group,
        queue,
        ahead,
        back,
    });
    let begin = (group.clone(), queue.clone()).prop_map(|(group, queue)| Step::Begin { group, queue });
    let reset = (group.clone(), queue, 0u64..20).prop_map(|(group, queue, to)| Step::Reset { group, queue, to });
    let step = prop_oneof![
        30 => store,
        40 => ack,
        5 => begin,
        5 => reset,
        6 => group.clone().prop_map(Step::CreateGroup),
        1 => group.prop_map(Step::DeleteGroup),
        3 => Just(Step::CreateTopic),
        1 => Just(Step::DeleteTopic),
        3 => (0usize..8).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..200)
}

/// What is known of groups and queues, by the rules alone. Ids name them, so that a namesake is another.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    topics: BTreeMap<&'static str, TopicId>,
    groups: BTreeMap<&'static str, GroupId>,
    ends: BTreeMap<QueueKey, u64>,
    /// Topics that each group consumes.
    consumed: Vec<(GroupId, TopicId)>,
    places: BTreeMap<(GroupId, QueueKey), u64>,
}

impl Model {
    fn key(&self, queue: usize) -> Option<QueueKey> {
        let (topic, queue) = QUEUES[queue];
        self.topics.get(topic).map(|&topic| QueueKey { topic, queue: QueueId(queue) })
    }

    /// Group and queue, where both exist and the one consumes the other.
    fn pair(&self, group: usize, queue: usize) -> Option<(GroupId, QueueKey)> {
        let (group, key) = (*self.groups.get(GROUPS[group])?, self.key(queue)?);
        self.consumed.contains(&(group, key.topic)).then_some((group, key))
    }

    fn end(&self, key: QueueKey) -> u64 {
        self.ends.get(&key).copied().unwrap_or(0)
    }
}

/// The bench, and what was there when its log had so many entries.
struct History {
    bench: Bench,
    states: Vec<(Model, u64)>,
}

impl History {
    fn model(&self) -> Model {
        self.states.last().map(|(model, _)| model.clone()).unwrap_or_default()
    }

    /// After a step that added at most one entry: that is how it is from now on.
    fn note(&mut self, model: Model) {
        self.bench.harden();
        self.states.truncate(self.bench.log.len());
        self.states.push((model, self.bench.engine.digest()));
        assert_eq!(self.states.len(), self.bench.log.len() + 1, "each state has its length of the log");
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let mut model = self.model();
        let (engine, now) = (&self.bench.engine, self.bench.now);
        match step {
            Step::Store { queue, records, memory } => {
                let Some(key) = model.key(queue) else { return Ok(()) };
                let level = if memory { Memory } else { Synced };
                let offer = BatchOffer { topic: key.topic, level, records, ..offer(key.queue.0) };
                let Ok(ProduceDecision::Append(draft)) = engine.decide_produce(&offer, now) else { panic!() };
                self.bench.append(&draft, Vec::new());
                *model.ends.entry(key).or_default() += u64::from(records);
            }
            Step::Ack { group, queue, ahead, back } => {
                let Some((group, key)) = model.pair(group, queue) else { return Ok(()) };
                let stands = model.places.get(&(group, key)).copied();
                let (end, offset) = (model.end(key), (stands.unwrap_or(0) + ahead).saturating_sub(back));
                let ack = GroupAck {
                    group,
                    topic: key.topic,
                    queue: key.queue,
                    epoch: Epoch::ANY,
                    offset: QueueOffset(offset),
                    delivered_end: QueueOffset(end),
                };
                match engine.decide_ack(&ack, now) {
                    Err(refusal) => {
                        prop_assert!(offset > end);
                        prop_assert_eq!(refusal, Refusal::Truncated { at: QueueOffset(end) });
                        return Ok(());
                    }
                    Ok(AckDecision::Done { offset: place, .. }) => {
                        prop_assert_eq!(Some(place.0), stands);
                        prop_assert!(offset <= place.0);
                        return Ok(());
                    }
                    Ok(AckDecision::Append(entry)) => {
                        prop_assert!(stands.is_none_or(|stands| stands < offset) && offset <= end);
                        self.bench.append_offset(&entry);
                        model.places.insert((group, key), offset);
                    }
                }
            }
            Step::Begin { group, queue } => {
                let Some((group, key)) = model.pair(group, queue) else { return Ok(()) };
                let stands = model.places.contains_key(&(group, key));
                let entry = self.bench.begin(group, key.topic, key.queue);
                prop_assert_eq!(entry.as_ref().map(|entry| entry.offset.0), (!stands).then_some(0));
                let Some(entry) = entry else { return Ok(()) };
                self.bench.append_offset(&entry);
                model.places.insert((group, key), 0);
            }
            Step::Reset { group, queue, to } => {
                let Some((group, key)) = model.pair(group, queue) else { return Ok(()) };
                let start = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(to) };
                match engine.decide_reset(group, key.topic, key.queue, start, now) {
                    Err(refusal) => {
                        prop_assert_eq!(refusal, Refusal::Truncated { at: QueueOffset(model.end(key)) });
                        return Ok(());
                    }
                    Ok(entry) => {
                        prop_assert!(to <= model.end(key));
                        self.bench.append_offset(&entry);
                        model.places.insert((group, key), to);
                    }
                }
            }
            Step::CreateGroup(group) => {
                let name = GROUPS[group];
                let topics: Vec<_> = model.topics.values().map(|&topic| (topic, StartAt::Earliest)).collect();
                match engine.decide_create_group(name, &topics, now) {
                    Ok(CatalogueDecision::Append { draft, payload }) => {
                        let id = GroupId(draft.topic.0);
                        self.bench.append(&draft, payload);
                        model.groups.insert(name, id);
                        model.consumed.retain(|&(group, _)| group != id);
                        model.consumed.extend(topics.iter().map(|&(topic, _)| (id, topic)));
                    }
                    Ok(CatalogueDecision::Done(group)) => {
                        prop_assert_eq!(model.groups.get(name), Some(&group.id));
                        return Ok(());
                    }
                    other => panic!("{other:?}"),
                }
            }
            Step::DeleteGroup(group) => {
                let Some(id) = model.groups.remove(GROUPS[group]) else { return Ok(()) };
                self.bench.change(engine.decide_delete_group(GROUPS[group], Some(id), now));
                model.consumed.retain(|&(group, _)| group != id);
                model.places.retain(|&(group, _), _| group != id);
            }
            Step::CreateTopic => {
                let Ok(CatalogueDecision::Append { draft, payload }) =
                    engine.decide_create("u", 1, TopicRetention::default(), now)
                else {
                    return Ok(());
                };
                self.bench.append(&draft, payload);
                model.topics.insert("u", draft.topic);
            }
            Step::DeleteTopic => {
                let Some(id) = model.topics.remove("u") else { return Ok(()) };
                self.bench.change(engine.decide_delete("u", Some(id), now));
                model.ends.retain(|key, _| key.topic != id);
                model.consumed.retain(|&(_, topic)| topic != id);
                model.places.retain(|&(_, key), _| key.topic != id);
            }
            Step::Crash(lost) => {
                let kept = self.bench.log.len().saturating_sub(lost).max(1);
                let cut = self.bench.log[kept - 1].0.end();
                self.bench.restart(cut);
                self.states.truncate(kept + 1);
                let (_, digest) = &self.states[kept];
                prop_assert_eq!(self.bench.engine.digest(), *digest, "what comes back is what had been there");
                return self.check();
            }
        }
        self.note(model);
        self.check()
    }

    /// The engine says what the model says.
    fn check(&self) -> Result<(), TestCaseError> {
        let model = self.model();
        prop_assert_eq!(self.bench.engine.counts().group_places, model.places.len());
        for (&(group, key), &offset) in &model.places {
            let place = self.bench.engine.group_place(group, key.topic, key.queue);
            let Ok(place) = place else { panic!("{place:?}") };
            prop_assert_eq!((place.offset.0, place.is_committed), (offset, true));
            prop_assert!(offset <= model.end(key), "a place beyond its queue's end");
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_group_goes_on_where_it_was_whatever_happens(steps in steps()) {
        let mut history = History { bench: Bench::empty(ONE_SHARD), states: Vec::new() };
        let empty = history.bench.engine.digest();
        history.states.push((Model::default(), empty));
        history.bench.create("t", 2);
        history.note(Model { topics: [("t", TOPIC)].into(), ..Model::default() });
        for step in steps {
            history.bench.now.0 += 1;
            history.step(step)?;
        }
        prop_assert_eq!(replay(ONE_SHARD, &history.bench.log).digest(), history.bench.engine.digest());
    }
}
