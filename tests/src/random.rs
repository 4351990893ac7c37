//! Random numbers from a seed that a failing test prints: SplitMix64 (Steele, Lea, Flood 2014).

use std::time::{SystemTime, UNIX_EPOCH};

/// The variable that makes a run repeat another one's choices.
const SEED_VARIABLE: &str = "PEREGRINE_TEST_SEED";

#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// From the seed in the environment, or a fresh one; says which, so that a failure's output holds it.
    pub fn for_test() -> Self {
        let given = std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().expect("the seed is a number"));
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
        });
        eprintln!("{SEED_VARIABLE}={seed}");
        Random(seed)
    }

    /// Another one with choices of its own, which follow from this one's.
    pub fn fork(&mut self) -> Self {
        Random(self.below(u64::MAX))
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}
