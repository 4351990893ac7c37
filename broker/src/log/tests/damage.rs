//! Damage is named, never taken for the end; accepted once, it is not asked about again.

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{Epoch, LogPosition, QueueId, QueueOffset, TopicId};
use peregrine_protocol::limits::RING_MAX;

use super::bench::{Bench, RING};
use crate::log::damage::{Damage, Extent, LostOffsets};
use crate::log::disk::simulated::Crash;
use crate::log::disk::{Access, Disk, DiskFile};
use crate::log::log::Appended;
use crate::log::{RingFate, RingUnfit, StartError};

/// Ten entries, each flushed on its own, then a stop of the given kind.
pub(super) fn ten(bench: &Bench, crash: Option<Crash>) -> (Vec<Appended>, String, LogPosition) {
    let mut process = bench.start();
    let mut places = Vec::new();
    for number in 0..10 {
        places.push(process.append(number, Synced, 500).unwrap());
        process.wait_durable();
    }
    let (name, base) = (format!("{:020}-{:010}", process.report.base.0, process.report.epoch.0), process.report.base);
    match crash {
        Some(crash) => bench.crash(process, crash),
        None => process.close().unwrap(),
    }
    (places, name, base)
}

pub(super) fn damage(bench: &Bench) -> Damage {
    match bench.try_start() {
        Err(StartError::Damage(damage)) => *damage,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the damage was passed over"),
    }
}

#[test]
fn a_flipped_bit_below_durable_is_damage_after_any_stop() {
    for crash in [None, Some(Crash::Kill), Some(Crash::Power)] {
        for in_header in [true, false] {
            let bench = Bench::new();
            let (places, name, base) = ten(&bench, crash);
            let entry = places[4];
            bench.flip(&name, base, entry.position + if in_header { 30 } else { 200 });
            let damage = damage(&bench);
            // The pad behind the entry is good.
            let extents: Vec<_> = damage.extents.iter().map(|damaged| damaged.extent).collect();
            assert_eq!(extents, [Extent { from: entry.position, to: entry.end }], "{damage}");
            let lost = LostOffsets { topic: TopicId(1), queue: QueueId(0), from: QueueOffset(4), to: QueueOffset(5) };
            assert_eq!(damage.queues, [lost]);

            let process = bench.try_start_with(|options| options.accept_loss = true).map_err(|_| ()).unwrap();
            assert_eq!(process.seen.numbers, [0, 1, 2, 3, 5, 6, 7, 8, 9]);
            assert_eq!(process.report.accepted.len(), 1);
            bench.crash(process, Crash::Power);
            let mut process = bench.start();
            assert_eq!(process.seen.numbers, [0, 1, 2, 3, 5, 6, 7, 8, 9], "not asked again");
            process.append_all(10..12, Synced, 500);
            process.close().unwrap();
            assert_eq!(bench.start().seen.numbers, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]);
        }
    }
}

#[test]
fn a_flip_in_the_last_flush_after_a_power_cut_is_a_torn_tail() {
    let bench = Bench::new();
    let (places, name, base) = ten(&bench, Some(Crash::Power));
    bench.flip(&name, base, places[9].position + 200);
    let process = bench.start();
    assert_eq!(process.seen.numbers, (0..9).collect::<Vec<_>>());
    assert_eq!(process.report.cut, places[9].position);
}

#[test]
fn a_flip_in_the_ring_is_damage() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.faults.hold_flushes(true);
    process.append_all(0..10, Memory, 500);
    bench.crash(process, Crash::Kill);
    assert!(bench.machine.rings().meddle(RING, |file| file[4096 + 640 + 200] ^= 1));
    let damage = damage(&bench);
    assert_eq!(damage.extents.len(), 1);
    assert!(damage.extents[0].reason.contains("in the staging ring"), "{damage}");
    let process = bench.try_start_with(|options| options.accept_loss = true).map_err(|_| ()).unwrap();
    assert_eq!(process.seen.numbers, [0, 2, 3, 4, 5, 6, 7, 8, 9]);
    bench.crash(process, Crash::Kill);
    assert_eq!(bench.start().seen.numbers, [0, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_bad_identity_and_a_missing_segment_are_damage() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..200, Synced, 50_000);
    process.wait_durable();
    assert!(process.log.counters().rolls >= 2);
    bench.crash(process, Crash::Power);
    let mut names = bench.names();
    names.retain(|name| name.len() == 31);
    let middle = names[1].clone();
    let base = LogPosition(middle[..20].parse().unwrap());
    bench.flip_at(&middle, 70);
    let found = damage(&bench);
    assert_eq!(found.files.len(), 1, "{found}");
    bench.machine.block_on(bench.machine.disk(0).remove(&middle)).unwrap();
    let found = damage(&bench);
    assert_eq!((found.extents[0].extent.from, found.queues.len()), (base, 1), "{found}");
    let process = bench.try_start_with(|options| options.accept_loss = true).map_err(|_| ()).unwrap();
    assert!(process.seen.numbers.len() < 200 && process.seen.numbers.ends_with(&[199]));
    let kept = process.seen.numbers.clone();
    process.close().unwrap();
    assert_eq!(bench.start().seen.numbers, kept);
}

