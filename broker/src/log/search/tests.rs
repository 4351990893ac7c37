//! What a search finds is what a plain list of the segment's entries and keys finds, with an index and without.

use super::{KeyAsked, KeySearch, Next, Records, SearchError, SearchWindow, SearchedLog};
use crate::log::damage::Extent;
use crate::log::disk::simulated::SimulatedDisk;
use crate::log::error::ReadError;
use crate::log::index::tests::segment::{BASE, Bench, Draft, FIRST_TIME, mixed};
use crate::log::index::{KeyHash, LogIndexes, SealedSegment};
use peregrine_protocol::entry::{Codec, EntrySeal};
use peregrine_protocol::ids::{LogPosition, Nanos, TopicId};
use peregrine_protocol::limits::{ENTRY_HEADER_LEN, PAD_HEADER_LEN};
use std::cell::Cell;
use std::ops::{Deref, Range};

/// A draft as a log: what is below `split` can be read from the disk alone, what is above from the ring alone.
struct Drafted<'a> {
    draft: &'a Draft,
    split: LogPosition,
    rests: Cell<u64>,
}

impl<'a> Drafted<'a> {
    fn new(draft: &'a Draft, split: LogPosition) -> Self {
        Self { draft, split, rests: Cell::new(0) }
    }
}

impl SearchedLog for &Drafted<'_> {
    fn seal(&self) -> EntrySeal {
        self.draft.options.seal()
    }

    fn stretch(&self, position: LogPosition) -> Option<Range<LogPosition>> {
        (position < self.draft.end()).then(|| BASE..self.draft.end())
    }

    async fn read(
        &self,
        position: LogPosition,
        need: usize,
        wish: usize,
    ) -> Result<Box<dyn Deref<Target = [u8]>>, ReadError> {
        let end = if position < self.split { self.split } else { self.draft.end() };
        let len = wish.min((end - position) as usize);
        if position < BASE || len < need {
            return Err(ReadError::NotInLog(position));
        }
        let at = (position - BASE) as usize;
        Ok(Box::new(self.draft.bytes[at..at + len].to_vec()))
    }

    async fn rest(&self) {
        self.rests.set(self.rests.get() + 1);
    }
}

/// Where entries begin, some of which a log may be split at.
fn splits(draft: &Draft) -> Vec<LogPosition> {
    let starts = draft.entries.iter().map(|&(start, _)| start);
    [BASE].into_iter().chain(starts.step_by(7)).chain([draft.end()]).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures_lite::future::block_on(future)
}

#[test]
fn every_position_leads_to_the_entry_around_it() {
    let draft = mixed();
    for split in splits(&draft) {
        let log = Drafted::new(&draft, split);
        let mut window = SearchWindow::new(&log);
        for &(start, end) in &draft.entries {
            // All of a long one would take long.
            let step = ((end - start) / 50).next_multiple_of(8).max(8);
            for position in (start.0..end.0).step_by(step as usize).chain([end.0 - 8]).map(LogPosition) {
                let found = block_on(window.entry_around(position)).unwrap();
                assert_eq!(found.map(|entry| entry.position()), Some(start), "{position}");
            }
        }
        for outside in [BASE.0 - 8, 0, draft.end().0, u64::MAX] {
            assert_eq!(block_on(window.entry_around(LogPosition(outside))).unwrap(), None);
        }
    }
}

#[test]
fn a_payload_that_holds_headers_deceives_nobody() {
    let mut draft = Draft::new();
    draft.push_batch(1, 0, 0, Codec::None, &[Some(b"k".to_vec())], 100);
    let header = draft.bytes[..ENTRY_HEADER_LEN].to_vec();
    // A header at each place where one may begin, copied from the log itself.
    let mut payload = vec![0; 32];
    while payload.len() < 8000 {
        payload.extend_from_slice(&header[..64]);
    }
    draft.push_payload(1, 0, 0, Codec::None, 1, &payload);
    let (start, end) = draft.entries[1];
    let log = Drafted::new(&draft, draft.end());
    let mut window = SearchWindow::new(&log);
    for position in (start.0..end.0).step_by(8).map(LogPosition) {
        let found = block_on(window.entry_around(position)).unwrap();
        assert_eq!(found.map(|entry| entry.position()), Some(start), "{position}");
    }
}

