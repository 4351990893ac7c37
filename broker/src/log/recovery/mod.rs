//! Starts a shard's log: there is one way to start, whatever happened before, and every run has an epoch and a first segment
//! of its own. The steps are DESIGN.md's "Stop and start"; [`RecoveryStep`] names the points between which a crash may fall.
//!
//! ```text
//!  survey ─► due ring ─► cut, replay ─► clean ─► ring file ─► sync ─► fresh segment ─► RENAME ─► ring set up ─► ready
//!  └─ a crash up to here starts over: nothing that counted was changed ─────────────┘ └─ one from here finds a clean log
//! ```
//!
//! Nothing beyond the cut comes back; nothing recovered is built on before it is durable; a position is never used twice;
//! nothing that an earlier process had open is written again, for its direct writes may still land.

mod check;
mod due_ring;
mod fresh;
mod gaps;
mod notes;
mod scan;
mod survey;

pub use check::CheckReport;
pub(super) use check::check;

use std::io;

use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{Epoch, LogPosition};

use self::due_ring::{DueRing, RingTail, unfit};
use self::fresh::Fresh;
use self::gaps::OffsetGaps;
use self::scan::{Scan, ScanStart};
use self::survey::{BadCheckpoint, Survey};
use super::chain::Chain;
use super::checkpoint::{CHECKPOINTS_KEPT, CheckpointError, CheckpointHead, CheckpointName, read_sections_with};
use super::damage::{Damage, DamagedExtent, Extent, LostOffsets};
use super::disk::{Access, Disk, DiskFile, RingHost, RingMemory};
use super::error::StartError;
use super::fault::{Planted, RecoveryStep};
use super::files;
use super::index::SealedSegment;
use super::options::LogOptions;
use super::reader::ReadableSegment;
use super::ring::{PAGE_LEN, PageState, Ring, RingPage, RingUnfit, leftover};
use super::segment::{Identity, SegmentName};
use super::task::OpenSegment;

/// What takes in the log's entries at a start: the engine's `apply`, seen from here.
pub trait Replay {
    /// An entry that is no pad, in order of position, checked. An error says that it contradicts those before it, and that
    /// nothing was changed: it is then damage like bytes that are not sound.
    fn entry(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String>;

    /// Entries may be missing between the last one and the next: offsets and sequences may jump. Unless this was accepted
    /// now or before, the start ends with an error after the whole log was read. Later starts call this at the same places.
    fn lost(&mut self, extent: Extent);

    /// Forget everything: what follows are the sections of a checkpoint, or the log from its first entry.
    fn begin(&mut self);

    /// A section of a checkpoint, in order and checked. An error says that it cannot be what was saved.
    fn restore(&mut self, section: &[u8]) -> Result<(), String>;

    /// That was the last section; the log follows from where the checkpoint was begun.
    fn restored(&mut self) -> Result<(), String>;
}

/// What became of the ring of the run before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFate {
    /// There was no segment, so no ring was due.
    FirstStart,
    /// The machine was started since: tmpfs is empty.
    OtherBoot,
    /// That run kept its ring in anonymous memory.
    Anonymous,
    /// That run was stopped cleanly.
    Closed,
    /// That run was never ready, and what came before it had been recovered.
    NeverReady,
    /// `--discard-ring` gave it up.
    Discarded,
    /// What stood only in it was taken over.
    Recovered,
}

/// How a start went, for the ready line and the log.
#[derive(Clone, Debug)]
pub struct StartReport {
    pub epoch: Epoch,
    /// Where the log of earlier runs ends on the device.
    pub cut: LogPosition,
    /// Where this run's log begins, and its first append may stand.
    pub base: LogPosition,
    pub start: LogPosition,
    pub ring: RingFate,
    /// Where the checkpoint begins that this start goes on from.
    pub checkpoint: Option<LogPosition>,
    /// Checkpoints that were passed over, and why.
    pub bad_checkpoints: Vec<(String, String)>,
    /// Messages that stood only in the ring.
    pub messages_from_ring: u64,
    /// Damage that this start accepted.
    pub accepted: Vec<DamagedExtent>,
    /// What earlier starts gave up and this one passed over, in order of position.
    pub given_up: Vec<Extent>,
}

