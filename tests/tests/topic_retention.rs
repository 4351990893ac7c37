//! Topics with a retention of their own in a real broker: their old messages are given up, those of others are not, whatever kills and
//! alterations come between.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use peregrine_tests::broker::{Broker, Settings, eventually};

const SEGMENT: u64 = 4 << 20;
const LINES: usize = 1_000;
const WAIT: Duration = Duration::from_secs(60);

fn produce(broker: &Broker, topic: &str, numbers: std::ops::Range<usize>) {
    let lines: Vec<String> = numbers.map(|number| format!("{number:0>200}")).collect();
    let input = broker.home().join("lines");
    fs::write(&input, lines.join("\n") + "\n").unwrap();
    broker.command_line().run(&["produce", topic, input.to_str().unwrap()]).succeeded();
}

fn numbers(broker: &Broker, topic: &str) -> Vec<usize> {
    broker.command_line().consume_all(topic).iter().map(|line| line.trim().parse().unwrap()).collect()
}

fn topic(broker: &Broker, arguments: &[&str]) -> String {
    let arguments: Vec<&str> = ["topic"].iter().chain(arguments).copied().collect();
    broker.command_line().run(&arguments).succeeded().stdout
}

#[test]
fn a_topics_old_messages_are_given_up_and_no_others() {
    let settings = Settings::default().shards(2).segment_bytes(SEGMENT).argument("--checkpoint-age=100ms");
    let mut broker = settings.start();
    topic(&broker, &["create", "short", "--queues", "2", "--retention-age", "1s"]);
    topic(&broker, &["create", "later", "--queues", "2"]);
    topic(&broker, &["create", "kept", "--queues", "2"]);
    for name in ["short", "later", "kept"] {
        produce(&broker, name, 0..LINES);
    }
    eventually("what is too old is given up", WAIT, || numbers(&broker, "short").is_empty());
    let told =
        broker.command_line().run(&["consume", "short", "--queue", "0", "--from", "0", "--max", "1"]).succeeded();
    assert!(told.stderr.contains("keeps its messages from offset"), "{}", told.stderr);
    let all: Vec<usize> = (0..LINES).collect();
    let kept = |broker: &Broker, name| {
        let mut kept = numbers(broker, name);
        kept.sort_unstable();
        kept
    };
    assert_eq!((kept(&broker, "later"), kept(&broker, "kept")), (all.clone(), all.clone()));

    // What was altered holds over a kill, and what was given up stays so.
    topic(&broker, &["alter", "short", "--retention-age", "none"]);
    topic(&broker, &["alter", "later", "--retention-age", "2s"]);
    broker.kill_nine();
    broker.start_again();
    assert!(topic(&broker, &["describe", "later", "--json"]).contains("\"retention_age_ms\":2000"));
    assert!(topic(&broker, &["list", "--json"]).contains("\"retention_age_ms\":null"));
    produce(&broker, "short", LINES..2 * LINES);
    eventually("what was altered counts", WAIT, || numbers(&broker, "later").is_empty());
    assert_eq!(kept(&broker, "short"), (LINES..2 * LINES).collect::<Vec<_>>(), "it keeps its messages again");
    assert_eq!(kept(&broker, "kept"), all);
}

/// Where memory has dropped what stands in sealed segments, their indexes say from where on messages are kept.
#[test]
fn what_stands_in_sealed_segments_is_given_up_in_order() {
    let settings = Settings::default().shards(1).segment_bytes(SEGMENT).argument("--checkpoint-age=100ms");
    let broker = settings.start();
    topic(&broker, &["create", "t", "--retention-age", "5s"]);
    let mut produced = 0;
    let mut last_first = 0;
    eventually("messages are given up while others come", WAIT, || {
        produce(&broker, "t", produced..produced + 20_000);
        produced += 20_000;
        let kept = numbers(&broker, "t");
        if let Some(&first) = kept.first() {
            // What is given up while it is read may be missing in the middle.
            assert!(kept.is_sorted_by(|a, b| a < b) && kept.last() == Some(&(produced - 1)), "order, and the end");
            assert!(first >= last_first, "a start goes back");
            last_first = first;
        }
        last_first > 40_000
    });
    topic(&broker, &["alter", "t", "--retention-age", "none"]);
    produce(&broker, "t", produced..produced + 1);
    let kept = numbers(&broker, "t");
    assert_eq!(kept, (kept[0]..=produced).collect::<Vec<_>>(), "what is kept has no gap");
}
