//! The members of a home: each rule by itself.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, Nanos, QueueId, ShardId, TopicId};

use crate::engine::group::home::{HomeEffect, Join, Joined, Membership, MembershipOptions};
use crate::engine::reader::ReaderOwner;
use crate::engine::refusal::Refusal;
use crate::engine::slice::Slice;
use crate::limits;

pub(super) const GROUP: GroupId = GroupId(9);
pub(super) const TOPIC: TopicId = TopicId(1);
pub(super) const SILENCE: Nanos = Nanos::from_secs(10);
pub(super) const GRACE: Nanos = Nanos::from_secs(10);

/// Queues of a member, as numbers of [`TOPIC`]'s.
pub(super) type Queues = Vec<u32>;

/// A home with one group, what the shards were told, and what the members were told.
pub(super) struct Bench {
    pub(super) home: Membership,
    pub(super) now: Nanos,
    pub(super) queues: BTreeMap<TopicId, u32>,
    /// The newest assignment that the shards know.
    pub(super) number: u64,
    pub(super) holders: BTreeMap<(TopicId, QueueId), MemberId>,
    /// All that ever stood in `fenced`.
    pub(super) fenced: BTreeSet<MemberId>,
    pub(super) told: BTreeMap<MemberId, (u64, Vec<(TopicId, QueueId)>)>,
    pub(super) pushed: Vec<(ReaderOwner, MemberId, ErrorCode)>,
    /// How often a member was told its queues.
    pub(super) times_told: usize,
}

impl Bench {
    pub(super) fn new(queues: u32) -> Self {
        Self::with_grace(queues, GRACE)
    }

    pub(super) fn with_grace(queues: u32, grace: Nanos) -> Self {
        Self {
            home: Membership::new(MembershipOptions { shard: ShardId(0), epoch: Epoch(3), silence: SILENCE, grace }),
            now: Nanos::from_secs(1_700_000_000),
            queues: BTreeMap::from([(TOPIC, queues)]),
            number: 0,
            holders: BTreeMap::new(),
            fenced: BTreeSet::new(),
            told: BTreeMap::new(),
            pushed: Vec::new(),
            times_told: 0,
        }
    }

    /// Carries out the effects. The numbers of assignments must grow, and nobody is told of one before the owners are.
    pub(super) fn settle(&mut self) {
        while self.home.has_work() {
            self.work(1_000);
        }
    }

    /// One slice, after which nothing may be left.
    pub(super) fn work(&mut self, steps: u32) {
        let mut slice = Slice::new(steps);
        while let Some(effect) =
            self.home.next_effect(|topic| self.queues.get(&topic).copied().unwrap_or(0), &mut slice)
        {
            match effect {
                HomeEffect::Assign { number, assignment, fenced, .. } => {
                    assert!(number > self.number, "{number} follows {}", self.number);
                    self.number = number;
                    self.holders = assignment.iter().map(|(topic, queue, holder)| ((topic, queue), holder)).collect();
                    let is_gone = |member: &MemberId| self.fenced.contains(member) || fenced.contains(member);
                    assert!(!self.holders.values().any(is_gone), "who is gone holds nothing");
                    self.fenced.extend(fenced);
                }
                HomeEffect::Tell { member, number, queues, .. } => {
                    assert!(number <= self.number);
                    let held: Vec<_> =
                        self.holders.iter().filter(|row| *row.1 == member).map(|(&key, _)| key).collect();
                    assert_eq!(queues, held, "a member is told what the owners know");
                    self.told.insert(member, (number, queues));
                    self.times_told += 1;
                }
                HomeEffect::Fence { owner, member, code, .. } => self.pushed.push((owner, member, code)),
            }
        }
    }

    pub(super) fn try_join(&mut self, owner: u64, name: &str, topics: &[u64]) -> Result<Joined, Refusal> {
        let topics = topics.iter().copied().map(TopicId).collect();
        let client = format!("client-{owner}");
        let joined = Nanos::from_secs(1);
        let join = Join { owner: ReaderOwner(owner), group: GROUP, name, client: &client, topics, joined };
        let joined = self.home.join(join, self.now);
        self.settle();
        joined
    }

