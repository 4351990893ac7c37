//! The run's clock: nanoseconds since one instant that all threads of a run share.
//!
//! It reads `CLOCK_MONOTONIC` (through `std`), the one clock that two threads of a host may compare. Due instants,
//! answers and deliveries are all stamped by it; a wall clock is never used, a difference is never made positive.

use std::time::{Duration, Instant};

/// Nanoseconds on the run's clock.
pub type Ns = u64;

/// Nanoseconds in a second.
pub const SECOND: Ns = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: Ns = 1_000_000;
/// Nanoseconds in a microsecond.
pub const MICROSECOND: Ns = 1_000;

/// A clock that starts at 0 where it was made; copies of it agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads 0 now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since the clock's start.
    pub fn now(&self) -> Ns {
        self.origin.elapsed().as_nanos() as Ns
    }

    /// Sleeps until `instant`, or not at all where it has passed.
    pub fn sleep_until(&self, instant: Ns) {
        let now = self.now();
        if instant > now {
            std::thread::sleep(Duration::from_nanos(instant - now));
        }
    }
}
