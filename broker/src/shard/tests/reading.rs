//! Readers that are behind the ring or slower than it: every byte comes, in order.

use super::directories;
use super::serving::{Said, batch, head, serve, settings};
use crate::control::settings::Settings;
use peregrine_protocol::ids::{DurableLevel, Epoch, QueueId, QueueOffset};
use peregrine_protocol::message::{Fetch, Produce, Request};

/// A block of the log that was read from disk ended within a payload; what followed in the outbox was sent in the payload's
/// place.
#[test]
fn a_payload_that_ends_beyond_its_block_is_sent_whole() {
    let (data, rings) = directories();
    let settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data.path(), rings.path(), 1) };
    let serving = serve(&settings);
    let mut client = serving.client(None);
    let topic = client.create("cold", 2);
    let payload_of = |queue: u32, number: u32| {
        let body: Vec<u8> = (0..20_000 + number * 37).map(|at| (at * 13 + number * 7 + queue) as u8).collect();
        batch(&body)
    };
    for number in 0..200 {
        for queue in 0..2 {
            let payload = payload_of(queue, number);
            let head = head(topic, queue, DurableLevel::Memory, &payload);
            match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
                Said::Stored(stored) => assert_eq!(stored.base_offset.0, u64::from(number)),
                other => panic!("{other:?}"),
            }
        }
    }
    // Far behind the ring, by subscription and by fetch.
    for queue in 0..2 {
        client.subscribe(topic, queue);
        for number in 0..200 {
            match client.receive().1 {
                Said::Batch { head, payload, .. } => {
                    assert_eq!(head.base_offset.0, u64::from(number));
                    assert!(payload == payload_of(queue, number), "bytes of {number} in queue {queue} differ");
                }
                other => panic!("{other:?}"),
            }
        }
        let mut next = 0;
        while next < 200 {
            let fetch = Fetch {
                topic,
                queue: QueueId(queue),
                epoch: Epoch::ANY,
                offset: QueueOffset(next),
                max_messages: 1000,
                max_bytes: 300_000,
            };
            match client.ask(&Request::Fetch(fetch)) {
                Said::Fetched { end, batches } => {
                    assert_eq!((end.0, batches.is_empty()), (200, false));
                    for (head, payload) in batches {
                        assert_eq!(head.base_offset.0, next);
                        assert!(payload == payload_of(queue, next as u32), "bytes of {next} in queue {queue} differ");
                        next += 1;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(serving.stop().is_ok());
}

/// A reader that takes nothing while the ring goes round several times: what was half sent goes on from disk.
#[test]
fn a_reader_that_was_slow_gets_every_byte() {
    let (data, rings) = directories();
    let settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data.path(), rings.path(), 1) };
    let serving = serve(&settings);
    let mut producer = serving.client(None);
    let topic = producer.create("slow", 1);
    let mut reader = serving.client(None);
    reader.subscribe(topic, 0);
    let payload_of = |number: u32| {
        let len = 1000 + (number * 7919) % 200_000;
        batch(&(0..len).map(|at| (at * 31 + number) as u8).collect::<Vec<u8>>())
    };
    for number in 0..150 {
        let payload = payload_of(number);
        let produce = Produce { head: head(topic, 0, DurableLevel::Synced, &payload), payload: &payload };
        assert!(matches!(producer.ask(&Request::Produce(produce)), Said::Stored(_)));
    }
    for number in 0..150 {
        match reader.receive().1 {
            Said::Batch { head, payload, .. } => {
                assert_eq!(head.base_offset.0, u64::from(number));
                assert!(payload == payload_of(number), "bytes of {number} differ");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}
