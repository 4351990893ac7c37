//! The task that keeps a shard's log within its bounds of age and bytes, in the background queue.

use crate::limits::RETENTION_LOOK_EVERY;
use crate::log::CloseState;
use crate::retaining::{Retaining, RetentionBounds};
use crate::shard::clock;
use crate::shard::runtime::turn;
use crate::shard::state::{Core, Shard};
use std::rc::Rc;

/// Runs until the shard's log is closed.
pub async fn run(shard: Rc<Shard>, bounds: RetentionBounds) {
    let mut retaining = Retaining::new(bounds);
    while !shard.closed.get() {
        let task = {
            let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
            if log.get().is_none_or(|log| log.close_state() != CloseState::Open) {
                return;
            }
            retaining.next_task(engine, log, clock::monotonic(), clock::wall())
        };
        let Some(task) = task else {
            glommio::timer::sleep(RETENTION_LOOK_EVERY).await;
            continue;
        };
        let outcome = task.await;
        let retired = {
            let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
            if log.get().is_none() {
                // Closed while an index was read.
                return;
            }
            let before = log.counters();
            retaining.complete(outcome, engine, log, (clock::monotonic(), clock::wall()), |engine, log, entry| {
                let appended = log.append(&entry.draft, &entry.payload, clock::monotonic())?;
                let header = entry.draft.at(appended.position, log.epoch());
                if let Err(error) = engine.apply(&header, &entry.payload) {
                    unreachable!("what was decided in this turn applies: {error}");
                }
                Ok(())
            });
            let after = log.counters();
            if after.retire_failures > before.retire_failures {
                tracing::warn!(shard = shard.id.0, "a segment could not be unlinked: tried again");
            }
            after.retired - before.retired
        };
        if retired > 0 {
            tracing::info!(shard = shard.id.0, "a segment was given up, as retention asks");
        }
        // What was appended is to be flushed, and a stop may have waited for what was unlinked.
        shard.work.raise();
        turn().await;
    }
}
