//! The one declared table of the configuration. Each row makes a flag, an environment variable, a key of the file, a line of
//! the help, a line of `CONFIGURATION.md`, and the check of its value.
//!
//! `--ring-size 1MiB` = `PEREGRINE_RING_SIZE=1MiB` = `ring_size = "1MiB"`.

use super::draft::Draft;
use super::quantity::{size, time};
use crate::control::settings::{Idle, TestFault, WithoutTmpfs};
use crate::limits::{
    CHECKPOINT_AGE_MAX, CHECKPOINT_LOOK_EVERY, GROUP_SILENCE_MIN, GROUP_TIME_MAX, SCRUB_EVERY_MIN, SCRUB_RATE_MIN,
};
use peregrine_protocol::ids::{Epoch, Nanos, ShardId};
use peregrine_protocol::limits::{BLOCK, FRAME_MAX_CEILING, RING_MAX, RING_MIN, SHARDS_MAX};

/// One setting.
pub struct Row {
    /// As in the file; flag and variable follow from it.
    pub key: &'static str,
    /// What stands for the value in the help; `None` for a switch, which needs no value on the command line.
    pub value: Option<&'static str>,
    pub default: Option<&'static str>,
    /// One sentence.
    pub help: &'static str,
    /// Why the default is what it is.
    pub reason: &'static str,
    /// May be given more than once (in the file: a list).
    pub repeats: bool,
    /// Not in the help: for tests.
    pub hidden: bool,
    /// Checks a value alone and takes it.
    pub take: fn(&mut Draft, &str) -> Result<(), String>,
}

const ROW: Row = Row {
    key: "",
    value: None,
    default: None,
    help: "",
    reason: "",
    repeats: false,
    hidden: false,
    take: |_, _| Ok(()),
};

