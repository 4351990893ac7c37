//! Single moments of a lane that the model test passes through without naming them.

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{DurableLevel, Epoch, Nanos, ProducerEpoch, QueueId, QueueOffset, Sequence};
use peregrine_protocol::placement::TopicHash;

use super::{Acknowledgement, BatchLimits, BatchToSend, CoreOptions, Outcome, ProducerCore};
use crate::error::{Error, Refusal};

const QUEUE: QueueId = QueueId(0);
const DAY: Nanos = Nanos::from_secs(24 * 3_600);

fn connected_core() -> ProducerCore<u32> {
    let mut core = ProducerCore::new(CoreOptions {
        topic: TopicHash(0),
        shards: 1,
        limits: BatchLimits { bytes: 64, records: 4 },
        timeout: Nanos::from_secs(60),
        seed: 1,
    });
    core.connected(core.shard_of(QUEUE), Nanos(0));
    core
}

fn push(core: &mut ProducerCore<u32>, token: u32, now: Nanos) {
    core.push(QUEUE, DurableLevel::Memory, &u64::from(token).to_le_bytes(), token, now);
}

fn next(core: &mut ProducerCore<u32>, now: Nanos) -> BatchToSend {
    core.next_batch(now).expect("a batch to send").1
}

fn acknowledge(core: &mut ProducerCore<u32>, batch: &BatchToSend, now: Nanos) {
    let acknowledgement = Acknowledgement {
        base_offset: QueueOffset(batch.sequence.0),
        epoch: Epoch(1),
        position: None,
        level: batch.level,
        duplicate: false,
    };
    core.answered(batch.ticket, Ok(acknowledgement), now);
}

fn refuse(core: &mut ProducerCore<u32>, batch: &BatchToSend, code: ErrorCode, detail: ErrorDetail, now: Nanos) {
    let (number, retriable, sentence) = (code.number(), code.is_retriable(), code.sentence().into());
    core.answered(batch.ticket, Err(Refusal { number, retriable, sentence, detail }), now);
}

fn expected(sequence: u64) -> ErrorDetail {
    ErrorDetail { expected_sequence: Some(sequence), ..ErrorDetail::default() }
}

fn outcomes(core: &mut ProducerCore<u32>) -> Vec<Outcome<u32>> {
    std::iter::from_fn(|| core.next_outcome()).collect()
}

#[test]
fn what_waits_goes_as_one_batch_and_no_more_than_64_are_on_their_way() {
    let mut core = connected_core();
    for token in 0..64 {
        push(&mut core, token, Nanos(0));
        assert_eq!((next(&mut core, Nanos(0)).records, core.next_batch(Nanos(0)).is_none()), (1, true));
    }
    for token in 64..74 {
        push(&mut core, token, Nanos(0));
    }
    assert!(core.next_batch(Nanos(0)).is_none(), "64 are in flight");
    core.disconnected(core.shard_of(QUEUE), Nanos(0));
    core.connected(core.shard_of(QUEUE), Nanos(0));
    let again: Vec<BatchToSend> = (0..64).map(|_| next(&mut core, Nanos(0))).collect();
    assert!((0..64).eq(again.iter().map(|batch| batch.sequence.0)), "in order, under the same numbers");
    for batch in &again {
        acknowledge(&mut core, batch, Nanos(0));
    }
    let sizes: Vec<u32> = std::iter::from_fn(|| core.next_batch(Nanos(0))).map(|(_, batch)| batch.records).collect();
    assert_eq!(sizes, [4, 4, 2], "what waited, in batches of the limit");
    assert_eq!(outcomes(&mut core).len(), 64);
}

#[test]
fn a_producer_forgotten_after_a_week_of_silence_has_lost_nothing() {
    let later = Nanos(8 * DAY.0);
    for (silence, losses) in [(later, 0), (Nanos(DAY.0), 1)] {
        let mut core = connected_core();
        push(&mut core, 0, Nanos(0));
        let batch = next(&mut core, Nanos(0));
        acknowledge(&mut core, &batch, Nanos(0));
        push(&mut core, 1, silence);
        let batch = next(&mut core, silence);
        assert_eq!(batch.sequence, Sequence(1));
        refuse(&mut core, &batch, ErrorCode::UnknownProducer, expected(0), silence);
        let batch = next(&mut core, silence);
        assert_eq!((batch.epoch, batch.sequence), (ProducerEpoch(1), Sequence(0)));
        let lost = outcomes(&mut core).iter().filter(|outcome| matches!(outcome, Outcome::Lost(_))).count();
        assert_eq!(lost, losses, "after {silence} ns");
    }
}

#[test]
fn answers_below_a_loss_are_fetched_before_the_epoch_is_raised() {
    let mut core = connected_core();
    let sent: Vec<BatchToSend> = (0..4)
        .map(|token| {
            push(&mut core, token, Nanos(0));
            next(&mut core, Nanos(0))
        })
        .collect();
    // 0 is unanswered, 1 and 2 are acknowledged, 3 is unanswered; then the power fails and takes 1 to 3.
    acknowledge(&mut core, &sent[1], Nanos(0));
    acknowledge(&mut core, &sent[2], Nanos(0));
    core.disconnected(core.shard_of(QUEUE), Nanos(0));
    core.connected(core.shard_of(QUEUE), Nanos(0));
    let (first, last) = (next(&mut core, Nanos(0)), next(&mut core, Nanos(0)));
    assert_eq!((first.sequence, last.sequence), (Sequence(0), Sequence(3)));
    refuse(&mut core, &last, ErrorCode::OutOfSequence, expected(1), Nanos(0));
    assert!(core.next_batch(Nanos(0)).is_none(), "nothing new before the answer below the loss");
    acknowledge(&mut core, &first, Nanos(0));
    let raised = next(&mut core, Nanos(0));
    assert_eq!((raised.epoch, raised.sequence, raised.payload), (ProducerEpoch(1), Sequence(0), last.payload));
    let lost: Vec<u64> = outcomes(&mut core)
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Lost(loss) if loss.exact => Some(loss.messages),
            _ => None,
        })
        .collect();
    assert_eq!(lost, [2]);
}

#[test]
fn a_deleted_topic_fails_what_is_pending_and_what_comes() {
    let mut core = connected_core();
    push(&mut core, 0, Nanos(0));
    let batch = next(&mut core, Nanos(0));
    push(&mut core, 1, Nanos(0));
    refuse(&mut core, &batch, ErrorCode::TopicDeleted, ErrorDetail::default(), Nanos(0));
    push(&mut core, 2, Nanos(0));
    let failed = outcomes(&mut core);
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|outcome| matches!(outcome, Outcome::Failed { error: Error::Refused(_), .. })));
    assert!(core.is_idle() && core.next_batch(Nanos(0)).is_none());
}

#[test]
fn a_hint_of_the_broker_prolongs_the_wait() {
    let mut core = connected_core();
    push(&mut core, 0, Nanos(0));
    let batch = next(&mut core, Nanos(0));
    let hint = ErrorDetail { retry_after_ns: Some(Nanos::from_secs(5).0), ..ErrorDetail::default() };
    refuse(&mut core, &batch, ErrorCode::Busy, hint, Nanos(0));
    assert!(core.next_batch(Nanos::from_secs(4)).is_none());
    assert_eq!(core.next_wake(), Some(Nanos::from_secs(5)));
    core.wake(Nanos::from_secs(5));
    assert_eq!(next(&mut core, Nanos::from_secs(5)).sequence, Sequence(0));
}
