//! Checkpoints where `--accept-loss` gave something up.

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::QueueOffset;

use super::world::{World, options};
use super::*;

/// A checkpoint that knows three batches of two messages, of which the log lost one behind the checkpoint's begin: where the
/// queue starts for a reader, and the offsets of the batches that it finds.
#[track_caller]
fn check_lost(lost: usize, expected: (u64, [u64; 2])) {
    let mut bench = Bench::new(2);
    let mut left = 3;
    let (sections, _) = save(&mut bench, 1, |bench| {
        if left > 0 {
            bench.store(0, 2, Synced);
            left -= 1;
        }
    });
    bench.harden();
    let mut engine = put_back(ONE_SHARD, None, &sections);
    engine.restore_end().expect("it is whole");
    assert_eq!(engine.queues.by_key(QueueKey { topic: TOPIC, queue: QueueId(0) }).map(|queue| queue.end.0), Some(6));
    for (number, (header, payload)) in bench.log[1..].iter().enumerate() {
        if number == lost {
            engine.accept_hole(&extent_of(header));
        } else {
            engine.apply(header, payload).expect("a hole was accepted");
        }
    }
    engine.recovered(bench.end);
    let mut batches = Vec::new();
    let limits = FetchLimits { messages: 100, bytes: 1 << 20, batches: 10 };
    let place =
        engine.fetch(TOPIC, QueueId(0), StartAt::Earliest, limits, None, &mut batches).expect("the queue is there");
    let offsets: Vec<u64> = batches.iter().map(|batch| batch.base_offset.0).collect();
    assert_eq!((place.first, offsets.as_slice()), (QueueOffset(expected.0), &expected.1[..]));
    assert_eq!(place.end, QueueOffset(6), "what was lost is not given again");
    bench.engine = engine;
    assert_eq!(bench.store(0, 1, Synced).base_offset, QueueOffset(6));
    assert_eq!(
        bench.engine.queues.by_key(QueueKey { topic: TOPIC, queue: QueueId(0) }).map(|q| q.index.iter().count()),
        Some(3)
    );
}

#[test]
fn a_batch_that_the_log_lost_is_not_looked_for_though_a_checkpoint_knew_it() {
    check_lost(0, (2, [2, 4]));
    check_lost(1, (0, [0, 4]));
    check_lost(2, (0, [0, 2]));
}

#[test]
fn a_topic_has_the_queues_that_a_checkpoint_knows_though_their_alteration_is_lost() {
    let mut bench = Bench::new(1);
    let mut number = 0;
    let (sections, _) = save(&mut bench, 1, |bench| {
        number += 1;
        if number == 3 {
            bench.change(bench.engine.decide_alter("t", Some(4), None, bench.now));
            bench.harden();
            bench.store(2, 1, Synced);
        }
    });
    let mut engine = put_back(ONE_SHARD, None, &sections);
    engine.restore_end().expect("it is whole");
    assert_eq!(engine.topic_named("t").map(|topic| topic.queues), Some(1), "it was saved before");
    engine.accept_hole(&(engine.applied()..bench.end));
    engine.recovered(bench.end);
    assert_eq!(engine.topic_named("t").map(|topic| topic.queues), Some(3));
    assert_eq!(engine.look_up(TOPIC, QueueId(2), StartAt::Latest).map(|place| place.end.0), Ok(1));
}

#[test]
fn a_lossy_catalogue_stays_one() {
    let mut bench = Bench::new(1);
    bench.engine = Engine::new(ONE_SHARD);
    bench.engine.accept_hole(&extent_of(&bench.log[0].0));
    bench.engine.recovered(bench.end);
    let stranger = EntryHeader { topic: TopicId(9), ..bench.log[0].0 };
    bench.create("u", 1);
    let (sections, begin) = save(&mut bench, 1000, |_| {});
    let mut engine = restore(ONE_SHARD, None, &sections, &[]);
    let draft = EntryDraft { record_count: 1, ..EntryDraft::without_records(EntryKind::Batch, &[], bench.now) };
    let header = EntryHeader { topic: stranger.topic, ..draft.at(begin, bench.epoch) };
    assert_eq!(engine.apply(&header, &[]), Ok(Applied::Skipped), "its creation may have been lost");
    assert_eq!(engine.highest_id(), ObjectId(9));
}

/// The topic goes while the second shard is between the begin of its save and the topic's queue, which therefore is not saved; then
/// shard 0 loses the deletion, so that the topic lives again, and with it the entries behind the begin.
#[test]
fn a_queue_that_went_while_it_was_to_be_saved_lives_again_where_its_deletion_was_lost() {
    let mut world = World::new();
    world.change(|engine, now| engine.decide_create("a", 4, TopicRetention::default(), now));
    world.harden(0, 1);
    world.change(|engine, now| engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], now));
    world.harden(0, 1);
    world.tell(2);
    let [home, copy] = [0, 1].map(|shard| &world.members[shard].bench.engine);
    let mine = |queue: &u32| copy.look_up(TOPIC, QueueId(*queue), StartAt::Latest).is_ok();
    let key = QueueKey { topic: TOPIC, queue: QueueId((0..4).find(mine).expect("one of four")) };
    let group = home.group_named("g").expect("it was made").id;

    world.store(1, key, 5, 0, false);
    world.save(1, 1);
    world.store(1, key, 1, 0, false);
    let copy = &world.members[1].bench;
    let ack = GroupAck {
        group,
        topic: key.topic,
        queue: key.queue,
        epoch: Epoch::ANY,
        offset: QueueOffset(9),
        delivered_end: QueueOffset(9),
    };
    let Ok(AckDecision::Append(entry)) = copy.engine.decide_ack(&ack, copy.now) else { panic!("it goes on") };
    world.move_places(1, vec![(key, entry)]);
    world.change(|engine, now| engine.decide_delete("a", None, now));
    world.harden(0, 1);
    world.tell(1);
    world.save(1, usize::MAX);

    let [home, copy] = &world.members;
    let (deletion, before) = home.bench.log.split_last().expect("three changes");
    let mut lossy = replay(options(0), before);
    lossy.accept_hole(&extent_of(&deletion.0));
    let saved = copy.saved.last().expect("it is whole");
    let engine = restore(options(1), Some(lossy.catalogue_snapshot()), &saved.sections, &copy.bench.log);
    let queue = engine.queues.by_key(key).expect("it lives again");
    assert_eq!((queue.start.0, queue.end.0), (9, 10), "with what the log has of it behind the begin");
    assert_eq!(queue.groups.get(group).map(|place| place.offset.0), Some(9));
}

/// Shard 0's log was moved away and another had begun in its place: a shard whose checkpoint holds no queue any more, since its
/// topics were deleted, started beside it.
#[test]
fn a_checkpoint_that_has_seen_ids_which_shard_0_does_not_know_is_refused() {
    let mut home = Bench::new(1);
    home.change(home.engine.decide_delete("t", None, home.now));
    home.harden();
    let mut copy = Engine::new(options(1));
    copy.install_catalogue(home.engine.catalogue_snapshot());
    copy.recovered(LogPosition(0));
    let (mut save, mut section) = (copy.begin_checkpoint(), Vec::new());
    assert!(copy.save_slice(&mut save, &mut section, usize::MAX));
    let restored = |catalogue| put_back(options(1), Some(catalogue), std::slice::from_ref(&section)).restore_end();
    assert_eq!(restored(home.engine.catalogue_snapshot()), Ok(()));
    let seen = home.engine.highest_id().0;
    assert_eq!(restored(CatalogueSnapshot::default()), Err(RestoreError::HomeGone { seen, known: 0 }));
}
