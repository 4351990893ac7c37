//! Requests and deliveries that cross from one executor to another.

use super::directories;
use super::serving::{Said, batch, head, serve, settings};
use peregrine_protocol::ids::{Correlation, DurableLevel, QueueId, ShardId};
use peregrine_protocol::message::{Produce, Request};
use peregrine_protocol::placement::shard_of_queue;
use std::io::Write;

/// More requests than the mesh has credit for, and more deliveries than its window, through the wrong shard's socket.
#[test]
fn requests_and_deliveries_cross_the_mesh_in_order_and_within_their_bounds() {
    const MESSAGES: u64 = 5000;
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    let mut client = serving.client(Some(0));
    let topic = client.create("far", 2);
    let queue = (0..2)
        .find(|&queue| shard_of_queue("far", QueueId(queue), 2) == ShardId(1))
        .expect("one of two queues lives on shard 1");
    let payload_of = |number: u64| batch(&vec![number as u8; 1000 + (number % 50) as usize]);
    let mut writer = client.socket.try_clone().expect("a second handle");
    let sending = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            let payload = payload_of(number);
            let mut bytes = Vec::new();
            let produce = Produce { head: head(topic, queue, DurableLevel::Memory, &payload), payload: &payload };
            Request::Produce(produce).encode(Correlation(1000 + number), &mut bytes);
            writer.write_all(&bytes).expect("send");
        }
    });
    for number in 0..MESSAGES {
        match client.receive() {
            (correlation, Said::Stored(stored)) => {
                assert_eq!((correlation.0, stored.base_offset.0), (1000 + number, number));
                assert_eq!(stored.shard, ShardId(1));
            }
            other => panic!("{other:?}"),
        }
    }
    sending.join().expect("no panic");
    client.subscribe(topic, queue);
    for number in 0..MESSAGES {
        match client.receive().1 {
            Said::Batch { head, payload, .. } => {
                assert_eq!(head.base_offset.0, number);
                assert!(payload == payload_of(number), "bytes of {number} differ");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}
