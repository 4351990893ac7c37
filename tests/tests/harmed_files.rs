//! Files of a shard, harmed one bit, one byte of length or one block at a time, after a real broker's clean stop, its death, and a
//! power cut: each harm is detected or without effect.
//!
//! The short form runs always. The long one: `PEREGRINE_TEST_FLIPS=20000 PEREGRINE_TEST_BLOCKS=20000 PEREGRINE_TEST_EVERY_BYTE=1 cargo
//! test -p peregrine-tests --test harmed_files -- --nocapture`. A violation leaves the files in a folder and prints the command that
//! does that harm to them again.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use peregrine_broker::control::directory::DataDirectory;
use peregrine_broker::control::settings::Identity;
use peregrine_tests::harm::{Harm, Outcome, Place, Reference, State, Stop};
use peregrine_tests::random::Random;

const STOPS: [Stop; 3] = [Stop::Clean, Stop::Kill, Stop::Power];
/// A harm that a start outlives is looked at by the start after it, one time in so many.
const LOOKED_AT_AGAIN: u64 = 8;
/// The end of a file that is cut at each of its bytes.
const CUT_BYTES: usize = 64 << 10;
/// Cuts of each file in the short form.
const CUTS: u64 = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

/// The states to harm, with what is in them: with checkpoints and without.
fn states(random: &mut Random) -> Vec<(State, Reference)> {
    let after = STOPS.map(|stop| State::after(stop, random));
    let both = after.into_iter().flat_map(|state| [state.without_checkpoints(), state]);
    let with_reference = both.map(|state| {
        let reference = Reference::of(&state);
        (state, reference)
    });
    with_reference.collect()
}

/// Kinds of files by outcomes.
#[derive(Default)]
struct Table(BTreeMap<(Place, Outcome), u64>);

impl Table {
    fn count(&mut self, state: &State, reference: &Reference, harm: &Harm, again: bool) {
        match reference.try_harm(state, harm, again) {
            Ok(outcome) => *self.0.entry((harm.place(state), outcome)).or_default() += 1,
            Err(violation) => {
                let folder = state.keep();
                panic!(
                    "{:?}, {harm}: {}\n  replay: PEREGRINE_TEST_STATE={} PEREGRINE_TEST_HARM={harm} cargo test -p \
                     peregrine-tests --test harmed_files one_harm -- --nocapture",
                    state.stop,
                    violation.0,
                    folder.display()
                );
            }
        }
    }

    fn print(&self, what: &str, began: Instant) {
        const OUTCOMES: [Outcome; 5] =
            [Outcome::Refused, Outcome::Told, Outcome::PutAside, Outcome::NoEffect, Outcome::TornTail];
        let total: u64 = self.0.values().sum();
        println!("{total} {what}, {:.0} s: 0 violations", began.elapsed().as_secs_f64());
        print!("| {:<20} |", "");
        for outcome in OUTCOMES {
            print!(" {outcome:>13} |");
        }
        println!();
        let mut places: Vec<_> = self.0.keys().map(|(place, _)| *place).collect();
        places.dedup();
        for place in places {
            print!("| {place:<20} |");
            for outcome in OUTCOMES {
                print!(" {:>13} |", self.0.get(&(place, outcome)).copied().unwrap_or_default());
            }
            println!();
        }
    }
}

#[test]
fn harm_to_a_file_is_found_or_does_nothing() {
    let mut random = Random::for_test();
    let states = states(&mut random);
    for (state, reference) in &states {
        let (entries, messages) = reference.counts();
        println!("{:?}: {} files, {entries} entries, {messages} messages", state.stop, state.medium.names().len());
    }
    flip_bits(&states, &mut random);
    change_blocks(&states, &mut random);
    cut_files(&states, &mut random);
}

fn flip_bits(states: &[(State, Reference)], random: &mut Random) {
    let (mut table, began) = (Table::default(), Instant::now());
    for flip in 0..number("PEREGRINE_TEST_FLIPS", 1_000) {
        let (state, reference) = &states[flip as usize % states.len()];
        let harm = Harm::random_flip(state, random);
        table.count(state, reference, &harm, random.below(LOOKED_AT_AGAIN) == 0);
    }
    table.print("flips of a bit", began);
}

fn change_blocks(states: &[(State, Reference)], random: &mut Random) {
    let (mut table, began) = (Table::default(), Instant::now());
    for block in 0..number("PEREGRINE_TEST_BLOCKS", 400) {
        let (state, reference) = &states[block as usize % states.len()];
        let harm = Harm::random_block(state, random);
        table.count(state, reference, &harm, random.below(LOOKED_AT_AGAIN) == 0);
    }
    table.print("blocks zeroed, swapped or doubled", began);
}

fn cut_files(states: &[(State, Reference)], random: &mut Random) {
    let every_byte = number("PEREGRINE_TEST_EVERY_BYTE", 0) > 0;
    let (mut table, began) = (Table::default(), Instant::now());
    for (state, reference) in states {
        for file in state.medium.names().into_iter().chain(state.medium.ring_names()) {
            let len = state.written(&file);
            let from = len.saturating_sub(CUT_BYTES);
            let drawn = (0..CUTS).map(|_| from + random.below((len - from).max(1) as u64) as usize);
            let lengths: Vec<usize> = if every_byte { (from..len).collect() } else { drawn.collect() };
            for length in lengths {
                table.count(state, reference, &Harm::Truncate { file: file.clone(), length }, false);
            }
        }
    }
    table.print("files cut", began);
}

/// The file that says who the data directory is: each of its bits.
#[test]
fn a_flip_in_the_identity_of_a_directory_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let made = DataDirectory::lock(&data).unwrap().identity(Some(3), 3).unwrap();
    let path = data.join("identity");
    let bytes = fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut harmed = bytes.clone();
        harmed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, harmed).unwrap();
        let read = DataDirectory::lock_existing(&data).unwrap().existing_identity();
        let same = |read: Identity| (read.id, read.secret, read.shards) == (made.id, made.secret, made.shards);
        assert!(read.is_err() || read.is_ok_and(same), "bit {bit}");
    }
}

/// Does one harm to a state that a violation left.
#[test]
fn one_harm() {
    let (Some(folder), Ok(harm)) = (std::env::var_os("PEREGRINE_TEST_STATE"), std::env::var("PEREGRINE_TEST_HARM"))
    else {
        return;
    };
    let state = State::kept(&PathBuf::from(folder));
    let reference = Reference::of(&state);
    let harm: Harm = harm.parse().unwrap();
    let outcome = reference.try_harm(&state, &harm, true);
    println!("{harm}: {outcome:?}");
    assert!(outcome.is_ok());
}
