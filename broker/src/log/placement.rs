//! Where the next entry goes: behind the tail, or behind pads where it would cross the ring's or the segment's end, would
//! overfill the open flush unit, or must start on a block boundary. Pure arithmetic; every pad ends a flush unit.

use peregrine_protocol::ids::LogPosition;
use peregrine_protocol::limits::BLOCK;

/// What stands around the tail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings {
    pub tail: LogPosition,
    /// Where the open flush unit starts.
    pub unit_start: LogPosition,
    /// Bytes of a flush unit at most, unless one entry alone has more.
    pub unit_bytes: u64,
    pub ring_bytes: u64,
    pub segment_end: LogPosition,
    /// End of the segment that is ready to follow, if there is one.
    pub next_segment_end: Option<LogPosition>,
}

/// Pads before one entry at most: each of block, unit, ring end and segment end twice over.
const SEALS_MAX: usize = 8;

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    seals: [LogPosition; SEALS_MAX],
    seal_count: usize,
    /// Where the entry starts.
    pub start: LogPosition,
    /// Whether the entry goes into the next segment.
    pub rolls: bool,
}

impl Placement {
    /// Places an entry of `len` bytes; `on_block` asks for a block boundary. `None`: the next segment is wanted and not ready,
    /// or it is ready and the ring's end divides it so that the entry fits neither part: that segment must be passed over.
    pub fn find(around: &Surroundings, len: u64, on_block: bool) -> Option<Self> {
        let mut placement = Self { seals: [around.tail; SEALS_MAX], seal_count: 0, start: around.tail, rolls: false };
        let (mut unit_start, mut segment_end) = (around.unit_start, around.segment_end);
        loop {
            let at = placement.start;
            let lap_end = LogPosition((at.0 | (around.ring_bytes - 1)) + 1);
            let limit = lap_end.min(segment_end);
            let lap_starts = at.0.is_multiple_of(around.ring_bytes);
            let off_block = on_block && !at.0.is_multiple_of(BLOCK);
            let unit_ends = at > unit_start && (on_block || at + len - unit_start > around.unit_bytes);
            // A unit that reached the ring's end ends there, wherever the entry goes.
            let seal = if lap_starts && at > unit_start {
                at
            } else if at + len > limit {
                limit
            } else if off_block || unit_ends {
                LogPosition(at.0.next_multiple_of(BLOCK))
            } else {
                return Some(placement);
            };
            if at + len > segment_end && seal == segment_end {
                segment_end = around.next_segment_end.filter(|_| !placement.rolls)?;
                placement.rolls = true;
            }
            assert!(placement.seal_count < SEALS_MAX, "an entry is at most a quarter of the ring and fits a segment");
            placement.seals[placement.seal_count] = seal;
            placement.seal_count += 1;
            placement.start = seal;
            unit_start = seal;
        }
    }

