//! What a run says at its end: the same facts as JSON, as a table for people, and as one `.hgrm` file per metric.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::audience::Audience;
use crate::clock::{Ns, SECOND};
use crate::latency::{Latencies, PERCENTILES};
use crate::tally::Tally;

/// The achieved rate must be at least this share of the asked one, in thousandths.
const ACHIEVED_MIN_THOUSANDTHS: f64 = 999.0;

/// The latencies of a report, in the order of the table.
#[derive(Debug, Default, Serialize)]
pub struct Metrics {
    /// Due instant → acknowledgement.
    pub acknowledged: Latencies,
    /// Due instant → delivery.
    pub end_to_end: Latencies,
    /// Due instant → the generator comes to the message.
    pub schedule_lag: Latencies,
    /// The same frames, connections and schedule against a bare echo.
    pub echo_floor: Latencies,
    /// Single-block synchronous direct writes.
    pub flush_floor: Latencies,
    /// How late an idle spinning thread sees the due instants.
    pub hiccup: Latencies,
}

impl Metrics {
    /// Name and latencies, in the order of the table.
    pub fn each(&self) -> [(&'static str, &Latencies); 6] {
        [
            ("acknowledged", &self.acknowledged),
            ("end_to_end", &self.end_to_end),
            ("schedule_lag", &self.schedule_lag),
            ("echo_floor", &self.echo_floor),
            ("flush_floor", &self.flush_floor),
            ("hiccup", &self.hiccup),
        ]
    }
}

/// How the run was shaped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Shape {
    /// Seconds before the measured span.
    pub warmup_s: f64,
    /// Seconds of the measured span.
    pub duration_s: f64,
    /// Topics.
    pub topics: u32,
    /// Queues of each.
    pub queues: u32,
    /// Producers.
    pub producers: u32,
    /// Consumers; with groups, members of each.
    pub consumers: u32,
    /// Consumer groups; 0 for readers.
    pub groups: u32,
    /// Whose bytes were sent: a file, or `random`.
    pub payload: String,
}

/// Where the generator ran.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GeneratorFacts {
    /// Cores that its threads were pinned to; empty where it was not pinned.
    pub cores: Vec<usize>,
    /// `spin` or `sleep`.
    pub idle: &'static str,
    /// Whether it shared cores with the broker's shards.
    pub shared_cores: bool,
}

/// What was measured per second.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Throughput {
    /// Acknowledgements within the measured span, per second.
    pub acknowledged_per_s: f64,
    /// Deliveries within the measured span, per second, all groups together.
    pub delivered_per_s: f64,
    /// Bytes of acknowledged message bodies per second, in MiB.
    pub acknowledged_mib_per_s: f64,
    /// The broker's flushes per second over the whole run; `null` where it does not count them.
    pub flushes_per_s: Option<f64>,
    /// Payload bytes that were replayed beside the load per second, in MiB; `null` where nothing was.
    pub replayed_mib_per_s: Option<f64>,
}

/// What one consumer group saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GroupCounts {
    /// Its name.
    pub group: String,
    /// Messages delivered at least once.
    pub delivered: u64,
    /// Acknowledged, and not delivered by the end of the drain time.
    pub lost: u64,
    /// Deliveries of messages that had been delivered, of which the broker did not say so.
    pub duplicate: u64,
    /// Deliveries of messages that had been delivered, by a later attempt: their queue had changed hands.
    pub redelivered: u64,
    /// First deliveries behind a later message of the same producer and queue.
    pub reordered: u64,
    /// Deliveries whose bytes were not those of the message that belongs there.
    pub corrupt: u64,
}

