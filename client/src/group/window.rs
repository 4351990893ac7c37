//! What a member has received of a queue and what became of it. Offsets, all in order:
//!
//! ```text
//!       acked          done           handed          end
//!  ───────┼──────────────┼──────────────┼──────────────┼───────►
//!  the broker knows   all done     some done      in line for
//!  that it is done               (the set `ahead`)  the application
//! ```
//! Spans say which epoch the messages between `acked` and `end` stand in: (epoch, offset) never means two messages, so what is
//! received a second time is known by it, and so is a message that another one has replaced.

use std::collections::{BTreeSet, VecDeque};

use peregrine_protocol::ids::{Epoch, QueueOffset};

/// Messages that were received together.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: QueueOffset,
    end: QueueOffset,
    epoch: Epoch,
    /// What they count for in bytes.
    bytes: u64,
}

/// The open part of a queue.
#[derive(Debug)]
pub(super) struct Window<M> {
    /// Which tenure of the queue this is; in every token.
    tenure: u64,
    acked: QueueOffset,
    done: QueueOffset,
    handed: QueueOffset,
    end: QueueOffset,
    /// Done, and above `done`.
    ahead: BTreeSet<QueueOffset>,
    /// From `acked` to `end`, without gaps.
    spans: VecDeque<Span>,
    /// How many of the first spans are done.
    spans_done: usize,
    bytes: u64,
    /// From `handed` to `end`.
    line: VecDeque<M>,
}

impl<M> Window<M> {
    /// Nothing received yet; the group is at `place`.
    pub fn new(tenure: u64, place: QueueOffset) -> Self {
        Self {
            tenure,
            acked: place,
            done: place,
            handed: place,
            end: place,
            ahead: BTreeSet::new(),
            spans: VecDeque::new(),
            spans_done: 0,
            bytes: 0,
            line: VecDeque::new(),
        }
    }

    /// The broker goes on at `place`: all below is done, whoever did it. `false`: what stands here is of no use, as the group was set
    /// back or has gone on without this member.
    pub fn go_on_at(&mut self, place: QueueOffset) -> bool {
        if !self.takes(place) {
            return false;
        }
        while self.handed < place && self.line.pop_front().is_some() {
            self.handed += 1;
        }
        self.done = self.done.max(place);
        self.ahead = self.ahead.split_off(&self.done);
        self.advance();
        self.acknowledged(place);
        true
    }

    /// Whether a batch that begins there joins on.
    pub fn takes(&self, first: QueueOffset) -> bool {
        (self.acked..=self.end).contains(&first)
    }

    /// Whether all that was received lies below, and not up to there.
    pub fn is_below(&self, first: QueueOffset) -> bool {
        self.end < first
    }

    /// Takes a batch's messages from offset `first` on, of which those that are here already are left out. It joins on
    /// ([`Self::takes`]). Answers where messages that were here were replaced by others, if so.
    pub fn receive(
        &mut self,
        first: QueueOffset,
        epoch: Epoch,
        bytes: u64,
        messages: impl ExactSizeIterator<Item = M>,
    ) -> Option<QueueOffset> {
        let end = first + messages.len() as u64;
        let other = |span: &&Span| span.end > first && span.start < end && span.epoch != epoch;
        let cut = self.spans.iter().find(other).map(|span| span.start.max(first));
        if let Some(at) = cut {
            self.cut(at);
        }
        if end > self.end {
            let start = self.end;
            self.spans.push_back(Span { start, end, epoch, bytes });
            self.bytes += bytes;
            self.line.extend(messages.skip((start - first) as usize));
            self.end = end;
        }
        cut
    }

