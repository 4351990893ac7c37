//! Decoding allocates nothing, and neither does encoding on a message's path once the caller's buffer has grown.

use peregrine_allocations::of_this_thread;
use peregrine_protocol::entry::{EntryFlags, EntryHeader, EntryKind};
use peregrine_protocol::frame::{self, Frame, Received};
use peregrine_protocol::ids::*;
use peregrine_protocol::limits::FRAME_MAX_DEFAULT;
use peregrine_protocol::message::*;
use peregrine_protocol::record::{Batch, RecordDraft};

fn frame_of(bytes: &[u8]) -> Frame<'_> {
    match frame::decode(bytes, FRAME_MAX_DEFAULT) {
        Ok(Received::Frame(frame)) => frame,
        other => panic!("no frame: {other:?}"),
    }
}

fn produce_head(payload: &[u8]) -> ProduceHead {
    ProduceHead {
        topic: TopicId(1),
        queue: QueueId(2),
        producer_id: ProducerId(3),
        producer_epoch: ProducerEpoch(0),
        sequence: Sequence(4),
        payload_crc: peregrine_protocol::checksum::crc32(payload),
        record_count: 2,
        flags: EntryFlags::for_level(DurableLevel::Memory),
    }
}

#[test]
fn no_request_or_answer_allocates_to_be_decoded() {
    let names: Vec<String> = (0..1000).map(|number| format!("topic-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rows: Vec<_> = names
        .iter()
        .map(|&name| TopicRow {
            name,
            id: TopicId(1),
            queues: 1,
            created: Nanos(1),
            retention: TopicRetention::default(),
        })
        .collect();
    let mut body = FetchBody::default();
    let header = EntryHeader {
        kind: EntryKind::Batch,
        flags: EntryFlags::for_level(DurableLevel::Synced),
        payload_crc: 0,
        length: 8,
        record_count: 1,
        position: LogPosition(0),
        epoch: Epoch(1),
        topic: TopicId(1),
        queue: QueueId(1),
        producer_epoch: ProducerEpoch(0),
        base_offset: QueueOffset(0),
        store_time: Nanos(0),
        producer_id: ProducerId(0),
        sequence: Sequence(0),
    };
    body.push(&BatchHead::of(&header, QueueOffset(0)), &[0; 8]);
    let (mut requests, mut answers) = (vec![Vec::new(); 5], vec![Vec::new(); 5]);
    Request::Metadata(Metadata::of(&names)).encode(Correlation(1), &mut requests[0]);
    Request::Hello(Hello { client: "client", ..Default::default() }).encode(Correlation(1), &mut requests[1]);
    Request::Ack(Ack { subscription: SubscriptionId(1), epoch: Epoch(1), offset: QueueOffset(1) })
        .encode(Correlation(1), &mut requests[2]);
    Answer::ListTopics(ListTopicsAnswer { topics: rows[..].into(), more: true })
        .encode(Correlation(1), &mut answers[0]);
    Answer::Fetch(FetchAnswer { end: QueueOffset(1), batches: body.parts() }).encode(Correlation(1), &mut answers[1]);
    Answer::Error(ErrorAnswer::new(peregrine_protocol::error::ErrorCode::Busy)).encode(Correlation(1), &mut answers[2]);
    let topics = [GroupTopic { topic: TopicId(1), start: Start::Time(Nanos(5)) }; 64];
    let group = GroupRow { name: "billing", id: GroupId(1), created: Nanos(1), topics: topics[..].into() };
    Request::CreateGroup(CreateGroup { name: "billing", topics: topics[..].into() })
        .encode(Correlation(1), &mut requests[3]);
    let ids = [TopicId(1); 64];
    Request::JoinGroup(JoinGroup { group: GroupId(1), member: "one", topics: ids[..].into(), client: "client" })
        .encode(Correlation(1), &mut requests[4]);
    Answer::ListGroups(ListGroupsAnswer { groups: vec![group; 100][..].into(), more: true })
        .encode(Correlation(1), &mut answers[3]);
    let queues = vec![AssignedQueue { topic: TopicId(1), queue: QueueId(1) }; 1000];
    Answer::Assignment(Assignment { group: GroupId(1), member: MemberId(1), number: 1, queues: queues[..].into() })
        .encode(Correlation(1), &mut answers[4]);
    let mut seen = 0;
    let ((), allocated) = of_this_thread(|| {
        for bytes in &requests {
            match Request::decode(&frame_of(bytes)) {
                Ok(Request::Metadata(metadata)) => seen += metadata.names.iter().map(str::len).sum::<usize>(),
                other => assert!(other.is_ok()),
            }
        }
        for bytes in &answers {
            match Answer::decode(&frame_of(bytes)) {
                Ok(Answer::ListTopics(list)) => seen += list.topics.iter().map(|row| row.name.len()).sum::<usize>(),
                Ok(Answer::ListGroups(list)) => seen += list.groups.iter().map(|row| row.topics.len()).sum::<usize>(),
                Ok(Answer::Assignment(it)) => seen += it.queues.iter().filter(|row| row.queue == QueueId(1)).count(),
                other => assert!(other.is_ok()),
            }
        }
    });
    assert!(seen > 10_000 + 100 * 64 + 1000);
    assert_eq!(allocated, 0);
}

#[test]
fn a_message_s_path_allocates_nothing_in_either_direction() {
    let mut payload = Vec::with_capacity(4096);
    let mut out = Vec::with_capacity(16 << 10);
    let mut path = || {
        payload.clear();
        out.clear();
        for body in [&b"one"[..], b"two"] {
            RecordDraft { key: Some(b"key"), body, born_time: Some(Nanos(1)), ..Default::default() }
                .append_to(&mut payload);
        }
        let head = produce_head(&payload);
        Produce { head, payload: &payload }.encode(Correlation(1), &mut out);
        let produced = frame_of(&out);
        let Ok(Request::Produce(produce)) = Request::decode(&produced) else { panic!("a batch") };
        let Ok(batch) = Batch::new(produce.payload, produce.head.record_count) else { panic!("records") };
        assert!(batch.records().all(|record| record.is_ok_and(|record| record.key() == Some(b"key"))));
        out.clear();
        let answer = ProduceAnswer {
            queue: QueueId(1),
            base_offset: QueueOffset(1),
            record_count: 2,
            epoch: Epoch(1),
            shard: ShardId(0),
            position: Some(LogPosition(64)),
            level: DurableLevel::Memory,
            duplicate: false,
        };
        answer.encode(Correlation(1), &mut out);
        assert!(Answer::decode(&frame_of(&out)).is_ok());
        out.clear();
        Credit { subscription: SubscriptionId(1), messages: 1, bytes: 1 }.encode(Correlation(1), &mut out);
        assert!(Request::decode(&frame_of(&out)).is_ok());
        let (subscription, offset) = (SubscriptionId(1), QueueOffset(9));
        let heartbeat = Heartbeat { group: GroupId(1), member: MemberId(2), number: 3 };
        for request in [Request::Ack(Ack { subscription, epoch: Epoch(1), offset }), Request::Heartbeat(heartbeat)] {
            out.clear();
            request.encode(Correlation(1), &mut out);
            assert!(Request::decode(&frame_of(&out)).is_ok());
        }
        for answer in [
            Answer::Ack(AckAnswer { subscription, offset }),
            Answer::Revoke(Revoke { subscription }),
            Answer::Heartbeat(HeartbeatAnswer { number: 3 }),
        ] {
            out.clear();
            answer.encode(Correlation(1), &mut out);
            assert!(Answer::decode(&frame_of(&out)).is_ok());
        }
    };
    path();
    assert_eq!(of_this_thread(path).1, 0);
}
