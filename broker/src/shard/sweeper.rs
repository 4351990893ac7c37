//! The one timer of an executor that looks after all its connections: who has not said hello, whose frame or whose socket makes
//! no progress, whose buffers nobody needs. It also beats for the watchdog, and sees that the process is to stop.

use crate::limits::{
    FRAME_PROGRESS_WHEN_SHORT, FRAME_PROGRESS_WITHIN, HELLO_WITHIN, OUTPUT_PROGRESS_WITHIN, RECEIVE_FLOOR, SWEEP_EVERY,
    SWEEP_SLOTS,
};
use crate::shard::clock;
use crate::shard::connection::Connection;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::peers::Peer;
use crate::shard::runtime::{self, turn};
use crate::shard::watchdog::Watchdog;
use peregrine_protocol::ids::Nanos;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A connection that was quiet for so long gives its buffers back.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// A consumer that takes nothing for so long loses its block; it is read again when it goes on.
const COLD_BLOCK_AFTER: Duration = Duration::from_secs(1);

/// Runs as long as the executor; raises `stopping` when `stop` is set.
pub async fn run(executor: &Executor, watchdog: &Watchdog, stop: &AtomicBool, stopping: &Event) {
    let mut told = false;
    loop {
        runtime::sleep(SWEEP_EVERY).await;
        watchdog.beat(executor.index);
        if !told && stop.load(Ordering::Relaxed) {
            told = true;
            stopping.raise();
        }
        for shard in executor.local_shards() {
            shard.tick_groups(clock::monotonic());
        }
        sweep(executor).await;
    }
}

/// Looks at every connection once, a few in each turn.
async fn sweep(executor: &Executor) {
    let now = clock::monotonic();
    for slot in 0..executor.peers.slots() {
        if let Some(Peer::Connection(connection)) = executor.peers.at(slot) {
            look_after(executor, &connection, now);
        }
        if slot % SWEEP_SLOTS == SWEEP_SLOTS - 1 {
            turn().await;
        }
    }
}

fn look_after(executor: &Executor, connection: &Connection, now: Nanos) {
    let since = |at: Nanos| Duration::from_nanos(now.saturating_sub(at));
    let overdue = if !connection.greeted.get() && since(connection.accepted_at) > HELLO_WITHIN {
        Some("no hello")
    } else if connection.frame_since.get().is_some_and(|at| since(at) > FRAME_PROGRESS_WITHIN) {
        Some("a frame made no progress")
    } else if executor.receive.is_short()
        && connection.frame_bytes.get() > RECEIVE_FLOOR
        && !connection.waits_for_memory.get()
        && connection.frame_since.get().is_some_and(|at| since(at) > FRAME_PROGRESS_WHEN_SHORT)
    {
        Some("a frame made no progress while others wait for its memory")
    } else if connection.stuck_since.get().is_some_and(|at| since(at) > OUTPUT_PROGRESS_WITHIN) {
        Some("the client takes nothing")
    } else {
        None
    };
    if let Some(why) = overdue {
        tracing::debug!(why, "a connection is closed");
        executor.counters.closed_slow.set(executor.counters.closed_slow.get() + 1);
        connection.close();
        return;
    }
    if connection.stuck_since.get().is_some_and(|at| since(at) > COLD_BLOCK_AFTER) {
        executor.drop_cold(&connection.outlet);
    }
    if since(connection.last_used.get()) > IDLE_AFTER {
        connection.release_buffers();
        executor.drop_cold(&connection.outlet);
    }
}
