//! Messages looked up by id, by place and by key: what is acknowledged and kept is found, exactly that, over sealed and open segments,
//! restarts, kills, retention and damaged indexes.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use peregrine_client::{
    Client, Delivery, DurableLevel, Error, ErrorCode, Message, MessageId, MessageLocator, Nanos, QueueId, QueueOffset,
    Receipt,
};
use peregrine_protocol::ids::{Correlation, LogPosition, ShardId};
use peregrine_protocol::message::{Answer, FindMessages, GetMessage, Metadata, Produce, ProduceHead, Request};
use peregrine_protocol::record::RecordDraft;
use peregrine_tests::broker::{Broker, Settings, eventually};
use peregrine_tests::random::Random;
use peregrine_tests::wire::{Heard, Wire, produce_head, whole};

const TOPICS: [(&str, u32); 2] = [("orders", 4), ("payments", 3)];
const KEYS: u64 = 12;
/// With bodies up to 8 KiB several segments of 4 MiB on each of two shards, of which the ring holds the last quarter of one.
const MESSAGES: u64 = 6_000;
/// Of which so many are looked up one by one.
const LOOKED_UP: usize = 300;
const INDEXES_WITHIN: Duration = Duration::from_secs(60);

/// A message, and what its acknowledgement said.
struct Stored {
    topic: &'static str,
    key: Option<String>,
    body: Vec<u8>,
    receipt: Receipt,
}

async fn connect(broker: &Broker) -> Client {
    Client::connect(broker.address().to_string()).await.unwrap()
}

/// Messages with keys and without, at both levels, to the queue of their key or to any.
async fn store(client: &Client, numbers: std::ops::Range<u64>, random: &mut Random) -> Vec<Stored> {
    let mut producers = BTreeMap::new();
    for (topic, _) in TOPICS {
        producers.insert(topic, client.producer(topic).build().await.unwrap());
    }
    let mut sent = Vec::new();
    for number in numbers {
        let (topic, queues) = TOPICS[random.below(2) as usize];
        let key = (random.below(5) > 0).then(|| format!("key-{}", random.below(KEYS)));
        let body = format!("{number}:{}", "x".repeat(random.below(8_000) as usize)).into_bytes();
        let level = if random.below(2) == 0 { DurableLevel::Memory } else { DurableLevel::Synced };
        let mut message = Message::new(body.clone()).level(level);
        if let Some(key) = &key {
            message = message.key(key.clone());
        }
        if random.below(3) == 0 {
            message = message.queue(QueueId(random.below(queues.into()) as u32));
        }
        sent.push((topic, key, body, producers[topic].enqueue(message).await.unwrap()));
    }
    let mut stored = Vec::new();
    for (topic, key, body, acknowledged) in sent {
        stored.push(Stored { topic, key, body, receipt: acknowledged.acknowledged().await.unwrap() });
    }
    stored
}

/// Everything is found, by id, by place and by key, and nothing else is.
async fn check(broker: &Broker, stored: &[Stored], random: &mut Random) {
    let client = connect(broker).await;
    for _ in 0..LOOKED_UP {
        let expected = &stored[random.below(stored.len() as u64) as usize];
        let id = expected.receipt.id.unwrap();
        check_message(&client.get_message(id).await.unwrap(), expected);
        let Receipt { queue, offset, .. } = expected.receipt;
        check_message(&client.get_message_at(expected.topic, queue, offset).await.unwrap(), expected);
        // Nothing else is at its place, and it is not beside it.
        for other in [
            MessageLocator { check: id.check ^ 1, ..id },
            MessageLocator { id: MessageId(id.id.0 + 1), ..id },
            MessageLocator { id: MessageId(id.id.0.wrapping_sub(1)), ..id },
            MessageLocator { id: MessageId::new(ShardId(2), id.id.position()), ..id },
        ] {
            let outcome = client.get_message(other).await;
            assert_eq!(outcome.as_ref().err().and_then(Error::code), Some(ErrorCode::UnknownMessage), "{outcome:?}");
        }
    }
    for (topic, _) in TOPICS {
        for key in 0..=KEYS {
            let key = format!("key-{key}");
            let of_key = |stored: &&Stored| stored.topic == topic && stored.key.as_ref() == Some(&key);
            let expected: Vec<_> = stored.iter().filter(of_key).collect();
            // Small pages are put together as large ones are.
            let found = find(&client, topic, &key, Nanos::ZERO, Nanos::MAX, 1 + random.below(256) as u32).await;
            check_found(&found, &expected);
            if let Some(middle) = found.get(found.len() / 2).map(|message| message.store_time) {
                let before = find(&client, topic, &key, Nanos::ZERO, middle, 256).await;
                let after = find(&client, topic, &key, middle, Nanos::MAX, 256).await;
                assert!(before.iter().all(|message| message.store_time < middle) && !after.is_empty());
                assert_eq!([before, after].concat(), found, "each on one side of a time");
            }
        }
    }
}

