//! What an index finds is what a plain list of the segment's entries finds.

use std::collections::BTreeMap;

use peregrine_protocol::entry::{Codec, EntryKind};
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, TopicId};
use proptest::prelude::*;

use super::segment::{BASE, Bench, Draft, FIRST_TIME, small_bounds};
use crate::limits;
use crate::log::disk::Disk;
use crate::log::index::builder::Bounds;
use crate::log::index::{IndexCounts, IndexedBatch, KeyHash, QueueSpan, SegmentIndex};

/// What is put into a segment.
#[derive(Clone, Debug)]
enum Piece {
    Batch {
        topic: u64,
        queue: u32,
        hole: u64,
        codec: Codec,
        keys: Vec<Option<Vec<u8>>>,
        body: usize,
    },
    /// A batch whose payload is no records.
    Noise(Vec<u8>),
    Other(EntryKind, usize),
    Pad(u64),
    Wait(u64),
}

fn pieces(len: usize) -> impl Strategy<Value = Vec<Piece>> {
    let key = prop_oneof![
        2 => Just(None),
        5 => (0u8..12).prop_map(|key| Some(vec![key; usize::from(key)])),
        1 => prop::collection::vec(any::<u8>(), 0..9).prop_map(Some),
    ];
    let codec = prop_oneof![9 => Just(Codec::None), 1 => Just(Codec::Zstd)];
    let hole = prop_oneof![9 => Just(0u64), 1 => 1u64..1 << 40];
    let body = prop_oneof![12 => 0usize..300, 1 => 0usize..200_000];
    let keys = prop::collection::vec(key, 1..6);
    let batch = (1u64..4, 0u32..3, hole, codec, keys, body)
        .prop_map(|(topic, queue, hole, codec, keys, body)| Piece::Batch { topic, queue, hole, codec, keys, body });
    let kind = prop_oneof![Just(EntryKind::Catalogue), Just(EntryKind::GroupOffsets), Just(EntryKind::Loss)];
    let piece = prop_oneof![
        20 => batch,
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Piece::Noise),
        2 => (kind, 0usize..500).prop_map(|(kind, len)| Piece::Other(kind, len)),
        2 => (1u64..100).prop_map(|units| Piece::Pad(units * 64)),
        8 => prop_oneof![0u64..3, 0u64..1 << 40].prop_map(Piece::Wait),
    ];
    prop::collection::vec(piece, 0..len)
}

fn draft_of(pieces: &[Piece]) -> Draft {
    let mut draft = Draft::new();
    for piece in pieces {
        match piece {
            Piece::Batch { topic, queue, hole, codec, keys, body } => {
                draft.push_batch(*topic, *queue, *hole, *codec, keys, *body);
            }
            Piece::Noise(payload) => draft.push_payload(1, 0, 0, Codec::None, 1, payload),
            Piece::Other(kind, len) => draft.push_other(*kind, &vec![9; *len]),
            Piece::Pad(len) => draft.push_pad(*len),
            Piece::Wait(nanos) => draft.time += *nanos,
        }
    }
    draft
}

/// Asks an index everything and compares with the list.
pub async fn check<D: Disk>(index: &SegmentIndex<D>, draft: &Draft) {
    for topic in (0..5).map(TopicId) {
        for queue in (0..4).map(QueueId) {
            check_queue(index, draft, topic, queue).await;
        }
    }
    for max in [1, 2, 5, usize::MAX] {
        check_ends(index, draft, max).await;
    }
    for (topic, key, _) in &draft.keys {
        let expected: Vec<_> = draft.keys.iter().filter(|(t, k, _)| (t, k) == (topic, key)).map(|k| k.2).collect();
        let hash = KeyHash::of(*topic, key);
        assert_eq!(index.lookup_key(hash, LogPosition(0), usize::MAX).await.unwrap(), expected);
        for (n, &position) in expected.iter().enumerate() {
            let from = index.lookup_key(hash, position, 2).await.unwrap();
            assert_eq!(from, expected[n..].iter().copied().take(2).collect::<Vec<_>>());
            let behind = index.lookup_key(hash, position + 1, 1).await.unwrap();
            assert_eq!(behind, expected[n + 1..].iter().copied().take(1).collect::<Vec<_>>());
        }
    }
    let absent = KeyHash::of(TopicId(9), b"absent");
    assert_eq!(index.lookup_key(absent, LogPosition(0), usize::MAX).await.unwrap(), []);
    check_entries(index, draft).await;
}

