//! One at a time, in no promised order: whoever finds the turn taken waits until it is given back.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Whose turn it is, until it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Ready when it is the caller's turn.
    pub async fn take(&self) -> Turn<'_> {
        poll_fn(|context| {
            if !self.taken.replace(true) {
                return Poll::Ready(Turn(self));
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        // All of them: one that has been given up meanwhile would keep the turn from the others.
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}