    /// Joins on a connection of its own from a client of its own; both have the number `owner`.
    pub(super) fn join(&mut self, owner: u64, name: &str) -> MemberId {
        self.try_join(owner, name, &[1]).expect("there is room").member
    }

    /// Lets time pass in small steps, as the sweeper of a shard does.
    pub(super) fn pass(&mut self, nanos: Nanos) {
        let until = self.now + nanos.0;
        while self.now < until {
            self.now = until.min(self.now + Nanos::from_millis(100).0);
            if self.home.next_deadline().is_some_and(|due| due <= self.now) {
                self.home.tick(self.now);
            }
            self.settle();
        }
    }

    pub(super) fn pass_settling(&mut self) {
        self.pass(limits::GROUP_SETTLED_AFTER);
        assert!(!self.home.group(GROUP).settling);
    }

    pub(super) fn heartbeat(&mut self, owner: u64, member: MemberId, number: u64) -> Result<u64, Refusal> {
        let answer = self.home.heartbeat(ReaderOwner(owner), GROUP, member, number, self.now);
        self.settle();
        answer
    }

    /// Lets time pass while these, (connection, member), say that they are there.
    pub(super) fn pass_alive(&mut self, nanos: Nanos, alive: &[(u64, MemberId)]) {
        let until = self.now + nanos.0;
        while self.now < until {
            self.pass(Nanos((until - self.now).min(Nanos::from_secs(3).0)));
            for &(owner, member) in alive {
                let told = self.told.get(&member).map_or(0, |told| told.0);
                assert_eq!(self.heartbeat(owner, member, told), Ok(told));
            }
        }
    }

    pub(super) fn detach(&mut self, owner: u64) {
        self.home.detach(ReaderOwner(owner), self.now);
        self.settle();
    }

    pub(super) fn leave(&mut self, owner: u64, member: MemberId) -> Result<(), Refusal> {
        let left = self.home.leave(ReaderOwner(owner), GROUP, member);
        self.settle();
        left
    }

    pub(super) fn held(&self, member: MemberId) -> Queues {
        self.holders.iter().filter(|row| *row.1 == member).map(|(key, _)| key.1.0).collect()
    }

    pub(super) fn absent(&self) -> BTreeSet<MemberId> {
        self.home.members_after(GROUP, "").filter(|member| !member.connected).map(|member| member.id).collect()
    }

    pub(super) fn connected(&self) -> Vec<(String, bool)> {
        self.home.members_after(GROUP, "").map(|member| (member.name.to_owned(), member.connected)).collect()
    }
}

/// Three members, a, b and c, on connections 1, 2 and 3, that share so many queues.
pub(super) fn three(bench: &mut Bench) -> [MemberId; 3] {
    let members = [(1, "a"), (2, "b"), (3, "c")].map(|(owner, name)| bench.join(owner, name));
    bench.pass_settling();
    members
}

#[test]
fn eight_queues_and_three_members_are_3_3_2_in_one_assignment() {
    let mut bench = Bench::new(8);
    let members = three(&mut bench);
    let mut counts = members.map(|member| bench.held(member).len());
    counts.sort_unstable();
    assert_eq!(counts, [2, 3, 3]);
    assert_eq!(bench.number & 0xFFFF_FFFF, 1, "they were waited for");
    assert_eq!(bench.told.len(), 3);
}

#[test]
fn a_group_settles_300_ms_after_the_last_join_and_3_s_after_the_first_at_most() {
    let mut bench = Bench::new(8);
    bench.join(1, "a");
    bench.pass(Nanos::from_millis(250));
    bench.join(2, "b");
    bench.pass(Nanos::from_millis(250));
    assert!(bench.home.group(GROUP).settling && bench.holders.is_empty() && bench.told.is_empty());
    bench.pass(Nanos::from_millis(50));
    assert!(!bench.home.group(GROUP).settling && bench.holders.len() == 8);

    let mut bench = Bench::new(8);
    for owner in 0..40 {
        bench.join(owner, &format!("m{owner}"));
        bench.pass(Nanos::from_millis(100));
        assert_eq!(bench.home.group(GROUP).settling, owner < 29, "{owner}");
    }
}

