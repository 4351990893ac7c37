//! Credit: what this executor may still have under way to one shard of another, in frames and in bytes. The rest of its
//! connections' requests wait in their sockets. Who waits for credit gets it in turn, also before those who ask only when it has
//! come.
//!
//! A frame's place comes back with its answer, its bytes when nobody holds them any more: the shard has handled it, or it came back
//! for want of room and was given up ([`super::gate`]; one that waits there keeps its bytes). Small frames cost no bytes, so that
//! fetches and credit pass large batches.

use crate::limits::{MESH_BYTES_PER_SHARD, MESH_CREDIT_PER_SHARD, MESH_SMALL_FRAME};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The bytes that a frame of so many costs.
pub fn charge(frame: usize) -> usize {
    if frame <= MESH_SMALL_FRAME { 0 } else { frame }
}

/// Credit for one shard.
#[derive(Debug)]
pub struct Credit {
    frames: Account,
    bytes: Account,
}

impl Default for Credit {
    fn default() -> Self {
        Credit { frames: Account::new(MESH_CREDIT_PER_SHARD), bytes: Account::new(MESH_BYTES_PER_SHARD) }
    }
}

impl Credit {
    /// Takes what a frame of so many bytes needs, if it is there.
    pub fn take(&self, frame: usize) -> bool {
        if !self.bytes.take(charge(frame)) {
            return false;
        }
        let taken = self.frames.take(1);
        if !taken {
            self.bytes.give_back(charge(frame));
        }
        taken
    }

    /// Takes what a frame of so many bytes needs, as soon as it is there. Dropped before that, it has taken nothing.
    pub async fn taken(&self, frame: usize) {
        self.bytes.taken(charge(frame)).await;
        let held = Held { account: &self.bytes, amount: charge(frame) };
        self.place_taken().await;
        std::mem::forget(held);
    }

    /// The same for a frame whose bytes are taken already.
    pub async fn place_taken(&self) {
        self.frames.taken(1).await;
    }

    /// A frame's place comes back.
    pub fn place_back(&self) {
        self.frames.give_back(1);
    }

    /// Nobody holds a frame of so many bytes any more.
    pub fn bytes_back(&self, frame: usize) {
        self.bytes.give_back(charge(frame));
    }

    /// Frames that are not answered yet.
    pub fn used(&self) -> usize {
        self.frames.taken.get()
    }

    /// Bytes of large frames that somebody holds.
    pub fn bytes_used(&self) -> usize {
        self.bytes.taken.get()
    }

    /// How many wait for credit.
    pub fn waiting(&self) -> usize {
        self.frames.waiting.borrow().len() + self.bytes.waiting.borrow().len()
    }
}

/// So much of something, taken by amounts. What is larger than all of it may be taken while nothing else is.
#[derive(Debug)]
struct Account {
    limit: usize,
    taken: Cell<usize>,
    /// Those for whom there was not enough; whoever comes later stands behind them.
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    amount: usize,
    granted: Cell<bool>,
    waker: RefCell<Waker>,
}

/// Gives back what was taken, unless it is forgotten.
struct Held<'a> {
    account: &'a Account,
    amount: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.account.give_back(self.amount);
    }
}

impl Account {
    fn new(limit: usize) -> Self {
        Account { limit, taken: Cell::new(0), waiting: RefCell::default() }
    }

    fn has(&self, amount: usize) -> bool {
        let taken = self.taken.get();
        amount == 0 || taken == 0 || taken + amount <= self.limit
    }

    fn take(&self, amount: usize) -> bool {
        let takes = amount == 0 || (self.waiting.borrow().is_empty() && self.has(amount));
        self.taken.set(self.taken.get() + if takes { amount } else { 0 });
        takes
    }

    /// What was taken comes back. It is theirs who wait.
    fn give_back(&self, amount: usize) {
        assert!(amount <= self.taken.get(), "more credit came back than was taken");
        self.taken.set(self.taken.get() - amount);
        self.grant();
    }

    fn grant(&self) {
        while let Some(next) = self.waiting.borrow_mut().pop_front_if(|next| self.has(next.amount)) {
            self.taken.set(self.taken.get() + next.amount);
            next.granted.set(true);
            next.waker.borrow().wake_by_ref();
        }
    }

    fn taken(&self, amount: usize) -> Taking<'_> {
        Taking { account: self, amount, waiter: None }
    }
}

