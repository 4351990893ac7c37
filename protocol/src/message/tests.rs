//! Every request and answer comes back as it was sent, golden bytes of those with fixed headers, and what is refused.

use proptest::prelude::*;

mod find;
mod groups;

use super::session::ErrorAnswer;
use super::*;
use crate::entry::{Codec, DirectoryId, EntryFlags};
use crate::error::ErrorDetail;
use crate::frame::{self, Received};
use crate::ids::*;
use crate::limits::{FRAME_HEAD_LEN, FRAME_MAX_DEFAULT, PAGE_ITEMS_MAX};
use crate::message::consume::DELIVER_PREFIX_LEN;

fn frame_of(bytes: &[u8]) -> Frame<'_> {
    match frame::decode(bytes, FRAME_MAX_DEFAULT) {
        Ok(Received::Frame(frame)) if frame.len() == bytes.len() => frame,
        other => panic!("no frame: {other:?}"),
    }
}

fn encoded_request(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(Correlation(77), &mut bytes);
    bytes
}

fn encoded_answer(answer: &Answer<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    answer.encode(Correlation(77), &mut bytes);
    bytes
}

/// The lists in messages have no equality of their own; what a message shows of itself is all of it.
#[track_caller]
fn check_request(request: &Request<'_>) {
    let bytes = encoded_request(request);
    let frame = frame_of(&bytes);
    assert_eq!(frame.head.correlation, Correlation(77));
    let decoded = Request::decode(&frame).unwrap_or_else(|error| panic!("{request:?}: {error}"));
    assert_eq!(format!("{decoded:?}"), format!("{request:?}"));
    assert_eq!(encoded_request(&decoded), bytes);
    let refused = Answer::decode(&frame).unwrap_err();
    assert_eq!(refused, DecodeError::Kind(frame.head.kind), "a client's frame is no answer");
}

#[track_caller]
fn check_answer(answer: &Answer<'_>) {
    let bytes = encoded_answer(answer);
    let frame = frame_of(&bytes);
    let pushed = matches!(answer, Answer::Deliver(_) | Answer::Revoke(_) | Answer::Assignment(_));
    assert_eq!(frame.head.correlation, Correlation(if pushed { 0 } else { 77 }));
    let decoded = Answer::decode(&frame).unwrap_or_else(|error| panic!("{answer:?}: {error}"));
    assert_eq!(format!("{decoded:?}"), format!("{answer:?}"));
    assert_eq!(encoded_answer(&decoded), bytes);
    let refused = Request::decode(&frame).unwrap_err();
    assert_eq!(refused, DecodeError::Kind(frame.head.kind), "a broker's frame is no request");
}

/// Decodes as both, whatever it is; for bytes that must only not panic.
fn poke(frame: &Frame<'_>) {
    if let Ok(request) = Request::decode(frame) {
        let _ = format!("{request:?}");
    }
    if let Ok(answer) = Answer::decode(frame) {
        let _ = format!("{answer:?}");
    }
}

fn batch_head(length: u32) -> BatchHead {
    BatchHead {
        base_offset: QueueOffset(100),
        first_wanted: QueueOffset(102),
        record_count: 7,
        epoch: Epoch(3),
        position: LogPosition(4096),
        store_time: Nanos(1_700_000_000_000_000_000),
        payload_crc: 0xCAFE_F00D,
        payload_length: length,
        flags: EntryFlags::for_level(DurableLevel::Memory).with_codec(Codec::Zstd),
        attempt: 0,
    }
}

fn produce_head() -> ProduceHead {
    ProduceHead {
        topic: TopicId(5),
        queue: QueueId(6),
        producer_id: ProducerId(0x1111_2222_3333_4444),
        producer_epoch: ProducerEpoch(2),
        sequence: Sequence(9),
        payload_crc: 0xA1B2_C3D4,
        record_count: 3,
        flags: EntryFlags::for_level(DurableLevel::Synced),
    }
}

const WEEK: TopicRetention = TopicRetention { age: Some(Nanos::from_secs(7 * 24 * 3_600)) };
const TOPIC: TopicRow<'_> = TopicRow { name: "orders", id: TopicId(9), queues: 8, created: Nanos(17), retention: WEEK };