/// The indexes of a log whose only sealed segment is this one.
fn indexes(bench: &Bench, is_made: bool) -> LogIndexes<SimulatedDisk> {
    let indexes = LogIndexes::new(bench.disk.clone(), bench.options.clone(), vec![bench.segment.clone()]);
    if is_made {
        let work = indexes.next_work(Nanos(0)).unwrap();
        let made = bench.machine.block_on(work.run());
        indexes.made(made, Nanos(0));
        assert_eq!(indexes.counts(), (1, 1));
    }
    indexes
}

fn asked(topic: TopicId, key: &[u8]) -> KeyAsked {
    KeyAsked { topic, key: key.into(), begin: Nanos::ZERO, end: Nanos::MAX }
}

/// Where the records stand that a search from `from` on finds.
async fn find(
    log: &Drafted<'_>,
    indexes: &LogIndexes<SimulatedDisk>,
    asked: KeyAsked,
    from: LogPosition,
) -> Result<Vec<LogPosition>, SearchError> {
    let mut search = KeySearch::new(indexes.clone(), asked, from);
    let mut window = SearchWindow::new(log);
    let mut found = Vec::new();
    loop {
        match search.next(&mut window).await? {
            Next::End => return Ok(found),
            Next::Passed => {}
            Next::Batch(header) => {
                window.check_payload(&header).await?;
                let mut records = Records::of(&header);
                while let Some(record) = window.next_record(&mut records).await? {
                    if record.position >= search.from() && window.has_key(&record, search.key()).await? {
                        found.push(record.position);
                    }
                }
                search.passed(header.end());
            }
        }
    }
}

#[test]
fn a_search_finds_the_records_of_a_key_and_no_others() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    for is_made in [true, false] {
        let indexes = indexes(&bench, is_made);
        for split in splits(&draft).into_iter().step_by(3) {
            let log = Drafted::new(&draft, split);
            let mut keys: Vec<_> = draft.keys.iter().map(|(topic, key, _)| (*topic, key.clone())).collect();
            keys.sort();
            keys.dedup();
            keys.push((TopicId(2), b"k".to_vec()));
            keys.push((TopicId(3), b"long".to_vec()));
            for (topic, key) in keys {
                let of_key = draft.keys.iter().filter(|(of, is, _)| (of, is) == (&topic, &key));
                let expected: Vec<_> = of_key.map(|(_, _, position)| *position).collect();
                let last = LogPosition(draft.end().0 - 8);
                for from in [BASE, BASE + 8, BASE + 5_003, last, draft.end()] {
                    let found = bench.machine.block_on(find(&log, &indexes, asked(topic, &key), from)).unwrap();
                    let expected: Vec<_> = expected.iter().copied().filter(|at| at.0 >= from.0 / 8 * 8).collect();
                    assert_eq!(found, expected, "key {key:?} of topic {topic} from {from}, index: {is_made}");
                }
            }
            assert!(log.rests.get() > 0, "it lets others have their turn");
        }
    }
}

#[test]
fn a_search_keeps_to_its_times() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    let time = |n: u64| Nanos(FIRST_TIME + n * 1_000_000);
    for is_made in [true, false] {
        let indexes = indexes(&bench, is_made);
        let log = Drafted::new(&draft, draft.end());
        let find = |begin, end| {
            let asked = KeyAsked { begin, end, ..asked(TopicId(1), b"k\x01") };
            bench.machine.block_on(find(&log, &indexes, asked, LogPosition(0))).unwrap().len()
        };
        // Batches 6, 16, 26 and 36 have it.
        assert_eq!(find(Nanos::ZERO, Nanos::MAX), 4);
        assert_eq!((find(time(6), time(36)), find(time(7), time(37)), find(time(17), time(26))), (3, 3, 0));
        assert_eq!((find(time(40), Nanos::MAX), find(time(16), time(16))), (0, 0));
    }
}

