use proptest::prelude::*;

use super::*;

const NOW: Nanos = Nanos::from_micros(1_000);

fn flusher() -> Flusher {
    Flusher::new(FlushOptions::default(), LogPosition(0), 1 << 20)
}

fn p(position: u64) -> LogPosition {
    LogPosition(position)
}

/// Seals the open unit as the log would.
fn sealed_write(flusher: &mut Flusher, published: u64, now: Nanos) -> Option<PlannedWrite> {
    let end = p(published.next_multiple_of(BLOCK));
    if flusher.decide(p(published), now) == Decision::Seal {
        flusher.seal(end);
    }
    match flusher.decide(end, now) {
        Decision::Write(write) => Some(write),
        Decision::Seal => panic!("sealed twice"),
        Decision::Nothing => None,
    }
}

#[test]
fn the_first_slot_opens_at_once_and_a_second_for_a_block_or_by_age() {
    let mut flusher = flusher();
    flusher.appended(p(128), true, NOW);
    let first = sealed_write(&mut flusher, 128, NOW);
    assert_eq!(first, Some(PlannedWrite { number: 1, start: p(0), len: 4096 }));
    flusher.appended(p(4096 + 128), true, NOW);
    assert_eq!(sealed_write(&mut flusher, 4096 + 128, NOW), None, "one slot is busy, and there is no full block");
    assert_eq!(flusher.deadline(p(4096 + 128)), Some(NOW + 50_000));
    let later = NOW + 50_000;
    assert!(sealed_write(&mut flusher, 4096 + 128, later).is_some(), "50 µs old");
    flusher.appended(p(8192 + 8192), true, later);
    assert_eq!(sealed_write(&mut flusher, 16_384, later), None, "both slots are busy");
    assert_eq!(flusher.deadline(p(16_384)), None, "only a return helps");
    flusher.returned(1, true);
    assert!(sealed_write(&mut flusher, 16_384, later).is_some(), "a full block waits");
}

#[test]
fn memory_traffic_waits_for_time_or_bytes() {
    let mut flusher = flusher();
    flusher.appended(p(64), false, NOW);
    assert_eq!(flusher.decide(p(64), NOW), Decision::Nothing);
    assert_eq!(flusher.deadline(p(64)), Some(NOW + 1_000_000));
    flusher.appended(p(128), true, NOW);
    assert_eq!(flusher.decide(p(128), NOW), Decision::Seal, "a synced entry takes the others along");
    let mut flusher = self::flusher();
    flusher.appended(p(256 << 10), false, NOW);
    assert_eq!(flusher.decide(p(256 << 10), NOW), Decision::Seal);
    let mut flusher = self::flusher();
    flusher.appended(p(64), false, NOW);
    flusher.drain();
    assert_eq!(flusher.decide(p(64), NOW), Decision::Seal);
}

#[test]
fn durable_moves_along_the_contiguous_prefix_only() {
    let mut flusher = flusher();
    flusher.appended(p(4096), true, NOW);
    let first = sealed_write(&mut flusher, 4096, NOW).map(|write| write.number);
    flusher.appended(p(8192), true, NOW);
    let second = sealed_write(&mut flusher, 8192, NOW).map(|write| write.number);
    assert_eq!((first, second), (Some(1), Some(2)));
    assert_eq!(flusher.returned(2, true), None, "the first is still in flight");
    assert_eq!(flusher.returned(2, true), None, "a return counts once");
    assert_eq!(flusher.outstanding(), 1);
    assert_eq!(flusher.returned(1, true), Some(p(8192)));
    assert_eq!(flusher.returned(1, true), None);
}

#[test]
fn a_failed_write_poisons_for_ever() {
    let mut flusher = flusher();
    flusher.appended(p(4096), true, NOW);
    sealed_write(&mut flusher, 4096, NOW);
    flusher.appended(p(8192), true, NOW);
    sealed_write(&mut flusher, 8192, NOW);
    flusher.appended(p(12_288), true, NOW);
    assert_eq!(flusher.returned(2, false), None);
    assert_eq!(flusher.returned(1, true), None, "good, but nothing is acknowledged any more");
    assert_eq!(flusher.decide(p(12_288), NOW + 1_000_000_000), Decision::Nothing);
    assert_eq!((flusher.durable(), flusher.outstanding(), flusher.is_poisoned()), (p(0), 0, true));
}