/// The whole report.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The durable level asked for.
    pub level: String,
    /// Messages a second asked for.
    pub rate: u64,
    /// Bytes of a message body.
    pub size: usize,
    /// The broker's shards.
    pub shards: u32,
    /// Whether the generator kept its schedule and the broker the rate.
    pub valid: bool,
    /// One sentence, where not.
    pub invalid_because: Option<String>,
    /// Messages sent, warm-up included, as are all counts.
    pub sent: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Messages delivered at least once; with groups this and the next four are sums over them.
    pub delivered: u64,
    /// Acknowledged, and not delivered by the end of the drain time.
    pub lost: u64,
    /// Deliveries of messages that had been delivered, of which the broker did not say so.
    pub duplicate: u64,
    /// First deliveries behind a later message of the same producer and queue.
    pub reordered: u64,
    /// Deliveries whose bytes were not those of the message that belongs there.
    pub corrupt: u64,
    /// Deliveries of messages that had been delivered, by a later attempt: their queue had changed hands. No fault.
    pub redelivered: u64,
    /// Group by group.
    pub groups: Vec<GroupCounts>,
    /// Messages refused for good.
    pub rejected: u64,
    /// Messages sent again after a retriable refusal.
    pub retried: u64,
    /// Messages that waited for their lane's window or their connection's buffer.
    pub held_back: u64,
    /// Answers to messages that were not on their way.
    pub stray_answers: u64,
    /// The latencies, in microseconds.
    pub latency_us: Metrics,
    /// What was measured per second.
    pub throughput: Throughput,
    /// How the run was shaped.
    pub shape: Shape,
    /// Where the generator ran.
    pub generator: GeneratorFacts,
    /// The broker's idle policy, if it says so.
    pub broker_idle: Option<String>,
    /// Sentences about what could not be measured or was not as it should be.
    pub notes: Vec<String>,
    /// Kernel, processor and number of cores.
    pub machine: String,
    /// The command line.
    pub command: String,
}

impl Report {
    /// Takes the counts and latencies of a closed account, and judges the run. `failure` is why it ended early.
    pub fn take(&mut self, tally: Tally, duration: Ns, failure: Option<String>) {
        self.sent = tally.sent;
        self.acknowledged = tally.acknowledged();
        self.delivered = tally.delivered();
        self.lost = if self.shape.consumers == 0 { 0 } else { tally.lost() };
        self.duplicate = tally.sum(|audience| audience.duplicate);
        self.redelivered = tally.sum(|audience| audience.redelivered);
        self.reordered = tally.sum(|audience| audience.reordered);
        self.corrupt = tally.sum(|audience| audience.corrupt);
        self.rejected = tally.rejected;
        self.retried = tally.retried;
        self.held_back = tally.held_back;
        self.stray_answers = tally.stray;
        let seconds = duration as f64 / SECOND as f64;
        self.throughput.acknowledged_per_s = tally.acknowledged_in_span as f64 / seconds;
        self.throughput.delivered_per_s = tally.delivered_in_span as f64 / seconds;
        self.throughput.acknowledged_mib_per_s =
            self.throughput.acknowledged_per_s * self.size as f64 / f64::from(1_u32 << 20);
        self.latency_us.acknowledged = tally.acknowledgement;
        self.latency_us.end_to_end = tally.end_to_end;
        self.latency_us.schedule_lag = tally.schedule_lag;
        self.invalid_because = failure.or_else(|| self.reason_against());
        self.valid = self.invalid_because.is_none();
    }

    /// Takes the counts of the groups, which are called `names`.
    pub fn take_groups(&mut self, tally: &Tally, names: &[String]) {
        let counts = |(name, seen): (&String, &Audience)| GroupCounts {
            group: name.clone(),
            delivered: seen.delivered(),
            lost: tally.lost_to(seen),
            duplicate: seen.duplicate,
            redelivered: seen.redelivered,
            reordered: seen.reordered,
            corrupt: seen.corrupt,
        };
        self.groups = names.iter().zip(tally.audiences()).map(counts).collect();
    }

    /// Whether each message that was acknowledged was delivered once to the readers or to each group, in order and whole, and none was refused.
    pub fn is_sound(&self) -> bool {
        self.lost + self.duplicate + self.reordered + self.corrupt + self.rejected + self.stray_answers == 0
    }

