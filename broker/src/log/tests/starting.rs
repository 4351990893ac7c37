//! Starts after every kind of end, and crashes in the middle of a start.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::rc::Rc;

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::Epoch;

use super::bench::{Bench, Process, RING, draft, payload};
use super::damage::damage;
use crate::log::StartError;
use crate::log::damage::Extent;
use crate::log::disk::simulated::{Conditions, Crash};
use crate::log::disk::{Access, Disk, DiskFile, RingHost, RingMemory};
use crate::log::fault::RecoveryStep;
use crate::log::log::CloseState;
use crate::log::options::LogOptions;
use crate::log::recovery::RingFate;
use crate::log::ring::RingUnfit;

/// Numbers `durable` synced to the device, numbers up to `all` in the ring alone.
fn half_in_the_ring(bench: &Bench, durable: u64, all: u64) -> Process {
    let mut process = bench.start();
    process.append_all(0..durable, Synced, 300);
    process.wait_durable();
    process.faults.hold_flushes(true);
    process.append_all(durable..all, Memory, 300);
    process
}

#[test]
fn after_a_kill_everything_published_is_there() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    let (durable, published) = (process.log.durable(), process.log.published());
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    process.assert_recovered(0..25, RingFate::Recovered, 15);
    assert_eq!((process.report.cut, process.report.base), (durable, durable));
    assert!(process.report.start >= published && process.report.start - published < 4096);
    assert_eq!(process.report.epoch, Epoch(2));
}

#[test]
fn after_a_power_cut_what_was_synced_is_there() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    bench.crash(process, Crash::Power);
    let process = bench.start();
    process.assert_recovered(0..10, RingFate::OtherBoot, 0);
    assert!(process.report.base - process.report.cut >= 1 << 30);
}

#[test]
fn a_second_crash_at_any_step_of_a_start_changes_nothing() {
    for step in RecoveryStep::ALL {
        for (crash, fate_before, survivors) in
            [(Crash::Kill, RingFate::Recovered, 25), (Crash::Power, RingFate::OtherBoot, 10)]
        {
            let bench = Bench::seeded(step as u64);
            let process = half_in_the_ring(&bench, 10, 25);
            bench.crash(process, Crash::Kill);
            let started = catch_unwind(AssertUnwindSafe(|| {
                bench.try_start_with(|options| {
                    options.faults.after_step(move |reached| {
                        if reached == step {
                            panic_any(step);
                        }
                    });
                })
            }));
            assert!(started.is_err(), "the start was to end after {step:?}");
            bench.machine.crash(crash);
            let process = bench.start();
            // From the rename on the first start counts; a power cut may take an unsynced name.
            let counts =
                step >= RecoveryStep::DirectorySynced || (step == RecoveryStep::Renamed && crash == Crash::Kill);
            let (numbers, fate) = match (counts, crash) {
                (true, Crash::Power) => (25, RingFate::OtherBoot),
                (true, Crash::Kill) if step >= RecoveryStep::RingReady => (25, RingFate::Recovered),
                (true, Crash::Kill) => (25, RingFate::NeverReady),
                (false, _) => (survivors, fate_before),
            };
            if step == RecoveryStep::Renamed && crash == Crash::Power {
                assert!(process.seen.numbers.len() == 10 || process.seen.numbers.len() == 25);
                continue;
            }
            let from_ring = if fate == RingFate::Recovered && !counts { 15 } else { 0 };
            process.assert_recovered(0..numbers, fate, from_ring);
            assert!(bench.machine.take_breaches().is_empty(), "{step:?}");
            process.close().unwrap();
            bench.start().assert_recovered(0..numbers, RingFate::Closed, 0);
        }
    }
}

#[test]
fn a_ring_wrapped_around_a_hundred_times_comes_back() {
    let bench = Bench::new();
    let mut process = bench.start();
    let mut number = 0;
    while process.log.tail().0 < 100 << 20 {
        process.append_all(number..number + 10, Memory, 30_000);
        process.wait();
        number += 10;
    }
    process.faults.hold_flushes(true);
    while process.append(number, Memory, 3000).is_ok() {
        number += 1;
    }
    let only_in_ring = process.log.messages_only_in_ring();
    assert!(only_in_ring > 100);
    bench.crash(process, Crash::Kill);
    bench.start().assert_recovered(0..number, RingFate::Recovered, only_in_ring);
}

