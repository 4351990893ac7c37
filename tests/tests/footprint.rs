//! What a broker costs while nobody uses it: memory of queues, time to start, time of the processor.
//!
//! The bounds are wide enough for a busy machine and narrow enough to see a design broken; the figures themselves are printed.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use peregrine_protocol::ids::{DurableLevel, QueueId};
use peregrine_tests::broker::Settings;
use peregrine_tests::wire::Wire;

const TOPICS: u64 = 10;
const QUEUES_EACH: u32 = 1_000;
const QUEUES: u64 = TOPICS * QUEUES_EACH as u64;
/// DESIGN: an idle queue costs at most 1 KiB; and some room for the buffers of what created them.
const IDLE_GROWTH_MAX: u64 = QUEUES * 1024 + (4 << 20);
/// A queue that holds a message has its state, and the first chunk of its index.
const USED_GROWTH_MAX: u64 = QUEUES * 8 * 1024;
const START_MAX: Duration = Duration::from_secs(5);

/// Long enough that start-up work is a small part of it.
const IDLE_TIME: Duration = Duration::from_secs(5);
/// The goal is 2 % of a core; the rest is room for a machine that other tests keep busy.
const IDLE_SHARE_MAX: f64 = 0.05;

#[test]
fn ten_thousand_queues() {
    let mut broker = Settings::default().start();
    let mut wire = Wire::open(broker.address());
    let before = broker.resident_bytes();
    let topics: Vec<_> = (0..TOPICS).map(|n| wire.create_topic(&format!("many-{n}"), QUEUES_EACH)).collect();
    let idle = broker.resident_bytes().saturating_sub(before);
    for &topic in &topics {
        for queue in 0..QUEUES_EACH {
            wire.produce_to(topic, QueueId(queue), DurableLevel::Memory, b"one message");
        }
    }
    let used = broker.resident_bytes().saturating_sub(before);
    assert!(broker.terminate().success());
    let ready = broker.start_again();
    println!(
        "{QUEUES} queues: {} KiB while unused, {} KiB with a message each (of which up to 1 MiB is the ring); \
         start with all of them: {} ms, resident {} KiB",
        idle >> 10,
        used >> 10,
        ready.milliseconds,
        broker.resident_bytes() >> 10
    );
    assert!(idle <= IDLE_GROWTH_MAX, "{QUEUES} unused queues cost {idle} bytes");
    assert!(used <= USED_GROWTH_MAX, "{QUEUES} queues with a message each cost {used} bytes");
    assert!(ready.milliseconds <= START_MAX.as_millis() as u64, "the start took {} ms", ready.milliseconds);
}

#[test]
fn an_idle_broker_leaves_the_processor_alone() {
    let broker = Settings::default().idle("adaptive").start();
    // A connection that was used and is idle now must cost nothing either.
    let mut wire = Wire::open(broker.address());
    let topic = wire.create_topic("idle", 8);
    wire.produce(topic, DurableLevel::Synced, b"one message");
    let (used, started) = (broker.processor_time(), Instant::now());
    // Time itself is what is measured here.
    std::thread::sleep(IDLE_TIME);
    let share = broker.processor_time().saturating_sub(used).as_secs_f64() / started.elapsed().as_secs_f64();
    println!("idle on `adaptive`: {:.2} % of a core", share * 100.0);
    assert!(share <= IDLE_SHARE_MAX, "an idle broker takes {:.2} % of a core", share * 100.0);
}
