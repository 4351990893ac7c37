//! A clean stop, on each executor: no request is read any more, what was appended is flushed, every acknowledgement leaves, and
//! then the log is closed. A poisoned shard keeps its ring, and the stop says what stands only there.

use crate::limits::{CLOSE_WITHIN, LINGER};
use crate::log::CloseState;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::peers::Peer;
use crate::shard::run::RunError;
use crate::shard::runtime;
use crate::shard::startup::Startup;
use peregrine_protocol::ids::Nanos;
use std::rc::Rc;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Stops this executor. What goes wrong is told through `startup`.
pub async fn stop(executor: &Rc<Executor>, startup: &Startup) {
    executor.stop_reading();
    // Requests that were received are handled; one that waits does so for at most 100 ms.
    until(LINGER, || connections(executor).all(|connection| connection.read_ended.get())).await;
    until(LINGER, || executor.returned() == 0).await;
    startup.all_quiet().await;
    // What other executors sent on before they were quiet arrives within a turn or two, and is handled before the logs close.
    runtime::sleep(LOOK_EVERY).await;
    until(LINGER, || executor.forwarded_here.get() == 0).await;
    for shard in executor.local_shards() {
        shard.core.borrow_mut().log.begin_close();
        shard.work.raise();
    }
    let closed = until(CLOSE_WITHIN, || {
        executor.local_shards().iter().all(|shard| {
            let done = shard.core.borrow().log.close_state() == CloseState::Done;
            done && shard.in_flight.get() == 0
        })
    })
    .await;
    // Their acknowledgements leave as long as their sockets take them.
    until(LINGER, || executor.peers.is_empty()).await;
    for connection in connections(executor) {
        connection.close();
    }
    for shard in executor.local_shards() {
        shard.closed.set(true);
        let state = shard.core.borrow().log.close_state();
        if !closed && (state != CloseState::Done || shard.in_flight.get() > 0) {
            startup.failed(RunError::Unflushed(shard.id));
            continue;
        }
        let log = shard.core.borrow_mut().log.take();
        if let Some(log) = log
            && let Err(error) = log.finish_close()
        {
            startup.failed(RunError::Close(error));
        }
    }
}

fn connections(executor: &Executor) -> impl Iterator<Item = Rc<crate::shard::connection::Connection>> + '_ {
    (0..executor.peers.slots()).filter_map(|slot| match executor.peers.at(slot) {
        Some(Peer::Connection(connection)) => Some(connection),
        _ => None,
    })
}

/// Waits until `done`, at most `within`. Whether it is done.
async fn until(within: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = clock::monotonic() + Nanos::from(within).0;
    loop {
        if done() {
            return true;
        }
        if clock::monotonic() >= deadline {
            return false;
        }
        runtime::sleep(LOOK_EVERY).await;
    }
}
