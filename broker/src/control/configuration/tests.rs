use std::collections::HashSet;
use std::io::Write;

use super::table::TABLE;
use super::*;
use peregrine_protocol::ids::Nanos;

use crate::control::settings::{GroupTimes, Idle, TestFault};

fn parsed(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command, String> {
    let arguments = ["peregrine-broker"].iter().chain(arguments).map(Into::into);
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(arguments.collect::<Vec<_>>(), environment.collect::<Vec<_>>())
}

fn configured(arguments: &[&str], environment: &[(&str, &str)]) -> Configuration {
    match parsed(&[&["--data", "/d"], arguments].concat(), environment) {
        Ok(Command::Serve(configuration)) => *configuration,
        other => panic!("{other:?}"),
    }
}

fn settled(arguments: &[&str]) -> Result<Settings, String> {
    configured(arguments, &[]).settle(2, None)
}

#[test]
fn the_table_is_consistent() {
    let keys: HashSet<_> = TABLE.iter().map(|row| row.key).collect();
    assert_eq!(keys.len(), TABLE.len(), "no key twice");
    for row in TABLE {
        assert!(row.help.ends_with('.') && row.reason.ends_with('.'), "{}: sentences", row.key);
        if let Some(default) = row.default {
            assert_eq!((row.take)(&mut Draft::empty(), default), Ok(()), "{}: its default", row.key);
        }
    }
}

#[test]
fn the_reference_is_fresh() {
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/CONFIGURATION.md")).unwrap_or_default();
    assert!(committed == reference(), "run: peregrine-broker reference > broker/CONFIGURATION.md");
}

#[test]
fn defaults_are_those_of_the_design() {
    let configuration = configured(&[], &[]);
    assert_eq!(configuration.listen.to_string(), "127.0.0.1:7400");
    assert_eq!(configuration.ring_directory(), Some(&PathBuf::from("/dev/shm")));
    assert!(!configuration.ring_directory_chosen);
    let settings = settled(&[]).unwrap();
    assert_eq!((settings.idle, settings.ring_bytes, settings.segment_bytes), (Idle::Adaptive, 64 << 20, 256 << 20));
    assert_eq!((settings.message_max, settings.frame_max), (4 << 20, 16 << 20));
    assert!(settings.largest_entry <= 16 << 20 && settings.batch_max > (16 << 20) - 512);
}

#[test]
fn a_flag_wins_over_a_variable_and_that_over_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "ring_size = \"2MiB\"\nsegment_size = 8388608\nflush_depth = 3\naccept_loss = true").unwrap();
    let path = file.path().to_str().unwrap();
    let environment = [("PEREGRINE_RING_SIZE", "4MiB"), ("PEREGRINE_SEGMENT_SIZE", "16MiB"), ("PATH", "/bin")];
    let configuration = configured(&["--config", path, "--ring-size=8MiB"], &environment);
    assert!(configuration.unknown_variables.is_empty());
    let settings = configuration.settle(1, None).unwrap();
    assert_eq!((settings.ring_bytes, settings.segment_bytes), (8 << 20, 16 << 20));
    assert_eq!((settings.flush.depth, settings.accept_loss), (3, true));
}

#[test]
fn a_switch_needs_no_value() {
    assert!(!settled(&[]).unwrap().accept_loss);
    assert!(settled(&["--accept-loss"]).unwrap().accept_loss);
    assert!(!settled(&["--accept-loss=false"]).unwrap().accept_loss);
}