    /// Ends of the flush units to be sealed before the entry, each filled by a pad where its last entry ends short of it.
    pub fn seals(&self) -> &[LogPosition] {
        &self.seals[..self.seal_count]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn around(tail: u64) -> Surroundings {
        Surroundings {
            tail: LogPosition(tail),
            unit_start: LogPosition(0),
            unit_bytes: 128 << 10,
            ring_bytes: 1 << 20,
            segment_end: LogPosition((4 << 20) - 4096),
            next_segment_end: None,
        }
    }

    fn seals(placement: Option<Placement>) -> Option<(Vec<u64>, u64, bool)> {
        placement.map(|placement| {
            let seals = placement.seals().iter().map(|end| end.0).collect();
            (seals, placement.start.0, placement.rolls)
        })
    }

    #[test]
    fn an_entry_stands_at_the_tail_where_it_can() {
        assert_eq!(seals(Placement::find(&around(64), 1000, false)), Some((vec![], 64, false)));
        assert_eq!(seals(Placement::find(&around(64), 1000, true)), Some((vec![4096], 4096, false)));
        let overfull = Placement::find(&around((128 << 10) - 64), 128, false);
        assert_eq!(seals(overfull), Some((vec![128 << 10], 128 << 10, false)));
    }

    #[test]
    fn a_unit_that_ends_with_the_ring_takes_no_pad_behind_it() {
        let lap = 1 << 20;
        let rolling = Surroundings {
            unit_start: LogPosition(lap - 4096),
            segment_end: LogPosition(lap + 4096),
            next_segment_end: Some(LogPosition(lap + (512 << 10))),
            ..around(lap)
        };
        let end = lap + 4096;
        assert_eq!(seals(Placement::find(&rolling, 100 << 10, true)), Some((vec![lap, end], end, true)));
    }

    #[test]
    fn a_segment_that_the_ring_s_end_divides_may_hold_no_large_entry() {
        let base = (1 << 20) - (64 << 10);
        let rolling = Surroundings {
            segment_end: LogPosition(base),
            next_segment_end: Some(LogPosition(base + (128 << 10))),
            ..around(base - 4096)
        };
        assert_eq!(Placement::find(&rolling, 100 << 10, true), None);
        let passed = Surroundings {
            tail: LogPosition(base),
            unit_start: LogPosition(base),
            segment_end: LogPosition(base + (128 << 10)),
            next_segment_end: Some(LogPosition(base + (256 << 10))),
            ..rolling
        };
        let (lap, end) = (1 << 20, base + (128 << 10));
        assert_eq!(seals(Placement::find(&passed, 100 << 10, true)), Some((vec![lap, end], end, true)));
    }

    #[test]
    fn an_entry_never_crosses_the_ring_or_the_segment() {
        let tail = (1 << 20) - 4096;
        assert_eq!(seals(Placement::find(&around(tail), 8192, false)), Some((vec![1 << 20], 1 << 20, false)));
        let end = (4 << 20) - 4096;
        assert_eq!(Placement::find(&around(end - 64), 128, false), None, "no next segment");
        let rolling = Surroundings { next_segment_end: Some(LogPosition(8 << 20)), ..around(end - 64) };
        assert_eq!(seals(Placement::find(&rolling, 128, false)), Some((vec![end], end, true)));
        let both = seals(Placement::find(&rolling, 8192, false));
        assert_eq!(
            both,
            Some((vec![end, 4 << 20], 4 << 20, true)),
            "the new segment begins just before the ring's end"
        );
        let full = Surroundings { tail: LogPosition(end), ..rolling };
        assert_eq!(seals(Placement::find(&full, 128, false)), Some((vec![end], end, true)));
    }

    proptest! {
        #[test]
        fn whatever_the_tail(
            tail in 0u64..((4 << 20) - 4096) / 64, len in 1u64..=4096, on_block: bool, unit in 0u64..40, next in 1u64..64,
        ) {
            let (tail, len) = (tail * 64, len * 64);
            let unit_start = LogPosition(tail.saturating_sub(unit * 4096) / 4096 * 4096);
            let segment_end = LogPosition((4 << 20) - 4096);
            let next_end = segment_end + (next * 4096).max(256 << 10);
            let around = Surroundings { unit_start, next_segment_end: Some(next_end), ..around(tail) };
            let Some(placement) = Placement::find(&around, len, on_block) else {
                // Only where the ring's end leaves too little of the next segment on either side.
                let lap_end = LogPosition(4 << 20);
                prop_assert!(len > lap_end - segment_end && lap_end + len > next_end);
                return Ok(());
            };
            let (start, end) = (placement.start, placement.start + len);
            prop_assert!(start.0 / (1 << 20) == (end.0 - 1) / (1 << 20), "crosses the ring's end");
            prop_assert_eq!(placement.rolls, start >= segment_end, "rolls");
            let segment_end = if placement.rolls { next_end } else { segment_end };
            prop_assert!(end <= segment_end);
            prop_assert!(!on_block || start.0.is_multiple_of(4096));
            prop_assert!(placement.seals().iter().all(|seal| seal.0.is_multiple_of(4096)));
            prop_assert!(placement.seals().is_sorted());
            prop_assert!(end.0.next_multiple_of(4096) - unit_start.0 / 4096 * 4096 <= (1 << 20) + (160 << 10), "fits an empty ring");
        }
    }
}
