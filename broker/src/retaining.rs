//! Keeps a shard's log within its bounds of age and bytes: the oldest segment's messages are given up, and then the segment. A
//! state machine between engine, indexes and log, run by the shard's background task and by the simulator alike.
//!
//! ```text
//!   Idle ─oldest segment is due─► reading ⇄ its queues, a page at a time: entries that move their starts
//!     ▲                              │ last page
//!     │                              ├──── it is damaged: surveying ⇄ the shard's queues
//!     └── retired ◄── retiring ◄── Waiting until the entries are durable and two checkpoints cover the segment
//! ```
//!
//! Of a segment that is damaged nobody knows which queues had what there. Then all queues of the shard are surveyed instead, from slot to
//! slot, and each keeps what it has behind the segment: what the indexes of later segments say first, or memory. A queue of which a later
//! segment's damage hides what comes first keeps all that may be there, so that whoever wants it is told of the damage.
//!
//! First nobody may rely on a message any more, durably; then its bytes go. A crash at any point leaves starts that have moved and
//! a segment that goes when the next run comes to it. Checkpoints are taken while entries come: where none do, a shard at rest or one
//! whose disk is full, a start is said once more, so that the checkpoints that are waited for come too.

use std::pin::Pin;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use crate::engine::{Engine, KeepingQueue, QueueKey, QueueStart, StartsEntry};
use crate::limits::{QUEUE_STARTS_ROWS, RETENTION_RETRY};
use crate::log::disk::{Disk, RingHost};
use crate::log::fault::Planted;
use crate::log::index::{FirstBehind, IndexLookUpError, LogIndexes, QueueEnd};
use crate::log::{AppendRefused, CloseState, Completion, Log, LogTask, OldestSegment};

/// How much of a shard's log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionBounds {
    /// Segments whose messages are all older may go.
    pub age: Option<Nanos>,
    /// Where segment files take more, the oldest may go.
    pub bytes: Option<u64>,
}

/// Gives up one segment after the other.
pub struct Retaining {
    bounds: RetentionBounds,
    stage: Stage,
    not_before: Nanos,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Idle,
    /// The queues of the segment behind `after` keep what they have there.
    Reading {
        segment: OldestSegment,
        after: Option<(TopicId, QueueId)>,
    },
    /// The segment is damaged: the queues from that slot on are to keep what they have behind it.
    Surveying {
        segment: OldestSegment,
        slot: u32,
    },
    /// A task is under way.
    Busy,
    /// No queue keeps anything in the segment; `entries` is where the entries that say so end.
    Waiting {
        segment: OldestSegment,
        entries: LogPosition,
    },
}

/// What is to be done on the disk. Run it, and hand its outcome to [`Retaining::complete`].
pub type RetentionTask<D> = Pin<Box<dyn Future<Output = RetentionOutcome<D>>>>;

/// What a task came to.
pub struct RetentionOutcome<D: Disk>(Done<D>);

enum Done<D: Disk> {
    Page {
        segment: OldestSegment,
        after: Option<(TopicId, QueueId)>,
        ends: Result<Option<Vec<QueueEnd>>, IndexLookUpError>,
    },
    /// Of the queues from `slot` on, up to `next`.
    Survey {
        segment: OldestSegment,
        slot: u32,
        next: Option<u32>,
        starts: Result<Vec<QueueStart>, IndexLookUpError>,
    },
    /// No checkpoint would come any more for the segment.
    AtRest(OldestSegment),
    Retired(Completion<D>),
}

impl Retaining {
    pub fn new(bounds: RetentionBounds) -> Self {
        Self { bounds, stage: Stage::Idle, not_before: Nanos::ZERO }
    }

    /// What is to be done now; nothing while a task is under way. `now` is the shard's monotonic clock, `wall` that of store times.
    pub fn next_task<D: Disk, H: RingHost>(
        &mut self,
        engine: &Engine,
        log: &mut Log<D, H>,
        now: Nanos,
        wall: Nanos,
    ) -> Option<RetentionTask<D>> {
        if matches!(self.stage, Stage::Busy) || now < self.not_before {
            return None;
        }
        if log.is_poisoned() || log.close_state() != CloseState::Open {
            self.stage = Stage::Idle;
            return None;
        }
        if let Some(again) = log.retire_again() {
            return Some(self.retire(again));
        }
        if let Stage::Idle = self.stage
            && let Some(segment) = log.oldest_segment().filter(|segment| self.is_due(segment, log, wall))
        {
            self.stage = Stage::Reading { segment, after: None };
        }
        match self.stage {
            Stage::Reading { segment, after } => {
                self.stage = Stage::Busy;
                let indexes = log.indexes();
                Some(Box::pin(async move {
                    let ends = indexes.queue_ends(segment.base, after, QUEUE_STARTS_ROWS).await;
                    RetentionOutcome(Done::Page { segment, after, ends })
                }))
            }
            Stage::Surveying { segment, slot } => {
                self.stage = Stage::Busy;
                let (queues, next) = engine.keeping_queues(slot, segment.end);
                let indexes = log.indexes();
                Some(Box::pin(async move {
                    let starts = survey(&indexes, &segment, queues).await;
                    RetentionOutcome(Done::Survey { segment, slot, next, starts })
                }))
            }
            Stage::Waiting { segment, entries } if log.durable() >= entries && log.may_retire(segment.end) => {
                assert!(log.oldest_segment() == Some(segment), "nobody else retires segments");
                let task = log.retire_oldest();
                Some(self.retire(task))
            }
            Stage::Waiting { segment, entries } if log.durable() >= entries && is_at_rest(engine, log) => {
                self.stage = Stage::Busy;
                Some(Box::pin(async move { RetentionOutcome(Done::AtRest(segment)) }))
            }
            Stage::Idle | Stage::Busy | Stage::Waiting { .. } => None,
        }
    }

