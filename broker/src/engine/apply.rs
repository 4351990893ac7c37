//! The half of the engine that changes durable state, from entries alone.
//!
//! It takes an entry whole or not at all: everything is checked before anything is changed. In production an error here is a
//! bug in `decide`; while a log is read back it is damage, and the shard does not start.

use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, ProducerEpoch, QueueId, QueueOffset, Sequence, TopicId};

use super::index::IndexEntry;
use super::producer::{BatchSequence, ProducerState, Remembered};
use super::queue::{Queue, QueueKey};
use super::topic_change::{TopicChange, TopicChangeError};
use super::{Engine, Phase, TopicState};

/// What an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A batch was stored.
    Batch { queue: QueueKey, records: u32 },
    /// A batch of a topic that was deleted since, or was lost in a hole that was accepted: nothing.
    Skipped,
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
    CatalogueFormat(#[from] TopicChangeError),
    #[error("the change of topic {0} does not fit the catalogue: {1}")]
    Catalogue(TopicId, &'static str),
    #[error("a catalogue change outside of shard 0")]
    NotHome,
}

impl Engine {
    /// Takes in an entry, in the order of the log, with its payload (looked at for catalogue changes alone: for a batch it may
    /// be empty, as it is where the payload's copy into the ring is under way).
    pub fn apply(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<Applied, ApplyError> {
        assert!(self.phase != Phase::Poisoned, "nothing is appended to a poisoned log");
        let at = |reason| ApplyError { position: header.position, reason };
        if header.store_time < self.store_time {
            return Err(at(ApplyErrorReason::StoreTime(self.store_time, header.store_time)));
        }
        let applied = match header.kind {
            EntryKind::Batch => self.apply_batch(header).map_err(at)?,
            EntryKind::Catalogue => self.apply_catalogue(header, payload).map_err(at)?,
            _ => Applied::Nothing,
        };
        self.store_time = header.store_time;
        self.ageing.advance(header.store_time, &mut self.queues);
        Ok(applied)
    }

    fn apply_catalogue(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<Applied, ApplyErrorReason> {
        if !self.is_home() {
            return Err(ApplyErrorReason::NotHome);
        }
        let change = TopicChange::decode(payload)?;
        if change.topic != header.topic {
            return Err(ApplyErrorReason::Catalogue(change.topic, "the entry's header names another topic"));
        }
        if let Err(reason) = self.catalogue.fits(&change) {
            if self.phase != Phase::Recovering || !self.catalogue.is_lossy() {
                return Err(ApplyErrorReason::Catalogue(change.topic, reason));
            }
            self.mend_catalogue(&change, header.store_time);
            return Ok(Applied::Catalogue);
        }
        self.catalogue.append(change, header.end(), header.store_time);
        if self.phase == Phase::Recovering {
            self.settle_catalogue(header.end());
        }
        Ok(Applied::Catalogue)
    }

    /// A change that builds on one that an accepted hole took: each names its topic in full, so it counts by itself.
    fn mend_catalogue(&mut self, change: &TopicChange, time: Nanos) {
        let namesake = self.catalogue.named(&change.name).map(|topic| topic.id).filter(|&id| id != change.topic);
        let states = namesake.map(TopicState::Deleted).into_iter().chain([self.catalogue.state_after(change, time)]);
        for state in states {
            let before = self.catalogue.set(&state);
            self.forget_deleted(&state, before);
        }
    }

    fn apply_batch(&mut self, header: &EntryHeader) -> Result<Applied, ApplyErrorReason> {
        let (topic, queue) = (header.topic, header.queue);
        self.catalogue.raise_highest(topic);
        match self.catalogue.get(topic) {
            None if self.catalogue.is_deleted(topic) || self.catalogue.is_lossy() => return Ok(Applied::Skipped),
            None => return Err(ApplyErrorReason::UnknownTopic(topic)),
            Some(known) => {
                let here = known.shard_of(queue, self.options.shards) == self.options.shard;
                if queue.0 >= known.queues || !here {
                    return Err(ApplyErrorReason::UnknownQueue(topic, queue));
                }
            }
        }
        let Some(level) = header.flags.level().filter(|_| header.record_count > 0) else {
            return Err(ApplyErrorReason::EmptyBatch);
        };
        let key = QueueKey { topic, queue };
        let slot = self.queues.find_or_make(key);
        let Some(queue) = self.queues.get_mut(slot) else { unreachable!("a queue just found lives") };
        check_follows(queue, header, self.holes)?;

        let noted = queue.epochs.note(header.epoch, header.base_offset);
        assert!(noted, "the epoch was checked");
        queue.index.push(&IndexEntry {
            offset: header.base_offset,
            records: header.record_count,
            position: header.position,
            length: header.length,
            store_time: header.store_time,
        });
        queue.end = header.end_offset();
        if header.producer_id.is_idempotent() {
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
        if self.phase == Phase::Recovering {
            queue.visible = queue.end;
        } else {
            self.visibility.push(slot, queue, level, header.end());
        }
        Ok(Applied::Batch { queue: key, records: header.record_count })
    }
}

/// Whether a batch can be the next one of its queue; behind a hole that was accepted, offsets and sequences may jump ahead.
fn check_follows(queue: &Queue, header: &EntryHeader, holes: bool) -> Result<(), ApplyErrorReason> {
    if header.base_offset != queue.end && !(holes && header.base_offset > queue.end) {
        let QueueKey { topic, queue: id } = queue.key;
        return Err(ApplyErrorReason::Offset(topic, id, queue.end, header.base_offset));
    }
    if let Some((last, _)) = queue.epochs.iter().last()
        && last > header.epoch
    {
        return Err(ApplyErrorReason::Epoch(last, header.epoch));
    }
    if header.producer_id.is_idempotent() {
        let batch = sequence_of(header);
        let state = queue.producers.get(&header.producer_id).filter(|state| !state.is_forgotten(header.store_time));
        let follows = match state {
            None => batch.sequence == Sequence(0),
            Some(state) => state.follows(batch),
        };
        let jumps = holes && state.is_none_or(|state| state.is_behind(batch));
        if !follows && !jumps {
            return Err(ApplyErrorReason::Sequence(batch.epoch, batch.sequence));
        }
    }
    Ok(())
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
