//! Sorts rows in steps: each run as soon as it is full, then all runs by merging them, a row at a time. No step is longer than the
//! sorting of one run, and nothing that was allocated is ever moved.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::vec::IntoIter;

/// Collects up to a number of rows.
pub(super) struct Sorter<R> {
    runs: Vec<Vec<R>>,
    filling: Vec<R>,
    rows: usize,
    run_rows: usize,
    rows_max: usize,
}

/// The rows of a sorter in their order.
pub(super) struct Merge<R: Ord> {
    /// The first row of each run, and which run that is.
    heads: BinaryHeap<Reverse<(R, usize)>>,
    runs: Vec<IntoIter<R>>,
    left: usize,
}

impl<R: Ord + Copy> Sorter<R> {
    pub fn new(rows_max: usize, run_rows: usize) -> Self {
        Self { runs: Vec::with_capacity(rows_max.div_ceil(run_rows)), filling: Vec::new(), rows: 0, run_rows, rows_max }
    }

    /// Whether the next row will be the last of a run, which is then sorted: that takes as long as some thousand rows.
    pub fn ends_run(&self) -> bool {
        self.filling.len() + 1 == self.run_rows
    }

    /// Adds a row.
    pub fn push(&mut self, row: R) {
        assert!(!self.is_full(), "whoever adds rows empties it in time");
        if self.filling.capacity() == 0 {
            self.filling.reserve_exact(self.run_rows);
        }
        self.filling.push(row);
        self.rows += 1;
        if self.filling.len() == self.run_rows {
            self.end_run();
        }
    }

    pub fn is_full(&self) -> bool {
        self.rows == self.rows_max
    }

    /// Takes all rows out.
    pub fn drain(&mut self) -> Merge<R> {
        self.end_run();
        let left = std::mem::take(&mut self.rows);
        let mut runs: Vec<_> = self.runs.drain(..).map(Vec::into_iter).collect();
        let heads = runs.iter_mut().enumerate().filter_map(|(run, rows)| Some(Reverse((rows.next()?, run)))).collect();
        Merge { heads, runs, left }
    }

    fn end_run(&mut self) {
        let mut run = std::mem::take(&mut self.filling);
        run.sort_unstable();
        self.runs.push(run);
    }
}

impl<R: Ord + Copy> Merge<R> {
    /// Rows still to come.
    pub fn len(&self) -> usize {
        self.left
    }
}

impl<R: Ord + Copy> Iterator for Merge<R> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        let mut head = self.heads.peek_mut()?;
        let Reverse((row, run)) = *head;
        if let Some(next) = self.runs[run].next() {
            *head = Reverse((next, run));
        } else {
            PeekMut::pop(head);
            // Its memory is of no more use.
            self.runs[run] = Vec::new().into_iter();
        }
        self.left -= 1;
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_out_in_their_order(rows in prop::collection::vec(any::<u16>(), 0..200), run in 1usize..20) {
            let mut sorter = Sorter::new(200, run);
            // Twice: it is empty again after the first time.
            for _ in 0..2 {
                let mut ended = 0;
                for &row in &rows {
                    ended += usize::from(sorter.ends_run());
                    sorter.push(row);
                }
                prop_assert_eq!(ended, rows.len() / run);
                prop_assert_eq!(sorter.is_full(), rows.len() == 200);
                let merge = sorter.drain();
                prop_assert_eq!(merge.len(), rows.len());
                let mut expected = rows.clone();
                expected.sort_unstable();
                prop_assert_eq!(merge.collect::<Vec<_>>(), expected);
            }
        }
    }
}
