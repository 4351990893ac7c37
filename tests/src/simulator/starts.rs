//! From where on queues keep their messages, as the entries in a shard's log say: what nobody is promised any more.

use std::collections::BTreeMap;

use peregrine_broker::engine::StartsEntry;
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, TopicId};

/// Bytes of such an entry's payload before its rows, and of a row: topic u64 · queue u32 · zero u32 · offset u64.
const HEAD: usize = 8;
const ROW: usize = 24;

/// One queue's start.
pub type Row = (TopicId, QueueId, QueueOffset);

/// The starts of a shard's queues.
#[derive(Debug, Default)]
pub struct KnownStarts {
    /// By queue, in the order of the log, each with the position of its entry.
    moves: BTreeMap<(TopicId, QueueId), Vec<(LogPosition, QueueOffset)>>,
    /// An append that a crash may have struck.
    attempt: Option<(u32, Vec<Row>)>,
}

impl KnownStarts {
    /// Where the queue's kept messages begin.
    pub fn of(&self, topic: TopicId, queue: QueueId) -> QueueOffset {
        let moves = self.moves.get(&(topic, queue)).into_iter().flatten();
        moves.map(|(_, start)| *start).max().unwrap_or_default()
    }

    /// Where they began before the entry at `position` moved them.
    pub fn before(&self, position: LogPosition, topic: TopicId, queue: QueueId) -> QueueOffset {
        let moves = self.moves.get(&(topic, queue)).into_iter().flatten();
        moves.filter(|(at, _)| *at < position).map(|(_, start)| *start).max().unwrap_or_default()
    }

    /// Before an append: if a crash strikes within it, the entry may be found or not.
    pub fn attempts(&mut self, entry: &StartsEntry) {
        self.attempt = Some((entry.draft.payload_crc, rows(&entry.payload)));
    }

    /// The entry was appended and applied. Its rows.
    pub fn appended(&mut self, header: &EntryHeader) -> Vec<Row> {
        let Some((_, rows)) = self.attempt.take() else { return Vec::new() };
        for &(topic, queue, start) in &rows {
            self.moves.entry((topic, queue)).or_default().push((header.position, start));
        }
        rows
    }

    /// The log came up; `stands` says which of its entries are there. `adopted`: it was found whole, and nobody had heard of it.
    pub fn recovered(&mut self, stands: impl Fn(LogPosition) -> bool, adopted: Option<&EntryHeader>) {
        for moves in self.moves.values_mut() {
            moves.retain(|(position, _)| stands(*position));
        }
        match (&self.attempt, adopted) {
            (Some((crc, _)), Some(header)) if header.payload_crc == *crc => drop(self.appended(header)),
            _ => self.attempt = None,
        }
    }
}

fn rows(payload: &[u8]) -> Vec<Row> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let row =
        |row: &[u8]| (TopicId(number(&row[..8])), QueueId(number(&row[8..12]) as u32), QueueOffset(number(&row[16..])));
    payload[HEAD..].chunks_exact(ROW).map(row).collect()
}
