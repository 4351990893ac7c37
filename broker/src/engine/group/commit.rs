//! How a group's place in a queue moves: decided on acknowledgements and resets, and applied from their entries.
//!
//! ```text
//!   next_beginning ─► the place is fixed when the queue is first handed to a member (`turns`)
//!   decide_ack ─────► it goes on, never back, never beyond what was delivered
//!   decide_reset ───► it goes wherever somebody wants it
//!                      └─► OffsetEntry ─► log.append ─► apply: everything is checked before anything moves
//! ```
//!
//! Where a group that has no place would begin depends on time and on what the queue holds just then. That is decided once
//! and written down: decided anew for a second member, it could lie behind messages that a first one had and lost.

use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{DurableLevel, Epoch, GroupId, LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::offsets::{OffsetEntry, OffsetRow, OffsetRows};
use super::place::CommittedPlace;
use super::registry::{Group, GroupStart};
use crate::engine::queue::Queue;
use crate::engine::reading::place_in;
use crate::engine::{Applied, ApplyErrorReason, CatalogueId, Engine, MemoryLevel, Phase, QueueKey, Refusal, StartAt};

/// Where a group stands in a queue, or would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlace {
    /// Everything below (epoch, offset) is done.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// False where the group has no place yet and this is where it would begin now.
    pub is_committed: bool,
    /// The end of what members may see; `offset` is above it only where somebody reset the group to there.
    pub visible_end: QueueOffset,
}

/// A member's acknowledgement of everything below (epoch, offset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupAck {
    pub group: GroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    /// [`Epoch::ANY`] for no expectation.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// The offset behind the last message that was delivered to the member.
    pub delivered_end: QueueOffset,
}

/// What to do about an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckDecision {
    /// Append and apply this; answer once the log has reached its end at its level.
    Append(OffsetEntry),
    /// The group was as far already: answer with its place once the log has reached `end` at `level`.
    Done { epoch: Epoch, offset: QueueOffset, end: LogPosition, level: DurableLevel },
}

impl Engine {
    /// Where the group stands in a queue of this shard.
    pub fn group_place(&self, group: GroupId, topic: TopicId, queue: QueueId) -> Result<GroupPlace, Refusal> {
        let start = self.check_group_queue(group, topic, queue)?;
        self.with_queue(QueueKey { topic, queue }, |queue| place_of(queue, group, start))
    }

    /// Decides on an acknowledgement at `now`, the wall clock.
    pub fn decide_ack(&self, ack: &GroupAck, now: Nanos) -> Result<AckDecision, Refusal> {
        let &GroupAck { group, topic, queue, epoch, offset, delivered_end } = ack;
        let start = self.check_group_queue(group, topic, queue)?;
        if self.is_poisoned() {
            return Err(Refusal::Poisoned);
        }
        let key = QueueKey { topic, queue };
        let level = self.offset_level();
        self.with_queue(key, |queue| {
            queue.epochs.check(epoch, offset, queue.end).map_err(|at| Refusal::Truncated { at })?;
            if offset > delivered_end {
                return Err(Refusal::InvalidArgument("what was not delivered cannot be acknowledged"));
            }
            if let Some(stands) = queue.groups.get(group)
                && offset <= stands.offset
            {
                let CommittedPlace { epoch, offset, entry_end: end, .. } = *stands;
                return Ok(AckDecision::Done { epoch, offset, end, level });
            }
            let begins = place_of(queue, group, start)?;
            // A place that the queue's start went past is written down all the same: the start may not be durable yet.
            if !begins.is_committed && offset < begins.offset {
                let GroupPlace { epoch, offset, .. } = begins;
                return Ok(AckDecision::Done { epoch, offset, end: LogPosition(0), level });
            }
            let row = OffsetRow { group, queue: key, reset: false, epoch: queue.epochs.before(offset), offset };
            Ok(AckDecision::Append(row.entry(level, self.store_time_at(now))))
        })
    }

    /// Decides to put a group at another place: `start` as a reader that begins now would stand. Answered when synced.
    pub fn decide_reset(
        &self,
        group: GroupId,
        topic: TopicId,
        queue: QueueId,
        start: StartAt,
        now: Nanos,
    ) -> Result<OffsetEntry, Refusal> {
        self.check_group_queue(group, topic, queue)?;
        if self.is_poisoned() {
            return Err(Refusal::Poisoned);
        }
        let key = QueueKey { topic, queue };
        self.with_queue(key, |queue| {
            let offset = place_in(queue, start)?.offset;
            let row = OffsetRow { group, queue: key, reset: true, epoch: queue.epochs.before(offset), offset };
            Ok(row.entry(DurableLevel::Synced, self.store_time_at(now)))
        })
    }

    /// The group, whose home or whose queues this shard may be. A copy that does not know it asks shard 0.
    pub fn check_group(&self, id: GroupId) -> Result<&Group, Refusal> {
        match self.catalogue.group(id) {
            Some(group) => Ok(group),
            None if self.catalogue.is_deleted(id) => Err(Refusal::GroupDeleted),
            None => Err(self.unknown(CatalogueId::Group(id), Refusal::UnknownGroup)),
        }
    }