async fn find(client: &Client, topic: &str, key: &str, begin: Nanos, end: Nanos, page: u32) -> Vec<Delivery> {
    let find = client.find(topic, key.as_bytes().to_vec()).between(begin, end).page(page);
    let mut found = find.start().await.unwrap();
    let mut messages = Vec::new();
    while let Some(message) = found.next().await {
        messages.push(message.unwrap());
    }
    messages
}

fn check_message(message: &Delivery, expected: &Stored) {
    let Stored { topic, key, body, receipt } = expected;
    assert_eq!((&*message.topic, message.queue, message.offset), (*topic, receipt.queue, receipt.offset));
    assert_eq!((Some(message.id), message.epoch), (receipt.id, receipt.epoch));
    assert_eq!(message.key.as_deref(), key.as_ref().map(String::as_bytes));
    assert_eq!(message.body, body[..]);
}

fn check_found(found: &[Delivery], expected: &[&Stored]) {
    let mut expected: BTreeMap<_, _> =
        expected.iter().map(|stored| ((stored.receipt.queue, stored.receipt.offset), *stored)).collect();
    assert!(found.is_sorted_by_key(|message| message.store_time), "in the order in which they were stored");
    for message in found {
        let stored = expected.remove(&(message.queue, message.offset));
        check_message(message, stored.expect("stored with that key, and found once"));
    }
    assert!(expected.is_empty(), "{} were not found", expected.len());
}

fn indexes(broker: &Broker) -> Vec<PathBuf> {
    let folders = ["shard-0000", "shard-0001"].map(|name| broker.data().join(name));
    let files = folders.iter().filter(|folder| folder.exists()).flat_map(|folder| fs::read_dir(folder).unwrap());
    let is_index = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("index-");
    files.map(|file| file.unwrap().path()).filter(is_index).collect()
}

