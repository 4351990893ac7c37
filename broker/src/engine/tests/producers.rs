//! Idempotence, against a model that remembers every batch that a producer ever sent.

use std::collections::HashMap;

use peregrine_protocol::ids::QueueOffset;
use proptest::prelude::*;

use super::*;
use crate::limits::{PRODUCER_BATCHES_REMEMBERED, PRODUCER_IDLE_NS};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Offers the batch whose sequence is the next one plus `ahead`, less `back`.
    Offer {
        producer: u64,
        queue: u32,
        epoch: EpochStep,
        ahead: u64,
        back: u64,
        altered: bool,
    },
    Wait(u64),
    /// A new process; so many of the newest batches are lost.
    Restart(usize),
}

#[derive(Clone, Copy, Debug)]
enum EpochStep {
    Same,
    Raised,
    Lowered,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let epoch = prop_oneof![30 => Just(EpochStep::Same), 2 => Just(EpochStep::Raised), 1 => Just(EpochStep::Lowered)];
    let ahead = prop_oneof![10 => Just(0u64), 1 => 1u64..3];
    let back = prop_oneof![10 => Just(0u64), 2 => 1u64..4, 1 => 1u64..150];
    let offer = (1u64..3, 0u32..2, epoch, ahead, back, prop::bool::weighted(0.1)).prop_map(
        |(producer, queue, epoch, ahead, back, altered)| Step::Offer { producer, queue, epoch, ahead, back, altered },
    );
    let wait = prop_oneof![0..PRODUCER_IDLE_NS.0 / 4, PRODUCER_IDLE_NS.0 - 2..PRODUCER_IDLE_NS.0 + 2];
    let step = prop_oneof![200 => offer, 4 => wait.prop_map(Step::Wait), 3 => (0usize..4).prop_map(Step::Restart)];
    prop::collection::vec(step, 1..600)
}

/// All that one producer sent to one queue in its present epoch.
#[derive(Clone, Debug)]
struct Sent {
    epoch: u32,
    /// (contents, offset) of each, by sequence.
    batches: Vec<(u32, QueueOffset)>,
    last: Nanos,
}

/// What the rules say, on the whole history in `log`.
fn model(log: &[(EntryHeader, Vec<u8>)]) -> HashMap<(u64, u32), Sent> {
    let mut all: HashMap<(u64, u32), Sent> = HashMap::new();
    for (header, _) in log.iter().filter(|(header, _)| header.producer_id.0 != 0) {
        let (epoch, time) = (header.producer_epoch.0, header.store_time);
        let sent =
            all.entry((header.producer_id.0, header.queue.0)).or_insert(Sent { epoch, batches: vec![], last: time });
        if sent.epoch != epoch || time.0 - sent.last.0 >= PRODUCER_IDLE_NS.0 {
            sent.batches.clear();
        }
        assert_eq!(sent.batches.len() as u64, header.sequence.0, "sequences are dense");
        sent.epoch = epoch;
        sent.last = time;
        sent.batches.push((header.payload_crc, header.base_offset));
    }
    all
}

fn expected(sent: Option<&Sent>, offer: &BatchOffer) -> Result<Option<QueueOffset>, Refusal> {
    let Some(sent) = sent else {
        return if offer.sequence.0 == 0 { Ok(None) } else { Err(Refusal::UnknownProducer) };
    };
    if offer.producer_epoch.0 < sent.epoch {
        return Err(Refusal::ProducerFenced);
    }
    let next = if offer.producer_epoch.0 > sent.epoch { 0 } else { sent.batches.len() as u64 };
    if offer.sequence.0 > next {
        return Err(Refusal::OutOfSequence { expected: Sequence(next) });
    }
    if offer.sequence.0 == next {
        return Ok(None);
    }
    let (contents, offset) = sent.batches[offer.sequence.0 as usize];
    let old = next - offer.sequence.0 > PRODUCER_BATCHES_REMEMBERED as u64;
    if old || contents != offer.payload_crc { Err(Refusal::SequenceConflict) } else { Ok(Some(offset)) }
}

