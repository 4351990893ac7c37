//! Segments that leave the log at its front: only what two checkpoints cover, in order, and for ever.

use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::LogPosition;

use super::bench::{Bench, Process};
use super::damage::damage;
use crate::log::ReadError;
use crate::log::disk::simulated::{Conditions, Crash};

const BATCH: usize = 100 << 10;

fn numbers(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

fn segments(bench: &Bench) -> usize {
    bench.names().iter().filter(|name| name.starts_with('0')).count()
}

/// Batches up to that number, with as many checkpoints on the way; several segments.
fn with_checkpoints(bench: &Bench, all: u64, checkpoints: u64) -> Process {
    let mut process = bench.start();
    for number in 0..checkpoints {
        let (from, to) = (all * number / checkpoints, all * (number + 1) / checkpoints);
        process.append_all(from..to, Synced, BATCH);
        process.checkpoint(&numbers(0..to));
    }
    process
}

impl Process {
    /// Retires what may be; how many segments.
    fn retire_all(&mut self) -> usize {
        let mut retired = 0;
        while let Some(oldest) = self.log.oldest_segment()
            && self.log.may_retire(oldest.end)
        {
            let task = self.log.retire_oldest();
            self.run(task);
            retired += 1;
        }
        retired
    }
}

#[test]
fn what_two_checkpoints_of_this_run_cover_may_go_and_nothing_else() {
    let bench = Bench::new();
    let mut process = with_checkpoints(&bench, 100, 1);
    assert_eq!(process.retire_all(), 0, "one checkpoint may be lost");
    process.append_all(100..110, Synced, BATCH);
    process.checkpoint(&numbers(0..110));
    let (before, bytes) = (segments(&bench), process.log.disk_bytes());
    let retired = process.retire_all();
    assert!(retired >= 1 && segments(&bench) == before - retired, "{retired} of {before}");
    assert!(process.log.disk_bytes() < bytes);
    let refused = bench.machine.block_on(process.log.read_disk(LogPosition(0), 100)).err();
    assert!(matches!(refused, Some(ReadError::NotInLog(LogPosition(0)))), "{refused:?}");

    // The next run has seen one of them alone.
    bench.crash(process, Crash::Power);
    let mut process = bench.start();
    assert_eq!(process.seen.numbers, numbers(0..110));
    process.append_all(110..200, Synced, BATCH);
    process.checkpoint(&numbers(0..200));
    assert_eq!(process.retire_all(), 0);
}

#[test]
fn without_a_checkpoint_a_log_that_has_retired_is_damaged() {
    let bench = Bench::new();
    let mut process = with_checkpoints(&bench, 100, 2);
    assert!(process.retire_all() >= 1);
    bench.crash(process, Crash::Kill);
    let checkpoints: Vec<_> = bench.names().into_iter().filter(|name| name.starts_with("checkpoint")).collect();
    assert_eq!(checkpoints.len(), 2);
    bench.flip_at(&checkpoints[1], 4100);
    let process = bench.start();
    assert_eq!(process.seen.numbers, numbers(0..100), "the older one is as good");
    bench.crash(process, Crash::Kill);
    bench.flip_at(&checkpoints[0], 4100);
    let damage = damage(&bench);
    assert_eq!(damage.extents[0].extent.from, LogPosition(0), "{damage}");
}

#[test]
fn a_crash_beside_a_retirement_takes_nothing() {
    for crash in [Crash::Kill, Crash::Power] {
        for steps in 0..8 {
            let bench = Bench::new();
            let mut process = with_checkpoints(&bench, 100, 2);
            let oldest = process.log.oldest_segment().expect("several were filled");
            assert!(process.log.may_retire(oldest.end));
            let task = process.log.retire_oldest();
            let machine = bench.machine.clone();
            machine.arm(steps, crash);
            let survived = machine.survive(move || process.run(task));
            machine.disarm();
            machine.crash(survived.err().unwrap_or(crash));
            let process = bench.start();
            assert_eq!(process.seen.numbers, numbers(0..100), "{crash:?} after {steps} steps");
        }
    }
}

/// The log is read back from its newest segment, so that a dead run's segment came back as a part of it when the one that stood in its
/// place was retired.
#[test]
fn what_a_killed_run_had_made_ahead_is_gone_before_anything_retires() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..45, Synced, BATCH);
    process.wait_durable();
    process.wait_until(|log| log.next_deadline().is_none());
    bench.crash(process, Crash::Kill);
    let mut process = bench.start();
    for round in 0..2 {
        process.append_all(45 + round * 50..95 + round * 50, Synced, BATCH);
        process.checkpoint(&numbers(0..95 + round * 50));
    }
    assert!(process.retire_all() >= 2);
    let begins_at = process.log.begins_at();
    bench.crash(process, Crash::Kill);
    let process = bench.start();
    assert_eq!((process.seen.numbers, process.log.begins_at()), (numbers(0..145), begins_at));
}

/// The one behind it must not go first: what is missing between two segments is damage.
#[test]
fn one_that_could_not_be_unlinked_holds_up_those_behind_it() {
    let bench = Bench::new();
    let mut process = with_checkpoints(&bench, 200, 2);
    let oldest = process.log.oldest_segment().expect("several were filled");
    assert!(process.log.may_retire(oldest.end));
    bench.machine.set_conditions(Conditions { fail_sync_one_in: 1, ..Default::default() });
    let task = process.log.retire_oldest();
    process.run(task);
    assert_eq!((process.log.oldest_segment(), process.log.counters().retire_failures), (None, 1));
    bench.machine.set_conditions(Conditions::default());
    let task = process.log.retire_again().expect("it is tried again");
    process.run(task);
    assert!(process.log.oldest_segment().is_some_and(|next| next.base >= oldest.end));
    assert_eq!(process.log.counters().retired, 1);
}
