//! Putting a checkpoint back, before the first entry is applied.
//!
//! ```text
//!   Engine::new ─► install_catalogue (a copy) ─► restore … ─► restore_end ─► apply … from begin on ─► recovered
//! ```
//!
//! After an error the engine is of no use: a start goes on with a new one, and another checkpoint.

use peregrine_protocol::ids::{
    Epoch, GroupId, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, ShardId, TopicId,
};

use super::record::{RecordKind, RecordReader, VERSION};
use crate::engine::catalogue::{CatalogueChange, CatalogueChangeError, ObjectId};
use crate::engine::group::CommittedPlace;
use crate::engine::index::QueueIndex;
use crate::engine::producer::{ProducerState, Remembered};
use crate::engine::queue::{Queue, QueueKey};
use crate::engine::{Engine, Phase};

/// Why a checkpoint cannot be put back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    #[error(
        "a checkpoint holds records of kind {kind} and version {version}, this program knows version {VERSION}: a newer program wrote it"
    )]
    Newer { kind: u8, version: u8 },
    #[error("a section of a checkpoint ends within a record")]
    Cut,
    #[error("a checkpoint's record of kind {0} does not hold what it announces")]
    Malformed(u8),
    #[error("a checkpoint's record of kind {0} stands where none can be")]
    Misplaced(u8),
    #[error("the checkpoint is of shard {0} of {1}")]
    OfAnother(ShardId, u16),
    #[error(transparent)]
    Catalogue(#[from] CatalogueChangeError),
    #[error("queue {1} of topic {0} does not fit: {2}")]
    Queue(TopicId, QueueId, &'static str),
    #[error("topic {0} is neither live nor deleted")]
    UnknownTopic(TopicId),
    #[error("group {0} is neither live nor deleted")]
    UnknownGroup(GroupId),
    #[error(
        "the shard has seen id {seen}, and shard 0 knows ids up to {known} alone: its log is not the one that gave them"
    )]
    HomeGone { seen: u64, known: u64 },
    #[error("the checkpoint has no end")]
    Incomplete,
}

/// What a start has from a checkpoint.
#[derive(Debug, Default)]
pub struct Restored {
    begun: bool,
    end: Option<RestoredEnd>,
}

#[derive(Clone, Copy, Debug)]
struct RestoredEnd {
    end: LogPosition,
    indexed_to: LogPosition,
    /// The highest id of the catalogue that the shard had seen.
    seen: ObjectId,
}

impl Engine {
    /// Puts back a section that [`Engine::save_slice`] wrote, or several: all of them, in their order, before
    /// [`Engine::restore_end`].
    pub fn restore(&mut self, section: &[u8]) -> Result<(), RestoreError> {
        assert!(
            self.phase == Phase::Recovering && self.covered_to.0 == 0,
            "a start puts one checkpoint back, at first"
        );
        let mut records = RecordReader::new(section);
        while let Some((kind, mut body)) = records.next_record()? {
            let is_first = kind == RecordKind::Begin;
            if is_first == self.restored.begun || self.restored.end.is_some() {
                return Err(RestoreError::Misplaced(kind as u8));
            }
            let is_read = match kind {
                RecordKind::Begin => self.restore_begin(&mut body)?,
                RecordKind::Object | RecordKind::Deleted if !self.is_home() => {
                    return Err(RestoreError::Misplaced(kind as u8));
                }
                RecordKind::Object => self.restore_object(&mut body)?,
                RecordKind::Queue => self.restore_queue(&mut body)?,
                RecordKind::Chunk => self.restore_chunk(&mut body)?,
                RecordKind::Places => self.restore_places(&mut body),
                RecordKind::Producer => self.restore_producer(&mut body),
                RecordKind::Deleted => self.restore_deleted(&mut body),
                RecordKind::End => self.restore_end_record(&mut body),
            };
            if is_read.is_none() || !body.is_empty() {
                return Err(RestoreError::Malformed(kind as u8));
            }
        }
        Ok(())
    }