    fn retire<D: Disk>(&mut self, task: LogTask<D>) -> RetentionTask<D> {
        self.stage = Stage::Busy;
        Box::pin(async move { RetentionOutcome(Done::Retired(task.run().await)) })
    }

    fn is_due<D: Disk, H: RingHost>(&self, segment: &OldestSegment, log: &Log<D, H>, wall: Nanos) -> bool {
        let is_beyond = self.bounds.bytes.is_some_and(|bytes| log.disk_bytes() > bytes);
        // What follows it was stored later than all that it holds.
        let stored_by = || log.indexes().first_time_behind(segment.end);
        is_beyond || self.bounds.age.is_some_and(|age| stored_by().is_some_and(|time| time + age.0 <= wall))
    }

    /// Takes in what a task came to. `append` appends an entry and applies it, in one turn.
    pub fn complete<D: Disk, H: RingHost>(
        &mut self,
        outcome: RetentionOutcome<D>,
        engine: &mut Engine,
        log: &mut Log<D, H>,
        (now, wall): (Nanos, Nanos),
        append: impl FnOnce(&mut Engine, &mut Log<D, H>, &StartsEntry) -> Result<(), AppendRefused>,
    ) {
        match outcome.0 {
            // Nothing is appended any more.
            Done::Page { .. } | Done::Survey { .. } | Done::AtRest(_) if log.is_poisoned() => self.stage = Stage::Idle,
            Done::AtRest(segment) => {
                // A shard without a queue that ever had a message waits for whatever comes.
                let said = engine.restate_a_start(wall).is_some_and(|entry| append(engine, log, &entry).is_ok());
                if !said {
                    self.not_before = now + RETENTION_RETRY.0;
                }
                self.stage = Stage::Waiting { segment, entries: log.tail() };
            }
            Done::Page { segment, ends: Ok(None), .. } => self.stage = Stage::Surveying { segment, slot: 0 },
            Done::Page { segment, after, ends: Ok(Some(ends)) } => {
                self.stage = match ends.last() {
                    None => Stage::Waiting { segment, entries: log.tail() },
                    Some(last) => {
                        let excess = u64::from(log.has_planted(Planted::GiveUpTooMuch));
                        let moved =
                            starts(&ends, excess, engine, wall).map_or(Ok(()), |entry| append(engine, log, &entry));
                        if moved.is_err() {
                            self.not_before = now + RETENTION_RETRY.0;
                        }
                        let after = if moved.is_ok() { Some((last.topic, last.queue)) } else { after };
                        Stage::Reading { segment, after }
                    }
                };
            }
            Done::Survey { segment, slot, next, starts: Ok(starts) } => {
                let moved = engine.decide_starts(&starts, wall).map_or(Ok(()), |entry| append(engine, log, &entry));
                self.stage = match (moved, next) {
                    (Ok(()), Some(slot)) => Stage::Surveying { segment, slot },
                    (Ok(()), None) => Stage::Waiting { segment, entries: log.tail() },
                    (Err(_), _) => {
                        self.not_before = now + RETENTION_RETRY.0;
                        Stage::Surveying { segment, slot }
                    }
                };
            }
            // It goes on where it stands: while there is traffic some index is always in the making.
            Done::Survey { segment, slot, starts: Err(_), .. } => {
                self.not_before = now + RETENTION_RETRY.0;
                self.stage = Stage::Surveying { segment, slot };
            }
            // Its index is being made.
            Done::Page { ends: Err(_), .. } => {
                self.not_before = now + RETENTION_RETRY.0;
                self.stage = Stage::Idle;
            }
            Done::Retired(completion) => {
                let failures = log.counters().retire_failures;
                log.complete(completion, now);
                if log.counters().retire_failures > failures {
                    self.not_before = now + RETENTION_RETRY.0;
                }
                self.stage = Stage::Idle;
            }
        }
    }
}

/// Whether no checkpoint is to be taken, since nothing has come that the newest does not know.
fn is_at_rest<D: Disk, H: RingHost>(engine: &Engine, log: &Log<D, H>) -> bool {
    !log.is_taking_checkpoint() && !log.may_begin_checkpoint(engine.applied())
}

/// From now on these queues keep what lies behind the segment.
fn starts(ends: &[QueueEnd], excess: u64, engine: &Engine, wall: Nanos) -> Option<StartsEntry> {
    let start_of = |end: &QueueEnd| {
        let QueueEnd { topic, queue, end } = *end;
        QueueStart { queue: QueueKey { topic, queue }, start: end + excess }
    };
    engine.decide_starts(&ends.iter().map(start_of).collect::<Vec<_>>(), wall)
}

/// From where on these queues keep their messages, in ascending order. Memory said what it has behind the segment; what it dropped by
/// then is asked for here.
async fn survey<D: Disk>(
    indexes: &LogIndexes<D>,
    segment: &OldestSegment,
    queues: Vec<KeepingQueue>,
) -> Result<Vec<QueueStart>, IndexLookUpError> {
    let mut starts = Vec::with_capacity(queues.len());
    for KeepingQueue { queue, held, dropped_to } in queues {
        let QueueKey { topic, queue: id } = queue;
        let start = match indexes.first_behind(topic, id, segment.end, dropped_to).await? {
            FirstBehind::At(offset) => offset.min(held),
            FirstBehind::Nothing => held,
            FirstBehind::Unknown => {
                let known = indexes.known_end(topic, id, segment.base).await?;
                known.unwrap_or(QueueOffset(0)).min(held)
            }
        };
        starts.push(QueueStart { queue, start });
    }
    starts.sort_unstable_by_key(|start| start.queue);
    Ok(starts)
}