#[test]
fn starts_and_kills_in_a_row_lose_nothing() {
    let bench = Bench::new();
    let mut number = 0;
    for round in 0..30 {
        let mut process = bench.start();
        process.assert_recovered(0..number, process.report.ring, process.report.messages_from_ring);
        process.append_all(number..number + 7, Synced, 2000);
        process.wait_durable();
        process.append_all(number + 7..number + 10, Memory, 2000);
        // Power takes what was acknowledged at memory, unless it became durable in passing.
        let crash = if round % 5 == 4 { Crash::Power } else { Crash::Kill };
        if crash == Crash::Power {
            process.wait_durable();
        }
        number += 10;
        bench.crash(process, crash);
        assert!(bench.machine.take_breaches().is_empty(), "round {round}");
    }
}

#[test]
fn a_kill_before_the_first_append_behind_a_jump_of_positions_is_no_damage() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 10);
    bench.crash(process, Crash::Power);
    for fate in [RingFate::OtherBoot, RingFate::Recovered, RingFate::Recovered] {
        let process = bench.start();
        process.assert_recovered(0..10, fate, 0);
        bench.crash(process, Crash::Kill);
    }
}

#[test]
fn a_missing_ring_is_an_error_until_that_very_ring_is_given_up() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    bench.crash(process, Crash::Kill);
    bench.machine.rings().remove(RING).unwrap();
    for discard in [None, Some(Epoch(2))] {
        let refused = bench.try_start_with(|options| options.discard_ring = discard).err();
        let Some(StartError::Ring { epoch: Epoch(1), reason: RingUnfit::Missing, .. }) = refused else {
            panic!("{refused:?}")
        };
    }
    let process = bench.try_start_with(|options| options.discard_ring = Some(Epoch(1))).map_err(|_| ()).unwrap();
    process.assert_recovered(0..10, RingFate::Discarded, 0);
}

#[test]
fn a_ring_that_does_not_fit_is_an_error_that_says_why() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(Change, &str); 5] = [
        (|file| file[16] ^= 1, "its page has a wrong checksum"),
        (|file| file[1] ^= 1, "it does not open with a ring's magic"),
        (|file| file.truncate(8192), "bytes long"),
        (|file| [256, 320].map(|at| file[at + 7] = 1).into_iter().for_each(drop), "which cannot be"),
        (|file| [256, 320].map(|at| file[at..at + 8].fill(0)).into_iter().for_each(drop), "known to be durable"),
    ];
    for (change, reason) in changes {
        let bench = Bench::new();
        let mut process = half_in_the_ring(&bench, 10, 25);
        process.wait_until(|log| log.counters().marks > 0);
        bench.crash(process, Crash::Kill);
        assert!(bench.machine.rings().meddle(RING, change));
        let refused = bench.try_start().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains(reason) && refused.contains("--discard-ring 0:1"), "{refused}");
    }
}

/// A page of zeros was taken for that of a run that had never been ready: what stood only in the ring was gone, without a word.
#[test]
fn a_ring_whose_page_was_lost_is_not_one_that_was_never_ready() {
    let changes: [fn(&mut Vec<u8>); 4] =
        [|file| file[..8].fill(0), |file| file[..4096].fill(0), |file| file.truncate(100), Vec::clear];
    for change in changes {
        let bench = Bench::new();
        let process = half_in_the_ring(&bench, 10, 25);
        bench.crash(process, Crash::Kill);
        assert!(bench.machine.rings().meddle(RING, change));
        let refused = bench.try_start().err();
        assert!(matches!(refused, Some(StartError::Ring { reason: RingUnfit::Magic, .. })), "{refused:?}");
        let process = bench.try_start_with(|options| options.discard_ring = Some(Epoch(1))).map_err(|_| ()).unwrap();
        assert_eq!((process.seen.numbers.len(), process.report.ring), (10, RingFate::Discarded));
    }
}

#[test]
fn a_copy_of_the_directory_does_not_take_the_original_s_ring() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    bench.crash(process, Crash::Kill);
    let refused = bench.try_start_with(|options| options.directory.inode += 1).err();
    assert!(matches!(refused, Some(StartError::Ring { reason: RingUnfit::Copy { .. }, .. })), "{refused:?}");
}

