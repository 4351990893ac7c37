//! `GroupOffsets` entries as a log may hold them: what cannot follow is damage, what belongs to something gone is skipped, what
//! an accepted hole tore counts as far as it can. And what all this costs in memory.

use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{GroupId, QueueOffset};

use super::offsets::GROUP;
use super::*;
use crate::engine::group::OffsetRow;

/// A row of queue 0 of the bench's topic.
fn row(group: u64, topic: u64, epoch: u64, offset: u64) -> OffsetRow {
    let queue = QueueKey { topic: TopicId(topic), queue: QueueId(0) };
    OffsetRow { group: GroupId(group), queue, reset: false, epoch: Epoch(epoch), offset: QueueOffset(offset) }
}

impl Bench {
    fn entry_of(&self, row: &OffsetRow) -> (EntryHeader, Vec<u8>) {
        let entry = row.entry(Memory, self.now);
        (entry.draft.at(self.end, self.epoch), entry.payload.to_vec())
    }
}

fn place_in(engine: &Engine, group: GroupId) -> Option<(u64, u64)> {
    let queue = engine.queues.by_key(QueueKey { topic: TOPIC, queue: QueueId(0) })?;
    queue.groups.get(group).map(|place| (place.epoch.0, place.offset.0))
}

/// Ten messages in queue 0, of which the group has acknowledged five; in a second epoch five more.
fn half_read() -> Bench {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.store(0, 10, Synced);
    let (header, payload) = bench.entry_of(&row(2, 1, 1, 5));
    bench.engine.apply(&header, &payload).expect("it fits");
    bench.end = header.end();
    bench.log.push((header, payload));
    bench.restart(bench.end);
    bench.store(0, 5, Synced);
    bench
}

#[test]
fn an_entry_that_cannot_follow_is_refused_whole() {
    let mut bench = half_read();
    let before = bench.engine.digest();
    let elsewhere = QueueKey { topic: TOPIC, queue: QueueId(1) };
    for bad in [
        row(2, 1, 1, 4),
        row(2, 1, 2, 16),
        row(2, 1, 1, 11),
        row(2, 1, 3, 6),
        OffsetRow { reset: true, ..row(2, 1, 2, 16) },
        OffsetRow { queue: elsewhere, ..row(2, 1, 0, 0) },
        row(9, 1, 1, 6),
        row(2, 9, 1, 6),
    ] {
        let (header, payload) = bench.entry_of(&bad);
        assert!(bench.engine.apply(&header, &payload).is_err(), "{bad:?}");
        assert_eq!(bench.engine.digest(), before, "{bad:?}");
    }
    for good in [row(2, 1, 1, 5), row(2, 1, 1, 10), row(2, 1, 2, 15), OffsetRow { reset: true, ..row(2, 1, 0, 0) }] {
        let (header, payload) = bench.entry_of(&good);
        assert_eq!(bench.engine.apply(&header, &payload), Ok(Applied::GroupOffsets), "{good:?}");
        assert_eq!(place_in(&bench.engine, GROUP), Some((good.epoch.0, good.offset.0)));
    }
}

#[test]
fn a_payload_that_is_no_group_offsets_is_an_error_and_no_panic() {
    let mut bench = half_read();
    let (header, payload) = bench.entry_of(&row(2, 1, 1, 6));
    assert_eq!(header.kind, EntryKind::GroupOffsets);
    for cut in 0..payload.len() {
        let error = bench.engine.apply(&header, &payload[..cut]).expect_err("it is cut");
        assert_eq!(error.reason, ApplyErrorReason::OffsetsFormat(OffsetsError::Length(cut)));
    }
}

