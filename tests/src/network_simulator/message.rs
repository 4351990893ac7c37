//! Messages that say which they are: a number in a section of its own, from which all else follows.

use peregrine_broker::log::disk::simulated::Random;
use peregrine_protocol::record::{Record, RecordDraft, SectionNumber};

/// Keys that are in use: few, so that each has several messages.
const KEYS: u64 = 5;
/// Tags that are in use.
const TAGS: [&str; 2] = ["odd", "even"];

/// The number of a message; no two messages of a simulation have the same.
pub type Number = u64;

/// What a message is made of.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub number: Number,
    pub key: Option<u64>,
    has_tag: bool,
    body: usize,
}

impl Message {
    /// One whose body has at most `body_max` bytes, usually far fewer.
    pub fn random(random: &mut Random, number: Number, usual: u64, body_max: u64) -> Self {
        let body = match random.below(24) {
            0 => 0,
            1 => random.between(body_max / 2, body_max),
            _ => random.below(usual + 1),
        };
        let key = random.coin().then(|| random.below(KEYS));
        Self { number, key, has_tag: random.one_in(3), body: body as usize }
    }

    pub fn random_key(random: &mut Random) -> u64 {
        random.below(KEYS)
    }

    pub fn key_bytes(key: u64) -> Vec<u8> {
        format!("key-{key}").into_bytes()
    }

    /// Its record with the zeros that fill it.
    pub fn record(&self) -> Vec<u8> {
        let key = self.key.map(Self::key_bytes);
        let body: Vec<u8> = (0..self.body).map(|at| (self.number as usize * 31 + at / 7) as u8).collect();
        let draft = RecordDraft {
            key: key.as_deref(),
            tag: self.has_tag.then(|| TAGS[(self.number % 2) as usize]),
            body: &body,
            trace_context: Some(&self.number.to_le_bytes()),
            ..RecordDraft::default()
        };
        let mut record = Vec::with_capacity(self.body + 96);
        draft.append_to(&mut record);
        record
    }

    /// The number that a record says it has.
    pub fn number_of(record: &Record<'_>) -> Option<Number> {
        record.section(SectionNumber::TraceContext)?.try_into().ok().map(u64::from_le_bytes)
    }
}
