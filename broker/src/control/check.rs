//! `peregrine-broker check`: verifies a whole data directory that no broker has open, at the speed of the disk, and changes
//! nothing in it. A report for machines goes to standard output, progress and sentences to standard error.

use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use peregrine_protocol::ids::{LogPosition, ShardId};
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

/// Verifies the data directory; whether it is sound. An error is a sentence: it could not be verified.
pub fn check(data: &Path) -> Result<bool, String> {
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
    let sound = reports.iter().all(CheckReport::is_sound);
    for report in &reports {
        say(report);
    }
    let report = json!({
        "sound": sound,
        "directory": identity.id.to_string(),
        "shards": reports.iter().map(shard_json).collect::<Vec<_>>(),
    });
    let written = writeln!(io::stdout().lock(), "{report:#}");
    written.map_err(|error| format!("cannot write the report: {error}"))?;
    Ok(sound)
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
    let (mut reached, mut known) = (0, false);
    let mut progress = |position: LogPosition, end: LogPosition| {
        if !known {
            known = true;
            bar.inc_length(end.0.saturating_sub(position.0));
            reached = position.0;
        }
        bar.inc(position.0.saturating_sub(reached));
        reached = reached.max(position.0);
    };
    Log::check(UringDisk::new(shard_directory(data, shard)), TmpfsRings, options, &mut progress).await
}

/// What an operator wants to read first.
fn say(report: &CheckReport) {
    let shard = report.shard;
    if report.is_sound() {
        let CheckReport { segments, entries, messages, messages_from_ring, checkpoints, .. } = report;
        eprintln!(
            "shard {shard}: sound; {segments} segments, {entries} entries, {messages} messages ({messages_from_ring} of them \
             in the staging ring alone), {checkpoints} checkpoints"
        );
    }
    if let Some(damage) = &report.damage {
        eprintln!("{damage}");
    }
    if let Some(refused) = &report.ring_refused {
        eprintln!("{refused}");
    }
}

fn shard_json(report: &CheckReport) -> Value {
    let extent = |extent: &crate::log::damage::Extent| json!({ "from": extent.from.0, "to": extent.to.0 });
    let damage = report.damage.as_ref().map(|damage| {
        json!({
            "extents": damage.extents.iter().map(|damaged| json!({
                "from": damaged.extent.from.0, "to": damaged.extent.to.0, "reason": damaged.reason,
            })).collect::<Vec<_>>(),
            "files": damage.files.iter().map(|(name, reason)| json!({ "name": name, "reason": reason })).collect::<Vec<_>>(),
            "queues": damage.queues.iter().map(|lost| json!({
                "topic": lost.topic.0, "queue": lost.queue.0, "from": lost.from.0, "to": lost.to.0,
            })).collect::<Vec<_>>(),
        })
    });
    json!({
        "shard": report.shard.0,
        "sound": report.is_sound(),
        "segments": report.segments,
        "first": report.first.0,
        "cut": report.cut.0,
        "entries": report.entries,
        "messages": report.messages,
        "messages_from_ring": report.messages_from_ring,
        "checkpoints": report.checkpoints,
        "given_up": report.given_up.iter().map(extent).collect::<Vec<_>>(),
        "ring_refused": report.ring_refused,
        "damage": damage,
    })
}