#[test]
fn the_ring_may_change_its_path_and_its_size() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    bench.crash(process, Crash::Kill);
    let moved = "/elsewhere/1-0";
    let process = bench.try_start_with(|options| options.ring = Some(moved.to_owned())).map_err(|_| ()).unwrap();
    process.assert_recovered(0..25, RingFate::Recovered, 15);
    assert!(bench.machine.rings().open(RING).unwrap().is_none(), "the old one is gone");
    bench.crash(process, Crash::Kill);
    let mut process = bench
        .try_start_with(|options| {
            options.ring = Some(moved.to_owned());
            options.ring_bytes = 2 << 20;
        })
        .map_err(|_| ())
        .unwrap();
    process.assert_recovered(0..25, RingFate::Recovered, 0);
    process.append_all(25..30, Memory, 100);
    bench.crash(process, Crash::Kill);
    assert_eq!(bench.machine.rings().open(moved).unwrap().unwrap().bytes().len(), 4096 + (2 << 20));
    let process = bench.try_start_with(|options| options.ring = None).map_err(|_| ()).unwrap();
    process.assert_recovered(0..30, RingFate::Recovered, 5);
    bench.crash(process, Crash::Kill);
    bench.start().assert_recovered(0..30, RingFate::Anonymous, 0);
}

#[test]
fn marks_are_written_when_quiet_and_one_file_stays() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..5, Synced, 100);
    process.wait_until(|log| log.counters().marks > 0 && log.next_deadline().is_none());
    assert_eq!(process.log.counters().marks, 1);
    assert!(bench.names().contains(&"mark-0000000001".to_owned()));
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    assert!(!bench.names().iter().any(|name| name.starts_with("mark-")), "{:?}", bench.names());
    drop(process);
}

/// The mark stood under its name already, so that each later attempt failed, and the run had no mark any more.
#[test]
fn a_mark_is_written_again_where_only_the_sync_of_its_name_failed() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.wait_until(|log| log.next_deadline().is_none());
    process.append_all(0..5, Synced, 100);
    process.wait_durable();
    while !bench.machine.file_names(0).contains(&"mark-0000000001".to_owned()) {
        process.turn();
        let until = process.log.next_deadline().map_or(u64::MAX, |deadline| deadline.0);
        bench.machine.advance(until);
    }
    // The rename is done; the sync of the directory is what comes next.
    bench.machine.set_conditions(Conditions { fail_sync_one_in: 1, ..Conditions::default() });
    process.turn();
    bench.machine.set_conditions(Conditions::default());
    process
        .wait_until(|log| log.next_deadline().is_some_and(|deadline| deadline.0 > bench.machine.now() + 500_000_000));
    assert_eq!(process.log.counters().marks, 0, "it failed");
    process.wait_until(|log| log.counters().marks == 1);
    let durable = process.log.durable();
    bench.crash(process, Crash::Power);
    let process = bench.start();
    process.assert_recovered(0..5, RingFate::OtherBoot, 0);
    assert_eq!(process.report.cut, durable);
}

/// A mark that leads makes a torn tail look like damage, and the start then asks for what nobody lost to be given up.
#[test]
fn a_mark_says_no_more_than_what_is_durable() {
    let bench = Bench::new();
    let mut process = half_in_the_ring(&bench, 10, 25);
    process.wait_until(|log| log.counters().marks > 0);
    bench.crash(process, Crash::Power);
    bench.start().assert_recovered(0..10, RingFate::OtherBoot, 0);
}

