//! Consumer groups in the catalogue: what makes and ends them, and how the other shards follow.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{GroupId, QueueOffset};
use peregrine_protocol::limits::GROUP_TOPICS_MAX;

use super::*;
use crate::engine::group::GroupChange;

const COPY: EngineOptions = EngineOptions { shard: ShardId(1), shards: 2, ..ONE_SHARD };
const HOME_OF_TWO: EngineOptions = EngineOptions { shard: HOME, ..COPY };

/// Asks a bench for one change of a topic or of a group and says what came of it: the entry's object, `done`, `after`, or the
/// refusal. The topics of a group are given by their ids: `group g 1 2`.
fn ask(bench: &mut Bench, request: &str) -> String {
    let mut words = request.split(' ');
    let (verb, name) = (words.next().expect("a verb"), words.next().expect("a name"));
    let numbers: Vec<u64> = words.map(|word| word.parse().expect("an id or a number of queues")).collect();
    let topics: Vec<_> = numbers.iter().map(|&topic| (TopicId(topic), StartAt::Earliest)).collect();
    let (engine, now) = (&bench.engine, bench.now);
    match verb {
        "topic" => {
            let decision = engine.decide_create(name, numbers[0] as u32, TopicRetention::default(), now);
            outcome(bench, decision, |topic| topic.id.0)
        }
        "no-topic" => {
            let decision = engine.decide_delete(name, None, now);
            outcome(bench, decision, |topic| topic.id.0)
        }
        "group" => {
            let decision = engine.decide_create_group(name, &topics, now);
            outcome(bench, decision, |group| group.id.0)
        }
        "no-group" => {
            let decision = engine.decide_delete_group(name, None, now);
            outcome(bench, decision, |group| group.id.0)
        }
        other => panic!("{other}"),
    }
}

fn outcome<T>(bench: &mut Bench, decision: Result<CatalogueDecision<T>, Refusal>, id: impl Fn(&T) -> u64) -> String {
    match decision {
        Ok(CatalogueDecision::Append { draft, payload }) => {
            bench.append(&draft, payload);
            format!("entry {}", draft.topic)
        }
        Ok(CatalogueDecision::Done(object)) => format!("done {}", id(&object)),
        Ok(CatalogueDecision::After(end)) => format!("after {}", if end == bench.end { "the end" } else { "another" }),
        Err(refusal) => refusal.code().name().to_owned(),
    }
}

/// Every group with the topics that it consumes: `3 g: 1 2`.
fn groups(engine: &Engine) -> String {
    let of = |group: &Group| {
        let start = format!("{} {}:", group.id, group.name);
        group.topics.iter().fold(start, |text, (topic, _)| format!("{text} {topic}"))
    };
    engine.groups_after(None).map(of).collect::<Vec<_>>().join(", ")
}

/// Each request, durable before the next one, with what comes of it.
#[track_caller]
fn check(requests: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::empty(ONE_SHARD);
    for (request, expected) in requests {
        assert_eq!(ask(&mut bench, request), *expected, "{request}");
        bench.harden();
    }
    let replayed = replay(ONE_SHARD, &bench.log);
    assert_eq!(groups(&bench.engine), groups(&replayed));
    assert_eq!(bench.engine.digest(), replayed.digest());
    bench
}

