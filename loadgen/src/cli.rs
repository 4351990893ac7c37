//! The command line: `peregrine-loadgen run`, `find-rate`, `replay`, `flush-ways` and `table`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use peregrine_protocol::limits::GROUP_TOPICS_MAX;

use crate::stamp::STAMP_BYTES;

/// Peregrine's load generator.
#[derive(Debug, Parser)]
#[command(
    name = "peregrine-loadgen",
    version,
    about = "Open-loop load for Peregrine: latency to p99.996 beside the machine's floors"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish and consume at a fixed rate; print the latencies, and write them as JSON and .hgrm.
    Run(RunArgs),
    /// Find the highest rate at which a run stays valid, by doubling and halving.
    FindRate(FindRateArgs),
    /// Read a topic from its beginning as fast as it comes, again and again; print MiB/s.
    Replay(ReplayArgs),
    /// Flush single blocks in the ways that a log could, in turn, without a broker; print what each costs as a Markdown table.
    FlushWays(FlushWaysArgs),
    /// Print reports that were written with --json side by side, as a Markdown table.
    Table {
        /// Only the rows of a table of highest rates: level, messages a second, acknowledged p50 / p99 / p99.99.
        #[arg(long)]
        highest: bool,
        /// The reports.
        #[arg(required = true, value_name = "FILE")]
        reports: Vec<PathBuf>,
    },
}

/// The durable level that producers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Survives the broker's death.
    Memory,
    /// Survives a power cut.
    Synced,
}

impl Level {
    /// As on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Synced => "synced",
        }
    }
}

/// What every kind of run needs.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// The broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    pub broker: String,
    /// Bytes of a message body, of which the first 48 are the generator's stamp.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub size: usize,
    /// How long messages are due that are measured.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub duration: Duration,
    /// How long messages are due before that, which are checked but not measured.
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub warmup: Duration,
    /// How long to wait behind the last due instant for what is still to come.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub drain: Duration,
    /// The durable level that producers ask for.
    #[arg(long, value_enum, default_value = "synced")]
    pub level: Level,
    /// Topics, made for the run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub topics: u32,
    /// Queues of each topic.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub queues: u32,
    /// Producers; each sends to all queues in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub producers: u32,
    /// Consumers. Without --groups they are readers: the queues are divided among them, each is read by one. With --groups
    /// this is the number of members of each group.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub consumers: u32,
    /// Consumer groups, made for the run. Each consumes every message, with --consumers members of its own. 0 for readers.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub groups: u32,
    /// Take message content from this file's lines instead of pseudo-random bytes.
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
    /// Cores for the generator's threads, one each, as in 1,3. Otherwise those that no shard owns.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Names of topics and groups begin with this; a number is added.
    #[arg(long, value_name = "PREFIX", default_value = "loadgen")]
    pub topic_prefix: String,
    /// Beside the load, read this topic from its beginning as fast as it comes, again and again, on the first thread.
    #[arg(long, value_name = "TOPIC")]
    pub replay: Option<String>,
    /// Do not delete the run's topics and groups at its end.
    #[arg(long)]
    pub keep_topics: bool,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Shape of the load.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Messages a second, all producers together.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write PREFIX.METRIC.hgrm for each metric. With --json FILE the prefix is FILE without its extension.
    #[arg(long, value_name = "PREFIX")]
    pub hgrm: Option<PathBuf>,
    /// How long each floor is taken, before and again after the load; 0 for none.
    #[arg(long, value_parser = duration, default_value = "3s")]
    pub floor_duration: Duration,
    /// The broker's executable for the echo floor. Otherwise the one beside this program.
    #[arg(long, value_name = "PATH")]
    pub broker_binary: Option<PathBuf>,
    /// The data directory whose file system the flush floor is taken on. Otherwise as the broker says.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// The broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    pub broker: String,
    /// The topic, with messages in every queue; each queue is read over a connection of its own.
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// For how long.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub duration: Duration,
    /// The core of its thread. Otherwise one that no shard owns.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,
}

/// `flush-ways`.
#[derive(Clone, Debug, Args)]
pub struct FlushWaysArgs {
    /// A directory of the file system.
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// Flushes a second, at the most.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// How long each way is measured in each round.
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub duration: Duration,
    /// How often all ways are measured, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// `find-rate`.
#[derive(Clone, Debug, Args)]
pub struct FindRateArgs {
    /// Shape of the load.
    #[command(flatten)]
    pub load: LoadArgs,
    /// The rate to begin with.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub from: u64,
    /// The highest rate to try.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub to: u64,
    /// Stop when the highest valid and the lowest invalid rate are this many percent apart.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=50))]
    pub within_percent: u64,
    /// Write the report of the highest valid run as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl LoadArgs {
    /// What is wrong with the arguments together, if anything.
    pub fn check(&self) -> Result<(), String> {
        let queues = self.topics * self.queues;
        if self.size < STAMP_BYTES {
            return Err(format!("--size is at least {STAMP_BYTES}, the bytes of the generator's stamp"));
        }
        if self.groups > 0 && self.consumers == 0 {
            return Err("a group needs members: --consumers is at least 1 with --groups".to_owned());
        }
        if self.groups > 0 && self.topics as usize > GROUP_TOPICS_MAX {
            return Err(format!("--topics {}: a group takes at most {GROUP_TOPICS_MAX}", self.topics));
        }
        if self.groups == 0 && self.consumers > queues {
            return Err(format!("{} consumers cannot divide {queues} queues among them", self.consumers));
        }
        if self.duration.is_zero() {
            return Err("--duration is more than 0".to_owned());
        }
        Ok(())
    }
}

/// Parses `30s`, `500ms`, `2m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("{text} does not begin with a number"))?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return Err(format!("{unit} is not one of ms, s, m, h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_the_manual_is_taken() {
        let line = "peregrine-loadgen run --broker 127.0.0.1:7400 --rate 5000 --size 1024 --duration 30s --warmup 5s \
                    --level memory --topics 2 --queues 4 --producers 3 --consumers 3 --json out.json --cores 1,2";
        let Command::Run(run) = Cli::parse_from(line.split_whitespace()).command else { panic!("not a run") };
        assert_eq!((run.rate, run.load.level, run.load.cores.as_slice()), (5_000, Level::Memory, &[1, 2][..]));
        assert!(run.load.check().is_ok());
        let narrow = LoadArgs { consumers: 9, ..run.load.clone() };
        assert!(narrow.check().is_err());
        assert!(LoadArgs { groups: 2, ..narrow }.check().is_ok(), "a group may have members to spare");
        assert!(LoadArgs { groups: 2, consumers: 0, ..run.load.clone() }.check().is_err());
        assert!(LoadArgs { size: 47, ..run.load }.check().is_err());
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("s").is_err() && duration("3d").is_err());
    }
}
