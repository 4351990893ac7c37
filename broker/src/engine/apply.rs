//! The half of the engine that changes durable state, from entries alone.
//!
//! It takes an entry whole or not at all: everything is checked before anything is changed. In production an error here is a
//! bug in `decide`; while a log is read back it is damage, and the shard does not start.
//!
//! Behind a checkpoint (see `checkpoint`) the log is read back from the checkpoint's begin. Up to its end an entry is *covered*:
//! each object that it concerns may have taken it in before it was saved, knows whether it did, and then ignores it.

use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{
    Epoch, GroupId, LogPosition, Nanos, ProducerEpoch, QueueId, QueueOffset, Sequence, TopicId,
};
use peregrine_protocol::limits::QUEUES_PER_TOPIC_MAX;

use super::catalogue::{CatalogueChange, CatalogueChangeError, CatalogueId};
use super::group::OffsetsError;
use super::index::IndexEntry;
use super::producer::{BatchSequence, ProducerState, Remembered};
use super::queue::{Queue, QueueKey};
use super::queue_starts::StartsError;
use super::{Engine, Phase, Topic, TopicState};

/// What an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A batch was stored.
    Batch { queue: QueueKey, records: u32 },
    /// A batch of a topic that was deleted since, or was lost in a hole that was accepted, or one that its queue had when it was
    /// saved: nothing.
    Skipped,
    /// Places of consumer groups moved, except those of groups and topics that are gone.
    GroupOffsets,
    /// Queues keep their messages from later offsets on.
    QueueStarts,
    /// A change of the catalogue. While running it takes effect once it is durable.
    Catalogue,
    /// An entry that says nothing to the engine.
    Nothing,
}

