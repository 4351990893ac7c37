//! A thread of its own that notices an executor which no longer turns.
//!
//! Each executor's sweeper beats; the watchdog counts its own ticks without a beat, not the clock, so that a stopped process or
//! a suspended machine is not taken for a hang. A hung shard answers nobody and holds its log's lock: what the threads wait for
//! is written down and the process ends, so that whoever supervises it can start it again. Nothing acknowledged is lost by that.

use crate::limits::HUNG_AFTER;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(500);

/// The beats of all executors.
#[derive(Debug)]
pub struct Watchdog {
    beats: Vec<AtomicU64>,
    ended: AtomicBool,
}

impl Watchdog {
    /// Starts watching `executors` executors, each of which beats from now on.
    pub fn start(executors: usize) -> std::io::Result<Arc<Self>> {
        let watchdog = Arc::new(Watchdog {
            beats: (0..executors).map(|_| AtomicU64::new(0)).collect(),
            ended: AtomicBool::new(false),
        });
        let watching = watchdog.clone();
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watching.watch())?;
        Ok(watchdog)
    }

    /// `executor` turns.
    pub fn beat(&self, executor: usize) {
        self.beats[executor].fetch_add(1, Ordering::Relaxed);
    }

    /// The executors are about to end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn watch(&self) {
        let allowed = (HUNG_AFTER.as_millis() / TICK.as_millis()) as u32;
        let mut seen: Vec<(u64, u32)> = vec![(0, 0); self.beats.len()];
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            for (executor, (last, missed)) in seen.iter_mut().enumerate() {
                let beats = self.beats[executor].load(Ordering::Relaxed);
                (*last, *missed) = if beats == *last { (beats, *missed + 1) } else { (beats, 0) };
                if *missed > allowed && !self.ended.load(Ordering::Relaxed) {
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

/// What each thread of this process waits for in the kernel.
fn report_threads() {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        tracing::error!(thread = read("comm").trim(), waits_in = read("wchan"), system_call = read("syscall").trim());
    }
}
