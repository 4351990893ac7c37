//! The whole of a shard's log verified and nothing changed, for `peregrine-broker check`: every entry from the first to the cut,
//! what stands only in the ring, the checkpoints, and that each queue's offsets follow each other.
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
use crate::log::options::LogOptions;

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
    /// What earlier starts gave up by `--accept-loss`.
    pub given_up: Vec<Extent>,
    pub damage: Option<Damage>,
}

impl CheckReport {
    /// Whether a start would come up, and find all that was acknowledged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.ring_refused.is_none()
    }
}

/// Verifies a log that no process has open. `progress` is told positions as they are reached, and the end of the last segment.
pub(in crate::log) async fn check<D: Disk, H: RingHost>(
    disk: &D,
    rings: &H,
    options: &LogOptions,
    progress: &mut dyn FnMut(LogPosition, LogPosition),
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
    let end = chain.links.last().map_or(LogPosition(0), |last| last.end);
    let mut verifier = Verifier::new(first == LogPosition(0), end, progress);
    let start = ScanStart { position: first, ..ScanStart::default() };
    let mut scan = Scan::new(disk, options, &survey, &chain, start, &given_up, &mut verifier);
    let tail = due.as_ref().and_then(|due| due.tail);
    let cut = scan.read_segments(tail.map(|tail| tail.durable)).await?;
    let ring = due.as_ref().and_then(|due| due.file.as_ref()).zip(tail);
    let messages_from_ring = ring.map_or(0, |((_, memory), tail)| scan.read_ring(memory.bytes(), tail));
    let (open, accepted) = (scan.tally.open(), scan.tally.given_up().to_vec());

    let files_are_good = survey.is_sound(&accepted) && survey.bad_checkpoints.iter().all(|bad| !bad.is_damaged());
    let damage = if open.is_empty() && files_are_good {
        None
    } else {
        let ring = ring.map(|((_, memory), tail)| (memory.bytes(), tail));
        let skipped: Vec<_> = accepted.iter().copied().chain(open.iter().map(|damaged| damaged.extent)).collect();
        let queues = lost_offsets(disk, options, &survey, &chain, start, ring, &skipped).await?;
        Some(damage_in(options, &survey, open, queues))
    };
    Ok(CheckReport {
        shard: options.shard,
        segments: chain.links.len(),
        first,
        cut,
        ring: due.as_ref().map(|due| due.fate),
        ring_refused,
        entries: verifier.entries,
        messages: verifier.messages,
        messages_from_ring,
        checkpoints: survey.checkpoints.len(),
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
    end: LogPosition,
    progress: &'a mut dyn FnMut(LogPosition, LogPosition),
}

impl<'a> Verifier<'a> {
    fn new(from_first: bool, end: LogPosition, progress: &'a mut dyn FnMut(LogPosition, LogPosition)) -> Self {
        Self {
            ends: HashMap::new(),
            from_first,
            any_lost: false,
            store_time: Nanos::ZERO,
            entries: 0,
            messages: 0,
            end,
            progress,
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
        (self.progress)(header.end(), self.end);
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
