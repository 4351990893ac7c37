//! A broker writes checkpoints while it runs, and goes on from the newest good one: with every message, group and setting there.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::dataset::Dataset;

const LINES: usize = 2_000;

/// Checkpoints of shard 0 that count.
fn checkpoints(broker: &Broker) -> Vec<PathBuf> {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap().map(|file| file.unwrap().path());
    let is_checkpoint =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("checkpoint-"));
    let mut found: Vec<PathBuf> = files.filter(is_checkpoint).collect();
    found.sort();
    found
}

/// Log lines are written beside what they tell of.
fn says(broker: &Broker, what: &str) {
    eventually(what, Duration::from_secs(10), || broker.log().contains(what));
}

#[test]
fn a_start_goes_on_from_a_checkpoint_and_passes_over_damaged_ones() {
    let data = Dataset::flights(LINES);
    let mut broker = Settings::default().shards(1).argument("--checkpoint-age=100ms").start();
    broker.command_line().create_topic("flights", 4);
    let produce = |lines: &[String]| {
        let input = broker.home().join("lines");
        fs::write(&input, lines.join("\n") + "\n").unwrap();
        let input = input.to_str().unwrap();
        broker
            .command_line()
            .run(&["produce", "flights", input, "--key-delimiter", ",", "--key-field", "1"])
            .succeeded();
    };
    let (first, second) = data.lines().split_at(LINES / 2);
    produce(first);
    let mut others = 0;
    eventually("two checkpoints", Duration::from_secs(20), || {
        // Something has to come, or none is due.
        others += 1;
        broker.command_line().create_topic(&format!("other-{others}"), 1);
        checkpoints(&broker).len() == 2
    });
    produce(second);
    broker.kill_nine();
    broker.start_again();
    says(&broker, " checkpoint=");
    data.assert_delivered(&broker.command_line().consume_all("flights"));

    // Whatever becomes of them, the log tells it all.
    broker.kill_nine();
    for path in checkpoints(&broker) {
        let mut bytes = fs::read(&path).unwrap();
        // In the first section, behind the block of the head.
        bytes[4096 + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    broker.start_again();
    says(&broker, "a checkpoint is of no use and was passed over");
    data.assert_delivered(&broker.command_line().consume_all("flights"));
}
