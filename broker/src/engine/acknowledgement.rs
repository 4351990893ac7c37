//! Who waits for the log to reach a position at a level: producers for their acknowledgement, catalogue changes for their entry.
//!
//! The shard owns one of these beside its engine and log. `T` is whatever brings the answer back to its asker. One queue per
//! level, in order of position, so that a move of published or durable costs only what it releases.

use std::collections::VecDeque;

use peregrine_protocol::ids::{DurableLevel, LogPosition};

/// Answers held back until the log's positions allow them.
#[derive(Debug)]
pub struct Acknowledgements<T> {
    memory: VecDeque<Waiter<T>>,
    synced: VecDeque<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    end: LogPosition,
    token: T,
}

impl<T> Default for Acknowledgements<T> {
    fn default() -> Self {
        Self { memory: VecDeque::new(), synced: VecDeque::new() }
    }
}

impl<T> Acknowledgements<T> {
    /// Holds `token` back until the log has reached `end` at `level`. A duplicate of an older batch (a lower `end` than the
    /// newest waiter's) waits with the newest one: never too early, at most a flush too late, and the queue stays in order.
    pub fn wait(&mut self, level: DurableLevel, end: LogPosition, token: T) {
        let queue = match level {
            DurableLevel::Memory => &mut self.memory,
            DurableLevel::Synced => &mut self.synced,
            DurableLevel::Replicated => unreachable!("decide refuses a level that this broker does not offer"),
        };
        let end = queue.back().map_or(end, |newest| newest.end.max(end));
        queue.push_back(Waiter { end, token });
    }

    /// The next token that may be answered, oldest first, `synced` before `memory`; `None` when there is none.
    pub fn next_released(&mut self, published: LogPosition, durable: LogPosition) -> Option<T> {
        assert!(durable <= published, "what is durable was published before");
        take(&mut self.synced, durable).or_else(|| take(&mut self.memory, published))
    }

    /// After poison: every token, since none of them will be released.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.synced.drain(..).chain(self.memory.drain(..)).map(|waiter| waiter.token)
    }

    pub fn len(&self) -> usize {
        self.memory.len() + self.synced.len()
    }

    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.synced.is_empty()
    }
}

fn take<T>(queue: &mut VecDeque<Waiter<T>>, reached: LogPosition) -> Option<T> {
    if queue.front()?.end > reached {
        return None;
    }
    queue.pop_front().map(|waiter| waiter.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use DurableLevel::{Memory, Synced};

    /// Releases after published and durable moved there, in order.
    #[track_caller]
    fn check(waiting: &mut Acknowledgements<u32>, published: u64, durable: u64, expected: &[u32]) {
        let released: Vec<u32> =
            std::iter::from_fn(|| waiting.next_released(LogPosition(published), LogPosition(durable))).collect();
        assert_eq!(released, expected);
    }

    #[test]
    fn a_level_is_answered_by_its_own_position() {
        let mut waiting = Acknowledgements::default();
        waiting.wait(Synced, LogPosition(128), 1);
        waiting.wait(Memory, LogPosition(256), 2);
        waiting.wait(Synced, LogPosition(384), 3);
        check(&mut waiting, 128, 0, &[]);
        check(&mut waiting, 384, 127, &[2]);
        check(&mut waiting, 384, 128, &[1]);
        check(&mut waiting, 384, 384, &[3]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_duplicate_of_an_older_batch_is_never_answered_early() {
        let mut waiting = Acknowledgements::default();
        waiting.wait(Synced, LogPosition(512), 1);
        waiting.wait(Synced, LogPosition(128), 2);
        check(&mut waiting, 512, 128, &[]);
        check(&mut waiting, 512, 512, &[1, 2]);
        waiting.wait(Synced, LogPosition(128), 3);
        check(&mut waiting, 512, 512, &[3]);
    }

    #[test]
    fn poison_gives_every_waiter_back() {
        let mut waiting = Acknowledgements::default();
        waiting.wait(Memory, LogPosition(64), 1);
        waiting.wait(Synced, LogPosition(128), 2);
        assert_eq!(waiting.drain().collect::<Vec<_>>(), [2, 1]);
        assert_eq!(waiting.len(), 0);
    }
}
