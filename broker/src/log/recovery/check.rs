//! The whole of a shard's log verified and nothing changed, for `peregrine-broker check`: every entry from the first to the cut,
//! what stands only in the ring, checkpoints and marks, that each queue's offsets follow each other, and each index against its segment.
//!
//! A start reads no more than what came since a checkpoint; this is how damage below it is found while nobody reads there.

use std::collections::HashMap;

use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, ShardId, TopicId};

use super::due_ring::DueRing;
use super::scan::{Scan, ScanStart};
use super::survey::{BadCheckpoint, Survey};
use super::{Replay, RingFate, damage_in, lost_offsets, notes};
use crate::log::chain::Chain;
use crate::log::checkpoint::read_sections;
use crate::log::damage::{Damage, Extent};
use crate::log::disk::{Disk, RingHost, RingMemory};
use crate::log::error::StartError;
use crate::log::files;
use crate::log::index::{Reading, SealedSegment, Stop, compare_index};
use crate::log::options::LogOptions;
use crate::log::segment::SegmentName;

/// What a shard's log is made of, and what is wrong with it.
#[derive(Debug)]
pub struct CheckReport {
    pub shard: ShardId,
    pub segments: usize,
    /// Where the oldest segment begins that is still there.
    pub first: LogPosition,
    /// Where the log ends on the device.
    pub cut: LogPosition,
    /// What a start would make of the ring; `None` where it would refuse it: see `ring_refused`.
    pub ring: Option<RingFate>,
    pub ring_refused: Option<String>,
    pub entries: u64,
    pub messages: u64,
    /// Those of the messages that stand only in the ring.
    pub messages_from_ring: u64,
    /// Good checkpoints.
    pub checkpoints: usize,
    /// Indexes that say what their segments say.
    pub indexes: usize,
    /// Files that are bad and whose loss takes nothing, and why: a start makes such an index again, and has another mark.
    pub harmless: Vec<(String, String)>,
    /// What earlier starts gave up by `--accept-loss`.
    pub given_up: Vec<Extent>,
    pub damage: Option<Damage>,
}

impl CheckReport {
    /// Whether a start would come up, and find all that was acknowledged. What is [harmless](Self::harmless) does not count.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.ring_refused.is_none()
    }
}

