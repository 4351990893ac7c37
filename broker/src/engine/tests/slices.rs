//! How long the longest slice of work on the assignment of a large group takes. Each is done several times over, since a shared
//! machine stops whoever it likes, and the least of a slice's times counts:
//! `cargo test -p peregrine-broker --lib longest_slice -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_protocol::ids::{GroupId, MemberId};

use super::*;
use crate::limits::{GROUP_SETTLED_AFTER, GROUP_SLICE};

const GROUP: GroupId = GroupId(2);

/// How often everything is done.
const RUNS: usize = 7;

/// A piece of work: what it is, and how long each of its slices took.
type Piece = (&'static str, Vec<Duration>);

/// All that the group's home has to do; the newest assignment, and how many lists members were told.
fn make(engine: &mut Engine, what: &'static str, pieces: &mut Vec<Piece>) -> (Arc<Assignment>, Vec<MemberId>, usize) {
    let (mut made, mut told) = ((Arc::default(), Vec::new()), 0);
    let mut slices = Vec::new();
    while engine.has_group_work() {
        let (began, mut slice) = (Instant::now(), Slice::new(GROUP_SLICE));
        let mut effects = Vec::new();
        while let Some(effect) = engine.next_home_effect(&mut slice) {
            effects.push(effect);
        }
        slices.push(began.elapsed());
        for effect in effects {
            match effect {
                HomeEffect::Assign { assignment, fenced, .. } => made = (assignment, fenced),
                HomeEffect::Tell { .. } => told += 1,
                HomeEffect::Fence { .. } => {}
            }
        }
    }
    pieces.push((what, slices));
    (made.0, made.1, told)
}

fn run(members: u64, queues: u32) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut bench = Bench::empty(ONE_SHARD);
    bench.create("t", queues);
    bench.change(bench.engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], bench.now));
    bench.harden();
    while bench.engine.next_catalogue_effect().is_some() {}
    let (silence, grace) = (Nanos::from_secs(10), Nanos::from_secs(10));
    bench.engine.start_groups(MembershipOptions { shard: HOME, epoch: Epoch(5), silence, grace });
    let mut ids = Vec::new();
    for member in 1..=members {
        let name = format!("member-{member}");
        let (owner, topics, joined) = (ReaderOwner(member), vec![TOPIC], bench.now);
        let join = Join { owner, group: GROUP, name: &name, client: "test", topics, joined };
        ids.push(bench.engine.join_group(join, Nanos::ZERO).unwrap().member);
    }
    bench.engine.group_tick(GROUP_SETTLED_AFTER);
    let (first, _, told) = make(&mut bench.engine, "  home, all join", &mut pieces);
    assert_eq!(told, members as usize);
    let holder = |assignment: &Assignment, queue| assignment.holder(TOPIC, QueueId(queue));

    // Every queue is subscribed to by its holder, and every second one by the member that leaves.
    bench.engine.assign(GROUP, 1, &first, &[], Nanos(1));
    let gone = ids[0];
    let plenty = Credit { messages: 1, bytes: 1 };
    for queue in 0..queues {
        let owned = holder(&first, queue).unwrap();
        for member in [owned, gone] {
            let owner = ReaderOwner(ids.binary_search(&member).unwrap() as u64 + 1);
            bench.engine.subscribe_group(owner, GROUP, member, TOPIC, QueueId(queue), plenty).unwrap();
        }
    }
    follow(&mut bench.engine, "  owner, the first assignment", &mut pieces);
    bench.engine.leave_group(ReaderOwner(1), GROUP, gone).unwrap();
    let (second, fenced, _) = make(&mut bench.engine, "  home, one leaves", &mut pieces);
    assert_eq!(fenced, [gone]);
    bench.engine.assign(GROUP, 2, &second, &fenced, Nanos(2));
    follow(&mut bench.engine, "  owner, one leaves", &mut pieces);
    // As if all had been given to another.
    let other = Assignment::of(
        (0..queues).map(|queue| (TOPIC, QueueId(queue), holder(&second, (queue + 1) % queues).unwrap())),
    );
    bench.engine.assign(GROUP, 3, &Arc::new(other), &[], Nanos(3));
    follow(&mut bench.engine, "  owner, each queue moves", &mut pieces);
    pieces
}

fn follow(engine: &mut Engine, what: &'static str, pieces: &mut Vec<Piece>) {
    let mut slices = Vec::new();
    while engine.has_group_work() {
        let (began, mut slice) = (Instant::now(), Slice::new(GROUP_SLICE));
        engine.follow_assignments(&mut slice);
        slices.push(began.elapsed());
    }
    pieces.push((what, slices));
}

fn measure(members: u64, queues: u32) {
    println!("{members} members, {queues} queues");
    let mut least = run(members, queues);
    for _ in 1..RUNS {
        for ((what, least), (_, slices)) in least.iter_mut().zip(run(members, queues)) {
            assert_eq!(least.len(), slices.len(), "{what}: the same slices each time");
            for (least, slice) in least.iter_mut().zip(slices) {
                *least = slice.min(*least);
            }
        }
    }
    for (what, mut slices) in least {
        let all: Duration = slices.iter().sum();
        slices.sort_unstable();
        let (median, longest) = (slices[slices.len() / 2], slices[slices.len() - 1]);
        println!("{what}: {} slices, {all:.1?} in all; median {median:.1?}, longest {longest:.1?}", slices.len());
        assert!(longest < Duration::from_millis(5), "{longest:?}");
    }
}

#[test]
#[ignore = "it measures time"]
fn the_longest_slice_of_work_on_a_large_group() {
    measure(3, 300);
    measure(1_000, 10_000);
    measure(4_096, 65_536);
    measure(2, 65_536);
}
