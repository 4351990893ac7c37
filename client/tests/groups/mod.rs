//! Consumers and groups.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_client::{Client, Consumer, Delivery, Error, ErrorCode, Message, Producer, QueueId, QueueOffset, Start};
use tokio::sync::{Semaphore, mpsc};

use super::fake_broker::FakeBroker;
use super::{broker_with, client, numbers};

/// Numbers, each to the queue that it leaves as its remainder.
async fn spread_numbers(producer: &Producer, numbers: std::ops::Range<u32>, queues: u32) {
    let mut waiting = Vec::new();
    for number in numbers {
        let message = Message::new(number.to_string()).queue(QueueId(number % queues));
        waiting.push(producer.enqueue(message).await.expect("room"));
    }
    for it in waiting {
        it.acknowledged().await.expect("acknowledged");
    }
}

async fn consumer(client: &Client, member: &str) -> Consumer {
    client.consumer("g").topic("t").member(member).build().await.expect("joined")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    consumer.next().await.expect("more").expect("no error")
}

fn number(message: &Delivery) -> u32 {
    message.text().and_then(|text| text.parse().ok()).expect("a number")
}

fn committed(broker: &FakeBroker, queues: u32) -> Vec<u64> {
    (0..queues).map(|queue| broker.committed("g", "t", queue)).collect()
}

#[tokio::test]
async fn a_group_goes_on_where_it_was() {
    let (broker, client) = broker_with("t", 3, 2).await;
    let producer = client.producer("t").build().await.expect("built");
    spread_numbers(&producer, 0..30, 3).await;
    let mut first = consumer(&client, "one").await;
    let mut seen = Vec::new();
    for _ in 0..30 {
        let message = next(&mut first).await;
        assert_eq!((&*message.topic, message.attempt), ("t", 1));
        assert_eq!(number(&message) % 3, message.queue.0);
        seen.push(number(&message));
    }
    first.close().await.expect("left");
    assert_eq!(committed(&broker, 3), [10, 10, 10]);
    assert_eq!(broker.members("g"), 0);
    spread_numbers(&producer, 30..60, 3).await;
    let mut second = consumer(&client, "two").await;
    for _ in 0..30 {
        seen.push(number(&next(&mut second).await));
    }
    for queue in 0..3 {
        let of_queue: Vec<u32> = seen.iter().copied().filter(|number| number % 3 == queue).collect();
        assert_eq!(of_queue, (0..60).filter(|number| number % 3 == queue).collect::<Vec<_>>(), "once, and in order");
    }
    second.close().await.expect("left");
    assert_eq!(committed(&broker, 3), [20, 20, 20]);
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_and_says_so() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    super::send_numbers(&producer, 0..6).await;
    let manual = client.consumer("g").topic("t").manual_ack().build();
    let mut first = manual.await.expect("joined");
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(next(&mut first).await);
    }
    for done in [4, 1, 0] {
        assert!(first.ack(&held[done]));
    }
    assert!(!first.ack(&held[1]), "done before");
    first.close().await.expect("left");
    assert_eq!(committed(&broker, 1), [2], "up to the first that is not done");
    let mut second = consumer(&client, "two").await;
    let again = next(&mut second).await;
    assert_eq!((number(&again), again.attempt), (2, 2));
    drop(second);
    let mut third = consumer(&client, "three").await;
    let again = next(&mut third).await;
    assert_eq!((number(&again), again.attempt), (2, 3), "what was not asked past is not done");
}