#[test]
fn create_is_idempotent_adds_topics_and_shares_its_ids_with_them() {
    let bench = check(&[
        ("topic a 4", "entry 1"),
        ("group g 1", "entry 2"),
        ("group g 1", "done 2"),
        ("group g", "done 2"),
        ("topic b 1", "entry 3"),
        ("group g 3", "entry 2"),
        ("group g 3 1", "done 2"),
        ("group h", "entry 4"),
        ("topic g 1", "entry 5"),
        ("group a 1 3 1", "entry 6"),
        ("no-group g", "entry 2"),
        ("no-group g", "UnknownGroup"),
        ("group g 1", "entry 7"),
        ("group no/slash", "InvalidName"),
        ("group g 9", "UnknownTopic"),
        ("group g 4", "UnknownTopic"),
        ("no-topic b", "entry 3"),
        ("group g 3", "TopicDeleted"),
    ]);
    assert_eq!(groups(&bench.engine), "6 a: 1, 7 g: 1, 4 h:");
    assert_eq!(bench.engine.group(GroupId(2)), GroupState::Deleted(GroupId(2)));
    assert_eq!(bench.engine.group(GroupId(9)), GroupState::Unknown(GroupId(9)));
    assert_eq!(bench.engine.group(GroupId(5)), GroupState::Unknown(GroupId(5)), "that is a topic");
    assert_eq!(bench.engine.check_group(GroupId(2)), Err(Refusal::GroupDeleted));
    let found = bench.engine.group_named("h").expect("it was made");
    assert_eq!((found.id, found.home_shard(1)), (GroupId(4), HOME));
    assert_eq!(bench.engine.counts().groups, 3);
}

#[test]
fn a_start_is_kept_once_it_was_said_and_latest_is_an_instant() {
    let mut bench = Bench::new(1);
    bench.create("u", 1);
    let made = bench.now;
    let decide = |bench: &Bench, start| bench.engine.decide_create_group("g", &[(TOPIC, start)], bench.now);
    bench.change(decide(&bench, StartAt::Latest));
    bench.harden();
    bench.now.0 += 1_000;
    for start in [StartAt::Earliest, StartAt::Latest] {
        assert!(matches!(decide(&bench, start), Ok(CatalogueDecision::Done(_))));
    }
    let offset = StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(7) };
    let more = [(TOPIC, StartAt::Earliest), (TopicId(2), offset)];
    bench.change(bench.engine.decide_create_group("g", &more, bench.now));
    bench.harden();
    let group = bench.engine.group_named("g").expect("it was made");
    let expected = [(TOPIC, GroupStart::Time(made)), (TopicId(2), GroupStart::Offset(QueueOffset(7)))];
    assert_eq!((group.created, &group.topics[..]), (made, &expected[..]));
}

#[test]
fn a_change_takes_effect_only_when_it_is_durable() {
    let mut bench = Bench::new(1);
    assert_eq!(ask(&mut bench, "group g 1"), "entry 2");
    bench.publish();
    assert_eq!(bench.engine.group_named("g"), None);
    assert_eq!(bench.engine.group(GroupId(2)), GroupState::Unknown(GroupId(2)));
    for request in ["group g 1", "group g", "no-group g"] {
        assert_eq!(ask(&mut bench, request), "after the end", "{request}");
    }
    assert_eq!(ask(&mut bench, "topic g 1"), "entry 3", "a topic's name is another");
    assert_eq!(bench.engine.next_catalogue_effect(), None);
    bench.harden();
    let Some(CatalogueState::Group(GroupState::Live(group))) = bench.engine.next_catalogue_effect() else {
        panic!("it took effect")
    };
    assert_eq!(bench.engine.group_named("g"), Some(&group));
}

#[test]
fn a_poisoned_home_lets_no_change_take_effect() {
    let mut bench = Bench::new(1);
    ask(&mut bench, "group g 1");
    bench.engine.on_poisoned();
    bench.harden();
    assert_eq!(bench.engine.group_named("g"), None);
    assert_eq!(bench.engine.decide_create_group("h", &[], bench.now), Err(Refusal::Poisoned));
    assert_eq!(bench.engine.decide_delete_group("g", None, bench.now), Err(Refusal::Poisoned));
}

#[test]
fn a_deletion_sent_twice_takes_no_namesake() {
    let bench = check(&[("group g", "entry 1"), ("no-group g", "entry 1"), ("group g", "entry 2")]);
    let delete = |id| bench.engine.decide_delete_group("g", Some(GroupId(id)), bench.now).err();
    assert_eq!(delete(1), Some(Refusal::GroupDeleted));
    assert_eq!(delete(3), Some(Refusal::UnknownGroup));
    assert_eq!(delete(2), None);
}