/// A log that is ready for appends.
pub(super) struct Recovered<D: Disk, M> {
    pub fresh: OpenSegment<D>,
    pub ring: Ring<M>,
    /// The log's earlier segments.
    pub readable: Vec<ReadableSegment<D>>,
    /// The same as they are indexed.
    pub sealed: Vec<SealedSegment>,
    /// Good checkpoints, ascending.
    pub checkpoints: Vec<CheckpointName>,
    pub report: StartReport,
}

/// Wraps an I/O error with what was being done.
fn io_error(options: &LogOptions, doing: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> StartError {
    let shard = options.shard;
    move |source| StartError::Io { shard, doing: doing(), source }
}

/// The whole of a start. The caller holds the data directory's lock.
pub(super) async fn recover<D: Disk, H: RingHost>(
    disk: &D,
    rings: &H,
    options: &LogOptions,
    replay: &mut dyn Replay,
) -> Result<Recovered<D, H::Memory>, StartError> {
    let reached = |step| options.faults.reached(step);
    let mut survey = Survey::read(disk, options).await?;
    let chain = Chain::read_back(&survey.segments);
    let given_up = notes::given_up(disk, options, &survey, &chain).await?;
    if !survey.is_sound(&given_up) && !options.accept_loss {
        return Err(damage(options, &survey, Vec::new(), Vec::new()));
    }
    let due = DueRing::find(rings, &survey, options)?;
    reached(RecoveryStep::Surveyed);

    let checkpoint = restore(disk, options, &mut survey, replay).await;
    let survey = survey;
    let start = ScanStart::behind(checkpoint.as_ref());
    let mut scan = Scan::new(disk, options, &survey, &chain, start, &given_up, replay);
    let cut = scan.read_segments(due.tail.map(|tail| tail.durable)).await?;
    let messages_from_ring = match (&due.file, due.tail) {
        (Some((_, memory)), Some(tail)) => scan.read_ring(memory.bytes(), tail),
        _ => 0,
    };
    let (accepted, given_up) = (scan.tally.open(), scan.tally.given_up().to_vec());
    let (durable, highest_seen, store_time) = (scan.durable, scan.highest, scan.store_time);
    if !accepted.is_empty() && !options.accept_loss {
        // Offsets are told as far as the log goes back, whatever the start began with.
        let is_whole = chain.links.first().is_none_or(|first| survey.segments[first.index].previous_end.0 == 0);
        let from = if is_whole { ScanStart::default() } else { start };
        let ring = due.file.as_ref().zip(due.tail).map(|((_, memory), tail)| (memory.bytes(), tail));
        let skipped: Vec<_> = given_up.into_iter().chain(accepted.iter().map(|damaged| damaged.extent)).collect();
        let queues = lost_offsets(disk, options, &survey, &chain, from, ring, &skipped).await?;
        return Err(damage(options, &survey, accepted, queues));
    }
    reached(RecoveryStep::Cut);

    clean(disk, options, &survey).await?;
    reached(RecoveryStep::Cleaned);
    let fate = due.fate;
    let (mut new_ring, old_ring, tail) = take_ring_file(rings, options, &survey, due)?;
    reached(RecoveryStep::RingMade);
    if tail.is_none() {
        sync_segments(disk, options, &survey, &chain, durable, cut).await?;
    }
    reached(RecoveryStep::Synced);

    let highest = survey.highest_position().map(|highest| highest.max(highest_seen));
    let mut fresh = Fresh::place(options, &survey, &chain, cut, tail.is_some(), highest);
    if let Some(tail) = tail {
        let memory = old_ring.as_ref().map_or(&new_ring, |(_, memory)| memory);
        fresh.take_ring(leftover(memory.bytes(), tail.size, tail.durable, tail.published));
    }
    if !accepted.is_empty() {
        let extents: Vec<_> = accepted.iter().map(|damaged| damaged.extent).collect();
        fresh.note_loss(options, &extents, store_time);
    }
    fresh.fill_block(options, cut);
    let mut into_old = None;
    if options.faults.has(Planted::RecoverIntoOldFile) && tail.is_some() {
        into_old = fresh.write_into_old(disk, options, &survey, &chain).await?;
    }
    let goes_on = into_old.is_some();
    let segment = match into_old {
        Some(segment) => segment,
        None => fresh.write(disk, options).await?,
    };

    let page = RingPage::new(options, &segment.identity);
    clear_and_resize(&mut new_ring, options)?;
    reached(RecoveryStep::RingCleared);
    let ring = Ring::set_up(new_ring, &page, fresh.end());
    reached(RecoveryStep::RingReady);

    if let Some((path, memory)) = old_ring
        && !options.faults.has(Planted::IgnoreRingEpoch)
    {
        drop(memory);
        rings.remove(&path).map_err(io_error(options, || format!("unlink the staging ring {path} of earlier runs")))?;
    }
    if !goes_on {
        forget(disk, options, &survey, &segment.identity).await?;
    }
    reached(RecoveryStep::Finished);

    let report = StartReport {
        epoch: segment.identity.epoch,
        cut,
        base: segment.identity.base,
        start: fresh.end(),
        ring: fate,
        checkpoint: checkpoint.as_ref().map(|head| head.begin),
        bad_checkpoints: survey
            .bad_checkpoints
            .iter()
            .map(|bad| (bad.name.to_string(), bad.reason.to_string()))
            .collect(),
        messages_from_ring,
        accepted,
        given_up,
    };
    let mut readable = readable_segments(&survey, &chain, cut);
    readable.truncate(readable.len() - usize::from(goes_on));
    let mut sealed = sealed_segments(&survey, &chain, cut, &report);
    sealed.truncate(readable.len());
    let checkpoints = kept(&survey).map(CheckpointHead::name).collect();
    Ok(Recovered { fresh: segment, ring, readable, sealed, checkpoints, report })
}

/// Restores `replay` from the newest good checkpoint. One whose sections are not good joins the bad ones: the one before it
/// serves, or the log as a whole.
async fn restore<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &mut Survey,
    replay: &mut dyn Replay,
) -> Option<CheckpointHead> {
    let skips_checksums = options.faults.has(Planted::SkipCheckpointChecksum);
    while let Some(head) = survey.checkpoints.last().cloned() {
        replay.begin();
        let mut read = read_sections_with(disk, &head, skips_checksums, |section| replay.restore(section)).await;
        if read.is_ok() {
            let number = head.sections;
            read = replay.restored().map_err(|reason| CheckpointError::Content { number, reason });
        }
        let Err(reason) = read else { return Some(head) };
        survey.checkpoints.pop();
        survey.bad_checkpoints.push(BadCheckpoint { name: head.name(), reason });
        replay.begin();
    }
    None
}

