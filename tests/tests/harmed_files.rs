//! Files of a shard, harmed one bit, one byte of length or one block at a time, after a real broker's clean stop, its death, and a
//! power cut: each harm is detected or without effect.
//!
//! The short form runs always. The long ones: `PEREGRINE_TEST_FLIPS=20000 PEREGRINE_TEST_BLOCKS=20000 cargo test -p peregrine-tests
//! --test harmed_files -- --nocapture`, and with `PEREGRINE_TEST_EVERY_BYTE=1` the end of the log is cut and torn at each of its bytes.
//! A violation leaves the files in a folder and prints the command that does that harm to them again.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use peregrine_broker::control::directory::DataDirectory;
use peregrine_broker::control::settings::Identity;
use peregrine_tests::harm::{Harm, Outcome, Place, Reference, State, Stop};
use peregrine_tests::random::Random;

const STOPS: [Stop; 3] = [Stop::Clean, Stop::Kill, Stop::Power];
/// A harm that a start outlives is looked at by the start after it, one time in so many.
const LOOKED_AT_AGAIN: u64 = 8;
/// The end of a file that is cut.
const CUT_BYTES: usize = 64 << 10;
/// Cuts of each file; those of the log's last segment are done at each byte in the long form.
const CUTS: u64 = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

/// What is left after a stop, with what is in it: without checkpoints and with them.
fn states(stop: Stop, random: &mut Random) -> [(State, Reference); 2] {
    let state = State::after(stop, random);
    [state.without_checkpoints(), state].map(|state| {
        let reference = Reference::of(&state);
        (state, reference)
    })
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

    fn add(&mut self, other: &Table) {
        for (&key, &count) in &other.0 {
            *self.0.entry(key).or_default() += count;
        }
    }

    fn print(&self, what: &str) {
        const OUTCOMES: [Outcome; 5] =
            [Outcome::Refused, Outcome::Told, Outcome::PutAside, Outcome::NoEffect, Outcome::TornTail];
        let total: u64 = self.0.values().sum();
        println!("{total} {what}: 0 violations");
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

/// Each stop's files on a thread of their own.
#[test]
fn harm_to_a_file_is_found_or_does_nothing() {
    let (mut random, began) = (Random::for_test(), Instant::now());
    let stops = STOPS.map(|stop| (stop, random.fork()));
    let mut tables = [Table::default(), Table::default(), Table::default()];
    thread::scope(|scope| {
        for harming in stops.map(|(stop, mut random)| scope.spawn(move || harm(stop, &mut random))) {
            let of_stop = harming.join().unwrap_or_else(|panic| resume_unwind(panic));
            for (table, more) in tables.iter_mut().zip(&of_stop) {
                table.add(more);
            }
        }
    });
    let [flips, blocks, cuts] = tables;
    flips.print("flips of a bit");
    blocks.print("blocks zeroed, swapped or doubled");
    cuts.print("files cut or torn");
    println!("{:.0} s", began.elapsed().as_secs_f64());
}

fn harm(stop: Stop, random: &mut Random) -> [Table; 3] {
    let states = states(stop, random);
    for (state, reference) in &states {
        let (entries, messages) = reference.counts();
        println!("{stop:?}: {} files, {entries} entries, {messages} messages", state.medium.names().len());
    }
    let share = |variable, default| number(variable, default).div_ceil(STOPS.len() as u64);
    [
        change(&states, random, share("PEREGRINE_TEST_FLIPS", 1_000), Harm::random_flip),
        change(&states, random, share("PEREGRINE_TEST_BLOCKS", 400), Harm::random_block),
        cut_files(&states, random),
    ]
}

fn change(
    states: &[(State, Reference)],
    random: &mut Random,
    times: u64,
    draw: fn(&State, &mut Random) -> Harm,
) -> Table {
    let mut table = Table::default();
    for (state, reference) in states.iter().cycle().take(times as usize) {
        let harm = draw(state, random);
        table.count(state, reference, &harm, random.below(LOOKED_AT_AGAIN) == 0);
    }
    table
}

/// Files end early, or in zeros: a segment has its full length from the beginning, so that a torn one looks like that.
fn cut_files(states: &[(State, Reference)], random: &mut Random) -> Table {
    let every_byte = number("PEREGRINE_TEST_EVERY_BYTE", 0) > 0;
    let mut table = Table::default();
    for (state, reference) in states {
        let last_segment = state.last_written();
        for file in state.medium.names().into_iter().chain(state.medium.ring_names()) {
            let len = state.written(&file);
            let from = len.saturating_sub(CUT_BYTES);
            let is_log_end = file == last_segment;
            let drawn = (0..CUTS).map(|_| from + random.below((len - from).max(1) as u64) as usize);
            let places: Vec<usize> = if every_byte && is_log_end { (from..len).collect() } else { drawn.collect() };
            for at in places {
                table.count(state, reference, &Harm::Truncate { file: file.clone(), length: at }, false);
                table.count(state, reference, &Harm::Tear { file: file.clone(), offset: at }, false);
            }
        }
    }
    table
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
