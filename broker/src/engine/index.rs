//! Where the batches of one queue stand in the log: queue offset → (position, length, store time).
//!
//! A cache of what the log says. A batch takes about 8 bytes here: chunks of [`limits::INDEX_CHUNK_BATCHES`] batches, each
//! batch four varints, all but the length relative to the batch before it:
//!
//! ```text
//! chunk: first offset · first position · first store time · end offset
//!        [ records | position delta / 64 | payload length | store time delta, ns ] × up to 64
//! ```
//!
//! Chunks are found by binary search, a batch by decoding at most one chunk; a reader keeps a cursor and decodes one batch per
//! step. Batches within a chunk are dense; a hole (only after an accepted loss) begins a new chunk. When sealed segments get
//! index files of their own, the chunks whose batches stand below a sealed segment's end become that file's run for this queue.

use peregrine_protocol::ids::{LogPosition, Nanos, QueueOffset};
use peregrine_protocol::limits::ENTRY_ALIGN;

use crate::limits;

/// One batch as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Offset of its first record.
    pub offset: QueueOffset,
    pub records: u32,
    /// Position of its entry header.
    pub position: LogPosition,
    /// Payload bytes behind the header.
    pub length: u32,
    pub store_time: Nanos,
}

impl IndexEntry {
    /// The offset after its last record.
    pub fn end(&self) -> QueueOffset {
        QueueOffset(self.offset.0 + u64::from(self.records))
    }
}

/// The batches of one queue in offset order, which is also the order of position and store time.
#[derive(Debug, Default)]
pub struct QueueIndex {
    chunks: Vec<Chunk>,
    /// Position and store time of the last batch: what the next one is encoded against.
    last_position: u64,
    last_time: u64,
}

#[derive(Debug)]
struct Chunk {
    first_offset: u64,
    first_position: u64,
    first_time: u64,
    end_offset: u64,
    batches: u32,
    encoded: Vec<u8>,
}

/// A place between two batches. It stays good while batches are added.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexCursor {
    chunk: usize,
    byte: usize,
    offset: u64,
    position: u64,
    time: u64,
}

impl QueueIndex {
    /// Adds a batch behind all others.
    pub fn push(&mut self, entry: &IndexEntry) {
        let (offset, position, time) = (entry.offset.0, entry.position.0, entry.store_time.0);
        assert!(entry.records > 0, "a batch holds records");
        if let Some(last) = self.chunks.last() {
            assert!(offset >= last.end_offset, "offsets of a queue grow");
            assert!(
                position > self.last_position && time >= self.last_time,
                "positions and store times of a queue grow"
            );
        }
        match self.chunks.last() {
            Some(last) if last.batches < limits::INDEX_CHUNK_BATCHES && last.end_offset == offset => {}
            last => {
                // A queue that fills chunks fills the next one alike: sized at once, it never grows in steps.
                let capacity = last.map_or(0, |full| full.encoded.len());
                self.chunks.push(Chunk {
                    first_offset: offset,
                    first_position: position,
                    first_time: time,
                    end_offset: offset,
                    batches: 0,
                    encoded: Vec::with_capacity(capacity),
                });
                (self.last_position, self.last_time) = (position, time);
            }
        }
        let Some(chunk) = self.chunks.last_mut() else { unreachable!("a chunk was made above") };
        put_varint(&mut chunk.encoded, u64::from(entry.records));
        put_varint(&mut chunk.encoded, (position - self.last_position) / ENTRY_ALIGN);
        put_varint(&mut chunk.encoded, u64::from(entry.length));
        put_varint(&mut chunk.encoded, time - self.last_time);
        chunk.batches += 1;
        chunk.end_offset = offset + u64::from(entry.records);
        if chunk.batches == limits::INDEX_CHUNK_BATCHES {
            chunk.encoded.shrink_to_fit();
        }
        (self.last_position, self.last_time) = (position, time);
    }

    /// The offset of the first message held, or `None` for a queue that holds none.
    pub fn first_offset(&self) -> Option<QueueOffset> {
        self.chunks.first().map(|chunk| QueueOffset(chunk.first_offset))
    }

    /// A cursor before the batch that holds `offset`; before the first one behind it where none does, or at the end.
    pub fn seek(&self, offset: QueueOffset) -> IndexCursor {
        let after = self.chunks.partition_point(|chunk| chunk.first_offset <= offset.0);
        let mut cursor = IndexCursor { chunk: after.saturating_sub(1), ..IndexCursor::default() };
        loop {
            let before = cursor;
            match self.next(&mut cursor) {
                Some(entry) if entry.end() <= offset => {}
                _ => return before,
            }
        }
    }

    /// The first batch stored at `time` or later.
    pub fn at_time(&self, time: Nanos) -> Option<IndexEntry> {
        let after = self.chunks.partition_point(|chunk| chunk.first_time < time.0);
        let mut cursor = IndexCursor { chunk: after.saturating_sub(1), ..IndexCursor::default() };
        loop {
            let entry = self.next(&mut cursor)?;
            if entry.store_time >= time {
                return Some(entry);
            }
        }
    }