/// An entry that cannot follow what was applied before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry at position {position}: {reason}")]
pub struct ApplyError {
    pub position: LogPosition,
    pub reason: ApplyErrorReason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyErrorReason {
    #[error("topic {0} is neither live nor deleted")]
    UnknownTopic(TopicId),
    #[error("topic {0} has no queue {1} on this shard")]
    UnknownQueue(TopicId, QueueId),
    #[error("a batch without records or without a durable level")]
    EmptyBatch,
    #[error("queue {1} of topic {0} goes on at offset {2}, the batch has {3}")]
    Offset(TopicId, QueueId, QueueOffset, QueueOffset),
    #[error("epoch {1} follows epoch {0}")]
    Epoch(Epoch, Epoch),
    #[error("store time {1} follows store time {0}")]
    StoreTime(Nanos, Nanos),
    #[error("the producer's epoch {0} and sequence {1} do not follow its last batch")]
    Sequence(ProducerEpoch, Sequence),
    #[error(transparent)]
    CatalogueFormat(#[from] CatalogueChangeError),
    #[error("the change of {0} does not fit the catalogue: {1}")]
    Catalogue(CatalogueId, &'static str),
    #[error("a catalogue change outside of shard 0")]
    NotHome,
    #[error("group {0} is neither live nor deleted")]
    UnknownGroup(GroupId),
    #[error(transparent)]
    OffsetsFormat(#[from] OffsetsError),
    #[error(transparent)]
    StartsFormat(#[from] StartsError),
    #[error("queue {1} of topic {0} does not reach to offset {2}, from which on it is to keep its messages")]
    QueueStart(TopicId, QueueId, QueueOffset),
    #[error("the place of group {0} in queue {2} of topic {1} does not fit: {3}")]
    GroupOffset(GroupId, TopicId, QueueId, &'static str),
}

impl Engine {
    /// Takes in an entry, in the order of the log, with its payload (not looked at for a batch: there it may be empty, as it is
    /// where the payload's copy into the ring is under way).
    pub fn apply(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<Applied, ApplyError> {
        assert!(self.phase != Phase::Poisoned, "nothing is appended to a poisoned log");
        let at = |reason| ApplyError { position: header.position, reason };
        if header.store_time < self.store_time {
            return Err(at(ApplyErrorReason::StoreTime(self.store_time, header.store_time)));
        }
        let applied = match header.kind {
            EntryKind::Batch => self.apply_batch(header).map_err(at)?,
            EntryKind::Catalogue => self.apply_catalogue(header, payload).map_err(at)?,
            EntryKind::QueueStarts => self.apply_queue_starts(header, payload).map_err(at)?,
            EntryKind::GroupOffsets => self.apply_group_offsets(header, payload).map_err(at)?,
            _ => Applied::Nothing,
        };
        self.applied = header.end();
        self.store_time = header.store_time;
        self.ageing.advance(header.store_time, &mut self.queues);
        Ok(applied)
    }

    fn apply_catalogue(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<Applied, ApplyErrorReason> {
        if !self.is_home() {
            return Err(ApplyErrorReason::NotHome);
        }
        let change = CatalogueChange::decode(payload)?;
        if change.object() != header.topic.into() {
            return Err(ApplyErrorReason::Catalogue(change.id(), "the entry's header names another object"));
        }
        if let Err(reason) = self.catalogue.fits(&change) {
            let is_lossy = self.phase == Phase::Recovering && self.catalogue.is_lossy();
            if !is_lossy && !self.is_covered(header.position) {
                return Err(ApplyErrorReason::Catalogue(change.id(), reason));
            }
            // It builds on one that an accepted hole took, or is known already: each names its object in full, so it counts by
            // itself.
            for removed in self.catalogue.mend(&change, header.store_time) {
                self.forget(&removed);
            }
            return Ok(Applied::Catalogue);
        }
        self.catalogue.append(change, header);
        if self.phase == Phase::Recovering {
            self.settle_catalogue(header.end());
        }
        Ok(Applied::Catalogue)
    }

    /// Whether a queue that an entry names is one of this shard; false where its topic was deleted since, or was lost in a hole
    /// that was accepted.
    pub(super) fn check_stored_queue(&self, topic: TopicId, queue: QueueId) -> Result<bool, ApplyErrorReason> {
        match self.catalogue.get(topic) {
            None if self.catalogue.is_deleted(topic) || self.catalogue.is_lossy() => Ok(false),
            None => Err(ApplyErrorReason::UnknownTopic(topic)),
            Some(known) => {
                let here = known.shard_of(queue, self.options.shards) == self.options.shard;
                if queue.0 >= known.queues || !here {
                    return Err(ApplyErrorReason::UnknownQueue(topic, queue));
                }
                Ok(true)
            }
        }
    }

    /// What is there of a queue proves that its topic had so many, where the change that said so may have been lost in a hole that
    /// was accepted. To pass over its entries would not do: altered again, the topic would have them back, before other ones.
    pub(super) fn mend_queues(&mut self, key: QueueKey) {
        if self.phase == Phase::Recovering
            && self.catalogue.is_lossy()
            && let Some(topic) = self.catalogue.get(key.topic)
            && (topic.queues..QUEUES_PER_TOPIC_MAX).contains(&key.queue.0)
        {
            let topic = Topic { queues: key.queue.0 + 1, ..topic.clone() };
            self.catalogue.set(&TopicState::Live(topic).into());
        }
    }

    fn apply_batch(&mut self, header: &EntryHeader) -> Result<Applied, ApplyErrorReason> {
        let (topic, queue) = (header.topic, header.queue);
        self.catalogue.raise_highest(topic);
        self.mend_queues(QueueKey { topic, queue });
        if !self.check_stored_queue(topic, queue)? {
            return Ok(Applied::Skipped);
        }
        let Some(level) = header.flags.level().filter(|_| header.record_count > 0) else {
            return Err(ApplyErrorReason::EmptyBatch);
        };
        let key = QueueKey { topic, queue };
        let (is_covered, is_torn) = (self.is_covered(header.position), self.is_torn(header.position));
        let slot = self.queues.find_or_make(key);
        let Some(queue) = self.queues.get_mut(slot) else { unreachable!("a queue just found lives") };
        let is_stored = is_covered && queue.has_stored(header.position);
        if !is_stored {
            check_follows(queue, header, is_torn)?;
        }
        let counts = header.producer_id.is_idempotent() && !(is_covered && has_counted(queue, header));
        if counts {
            // While the checkpoint was made, a state may have been forgotten that these batches went on from.
            check_sequence(queue, header, self.holes || is_covered)?;
        }

        if !is_stored {
            let noted = queue.epochs.note(header.epoch, header.base_offset);
            assert!(noted, "the epoch was checked");
            let begins_chunk = queue.index.push(&IndexEntry {
                offset: header.base_offset,
                records: header.record_count,
                position: header.position,
                length: header.length,
                store_time: header.store_time,
            });
            if begins_chunk && self.phase != Phase::Recovering {
                self.chunks.begun(header.position, slot);
            }
            if queue.start == queue.end {
                // Another offset than the end only behind a hole.
                queue.start = header.base_offset;
            }
            queue.end = header.end_offset();
        }
        if counts {
            let time = header.store_time;
            let state = queue.producers.entry(header.producer_id).or_insert_with(|| {
                self.ageing.push(slot, header.producer_id, time);
                ProducerState::new(time)
            });
            if state.is_forgotten(time) {
                *state = ProducerState::new(time);
            }
            state.store(sequence_of(header), remembered(header), time);
        }
        if is_stored {
            return Ok(Applied::Skipped);
        }
        if self.phase == Phase::Recovering {
            queue.visible = queue.end;
        } else {
            self.visibility.push(slot, queue, level, header.end());
        }
        Ok(Applied::Batch { queue: key, records: header.record_count })
    }
}

/// Whether a batch can be the next one of its queue; behind a hole that was accepted, offsets may jump ahead.
fn check_follows(queue: &Queue, header: &EntryHeader, jumps: bool) -> Result<(), ApplyErrorReason> {
    if header.base_offset != queue.end && !(jumps && header.base_offset > queue.end) {
        let QueueKey { topic, queue: id } = queue.key;
        return Err(ApplyErrorReason::Offset(topic, id, queue.end, header.base_offset));
    }
    if let Some((last, _)) = queue.epochs.iter().last()
        && last > header.epoch
    {
        return Err(ApplyErrorReason::Epoch(last, header.epoch));
    }
    Ok(())
}

/// Whether a batch can be the next one of its producer, whose count may jump ahead where `jumps` says so.
fn check_sequence(queue: &Queue, header: &EntryHeader, jumps: bool) -> Result<(), ApplyErrorReason> {
    let batch = sequence_of(header);
    let state = queue.producers.get(&header.producer_id).filter(|state| !state.is_forgotten(header.store_time));
    let follows = match state {
        None => batch.sequence == Sequence(0),
        Some(state) => state.follows(batch),
    };
    if follows || jumps && state.is_none_or(|state| state.is_behind(batch)) {
        Ok(())
    } else {
        Err(ApplyErrorReason::Sequence(batch.epoch, batch.sequence))
    }
}

/// Whether the batch's producer has counted it.
fn has_counted(queue: &Queue, header: &EntryHeader) -> bool {
    queue.producers.get(&header.producer_id).is_some_and(|state| state.has_counted(header.position))
}

fn sequence_of(header: &EntryHeader) -> BatchSequence {
    BatchSequence { epoch: header.producer_epoch, sequence: header.sequence }
}

fn remembered(header: &EntryHeader) -> Remembered {
    Remembered {
        offset: header.base_offset,
        position: header.position,
        payload_crc: header.payload_crc,
        length: header.length,
        records: header.record_count,
    }
}
