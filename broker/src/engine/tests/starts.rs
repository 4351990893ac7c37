//! Starts of queues: what is no longer kept is told to readers, passed over by groups, and stays so over restarts.

use std::sync::Arc;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{MemberId, QueueOffset};

use super::*;
use crate::limits::QUEUES_SURVEYED;

const QUEUE: QueueKey = QueueKey { topic: TOPIC, queue: QueueId(0) };
const CREDIT: Credit = Credit { messages: 1, bytes: 1 };

impl Bench {
    /// The queue keeps its messages from `start` on; whether that moved anything.
    fn keep_from(&mut self, start: u64) -> bool {
        let wanted = [QueueStart { queue: QUEUE, start: QueueOffset(start) }];
        let Some(entry) = self.engine.decide_starts(&wanted, self.now) else { return false };
        self.append(&entry.draft, entry.payload);
        true
    }

    fn first(&self) -> u64 {
        self.engine.look_up(TOPIC, QueueId(0), StartAt::Earliest).expect("the queue exists").offset.0
    }
}

fn at(offset: u64) -> StartAt {
    StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(offset) }
}

#[test]
fn who_asks_for_what_is_no_longer_kept_is_told_the_first_that_is() {
    let mut bench = Bench::new(1);
    for _ in 0..10 {
        bench.store(0, 1, Memory);
    }
    bench.publish();
    assert!(bench.keep_from(4) && !bench.keep_from(4) && !bench.keep_from(3), "a start never goes back");
    let refused = |offset| bench.engine.look_up(TOPIC, QueueId(0), at(offset)).map(|place| place.offset);
    assert_eq!(refused(3), Err(Refusal::OffsetTooOld { first: QueueOffset(4) }));
    assert_eq!((refused(4), bench.first()), (Ok(QueueOffset(4)), 4));
    assert_eq!(
        bench.engine.look_up(TOPIC, QueueId(0), StartAt::Time(Nanos(0))).map(|place| place.offset),
        Ok(QueueOffset(4))
    );
}

#[test]
fn what_no_reader_sees_yet_is_kept() {
    let mut bench = Bench::new(1);
    bench.store(0, 3, Memory);
    bench.publish();
    bench.store(0, 2, Synced);
    bench.publish();
    assert!(bench.keep_from(5));
    assert_eq!(bench.first(), 3);
    bench.harden();
    assert!(bench.keep_from(5), "it is visible");
    assert_eq!((bench.first(), bench.visible(0)), (5, 5));
    bench.store(0, 1, Memory);
    bench.publish();
    assert_eq!((bench.first(), bench.visible(0)), (5, 6));
}

#[test]
fn a_reader_that_is_overtaken_ends() {
    let mut bench = Bench::new(1);
    for _ in 0..4 {
        bench.store(0, 1, Memory);
    }
    bench.publish();
    let me = ReaderOwner(1);
    let (id, _) = bench.engine.subscribe(me, TOPIC, QueueId(0), at(0), CREDIT).expect("the queue exists");
    assert!(matches!(bench.engine.next_delivery(), Some(Delivery::Batch { batch, .. }) if batch.base_offset.0 == 0));
    bench.engine.delivered(id);
    assert!(bench.keep_from(3));
    bench.engine.credit(me, id, CREDIT).expect("it lives");
    let ended = Delivery::Ended { owner: me, subscription: id, code: ErrorCode::OffsetTooOld };
    assert_eq!((bench.engine.next_delivery(), bench.engine.next_delivery()), (Some(ended), None));
}

#[test]
fn a_restart_knows_the_start() {
    let mut bench = Bench::new(1);
    for _ in 0..6 {
        bench.store(0, 1, Memory);
    }
    bench.harden();
    assert!(bench.keep_from(4));
    let digest = bench.engine.digest();
    bench.restart(bench.end);
    assert_eq!((bench.first(), bench.engine.digest()), (4, digest));
}

#[test]
fn a_start_beyond_the_queue_is_damage() {
    let mut bench = Bench::new(1);
    bench.store(0, 3, Memory);
    bench.publish();
    let wanted = [QueueStart { queue: QUEUE, start: QueueOffset(3) }];
    let entry = bench.engine.decide_starts(&wanted, bench.now).expect("it moves");
    let header = entry.draft.at(bench.end, bench.epoch);
    let created = bench.log[..1].to_vec();
    let refused = replay(ONE_SHARD, &created).apply(&header, &entry.payload).map_err(|error| error.reason);
    assert_eq!(refused, Err(ApplyErrorReason::QueueStart(TOPIC, QueueId(0), QueueOffset(3))));
}