#[test]
fn requests_without_much_in_them_come_back() {
    let (topic, queue, subscription) = (TopicId(1), QueueId(2), SubscriptionId(3));
    for request in [
        Request::Ping,
        Request::Hello(Hello::default()),
        Request::Metadata(Metadata::of(&["a", "b"])),
        Request::Metadata(Metadata { names: Names::from(&[][..]), after: "m", limit: 5 }),
        Request::CreateTopic(CreateTopic { name: "%RETRY%a", queues: 1, retention: TopicRetention::default() }),
        Request::CreateTopic(CreateTopic { name: "a", queues: 1, retention: WEEK }),
        Request::AlterTopic(AlterTopic { name: "a", queues: Some(65_536), retention: None }),
        Request::AlterTopic(AlterTopic { name: "a", queues: None, retention: Some(WEEK) }),
        Request::AlterTopic(AlterTopic { name: "a", queues: Some(2), retention: Some(TopicRetention::default()) }),
        Request::DeleteTopic(DeleteTopic { name: "a", id: None }),
        Request::DeleteTopic(DeleteTopic { name: "a", id: Some(topic) }),
        Request::ListTopics(ListTopics { prefix: "a", after: "b", limit: PAGE_ITEMS_MAX }),
        Request::DescribeTopic(DescribeTopic { name: "a", first_queue: queue, limit: 1 }),
        Request::Unsubscribe(Unsubscribe { subscription }),
        Request::Credit(Credit { subscription, messages: u32::MAX, bytes: u64::MAX }),
        Request::Ack(Ack { subscription, epoch: Epoch::ANY, offset: QueueOffset(4) }),
        Request::Stats(Stats::Latency),
        Request::Stats(Stats::Shards),
    ] {
        check_request(&request);
    }
    let offset = Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(u64::MAX) };
    for start in [Start::Earliest, Start::Latest, offset, Start::Time(Nanos(5))] {
        check_request(&Request::LookUp(LookUp { topic, queue, start }));
        let (credit_messages, credit_bytes) = (10, 1 << 40);
        let mode = Mode::Reader;
        check_request(&Request::Subscribe(Subscribe { topic, queue, mode, start, credit_messages, credit_bytes }));
    }
}

#[test]
fn answers_come_back() {
    let (subscription, offset, end) = (SubscriptionId(3), QueueOffset(4), QueueOffset(50));
    let rows = [TOPIC, TopicRow { name: "", queues: 0, retention: TopicRetention::default(), ..TOPIC }];
    let queues = [QueueRow { queue: QueueId(1), epoch: Epoch(2), start: QueueOffset(3), end }; 2];
    let topic_answer = TopicAnswer { topic: TOPIC, changed: true };
    let mut body = FetchBody::default();
    for payload in [&b"12345678"[..], b"odd"] {
        body.push(&batch_head(payload.len() as u32), payload);
    }
    assert_eq!(body.len_with(3), 2 * (56 + 8) + 56 + 8);
    for answer in [
        Answer::Ping,
        Answer::CreateTopic(topic_answer),
        Answer::AlterTopic(topic_answer),
        Answer::DeleteTopic(TopicAnswer { changed: false, ..topic_answer }),
        Answer::ListTopics(ListTopicsAnswer { topics: rows[..].into(), more: true }),
        Answer::DescribeTopic(DescribeTopicAnswer {
            topic: TOPIC,
            shard: ShardId(3),
            queues: queues[..].into(),
            more: false,
        }),
        Answer::Metadata(MetadataAnswer {
            topics: rows[..].into(),
            more: false,
            shards: 2,
            directory: DirectoryId(u128::MAX - 1),
        }),
        Answer::Fetch(FetchAnswer { end, batches: body.parts() }),
        Answer::Fetch(FetchAnswer { end, batches: FetchedBatches::default() }),
        Answer::LookUp(LookUpAnswer { offset, epoch: Epoch(1), start: QueueOffset(0), end }),
        Answer::Subscribe(SubscribeAnswer { subscription, epoch: Epoch(1), start: offset, end }),
        Answer::Unsubscribe(Unsubscribe { subscription }),
        Answer::Deliver(Deliver { subscription, batch: batch_head(5), payload: b"12345" }),
        Answer::Ack(AckAnswer { subscription, offset }),
        Answer::Stats(StatsAnswer { what: Stats::Shards, json: b"{}" }),
    ] {
        check_answer(&answer);
    }
    let fetched: Vec<_> = body.parts().iter().map(|(head, payload)| (head.payload_length, payload)).collect();
    assert_eq!(fetched, [(8, &b"12345678"[..]), (3, b"odd")]);
}

