//! The next assignment: even, sticky, complete, the same in whatever slices it is made.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use peregrine_protocol::limits::MEMBER_QUEUES_MAX;
use proptest::prelude::*;

use crate::engine::group::assignment::{Assignment, Candidate, MemberHash};
use crate::engine::group::plan::Plan;
use crate::engine::slice::Slice;

/// A member as the tests have it; its name is its id.
#[derive(Clone, Debug)]
struct Member {
    id: u64,
    topics: Vec<TopicId>,
    absent: bool,
}

fn member(id: u64, topics: &[u64]) -> Member {
    Member { id, topics: topics.iter().copied().map(TopicId).collect(), absent: false }
}

/// So many members that want topic 1, numbered from 1.
fn alike(members: u64) -> Vec<Member> {
    (1..=members).map(|id| member(id, &[1])).collect()
}

fn next(last: &Assignment, members: &[Member], queues: &[u32]) -> Assignment {
    next_in_slices(u32::MAX, last, members, queues)
}

fn next_in_slices(steps: u32, last: &Assignment, members: &[Member], queues: &[u32]) -> Assignment {
    let mut plan = planned(members, queues);
    while !plan.step(last, &mut Slice::new(steps)) {}
    plan.take_assignment()
}

/// A plan that has these members.
fn planned(members: &[Member], queues: &[u32]) -> Plan {
    let mut plan = Plan::new();
    for member in members {
        let candidate = Candidate {
            id: MemberId(member.id),
            hash: MemberHash::of(&member.id.to_string()),
            topics: member.topics.as_slice().into(),
            absent: member.absent,
        };
        let queues_of = |topic: TopicId| queues.get(topic.0 as usize - 1).copied().unwrap_or(0);
        plan.add(candidate, queues_of, &mut Slice::new(0));
    }
    plan
}

/// Queues held, by member; members that hold nothing included.
fn counts(assignment: &Assignment, members: &[Member]) -> Vec<usize> {
    members.iter().map(|member| assignment.iter().filter(|&(_, _, holder)| holder.0 == member.id).count()).collect()
}

fn sorted(mut counts: Vec<usize>) -> Vec<usize> {
    counts.sort_unstable();
    counts
}

/// Queues that both have and that moved.
fn moved(before: &Assignment, after: &Assignment) -> Vec<(TopicId, QueueId)> {
    let stays = |&(topic, queue, holder): &(TopicId, QueueId, MemberId)| after.holder(topic, queue) == Some(holder);
    before.iter().filter(|row| !stays(row)).map(|(topic, queue, _)| (topic, queue)).collect()
}

#[test]
fn eight_queues_and_three_members_are_3_3_2_and_stay_when_one_leaves_or_joins() {
    let three = alike(3);
    let first = next(&Assignment::default(), &three, &[8]);
    assert_eq!(sorted(counts(&first, &three)), [2, 3, 3]);

    let two = &three[..2];
    let left = next(&first, two, &[8]);
    assert_eq!(counts(&left, two), [4, 4]);
    assert!(moved(&first, &left).iter().all(|&(topic, queue)| first.holder(topic, queue) == Some(MemberId(3))));

    let four = [two, &[member(4, &[1]), member(5, &[1])]].concat();
    let joined = next(&left, &four, &[8]);
    assert_eq!(counts(&joined, &four), [2, 2, 2, 2]);
    assert_eq!(moved(&left, &joined).len(), 4);
}

#[test]
fn members_beyond_the_queues_hold_nothing_and_nothing_moves_for_them() {
    let two = alike(2);
    let full = next(&Assignment::default(), &two, &[2]);
    assert_eq!(counts(&full, &two), [1, 1]);
    assert!(next(&full, &alike(5), &[2]).iter().eq(full.iter()));
    assert!(next(&full, &[], &[2]).iter().next().is_none());
    assert!(next(&full, &two, &[]).iter().next().is_none());
}

#[test]
fn queues_of_a_deleted_topic_are_nobodys_and_new_ones_are_somebodys() {
    let two = [member(1, &[1, 2]), member(2, &[1, 2])];
    let first = next(&Assignment::default(), &two, &[4, 4]);
    assert_eq!(counts(&first, &two), [4, 4]);
    let grown = next(&first, &two, &[6, 4]);
    assert_eq!((counts(&grown, &two), moved(&first, &grown).len()), (vec![5, 5], 0));
    let deleted = next(&grown, &two, &[6, 0]);
    assert_eq!(counts(&deleted, &two), [3, 3]);
    assert!(deleted.iter().all(|(topic, ..)| topic == TopicId(1)));
}