#[tokio::test]
async fn queues_move_to_who_joins_and_back_from_who_leaves() {
    let (broker, client) = broker_with("t", 4, 2).await;
    let producer = client.producer("t").build().await.expect("built");
    let seen = Arc::new(Mutex::new(BTreeMap::<u32, usize>::new()));
    let consume = |member: &'static str, stop: Arc<Semaphore>| {
        let (client, seen) = (client.clone(), seen.clone());
        tokio::spawn(async move {
            let mut consumer = consumer(&client, member).await;
            loop {
                tokio::select! {
                    message = consumer.next() => {
                        let message = message.expect("more").expect("no error");
                        *seen.lock().unwrap().entry(number(&message)).or_default() += 1;
                    }
                    _ = stop.acquire() => break,
                }
            }
            consumer.close().await.expect("left");
        })
    };
    let stops: Vec<_> = (0..3).map(|_| Arc::new(Semaphore::new(0))).collect();
    let one = consume("one", stops[0].clone());
    spread_numbers(&producer, 0..100, 4).await;
    let two = consume("two", stops[1].clone());
    let three = consume("three", stops[2].clone());
    spread_numbers(&producer, 100..200, 4).await;
    stops[0].add_permits(1);
    one.await.expect("closed");
    spread_numbers(&producer, 200..300, 4).await;
    stops[1].add_permits(1);
    two.await.expect("closed");
    while seen.lock().unwrap().len() < 300 {
        tokio::task::yield_now().await;
    }
    stops[2].add_permits(1);
    three.await.expect("closed");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 300);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert_eq!(committed(&broker, 4), [75; 4]);
}

#[tokio::test]
async fn handlers_run_side_by_side_and_one_at_a_time_of_each_queue() {
    let (broker, client) = broker_with("t", 4, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    spread_numbers(&producer, 0..80, 4).await;
    let mut it = consumer(&client, "one").await;
    let (done, mut all_done) = mpsc::unbounded_channel();
    let (running, most) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (running, most) = (running.clone(), most.clone());
        move |message: Delivery| {
            let (done, running, most) = (done.clone(), running.clone(), most.clone());
            async move {
                {
                    let mut running = running.lock().unwrap();
                    assert!(running.insert(message.queue), "two of a queue at once");
                    most.fetch_max(running.len(), Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
                running.lock().unwrap().remove(&message.queue);
                done.send((message.queue, number(&message))).unwrap();
            }
        }
    };
    let mut by_queue = BTreeMap::<QueueId, Vec<u32>>::new();
    let collect = async {
        for _ in 0..80 {
            let (queue, number) = all_done.recv().await.unwrap();
            by_queue.entry(queue).or_default().push(number);
        }
    };
    tokio::select! {
        result = it.run(3, handler) => panic!("{result:?}"),
        () = collect => {}
    }
    it.close().await.expect("left");
    assert!(by_queue.len() == 4 && by_queue.values().all(|numbers| numbers.is_sorted() && numbers.len() == 20));
    assert!((2..=3).contains(&most.load(Ordering::Relaxed)), "{most:?} at once");
    assert_eq!(committed(&broker, 4), [20; 4]);
}

#[tokio::test]
async fn a_handler_s_panic_is_run_s_and_its_message_comes_again() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    spread_numbers(&producer, 0..3, 1).await;
    let mut it = consumer(&client, "one").await;
    let runs = tokio::spawn(async move {
        let handler = |message: Delivery| async move { assert_ne!(number(&message), 1, "the second one") };
        it.run(2, handler).await
    });
    let ended = runs.await.expect_err("the handler's panic");
    let words = ended.into_panic().downcast::<String>().expect("an assertion's words");
    assert!(words.contains("the second one"), "{words}");
    // The panic took the consumer with it, and nothing behind the message that it was about.
    let mut second = consumer(&client, "two").await;
    let again = next(&mut second).await;
    assert_eq!((number(&again), again.attempt), (1, 2));
    assert_eq!(number(&next(&mut second).await), 2);
    second.close().await.expect("left");
    assert_eq!(committed(&broker, 1), [3]);
}

#[tokio::test]
async fn a_consumer_outlives_the_broker() {
    let (broker, client) = broker_with("t", 2, 2).await;
    let producer = client.producer("t").build().await.expect("built");
    spread_numbers(&producer, 0..20, 2).await;
    let mut it = consumer(&client, "one").await;
    let mut seen = Vec::new();
    for round in 1..4 {
        for _ in 0..15 {
            seen.push(number(&next(&mut it).await));
        }
        broker.kill();
        let sender = producer.clone();
        let sending = tokio::spawn(async move { spread_numbers(&sender, round * 20..(round + 1) * 20, 2).await });
        broker.restart().await;
        sending.await.expect("sent");
    }
    while seen.iter().collect::<BTreeSet<_>>().len() < 80 {
        seen.push(number(&next(&mut it).await));
    }
    it.close().await.expect("left");
    assert_eq!(committed(&broker, 2), [40; 2]);
    // What was in its hands when the broker was killed was still its own afterwards.
    assert_eq!(seen.len(), 80, "{seen:?}");
}

#[tokio::test]
async fn the_newest_of_a_name_wins() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let mut first = consumer(&client, "one").await;
    let other = self::client(&broker).await;
    let mut second = consumer(&other, "one").await;
    match first.next().await {
        Some(Err(error)) => assert_eq!(error.code(), Some(ErrorCode::MemberFenced)),
        other => panic!("{other:?}"),
    }
    assert!(first.next().await.is_none());
    assert!(first.close().await.is_err_and(|error| error.code() == Some(ErrorCode::MemberFenced)));
    let producer = client.producer("t").build().await.expect("built");
    producer.send(Message::new("7")).await.expect("acknowledged");
    assert_eq!(number(&next(&mut second).await), 7);
}