#[test]
fn a_group_that_everybody_left_settles_again() {
    let mut bench = Bench::new(4);
    let a = bench.join(1, "a");
    bench.pass_settling();
    let number = bench.number;
    bench.leave(1, a).unwrap();
    assert!(bench.holders.is_empty() && bench.number > number && bench.fenced.contains(&a));
    assert!(bench.home.is_empty() && bench.home.next_deadline().is_none());
    let again = bench.join(1, "a");
    assert_ne!(again, a);
    assert!(bench.home.group(GROUP).settling);
    bench.pass_settling();
    assert_eq!(bench.held(again), [0, 1, 2, 3]);
}

#[test]
fn who_leaves_while_the_group_settles_gets_nothing() {
    let mut bench = Bench::new(4);
    let a = bench.join(1, "a");
    bench.leave(1, a).unwrap();
    assert!(bench.home.next_deadline().is_none());
    let (b, c) = (bench.join(2, "b"), bench.join(3, "c"));
    bench.leave(2, b).unwrap();
    bench.pass_settling();
    assert_eq!(bench.held(c), [0, 1, 2, 3]);
}

#[test]
fn who_leaves_gives_its_queues_away_at_once_and_nobody_elses_move() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    let (held_a, held_b) = (bench.held(a), bench.held(b));
    assert_eq!(bench.leave(2, c), Err(Refusal::UnknownMember), "another connection's");
    bench.leave(3, c).unwrap();
    assert!(bench.fenced.contains(&c));
    assert!(held_a.iter().all(|queue| bench.held(a).contains(queue)));
    assert!(held_b.iter().all(|queue| bench.held(b).contains(queue)));
    assert_eq!(bench.held(a).len() + bench.held(b).len(), 8);
    assert_eq!(bench.leave(3, c), Err(Refusal::UnknownMember));
}

#[test]
fn a_lost_connection_keeps_its_queues_for_the_grace_time() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    let (held, number) = (bench.held(c), bench.number);
    bench.detach(3);
    bench.pass_alive(Nanos::from_millis(9_900), &[(1, a), (2, b)]);
    assert_eq!((bench.held(c), bench.number), (held, number));
    assert_eq!(bench.connected(), [("a".into(), true), ("b".into(), true), ("c".into(), false)]);
    bench.pass_alive(Nanos::from_millis(100), &[(1, a), (2, b)]);
    assert!(bench.held(c).is_empty() && bench.fenced.contains(&c));
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (4, 4));
}

#[test]
fn who_comes_back_within_the_grace_time_is_the_same_member_with_the_same_queues() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    let (held, number) = (bench.held(c), bench.number);
    bench.detach(3);
    bench.pass_alive(Nanos::from_secs(9), &[(1, a), (2, b)]);
    bench.told.remove(&c);
    assert_eq!(bench.join(7, "c"), c, "from another process under the same name");
    assert_eq!((bench.held(c), bench.number), (held.clone(), number));
    assert_eq!(bench.told[&c].1.len(), held.len(), "it is told what it has");
    bench.pass_alive(Nanos::from_secs(60), &[(1, a), (2, b), (7, c)]);
    assert_eq!((bench.held(c), bench.number, bench.pushed.len()), (held, number, 0));
    assert_eq!(bench.heartbeat(3, c, 0), Err(Refusal::UnknownMember), "the old connection speaks for nobody");
}

#[test]
fn without_a_grace_time_a_lost_connection_loses_its_queues_at_once() {
    let mut bench = Bench::with_grace(8, Nanos::ZERO);
    let [_, _, c] = three(&mut bench);
    bench.detach(3);
    assert!(bench.held(c).is_empty() && bench.fenced.contains(&c) && bench.holders.len() == 8);
    assert_ne!(bench.join(3, "c"), c);
}

