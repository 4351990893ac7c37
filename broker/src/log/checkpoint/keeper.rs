//! When a checkpoint is due, and which are kept: the two newest. What retired segments said stands in checkpoints alone, so that
//! one must be readable; with two of them the loss of either takes nothing.

use std::collections::VecDeque;

use peregrine_protocol::ids::{LogPosition, Nanos};

use super::head::CheckpointName;
use crate::log::options::CheckpointOptions;

/// After one that failed, when to try again.
const RETRY: Nanos = Nanos::from_secs(5);
/// One is late when the log has grown by this part of what makes the next one due. At leisure 256 MiB / 4 of log at 100 MB/s leave
/// time for 40 MB of state.
const LATE: u64 = 4;
/// The newest so many are kept.
pub const CHECKPOINTS_KEPT: usize = 2;

#[derive(Debug)]
pub struct CheckpointKeeper {
    options: CheckpointOptions,
    /// Ascending, [`CHECKPOINTS_KEPT`] at most.
    kept: VecDeque<CheckpointName>,
    /// Where this run's appends begin.
    start: LogPosition,
    /// Where the last good one of this run began, or the run itself, and when.
    last: (LogPosition, Nanos),
    under_way: Option<(LogPosition, Nanos)>,
    not_before: Nanos,
    /// Those taken in this run: what an earlier one left was read only as far as the start needed it.
    taken: u64,
}

impl CheckpointKeeper {
    /// A run whose appends begin at `start`. `kept`: the good ones that it found, ascending.
    pub fn new(options: CheckpointOptions, kept: impl IntoIterator<Item = CheckpointName>, start: LogPosition) -> Self {
        Self {
            options,
            kept: kept.into_iter().collect(),
            start,
            last: (start, Nanos::ZERO),
            under_way: None,
            not_before: Nanos::ZERO,
            taken: 0,
        }
    }

    /// What stands below stands in both of the newest checkpoints: the loss of either takes nothing.
    pub fn covered_to(&self) -> LogPosition {
        match self.kept.front() {
            Some(older) if self.taken >= CHECKPOINTS_KEPT as u64 => older.begin,
            _ => LogPosition(0),
        }
    }

    /// When one is due, the log's appends ending at `tail`; `None` while nothing has come since the last one.
    pub fn due(&self, tail: LogPosition) -> Option<Nanos> {
        let (last, since) = self.last;
        let grown = tail.0.saturating_sub(last.0);
        if self.under_way.is_some() || grown == 0 {
            return None;
        }
        let due = if grown >= self.options.bytes { Nanos::ZERO } else { since + self.options.age.0 };
        Some(due.max(self.not_before))
    }

    /// Whether one that begins there says more than those that are kept, under a name of its own. The log may have grown by what says
    /// nothing to its reader, pads for example: two would have one name then, and the second would replace the first and be
    /// counted beside it. What begins before this run is for the run that wrote it.
    pub fn may_begin(&self, begin: LogPosition) -> bool {
        begin >= self.start && self.kept.back().is_none_or(|newest| newest.begin < begin)
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether the log has grown by so much since the one under way was begun that it is to be done soon.
    pub fn is_late(&self, tail: LogPosition) -> bool {
        self.under_way.is_some_and(|(begin, _)| tail.0.saturating_sub(begin.0) > self.options.bytes / LATE)
    }

    pub fn begin(&mut self, at: LogPosition, now: Nanos) {
        assert!(self.under_way.is_none(), "one at a time");
        self.under_way = Some((at, now));
    }

    /// The names that the one under way makes superfluous.
    pub fn superseded(&self) -> Vec<String> {
        let superfluous = self.kept.len().saturating_sub(CHECKPOINTS_KEPT - 1);
        self.kept.iter().take(superfluous).map(ToString::to_string).collect()
    }

    /// The one under way has its name; `None`: it failed, or was given up.
    pub fn end(&mut self, published: Option<CheckpointName>, now: Nanos) {
        let Some(begun) = self.under_way.take() else { unreachable!("what ends was begun") };
        let Some(name) = published else {
            self.not_before = now + RETRY.0;
            return;
        };
        self.last = begun;
        self.taken += 1;
        while self.kept.len() >= CHECKPOINTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(name);
    }
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::ids::Epoch;

    use super::*;

    fn name(begin: u64) -> CheckpointName {
        CheckpointName { begin: LogPosition(begin), epoch: Epoch(1) }
    }

    #[test]
    fn one_is_due_after_growth_or_time_and_none_while_nothing_comes() {
        let options = CheckpointOptions { bytes: 1000, age: Nanos::from_secs(30) };
        let mut keeper = CheckpointKeeper::new(options, [], LogPosition(500));
        assert_eq!(keeper.due(LogPosition(500)), None);
        assert_eq!(keeper.due(LogPosition(501)), Some(Nanos::from_secs(30)));
        assert_eq!(keeper.due(LogPosition(1500)), Some(Nanos::ZERO));
        keeper.begin(LogPosition(1500), Nanos::from_secs(40));
        assert_eq!(keeper.due(LogPosition(9000)), None, "one at a time");
        keeper.end(None, Nanos::from_secs(41));
        assert_eq!(keeper.due(LogPosition(1500)), Some(Nanos::from_secs(46)), "one that failed is tried again");
        keeper.begin(LogPosition(1500), Nanos::from_secs(46));
        keeper.end(Some(name(1500)), Nanos::from_secs(47));
        assert_eq!(keeper.due(LogPosition(1501)), Some(Nanos::from_secs(76)));
    }

    #[test]
    fn one_is_late_when_the_log_has_grown_by_a_quarter_of_what_makes_the_next_due() {
        let options = CheckpointOptions { bytes: 1000, age: Nanos::from_secs(30) };
        let mut keeper = CheckpointKeeper::new(options, [], LogPosition(0));
        assert!(!keeper.is_late(LogPosition(5000)), "none is under way");
        keeper.begin(LogPosition(5000), Nanos::ZERO);
        assert!(!keeper.is_late(LogPosition(5250)) && keeper.is_late(LogPosition(5251)));
    }

    /// Two of one name were counted as two, and the file that both were went when a third came: the log had retired on the strength
    /// of both.
    #[test]
    fn one_that_begins_where_another_did_is_not_begun() {
        let mut keeper = CheckpointKeeper::new(CheckpointOptions::default(), [name(10)], LogPosition(50));
        assert!(!keeper.may_begin(LogPosition(49)), "of an earlier run");
        assert!(keeper.may_begin(LogPosition(50)));
        keeper.begin(LogPosition(60), Nanos::ZERO);
        keeper.end(Some(name(50)), Nanos::ZERO);
        assert!(!keeper.may_begin(LogPosition(50)) && keeper.may_begin(LogPosition(51)));
    }

    #[test]
    fn the_two_newest_are_kept() {
        let mut keeper = CheckpointKeeper::new(CheckpointOptions::default(), [name(10)], LogPosition(10));
        for (begin, superseded) in [(20, vec![]), (30, vec![name(10).to_string()]), (40, vec![name(20).to_string()])] {
            keeper.begin(LogPosition(begin), Nanos::ZERO);
            assert_eq!(keeper.superseded(), superseded);
            keeper.end(Some(name(begin)), Nanos::ZERO);
        }
    }
}
