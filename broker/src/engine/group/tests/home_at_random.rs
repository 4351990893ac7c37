//! The members of a home at random, against what must always hold.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::ids::{MemberId, Nanos, TopicId};
use proptest::prelude::*;

use super::home::{Bench, GRACE, GROUP, SILENCE, TOPIC};

/// Something that may happen to a group of members 0 to 5, each on the connection of its number; 6 and 7 are other clients that
/// use the names of 0 and 1.
#[derive(Clone, Debug)]
enum Step {
    Join(u64, Vec<u64>),
    Leave(u64),
    Detach(u64),
    Heartbeat(u64),
    Pass(u64),
    Queues(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let topics = prop_oneof![3 => Just(vec![1]), 1 => Just(vec![1, 2]), 1 => Just(vec![2])];
    let step = prop_oneof![
        6 => (0u64..8, topics).prop_map(|(owner, topics)| Step::Join(owner, topics)),
        2 => (0u64..8).prop_map(Step::Leave),
        3 => (0u64..8).prop_map(Step::Detach),
        4 => (0u64..8).prop_map(Step::Heartbeat),
        4 => prop_oneof![Just(50u64), Just(400), Just(3_000), Just(11_000)].prop_map(Step::Pass),
        1 => (0u32..10).prop_map(Step::Queues),
    ];
    prop::collection::vec(step, 1..80)
}

/// A member as the model has it.
#[derive(Clone, Debug)]
struct Known {
    id: MemberId,
    topics: Vec<u64>,
    /// Its connection, while that is open.
    owner: Option<u64>,
    /// When it ends unless something is heard of it.
    ends: Nanos,
}

proptest! {
    #[test]
    fn whatever_happens_queues_have_one_holder_and_absent_members_keep_theirs(steps in steps()) {
        let mut bench = Bench::new(5);
        bench.queues.insert(TopicId(2), 3);
        // By name.
        let mut model: BTreeMap<u64, Known> = BTreeMap::new();
        let mut ids: BTreeSet<MemberId> = BTreeSet::new();
        for step in steps {
            let before = bench.holders.clone();
            let absent = bench.absent();
            match step {
                Step::Join(owner, topics) => {
                    let name = owner % 6;
                    let id = bench.try_join(owner, &format!("m{name}"), &topics).unwrap().member;
                    let old = model.get(&name);
                    let kept = old.is_some_and(|old| old.id == id);
                    prop_assert!(kept || ids.insert(id), "ids are never used again");
                    let other_client = |old: &Known| old.owner.is_some_and(|old| old != owner);
                    prop_assert_eq!(kept, old.is_some_and(|old| !other_client(old)));
                    let ends = bench.now + SILENCE.0 + GRACE.0;
                    model.insert(name, Known { id, topics, owner: Some(owner), ends });
                }
                Step::Leave(owner) => {
                    let name = owner % 6;
                    let mine = model.get(&name).filter(|known| known.owner == Some(owner)).cloned();
                    if let Some(known) = mine {
                        prop_assert_eq!(bench.leave(owner, known.id), Ok(()));
                        prop_assert!(bench.held(known.id).is_empty());
                        model.remove(&name);
                    }
                }
                Step::Detach(owner) => {
                    bench.detach(owner);
                    prop_assert!(before == bench.holders, "a lost connection moves nothing");
                    if let Some(known) = model.get_mut(&(owner % 6)).filter(|known| known.owner == Some(owner)) {
                        known.owner = None;
                        known.ends = known.ends.min(bench.now + GRACE.0);
                    }
                }
                Step::Heartbeat(owner) => {
                    if let Some(known) = model.get_mut(&(owner % 6)).filter(|known| known.owner == Some(owner)) {
                        let id = known.id;
                        known.ends = bench.now + SILENCE.0 + GRACE.0;
                        prop_assert!(bench.heartbeat(owner, id, u64::MAX).is_ok());
                    }
                }
                Step::Pass(millis) => bench.pass(Nanos::from_millis(millis)),
                Step::Queues(queues) => {
                    let queues = bench.queues[&TOPIC].max(queues);
                    bench.queues.insert(TOPIC, queues);
                    bench.home.topic_changed(TOPIC);
                    bench.settle();
                }
            }
            // A silent member is found by the tick, at most one tick late at each of the two ends.
            model.retain(|_, known| known.ends > bench.now || bench.home.members_after(GROUP, "").any(|m| m.id == known.id));
            let late = model.values().filter(|known| known.ends + 300_000_000 <= bench.now).count();
            prop_assert_eq!(late, 0);
            prop_assert_eq!(bench.home.len(), model.len());
            let there: BTreeMap<MemberId, &Known> = model.values().map(|known| (known.id, known)).collect();
            for (&(topic, _), holder) in &bench.holders {
                let known = there.get(holder);
                prop_assert!(known.is_some_and(|known| known.topics.contains(&topic.0)), "{:?}", holder);
            }
            if !bench.home.group(GROUP).settling {
                for (&topic, &queues) in &bench.queues {
                    let wanted = model.values().any(|known| known.topics.contains(&topic.0));
                    let held = bench.holders.keys().filter(|key| key.0 == topic).count();
                    prop_assert_eq!(held as u32, if wanted { queues } else { 0 });
                }
            }
            for member in absent.intersection(&bench.absent()) {
                let mut had = before.iter().filter(|row| row.1 == member);
                prop_assert!(had.all(|(key, holder)| bench.holders.get(key) == Some(holder)));
            }
            for known in model.values().filter(|known| known.owner.is_some() && bench.told.contains_key(&known.id)) {
                let held: Vec<_> =
                    bench.holders.iter().filter(|row| *row.1 == known.id).map(|(&key, _)| key).collect();
                prop_assert_eq!(&bench.told[&known.id].1, &held, "who is connected knows what it holds");
            }
        }
    }
}