/// Waits for an amount.
#[derive(Debug)]
struct Taking<'a> {
    account: &'a Account,
    amount: usize,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Taking<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &self.waiter {
            Some(waiter) if waiter.granted.get() => {
                self.waiter = None;
                Poll::Ready(())
            }
            Some(waiter) => {
                waiter.waker.borrow_mut().clone_from(context.waker());
                Poll::Pending
            }
            None if self.account.take(self.amount) => Poll::Ready(()),
            None => {
                let waker = RefCell::new(context.waker().clone());
                let waiter = Rc::new(Waiter { amount: self.amount, granted: Cell::new(false), waker });
                self.account.waiting.borrow_mut().push_back(waiter.clone());
                self.waiter = Some(waiter);
                Poll::Pending
            }
        }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        match self.waiter.take() {
            Some(waiter) if waiter.granted.get() => self.account.give_back(waiter.amount),
            Some(waiter) => {
                self.account.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter));
                // It may have been all that those behind it waited for.
                self.account.grant();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    const SMALL: usize = MESH_SMALL_FRAME;

    #[test]
    fn credit_goes_to_who_waits_in_turn_and_from_who_gave_up_to_the_next() {
        let credit = Credit::default();
        while credit.take(SMALL) {}
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(credit.taken(SMALL))).collect();
        block_on(async {
            for taking in &mut waiting {
                assert_eq!(poll_once(taking.as_mut()).await, None);
            }
            let mut waiting = waiting.into_iter();
            let [first, given_up, granted, last] = std::array::from_fn(|_| waiting.next());
            drop(given_up);
            credit.place_back();
            assert!(!credit.take(SMALL), "it is the first one's");
            credit.place_back();
            // Was granted to the third, which gives up without having seen it.
            drop(granted);
            assert_eq!(poll_once(first.expect("four").as_mut()).await, Some(()));
            assert_eq!(poll_once(last.expect("four").as_mut()).await, Some(()));
        });
        assert_eq!((credit.used(), credit.waiting()), (MESH_CREDIT_PER_SHARD, 0));
        for _ in 0..MESH_CREDIT_PER_SHARD {
            credit.place_back();
        }
        assert_eq!((credit.used(), credit.bytes_used()), (0, 0));
    }

    #[test]
    fn large_frames_wait_for_bytes_and_small_ones_pass_them() {
        const LARGE: usize = MESH_BYTES_PER_SHARD / 4;
        let credit = Credit::default();
        for _ in 0..4 {
            assert!(credit.take(LARGE));
        }
        assert!(!credit.take(SMALL + 1));
        assert_eq!((credit.used(), credit.bytes_used()), (4, MESH_BYTES_PER_SHARD));
        block_on(async {
            // Larger than all there is: it goes when nothing else is under way, and nobody overtakes it.
            let mut huge = Box::pin(credit.taken(MESH_BYTES_PER_SHARD + 1));
            let mut behind = Box::pin(credit.taken(SMALL + 1));
            assert_eq!((poll_once(huge.as_mut()).await, poll_once(behind.as_mut()).await), (None, None));
            assert!(credit.take(SMALL));
            for _ in 0..3 {
                credit.bytes_back(LARGE);
            }
            assert_eq!((poll_once(huge.as_mut()).await, poll_once(behind.as_mut()).await), (None, None));
            credit.bytes_back(LARGE);
            assert_eq!((poll_once(huge.as_mut()).await, poll_once(behind.as_mut()).await), (Some(()), None));
            assert_eq!(credit.bytes_used(), MESH_BYTES_PER_SHARD + 1);
            let mut third = Box::pin(credit.taken(MESH_BYTES_PER_SHARD));
            assert_eq!(poll_once(third.as_mut()).await, None);
            credit.bytes_back(MESH_BYTES_PER_SHARD + 1);
            assert_eq!((poll_once(behind.as_mut()).await, poll_once(third.as_mut()).await), (Some(()), None));
            // It has none, and stood before whoever comes now.
            drop(third);
            assert!(credit.take(MESH_BYTES_PER_SHARD - SMALL - 1));
        });
        assert_eq!((credit.bytes_used(), credit.waiting()), (MESH_BYTES_PER_SHARD, 0));
    }

    #[test]
    fn who_gives_up_while_it_waits_for_a_place_gives_its_bytes_back() {
        let credit = Credit::default();
        while credit.take(SMALL) {}
        assert!(!credit.take(SMALL + 1));
        let mut waiting = Box::pin(credit.taken(SMALL + 1));
        assert_eq!(block_on(poll_once(waiting.as_mut())), None);
        assert_eq!(credit.bytes_used(), SMALL + 1);
        drop(waiting);
        assert_eq!((credit.bytes_used(), credit.waiting()), (0, 0));
    }
}