#[test]
fn settings_that_repeat_come_in_lists() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "discard_ring = [\"0:7\", \"1:8\"]\ntest_fault = \"hold-flushes\"").unwrap();
    let configuration = configured(&["--config", file.path().to_str().unwrap()], &[]);
    let settings = configuration.settle(2, None).unwrap();
    assert_eq!(settings.discard_ring(peregrine_protocol::ids::ShardId(1)), Some(peregrine_protocol::ids::Epoch(8)));
    assert_eq!(settings.discard_ring(peregrine_protocol::ids::ShardId(2)), None);
    assert_eq!(settings.test_faults, [TestFault::HoldFlushes]);
    refused(settled(&["--discard-ring=2:9"]), &["shard 2"]);
    let settings = settled(&["--test-fault", "hold-write=3", "--test-fault=kill-after-step=2"]).unwrap();
    assert_eq!(settings.test_faults, [TestFault::HoldWrite(3), TestFault::KillAfterStep(2)]);
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, String>, words: &[&str]) {
    let sentence = result.unwrap_err();
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_source() {
    refused(parsed(&["--data=/d", "--ring-size=3MiB"], &[]), &["--ring-size", "power of two"]);
    refused(parsed(&["--data=/d"], &[("PEREGRINE_IDLE", "sleep")]), &["PEREGRINE_IDLE", "spin, adaptive, park"]);
    refused(parsed(&["--data=/d", "--ring-sise=3MiB"], &[]), &["--ring-sise"]);
    refused(parsed(&["--data=/d", "--log-filter=a=b=c"], &[]), &["--log-filter"]);
    refused(parsed(&[], &[]), &["--data"]);
    refused(parsed(&["--data=/d", "--config=/nowhere/x.toml"], &[]), &["/nowhere/x.toml"]);
    for (content, word) in
        [("ring_sise = 1", "ring_sise"), ("[ring]\nsize = 1", "ring"), ("idle = 1.5", "idle"), ("x", "")]
    {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{content}").unwrap();
        let path = file.path().to_str().unwrap();
        refused(parsed(&["--data=/d", "--config", path], &[]), &[path, word]);
    }
}

#[test]
fn how_long_groups_wait_for_their_members_is_what_was_said() {
    let said = ["--group-silence=3s", "--group-grace=0s", "--group-drain=200ms"];
    let (silence, grace, drain) = (Nanos::from_secs(3), Nanos::ZERO, Nanos::from_millis(200));
    assert_eq!(settled(&said).unwrap().groups, GroupTimes { silence, grace, drain });
    assert_eq!(settled(&[]).unwrap().groups.drain, Nanos::from_secs(5));
    for setting in ["--group-silence=3601s", "--group-grace=3601s", "--group-drain=3601s"] {
        refused(parsed(&["--data=/d", setting], &[]), &[setting.split('=').next().unwrap(), "1h"]);
    }
}

#[test]
fn limits_that_do_not_fit_each_other_are_refused() {
    let small = ["--ring-size=1MiB", "--segment-size=4MiB"];
    let settings = settled(&small).unwrap();
    assert_eq!(settings.largest_entry, 256 << 10);
    assert_eq!(settings.message_max, (256 << 10) - 96);
    assert_eq!(settings.frame_max, settings.batch_max + 256);
    refused(settled(&[&small[..], &["--message-max=4MiB"]].concat()), &["message_max is 4 MiB", "ring", "262048"]);
    refused(settled(&[&small[..], &["--frame-max=4MiB"]].concat()), &["frame_max is 4 MiB", "ring"]);
    refused(settled(&["--frame-max=1MiB", "--message-max=1MiB"]), &["message_max is 1 MiB", "frame_max"]);
    assert_eq!(settled(&["--ring-size=1MiB", "--message-max=128KiB"]).unwrap().message_max, 128 << 10);
    let large =
        settled(&["--ring-size=1GiB", "--segment-size=1GiB", "--frame-max=200MiB", "--message-max=100MiB"]).unwrap();
    assert_eq!((large.message_max, large.frame_max), (100 << 20, 200 << 20));
}

#[test]
fn unknown_variables_are_told_of() {
    let environment =
        [("PEREGRINE_RING_SISE", "1MiB"), ("PEREGRINE_BROKER", "localhost:1"), ("PEREGRINE_TEST_KILLS", "5")];
    assert_eq!(configured(&[], &environment).unknown_variables, ["PEREGRINE_RING_SISE"]);
}

#[test]
fn help_names_every_setting_but_the_hidden() {
    let Ok(Command::Print(help)) = parsed(&["--help"], &[]) else { panic!("help is printed") };
    for row in TABLE {
        assert_eq!(help.contains(&format!("--{}", row.flag())), !row.hidden, "{}", row.key);
    }
    assert!(matches!(parsed(&["--version"], &[]), Ok(Command::Print(_))));
}

#[test]
fn echo_takes_what_the_load_generator_gives() {
    let echo = parsed(&["echo", "--listen", "127.0.0.1:0", "--idle", "spin", "--core", "1"], &[]);
    let Ok(Command::Echo(options)) = echo else { panic!("{echo:?}") };
    assert_eq!((options.idle, options.core, options.listen.port()), (Idle::Spin, Some(1), 0));
    assert_eq!(options.adaptive_spin, std::time::Duration::from_micros(50));
}
