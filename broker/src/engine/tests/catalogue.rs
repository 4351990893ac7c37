//! What changes the catalogue, when it takes effect, and how the other shards follow.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel::Synced;

use super::*;

const COPY: EngineOptions = EngineOptions { shard: ShardId(1), shards: 2, ..ONE_SHARD };
const HOME_OF_TWO: EngineOptions = EngineOptions { shard: HOME, ..COPY };

/// Asks a bench for one change and says what came of it: the entry's topic, `Done`, `After`, or the refusal.
fn ask(bench: &mut Bench, request: &str) -> String {
    let (verb, rest) = request.split_once(' ').expect("a verb and a name");
    let (name, queues) = rest.split_once(' ').unwrap_or((rest, "0"));
    let queues = queues.parse().expect("a number of queues");
    let decision = match verb {
        "create" => bench.engine.decide_create(name, queues, TopicRetention::default(), bench.now),
        "alter" => bench.engine.decide_alter(name, Some(queues), None, bench.now),
        "delete" => bench.engine.decide_delete(name, None, bench.now),
        other => panic!("{other}"),
    };
    match decision {
        Ok(CatalogueDecision::Append { draft, payload }) => {
            bench.append(&draft, payload);
            format!("topic {}", draft.topic)
        }
        Ok(CatalogueDecision::Done(topic)) => format!("done {}", topic.id),
        Ok(CatalogueDecision::After(end)) => format!("after {}", if end == bench.end { "the end" } else { "another" }),
        Err(refusal) => refusal.code().name().to_owned(),
    }
}

/// Each request, durable before the next one, with what comes of it.
#[track_caller]
fn check(requests: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::empty(ONE_SHARD);
    for (request, expected) in requests {
        assert_eq!(ask(&mut bench, request), *expected, "{request}");
        bench.harden();
    }
    assert_eq!(bench.engine.digest(), replay(ONE_SHARD, &bench.log).digest());
    bench
}

#[test]
fn create_is_idempotent_alter_only_adds_and_ids_are_never_given_twice() {
    let bench = check(&[
        ("create a 4", "topic 1"),
        ("create a 4", "done 1"),
        ("create a 5", "TopicExists"),
        ("create b 1", "topic 2"),
        ("alter a 6", "topic 1"),
        ("alter a 6", "done 1"),
        ("alter a 5", "InvalidArgument"),
        ("alter c 5", "UnknownTopic"),
        ("delete b", "topic 2"),
        ("delete b", "UnknownTopic"),
        ("create b 1", "topic 3"),
        ("create no/slash 1", "InvalidName"),
        ("create c 0", "InvalidArgument"),
        ("create c 65537", "InvalidArgument"),
    ]);
    assert_eq!(bench.engine.topic(TopicId(2)), TopicState::Deleted(TopicId(2)));
    assert_eq!(bench.engine.topic(TopicId(9)), TopicState::Unknown(TopicId(9)));
    let names: Vec<&str> = bench.engine.topics_after(Some("a")).map(|topic| &*topic.name).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(bench.engine.topic_named("a").map(|topic| topic.queues), Some(6));
}

fn keep_for(age: u64) -> TopicRetention {
    TopicRetention { age: Some(Nanos(age)).filter(|age| age.0 > 0) }
}

#[test]
fn a_topic_keeps_its_messages_as_was_said_last() {
    let mut bench = Bench::new(2);
    let age = |bench: &Bench| bench.engine.own_age(TOPIC).map(|(age, _)| age.0);
    for (wanted, expected) in [(5, Some(5)), (9, Some(9)), (0, None), (7, Some(7))] {
        bench.change(bench.engine.decide_alter("t", None, Some(keep_for(wanted)), bench.now));
        assert_ne!(age(&bench), expected, "it is not durable");
        bench.harden();
        assert_eq!(age(&bench), expected);
        assert_eq!(bench.engine.next_retention_news(), Some(TOPIC));
        let again = bench.engine.decide_alter("t", Some(2), Some(keep_for(wanted)), bench.now);
        assert!(matches!(again, Ok(CatalogueDecision::Done(_))), "{again:?}");
    }
    bench.change(bench.engine.decide_alter("t", Some(4), None, bench.now));
    bench.harden();
    assert_eq!(bench.engine.own_age(TOPIC), Some((Nanos(7), 4)), "more queues leave it as it is");
    assert_eq!(bench.engine.next_retention_news(), None);

    let create = |wanted| bench.engine.decide_create("t", 4, keep_for(wanted), bench.now).map(drop);
    assert_eq!((create(0), create(7)), (Ok(()), Ok(())), "who says nothing takes it as it is");
    assert_eq!(create(8), Err(Refusal::TopicExists { queues: 4 }));
    bench.restart(bench.end);
    assert_eq!((age(&bench), bench.engine.next_retention_news()), (Some(7), Some(TOPIC)));
}