/// It was answered as done at once, on the strength of a start that a power cut could still take back.
#[test]
fn an_acknowledgement_below_a_start_is_written_down() {
    let mut bench = Bench::new(1);
    bench.change(bench.engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], bench.now));
    bench.harden();
    for _ in 0..10 {
        bench.store(0, 1, Memory);
    }
    bench.harden();
    let group = bench.engine.group_named("g").expect("it was created").id;
    let entry = bench.begin(group, TOPIC, QueueId(0)).expect("it has no place yet");
    bench.append(&entry.draft, entry.payload.to_vec());
    assert!(bench.keep_from(8));
    let (topic, queue, offset) = (TOPIC, QueueId(0), QueueOffset(5));
    let ack = GroupAck { group, topic, queue, epoch: Epoch::ANY, offset, delivered_end: offset };
    let decision = bench.engine.decide_ack(&ack, bench.now);
    assert!(matches!(decision, Ok(AckDecision::Append(entry)) if entry.offset == offset), "{decision:?}");
}

/// A member that had nothing left to acknowledge was given the time of a drain, and nobody was served meanwhile.
#[test]
fn a_member_is_not_waited_for_whose_messages_are_kept_no_more() {
    let mut bench = Bench::new(1);
    bench.change(bench.engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], bench.now));
    bench.harden();
    while bench.engine.next_catalogue_effect().is_some() {}
    bench.store(0, 1, Memory);
    bench.publish();
    let group = bench.engine.group_named("g").expect("it was created").id;
    let credit = Credit { messages: 10, bytes: 1 << 20 };
    for (number, member) in [(1, 1), (2, 2)] {
        let holders = Assignment::of([(TOPIC, QueueId(0), MemberId(member))]);
        bench.engine.assign(group, number, &Arc::new(holders), &[], Nanos(number));
        let subscribed =
            bench.engine.subscribe_group(ReaderOwner(member), group, MemberId(member), TOPIC, QueueId(0), credit);
        assert!(subscribed.is_ok(), "{subscribed:?}");
        if member == 1 {
            let handed = bench.engine.next_delivery();
            assert!(matches!(handed, Some(Delivery::Batch { .. })), "{handed:?}");
            assert!(bench.keep_from(1));
        } else {
            bench.engine.follow_assignments(&mut Slice::new(u32::MAX));
        }
    }
    let ended = bench.engine.next_delivery();
    assert!(matches!(ended, Some(Delivery::Ended { owner: ReaderOwner(1), .. })), "{ended:?}");
}

/// What a queue keeps behind a damaged segment is the least of what memory and indexes know: neither alone has all of it.
#[test]
fn what_memory_has_behind_a_position_is_known_and_what_it_dropped_stands_below_another() {
    let mut bench = Bench::new(1);
    let positions: Vec<_> = (0..200).map(|_| bench.store(0, 1, Memory).position).collect();
    bench.harden();
    let known = |bench: &Bench| {
        let (queues, next) = bench.engine.keeping_queues(0, positions[100]);
        assert_eq!((queues.len(), next), (1, None));
        (queues[0].held.0, queues[0].dropped_to)
    };
    assert_eq!(known(&bench), (100, LogPosition(0)));
    bench.engine.indexed(positions[150]);
    while bench.engine.drop_indexed(&mut Slice::new(3)) {}
    assert_eq!(known(&bench), (128, positions[128]), "two chunks of 64 are gone");
    bench.engine.indexed(bench.end);
    while bench.engine.drop_indexed(&mut Slice::new(3)) {}
    assert_eq!(known(&bench), (200, positions[199] + 1));
    let last = bench.store(0, 1, Memory).position;
    assert_eq!(known(&bench), (200, last), "what no reader sees yet is held");
    bench.publish();
    assert!(bench.keep_from(201));
    assert_eq!(bench.engine.keeping_queues(0, positions[100]), (Vec::new(), None), "it keeps nothing");
}

#[test]
fn queues_are_surveyed_a_few_at_a_time_and_each_once() {
    let count = 3 * QUEUES_SURVEYED as u32 + 1;
    let mut bench = Bench::new(count);
    for queue in 0..count {
        bench.store(queue, 1, Memory);
    }
    bench.publish();
    let (mut from, mut seen) = (Some(0), Vec::new());
    while let Some(slot) = from {
        let (queues, next) = bench.engine.keeping_queues(slot, LogPosition(0));
        assert!(queues.len() <= QUEUES_SURVEYED);
        seen.extend(queues.iter().map(|queue| queue.queue.queue.0));
        from = next;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}