#[test]
fn every_error_comes_back_with_its_details() {
    let detail = ErrorDetail {
        expected_sequence: Some(0),
        offset: Some(u64::MAX),
        shard: Some(1),
        retry_after_ns: Some(20_000_000),
        subscription: Some(0),
        member: Some(u64::MAX),
    };
    for &code in ErrorCode::ALL {
        check_answer(&Answer::Error(ErrorAnswer::new(code)));
        check_answer(&Answer::Error(ErrorAnswer::saying(code, "more exactly").with(detail)));
    }
    check_answer(&Answer::Error(ErrorAnswer { code: 9999, retriable: true, sentence: "", detail }));
    let long = "ä".repeat(1000);
    let bytes = encoded_answer(&Answer::Error(ErrorAnswer::saying(ErrorCode::Busy, &long)));
    let Ok(Answer::Error(error)) = Answer::decode(&frame_of(&bytes)) else { panic!("an error") };
    assert_eq!((error.sentence, error.known_code()), (&long[..1024], Some(ErrorCode::Busy)));
}

/// The frames of a message's path, byte for byte. If this fails, raise [`PROTOCOL_VERSION`] instead.
#[test]
fn golden_bytes_of_version_1() {
    let head = |length: u8, kind: u8, flags: u8, header: u8, correlation: u8| {
        let mut bytes = [0; FRAME_HEAD_LEN];
        (bytes[0], bytes[4], bytes[5], bytes[6], bytes[8], bytes[16]) = (length, 1, kind, flags, header, correlation);
        bytes
    };
    let word = |value: u64| value.to_le_bytes();
    let half = |value: u32| value.to_le_bytes();

    let mut produce = head(48 + 8, 16, 5, 48, 77).to_vec();
    produce.extend([word(5), word(0x1111_2222_3333_4444), word(9)].concat());
    produce.extend([half(6), half(2), half(0xA1B2_C3D4), half(3), half(0x20), half(0)].concat());
    produce.extend(b"abc\0\0\0\0\0");
    let request = Request::Produce(Produce { head: produce_head(), payload: b"abc" });
    assert_eq!(encoded_request(&request), produce);
    check_request(&request);

    let mut acknowledged = head(40, 16, 8, 40, 77).to_vec();
    acknowledged.extend([word(100), word(3), word(u64::MAX)].concat());
    acknowledged.extend([half(6), half(3)].concat());
    acknowledged.extend([1, 0, 2, 1, 0, 0, 0, 0]);
    let answer = ProduceAnswer {
        queue: QueueId(6),
        base_offset: QueueOffset(100),
        record_count: 3,
        epoch: Epoch(3),
        shard: ShardId(1),
        position: None,
        level: DurableLevel::Synced,
        duplicate: true,
    };
    assert_eq!(answer.to_frame(Correlation(77))[..], acknowledged);
    check_answer(&Answer::Produce(answer));
    check_answer(&Answer::Produce(ProduceAnswer { position: Some(LogPosition(0)), duplicate: false, ..answer }));

    let mut deliver = head(64 + 8, 35, 8 + 3, 64, 0).to_vec();
    deliver.extend([word(3), word(100), word(102), word(3), word(4096), word(1_700_000_000_000_000_000)].concat());
    deliver.extend([half(0xCAFE_F00D), half(7), half(5), half(0x12)].concat());
    assert_eq!(deliver.len(), DELIVER_PREFIX_LEN);
    assert_eq!(consume::deliver_prefix(SubscriptionId(3), &batch_head(5))[..], deliver);
    let again = consume::deliver_prefix(SubscriptionId(3), &BatchHead { attempt: 0x0201, ..batch_head(5) });
    assert_eq!(
        (&again[..86], &again[86..]),
        (&deliver[..86], &[1, 2][..]),
        "the attempt stands at the end of the header"
    );
    deliver.extend(b"12345\0\0\0");
    let delivery = Deliver { subscription: SubscriptionId(3), batch: batch_head(5), payload: b"12345" };
    assert_eq!(encoded_answer(&Answer::Deliver(delivery)), deliver);

    let mut credit = head(24, 34, 0, 24, 77).to_vec();
    credit.extend([word(3), word(1 << 33), word(9)].concat());
    let request = Request::Credit(Credit { subscription: SubscriptionId(3), messages: 9, bytes: 1 << 33 });
    assert_eq!(encoded_request(&request), credit);

    let mut ack = head(24, 36, 0, 24, 77).to_vec();
    ack.extend([word(3), word(u64::MAX), word(11)].concat());
    let request = Request::Ack(Ack { subscription: SubscriptionId(3), epoch: Epoch::ANY, offset: QueueOffset(11) });
    assert_eq!(encoded_request(&request), ack);
}

