//! Disks that give wrong bytes, none, or refuse a write: who wants them is told, and nobody else is harmed.

use super::directories;
use super::serving::{Said, batch, head, serve, settings};
use crate::control::settings::{Settings, TestFault};
use crate::log::CloseError;
use crate::shard::run::RunError;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Epoch, QueueId, QueueOffset};
use peregrine_protocol::limits::BLOCK;
use peregrine_protocol::message::{Fetch, Produce, Request};
use peregrine_protocol::placement::shard_of_queue;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

/// A header that did not read back was read again for ever, and what the connection's other readers wanted stood behind it.
#[test]
fn a_damaged_batch_on_disk_ends_its_reader_alone() {
    let (data, rings) = directories();
    let settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data.path(), rings.path(), 1) };
    let serving = serve(&settings);
    let mut client = serving.client(None);
    let topic = client.create("damaged", 2);
    let payload = batch(&vec![7; 40_000]);
    let mut first = None;
    for _ in 0..40 {
        for queue in 0..2 {
            let head = head(topic, queue, DurableLevel::Synced, &payload);
            match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
                Said::Stored(stored) => first = first.or(stored.position),
                other => panic!("{other:?}"),
            }
        }
    }
    let segment = data.path().join("shard-0000/00000000000000000000-0000000001");
    let file = std::fs::OpenOptions::new().write(true).open(segment).expect("the first segment");
    let at = BLOCK + first.expect("a position").0 + 40;
    file.write_all_at(&[0xEE; 8], at).and_then(|()| file.sync_all()).expect("to damage it");

    let subscription = client.subscribe(topic, 0).subscription;
    match client.receive().1 {
        Said::Ended { code, of } => assert_eq!((code, of), (ErrorCode::Damaged.number(), subscription.0)),
        other => panic!("{other:?}"),
    }
    let fetch = |queue, offset| {
        let (queue, offset) = (QueueId(queue), QueueOffset(offset));
        Request::Fetch(Fetch { topic, queue, epoch: Epoch::ANY, offset, max_messages: 1, max_bytes: 50_000 })
    };
    match client.ask(&fetch(0, 0)) {
        Said::Error { code } => assert_eq!(code, ErrorCode::Damaged.number()),
        other => panic!("{other:?}"),
    }
    for (queue, offset) in [(0, 1), (1, 0)] {
        match client.ask(&fetch(queue, offset)) {
            Said::Fetched { batches, .. } => assert_eq!(batches[0].0.base_offset.0, offset),
            other => panic!("{other:?}"),
        }
    }
    client.subscribe(topic, 1);
    for number in 0..40 {
        match client.receive().1 {
            Said::Batch { head, .. } => assert_eq!(head.base_offset.0, number),
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}

/// An I/O error of a read closed the whole connection; its client came back and asked again, for ever.
#[test]
fn an_unreadable_block_on_disk_ends_its_reader_alone() {
    let (data, rings) = directories();
    let settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data.path(), rings.path(), 2) };
    let serving = serve(&settings);
    let mut client = serving.client(Some(0));
    let topic = client.create("unreadable", 8);
    // By the connection's own shard, and by the other one, through its proxy.
    for shard in 0..2 {
        let queues: Vec<u32> =
            (0..8).filter(|&queue| shard_of_queue("unreadable", QueueId(queue), 2).0 == shard).collect();
        let [good, bad, ..] = queues[..] else { panic!("{queues:?}") };
        let payload = batch(&vec![7; 40_000]);
        let mut positions = Vec::new();
        for queue in [vec![good; 10], vec![bad; 40]].concat() {
            let head = head(topic, queue, DurableLevel::Synced, &payload);
            match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
                Said::Stored(stored) => positions.extend(stored.position),
                other => panic!("{other:?}"),
            }
        }
        // The file ends behind the first header of the second queue: its payload cannot be read.
        let segment = data.path().join(format!("shard-{shard:04}/00000000000000000000-0000000001"));
        let file = std::fs::OpenOptions::new().write(true).open(segment).expect("the first segment");
        file.set_len((BLOCK + positions[10].0 + 96).next_multiple_of(BLOCK)).expect("to cut it");

        let subscription = client.subscribe(topic, bad).subscription;
        match client.receive().1 {
            Said::Ended { code, of } => assert_eq!((code, of), (ErrorCode::Damaged.number(), subscription.0)),
            other => panic!("{other:?}"),
        }
        let (queue, offset) = (QueueId(bad), QueueOffset(0));
        let fetch = Fetch { topic, queue, epoch: Epoch::ANY, offset, max_messages: 1, max_bytes: 50_000 };
        match client.ask(&Request::Fetch(fetch)) {
            Said::Error { code } => assert_eq!(code, ErrorCode::Damaged.number()),
            other => panic!("{other:?}"),
        }
        client.subscribe(topic, good);
        for number in 0..10 {
            match client.receive().1 {
                Said::Batch { head, .. } => assert_eq!(head.base_offset.0, number),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(serving.stop().is_ok());
}

#[test]
fn a_failed_flush_poisons_and_the_stop_says_what_stands_only_in_the_ring() {
    let (data, rings) = directories();
    let mut settings = settings(data.path(), rings.path(), 1);
    let serving = serve(&settings);
    let topic = serving.client(None).create("poisoned", 1);
    assert!(serving.stop().is_ok());
    settings.test_faults.push(TestFault::FailWrite(1));
    let serving = serve(&settings);
    let mut client = serving.client(None);
    let payload = batch(b"kept in the ring");
    let memory = Produce { head: head(topic, 0, DurableLevel::Memory, &payload), payload: &payload };
    assert!(matches!(client.ask(&Request::Produce(memory)), Said::Stored(_)));
    let synced = Produce { head: head(topic, 0, DurableLevel::Synced, &payload), payload: &payload };
    for _ in 0..2 {
        match client.ask(&Request::Produce(synced)) {
            Said::Error { code } => assert_eq!(code, ErrorCode::Poisoned.number()),
            other => panic!("{other:?}"),
        }
    }
    client.subscribe(topic, 0);
    assert!(matches!(client.receive().1, Said::Batch { .. }), "what was visible is still served");
    match serving.stop() {
        Err(RunError::Close(CloseError::Poisoned { messages, .. })) => assert!((1..=2).contains(&messages)),
        other => panic!("{other:?}"),
    }
}

/// Every connection that asked for the batch was closed, for ever.
#[test]
fn an_unreadable_block_far_into_a_large_batch_closes_one_connection_and_then_ends_its_reader_alone() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 1));
    let mut client = serving.client(None);
    let topic = client.create("far", 2);
    let payload = batch(&vec![7; 900_000]);
    let mut positions = Vec::new();
    // Two batches of the first queue, and then as many of the second as push them all out of the ring.
    for queue in [vec![0; 2], vec![1; 12]].concat() {
        let head = head(topic, queue, DurableLevel::Synced, &payload);
        match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
            Said::Stored(stored) => positions.extend(stored.position),
            other => panic!("{other:?}"),
        }
    }
    let segment = data.path().join("shard-0000/00000000000000000000-0000000001");
    let file = std::fs::OpenOptions::new().write(true).open(segment).expect("the first segment");
    file.set_len((BLOCK + positions[2].0 + 600_000).next_multiple_of(BLOCK)).expect("to cut it");

    let mut unlucky = serving.client(None);
    unlucky.subscribe(topic, 1);
    let end = unlucky.socket.read_to_end(&mut Vec::new());
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "it is closed");

    let subscription = client.subscribe(topic, 1).subscription;
    match client.receive().1 {
        Said::Ended { code, of } => assert_eq!((code, of), (ErrorCode::Damaged.number(), subscription.0)),
        other => panic!("{other:?}"),
    }
    // Large batches that can be read still come.
    client.subscribe(topic, 0);
    for number in 0..2 {
        match client.receive().1 {
            Said::Batch { head, payload: back, .. } => {
                assert_eq!(head.base_offset.0, number);
                assert!(back == payload, "bytes differ");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}
