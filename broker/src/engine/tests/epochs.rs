//! Truncation, against readers that remember every message they saw: a place is valid exactly as long as the queue still holds
//! what its reader has seen.

use peregrine_protocol::ids::{DurableLevel::Memory, QueueOffset};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Store,
    /// So many of the newest batches are lost.
    PowerCut(usize),
    /// A reader goes on by so many batches.
    Read {
        reader: usize,
        batches: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Store),
        2 => (0usize..5).prop_map(Step::PowerCut),
        4 => (0usize..3, 1usize..4).prop_map(|(reader, batches)| Step::Read { reader, batches }),
    ];
    prop::collection::vec(step, 1..120)
}

/// A reader: the messages that it saw, each by its log position, and the epoch that it names beside its offset.
#[derive(Default)]
struct Seen {
    messages: Vec<LogPosition>,
    epoch: Epoch,
}

proptest! {
    #[test]
    fn a_place_is_valid_as_long_as_the_queue_holds_what_was_seen(steps in steps()) {
        let mut bench = Bench::new(1);
        let mut readers: [Seen; 3] = Default::default();
        for step in steps {
            match step {
                Step::Store => {
                    bench.store(0, 1, Memory);
                    bench.publish();
                }
                Step::PowerCut(lost) => {
                    // The catalogue's entry is synced: it stays.
                    let kept = (bench.log.len() - lost.min(bench.log.len() - 1)) - 1;
                    bench.restart(bench.log[kept].0.end());
                    prop_assert_eq!(bench.visible(0), kept as u64);
                }
                Step::Read { reader, batches } => {
                    let seen = &mut readers[reader];
                    let held: Vec<LogPosition> = bench.log[1..].iter().map(|(header, _)| header.position).collect();
                    let same = seen.messages.iter().zip(&held).take_while(|(seen, held)| seen == held).count();
                    let offset = QueueOffset(seen.messages.len() as u64);
                    let start = StartAt::Offset { epoch: seen.epoch, offset };
                    let limits = FetchLimits { messages: u64::MAX, bytes: u64::MAX, batches };
                    let mut found = Vec::new();
                    match bench.engine.fetch(TOPIC, QueueId(0), start, limits, None, &mut found) {
                        Ok(_) => prop_assert_eq!(same, seen.messages.len(), "a place that was cut was taken"),
                        Err(refusal) => {
                            prop_assert!(same < seen.messages.len(), "a good place was refused");
                            prop_assert_eq!(refusal, Refusal::Truncated { at: QueueOffset(same as u64) });
                            seen.messages.truncate(same);
                            continue;
                        }
                    }
                    for batch in found {
                        prop_assert_eq!(batch.base_offset.0, seen.messages.len() as u64);
                        seen.messages.push(batch.position);
                        let header = bench.log.iter().find(|(header, _)| header.position == batch.position);
                        seen.epoch = header.expect("a batch that was read is in the log").0.epoch;
                    }
                }
            }
        }
    }
}

#[test]
fn the_place_named_at_the_start_outlives_a_cut_of_what_was_not_seen() {
    let mut bench = Bench::new(1);
    bench.store(0, 1, Memory);
    bench.publish();
    let cut = bench.end;
    let place = bench.engine.look_up(TOPIC, QueueId(0), StartAt::Latest).unwrap();
    assert_eq!((place.epoch, place.offset), (Epoch(1), QueueOffset(1)));
    bench.store(0, 1, Memory);
    bench.publish();
    bench.restart(cut);
    bench.store(0, 1, Memory);
    let again = StartAt::Offset { epoch: place.epoch, offset: place.offset };
    assert_eq!(bench.engine.look_up(TOPIC, QueueId(0), again).unwrap().offset, QueueOffset(1));
    let beyond = StartAt::Offset { epoch: Epoch(1), offset: QueueOffset(2) };
    assert_eq!(bench.engine.look_up(TOPIC, QueueId(0), beyond), Err(Refusal::Truncated { at: QueueOffset(1) }));
}
