//! The highest rate at which a run stays valid and sound: doubling until one is not, then halving the gap. A rate that
//! fails is tried once more before it is given up: what the machine does beside the run may spoil one.

use crate::cli::FindRateArgs;
use crate::report::Report;
use crate::run::{RunError, probe};

/// Searches; tells `progress` of each rate tried. The report of the highest good run, if any rate was good.
pub fn find_rate(
    args: &FindRateArgs,
    command: &str,
    progress: impl FnMut(&Report),
) -> Result<Option<Report>, RunError> {
    search(args.from, args.to, args.within_percent, |rate| probe(&args.load, rate, command), progress)
}

/// Runs at a rate that failed before it is given up.
const TRIES: u32 = 2;
/// Below this fraction of the first rate nothing is tried: something else is wrong.
const LOWEST_OF_FROM: u64 = 16;

fn search<E>(
    from: u64,
    to: u64,
    within_percent: u64,
    mut probe: impl FnMut(u64) -> Result<Report, E>,
    mut progress: impl FnMut(&Report),
) -> Result<Option<Report>, E> {
    let mut best: Option<Report> = None;
    let mut bad: Option<u64> = None;
    let mut rate = from.min(to);
    loop {
        let mut fits = false;
        for _ in 0..TRIES {
            let report = probe(rate)?;
            progress(&report);
            fits = report.valid && report.is_sound();
            if fits {
                best = Some(report);
                break;
            }
        }
        if !fits {
            bad = Some(rate);
        }
        let good = best.as_ref().map_or(0, |report| report.rate);
        rate = match bad {
            None if good >= to => return Ok(best),
            None => (good * 2).min(to),
            Some(bad) if good == 0 && bad <= from / LOWEST_OF_FROM => return Ok(None),
            Some(bad) if bad - good <= (bad * within_percent / 100).max(1) => return Ok(best),
            Some(bad) => u64::midpoint(good, bad),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(limit: u64, from: u64, to: u64) -> (Option<u64>, usize) {
        let mut tries = 0;
        let probe = |rate| Ok::<_, ()>(Report { rate, valid: rate <= limit, ..Report::default() });
        let best = search(from, to, 5, probe, |_| tries += 1).unwrap();
        (best.map(|report| report.rate), tries)
    }

    #[test]
    fn the_search_ends_just_below_the_limit() {
        for limit in [4_000, 5_000, 77_777, 123_456] {
            let (best, tries) = found(limit, 5_000, 1_000_000);
            let best = best.unwrap();
            assert!(best <= limit && best * 100 >= limit * 94, "{best} of {limit}");
            assert!(tries <= 20, "{tries} tries");
        }
        assert_eq!(found(2_000_000, 5_000, 1_000_000).0, Some(1_000_000));
        assert_eq!(found(0, 100, 1_000).0, None);
    }
}
