//! Saving in slices.
//!
//! ```text
//!   begin ─► topics, by name ─► groups, by name ─► queues, by slot ──► producers, in the order of ageing ─► deleted ids ─► end
//!            (shard 0)          (shard 0)          │ queue, chunks,                                         (shard 0)
//!                                                  └ places, next queue
//! ```
//!
//! A save keeps its place and no reference: between two slices anything may happen to the engine. What is walked keeps its order
//! meanwhile (names, slots, group ids, and the numbers of ageing, where what moves goes to the end), so that whatever is there
//! from begin to end is met. See `checkpoint` for why that is enough.

use std::mem;
use std::sync::Arc;

use peregrine_protocol::ids::{GroupId, LogPosition, Nanos, ProducerId};

use super::record::{RecordKind, RecordWriter};
use crate::engine::Engine;
use crate::engine::catalogue::{CatalogueChange, ChangeKind, ObjectId, Topic, TopicChange};
use crate::engine::group::GroupChange;
use crate::engine::queue::{Queue, QueueSlot};
use crate::limits;

/// A checkpoint that is being saved.
#[derive(Debug)]
pub struct CheckpointSave {
    begin: LogPosition,
    /// Of the last entry below `begin`, or of the first one behind it.
    store_time: Nanos,
    end: Option<LogPosition>,
    stage: Stage,
}

/// What comes next.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Begin,
    Topics {
        after: Option<Arc<str>>,
    },
    Groups {
        after: Option<Arc<str>>,
    },
    /// The queue in the slot of that number.
    Queue(u32),
    /// The chunk `next` of a queue, up to and not including `last`, which stands in the queue's record.
    Chunks {
        queue: QueueSlot,
        next: u64,
        last: u64,
    },
    Places {
        queue: QueueSlot,
        above: GroupId,
    },
    /// The state in the place of ageing with that number.
    Producer(u64),
    Deleted {
        above: ObjectId,
    },
    End,
    Done,
}

impl CheckpointSave {
    /// Where the log is to be read back from behind this checkpoint.
    pub fn begin(&self) -> LogPosition {
        self.begin
    }

    /// Of the last entry before, or of the first one behind it.
    pub fn store_time(&self) -> Nanos {
        self.store_time
    }

    /// Once all is saved: what durable must have passed before the checkpoint holds.
    pub fn end(&self) -> Option<LogPosition> {
        self.end
    }
}

impl Engine {
    /// Begins to save the durable state as it is from here on. Nothing is looked at yet.
    pub fn begin_checkpoint(&self) -> CheckpointSave {
        let (begin, store_time) = self.catalogue.first_pending().unwrap_or((self.applied, self.store_time));
        CheckpointSave { begin, store_time, end: None, stage: Stage::Begin }
    }

    /// Appends whole records to `out` until there are `budget` bytes more, or all is saved: true then. Looks at a number of
    /// objects that `budget` bounds, and goes beyond it by one record ([`limits::CHECKPOINT_RECORD_PLACES`]).
    pub fn save_slice(&self, save: &mut CheckpointSave, out: &mut Vec<u8>, budget: usize) -> bool {
        let start = out.len();
        let mut looked = 0;
        while !matches!(save.stage, Stage::Done) {
            if (out.len() - start).max(looked) >= budget {
                return false;
            }
            looked += limits::CHECKPOINT_LOOK;
            self.save_next(save, out);
        }
        true
    }

