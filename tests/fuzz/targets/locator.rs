//! `locator` of tests/src/fuzz.rs under libFuzzer.
#![no_main]

#[path = "../../src/fuzz.rs"]
#[allow(dead_code)]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::locator(data));
