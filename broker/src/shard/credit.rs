//! Credit: how many more requests this executor may send to one shard of another. The rest of its connections' requests wait in
//! their sockets. Who waits for credit gets it in turn, also before those who ask only when it has come.

use crate::limits::MESH_CREDIT_PER_SHARD;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Credit for one shard.
#[derive(Debug)]
pub struct Credit {
    /// Zero while somebody waits.
    left: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Waker>,
}

impl Default for Credit {
    fn default() -> Self {
        Credit { left: Cell::new(MESH_CREDIT_PER_SHARD), waiting: RefCell::default() }
    }
}

impl Credit {
    /// Takes one if there is one.
    pub fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    /// One that was taken comes back. It is the next one's who waits.
    pub fn give_back(&self) {
        let next = self.waiting.borrow_mut().pop_front();
        if let Some(next) = next {
            next.granted.set(true);
            next.waker.borrow().wake_by_ref();
            return;
        }
        self.left.set(self.left.get() + 1);
        assert!(self.left.get() <= MESH_CREDIT_PER_SHARD, "more credit came back than was taken");
    }

    /// Takes one, as soon as there is one. Dropped before that, it has taken none.
    pub fn taken(&self) -> Taking<'_> {
        Taking { credit: self, waiter: None }
    }

    /// How many are taken.
    pub fn used(&self) -> usize {
        MESH_CREDIT_PER_SHARD - self.left.get()
    }
}

/// Waits for credit.
#[derive(Debug)]
pub struct Taking<'a> {
    credit: &'a Credit,
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
            None if self.credit.take() => Poll::Ready(()),
            None => {
                let waiter =
                    Rc::new(Waiter { granted: Cell::new(false), waker: RefCell::new(context.waker().clone()) });
                self.credit.waiting.borrow_mut().push_back(waiter.clone());
                self.waiter = Some(waiter);
                Poll::Pending
            }
        }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        match self.waiter.take() {
            Some(waiter) if waiter.granted.get() => self.credit.give_back(),
            Some(waiter) => self.credit.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn credit_goes_to_who_waits_in_turn_and_from_who_gave_up_to_the_next() {
        let credit = Credit::default();
        while credit.take() {}
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(credit.taken())).collect();
        block_on(async {
            for taking in &mut waiting {
                assert_eq!(poll_once(taking.as_mut()).await, None);
            }
            let mut waiting = waiting.into_iter();
            let [first, given_up, granted, last] = std::array::from_fn(|_| waiting.next());
            drop(given_up);
            credit.give_back();
            assert!(!credit.take(), "it is the first one's");
            credit.give_back();
            // Was granted to the third, which gives up without having seen it.
            drop(granted);
            assert_eq!(poll_once(first.expect("four").as_mut()).await, Some(()));
            assert_eq!(poll_once(last.expect("four").as_mut()).await, Some(()));
        });
        assert_eq!(credit.used(), MESH_CREDIT_PER_SHARD);
        for _ in 0..MESH_CREDIT_PER_SHARD {
            credit.give_back();
        }
        assert_eq!(credit.used(), 0);
    }
}