/// The last two flushes of a killed run stand in the device's cache, in two segments, and its ring is given up: both must be
/// durable before the next run goes on behind them.
#[test]
fn every_segment_that_was_read_from_the_cache_is_synced() {
    let mut both = 0;
    for seed in 0..64 {
        let mut bench = Bench::seeded(seed);
        bench.options.smallest.segment = 64 << 10;
        bench.options.segment_bytes = 64 << 10;
        bench.options.largest_entry = 60 << 10;
        let mut process = bench.start();
        // All of the first segment but a block.
        process.append_all(0..1, Synced, (56 << 10) - 96);
        process.wait_until(|log| log.durable() == log.tail() && log.next_deadline().is_none());
        process.append_all(1..2, Synced, 100);
        process.turn();
        process.append_all(2..3, Synced, 4000);
        process.turn();
        assert_eq!((process.log.counters().rolls, process.log.counters().writes), (1, 3));
        bench.crash(process, Crash::Kill);
        let landed = bench.machine.now() + 100_000_000;
        while bench.machine.advance(landed) {}
        let given_up = |options: &mut LogOptions| options.discard_ring = Some(Epoch(1));
        let process = bench.try_start_with(given_up).map_err(|error| error.to_string()).unwrap();
        let numbers = process.seen.numbers.clone();
        both += usize::from(numbers.len() == 3);
        bench.crash(process, Crash::Power);
        assert_eq!(bench.start().seen.numbers, numbers);
    }
    assert!(both > 0, "no seed has both flushes in the cache");
}

/// Positions are never used twice, so that such an entry can only be what an earlier run, or a defect, left there.
#[test]
fn an_entry_of_an_epoch_before_its_predecessor_s_is_not_accepted() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..3, Synced, 100);
    process.close().unwrap();
    let mut process = bench.start();
    process.append_all(3..5, Synced, 100);
    process.wait_durable();
    let (tail, base, seal) = (process.log.tail(), process.report.base, process.log.seal());
    bench.crash(process, Crash::Power);
    let entry = |number, position, epoch| {
        let payload = payload(number, 100);
        let mut bytes = [0; 256];
        let header = draft(number, Memory, &payload).at(position, epoch);
        header.encode(seal, bytes.first_chunk_mut().unwrap());
        bytes[96..196].copy_from_slice(&payload);
        bytes
    };
    let mut block = vec![0; 4096];
    block[..256].copy_from_slice(&entry(5, tail, Epoch(1)));
    bench.machine.block_on(async {
        let name = format!("{:020}-{:010}", base.0, 2);
        let file = bench.machine.disk(0).open(&name, Access::Append).await.unwrap();
        file.write_at(block, tail - base + 4096).await.unwrap();
    });
    assert_eq!(bench.machine.take_breaches().len(), 1, "the test itself wrote into an earlier run's file");
    let process = bench.start();
    process.assert_recovered(0..5, RingFate::OtherBoot, 0);

    let bench = Bench::new();
    let mut process = bench.start();
    process.faults.hold_flushes(true);
    let places = [0, 1, 2].map(|number| process.append(number, Memory, 100).unwrap());
    bench.crash(process, Crash::Kill);
    let (at, old) = (places[1].position, entry(1, places[1].position, Epoch(0)));
    bench.machine.rings().meddle(RING, |file| file[4096 + at.0 as usize..][..256].copy_from_slice(&old));
    let found = damage(&bench);
    assert_eq!(found.extents.len(), 1, "{found}");
    assert_eq!(found.extents[0].extent, Extent { from: at, to: places[1].end });
}

/// Somebody put an older copy of the segments back, or took the newest away.
#[test]
fn a_ring_of_a_later_run_than_the_newest_segment_s_is_an_error() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 10, 25);
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    let name = format!("{:020}-{:010}", process.report.base.0, process.report.epoch.0);
    bench.crash(process, Crash::Kill);
    bench.machine.block_on(bench.machine.disk(0).remove(&name)).unwrap();
    let refused = bench.try_start().err();
    let Some(StartError::Ring { epoch: Epoch(1), reason: RingUnfit::Epoch(Epoch(2)), .. }) = refused else {
        panic!("{refused:?}")
    };
}

/// The new log's first run has the epoch that the run of the lost log had: its ring would pass for the new one's.
#[test]
fn a_ring_that_was_given_up_with_its_log_never_comes_back() {
    for step in RecoveryStep::ALL {
        let bench = Bench::new();
        let process = half_in_the_ring(&bench, 3, 10);
        bench.crash(process, Crash::Kill);
        bench.machine.move_away(0);
        let given_up = |options: &mut LogOptions| options.discard_ring = Some(Epoch(1));
        let started = catch_unwind(AssertUnwindSafe(|| {
            bench.try_start_with(|options| {
                given_up(options);
                options.faults.after_step(move |reached| {
                    if reached == step {
                        panic_any(step);
                    }
                });
            })
        }));
        assert!(started.is_err(), "the start was to end after {step:?}");
        bench.machine.crash(Crash::Kill);
        let started = if step < RecoveryStep::RingMade { bench.try_start_with(given_up) } else { bench.try_start() };
        let process = started.map_err(|error| format!("{step:?}: {error}")).unwrap();
        assert_eq!(process.seen.numbers, [0; 0], "{step:?}");
    }
}

