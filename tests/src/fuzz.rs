//! Fuzz bodies: each takes any bytes, hands them to a decoder, and panics where an answer contradicts the format.
//!
//! They are plain functions of the stable compiler. `tests/tests/fuzz.rs` runs them for a bounded time on mutated samples, and the
//! targets in `tests/fuzz/` hand them to libFuzzer, which is guided by coverage. Where a checksum guards what lies behind it, a body
//! also tries the input with the checksum put right: no mutation would ever guess it.
//!
//! This file imports nothing but the protocol, because `tests/fuzz/` includes it without the rest of this crate.

use peregrine_protocol::checksum::{crc32, crc32_after};
use peregrine_protocol::entry::{DirectorySecret, ENTRY_MAGIC, ENTRY_VERSION, Entry, EntrySeal, PadHeader};
use peregrine_protocol::frame::{self, Kind, Received};
use peregrine_protocol::ids::ShardId;
use peregrine_protocol::limits::{
    ENTRY_ALIGN, ENTRY_HEADER_LEN, FRAME_HEAD_LEN, PAD_HEADER_LEN, RECORD_ALIGN, RECORD_HEADER_LEN,
};
use peregrine_protocol::preamble::{PREAMBLE, PROTOCOL_VERSION, check_preamble};
use peregrine_protocol::record::{Batch, RecordDraft, push_property};

/// A body with its name and some inputs that its decoder accepts, from which mutations start.
pub struct Body {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Every body there is.
pub const BODIES: [Body; 4] = [
    Body { name: "preamble", run: preamble, samples: preamble_samples },
    Body { name: "frames", run: frames, samples: frame_samples },
    Body { name: "entry", run: entry, samples: entry_samples },
    Body { name: "batch", run: batch, samples: batch_samples },
];

/// Small, so that lengths near the bound are met.
const FRAME_MAX: u32 = 64 << 10;
const SECRET: DirectorySecret = DirectorySecret(*b"sixteen bytes of");
const SHARD: ShardId = ShardId(3);
/// Of an entry's header; both kinds have it there.
const HEADER_CRC_AT: usize = 8;

/// What is accepted is the one preamble there is, and no prefix of it is refused.
pub fn preamble(data: &[u8]) {
    match check_preamble(data) {
        Ok(true) => assert!(data.starts_with(&PREAMBLE), "another preamble was accepted"),
        Ok(false) => assert!(data.len() < PREAMBLE.len(), "a whole preamble was not decided on"),
        Err(_) => assert!(!PREAMBLE.starts_with(data), "a prefix of the preamble was refused"),
    }
}

fn preamble_samples() -> Vec<Vec<u8>> {
    vec![PREAMBLE.to_vec()]
}

/// Takes frames off the input, as a connection does: each lies within it, and encodes to the very same bytes.
pub fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(received) = frame::decode(rest, FRAME_MAX) {
        let frame = match received {
            Received::Frame(frame) => frame,
            Received::Missing(missing) => {
                assert!(missing > 0 && rest.len() + missing <= FRAME_MAX as usize, "{missing} bytes are waited for");
                break;
            }
        };
        assert!(frame.len() >= FRAME_HEAD_LEN && frame.len() <= rest.len(), "a frame outside of its input");
        if let (PROTOCOL_VERSION, Some(kind)) = (frame.head.version, Kind::from_number(frame.head.kind)) {
            let mut again = Vec::new();
            frame::encode(kind, frame.head.sender(), frame.head.correlation, frame.header, frame.body, &mut again);
            // A sender may fill with more than it needs; what it filled is zero either way.
            if again.len() == frame.len() {
                assert_eq!(again, rest[..frame.len()], "a frame with two encodings");
            }
        }
        rest = &rest[frame.len()..];
    }
}

fn frame_samples() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut samples = Vec::new();
    for (index, &kind) in Kind::ALL.iter().enumerate() {
        let mut one = Vec::new();
        let correlation = peregrine_protocol::ids::Correlation(index as u64);
        frame::encode(kind, frame::Sender::Client, correlation, &vec![1; index * 3], &vec![2; index * 5], &mut one);
        all.extend_from_slice(&one);
        samples.push(one);
    }
    samples.push(all);
    samples
}

