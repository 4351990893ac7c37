//! What a connection has received and not handled yet.
//!
//! A socket without a partial frame is read into the executor's one scratch buffer, and its frames are handled there, in place:
//! an idle connection, and one whose frames come whole, holds no buffer at all. Only the tail of a read, a partial frame or
//! frames that must wait, is kept in a [`Backlog`] of the connection's own, which then grows with the bytes received, never
//! with the length that a frame announces, and out of one [`ReceiveBudget`] per executor:
//!
//! ```text
//!   scratch   [ frame | frame | frame | fra ]          read, handled in place
//!                                       └─┬─┘
//!   backlog                             [ fra ····· ]  grows by doubling; freed when it is empty
//! ```
//!
//! A frame always starts at a multiple of 8 in either buffer, which its FlatBuffers header needs.

use crate::limits::{RECEIVE_BUDGET, RECEIVE_FLOOR, RECEIVE_SCRATCH};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::Waker;

/// Spare buffers that an executor keeps: 256 KiB.
const SPARE_BUFFERS: usize = 64;

/// Bytes that partial frames of one executor may hold together, and who waits for some of them.
///
/// The longest holder may exceed the limit, so that one partial frame always gets on; without that, two large frames could
/// each hold half of the budget and wait for the other.
#[derive(Debug, Default)]
pub struct ReceiveBudget {
    held: Cell<usize>,
    /// The holder that may exceed the limit, by connection number.
    elder: Cell<Option<u64>>,
    waiting: RefCell<VecDeque<Waker>>,
    /// Buffers of [`RECEIVE_FLOOR`] bytes for the small tails of reads, so that none is allocated on a message's path.
    spare: RefCell<Vec<Vec<u8>>>,
}

impl ReceiveBudget {
    /// Takes `more` bytes for connection `who`, unless the budget is used up.
    pub fn take(&self, who: u64, more: usize) -> bool {
        let elder = self.elder.get();
        if self.held.get() + more <= RECEIVE_BUDGET || elder == Some(who) || elder.is_none() {
            if elder.is_none() {
                self.elder.set(Some(who));
            }
            self.held.set(self.held.get() + more);
            return true;
        }
        false
    }

