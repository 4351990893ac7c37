//! `peregrine-broker check`: verifies a whole data directory that no broker has open, and changes nothing in it. The report goes to
//! standard output, in sentences or as JSON; a progress bar to standard error where that is a terminal.

use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use peregrine_protocol::ids::ShardId;
use serde_json::{Value, json};

use super::directory::DataDirectory;
use super::settings::Identity;
use crate::log::disk::tmpfs::TmpfsRings;
use crate::log::disk::uring::UringDisk;
use crate::log::{BootId, CheckReport, Directory, Log, LogOptions, RunId, StartError};
use crate::shard::run::shard_directory;
use crate::shard::runtime::{self, ExecutorOptions};

/// Shards verified at a time: enough requests for a disk to work at its speed.
const TOGETHER: usize = 4;

/// What a check came to, the worst of all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Sound,
    /// Files are bad that a start makes again or does without: nothing is lost.
    Harmless,
    Damaged,
}

impl Verdict {
    fn of(report: &CheckReport) -> Self {
        match (report.is_sound(), report.harmless.is_empty()) {
            (true, true) => Self::Sound,
            (true, false) => Self::Harmless,
            (false, _) => Self::Damaged,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Harmless => "harmless",
            Self::Damaged => "damaged",
        }
    }
}

/// Verifies the data directory and prints the report. An error is a sentence: it could not be verified.
pub fn check(data: &Path, as_json: bool) -> Result<Verdict, String> {
    let directory = DataDirectory::lock_existing(data).map_err(|error| error.to_string())?;
    let identity = directory.existing_identity().map_err(|error| error.to_string())?;
    let cores = runtime::cores().map_err(|error| error.to_string())?;
    let executor = ExecutorOptions {
        index: 0,
        core: *cores.first().ok_or("this process may use no core")?,
        spin: Duration::ZERO,
        io_memory: runtime::io_memory(TOGETHER, 1, runtime::lockable_memory()),
    };
    let path = data.to_owned();
    let checked = runtime::start(&executor, move || check_shards(path, identity))
        .and_then(|handle| handle.join().map_err(|error| io::Error::other(error.to_string())));
    let reports = checked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let verdict = reports.iter().map(Verdict::of).max().unwrap_or(Verdict::Sound);
    let report = if as_json {
        let report = json!({
            "verdict": verdict.word(),
            "sound": verdict != Verdict::Damaged,
            "directory": identity.id.to_string(),
            "shards": reports.iter().map(shard_json).collect::<Vec<_>>(),
        });
        format!("{report:#}")
    } else {
        reports.iter().flat_map(sentences).collect::<Vec<_>>().join("\n")
    };
    let written = writeln!(io::stdout().lock(), "{report}");
    written.map_err(|error| format!("cannot write the report: {error}"))?;
    Ok(verdict)
}

async fn check_shards(data: std::path::PathBuf, identity: Identity) -> Result<Vec<CheckReport>, StartError> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = Rc::new(Cell::new(0));
    let mut workers = Vec::new();
    for _ in 0..TOGETHER.min(usize::from(identity.shards)) {
        let (data, bar, next) = (data.clone(), bar.clone(), Rc::clone(&next));
        workers.push(glommio::spawn_local(async move {
            let mut reports = Vec::new();
            while next.get() < identity.shards {
                let shard = ShardId(next.replace(next.get() + 1));
                reports.push(check_shard(&data, &identity, shard, &bar).await?);
            }
            Ok::<_, StartError>(reports)
        }));
    }
    let mut reports = Vec::new();
    for worker in workers {
        reports.extend(worker.await?);
    }
    bar.finish_and_clear();
    reports.sort_unstable_by_key(|report: &CheckReport| report.shard);
    Ok(reports)
}

async fn check_shard(
    data: &Path,
    identity: &Identity,
    shard: ShardId,
    bar: &ProgressBar,
) -> Result<CheckReport, StartError> {
    let directory =
        Directory { id: identity.id, secret: identity.secret, device: identity.device, inode: identity.inode };
    let options = LogOptions::new(shard, directory, BootId(identity.boot), RunId(identity.run), None);
    let (mut read, mut known) = (0, 0);
    let mut progress = |position: u64, end: u64| {
        bar.inc_length(end - std::mem::replace(&mut known, end));
        bar.inc(position.saturating_sub(read));
        read = read.max(position);
    };
    Log::check(UringDisk::new(shard_directory(data, shard)), TmpfsRings, options, &mut progress).await
}

/// What an operator wants to read.
fn sentences(report: &CheckReport) -> Vec<String> {
    let shard = report.shard;
    let mut lines = Vec::new();
    if report.is_sound() {
        let CheckReport { segments, entries, messages, messages_from_ring, checkpoints, indexes, .. } = report;
        lines.push(format!(
            "shard {shard}: sound; {segments} segments, {entries} entries, {messages} messages ({messages_from_ring} of them \
             in the staging ring alone), {checkpoints} checkpoints, {indexes} indexes"
        ));
    }
    lines.extend(report.damage.as_ref().map(ToString::to_string));
    lines.extend(report.ring_refused.clone());
    let harmless = report.harmless.iter();
    lines.extend(harmless.map(|(name, reason)| format!("shard {shard}: {name}: {reason}; nothing is lost with it")));
    lines
}

fn shard_json(report: &CheckReport) -> Value {
    let extent = |extent: &crate::log::damage::Extent| json!({ "from": extent.from.0, "to": extent.to.0 });
    let file = |(name, reason): &(String, String)| json!({ "name": name, "reason": reason });
    let damage = report.damage.as_ref().map(|damage| {
        json!({
            "extents": damage.extents.iter().map(|damaged| json!({
                "from": damaged.extent.from.0, "to": damaged.extent.to.0, "reason": damaged.reason,
            })).collect::<Vec<_>>(),
            "files": damage.files.iter().map(file).collect::<Vec<_>>(),
            "queues": damage.queues.iter().map(|lost| json!({
                "topic": lost.topic.0, "queue": lost.queue.0, "from": lost.from.0, "to": lost.to.0,
            })).collect::<Vec<_>>(),
        })
    });
    json!({
        "shard": report.shard.0,
        "verdict": Verdict::of(report).word(),
        "sound": report.is_sound(),
        "segments": report.segments,
        "first": report.first.0,
        "cut": report.cut.0,
        "entries": report.entries,
        "messages": report.messages,
        "messages_from_ring": report.messages_from_ring,
        "checkpoints": report.checkpoints,
        "indexes": report.indexes,
        "harmless": report.harmless.iter().map(file).collect::<Vec<_>>(),
        "given_up": report.given_up.iter().map(extent).collect::<Vec<_>>(),
        "ring_refused": report.ring_refused,
        "damage": damage,
    })
}