#[test]
fn silence_is_like_a_lost_connection_until_a_heartbeat() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    let held = bench.held(c);
    bench.pass_alive(Nanos::from_secs(12), &[(1, a), (2, b)]);
    assert_eq!(bench.connected()[2], ("c".into(), false));
    assert_eq!(bench.held(c), held);
    assert_eq!(bench.heartbeat(3, c, bench.number), Ok(bench.number));
    assert_eq!(bench.connected()[2], ("c".into(), true));
    bench.pass_alive(Nanos::from_millis(9_900), &[(1, a), (2, b)]);
    assert_eq!(bench.connected()[2], ("c".into(), true), "the silence begins anew");
    assert_eq!(bench.heartbeat(3, c, bench.number), Ok(bench.number));

    bench.pass_alive(Nanos::from_secs(21), &[(1, a), (2, b)]);
    assert!(bench.held(c).is_empty());
    assert_eq!(bench.pushed, [(ReaderOwner(3), c, ErrorCode::UnknownMember)]);
    assert_eq!(bench.heartbeat(3, c, bench.number), Err(Refusal::UnknownMember));
}

#[test]
fn a_connection_that_closes_after_silence_gets_no_second_grace_time() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    bench.pass_alive(Nanos::from_secs(15), &[(1, a), (2, b)]);
    bench.detach(3);
    bench.pass_alive(Nanos::from_secs(5), &[(1, a), (2, b)]);
    assert!(bench.held(c).is_empty() && bench.pushed.is_empty());
}

#[test]
fn the_newest_under_a_name_wins_and_takes_the_queues_over() {
    let mut bench = Bench::new(8);
    let [.., c] = three(&mut bench);
    let held = bench.held(c);
    let new = bench.join(4, "c");
    assert_ne!(new, c, "another client's acknowledgements never pass for this one's");
    assert_eq!(bench.pushed, [(ReaderOwner(3), c, ErrorCode::MemberFenced)]);
    assert_eq!((bench.held(new), bench.held(c)), (held, vec![]));
    assert!(bench.fenced.contains(&c) && !bench.fenced.contains(&new));
    assert_eq!(bench.heartbeat(3, c, 0), Err(Refusal::UnknownMember));
    assert_eq!(bench.leave(3, c), Err(Refusal::UnknownMember));
    bench.detach(3);
    assert_eq!(bench.home.len(), 3);
}

#[test]
fn a_client_that_reconnects_before_its_old_connection_is_found_lost_is_the_same_member() {
    let mut bench = Bench::new(8);
    let [.., c] = three(&mut bench);
    let (held, number) = (bench.held(c), bench.number);
    let (topics, joined) = (vec![TOPIC], Nanos::from_secs(2));
    let join = Join { owner: ReaderOwner(4), group: GROUP, name: "c", client: "client-3", topics, joined };
    assert_eq!(bench.home.join(join, bench.now), Ok(Joined { member: c, number }));
    bench.settle();
    assert_eq!(bench.pushed, [(ReaderOwner(3), c, ErrorCode::MemberFenced)]);
    bench.detach(3);
    assert_eq!((bench.held(c), bench.number), (held, number));
    let view = bench.home.members_after(GROUP, "b").next().unwrap();
    assert_eq!((view.name, view.client, view.connected), ("c", "client-3", true));
    assert_eq!((view.joined, view.queues as usize), (Nanos::from_secs(1), bench.held(c).len()), "it joined once");
}

#[test]
fn one_who_joins_gets_as_many_queues_as_evenness_needs() {
    let mut bench = Bench::new(8);
    let members = three(&mut bench);
    let before = bench.holders.clone();
    let d = bench.join(4, "d");
    assert_eq!(bench.held(d).len(), 2, "no settling any more");
    let moved = bench.holders.iter().filter(|&(key, holder)| before[key] != *holder).count();
    assert_eq!((moved, members.map(|member| bench.held(member).len())), (2, [2, 2, 2]));
    let more: Vec<MemberId> = (5..12).map(|owner| bench.join(owner, &format!("m{owner}"))).collect();
    let without = more.iter().filter(|&&member| bench.told[&member] == (bench.number, vec![])).count();
    assert_eq!(without, 3, "eleven members, eight queues: three are told that they have none");
}

