//! Which cores the generator runs on: those it was given, else those that no shard owns.

use std::ops::Range;
use std::thread::ScopedJoinHandle;

use core_affinity::CoreId;

use crate::generator::Idle;

/// The generator's threads and what they do while nothing is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// One thread per entry, pinned to that core; one thread that is not pinned where it is empty.
    pub pinned: Vec<usize>,
    /// Spins on cores of its own; sleeps where it shares them with the broker.
    pub idle: Idle,
}

impl Cores {
    /// Chooses: `given` cores if any, else those of `allowed` that are not in `shards`, one thread at most per producer
    /// or consumer (`threads_max`). A generator that shares a core with a shard sleeps.
    pub fn choose(given: &[usize], allowed: &[usize], shards: &[usize], threads_max: usize) -> Self {
        let mut pinned: Vec<usize> = if given.is_empty() {
            allowed.iter().copied().filter(|core| !shards.contains(core)).collect()
        } else {
            given.to_vec()
        };
        pinned.truncate(threads_max.max(1));
        let shares = pinned.is_empty() || pinned.iter().any(|core| shards.contains(core));
        Self { pinned, idle: if shares { Idle::Sleep } else { Idle::Spin } }
    }

    /// Generator threads.
    pub fn threads(&self) -> u32 {
        self.pinned.len().max(1) as u32
    }

    /// The numbers of the generator's threads.
    pub fn parts(&self) -> Range<u32> {
        0..self.threads()
    }

    /// Runs `work(part)` for each of `parts` on a thread of its own, the first on the first core and so on, and collects
    /// what they return. A thread's panic becomes the caller's.
    pub fn run<P: Send, R: Send>(&self, parts: impl IntoIterator<Item = P>, work: impl Fn(P) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let work = &work;
            let spawn = |(thread, part)| {
                scope.spawn(move || {
                    self.pin(thread);
                    work(part)
                })
            };
            let threads: Vec<_> = (0..).zip(parts).map(spawn).collect();
            let joined = threads.into_iter().map(ScopedJoinHandle::join);
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    /// Pins the calling thread as thread `thread` of the generator. `false` where the system refused.
    fn pin(&self, thread: usize) -> bool {
        self.pinned.get(thread).is_none_or(|core| core_affinity::set_for_current(CoreId { id: *core }))
    }
}

/// The cores that this process may use.
pub fn allowed() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// A thread per core needs no more than one on this machine where the broker's cores are not known: the first `shards`
/// of the allowed ones are taken to be theirs.
pub fn presumed_of_shards(shards: usize) -> Vec<usize> {
    allowed().into_iter().take(shards).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_spins_only_where_no_shard_is() {
        let free = Cores::choose(&[], &[0, 1, 2], &[0], 8);
        assert_eq!(free, Cores { pinned: vec![1, 2], idle: Idle::Spin });
        assert_eq!(Cores::choose(&[], &[0, 1, 2], &[0], 1).pinned, [1]);
        let none = Cores::choose(&[], &[0, 1], &[0, 1], 8);
        assert_eq!((none.threads(), none.idle), (1, Idle::Sleep));
        assert!(none.pin(0), "an unpinned thread needs no permission");
        assert_eq!(free.run(free.parts(), |thread| thread + 1), [1, 2]);
        assert_eq!(Cores::choose(&[1], &[0, 1], &[0, 1], 8), Cores { pinned: vec![1], idle: Idle::Sleep });
    }
}
