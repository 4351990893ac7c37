//! What may be said on the command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use peregrine_client::{DurableLevel, MessageLocator, Nanos, QueueId, QueueOffset, Stats, TopicRetention};

/// The command line of the Peregrine message broker
#[derive(Debug, Parser)]
#[command(name = "peregrine", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The broker
    #[arg(long, global = true, value_name = "HOST:PORT", env = "PEREGRINE_BROKER", default_value = "127.0.0.1:7400")]
    pub broker: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, alter, list, describe and delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// List, describe, reset and delete consumer groups, and show how far they are
    #[command(subcommand)]
    Group(GroupCommand),
    /// Send the lines of a file, or of stdin, one message each
    Produce(ProduceOptions),
    /// Print the messages of a topic
    Consume(ConsumeOptions),
    /// Look messages up: one by its id or its place, all with a key
    #[command(subcommand)]
    Message(MessageCommand),
    /// What the broker measures of itself
    Stats(StatsOptions),
}

#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic; one that exists with as many queues is fine
    Create {
        name: String,
        /// How many queues; they are spread over the shards
        #[arg(long, value_name = "N", default_value_t = 1)]
        queues: u32,
        /// Give messages up that were stored so long ago, like 7d; readers behind them are told where messages begin. Disk space
        /// comes back as the broker's segments go, by its own --retention-age and --retention-size: what these give up is not kept
        /// longer for a topic
        #[arg(long, value_name = "TIME|none", value_parser = age)]
        retention_age: Option<TopicRetention>,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Add queues to a topic, or change how long it keeps its messages
    #[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(["queues", "retention_age"])))]
    Alter {
        name: String,
        /// How many queues, no fewer than there are; keys go to other queues afterwards
        #[arg(long, value_name = "N")]
        queues: Option<u32>,
        /// Give messages up that were stored so long ago; `none`: as late as the broker's segments. What a shorter one gives up is
        /// gone for ever
        #[arg(long, value_name = "TIME|none", value_parser = age)]
        retention_age: Option<TopicRetention>,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// List all topics
    List(ListOptions),
    /// Show a topic's retention and its queues: shard, offsets, epoch
    Describe(NameOptions),
    /// Delete a topic and all its messages, for ever
    Delete(NameOptions),
}

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// List all groups
    List(ListOptions),
    /// Show a group's topics and members
    Describe(NameOptions),
    /// Show how far a group is in each queue, in messages and in time
    Lag(NameOptions),
    /// Set where a group goes on, whether it is consuming or not
    Reset {
        name: String,
        /// `earliest`, `latest`, an offset, an instant like 2026-08-01T12:00:00Z, or a time ago like 15m
        #[arg(long, value_name = "START")]
        to: String,
        /// In this topic only
        #[arg(long, value_name = "TOPIC")]
        topic: Option<String>,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Delete a group and its offsets, for ever
    Delete {
        name: String,
        /// Even if it has members; they end with an error
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputOptions,
    },
}

#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Show one message
    Get {
        /// Its id, as `produce --ids` and `consume --format json` print it, or its place, TOPIC/QUEUE@OFFSET
        #[arg(value_name = "ID")]
        message: Which,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// List the messages of a topic that have a key, in the order in which they were stored
    Find(FindOptions),
}

/// What names a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Id(MessageLocator),
    Place { topic: String, queue: QueueId, offset: QueueOffset },
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let place = text.rsplit_once('@').and_then(|(rest, offset)| {
            let (topic, queue) = rest.rsplit_once('/')?;
            let (queue, offset) = (queue.parse().ok()?, offset.parse().ok()?);
            Some(Self::Place { topic: topic.to_owned(), queue: QueueId(queue), offset: QueueOffset(offset) })
        });
        place.ok_or_else(|| "an id has 24 hexadecimal digits, a place is TOPIC/QUEUE@OFFSET".to_owned())
    }
}

#[derive(Debug, Args)]
pub struct FindOptions {
    pub topic: String,
    /// The whole key
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Stored then or later: an instant like 2026-08-01T12:00:00Z, or a time ago like 15m
    #[arg(long, value_name = "TIME")]
    pub begin: Option<String>,
    /// Stored before that
    #[arg(long, value_name = "TIME")]
    pub end: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Debug, Args)]
pub struct ListOptions {
    /// Only those whose names start so
    #[arg(long, default_value = "")]
    pub prefix: String,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Debug, Args)]
