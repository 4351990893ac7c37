//! Producing and receiving through a session allocate nothing once the caller's buffers have their size: what the load generator's
//! pinned threads rely on.

use peregrine_allocations::of_this_thread;
use peregrine_client::session::{Event, Received, Session, SessionOptions};
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{DirectoryId, EntryFlags};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence,
    ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::message::{BatchHead, Credit, Deliver, HelloAnswer, ProduceAnswer, ProduceHead};
use peregrine_protocol::record::{Batch, RecordDraft};

fn ready_session() -> Session {
    let mut out = Vec::new();
    let mut session = Session::open(SessionOptions { client: "counted", shard: Some(ShardId(0)) }, &mut out);
    let answer = HelloAnswer {
        challenge: None,
        directory: DirectoryId(1),
        capabilities: 0,
        shards: 1,
        shard: ShardId(0),
        message_max: 1 << 20,
        frame_max: 1 << 21,
        software: "test",
    };
    let mut bytes = Vec::new();
    answer.encode(Correlation(1), &mut bytes);
    assert!(matches!(session.receive(&bytes), Ok(Received::Event { event: Event::Ready(_), .. })));
    session
}

#[test]
fn a_message_costs_no_allocation() {
    let mut session = ready_session();
    let body = [7_u8; 1024];
    let (mut record, mut out) = (Vec::with_capacity(2 << 10), Vec::with_capacity(4 << 10));
    let mut incoming = Vec::with_capacity(4 << 10);
    let flags = EntryFlags::for_level(DurableLevel::Synced);
    let mut seen = 0;
    let ((), count) = of_this_thread(|| {
        for number in 0..1_000_u64 {
            record.clear();
            RecordDraft { body: &body, born_time: Some(Nanos(number)), ..RecordDraft::default() }
                .append_to(&mut record);
            out.clear();
            let head = ProduceHead {
                topic: TopicId(1),
                queue: QueueId(0),
                producer_id: ProducerId(1),
                producer_epoch: ProducerEpoch(0),
                sequence: Sequence(number),
                payload_crc: crc32(&record),
                record_count: 1,
                flags,
            };
            let correlation = session.produce(head, &record, &mut out);
            session.credit(&Credit { subscription: SubscriptionId(1), messages: 1, bytes: 1024 }, &mut out);

            incoming.clear();
            let answer = ProduceAnswer {
                queue: QueueId(0),
                base_offset: QueueOffset(number),
                record_count: 1,
                epoch: Epoch(1),
                shard: ShardId(0),
                position: Some(LogPosition(0)),
                level: DurableLevel::Synced,
                duplicate: false,
            };
            answer.encode(correlation, &mut incoming);
            let batch = BatchHead {
                base_offset: QueueOffset(number),
                first_wanted: QueueOffset(number),
                record_count: 1,
                epoch: Epoch(1),
                position: LogPosition(0),
                store_time: Nanos(0),
                payload_crc: head.payload_crc,
                payload_length: record.len() as u32,
                flags,
                attempt: 0,
            };
            Deliver { subscription: SubscriptionId(1), batch, payload: &record }.encode(&mut incoming);
            let mut rest = &incoming[..];
            while let Ok(Received::Event { event, len }) = session.receive(rest) {
                match event {
                    Event::Produced { correlation: of, .. } => assert_eq!(of, correlation),
                    Event::Delivered(deliver) => {
                        let batch = Batch::new(deliver.payload, deliver.batch.record_count);
                        let records = batch.iter().flat_map(Batch::records).flatten();
                        seen += records.filter(|record| record.body() == body).count();
                    }
                    other => panic!("{other:?}"),
                }
                rest = &rest[len..];
            }
            assert!(rest.is_empty());
        }
    });
    assert_eq!(seen, 1_000);
    assert_eq!(count, 0, "allocations in 1,000 messages");
}
