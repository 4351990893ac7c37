//! The simulator of the whole broker as a test: its seeds hold every promise, it would notice if one were broken, and a seed replays.

use peregrine_tests::network_simulator::{self, Fault, Statistics};

/// Seeds of a usual test run; `scripts/simulate --network` runs as many as one likes.
const SEEDS: u64 = 300;
/// Within so many seeds each planted fault must be found.
const SEEDS_TO_FIND_A_FAULT: u64 = 300;
/// Seeds that are run twice, to the same trace.
const SEEDS_TRACED_TWICE: u64 = 30;

/// Runs seeds from 0 up to `seeds`; the first violation, with its seed.
fn first_violation(seeds: u64, planted: Option<Fault>, totals: &mut Statistics) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let outcome = network_simulator::run(seed, planted, false);
        totals.add(&outcome.statistics);
        outcome.violation.map(|violation| (seed, violation.to_string()))
    })
}

#[test]
fn every_seed_holds_every_promise() {
    let mut totals = Statistics::default();
    if let Some((seed, violation)) = first_violation(SEEDS, None, &mut totals) {
        panic!("seed {seed}: {violation}\nreplay: scripts/simulate --network --seeds {seed}..={seed} --verbose");
    }
    println!("seeds 0..{SEEDS}: {totals}");
    for (what, count) in totals.counts() {
        assert!(count > 0, "{SEEDS} seeds never reached: {what}");
    }
}

#[test]
fn every_planted_fault_is_found() {
    for planted in Fault::all() {
        let found = first_violation(SEEDS_TO_FIND_A_FAULT, Some(planted), &mut Statistics::default());
        let Some((seed, violation)) = found else {
            panic!("{} was not found within {SEEDS_TO_FIND_A_FAULT} seeds", planted.word());
        };
        println!("{}: seed {seed}: {violation}", planted.word());
        let sound = network_simulator::run(seed, None, false).violation;
        assert_eq!(sound, None, "seed {seed} without {}", planted.word());
    }
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in 0..SEEDS_TRACED_TWICE {
        let (first, second) = (network_simulator::run(seed, None, false), network_simulator::run(seed, None, false));
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(network_simulator::run(0, None, false).trace, network_simulator::run(1, None, false).trace);
}
