//! One metric's latencies: a histogram of what came, and the count of what never did.
//!
//! hdrhistogram in nanoseconds with 3 significant digits, up to an hour; allocated whole when it is made, so that
//! recording touches memory that stands. A message that failed or never came counts as infinite: it moves every
//! percentile up and is never an "error beside the figures". Histograms are merged by adding their counts, and
//! percentiles are taken from merged counts only.

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::clock::Ns;

/// The largest latency told apart, 1 h; a longer one is recorded as it.
const LATENCY_NS_MAX: u64 = 3_600 * 1_000_000_000;

/// Parts of a whole in which the quantiles below are exact.
const WHOLE: u64 = 100_000;

/// The percentiles of every report: name, and parts of [`WHOLE`].
pub const PERCENTILES: [(&str, u64); 7] = [
    ("p50", 50_000),
    ("p90", 90_000),
    ("p99", 99_000),
    ("p99.9", 99_900),
    ("p99.99", 99_990),
    ("p99.996", 99_996),
    ("max", WHOLE),
];

/// A latency that a percentile stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Latency {
    /// Nanoseconds.
    Finite(Ns),
    /// The message at this rank failed or never came.
    Infinite,
}

impl Latency {
    /// Microseconds to the hundredth; `None` where infinite.
    pub fn us(self) -> Option<f64> {
        match self {
            Self::Finite(ns) => Some((ns as f64 / 10.0).round() / 100.0),
            Self::Infinite => None,
        }
    }
}

/// The latencies of one metric.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    infinite: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// No latencies yet.
    pub fn new() -> Self {
        let histogram = match Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3) {
            Ok(histogram) => histogram,
            Err(error) => unreachable!("the bounds are constants that hdrhistogram takes: {error}"),
        };
        Self { histogram, infinite: 0 }
    }

    /// Counts a latency.
    pub fn record(&mut self, ns: Ns) {
        self.histogram.saturating_record(ns);
    }

    /// Counts `count` messages that failed or never came.
    pub fn record_infinite(&mut self, count: u64) {
        self.infinite += count;
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        assert!(self.histogram.add(&other.histogram).is_ok(), "histograms of one shape can be added");
        self.infinite += other.infinite;
    }

    /// Samples, infinite ones included.
    pub fn count(&self) -> u64 {
        self.histogram.len() + self.infinite
    }

    /// Samples that are infinite.
    pub fn infinite(&self) -> u64 {
        self.infinite
    }

    /// The latency at `parts` of 100,000 and the number of samples beyond it; `None` where there is no sample.
    pub fn at(&self, parts: u64) -> Option<(Latency, u64)> {
        let count = self.count();
        let rank = (u128::from(count) * u128::from(parts)).div_ceil(u128::from(WHOLE)).max(1) as u64;
        if count == 0 {
            return None;
        }
        let beyond = count - rank;
        if rank > self.histogram.len() {
            return Some((Latency::Infinite, beyond));
        }
        let mut below = 0;
        for bucket in self.histogram.iter_recorded() {
            below += bucket.count_since_last_iteration();
            if below >= rank {
                return Some((Latency::Finite(bucket.value_iterated_to().min(self.histogram.max())), beyond));
            }
        }
        unreachable!("a rank within the histogram's count has a bucket")
    }

    /// The named percentile of [`PERCENTILES`], in ns; `None` where infinite or without samples.
    pub fn percentile_ns(&self, name: &str) -> Option<Ns> {
        let (_, parts) = PERCENTILES.iter().find(|(known, _)| *known == name)?;
        match self.at(*parts)? {
            (Latency::Finite(ns), _) => Some(ns),
            (Latency::Infinite, _) => None,
        }
    }

    /// The percentile distribution as HdrHistogram's plotters read it, in microseconds: value, percentile, samples at or
    /// below, 1 / (1 − percentile). Infinite samples are in the total, so the curve ends below 1 where there are any.
    pub fn write_hgrm(&self, mut out: impl Write) -> io::Result<()> {
        writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
        let count = self.count();
        let mut below = 0;
        for bucket in self.histogram.iter_recorded() {
            below += bucket.count_since_last_iteration();
            let percentile = below as f64 / count as f64;
            let value_us = bucket.value_iterated_to().min(self.histogram.max()) as f64 / 1e3;
            write!(out, "{value_us:>12.3} {percentile:>14.12} {below:>10}")?;
            match count - below {
                0 => writeln!(out)?,
                beyond => writeln!(out, " {:>14.2}", count as f64 / beyond as f64)?,
            }
        }
        let (mean_us, deviation_us) = (self.histogram.mean() / 1e3, self.histogram.stdev() / 1e3);
        writeln!(out, "#[Mean    = {mean_us:>12.3}, StdDeviation   = {deviation_us:>12.3}]")?;
        writeln!(out, "#[Max     = {:>12.3}, Total count    = {count:>12}]", self.histogram.max() as f64 / 1e3)?;
        writeln!(out, "#[Infinite = {:>11}, significant digits = 3]", self.infinite)
    }
}

