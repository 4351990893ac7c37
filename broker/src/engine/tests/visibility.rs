//! The visibility rule, against a model that looks at every message of a queue every time.

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use proptest::prelude::*;

use super::*;

const QUEUES: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Store {
        queue: u32,
        records: u32,
        level: DurableLevel,
    },
    /// Published, or published and durable, move on by so many entries.
    Publish(usize),
    Harden(usize),
    Poison,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let level = prop_oneof![Just(Memory), Just(Synced)];
    let store = (0..QUEUES, 1u32..4, level).prop_map(|(queue, records, level)| Step::Store { queue, records, level });
    let step = prop_oneof![
        60 => store,
        20 => (1usize..6).prop_map(Step::Publish),
        20 => (1usize..6).prop_map(Step::Harden),
        1 => Just(Step::Poison),
    ];
    prop::collection::vec(step, 1..200)
}

/// What the rule says: the end of the longest run of messages that have each reached their level.
fn model(batches: &[EntryHeader], queue: u32, published: LogPosition, durable: LogPosition) -> u64 {
    let mut visible = 0;
    for batch in batches.iter().filter(|batch| batch.queue.0 == queue) {
        let reached = if batch.flags.level() == Some(Memory) { published } else { durable };
        if batch.end() > reached {
            break;
        }
        visible = batch.end_offset().0;
    }
    visible
}

proptest! {
    #[test]
    fn a_message_is_visible_once_it_and_all_before_it_reached_their_level(steps in steps()) {
        let mut bench = Bench::new(QUEUES);
        let mut batches: Vec<EntryHeader> = Vec::new();
        let (mut published, mut durable) = (0, 0);
        let place = |batches: &[EntryHeader], count: usize| match count.checked_sub(1) {
            Some(last) => batches[last].end(),
            None => LogPosition(0),
        };
        for step in steps {
            match step {
                Step::Store { .. } if bench.engine.is_poisoned() => continue,
                Step::Store { queue, records, level } => batches.push(bench.store(queue, records, level)),
                Step::Publish(count) => published = batches.len().min(published + count),
                Step::Harden(count) => durable = published.min(durable + count),
                Step::Poison => bench.engine.on_poisoned(),
            }
            let ends = (place(&batches, published), place(&batches, durable));
            if ends.0 > bench.engine.published() && !bench.engine.is_poisoned() {
                bench.engine.on_published(ends.0);
            }
            if ends.1 > bench.engine.durable() && !bench.engine.is_poisoned() {
                bench.engine.on_durable(ends.1);
            }
            for queue in 0..QUEUES {
                let expected = model(&batches, queue, bench.engine.published(), bench.engine.durable());
                prop_assert_eq!(bench.visible(queue), expected, "queue {}", queue);
            }
        }
        prop_assert!(bench.engine.counts().pending_batches <= batches.len());
    }
}

/// Stores batches of the given levels in queue 0, moves published and durable to the end of so many of them.
#[track_caller]
fn check(levels: &[DurableLevel], published: usize, durable: usize, expected: u64) {
    let mut bench = Bench::new(1);
    let ends: Vec<LogPosition> = levels.iter().map(|&level| bench.store(0, 1, level).end()).collect();
    if published > 0 {
        bench.engine.on_published(ends[published - 1]);
    }
    if durable > 0 {
        bench.engine.on_durable(ends[durable - 1]);
    }
    assert_eq!(bench.visible(0), expected);
}

#[test]
fn a_memory_message_waits_for_the_synced_ones_before_it() {
    check(&[Memory], 0, 0, 0);
    check(&[Memory], 1, 0, 1);
    check(&[Synced], 1, 0, 0);
    check(&[Synced], 1, 1, 1);
    check(&[Synced, Memory], 2, 0, 0);
    check(&[Synced, Memory], 2, 1, 2);
    check(&[Synced, Memory, Memory, Synced, Memory], 5, 1, 3);
    check(&[Synced, Memory, Memory, Synced, Memory], 2, 1, 2);
    check(&[Memory, Synced, Memory], 3, 0, 1);
    check(&[Memory, Synced, Memory], 3, 2, 3);
}

#[test]
fn what_was_recovered_is_visible() {
    let mut bench = Bench::new(1);
    bench.store(0, 3, Memory);
    bench.store(0, 2, Synced);
    bench.restart(bench.end);
    assert_eq!(bench.visible(0), 5);
}

#[test]
fn batches_of_a_deleted_topic_hold_nothing_up() {
    let mut bench = Bench::new(1);
    bench.create("u", 1);
    bench.store(0, 1, Synced);
    let other = BatchOffer { topic: TopicId(2), ..offer(0) };
    let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&other, bench.now) else { panic!() };
    bench.change(bench.engine.decide_delete("u", None, bench.now));
    bench.append(&draft, Vec::new());
    bench.store(0, 1, Memory);
    bench.harden();
    assert_eq!(bench.visible(0), 2);
    assert_eq!(bench.engine.counts().pending_batches, 0);
    assert_eq!(bench.engine.digest(), replay(ONE_SHARD, &bench.log).digest());
}
