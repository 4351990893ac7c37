//! The oracle of one shard's log: what was appended, how much of it must survive which crash, and what a start found.
//!
//! ```text
//!        durable              published            appended
//!  ────────┤ ring survives: stays ├ may vanish ─────┤
//!  stays   │ power lost: a prefix │ (never whole)   │
//! ```
//!
//! It goes by positions alone and so knows nothing of queues or producers: every entry that a start hands to the engine must
//! be one that was appended, byte for byte as its header says, in the same order, without a gap, and as far as promised.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::engine::StartsEntry;
use peregrine_broker::log::disk::simulated::Crash;
use peregrine_protocol::entry::{EntryDraft, EntryHeader, EntryKind};
use peregrine_protocol::ids::{DurableLevel, LogPosition, Nanos, QueueId, QueueOffset, TopicId};

use super::process::Found;
use super::starts::KnownStarts;
use super::violation::{Violation, promise};

/// A batch's identity: no two batches of a simulation have the same payload CRC.
pub type BatchMark = u32;

/// An entry in the log, and who relies on it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub header: EntryHeader,
    /// The level at which it was acknowledged, the highest if several times.
    pub acknowledged: Option<DurableLevel>,
}

/// What a start took back, for those who had relied on it.
#[derive(Debug, Default)]
pub struct TakenBack {
    pub records: Vec<Record>,
    /// An append that a crash struck was found whole.
    pub adopted: bool,
}

/// The oracle of one shard.
#[derive(Debug, Default)]
pub struct Ledger {
    records: BTreeMap<LogPosition, Record>,
    batches: BTreeSet<BatchMark>,
    /// An append that a crash may have struck: whole in the ring, but the caller never heard of it.
    attempt: Option<EntryDraft>,
    published: LogPosition,
    durable: LogPosition,
    /// The highest position that was ever published: nothing new may stand below it.
    highest: LogPosition,
    /// Whether the ring was lost since the last start that came up.
    ring_lost: bool,
    /// Starts that took something back.
    cuts: u64,
    /// Losses were accepted: entries that say so may be found.
    accepts_loss: bool,
    starts: KnownStarts,
}

impl Ledger {
    /// Before an append: if a crash strikes within it, the entry may be found or not.
    pub fn attempts(&mut self, draft: EntryDraft) {
        self.attempt = Some(draft);
    }

    /// The log refused the append.
    pub fn refused(&mut self) {
        self.attempt = None;
    }

    pub fn appended(&mut self, header: EntryHeader) -> Result<(), Violation> {
        self.attempt = None;
        promise!(
            header.position >= self.highest,
            "position {} was used before: published had reached {}",
            header.position,
            self.highest
        );
        let end = self.records.last_key_value().map(|(_, last)| last.header.end());
        promise!(
            end.is_none_or(|end| end <= header.position),
            "the entry at {} overlaps its predecessor",
            header.position
        );
        self.insert(header)
    }

    fn insert(&mut self, header: EntryHeader) -> Result<(), Violation> {
        if header.kind == EntryKind::Batch {
            promise!(
                self.batches.insert(header.payload_crc),
                "the batch of queue {}/{} at offset {} is stored twice, now at position {}",
                header.topic,
                header.queue,
                header.base_offset,
                header.position
            );
        }
        self.records.insert(header.position, Record { header, acknowledged: None });
        Ok(())
    }

    /// The log's positions, after each of its moves.
    pub fn moved(&mut self, published: LogPosition, durable: LogPosition) -> Result<(), Violation> {
        promise!(published >= self.published, "published went back from {} to {published}", self.published);
        promise!(durable >= self.durable, "durable went back from {} to {durable}", self.durable);
        promise!(durable <= published, "durable {durable} leads published {published}");
        self.published = published;
        self.durable = durable;
        self.highest = self.highest.max(published);
        Ok(())
    }

    /// An acknowledgement left: the entry stands where it says, and has reached its level.
    pub fn acknowledged(&mut self, position: LogPosition, level: DurableLevel) -> Result<Record, Violation> {
        let reached = if level == DurableLevel::Memory { self.published } else { self.durable };
        let Some(record) = self.records.get_mut(&position) else {
            return Err(Violation(format!("position {position} was acknowledged and holds no entry")));
        };
        promise!(
            record.header.end() <= reached,
            "position {position} was acknowledged at {level:?} before it reached it"
        );
        record.acknowledged = record.acknowledged.max(Some(level));
        Ok(*record)
    }

    /// Before an append that moves starts of queues.
    pub fn attempts_starts(&mut self, entry: &StartsEntry) {
        self.starts.attempts(entry);
        self.attempts(entry.draft);
    }

    /// Starts of queues moved: nothing was given up but what stands below `given_up_to`.
    pub fn starts_moved(&mut self, header: EntryHeader, given_up_to: LogPosition) -> Result<(), Violation> {
        self.appended(header)?;
        for (topic, queue, start) in self.starts.appended(&header) {
            // One that is said once more moves nothing: its topic's age may have moved it.
            if start <= self.starts.before(header.position, topic, queue) {
                continue;
            }
            let batches = self.records.range(given_up_to..).map(|(_, record)| record.header);
            let mut kept = batches
                .filter(|header| header.kind == EntryKind::Batch && (header.topic, header.queue) == (topic, queue));
            if let Some(kept) = kept.next() {
                promise!(
                    start <= kept.base_offset,
                    "queue {topic}/{queue} starts at {start} now, and what stands from {given_up_to} on is kept: {}",
                    describe(&kept)
                );
            }
        }
        Ok(())
    }

