//! Assignments that are made in slices, while members come and go.

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use proptest::prelude::*;

use super::home::{Bench, GROUP, TOPIC, three};
use crate::engine::group::home::Join;
use crate::engine::reader::ReaderOwner;

/// Steps that make any assignment of these groups many slices long.
const FEW: u32 = 1;

/// Takes the next slices until a newer assignment was told, or none is due.
fn until_next(bench: &mut Bench) {
    let number = bench.number;
    while bench.number == number && bench.home.has_work() {
        bench.work(FEW);
    }
}

/// All queues are held, evenly, and everybody knows what it holds.
fn check_settled(bench: &mut Bench, members: &[MemberId]) {
    bench.settle();
    assert_eq!(bench.holders.len() as u32, bench.queues[&TOPIC]);
    let counts: Vec<usize> = members.iter().map(|&member| bench.held(member).len()).collect();
    assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    for &member in members {
        let held: Vec<(TopicId, QueueId)> =
            bench.held(member).into_iter().map(|queue| (TOPIC, QueueId(queue))).collect();
        assert_eq!(bench.told[&member].1, held);
    }
}

#[test]
fn who_leaves_while_an_assignment_is_made_gets_nothing_and_its_queues_go_to_others() {
    for slices in 0..200 {
        let mut bench = Bench::new(30);
        let [a, b, c] = three(&mut bench);
        bench.queues.insert(TOPIC, 60);
        bench.home.topic_changed(TOPIC);
        (0..slices).for_each(|_| bench.work(FEW));
        // What was told names nobody who was fenced: see `Bench::work`.
        bench.home.leave(ReaderOwner(3), GROUP, c).unwrap();
        until_next(&mut bench);
        check_settled(&mut bench, &[a, b]);
        assert!(bench.fenced.contains(&c) && bench.held(c).is_empty());
    }
}

#[test]
fn who_is_replaced_while_an_assignment_is_made_leaves_its_queues_to_its_successor() {
    for slices in 0..200 {
        let mut bench = Bench::new(30);
        let [a, b, c] = three(&mut bench);
        bench.queues.insert(TOPIC, 60);
        bench.home.topic_changed(TOPIC);
        (0..slices).for_each(|_| bench.work(FEW));
        let kept = bench.held(c);
        let new = bench.join(4, "c");
        check_settled(&mut bench, &[a, b, new]);
        assert!(kept.iter().all(|queue| bench.held(new).contains(queue)), "after {slices} slices");
    }
}

/// One who joins and leaves again and again, each time before an assignment is done, holds up nobody.
#[test]
fn members_that_come_and_go_do_not_keep_an_assignment_from_being_made() {
    let mut bench = Bench::new(300);
    let members = three(&mut bench);
    bench.queues.insert(TOPIC, 600);
    bench.home.topic_changed(TOPIC);
    let number = bench.number;
    let mut joined = None;
    for _ in 0..3_000 {
        bench.work(FEW);
        match joined.take() {
            None => {
                let topics = vec![TOPIC];
                let (owner, name) = (ReaderOwner(9), "restless");
                let join = Join { owner, group: GROUP, name, client: "restless", topics, joined: bench.now };
                joined = Some(bench.home.join(join, bench.now).unwrap().member);
            }
            Some(member) => bench.home.leave(ReaderOwner(9), GROUP, member).unwrap(),
        }
    }
    assert!(bench.number > number && members.iter().all(|&member| bench.held(member).len() > 150));
}

#[test]
fn a_deleted_group_takes_its_assignment_along_while_it_is_made() {
    for slices in 0..100 {
        let mut bench = Bench::new(30);
        three(&mut bench);
        bench.queues.insert(TOPIC, 60);
        bench.home.topic_changed(TOPIC);
        (0..slices).for_each(|_| bench.work(FEW));
        let number = bench.number;
        bench.home.group_deleted(GROUP);
        bench.settle();
        assert!(bench.number == number && bench.home.is_empty() && !bench.home.has_work());
    }
}

#[test]
fn a_member_that_knows_an_older_assignment_is_told_once_more_and_not_again() {
    let mut bench = Bench::new(8);
    let [a, ..] = three(&mut bench);
    let told = bench.told.remove(&a).unwrap();
    assert_eq!(bench.heartbeat(1, a, told.0), Ok(told.0));
    assert!(!bench.told.contains_key(&a), "it knows");
    let times = bench.times_told;
    for _ in 0..100 {
        let heard = bench.home.heartbeat(ReaderOwner(1), GROUP, a, told.0 - 1, bench.now);
        assert_eq!(heard, Ok(told.0));
    }
    bench.settle();
    assert_eq!((&bench.told[&a], bench.times_told), (&told, times + 1));
    assert_eq!(bench.heartbeat(1, a, 0), Ok(told.0));
    assert_eq!(bench.times_told, times + 1);

    bench.queues.insert(TOPIC, 60);
    bench.home.topic_changed(TOPIC);
    bench.settle();
    let (number, times) = (bench.told[&a].0, bench.times_told);
    assert!(number > told.0);
    assert_eq!(bench.heartbeat(1, a, told.0), Ok(number));
    assert_eq!((bench.told[&a].0, bench.times_told), (number, times + 1), "what is newer is told once more, too");
}

proptest! {
    /// Everything in slices of any length, with changes between any two of them.
    #[test]
    fn whatever_happens_between_slices_all_are_served_in_the_end(
        steps in prop::collection::vec((0u64..6, 0u8..4, 1u32..200), 1..60)
    ) {
        let mut bench = Bench::new(40);
        let mut members: [Option<MemberId>; 6] = [None; 6];
        for owner in 0..2 {
            members[owner as usize] = Some(bench.join(owner, &format!("m{owner}")));
        }
        bench.pass_settling();
        for (owner, what, slice) in steps {
            let index = owner as usize;
            match (what, members[index]) {
                (0, Some(member)) if members.iter().flatten().count() > 1 => {
                    bench.home.leave(ReaderOwner(owner), GROUP, member).unwrap();
                    members[index] = None;
                }
                (1, Some(member)) => {
                    bench.home.heartbeat(ReaderOwner(owner), GROUP, member, 0, bench.now).unwrap();
                }
                (2, _) => {
                    let queues = (bench.queues[&TOPIC] + 7) % 90;
                    bench.queues.insert(TOPIC, queues);
                    bench.home.topic_changed(TOPIC);
                }
                _ => {
                    // From another client each time.
                    let client = format!("client-{slice}");
                    let name = format!("m{owner}");
                    let join = Join {
                        owner: ReaderOwner(owner),
                        group: GROUP,
                        name: &name,
                        client: &client,
                        topics: vec![TOPIC],
                        joined: bench.now,
                    };
                    members[index] = Some(bench.home.join(join, bench.now).unwrap().member);
                }
            }
            bench.work(slice);
        }
        bench.settle();
        let there: Vec<MemberId> = members.into_iter().flatten().collect();
        check_settled(&mut bench, &there);
    }
}
