//! A handful of futures polled in random order when they were woken: all the executor that a simulation needs. Wake-ups
//! count, so that a future which forgets to be woken hangs here as it would on a real executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::random::Random;

/// Whether a future was woken since it was last polled.
#[derive(Default)]
pub(super) struct Woken(AtomicBool);

impl Woken {
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    woken: Arc<Woken>,
}

/// The tasks of one process; dropping them is what its end does to them.
pub struct Tasks<T> {
    tasks: Vec<Task<T>>,
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self { tasks: Vec::new() }
    }
}

impl<T> Tasks<T> {
    pub fn spawn(&mut self, future: impl Future<Output = T> + 'static) {
        self.tasks.push(Task { future: Box::pin(future), woken: Arc::new(Woken(AtomicBool::new(true))) });
    }

    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Whether one of them waits for nothing but its turn.
    pub fn has_woken(&self) -> bool {
        self.tasks.iter().any(|task| task.woken.0.load(Ordering::Relaxed))
    }

    /// Polls woken tasks, in random order, until one ends.
    pub fn poll(&mut self, random: &mut Random) -> Option<T> {
        loop {
            let woken = |task: &Task<T>| task.woken.0.load(Ordering::Relaxed);
            let ready = self.tasks.iter().filter(|task| woken(task)).count();
            if ready == 0 {
                return None;
            }
            let nth = random.below(ready as u64) as usize;
            let index =
                self.tasks.iter().enumerate().filter(|(_, task)| woken(task)).nth(nth).map(|(index, _)| index)?;
            let task = &mut self.tasks[index];
            task.woken.0.store(false, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&task.woken));
            if let Poll::Ready(output) = task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                drop(self.tasks.swap_remove(index));
                return Some(output);
            }
        }
    }
}