/// Verifies a log that no process has open. `progress` is told how many bytes were read of how many.
pub(in crate::log) async fn check<D: Disk, H: RingHost>(
    disk: &D,
    rings: &H,
    options: &LogOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, StartError> {
    let mut survey = Survey::read(disk, options).await?;
    let chain = Chain::read_back(&survey.segments);
    let given_up = notes::given_up(disk, options, &survey, &chain).await?;
    verify_checkpoints(disk, &mut survey).await;
    let (due, ring_refused) = match DueRing::find(rings, &survey, options) {
        Ok(due) => (Some(due), None),
        Err(error @ StartError::Ring { .. }) => (None, Some(error.to_string())),
        Err(error) => return Err(error),
    };

    let first = retired_up_to(&survey, &chain);
    let all = bytes_of(&survey, &chain, |_| true);
    let of_indexes = bytes_of(&survey, &chain, |name| survey.indexes.contains(name));
    let (mut links, mut below) = (chain.links.iter().peekable(), 0);
    let mut scanned = |end: LogPosition| {
        while let Some(link) = links.next_if(|link| link.end < end) {
            below += link.end - link.base;
        }
        let within = links.peek().map_or(0, |link| end.0.saturating_sub(link.base.0));
        progress(below + within, all + of_indexes);
    };
    let mut verifier = Verifier::new(first == LogPosition(0), &mut scanned);
    let start = ScanStart { position: first, ..ScanStart::default() };
    let mut scan = Scan::new(disk, options, &survey, &chain, start, &given_up, &mut verifier);
    let tail = due.as_ref().and_then(|due| due.tail);
    let cut = scan.read_segments(tail.map(|tail| tail.durable)).await?;
    let ring = due.as_ref().and_then(|due| due.file.as_ref()).zip(tail);
    let messages_from_ring = ring.map_or(0, |((_, memory), tail)| scan.read_ring(memory.bytes(), tail));
    let (open, accepted) = (scan.tally.open(), scan.tally.given_up().to_vec());
    let (entries, messages) = (verifier.entries, verifier.messages);

    let files_are_good = survey.is_sound(&accepted) && survey.bad_checkpoints.iter().all(|bad| !bad.is_damaged());
    let damage = if open.is_empty() && files_are_good {
        None
    } else {
        let ring = ring.map(|((_, memory), tail)| (memory.bytes(), tail));
        let skipped: Vec<_> = accepted.iter().copied().chain(open.iter().map(|damaged| damaged.extent)).collect();
        let queues = lost_offsets(disk, options, &survey, &chain, start, ring, &skipped).await?;
        Some(damage_in(options, &survey, open, queues))
    };
    let mut indexes = IndexCheck { damaged: extents_of(damage.as_ref()), ..IndexCheck::default() };
    for link in &chain.links {
        let identity = &survey.segments[link.index];
        if survey.indexes.contains(&identity.name()) && link.base < cut {
            let segment = SealedSegment::new(identity, link.end.min(cut), &accepted);
            indexes.verify(disk, options, &segment).await;
            progress(all + of_indexes * indexes.met / survey.indexes.len() as u64, all + of_indexes);
        }
    }
    let mut harmless = indexes.bad;
    harmless.extend(survey.torn_marks.iter().map(|name| (name.clone(), TORN_MARK.to_owned())));
    Ok(CheckReport {
        shard: options.shard,
        segments: chain.links.len(),
        first,
        cut,
        ring: due.as_ref().map(|due| due.fate),
        ring_refused,
        entries,
        messages,
        messages_from_ring,
        checkpoints: survey.checkpoints.len(),
        indexes: indexes.good,
        harmless,
        given_up: accepted,
        damage,
    })
}

/// Where the log begins now: what was retired before it stands in a checkpoint. Without one that says so it is missing.
fn retired_up_to(survey: &Survey, chain: &Chain) -> LogPosition {
    let Some(oldest) = chain.links.first() else { return LogPosition(0) };
    let previous_end = survey.segments[oldest.index].previous_end;
    let is_covered = survey.checkpoints.iter().any(|head| head.begin >= previous_end);
    if is_covered { previous_end } else { LogPosition(0) }
}

/// Of a mark's block that holds no mark. Each of the two is written without touching the other.
const TORN_MARK: &str = "a block of it holds no mark: torn or damaged, and the other one counts";

/// Bytes of the log in those of its segments.
fn bytes_of(survey: &Survey, chain: &Chain, is_meant: impl Fn(&SegmentName) -> bool) -> u64 {
    let meant = chain.links.iter().filter(|link| is_meant(&survey.segments[link.index].name()));
    meant.map(|link| link.end - link.base).sum()
}

fn extents_of(damage: Option<&Damage>) -> Vec<Extent> {
    damage.map(|damage| damage.extents.iter().map(|damaged| damaged.extent).collect()).unwrap_or_default()
}

/// What the indexes came to.
#[derive(Default)]
struct IndexCheck {
    /// Stretches of the log that are damaged: of such a segment there is no right index.
    damaged: Vec<Extent>,
    met: u64,
    good: usize,
    bad: Vec<(String, String)>,
}

impl IndexCheck {
    async fn verify<D: Disk>(&mut self, disk: &D, options: &LogOptions, segment: &SealedSegment) {
        self.met += 1;
        if self.damaged.iter().any(|damaged| segment.overlaps(damaged)) {
            return;
        }
        match compare_index(disk, options, segment, Reading::AtOnce, Stop::default()).await {
            Ok(()) => self.good += 1,
            Err(error) => self.bad.push((files::index_name(segment.name()), error.to_string())),
        }
    }
}

/// Reads every checkpoint; those that are not whole join the bad ones.
async fn verify_checkpoints<D: Disk>(disk: &D, survey: &mut Survey) {
    for head in std::mem::take(&mut survey.checkpoints) {
        match read_sections(disk, &head, |_| Ok(())).await {
            Ok(()) => survey.checkpoints.push(head),
            Err(reason) => survey.bad_checkpoints.push(BadCheckpoint { name: head.name(), reason }),
        }
    }
}

/// Sees that what is stored follows from what was stored before, as far as that can be told without the engine.
struct Verifier<'a> {
    ends: HashMap<(TopicId, QueueId), QueueOffset>,
    /// The log is read from its first entry: a queue begins at offset 0.
    from_first: bool,
    any_lost: bool,
    store_time: Nanos,
    entries: u64,
    messages: u64,
    /// Told the end of each entry.
    scanned: &'a mut dyn FnMut(LogPosition),
}

impl<'a> Verifier<'a> {
    fn new(from_first: bool, scanned: &'a mut dyn FnMut(LogPosition)) -> Self {
        Self {
            ends: HashMap::new(),
            from_first,
            any_lost: false,
            store_time: Nanos::ZERO,
            entries: 0,
            messages: 0,
            scanned,
        }
    }

    fn follows(&self, header: &EntryHeader) -> Result<(), String> {
        if header.store_time < self.store_time {
            return Err(format!("store time {} follows store time {}", header.store_time, self.store_time));
        }
        if header.kind != EntryKind::Batch {
            return Ok(());
        }
        let end = match self.ends.get(&(header.topic, header.queue)) {
            Some(&end) => end,
            None if self.from_first => QueueOffset(0),
            None => return Ok(()),
        };
        let jumps = self.any_lost && header.base_offset > end;
        if header.base_offset == end || jumps {
            Ok(())
        } else {
            Err(format!("the queue goes on at offset {end}, the batch has {}", header.base_offset))
        }
    }
}

impl Replay for Verifier<'_> {
    fn entry(&mut self, header: &EntryHeader, _payload: &[u8]) -> Result<(), String> {
        (self.scanned)(header.end());
        self.follows(header)?;
        self.store_time = header.store_time;
        self.entries += 1;
        if header.kind == EntryKind::Batch {
            self.messages += u64::from(header.record_count);
            self.ends.insert((header.topic, header.queue), header.end_offset());
        }
        Ok(())
    }

    fn lost(&mut self, _extent: Extent) {
        self.any_lost = true;
    }

    fn begin(&mut self) {}

    fn restore(&mut self, _section: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn restored(&mut self) -> Result<(), String> {
        Ok(())
    }
}