#[test]
fn a_deleted_topic_leaves_every_group_even_one_decided_while_it_went() {
    let mut bench = Bench::empty(ONE_SHARD);
    for request in ["topic a 1", "topic b 1", "group g 1 2"] {
        ask(&mut bench, request);
        bench.harden();
    }
    assert_eq!(ask(&mut bench, "no-topic a"), "entry 1");
    assert_eq!(ask(&mut bench, "group h 1 2"), "entry 4");
    bench.harden();
    assert_eq!(groups(&bench.engine), "3 g: 2, 4 h: 2");
    let effects: Vec<_> = std::iter::from_fn(|| bench.engine.next_catalogue_effect()).collect();
    let Some(CatalogueState::Group(GroupState::Live(told))) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(Some(told), bench.engine.group_named("h"), "what is told is what is");
    let replayed = replay(ONE_SHARD, &bench.log);
    assert_eq!(groups(&replayed), groups(&bench.engine));
    assert_eq!(replayed.digest(), bench.engine.digest());
}

#[test]
fn a_group_has_so_many_topics_and_no_more() {
    let mut bench = Bench::empty(ONE_SHARD);
    for topic in 0..=GROUP_TOPICS_MAX {
        bench.create(&format!("t{topic}"), 1);
    }
    let topics: Vec<_> = (1..=GROUP_TOPICS_MAX as u64 + 1).map(|id| (TopicId(id), StartAt::Earliest)).collect();
    let decide = |topics: &[_]| bench.engine.decide_create_group("g", topics, bench.now).err();
    assert_eq!(decide(&topics), Some(Refusal::LimitReached("topics of a group")));
    assert_eq!(decide(&topics[1..]), None);
}

