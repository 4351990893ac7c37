//! The fuzz bodies on the stable compiler, for `FUZZ_SECONDS` in all (a few by default): mutated samples and plain noise, from a seed
//! that is printed. `scripts/fuzz` runs the same bodies under libFuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use peregrine_tests::fuzz::{BODIES, Body};

const SECONDS_DEFAULT: u64 = 4;
/// Inputs between two looks at the clock.
const INPUTS_PER_LOOK: u32 = 64;
const NOISE_LEN_MAX: usize = 512;

#[test]
fn no_input_breaks_a_decoder() {
    let seconds =
        std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(SECONDS_DEFAULT);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed
        .unwrap_or_else(|| u64::from(std::process::id()) << 32 | u64::from(Instant::now().elapsed().subsec_nanos()));
    println!("replay with FUZZ_SEED={seed}");
    let each = Duration::from_secs(seconds) / BODIES.len() as u32;
    for body in &BODIES {
        let inputs = fuzz(body, each, seed);
        println!("{}: {inputs} inputs in {each:?}", body.name);
    }
}

/// Runs the body for this long, and says on how many inputs.
fn fuzz(body: &Body, time: Duration, seed: u64) -> u64 {
    let samples = (body.samples)();
    let mut random = Random(seed | 1);
    for sample in &samples {
        run(body, sample);
    }
    let mut inputs = samples.len() as u64;
    let started = Instant::now();
    while started.elapsed() < time {
        for _ in 0..INPUTS_PER_LOOK {
            let input = if random.below(8) == 0 { random.noise() } else { mutated(&samples, &mut random) };
            run(body, &input);
        }
        inputs += u64::from(INPUTS_PER_LOOK);
    }
    inputs
}

fn run(body: &Body, input: &[u8]) {
    let passed = catch_unwind(AssertUnwindSafe(|| (body.run)(input))).is_ok();
    assert!(passed, "the body {:?} failed on these {} bytes: {input:02x?}", body.name, input.len());
}

/// One of the samples with some changes: flipped bits, telling values, cuts, doubled and inserted parts.
fn mutated(samples: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = samples[random.below(samples.len())].clone();
    for _ in 0..=random.below(4) {
        if input.is_empty() {
            return random.noise();
        }
        let at = random.below(input.len());
        match random.below(6) {
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => {
                let value = [0, 1, 7, 8, 12, 96, 4096, u32::MAX, u32::MAX - 7, 1 << 31][random.below(10)];
                input.iter_mut().skip(at).zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            }
            3 => input.truncate(at),
            4 => input.extend_from_within(at..),
            _ => {
                let noise = random.noise();
                input.splice(at..at, noise.into_iter().take(24));
            }
        }
    }
    input
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 32) as usize % bound
    }

    fn noise(&mut self) -> Vec<u8> {
        (0..self.below(NOISE_LEN_MAX)).map(|_| self.next() as u8).collect()
    }
}