    fn reason_against(&self) -> Option<String> {
        let lag = self.latency_us.schedule_lag.percentile_ns("p90");
        let acknowledged = self.latency_us.acknowledged.percentile_ns("p90");
        let (Some(lag), Some(acknowledged)) = (lag, acknowledged) else {
            return Some("more than a tenth of the messages were never sent or never acknowledged".to_owned());
        };
        if lag > acknowledged / 2 {
            return Some(format!(
                "schedule lag p90 of {:.1} µs is more than half of acknowledged p90, {:.1} µs: the generator was too slow",
                lag as f64 / 1e3,
                acknowledged as f64 / 1e3
            ));
        }
        let mut achieved = vec![("acknowledged", self.throughput.acknowledged_per_s)];
        if self.shape.consumers > 0 {
            let audiences = f64::from(self.shape.groups.max(1));
            achieved.push(("delivered", self.throughput.delivered_per_s / audiences));
        }
        let short =
            achieved.into_iter().find(|(_, per_s)| per_s * 1_000.0 < self.rate as f64 * ACHIEVED_MIN_THOUSANDTHS);
        short.map(|(what, per_s)| format!("{per_s:.1} of {} messages a second were {what}, below 99.9 %", self.rate))
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let shape = &self.shape;
        let shards = if self.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", self.shards) };
        let members = match shape.groups {
            0 => format!("{} consumers", shape.consumers),
            groups => format!("{groups} groups of {} members", shape.consumers),
        };
        let shared = if self.generator.shared_cores { " (shared cores)" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{} · {} messages/s of {} B · {shards}{shared} · {} × {} queues · {} producers · {members} · {} s measured",
            self.level, self.rate, self.size, shape.topics, shape.queues, shape.producers, shape.duration_s,
        );
        let _ = write!(out, "{:<14}", "latency, µs");
        for (name, _) in PERCENTILES {
            let _ = write!(out, "{name:>11}");
        }
        let _ = writeln!(out, "{:>11}", "count");
        for (name, latencies) in self.latency_us.each() {
            table_rows(&mut out, name, latencies);
        }
        let _ = writeln!(
            out,
            "sent {} · acknowledged {} · delivered {} · lost {} · duplicate {} · reordered {} · corrupt {}",
            self.sent, self.acknowledged, self.delivered, self.lost, self.duplicate, self.reordered, self.corrupt
        );
        for group in &self.groups {
            let _ = writeln!(
                out,
                "{}: delivered {} · lost {} · duplicate {} · redelivered {} · reordered {} · corrupt {}",
                group.group,
                group.delivered,
                group.lost,
                group.duplicate,
                group.redelivered,
                group.reordered,
                group.corrupt
            );
        }
        if self.rejected + self.retried + self.held_back + self.stray_answers > 0 {
            let _ = writeln!(
                out,
                "rejected {} · retried {} · held back {} · stray answers {}",
                self.rejected, self.retried, self.held_back, self.stray_answers
            );
        }
        let flushes = self.throughput.flushes_per_s.map_or(String::new(), |rate| format!(" · {rate:.0} flushes/s"));
        let _ = writeln!(
            out,
            "achieved {:.1}/s acknowledged ({:.1} MiB/s) · {:.1}/s delivered{flushes}",
            self.throughput.acknowledged_per_s, self.throughput.acknowledged_mib_per_s, self.throughput.delivered_per_s
        );
        if let Some(replayed) = self.throughput.replayed_mib_per_s {
            let _ = writeln!(out, "replayed {replayed:.1} MiB/s beside it");
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        let _ = match &self.invalid_because {
            Some(reason) => writeln!(out, "INVALID: {reason}"),
            None => writeln!(out, "valid"),
        };
        if !self.is_sound() {
            let _ = writeln!(out, "UNSOUND: not every acknowledged message was delivered once, in order and whole");
        }
        out
    }

    /// Writes `PREFIX.METRIC.hgrm` for each metric that has samples.
    pub fn write_hgrm(&self, prefix: &Path) -> io::Result<()> {
        for (name, latencies) in self.latency_us.each().into_iter().filter(|(_, latencies)| latencies.count() > 0) {
            let mut path = prefix.as_os_str().to_owned();
            path.push(format!(".{name}.hgrm"));
            let mut file = BufWriter::new(File::create(PathBuf::from(path))?);
            latencies.write_hgrm(&mut file)?;
            io::Write::flush(&mut file)?;
        }
        Ok(())
    }

    /// Writes the report as JSON.
    pub fn write_json(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}

/// A metric's row, and below it the number of samples beyond each percentile.
fn table_rows(out: &mut String, name: &str, latencies: &Latencies) {
    if latencies.count() == 0 {
        let _ = writeln!(out, "{name:<14}{:>11}", "–");
        return;
    }
    let (mut values, mut beyond) = (format!("{name:<14}"), format!("{:<14}", "  beyond"));
    for (_, parts) in PERCENTILES {
        let (latency, samples) = match latencies.at(parts) {
            Some((latency, samples)) => (latency.us().map_or("inf".to_owned(), figure), samples),
            None => ("–".to_owned(), 0),
        };
        let _ = write!(values, "{latency:>11}");
        let _ = write!(beyond, "{samples:>11}");
    }
    let _ = writeln!(out, "{values}{:>11}\n{beyond}", latencies.count());
}

/// Microseconds with as many digits as mean something.
fn figure(us: f64) -> String {
    if us < 10.0 { format!("{us:.2}") } else { format!("{us:.1}") }
}

/// Kernel, processor and number of cores, as far as /proc tells.
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {} × {}", kernel.trim(), cores, model.trim_start_matches(['\t', ' ', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::Listening;
    use crate::clock::MICROSECOND;
    use crate::schedule::Schedule;

    fn report() -> Report {
        Report {
            level: "memory".to_owned(),
            rate: 1_000,
            size: 100,
            shards: 1,
            machine: machine(),
            ..Report::default()
        }
    }

    /// A run whose messages are seen `lag` after they are due and acknowledged `latency` after, but for the last few.
    fn judged(lag: Ns, latency: Ns, missing: u64) -> Report {
        let schedule = Schedule { rate: 1_000, warmup: 0, duration: SECOND, producers: 1, queues: 1, start: 0 };
        let mut tally = Tally::new(1, &schedule, &Listening::nobody());
        for index in 0..schedule.messages() {
            tally.came_to(index, schedule.due(index) + lag);
            if index < schedule.messages() - missing {
                tally.acknowledge(index, schedule.due(index) + latency);
            }
        }
        tally.close(false);
        let mut report = report();
        report.take(tally, SECOND, None);
        report
    }

    #[test]
    fn a_run_is_valid_only_if_the_generator_kept_up_and_the_rate_was_reached() {
        assert!(judged(10 * MICROSECOND, 30 * MICROSECOND, 0).valid);
        let lagging = judged(20 * MICROSECOND, 30 * MICROSECOND, 0);
        assert!(!lagging.valid && lagging.table().contains("INVALID: schedule lag p90"));
        let short = judged(10, 30 * MICROSECOND, 2);
        assert!(short.invalid_because.as_ref().is_some_and(|reason| reason.contains("998.0 of 1000")));
        assert!(short.table().contains("inf"));
        assert!(!judged(10, 30 * MICROSECOND, 200).valid);
    }

    #[test]
    fn the_json_has_the_documented_keys_in_their_order() {
        let text = serde_json::to_string(&judged(1, 3, 0)).unwrap();
        let mut rest = text.as_str();
        for key in [
            "level",
            "rate",
            "size",
            "shards",
            "valid",
            "invalid_because",
            "sent",
            "acknowledged",
            "delivered",
            "lost",
            "duplicate",
            "reordered",
            "corrupt",
            "redelivered",
            "groups",
            "latency_us",
            "acknowledged",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "p99.99",
            "p99.996",
            "max",
            "count",
            "end_to_end",
            "schedule_lag",
            "echo_floor",
            "flush_floor",
            "hiccup",
        ] {
            let at = rest.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key} is missing or out of order"));
            rest = &rest[at + 1..];
        }
    }

    #[test]
    fn hgrm_files_are_named_after_their_metrics() {
        let directory = tempfile::tempdir().unwrap();
        judged(1, 3, 0).write_hgrm(&directory.path().join("run")).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["run.acknowledged.hgrm", "run.schedule_lag.hgrm"]);
    }
}
