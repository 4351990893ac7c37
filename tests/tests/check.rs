//! `peregrine-broker check`: a data directory verified as a whole, while no broker has it open.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use peregrine_protocol::ids::{DurableLevel, QueueId, TopicId};
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::connection::{Connection, Reply, Sent};
use peregrine_tests::programs::program;
use serde_json::Value;

const MESSAGES: u64 = 200;

fn with_messages(level: DurableLevel) -> Broker {
    let broker = Settings::default().shards(2).start();
    let topic = Connection::open(broker.address(), None).create_topic("checked", 2);
    send(&broker, topic, level);
    broker
}

fn send(broker: &Broker, topic: TopicId, level: DurableLevel) {
    let mut connection = Connection::open(broker.address(), None);
    for number in 0..MESSAGES {
        let bodies = [format!("message {number} of those to be checked")];
        for queue in [QueueId(0), QueueId(1)] {
            let reply = connection.produce(&Sent { topic, queue, level, producer: None, bodies: &bodies });
            assert!(matches!(reply, Reply::Produced(_)), "{reply:?}");
        }
    }
}

fn check(broker: &Broker) -> (Output, Value) {
    let output = Command::new(program("peregrine-broker"))
        .args(["check", "--json", "--data"])
        .arg(broker.data())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

/// Every file below the data directory, with its bytes.
fn contents(broker: &Broker) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut folders = vec![broker.data().to_path_buf()];
    let mut files = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    files
}

#[test]
fn a_sound_directory_is_sound_after_a_stop_and_after_a_kill_and_nothing_is_changed() {
    for level in [DurableLevel::Synced, DurableLevel::Memory] {
        let mut broker = with_messages(level);
        if level == DurableLevel::Synced {
            assert!(broker.terminate().success());
        } else {
            broker.kill_nine();
        }
        let before = contents(&broker);
        let (output, report) = check(&broker);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(report["sound"], true);
        let messages: u64 =
            report["shards"].as_array().unwrap().iter().map(|it| it["messages"].as_u64().unwrap()).sum();
        assert_eq!(messages, 2 * MESSAGES);
        assert!(contents(&broker) == before, "a check changes nothing");
        broker.start_again();
    }
}

/// A flipped bit in the middle of what is stored: the report says where, for machines and for people.
#[test]
fn damage_is_told_with_its_positions_and_offsets() {
    let mut broker = with_messages(DurableLevel::Synced);
    assert!(broker.terminate().success());
    let needle = b"message 100 of those";
    let mut holding = contents(&broker).into_iter().filter_map(|(path, bytes)| {
        let at = bytes.windows(needle.len()).position(|window| window == needle)?;
        Some((path, at as u64))
    });
    let (path, at) = holding.next().unwrap();
    let shard: usize = path.parent().unwrap().to_string_lossy().rsplit('-').next().unwrap().parse().unwrap();
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"M", at).unwrap();
    let (output, report) = check(&broker);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["sound"], false);
    assert_eq!(report["shards"][1 - shard]["sound"], true);
    let damage = &report["shards"][shard]["damage"];
    let extent = &damage["extents"][0];
    let (from, to) = (extent["from"].as_u64().unwrap(), extent["to"].as_u64().unwrap());
    assert!((from..to).contains(&(at - 4096)), "{damage}");
    assert_eq!(damage["queues"][0]["to"].as_u64().unwrap() - damage["queues"][0]["from"].as_u64().unwrap(), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is damaged"));
    let output =
        Command::new(program("peregrine-broker")).args(["check", "--data"]).arg(broker.data()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(&format!("positions {from}..{to}")) && told.contains("is damaged"), "{told}");
    assert_eq!(output.status.code(), Some(1));
}

/// A flipped bit in an index takes nothing, since the index is made again: the report says so, and so does the exit code.
#[test]
fn a_bad_index_is_told_and_is_no_loss() {
    let mut broker = Settings::default().shards(1).segment_bytes(4 << 20).ring_bytes(4 << 20).start();
    let topic = Connection::open(broker.address(), None).create_topic("checked", 1);
    let mut connection = Connection::open(broker.address(), None);
    let index = |broker: &Broker| {
        let is_index = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("index-");
        fs::read_dir(broker.data().join("shard-0000")).unwrap().map(|file| file.unwrap().path()).find(is_index)
    };
    eventually("an index is made", Duration::from_secs(60), || {
        for _ in 0..50 {
            let bodies = ["x".repeat(64 << 10)];
            let (queue, level) = (QueueId(0), DurableLevel::Synced);
            connection.produce(&Sent { topic, queue, level, producer: None, bodies: &bodies });
        }
        index(&broker).is_some()
    });
    assert!(broker.terminate().success());
    let (output, report) = check(&broker);
    assert_eq!((output.status.code(), &report["verdict"]), (Some(0), &"sound".into()));
    assert!(report["shards"][0]["indexes"].as_u64() > Some(0), "{report}");

    let path = index(&broker).unwrap();
    let byte = fs::read(&path).unwrap()[100];
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[byte ^ 4], 100).unwrap();
    let (output, report) = check(&broker);
    assert_eq!((output.status.code(), &report["verdict"]), (Some(3), &"harmless".into()));
    let told = &report["shards"][0]["harmless"][0];
    assert_eq!(told["name"], path.file_name().unwrap().to_str().unwrap());
    assert_eq!(report["sound"], true);

    broker.start_again();
    eventually("the index is made again", Duration::from_secs(60), || fs::read(&path).is_ok_and(|it| it[100] == byte));
}

#[test]
fn a_directory_in_use_and_one_that_is_none_are_refused() {
    let broker = with_messages(DurableLevel::Synced);
    let (output, report) = check(&broker);
    assert_eq!((output.status.code(), report), (Some(1), Value::Null));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"));
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program("peregrine-broker"))
        .args(["check", "--json", "--data"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no data directory"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made there");
}
