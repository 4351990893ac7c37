//! The background scrub of a real broker: what flips while it runs is found while it runs.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::connection::Connection;
use peregrine_tests::programs::program;

const MESSAGES: usize = 12_000;
const LINE: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(60);

/// What the scrub of the only shard counts.
fn scrub(broker: &Broker, count: &str) -> u64 {
    let statistics = Connection::open(broker.address(), None).shard_statistics();
    statistics["shards"][0]["scrub"][count].as_u64().unwrap()
}

fn oldest(broker: &Broker, prefix: &str) -> PathBuf {
    let files = fs::read_dir(broker.data().join("shard-0000")).unwrap().map(|file| file.unwrap());
    let names = files.map(|file| file.file_name().into_string().unwrap()).filter(|name| name.starts_with(prefix));
    broker.data().join("shard-0000").join(names.min().unwrap())
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

fn wait_for_round(broker: &Broker) {
    let rounds = scrub(broker, "rounds");
    // The one that was under way may have passed by.
    eventually("two rounds are over", LIMIT, || scrub(broker, "rounds") >= rounds + 2);
}

#[test]
fn what_flips_at_rest_is_found_by_a_broker_that_runs() {
    let settings = Settings::default().shards(1).segment_bytes(4 << 20).ring_bytes(4 << 20);
    let mut broker = settings.argument("--scrub-every=200ms").argument("--scrub-rate=256MiB").start();
    broker.command_line().create_topic("t", 1);
    let lines: Vec<String> = (0..MESSAGES).map(|number| format!("{number:0LINE$}")).collect();
    let input = broker.home().join("lines");
    fs::write(&input, lines.join("\n") + "\n").unwrap();
    broker.command_line().run(&["produce", "t", input.to_str().unwrap()]).succeeded();
    wait_for_round(&broker);
    assert_eq!(["bad_indexes", "unread", "damaged"].map(|count| scrub(&broker, count)), [0, 0, 0]);

    let index = oldest(&broker, "index-");
    let sound = fs::read(&index).unwrap();
    flip(&index, sound.len() as u64 / 2);
    eventually("the bad index is found", LIMIT, || scrub(&broker, "bad_indexes") == 1);
    eventually("it is made again", LIMIT, || fs::read(&index).is_ok_and(|bytes| bytes == sound));
    assert_eq!(broker.command_line().consume_all("t").len(), MESSAGES);

    let segment = oldest(&broker, "0");
    flip(&segment, 1 << 20);
    eventually("the damage is found", LIMIT, || scrub(&broker, "damaged") > 0);
    let told = broker.log();
    assert!(told.contains("the scrub found a segment that is damaged"), "{told}");
    assert!(told.contains(&segment.file_name().unwrap().to_string_lossy().into_owned()), "{told}");
    let last = (MESSAGES - 1).to_string();
    let consumed = broker.command_line().run(&["consume", "t", "--queue", "0", "--from", &last, "--max", "1"]);
    assert_eq!(consumed.succeeded().lines(), [lines[MESSAGES - 1].as_str()], "the rest is served");

    assert!(broker.terminate().success(), "a stop does not wait for the round");
    let check =
        Command::new(program("peregrine-broker")).args(["check", "--data"]).arg(broker.data()).output().unwrap();
    assert_eq!(check.status.code(), Some(1), "{}", String::from_utf8_lossy(&check.stdout));
}
