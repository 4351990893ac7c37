//! The task of a shard: once per turn it answers what the log has reached, and hands the log's work to the disk.
//!
//! It is woken by the first append of a turn and runs behind every connection that was runnable then, so that all of them share
//! a flush; a completion wakes it in the same way, and the next write goes out at once. Writes run in the hot queue, segments
//! and marks in the background one.

use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::look_ups;
use crate::shard::runtime::{self, Timer, turn};
use crate::shard::state::{Shard, ShardTask};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Runs until the shard's log is closed.
pub async fn run(executor: Rc<Executor>, shard: Rc<Shard>) {
    let mut timer = Timer::new(Duration::from_secs(3600));
    while !shard.closed.get() {
        shard.progress(&executor);
        start_tasks(&executor, &shard);
        // What a task's start moved (a seal, a write that came back at once) is seen before anything is waited for.
        let deadline = shard.core.borrow().log.next_deadline();
        let now = clock::monotonic();
        if deadline.is_some_and(|deadline| deadline <= now) {
            turn().await;
            continue;
        }
        wait(&shard, &mut timer, deadline.map(|deadline| Duration::from_nanos(deadline - now))).await;
    }
    shard.group_work.raise();
    shard.index_news.call();
}

/// Waits for work, or until the deadline.
async fn wait(shard: &Shard, timer: &mut Timer, left: Option<Duration>) {
    if let Some(left) = left {
        timer.reset(left);
    }
    poll_fn(|context| {
        if shard.work.poll(context).is_ready() {
            return Poll::Ready(());
        }
        match left {
            Some(_) => Pin::new(&mut *timer).poll(context),
            None => Poll::Pending,
        }
    })
    .await;
}

fn start_tasks(executor: &Rc<Executor>, shard: &Rc<Shard>) {
    loop {
        let task = shard.core.borrow_mut().log.next_task(clock::monotonic());
        let Some(task) = task else { break };
        shard.in_flight.set(shard.in_flight.get() + 1);
        let background = task.is_background();
        let carried_out = carry_out(executor.clone(), shard.clone(), task);
        if background {
            executor.spawn_background(carried_out);
        } else {
            runtime::spawn(carried_out).detach();
        }
    }
}

/// Runs a task of the log to its end; it is never cancelled.
async fn carry_out(executor: Rc<Executor>, shard: Rc<Shard>, task: ShardTask) {
    let completion = task.run().await;
    let progress = shard.core.borrow_mut().log.complete(completion, clock::monotonic());
    shard.in_flight.set(shard.in_flight.get() - 1);
    if progress.durable.is_some() || progress.room || progress.poisoned {
        shard.room_came();
    }
    match progress.disk_full {
        Some(true) => tracing::warn!(
            shard = shard.id.0,
            "the disk is full, or what is to be kept free is reached: when the room that is left is used, producers are told DiskFull"
        ),
        Some(false) => tracing::info!(shard = shard.id.0, "there is space on the disk again"),
        None => {}
    }
    if progress.indexed {
        look_ups::indexed(&executor, &shard);
    }
    shard.work.raise();
}