#[test]
fn an_absent_member_keeps_what_it_has_and_gets_nothing_that_another_wants() {
    let mut members = alike(2);
    let first = next(&Assignment::default(), &members, &[8]);
    members[0].absent = true;
    members.extend([member(3, &[1]), member(4, &[1])]);
    let joined = next(&first, &members, &[10]);
    assert_eq!(counts(&joined, &members)[0], 4);
    assert_eq!(sorted(counts(&joined, &members)[1..].to_vec()), [2, 2, 2]);
    assert!(moved(&first, &joined).iter().all(|&(topic, queue)| first.holder(topic, queue) == Some(MemberId(2))));

    members[0].absent = false;
    let back = next(&joined, &members, &[10]);
    assert_eq!(sorted(counts(&back, &members)), [2, 2, 3, 3]);
    assert_eq!(moved(&joined, &back).len(), 1);

    let alone = [Member { absent: true, ..member(9, &[1]) }];
    assert_eq!(counts(&next(&back, &alone, &[10]), &alone), [10], "nobody else wants them");
}

#[test]
fn a_renamed_member_keeps_its_queues() {
    let two = alike(2);
    let mut assignment = next(&Assignment::default(), &two, &[5]);
    let before = counts(&assignment, &two);
    assignment.rename(MemberId(1), MemberId(7));
    assert_eq!(counts(&assignment, &[member(7, &[1]), two[1].clone()]), before);
}

/// The largest group that is reasonable.
#[test]
fn a_thousand_members_share_ten_thousand_queues() {
    let members = alike(1_000);
    let one = next(&Assignment::default(), &members[..1], &[10_000]);
    let all = next(&one, &members, &[10_000]);
    assert!(counts(&all, &members[..3]).iter().all(|&count| count == 10));
    let fewer = next(&all, &members[1..], &[10_000]);
    assert_eq!(moved(&all, &fewer).len(), 10);
    assert_eq!(next(&Assignment::default(), &members, &[10_000]).iter().count(), 10_000);
}

#[test]
fn what_one_who_leaves_meanwhile_would_have_is_nobodys() {
    let three = alike(3);
    let first = next(&Assignment::default(), &three, &[9]);
    for when in 0..100 {
        let mut plan = planned(&three, &[9]);
        for _ in 0..when {
            plan.step(&first, &mut Slice::new(1));
        }
        plan.gone(MemberId(1));
        plan.rename(MemberId(2), MemberId(7));
        while !plan.step(&first, &mut Slice::new(1)) {}
        let made = plan.take_assignment();
        let heirs = [three[2].clone(), member(7, &[1])];
        assert_eq!((made.iter().count(), counts(&made, &heirs)), (6, vec![3, 3]), "after {when} steps");
    }
}

/// What happens to a group.
#[derive(Clone, Debug)]
enum Change {
    Join(Vec<u64>),
    Leave(usize),
    Absent(usize),
    Back(usize),
    Queues(usize, u32),
}

fn changes(topics: u64) -> impl Strategy<Value = Vec<Change>> {
    let wanted = prop::collection::btree_set(1..=topics, 1..=topics as usize);
    let change = prop_oneof![
        5 => wanted.prop_map(|topics| Change::Join(topics.into_iter().collect())),
        3 => (0usize..12).prop_map(Change::Leave),
        1 => (0usize..12).prop_map(Change::Absent),
        1 => (0usize..12).prop_map(Change::Back),
        1 => (0usize..topics as usize, 0u32..20).prop_map(|(topic, queues)| Change::Queues(topic, queues)),
    ];
    prop::collection::vec(change, 1..40)
}

/// A broker serves nobody from more than that over one connection, and nobody was told of what stood still.
#[test]
fn nobody_holds_more_than_it_can_be_served_from() {
    const FULL: usize = MEMBER_QUEUES_MAX;
    let queues = [2 * FULL as u32 + 1];
    let alone = next(&Assignment::default(), &alike(1), &queues);
    assert_eq!(counts(&alone, &alike(1)), [FULL]);
    let two = next(&alone, &alike(2), &queues);
    assert_eq!(counts(&two, &alike(2)), [FULL, FULL]);
    assert_eq!(moved(&alone, &two), []);
    let three = next(&two, &alike(3), &queues);
    assert_eq!(sorted(counts(&three, &alike(3))), [2731, 2731, 2731]);
    // What both want goes to the second one until the first has room for what it alone wants; two that are even end that.
    let unlike = [member(1, &[1, 2]), member(2, &[1])];
    let made = next(&Assignment::default(), &unlike, &[FULL as u32, FULL as u32]);
    assert_eq!(counts(&made, &unlike), [FULL, FULL - 1]);
}