/// All settings, in the order of the help.
pub const TABLE: &[Row] = &[
    Row {
        key: "data",
        value: Some("DIR"),
        help: "The data directory; made if it does not exist.",
        reason: "None: where messages are kept must be said.",
        take: |draft, text| {
            draft.data = Some(path(text)?);
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "listen",
        value: Some("HOST:PORT"),
        default: Some("127.0.0.1:7400"),
        help: "The address to listen on; port 0 takes a free one.",
        reason: "There is no authentication yet, so nobody but this machine is let in unasked.",
        take: |draft, text| {
            draft.listen = Some(address(text)?);
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "shards",
        value: Some("N"),
        help: "How many shards; fixed when the data directory is made.",
        reason: "Default: as many as the data directory has; for a new one, the cores that the process may use.",
        take: |draft, text| {
            draft.shards = Some(number(text, 1, u64::from(SHARDS_MAX))? as u16);
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "idle",
        value: Some("spin|adaptive|park"),
        default: Some("adaptive"),
        help: "What a core does without work: spin always, spin for a while and then sleep, or sleep at once.",
        reason: "An idle broker costs next to nothing, and a busy one does not pay for waking up.",
        take: |draft, text| {
            draft.idle = word(text, &[("spin", Idle::Spin), ("adaptive", Idle::Adaptive), ("park", Idle::Park)])?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "adaptive_spin",
        value: Some("TIME"),
        default: Some("50us"),
        help: "How long `adaptive` spins before it sleeps, up to 10ms.",
        reason: "Above the gap between two messages of a busy client, below the cost of two wake-ups.",
        take: |draft, text| {
            let limit = std::time::Duration::from_millis(10);
            let spin = time(text)?;
            draft.adaptive_spin = spin;
            if spin <= limit { Ok(()) } else { Err("at most 10ms; for more choose idle = \"spin\"".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "ring_dir",
        value: Some("DIR|none"),
        default: Some("/dev/shm"),
        help: "A directory on a tmpfs for the staging rings; `none` keeps them in memory that no restart sees.",
        reason: "The tmpfs that every Linux has. Where it is none, the start says so and `without_tmpfs` holds.",
        take: |draft, text| {
            draft.ring_directory = if text == "none" { None } else { Some(path(text)?) };
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "ring_size",
        value: Some("SIZE"),
        default: Some("64MiB"),
        help: "Each shard's staging ring: a power of two from 1MiB to 1GiB.",
        reason: "Holds what a disk of 1 GB/s takes in 60 ms, and entries of 16 MiB.",
        take: |draft, text| {
            draft.ring_bytes = within(size(text)?, RING_MIN, RING_MAX)?;
            if draft.ring_bytes.is_power_of_two() { Ok(()) } else { Err("must be a power of two".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "without_tmpfs",
        value: Some("refuse|raise"),
        default: Some("refuse"),
        help: "Without a tmpfs, what becomes of batches that ask for `memory`: refused, or raised to `synced`.",
        reason: "Whoever asks for `memory` asks for its latency; another one should not come in silence.",
        take: |draft, text| {
            draft.without_tmpfs = word(text, &[("refuse", WithoutTmpfs::Refuse), ("raise", WithoutTmpfs::Raise)])?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "segment_size",
        value: Some("SIZE"),
        default: Some("256MiB"),
        help: "The size that log segments grow to (4 MiB first, then twice the last): 4MiB to 1GiB.",
        reason: "A roll every second even at full speed, and a first start that waits for 4 MiB alone.",
        take: |draft, text| {
            draft.segment_bytes = multiple(within(size(text)?, 4 << 20, 1 << 30)?, BLOCK)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "keep_free",
        value: Some("SIZE"),
        default: Some("256MiB"),
        help: "What messages leave free on the data directory's file system: without it, producers are told `DiskFull`.",
        reason: "Acknowledgements, deletions, checkpoints and a start need some, and retention frees nothing without checkpoints.",
        take: |draft, text| {
            draft.keep_free = within(size(text)?, 0, 1 << 40)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "block_cache",
        value: Some("SIZE"),
        default: Some("32MiB"),
        help: "What each shard keeps of what it read from the disk: up to 1GiB.",
        reason: "A hundred blocks of 256 KiB, so that consumers that follow each other through old messages share reads.",
        take: |draft, text| {
            draft.block_cache = within(size(text)?, 0, 1 << 30)? as usize;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "message_max",
        value: Some("SIZE"),
        help: "The largest message.",
        reason: "Default: 4 MiB, or what ring and segments take if that is less. More belongs into an object store.",
        take: |draft, text| {
            draft.message_max = Some(within(size(text)?, 1 << 10, u64::from(FRAME_MAX_CEILING))? as u32);
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "frame_max",
        value: Some("SIZE"),
        help: "The largest frame on a connection.",
        reason: "Default: 16 MiB, or what ring and segments take if that is less: a batch of four large messages.",
        take: |draft, text| {
            draft.frame_max = Some(within(size(text)?, 1 << 10, u64::from(FRAME_MAX_CEILING))? as u32);
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "flush_depth",
        value: Some("N"),
        default: Some("2"),
        help: "Log writes of a shard in flight together: 1 to 16.",
        reason: "Two or three times the throughput of one, for a few percent of latency; more only wait in the device.",
        take: |draft, text| {
            draft.flush.depth = number(text, 1, 16)? as usize;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "flush_age",
        value: Some("TIME"),
        default: Some("50us"),
        help: "A second write starts before a block is full when the oldest waiting byte is this old.",
        reason: "About the time of one write: earlier ones would only be smaller.",
        take: |draft, text| {
            draft.flush.age = time(text)?.into();
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "flush_max",
        value: Some("SIZE"),
        default: Some("256KiB"),
        help: "Bytes of one log write: a multiple of 4KiB up to 1MiB.",
        reason: "The largest that most devices take in one command; more makes acknowledgements wait for each other.",
        take: |draft, text| {
            draft.flush.max_bytes = multiple(within(size(text)?, BLOCK, 1 << 20)?, BLOCK)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "memory_wait",
        value: Some("TIME"),
        default: Some("1ms"),
        help: "How long traffic that asks only for `memory` may wait for its write to the log.",
        reason: "Nobody waits for it; it makes writes larger, and bounds what a power cut takes.",
        take: |draft, text| {
            draft.flush.memory_wait = time(text)?.into();
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "memory_bytes",
        value: Some("SIZE"),
        default: Some("256KiB"),
        help: "How much of that traffic may wait.",
        reason: "One full write.",
        take: |draft, text| {
            draft.flush.memory_bytes = within(size(text)?, BLOCK, RING_MAX)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "checkpoint_size",
        value: Some("SIZE"),
        default: Some("256MiB"),
        help: "A checkpoint is taken after so many bytes of a shard's log, 1MiB to 16GiB.",
        reason: "A start reads back at most about twice as much: a second or two.",
        take: |draft, text| {
            draft.checkpoint.bytes = within(size(text)?, 1 << 20, 16 << 30)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "checkpoint_age",
        value: Some("TIME"),
        default: Some("30s"),
        help: "Or after so long, if anything came at all; 100ms to 24h.",
        reason: "A shard with little traffic reads little back, and writes a checkpoint seldom.",
        take: |draft, text| {
            let age = time(text)?;
            draft.checkpoint.age = age.into();
            let is_within = (CHECKPOINT_LOOK_EVERY..=CHECKPOINT_AGE_MAX).contains(&age);
            if is_within { Ok(()) } else { Err("from 100ms to 24h".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "retention_age",
        value: Some("TIME|none"),
        default: Some("none"),
        help: "Messages this old may be given up, as in `3d`; a whole segment at a time, when the one behind it is as old. A topic may have a shorter one of its own.",
        reason: "What was acknowledged is not given up unasked.",
        take: |draft, text| {
            draft.retention.age = if text == "none" { None } else { Some(time(text)?.into()) };
            if draft.retention.age == Some(Nanos::ZERO) { Err("longer than 0".to_owned()) } else { Ok(()) }
        },
        ..ROW
    },
    Row {
        key: "retention_size",
        value: Some("SIZE|none"),
        default: Some("none"),
        help: "Where the segments of a shard take more, the oldest are given up; at least 16MiB.",
        reason: "What was acknowledged is not given up unasked.",
        take: |draft, text| {
            draft.retention.bytes = if text == "none" { None } else { Some(within(size(text)?, 16 << 20, u64::MAX)?) };
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "scrub_rate",
        value: Some("SIZE|none"),
        default: Some("4MiB"),
        help: "Bytes a second that each shard reads of its old segments and their indexes to verify them; at least 1MiB, or none.",
        reason: "A disk loses bits in silence; at this rate a week is enough for 2 TiB of a shard.",
        take: |draft, text| {
            let rate = || within(size(text)?, SCRUB_RATE_MIN, u64::MAX);
            draft.scrub.rate = if text == "none" { None } else { Some(rate()?) };
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "scrub_every",
        value: Some("TIME"),
        default: Some("7d"),
        help: "From the end of such a round to the next; at least 100ms. The first begins 10 minutes after a start at the latest.",
        reason: "Damage is told of while copies of what it took may still be elsewhere.",
        take: |draft, text| {
            let every = time(text)?;
            draft.scrub.every = every.into();
            if every >= SCRUB_EVERY_MIN { Ok(()) } else { Err("at least 100ms".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "group_grace",
        value: Some("TIME"),
        default: Some("10s"),
        help: "How long a consumer whose connection is lost keeps its group's queues, up to 1h; 0s gives them to others at once.",
        reason: "A restarted client or a broken connection is back within it, and no queue moves twice.",
        take: |draft, text| {
            let grace = time(text)?;
            draft.groups.grace = grace.into();
            if grace <= GROUP_TIME_MAX { Ok(()) } else { Err("at most 1h".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "group_silence",
        value: Some("TIME"),
        default: Some("10s"),
        help: "A consumer that is not heard of for so long is taken for lost, 300ms to 1h; it is told to call three times within it.",
        reason: "Two of its calls may be lost, and a host that died without a word is noticed before its users call.",
        take: |draft, text| {
            let silence = time(text)?;
            draft.groups.silence = silence.into();
            let is_within = (GROUP_SILENCE_MIN..=GROUP_TIME_MAX).contains(&silence);
            if is_within { Ok(()) } else { Err("from 300ms to 1h".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "group_drain",
        value: Some("TIME"),
        default: Some("5s"),
        help: "How long a consumer may acknowledge what it was handed of a queue that moves to another, up to 1h; 0s takes it at once.",
        reason: "Work on a few messages ends within it and none is done twice; longer, and a stuck consumer holds its queue up.",
        take: |draft, text| {
            let drain = time(text)?;
            draft.groups.drain = drain.into();
            if drain <= GROUP_TIME_MAX { Ok(()) } else { Err("at most 1h".to_owned()) }
        },
        ..ROW
    },
    Row {
        key: "log_filter",
        value: Some("FILTER"),
        default: Some("info"),
        help: "Which log lines go to standard error, as in `info,peregrine_broker::shard=debug`.",
        reason: "Starts, stops, and what an operator has to know.",
        take: |draft, text| {
            draft.log.filter = text.to_owned();
            crate::control::logging::check_filter(text)
        },
        ..ROW
    },
    Row {
        key: "log_format",
        value: Some("text|json"),
        default: Some("text"),
        help: "How log lines look.",
        reason: "People read them first.",
        take: |draft, text| {
            draft.log.json = word(text, &[("text", false), ("json", true)])?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "discard_ring",
        value: Some("SHARD:EPOCH"),
        help: "Give up the staging ring of that run, with the messages acknowledged at `memory` that stand only there.",
        reason: "None: the start that needs it names the ring.",
        repeats: true,
        take: |draft, text| {
            let (shard, epoch) = text.split_once(':').ok_or("write SHARD:EPOCH, as the refused start said it")?;
            let shard = ShardId(number(shard, 0, u64::from(SHARDS_MAX) - 1)? as u16);
            draft.discard_rings.push((shard, Epoch(number(epoch, 0, u64::MAX)?)));
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "accept_loss",
        default: Some("false"),
        help: "Start although the log is damaged; what is lost is named in the log, what is good behind it is kept.",
        reason: "Damage is never taken for an end; giving messages up is a person's decision.",
        take: |draft, text| {
            draft.accept_loss = switch(text)?;
            Ok(())
        },
        ..ROW
    },
    Row {
        key: "test_fault",
        value: Some("NAME[=N]"),
        help: "A defect for tests: hold-flushes, hold-write=N, fail-write=N, panic-at-write=N, kill-after-step=N or miss-news.",
        reason: "None.",
        repeats: true,
        hidden: true,
        take: |draft, text| {
            let (name, n) = text.split_once('=').map_or((text, None), |(name, n)| (name, Some(n)));
            let n = n.map(|n| number(n, 1, u64::MAX)).transpose()?;
            draft.test_faults.push(match (name, n) {
                ("hold-flushes", None) => TestFault::HoldFlushes,
                ("hold-write", Some(n)) => TestFault::HoldWrite(n),
                ("fail-write", Some(n)) => TestFault::FailWrite(n),
                ("panic-at-write", Some(n)) => TestFault::PanicAtWrite(n),
                ("kill-after-step", Some(n @ 1..=255)) => TestFault::KillAfterStep(n as u8),
                ("miss-news", None) => TestFault::MissNews,
                _ => {
                    let faults =
                        "hold-flushes, hold-write=N, fail-write=N, panic-at-write=N, kill-after-step=N or miss-news";
                    return Err(format!("is {faults}"));
                }
            });
            Ok(())
        },
        ..ROW
    },
];

impl Row {
    /// `--ring-size`, without the dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// `PEREGRINE_RING_SIZE`.
    pub fn variable(&self) -> String {
        format!("PEREGRINE_{}", self.key.to_ascii_uppercase())
    }
}

fn path(text: &str) -> Result<std::path::PathBuf, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.into()) }
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse::<u64>().map_err(|_| format!("\"{text}\" is no whole number"))?;
    within(number, least, most)
}

fn within(value: u64, least: u64, most: u64) -> Result<u64, String> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("must be from {least} to {most}")) }
}

fn multiple(value: u64, of: u64) -> Result<u64, String> {
    if value.is_multiple_of(of) { Ok(value) } else { Err(format!("must be a multiple of {of}")) }
}

fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("\"{text}\" is none of {}", words.join(", "))
    })
}

fn switch(text: &str) -> Result<bool, String> {
    word(text, &[("true", true), ("false", false)])
}

fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let wrong = |_| format!("\"{text}\" is no HOST:PORT that can be found");
    text.to_socket_addrs().map_err(wrong)?.next().ok_or_else(|| format!("\"{text}\" has no address"))
}
