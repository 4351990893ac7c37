//! Files of retired segments that become spares: which of them do, who still reads them, and what a crash leaves of them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::{LogPosition, Nanos};

use super::bench::{Bench, Process, SimulatedLog};

use crate::log::ScrubOptions;
use crate::log::disk::simulated::{Conditions, Crash};
use crate::log::segment::SegmentName;

const BATCH: usize = 100 << 10;
/// Batches that fill a segment and a little.
const FILL: u64 = 42;
const FIRST: &str = "00000000000000000000-0000000001";
/// The name under which its file waits.
const KEPT: &str = "spare-00000000000000000000-0000000001";

fn with_delay(delay: u64) -> Conditions {
    Conditions { delay_min: delay, delay_max: delay, ..Conditions::default() }
}

/// A process with `all` batches behind it; two checkpoints know them, and nothing is under way.
fn covered(bench: &Bench, all: u64) -> Process {
    let mut process = bench.start();
    cover(&mut process, 0, all);
    process.rest();
    process
}

/// Appends batches from `from` up to `all` and takes checkpoints that cover them.
fn cover(process: &mut Process, from: u64, all: u64) {
    process.append_all(from..all - 1, Synced, BATCH);
    process.checkpoint(&(0..all - 1).collect::<Vec<_>>());
    process.append_all(all - 1..all, Synced, BATCH);
    process.checkpoint(&(0..all).collect::<Vec<_>>());
}

fn retire(process: &mut Process) {
    let oldest = process.log.oldest_segment().expect("one that is full");
    assert!(process.log.may_retire(oldest.end));
    let task = process.log.retire_oldest();
    process.run(task);
}

/// Fills the segment that takes the appends, and waits until the segments ahead are made again.
fn roll(process: &mut Process, from: u64) {
    let rolls = process.log.counters().rolls;
    for number in from..from + FILL {
        process.append_all(number..number + 1, Synced, BATCH);
    }
    process.wait_until(|log| log.counters().rolls > rolls);
    process.wait_durable();
    process.rest();
}

fn numbers_of(bench: &Bench, prefix: &str) -> Vec<u64> {
    let names = bench.names().into_iter().filter(|name| name.starts_with(prefix));
    names.map(|name| bench.machine.file_number(0, &name)).collect()
}

#[test]
fn the_file_of_a_retired_segment_becomes_the_next_spare() {
    let bench = Bench::new();
    let mut process = covered(&bench, 60);
    let file = bench.machine.file_number(0, FIRST);
    let old = bench.read_whole(FIRST);
    retire(&mut process);
    assert_eq!(bench.machine.file_number(0, KEPT), file);
    assert!(bench.read_whole(KEPT) == old, "nothing is cleared before it is wanted");
    assert!(!bench.names().iter().any(|name| name.ends_with(FIRST) && name != KEPT), "{:?}", bench.names());

    let others = |bench: &Bench| bench.names().iter().filter(|name| name.starts_with("index-")).count() as u64;
    let made = bench.machine.files_made() - others(&bench);
    roll(&mut process, 60);
    assert_eq!(process.log.counters().recycled, 1);
    assert_eq!(bench.machine.files_made() - others(&bench), made, "the index of what was sealed is all that was made");
    assert_eq!(numbers_of(&bench, "spare-"), [file]);
    assert!(bench.read_whole(KEPT).iter().all(|byte| *byte == 0));
    roll(&mut process, 60 + FILL);
    assert!(numbers_of(&bench, "0").contains(&file), "and then a segment: {:?}", bench.names());
    roll(&mut process, 60 + 2 * FILL);
    assert_eq!(process.log.counters().recycled, 1);
    bench.crash(process, Crash::Power);
    assert_eq!(bench.start().seen.numbers, (0..60 + 3 * FILL).collect::<Vec<_>>());
}

#[test]
fn one_file_waits_and_others_are_unlinked() {
    let bench = Bench::new();
    let mut process = covered(&bench, 100);
    retire(&mut process);
    let second = process.log.oldest_segment().expect("another one is full").base;
    retire(&mut process);
    assert_eq!(process.log.counters().retired, 2);
    let waiting: Vec<_> = bench.names().into_iter().filter(|name| name.starts_with("spare-0000000000000")).collect();
    assert_eq!(waiting, [KEPT]);
    let named = |name: &String| SegmentName::parse(name).is_some_and(|name| name.base <= second);
    assert!(!bench.names().iter().any(named), "{:?}", bench.names());
}

/// Whoever reads of a retired segment gets what stood there, though a device took ten seconds for it.
#[test]
fn what_somebody_reads_is_not_used_again() {
    let bench = Bench::new();
    let mut process = covered(&bench, 60);
    bench.machine.set_conditions(with_delay(10_000_000_000));
    let mut read = pin!(process.log.read_disk(LogPosition(0), 4 * 4096));
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(read.as_mut().poll(&mut context), Poll::Pending));
    bench.machine.set_conditions(Conditions::default());
    let stood = bench.read_whole(FIRST)[4096..5 * 4096].to_vec();
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0], "it is unlinked");
    roll(&mut process, 60);
    assert_eq!(process.log.counters().recycled, 0);
    let bytes = bench.machine.block_on(read).expect("it ends as it would have");
    assert!(bytes[..] == stood[..]);
}

#[test]
fn what_is_being_indexed_or_scrubbed_is_not_used_again() {
    let bench = Bench::new();
    let mut process = bench.start();
    cover(&mut process, 0, 60);
    process.wait_until(|log| log.indexes().counts() == (1, 0) && log.indexes().is_making_of(LogPosition(0)));
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0], "its index was being made");

    let mut bench = Bench::new();
    bench.options.scrub = ScrubOptions { rate: Some(4 << 20), every: Nanos::from_secs(60) };
    let mut process = bench.start();
    let machine = bench.machine.clone();
    let begins_at = machine.now() + 60_000_000_000;
    cover(&mut process, 0, 60);
    process.wait_until(|_| machine.now() > begins_at);
    assert_eq!(process.log.counters().scrubbed_segments, 0, "a second is what it takes");
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0], "it was being scrubbed");
}

