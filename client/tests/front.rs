//! The tokio front against a broker in memory that fails on command.

#![allow(clippy::unwrap_used)]

mod fake_broker;
mod groups;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fake_broker::{FakeBroker, Fault};
use peregrine_client::{
    Client, DurableLevel, Error, ErrorCode, Message, Producer, QueueId, QueueOffset, Reader, ShardId, Start,
};

async fn client(broker: &FakeBroker) -> Client {
    Client::builder(broker.address()).timeout(Duration::from_secs(10)).connect().await.expect("connected")
}

async fn broker_with(topic: &str, queues: u32, shards: u16) -> (FakeBroker, Client) {
    let broker = FakeBroker::start(shards).await;
    let client = client(&broker).await;
    client.admin().create_topic(topic, queues).await.expect("created");
    (broker, client)
}

async fn send_numbers(producer: &Producer, numbers: std::ops::Range<u32>) {
    let mut waiting = Vec::new();
    for number in numbers {
        waiting.push(producer.enqueue(Message::new(number.to_string()).queue(QueueId(0))).await.expect("room"));
    }
    for it in waiting {
        it.acknowledged().await.expect("acknowledged");
    }
}

async fn read(reader: &mut Reader, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let message = reader.next().await.expect("more").expect("no error");
        bodies.push(message.text().expect("text").to_owned());
    }
    bodies
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn topics_are_made_listed_described_and_deleted() {
    let (_broker, client) = broker_with("b", 9, 2).await;
    let admin = client.admin();
    for name in ["a", "c", "d", "e"] {
        admin.create_topic(name, 1).await.expect("created");
    }
    let names: Vec<String> = admin.list_topics("").await.expect("listed").into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(admin.create_topic("b", 3).await.expect_err("another number").code(), Some(ErrorCode::TopicExists));
    assert!(matches!(admin.create_topic("no/slash", 3).await, Err(Error::InvalidArgument(_))));
    let description = admin.describe_topic("b").await.expect("described");
    assert_eq!(description.queues.iter().map(|state| state.queue.0).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    assert!(admin.ping(ShardId(1)).await.is_ok());
    assert_eq!(admin.delete_topic("c").await.expect("deleted").name, "c");
    assert_eq!(admin.delete_topic("c").await.expect_err("gone").code(), Some(ErrorCode::UnknownTopic));
    assert_eq!(client.topic("c").await.expect_err("gone").code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn messages_arrive_once_in_order_by_key_over_two_shards() {
    let (broker, client) = broker_with("t", 4, 2).await;
    let producer = client.producer("t").build().await.expect("built");
    let mut waiting = Vec::new();
    for number in 0..400_u32 {
        let message = Message::new(number.to_string()).key((number % 7).to_string());
        waiting.push(producer.enqueue(message).await.expect("room"));
    }
    for it in waiting {
        assert_eq!(it.acknowledged().await.expect("acknowledged").level, DurableLevel::Synced);
    }
    assert!(broker.connections() <= 2, "one connection a shard");
    let mut reader =
        client.reader("t").from(Start::Earliest).until_end().credit(64, 1 << 20).build().await.expect("built");
    let mut by_key = std::collections::BTreeMap::<_, Vec<u32>>::new();
    let mut count = 0;
    while let Some(message) = reader.next().await {
        let message = message.expect("no error");
        count += 1;
        by_key.entry(message.key.clone()).or_default().push(message.text().expect("text").parse().expect("a number"));
    }
    assert_eq!(count, 400);
    assert!(by_key.len() == 7 && by_key.values().all(|numbers| numbers.is_sorted()));
}

#[tokio::test]
async fn lost_connections_and_lost_answers_neither_lose_nor_double() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").batch_bytes(200).build().await.expect("built");
    for _ in 0..3 {
        broker.fault(Fault::DropAfter);
        broker.fault(Fault::Refuse(ErrorCode::Busy));
        broker.fault(Fault::DropBefore);
        broker.fault(Fault::Refuse(ErrorCode::Poisoned));
    }
    send_numbers(&producer, 0..300).await;
    assert_eq!(broker.bodies("t", 0), numbers(0..300));
}

#[tokio::test]
async fn a_final_refusal_fails_its_messages_and_lets_the_others_through() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    broker.fault(Fault::Refuse(ErrorCode::CorruptPayload));
    let refused = producer.send(Message::new("bad")).await.expect_err("refused");
    assert_eq!(refused.code(), Some(ErrorCode::CorruptPayload));
    send_numbers(&producer, 0..50).await;
    assert_eq!(broker.bodies("t", 0), numbers(0..50));
    let too_large = Message::new(vec![0; 5 << 20]);
    assert!(matches!(producer.send(too_large).await, Err(Error::InvalidArgument(_))));
    assert!(matches!(producer.send(Message::new("x").queue(QueueId(1))).await, Err(Error::InvalidArgument(_))));
    client.admin().delete_topic("t").await.expect("deleted");
    let gone = producer.send(Message::new("late")).await.expect_err("deleted");
    assert_eq!(gone.code(), Some(ErrorCode::TopicDeleted));
}

#[tokio::test]
async fn producer_and_reader_outlive_the_broker() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    let mut reader = client.reader("t").from(Start::Earliest).build().await.expect("built");
    send_numbers(&producer, 0..10).await;
    assert_eq!(read(&mut reader, 10).await, numbers(0..10));
    for round in 1..4 {
        broker.kill();
        let sender = producer.clone();
        let sending = tokio::spawn(async move { send_numbers(&sender, round * 10..(round + 1) * 10).await });
        broker.restart().await;
        sending.await.expect("sent");
        assert_eq!(read(&mut reader, 10).await, numbers(round * 10..(round + 1) * 10));
    }
    assert_eq!(broker.bodies("t", 0), numbers(0..40));
}