#[test]
fn a_large_entry_is_several_writes_and_one_step_of_durable() {
    let mut flusher = flusher();
    let end = 3 * (256 << 10) + 4096;
    flusher.appended(p(end), true, NOW);
    flusher.seal(p(end));
    assert_eq!(flusher.decide(p(0), NOW), Decision::Nothing, "not whole");
    let mut starts = Vec::new();
    while starts.len() < 4 {
        let Decision::Write(write) = flusher.decide(p(end), NOW) else { panic!("a write was due") };
        starts.push((write.start.0, write.len));
        let moved = flusher.returned(write.number, true);
        assert_eq!(moved, (starts.len() == 4).then_some(p(end)));
    }
    assert_eq!(starts.last(), Some(&(3 * (256 << 10), 4096)));
}

#[test]
fn of_a_large_pad_only_the_block_with_its_header_is_written() {
    let mut flusher = flusher();
    flusher.appended(p(4096 + 64), true, NOW);
    flusher.seal(p(100 * 4096));
    let Decision::Write(write) = flusher.decide(p(100 * 4096), NOW) else { panic!("a sealed unit is due") };
    assert_eq!((write.start, write.len), (p(0), 8192));
    assert_eq!(flusher.returned(write.number, true), Some(p(100 * 4096)));
    flusher.appended(p(100 * 4096 + 4096), true, NOW);
    flusher.seal(p(110 * 4096));
    let Decision::Write(write) = flusher.decide(p(110 * 4096), NOW) else { panic!("a sealed unit is due") };
    assert_eq!(write.len, 8192, "the pad's header has a block of its own");
}

proptest! {
    /// Whatever returns in whatever order: durable is always a unit's end, below every write that has not returned, and
    /// reaches the tail when all have.
    #[test]
    fn durable_never_passes_a_write_in_flight(
        steps in prop::collection::vec((1u64..40, any::<bool>(), 0usize..4), 1..200), depth in 1usize..5,
    ) {
        let options = FlushOptions { depth, flush_bytes: 16 << 10, ..FlushOptions::default() };
        let mut flusher = Flusher::new(options, p(0), 1 << 20);
        let (mut tail, mut now) = (0, NOW);
        let (mut out, mut ends): (Vec<PlannedWrite>, Vec<u64>) = (Vec::new(), vec![0]);
        let check = |flusher: &mut Flusher, out: &mut Vec<PlannedWrite>, ends: &mut Vec<u64>, tail: &mut u64, now: Nanos| {
            loop {
                match flusher.decide(p(*tail), now) {
                    Decision::Nothing => break,
                    Decision::Seal => {
                        *tail = tail.next_multiple_of(BLOCK);
                        flusher.seal(p(*tail));
                        ends.push(*tail);
                    }
                    Decision::Write(write) => out.push(write),
                }
            }
            assert!(out.len() <= depth);
            assert!(ends.contains(&flusher.durable().0));
            assert!(out.iter().all(|write| write.start >= flusher.durable()));
        };
        for (units, synced, back) in steps {
            now += 20_000;
            tail += units * 64;
            flusher.appended(p(tail), synced, now);
            check(&mut flusher, &mut out, &mut ends, &mut tail, now);
            if !out.is_empty() {
                let write = out.remove(back % out.len());
                flusher.returned(write.number, true);
                check(&mut flusher, &mut out, &mut ends, &mut tail, now);
            }
        }
        flusher.drain();
        check(&mut flusher, &mut out, &mut ends, &mut tail, now);
        while let Some(write) = out.pop() {
            flusher.returned(write.number, true);
            check(&mut flusher, &mut out, &mut ends, &mut tail, now);
        }
        prop_assert_eq!(flusher.durable(), p(tail));
    }
}