    /// Where the group begins in a queue that is this shard's and that it consumes.
    pub(in crate::engine) fn check_group_queue(
        &self,
        group: GroupId,
        topic: TopicId,
        queue: QueueId,
    ) -> Result<GroupStart, Refusal> {
        assert!(self.phase != Phase::Recovering, "no request is decided before the start is done");
        let known = self.check_group(group)?;
        self.check_queue(topic, queue)?;
        known.start_in(topic).ok_or_else(|| {
            let refusal = Refusal::InvalidArgument("the group does not consume that topic");
            self.unknown(CatalogueId::Group(group), refusal)
        })
    }

    /// The level of acknowledgements: `memory` where it survives the process.
    pub(super) fn offset_level(&self) -> DurableLevel {
        match self.options.memory_level {
            MemoryLevel::Kept => DurableLevel::Memory,
            MemoryLevel::Raised | MemoryLevel::Refused => DurableLevel::Synced,
        }
    }

    pub(super) fn with_queue<T>(&self, key: QueueKey, answer: impl FnOnce(&Queue) -> T) -> T {
        match self.queues.by_key(key) {
            Some(queue) => answer(queue),
            None => answer(&Queue::new(key)),
        }
    }

    // Applying.

    pub(in crate::engine) fn apply_group_offsets(
        &mut self,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<Applied, ApplyErrorReason> {
        let rows = OffsetRows::check(payload)?;
        for row in rows.iter() {
            self.catalogue.raise_highest(row.group);
            self.catalogue.raise_highest(row.queue.topic);
            self.mend_queues(row.queue);
            self.check_row(header, &row)?;
        }
        for row in rows.iter() {
            let Some((epoch, offset)) = self.check_row(header, &row)? else { continue };
            if row.reset {
                self.before_reset(row.group, row.queue);
            }
            let slot = self.queues.find_or_make(row.queue);
            let Some(queue) = self.queues.get_mut(slot) else { unreachable!("a queue just found lives") };
            if queue.groups.set(CommittedPlace { group: row.group, epoch, offset, entry_end: header.end() }) {
                self.group_queues.note(row.group, slot);
            }
            self.place_moved(row.group, row.queue, offset, row.reset);
        }
        Ok(Applied::GroupOffsets)
    }

    /// The place to which a row brings its group: `None` where the group or the topic is gone, or the place was saved with it.
    fn check_row(
        &self,
        header: &EntryHeader,
        row: &OffsetRow,
    ) -> Result<Option<(Epoch, QueueOffset)>, ApplyErrorReason> {
        let lossy = self.catalogue.is_lossy();
        let QueueKey { topic, queue } = row.queue;
        let group = match self.catalogue.group(row.group) {
            Some(group) => group,
            None if self.catalogue.is_deleted(row.group) || lossy => return Ok(None),
            None => return Err(ApplyErrorReason::UnknownGroup(row.group)),
        };
        if !self.check_stored_queue(topic, queue)? {
            return Ok(None);
        }
        let misfit = |what| Err(ApplyErrorReason::GroupOffset(row.group, topic, queue, what));
        if group.start_in(topic).is_none() {
            return if lossy { Ok(None) } else { misfit("the group does not consume that topic") };
        }
        let (is_covered, is_torn) = (self.is_covered(header.position), self.is_torn(header.position));
        self.with_queue(row.queue, |queue| {
            let stands = queue.groups.get(row.group);
            if is_covered && stands.is_some_and(|stands| stands.entry_end >= header.end()) {
                return Ok(None);
            }
            // A place behind what an accepted hole took falls back to what is left before it.
            if let Err(at) = queue.epochs.check(row.epoch, row.offset, queue.end) {
                let place = Ok(Some((queue.epochs.before(at), at)));
                return if is_torn { place } else { misfit("it lies beyond what the queue holds") };
            }
            if row.epoch > header.epoch {
                return misfit("its epoch is later than the entry's");
            }
            if !row.reset && !is_torn && stands.is_some_and(|stands| stands.offset > row.offset) {
                return misfit("an acknowledgement goes back");
            }
            Ok(Some((row.epoch, row.offset)))
        })
    }
}

/// Where `group` stands in `queue`, or begins; that may have to be looked up first.
pub(in crate::engine) fn place_of(queue: &Queue, group: GroupId, start: GroupStart) -> Result<GroupPlace, Refusal> {
    let visible_end = queue.visible;
    if let Some(&CommittedPlace { epoch, offset, .. }) = queue.groups.get(group) {
        if offset < queue.start {
            // What it had not read is no longer kept.
            let epoch = queue.epochs.before(queue.start);
            return Ok(GroupPlace { epoch, offset: queue.start, is_committed: true, visible_end });
        }
        return Ok(GroupPlace { epoch, offset, is_committed: true, visible_end });
    }
    let offset = match start {
        GroupStart::Earliest => queue.start,
        GroupStart::Time(time) => place_in(queue, StartAt::Time(time))?.offset,
        GroupStart::Offset(offset) => offset.max(queue.start),
    };
    let offset = offset.min(queue.visible);
    Ok(GroupPlace { epoch: queue.epochs.before(offset), offset, is_committed: false, visible_end })
}
