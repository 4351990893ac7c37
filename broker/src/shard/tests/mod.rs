//! Shards that serve sockets, in this process.

mod serving;

use crate::control::settings::{Settings, TestFault};
use crate::limits::SUBSCRIPTIONS_PER_CONNECTION;
use crate::log::CloseError;
use crate::shard::run::RunError;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, DurableLevel, Epoch, QueueId, QueueOffset, ShardId};
use peregrine_protocol::limits::BLOCK;
use peregrine_protocol::message::{AlterTopic, DeleteTopic, Fetch, Produce, Request, Stats};
use peregrine_protocol::placement::shard_of_queue;
use serving::{Said, batch, head, serve, settings};
use std::io::Write;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

fn directories() -> (TempDir, TempDir) {
    (tempfile::tempdir().expect("a directory"), tempfile::tempdir_in("/dev/shm").expect("a tmpfs"))
}

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
fn an_unknown_topic_is_asked_for_and_then_refused() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    for shard in 0..2 {
        let mut client = serving.client(Some(shard));
        let payload = batch(b"x");
        let head = head(peregrine_protocol::ids::TopicId(99), 0, DurableLevel::Memory, &payload);
        match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
            Said::Error { code } => assert_eq!(code, ErrorCode::UnknownTopic.number()),
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}

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

/// More subscriptions than one connection may have, one after the other: each that is told of its end makes place.
#[test]
fn subscriptions_ended_by_a_deleted_topic_give_their_places_back() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 1));
    let mut client = serving.client(None);
    for name in ["first", "second"] {
        let topic = client.create(name, 1);
        for _ in 0..SUBSCRIPTIONS_PER_CONNECTION {
            client.subscribe(topic, 0);
        }
        client.send(&Request::DeleteTopic(DeleteTopic { name, id: Some(topic) }));
        let mut ended = 0;
        while ended < SUBSCRIPTIONS_PER_CONNECTION {
            ended += usize::from(matches!(client.receive().1, Said::Ended { .. }));
        }
    }
    assert!(serving.stop().is_ok());
}

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

#[test]
fn a_change_of_the_catalogue_is_known_to_every_shard_when_it_is_answered() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    let mut clients = [serving.client(Some(0)), serving.client(Some(1))];
    let payload = batch(b"x");
    for round in 0..20 {
        let name = format!("topic-{round}");
        let by = round % 2;
        let topic = clients[by].create(&name, 1);
        assert_eq!(clients[1 - by].create(&name, 1), topic, "create is idempotent");
        let alter = AlterTopic { name: &name, queues: 6 };
        assert!(matches!(clients[1 - by].ask(&Request::AlterTopic(alter)), Said::Topic { .. }));
        for queue in 0..6 {
            let synced = Produce { head: head(topic, queue, DurableLevel::Synced, &payload), payload: &payload };
            for client in &mut clients {
                assert!(matches!(client.ask(&Request::Produce(synced)), Said::Stored(_)));
            }
        }
        let subscription = clients[by].subscribe(topic, 5).subscription;
        for _ in 0..2 {
            assert!(matches!(clients[by].receive().1, Said::Batch { .. }));
        }
        let delete = DeleteTopic { name: &name, id: Some(topic) };
        assert!(matches!(clients[1 - by].ask(&Request::DeleteTopic(delete)), Said::Topic { .. }));
        match clients[by].receive().1 {
            Said::Ended { code, of } => assert_eq!((code, of), (ErrorCode::TopicDeleted.number(), subscription.0)),
            other => panic!("{other:?}"),
        }
        for client in &mut clients {
            let late = Produce { head: head(topic, 3, DurableLevel::Memory, &payload), payload: &payload };
            match client.ask(&Request::Produce(late)) {
                Said::Error { code } => assert_eq!(code, ErrorCode::TopicDeleted.number()),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(serving.stop().is_ok());
}

/// Found by a test that heard nothing for 20 s: a shard without any other work never told its readers.
#[test]
fn a_deleted_topic_ends_its_readers_on_a_shard_that_is_idle() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    let mut home = serving.client(Some(0));
    let mut readers = [serving.client(Some(0)), serving.client(Some(1))];
    // The first rounds may meet a shard that still makes its next segment; nothing wakes it in the later ones.
    for round in 0..50 {
        let name = format!("idle-{round}");
        let topic = home.create(&name, 2);
        let subscriptions =
            readers.each_mut().map(|reader| [0, 1].map(|queue| reader.subscribe(topic, queue).subscription.0));
        let delete = DeleteTopic { name: &name, id: Some(topic) };
        assert!(matches!(home.ask(&Request::DeleteTopic(delete)), Said::Topic { .. }));
        for (reader, mut expected) in readers.iter_mut().zip(subscriptions) {
            let mut ended = [reader.receive().1, reader.receive().1].map(|said| match said {
                Said::Ended { code, of } if code == ErrorCode::TopicDeleted.number() => of,
                other => panic!("{other:?}"),
            });
            ended.sort_unstable();
            expected.sort_unstable();
            assert_eq!(ended, expected);
        }
    }
    assert!(serving.stop().is_ok());
}

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