#[test]
fn queues_of_an_absent_member_do_not_move_for_one_who_joins() {
    let mut bench = Bench::new(8);
    let a = bench.join(1, "a");
    bench.pass_settling();
    bench.detach(1);
    let b = bench.join(2, "b");
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (8, 0));
    assert_eq!(bench.join(3, "a"), a);
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (4, 4), "it is back and shares");
}

#[test]
fn topics_grow_are_deleted_and_are_wanted_by_some() {
    let mut bench = Bench::new(4);
    let two = TopicId(2);
    bench.queues.insert(two, 2);
    let a = bench.try_join(1, "a", &[1]).unwrap().member;
    let b = bench.try_join(2, "b", &[1, 2]).unwrap().member;
    bench.pass_settling();
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (3, 3));
    bench.queues.insert(TOPIC, 6);
    bench.home.topic_changed(TOPIC);
    bench.settle();
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (4, 4));
    bench.queues.remove(&two);
    bench.home.topic_changed(two);
    bench.settle();
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (3, 3));
    let number = bench.number;
    bench.home.topic_changed(TopicId(77));
    bench.settle();
    assert_eq!(bench.number, number, "nobody wants that one");
    assert_eq!(bench.try_join(2, "b", &[2]).unwrap().member, b, "it wants other topics from now on");
    assert_eq!((bench.held(a).len(), bench.held(b).len()), (6, 0));
}

#[test]
fn members_of_a_deleted_group_are_told_and_leave_nothing() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    bench.detach(2);
    bench.home.group_deleted(GROUP);
    bench.settle();
    let deleted = |owner, member| (ReaderOwner(owner), member, ErrorCode::GroupDeleted);
    assert_eq!(bench.pushed, [deleted(1, a), deleted(3, c)]);
    assert!(bench.home.is_empty() && bench.home.next_deadline().is_none());
    for (owner, member) in [(1, a), (2, b), (3, c)] {
        assert_eq!(bench.heartbeat(owner, member, 0), Err(Refusal::UnknownMember));
        bench.detach(owner);
    }
}

#[test]
fn ids_and_numbers_of_a_later_start_are_higher() {
    let mut bench = Bench::new(8);
    let [.., c] = three(&mut bench);
    let number = bench.number;
    bench.home =
        Membership::new(MembershipOptions { shard: ShardId(0), epoch: Epoch(4), silence: SILENCE, grace: GRACE });
    assert_eq!(bench.heartbeat(3, c, number), Err(Refusal::UnknownMember));
    assert!(bench.join(3, "c") > c);
    bench.pass_settling();
    assert!(bench.number > number);
}

#[test]
fn one_group_has_no_more_members_than_it_may() {
    let mut bench = Bench::new(8);
    for owner in 0..limits::GROUP_MEMBERS_MAX as u64 {
        bench.join(owner, &format!("m{owner}"));
    }
    assert_eq!(bench.try_join(1, "one-more", &[1]), Err(Refusal::LimitReached("members")));
    bench.detach(0);
    bench.join(0, "m0");
}

#[test]
fn members_that_only_say_that_they_are_there_cost_one_look_per_silence_time() {
    let mut bench = Bench::new(8);
    let [a, b, c] = three(&mut bench);
    let (mut looks, mut last) = (0, bench.home.next_deadline());
    for _ in 0..100 {
        bench.pass_alive(Nanos::from_secs(1), &[(1, a), (2, b), (3, c)]);
        looks += u32::from(bench.home.next_deadline() != last);
        last = bench.home.next_deadline();
    }
    assert!(looks <= 33, "3 members, 100 s, {looks} times");
}

/// 16 KiB is what a member may cost in all: its connection, its subscriptions and this.
#[test]
fn a_member_with_the_longest_names_is_small() {
    let mut bench = Bench::new(10_000);
    for owner in 0..1_000 {
        bench.try_join(owner, &format!("{owner:0>127}"), &[1, 2, 3, 4]).unwrap();
    }
    bench.pass_settling();
    let bytes = bench.home.bytes() / 1_000;
    assert!(bytes < 1_024, "{bytes} bytes a member");
    bench.home.group_deleted(GROUP);
    assert!(bench.home.bytes() < 200_000, "what is left are tables that keep their size");
}
