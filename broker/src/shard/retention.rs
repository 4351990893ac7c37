//! The task that keeps a shard's log within its bounds of age and bytes, and its topics within theirs, in the background queue.

use crate::engine::{Engine, StartsEntry};
use crate::limits::RETENTION_LOOK_EVERY;
use crate::log::{AppendRefused, CloseState};
use crate::retaining::{Retaining, RetentionBounds, RetentionOutcome};
use crate::retaining_topics::{RetainingTopics, TopicsTurn};
use crate::shard::clock;
use crate::shard::runtime::{self, turn};
use crate::shard::state::{Core, Shard, ShardLog};
use crate::shard::storage::ShardDisk;
use peregrine_protocol::ids::Nanos;
use std::rc::Rc;

/// Runs until the shard's log is closed.
pub async fn run(shard: Rc<Shard>, bounds: RetentionBounds) {
    let mut retaining = Retaining::new(bounds);
    let mut topics = RetainingTopics::default();
    while is_open(&shard) {
        let task = {
            let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
            retaining.next_task(engine, log, clock::monotonic(), clock::wall())
        };
        let has_task = task.is_some();
        if let Some(task) = task {
            let outcome = task.await;
            if !is_there(&shard) {
                return;
            }
            take_in(&shard, &mut retaining, outcome);
        }
        let (turned, has_appended) = {
            let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
            let before = log.tail();
            (topics.turn(engine, log, times(), append), log.tail() > before)
        };
        if has_task || has_appended {
            // What was appended is to be flushed, and a stop may have waited for what was unlinked.
            shard.work.raise();
        }
        match turned {
            TopicsTurn::Rests if !has_task => {
                runtime::sleep(RETENTION_LOOK_EVERY).await;
                continue;
            }
            TopicsTurn::Rests | TopicsTurn::More => {}
            TopicsTurn::Ask(task) => {
                let answer = task.await;
                if !is_there(&shard) {
                    return;
                }
                let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
                topics.answered(&answer, engine, log, times(), append);
                shard.work.raise();
            }
        }
        turn().await;
    }
}

fn take_in(shard: &Shard, retaining: &mut Retaining, outcome: RetentionOutcome<ShardDisk>) {
    let (before, after) = {
        let Core { engine, log, .. } = &mut *shard.core.borrow_mut();
        let before = log.counters();
        retaining.complete(outcome, engine, log, times(), append);
        (before, log.counters())
    };
    if after.retire_failures > before.retire_failures {
        tracing::warn!(shard = shard.id.0, "a segment could not be retired: tried again");
    }
    if after.retired > before.retired {
        tracing::info!(shard = shard.id.0, "a segment was given up, as retention asks");
    }
}

fn append(engine: &mut Engine, log: &mut ShardLog, entry: &StartsEntry) -> Result<(), AppendRefused> {
    let appended = log.append(&entry.draft, &entry.payload, clock::monotonic())?;
    let header = entry.draft.at(appended.position, log.epoch());
    if let Err(error) = engine.apply(&header, &entry.payload) {
        unreachable!("what was decided in this turn applies: {error}");
    }
    Ok(())
}

fn is_open(shard: &Shard) -> bool {
    let core = shard.core.borrow();
    !shard.closed.get() && core.log.get().is_some_and(|log| log.close_state() == CloseState::Open)
}

/// Whether it was not closed while something was read.
fn is_there(shard: &Shard) -> bool {
    shard.core.borrow().log.get().is_some()
}

/// The monotonic clock and that of store times.
fn times() -> (Nanos, Nanos) {
    (clock::monotonic(), clock::wall())
}
