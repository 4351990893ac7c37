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

mod chunk;
mod dropped;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;

use peregrine_protocol::ids::{LogPosition, Nanos, QueueOffset};
use peregrine_protocol::limits::ENTRY_ALIGN;

pub use chunk::Chunk;
pub use dropped::{Asked, NotHeld};

use chunk::{put_varint, take_varint};
use dropped::Dropped;

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
    chunks: VecDeque<Chunk>,
    /// Number of the first in `chunks`: so many were dropped.
    first_chunk: u64,
    /// Position and store time of the last batch that was added: what the next one is encoded against.
    last_position: u64,
    last_time: u64,
    dropped: Dropped,
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
    /// Adds a batch behind all others. True where it begins a chunk.
    pub fn push(&mut self, entry: &IndexEntry) -> bool {
        let (offset, position, time) = (entry.offset.0, entry.position.0, entry.store_time.0);
        assert!(entry.records > 0, "a batch holds records");
        if let Some(last) = self.chunks.back() {
            assert!(offset >= last.end_offset, "offsets of a queue grow");
            assert!(
                position > self.last_position && time >= self.last_time,
                "positions and store times of a queue grow"
            );
        }
        let begins_chunk = match self.chunks.back() {
            Some(last) if last.batches < limits::INDEX_CHUNK_BATCHES && last.end_offset == offset => false,
            last => {
                // A queue that fills chunks fills the next one alike: sized at once, it never grows in steps.
                let capacity = last.map_or(0, |full| full.encoded.len());
                self.chunks.push_back(Chunk {
                    first_offset: offset,
                    first_position: position,
                    first_time: time,
                    end_offset: offset,
                    batches: 0,
                    encoded: Vec::with_capacity(capacity),
                });
                (self.last_position, self.last_time) = (position, time);
                true
            }
        };
        let Some(chunk) = self.chunks.back_mut() else { unreachable!("a chunk was made above") };
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
        begins_chunk
    }

    /// Whether the batch that holds `offset` is found here, and those behind it; else look it up where the dropped ones are.
    pub fn is_held(&self, offset: QueueOffset) -> bool {
        offset.0 >= self.dropped.end
    }

    /// What lies below it was dropped.
    pub fn dropped_end(&self) -> QueueOffset {
        QueueOffset(self.dropped.end)
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

    /// The first offset of the first batch stored at `time` or later; `None` where there is none.
    pub fn at_time(&self, time: Nanos) -> Result<Option<QueueOffset>, NotHeld> {
        if let Some(offset) = self.dropped.at_time(time)? {
            return Ok(Some(offset));
        }
        let after = self.chunks.partition_point(|chunk| chunk.first_time < time.0);
        let mut cursor = self.at_chunk(after.saturating_sub(1));
        while let Some(entry) = self.next(&mut cursor) {
            if entry.store_time >= time {
                return Ok(Some(entry.offset));
            }
        }
        Ok(None)
    }

    /// When the batch that holds `offset` was stored, or the first behind it; `None` at the end.
    pub fn time_at(&self, offset: QueueOffset) -> Result<Option<Nanos>, NotHeld> {
        if !self.is_held(offset) {
            return self.dropped.time_at(offset).map(Some);
        }
        Ok(self.next(&mut self.seek(offset)).map(|entry| entry.store_time))
    }

    /// The answer to [`NotHeld`]: the batch that was found below `below`, which was [`Self::dropped_end`] when it was looked for.
    pub fn answered(&mut self, asked: Asked, below: QueueOffset, found: Option<&IndexEntry>) {
        self.dropped.answered(asked, below, found);
    }

    /// The batch behind a cursor that was led there by [`Self::next`] from where `offset` is, which is held. Where what the cursor
    /// stands in was dropped, it is put there anew.
    pub fn next_at(&self, cursor: &mut IndexCursor, offset: QueueOffset) -> Option<IndexEntry> {
        assert!(self.is_held(offset), "what was dropped is looked up elsewhere");
        if cursor.chunk < self.first_chunk {
            *cursor = self.seek(offset);
        }
        self.next(cursor)
    }

    /// The batch behind the cursor, which moves past it; `None` at the end. Nothing may have been dropped since it was sought.
    pub fn next(&self, cursor: &mut IndexCursor) -> Option<IndexEntry> {
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

    /// The first batch held that stands at `position` or behind.
    pub fn first_behind(&self, position: LogPosition) -> Option<IndexEntry> {
        let after = self.chunks.partition_point(|chunk| chunk.first_position <= position.0);
        let mut cursor = self.at_chunk(after.saturating_sub(1));
        loop {
            let entry = self.next(&mut cursor)?;
            if entry.position >= position {
                return Some(entry);
            }
        }
    }

    /// All batches dropped stand below.
    pub fn dropped_to(&self) -> LogPosition {
        match self.chunks.front() {
            _ if self.dropped.end == 0 => LogPosition(0),
            Some(first) => LogPosition(first.first_position),
            None => LogPosition(self.last_position) + 1,
        }
    }

    /// Position of the last batch that was ever added; 0 before the first.
    pub fn last_position(&self) -> LogPosition {
        LogPosition(self.last_position)
    }

    /// And its store time.
    pub fn last_time(&self) -> Nanos {
        Nanos(self.last_time)
    }

    /// Forgets the oldest chunk if all of its batches stand below `position`, as they are looked up elsewhere from now on.
    pub fn drop_first(&mut self, position: LogPosition) -> bool {
        let Some(first) = self.chunks.front().filter(|first| first.first_position < position.0) else { return false };
        let (last_position, last_time) = match self.chunks.get(1) {
            // Its last batch stands before the next chunk's first, and was stored no later.
            Some(second) if second.first_position <= position.0 => (0, second.first_time),
            Some(_) => first.last().unwrap_or_default(),
            None => (self.last_position, self.last_time),
        };
        if last_position >= position.0 {
            return false;
        }
        (self.dropped.end, self.dropped.last_time) = (first.end_offset, last_time);
        self.chunks.pop_front();
        self.first_chunk += 1;
        true
    }

    /// The same of all chunks below. Up to 63 batches below stay.
    pub fn drop_below(&mut self, position: LogPosition) {
        while self.drop_first(position) {}
    }

    /// It was put back from a checkpoint, and what it lacks was dropped before that was saved: all below what is held or, where
    /// nothing is, below `end`.
    pub fn lacks_below(&mut self, end: QueueOffset) {
        (self.dropped.end, self.dropped.last_time) =
            self.chunks.front().map_or((end.0, self.last_time), |first| (first.first_offset, first.first_time));
    }

    /// Takes out the batches that stand in `lost`, which an accepted loss took from the log: the first of them, and whether there
    /// was any. For the start, before anybody has a cursor.
    pub fn lose(&mut self, lost: &Range<LogPosition>) -> Option<IndexEntry> {
        if self.last_position < lost.start.0 {
            return None;
        }
        let first = self.iter().find(|entry| lost.contains(&entry.position))?;
        let dropped = std::mem::take(&mut self.dropped);
        let mut kept = Self { first_chunk: self.first_chunk, dropped, ..Self::default() };
        if kept.dropped.end > 0 {
            // It still knows that it had batches.
            (kept.last_position, kept.last_time) = (self.last_position, self.last_time);
        }
        for entry in self.iter().filter(|entry| !lost.contains(&entry.position)) {
            kept.push(&entry);
        }
        *self = kept;
        Some(first)
    }

    /// Where its chunks begin.
    pub fn chunks_begin(&self) -> impl Iterator<Item = LogPosition> + '_ {
        self.chunks.iter().map(|chunk| LogPosition(chunk.first_position))
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
            dropped: Dropped::default(),
        })
    }

    /// Adds a chunk that lies before the last one and behind all others. False where it cannot.
    #[must_use]
    pub fn restore_chunk(&mut self, chunk: Chunk) -> bool {
        let Some((last_position, last_time)) = chunk.last() else { return false };
        let Some(last) = self.chunks.back() else { return false };
        let places = self.chunks.len() - 1;
        let before = places.checked_sub(1).and_then(|place| self.chunks.get(place));
        let fits = chunk.end_offset <= last.first_offset
            && last_position < last.first_position
            && last_time <= last.first_time
            && before.is_none_or(|before| {
                before.end_offset <= chunk.first_offset
                    && before.first_position < chunk.first_position
                    && before.first_time <= chunk.first_time
            });
        if fits {
            self.chunks.insert(places, chunk);
        }
        fits
    }

    /// Before the first batch of the chunk in that place.
    fn at_chunk(&self, place: usize) -> IndexCursor {
        IndexCursor { chunk: self.first_chunk + place as u64, ..IndexCursor::default() }
    }

    /// Bytes that it takes beside itself.
    pub fn heap_bytes(&self) -> usize {
        let encoded: usize = self.chunks.iter().map(|chunk| chunk.encoded.capacity()).sum();
        self.chunks.capacity() * size_of::<Chunk>() + encoded
    }
}
