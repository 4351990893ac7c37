use proptest::prelude::*;

use super::*;
use crate::ids::*;

fn seal() -> EntrySeal {
    EntrySeal::new(&DirectorySecret(*b"0123456789abcdef"), ShardId(3))
}

fn batch() -> EntryHeader {
    EntryHeader {
        kind: EntryKind::Batch,
        flags: EntryFlags::for_level(DurableLevel::Synced),
        payload_crc: 0xA1B2_C3D4,
        length: 1000,
        record_count: 7,
        position: LogPosition(0x0102_0304_0506_0780),
        epoch: Epoch(9),
        topic: TopicId(5),
        queue: QueueId(6),
        producer_epoch: ProducerEpoch(2),
        base_offset: QueueOffset(77),
        store_time: Nanos(1_700_000_000_000_000_000),
        producer_id: ProducerId(0xDEAD_BEEF),
        sequence: Sequence(41),
    }
}

fn encoded(header: &EntryHeader) -> [u8; ENTRY_HEADER_LEN] {
    let mut bytes = [0xFF; ENTRY_HEADER_LEN];
    header.encode(seal(), &mut bytes);
    bytes
}

fn encoded_pad(pad: &PadHeader) -> [u8; PAD_HEADER_LEN] {
    let mut bytes = [0xFF; PAD_HEADER_LEN];
    pad.encode(seal(), &mut bytes);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of format version 1. If this fails, old logs can no longer be read: raise [`ENTRY_VERSION`] instead.
#[test]
fn golden_bytes_of_version_1() {
    assert_eq!(
        hex(&encoded(&batch())),
        concat!(
            "5067456e010120001f795969d4c3b2a1e803000007000000",
            "8007060504030201090000000000000005000000000000000600000002000000",
            "4d0000000000000000002a36fe9c9717efbeadde0000000029000000000000000000000000000000",
        )
    );
    let pad = PadHeader::filling(LogPosition(4096 - 192), LogPosition(4096), Epoch(9), LogPosition(2048), 0);
    assert_eq!(
        hex(&encoded_pad(&pad)),
        concat!(
            "5067456e01020000c237456b000000008000000000000000400f00000000000009000000000000000008000000000000",
            "00000000000000000000000000000000",
        )
    );
}

#[test]
fn lengths_fill_to_64() {
    assert_eq!([0, 32, 33, 96, 97].map(entry_len), [128, 128, 192, 192, 256]);
    let pad = PadHeader::filling(LogPosition(64), LogPosition(128), Epoch(1), LogPosition(0), 0);
    assert_eq!((pad.length, pad.len(), pad.end()), (0, 64, LogPosition(128)));
}

#[test]
fn zeros_and_short_slices_are_no_entries() {
    assert_eq!(Entry::decode(&[0; 4096], seal()), Err(EntryError::Magic));
    let bytes = encoded(&batch());
    for end in 0..bytes.len() {
        let needs = if end < PAD_HEADER_LEN { PAD_HEADER_LEN } else { ENTRY_HEADER_LEN };
        assert_eq!(Entry::decode(&bytes[..end], seal()), Err(EntryError::Short { needs }));
    }
}

#[test]
fn another_shard_or_directory_is_refused() {
    let bytes = encoded(&batch());
    assert_eq!(Entry::decode(&bytes, seal()), Ok(Entry::Full(batch())));
    for foreign in [
        EntrySeal::new(&DirectorySecret(*b"0123456789abcdef"), ShardId(4)),
        EntrySeal::new(&DirectorySecret(*b"0123456789abcdeg"), ShardId(3)),
    ] {
        assert_eq!(Entry::decode(&bytes, foreign), Err(EntryError::HeaderChecksum));
    }
}

/// A correct checksum does not excuse a field out of range.
#[test]
fn fields_out_of_range_are_refused_behind_a_good_checksum() {
    let resealed = |at: usize, value: u8| {
        let mut bytes = encoded(&batch());
        bytes[at] = value;
        let crc = seal().crc(&bytes, fields::HEADER_CRC);
        fields::put(&mut bytes, fields::HEADER_CRC, crc.to_le_bytes());
        Entry::decode(&bytes, seal())
    };
    assert_eq!(resealed(fields::KIND, 7), Err(EntryError::Kind(7)));
    assert_eq!(resealed(fields::VERSION, 2), Err(EntryError::Version(2)));
    assert_eq!(resealed(fields::RESERVED + 7, 1), Err(EntryError::Reserved));
    assert!(matches!(resealed(fields::FLAGS + 1, 0x80), Err(EntryError::Flags(_))));
    assert!(matches!(resealed(fields::LENGTH + 3, 0x80), Err(EntryError::Length(_))));
    assert!(matches!(resealed(fields::POSITION, 1), Err(EntryError::Position(_))));
}

#[test]
fn payload_is_checked_for_length_and_bytes() {
    let payload = b"payload";
    let header = EntryHeader { length: 7, payload_crc: crate::checksum::crc32(payload), ..batch() };
    assert_eq!(header.check_payload(payload), Ok(()));
    assert_eq!(header.check_payload(b"paylaod"), Err(EntryError::PayloadChecksum));
    assert_eq!(header.check_payload(b"payloa"), Err(EntryError::PayloadChecksum));
}

prop_compose! {
    fn any_header()(
        kind in prop_oneof![
            Just(EntryKind::Batch),
            Just(EntryKind::Catalogue),
            Just(EntryKind::Loss),
            Just(EntryKind::GroupOffsets),
            Just(EntryKind::QueueStarts),
        ],
        level in 1u8..=3,
        (payload_crc, length, record_count) in (any::<u32>(), 0..=ENTRY_PAYLOAD_MAX, any::<u32>()),
        (position, epoch, topic, queue) in (0..u64::MAX / 64, any::<u64>(), any::<u64>(), any::<u32>()),
        (producer_epoch, base_offset, store_time) in (any::<u32>(), any::<u64>(), any::<u64>()),
        (producer_id, sequence) in (any::<u64>(), any::<u64>()),
    ) -> EntryHeader {
        EntryHeader {
            kind,
            flags: DurableLevel::from_number(level).map_or(EntryFlags::NONE, EntryFlags::for_level),
            payload_crc,
            length,
            record_count,
            position: LogPosition(position * 64),
            epoch: Epoch(epoch),
            topic: TopicId(topic),
            queue: QueueId(queue),
            producer_epoch: ProducerEpoch(producer_epoch),
            base_offset: QueueOffset(base_offset),
            store_time: Nanos(store_time),
            producer_id: ProducerId(producer_id),
            sequence: Sequence(sequence),
        }
    }
}

proptest! {
    #[test]
    fn round_trip_and_no_flipped_bit_passes(header in any_header(), bit in 0..ENTRY_HEADER_LEN * 8) {
        let mut bytes = encoded(&header);
        prop_assert_eq!(Entry::decode(&bytes, seal()), Ok(Entry::Full(header)));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Entry::decode(&bytes, seal()).is_err());
    }

    #[test]
    fn pad_round_trip_and_no_flipped_bit_passes(
        (start, blocks) in (0..1u64 << 50, 1..1u64 << 20),
        (epoch, durable, node) in (any::<u64>(), any::<u64>(), any::<u64>()),
        bit in 0..PAD_HEADER_LEN * 8,
    ) {
        let (start, end) = (LogPosition(start * 64), LogPosition((start + blocks) * 64));
        let pad = PadHeader::filling(start, end, Epoch(epoch), LogPosition(durable), node);
        prop_assert_eq!(pad.end(), end);
        let mut bytes = encoded_pad(&pad);
        prop_assert_eq!(Entry::decode(&bytes, seal()), Ok(Entry::Pad(pad)));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Entry::decode(&bytes, seal()).is_err());
    }
}
