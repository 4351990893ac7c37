//! What the executors tell each other and the main thread while they start and while they stop. A lock is right here: nobody
//! is served yet, or any more.
//!
//! ```text
//!   shard 0 recovers ─► its catalogue ─► the others recover ─► highest id of all ─► shard 0 ─► everybody serves
//! ```

use crate::engine::{CatalogueSnapshot, ObjectId};
use crate::shard::run::RunError;
use crate::shard::runtime::{self, turn};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often an executor looks whether the others are as far as it is.
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[derive(Default)]
struct State {
    catalogue: Option<CatalogueSnapshot>,
    /// Shards that have recovered, the highest id of a topic or group in any of them, and their messages that stood only in rings.
    recovered: u16,
    highest: ObjectId,
    messages: u64,
    /// Executors that read no requests any more.
    quiet: usize,
    /// Executors that have stopped.
    ended: usize,
    failures: Vec<RunError>,
}

/// Shared by all executors and the main thread.
pub struct Startup {
    shards: u16,
    executors: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Startup {
    pub fn new(shards: u16, executors: usize) -> Self {
        Startup { shards, executors, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Executors.

    /// Shard 0 has recovered: what topics there are.
    pub fn give_catalogue(&self, catalogue: CatalogueSnapshot) {
        self.state().catalogue = Some(catalogue);
    }

    /// The catalogue, once shard 0 has it. `None`: the start has failed.
    pub async fn catalogue(&self) -> Option<CatalogueSnapshot> {
        self.until(|state| state.catalogue.clone()).await
    }

    /// A shard has recovered.
    pub fn recovered(&self, highest: ObjectId, messages: u64) {
        let mut state = self.state();
        state.recovered += 1;
        state.highest = state.highest.max(highest);
        state.messages += messages;
        self.changed.notify_all();
    }

    /// The highest id of all shards, once all have recovered. `None`: the start has failed.
    pub async fn all_recovered(&self) -> Option<ObjectId> {
        self.until(|state| (state.recovered == self.shards).then_some(state.highest)).await
    }

    /// This executor reads no requests any more; waits until that is so for all.
    pub async fn all_quiet(&self) {
        self.state().quiet += 1;
        let _ = self.until(|state| (state.quiet >= self.executors).then_some(())).await;
    }

    /// A shard or an executor failed.
    pub fn failed(&self, error: RunError) {
        self.state().failures.push(error);
        self.changed.notify_all();
    }

    /// This executor has stopped.
    pub fn ended(&self) {
        self.state().ended += 1;
        self.changed.notify_all();
    }

    async fn until<T>(&self, done: impl Fn(&State) -> Option<T>) -> Option<T> {
        loop {
            {
                let state = self.state();
                if let Some(value) = done(&state) {
                    return Some(value);
                }
                if !state.failures.is_empty() {
                    return None;
                }
            }
            runtime::sleep(LOOK_EVERY).await;
            turn().await;
        }
    }

    // The main thread.

    /// Waits until every shard has recovered: how many messages stood only in rings.
    pub fn wait_recovered(&self) -> Result<u64, RunError> {
        let mut state = self.state();
        loop {
            if !state.failures.is_empty() {
                // Those of the others say only that they were not the first.
                let first = std::mem::replace(&mut state.failures[0], RunError::Aborted);
                return Err(first);
            }
            if state.recovered == self.shards {
                return Ok(state.messages);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Once every shard has recovered: how many messages stood only in rings.
    pub fn is_recovered(&self) -> Option<u64> {
        let state = self.state();
        (state.failures.is_empty() && state.recovered == self.shards).then_some(state.messages)
    }

    /// Once every executor has stopped, or the start has failed: all that went wrong.
    pub fn is_ended(&self) -> Option<Vec<RunError>> {
        let mut state = self.state();
        let failed_start = state.recovered < self.shards && !state.failures.is_empty();
        (state.ended == self.executors || failed_start).then(|| std::mem::take(&mut state.failures))
    }

    /// Waits until every executor has stopped; all that went wrong.
    pub fn wait_ended(&self) -> Vec<RunError> {
        let mut state = self.state();
        while state.ended < self.executors {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut state.failures)
    }
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::ids::ShardId;

    use super::*;

    /// The last one was told: where another executor gave up before the main thread looked, that was all that was said.
    #[test]
    fn of_several_failures_the_first_is_told() {
        let startup = Startup::new(2, 2);
        startup.failed(RunError::Unflushed(ShardId(7)));
        startup.failed(RunError::Aborted);
        assert!(matches!(startup.wait_recovered(), Err(RunError::Unflushed(ShardId(7)))));
    }
}