#[test]
fn listings_are_paged_in_the_order_of_names() {
    let bench =
        check(&[("group ab", "entry 1"), ("group b", "entry 2"), ("group aa", "entry 3"), ("group a", "entry 4")]);
    let names = |prefix: &str, after: &str| {
        bench.engine.groups_with_prefix(prefix, after).map(|group| group.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("", ""), "a aa ab b");
    assert_eq!(names("", "aa"), "ab b");
    assert_eq!(names("a", ""), "a aa ab");
    assert_eq!(names("aa", "b"), "");
    assert_eq!(groups(&bench.engine), "4 a:, 3 aa:, 1 ab:, 2 b:");
}

/// A home and a copy of two shards, with topics `a` and `b` and group `g` of `a`.
fn home_and_copy() -> (Bench, Bench) {
    let mut home = Bench::empty(HOME_OF_TWO);
    for request in ["topic a 4", "topic b 4", "group g 1"] {
        ask(&mut home, request);
        home.harden();
    }
    while home.engine.next_catalogue_effect().is_some() {}
    let mut engine = Engine::new(COPY);
    engine.install_catalogue(home.engine.catalogue_snapshot());
    engine.recovered(LogPosition(4096));
    (home, Bench { engine, ..Bench::empty(COPY) })
}

/// What `requests` at home tell, one after the other.
fn told(home: &mut Bench, requests: &[&str]) -> Vec<CatalogueState> {
    for request in requests {
        assert!(ask(home, request).starts_with("entry"), "{request}");
        home.harden();
    }
    std::iter::from_fn(|| home.engine.next_catalogue_effect()).collect()
}

#[test]
fn a_copy_follows_its_home() {
    let (mut home, mut copy) = home_and_copy();
    assert_eq!(groups(&copy.engine), "3 g: 1");
    for state in told(&mut home, &["group g 2", "group h 1 2", "no-topic a", "no-group h"]) {
        copy.engine.catalogue_changed(&state);
    }
    assert_eq!(groups(&copy.engine), "3 g: 2");
    assert_eq!(groups(&copy.engine), groups(&home.engine));
    assert_eq!(copy.engine.group(GroupId(4)), GroupState::Deleted(GroupId(4)));
    assert_eq!(copy.engine.highest_id(), home.engine.highest_id());
}

#[test]
fn late_news_bring_back_neither_groups_nor_topics() {
    let (mut home, mut copy) = home_and_copy();
    let mut news = vec![home.engine.group(GroupId(3)).into()];
    news.extend(told(&mut home, &["group g 2", "group h 2", "no-topic a", "no-group h"]));
    for state in news.iter().chain(news.iter().rev()) {
        copy.engine.catalogue_changed(state);
    }
    assert_eq!(groups(&copy.engine), "3 g: 2");
    copy.engine.catalogue_changed(&GroupState::Unknown(GroupId(3)).into());
    assert_eq!(groups(&copy.engine), groups(&home.engine));
}

#[test]
fn a_copy_asks_shard_0_before_it_says_that_something_is_unknown() {
    let (mut home, mut copy) = home_and_copy();
    let queue = (0..4).map(QueueId).find(|&queue| copy.engine.look_up(TOPIC, queue, StartAt::Latest).is_ok());
    let queue = queue.expect("half of the queues are the copy's");
    let ask_home = |about, otherwise| Some(Refusal::AskHome { about, otherwise });
    let place = |copy: &Bench, group, topic| copy.engine.group_place(GroupId(group), TopicId(topic), queue).err();
    assert_eq!(place(&copy, 3, 1), None);
    assert_eq!(place(&copy, 9, 1), ask_home(CatalogueId::Group(GroupId(9)), ErrorCode::UnknownGroup));
    assert_eq!(place(&copy, 3, 9), ask_home(CatalogueId::Topic(TopicId(9)), ErrorCode::UnknownTopic));
    let queue_of_b = (0..4).map(QueueId).find(|&queue| copy.engine.look_up(TopicId(2), queue, StartAt::Latest).is_ok());
    let queue = queue_of_b.expect("half of the queues are the copy's");
    let place = |copy: &Bench| copy.engine.group_place(GroupId(3), TopicId(2), queue).err();
    assert_eq!(place(&copy), ask_home(CatalogueId::Group(GroupId(3)), ErrorCode::InvalidArgument));
    ask(&mut home, "group g 2");
    home.harden();
    copy.engine.catalogue_changed(&home.engine.catalogue_state(CatalogueId::Group(GroupId(3))));
    assert_eq!(place(&copy), None);
    assert_eq!(copy.engine.decide_create_group("h", &[], copy.now), Err(Refusal::WrongShard(HOME)));
}

#[test]
fn a_change_that_cannot_follow_is_refused_whole() {
    let mut bench = check(&[("topic a 1", "entry 1"), ("topic b 1", "entry 2"), ("group g 1", "entry 3")]);
    let draft = match bench.engine.decide_create_group("h", &[(TOPIC, StartAt::Earliest)], bench.now) {
        Ok(CatalogueDecision::Append { draft, .. }) => draft,
        other => panic!("{other:?}"),
    };
    let group = bench.engine.group_named("g").expect("it was made").clone();
    let is = |group: Group| GroupChange::Is(group);
    let with = |topics: &[u64]| {
        let topics = topics.iter().map(|&topic| (TopicId(topic), GroupStart::Earliest)).collect();
        Group { topics, ..group.clone() }
    };
    let other = Group { id: GroupId(4), name: "h".into(), ..group.clone() };
    let before = bench.engine.digest();
    for (change, object) in [
        (is(Group { id: GroupId(3), ..other.clone() }), 3),
        (is(Group { id: GroupId(2), ..other.clone() }), 2),
        (is(Group { id: GroupId(4), ..group.clone() }), 4),
        (is(Group { topics: with(&[9]).topics, ..other.clone() }), 4),
        (is(with(&[2])), 3),
        (is(Group { created: Nanos(1), ..group.clone() }), 3),
        (is(other.clone()), 5),
        (GroupChange::Deleted { group: GroupId(4), name: "g".to_owned() }, 4),
        (GroupChange::Deleted { group: GroupId(4), name: "h".to_owned() }, 4),
    ] {
        let header = EntryDraft { topic: TopicId(object), ..draft }.at(bench.end, bench.epoch);
        assert!(bench.engine.apply(&header, &change.encode()).is_err(), "{change:?}");
        assert_eq!(bench.engine.digest(), before);
    }
    for (change, object) in [(is(other), 4), (is(with(&[1, 2])), 3)] {
        let header = EntryDraft { topic: TopicId(object), ..draft }.at(bench.end, bench.epoch);
        assert!(bench.engine.apply(&header, &change.encode()).is_ok(), "{change:?}");
    }
}

/// A home's log without the entries of these numbers: the groups that are left.
#[track_caller]
fn check_hole(requests: &[&str], lost: &[usize], expected: &str) {
    let mut bench = Bench::empty(ONE_SHARD);
    for request in requests {
        ask(&mut bench, request);
        bench.harden();
    }
    let mut engine = Engine::new(ONE_SHARD);
    for (number, (header, payload)) in bench.log.iter().enumerate() {
        if lost.contains(&number) {
            engine.accept_hole(&extent_of(header));
        } else {
            engine.apply(header, payload).expect("a hole was accepted");
        }
    }
    assert_eq!(groups(&engine), expected, "{requests:?} without {lost:?}");
    assert_eq!(engine.highest_id(), bench.engine.highest_id());
}

#[test]
fn changes_behind_an_accepted_hole_count_by_themselves() {
    let requests = ["topic a 1", "group g 1", "topic b 1", "group g 3", "no-group g", "group g 3"];
    check_hole(&requests[..4], &[1], "2 g: 1 3");
    check_hole(&requests[..4], &[0, 1], "2 g: 1 3");
    check_hole(&requests[..5], &[1, 3], "");
    check_hole(&requests, &[4], "4 g: 3");
    check_hole(&requests, &[2, 4], "4 g: 3");
}

/// With 16 topics of 65,536 queues each, one assignment held up its executor for two seconds, and with 64 the watchdog would have
/// ended the broker.
#[test]
fn a_group_does_not_grow_beyond_what_one_assignment_bears() {
    let mut bench = check(&[
        ("topic large 65536", "entry 1"),
        ("topic small 1", "entry 2"),
        ("topic half 32768", "entry 3"),
        ("group full 1", "entry 4"),
        ("group full 2", "LimitReached"),
        ("group both 2 3", "entry 5"),
    ]);
    let alter = |bench: &Bench, name, queues| bench.engine.decide_alter(name, Some(queues), None, bench.now).map(drop);
    assert_eq!(alter(&bench, "half", 65_536), Err(Refusal::LimitReached("queues of a group")));
    assert_eq!(alter(&bench, "half", 65_535), Ok(()));
    assert_eq!(ask(&mut bench, "no-group both"), "entry 5");
    bench.harden();
    assert_eq!(alter(&bench, "half", 65_536), Ok(()));
}

/// Changes of one turn were each compared with what was durable: together they made groups of millions of queues.
#[test]
fn what_groups_grow_by_counts_before_it_is_durable() {
    let made = [("topic a 30000", "entry 1"), ("topic b 30000", "entry 2"), ("group g 1 2", "entry 3")];
    let mut bench = check(&made);
    let alter = |bench: &Bench, name| bench.engine.decide_alter(name, Some(33_000), None, bench.now);
    bench.change(alter(&bench, "a"));
    let end = bench.end;
    assert!(matches!(alter(&bench, "b"), Ok(CatalogueDecision::After(after)) if after == end));
    let small = bench.engine.decide_alter("b", Some(30_001), None, bench.now);
    assert!(matches!(small, Ok(CatalogueDecision::Append { .. })), "what fits in any case does not wait");
    bench.harden();
    assert_eq!(alter(&bench, "b").map(drop), Err(Refusal::LimitReached("queues of a group")));

    let mut bench = check(&made);
    bench.change(alter(&bench, "a"));
    let end = bench.end;
    let topics = [(TopicId(1), StartAt::Earliest), (TopicId(2), StartAt::Earliest)];
    let fits = bench.engine.decide_create_group("h", &topics, bench.now);
    assert!(matches!(fits, Ok(CatalogueDecision::Append { .. })));
    bench.change(fits);
    let more = bench.engine.decide_alter("b", Some(40_000), None, bench.now);
    assert!(matches!(more, Err(Refusal::LimitReached(_)) | Ok(CatalogueDecision::After(_))), "{more:?}");
    assert!(bench.end > end);
}