fn create_topics(broker: &Broker) {
    for (topic, queues) in TOPICS {
        broker.command_line().create_topic(topic, queues);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn messages_are_found_by_id_and_key_after_restarts_kills_and_damage() {
    let mut random = Random::for_test();
    let mut broker = Settings::default().shards(2).start();
    create_topics(&broker);
    let mut stored = store(&connect(&broker).await, 0..MESSAGES, &mut random).await;
    // Some segments have their indexes by now, some do not.
    check(&broker, &stored, &mut random).await;
    eventually("the indexes of sealed segments", INDEXES_WITHIN, || indexes(&broker).len() >= 4);
    check(&broker, &stored, &mut random).await;

    broker.kill_nine();
    broker.start_again();
    check(&broker, &stored, &mut random).await;
    stored.extend(store(&connect(&broker).await, MESSAGES..MESSAGES + 500, &mut random).await);
    check(&broker, &stored, &mut random).await;

    assert!(broker.terminate().success());
    let made = indexes(&broker);
    for (number, path) in made.iter().enumerate() {
        if number % 2 == 0 {
            fs::remove_file(path).unwrap();
            continue;
        }
        // Its header is sound, so that the damage is met by who looks something up.
        let mut bytes = fs::read(path).unwrap();
        for block in bytes.chunks_exact_mut(4096).skip(1) {
            block[100] ^= 1;
        }
        fs::write(path, bytes).unwrap();
    }
    broker.start_again();
    check(&broker, &stored, &mut random).await;
    eventually("all indexes again", INDEXES_WITHIN, || indexes(&broker).len() >= made.len());
    check(&broker, &stored, &mut random).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_longer_kept_is_told_and_not_found() {
    const LINE: usize = 1_000;
    let settings = Settings::default().segment_bytes(4 << 20).argument("--checkpoint-age=100ms");
    let mut broker = settings.argument(format!("--retention-size={}", 16 << 20)).start();
    broker.command_line().create_topic("orders", 1);
    let client = connect(&broker).await;
    let producer = client.producer("orders").build().await.unwrap();
    let mut receipts = Vec::new();
    while client.admin().describe_topic("orders").await.unwrap().queues[0].start.0 == 0 {
        let mut sent = Vec::new();
        for _ in 0..2_000 {
            let message = Message::new(vec![b'x'; LINE]).key("one key").level(DurableLevel::Memory);
            sent.push(producer.enqueue(message).await.unwrap());
        }
        for acknowledged in sent {
            receipts.push(acknowledged.acknowledged().await.unwrap());
        }
    }
    let first_message = receipts[0].id.unwrap();
    // By its queue's start at first, and when its segment is gone as well.
    for _ in 0..2 {
        let client = connect(&broker).await;
        let start = async || client.admin().describe_topic("orders").await.unwrap().queues[0].start;
        let outcome = client.get_message(first_message).await;
        assert_eq!(outcome.err().unwrap().code(), Some(ErrorCode::MessageTooOld));
        let outcome = client.get_message_at("orders", QueueId(0), receipts[0].offset).await;
        assert_eq!(outcome.err().unwrap().code(), Some(ErrorCode::OffsetTooOld));
        // More may be given up meanwhile.
        let (first, kept, found) = loop {
            let first = start().await;
            let kept = client.get_message(receipts[first.0 as usize].id.unwrap()).await;
            let found = find(&client, "orders", "one key", Nanos::ZERO, Nanos::MAX, 256).await;
            if start().await == first {
                break (first, kept.unwrap(), found);
            }
        };
        assert_eq!((kept.offset, found[0].offset), (first, first));
        assert_eq!(found.len() as u64, receipts.len() as u64 - first.0);
        let ended = broker.command_line().run(&["message", "get", &first_message.to_string()]);
        assert!(!ended.status.success() && ended.stderr.contains("no longer kept"), "{ended:?}");
        // Nothing more is given up while it is looked at.
        broker.kill_nine();
        broker.set_arguments(&[]);
        broker.start_again();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_failure_can_take_back_is_not_shown() {
    let mut broker = Settings::default().start();
    broker.command_line().create_topic("orders", 2);
    assert!(broker.terminate().success());
    broker.set_arguments(&["--test-fault=hold-flushes"]);
    broker.start_again();
    let client = connect(&broker).await;
    let producer = client.producer("orders").build().await.unwrap();
    let message = |queue, level| Message::new("body").key("key").queue(QueueId(queue)).level(level);
    let waiting = producer.enqueue(message(0, DurableLevel::Synced)).await.unwrap();
    let shown = producer.send(message(1, DurableLevel::Memory)).await.unwrap();
    // Its level is reached, but not that of the one before it in its queue.
    let behind = producer.send(message(0, DurableLevel::Memory)).await.unwrap();
    let found = find(&client, "orders", "key", Nanos::ZERO, Nanos::MAX, 256).await;
    assert_eq!(found.iter().map(|message| message.queue.0).collect::<Vec<_>>(), [1]);
    assert_eq!(client.get_message(shown.id.unwrap()).await.unwrap().id, shown.id.unwrap());
    let outcome = client.get_message(behind.id.unwrap()).await;
    assert_eq!(outcome.err().unwrap().code(), Some(ErrorCode::UnknownMessage));
    drop(waiting);
}

/// As the broker's unit tests of the search make them.
fn keys_of_one_hash() -> [Vec<u8>; 2] {
    const P1: u64 = 0x9E37_79B1_85EB_CA87;
    const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    let inverse = (0..6).fold(P2, |inverse: u64, _| inverse.wrapping_mul(2u64.wrapping_sub(P2.wrapping_mul(inverse))));
    let lane = |word: u64| P2.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1);
    let later = lane(0).wrapping_sub(lane(1)).wrapping_mul(inverse);
    [(0u64, 0u64), (1, later)].map(|(first, later)| {
        let mut key = vec![7; 56];
        key[..8].copy_from_slice(&first.to_le_bytes());
        key[32..40].copy_from_slice(&later.to_le_bytes());
        key
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_are_compared_and_large_messages_are_found() {
    let mut broker = Settings::default().ring_bytes(16 << 20).start();
    broker.command_line().create_topic("orders", 1);
    broker.command_line().create_topic("others", 1);
    let client = connect(&broker).await;
    let [one, other] = keys_of_one_hash();
    for (topic, key, body) in [
        ("orders", &one, vec![1; 3 << 20]),
        ("orders", &other, vec![2; 100]),
        ("others", &one, vec![3; 100]),
        ("orders", &one, vec![4; 3 << 20]),
    ] {
        let producer = client.producer(topic).build().await.unwrap();
        let receipt = producer.send(Message::new(body.clone()).key(key.clone())).await.unwrap();
        assert_eq!(client.get_message(receipt.id.unwrap()).await.unwrap().body, body);
    }
    for _ in 0..2 {
        let client = connect(&broker).await;
        for (topic, key, expected) in [
            ("orders", &one, vec![1, 4]),
            ("orders", &other, vec![2]),
            ("others", &one, vec![3]),
            ("others", &other, vec![]),
        ] {
            let mut found = client.find(topic, key.clone()).start().await.unwrap();
            let mut bodies = Vec::new();
            while let Some(message) = found.next().await {
                bodies.push(message.unwrap().body[0]);
            }
            assert_eq!(bodies, expected, "{topic}");
        }
        // What was open is sealed.
        broker.kill_nine();
        broker.start_again();
        eventually("the index of the sealed segment", INDEXES_WITHIN, || !indexes(&broker).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_id_of_another_data_directory_or_a_deleted_topic_is_refused() {
    let [broker, other] = [(); 2].map(|()| Settings::default().start());
    let mut ids = Vec::new();
    for broker in [&broker, &other] {
        let mut wire = Wire::open(broker.address());
        let topic = wire.create_topic("orders", 1);
        let mut payload = Vec::new();
        // To the byte the same on both.
        RecordDraft { body: b"body", ..RecordDraft::default() }.append_to(&mut payload);
        let head = produce_head(topic, DurableLevel::Synced, &payload);
        wire.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| {
            assert!(matches!(answer, Answer::Produce(_)), "{answer:?}");
        });
        let client = connect(broker).await;
        ids.push(client.get_message_at("orders", QueueId(0), QueueOffset(0)).await.unwrap().id);
    }
    assert_eq!(ids[0].id, ids[1].id, "both logs are the same");
    let client = connect(&broker).await;
    client.get_message(ids[0]).await.unwrap();
    let code = async |id| client.get_message(id).await.err().and_then(|error| error.code());
    assert_eq!(code(ids[1]).await, Some(ErrorCode::UnknownMessage));
    broker.command_line().run(&["topic", "delete", "orders"]).succeeded();
    assert_eq!(code(ids[0]).await, Some(ErrorCode::TopicDeleted));
}

#[test]
fn too_many_look_ups_at_once_are_busy_and_a_wrong_shard_passes_them_on() {
    let broker = Settings::default().shards(2).start();
    let mut wire = Wire::open(broker.address());
    let topic = wire.create_topic("orders", 2);
    // On both shards, whichever this connection is served by.
    let mut payload = Vec::new();
    RecordDraft { key: Some(b"key"), body: b"body", ..RecordDraft::default() }.append_to(&mut payload);
    let crc = u32::from_le_bytes(*payload[4..].first_chunk().unwrap());
    let mut ids = Vec::new();
    for queue in [QueueId(0), QueueId(1)] {
        let head = ProduceHead { queue, ..produce_head(topic, DurableLevel::Synced, &payload) };
        ids.push(wire.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| match answer {
            Answer::Produce(answer) => MessageId::new(answer.shard, LogPosition(answer.position.unwrap().0 + 96)),
            other => panic!("{other:?}"),
        }));
    }
    assert_ne!(ids[0].shard(), ids[1].shard());
    let directory = wire.ask(&Request::Metadata(Metadata::of(&["orders"])), |answer| {
        let Answer::Metadata(metadata) = answer else { panic!("{answer:?}") };
        metadata.directory
    });
    for id in ids {
        let message = MessageLocator::new(directory, id, crc);
        wire.ask(&Request::GetMessage(GetMessage { message }), |answer| {
            let Answer::GetMessage(found) = answer else { panic!("{answer:?}") };
            assert_eq!((found.name, found.shard, found.messages.len()), ("orders", id.shard(), 1));
        });
    }
    // In one write, so that they come in one turn.
    let (begin, end, from, limit) = (Nanos::ZERO, Nanos::MAX, LogPosition(0), 1);
    let find = FindMessages { topic, key: b"key", begin, end, from, limit };
    let mut bytes = Vec::new();
    for number in 0..40 {
        Request::FindMessages(find).encode(Correlation(1_000 + number), &mut bytes);
    }
    wire.send(&bytes).unwrap();
    let (mut found, mut busy, mut answered) = (0, 0, Vec::new());
    for _ in 0..40 {
        let Heard::Frame(bytes) = wire.hear(Duration::from_secs(20)) else { panic!("an answer is missing") };
        let frame = whole(&bytes);
        answered.push(frame.head.correlation.0);
        match Answer::decode(&frame).unwrap() {
            Answer::FindMessages(answer) => found += answer.messages.len(),
            Answer::Error(error) => {
                assert_eq!(error.known_code(), Some(ErrorCode::Busy));
                assert!(error.detail.retry_after_ns.is_some(), "it says when to come again");
                busy += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, (1_000..1_040).collect::<Vec<_>>(), "each is answered once");
    assert!(found >= 4 && busy > 0 && found + busy == 40, "{found} found, {busy} busy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_ends_where_it_looked_at_enough_and_the_next_one_goes_on() {
    let broker = Settings::default().segment_bytes(64 << 20).start();
    broker.command_line().create_topic("orders", 1);
    let client = connect(&broker).await;
    let producer = client.producer("orders").build().await.unwrap();
    let mut sent = Vec::new();
    // Segments of 4 and 16 MiB, and one that is half full and open.
    for number in 0..800 {
        let message = if number == 799 { Message::new("rare").key("rare") } else { Message::new(vec![0; 64 << 10]) };
        sent.push(producer.enqueue(message.level(DurableLevel::Memory)).await.unwrap());
    }
    for acknowledged in sent {
        acknowledged.acknowledged().await.unwrap();
    }
    let mut wire = Wire::open(broker.address());
    let topic = client.topic("orders").await.unwrap().id;
    let (mut from, mut pages, mut found) = (Some(LogPosition(0)), 0, 0);
    while let Some(next) = from {
        let find = FindMessages { topic, key: b"rare", begin: Nanos::ZERO, end: Nanos::MAX, from: next, limit: 256 };
        (from, found) = wire.ask(&Request::FindMessages(find), |answer| match answer {
            Answer::FindMessages(answer) => (answer.next, found + answer.messages.len()),
            other => panic!("{other:?}"),
        });
        assert!(from.is_none_or(|from| from > next), "it gets on");
        pages += 1;
    }
    assert!(pages > 2 && found == 1, "{pages} answers, {found} messages");
    assert_eq!(find(&client, "orders", "rare", Nanos::ZERO, Nanos::MAX, 256).await.len(), 1);
}

#[test]
fn what_the_producer_prints_leads_to_the_message() {
    let broker = Settings::default().shards(2).start();
    let command_line = broker.command_line();
    command_line.create_topic("orders", 3);
    let input = broker.home().join("lines");
    let lines: Vec<String> = (0..1_000).map(|number| format!("key-{},line {number}", number % 7)).collect();
    fs::write(&input, lines.join("\n") + "\n").unwrap();
    let file = input.to_str().unwrap();
    let produced = command_line.run(&["produce", "orders", file, "--key-delimiter", ",", "--ids"]).succeeded();
    assert_eq!(produced.lines().len(), lines.len());
    for (printed, line) in produced.lines().into_iter().zip(&lines).step_by(97) {
        let (place, id) = printed.split_once(' ').unwrap();
        for named in [place, id] {
            let shown = command_line.run(&["message", "get", named, "--json"]).succeeded();
            let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
            assert_eq!((shown["value"].as_str(), shown["id"].as_str()), (Some(&line[..]), Some(id)));
        }
        let shown = command_line.run(&["message", "get", id]).succeeded();
        assert!(shown.stdout.contains(&format!("value     {line}\n")), "{}", shown.stdout);
    }
    // The consumer says the same.
    let ids =
        |lines: &[&str]| -> BTreeSet<String> { lines.iter().map(|line| line[line.len() - 24..].to_owned()).collect() };
    let consumed = command_line.run(&["consume", "orders", "--format", "json"]).succeeded();
    let consumed: Vec<serde_json::Value> =
        consumed.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let consumed: Vec<&str> = consumed.iter().map(|message| message["id"].as_str().unwrap()).collect();
    assert_eq!(ids(&consumed), ids(&produced.lines()));

    let found =
        command_line.run(&["message", "find", "orders", "--key", "key-3", "--limit", "1000", "--json"]).succeeded();
    let found: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    let found_lines: Vec<_> =
        found["messages"].as_array().unwrap().iter().map(|message| message["value"].as_str()).collect();
    let expected: Vec<_> = lines.iter().filter(|line| line.starts_with("key-3,")).map(|line| Some(&line[..])).collect();
    assert_eq!((found_lines, &found["more"]), (expected, &serde_json::Value::Bool(false)));
    let some = command_line.run(&["message", "find", "orders", "--key", "key-3", "--limit", "5"]).succeeded();
    assert!(some.lines().len() == 6 && some.stderr.contains("there are more"), "{some:?}");
    let none = command_line.run(&["message", "find", "orders", "--key", "key-3", "--end", "1h"]).succeeded();
    assert_eq!(none.lines().len(), 1, "the heading alone");
    for wrong in ["00c000000000020c55ac7af9", "orders/0@9999", "nothing/0@0"] {
        let ended = command_line.run(&["message", "get", wrong]);
        assert!(!ended.status.success() && ended.stdout.is_empty() && !ended.stderr.is_empty(), "{ended:?}");
    }
}