#[test]
fn a_log_that_is_gone_but_for_its_mark_is_damage() {
    let bench = Bench::new();
    let (_, name, _) = ten(&bench, None);
    bench.machine.block_on(async {
        let disk = bench.machine.disk(0);
        for name in disk.list().await.unwrap().into_iter().filter(|other| other.len() == name.len()) {
            disk.remove(&name).await.unwrap();
        }
    });
    let damage = damage(&bench);
    assert_eq!(damage.extents[0].extent.from, LogPosition(0));
}

/// A start that found no log took the ring for its own and cleared it: when the log was brought back, what stood only in the ring
/// was lost, without a word.
#[test]
fn a_log_that_was_moved_away_finds_its_ring_when_it_comes_back() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..3, Synced, 500);
    process.wait_durable();
    process.faults.hold_flushes(true);
    process.append_all(3..10, Memory, 500);
    let epoch = process.report.epoch;
    bench.crash(process, Crash::Kill);
    bench.machine.move_away(0);
    match bench.try_start() {
        Err(StartError::Ring { epoch: of, reason, .. }) => assert_eq!((of, reason), (epoch, RingUnfit::LogGone)),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the start took the ring"),
    }
    bench.machine.bring_back(0);
    let process = bench.start();
    assert_eq!(process.seen.numbers, (0..10).collect::<Vec<_>>());
    bench.crash(process, Crash::Kill);

    // Who knows that the log is not to come back gives up its ring.
    bench.machine.move_away(0);
    assert!(bench.try_start_with(|options| options.discard_ring = Some(epoch)).is_err(), "another run's ring");
    let process = bench.try_start_with(|options| options.discard_ring = Some(Epoch(epoch.0 + 1)));
    let process = process.map_err(|error| error.to_string()).unwrap();
    assert_eq!((process.seen.numbers.len(), process.report.ring), (0, RingFate::Discarded));
    process.close().unwrap();
}

/// The engine was told of the hole by the start that met it and by no later one, where the hole was the log's end: a topic that
/// was lost with it was then damage to every other shard, which no flag could get past.
#[test]
fn a_loss_at_the_log_s_end_is_told_to_every_later_start() {
    let bench = Bench::new();
    let (_, name, _) = ten(&bench, None);
    bench.machine.block_on(bench.machine.disk(0).remove(&name)).unwrap();
    let process = bench.try_start_with(|options| options.accept_loss = true).map_err(|_| ()).unwrap();
    let lost = process.seen.lost.clone();
    assert_eq!((process.seen.numbers.len(), lost.len()), (0, 1));
    process.close().unwrap();
    for _ in 0..2 {
        let process = bench.start();
        assert_eq!(process.seen.lost, lost);
        process.close().unwrap();
    }
}

/// A file whose identity is bad stayed where it was, so that each later start asked for its loss to be accepted once more.
#[test]
fn a_bad_identity_is_accepted_once() {
    for (newest, unreadable) in [(false, false), (true, false), (false, true), (true, true)] {
        let bench = Bench::new();
        let mut process = bench.start();
        process.append_all(0..200, Synced, 50_000);
        process.wait_durable();
        let highest = process.log.published();
        bench.crash(process, Crash::Power);
        let mut names = bench.names();
        names.retain(|name| name.len() == 31);
        let bad = if newest { names[names.len() - 1].clone() } else { names[1].clone() };
        if unreadable {
            bench.machine.set_readable(0, &bad, 0, false);
        } else {
            bench.flip_at(&bad, 70);
        }
        assert_eq!(damage(&bench).files[0].0, format!("segment {bad}"));
        let size = bench.machine.block_on(bench.machine.disk(0).open(&bad, Access::Read)).unwrap().size();
        let bad_end = LogPosition(bad[..20].parse::<u64>().unwrap() + size);
        let epoch = Epoch(bad[21..].parse().unwrap());
        let accepting = bench.try_start_with(|options| {
            options.accept_loss = true;
            options.discard_ring = newest.then_some(epoch);
        });
        let mut process = accepting.map_err(|error| error.to_string()).unwrap();
        assert!(process.report.base > highest, "no position is used twice");
        assert!(process.report.base - bad_end > RING_MAX, "the bad segment may have been full");
        assert!(bench.names().contains(&format!("damaged-{bad}")) && !bench.names().contains(&bad));
        let mut kept = process.seen.numbers.clone();
        process.append_all(200..201, Synced, 500);
        kept.push(200);
        process.close().unwrap();
        assert_eq!(bench.start().seen.numbers, kept);
    }
}