/// Page by page.
async fn check_ends<D: Disk>(index: &SegmentIndex<D>, draft: &Draft, max: usize) {
    let mut expected = BTreeMap::new();
    for (topic, queue, batch) in &draft.batches {
        expected.insert((*topic, *queue), batch.end());
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = index.queue_ends(after, max).await.unwrap();
        assert!(page.len() <= max);
        let Some(last) = page.last() else { break };
        after = Some((last.topic, last.queue));
        found.extend(page.iter().map(|end| ((end.topic, end.queue), end.end)));
    }
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "in pages of {max}");
}

async fn check_queue<D: Disk>(index: &SegmentIndex<D>, draft: &Draft, topic: TopicId, queue: QueueId) {
    let of_queue = |(t, q, _): &&(TopicId, QueueId, IndexedBatch)| (*t, *q) == (topic, queue);
    let batches: Vec<_> = draft.batches.iter().filter(of_queue).map(|(_, _, batch)| *batch).collect();
    assert_eq!(index.lookup(topic, queue, QueueOffset(0), usize::MAX).await.unwrap(), batches);
    assert_eq!(index.lookup(topic, queue, QueueOffset(u64::MAX), usize::MAX).await.unwrap(), []);
    let span = batches.first().zip(batches.last()).map(|(&first, &last)| QueueSpan { first, last });
    assert_eq!(index.queue_span(topic, queue).await.unwrap(), span);
    for batch in &batches {
        let offsets = [batch.offset.0.saturating_sub(1), batch.offset.0, batch.end().0 - 1, batch.end().0];
        for from in offsets.map(QueueOffset) {
            let expected: Vec<_> = batches.iter().filter(|batch| batch.end() > from).take(3).copied().collect();
            assert_eq!(index.lookup(topic, queue, from, 3).await.unwrap(), expected, "from {from}");
        }
        let time = batch.store_time.0;
        for time in [0, time - 1, time, time + 1].map(Nanos) {
            let expected = batches.iter().find(|batch| batch.store_time >= time).copied();
            assert_eq!(index.lookup_time(topic, queue, time).await.unwrap(), expected, "at {time}");
        }
    }
    assert_eq!(index.lookup_time(topic, queue, Nanos::MAX).await.unwrap(), None);
}

/// From where the index says, it is never far to the entry that holds a position.
async fn check_entries<D: Disk>(index: &SegmentIndex<D>, draft: &Draft) {
    for &(start, end) in &draft.entries {
        for position in [start, start + (end - start) / 2, LogPosition(end.0 - 1)] {
            let from = index.entry_at(position).await.unwrap();
            let first = draft.entries.iter().position(|entry| entry.0 == from).expect("an entry starts there");
            let passed = draft.entries[first..].iter().skip(1).filter(|entry| entry.0 <= start);
            let stretch = BASE + (position - BASE) / limits::INDEX_STRETCH * limits::INDEX_STRETCH;
            assert!(from <= start, "{from} for {position}");
            assert!(draft.entries[first].1 > stretch, "no entry ends before the stretch begins");
            assert!(passed.clone().all(|entry| entry.0 >= stretch), "all but the first start in it");
        }
    }
}