    /// The batch behind the cursor, which moves past it; `None` at the end.
    pub fn next(&self, cursor: &mut IndexCursor) -> Option<IndexEntry> {
        let mut chunk = self.chunks.get(cursor.chunk)?;
        if cursor.byte == chunk.encoded.len() {
            chunk = self.chunks.get(cursor.chunk + 1)?;
            *cursor = IndexCursor { chunk: cursor.chunk + 1, ..IndexCursor::default() };
        }
        if cursor.byte == 0 {
            cursor.offset = chunk.first_offset;
            cursor.position = chunk.first_position;
            cursor.time = chunk.first_time;
        }
        let records = take_varint(&chunk.encoded, &mut cursor.byte) as u32;
        cursor.position += take_varint(&chunk.encoded, &mut cursor.byte) * ENTRY_ALIGN;
        let length = take_varint(&chunk.encoded, &mut cursor.byte) as u32;
        cursor.time += take_varint(&chunk.encoded, &mut cursor.byte);
        let entry = IndexEntry {
            offset: QueueOffset(cursor.offset),
            records,
            position: LogPosition(cursor.position),
            length,
            store_time: Nanos(cursor.time),
        };
        cursor.offset += u64::from(records);
        Some(entry)
    }

    /// All batches, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        let mut cursor = IndexCursor::default();
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        let encoded: usize = self.chunks.iter().map(|chunk| chunk.encoded.capacity()).sum();
        self.chunks.capacity() * size_of::<Chunk>() + encoded
    }
}

/// Appends `value` in groups of seven bits, lowest first, the top bit set on all but the last byte (LEB128).
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads at `*at` what [`put_varint`] wrote there, and moves past it.
fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index_of(entries: &[IndexEntry]) -> QueueIndex {
        let mut index = QueueIndex::default();
        for entry in entries {
            index.push(entry);
        }
        index
    }

    /// Batches from (hole before, records, position step, length, time step).
    fn entries(steps: &[(u64, u32, u64, u32, u64)]) -> Vec<IndexEntry> {
        let (mut offset, mut position, mut time) = (0, 0, 1_700_000_000_000_000_000);
        let mut entries = Vec::new();
        for &(hole, records, step, length, wait) in steps {
            offset += hole;
            position += (step + 1) * ENTRY_ALIGN;
            time += wait;
            entries.push(IndexEntry {
                offset: QueueOffset(offset),
                records,
                position: LogPosition(position),
                length,
                store_time: Nanos(time),
            });
            offset += u64::from(records);
        }
        entries
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, u32, u64, u32, u64)>> {
        let hole = prop_oneof![20 => Just(0u64), 1 => 1u64..1000];
        let position = prop_oneof![5 => 0u64..40, 1 => 0u64..1 << 40];
        let wait = prop_oneof![3 => Just(0u64), 3 => 0u64..5_000, 1 => 0u64..1 << 50];
        prop::collection::vec((hole, 1u32..50, position, 0u32..1 << 22, wait), 0..300)
    }

    proptest! {
        #[test]
        fn every_batch_is_found_again(steps in steps()) {
            let entries = entries(&steps);
            let index = index_of(&entries);
            prop_assert_eq!(index.iter().collect::<Vec<_>>(), entries.clone());
            for (at, entry) in entries.iter().enumerate() {
                for offset in [entry.offset.0, entry.end().0 - 1] {
                    prop_assert_eq!(index.next(&mut index.seek(QueueOffset(offset))), Some(*entry));
                }
                prop_assert_eq!(index.next(&mut index.seek(entry.end())), entries.get(at + 1).copied());
                for time in [entry.store_time.0 - 1, entry.store_time.0, entry.store_time.0 + 1] {
                    let expected = entries.iter().find(|other| other.store_time.0 >= time).copied();
                    prop_assert_eq!(index.at_time(Nanos(time)), expected);
                }
            }
        }

        #[test]
        fn a_cursor_stays_good_while_batches_are_added(steps in steps()) {
            let mut index = QueueIndex::default();
            let mut cursor = index.seek(QueueOffset(0));
            for entry in entries(&steps) {
                prop_assert_eq!(index.next(&mut cursor), None);
                index.push(&entry);
                prop_assert_eq!(index.next(&mut cursor), Some(entry));
            }
        }
    }

    #[test]
    fn a_steady_queue_costs_about_eight_bytes_a_batch() {
        let steps: Vec<_> = (0..64_000).map(|step| (0, 1, 17 + step % 3, 1100, 50_000 + step)).collect();
        let index = index_of(&entries(&steps));
        assert!(index.heap_bytes() < 64_000 * 11, "{} bytes", index.heap_bytes());
    }
}
