//! Which epochs wrote to a queue, and from which offset on.
//!
//! After a power cut offsets that only `memory` messages held are given again, in a later epoch. A client's place in a queue is
//! therefore the pair (epoch, offset), and this list tells whether such a pair still means what it meant:
//!
//! ```text
//! epochs:   1 ──────────────┬ 4 ─────────┬ 5 ───────►
//! offsets:  0               10           17          end
//! ```
//!
//! (1, 10) is valid: the reader has seen all that epoch 1 kept. (1, 11) or (3, 12) saw messages that are gone: `Truncated` at 10.
//! A start that writes nothing to the queue adds nothing here, so it truncates nothing. One pair per start that wrote to the
//! queue: 16 bytes each, forgotten with the log that they describe.

use peregrine_protocol::ids::{Epoch, QueueOffset};

/// The (epoch, first offset) pairs of one queue, strictly ascending in both.
#[derive(Debug, Default)]
pub struct EpochList {
    starts: Vec<(Epoch, QueueOffset)>,
}

impl EpochList {
    /// Notes that a batch of `epoch` stands at `first`. False when the epoch is lower than one that wrote before: damage.
    #[must_use]
    pub fn note(&mut self, epoch: Epoch, first: QueueOffset) -> bool {
        match self.starts.last() {
            Some(&(last, _)) if last == epoch => true,
            Some(&(last, _)) if last > epoch => false,
            last => {
                assert!(
                    last.is_none_or(|&(_, start)| start < first),
                    "each epoch in the list wrote at least one message"
                );
                self.starts.push((epoch, first));
                true
            }
        }
    }

    /// Adds a pair that [`Self::iter`] told of behind all others; false where it cannot be there.
    #[must_use]
    pub fn restore(&mut self, epoch: Epoch, first: QueueOffset) -> bool {
        let fits = self.starts.last().is_none_or(|&(last, start)| last < epoch && start < first);
        if fits {
            self.starts.push((epoch, first));
        }
        fits
    }

    /// The epoch that wrote `offset`, or for the queue's end the last one that wrote; 0 where none did.
    pub fn at(&self, offset: QueueOffset) -> Epoch {
        let later = self.starts.partition_point(|&(_, first)| first <= offset);
        match later.checked_sub(1) {
            Some(index) => self.starts[index].0,
            None => Epoch(0),
        }
    }

    /// The epoch that wrote the last message below `offset`; 0 where there is none. Named beside `offset` it makes a place that
    /// is valid for as long as the queue holds what lies below.
    pub fn before(&self, offset: QueueOffset) -> Epoch {
        offset.0.checked_sub(1).map_or(Epoch(0), |last| self.at(QueueOffset(last)))
    }

    /// Whether a reader that has seen all below `offset`, the last of it written in `epoch`, has seen what the queue holds.
    /// Else the offset from which on it has not. `end` is the queue's end.
    pub fn check(&self, epoch: Epoch, offset: QueueOffset, end: QueueOffset) -> Result<(), QueueOffset> {
        let later = self.starts.partition_point(|&(start, _)| start <= epoch);
        let bound = self.starts.get(later).map_or(end, |&(_, first)| first);
        if offset <= bound { Ok(()) } else { Err(bound) }
    }

    /// The pairs, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Epoch, QueueOffset)> + '_ {
        self.starts.iter().copied()
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<(Epoch, QueueOffset)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks (epoch, offset) against a queue written by `starts` up to `end`.
    #[track_caller]
    fn check(starts: &[(u64, u64)], end: u64, place: (u64, u64), expected: Result<(), u64>) {
        let mut list = EpochList::default();
        for &(epoch, first) in starts {
            assert!(list.note(Epoch(epoch), QueueOffset(first)));
        }
        let found = list.check(Epoch(place.0), QueueOffset(place.1), QueueOffset(end));
        assert_eq!(found, expected.map_err(QueueOffset), "{starts:?} end {end} place {place:?}");
    }

    #[test]
    fn a_place_is_valid_up_to_the_first_later_epoch() {
        let written = &[(1, 0), (4, 10), (5, 17)];
        check(written, 20, (1, 0), Ok(()));
        check(written, 20, (1, 10), Ok(()));
        check(written, 20, (1, 11), Err(10));
        check(written, 20, (3, 12), Err(10));
        check(written, 20, (4, 17), Ok(()));
        check(written, 20, (4, 18), Err(17));
        check(written, 20, (5, 20), Ok(()));
        check(written, 20, (5, 21), Err(20));
        check(written, 20, (u64::MAX, 20), Ok(()));
        check(written, 20, (u64::MAX, 21), Err(20));
        check(written, 20, (0, 0), Ok(()));
        check(written, 20, (0, 1), Err(0));
    }

    #[test]
    fn a_start_alone_truncates_nothing() {
        check(&[(1, 0)], 10, (1, 10), Ok(()));
        check(&[(1, 0)], 10, (2, 10), Ok(()));
        check(&[], 0, (7, 0), Ok(()));
        check(&[], 0, (7, 1), Err(0));
    }

    #[test]
    fn an_offset_has_the_epoch_that_wrote_it() {
        let mut list = EpochList::default();
        assert_eq!(list.at(QueueOffset(0)), Epoch(0));
        assert!(list.note(Epoch(2), QueueOffset(0)));
        assert!(list.note(Epoch(2), QueueOffset(5)));
        assert!(list.note(Epoch(6), QueueOffset(9)));
        assert!(!list.note(Epoch(5), QueueOffset(12)), "an epoch never comes back");
        for (offset, epoch) in [(0, 2), (8, 2), (9, 6), (100, 6)] {
            assert_eq!(list.at(QueueOffset(offset)), Epoch(epoch));
        }
        for (offset, epoch) in [(0, 0), (1, 2), (9, 2), (10, 6)] {
            assert_eq!(list.before(QueueOffset(offset)), Epoch(epoch));
        }
    }
}