#[test]
fn what_is_out_of_range_is_an_error_of_the_request_alone() {
    use ErrorCode::{InvalidArgument, InvalidName};
    let refused = |request: Request<'_>| {
        let bytes = encoded_request(&request);
        let error = Request::decode(&frame_of(&bytes)).unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        error.code()
    };
    let produce = |head| Request::Produce(Produce { head, payload: b"" });
    assert_eq!(refused(produce(ProduceHead { flags: EntryFlags::NONE, ..produce_head() })), InvalidArgument);
    assert_eq!(
        refused(produce(ProduceHead { flags: produce_head().flags.with_control(), ..produce_head() })),
        InvalidArgument
    );
    assert_eq!(refused(produce(ProduceHead { record_count: 0, ..produce_head() })), InvalidArgument);
    assert_eq!(refused(produce(ProduceHead { record_count: 65_537, ..produce_head() })), InvalidArgument);
    let create = |name, queues| Request::CreateTopic(CreateTopic { name, queues, retention: WEEK });
    assert_eq!(refused(create("a/b", 1)), InvalidName);
    assert_eq!(refused(create("", 1)), InvalidName);
    assert_eq!(refused(create("a", 0)), InvalidArgument);
    let alter = AlterTopic { name: "a", queues: Some(65_537), retention: None };
    assert_eq!(refused(Request::AlterTopic(alter)), InvalidArgument);
    assert_eq!(refused(Request::ListTopics(ListTopics { prefix: "", after: "", limit: 1025 })), InvalidArgument);
    let long = "x".repeat(300);
    assert_eq!(refused(Request::ListTopics(ListTopics { prefix: &long, after: "", limit: 1 })), InvalidArgument);
    assert_eq!(refused(Request::Hello(Hello { client: &long, ..Default::default() })), InvalidArgument);
    assert_eq!(
        refused(Request::Hello(Hello { authentication: &vec![0; 16_385], ..Default::default() })),
        InvalidArgument
    );
    let names = vec!["x"; 1025];
    assert_eq!(refused(Request::Metadata(Metadata::of(&names))), InvalidArgument);
    let fetch = Fetch {
        topic: TopicId(1),
        queue: QueueId(0),
        epoch: Epoch::ANY,
        offset: QueueOffset(0),
        max_messages: 1,
        max_bytes: 1,
    };
    check_request(&Request::Fetch(fetch));
    assert_eq!(refused(Request::Fetch(Fetch { max_messages: 0, ..fetch })), InvalidArgument);
    assert_eq!(refused(Request::Fetch(Fetch { max_bytes: 0, ..fetch })), InvalidArgument);
}

#[test]
fn a_limit_that_is_absent_is_a_full_page() {
    let bytes = encoded_request(&Request::ListTopics(ListTopics { prefix: "", after: "", limit: 0 }));
    let Ok(Request::ListTopics(list)) = Request::decode(&frame_of(&bytes)) else { panic!("a listing") };
    assert_eq!(list.limit, PAGE_ITEMS_MAX);
}

#[test]
fn unknown_kinds_and_versions_are_told_apart_from_malformed_frames() {
    let decode = |change: fn(&mut Vec<u8>)| {
        let mut bytes = encoded_request(&Request::Stats(Stats::Latency));
        change(&mut bytes);
        Request::decode(&frame_of(&bytes)).unwrap_err()
    };
    assert_eq!(decode(|bytes| bytes[5] = 200), DecodeError::Kind(200));
    assert_eq!(decode(|bytes| bytes[5] = Kind::Deliver as u8), DecodeError::Kind(35));
    assert_eq!(decode(|bytes| bytes[4] = 2), DecodeError::Version(2));
    assert_eq!(decode(|bytes| bytes[FRAME_HEAD_LEN..FRAME_HEAD_LEN + 4].fill(0xFF)), DecodeError::Header);
    assert_eq!(decode(|bytes| bytes[5] = Kind::Ping as u8), DecodeError::Header, "a ping has no header");
    assert_eq!(decode(|bytes| bytes[5] = Kind::Produce as u8), DecodeError::Header, "a struct of another size");
    let mut bytes = Vec::new();
    frame::encode(Kind::Ping, Sender::Client, Correlation(1), &[], b"body", &mut bytes);
    assert_eq!(Request::decode(&frame_of(&bytes)).unwrap_err(), DecodeError::Body);
}