    fn save_next(&self, save: &mut CheckpointSave, out: &mut Vec<u8>) {
        save.stage = match mem::take(&mut save.stage) {
            Stage::Begin => {
                let record = RecordWriter::begin(out, RecordKind::Begin).u32(self.options.shard.0.into());
                record.u32(self.options.shards.into()).u64(save.begin.0).u64(save.store_time.0).end();
                if self.is_home() { Stage::Topics { after: None } } else { Stage::Queue(0) }
            }
            Stage::Topics { after } => match self.catalogue.after(after.as_deref()).next() {
                Some(topic) => {
                    save_topic(topic, out);
                    Stage::Topics { after: Some(topic.name.clone()) }
                }
                None => Stage::Groups { after: None },
            },
            Stage::Groups { after } => match self.catalogue.groups_after(after.as_deref()).next() {
                Some(group) => {
                    save_object(&CatalogueChange::Group(GroupChange::Is(group.clone())), group.created, out);
                    Stage::Groups { after: Some(group.name.clone()) }
                }
                None => Stage::Queue(0),
            },
            Stage::Queue(slot) if slot >= self.queues.slots() => Stage::Producer(0),
            Stage::Queue(slot) => match self.queues.in_slot(slot) {
                Some((slot, queue)) if !queue.is_blank() => {
                    save_queue(queue, out);
                    let chunks = queue.index.chunk_numbers();
                    Stage::Chunks { queue: slot, next: chunks.start, last: chunks.end.saturating_sub(1) }
                }
                _ => Stage::Queue(slot + 1),
            },
            Stage::Chunks { queue: slot, next, last } if next < last => {
                // Dropped meanwhile, a chunk stands in the index files that the end tells of.
                if let Some(queue) = self.queues.get(slot)
                    && let Some(chunk) = queue.index.chunk(next)
                {
                    RecordWriter::begin(out, RecordKind::Chunk).queue(queue.key).u32(0).chunk(chunk).end();
                }
                Stage::Chunks { queue: slot, next: next + 1, last }
            }
            Stage::Chunks { queue, .. } => Stage::Places { queue, above: GroupId(0) },
            Stage::Places { queue: slot, above } => {
                let queue = self.queues.get(slot);
                match queue.and_then(|queue| save_places(queue, above, out)) {
                    Some(last) => Stage::Places { queue: slot, above: last },
                    None => Stage::Queue(slot.index() + 1),
                }
            }
            Stage::Producer(number) => match self.ageing.from(number) {
                Some((number, slot, producer)) => {
                    if let Some(queue) = self.queues.get(slot) {
                        self.save_producer(queue, producer, out);
                    }
                    Stage::Producer(number + 1)
                }
                None if self.is_home() => Stage::Deleted { above: ObjectId(0) },
                None => Stage::End,
            },
            Stage::Deleted { above } => match self.save_deleted(above, out) {
                Some(last) => Stage::Deleted { above: last },
                None => Stage::End,
            },
            Stage::End => {
                save.end = Some(self.applied);
                let record = RecordWriter::begin(out, RecordKind::End).u64(self.applied.0).u64(self.indexed_to.0);
                record.u64(self.catalogue.highest().0).u64(self.catalogue.is_lossy().into()).end();
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
    }

    fn save_producer(&self, queue: &Queue, producer: ProducerId, out: &mut Vec<u8>) {
        let Some(state) = queue.producers.get(&producer).filter(|state| !state.is_forgotten(self.store_time)) else {
            return;
        };
        let (epoch, next, last_used, recent) = state.parts();
        let record = RecordWriter::begin(out, RecordKind::Producer).queue(queue.key).u32(epoch.0);
        let record = record.u64(producer.0).u64(next.0).u64(last_used.0).each(recent, |record, batch| {
            let record = record.u64(batch.offset.0).u64(batch.position.0);
            record.u32(batch.payload_crc).u32(batch.length).u32(batch.records).u32(0)
        });
        record.end();
    }

    /// Some of the ids above that were deleted, and the last of them; `None` where there are no more.
    fn save_deleted(&self, above: ObjectId, out: &mut Vec<u8>) -> Option<ObjectId> {
        let mut ranges = self.catalogue.deleted().above(above).take(limits::CHECKPOINT_RECORD_RANGES).peekable();
        ranges.peek()?;
        let mut reached = above;
        let ranges = ranges.inspect(|&(_, last)| reached = last);
        RecordWriter::begin(out, RecordKind::Deleted)
            .each(ranges, |record, (first, last)| record.u64(first.0).u64(last.0))
            .end();
        Some(reached)
    }
}

fn save_topic(topic: &Topic, out: &mut Vec<u8>) {
    let &Topic { id, queues, created, retention, .. } = topic;
    let name = topic.name.to_string();
    let change = TopicChange { kind: ChangeKind::Create, topic: id, name, queues, retention };
    save_object(&CatalogueChange::Topic(change), created, out);
}

fn save_object(change: &CatalogueChange, created: Nanos, out: &mut Vec<u8>) {
    RecordWriter::begin(out, RecordKind::Object).u64(created.0).bytes(&change.encode()).end();
}

fn save_queue(queue: &Queue, out: &mut Vec<u8>) {
    let epochs = queue.epochs.iter();
    let record = RecordWriter::begin(out, RecordKind::Queue).queue(queue.key).u32(epochs.len() as u32);
    let record = record.u64(queue.start.0).u64(queue.end.0);
    let record = record.u64(queue.index.last_position().0).u64(queue.index.last_time().0);
    let record = record.each(epochs, |record, (epoch, first)| record.u64(epoch.0).u64(first.0));
    let last = queue.index.chunk_numbers().next_back().and_then(|number| queue.index.chunk(number));
    record.each(last, RecordWriter::chunk).end();
}

/// Some of the places of groups above, and the last of these groups; `None` where there are no more.
fn save_places(queue: &Queue, above: GroupId, out: &mut Vec<u8>) -> Option<GroupId> {
    let places = queue.groups.above(above);
    let places = &places[..places.len().min(limits::CHECKPOINT_RECORD_PLACES)];
    let last = places.last()?;
    let record = RecordWriter::begin(out, RecordKind::Places).queue(queue.key).u32(0);
    let record = record.each(places, |record, place| {
        record.u64(place.group.0).u64(place.epoch.0).u64(place.offset.0).u64(place.entry_end.0)
    });
    record.end();
    Some(last.group)
}