    /// Starts of queues moved as `wall` and their topics' ages ask: nothing was given up that is younger, and not yet visible.
    pub fn topic_starts_moved(
        &mut self,
        header: EntryHeader,
        wall: Nanos,
        age: impl Fn(TopicId) -> Nanos,
    ) -> Result<(), Violation> {
        self.appended(header)?;
        for (topic, queue, start) in self.starts.appended(&header) {
            let batches = self.records.values().map(|record| &record.header);
            let of_queue = batches
                .filter(|header| header.kind == EntryKind::Batch && (header.topic, header.queue) == (topic, queue));
            let before = self.starts.before(header.position, topic, queue);
            let given_up = of_queue.filter(|header| header.end_offset() > before && header.base_offset < start);
            for given_up in given_up {
                let too_old = given_up.store_time.0.saturating_add(age(topic).0) <= wall.0;
                let memory = given_up.flags.level() == Some(DurableLevel::Memory);
                let reached = if memory { self.published } else { self.durable };
                promise!(
                    too_old && given_up.end() <= reached,
                    "queue {topic}/{queue} starts at {start} now, and {}, stored at {}, is to be kept for {} at {wall}",
                    describe(given_up),
                    given_up.store_time,
                    age(topic)
                );
            }
        }
        Ok(())
    }

    /// Where a queue's kept messages begin.
    pub fn start_of(&self, topic: TopicId, queue: QueueId) -> QueueOffset {
        self.starts.of(topic, queue)
    }

    /// The entry at this position, if it counts.
    pub fn record(&self, position: LogPosition) -> Option<&Record> {
        self.records.get(&position)
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// An entry is damaged: the next start does without it, and says so in the log.
    pub fn give_up(&mut self, position: LogPosition) {
        self.records.remove(&position);
        self.accepts_loss = true;
    }

    pub fn published(&self) -> LogPosition {
        self.published
    }

    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    /// Starts so far that took something back.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// The next start does without the ring, whatever stands in it.
    pub fn ring_given_up(&mut self) {
        self.ring_lost = true;
    }

    /// The process ended. `ring_survives` a kill, unless it was anonymous memory.
    pub fn crashed(&mut self, crash: Crash, ring_survives: bool) {
        self.ring_lost |= crash == Crash::Power || !ring_survives;
    }

    /// A start came up having read the log back from `from` on, found these entries, and stands at `published` and `durable`. Returns what it took back.
    pub fn recovered(
        &mut self,
        Found { entries: found, report }: &Found,
        published: LogPosition,
        durable: LogPosition,
    ) -> Result<TakenBack, Violation> {
        let owed = if self.ring_lost { self.durable } else { self.published };
        // What stands before is not read: what it said comes from a checkpoint.
        let from = report.checkpoint.unwrap_or_default();
        let mut known = self.records.range(from..).map(|(_, record)| record.header);
        let mut adopted = None;
        let mut losses = Vec::new();
        for header in found {
            let Some(expected) = known.next() else {
                if self.accepts_loss && header.kind == EntryKind::Loss {
                    losses.push(*header);
                    continue;
                }
                let attempted = adopted.is_none() && self.attempt.is_some_and(|draft| is_of(header, &draft));
                promise!(attempted, "a start read back {}, which was taken back or never appended", describe(header));
                adopted = Some(*header);
                continue;
            };
            promise!(expected == *header, "a start read back {} where {} stood", describe(header), describe(&expected));
        }
        drop(known);
        let missing: Vec<LogPosition> =
            self.records.range(from..).skip(found.len()).map(|(position, _)| *position).collect();
        let mut taken = TakenBack::default();
        for position in missing {
            let Some(record) = self.records.remove(&position) else { continue };
            let header = record.header;
            promise!(
                header.end() > owed,
                "{} is lost: {} had reached {owed}, acknowledged at {:?}",
                describe(&header),
                if self.ring_lost { "durable" } else { "published, and the ring survived," },
                record.acknowledged
            );
            self.batches.remove(&header.payload_crc);
            taken.records.push(record);
        }
        for header in losses {
            self.insert(header)?;
        }
        if let Some(header) = adopted {
            promise!(header.position >= self.highest, "position {} was used before", header.position);
            self.insert(header)?;
            taken.adopted = true;
        }
        let end = self.records.last_key_value().map_or(LogPosition(0), |(_, last)| last.header.end());
        promise!(published == durable, "a start came up with published {published} and durable {durable}");
        promise!(end <= durable, "a start came up with durable {durable} below its last entry's end {end}");
        promise!(published >= owed, "a start came up at {published}, below {owed}, which must have survived");
        self.starts.recovered(|position| self.records.contains_key(&position), adopted.as_ref());
        self.attempt = None;
        self.ring_lost = false;
        self.cuts += u64::from(!taken.records.is_empty());
        self.published = published;
        self.durable = durable;
        self.highest = self.highest.max(published);
        Ok(taken)
    }
}

fn is_of(header: &EntryHeader, draft: &EntryDraft) -> bool {
    header.kind == draft.kind
        && header.payload_crc == draft.payload_crc
        && header.length == draft.length
        && header.topic == draft.topic
        && header.queue == draft.queue
        && header.base_offset == draft.base_offset
        && header.producer_id == draft.producer_id
        && header.sequence == draft.sequence
}

fn describe(header: &EntryHeader) -> String {
    format!(
        "{:?} at position {} (epoch {}, queue {}/{}, offset {}, payload {:08x})",
        header.kind, header.position, header.epoch, header.topic, header.queue, header.base_offset, header.payload_crc
    )
}