/// A pad that fills the ring's end is shorter than the header of another entry: who looked for more than there was before it had
/// reached the disk was told that the log is damaged.
#[test]
fn a_short_pad_at_the_end_of_the_ring_is_no_damage() {
    let mut draft = Draft::new();
    draft.push_batch(1, 0, 0, Codec::None, &[Some(b"key".to_vec())], 10);
    draft.push_pad(PAD_HEADER_LEN as u64);
    let split = draft.end();
    draft.push_batch(1, 0, 0, Codec::None, &[Some(b"key".to_vec())], 10);
    let bench = Bench::of(&draft);
    let log = Drafted::new(&draft, split);
    let found = bench.machine.block_on(find(&log, &indexes(&bench, false), asked(TopicId(1), b"key"), BASE));
    assert_eq!(found.expect("no damage").len(), 2);
}

/// Two keys for which XXH64 gives the same behind any eight bytes: its second lane takes their words 0 and 4 one after the other, and
/// what the first makes of it the second can undo.
fn keys_of_one_hash() -> [[u8; 56]; 2] {
    const P1: u64 = 0x9E37_79B1_85EB_CA87;
    const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    // Each step doubles the bits that are right.
    let inverse = (0..6).fold(P2, |inverse: u64, _| inverse.wrapping_mul(2u64.wrapping_sub(P2.wrapping_mul(inverse))));
    let lane = |word: u64| P2.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1);
    let (first, second) = (0u64, 1u64);
    let undo = lane(first).wrapping_sub(lane(second)).wrapping_mul(inverse);
    let mut keys = [[7; 56]; 2];
    for (key, (word, later)) in keys.iter_mut().zip([(first, 0), (second, undo)]) {
        key[..8].copy_from_slice(&word.to_le_bytes());
        key[32..40].copy_from_slice(&later.to_le_bytes());
    }
    keys
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let [one, other] = keys_of_one_hash();
    assert_ne!(one, other);
    assert_eq!(KeyHash::of(TopicId(1), &one), KeyHash::of(TopicId(1), &other));
    let mut draft = Draft::new();
    for n in 0..20 {
        let key = if n % 3 == 0 { one } else { other };
        draft.push_batch(1, 0, 0, Codec::None, &[Some(key.to_vec()), Some(one[..55].to_vec())], 10);
    }
    let bench = Bench::of(&draft);
    for is_made in [true, false] {
        let indexes = indexes(&bench, is_made);
        let log = Drafted::new(&draft, draft.end());
        let find = |key| bench.machine.block_on(find(&log, &indexes, asked(TopicId(1), key), BASE)).unwrap().len();
        assert_eq!((find(&one[..]), find(&other[..]), find(&one[..55])), (7, 13, 20));
    }
}

#[test]
fn damage_is_told_unless_it_was_given_up() {
    let mut draft = mixed();
    let bench = Bench::of(&draft);
    let (from, to) = draft.entries[5];
    let hit = (from - BASE) as usize + ENTRY_HEADER_LEN + 20;
    draft.bytes[hit] ^= 1;
    let (topic, key) = (TopicId(1), b"k\x04");
    let log = Drafted::new(&draft, draft.end());
    let found = bench.machine.block_on(find(&log, &indexes(&bench, false), asked(topic, key), BASE));
    assert!(matches!(found, Err(SearchError::Damaged(at)) if at == from), "its payload: {found:?}");
    draft.bytes[(from - BASE) as usize + 20] ^= 1;
    let log = Drafted::new(&draft, draft.end());
    let found = bench.machine.block_on(find(&log, &indexes(&bench, false), asked(topic, key), BASE));
    assert!(matches!(found, Err(SearchError::Damaged(at)) if at == from), "its header: {found:?}");

    let segment: SealedSegment = draft.sealed_without(&[Extent { from, to }]);
    let given_up = LogIndexes::new(bench.disk.clone(), bench.options.clone(), vec![segment]);
    let found = bench.machine.block_on(find(&log, &given_up, asked(topic, key), BASE)).unwrap();
    let kept = draft.keys.iter().filter(|(of, is, at)| (*of, &is[..]) == (topic, key) && !(from..to).contains(at));
    assert_eq!(found, kept.map(|(_, _, at)| *at).collect::<Vec<_>>());
    assert!(given_up.given_up_to(from).is_some() && given_up.given_up_to(to).is_none());
}
