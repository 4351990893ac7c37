//! Topics that come and go: every shard knows, and readers of a deleted one are told.

use super::directories;
use super::serving::{Said, batch, head, serve, settings};
use crate::control::settings::TestFault;
use crate::limits::SUBSCRIPTIONS_PER_CONNECTION;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, QueueId, ShardId, TopicId};
use peregrine_protocol::message::{
    AlterTopic, DeleteTopic, DescribeTopic, Metadata, Mode, Produce, Request, Start, Subscribe,
};
use peregrine_protocol::placement::shard_of_queue;

#[test]
fn an_unknown_topic_is_asked_for_and_then_refused() {
    let (data, rings) = directories();
    let serving = serve(&settings(data.path(), rings.path(), 2));
    for shard in 0..2 {
        let mut client = serving.client(Some(shard));
        let payload = batch(b"x");
        let head = head(TopicId(99), 0, DurableLevel::Memory, &payload);
        match client.ask(&Request::Produce(Produce { head, payload: &payload })) {
            Said::Error { code } => assert_eq!(code, ErrorCode::UnknownTopic.number()),
            other => panic!("{other:?}"),
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
        let one_more = Subscribe {
            topic,
            queue: QueueId(0),
            mode: Mode::Reader,
            start: Start::Earliest,
            credit_messages: 0,
            credit_bytes: 0,
        };
        match client.ask(&Request::Subscribe(one_more)) {
            Said::Error { code } => assert_eq!(code, ErrorCode::LimitReached.number()),
            other => panic!("{other:?}"),
        }
        client.send(&Request::DeleteTopic(DeleteTopic { name, id: Some(topic) }));
        let mut ended = 0;
        while ended < SUBSCRIPTIONS_PER_CONNECTION {
            ended += usize::from(matches!(client.receive().1, Said::Ended { .. }));
        }
    }
    assert!(serving.stop().is_ok());
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
        let alter = AlterTopic { name: &name, queues: Some(6), retention: None };
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

/// A description by name was refused without asking shard 0.
#[test]
fn a_shard_that_missed_the_news_of_a_topic_asks_for_it_by_id_and_by_name() {
    let (data, rings) = directories();
    let mut settings = settings(data.path(), rings.path(), 2);
    settings.test_faults.push(TestFault::MissNews);
    let serving = serve(&settings);
    let mut home = serving.client(Some(0));
    let mut other = serving.client(Some(1));
    for (round, name) in ["described", "resolved", "written"].into_iter().enumerate() {
        let topic = home.create(name, 4);
        let mine = (0..4).filter(|&queue| shard_of_queue(name, QueueId(queue), 2) == ShardId(1)).collect::<Vec<u32>>();
        match round {
            0 => match other.ask(&Request::DescribeTopic(DescribeTopic { name, first_queue: QueueId(0), limit: 10 })) {
                Said::Described { queues } => assert_eq!(queues, mine),
                said => panic!("{said:?}"),
            },
            1 => {
                let names = [name, "never-made"];
                let asked = Metadata { names: names[..].into(), after: "", limit: 10 };
                match other.ask(&Request::Metadata(asked)) {
                    Said::Resolved(found) => assert_eq!(found, [topic]),
                    said => panic!("{said:?}"),
                }
            }
            _ => {
                let payload = batch(b"x");
                let produce = Produce { head: head(topic, mine[0], DurableLevel::Memory, &payload), payload: &payload };
                assert!(matches!(other.ask(&Request::Produce(produce)), Said::Stored(_)));
            }
        }
    }
    for client in [&mut home, &mut other] {
        let unknown = DescribeTopic { name: "never-made", first_queue: QueueId(0), limit: 10 };
        match client.ask(&Request::DescribeTopic(unknown)) {
            Said::Error { code } => assert_eq!(code, ErrorCode::UnknownTopic.number()),
            said => panic!("{said:?}"),
        }
    }
    assert!(serving.stop().is_ok());
}