    /// Forgets what stands at `at` and behind it: it is not there any more.
    pub fn cut(&mut self, at: QueueOffset) {
        let at = at.max(self.acked);
        self.line.truncate(at.0.saturating_sub(self.handed.0) as usize);
        self.end = self.end.min(at);
        self.handed = self.handed.min(at);
        self.done = self.done.min(at);
        self.ahead.split_off(&at);
        while let Some(last) = self.spans.back_mut()
            && last.end > at
        {
            if last.start < at {
                last.end = at;
                break;
            }
            let bytes = last.bytes;
            self.spans.pop_back();
            if self.spans_done > self.spans.len() {
                self.spans_done = self.spans.len();
            } else {
                self.bytes -= bytes;
            }
        }
        self.advance();
    }

    /// Forgets what the application has not got yet.
    pub fn drop_line(&mut self) {
        self.cut(self.handed);
    }

    /// Forgets what the application has and is not done with, too.
    pub fn drop_held(&mut self) {
        self.cut(self.done);
    }

    /// The next message for the application: its offset, its epoch, itself.
    pub fn hand_out(&mut self) -> Option<(QueueOffset, Epoch, M)> {
        let message = self.line.pop_front()?;
        let (offset, epoch) = (self.handed, self.epoch_at(self.handed));
        self.handed += 1;
        Some((offset, epoch, message))
    }

    /// The application is done with a message. `false`: it is none of those that it has.
    pub fn complete(&mut self, offset: QueueOffset, epoch: Epoch) -> bool {
        let is_held = (self.done..self.handed).contains(&offset) && !self.ahead.contains(&offset);
        if !is_held || self.epoch_at(offset) != epoch {
            return false;
        }
        if offset == self.done {
            self.done += 1;
        } else {
            self.ahead.insert(offset);
        }
        self.advance();
        true
    }

    /// What can be acknowledged of what the broker delivered below `delivered`: an offset, and the epoch of the message before it.
    pub fn to_ack(&self, delivered: QueueOffset) -> Option<(Epoch, QueueOffset)> {
        let offset = self.done.min(delivered);
        (offset > self.acked).then(|| (self.epoch_at(QueueOffset(offset.0 - 1)), offset))
    }

    /// The broker knows that all below `offset` is done.
    pub fn acknowledged(&mut self, offset: QueueOffset) {
        self.acked = self.acked.max(offset.min(self.done));
        while self.spans.front().is_some_and(|span| span.end <= self.acked) {
            self.spans.pop_front();
            self.spans_done -= 1;
        }
    }

    pub fn tenure(&self) -> u64 {
        self.tenure
    }

    pub fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// The application holds nothing.
    pub fn is_all_done(&self) -> bool {
        self.done == self.handed
    }

    /// Messages and bytes that are not done: what counts against the credit. A message that is slow holds back those behind it, so
    /// that what is kept here has a bound.
    pub fn open(&self) -> (u64, u64) {
        (self.end - self.done, self.bytes)
    }

    /// After `done` or `ahead` has changed.
    fn advance(&mut self) {
        while self.ahead.remove(&self.done) {
            self.done += 1;
        }
        while let Some(span) = self.spans.get(self.spans_done).filter(|span| span.end <= self.done) {
            self.bytes -= span.bytes;
            self.spans_done += 1;
        }
    }

