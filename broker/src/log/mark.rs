//! The mark: a small file that says how far a run's log was durable when nothing else says it.
//!
//! Each run has a file of its own, `mark-{epoch:010}`, of two blocks that are written in turn (each durable before the next
//! is begun), so that a torn write leaves the other. A mark may lag, it may never lead: it takes the durable position that
//! both copies in the ring's page hold already. A later start reads all marks that it finds and unlinks them once its own
//! segment, whose identity says as much, is durable. A mark that *closes* its epoch excuses the missing ring of a clean stop
//! and nothing else.

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, ShardId};

use super::disk::BLOCK;
use super::layout::{crc_holds, put, put_crc, u16_at, u32_at, u64_at, u128_at};

/// Bytes of a mark file.
pub const MARK_FILE_LEN: u64 = 2 * BLOCK as u64;

/// The log is marked when its durable position has stood still for this long,
const QUIET: Nanos = Nanos::from_millis(100);
/// and while it moves, this long after the first move that no mark knows of.
const MOVING: Nanos = Nanos::from_secs(1);
/// After a failed write, when to try again.
const RETRY: Nanos = Nanos::from_secs(1);

const MAGIC: u64 = u64::from_le_bytes(*b"PgLgMark");
const VERSION: u32 = 1;
const CLOSES: u16 = 1;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_SHARD: usize = 12;
const AT_FLAGS: usize = 14;
const AT_DIRECTORY: usize = 16;
const AT_EPOCH: usize = 32;
const AT_SEQUENCE: usize = 40;
const AT_DURABLE: usize = 48;
const AT_CRC: usize = 56;

/// One block of a mark file: magic "PgLgMark" u64 · version u32 · shard u16 · flags u16 (1: closes the epoch) · directory id
/// u128 · epoch u64 · sequence u64 · durable u64 · CRC32 · zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub directory: DirectoryId,
    pub shard: ShardId,
    pub epoch: Epoch,
    /// Counts the marks of a run from 0; block `sequence % 2` holds it.
    pub sequence: u64,
    pub durable: LogPosition,
    /// A clean stop: everything published is durable and the ring may be missing.
    pub closes: bool,
}

impl Mark {
    /// Where in the file this mark stands.
    pub fn offset(&self) -> u64 {
        self.sequence % 2 * BLOCK as u64
    }

    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        put(block, AT_MAGIC, MAGIC.to_le_bytes());
        put(block, AT_VERSION, VERSION.to_le_bytes());
        put(block, AT_SHARD, self.shard.0.to_le_bytes());
        put(block, AT_FLAGS, if self.closes { CLOSES } else { 0 }.to_le_bytes());
        put(block, AT_DIRECTORY, self.directory.0.to_le_bytes());
        put(block, AT_EPOCH, self.epoch.0.to_le_bytes());
        put(block, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(block, AT_DURABLE, self.durable.0.to_le_bytes());
        put_crc(block, 0, AT_CRC);
    }

    /// `None` for a torn block, one that was never written, or another directory's or shard's.
    pub fn decode(block: &[u8], directory: DirectoryId, shard: ShardId) -> Option<Self> {
        if block.len() < BLOCK || u64_at(block, AT_MAGIC) != MAGIC || !crc_holds(block, 0, AT_CRC) {
            return None;
        }
        let mark = Self {
            directory: DirectoryId(u128_at(block, AT_DIRECTORY)),
            shard: ShardId(u16_at(block, AT_SHARD)),
            epoch: Epoch(u64_at(block, AT_EPOCH)),
            sequence: u64_at(block, AT_SEQUENCE),
            durable: LogPosition(u64_at(block, AT_DURABLE)),
            closes: u16_at(block, AT_FLAGS) == CLOSES,
        };
        (u32_at(block, AT_VERSION) == VERSION && mark.directory == directory && mark.shard == shard).then_some(mark)
    }
}

