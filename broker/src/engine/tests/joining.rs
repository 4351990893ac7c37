//! Members and their home, as far as the catalogue has a say; and a group as a whole, from the join to the message.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, MemberId};

use super::*;

const GROUP: GroupId = GroupId(3);
/// A topic that exists and that the group does not consume.
const OTHER: TopicId = TopicId(2);
const OPTIONS: MembershipOptions = MembershipOptions {
    shard: ShardId(0),
    epoch: Epoch(5),
    silence: Nanos::from_secs(10),
    grace: Nanos::from_secs(10),
};
const SETTLED: Nanos = crate::limits::GROUP_SETTLED_AFTER;

/// Topics 1 and 2 with four queues each, and group 3, `g`, that consumes the first.
fn bench(options: EngineOptions) -> Bench {
    let mut bench = Bench::empty(options);
    bench.create("t", 4);
    bench.create("u", 4);
    bench.change(bench.engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], bench.now));
    bench.harden();
    while bench.engine.next_catalogue_effect().is_some() {}
    bench.engine.start_groups(OPTIONS);
    bench
}

fn join(bench: &mut Bench, owner: u64, name: &str, topics: &[TopicId]) -> Result<MemberId, Refusal> {
    join_from(bench, owner, name, "test", topics)
}

fn join_from(bench: &mut Bench, owner: u64, name: &str, client: &str, topics: &[TopicId]) -> Result<MemberId, Refusal> {
    let (owner, topics, joined) = (ReaderOwner(owner), topics.to_vec(), bench.now);
    let join = Join { owner, group: GROUP, name, client, topics, joined };
    bench.engine.join_group(join, Nanos::ZERO).map(|joined| joined.member)
}

#[track_caller]
fn check_refused(bench: &mut Bench, name: &str, topics: &[TopicId], expected: ErrorCode) {
    let refused = join(bench, 1, name, topics).expect_err("it is refused");
    assert_eq!(refused.code(), expected, "{refused}");
}

/// Does what the shards do with what the home says; returns what is pushed.
fn carry_out(bench: &mut Bench) -> Vec<HomeEffect> {
    let mut pushed = Vec::new();
    while let Some(effect) = bench.engine.next_home_effect(&mut Slice::new(u32::MAX)) {
        match effect {
            HomeEffect::Assign { group, number, assignment, fenced } => {
                bench.engine.assign(group, number, &assignment, &fenced, Nanos::ZERO);
            }
            effect => pushed.push(effect),
        }
    }
    bench.engine.follow_assignments(&mut Slice::new(u32::MAX));
    pushed
}

/// How many queues each of these members holds.
fn held(bench: &Bench, members: &[MemberId]) -> Vec<usize> {
    let holds = |queue, member| bench.engine.holder(GROUP, TOPIC, QueueId(queue)) == Some(member);
    members.iter().map(|&member| (0..8).filter(|&queue| holds(queue, member)).count()).collect()
}

#[test]
fn a_join_is_checked_against_the_catalogue() {
    let mut bench = bench(ONE_SHARD);
    check_refused(&mut bench, "a/b", &[TOPIC], ErrorCode::InvalidName);
    check_refused(&mut bench, "a", &[], ErrorCode::InvalidArgument);
    check_refused(&mut bench, "a", &[OTHER], ErrorCode::InvalidArgument);
    check_refused(&mut bench, "a", &[TOPIC, TopicId(99)], ErrorCode::UnknownTopic);
    assert!(join(&mut bench, 1, "a", &[TOPIC, TOPIC]).is_ok());
    bench.change(bench.engine.decide_delete("u", None, bench.now));
    bench.harden();
    check_refused(&mut bench, "a", &[OTHER], ErrorCode::TopicDeleted);
    assert!(join(&mut bench, 1, "a", &[TOPIC, OTHER]).is_ok(), "it goes on with the topic that is left");
    bench.change(bench.engine.decide_delete_group("g", None, bench.now));
    bench.harden();
    check_refused(&mut bench, "a", &[TOPIC], ErrorCode::GroupDeleted);
    assert_eq!(bench.engine.leave_group(ReaderOwner(1), GroupId(99), MemberId(1)), Err(Refusal::UnknownGroup));
}

