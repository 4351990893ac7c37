//! The background scrub beside a log that runs.

use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::bench::{Bench, Process, SimulatedLog};
use crate::log::options::ScrubOptions;

const RATE: u64 = 4 << 20;
const FIRST: &str = "00000000000000000000-0000000001";
const EVERY: Nanos = Nanos::from_secs(60);

/// A log with a few sealed segments, and the scrub switched on.
fn scrubbed(bench: &mut Bench) -> Process {
    bench.options.scrub = ScrubOptions { rate: Some(RATE), every: EVERY };
    let mut process = bench.start();
    process.append_all(0..2500, Synced, 5000);
    process.wait_durable();
    process.wait_until(|log| {
        let (sealed, indexed) = log.indexes().counts();
        sealed > 1 && sealed == indexed
    });
    assert_eq!(process.log.counters().scrubbed_segments, 0, "it begins when it is due");
    process
}

fn wait_for_round(process: &mut Process) {
    let rounds = process.log.counters().scrub_rounds;
    process.wait_until(|log| log.counters().scrub_rounds > rounds);
}

/// Indexes made again, segments that could not be read, and damaged ones.
fn found(log: &SimulatedLog) -> (u64, u64, u64) {
    let counters = log.counters();
    (counters.scrub_bad_indexes, counters.scrub_unread, counters.scrub_damaged)
}

#[test]
fn a_round_reads_every_sealed_segment_at_its_rate_and_finds_nothing_in_a_sound_log() {
    let mut bench = Bench::new();
    let mut process = scrubbed(&mut bench);
    process.wait_until(|log| log.counters().scrubbed_segments > 0);
    let (began, first) = (process.now(), process.log.counters());
    wait_for_round(&mut process);
    let counters = process.log.counters();
    assert_eq!(counters.scrubbed_segments as usize, process.log.indexes().counts().0);
    assert_eq!(found(&process.log), (0, 0, 0));
    let bytes = counters.scrubbed_bytes - first.scrubbed_bytes;
    let took = process.now() - began;
    let least = bytes * 1_000_000_000 / RATE;
    assert!(took >= least, "{bytes} bytes took {took} ns, and at that rate they take {least}");
    assert!(took < 2 * least, "{bytes} bytes took {took} ns, and at that rate they take {least}");
    wait_for_round(&mut process);
    assert_eq!(process.log.counters().scrubbed_segments, 2 * counters.scrubbed_segments, "and again");
}

#[test]
fn a_bit_that_flips_in_a_segment_is_told_of_and_the_rest_is_served() {
    let mut bench = Bench::new();
    let mut process = scrubbed(&mut bench);
    bench.flip(FIRST, LogPosition(0), LogPosition(100_000));
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (0, 0, 1));
    let indexes = process.log.indexes();
    let asked = indexes.lookup(TopicId(1), QueueId(0), QueueOffset(0), LogPosition(0), 1);
    assert_eq!(bench.machine.block_on(asked).unwrap()[0].offset, QueueOffset(0), "its index is what it was");
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (0, 0, 2), "it is told of in every round");
}

#[test]
fn an_index_that_is_bad_is_made_again() {
    let mut bench = Bench::new();
    let mut process = scrubbed(&mut bench);
    let name = format!("index-{FIRST}");
    let sound = bench.read_whole(&name);
    bench.flip_at(&name, sound.len() as u64 / 2);
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (1, 0, 0));
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (1, 0, 0));
    assert_eq!(bench.read_whole(&name), sound);
}

#[test]
fn a_segment_that_cannot_be_read_is_tried_again_in_the_next_round() {
    let mut bench = Bench::new();
    let mut process = scrubbed(&mut bench);
    bench.set_readable(FIRST, LogPosition(0), LogPosition(100_000), false);
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (0, 1, 0));
    bench.set_readable(FIRST, LogPosition(0), LogPosition(100_000), true);
    wait_for_round(&mut process);
    assert_eq!(found(&process.log), (0, 1, 0));
}

#[test]
fn a_stop_gives_up_the_segment_that_is_being_read() {
    let mut bench = Bench::new();
    let mut process = scrubbed(&mut bench);
    process.wait_until(|log| log.counters().scrubbed_segments > 0);
    let (now, before) = (process.now(), process.log.counters().scrubbed_segments);
    process.log.begin_close();
    process.wait_until(|log| log.close_state() == crate::log::CloseState::Done);
    assert_eq!(process.log.counters().scrubbed_segments, before);
    assert!(process.now() - now < 1_000_000_000, "it is not waited for: a segment takes a second");
    process.log.finish_close().unwrap();
}
