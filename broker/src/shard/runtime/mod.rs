//! What runs a shard's tasks: glommio in production, a deterministic scheduler in a simulation.
//!
//! ```text
//!   shard ── spawn, sleep, channels, clock ──► this module ──┬── glommio, one executor per pinned thread
//!                                                            └── crate::simulated, where one polls on this thread
//! ```
//!
//! A thread is in a simulation while one of a simulation's schedulers polls a task on it; elsewhere that costs one look at a
//! thread-local. The code of a shard is the same in both, and does not know where it runs.

pub mod channel;
mod executor;

pub use executor::{ExecutorOptions, Handle, cores, io_memory, lockable_memory, start};

use crate::limits::BACKGROUND_SHARES;
use crate::simulated::{self, Scheduler};
use glommio::{Latency, Shares, TaskQueueHandle};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A task: a future that gives its output. Dropped, it is cancelled; detached, it runs on by itself.
pub enum Task<T> {
    Real(glommio::Task<T>),
    Simulated(simulated::Task<T>),
}

impl<T> Task<T> {
    pub fn detach(self) {
        match self {
            Task::Real(task) => drop(task.detach()),
            Task::Simulated(task) => task.detach(),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            Task::Real(task) => Pin::new(task).poll(context),
            Task::Simulated(task) => Pin::new(task).poll(context),
        }
    }
}

/// The queue of an executor whose tasks hold nobody up.
#[derive(Clone, Copy, Debug)]
pub enum Background {
    Real(TaskQueueHandle),
    Simulated,
}

impl Background {
    /// This executor's.
    pub fn new() -> Self {
        if Scheduler::here().is_some() {
            return Background::Simulated;
        }
        let shares = Shares::Static(BACKGROUND_SHARES);
        Background::Real(glommio::executor().create_task_queue(shares, Latency::NotImportant, "background"))
    }

    pub fn spawn<T: 'static>(self, future: impl Future<Output = T> + 'static) -> Task<T> {
        match (self, Scheduler::here()) {
            (Background::Real(queue), _) => match glommio::spawn_local_into(future, queue) {
                Ok(task) => Task::Real(task),
                Err(_) => unreachable!("the background queue lives as long as the executor"),
            },
            (Background::Simulated, Some(scheduler)) => Task::Simulated(scheduler.spawn(future, true)),
            (Background::Simulated, None) => unreachable!("its tasks run on a scheduler"),
        }
    }
}

/// Runs a task on this executor.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    match Scheduler::here() {
        None => Task::Real(glommio::spawn_local(future)),
        Some(scheduler) => Task::Simulated(scheduler.spawn(future, false)),
    }
}

pub async fn sleep(time: Duration) {
    match Scheduler::here() {
        None => glommio::timer::sleep(time).await,
        Some(scheduler) => scheduler.sleep(time).await,
    }
}

/// Lets the reactor turn: completions are seen, and every task that became runnable runs before the caller goes on. A plain
/// yield does not do that while anything is runnable.
pub async fn turn() {
    sleep(Duration::from_micros(1)).await;
}

/// Lets others run, where the runtime says that it is their turn.
pub async fn yield_if_needed() {
    match Scheduler::here() {
        None => glommio::yield_if_needed().await,
        Some(_) => turn().await,
    }
}

/// A timer that can be set again.
pub enum Timer {
    Real(glommio::timer::Timer),
    Simulated(simulated::Sleep),
}

impl Timer {
    pub fn new(time: Duration) -> Self {
        match Scheduler::here() {
            None => Timer::Real(glommio::timer::Timer::new(time)),
            Some(scheduler) => Timer::Simulated(scheduler.sleep(time)),
        }
    }

    pub fn reset(&mut self, time: Duration) {
        match self {
            Timer::Real(timer) => timer.reset(time),
            Timer::Simulated(sleep) => sleep.reset(time),
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Timer::Real(timer) => Pin::new(timer).poll(context).map(drop),
            Timer::Simulated(sleep) => Pin::new(sleep).poll(context),
        }
    }
}