#[test]
fn the_file_of_an_earlier_run_is_unlinked() {
    for crash in [Crash::Kill, Crash::Power] {
        let bench = Bench::new();
        let process = covered(&bench, 60);
        bench.crash(process, crash);
        let mut process = bench.start();
        cover(&mut process, 60, 62);
        process.rest();
        // From now on the log has it open, as it has its own.
        drop(bench.machine.block_on(process.log.read_disk(LogPosition(0), 100)).expect("it is there"));
        retire(&mut process);
        assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0], "{:?}", bench.names());
        roll(&mut process, 62);
        assert_eq!((process.log.counters().retired, process.log.counters().recycled), (1, 0));
    }
}

/// Segments grow while a run is young: the next spare is larger.
#[test]
fn the_file_of_a_small_segment_is_unlinked() {
    let mut bench = Bench::new();
    bench.options.segment_bytes = 8 << 20;
    let mut process = covered(&bench, 60);
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0]);
    cover(&mut process, 60, 180);
    process.rest();
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000").len(), 1, "one of the configured size: {:?}", bench.names());
}

#[test]
fn a_file_that_waits_is_gone_after_the_next_start() {
    for crash in [Crash::Kill, Crash::Power] {
        let bench = Bench::new();
        let mut process = covered(&bench, 60);
        retire(&mut process);
        bench.crash(process, crash);
        let process = bench.start();
        assert!(!bench.names().contains(&KEPT.to_owned()), "{:?}", bench.names());
        assert_eq!(process.seen.numbers, (0..60).collect::<Vec<_>>());
    }
}

/// From the retirement until the file has its next name.
#[test]
fn a_crash_at_any_step_of_it_takes_nothing() {
    for crash in [Crash::Kill, Crash::Power] {
        let (mut steps, mut crashed_waiting, mut crashed_cleared) = (0, 0, 0);
        loop {
            let bench = Bench::seeded(steps + 1);
            let mut process = covered(&bench, 60);
            let machine = bench.machine.clone();
            let old = bench.read_whole(FIRST);
            machine.arm(steps, crash);
            let survived = machine.survive(move || {
                retire(&mut process);
                roll(&mut process, 60);
                roll(&mut process, 60 + FILL);
                process
            });
            machine.disarm();
            if survived.is_ok() {
                break;
            }
            drop(survived);
            machine.crash(crash);
            if bench.names().contains(&KEPT.to_owned()) {
                let same = bench.read_whole(KEPT) == old;
                crashed_waiting += u32::from(same);
                crashed_cleared += u32::from(!same);
            }
            let process = bench.start();
            let numbers = process.seen.numbers.clone();
            assert!(numbers.len() >= 60, "{crash:?} after {steps} steps");
            assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{crash:?} after {steps} steps");
            assert!(!bench.names().contains(&KEPT.to_owned()), "{crash:?} after {steps} steps");
            // The first ones one after the other: the retirement itself.
            steps += if steps < 12 { 1 } else { 7 };
        }
        assert!(crashed_waiting > 0 && crashed_cleared > 0, "{steps} steps: {crashed_waiting}, {crashed_cleared}");
    }
}

#[test]
fn a_disk_that_is_nearly_full_gets_the_space_back() {
    const SEGMENT: u64 = 4 << 20;
    let free = |free_bytes| Conditions { free_bytes, ..Conditions::default() };
    let mut bench = Bench::new();
    bench.options.keep_free = 16 << 20;
    // One as large could not be made beside it.
    let mut process = covered(&bench, 60);
    bench.machine.set_conditions(free((16 << 20) + SEGMENT - 1));
    retire(&mut process);
    assert_eq!(numbers_of(&bench, "spare-0000000000000"), [0; 0]);

    // There was room, and when it is wanted somebody else has taken more than is to be kept free.
    let mut bench = Bench::new();
    bench.options.keep_free = 16 << 20;
    let mut process = covered(&bench, 60);
    bench.machine.set_conditions(free((16 << 20) + SEGMENT));
    retire(&mut process);
    assert!(bench.names().contains(&KEPT.to_owned()));
    bench.machine.set_conditions(free((16 << 20) - 1));
    process.append_all(60..60 + FILL, Synced, BATCH);
    process.wait_until(SimulatedLog::is_disk_full);
    assert!(!bench.names().contains(&KEPT.to_owned()), "{:?}", bench.names());
    bench.machine.set_conditions(free((16 << 20) + SEGMENT));
    process.wait_until(|log| !log.is_disk_full());
    assert_eq!(process.log.counters().recycled, 0);
}

/// A directory without room for another name, or a device that fails, does not hold up what is due.
#[test]
fn a_file_that_cannot_be_renamed_is_unlinked() {
    for conditions in [
        Conditions { disk_full_one_in: 1, ..Conditions::default() },
        Conditions { fail_sync_one_in: 1, ..Conditions::default() },
    ] {
        let bench = Bench::new();
        let mut process = covered(&bench, 60);
        bench.machine.set_conditions(conditions);
        retire(&mut process);
        bench.machine.set_conditions(Conditions::default());
        if let Some(again) = process.log.retire_again() {
            process.run(again);
        }
        assert_eq!(process.log.counters().retired, 1);
        assert!(!bench.names().iter().any(|name| name.ends_with(FIRST)), "{:?}", bench.names());
    }
}