#[tokio::test]
async fn a_power_cut_is_told_to_producer_and_reader() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let lost = Arc::new(AtomicU64::new(0));
    let noted = lost.clone();
    let producer = client.producer("t").level(DurableLevel::Memory).on_loss(move |loss| {
        assert!(loss.exact);
        noted.fetch_add(loss.messages, Ordering::Relaxed);
    });
    let producer = producer.build().await.expect("built");
    let mut reader = client.reader("t").from(Start::Earliest).build().await.expect("built");
    producer.send(Message::new("kept").level(DurableLevel::Synced)).await.expect("acknowledged");
    send_numbers(&producer, 0..5).await;
    assert_eq!(read(&mut reader, 6).await[0], "kept");
    broker.kill();
    broker.lose_power();
    broker.restart().await;
    producer.send(Message::new("after")).await.expect("acknowledged");
    assert_eq!(broker.bodies("t", 0), ["kept", "after"]);
    assert_eq!((lost.load(Ordering::Relaxed), producer.lost()), (5, 5));
    match reader.next().await {
        Some(Err(Error::Truncated { queue, at })) => assert_eq!((queue, at), (QueueId(0), QueueOffset(1))),
        other => panic!("{other:?}"),
    }
    assert_eq!(read(&mut reader, 1).await, ["after"]);
}

#[tokio::test]
async fn damage_is_seen() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    producer.send(Message::new("one")).await.expect("acknowledged");
    producer.send(Message::new("two")).await.expect("acknowledged");
    broker.corrupt("t", 0);
    let mut reader = client.reader("t").from(Start::Earliest).until_end().build().await.expect("built");
    assert_eq!(reader.next().await.expect("more").expect("whole").text(), Some("one"));
    assert!(matches!(reader.next().await, Some(Err(Error::Corrupt { offset, .. })) if offset.0 == 1));
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn a_broker_that_stays_away_ends_the_wait_in_time() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").timeout(Duration::from_millis(300)).build().await.expect("built");
    let reader = client.reader("t").from(Start::Earliest).patience(Duration::from_millis(300));
    let mut reader = reader.build().await.expect("built");
    producer.send(Message::new("one")).await.expect("acknowledged");
    assert_eq!(read(&mut reader, 1).await, ["one"]);
    broker.kill();
    let refused = producer.send(Message::new("two")).await.expect_err("nobody there");
    assert!(matches!(refused, Error::TimedOut { .. }) && refused.is_retriable());
    producer.flush().await; // what may be stored is still tried, but nobody waits for it
    assert!(matches!(reader.next().await, Some(Err(Error::Unreachable { .. }))));
    assert!(reader.next().await.is_none());
    let nobody = Client::builder(broker.address()).timeout(Duration::from_millis(100)).connect().await;
    assert!(matches!(nobody, Err(Error::Unreachable { .. })));
    assert!(Client::builder("127.0.0.1").timeout(Duration::from_millis(100)).connect().await.is_err());
}

#[tokio::test]
async fn another_data_directory_is_another_broker() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    producer.send(Message::new("one")).await.expect("acknowledged");
    broker.kill();
    broker.replace_directory();
    broker.restart().await;
    assert!(matches!(producer.send(Message::new("two")).await, Err(Error::Replaced { .. })));
    assert!(matches!(client.topic("t").await, Err(Error::Replaced { .. })));
}

#[tokio::test]
async fn what_waits_goes_as_one_batch_and_credit_bounds_what_is_read() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").buffer_bytes(4 << 10).build().await.expect("built");
    // More than the buffer takes: enqueue has to wait and goes on.
    send_numbers(&producer, 0..2_000).await;
    let mut reader = client.reader("t").from(Start::Earliest).credit(1, 1).build().await.expect("built");
    assert_eq!(read(&mut reader, 2_000).await, numbers(0..2_000));
    let calls = Arc::new(AtomicU64::new(0));
    for _ in 0..10 {
        let calls = calls.clone();
        let count = move |result: peregrine_client::Result<_>| {
            result.expect("acknowledged");
            calls.fetch_add(1, Ordering::Relaxed);
        };
        producer.send_with(Message::new("x"), count).await.expect("room");
    }
    producer.close().await;
    assert_eq!(calls.load(Ordering::Relaxed), 10);
    assert_eq!(broker.bodies("t", 0).len(), 2_010);
}
