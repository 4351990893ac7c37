//! Retention of a real broker: old segments are given up, readers behind them are told where messages begin, groups go on there, and
//! all of it holds over kills and restarts.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use peregrine_tests::broker::{Broker, Settings, eventually};

const SIZE: u64 = 16 << 20;
/// Segment sizes double up to this one.
const SEGMENT: u64 = 4 << 20;
const LINE: usize = 1_000;

fn segments(broker: &Broker) -> Vec<String> {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut segments: Vec<_> = names.filter(|name| name.starts_with('0')).collect();
    segments.sort();
    segments
}

/// Lines that tell their number, long enough that a few thousand fill segments.
fn produce(broker: &Broker, numbers: std::ops::Range<usize>) {
    let lines: Vec<String> = numbers.map(|number| format!("{number:0LINE$}")).collect();
    let input = broker.home().join("lines");
    fs::write(&input, lines.join("\n") + "\n").unwrap();
    broker.command_line().run(&["produce", "t", input.to_str().unwrap()]).succeeded();
}

fn numbers(lines: &[String]) -> Vec<usize> {
    lines.iter().map(|line| line.trim().parse().unwrap()).collect()
}

#[test]
fn the_oldest_messages_are_given_up_and_nothing_else_is() {
    let settings = Settings::default().shards(1).segment_bytes(SEGMENT).argument("--checkpoint-age=100ms");
    let mut broker = settings.argument(format!("--retention-size={SIZE}")).start();
    broker.command_line().create_topic("t", 1);
    let first = segments(&broker)[0].clone();
    let mut produced = 0;
    eventually("the first segment is given up", Duration::from_secs(60), || {
        produce(&broker, produced..produced + 5_000);
        produced += 5_000;
        !segments(&broker).contains(&first)
    });

    // Nothing more is given up while it is looked at.
    broker.kill_nine();
    broker.set_arguments(&[]);
    broker.start_again();
    // What is kept is the end of what was stored, without a gap.
    let kept = numbers(&broker.command_line().consume_all("t"));
    assert!(kept[0] > 0, "something was given up");
    assert_eq!(kept, (kept[0]..produced).collect::<Vec<_>>());
    // Who asks for what is gone is told.
    let told = broker.command_line().run(&["consume", "t", "--queue", "0", "--from", "0", "--max", "1"]).succeeded();
    assert!(told.stderr.contains("keeps its messages from offset"), "{}", told.stderr);

    assert!(broker.terminate().success());
    broker.start_again();
    assert_eq!(numbers(&broker.command_line().consume_all("t")), kept);
}

/// All that is kept, to the last that was produced. While retention goes on, a reader may be told that it is behind the first that is.
fn all_kept(broker: &Broker, produced: usize) -> Vec<usize> {
    let mut kept = Vec::new();
    eventually("all that is kept is read, without a gap", Duration::from_secs(30), || {
        kept = numbers(&broker.command_line().consume_all("t"));
        kept.first().is_some_and(|&first| kept.iter().copied().eq(first..produced))
    });
    kept
}

/// Files that were segments and wait to be the next ones.
fn waiting(broker: &Broker) -> Vec<String> {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    // Those made anew count from 0 behind the epoch.
    names.filter(|name| name.starts_with("spare-") && name.len() == "spare-".len() + 20 + 1 + 10).collect()
}

#[test]
fn the_file_of_a_segment_is_used_again() {
    let settings = Settings::default().shards(1).segment_bytes(SEGMENT).argument("--checkpoint-age=100ms");
    let mut broker = settings.argument(format!("--retention-size={SIZE}")).start();
    broker.command_line().create_topic("t", 1);
    let mut produced = 0;
    let mut produce_until = |broker: &Broker, what: &str, come: &dyn Fn() -> bool| {
        eventually(what, Duration::from_secs(60), || {
            produce(broker, produced..produced + 2_000);
            produced += 2_000;
            come()
        });
        produced
    };
    produce_until(&broker, "a file waits", &|| !waiting(&broker).is_empty());
    let first = waiting(&broker)[0].clone();
    let produced = produce_until(&broker, "it is used, and the next one waits", &|| {
        let waiting = waiting(&broker);
        !waiting.is_empty() && !waiting.contains(&first)
    });
    assert!(all_kept(&broker, produced)[0] > 0, "something was given up");

    let left = waiting(&broker);
    broker.kill_nine();
    broker.start_again();
    assert!(waiting(&broker).iter().all(|name| !left.contains(name)), "{left:?}: it was unlinked");
    all_kept(&broker, produced);
}

/// A segment goes when two checkpoints of the run know what it said, and checkpoints came only while messages did: a shard at rest, or one
/// whose disk was full, kept what was due until somebody produced again.
#[test]
fn a_shard_at_rest_gives_up_what_is_due() {
    let settings = Settings::default().shards(1).segment_bytes(SEGMENT).argument("--checkpoint-age=100ms");
    let mut broker = settings.start();
    broker.command_line().create_topic("t", 1);
    produce(&broker, 0..20_000);
    assert!(broker.terminate().success());
    let before = segments(&broker);
    assert!(before.len() > 3, "{before:?}");

    broker.set_arguments(&["--checkpoint-age=100ms", "--retention-age=1s"]);
    broker.start_again();
    // The last that held messages and the one that takes what comes are not due: nothing was stored behind them.
    let due = &before[..before.len() - 2];
    eventually("what is due is given up though nobody produces", Duration::from_secs(60), || {
        let left = segments(&broker);
        due.iter().all(|segment| !left.contains(segment))
    });
    let kept = numbers(&broker.command_line().consume_all("t"));
    assert_eq!(kept, (kept[0]..20_000).collect::<Vec<_>>(), "only what is due is given up");
}
