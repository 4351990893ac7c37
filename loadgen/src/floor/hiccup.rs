//! How late an idle spinning thread comes to the run's due instants: the machine's own pauses (interrupts, other
//! processes, a hypervisor that takes the core away), as a message would meet them.

use crate::clock::{Clock, Ns, SECOND};
use crate::latency::Latencies;

/// Spins for `span` and records, for each instant due at `rate` a second, how late it was seen.
pub fn measure(clock: Clock, rate: u64, span: Ns) -> Latencies {
    let mut latencies = Latencies::new();
    let start = clock.now();
    for index in 0..(u128::from(span) * u128::from(rate) / u128::from(SECOND)) as u64 {
        let due = start + index * SECOND / rate;
        let mut now = clock.now();
        while now < due {
            std::hint::spin_loop();
            now = clock.now();
        }
        latencies.record(now - due);
    }
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;

    #[test]
    fn every_due_instant_is_seen_once() {
        assert_eq!(measure(Clock::start(), 10_000, 20 * MILLISECOND).count(), 200);
    }
}