proptest! {
    #[test]
    fn a_batch_is_stored_once(steps in steps()) {
        let mut bench = Bench::new(2);
        for step in steps {
            match step {
                Step::Wait(time) => bench.now.0 += time,
                Step::Restart(lost) => {
                    let kept = bench.log.len() - lost.min(bench.log.len() - 1) - 1;
                    bench.restart(bench.log[kept].0.end());
                }
                Step::Offer { producer, queue, epoch, ahead, back, altered } => {
                    bench.now.0 += 1;
                    let all = model(&bench.log);
                    let known = all.get(&(producer, queue));
                    let current = known.filter(|sent| bench.now.0 - sent.last.0 < PRODUCER_IDLE_NS.0);
                    let (last, next) = known.map_or((3, 0), |sent| (sent.epoch, sent.batches.len() as u64));
                    let epoch = match epoch {
                        EpochStep::Same => last,
                        EpochStep::Raised => last + 1,
                        EpochStep::Lowered => last - u32::from(last > 0),
                    };
                    let next = if epoch == last { next } else { 0 };
                    let sequence = (next + ahead).saturating_sub(back);
                    let contents = format!("{producer} {queue} {epoch} {sequence} {altered}");
                    let offer = BatchOffer {
                        producer_id: ProducerId(producer),
                        producer_epoch: ProducerEpoch(epoch),
                        sequence: Sequence(sequence),
                        payload_crc: crc32(contents.as_bytes()),
                        length: 100,
                        records: 2,
                        ..offer(queue)
                    };
                    let found = bench.engine.decide_produce(&offer, bench.now);
                    match (expected(current, &offer), found) {
                        (Ok(None), Ok(ProduceDecision::Append(draft))) => {
                            bench.append(&draft, Vec::new());
                        }
                        (Ok(Some(offset)), Ok(ProduceDecision::Duplicate(stored))) => {
                            prop_assert_eq!((stored.base_offset, stored.records), (offset, 2));
                            let original = bench.log.iter().find(|(header, _)| header.position == stored.position);
                            let (original, _) = original.expect("a duplicate's original is in the log");
                            prop_assert_eq!(StoredBatch::of_header(original), stored);
                        }
                        (Err(expected), Err(found)) => prop_assert_eq!(expected, found),
                        (expected, found) => prop_assert!(false, "expected {:?}, found {:?}", expected, found),
                    }
                }
            }
        }
        let replayed = replay(ONE_SHARD, &bench.log);
        prop_assert_eq!(bench.engine.digest(), replayed.digest());
    }
}

fn first_of(producer: u64) -> BatchOffer {
    BatchOffer { producer_id: ProducerId(producer), ..offer(0) }
}

#[test]
fn a_duplicate_waits_for_the_level_that_it_asks_for() {
    let mut bench = Bench::new(1);
    let memory = BatchOffer { level: DurableLevel::Memory, ..first_of(7) };
    let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&memory, bench.now) else { panic!() };
    let end = bench.append(&draft, Vec::new()).end();
    bench.publish();
    let Ok(ProduceDecision::Duplicate(stored)) = bench.engine.decide_produce(&first_of(7), bench.now) else { panic!() };
    assert_eq!((stored.level, stored.end), (DurableLevel::Synced, end));
    let mut waiting = Acknowledgements::default();
    waiting.wait(stored.level, stored.end, "synced");
    assert_eq!(waiting.next_released(bench.engine.published(), bench.engine.durable()), None);
    bench.harden();
    assert_eq!(waiting.next_released(bench.engine.published(), bench.engine.durable()), Some("synced"));
}

#[test]
fn what_is_forgotten_gives_its_memory_back() {
    let mut bench = Bench::new(1);
    for producer in 1..=100 {
        let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&first_of(producer), bench.now) else {
            panic!()
        };
        bench.append(&draft, Vec::new());
    }
    assert_eq!(bench.engine.counts().producers, 100);
    bench.now.0 += PRODUCER_IDLE_NS.0;
    for _ in 0..50 {
        bench.store(0, 1, DurableLevel::Synced);
    }
    assert_eq!(bench.engine.counts().producers, 0);
}