/// Two consumers of one connection under one name were the same member, and took each other's queues without end.
#[test]
fn the_newest_client_of_a_name_wins_on_one_connection_too() {
    let mut bench = bench(ONE_SHARD);
    let first = join_from(&mut bench, 1, "a", "one", &[TOPIC]).unwrap();
    assert_eq!(join_from(&mut bench, 1, "a", "one", &[TOPIC]), Ok(first), "the same comes back");
    let second = join_from(&mut bench, 1, "a", "two", &[TOPIC]).unwrap();
    assert_ne!(second, first);
    let code = ErrorCode::MemberFenced;
    let fence = HomeEffect::Fence { owner: ReaderOwner(1), group: GROUP, member: first, code };
    assert_eq!(carry_out(&mut bench), [fence]);
    assert_eq!(bench.engine.leave_group(ReaderOwner(1), GROUP, first), Err(Refusal::UnknownMember));
    bench.engine.group_tick(SETTLED);
    carry_out(&mut bench);
    assert_eq!(held(&bench, &[first, second]), [0, 4]);
}

#[test]
fn members_join_at_their_groups_home() {
    for shards in [2, 3, 4] {
        let mut bench = bench(EngineOptions { shards, ..ONE_SHARD });
        let home = peregrine_protocol::placement::group_home("g", shards);
        let joined = join(&mut bench, 1, "a", &[TOPIC]);
        assert_eq!(joined.err(), (home != HOME).then_some(Refusal::WrongShard(home)));
    }
}

#[test]
fn queues_that_are_added_have_holders_and_deleted_ones_have_none() {
    let mut bench = bench(ONE_SHARD);
    let members = [1, 2].map(|owner| join(&mut bench, owner, &format!("m{owner}"), &[TOPIC]).unwrap());
    assert_eq!(carry_out(&mut bench), []);
    bench.engine.group_tick(SETTLED);
    assert_eq!(carry_out(&mut bench).len(), 2);
    assert_eq!(held(&bench, &members), [2, 2]);
    bench.change(bench.engine.decide_alter("t", Some(8), None, bench.now));
    assert_eq!(carry_out(&mut bench), [], "not before it is durable");
    bench.harden();
    assert_eq!(carry_out(&mut bench).len(), 2);
    assert_eq!(held(&bench, &members), [4, 4]);
    bench.change(bench.engine.decide_delete("t", None, bench.now));
    bench.harden();
    let none = |effect: &HomeEffect| matches!(effect, HomeEffect::Tell { queues, .. } if queues.is_empty());
    assert!(carry_out(&mut bench).iter().all(none));
    assert_eq!(held(&bench, &members), [0, 0]);
}

/// Whoever asks for a queue that a topic lacks has the topic told again: each time the home shared all queues anew.
#[test]
fn a_topic_that_is_told_again_makes_no_assignment() {
    let two = EngineOptions { shards: 2, ..ONE_SHARD };
    let here = ShardId(1);
    let name = ["a", "b", "c", "d", "e"].into_iter();
    let name = name.into_iter().find(|name| peregrine_protocol::placement::group_home(name, 2) == here).unwrap();
    let mut home = Bench::empty(two);
    home.create("t", 4);
    home.change(home.engine.decide_create_group(name, &[(TOPIC, StartAt::Earliest)], home.now));
    home.harden();
    let mut copy = Engine::new(EngineOptions { shard: here, ..two });
    copy.install_catalogue(home.engine.catalogue_snapshot());
    copy.recovered(LogPosition(4096));
    copy.start_groups(MembershipOptions { shard: here, ..OPTIONS });
    let topics = vec![TOPIC];
    let join =
        Join { owner: ReaderOwner(1), group: GroupId(2), name: "m", client: "test", topics, joined: Nanos::ZERO };
    copy.join_group(join, Nanos::ZERO).unwrap();
    copy.group_tick(SETTLED);
    while copy.next_home_effect(&mut Slice::new(u32::MAX)).is_some() {}
    let is_due = |copy: &Engine| copy.membership.as_ref().unwrap().is_due();
    copy.catalogue_changed(&home.engine.topic(TOPIC).into());
    assert!(!is_due(&copy));
    home.change(home.engine.decide_alter("t", Some(6), None, home.now));
    home.harden();
    copy.catalogue_changed(&home.engine.topic(TOPIC).into());
    assert!(is_due(&copy));
}

