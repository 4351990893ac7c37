//! The messages of the simulation: each is wholly given by its number, so that whoever reads one knows all that it must be.

use peregrine_broker::log::disk::simulated::Random;
use peregrine_protocol::record::{Batch, Record, RecordDraft};

use crate::simulator::{Violation, promise};

/// Different keys.
const KEYS: u64 = 5;

/// A message's bytes as a record.
pub fn record_of(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let len = match random.below(40) {
        0 => random.between(9_000, 30_000),
        1..=5 => random.between(400, 4_000),
        6 => 0,
        _ => random.below(300),
    };
    let mut body = number.to_le_bytes().to_vec();
    body.resize(8 + len as usize, 0);
    random.fill(&mut body[8..]);
    let key = key_of(number);
    let mut record = Vec::new();
    let tag = random.one_in(2).then_some("tagged");
    RecordDraft { key: key.as_deref(), tag, body: &body, ..RecordDraft::default() }.append_to(&mut record);
    record
}

/// Most messages have a key.
pub fn key_of(number: u64) -> Option<Vec<u8>> {
    let key = Random::new(number ^ 0x6B65_7973).below(KEYS + 1);
    (key < KEYS).then(|| format!("key-{key}").into_bytes())
}

/// A key at random.
pub fn any_key(random: &mut Random) -> Vec<u8> {
    format!("key-{}", random.below(KEYS)).into_bytes()
}

/// The numbers of the messages of a batch that somebody was given: whole, and as they were sent.
pub fn numbers_of(payload: &[u8], count: u32) -> Result<Vec<u64>, Violation> {
    let damaged = |error| Violation(format!("a batch was delivered damaged: {error}"));
    let batch = Batch::new(payload, count).map_err(damaged)?;
    batch.records().map(|record| number_of(&record.map_err(damaged)?)).collect()
}

/// The number of a message: it is that message, byte for byte.
fn number_of(record: &Record<'_>) -> Result<u64, Violation> {
    let Some(number) = record.body().first_chunk() else {
        return Err(Violation("a message was delivered that nobody sent: it has no number".to_owned()));
    };
    let number = u64::from_le_bytes(*number);
    let sent = record_of(number);
    // What is sent is filled to a multiple of eight bytes.
    let is_it = sent.starts_with(record.bytes()) && sent.len() - record.bytes().len() < 8;
    promise!(is_it, "message {number} was delivered with other bytes than it was sent with");
    Ok(number)
}