#[tokio::test]
async fn a_queue_that_was_taken_away_is_told_by_its_acks() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    super::send_numbers(&producer, 0..3).await;
    let mut it = client.consumer("g").topic("t").manual_ack().build().await.expect("joined");
    let lost = next(&mut it).await;
    broker.fence("g", "t", 0);
    // It is still the only member, so that it gets the queue back, from where the group is.
    let again = loop {
        let message = next(&mut it).await;
        if number(&message) == 0 {
            break message;
        }
    };
    assert_eq!((again.attempt, it.ack(&lost), it.ack(&again)), (2, false, true));
}

#[tokio::test]
async fn a_damaged_batch_is_told_and_not_skipped() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    producer.send(Message::new("0")).await.expect("acknowledged");
    producer.send(Message::new("1")).await.expect("acknowledged");
    broker.corrupt("t", 0);
    let mut it = consumer(&client, "one").await;
    let (mut messages, mut told) = (Vec::new(), 0);
    while messages.is_empty() || told < 2 {
        match it.next().await {
            Some(Ok(message)) => messages.push(number(&message)),
            Some(Err(Error::Corrupt { offset, .. })) => {
                assert_eq!(offset, QueueOffset(1));
                told += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(messages, [0]);
    broker.corrupt("t", 0); // the same bits back
    loop {
        match it.next().await {
            Some(Ok(message)) => break assert_eq!(number(&message), 1),
            Some(Err(Error::Corrupt { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn close_waits_for_who_may_still_acknowledge() {
    let (broker, client) = broker_with("t", 1, 1).await;
    let producer = client.producer("t").build().await.expect("built");
    super::send_numbers(&producer, 0..2).await;
    let mut it = client.consumer("g").topic("t").manual_ack().build().await.expect("joined");
    let held = [next(&mut it).await, next(&mut it).await];
    let acks = it.acks();
    let closing = tokio::spawn(it.close());
    tokio::task::yield_now().await;
    assert!(held.iter().all(|message| acks.ack(message)));
    closing.await.expect("no panic").expect("left");
    assert_eq!(committed(&broker, 1), [2]);
    assert!(!acks.ack(&held[0]), "it has left");

    super::send_numbers(&producer, 2..3).await;
    let drain = Duration::from_millis(50);
    let mut it = client.consumer("g").topic("t").manual_ack().drain(drain).build().await.expect("joined");
    let _held = (next(&mut it).await, it.acks());
    it.close().await.expect("left without it");
    assert_eq!((committed(&broker, 1), broker.members("g")), (vec![2], 0));
}

#[tokio::test]
async fn groups_are_made_listed_described_set_back_and_deleted() {
    let (broker, client) = broker_with("t", 5, 2).await;
    let admin = client.admin();
    admin.create_topic("u", 1).await.expect("created");
    let (group, is_new) = admin.create_group("g", &[("t", Start::Earliest)]).await.expect("created");
    assert!(is_new && group.topics.len() == 1);
    assert!(!admin.create_group("g", &[("t", Start::Latest)]).await.expect("there").1);
    assert!(admin.create_group("g", &[("u", Start::Latest)]).await.expect("there").1, "another topic");
    for name in ["ga", "gb", "gc"] {
        admin.create_group(name, &[("t", Start::Earliest)]).await.expect("created");
    }
    let names: Vec<_> = admin.list_groups("g").await.expect("listed").into_iter().map(|group| group.name).collect();
    assert_eq!(names, ["g", "ga", "gb", "gc"]);
    assert_eq!(admin.group("nobody").await.expect_err("unknown").code(), Some(ErrorCode::UnknownGroup));

    let producer = client.producer("t").build().await.expect("built");
    spread_numbers(&producer, 0..50, 5).await;
    let mut it = consumer(&client, "one").await;
    let others = (consumer(&client, "two").await, consumer(&client, "three").await);
    let description = admin.describe_group("g").await.expect("described");
    let members: Vec<_> = description.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(members, ["one", "three", "two"]);
    let refused = admin.delete_group("g", false).await.expect_err("members");
    assert_eq!(refused.code(), Some(ErrorCode::GroupInUse));
    others.0.close().await.expect("left");
    others.1.close().await.expect("left");

    let read =
        |lags: &[peregrine_client::QueueLag]| lags.iter().map(peregrine_client::QueueLag::messages).collect::<Vec<_>>();
    let mut seen = 0;
    while seen < 50 {
        seen += u32::from(it.next().await.expect("more").is_ok());
    }
    assert!(it.try_next().is_none(), "the last one is done with this");
    loop {
        let lags = admin.group_lag("g").await.expect("lags");
        assert_eq!(
            lags.iter().map(|lag| (lag.topic.as_str(), lag.queue.0)).collect::<Vec<_>>(),
            [("t", 0), ("t", 1), ("t", 2), ("t", 3), ("t", 4), ("u", 0)]
        );
        if read(&lags) == [0; 6] {
            assert!(lags[..5].iter().all(|lag| lag.committed && lag.oldest.is_none() && lag.holder.is_some()));
            break;
        }
        tokio::task::yield_now().await;
    }
    let at = |offset| Start::Offset { epoch: peregrine_client::Epoch::ANY, offset: QueueOffset(offset) };
    assert!(matches!(admin.reset_group("g", Some("v"), at(4)).await, Err(Error::InvalidArgument(_))));
    let places = admin.reset_group("g", Some("t"), at(4)).await.expect("set");
    assert_eq!(places.iter().map(|place| place.offset.0).collect::<Vec<_>>(), [4; 5]);
    let mut again = Vec::new();
    while again.len() < 30 {
        again.push(number(&next(&mut it).await));
    }
    again.sort_unstable();
    assert_eq!(again, (20..50).collect::<Vec<_>>(), "set back while it consumes");
    assert_eq!(admin.delete_group("g", true).await.expect("deleted").name, "g");
    assert_eq!(it.next().await.expect("an error").expect_err("deleted").code(), Some(ErrorCode::GroupDeleted));
    assert!(it.next().await.is_none());
    assert_eq!(numbers(0..50).len(), (0..5).map(|queue| broker.bodies("t", queue).len()).sum::<usize>());
}

#[tokio::test]
async fn what_cannot_be_is_said_at_once() {
    let (_broker, client) = broker_with("t", 1, 1).await;
    let build = |group: &str, topic: &str, member: &str| client.consumer(group).topic(topic).member(member).build();
    assert!(matches!(build("no/slash", "t", "m").await, Err(Error::InvalidArgument(_))));
    assert!(matches!(build("g", "t", "").await, Err(Error::InvalidArgument(_))));
    assert!(matches!(client.consumer("g").build().await, Err(Error::InvalidArgument(_))));
    let unknown = build("g", "u", "m").await.expect_err("no such topic");
    assert_eq!(unknown.code(), Some(ErrorCode::UnknownTopic));
}
