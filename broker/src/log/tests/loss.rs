//! What `--accept-loss` gave up is remembered, of whatever kind it was: later starts do not ask again, say so, and never take
//! it back.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, TopicId};
use peregrine_protocol::limits::RING_MAX;

use super::bench::{Bench, Process};
use super::damage::{damage, ten};
use crate::log::damage::{Damage, Extent, LostOffsets};
use crate::log::disk::BLOCK;
use crate::log::disk::simulated::Crash;
use crate::log::fault::RecoveryStep;

const ENDS: [Option<Crash>; 3] = [None, Some(Crash::Kill), Some(Crash::Power)];

fn accept(bench: &Bench) -> Process {
    bench.try_start_with(|options| options.accept_loss = true).map_err(|error| error.to_string()).unwrap()
}

fn extents(damage: &Damage) -> Vec<Extent> {
    damage.extents.iter().map(|damaged| damaged.extent).collect()
}

/// The block behind the one that a position stands in.
fn next_block(position: LogPosition) -> LogPosition {
    LogPosition((position.0 / BLOCK as u64 + 1) * BLOCK as u64)
}

/// The start after the one that accepted asked for the flag again, since the note of the loss stands behind the bad block.
#[test]
fn a_block_that_the_device_cannot_read_is_accepted_once() {
    for end in ENDS {
        let bench = Bench::new();
        let (places, name, base) = ten(&bench, end);
        bench.set_readable(&name, base, places[4].position, false);
        let found = damage(&bench);
        let given_up = [Extent { from: places[4].position, to: places[5].position }];
        assert_eq!(extents(&found), given_up, "{found}");
        assert!(found.to_string().contains("the device cannot read it"), "{found}");
        let lost = LostOffsets { topic: TopicId(1), queue: QueueId(0), from: QueueOffset(4), to: QueueOffset(5) };
        assert_eq!(found.queues, [lost]);

        let process = accept(&bench);
        let kept = [0, 1, 2, 3, 5, 6, 7, 8, 9];
        assert_eq!((&process.seen.numbers[..], process.report.accepted.len()), (&kept[..], 1));
        assert_eq!(process.report.given_up, []);
        bench.crash(process, Crash::Power);
        let process = bench.start();
        assert_eq!((&process.seen.numbers[..], &process.report.given_up[..]), (&kept[..], &given_up[..]));
        assert_eq!((process.seen.lost.contains(&given_up[0]), process.report.accepted.len()), (true, 0));
        bench.crash(process, Crash::Kill);

        // What came behind was built without it.
        bench.set_readable(&name, base, places[4].position, true);
        let mut process = bench.start();
        assert_eq!(process.seen.numbers, kept, "what was given up does not come back");
        process.append_all(10..12, Synced, 500);
        process.close().unwrap();
        assert_eq!(bench.start().seen.numbers, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]);
    }
}

#[test]
fn an_entry_with_one_unreadable_block_among_many_is_lost_alone() {
    let bench = Bench::new();
    let mut process = bench.start();
    let mut places = Vec::new();
    for number in 0..3 {
        places.push(process.append(number, Synced, 40_000).unwrap());
        process.wait_durable();
    }
    let (name, base) = (format!("{:020}-{:010}", process.report.base.0, process.report.epoch.0), process.report.base);
    bench.crash(process, Crash::Kill);
    bench.set_readable(&name, base, places[1].position + 20_000, false);
    assert_eq!(extents(&damage(&bench)), [Extent { from: places[1].position, to: places[1].end }]);
    assert_eq!(accept(&bench).seen.numbers, [0, 2]);
    bench.machine.crash(Crash::Kill);
    assert_eq!(bench.start().seen.numbers, [0, 2]);
}