#[test]
fn deliveries_and_fetches_do_not_lie_about_their_batches() {
    let subscription = SubscriptionId(1);
    let deliver = |batch: BatchHead, payload: &[u8]| {
        let mut bytes = Vec::new();
        let header = [&encoded_answer(&Answer::Deliver(Deliver { subscription, batch, payload: &[0; 5] }))
            [FRAME_HEAD_LEN..DELIVER_PREFIX_LEN]]
        .concat();
        frame::encode(Kind::Deliver, Sender::Broker, Correlation(0), &header, payload, &mut bytes);
        Answer::decode(&frame_of(&bytes)).map(|_| ())
    };
    assert_eq!(deliver(batch_head(5), b"12345"), Ok(()));
    assert_eq!(deliver(batch_head(5), b"1234"), Err(DecodeError::Body));
    assert_eq!(deliver(BatchHead { record_count: 0, ..batch_head(5) }, b"12345"), Err(DecodeError::Header));
    assert_eq!(
        deliver(BatchHead { first_wanted: QueueOffset(107), ..batch_head(5) }, b"12345"),
        Err(DecodeError::Header)
    );
    assert_eq!(
        deliver(BatchHead { first_wanted: QueueOffset(99), ..batch_head(5) }, b"12345"),
        Err(DecodeError::Header)
    );
    let beyond = BatchHead { base_offset: QueueOffset(u64::MAX), first_wanted: QueueOffset(u64::MAX), ..batch_head(5) };
    assert_eq!(deliver(beyond, b"12345"), Err(DecodeError::Header));

    let mut body = FetchBody::default();
    body.push(&batch_head(3), b"odd");
    let bytes = encoded_answer(&Answer::Fetch(FetchAnswer { end: QueueOffset(107), batches: body.parts() }));
    let frame = frame_of(&bytes);
    for end in 0..frame.body.len() {
        assert!(FetchAnswer::decode(frame.header, &frame.body[..end]).is_err(), "a body cut at {end}");
    }
    let longer = [frame.body, &[0; 8]].concat();
    assert_eq!(FetchAnswer::decode(frame.header, &longer), Err(DecodeError::Body));
}

#[test]
fn message_ids_follow_from_the_entry() {
    let batch = batch_head(100);
    assert_eq!(batch.message_id(ShardId(2), 8), Some(MessageId::new(ShardId(2), LogPosition(4096 + 96 + 8))));
    assert_eq!(batch.message_id(ShardId(2), 4), None);
    assert_eq!(BatchHead { position: LogPosition(u64::MAX), ..batch }.message_id(ShardId(2), 0), None);
    assert_eq!(BatchHead { position: LogPosition(1 << 57), ..batch }.message_id(ShardId(2), 0), None);
}

#[test]
fn a_full_page_of_the_longest_names_fits_a_header() {
    let name = "n".repeat(crate::limits::NAME_MAX);
    let rows = vec![TopicRow { name: &name, ..TOPIC }; PAGE_ITEMS_MAX as usize];
    check_answer(&Answer::ListTopics(ListTopicsAnswer { topics: rows[..].into(), more: true }));
    let names = vec![name.as_str(); PAGE_ITEMS_MAX as usize];
    check_request(&Request::Metadata(Metadata::of(&names)));
    let queues =
        vec![QueueRow { queue: QueueId(1), epoch: Epoch(2), start: QueueOffset(3), end: QueueOffset(4) }; names.len()];
    let (topic, shard) = (rows[0], ShardId(0));
    check_answer(&Answer::DescribeTopic(DescribeTopicAnswer { topic, shard, queues: queues[..].into(), more: true }));
}