/// A header that is accepted encodes to the same bytes, and says nothing that is out of range.
pub fn entry(data: &[u8]) {
    check_entry(data);
    let mut sealed = data.to_vec();
    // The kind tells the length that the checksum covers: try it as both.
    for len in [ENTRY_HEADER_LEN, PAD_HEADER_LEN] {
        if let Some(header) = sealed.get_mut(..len) {
            header[0..4].copy_from_slice(&ENTRY_MAGIC.to_le_bytes());
            header[4] = ENTRY_VERSION;
            header[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
            let mut initial = crc32(&SECRET.0);
            initial = crc32_after(initial, &SHARD.0.to_le_bytes());
            let crc = crc32_after(initial, header);
            header[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            check_entry(&sealed);
        }
    }
}

fn check_entry(data: &[u8]) {
    let seal = EntrySeal::new(&SECRET, SHARD);
    let Ok(entry) = Entry::decode(data, seal) else { return };
    assert!(entry.position().0.is_multiple_of(ENTRY_ALIGN) && entry.len().is_multiple_of(ENTRY_ALIGN), "{entry:?}");
    assert!(Entry::decode(data, EntrySeal::new(&SECRET, ShardId(4))).is_err(), "another shard's entry was accepted");
    match entry {
        Entry::Full(header) => {
            let mut bytes = [0; ENTRY_HEADER_LEN];
            header.encode(seal, &mut bytes);
            assert_eq!(bytes, data[..ENTRY_HEADER_LEN], "a header with two encodings");
            let _ = header.check_payload(&data[ENTRY_HEADER_LEN..]);
        }
        Entry::Pad(pad) => {
            let mut bytes = [0; PAD_HEADER_LEN];
            pad.encode(seal, &mut bytes);
            assert_eq!(bytes, data[..PAD_HEADER_LEN], "a pad with two encodings");
        }
    }
}

fn entry_samples() -> Vec<Vec<u8>> {
    use peregrine_protocol::ids::{Epoch, LogPosition};
    let seal = EntrySeal::new(&SECRET, SHARD);
    let mut pad = [0; PAD_HEADER_LEN];
    PadHeader::filling(LogPosition(4096 - 128), LogPosition(4096), Epoch(2), LogPosition(0), 7).encode(seal, &mut pad);
    let mut batch = vec![0; ENTRY_HEADER_LEN];
    batch[0..4].copy_from_slice(&ENTRY_MAGIC.to_le_bytes());
    batch[4] = ENTRY_VERSION;
    batch[5] = 1;
    vec![pad.to_vec(), batch]
}

/// The first four bytes are the number of records, the rest the batch: what is accepted holds that many, and each within it.
pub fn batch(data: &[u8]) {
    let Some((count, payload)) = data.split_first_chunk::<4>() else { return };
    let count = u32::from_le_bytes(*count);
    check_batch(payload, count);
    let mut mended = payload.to_vec();
    let held = mend_records(&mut mended);
    check_batch(&mended, held);
}

fn check_batch(payload: &[u8], count: u32) {
    let Ok(batch) = Batch::new(payload, count) else { return };
    let mut held = 0;
    for record in batch.records() {
        held += 1;
        let Ok(record) = record else { continue };
        assert!(record.bytes().len() <= batch.largest_record() as usize, "a record larger than the largest");
        assert!(record.body().len() <= record.bytes().len(), "a body larger than its record");
        let sections: usize = record.sections().map(|section| section.bytes.len()).sum();
        assert!(sections < record.bytes().len(), "sections larger than their record");
        let _ = (record.key(), record.tag(), record.born_time(), record.properties().count());
    }
    assert_eq!(held, count, "a batch of {count} records gave {held}");
    let sound = batch.check_contents().is_ok();
    assert!(!sound || batch.records().all(|record| record.is_ok()), "a sound batch with a broken record");
}

/// Puts right the checksum of each record that lies within the batch, and says how many there are.
fn mend_records(payload: &mut [u8]) -> u32 {
    let (mut rest, mut count) = (payload, 0);
    while let Some(length) = rest.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize) {
        let filled = length.next_multiple_of(RECORD_ALIGN);
        if length < RECORD_HEADER_LEN || filled > rest.len() {
            break;
        }
        let (record, after) = rest.split_at_mut(filled);
        let crc = crc32(&record[8..length]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        record[length..].fill(0);
        rest = after;
        count += 1;
    }
    count
}

fn batch_samples() -> Vec<Vec<u8>> {
    let mut properties = Vec::new();
    push_property(&mut properties, "colour", "blue");
    let drafts = [
        RecordDraft { body: b"plain", ..RecordDraft::default() },
        RecordDraft {
            key: Some(b"key"),
            tag: Some("tag"),
            properties: Some(&properties),
            body: b"with everything",
            priority: Some(4),
            reply_to: Some(b"answers"),
            ..RecordDraft::default()
        },
    ];
    let mut batch = 2u32.to_le_bytes().to_vec();
    let mut payload = Vec::new();
    for draft in &drafts {
        draft.append_to(&mut payload);
    }
    batch.append(&mut payload);
    vec![batch]
}