#[test]
fn an_unreadable_block_at_the_end_is_no_torn_tail() {
    let bench = Bench::new();
    let (places, name, base) = ten(&bench, Some(Crash::Power));
    let last = places[9].position;
    bench.set_readable(&name, base, last, false);
    assert_eq!(extents(&damage(&bench)), [Extent { from: last, to: next_block(last) }]);
    let process = accept(&bench);
    assert_eq!((process.seen.numbers.len(), process.report.cut), (9, last));
    assert!(process.report.base - next_block(last) > RING_MAX, "what was given up counts among the positions known");
    bench.crash(process, Crash::Power);
    for _ in 0..2 {
        let process = bench.start();
        assert_eq!(process.seen.numbers, (0..9).collect::<Vec<_>>());
        assert_eq!(process.report.given_up, [Extent { from: last, to: next_block(last) }]);
        process.close().unwrap();
    }
}

/// The flushes were in flight together, so that no pad says that the first was durable: a block that cannot be read was taken
/// for a torn tail, and what stood behind it was lost with it.
#[test]
fn what_stands_behind_an_unreadable_block_is_kept() {
    for unreadable in [0, 5000] {
        let bench = Bench::new();
        let mut process = bench.start();
        process.append_all(0..1, Synced, 500);
        process.wait_durable();
        let first = process.append(1, Synced, 10_000).unwrap();
        process.turn();
        process.append_all(2..3, Synced, 10_000);
        process.wait_durable();
        let base = process.report.base;
        let name = format!("{:020}-{:010}", base.0, process.report.epoch.0);
        bench.crash(process, Crash::Power);
        bench.set_readable(&name, base, first.position + unreadable, false);
        damage(&bench);
        assert_eq!(accept(&bench).seen.numbers, [0, 2]);
    }
}

