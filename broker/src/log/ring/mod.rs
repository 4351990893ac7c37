//! The staging ring: the newest bytes of the log, in memory that outlives a killed process.
//!
//! ```text
//!            durable                      published       tail        durable + size
//!  ─ reusable ──┤ not yet on the device     ├─ being copied ┤─ free ─────┤
//! ```
//!
//! Position p stands at `p mod size`. No entry crosses the ring's end, so every entry is one slice. Bytes below durable stay
//! readable until they are written over: the ring is the tail cache. After a crash of the process, `page` says what counts;
//! after a power cut the ring is gone.

mod page;

pub use page::{PAGE_LEN, PageState, RingPage, RingUnfit, StoredPositions};
use peregrine_protocol::ids::LogPosition;

use self::page::{AT_DURABLE, AT_MAGIC, AT_PUBLISHED, MAGIC, SETTING_UP};
use super::disk::{BLOCK, RingMemory};

/// A ring that a run writes.
pub struct Ring<M> {
    memory: M,
    size: u64,
    /// Nothing below this was written to the ring in this run.
    start: LogPosition,
    /// Behind the last byte that was written or reserved.
    tail: LogPosition,
    /// Both as stored twice in the page.
    published: LogPosition,
    durable: LogPosition,
}

impl<M: RingMemory> Ring<M> {
    /// Takes the ring's old contents out of account: from here on a restart goes on without this ring.
    pub fn clear(memory: &mut M) {
        memory.store_u64(AT_MAGIC, SETTING_UP);
    }

    /// Sets up a cleared ring for a run whose log starts at `start`, a block boundary. The magic is stored last.
    pub fn set_up(mut memory: M, page: &RingPage, start: LogPosition) -> Self {
        assert!(memory.bytes().len() as u64 == PAGE_LEN as u64 + page.size, "the memory was made for this ring");
        assert!(page.size.is_power_of_two(), "checked when the options were");
        assert!(start.0.is_multiple_of(BLOCK as u64), "a run starts at a block boundary");
        Self::clear(&mut memory);
        page.encode(&mut memory.bytes_mut()[..PAGE_LEN]);
        for at in AT_PUBLISHED.into_iter().chain(AT_DURABLE) {
            memory.store_u64(at, start.0);
        }
        memory.store_u64(AT_MAGIC, MAGIC);
        Self { memory, size: page.size, start, tail: start, published: start, durable: start }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn published(&self) -> LogPosition {
        self.published
    }

    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    pub fn tail(&self) -> LogPosition {
        self.tail
    }

    /// The first position behind `position` that stands at the ring's start: no entry may cross it.
    pub fn lap_end(&self, position: LogPosition) -> LogPosition {
        LogPosition((position.0 | (self.size - 1)) + 1)
    }

    /// Whether the bytes up to `end` may be written: those that they replace lie below both stored durables.
    pub fn has_room_to(&self, end: LogPosition) -> bool {
        end - self.durable <= self.size
    }

    /// Moves the tail over `[tail, end)`, which the caller then fills with [`Ring::slice_mut`].
    pub fn reserve(&mut self, end: LogPosition) {
        assert!(end >= self.tail && self.has_room_to(end), "a ring byte is reused only below durable");
        self.tail = end;
    }

    /// Reserved bytes that are not yet published. They do not cross the ring's end.
    pub fn slice_mut(&mut self, position: LogPosition, len: usize) -> &mut [u8] {
        debug_assert!(
            position >= self.published && position + len as u64 <= self.tail,
            "what is published never changes"
        );
        let at = self.at(position, len);
        &mut self.memory.bytes_mut()[at..at + len]
    }

    /// Everything below `to` is whole.
    pub fn publish(&mut self, to: LogPosition) {
        debug_assert!(to >= self.published && to <= self.tail, "published never goes back");
        for at in AT_PUBLISHED {
            self.memory.store_u64(at, to.0);
        }
        self.published = to;
    }

    /// Everything below `to`, the end of a flush, is on the device.
    pub fn set_durable(&mut self, to: LogPosition) {
        assert!(to >= self.durable && to <= self.published, "durable follows published and never goes back");
        assert!(to.0.is_multiple_of(BLOCK as u64), "a flush ends at a block boundary");
        for at in AT_DURABLE {
            self.memory.store_u64(at, to.0);
        }
        self.durable = to;
    }

    /// Published bytes, if all of them still stand in the ring and do not cross its end.
    pub fn read(&self, position: LogPosition, len: usize) -> Option<&[u8]> {
        let end = LogPosition(position.0.checked_add(len as u64)?);
        let stands =
            position >= self.start && end <= self.published && self.tail.0 <= position.0.saturating_add(self.size);
        let in_one_piece = len == 0 || end <= self.lap_end(position);
        (stands && in_one_piece).then(|| {
            let at = self.at(position, len);
            &self.memory.bytes()[at..at + len]
        })
    }

    fn at(&self, position: LogPosition, len: usize) -> usize {
        let within = position.0 & (self.size - 1);
        debug_assert!(within + len as u64 <= self.size, "no entry crosses the ring's end");
        PAGE_LEN + within as usize
    }
}

/// The bytes of `[from, to)` in a ring file that an earlier run left, in one piece or two.
pub fn leftover(file: &[u8], size: u64, from: LogPosition, to: LogPosition) -> [&[u8]; 2] {
    let ring = &file[PAGE_LEN..];
    let (at, len) = ((from.0 & (size - 1)) as usize, (to - from) as usize);
    let first = len.min(size as usize - at);
    [&ring[at..at + first], &ring[..len - first]]
}

#[cfg(test)]
mod tests;