    /// Gives `bytes` back; `done` when `who` holds nothing any more.
    pub fn give(&self, who: u64, bytes: usize, done: bool) {
        debug_assert!(self.held.get() >= bytes, "more given back than was taken");
        self.held.set(self.held.get() - bytes);
        if done && self.elder.get() == Some(who) {
            self.elder.set(None);
        }
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Wakes `waker` when bytes are given back.
    pub fn wait(&self, waker: &Waker) {
        self.waiting.borrow_mut().push_back(waker.clone());
    }

    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Whether somebody waits for bytes that others hold.
    pub fn is_short(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// How much of the scratch buffer one read may fill now: what is left of it may have to be kept.
    pub fn scratch(&self) -> usize {
        if self.held.get() + RECEIVE_SCRATCH <= RECEIVE_BUDGET { RECEIVE_SCRATCH } else { RECEIVE_FLOOR }
    }
}

/// The bytes of one connection that wait: a partial frame, or frames behind one that must wait.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Empty, or of a length that is its capacity: `filled` says how much of it has been received.
    bytes: Vec<u8>,
    head: usize,
    filled: usize,
    /// What of the budget the buffer stands for.
    charged: usize,
}

impl Backlog {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.head..self.filled]
    }

    pub fn is_empty(&self) -> bool {
        self.head == self.filled
    }

    /// Keeps a copy of what a read left in the scratch buffer. It is charged without asking: the bytes are here already, and
    /// [`ReceiveBudget::scratch`] saw to it that they fit.
    pub fn keep(&mut self, rest: &[u8], who: u64, budget: &ReceiveBudget) {
        assert!(self.is_empty(), "the scratch buffer is read only while nothing waits");
        if rest.is_empty() {
            return;
        }
        self.release(who, budget);
        self.bytes = if rest.len() <= RECEIVE_FLOOR {
            budget.spare.borrow_mut().pop().unwrap_or_else(|| vec![0; RECEIVE_FLOOR])
        } else {
            vec![0; rest.len().next_multiple_of(512)]
        };
        self.bytes[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
        if self.bytes.len() > RECEIVE_FLOOR {
            let charge = self.bytes.len();
            if !budget.take(who, charge) {
                budget.held.set(budget.held.get() + charge);
            }
            self.charged = charge;
        }
    }

    /// Room to receive into, at the end of what is here: at most doubles the buffer, up to `wanted` bytes in all. `None` when
    /// the budget has none to give now.
    pub fn room(&mut self, wanted: usize, who: u64, budget: &ReceiveBudget) -> Option<&mut [u8]> {
        if self.head > 0 {
            self.bytes.copy_within(self.head..self.filled, 0);
            self.filled -= self.head;
            self.head = 0;
        }
        if self.filled == self.bytes.len() {
            let size = (self.bytes.len() * 2).max(512).min(wanted.max(self.filled + 1));
            if size > RECEIVE_FLOOR {
                if !budget.take(who, size - self.charged) {
                    return None;
                }
                self.charged = size;
            }
            self.bytes.reserve_exact(size - self.bytes.len());
            self.bytes.resize(size, 0);
        }
        Some(&mut self.bytes[self.filled..])
    }

    /// `count` bytes have been received into the room.
    pub fn received(&mut self, count: usize) {
        self.filled += count;
        assert!(self.filled <= self.bytes.len(), "more received than there was room for");
    }

    /// The first `count` bytes have been handled. An empty backlog gives its memory back.
    pub fn handled(&mut self, count: usize, who: u64, budget: &ReceiveBudget) {
        self.head += count;
        assert!(self.head <= self.filled, "more handled than was received");
        if self.is_empty() {
            self.release(who, budget);
        }
    }

    /// Gives all memory back.
    pub fn release(&mut self, who: u64, budget: &ReceiveBudget) {
        let bytes = std::mem::take(&mut self.bytes);
        (self.head, self.filled) = (0, 0);
        let mut spare = budget.spare.borrow_mut();
        if bytes.len() == RECEIVE_FLOOR && spare.len() < SPARE_BUFFERS {
            spare.push(bytes);
        }
        drop(spare);
        if self.charged > 0 {
            budget.give(who, std::mem::take(&mut self.charged), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MIB;

    fn fill(backlog: &mut Backlog, wanted: usize, who: u64, budget: &ReceiveBudget) -> bool {
        match backlog.room(wanted, who, budget) {
            None => false,
            Some(room) => {
                let count = room.len();
                room.fill(7);
                backlog.received(count);
                true
            }
        }
    }

    #[test]
    fn the_buffer_grows_with_bytes_received_and_not_with_what_is_announced() {
        let budget = ReceiveBudget::default();
        let mut backlog = Backlog::default();
        backlog.keep(&[1; 24], 1, &budget);
        let room = backlog.room(16 * MIB, 1, &budget).map(|room| room.len());
        assert!(room.is_some_and(|room| room <= RECEIVE_FLOOR), "{room:?}");
        assert_eq!(budget.held(), 0);
        backlog.handled(24, 1, &budget);
        assert!(backlog.bytes.capacity() == 0);
    }

    #[test]
    fn memory_stays_within_the_budget_and_one_frame_and_the_elder_always_gets_on() {
        let budget = ReceiveBudget::default();
        let frame = 16 * MIB;
        let mut all: Vec<Backlog> = (0..64).map(|_| Backlog::default()).collect();
        let mut stuck = false;
        while !stuck {
            stuck = true;
            for (who, backlog) in all.iter_mut().enumerate() {
                if backlog.bytes().len() < frame && fill(backlog, frame, who as u64, &budget) {
                    stuck = false;
                }
            }
        }
        assert!(budget.held() <= RECEIVE_BUDGET + frame, "{}", budget.held());
        assert_eq!(all.iter().filter(|backlog| backlog.bytes().len() == frame).count(), 1);
        let done = all.iter_mut().position(|backlog| backlog.bytes().len() == frame).unwrap_or(0);
        all[done].handled(frame, done as u64, &budget);
        assert!(fill(&mut all[(done + 1) % 64], frame, 99, &budget));
        for (who, backlog) in all.iter_mut().enumerate() {
            backlog.release(who as u64, &budget);
        }
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn partial_handling_keeps_the_rest_at_the_front() {
        let budget = ReceiveBudget::default();
        let mut backlog = Backlog::default();
        backlog.keep(&(0..64).collect::<Vec<u8>>(), 1, &budget);
        backlog.handled(16, 1, &budget);
        assert_eq!(backlog.bytes()[0], 16);
        assert!(backlog.room(128, 1, &budget).is_some());
        assert_eq!(backlog.bytes(), &(16..64).collect::<Vec<u8>>()[..]);
    }
}
