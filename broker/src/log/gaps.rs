//! Gaps between flushes: reads that are in no hurry begin where no flush is under way.
//!
//! ```text
//!   flushes ──┤ write, flush ├──────┤ write, flush ├┤ write, flush ├───────
//!                               ▲                                    ▲
//!                             a read begins here, or after the second flush that it has let pass
//! ```
//!
//! A device with one queue serves one request after the other. A read that begins amid a flush stands between its write and the command
//! that makes the write durable, and all that wait for this flush pay for the whole read. One that begins in a gap is paid for by the
//! next flush only, and only by what is left of it then.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::limits::FLUSHES_LET_PASS;

/// Which flushes are under way. A handle: copies see the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Gaps(Rc<State>);

#[derive(Debug, Default)]
struct State {
    under_way: Cell<u64>,
    ended: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gaps {
    /// A write of a flush was handed out.
    pub fn flush_began(&self) {
        self.0.under_way.set(self.0.under_way.get() + 1);
    }

    /// It returned, whatever it came to.
    pub fn flush_ended(&self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.ended.set(self.0.ended.get() + 1);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Ready where no flush is under way; where one follows the other, after [`FLUSHES_LET_PASS`] of them.
    pub async fn next(&self) {
        let last = self.0.ended.get() + FLUSHES_LET_PASS;
        poll_fn(|context| {
            if self.0.under_way.get() == 0 || self.0.ended.get() >= last {
                return Poll::Ready(());
            }
            let mut waiting = self.0.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn who_waits_goes_on_in_the_first_gap() {
        let gaps = Gaps::default();
        assert!(block_on(poll_once(gaps.next())).is_some(), "nothing is under way");
        gaps.flush_began();
        gaps.flush_began();
        let mut next = pin!(gaps.next());
        assert!(block_on(poll_once(next.as_mut())).is_none());
        gaps.flush_ended();
        assert!(block_on(poll_once(next.as_mut())).is_none(), "the other one is still under way");
        gaps.flush_ended();
        assert!(block_on(poll_once(next.as_mut())).is_some());
    }

    #[test]
    fn flushes_without_a_gap_are_let_pass_a_few_times() {
        let gaps = Gaps::default();
        gaps.flush_began();
        let mut next = pin!(gaps.next());
        for _ in 0..FLUSHES_LET_PASS {
            assert!(block_on(poll_once(next.as_mut())).is_none());
            gaps.flush_began();
            gaps.flush_ended();
        }
        assert!(block_on(poll_once(next.as_mut())).is_some());
    }
}