/// `{"p50": µs, …, "max": µs, "count": samples, "infinite": samples, "beyond": {"p50": samples, …}}`; a percentile that
/// is infinite, or of no samples, is `null`.
impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, parts) in PERCENTILES {
            map.serialize_entry(name, &self.at(parts).and_then(|(latency, _)| latency.us()))?;
        }
        map.serialize_entry("count", &self.count())?;
        map.serialize_entry("infinite", &self.infinite)?;
        map.serialize_entry("beyond", &Beyond(self))?;
        map.end()
    }
}

/// The samples beyond each percentile.
struct Beyond<'a>(&'a Latencies);

impl Serialize for Beyond<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let beyond = |parts| self.0.at(parts).map_or(0, |(_, beyond)| beyond);
        serializer.collect_map(PERCENTILES.iter().map(|(name, parts)| (name, beyond(*parts))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Option<(Latency, u64)>, expected_ns: u64, expected_beyond: u64) {
        let Some((Latency::Finite(ns), beyond)) = found else { panic!("{found:?} is not finite") };
        assert!(ns.abs_diff(expected_ns) <= expected_ns / 1_000, "{ns} is not within 0.1 % of {expected_ns}");
        assert_eq!(beyond, expected_beyond);
    }

    #[test]
    fn percentiles_stand_at_their_ranks_with_the_samples_beyond() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.at(50_000), None);
        for us in 1..=100_000 {
            latencies.record(us * 1_000);
        }
        close(latencies.at(50_000), 50_000_000, 50_000);
        close(latencies.at(99_000), 99_000_000, 1_000);
        close(latencies.at(99_996), 99_996_000, 4);
        close(latencies.at(WHOLE), 100_000_000, 0);
    }

    #[test]
    fn what_never_came_is_infinite_and_moves_the_percentiles() {
        let mut latencies = Latencies::new();
        for _ in 0..98 {
            latencies.record(1_000);
        }
        latencies.record_infinite(2);
        assert_eq!(latencies.count(), 100);
        close(latencies.at(98_000), 1_000, 2);
        assert_eq!(latencies.at(99_000), Some((Latency::Infinite, 1)));
        let json = serde_json::to_value(&latencies).unwrap();
        assert_eq!((&json["max"], &json["p50"]), (&serde_json::Value::Null, &1.0.into()));
        assert_eq!((&json["infinite"], &json["beyond"]["p90"]), (&2.into(), &10.into()));
    }

    #[test]
    fn merging_adds_counts() {
        let (mut one, mut other) = (Latencies::new(), Latencies::new());
        one.record(10);
        other.record(20);
        other.record_infinite(1);
        one.add(&other);
        assert_eq!((one.count(), one.infinite()), (3, 1));
        close(one.at(50_000), 20, 1);
    }

    #[test]
    fn an_hgrm_file_counts_to_its_total() {
        let mut latencies = Latencies::new();
        latencies.record(1_000);
        latencies.record(2_000);
        let mut text = Vec::new();
        latencies.write_hgrm(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("1.000 0.500000000000          1           2.00"), "{text}");
        assert!(text.contains("Total count    =            2"), "{text}");
    }
}