pub struct NameOptions {
    pub name: String,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct OutputOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ProduceOptions {
    pub topic: String,
    /// The file; `-` is stdin
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// What an acknowledgement promises: `memory` survives a killed broker, `synced` a power cut as well
    #[arg(long, default_value_t = DurableLevel::Synced)]
    pub level: DurableLevel,
    /// The character between the fields of a line; `\t` is a tabulator
    #[arg(long, value_name = "C", value_parser = delimiter)]
    pub key_delimiter: Option<u8>,
    /// The field that is the key, from 1; lines without that field have no key
    #[arg(long, value_name = "N", requires = "key_delimiter", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_field: Option<u32>,
    /// Send all to this queue
    #[arg(long, value_name = "N")]
    pub queue: Option<u32>,
    /// Print where each line went, `TOPIC/QUEUE@OFFSET ID`, in the order of the lines
    #[arg(long)]
    pub ids: bool,
    /// How long to keep trying while the broker is away
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct ConsumeOptions {
    pub topic: String,
    /// Consume as a member of this group: queues are shared among its members, and what is printed comes to none of them again
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// The member's name, unique in the group [default: one of its own]
    #[arg(long, value_name = "NAME", requires = "group")]
    pub member: Option<String>,
    /// Where to begin; a group goes on where it is, and begins there in what it has not consumed yet: `earliest`, `latest`, an offset, an instant like 2026-08-01T12:00:00Z, or a time ago like 15m
    #[arg(long, value_name = "START", default_value = "earliest")]
    pub from: String,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,
    /// Go on with what comes; without it, end at what was the end at the start (with a group, when that is done by all its members)
    #[arg(long)]
    pub follow: bool,
    /// What to print of a message: its value, or all of it as a line of JSON
    #[arg(long, value_enum, default_value_t = Format::Value)]
    pub format: Format,
    /// Read this queue only
    #[arg(long, value_name = "N", conflicts_with = "group")]
    pub queue: Option<u32>,
    /// How long to keep trying while the broker is away
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Value,
    Json,
}

#[derive(Debug, Args)]
pub struct StatsOptions {
    pub what: What,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// How long each stage of a message's way takes
    Latency,
    /// Counters and positions of each shard
    Shards,
}

impl From<What> for Stats {
    fn from(what: What) -> Self {
        match what {
            What::Latency => Self::Latency,
            What::Shards => Self::Shards,
        }
    }
}

/// `60s`, `2m 30s`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let with_unit = if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("{text}s") } else { text.to_owned() };
    let parsed: jiff::SignedDuration = with_unit.parse().map_err(|_| format!("\"{text}\" is no time like 60s"))?;
    Duration::try_from(parsed).map_err(|_| format!("\"{text}\" is negative"))
}

/// `none`, or how long as in `7d`, `12h`, `90s`.
fn age(text: &str) -> Result<TopicRetention, String> {
    if text == "none" {
        return Ok(TopicRetention::default());
    }
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let age = match days.map(|days| days.checked_mul(24 * 3600)) {
        Some(seconds) => Duration::from_secs(seconds.ok_or_else(|| format!("\"{text}\" is too long"))?),
        None => duration(text)?,
    };
    match Nanos::from(age) {
        Nanos::ZERO => Err("longer than 0; `none` keeps messages".to_owned()),
        age => Ok(TopicRetention { age: Some(age) }),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match (text, text.as_bytes()) {
        ("\\t", _) => Ok(b'\t'),
        (_, &[byte]) if byte != b'\n' => Ok(byte),
        _ => Err("a delimiter is one character of ASCII".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn messages_are_named_by_id_or_place() {
        let place = |topic: &str, queue, offset| Which::Place {
            topic: topic.to_owned(),
            queue: QueueId(queue),
            offset: QueueOffset(offset),
        };
        assert_eq!("orders/3@17".parse(), Ok(place("orders", 3, 17)));
        assert_eq!("space/orders/0@0".parse(), Ok(place("space/orders", 0, 0)));
        let id = "00c000000000020c55ac7af9";
        assert_eq!(id.parse(), Ok(Which::Id(id.parse().expect("an id"))));
        for text in ["", "orders", "orders@3", "orders/3", "orders/x@1", "orders/1@-1", &id[1..]] {
            assert!(text.parse::<Which>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_and_delimiters() {
        assert_eq!(duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        let days = |days: u64| Ok(TopicRetention { age: Some(Nanos::from_secs(days * 24 * 3600)) });
        assert_eq!((age("7d"), age("48h"), age("none")), (days(7), days(2), Ok(TopicRetention::default())));
        assert!(age("0s").is_err() && age("0d").is_err() && age("-1d").is_err() && age("soon").is_err());
        assert!(duration("-5s").is_err() && duration("soon").is_err());
        assert_eq!((delimiter(","), delimiter("\\t")), (Ok(b','), Ok(b'\t')));
        assert!(delimiter("ab").is_err() && delimiter("").is_err());
    }
}