    /// All sections were put back. From here on [`Engine::applied`] is where the log is to be read back from. What was dropped when
    /// they were saved is looked up in the indexes of sealed segments, which wait for one that has to be made again.
    pub fn restore_end(&mut self) -> Result<(), RestoreError> {
        let RestoredEnd { end, indexed_to, seen } = self.restored.end.ok_or(RestoreError::Incomplete)?;
        // Shard 0 gives no id before it is durable there, so that no other shard has seen one that it does not know.
        let known = self.catalogue.highest();
        if !self.is_home() && !self.catalogue.is_lossy() && seen > known {
            return Err(RestoreError::HomeGone { seen: seen.0, known: known.0 });
        }
        self.catalogue.raise_highest(seen);
        self.catalogue.drop_deleted();
        // At home what is unknown here may be made by covered entries.
        if !self.is_home() && !self.catalogue.is_lossy() {
            self.check_known()?;
        }
        self.drop_gone(self.is_home());
        for queue in self.queues.iter_mut() {
            queue.index.drop_below(indexed_to);
            if indexed_to > LogPosition(0) {
                queue.index.lacks_below(queue.end);
            }
        }
        (self.indexed_to, self.covered_to) = (indexed_to, end);
        Ok(())
    }

    /// The log was read back. Where a hole was accepted, queues and places of what nobody knows may be left, and topics may have
    /// fewer queues than are there.
    pub(in crate::engine) fn end_restored(&mut self) {
        if self.covered_to.0 == 0 || !self.catalogue.is_lossy() {
            return;
        }
        self.drop_gone(false);
        let keys: Vec<QueueKey> = self.queues.iter().map(|queue| queue.key).collect();
        for key in keys {
            self.mend_queues(key);
        }
    }

    /// Drops queues and places of topics and groups that were deleted, and unless it `keeps_unknown` ones also those of which
    /// nothing is known. Then finds out anew who has what.
    fn drop_gone(&mut self, keeps_unknown: bool) {
        let catalogue = &self.catalogue;
        let keeps = |id: ObjectId, is_live: bool| is_live || keeps_unknown && !catalogue.is_deleted(id);
        self.queues.retain(|queue| {
            let topic = queue.key.topic;
            queue.groups.retain(|place| keeps(place.group.into(), catalogue.group(place.group).is_some()));
            keeps(topic.into(), catalogue.get(topic).is_some())
        });
        self.group_queues.restore(&self.queues);
        self.ageing.restore(&self.queues);
    }

    /// Whether all that was restored is of topics and groups that live or were deleted.
    fn check_known(&self) -> Result<(), RestoreError> {
        for queue in self.queues.iter() {
            let topic = queue.key.topic;
            if self.catalogue.get(topic).is_none() && !self.catalogue.is_deleted(topic) {
                return Err(RestoreError::UnknownTopic(topic));
            }
            let is_unknown = |id: &GroupId| self.catalogue.group(*id).is_none() && !self.catalogue.is_deleted(*id);
            if let Some(unknown) = queue.groups.iter().map(|place| place.group).find(is_unknown) {
                return Err(RestoreError::UnknownGroup(unknown));
            }
        }
        Ok(())
    }

    // Records: each `None` where its body does not hold what it announces.

    fn restore_begin(&mut self, body: &mut RecordReader<'_>) -> Result<Option<()>, RestoreError> {
        let (Some(shard), Some(shards), Some(begin), Some(time)) = (body.u32(), body.u32(), body.u64(), body.u64())
        else {
            return Ok(None);
        };
        if (shard, shards) != (self.options.shard.0.into(), self.options.shards.into()) {
            return Err(RestoreError::OfAnother(ShardId(shard as u16), shards as u16));
        }
        assert!(self.applied.0 == 0 && self.queues.len() == 0, "a checkpoint is put back before anything is applied");
        self.restored.begun = true;
        (self.applied, self.store_time) = (LogPosition(begin), Nanos(time));
        Ok(Some(()))
    }

    fn restore_object(&mut self, body: &mut RecordReader<'_>) -> Result<Option<()>, RestoreError> {
        let Some(created) = body.u64() else { return Ok(None) };
        let change = CatalogueChange::decode(body.rest())?;
        let state = self.catalogue.state_after(&change, Nanos(created));
        self.catalogue.set(&state);
        Ok(Some(()))
    }

