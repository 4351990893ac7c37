//! How long to wait before the next try: doubles from a first step to a longest one, with jitter so that clients that lost the same
//! broker do not all come back in the same instant. Sans-IO: it answers durations, the caller waits.

use std::hash::{BuildHasher, Hasher, RandomState};

use peregrine_protocol::ids::Nanos;

/// A series of growing delays, each drawn from the upper half of its step.
#[derive(Debug, Clone)]
pub struct BackOff {
    first: Nanos,
    longest: Nanos,
    attempts: u32,
    random: u64,
}

impl BackOff {
    /// A series that starts at `first` and never exceeds `longest`. The same seed gives the same series.
    pub fn new(first: Nanos, longest: Nanos, seed: u64) -> Self {
        Self { first, longest, attempts: 0, random: seed | 1 }
    }

    /// The next delay: in `[step / 2, step]`, where the step doubles with each call.
    pub fn next_delay(&mut self) -> Nanos {
        let doublings = self.attempts.min(32);
        let step = self.first.0.saturating_mul(1 << doublings).clamp(2, self.longest.0.max(2));
        self.attempts = self.attempts.saturating_add(1);
        Nanos(step / 2 + self.next_random() % (step / 2 + 1))
    }

    /// Starts the series again: something worked.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How often [`Self::next_delay`] was asked since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// xorshift64 (Marsaglia 2003): jitter needs spread, not secrecy.
    fn next_random(&mut self) -> u64 {
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        x
    }
}

/// A non-zero number that no other client is likely to draw: producer ids, client instances, jitter seeds. The standard library keys
/// its hash maps from the operating system's random source; a hasher of fresh keys passes that on.
pub fn random_identity() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_a_reset() {
        let mut series = BackOff::new(Nanos(1_000), Nanos(8_000), 7);
        for step in [1_000, 2_000, 4_000, 8_000, 8_000, 8_000] {
            let delay = series.next_delay().0;
            assert!((step / 2..=step).contains(&delay), "{delay} outside of step {step}");
        }
        series.reset();
        assert!(series.next_delay().0 <= 1_000);
        for _ in 0..100 {
            assert!(series.next_delay().0 <= 8_000);
        }
    }

    #[test]
    fn identities_differ() {
        assert_ne!(random_identity(), random_identity());
    }
}
