//! The load generator against a real broker: every message is accounted for, and a broker that stands still for 200 ms
//! shows in the percentiles as computed.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::programs::{program, wait_for_exit};
use serde_json::Value;

/// Longest wait for a run of a few seconds to end.
const RUN_WITHIN: Duration = Duration::from_mins(1);

/// A running load generator.
struct Load {
    child: Child,
    json: std::path::PathBuf,
}

impl Load {
    /// Starts a run without floors, and returns when the first message is about to be due.
    fn start(broker: &Broker, arguments: &[&str]) -> Self {
        let json = broker.home().join("report.json");
        let mut child = Command::new(program("peregrine-loadgen"))
            .args(["run", "--broker", &broker.address().to_string(), "--floor-duration", "0"])
            .args(arguments)
            .arg("--json")
            .arg(&json)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.starts_with("load: "), "the generator said {line:?} instead of starting");
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Load { child, json }
    }

    fn report(mut self) -> Value {
        let status = wait_for_exit(&mut self.child, RUN_WITHIN).expect("the run ends");
        assert!([Some(0), Some(3)].contains(&status.code()), "the run ended with {status}");
        serde_json::from_slice(&std::fs::read(&self.json).unwrap()).unwrap()
    }
}

#[test]
fn every_message_of_a_run_is_accounted_for() {
    for shards in [1, 2] {
        let broker = Settings::default().shards(shards).start();
        for level in ["memory", "synced"] {
            let arguments =
                ["--rate=2000", "--size=300", "--duration=1s", "--warmup=500ms", "--topics=2", "--queues=3"];
            let load = Load::start(&broker, &[&arguments[..], &["--level", level, "--producers=3"]].concat());
            let report = load.report();
            for count in ["sent", "acknowledged", "delivered"] {
                assert_eq!(report[count], 3_000, "{shards} shards, {level}: {report:#}");
            }
            for anomaly in ["lost", "duplicate", "reordered", "corrupt", "rejected", "stray_answers"] {
                assert_eq!(report[anomaly], 0, "{shards} shards, {level}, {anomaly}: {report:#}");
            }
            assert_eq!((&report["shards"], &report["level"]), (&shards.into(), &level.into()));
            for metric in ["acknowledged", "end_to_end", "schedule_lag"] {
                assert_eq!(report["latency_us"][metric]["count"], 2_000, "{metric}: {report:#}");
            }
        }
    }
}

/// Of the messages of a measured span of length `span`, those due while the broker stands still for `stall` wait for what
/// is left of it: at quantile q the latency is `stall − (1 − q) · span`. A generator that counted from the actual send, or
/// waited for answers before it sent on, would show a handful of slow messages instead of 4 %.
#[test]
fn a_stopped_broker_shows_in_the_percentiles_as_computed() {
    let broker = Settings::default().start();
    let span = Duration::from_secs(5);
    let load =
        Load::start(&broker, &["--rate=2000", "--size=200", "--duration=5s", "--warmup=500ms", "--level=memory"]);
    // Into the middle of the measured span; how long the broker then really stands still is measured.
    std::thread::sleep(Duration::from_secs(2));
    let before_stop = Instant::now();
    broker.freeze();
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    let stall_min = stopped.elapsed();
    broker.thaw();
    let stall_max = before_stop.elapsed();

    let report = load.report();
    assert_eq!((&report["acknowledged"], &report["lost"]), (&11_000.into(), &0.into()));
    // What the machine adds to a figure: others use its cores while tests run, and a held-up queue takes time to drain.
    let machine = Duration::from_millis(100);
    for metric in ["acknowledged", "end_to_end"] {
        for (name, beyond) in [("p99", 0.01), ("p99.9", 0.001), ("max", 0.0)] {
            let found = Duration::from_secs_f64(report["latency_us"][metric][name].as_f64().unwrap() / 1e6);
            let computed_min = stall_min.saturating_sub(span.mul_f64(beyond));
            // A sample more or less at the rank, and 3 significant digits.
            let tolerance = Duration::from_millis(2);
            assert!(found + tolerance >= computed_min, "{metric} {name}: {found:?} is below {computed_min:?}");
            let computed_max = stall_max.saturating_sub(span.mul_f64(beyond));
            assert!(found <= computed_max + machine, "{metric} {name}: {found:?} is above {computed_max:?}");
        }
        let median = report["latency_us"][metric]["p50"].as_f64().unwrap();
        assert!(median < 50_000.0, "{metric}: the median of {median} µs is not the stall's");
    }
}

/// What 2,000 messages a second for 1.5 s come to with two groups: each of them sees everything.
#[test]
fn each_group_sees_every_message_of_a_run() {
    for shards in [1, 2] {
        let broker = Settings::default().shards(shards).start();
        let load = Load::start(
            &broker,
            &["--rate=2000", "--size=300", "--duration=1s", "--warmup=500ms", "--groups=2", "--consumers=3"],
        );
        let report = load.report();
        assert_eq!((&report["acknowledged"], &report["delivered"]), (&3_000.into(), &6_000.into()), "{report:#}");
        assert_eq!(report["latency_us"]["end_to_end"]["count"], 4_000, "{report:#}");
        let groups = report["groups"].as_array().unwrap();
        assert_eq!(groups.len(), 2);
        for group in groups {
            assert_eq!(group["delivered"], 3_000, "{shards} shards: {report:#}");
            for anomaly in ["lost", "duplicate", "redelivered", "reordered", "corrupt"] {
                assert_eq!(group[anomaly], 0, "{shards} shards, {anomaly}: {report:#}");
            }
        }
        let left = broker.command_line().run(&["group", "list"]).succeeded();
        assert!(left.lines().iter().all(|line| !line.contains("loadgen")), "the run's groups are still there");
    }
}