/// The good checkpoints that stay.
fn kept(survey: &Survey) -> impl Iterator<Item = &CheckpointHead> {
    let heads = &survey.checkpoints;
    heads[heads.len().saturating_sub(CHECKPOINTS_KEPT)..].iter()
}

fn damage(options: &LogOptions, survey: &Survey, extents: Vec<DamagedExtent>, queues: Vec<LostOffsets>) -> StartError {
    StartError::Damage(Box::new(damage_in(options, survey, extents, queues)))
}

/// Which offsets the damage took: a second pass over the log that passes over what is damaged or was given up.
async fn lost_offsets<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    chain: &Chain,
    from: ScanStart,
    ring: Option<(&[u8], RingTail)>,
    skipped: &[Extent],
) -> Result<Vec<LostOffsets>, StartError> {
    let mut gaps = OffsetGaps::new(from.position == LogPosition(0));
    let mut scan = Scan::new(disk, options, survey, chain, from, skipped, &mut gaps);
    scan.read_segments(ring.map(|(_, tail)| tail.durable)).await?;
    if let Some((bytes, tail)) = ring {
        scan.read_ring(bytes, tail);
    }
    Ok(gaps.lost())
}

/// All that was found to be wrong.
fn damage_in(options: &LogOptions, survey: &Survey, extents: Vec<DamagedExtent>, queues: Vec<LostOffsets>) -> Damage {
    let segments = survey.bad.iter().map(|bad| (format!("segment {}", bad.name), bad.reason.clone()));
    let checkpoints = survey.bad_checkpoints.iter().map(|bad| (bad.name.to_string(), bad.reason.to_string()));
    let files = segments.chain(survey.unreadable_marks.iter().cloned()).chain(checkpoints).collect();
    Damage { shard: options.shard, extents, files, queues }
}