/// Two logs that had this place in turn: the ring has the epoch that the newest segment has, but not its run.
#[test]
fn a_ring_that_another_log_has_used_in_the_same_epoch_is_not_taken() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 3, 3);
    bench.crash(process, Crash::Kill);
    bench.machine.move_away(0);
    let given_up = |options: &mut LogOptions| options.discard_ring = Some(Epoch(1));
    let mut other = bench.try_start_with(given_up).map_err(|error| error.to_string()).unwrap();
    assert_eq!(other.report.epoch, Epoch(1));
    other.append_all(20..23, Synced, 300);
    other.wait_durable();
    other.faults.hold_flushes(true);
    other.append_all(23..30, Memory, 300);
    bench.crash(other, Crash::Kill);
    bench.machine.bring_back(0);
    let refused = bench.try_start().err();
    let Some(StartError::Ring { epoch: Epoch(1), reason: RingUnfit::OtherLog, .. }) = refused else {
        panic!("{refused:?}");
    };
    let process = bench.try_start_with(given_up).map_err(|error| error.to_string()).unwrap();
    process.assert_recovered(0..3, RingFate::Discarded, 0);
}

/// A log that was stopped needs no ring, and would have cleared the one that the log in its place had left.
#[test]
fn the_ring_of_another_log_is_not_cleared_by_one_that_was_closed() {
    let bench = Bench::new();
    let process = half_in_the_ring(&bench, 3, 3);
    process.close().unwrap();
    bench.machine.move_away(0);
    let other = half_in_the_ring(&bench, 0, 10);
    assert_eq!((other.report.ring, other.report.epoch), (RingFate::FirstStart, Epoch(1)));
    bench.crash(other, Crash::Kill);
    bench.machine.bring_back(0);
    let refused = bench.try_start().err();
    let Some(StartError::Ring { epoch: Epoch(1), reason: RingUnfit::LogGone, .. }) = refused else {
        panic!("{refused:?}");
    };
    let given_up = bench.try_start_with(|options| options.discard_ring = Some(Epoch(1)));
    given_up.map_err(|error| error.to_string()).unwrap().assert_recovered(0..3, RingFate::Closed, 0);
}

#[test]
fn what_is_left_over_is_unlinked() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..5, Synced, 100);
    process.wait_durable();
    process.wait_until(|log| log.next_deadline().is_none());
    assert!(bench.names().iter().any(|name| name.starts_with("spare-")));
    bench.crash(process, Crash::Kill);
    drop(bench.start());
    let names = bench.names();
    assert_eq!(names.len(), 2, "the first run's segment and the second's: {names:?}");
}

#[test]
fn a_stop_that_is_killed_behind_its_mark_is_still_clean() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..5, Memory, 100);
    process.log.begin_close();
    process.wait_until(|log| log.close_state() == CloseState::Done);
    bench.crash(process, Crash::Kill);
    let moved =
        bench.try_start_with(|options| options.ring = Some("/elsewhere/1-0".to_owned())).map_err(|_| ()).unwrap();
    moved.assert_recovered(0..5, RingFate::Closed, 0);
    assert!(bench.machine.rings().open(RING).unwrap().is_none(), "the ring that the stop left is gone");
}

#[test]
fn steps_are_reported_in_order() {
    let bench = Bench::new();
    let seen = Rc::new(Cell::new(0));
    let process = bench.try_start_with(|options| {
        let seen = Rc::clone(&seen);
        options.faults.after_step(move |step| {
            assert_eq!(step as u8, seen.get() + 1);
            seen.set(step as u8);
        });
    });
    assert!(process.is_ok());
    assert_eq!(seen.get(), RecoveryStep::Finished as u8);
}
