//! The stamp that opens each message body, by which its reader verifies the whole of it.
//!
//! ```text
//!   0        4        8          16        24          28       32            40        48
//!   ├────────┼────────┼──────────┼─────────┼───────────┼────────┼─────────────┼─────────┼─────────
//!   │ magic  │ CRC of │ run      │ index   │ producer  │ queue  │ sequence in │ due     │ content …
//!   │        │ 8..end │ id       │         │           │        │ the lane    │ instant │
//! ```
//!
//! Little endian. Whoever reads a body needs nothing but it: the due instant gives the latency, the index and the lane
//! give its place, the checksum covers every byte. What of it the schedule can derive is compared with the schedule too.

use crate::clock::Ns;
use crate::schedule::{Place, Schedule};

/// Bytes of a stamp: the smallest message.
pub const STAMP_BYTES: usize = 48;

const MAGIC: u32 = u32::from_le_bytes(*b"PGLG");

/// What a message says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run that made it: a random number per run.
    pub run: u64,
    /// Its index in the run.
    pub index: u64,
    /// The lane it was sent on, and its number there.
    pub place: Place,
    /// The instant at which it was due.
    pub due: Ns,
}

/// Why a body is not one of this run's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Too short for a stamp, or the magic number or the checksum is wrong.
    #[error("the body's bytes are not those that were sent")]
    Bytes,
    /// A whole message, of another run or with another place than the schedule gives it.
    #[error("the body is whole, but is not the message that belongs there")]
    Foreign,
}

impl Stamp {
    /// The stamp of message `index`.
    pub fn of(run: u64, schedule: &Schedule, index: u64) -> Self {
        Self { run, index, place: schedule.place(index), due: schedule.due(index) }
    }

    /// Writes the stamp over the first bytes of `body`, whose content must stand already: the checksum covers it.
    pub fn seal(&self, body: &mut [u8]) {
        assert!(body.len() >= STAMP_BYTES, "a body holds at least its stamp");
        body[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        body[8..16].copy_from_slice(&self.run.to_le_bytes());
        body[16..24].copy_from_slice(&self.index.to_le_bytes());
        body[24..28].copy_from_slice(&self.place.producer.to_le_bytes());
        body[28..32].copy_from_slice(&self.place.queue.to_le_bytes());
        body[32..40].copy_from_slice(&self.place.sequence.to_le_bytes());
        body[40..48].copy_from_slice(&self.due.to_le_bytes());
        let checksum = crc32fast::hash(&body[8..]);
        body[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the stamp of `body` and checks it against the run.
    pub fn verify(run: u64, schedule: &Schedule, body: &[u8]) -> Result<Self, Corrupt> {
        if body.len() < STAMP_BYTES || u32_at(body, 0) != MAGIC || u32_at(body, 4) != crc32fast::hash(&body[8..]) {
            return Err(Corrupt::Bytes);
        }
        let stamp = Self {
            run: u64_at(body, 8),
            index: u64_at(body, 16),
            place: Place { producer: u32_at(body, 24), queue: u32_at(body, 28), sequence: u64_at(body, 32) },
            due: u64_at(body, 40),
        };
        if stamp.run != run || stamp.index >= schedule.messages() || stamp != Self::of(run, schedule, stamp.index) {
            return Err(Corrupt::Foreign);
        }
        Ok(stamp)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    #[test]
    fn a_stamp_comes_back_and_any_flipped_byte_is_seen() {
        let schedule = Schedule { rate: 100, warmup: 0, duration: SECOND, producers: 3, queues: 4, start: 5 };
        let stamp = Stamp::of(9, &schedule, 42);
        let mut body = vec![7; 100];
        stamp.seal(&mut body);
        assert_eq!(Stamp::verify(9, &schedule, &body), Ok(stamp));
        assert_eq!(Stamp::verify(8, &schedule, &body), Err(Corrupt::Foreign));
        for at in 0..body.len() {
            body[at] ^= 0x10;
            assert_eq!(Stamp::verify(9, &schedule, &body), Err(Corrupt::Bytes), "byte {at}");
            body[at] ^= 0x10;
        }
        assert_eq!(Stamp::verify(9, &schedule, &body[..99]), Err(Corrupt::Bytes));
        assert_eq!(Stamp::verify(9, &schedule, &[]), Err(Corrupt::Bytes));
        let mut wrong_place = Stamp::of(9, &schedule, 42);
        wrong_place.place.sequence += 1;
        wrong_place.seal(&mut body);
        assert_eq!(Stamp::verify(9, &schedule, &body), Err(Corrupt::Foreign));
    }
}