/// Unlinks what is of no use to this process. The directory is synced whether or not there was anything: names that the fresh
/// segment builds on may stand only in the cache, where a killed process left them.
async fn clean<D: Disk>(disk: &D, options: &LogOptions, survey: &Survey) -> Result<(), StartError> {
    for name in &survey.leftovers {
        disk.remove(name).await.map_err(io_error(options, || format!("unlink {name}")))?;
    }
    disk.sync_directory().await.map_err(io_error(options, || "sync the shard's directory".to_owned()))
}

/// The ring that this run will use (untouched where it is the one that is due), the one that was due where that is another
/// file, and what to recover.
type RingFiles<M> = (M, Option<(String, M)>, Option<RingTail>);

/// Makes the configured ring file where it is missing. A ring that is due is not touched before the fresh segment has its
/// name; any other file of that name loses its magic here, so that a later start never takes it for this run's. Messages may
/// stand only in the ready ring of another log that had this place: it is cleared only where it was given up.
fn take_ring_file<H: RingHost>(
    rings: &H,
    options: &LogOptions,
    survey: &Survey,
    due: DueRing<H::Memory>,
) -> Result<RingFiles<H::Memory>, StartError> {
    let len = PAGE_LEN + options.ring_bytes as usize;
    let DueRing { file, tail, .. } = due;
    let Some(path) = &options.ring else {
        let memory =
            rings.anonymous(len).map_err(io_error(options, || "map memory for the staging ring".to_owned()))?;
        return Ok((memory, file, tail));
    };
    let (opened, old) = match file {
        Some((due_path, memory)) if due_path == *path => (Some(memory), None),
        other => {
            let opened = rings.open(path);
            (opened.map_err(io_error(options, || format!("open the staging ring {path}")))?, other)
        }
    };
    let is_due = old.is_none() && tail.is_some();
    let memory = match opened {
        Some(memory) if is_due || options.faults.has(Planted::IgnoreRingEpoch) => memory,
        Some(mut memory) => {
            if let Ok(PageState::Ready { page, published, durable }) = PageState::read(memory.bytes()) {
                let owner = page.check_owner(&options.directory, options.shard);
                owner.map_err(|reason| taken(options, path, reason))?;
                let is_foreign = page.boot == options.boot && !survey.is_of_this_log(&page);
                let holds_more = durable < published;
                if is_foreign && holds_more && options.discard_ring != Some(page.epoch) {
                    return Err(unfit(options, page.epoch, path, RingUnfit::LogGone));
                }
            }
            clear_and_resize(&mut memory, options)?;
            memory
        }
        None => {
            let doing = || format!("make the staging ring {path} of {} MiB", options.ring_bytes >> 20);
            let mut memory = rings.create(path, len).map_err(io_error(options, doing))?;
            // Before a segment names it: a page of zeros is then one that was lost.
            Ring::clear(&mut memory);
            memory
        }
    };
    Ok((memory, old, tail))
}

/// Takes the old contents out of account, then gives the file the configured size.
fn clear_and_resize<M: RingMemory>(memory: &mut M, options: &LogOptions) -> Result<(), StartError> {
    let was_short = memory.bytes().len() < PAGE_LEN;
    if !was_short {
        Ring::clear(memory);
    }
    let len = PAGE_LEN + options.ring_bytes as usize;
    if memory.bytes().len() == len {
        return Ok(());
    }
    let resized = memory.resize(len);
    resized.map_err(io_error(options, || format!("give the staging ring its {} MiB", options.ring_bytes >> 20)))?;
    if was_short {
        Ring::clear(memory);
    }
    Ok(())
}