    fn restore_queue(&mut self, body: &mut RecordReader<'_>) -> Result<Option<()>, RestoreError> {
        let Some(key) = body.queue() else { return Ok(None) };
        let misfit = |what| RestoreError::Queue(key.topic, key.queue, what);
        let (Some(epochs), Some(start), Some(end)) = (body.u32(), body.u64(), body.u64()) else { return Ok(None) };
        let (Some(position), Some(time)) = (body.u64(), body.u64()) else { return Ok(None) };
        if self.queues.find(key).is_some() {
            return Err(misfit("it comes twice"));
        }
        let mut queue = Queue::new(key);
        (queue.start, queue.end, queue.visible) = (QueueOffset(start), QueueOffset(end), QueueOffset(end));
        for _ in 0..epochs {
            let (Some(epoch), Some(first)) = (body.u64(), body.u64()) else { return Ok(None) };
            if first >= end || !queue.epochs.restore(Epoch(epoch), QueueOffset(first)) {
                return Err(misfit("its epochs do not ascend"));
            }
        }
        let mut last = None;
        if !body.is_empty() {
            let Some(chunk) = body.chunk() else { return Ok(None) };
            if chunk.end_offset > end {
                return Err(misfit("its index goes beyond its end"));
            }
            last = Some(chunk);
        }
        let index = QueueIndex::restored(LogPosition(position), Nanos(time), last);
        queue.index = index.ok_or(misfit("its index contradicts itself"))?;
        if start > end {
            return Err(misfit("it starts behind its end"));
        }
        self.queues.add(queue);
        Ok(Some(()))
    }

    fn restore_chunk(&mut self, body: &mut RecordReader<'_>) -> Result<Option<()>, RestoreError> {
        let (Some(key), Some(()), Some(chunk)) = (body.queue(), body.zero(), body.chunk()) else { return Ok(None) };
        let slot = self.queues.find(key);
        let queue = slot.and_then(|slot| self.queues.get_mut(slot));
        let queue = queue.ok_or(RestoreError::Misplaced(RecordKind::Chunk as u8))?;
        if !queue.index.restore_chunk(chunk) {
            return Err(RestoreError::Queue(key.topic, key.queue, "its index contradicts itself"));
        }
        Ok(Some(()))
    }

    fn restore_places(&mut self, body: &mut RecordReader<'_>) -> Option<()> {
        let queue = self.restored_queue(body.queue()?);
        body.zero()?;
        while !body.is_empty() {
            let (group, epoch) = (GroupId(body.u64()?), Epoch(body.u64()?));
            let (offset, entry_end) = (QueueOffset(body.u64()?), LogPosition(body.u64()?));
            queue.groups.set(CommittedPlace { group, epoch, offset, entry_end });
        }
        Some(())
    }

    fn restore_producer(&mut self, body: &mut RecordReader<'_>) -> Option<()> {
        let queue = self.restored_queue(body.queue()?);
        let (epoch, producer) = (ProducerEpoch(body.u32()?), ProducerId(body.u64()?));
        let (next, last_used) = (Sequence(body.u64()?), Nanos(body.u64()?));
        let mut recent = Vec::new();
        while !body.is_empty() {
            let (offset, position) = (QueueOffset(body.u64()?), LogPosition(body.u64()?));
            let (payload_crc, length, records) = (body.u32()?, body.u32()?, body.u32()?);
            body.zero()?;
            recent.push(Remembered { offset, position, payload_crc, length, records });
        }
        let state = ProducerState::restored(epoch, next, last_used, recent.into_iter())?;
        // A state that moved while it was walked comes again, as it was then.
        queue.producers.insert(producer, state);
        Some(())
    }

    fn restore_deleted(&mut self, body: &mut RecordReader<'_>) -> Option<()> {
        while !body.is_empty() {
            let (first, last) = (ObjectId(body.u64()?), ObjectId(body.u64()?));
            if !self.catalogue.restore_deleted(first, last) {
                return None;
            }
        }
        Some(())
    }

    fn restore_end_record(&mut self, body: &mut RecordReader<'_>) -> Option<()> {
        let (end, indexed_to) = (LogPosition(body.u64()?), LogPosition(body.u64()?));
        let (seen, lossy) = (ObjectId(body.u64()?), body.u64()?);
        if lossy > 1 || end < self.applied {
            return None;
        }
        if lossy == 1 && self.is_home() {
            self.catalogue.accept_hole();
        }
        self.restored.end = Some(RestoredEnd { end, indexed_to, seen });
        Some(())
    }

    /// The queue of that key: one that is not among those saved had nothing when its slot was looked at.
    fn restored_queue(&mut self, key: QueueKey) -> &mut Queue {
        let slot = self.queues.find_or_make(key);
        let Some(queue) = self.queues.get_mut(slot) else { unreachable!("a queue just found lives") };
        queue
    }
}