#[test]
fn late_news_of_a_retention_change_nothing() {
    let (mut home, mut copy) = home_and_copy();
    let mut states = vec![home.engine.topic(TOPIC)];
    for age in [5, 0, 3] {
        home.change(home.engine.decide_alter("a", None, Some(keep_for(age)), home.now));
        home.harden();
        states.push(home.engine.topic(TOPIC));
    }
    for told in [2, 1, 3, 0, 2, 3, 1] {
        copy.engine.catalogue_changed(&states[told].clone().into());
    }
    assert_eq!(copy.engine.topic(TOPIC), home.engine.topic(TOPIC));
    assert_eq!(copy.engine.own_age(TOPIC), Some((Nanos(3), 4)));
}

#[test]
fn a_change_takes_effect_only_when_it_is_durable() {
    let mut bench = Bench::empty(ONE_SHARD);
    assert_eq!(ask(&mut bench, "create a 4"), "topic 1");
    bench.publish();
    assert_eq!(bench.engine.topic_named("a"), None);
    assert_eq!(bench.engine.topic(TopicId(1)), TopicState::Unknown(TopicId(1)));
    for request in ["create a 4", "create a 5", "alter a 9", "delete a"] {
        assert_eq!(ask(&mut bench, request), "after the end", "{request}");
    }
    assert_eq!(bench.engine.next_catalogue_effect(), None);
    bench.harden();
    let Some(CatalogueState::Topic(TopicState::Live(topic))) = bench.engine.next_catalogue_effect() else {
        panic!("it took effect")
    };
    assert_eq!(bench.engine.topic_named("a"), Some(&topic));
}

#[test]
fn a_poisoned_home_lets_no_change_take_effect() {
    let mut bench = Bench::empty(ONE_SHARD);
    ask(&mut bench, "create a 4");
    bench.engine.on_poisoned();
    bench.harden();
    assert_eq!(bench.engine.topic_named("a"), None);
}

#[test]
fn a_deletion_sent_twice_takes_no_namesake() {
    let bench = check(&[("create a 1", "topic 1"), ("delete a", "topic 1"), ("create a 1", "topic 2")]);
    let delete = |id| bench.engine.decide_delete("a", Some(TopicId(id)), bench.now).err();
    assert_eq!(delete(1), Some(Refusal::TopicDeleted));
    assert_eq!(delete(3), Some(Refusal::UnknownTopic));
    assert_eq!(delete(2), None);
}

