//! What lies between two slices, and how much one does.

use peregrine_protocol::ids::DurableLevel::Synced;

use super::*;
use crate::limits::PRODUCER_IDLE_NS;

/// However much there is, a slice looks at no more than its budget allows.
#[test]
fn a_slice_is_bounded_by_its_budget() {
    let mut bench = Bench::new(1000);
    for queue in 0..1000 {
        bench
            .engine
            .subscribe(ReaderOwner(1), TOPIC, QueueId(queue), StartAt::Latest, Credit::default())
            .expect("there");
    }
    let mut save = bench.engine.begin_checkpoint();
    let mut slices = 0;
    let mut section = Vec::new();
    while !bench.engine.save_slice(&mut save, &mut section, 32 * 10) {
        slices += 1;
    }
    assert!(slices >= 100, "{slices} slices for 1000 empty queues");
    assert!(section.len() < 200, "{} bytes", section.len());
}

/// Seven days after a state was last looked at, it moves to the end of those that age, whatever a walk over them does just then.
#[test]
fn a_state_that_moves_while_all_are_walked_is_saved() {
    let mut slices = usize::MAX;
    let mut moved_after = 0;
    while moved_after < slices {
        let mut bench = Bench::new(1);
        for sequence in 0..2 {
            for producer in 1..8 {
                let sequence = Sequence(sequence);
                let offer = BatchOffer { producer_id: ProducerId(producer), sequence, ..offer(0) };
                let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&offer, bench.now) else {
                    panic!()
                };
                bench.append(&draft, Vec::new());
            }
            bench.now.0 += PRODUCER_IDLE_NS.0 / 2 + 1;
        }
        let mut number = 0;
        let (sections, _) = save(&mut bench, 1, |bench| {
            number += 1;
            if number == moved_after {
                bench.store(0, 1, Synced);
            }
        });
        slices = number;
        let restored = restore(ONE_SHARD, None, &sections, &bench.log);
        assert_eq!(restored.digest(), replay(ONE_SHARD, &bench.log).digest(), "moved after slice {moved_after}");
        moved_after += 1;
    }
    assert!(slices > 7, "{slices} slices for seven producers");
}