/// What must hold of any assignment.
fn check(last: &Assignment, next: &Assignment, members: &[Member], queues: &[u32]) -> Result<(), TestCaseError> {
    let by_id: BTreeMap<u64, &Member> = members.iter().map(|member| (member.id, member)).collect();
    for (topic, &count) in (1..).map(TopicId).zip(queues) {
        let wanted = members.iter().any(|member| member.topics.contains(&topic));
        for queue in (0..count).map(QueueId) {
            let holder = next.holder(topic, queue);
            prop_assert_eq!(holder.is_some(), wanted, "topic {} queue {}", topic, queue);
            if let Some(holder) = holder {
                prop_assert!(by_id[&holder.0].topics.contains(&topic), "holders want what they hold");
            }
        }
        prop_assert_eq!(next.holder(topic, QueueId(count)), None);
    }
    let keys: Vec<_> = next.iter().map(|(topic, queue, _)| (topic, queue)).collect();
    prop_assert!(keys.is_sorted_by(|a, b| a < b), "each queue once");
    for (topic, queue) in moved(last, next) {
        let holder = last.holder(topic, queue).and_then(|holder| by_id.get(&holder.0));
        let kept = holder.is_some_and(|member| member.absent && member.topics.contains(&topic));
        prop_assert!(!kept || queues[topic.0 as usize - 1] <= queue.0, "an absent member keeps what it holds");
    }
    let present: Vec<&Member> = members.iter().filter(|member| !member.absent).collect();
    for a in &present {
        for b in &present {
            let count = |member: &Member| counts(next, std::slice::from_ref(member))[0];
            if a.topics.iter().all(|topic| b.topics.contains(topic)) {
                prop_assert!(count(a) <= count(b) + 1, "{} wants nothing but what {} wants", a.id, b.id);
            }
        }
    }
    Ok(())
}

/// Fewest queues that must move for evenness among members that want the same, given what each holds and how many are free.
fn fewest_moves(mut held: Vec<usize>, free: usize) -> usize {
    for _ in 0..free {
        *held.iter_mut().min().expect("a member") += 1;
    }
    let mut moves = 0;
    while held.iter().max() > held.iter().min().map(|least| least + 1).as_ref() {
        *held.iter_mut().max().expect("a member") -= 1;
        *held.iter_mut().min().expect("a member") += 1;
        moves += 1;
    }
    moves
}

fn run(changes: Vec<Change>, mut queues: Vec<u32>) -> Result<(), TestCaseError> {
    let topics = queues.len() as u64;
    let mut members: Vec<Member> = Vec::new();
    let mut last = Assignment::default();
    let mut ids = 0;
    for change in changes {
        match change {
            Change::Join(topics) => {
                ids += 1;
                members.push(member(ids, &topics));
            }
            Change::Leave(index) if index < members.len() => {
                members.remove(index);
            }
            Change::Absent(index) if index < members.len() => members[index].absent = true,
            Change::Back(index) if index < members.len() => members[index].absent = false,
            Change::Queues(topic, count) => queues[topic] = count,
            _ => {}
        }
        let made = next(&last, &members, &queues);
        check(&last, &made, &members, &queues)?;
        prop_assert_eq!(&next_in_slices(1, &last, &members, &queues), &made);
        prop_assert_eq!(&next(&made, &members, &queues), &made, "what is even stays");
        let mut again = planned(&members, &queues);
        while !again.step(&made, &mut Slice::new(7)) {}
        prop_assert!(!again.has_changed());

        if topics == 1 && !members.is_empty() && members.iter().all(|member| !member.absent) {
            let there: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
            let kept: Vec<_> =
                last.iter().filter(|&(_, queue, holder)| queue.0 < queues[0] && there.contains(&holder.0)).collect();
            let held = members.iter().map(|m| kept.iter().filter(|row| row.2.0 == m.id).count()).collect();
            let stayers_moved = kept.iter().filter(|row| made.holder(row.0, row.1) != Some(row.2)).count();
            let free = queues[0] as usize - kept.len();
            prop_assert_eq!(stayers_moved, fewest_moves(held, free), "only as many move as evenness needs");
        }
        last = made;
    }
    Ok(())
}

proptest! {
    #[test]
    fn members_that_want_the_same_are_even_and_as_few_queues_move_as_can(changes in changes(1), queues in 0u32..40) {
        run(changes, vec![queues])?;
    }

    #[test]
    fn members_that_want_different_topics_hold_every_queue_once(changes in changes(4), queues in prop::collection::vec(0u32..12, 4)) {
        run(changes, queues)?;
    }
}