#[test]
fn places_of_what_was_deleted_are_skipped_and_of_what_never_was_are_damage() {
    let mut bench = half_read();
    bench.create("u", 1);
    bench.create_group("h", &[(TopicId(3), StartAt::Earliest)]);
    bench.change(bench.engine.decide_delete("u", None, bench.now));
    bench.change(bench.engine.decide_delete_group("g", None, bench.now));
    bench.harden();
    let before = bench.engine.digest();
    for gone in [row(2, 1, 1, 6), row(4, 3, 1, 6)] {
        let (header, payload) = bench.entry_of(&gone);
        assert_eq!(bench.engine.apply(&header, &payload), Ok(Applied::GroupOffsets));
        assert_eq!(bench.engine.digest(), before, "{gone:?}");
    }
    assert_eq!(bench.engine.counts().group_places, 0);
    let (header, payload) = bench.entry_of(&row(7, 1, 1, 6));
    let error = bench.engine.apply(&header, &payload).expect_err("damage");
    assert_eq!(error.reason, ApplyErrorReason::UnknownGroup(GroupId(7)));
    assert_eq!(bench.engine.highest_id(), ObjectId(7), "its id is not given again");
}

/// The log of [`half_read`] (topic, group, ten messages, place 5, five messages) and `last` without the entries `lost`: the
/// group's place.
#[track_caller]
fn check_hole(last: &OffsetRow, lost: &[usize], expected: Option<(u64, u64)>) {
    let bench = half_read();
    let mut engine = Engine::new(ONE_SHARD);
    let entries = bench.log.iter().cloned().chain([bench.entry_of(last)]);
    for (number, (header, payload)) in entries.enumerate() {
        if lost.contains(&number) {
            engine.accept_hole(&extent_of(&header));
        } else {
            engine.apply(&header, &payload).expect("a hole was accepted");
        }
    }
    assert_eq!(place_in(&engine, GROUP), expected, "{last:?} without {lost:?}");
}

#[test]
fn places_behind_an_accepted_hole_count_as_far_as_the_queue_goes() {
    check_hole(&row(2, 1, 2, 12), &[], Some((2, 12)));
    check_hole(&row(2, 1, 2, 12), &[3], Some((2, 12)));
    check_hole(&row(2, 1, 2, 12), &[4], Some((1, 10)));
    check_hole(&row(2, 1, 2, 12), &[2, 4], Some((0, 0)));
    check_hole(&row(2, 1, 1, 10), &[2, 3], Some((1, 10)));
    check_hole(&row(2, 1, 2, 12), &[1], None);
    check_hole(&row(2, 1, 2, 12), &[0], None);
}

#[test]
fn behind_an_accepted_hole_that_took_a_reset_a_place_may_go_back() {
    let mut bench = half_read();
    bench.store(0, 1, Synced);
    let mut engine = replay(ONE_SHARD, &bench.log[..5]);
    engine.accept_hole(&extent_of(&bench.log[5].0));
    let (header, payload) = bench.entry_of(&row(2, 1, 1, 3));
    assert_eq!(engine.apply(&header, &payload), Ok(Applied::GroupOffsets));
    assert_eq!(place_in(&engine, GROUP), Some((1, 3)));
}

#[test]
fn ten_thousand_idle_groups_of_eight_queues_take_less_than_a_kibibyte_each() {
    const GROUPS: u64 = 10_000;
    let mut bench = Bench::new(8);
    for group in 0..GROUPS {
        let name = format!("group-with-a-name-of-some-length-{group}");
        bench.change(bench.engine.decide_create_group(&name, &[(TOPIC, StartAt::Earliest)], bench.now));
        bench.harden();
        for queue in 0..8 {
            let entry = bench.begin(GroupId(group + 2), TOPIC, QueueId(queue)).expect("it has no place yet");
            bench.append_offset(&entry);
        }
        bench.log.clear();
        bench.engine.effects.clear();
    }
    let places: usize = bench.engine.queues.iter().map(|queue| queue.groups.heap_bytes()).sum();
    let (registry, lists) = (bench.engine.catalogue.groups().bytes(), bench.engine.group_queues.bytes());
    let per_place = places / (8 * GROUPS as usize);
    let per_group = (places + registry + lists) / GROUPS as usize;
    assert!(per_place <= 48, "{per_place} bytes a place");
    assert!(per_group <= 1024, "{per_group} bytes a group: places {places}, registry {registry}, lists {lists}");
}
