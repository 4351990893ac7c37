//! The task that takes a shard's checkpoints, in the background queue: one slice of the engine in each turn.

use crate::checkpointing::Checkpointing;
use crate::limits::{CHECKPOINT_LOOK_EVERY, CHECKPOINT_SLICE};
use crate::log::CloseState;
use crate::shard::clock;
use crate::shard::runtime::{self, turn};
use crate::shard::state::{Core, Shard};
use std::rc::Rc;

/// Runs until the shard's log is closed.
pub async fn run(shard: Rc<Shard>) {
    let mut checkpointing = Checkpointing::new(CHECKPOINT_SLICE);
    while !shard.closed.get() {
        let task = {
            let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
            checkpointing.next_task(engine, log, clock::monotonic())
        };
        let Some(task) = task else {
            if shard.core.borrow().log.get().is_none_or(|log| log.close_state() != CloseState::Open) {
                // What was under way is given up, and the stop waited for that.
                shard.work.raise();
                return;
            }
            // Nobody waits for a checkpoint: what makes one due, or lets it count, is looked at now and then.
            runtime::sleep(CHECKPOINT_LOOK_EVERY).await;
            continue;
        };
        let outcome = task.await;
        let completed = {
            let log = &mut shard.core.borrow_mut().log;
            checkpointing.complete(outcome, log, clock::monotonic())
        };
        match completed {
            Ok(None) => {}
            Ok(Some(begin)) => tracing::debug!(shard = shard.id.0, begin = begin.0, "a checkpoint was taken"),
            Err(error) => {
                tracing::warn!(shard = shard.id.0, %error, "a checkpoint could not be written: tried again later");
            }
        }
        turn().await;
    }
}
