//! Real data through `kill -9`: the broker is killed and started again at random instants while `peregrine produce` sends, and at
//! the end each line is there exactly once, in order per key; so it is for a reader that follows over all the kills.
//!
//! The number of kills is 5 in each case, or that in `PEREGRINE_TEST_KILLS`.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::command_line::RunningCommand;
use peregrine_tests::dataset::{Dataset, KEY_DELIMITER, KEY_FIELD};
use peregrine_tests::random::Random;

const LINES: usize = 20_000;
const QUEUES: u32 = 8;
/// A kill comes up to this long after the lines before it were handed to the producer: a few flushes.
const KILL_WITHIN_MICROS: u64 = 5_000;

fn kills() -> usize {
    std::env::var("PEREGRINE_TEST_KILLS").map_or(5, |kills| kills.parse().expect("a number of kills"))
}

#[test]
fn killed_while_synced_messages_come_to_1_shard() {
    survives_kills(1, "synced");
}

#[test]
fn killed_while_synced_messages_come_to_2_shards() {
    survives_kills(2, "synced");
}

#[test]
fn killed_while_synced_messages_come_to_4_shards() {
    survives_kills(4, "synced");
}

#[test]
fn killed_while_memory_messages_come_to_1_shard() {
    survives_kills(1, "memory");
}

#[test]
fn killed_while_memory_messages_come_to_2_shards() {
    survives_kills(2, "memory");
}

#[test]
fn killed_while_memory_messages_come_to_4_shards() {
    survives_kills(4, "memory");
}

fn survives_kills(shards: u16, level: &str) {
    let mut random = Random::for_test();
    let data = Dataset::flights(LINES);
    // Checkpoints are taken as often as can be, so that kills fall between their steps too.
    let mut broker = Settings::default().shards(shards).argument("--checkpoint-age=100ms").start();
    broker.command_line().create_topic("flights", QUEUES);

    // A reader that follows over all the kills: what it has seen is never taken back, and it sees nothing twice.
    let all = LINES.to_string();
    let follow = ["consume", "flights", "--from", "earliest", "--follow", "--max", &all];
    let follower = RunningCommand::spawn(broker.command_line().command(&follow));

    let key_field = KEY_FIELD.to_string();
    let arguments =
        ["produce", "flights", "-", "--level", level, "--key-delimiter", KEY_DELIMITER, "--key-field", &key_field];
    let mut command = broker.command_line().command(&arguments);
    command.stdin(Stdio::piped());
    let mut producer = RunningCommand::spawn(command);
    let mut input = producer.take_input();

    let kills = kills();
    let mut cuts: Vec<usize> = (0..kills).map(|_| 1 + random.below(LINES as u64 - 2) as usize).collect();
    cuts.sort_unstable();
    let mut handed = 0;
    for (number, cut) in cuts.into_iter().enumerate() {
        hand_over(&mut input, &data.lines()[handed..cut]);
        handed = cut;
        if number == 0 {
            eventually("a first line is acknowledged", Duration::from_secs(20), || messages(&broker) > 0);
        }
        // The last lines are not sent before the last kill is over, so each kill falls between the first acknowledgement and the
        // last one. Where exactly is chance: a pause that stands for no condition.
        spin(Duration::from_micros(random.below(KILL_WITHIN_MICROS)));
        broker.kill_nine();
        let from_ring = broker.start_again().messages_from_ring;
        eprintln!("killed behind line {cut}: {from_ring} messages came back from the ring");
    }
    hand_over(&mut input, &data.lines()[handed..]);
    drop(input);

    let ended = producer.wait().succeeded();
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert_eq!(last, format!("acknowledged {LINES} of {LINES}"));
    data.assert_delivered(&broker.command_line().consume_all("flights"));
    let followed: Vec<String> = follower.wait().succeeded().lines().into_iter().map(str::to_owned).collect();
    data.assert_delivered(&followed);

    // A clean stop and another start change nothing.
    assert!(broker.terminate().success(), "a clean stop is a success");
    assert_eq!(broker.start_again().messages_from_ring, 0, "a clean stop leaves nothing in the ring alone");
    data.assert_delivered(&broker.command_line().consume_all("flights"));
}

/// The lines as the producer's input; waits while the pipe is full.
fn hand_over(input: &mut impl Write, lines: &[String]) {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    input.write_all(text.as_bytes()).expect("the producer reads its input");
}

/// Messages that readers see in all queues of the topic.
fn messages(broker: &Broker) -> usize {
    broker.command_line().consume_all("flights").len()
}

fn spin(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