/// Decides when a mark is due; does no I/O.
#[derive(Debug)]
pub struct MarkKeeper {
    /// What the last mark that was written says.
    marked: LogPosition,
    /// When durable first moved past it, and when it moved last.
    moved: Option<(Nanos, Nanos)>,
    next_sequence: u64,
    in_flight: Option<LogPosition>,
    not_before: Nanos,
}

impl MarkKeeper {
    /// `durable` is what the run's own segment says in its identity: no mark need repeat it.
    pub fn new(durable: LogPosition) -> Self {
        Self { marked: durable, moved: None, next_sequence: 0, in_flight: None, not_before: Nanos::ZERO }
    }

    pub fn durable_moved(&mut self, now: Nanos) {
        let first = self.moved.map_or(now, |(first, _)| first);
        self.moved = Some((first, now));
    }

    /// When the next mark is due; `None` while there is nothing new or one is in flight.
    pub fn due(&self) -> Option<Nanos> {
        let (first, last) = self.moved?;
        if self.in_flight.is_some() {
            return None;
        }
        let due = (first + MOVING.0).min(last + QUIET.0);
        Some(due.max(self.not_before))
    }

    pub fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The sequence of the mark that is now written, which says `durable`.
    pub fn begin(&mut self, durable: LogPosition) -> u64 {
        assert!(self.in_flight.is_none(), "marks are written one by one");
        self.in_flight = Some(durable);
        self.moved = None;
        self.next_sequence
    }

    /// A failed mark leaves its block unsure and the other good; the next one takes the same block again.
    pub fn finish(&mut self, written: bool, now: Nanos) {
        let durable = self.in_flight.take();
        if written {
            self.next_sequence += 1;
            self.marked = durable.unwrap_or(self.marked);
        } else {
            self.not_before = now + RETRY.0;
            self.durable_moved(now);
        }
    }

    /// The durable position that the last written mark, or the identity before it, states.
    pub fn marked(&self) -> LogPosition {
        self.marked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_a_flipped_bit_makes_it_none() {
        let mark = Mark {
            directory: DirectoryId(1),
            shard: ShardId(2),
            epoch: Epoch(3),
            sequence: 5,
            durable: LogPosition(4096),
            closes: true,
        };
        let mut block = vec![1; BLOCK];
        mark.encode(&mut block);
        assert_eq!(Mark::decode(&block, DirectoryId(1), ShardId(2)), Some(mark));
        assert_eq!(Mark::decode(&block, DirectoryId(1), ShardId(3)), None);
        assert_eq!(mark.offset(), 4096);
        for bit in 0..(AT_CRC + 4) * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&block, DirectoryId(1), ShardId(2)), None, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn marks_come_when_quiet_and_once_a_second_while_moving() {
        let mut keeper = MarkKeeper::new(LogPosition(0));
        assert_eq!(keeper.due(), None);
        keeper.durable_moved(Nanos::from_millis(10));
        assert_eq!(keeper.due(), Some(Nanos::from_millis(110)));
        for ms in (20..1000).step_by(10) {
            keeper.durable_moved(Nanos::from_millis(ms));
        }
        assert_eq!(keeper.due(), Some(Nanos::from_millis(1010)), "a second after the first move");
        assert_eq!(keeper.begin(LogPosition(4096)), 0);
        keeper.durable_moved(Nanos::from_millis(1020));
        assert_eq!(keeper.due(), None, "one at a time");
        keeper.finish(true, Nanos::from_millis(1025));
        assert_eq!((keeper.marked(), keeper.due()), (LogPosition(4096), Some(Nanos::from_millis(1120))));
    }

    #[test]
    fn a_failed_mark_is_tried_again_in_the_same_block() {
        let mut keeper = MarkKeeper::new(LogPosition(0));
        keeper.durable_moved(Nanos::ZERO);
        let sequence = keeper.begin(LogPosition(4096));
        keeper.finish(false, Nanos::from_millis(200));
        assert_eq!((keeper.marked(), keeper.due()), (LogPosition(0), Some(Nanos::from_millis(1200))));
        assert_eq!(keeper.begin(LogPosition(4096)), sequence);
    }
}
