//! A wake-up for one task of the same executor: `raise` any number of times, `wait` returns once. It is scheduled, never run
//! inline, so that what is runnable in this turn still contributes before the waiting task runs: this is how one send per
//! connection and one flush per turn come about.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
pub struct Event {
    raised: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Event {
    pub fn raise(&self) {
        if !self.raised.replace(true)
            && let Some(waker) = self.waiting.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// True if it was raised since the last time; else `context`'s task is woken when it is.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.raised.replace(false) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match &*waiting {
            Some(waker) if waker.will_wake(context.waker()) => {}
            _ => *waiting = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    pub async fn wait(&self) {
        poll_fn(|context| self.poll(context)).await;
    }
}
