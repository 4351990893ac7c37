//! Starts that go on from a checkpoint, and what may have become of it.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{Epoch, LogPosition};

use super::bench::{Bench, Process};
use super::damage::damage;
use crate::log::disk::simulated::Crash;
use crate::log::disk::{BLOCK, Disk};
use crate::log::fault::RecoveryStep;
use crate::log::recovery::RingFate;

fn names(bench: &Bench) -> Vec<String> {
    bench.names().into_iter().filter(|name| name.contains("checkpoint")).collect()
}

fn numbers(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

/// Numbers up to `begin` are in a checkpoint, those up to `all` synced behind it.
fn with_checkpoint(bench: &Bench, begin: u64, all: u64) -> Process {
    let mut process = bench.start();
    process.append_all(0..begin, Synced, 300);
    process.checkpoint(&numbers(0..begin));
    process.append_all(begin..all, Synced, 300);
    process.wait_durable();
    process
}

#[test]
fn a_start_reads_the_checkpoint_and_what_came_since() {
    for crash in [Crash::Kill, Crash::Power] {
        let bench = Bench::new();
        let mut process = with_checkpoint(&bench, 10, 25);
        process.faults.hold_flushes(true);
        process.append_all(25..30, Memory, 300);
        bench.crash(process, crash);
        let process = bench.start();
        let all = if crash == Crash::Kill { 30 } else { 25 };
        assert_eq!(process.seen.numbers, numbers(0..all));
        assert_eq!(process.seen.restored, 10);
        assert!(process.report.checkpoint.is_some());
        bench.crash(process, Crash::Kill);
        let process = bench.start();
        assert_eq!((process.seen.numbers.len() as u64, process.seen.restored), (all, 10), "and so does the next");
    }
}

#[test]
fn the_two_newest_are_kept() {
    let bench = Bench::new();
    let mut process = bench.start();
    for round in 0..5 {
        process.append_all(round * 10..round * 10 + 10, Synced, 300);
        process.checkpoint(&numbers(0..round * 10 + 10));
    }
    assert_eq!(names(&bench).len(), 2);
    bench.crash(process, Crash::Power);
    let process = bench.start();
    assert_eq!((process.seen.numbers.len(), process.seen.restored), (50, 50));
}

#[test]
fn one_without_a_name_does_not_count() {
    let bench = Bench::new();
    let mut process = with_checkpoint(&bench, 10, 20);
    drop(process.write_checkpoint(&[7, 7, 7]));
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    assert_eq!((process.seen.numbers, process.seen.restored), (numbers(0..20), 10));
    assert_eq!(names(&bench).len(), 1, "what was left is unlinked");
}

/// Every byte of a checkpoint's file is covered by a checksum, or is of no meaning.
#[test]
fn a_damaged_one_is_passed_over_for_the_one_before_it() {
    let bytes = (0..64).chain((64..BLOCK as u64).step_by(97)).chain(BLOCK as u64..BLOCK as u64 + 200);
    for byte in bytes {
        let bench = Bench::new();
        let mut process = with_checkpoint(&bench, 10, 20);
        process.checkpoint(&numbers(0..20));
        process.append_all(20..25, Synced, 300);
        process.wait_durable();
        bench.crash(process, Crash::Kill);
        let newest = names(&bench).pop().unwrap();
        bench.flip_at(&newest, byte);
        let process = bench.start();
        assert_eq!(process.seen.numbers, numbers(0..25), "byte {byte}");
        let restored = process.seen.restored;
        assert!(restored == 10 || restored == 20 && byte >= BLOCK as u64, "byte {byte}: {restored}");
        assert_eq!(process.report.bad_checkpoints.len(), usize::from(restored == 10));
    }
}

#[test]
fn without_a_good_one_the_whole_log_is_read() {
    let bench = Bench::new();
    let mut process = with_checkpoint(&bench, 10, 20);
    process.checkpoint(&numbers(0..20));
    bench.crash(process, Crash::Kill);
    for name in names(&bench) {
        bench.flip_at(&name, 4100);
    }
    let process = bench.start();
    assert_eq!((process.seen.numbers.clone(), process.seen.restored), (numbers(0..20), 0));
    assert_eq!(process.report.bad_checkpoints.len(), 2);
    bench.crash(process, Crash::Kill);
    assert!(names(&bench).iter().all(|name| name.starts_with("damaged-")), "they are put aside");
    assert_eq!(bench.start().report.bad_checkpoints, []);
}

#[test]
fn a_crash_at_any_step_of_a_start_changes_nothing() {
    for step in RecoveryStep::ALL {
        for crash in [Crash::Kill, Crash::Power] {
            let bench = Bench::new();
            let process = with_checkpoint(&bench, 10, 25);
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
            assert_eq!((process.seen.numbers, process.seen.restored), (numbers(0..25), 10), "{step:?} {crash:?}");
        }
    }
}

/// A checkpoint says that the log was durable up to its end: what is missing below is no torn tail.
#[test]
fn a_log_that_ends_below_its_checkpoint_is_damaged() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..20, Synced, 300);
    process.checkpoint(&numbers(0..20));
    let (name, base) = (bench.names()[0].clone(), process.report.base);
    bench.crash(process, Crash::Power);
    bench.flip(&name, base, LogPosition(base.0 + 400));
    let process = bench.start();
    assert_eq!(process.seen.numbers, numbers(0..20), "damage below where reading begins is for those who read there");
    process.close().unwrap();
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..20, Synced, 300);
    process.checkpoint(&numbers(0..20));
    bench.crash(process, Crash::Power);
    let segments: Vec<_> = bench.names().into_iter().filter(|name| name.starts_with('0')).collect();
    for segment in segments {
        bench.machine.block_on(bench.machine.disk(0).remove(&segment)).unwrap();
    }
    let damage = damage(&bench);
    assert_eq!(damage.extents[0].extent.from, LogPosition(0), "{damage}");
}

/// Two logs that had this place in turn.
#[test]
fn a_checkpoint_of_another_log_is_not_read() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..10, Synced, 300);
    process.checkpoint(&numbers(0..10));
    process.close().unwrap();
    let stranger = names(&bench).pop().unwrap();
    let bytes = bench.read_whole(&stranger);
    bench.machine.move_away(0);
    let mut process = bench.start();
    assert_eq!((process.report.ring, process.report.epoch), (RingFate::FirstStart, Epoch(1)));
    process.append_all(50..80, Synced, 300);
    process.wait_durable();
    bench.write_whole(&stranger, &bytes);
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    assert_eq!((process.seen.numbers, process.seen.restored), (numbers(50..80), 0));
}
