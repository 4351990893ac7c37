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
//! step. Batches within a chunk are dense; a hole (only after an accepted loss) begins a new chunk. Chunks are numbered from 0 for
//! as long as the queue lives, so that a cursor stays good when the oldest are dropped. A chunk that is not the last never
//! changes: a checkpoint copies chunks as they are, one by one, so that their encoding is part of its format.

use std::ops::Range;

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
    /// Number of the first in `chunks`: so many were dropped.
    first_chunk: u64,
    /// Position and store time of the last batch that was added: what the next one is encoded against.
    last_position: u64,
    last_time: u64,
}

/// Up to [`limits::INDEX_CHUNK_BATCHES`] batches, dense in offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    pub first_offset: u64,
    pub first_position: u64,
    pub first_time: u64,
    pub end_offset: u64,
    pub batches: u32,
    pub encoded: Vec<u8>,
}

/// A place between two batches. It stays good while batches are added, and while those behind it are not dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexCursor {
    chunk: u64,
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

    /// A cursor before the batch that holds `offset`; before the first one behind it where none does, or at the end.
    pub fn seek(&self, offset: QueueOffset) -> IndexCursor {
        let after = self.chunks.partition_point(|chunk| chunk.first_offset <= offset.0);
        let mut cursor = self.at_chunk(after.saturating_sub(1));
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
        let mut cursor = self.at_chunk(after.saturating_sub(1));
        loop {
            let entry = self.next(&mut cursor)?;
            if entry.store_time >= time {
                return Some(entry);
            }
        }
    }

    /// The batch behind the cursor, which moves past it; `None` at the end, and where the batches behind it were dropped.
    pub fn next(&self, cursor: &mut IndexCursor) -> Option<IndexEntry> {
        if cursor.chunk < self.first_chunk {
            // What it stood in was dropped. It goes on only where nothing but that lies between: the rest would be skipped.
            self.chunks.first().filter(|first| cursor.byte > 0 && cursor.offset == first.first_offset)?;
            *cursor = self.at_chunk(0);
        }
        let mut chunk = self.chunk(cursor.chunk)?;
        if cursor.byte == chunk.encoded.len() {
            chunk = self.chunk(cursor.chunk + 1)?;
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
        let mut cursor = self.at_chunk(0);
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    /// Position of the last batch that was ever added; 0 before the first.
    pub fn last_position(&self) -> LogPosition {
        LogPosition(self.last_position)
    }

    /// And its store time.
    pub fn last_time(&self) -> Nanos {
        Nanos(self.last_time)
    }

    /// Forgets batches that stand below `position`, as they are looked up elsewhere from now on. Whole chunks alone: up to 63 of
    /// them stay.
    pub fn drop_below(&mut self, position: LogPosition) {
        let begun = self.chunks.partition_point(|chunk| chunk.first_position < position.0);
        let Some(last_begun) = begun.checked_sub(1) else { return };
        let last_of_it = match self.chunks.get(begun) {
            None => self.last_position,
            Some(_) => self.chunks[last_begun].last().map_or(0, |(position, _)| position),
        };
        let dropped = if last_of_it < position.0 { begun } else { last_begun };
        self.chunks.drain(..dropped);
        self.first_chunk += dropped as u64;
    }

    /// Takes out the batches that stand in `lost`, which an accepted loss took from the log: the first of them, and whether there
    /// was any. For the start, before anybody has a cursor.
    pub fn lose(&mut self, lost: &Range<LogPosition>) -> Option<IndexEntry> {
        if self.last_position < lost.start.0 {
            return None;
        }
        let first = self.iter().find(|entry| lost.contains(&entry.position))?;
        let mut kept = Self { first_chunk: self.first_chunk, ..Self::default() };
        self.iter().filter(|entry| !lost.contains(&entry.position)).for_each(|entry| kept.push(&entry));
        *self = kept;
        Some(first)
    }

    // For checkpoints.

    /// The numbers of the chunks held; all but the last never change.
    pub fn chunk_numbers(&self) -> Range<u64> {
        self.first_chunk..self.first_chunk + self.chunks.len() as u64
    }

    /// The chunk of that number, unless it was dropped.
    pub fn chunk(&self, number: u64) -> Option<&Chunk> {
        self.chunks.get(number.checked_sub(self.first_chunk)? as usize)
    }

    /// An index whose last batch stood there; the last chunk, if there is one, ends with it. `None` where they contradict.
    pub fn restored(last_position: LogPosition, last_time: Nanos, last: Option<Chunk>) -> Option<Self> {
        let fits = last.as_ref().is_none_or(|chunk| {
            chunk.last().is_some_and(|(position, time)| position <= last_position.0 && time <= last_time.0)
        });
        fits.then(|| Self {
            chunks: last.into_iter().collect(),
            first_chunk: 0,
            last_position: last_position.0,
            last_time: last_time.0,
        })
    }

    /// Adds a chunk that lies before the last one and behind all others. False where it cannot.
    #[must_use]
    pub fn restore_chunk(&mut self, chunk: Chunk) -> bool {
        let Some((last_position, last_time)) = chunk.last() else { return false };
        let [before @ .., last] = self.chunks.as_slice() else { return false };
        let fits = chunk.end_offset <= last.first_offset
            && last_position < last.first_position
            && last_time <= last.first_time
            && before.last().is_none_or(|before| {
                before.end_offset <= chunk.first_offset
                    && before.first_position < chunk.first_position
                    && before.first_time <= chunk.first_time
            });
        if fits {
            self.chunks.insert(before.len(), chunk);
        }
        fits
    }

    /// Before the first batch of the chunk in that place.
    fn at_chunk(&self, place: usize) -> IndexCursor {
        IndexCursor { chunk: self.first_chunk + place as u64, ..IndexCursor::default() }
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        let encoded: usize = self.chunks.iter().map(|chunk| chunk.encoded.capacity()).sum();
        self.chunks.capacity() * size_of::<Chunk>() + encoded
    }
}

impl Chunk {
    /// Position and store time of its last batch; `None` where its bytes do not hold what its head says.
    fn last(&self) -> Option<(u64, u64)> {
        let (mut at, mut batches) = (0, 0);
        let (mut offset, mut position, mut time) = (self.first_offset, self.first_position, self.first_time);
        while at < self.encoded.len() {
            let records = u32::try_from(checked_varint(&self.encoded, &mut at)?).ok().filter(|&records| records > 0)?;
            offset = offset.checked_add(records.into())?;
            let step = checked_varint(&self.encoded, &mut at)?.checked_mul(ENTRY_ALIGN)?;
            position = position.checked_add(step)?;
            u32::try_from(checked_varint(&self.encoded, &mut at)?).ok()?;
            time = time.checked_add(checked_varint(&self.encoded, &mut at)?)?;
            batches += 1;
        }
        (batches > 0 && batches == self.batches && offset == self.end_offset).then_some((position, time))
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

/// The same of bytes that may hold anything.
fn checked_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let group = u64::from(byte & 0x7f);
        value |= group.checked_shl(shift).filter(|shifted| shifted >> shift == group)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
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

    proptest! {
        #[test]
        fn what_is_dropped_are_the_oldest_and_who_stands_behind_them_goes_on(steps in steps(), at in 0..300usize) {
            let entries = entries(&steps);
            let at = at.min(entries.len());
            let position = entries.get(at).map_or(LogPosition(u64::MAX), |entry| entry.position);
            let mut index = index_of(&entries);
            let mut cursors = vec![index.seek(QueueOffset(0))];
            for _ in &entries {
                let mut next = cursors[cursors.len() - 1];
                index.next(&mut next);
                cursors.push(next);
            }
            index.drop_below(position);
            let dropped = entries.len() - index.iter().count();
            prop_assert_eq!(index.iter().collect::<Vec<_>>(), &entries[dropped..]);
            prop_assert!(dropped <= at && at - dropped < limits::INDEX_CHUNK_BATCHES as usize);
            for (number, cursor) in cursors.iter().enumerate() {
                let found = index.next(&mut cursor.clone());
                let dense = number > 0 && entries.get(number).is_none_or(|entry| entry.offset == entries[number - 1].end());
                if number < dropped {
                    prop_assert_eq!(found, None);
                } else if number > dropped || dense {
                    prop_assert_eq!(found, entries.get(number).copied());
                }
            }
            let end = entries.last().map_or(QueueOffset(0), IndexEntry::end);
            let next = IndexEntry { offset: end, records: 1, position: LogPosition(1 << 60), length: 1, store_time: Nanos(u64::MAX) };
            index.push(&next);
            if let Some(cursor) = cursors.last_mut().filter(|_| !entries.is_empty()) {
                prop_assert_eq!(index.next(cursor), Some(next));
            }
        }

        #[test]
        fn chunks_make_the_index_again(steps in steps()) {
            let index = index_of(&entries(&steps));
            let mut numbers = index.chunk_numbers();
            let last = numbers.next_back().and_then(|number| index.chunk(number)).cloned();
            let restored = QueueIndex::restored(index.last_position(), index.last_time(), last);
            let mut restored = restored.expect("it was one");
            for number in numbers {
                let chunk = index.chunk(number).cloned().expect("it has that number");
                prop_assert!(restored.restore_chunk(chunk.clone()));
                prop_assert!(!restored.restore_chunk(chunk), "not twice");
            }
            prop_assert_eq!(restored.iter().collect::<Vec<_>>(), index.iter().collect::<Vec<_>>());
        }

        #[test]
        fn a_chunk_of_any_bytes_is_checked(encoded in prop::collection::vec(any::<u8>(), 0..40), batches in 0..6u32, end in 0..300u64) {
            let chunk = Chunk { end_offset: end, batches, encoded, ..Chunk::default() };
            let restored = QueueIndex::restored(LogPosition(u64::MAX), Nanos(u64::MAX), Some(chunk));
            if let Some(restored) = restored {
                prop_assert_eq!(restored.iter().count(), batches as usize);
            }
        }

        #[test]
        fn what_is_lost_is_taken_out(steps in steps(), from in 0..300usize, lost in 1..40usize) {
            let entries = entries(&steps);
            let lost = from.min(entries.len())..(from + lost).min(entries.len());
            let Some(last) = entries.get(lost.clone()).and_then(|lost| lost.last()) else { return Ok(()) };
            let mut index = index_of(&entries);
            let first = index.lose(&(entries[lost.start].position..last.position + 1));
            prop_assert_eq!(first, Some(entries[lost.start]));
            let last = entries[entries.len() - 1];
            let next = IndexEntry { offset: last.end(), position: last.position + 64, ..last };
            index.push(&next);
            let mut left = entries;
            left.drain(lost);
            left.push(next);
            prop_assert_eq!(index.iter().collect::<Vec<_>>(), left);
        }
    }

    #[test]
    fn a_steady_queue_costs_about_eight_bytes_a_batch() {
        let steps: Vec<_> = (0..64_000).map(|step| (0, 1, 17 + step % 3, 1100, 50_000 + step)).collect();
        let index = index_of(&entries(&steps));
        assert!(index.heap_bytes() < 64_000 * 11, "{} bytes", index.heap_bytes());
    }
}
