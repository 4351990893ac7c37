//! A message's way through a shard that serves sockets allocates nothing: what is allocated is the runtime's, per turn and per
//! flush, and so the same for a turn with 16 messages as for one with 64.

use peregrine_allocations::of_other_threads;
use peregrine_broker::{control, log, retaining, shard};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Correlation, DurableLevel, TopicId};
use peregrine_protocol::message::{Produce, Request};
use serving::{Client, batch, head, serve, settings};

#[allow(dead_code, reason = "the shards' own tests use all of it")]
#[path = "../src/shard/tests/serving.rs"]
mod serving;

const ROUNDS: u64 = 300;

/// Allocations of the broker's threads while it takes `ROUNDS` times `messages` messages, each round in one write, and delivers them.
fn allocations(client: &mut Client, topic: TopicId, messages: u64) -> u64 {
    use std::io::Write;
    let payload = batch(&[7; 100]);
    let mut bytes = Vec::new();
    for _ in 0..messages {
        let produce = Produce { head: head(topic, 0, DurableLevel::Memory, &payload), payload: &payload };
        Request::Produce(produce).encode(Correlation(9), &mut bytes);
    }
    let ((), allocations) = of_other_threads(|| {
        for _ in 0..ROUNDS {
            client.socket.write_all(&bytes).expect("send");
            // One acknowledgement and one delivery for each message.
            for _ in 0..2 * messages {
                let frame = client.receive_frame();
                assert!(matches!(frame::decode(&frame, u32::MAX), Ok(Received::Frame(_))));
            }
        }
    });
    allocations
}

#[test]
fn a_message_allocates_nothing() {
    let data = tempfile::tempdir().expect("a directory");
    let rings = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let serving = serve(&settings(data.path(), rings.path(), 1));
    let mut client = serving.client(None);
    let topic = client.create("allocations", 1);
    client.subscribe(topic, 0);
    // What grows to its size does so first.
    allocations(&mut client, topic, 64);
    let (few, many) = (allocations(&mut client, topic, 16), allocations(&mut client, topic, 64));
    let each = (many as f64 - few as f64) / (ROUNDS * 48) as f64;
    println!("{few} allocations for {ROUNDS} × 16 messages, {many} for {ROUNDS} × 64: {each:.3} for each message");
    // The index's chunk for every 64 batches, and what a second turn in a round brings with it.
    assert!(each < 0.15, "{each} allocations for each message");
    assert!(serving.stop().is_ok());
}