#[test]
fn listings_are_paged_in_the_order_of_names() {
    let bench = check(&[
        ("create ab 1", "topic 1"),
        ("create b 1", "topic 2"),
        ("create aa 1", "topic 3"),
        ("create a 1", "topic 4"),
    ]);
    let names = |prefix: &str, after: &str| {
        bench.engine.topics_with_prefix(prefix, after).map(|topic| topic.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("", ""), "a aa ab b");
    assert_eq!(names("", "aa"), "ab b");
    assert_eq!(names("a", ""), "a aa ab");
    assert_eq!(names("aa", "b"), "");
    assert_eq!(names("b", "a"), "b");
}

#[test]
fn altering_keeps_the_instant_of_creation() {
    let mut bench = Bench::empty(ONE_SHARD);
    bench.create("a", 1);
    let created = bench.now;
    bench.now.0 += 1_000;
    ask(&mut bench, "alter a 2");
    bench.harden();
    assert_eq!(bench.engine.topic_named("a").map(|topic| (topic.queues, topic.created)), Some((2, created)));
}

#[test]
fn new_ids_lie_above_those_seen_in_any_shard() {
    let mut bench = Bench::empty(ONE_SHARD);
    bench.engine.raise_id(ObjectId(41));
    assert_eq!(ask(&mut bench, "create a 1"), "topic 42");
}

/// A home and a copy of two shards, with topic `a` of four queues.
fn home_and_copy() -> (Bench, Bench) {
    let mut home = Bench::empty(HOME_OF_TWO);
    home.create("a", 4);
    let mut engine = Engine::new(COPY);
    engine.install_catalogue(home.engine.catalogue_snapshot());
    engine.recovered(LogPosition(4096));
    (home, Bench { engine, ..Bench::empty(COPY) })
}

#[test]
fn a_copy_asks_shard_0_before_it_says_that_something_is_unknown() {
    let (mut home, mut copy) = home_and_copy();
    let mine = (0..4).find(|&queue| copy.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).is_ok()).expect("one");
    let decide = |copy: &Bench, topic: u64, queue: u32| {
        copy.engine.decide_produce(&BatchOffer { topic: TopicId(topic), ..offer(queue) }, copy.now).err()
    };
    let ask_home = |topic, otherwise| Refusal::AskHome { about: CatalogueId::Topic(TopicId(topic)), otherwise };
    assert_eq!(decide(&copy, 1, mine), None);
    assert_eq!(decide(&copy, 1, (mine + 1) % 4), Some(Refusal::WrongShard(HOME)));
    assert_eq!(decide(&copy, 1, mine + 4), Some(ask_home(1, ErrorCode::UnknownQueue)));
    assert_eq!(decide(&copy, 2, mine), Some(ask_home(2, ErrorCode::UnknownTopic)));
    home.change(home.engine.decide_alter("a", Some(8), None, home.now));
    home.harden();
    copy.engine.catalogue_changed(&home.engine.topic(TOPIC).into());
    assert_eq!(decide(&copy, 1, mine + 4), None);

    copy.store(mine, 1, Synced);
    home.change(home.engine.decide_delete("a", None, home.now));
    home.harden();
    let old = copy.engine.topic(TOPIC);
    copy.engine.catalogue_changed(&home.engine.topic(TOPIC).into());
    copy.engine.catalogue_changed(&old.into());
    assert_eq!(decide(&copy, 1, mine), Some(Refusal::TopicDeleted), "late news bring nothing back");
    assert_eq!(copy.engine.counts().queues, 0);
}

#[test]
fn a_copy_skips_what_was_deleted_and_refuses_what_never_was() {
    let (mut home, mut copy) = home_and_copy();
    let mine = (0..4).find(|&queue| copy.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).is_ok()).expect("one");
    let header = copy.store(mine, 1, Synced);
    home.change(home.engine.decide_delete("a", None, home.now));
    home.harden();
    let mut engine = Engine::new(COPY);
    engine.install_catalogue(home.engine.catalogue_snapshot());
    assert_eq!(engine.apply(&header, &[]), Ok(Applied::Skipped));
    let stranger = EntryHeader { topic: TopicId(9), ..header };
    let error = engine.apply(&stranger, &[]).expect_err("damage");
    assert_eq!((error.position, error.reason), (header.position, ApplyErrorReason::UnknownTopic(TopicId(9))));
    assert_eq!(engine.highest_id(), ObjectId(9));
}

#[test]
fn an_entry_that_cannot_follow_is_refused_whole() {
    let mut bench = Bench::new(1);
    let header = bench.store(0, 2, Synced);
    let before = bench.engine.digest();
    let next = EntryHeader { position: header.end(), base_offset: header.end_offset(), ..header };
    for bad in [
        EntryHeader { base_offset: header.base_offset, ..next },
        EntryHeader { base_offset: next.base_offset + 1, ..next },
        EntryHeader { store_time: Nanos(header.store_time.0 - 1), ..next },
        EntryHeader { epoch: Epoch(0), ..next },
        EntryHeader { queue: QueueId(1), ..next },
        EntryHeader { record_count: 0, ..next },
        EntryHeader { flags: EntryFlags::NONE, ..next },
        EntryHeader { producer_id: ProducerId(1), sequence: Sequence(1), ..next },
    ] {
        assert!(bench.engine.apply(&bad, &[]).is_err(), "{bad:?}");
        assert_eq!(bench.engine.digest(), before);
    }
    assert!(bench.engine.apply(&next, &[]).is_ok());
}

