//! Time, read in one place and handed to engine and log, which read no clock.
//!
//! Two readings that never go back: `monotonic`, from the process's first use, for ages and deadlines, and `wall`, since the
//! Unix epoch, for store times. The wall clock is read each time, so that an adjustment of it is followed; the engine sees to
//! it that store times never go back within a shard.

use crate::simulated::Scheduler;
use peregrine_protocol::ids::Nanos;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: OnceLock<Instant> = OnceLock::new();

/// What a simulated wall clock is ahead of its machine's: some time in 2023.
const SIMULATED_EPOCH: u64 = 1_700_000_000_000_000_000;

fn simulated_now() -> Option<u64> {
    Scheduler::with_here(|scheduler| scheduler.machine().now())
}

/// Nanoseconds since this process first asked; the same line for all executors.
pub fn monotonic() -> Nanos {
    if let Some(now) = simulated_now() {
        return Nanos(now);
    }
    let start = START.get_or_init(Instant::now);
    Nanos(start.elapsed().as_nanos() as u64)
}

/// Nanoseconds since the Unix epoch; zero on a machine whose clock stands before it.
pub fn wall() -> Nanos {
    if let Some(now) = simulated_now() {
        return Nanos(SIMULATED_EPOCH + now);
    }
    Nanos(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64))
}
