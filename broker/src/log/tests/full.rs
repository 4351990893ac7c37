//! A disk that is full, or nearly.

use peregrine_protocol::entry::{EntryDraft, EntryKind};
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};

use super::bench::{Bench, Process, draft, payload};
use crate::log::AppendRefused;
use crate::log::disk::simulated::{Conditions, Crash};
use crate::log::recovery::RingFate;

/// Nothing that takes space succeeds.
fn full() -> Conditions {
    Conditions { disk_full_one_in: 1, ..Conditions::default() }
}

fn free(free_bytes: u64) -> Conditions {
    Conditions { free_bytes, ..Conditions::default() }
}

/// Appends batches until one is refused for another reason than the ring; how many were taken.
fn fill(process: &mut Process, from: u64) -> u64 {
    let mut number = from;
    loop {
        match process.append(number, Memory, 50_000) {
            Ok(_) => number += 1,
            Err(AppendRefused::NoRoom) => process.wait(),
            Err(refused) => {
                assert_eq!(refused, AppendRefused::DiskFull);
                process.wait_durable();
                return number - from;
            }
        }
    }
}

/// An entry that is no batch.
fn append_control(process: &mut Process) -> Result<(), AppendRefused> {
    let payload = payload(0, 50_000);
    let control = EntryDraft { kind: EntryKind::Catalogue, ..draft(0, Synced, &payload) };
    let now = process.now();
    process.log.append(&control, &payload, now).map(drop)
}

#[test]
fn a_full_disk_refuses_batches_at_once_and_keeps_a_reserve() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.rest();
    bench.machine.set_conditions(full());
    let number = fill(&mut process, 0);
    append_control(&mut process).unwrap();
    assert_eq!(process.append(number, Memory, 50_000), Err(AppendRefused::DiskFull), "the reserve is for others");
    bench.machine.set_conditions(Conditions::default());
    process.wait_until(|log| !log.is_disk_full());
    process.append(number, Memory, 50_000).unwrap();
}

/// A directory that had no room for the name of the next segment once poisoned the log.
#[test]
fn a_segment_that_cannot_be_named_for_want_of_space_is_named_later() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.rest();
    bench.machine.set_conditions(full());
    let number = fill(&mut process, 0);
    assert!(!process.log.is_poisoned());
    let spares = bench.names().iter().filter(|name| name.starts_with("spare-")).count();
    assert_eq!(spares, 1, "it was made before: {:?}", bench.names());
    bench.machine.set_conditions(Conditions::default());
    process.wait_until(|log| !log.is_disk_full());
    process.append_all(number..200, Memory, 50_000);
    process.wait_durable();
    bench.crash(process, Crash::Power);
    bench.start().assert_recovered(0..200, RingFate::OtherBoot, 0);
}

#[test]
fn batches_leave_what_is_to_be_kept_free() {
    let mut bench = Bench::new();
    bench.options.keep_free = 16 << 20;
    let mut process = bench.start();
    process.rest();
    // A segment more would leave less.
    bench.machine.set_conditions(free((20 << 20) - 1));
    let number = fill(&mut process, 0);
    assert!(process.log.counters().rolls > 0, "what was ready is used");
    bench.machine.set_conditions(free(20 << 20));
    process.wait_until(|log| !log.is_disk_full());
    process.append(number, Memory, 50_000).unwrap();
}

/// Acknowledgements and deletions were refused for good once the one segment that was kept for them was full.
#[test]
fn what_is_kept_free_is_for_what_must_go_on() {
    let mut bench = Bench::new();
    bench.options.keep_free = 16 << 20;
    let mut process = bench.start();
    process.rest();
    bench.machine.set_conditions(free(12 << 20));
    let number = fill(&mut process, 0);
    let mut taken = 0;
    while taken < 400 {
        match append_control(&mut process) {
            Ok(()) => taken += 1,
            Err(_) => process.wait(),
        }
    }
    assert!(process.log.counters().rolls > 4, "20 MB were taken");
    assert_eq!(process.append(number, Memory, 50_000), Err(AppendRefused::DiskFull));

    // Half of it is for checkpoints and indexes.
    bench.machine.set_conditions(free((12 << 20) - 1));
    while append_control(&mut process).is_ok() {
        process.wait_durable();
    }
    assert_eq!(append_control(&mut process), Err(AppendRefused::DiskFull));
    bench.machine.set_conditions(Conditions::default());
    process.wait_until(|log| !log.is_disk_full());
    process.append_all(number..number + 1, Memory, 50_000);
}

#[test]
fn a_start_on_a_full_disk_says_so_and_takes_nothing_away() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..10, Memory, 1000);
    bench.crash(process, Crash::Kill);
    bench.machine.set_conditions(full());
    let error = bench.try_start().err().expect("a start takes space").to_string();
    assert!(error.contains("no storage space") || error.contains("injected"), "{error}");
    bench.machine.set_conditions(Conditions::default());
    bench.start().assert_recovered(0..10, RingFate::Recovered, 10);
}