    /// Of a message between `acked` and `end`.
    fn epoch_at(&self, offset: QueueOffset) -> Epoch {
        let index = self.spans.partition_point(|span| span.end <= offset);
        self.spans.get(index).map_or(Epoch::ANY, |span| span.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(place: u64) -> Window<u64> {
        Window::new(1, QueueOffset(place))
    }

    fn receive(window: &mut Window<u64>, first: u64, end: u64, epoch: u64) -> Option<u64> {
        let messages = (first..end).collect::<Vec<_>>().into_iter();
        window.receive(QueueOffset(first), Epoch(epoch), 10, messages).map(|at| at.0)
    }

    fn hand_out(window: &mut Window<u64>) -> Option<u64> {
        window.hand_out().map(|(offset, _, message)| {
            assert_eq!(offset.0, message);
            message
        })
    }

    fn to_ack(window: &Window<u64>) -> Option<(u64, u64)> {
        window.to_ack(QueueOffset(u64::MAX)).map(|(epoch, offset)| (epoch.0, offset.0))
    }

    #[test]
    fn done_out_of_order_is_acknowledged_in_order() {
        let mut window = window(5);
        assert_eq!(receive(&mut window, 5, 8, 1), None);
        assert_eq!([(); 4].map(|()| hand_out(&mut window)), [Some(5), Some(6), Some(7), None]);
        assert_eq!(window.open(), (3, 10));
        assert!(window.complete(QueueOffset(7), Epoch(1)) && window.complete(QueueOffset(6), Epoch(1)));
        assert_eq!((to_ack(&window), window.open()), (None, (3, 10)));
        assert!(!window.complete(QueueOffset(6), Epoch(1)), "twice");
        assert!(!window.complete(QueueOffset(5), Epoch(2)), "another message");
        assert!(window.complete(QueueOffset(5), Epoch(1)));
        assert_eq!((to_ack(&window), window.open()), (Some((1, 8)), (0, 0)));
        assert_eq!(window.to_ack(QueueOffset(6)), Some((Epoch(1), QueueOffset(6))), "no more than was delivered");
        window.acknowledged(QueueOffset(8));
        assert_eq!((to_ack(&window), window.is_all_done()), (None, true));
    }

    #[test]
    fn what_comes_again_is_left_out_and_what_replaces_is_not() {
        let mut window = window(0);
        receive(&mut window, 0, 4, 1);
        assert_eq!((hand_out(&mut window), hand_out(&mut window)), (Some(0), Some(1)));
        assert!(window.complete(QueueOffset(0), Epoch(1)));
        assert!(window.go_on_at(QueueOffset(0)));
        assert_eq!(receive(&mut window, 0, 6, 1), None);
        assert_eq!([(); 5].map(|()| hand_out(&mut window)), [Some(2), Some(3), Some(4), Some(5), None]);
        assert_eq!(receive(&mut window, 0, 3, 1), None);
        assert_eq!(receive(&mut window, 3, 5, 2), Some(3));
        assert!(!window.complete(QueueOffset(4), Epoch(1)), "that one is not there any more");
        assert_eq!((hand_out(&mut window), hand_out(&mut window), hand_out(&mut window)), (Some(3), Some(4), None));
        for (offset, epoch) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            assert!(window.complete(QueueOffset(offset), Epoch(epoch)), "{offset}");
        }
        assert_eq!((to_ack(&window), window.open()), (Some((2, 5)), (0, 0)));
    }

    #[test]
    fn others_may_have_gone_on() {
        let mut window = window(0);
        receive(&mut window, 0, 3, 1);
        receive(&mut window, 3, 6, 1);
        hand_out(&mut window);
        assert!(window.go_on_at(QueueOffset(4)));
        assert_eq!((window.open(), to_ack(&window), window.is_all_done()), ((2, 10), None, true));
        assert!(!window.complete(QueueOffset(0), Epoch(1)), "done by another");
        assert_eq!(hand_out(&mut window), Some(4));
        assert!(!window.go_on_at(QueueOffset(3)) && !window.go_on_at(QueueOffset(7)));
    }

    #[test]
    fn what_is_dropped_counts_no_more() {
        let mut window = window(0);
        receive(&mut window, 0, 3, 1);
        receive(&mut window, 3, 6, 1);
        for offset in 0..4 {
            assert_eq!(hand_out(&mut window), Some(offset));
        }
        window.drop_line();
        assert_eq!((window.open(), window.has_line(), window.is_all_done()), ((4, 20), false, false));
        assert!(window.complete(QueueOffset(1), Epoch(1)) && window.complete(QueueOffset(0), Epoch(1)));
        window.drop_held();
        assert_eq!((window.open(), window.is_all_done(), to_ack(&window)), ((0, 0), true, Some((1, 2))));
        assert!(!window.complete(QueueOffset(3), Epoch(1)));
    }
}
