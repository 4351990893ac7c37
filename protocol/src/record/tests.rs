use proptest::prelude::*;

use super::*;
use crate::ids::Nanos;
use crate::limits::RECORD_HEADER_LEN;

fn payload(drafts: &[RecordDraft<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for draft in drafts {
        let start = bytes.len();
        draft.append_to(&mut bytes);
        assert_eq!((bytes.len() - start) as u64, draft.len().next_multiple_of(8));
    }
    bytes
}

/// The bytes of one record of format version 1: key `k`, body `body!`.
#[test]
fn golden_bytes_of_version_1() {
    let bytes = payload(&[RecordDraft { key: Some(b"k"), body: b"body!", ..Default::default() }]);
    let mut expected = vec![34, 0, 0, 0];
    expected.extend(3_130_739_044u32.to_le_bytes());
    expected.extend([0, 0, 2, 0]);
    expected.extend([1, 0, 0, 0, 1, 0, 0, 0, b'k']);
    expected.extend([4, 0, 0, 0, 5, 0, 0, 0, b'b', b'o', b'd', b'y', b'!']);
    expected.extend([0; 6]);
    assert_eq!(bytes, expected);
}

#[test]
fn all_known_sections_come_back() {
    let mut properties = Vec::new();
    assert!(push_property(&mut properties, "colour", "blue"));
    assert!(push_property(&mut properties, "", ""));
    assert!(!push_property(&mut properties, &"x".repeat(65_536), ""));
    let draft = RecordDraft {
        key: Some(b"key"),
        tag: Some("tag"),
        properties: Some(&properties),
        body: b"body",
        born_time: Some(Nanos(1)),
        deliver_at: Some(Nanos(2)),
        expires_at: Some(Nanos(3)),
        priority: Some(9),
        reply_to: Some(b"reply"),
        transaction: Some(b"tx"),
        trace_context: Some(b"trace"),
    };
    let bytes = payload(&[RecordDraft::default(), draft]);
    let batch = Batch::new(&bytes, 2).unwrap();
    assert_eq!(batch.check_contents(), Ok(()));
    assert_eq!(u64::from(batch.largest_record()), draft.len());
    let records: Vec<_> = batch.records().map(Result::unwrap).collect();
    assert_eq!((records[0].body(), records[0].key(), records[0].payload_offset()), (&b""[..], None, 0));
    let record = &records[1];
    assert_eq!(record.payload_offset(), 24);
    assert_eq!((record.key(), record.tag(), record.body()), (Some(&b"key"[..]), Some("tag"), &b"body"[..]));
    assert_eq!(record.properties().collect::<Result<Vec<_>, _>>(), Ok(vec![("colour", "blue"), ("", "")]));
    assert_eq!(record.born_time(), Some(Nanos(1)));
    assert_eq!(record.instant(SectionNumber::DeliverAt), Some(Nanos(2)));
    assert_eq!(record.instant(SectionNumber::ExpiresAt), Some(Nanos(3)));
    assert_eq!(record.section(SectionNumber::Priority), Some(&[9][..]));
    assert_eq!(record.section(SectionNumber::TraceContext), Some(&b"trace"[..]));
    assert_eq!(record.sections().count(), 11);
}

/// Builds one record by hand with a good checksum, so that what the checksum cannot see is seen.
fn record(attributes: u16, count: u16, sections: &[u8]) -> Vec<u8> {
    let mut bytes = ((RECORD_HEADER_LEN + sections.len()) as u32).to_le_bytes().to_vec();
    let mut tail = attributes.to_le_bytes().to_vec();
    tail.extend(count.to_le_bytes());
    tail.extend(sections);
    bytes.extend(crc32fast::hash(&tail).to_le_bytes());
    bytes.extend(tail);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn check_one(bytes: &[u8]) -> Result<(), RecordError> {
    Batch::new(bytes, 1)?.check_contents()
}

#[test]
fn what_a_good_checksum_does_not_excuse() {
    let unknown = [200, 0, 0, 0, 2, 0, 0, 0, 7, 7];
    assert_eq!(check_one(&record(0, 1, &unknown)), Ok(()), "unknown sections are kept");
    assert_eq!(check_one(&record(1, 1, &unknown)), Err(RecordError::Attributes(1)));
    assert_eq!(check_one(&record(0, 2, &unknown)), Err(RecordError::Length));
    assert_eq!(check_one(&record(0, 0, &unknown)), Err(RecordError::Length));
    assert_eq!(check_one(&record(0, 65, &[])), Err(RecordError::SectionCount(65)));
    assert_eq!(check_one(&record(0, 1, &[200, 0, 1, 0, 0, 0, 0, 0])), Err(RecordError::Reserved));
    assert_eq!(check_one(&record(0, 1, &[5, 0, 0, 0, 0, 0, 0, 0])), Err(RecordError::SectionLength(5)));
    assert_eq!(check_one(&record(0, 1, &[3, 0, 0, 0, 1, 0, 0, 0, 1])), Err(RecordError::Property));
    let twice = [4, 0, 0, 0, 0, 0, 0, 0].repeat(2);
    assert_eq!(check_one(&record(0, 2, &twice)), Err(RecordError::SectionOrder));
}

#[test]
fn counts_must_be_right() {
    let bytes = payload(&[RecordDraft::default(); 3]);
    assert!(Batch::new(&bytes, 3).is_ok());
    assert!(matches!(Batch::new(&bytes, 2), Err(RecordError::Count { said: 2, held: 3 })));
    assert!(matches!(Batch::new(&[], 0), Err(RecordError::Count { said: 0, held: 0 })));
    let many = payload(&[RecordDraft::default()]).repeat(RECORDS_MAX as usize + 1);
    assert!(matches!(Batch::new(&many, RECORDS_MAX + 1), Err(RecordError::Count { .. })));
    assert!(Batch::new(&many[24..], RECORDS_MAX).is_ok());
}

proptest! {
    #[test]
    fn round_trip_every_prefix_and_every_flipped_bit(
        bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), prop::option::of("[a-z]{0,9}")), 1..5),
    ) {
        let drafts: Vec<_> = bodies
            .iter()
            .map(|(body, key)| RecordDraft { key: key.as_ref().map(String::as_bytes), body, ..Default::default() })
            .collect();
        let bytes = payload(&drafts);
        let count = drafts.len() as u32;
        let batch = Batch::new(&bytes, count).unwrap();
        for (record, (body, key)) in batch.records().zip(&bodies) {
            let record = record.unwrap();
            prop_assert_eq!(record.body(), &body[..]);
            prop_assert_eq!(record.key(), key.as_ref().map(String::as_bytes));
        }
        for end in 0..bytes.len() {
            prop_assert!(Batch::new(&bytes[..end], count).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Batch::new(&flipped, count).is_err() || Batch::new(&flipped, count).unwrap().check_contents().is_err());
        }
    }
}
