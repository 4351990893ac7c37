//! What is held, dropped, lost and put back of where batches stand.

use super::*;
use proptest::prelude::*;

fn index_of(entries: &[IndexEntry]) -> QueueIndex {
    let mut index = QueueIndex::default();
    for entry in entries {
        index.push(entry);
    }
    index
}

/// Batches from (hole before, records, position step, length, time step).
fn entries(steps: &[(u64, u32, u64, u32, u64)]) -> Vec<IndexEntry> {
    let (mut offset, mut position, mut time) = (0, 0, 1_700_000_000_000_000_000);
    let mut entries = Vec::new();
    for &(hole, records, step, length, wait) in steps {
        offset += hole;
        position += (step + 1) * ENTRY_ALIGN;
        time += wait;
        entries.push(IndexEntry {
            offset: QueueOffset(offset),
            records,
            position: LogPosition(position),
            length,
            store_time: Nanos(time),
        });
        offset += u64::from(records);
    }
    entries
}

fn steps() -> impl Strategy<Value = Vec<(u64, u32, u64, u32, u64)>> {
    let hole = prop_oneof![20 => Just(0u64), 1 => 1u64..1000];
    let position = prop_oneof![5 => 0u64..40, 1 => 0u64..1 << 40];
    let wait = prop_oneof![3 => Just(0u64), 3 => 0u64..5_000, 1 => 0u64..1 << 50];
    prop::collection::vec((hole, 1u32..50, position, 0u32..1 << 22, wait), 0..300)
}

proptest! {
    #[test]
    fn every_batch_is_found_again(steps in steps()) {
        let entries = entries(&steps);
        let index = index_of(&entries);
        prop_assert_eq!(index.iter().collect::<Vec<_>>(), entries.clone());
        for (at, entry) in entries.iter().enumerate() {
            for offset in [entry.offset.0, entry.end().0 - 1] {
                prop_assert_eq!(index.next(&mut index.seek(QueueOffset(offset))), Some(*entry));
            }
            prop_assert_eq!(index.next(&mut index.seek(entry.end())), entries.get(at + 1).copied());
            for time in [entry.store_time.0 - 1, entry.store_time.0, entry.store_time.0 + 1] {
                let expected = entries.iter().find(|other| other.store_time.0 >= time).copied();
                prop_assert_eq!(index.at_time(Nanos(time)), Ok(expected.map(|entry| entry.offset)));
            }
        }
    }

    #[test]
    fn a_cursor_stays_good_while_batches_are_added(steps in steps()) {
        let mut index = QueueIndex::default();
        let mut cursor = index.seek(QueueOffset(0));
        for entry in entries(&steps) {
            prop_assert_eq!(index.next(&mut cursor), None);
            index.push(&entry);
            prop_assert_eq!(index.next(&mut cursor), Some(entry));
        }
    }
}

proptest! {
    #[test]
    fn what_is_dropped_are_the_oldest_and_who_stands_behind_them_goes_on(steps in steps(), at in 0..300usize) {
        let entries = entries(&steps);
        let at = at.min(entries.len());
        let position = entries.get(at).map_or(LogPosition(u64::MAX), |entry| entry.position);
        let mut index = index_of(&entries);
        let mut cursors = vec![index.seek(QueueOffset(0))];
        for _ in &entries {
            let mut next = cursors[cursors.len() - 1];
            index.next(&mut next);
            cursors.push(next);
        }
        index.drop_below(position);
        let dropped = entries.len() - index.iter().count();
        prop_assert_eq!(index.iter().collect::<Vec<_>>(), &entries[dropped..]);
        prop_assert!(dropped <= at && at - dropped < limits::INDEX_CHUNK_BATCHES as usize);
        for (number, cursor) in cursors.iter().enumerate() {
            let next = number.checked_sub(1).map_or(QueueOffset(0), |last| entries[last].end());
            prop_assert_eq!(index.is_held(next), number >= dropped);
            if index.is_held(next) {
                prop_assert_eq!(index.next_at(&mut cursor.clone(), next), entries.get(number).copied());
            }
        }
        let late = entries.get(dropped).map_or(Nanos(u64::MAX), |entry| entry.store_time);
        for entry in &entries[..dropped] {
            let found = index.at_time(entry.store_time);
            prop_assert!(found == Err(NotHeld) || entry.store_time >= late);
        }
        let end = entries.last().map_or(QueueOffset(0), IndexEntry::end);
        let next = IndexEntry { offset: end, records: 1, position: LogPosition(1 << 60), length: 1, store_time: Nanos(u64::MAX) };
        index.push(&next);
        if let Some(cursor) = cursors.last_mut() {
            prop_assert_eq!(index.next_at(cursor, end), Some(next));
        }
    }

    #[test]
    fn chunks_make_the_index_again(steps in steps()) {
        let index = index_of(&entries(&steps));
        let mut numbers = index.chunk_numbers();
        let last = numbers.next_back().and_then(|number| index.chunk(number)).cloned();
        let restored = QueueIndex::restored(index.last_position(), index.last_time(), last);
        let mut restored = restored.expect("it was one");
        for number in numbers {
            let chunk = index.chunk(number).cloned().expect("it has that number");
            prop_assert!(restored.restore_chunk(chunk.clone()));
            prop_assert!(!restored.restore_chunk(chunk), "not twice");
        }
        prop_assert_eq!(restored.iter().collect::<Vec<_>>(), index.iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_chunk_of_any_bytes_is_checked(encoded in prop::collection::vec(any::<u8>(), 0..40), batches in 0..6u32, end in 0..300u64) {
        let chunk = Chunk { end_offset: end, batches, encoded, ..Chunk::default() };
        let restored = QueueIndex::restored(LogPosition(u64::MAX), Nanos(u64::MAX), Some(chunk));
        if let Some(restored) = restored {
            prop_assert_eq!(restored.iter().count(), batches as usize);
        }
    }

    #[test]
    fn what_is_lost_is_taken_out(steps in steps(), from in 0..300usize, lost in 1..40usize) {
        let entries = entries(&steps);
        let lost = from.min(entries.len())..(from + lost).min(entries.len());
        let Some(last) = entries.get(lost.clone()).and_then(|lost| lost.last()) else { return Ok(()) };
        let mut index = index_of(&entries);
        let first = index.lose(&(entries[lost.start].position..last.position + 1));
        prop_assert_eq!(first, Some(entries[lost.start]));
        let last = entries[entries.len() - 1];
        let next = IndexEntry { offset: last.end(), position: last.position + 64, ..last };
        index.push(&next);
        let mut left = entries;
        left.drain(lost);
        left.push(next);
        prop_assert_eq!(index.iter().collect::<Vec<_>>(), left);
    }
}

#[test]
fn a_steady_queue_costs_about_eight_bytes_a_batch() {
    let steps: Vec<_> = (0..64_000).map(|step| (0, 1, 17 + step % 3, 1100, 50_000 + step)).collect();
    let index = index_of(&entries(&steps));
    assert!(index.heap_bytes() < 64_000 * 11, "{} bytes", index.heap_bytes());
}