fn counts(draft: &Draft) -> IndexCounts {
    IndexCounts {
        batches: draft.batches.len() as u64,
        records: draft.batches.iter().map(|(_, _, batch)| u64::from(batch.records)).sum(),
        keys: draft.keys.len() as u64,
        ..IndexCounts::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn all_is_found_that_the_segment_holds(pieces in pieces(80), is_small in any::<bool>()) {
        let draft = draft_of(&pieces);
        let bench = Bench::of(&draft);
        let bounds = if is_small { small_bounds() } else { Bounds::default() };
        let report = bench.build(bounds).unwrap();
        let index = bench.open().unwrap();
        prop_assert_eq!(index.counts(), report.counts);
        prop_assert_eq!(bench.machine.file_names(0), [draft.identity().name().to_string(), report.name]);
        let opaque = pieces.iter().filter(|piece| {
            matches!(piece, Piece::Noise(_) | Piece::Batch { codec: Codec::Zstd, .. })
        });
        let others = pieces.iter().filter(|piece| matches!(piece, Piece::Other(..))).count();
        let expected = IndexCounts {
            opaque_batches: opaque.count() as u64,
            entries: (draft.batches.len() + others) as u64,
            ..counts(&draft)
        };
        prop_assert_eq!(report.counts, expected);
        bench.machine.block_on(check(&index, &draft));
    }
}

#[test]
fn trees_of_three_levels_find_all() {
    let mut draft = Draft::new();
    for n in 0..30_000_u64 {
        draft.time = Nanos(FIRST_TIME + n * 1_000_000_007);
        // Each in a queue of its own, so that a leaf holds few rows; many keys, so that there are many leaves of these.
        let keys: Vec<_> = (0..6).map(|key| Some((n * 6 + key).to_le_bytes().to_vec())).collect();
        draft.push_batch((n * 7919 % 30_011) << 40, 0, 0, Codec::None, &keys, 0);
    }
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let index = bench.open().unwrap();
    assert_eq!(index.heights(), (vec![3], vec![3]));
    bench.machine.block_on(async {
        for (topic, queue, batch) in draft.batches.iter().step_by(97) {
            assert_eq!(index.lookup(*topic, *queue, batch.offset, 9).await.unwrap(), [*batch]);
            assert_eq!(index.lookup(*topic, *queue, batch.end(), 9).await.unwrap(), []);
            let at = index.lookup_time(*topic, *queue, batch.store_time).await.unwrap();
            assert_eq!(at, Some(*batch));
        }
        for (topic, key, position) in draft.keys.iter().step_by(97) {
            let found = index.lookup_key(KeyHash::of(*topic, key), LogPosition(0), 9).await.unwrap();
            assert_eq!(found, [*position]);
        }
    });
}

/// Many batches of one queue, in several leaves, were stored at the same time: the first of them is meant.
#[test]
fn the_first_of_many_batches_of_one_time_is_found() {
    let mut draft = Draft::new();
    for n in 0..9000_u64 {
        draft.time = Nanos(FIRST_TIME + n / 3000);
        draft.push_batch(1, 0, n % 100 / 99, Codec::None, &[None], 0);
    }
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let index = bench.open().unwrap();
    bench.machine.block_on(async {
        for n in 0..3 {
            let at = index.lookup_time(TopicId(1), QueueId(0), Nanos(FIRST_TIME + n)).await.unwrap();
            assert_eq!(at, Some(draft.batches[n as usize * 3000].2));
        }
        for (_, _, batch) in draft.batches.iter().step_by(17) {
            let before = index.lookup(TopicId(1), QueueId(0), QueueOffset(batch.offset.0.saturating_sub(1)), 2).await;
            assert!(before.unwrap().contains(batch));
        }
    });
}

/// Whoever wants more than one answer holds asks again behind the last.
#[test]
fn one_look_up_finds_a_bounded_number() {
    let mut draft = Draft::new();
    let key = [Some(b"the one".to_vec())];
    for _ in 0..limits::INDEX_FOUND_MAX + 300 {
        draft.push_batch(1, 0, 0, Codec::None, &key, 0);
    }
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let index = bench.open().unwrap();
    bench.machine.block_on(async {
        let found = index.lookup(TopicId(1), QueueId(0), QueueOffset(0), usize::MAX).await.unwrap();
        let rest = index.lookup(TopicId(1), QueueId(0), found.last().unwrap().end(), usize::MAX).await.unwrap();
        assert_eq!((found.len(), rest.len()), (limits::INDEX_FOUND_MAX, 300));
        let hash = KeyHash::of(TopicId(1), b"the one");
        let found = index.lookup_key(hash, LogPosition(0), usize::MAX).await.unwrap();
        let rest = index.lookup_key(hash, *found.last().unwrap() + 8, usize::MAX).await.unwrap();
        assert_eq!((found.len(), rest.len()), (limits::INDEX_FOUND_MAX, 300));
    });
}

/// The hash is part of the format.
#[test]
fn a_key_has_the_hash_that_it_always_had() {
    assert_eq!(KeyHash::of(TopicId(1), b"key"), KeyHash(12_600_123_603_330_508_979));
    assert_ne!(KeyHash::of(TopicId(1), b"key"), KeyHash::of(TopicId(2), b"key"));
}