#[test]
fn behind_an_accepted_hole_offsets_and_sequences_may_jump() {
    let mut bench = Bench::new(1);
    let mut batches = Vec::new();
    for sequence in 0..4 {
        let offer = BatchOffer { producer_id: ProducerId(5), sequence: Sequence(sequence), ..offer(0) };
        let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&offer, bench.now) else { panic!() };
        batches.push(bench.append(&draft, Vec::new()));
    }
    let mut engine = replay(ONE_SHARD, &bench.log[..2]);
    assert!(engine.apply(&batches[3], &[]).is_err());
    engine.accept_hole(&extent_of(&batches[2]));
    assert_eq!(engine.apply(&batches[3], &[]).map(|_| ()), Ok(()));
    engine.recovered(bench.end);
    let place = engine.look_up(TOPIC, QueueId(0), StartAt::Latest).unwrap();
    assert_eq!((place.visible_end.0, place.first.0), (4, 0));
    let again = BatchOffer { producer_id: ProducerId(5), sequence: Sequence(3), ..offer(0) };
    assert!(matches!(engine.decide_produce(&again, bench.now), Ok(ProduceDecision::Duplicate(_))));
}

/// A home's log without the entries of these numbers: the topics that are left.
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
    let found: Vec<String> =
        engine.topics_after(None).map(|topic| format!("{} {} {}", topic.id, topic.name, topic.queues)).collect();
    assert_eq!(found.join(", "), expected);
    assert_eq!(engine.highest_id(), bench.engine.highest_id());
}

#[test]
fn changes_behind_an_accepted_hole_count_by_themselves() {
    let requests = ["create a 1", "alter a 2", "delete a", "create a 4", "create b 1"];
    check_hole(&requests[..2], &[0], "1 a 2");
    check_hole(&requests[..3], &[0, 1], "");
    check_hole(&requests, &[2], "2 a 4, 3 b 1");
    check_hole(&requests, &[3], "3 b 1");
}

/// Before, the first batch in a queue that a lost alteration had added was damage, and the shard did not start.
#[test]
fn queues_that_a_lost_alteration_added_are_known_by_their_batches() {
    let mut bench = Bench::new(1);
    ask(&mut bench, "alter t 4");
    bench.harden();
    let header = bench.store(2, 1, Synced);
    let mut engine = replay(ONE_SHARD, &bench.log[..1]);
    engine.accept_hole(&extent_of(&bench.log[1].0));
    assert!(matches!(engine.apply(&header, &[]), Ok(Applied::Batch { .. })));
    engine.recovered(bench.end);
    assert_eq!(engine.look_up(TOPIC, QueueId(2), StartAt::Latest).map(|place| place.visible_end.0), Ok(1));
    assert_eq!(engine.topic_named("t").map(|topic| topic.queues), Some(3));
}

#[test]
fn batches_of_a_topic_that_a_hole_took_are_skipped_in_every_shard() {
    let (mut home, mut copy) = home_and_copy();
    let mine = (0..4).find(|&queue| copy.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).is_ok()).expect("one");
    let header = copy.store(mine, 1, Synced);
    let mut lossy = Engine::new(HOME_OF_TWO);
    lossy.accept_hole(&extent_of(&home.log[0].0));
    let mut engine = Engine::new(COPY);
    engine.install_catalogue(lossy.catalogue_snapshot());
    assert_eq!(engine.apply(&header, &[]), Ok(Applied::Skipped));
    lossy.raise_id(engine.highest_id());
    lossy.recovered(LogPosition(4096));
    home.engine = lossy;
    assert_eq!(ask(&mut home, "create a 4"), "topic 2", "the id that was lost is not given again");
}