#[test]
fn a_deleted_topic_takes_its_producers_along() {
    let mut bench = Bench::new(1);
    for producer in 1..=3 {
        let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&first_of(producer), bench.now) else {
            panic!()
        };
        bench.append(&draft, Vec::new());
    }
    bench.change(bench.engine.decide_delete("t", None, bench.now));
    bench.harden();
    assert_eq!((bench.engine.counts().producers, bench.engine.counts().queues), (0, 0));
    bench.create("t", 1);
    bench.now.0 += 3 * PRODUCER_IDLE_NS.0;
    let offer = BatchOffer { topic: TopicId(2), ..first_of(1) };
    let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&offer, bench.now) else { panic!() };
    bench.append(&draft, Vec::new());
    assert_eq!(bench.engine.counts().producers, 1);
}

/// Decides on an offer at a fresh queue of a broker with this memory level.
#[track_caller]
fn check_level(memory_level: MemoryLevel, level: DurableLevel, expected: Result<DurableLevel, Refusal>) {
    let mut bench = Bench::empty(EngineOptions { memory_level, ..ONE_SHARD });
    bench.create("t", 1);
    let found = match bench.engine.decide_produce(&BatchOffer { level, ..offer(0) }, bench.now) {
        Ok(ProduceDecision::Append(draft)) => Ok(draft.flags.level().expect("a batch has a level")),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    };
    assert_eq!(found, expected);
}

#[test]
fn a_level_is_given_raised_or_refused_but_never_lowered() {
    use DurableLevel::{Memory, Replicated, Synced};
    check_level(MemoryLevel::Kept, Memory, Ok(Memory));
    check_level(MemoryLevel::Raised, Memory, Ok(Synced));
    check_level(MemoryLevel::Refused, Memory, Err(Refusal::LevelUnavailable));
    for memory_level in [MemoryLevel::Kept, MemoryLevel::Raised, MemoryLevel::Refused] {
        check_level(memory_level, Synced, Ok(Synced));
        check_level(memory_level, Replicated, Err(Refusal::LevelUnavailable));
    }
}

#[test]
fn a_poisoned_shard_answers_nothing_else() {
    let mut bench = Bench::new(1);
    bench.engine.on_poisoned();
    assert_eq!(bench.engine.decide_produce(&first_of(1), bench.now), Err(Refusal::Poisoned));
    assert_eq!(bench.engine.decide_create("u", 1, TopicRetention::default(), bench.now), Err(Refusal::Poisoned));
}

#[test]
fn the_last_64_batches_are_remembered_and_no_more() {
    let mut bench = Bench::new(1);
    let batch = |sequence| BatchOffer { sequence: Sequence(sequence), ..first_of(1) };
    for sequence in 0..70 {
        let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&batch(sequence), bench.now) else {
            panic!("{sequence} is the next one")
        };
        bench.append(&draft, Vec::new());
    }
    for sequence in 0..70 {
        match bench.engine.decide_produce(&batch(sequence), bench.now) {
            Ok(ProduceDecision::Duplicate(stored)) => {
                assert_eq!((stored.base_offset.0, sequence >= 6), (sequence, true));
            }
            other => assert_eq!((other, sequence < 6), (Err(Refusal::SequenceConflict), true), "{sequence}"),
        }
    }
}

#[test]
fn a_queue_that_is_idle_again_takes_less_than_a_kibibyte() {
    let mut bench = Bench::new(1);
    let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&first_of(1), bench.now) else { panic!() };
    bench.append(&draft, Vec::new());
    bench.harden();
    let queue = bench.engine.queues.by_key(QueueKey { topic: TOPIC, queue: QueueId(0) }).expect("it was written to");
    assert!(queue.bytes() < 1024, "{} bytes", queue.bytes());
}