proptest! {
    #[test]
    fn hello_comes_back(
        (client, software, namespace) in ("\\PC{0,60}", "\\PC{0,60}", "\\PC{0,30}"),
        (capabilities, shard) in (any::<u64>(), prop::option::of(0..u16::MAX)),
        (mechanism, authentication) in ("[A-Z]{0,20}", prop::collection::vec(any::<u8>(), 0..200)),
        (directory, shards, message_max, frame_max) in (any::<u128>(), 1..=u16::MAX, any::<u32>(), any::<u32>()),
        challenge: bool,
    ) {
        check_request(&Request::Hello(Hello {
            client: &client,
            software: &software,
            capabilities,
            namespace: &namespace,
            shard: shard.map(ShardId),
            mechanism: &mechanism,
            authentication: &authentication,
        }));
        check_answer(&Answer::Hello(HelloAnswer {
            challenge: challenge.then_some(&authentication[..]),
            directory: DirectoryId(directory),
            capabilities,
            shards,
            shard: ShardId(shard.unwrap_or(0)),
            message_max,
            frame_max,
            software: &software,
        }));
    }

    #[test]
    fn produce_and_deliver_come_back(
        (topic, queue, record_count, payload_crc) in (any::<u64>(), any::<u32>(), 1..=65_536u32, any::<u32>()),
        (producer, producer_epoch, sequence) in (any::<u64>(), any::<u32>(), any::<u64>()),
        (level, codec, attempt) in (1..=3u8, 0..3u8, any::<u16>()),
        payload in prop::collection::vec(any::<u8>(), 0..100),
        (base, into, epoch, position, time) in (0..u64::MAX - 65_536, any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()),
    ) {
        let codec = [Codec::None, Codec::Lz4, Codec::Zstd][usize::from(codec)];
        let flags = DurableLevel::from_number(level).map(EntryFlags::for_level).unwrap_or_default().with_codec(codec);
        let head = ProduceHead {
            topic: TopicId(topic),
            queue: QueueId(queue),
            producer_id: ProducerId(producer),
            producer_epoch: ProducerEpoch(producer_epoch),
            sequence: Sequence(sequence),
            payload_crc,
            record_count,
            flags,
        };
        check_request(&Request::Produce(Produce { head, payload: &payload }));
        let batch = BatchHead {
            base_offset: QueueOffset(base),
            first_wanted: QueueOffset(base + u64::from(into % record_count)),
            record_count,
            epoch: Epoch(epoch),
            position: LogPosition(position),
            store_time: Nanos(time),
            payload_crc,
            payload_length: payload.len() as u32,
            flags,
            attempt,
        };
        let subscription = SubscriptionId(producer);
        check_answer(&Answer::Deliver(Deliver { subscription, batch, payload: &payload }));
    }

    /// Anything may arrive: wrong is an error, never a panic, and nothing reaches beyond the frame.
    #[test]
    fn flipped_bytes_in_a_header_never_panic(
        which in 0..6usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
    ) {
        let rows = [TOPIC; 3];
        let queues = [QueueRow { queue: QueueId(1), epoch: Epoch(2), start: QueueOffset(3), end: QueueOffset(4) }; 2];
        let mut body = FetchBody::default();
        body.push(&batch_head(3), b"odd");
        let mut bytes = match which {
            0 => encoded_request(&Request::Hello(Hello { client: "c", authentication: &[1; 9], ..Default::default() })),
            1 => encoded_request(&Request::Metadata(Metadata::of(&["a", "bc", "def"]))),
            2 => encoded_answer(&Answer::ListTopics(ListTopicsAnswer { topics: rows[..].into(), more: true })),
            3 => encoded_answer(&Answer::DescribeTopic(DescribeTopicAnswer {
                topic: TOPIC,
                shard: ShardId(0),
                queues: queues[..].into(),
                more: true,
            })),
            4 => encoded_answer(&Answer::Fetch(FetchAnswer { end: QueueOffset(7), batches: body.parts() })),
            _ => encoded_answer(&Answer::Error(ErrorAnswer::new(ErrorCode::Busy))),
        };
        for (index, flip) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Ok(Received::Frame(frame)) = frame::decode(&bytes, FRAME_MAX_DEFAULT) {
            poke(&frame);
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(
        kind: u8,
        broker: bool,
        header in prop::collection::vec(any::<u8>(), 0..80),
        body in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut bytes = Vec::new();
        let sender = if broker { Sender::Broker } else { Sender::Client };
        frame::encode(Kind::Ping, sender, Correlation(1), &header, &body, &mut bytes);
        bytes[5] = kind;
        poke(&frame_of(&bytes));
    }
}
