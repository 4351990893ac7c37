//! Consumers that replay what has long left the staging ring: what they get is right while others tail, many of them share reads of
//! the disk, and what the broker holds for them is bounded.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use peregrine_protocol::ids::{DurableLevel, QueueId, QueueOffset, SubscriptionId, TopicId};
use peregrine_protocol::message::{Answer, Mode, Request, Start, Subscribe};
use peregrine_tests::broker::Settings;
use peregrine_tests::wire::{Heard, Wire, batch_of, whole};

const RING: u64 = 1 << 20;
const CACHE: u64 = 2 << 20;
const BODY: usize = 60 << 10;
const MESSAGES: u64 = 96;
const REPLAYING: usize = 64;
/// The cache, the blocks in use (8 MiB), buffers for what is in flight, and 64 KiB for each connection.
const GROWTH_MAX: u64 = CACHE + (8 << 20) + (16 << 20) + REPLAYING as u64 * (64 << 10);
const HEARD_WITHIN: Duration = Duration::from_secs(60);

fn body(queue: u32, number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(31) + at / 251 + number * 7 + u64::from(queue)) as u8).collect()
}

fn subscribe(wire: &mut Wire, topic: TopicId, queue: u32) -> SubscriptionId {
    let (mode, start, queue) = (Mode::Reader, Start::Earliest, QueueId(queue));
    let subscribe = Subscribe { topic, queue, mode, start, credit_messages: 1 << 20, credit_bytes: 1 << 40 };
    wire.ask(&Request::Subscribe(subscribe), |answer| match answer {
        Answer::Subscribe(answer) => answer.subscription,
        other => panic!("{other:?}"),
    })
}

/// The next frame delivers that message.
#[track_caller]
fn hear(wire: &mut Wire, subscription: SubscriptionId, number: u64, body: &[u8]) {
    let Heard::Frame(bytes) = wire.hear(HEARD_WITHIN) else { panic!("message {number} did not come") };
    match Answer::decode(&whole(&bytes)) {
        Ok(Answer::Deliver(delivery)) => {
            assert_eq!((delivery.subscription, delivery.batch.base_offset), (subscription, QueueOffset(number)));
            assert!(delivery.payload == batch_of(body), "the bytes of message {number} differ");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_replays_share_reads_and_memory_while_others_tail() {
    let settings = Settings::default().ring_bytes(RING).argument(format!("--block-cache={CACHE}"));
    let broker = settings.start();
    let mut producer = Wire::open(broker.address());
    let topic = producer.create_topic("replayed", 2);
    for number in 0..MESSAGES {
        producer.produce_to(topic, QueueId(0), DurableLevel::Synced, &body(0, number, BODY));
    }
    let mut tail = Wire::open(broker.address());
    let tailing = subscribe(&mut tail, topic, 1);
    let mut wires: Vec<_> = (0..REPLAYING).map(|_| Wire::open(broker.address())).collect();
    let before = broker.resident_bytes();
    let subscriptions: Vec<_> = wires.iter_mut().map(|wire| subscribe(wire, topic, 0)).collect();
    let mut growth = 0;
    for number in 0..MESSAGES {
        // The tail goes on beside them, and moves the ring.
        let small = body(1, number, 1000);
        producer.produce_to(topic, QueueId(1), DurableLevel::Synced, &small);
        hear(&mut tail, tailing, number, &small);
        let expected = body(0, number, BODY);
        for (wire, subscription) in wires.iter_mut().zip(&subscriptions) {
            hear(wire, *subscription, number, &expected);
        }
        growth = growth.max(broker.resident_bytes().saturating_sub(before));
    }
    let statistics = producer.ask(&Request::Stats(peregrine_protocol::message::Stats::Shards), |answer| match answer {
        Answer::Stats(answer) => serde_json::from_slice::<serde_json::Value>(answer.json).unwrap(),
        other => panic!("{other:?}"),
    });
    let cache = &statistics["shards"][0]["block_cache"];
    let (reads, hits, bytes) = (cache["misses"].as_u64(), cache["hits"].as_u64(), cache["bytes"].as_u64());
    let log_bytes = MESSAGES * BODY as u64;
    println!("{REPLAYING} replays of {} KiB: {cache}, resident {} KiB more", log_bytes >> 10, growth >> 10);
    let alone = log_bytes.div_ceil(256 << 10);
    assert!(reads.unwrap() < alone * REPLAYING as u64 / 4, "replays side by side share reads: {cache}");
    assert!(hits.unwrap() > 0 && bytes.unwrap() <= CACHE, "{cache}");
    assert!(growth <= GROWTH_MAX, "{REPLAYING} replays cost {growth} bytes, more than {GROWTH_MAX}");
}
