//! Batches on their way in, and out again: every layout of shards, large ones, and a ring that is full.

use super::directories;
use super::room::switch;
use super::serving::{Said, batch, head, serve, settings};
use crate::control::settings::{Settings, Switch, TestFault};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, DurableLevel};
use peregrine_protocol::message::{Produce, Request, Stats};
use std::io::Write;
use std::sync::atomic::Ordering;

fn produce_and_read(shards: u16) {
    let (data, rings) = directories();
    let settings = settings(data.path(), rings.path(), shards);
    let serving = serve(&settings);
    // One connection, to whatever shard: requests for others cross the mesh.
    let mut client = serving.client(None);
    assert_eq!(client.shards, shards);
    let topic = client.create("orders", 4);
    for queue in 0..4 {
        for (number, level) in [DurableLevel::Memory, DurableLevel::Synced].into_iter().enumerate() {
            let payload = batch(format!("message {number} of queue {queue}").as_bytes());
            let produce = Produce { head: head(topic, queue, level, &payload), payload: &payload };
            match client.ask(&Request::Produce(produce)) {
                Said::Stored(stored) => {
                    assert_eq!((stored.base_offset.0, stored.level), (number as u64, level));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    for queue in 0..4 {
        let subscription = client.subscribe(topic, queue).subscription;
        for number in 0..2 {
            match client.receive().1 {
                Said::Batch { subscription: of, head, payload } => {
                    assert_eq!((of, head.base_offset.0), (subscription, number));
                    assert_eq!(payload, batch(format!("message {number} of queue {queue}").as_bytes()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    match client.ask(&Request::Stats(Stats::Latency)) {
        Said::Json(text) => assert!(text.contains("received_to_appended"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(serving.stop().is_ok());

    // What was acknowledged is there after the stop, at any shard's socket.
    let serving = serve(&settings);
    assert_eq!(serving.messages_from_ring, 0);
    for shard in 0..shards {
        let mut client = serving.client(Some(shard));
        assert_eq!(client.shard.0, shard);
        for queue in 0..4 {
            client.subscribe(topic, queue);
            for number in 0..2 {
                match client.receive().1 {
                    Said::Batch { head, .. } => assert_eq!(head.base_offset.0, number),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert!(serving.stop().is_ok());
}

#[test]
fn one_shard_stores_and_delivers() {
    produce_and_read(1);
}

#[test]
fn two_shards_answer_for_each_other() {
    produce_and_read(2);
}

#[test]
fn four_shards_on_two_cores_answer_for_each_other() {
    produce_and_read(4);
}

#[test]
fn a_large_batch_is_taken_in_steps_and_comes_back_whole() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    let mut client = serving.client(Some(0));
    let topic = client.create("large", 2);
    for queue in 0..2 {
        let body: Vec<u8> = (0..900_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
        let payload = batch(&body);
        let produce = Produce { head: head(topic, queue, DurableLevel::Synced, &payload), payload: &payload };
        assert!(matches!(client.ask(&Request::Produce(produce)), Said::Stored(_)));
        client.subscribe(topic, queue);
        match client.receive().1 {
            Said::Batch { payload: back, .. } => assert!(back == payload, "bytes differ"),
            other => panic!("{other:?}"),
        }
        let mut wrong = head(topic, queue, DurableLevel::Synced, &payload);
        wrong.payload_crc ^= 1;
        match client.ask(&Request::Produce(Produce { head: wrong, payload: &payload })) {
            Said::Error { code } => assert_eq!(code, ErrorCode::CorruptPayload.number()),
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}

#[test]
fn a_full_ring_is_answered_busy_after_a_while_and_other_connections_go_on() {
    let (data, rings) = directories();
    let mut settings =
        Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data.path(), rings.path(), 1) };
    // With flushes held the topic could not become durable: it comes from an earlier run.
    let serving = serve(&settings);
    let topic = serving.client(None).create("full", 1);
    assert!(serving.stop().is_ok());
    settings.test_faults.push(TestFault::HoldFlushes);
    let serving = serve(&settings);
    let mut client = serving.client(None);
    let payload = batch(&[7; 10_000]);
    let produce = Produce { head: head(topic, 0, DurableLevel::Memory, &payload), payload: &payload };
    let mut stored = 0;
    let busy = loop {
        match client.ask(&Request::Produce(produce)) {
            Said::Stored(_) => stored += 1,
            Said::Error { code } => break code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(busy, ErrorCode::Busy.number());
    assert!(stored > 80, "{stored} batches of 10 KB in a ring of 1 MiB");
    // What is in the ring is served, also to somebody else, while the producer's requests wait.
    client.send(&Request::Produce(produce));
    let mut reader = serving.client(None);
    reader.subscribe(topic, 0);
    for number in 0..stored {
        match reader.receive().1 {
            Said::Batch { head, .. } => assert_eq!(head.base_offset.0, number),
            other => panic!("{other:?}"),
        }
    }
}

/// A batch that found no place for its acknowledgement waited for the next flush, or for ever where none came.
#[test]
fn a_batch_that_waits_for_a_place_among_the_acknowledgements_is_woken_when_one_comes_free() {
    const BATCHES: u64 = 100;
    let (data, rings) = directories();
    let mut settings = settings(data.path(), rings.path(), 1);
    let serving = serve(&settings);
    let topic = serving.client(None).create("places", 1);
    assert!(serving.stop().is_ok());
    let held = switch(true);
    settings.test_faults = vec![
        TestFault::HoldFlushesWhile(Switch(held)),
        TestFault::PatientWhile(Switch(held)),
        TestFault::AcknowledgementPlaces(4),
    ];
    let serving = serve(&settings);
    let (mut client, mut observer) = (serving.client(None), serving.client(None));
    let payload = batch(b"one of many");
    let mut bytes = Vec::new();
    for number in 0..BATCHES {
        let produce = Produce { head: head(topic, 0, DurableLevel::Memory, &payload), payload: &payload };
        Request::Produce(produce).encode(Correlation(number), &mut bytes);
    }
    client.socket.write_all(&bytes).expect("send");
    loop {
        let figures: serde_json::Value = match observer.ask(&Request::Stats(Stats::Shards)) {
            Said::Json(text) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("{other:?}"),
        };
        let figure = |name: &str| figures["shards"][0][name].as_u64().expect(name);
        let lost = figure("waiting_for_room") > 0 && figure("waiting_acknowledgements") < 4;
        assert!(!lost, "a place is free, and who waits for it was not woken");
        if figure("produced_batches") == BATCHES {
            break;
        }
    }
    for number in 0..BATCHES {
        match client.receive() {
            (correlation, Said::Stored(_)) => assert_eq!(correlation.0, number),
            other => panic!("{other:?}"),
        }
    }
    held.store(false, Ordering::Relaxed);
    assert!(serving.stop().is_ok());
}