fn taken(options: &LogOptions, path: &str, reason: RingUnfit) -> StartError {
    StartError::RingTaken { shard: options.shard, path: path.to_owned(), reason }
}

/// Without a ring, bytes that were read may stand only in the device's cache.
async fn sync_segments<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    chain: &Chain,
    durable: LogPosition,
    cut: LogPosition,
) -> Result<(), StartError> {
    if options.faults.has(Planted::SyncOnlyWritten) {
        return Ok(());
    }
    for link in chain.links.iter().filter(|link| link.base < cut && link.end > durable) {
        let name = survey.segments[link.index].name();
        let doing = || format!("sync segment {name}");
        let file = disk.open(&name.to_string(), Access::Read).await.map_err(io_error(options, doing))?;
        file.sync().await.map_err(io_error(options, doing))?;
    }
    Ok(())
}

/// Unlinks what the fresh segment has made superfluous: marks of earlier runs and segments that are no part of the log. Were one of
/// these left, it would be taken for a part once those that stand in its place now are retired. A file that has a segment's name
/// and is none was accepted as lost: it gets another name, so that no later start asks again.
async fn forget<D: Disk>(disk: &D, options: &LogOptions, survey: &Survey, fresh: &Identity) -> Result<(), StartError> {
    let with_fresh: Vec<Identity> = survey.segments.iter().chain([fresh]).cloned().collect();
    let chain = Chain::read_back(&with_fresh);
    let left_out = chain.left_out.iter().map(|&index| with_fresh[index].name().to_string());
    let older = survey.checkpoints.len().saturating_sub(CHECKPOINTS_KEPT);
    let older = survey.checkpoints[..older].iter().map(|head| head.name().to_string());
    let is_segment = |name: &&SegmentName| chain.links.iter().any(|link| with_fresh[link.index].name() == **name);
    let indexes = survey.indexes.iter().filter(|name| !is_segment(name)).map(|&name| files::index_name(name));
    let names: Vec<_> = survey.mark_files.iter().cloned().chain(left_out).chain(older).chain(indexes).collect();
    for name in &names {
        disk.remove(name).await.map_err(io_error(options, || format!("unlink {name}")))?;
    }
    for bad in &survey.bad {
        let (name, aside) = (bad.name.to_string(), files::damaged_name(bad.name));
        disk.rename(&name, &aside).await.map_err(io_error(options, || format!("put {name} aside as {aside}")))?;
    }
    let damaged = survey.bad_checkpoints.iter().filter(|bad| bad.is_damaged());
    for bad in damaged.clone() {
        let (name, aside) = (bad.name.to_string(), files::damaged_checkpoint_name(bad.name));
        disk.rename(&name, &aside).await.map_err(io_error(options, || format!("put {name} aside as {aside}")))?;
    }
    if names.is_empty() && survey.bad.is_empty() && damaged.count() == 0 {
        return Ok(());
    }
    disk.sync_directory().await.map_err(io_error(options, || "sync the shard's directory".to_owned()))
}

/// The log's earlier segments, up to the cut.
fn readable_segments<D: Disk>(survey: &Survey, chain: &Chain, cut: LogPosition) -> Vec<ReadableSegment<D>> {
    let below = chain.links.iter().filter(|link| link.base < cut);
    let readable = below.map(|link| ReadableSegment {
        name: survey.segments[link.index].name(),
        base: link.base,
        end: link.end.min(cut),
        file: None,
    });
    readable.collect()
}

/// Those of them that hold anything, with what was given up in them.
fn sealed_segments(survey: &Survey, chain: &Chain, cut: LogPosition, report: &StartReport) -> Vec<SealedSegment> {
    let accepted = report.accepted.iter().map(|damaged| damaged.extent);
    let given_up: Vec<_> = report.given_up.iter().copied().chain(accepted).collect();
    let filled = chain.links.iter().filter(|link| link.base < link.end.min(cut));
    filled.map(|link| SealedSegment::new(&survey.segments[link.index], link.end.min(cut), &given_up)).collect()
}