/// A pad behind the torn tail may say that what is torn was durable.
#[test]
fn an_unreadable_block_behind_a_torn_tail_is_told() {
    let bench = Bench::new();
    let (places, name, base) = ten(&bench, Some(Crash::Power));
    bench.flip(&name, base, places[8].position + 200);
    let hiding = Extent { from: places[9].position, to: next_block(places[9].position) };
    bench.set_readable(&name, base, hiding.from, false);
    let found = damage(&bench);
    assert!(extents(&found).contains(&hiding), "{found}");
    let process = accept(&bench);
    assert_eq!(process.seen.numbers, (0..8).collect::<Vec<_>>());
    bench.crash(process, Crash::Power);
    assert_eq!(bench.start().seen.numbers, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_block_that_the_log_does_not_need_may_be_unreadable() {
    for end in [None, Some(Crash::Kill)] {
        for blocks in [0, 1, 7] {
            let bench = Bench::new();
            let (places, name, base) = ten(&bench, end);
            bench.set_readable(&name, base, next_block(places[9].end) + blocks * BLOCK as u64, false);
            let process = bench.start();
            assert_eq!(process.seen.numbers, (0..10).collect::<Vec<_>>());
            bench.crash(process, Crash::Power);
            assert_eq!(bench.start().seen.numbers, (0..10).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_mark_that_the_device_cannot_read_is_damage_and_is_accepted_once() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..5, Synced, 100);
    process.wait_until(|log| log.counters().marks > 0);
    bench.crash(process, Crash::Power);
    bench.machine.set_readable(0, "mark-0000000001", 0, false);
    let found = damage(&bench);
    assert_eq!(found.files[0].0, "mark-0000000001", "{found}");
    let process = accept(&bench);
    assert_eq!(process.seen.numbers, [0, 1, 2, 3, 4]);
    bench.crash(process, Crash::Power);
    assert_eq!(bench.start().seen.numbers, [0, 1, 2, 3, 4]);
}

#[test]
fn a_note_of_loss_that_is_not_whole_excuses_nothing() {
    // In its header; in its payload, so that it names no extent any more, or one that is a byte longer.
    for flipped in [30, 100, 104] {
        let bench = Bench::new();
        let (places, name, base) = ten(&bench, None);
        bench.set_readable(&name, base, places[4].position, false);
        let process = accept(&bench);
        let note = process.report.base;
        let note_name = format!("{:020}-{:010}", note.0, process.report.epoch.0);
        process.close().unwrap();
        bench.flip(&note_name, note, note + flipped);
        let found = damage(&bench);
        let expected =
            [Extent { from: places[4].position, to: places[5].position }, Extent { from: note, to: note + 128 }];
        assert_eq!(extents(&found), expected, "{found}");
        accept(&bench).close().unwrap();
        let process = bench.start();
        assert_eq!((process.seen.numbers.len(), &process.report.given_up[..]), (9, &expected[..]));
    }
}

#[test]
fn a_start_that_accepts_counts_from_its_rename_on() {
    for step in RecoveryStep::ALL {
        for crash in [Crash::Kill, Crash::Power] {
            let bench = Bench::seeded(step as u64);
            let mut process = bench.start();
            process.append_all(0..200, Synced, 50_000);
            process.wait_durable();
            bench.crash(process, Crash::Power);
            let mut names = bench.names();
            names.retain(|name| name.len() == 31);
            bench.machine.set_readable(0, &names[0], 100, false);
            bench.flip_at(&names[1], 70);
            let started = catch_unwind(AssertUnwindSafe(|| {
                bench.try_start_with(|options| {
                    options.accept_loss = true;
                    options.faults.after_step(move |reached| {
                        if reached == step {
                            panic_any(step);
                        }
                    });
                })
            }));
            assert!(started.is_err(), "the start was to end after {step:?}: {:?}", started.ok().and_then(Result::err));
            bench.machine.crash(crash);
            // A power cut may take a name that was not synced, or leave it.
            let unsure = step == RecoveryStep::Renamed && crash == Crash::Power;
            if step < RecoveryStep::Renamed || (unsure && bench.try_start().is_err()) {
                damage(&bench);
                accept(&bench).close().unwrap();
            }
            let process = bench.start();
            assert!(process.seen.numbers.len() < 199 && process.seen.numbers.ends_with(&[199]), "{step:?} {crash:?}");
            assert_eq!(process.report.given_up.len(), 2, "{step:?} {crash:?}");
        }
    }
}

/// An entry that the engine refused ended every start, whatever flag was given.
#[test]
fn a_sound_entry_that_contradicts_those_before_it_is_accepted_once() {
    for in_ring in [true, false] {
        // The store time of 3 lies before that of 7; so would that of a note which took it for the last.
        for numbers in [&[0, 1, 7, 3, 8][..], &[0, 1, 7, 3]] {
            let bench = Bench::new();
            let mut process = bench.start();
            process.faults.hold_flushes(in_ring);
            let level = if in_ring { Memory } else { Synced };
            let places: Vec<_> = numbers.iter().map(|&number| process.append(number, level, 500).unwrap()).collect();
            if !in_ring {
                process.wait_durable();
            }
            bench.crash(process, Crash::Kill);
            let refused = Extent { from: places[3].position, to: places[3].end };
            let found = damage(&bench);
            assert_eq!(extents(&found), [refused], "{found}");
            let sentence =
                "a sound batch for topic 1 queue 0 offsets 3..4 contradicts what stands before it: its store time";
            assert!(found.to_string().contains(sentence), "{found}");

            let process = accept(&bench);
            let kept: Vec<_> = numbers.iter().copied().filter(|&number| number != 3).collect();
            assert_eq!((&process.seen.numbers, &process.seen.lost[..]), (&kept, &[refused][..]));
            assert_eq!(process.report.messages_from_ring, if in_ring { kept.len() as u64 } else { 0 });
            bench.crash(process, Crash::Kill);
            for _ in 0..2 {
                let process = bench.start();
                assert_eq!((&process.seen.numbers, &process.report.given_up[..]), (&kept, &[refused][..]));
                process.close().unwrap();
            }
        }
    }
}
