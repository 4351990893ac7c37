//! A thread of its own that notices an executor which no longer turns.
//!
//! Each executor's sweeper beats; the watchdog counts its own ticks without a beat, not the clock, so that a stopped process or
//! a suspended machine is not taken for a hang. Nor is an executor that wants to run and gets no core: what counts as well is the
//! time that its thread had for itself, running or waiting for something that is no core. A hung shard answers nobody and holds
//! its log's lock: what the threads wait for is written down and the process ends, so that whoever supervises it can start it
//! again. Nothing acknowledged is lost by that.

use crate::limits::{HUNG_AFTER, HUNG_OWN_TIME};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(500);

/// What is known of one executor.
#[derive(Debug, Default)]
struct Watched {
    beats: AtomicU64,
    /// Its thread, in /proc. Unset until it runs.
    thread: OnceLock<PathBuf>,
}

/// The beats of all executors.
#[derive(Debug)]
pub struct Watchdog {
    executors: Vec<Watched>,
    ended: AtomicBool,
}

impl Watchdog {
    /// Starts watching `executors` executors, each of which beats from now on.
    pub fn start(executors: usize) -> std::io::Result<Arc<Self>> {
        let watchdog = Arc::new(Self::asleep(executors));
        let watching = watchdog.clone();
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watching.watch())?;
        Ok(watchdog)
    }

    /// One that watches nobody: time stands still in a simulation while it is not looked at.
    pub fn asleep(executors: usize) -> Self {
        Watchdog { executors: (0..executors).map(|_| Watched::default()).collect(), ended: AtomicBool::new(false) }
    }

    /// The calling thread is `executor`'s.
    pub fn runs_here(&self, executor: usize) {
        if let Some(thread) = this_thread() {
            let _ = self.executors[executor].thread.set(thread);
        }
    }

    /// `executor` turns.
    pub fn beat(&self, executor: usize) {
        self.executors[executor].beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The executors are about to end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn watch(&self) {
        let mut silences = vec![Silence::default(); self.executors.len()];
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            for (executor, (watched, silence)) in self.executors.iter().zip(&mut silences).enumerate() {
                let usage = watched.thread.get().and_then(|thread| Usage::of(thread));
                let hung = silence.tick(watched.beats.load(Ordering::Relaxed), usage);
                if hung && !self.ended.load(Ordering::Relaxed) {
                    tracing::error!(
                        executor,
                        seconds = HUNG_AFTER.as_secs(),
                        "an executor does not turn any more; ending"
                    );
                    report_threads();
                    // Gives the log's writer thread time to write that down.
                    std::thread::sleep(TICK);
                    std::process::abort();
                }
            }
        }
    }
}

/// What a thread has had so far of its core.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// It runs, or would run if it had a core.
    runnable: bool,
    ran: Duration,
    /// How long it waited for a core before each time that it ran.
    waited: Duration,
}

impl Usage {
    /// None where the kernel does not say.
    fn of(thread: &Path) -> Option<Self> {
        let stat = std::fs::read_to_string(thread.join("stat")).ok()?;
        // The name before the state is in parentheses and may hold any others.
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        let schedule = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        let mut times = schedule.split_whitespace().map(|nanos| nanos.parse().map(Duration::from_nanos));
        Some(Usage { runnable: state == 'R', ran: times.next()?.ok()?, waited: times.next()?.ok()? })
    }
}

/// An executor's ticks since its last beat.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    beats: u64,
    ticks: u32,
    /// What of them its thread had for itself.
    own: Duration,
    usage: Option<Usage>,
}

impl Silence {
    /// A tick later. True if the executor is hung: it was silent for [`HUNG_AFTER`], and not for want of a core.
    fn tick(&mut self, beats: u64, usage: Option<Usage>) -> bool {
        let before = std::mem::replace(&mut self.usage, usage);
        if beats != self.beats {
            (self.beats, self.ticks, self.own) = (beats, 0, Duration::ZERO);
            return false;
        }
        self.ticks += 1;
        self.own += match (before, usage) {
            (Some(before), Some(now)) if now.runnable => now.ran.saturating_sub(before.ran).min(TICK),
            (Some(before), Some(now)) => TICK.saturating_sub(now.waited.saturating_sub(before.waited)),
            _ => TICK,
        };
        TICK * self.ticks > HUNG_AFTER && self.own >= HUNG_OWN_TIME
    }
}

/// The calling thread's directory in /proc.
fn this_thread() -> Option<PathBuf> {
    std::fs::read_link("/proc/thread-self").ok().map(|thread| Path::new("/proc").join(thread))
}

/// What each thread of this process waits for in the kernel.
fn report_threads() {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        tracing::error!(thread = read("comm").trim(), waits_in = read("wchan"), system_call = read("syscall").trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// After how many ticks of silence an executor is taken for hung whose thread runs and waits for a core for so many
    /// milliseconds of each.
    fn hung_after(runnable: bool, ran_ms: u64, waited_ms: u64) -> Option<u32> {
        let mut silence = Silence::default();
        (1..=1000).find(|&tick| {
            let [ran, waited] = [ran_ms, waited_ms].map(|each| Duration::from_millis(each) * tick);
            silence.tick(0, Some(Usage { runnable, ran, waited }))
        })
    }

    /// Ten seconds without a core were taken for a hang, and the process ended.
    #[test]
    fn an_executor_that_gets_no_core_is_not_hung_and_one_that_does_not_use_it_is() {
        const AT_ONCE: Option<u32> = Some(21);
        // It waits for something that never comes, runs in circles alone, or shares its core with nine others.
        assert_eq!(hung_after(false, 0, 0), AT_ONCE);
        assert_eq!(hung_after(true, 500, 0), AT_ONCE);
        assert_eq!(hung_after(true, 50, 0), AT_ONCE);
        // It stood in the queue of its core; the kernel adds that up only when it gets there.
        assert_eq!(hung_after(true, 0, 0), None);
        assert!(hung_after(true, 10, 490).is_some_and(|ticks| ticks > 50));
        assert!(hung_after(false, 0, 499).is_none_or(|ticks| ticks > 50));
        // Nothing is known of it.
        let mut silence = Silence::default();
        assert_eq!((1..=1000).find(|_| silence.tick(0, None)), AT_ONCE);
        // A beat begins anew.
        let mut silence = Silence::default();
        assert_eq!((1..=1000).find(|tick| silence.tick(tick / 20, None)), None);
    }

    #[test]
    fn a_thread_that_runs_is_told_from_one_that_waits() {
        let (say, said) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || {
            say.send(this_thread().expect("/proc")).expect("somebody listens");
            let _ = released.recv();
        });
        let other = said.recv().expect("a thread");
        while Usage::of(&other).expect("figures").runnable {
            std::thread::yield_now();
        }
        let here = this_thread().expect("/proc");
        let first = Usage::of(&here).expect("figures");
        assert!(first.runnable);
        while Usage::of(&here).expect("figures").ran == first.ran {}
        drop(release);
        waiting.join().expect("no panic");
    }
}
