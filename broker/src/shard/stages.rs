//! Where a message's time goes, per shard: one histogram per stage, recorded without an allocation, merged on request by
//! adding counts.
//!
//! ```text
//!   received ──► appended ──► flushed ──► acknowledged          handed out ──► sent
//! ```

use hdrhistogram::Histogram;
use peregrine_protocol::ids::Nanos;

/// The shortest and the longest time told apart, ns. Longer ones count as the longest.
const LOWEST_NS: u64 = 100;
const HIGHEST_NS: u64 = 60_000_000_000;
/// Significant decimal digits: one part in a thousand. About 200 KiB a histogram, 1 MiB a shard.
const DIGITS: u8 = 3;

/// A step of a message's way through a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the read that completed its frame to its bytes in the ring.
    Append,
    /// From there to its level: zero at `memory`.
    Flush,
    /// From there to the send of the acknowledgement.
    Acknowledge,
    /// From the read to the send of the acknowledgement.
    Whole,
    /// From the moment its batch is handed out to a reader, which is when it is visible, the reader has credit and the one before it
    /// is on its way, to the send. What a reader without credit, or one that catches up, waits for is not the broker's time.
    Deliver,
}

impl Stage {
    pub const ALL: [Stage; 5] = [Stage::Append, Stage::Flush, Stage::Acknowledge, Stage::Whole, Stage::Deliver];

    /// The word in the report.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Append => "received_to_appended",
            Stage::Flush => "appended_to_flushed",
            Stage::Acknowledge => "flushed_to_acknowledged",
            Stage::Whole => "received_to_acknowledged",
            Stage::Deliver => "handed_out_to_sent",
        }
    }
}

/// The histograms of one shard, or of several added up.
#[derive(Clone, Debug)]
pub struct Stages {
    times: [Histogram<u64>; Stage::ALL.len()],
}

impl Default for Stages {
    fn default() -> Self {
        let histogram = || {
            let Ok(histogram) = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS) else {
                unreachable!("the bounds are in order and the digits in range")
            };
            histogram
        };
        Stages { times: [histogram(), histogram(), histogram(), histogram(), histogram()] }
    }
}

impl Stages {
    /// `count` messages took from `since` to `until`.
    pub fn record(&mut self, stage: Stage, since: Nanos, until: Nanos, count: u64) {
        self.times[stage as usize].saturating_record_n(until.saturating_sub(since), count);
    }

    pub fn of(&self, stage: Stage) -> &Histogram<u64> {
        &self.times[stage as usize]
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Stages) {
        for (mine, theirs) in self.times.iter_mut().zip(&other.times) {
            // The bounds of all are the same, so that nothing is out of range.
            let _ = mine.add(theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_what_is_too_long_is_counted() {
        let mut one = Stages::default();
        let mut two = Stages::default();
        one.record(Stage::Flush, Nanos(1000), Nanos(201_000), 3);
        two.record(Stage::Flush, Nanos(0), Nanos::from_secs(3600), 1);
        two.record(Stage::Flush, Nanos(5), Nanos(1), 1);
        one.add(&two);
        let flush = one.of(Stage::Flush);
        assert_eq!(flush.len(), 5);
        assert!(flush.value_at_quantile(0.5).abs_diff(200_000) <= 200);
        assert!(flush.max() >= HIGHEST_NS);
        assert_eq!(one.of(Stage::Append).len(), 0);
    }
}
