//! Everybody who waits for the same thing, each until a deadline of its own. Who gives up leaves nothing behind, so that a crowd
//! is never larger than the number of tasks that wait in it.

use crate::shard::clock;
use crate::shard::runtime;
use peregrine_protocol::ids::Nanos;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Crowd {
    /// Counts the calls.
    calls: Cell<u64>,
    /// Numbers those who wait.
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Crowd {
    /// Wakes all, in the order in which they came.
    pub fn call(&self) {
        self.calls.set(self.calls.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    /// True when the crowd is called before `deadline`.
    pub async fn called(&self, deadline: Nanos) -> bool {
        let left = deadline.saturating_sub(clock::monotonic());
        if left == 0 {
            return false;
        }
        let calls = self.calls.get();
        let place = Place { crowd: self, number: self.next.get() };
        self.next.set(place.number + 1);
        let called = poll_fn(|context| {
            if self.calls.get() != calls {
                return Poll::Ready(true);
            }
            self.waiting.borrow_mut().insert(place.number, context.waker().clone());
            Poll::Pending
        });
        let late = async {
            runtime::sleep(Duration::from_nanos(left)).await;
            false
        };
        futures_lite::future::or(called, late).await
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }
}

/// The place of one that waits.
struct Place<'a> {
    crowd: &'a Crowd,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.crowd.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// A full ring of a device that hangs: each try of each connection left a waker behind.
    #[test]
    fn who_gives_up_leaves_nothing_behind_and_who_waits_is_woken() {
        let executor = glommio::LocalExecutor::default();
        executor.run(async {
            let crowd = Rc::new(Crowd::default());
            for _ in 0..10 {
                assert!(!crowd.called(clock::monotonic() + 1000).await);
            }
            assert!(!crowd.called(Nanos(0)).await);
            assert_eq!(crowd.waiting(), 0);
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let crowd = crowd.clone();
                    runtime::spawn(async move { crowd.called(clock::monotonic() + 20_000_000_000).await })
                })
                .collect();
            while crowd.waiting() < 3 {
                runtime::turn().await;
            }
            crowd.call();
            for task in waiting {
                assert!(task.await);
            }
            assert_eq!(crowd.waiting(), 0);
        });
    }
}