#[test]
fn a_deleted_group_ends_its_members() {
    let mut bench = bench(ONE_SHARD);
    let member = join(&mut bench, 1, "a", &[TOPIC]).unwrap();
    bench.engine.group_tick(SETTLED);
    carry_out(&mut bench);
    bench.change(bench.engine.decide_delete_group("g", None, bench.now));
    bench.harden();
    let fence = HomeEffect::Fence { owner: ReaderOwner(1), group: GROUP, member, code: ErrorCode::GroupDeleted };
    assert_eq!(carry_out(&mut bench), [fence]);
    assert_eq!(held(&bench, &[member]), [0]);
    assert_eq!(bench.engine.heartbeat(ReaderOwner(1), GROUP, member, 0, SETTLED), Err(Refusal::GroupDeleted));
    assert_eq!(bench.engine.next_group_deadline(), None);
}

/// A member that is gone for good, from the loss of its connection to the next member's first message.
#[test]
fn what_a_lost_member_did_not_acknowledge_comes_to_another_after_the_grace_time() {
    let mut bench = bench(ONE_SHARD);
    let plenty = Credit { messages: 100, bytes: 1 << 20 };
    let a = join(&mut bench, 1, "a", &[TOPIC]).unwrap();
    bench.engine.group_tick(SETTLED);
    carry_out(&mut bench);
    bench.engine.subscribe_group(ReaderOwner(1), GROUP, a, TOPIC, QueueId(0), plenty).unwrap();
    bench.store(0, 1, DurableLevel::Memory);
    bench.publish();
    assert!(matches!(bench.engine.next_delivery(), Some(Delivery::Batch { owner: ReaderOwner(1), .. })));

    bench.engine.detach(ReaderOwner(1), SETTLED);
    let b = join(&mut bench, 2, "b", &[TOPIC]).unwrap();
    bench.engine.subscribe_group(ReaderOwner(2), GROUP, b, TOPIC, QueueId(0), plenty).unwrap();
    carry_out(&mut bench);
    assert_eq!((held(&bench, &[a, b]), bench.engine.next_delivery()), (vec![4, 0], None));
    let view: Vec<_> = bench.engine.members_after(GROUP, "").map(|member| (member.name, member.connected)).collect();
    assert_eq!(view, [("a", false), ("b", true)]);

    let over = SETTLED + OPTIONS.grace.0;
    bench.engine.heartbeat(ReaderOwner(2), GROUP, b, u64::MAX, over).unwrap();
    assert_eq!(bench.engine.next_group_deadline(), Some(Nanos(OPTIONS.silence.0).min(over)));
    bench.engine.group_tick(over);
    carry_out(&mut bench);
    assert_eq!(held(&bench, &[a, b]), [0, 4]);
    let Some(Delivery::Batch { owner: ReaderOwner(2), batch, .. }) = bench.engine.next_delivery() else { panic!() };
    assert_eq!((batch.first_wanted.0, batch.attempt), (0, 2));
    assert_eq!(bench.engine.group_home(GROUP).members, 1);
}
