//! Fuzz bodies: each takes any bytes, hands them to a decoder, and panics where an answer contradicts the format.
//!
//! They are plain functions of the stable compiler. `tests/tests/fuzz.rs` runs them for a bounded time on mutated samples, and the
//! targets in `tests/fuzz/` hand them to libFuzzer, which is guided by coverage. Where a checksum guards what lies behind it, a body
//! also tries the input with the checksum put right: no mutation would ever guess it.
//!
//! This file imports nothing but the protocol, because `tests/fuzz/` includes it without the rest of this crate.

use peregrine_protocol::checksum::{crc32, crc32_after};
use peregrine_protocol::entry::{DirectorySecret, ENTRY_MAGIC, ENTRY_VERSION, Entry, EntryFlags, EntrySeal, PadHeader};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Frame, Kind, Received, Sender};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, Epoch, GroupId, LogPosition, MemberId, MessageId, Nanos, QueueId, QueueOffset, ShardId,
    SubscriptionId, TopicId,
};
use peregrine_protocol::limits::{
    ENTRY_ALIGN, ENTRY_HEADER_LEN, FRAME_HEAD_LEN, PAD_HEADER_LEN, RECORD_ALIGN, RECORD_HEADER_LEN,
};
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{
    Ack, Answer, AssignedQueue, Assignment, CreateGroup, CreateTopic, Credit, DescribeGroupAnswer, ErrorAnswer, Fetch,
    FindMessages, Found, FoundBody, FoundHead, GetMessage, GroupLagAnswer, GroupRow, GroupTopic, Heartbeat, Hello,
    JoinGroup, LagRow, ListGroupsAnswer, MemberRow, Metadata, Mode, Request, Revoke, Start, Stats, StatsAnswer,
    Subscribe, TopicRetention,
};
use peregrine_protocol::preamble::{PREAMBLE, PROTOCOL_VERSION, check_preamble};
use peregrine_protocol::record::{Batch, RecordDraft, push_property};

/// A body with its name and some inputs that its decoder accepts, from which mutations start.
pub struct Body {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Every body there is.
pub const BODIES: [Body; 6] = [
    Body { name: "preamble", run: preamble, samples: preamble_samples },
    Body { name: "frames", run: frames, samples: frame_samples },
    Body { name: "entry", run: entry, samples: entry_samples },
    Body { name: "batch", run: batch, samples: batch_samples },
    Body { name: "message", run: message, samples: message_samples },
    Body { name: "locator", run: locator, samples: locator_samples },
];

/// Small, so that lengths near the bound are met.
const FRAME_MAX: u32 = 64 << 10;
const SECRET: DirectorySecret = DirectorySecret(*b"sixteen bytes of");
const SHARD: ShardId = ShardId(3);
/// Of an entry's header; both kinds have it there.
const HEADER_CRC_AT: usize = 8;

/// What is accepted is the one preamble there is, and no prefix of it is refused.
pub fn preamble(data: &[u8]) {
    match check_preamble(data) {
        Ok(true) => assert!(data.starts_with(&PREAMBLE), "another preamble was accepted"),
        Ok(false) => assert!(data.len() < PREAMBLE.len(), "a whole preamble was not decided on"),
        Err(_) => assert!(!PREAMBLE.starts_with(data), "a prefix of the preamble was refused"),
    }
}

fn preamble_samples() -> Vec<Vec<u8>> {
    vec![PREAMBLE.to_vec()]
}

/// Takes frames off the input, as a connection does: each lies within it, and encodes to the very same bytes.
pub fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(received) = frame::decode(rest, FRAME_MAX) {
        let frame = match received {
            Received::Frame(frame) => frame,
            Received::Missing(missing) => {
                assert!(missing > 0 && rest.len() + missing <= FRAME_MAX as usize, "{missing} bytes are waited for");
                break;
            }
        };
        assert!(frame.len() >= FRAME_HEAD_LEN && frame.len() <= rest.len(), "a frame outside of its input");
        if let (PROTOCOL_VERSION, Some(kind)) = (frame.head.version, Kind::from_number(frame.head.kind)) {
            let mut again = Vec::new();
            frame::encode(kind, frame.head.sender(), frame.head.correlation, frame.header, frame.body, &mut again);
            // A sender may fill with more than it needs; what it filled is zero either way.
            if again.len() == frame.len() {
                assert_eq!(again, rest[..frame.len()], "a frame with two encodings");
            }
        }
        rest = &rest[frame.len()..];
    }
}

fn frame_samples() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut samples = Vec::new();
    for (index, &kind) in Kind::ALL.iter().enumerate() {
        let mut one = Vec::new();
        let correlation = Correlation(index as u64);
        frame::encode(kind, Sender::Client, correlation, &vec![1; index * 3], &vec![2; index * 5], &mut one);
        all.extend_from_slice(&one);
        samples.push(one);
    }
    samples.push(all);
    samples
}

/// A header that is accepted encodes to the same bytes, and says nothing that is out of range.
pub fn entry(data: &[u8]) {
    check_entry(data);
    let mut sealed = data.to_vec();
    // The kind tells the length that the checksum covers: try it as both.
    for len in [ENTRY_HEADER_LEN, PAD_HEADER_LEN] {
        if let Some(header) = sealed.get_mut(..len) {
            header[0..4].copy_from_slice(&ENTRY_MAGIC.to_le_bytes());
            header[4] = ENTRY_VERSION;
            header[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
            let mut initial = crc32(&SECRET.0);
            initial = crc32_after(initial, &SHARD.0.to_le_bytes());
            let crc = crc32_after(initial, header);
            header[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            check_entry(&sealed);
        }
    }
}

fn check_entry(data: &[u8]) {
    let seal = EntrySeal::new(&SECRET, SHARD);
    let Ok(entry) = Entry::decode(data, seal) else { return };
    assert!(entry.position().0.is_multiple_of(ENTRY_ALIGN) && entry.len().is_multiple_of(ENTRY_ALIGN), "{entry:?}");
    assert!(Entry::decode(data, EntrySeal::new(&SECRET, ShardId(4))).is_err(), "another shard's entry was accepted");
    match entry {
        Entry::Full(header) => {
            let mut bytes = [0; ENTRY_HEADER_LEN];
            header.encode(seal, &mut bytes);
            assert_eq!(bytes, data[..ENTRY_HEADER_LEN], "a header with two encodings");
            let _ = header.check_payload(&data[ENTRY_HEADER_LEN..]);
        }
        Entry::Pad(pad) => {
            let mut bytes = [0; PAD_HEADER_LEN];
            pad.encode(seal, &mut bytes);
            assert_eq!(bytes, data[..PAD_HEADER_LEN], "a pad with two encodings");
        }
    }
}

fn entry_samples() -> Vec<Vec<u8>> {
    let seal = EntrySeal::new(&SECRET, SHARD);
    let mut pad = [0; PAD_HEADER_LEN];
    PadHeader::filling(LogPosition(4096 - 128), LogPosition(4096), Epoch(2), LogPosition(0), 7).encode(seal, &mut pad);
    let mut batch = vec![0; ENTRY_HEADER_LEN];
    batch[0..4].copy_from_slice(&ENTRY_MAGIC.to_le_bytes());
    batch[4] = ENTRY_VERSION;
    batch[5] = 1;
    vec![pad.to_vec(), batch]
}

/// The first four bytes are the number of records, the rest the batch: what is accepted holds that many, and each within it.
pub fn batch(data: &[u8]) {
    let Some((count, payload)) = data.split_first_chunk::<4>() else { return };
    let count = u32::from_le_bytes(*count);
    check_batch(payload, count);
    let mut mended = payload.to_vec();
    let held = mend_records(&mut mended);
    check_batch(&mended, held);
}

fn check_batch(payload: &[u8], count: u32) {
    let Ok(batch) = Batch::new(payload, count) else { return };
    let mut held = 0;
    for record in batch.records() {
        held += 1;
        let Ok(record) = record else { continue };
        assert!(record.bytes().len() <= batch.largest_record() as usize, "a record larger than the largest");
        assert!(record.body().len() <= record.bytes().len(), "a body larger than its record");
        let sections: usize = record.sections().map(|section| section.bytes.len()).sum();
        assert!(sections < record.bytes().len(), "sections larger than their record");
        let _ = (record.key(), record.tag(), record.born_time(), record.properties().count());
    }
    assert_eq!(held, count, "a batch of {count} records gave {held}");
    let sound = batch.check_contents().is_ok();
    assert!(!sound || batch.records().all(|record| record.is_ok()), "a sound batch with a broken record");
}

/// Puts right the checksum of each record that lies within the batch, and says how many there are.
fn mend_records(payload: &mut [u8]) -> u32 {
    let (mut rest, mut count) = (payload, 0);
    while let Some(length) = rest.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize) {
        let filled = length.next_multiple_of(RECORD_ALIGN);
        if length < RECORD_HEADER_LEN || filled > rest.len() {
            break;
        }
        let (record, after) = rest.split_at_mut(filled);
        let crc = crc32(&record[8..length]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        record[length..].fill(0);
        rest = after;
        count += 1;
    }
    count
}

fn batch_samples() -> Vec<Vec<u8>> {
    let mut properties = Vec::new();
    push_property(&mut properties, "colour", "blue");
    let drafts = [
        RecordDraft { body: b"plain", ..RecordDraft::default() },
        RecordDraft {
            key: Some(b"key"),
            tag: Some("tag"),
            properties: Some(&properties),
            body: b"with everything",
            priority: Some(4),
            reply_to: Some(b"answers"),
            ..RecordDraft::default()
        },
    ];
    let mut batch = 2u32.to_le_bytes().to_vec();
    let mut payload = Vec::new();
    for draft in &drafts {
        draft.append_to(&mut payload);
    }
    batch.append(&mut payload);
    vec![batch]
}

/// A text that is taken for a message's id says the same when it is written.
pub fn locator(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(locator) = text.parse::<MessageLocator>() {
        assert_eq!(locator.to_string(), text.to_ascii_lowercase(), "an id with two meanings");
    }
}

fn locator_samples() -> Vec<Vec<u8>> {
    vec![b"00c000000000020c55ac7af9".to_vec(), b"FFFFFFFFFFFFFFFFFFFFFFFF".to_vec()]
}

/// A frame as it is, and the input as header and body of a sound frame: what is accepted says the same when it is sent on.
pub fn message(data: &[u8]) {
    if let Ok(Received::Frame(frame)) = frame::decode(data, FRAME_MAX) {
        check_message(&frame);
    }
    let Some((&[kind, header_len], rest)) = data.split_first_chunk::<2>() else { return };
    let (header, body) = rest.split_at(rest.len().min(usize::from(header_len) * 8));
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    for sender in [Sender::Client, Sender::Broker] {
        let mut bytes = Vec::new();
        frame::encode(kind, sender, Correlation(1), header, body, &mut bytes);
        if let Ok(Received::Frame(frame)) = frame::decode(&bytes, FRAME_MAX) {
            check_message(&frame);
        }
    }
}

fn check_message(frame: &Frame<'_>) {
    let correlation = frame.head.correlation;
    let mut again = Vec::new();
    if let Ok(request) = Request::decode(frame) {
        request.encode(correlation, &mut again);
        let said = whole_frame(&again, |frame| format!("{:?}", Request::decode(frame)));
        assert_eq!(said, format!("{:?}", Ok::<_, ()>(request)), "a request that changes when it is sent on");
    } else if let Ok(answer) = Answer::decode(frame) {
        answer.encode(correlation, &mut again);
        let said = whole_frame(&again, |frame| format!("{:?}", Answer::decode(frame)));
        assert_eq!(said, format!("{:?}", Ok::<_, ()>(answer)), "an answer that changes when it is sent on");
    }
}

fn whole_frame(bytes: &[u8], look: impl FnOnce(&Frame<'_>) -> String) -> String {
    match frame::decode(bytes, u32::MAX) {
        Ok(Received::Frame(frame)) => look(&frame),
        other => format!("no frame: {other:?}"),
    }
}

fn message_samples() -> Vec<Vec<u8>> {
    let (topic, queue, epoch, offset) = (TopicId(7), QueueId(1), Epoch(2), QueueOffset(3));
    let subscription = SubscriptionId(5);
    let start = Start::Earliest;
    let (group, member) = (GroupId(8), MemberId(9));
    let topics = [GroupTopic { topic, start: Start::Time(Nanos(5)) }, GroupTopic { topic: TopicId(8), start }];
    let row = GroupRow { name: "billing", id: group, created: Nanos(1), topics: topics[..].into() };
    let members = [MemberRow { name: "one", id: member, client: "fuzz", joined: Nanos(2), connected: true, queues: 3 }];
    let (oldest_unread, holder) = (Some(Nanos(3)), Some(member));
    let lag = LagRow { queue, offset, epoch, committed: true, end: QueueOffset(9), oldest_unread, holder };
    let (ids, queues, rows, lags) = ([topic], [AssignedQueue { topic, queue }; 3], [row; 2], [lag; 2]);
    let from = LogPosition(4192);
    let mut record = Vec::new();
    RecordDraft { key: Some(b"key"), body: b"body", ..RecordDraft::default() }.append_to(&mut record);
    record.truncate(RECORD_HEADER_LEN + 8 + 3 + 8 + 4);
    let flags = EntryFlags::for_level(DurableLevel::Synced);
    let (store_time, record_length) = (Nanos(5), record.len() as u32);
    let mut body = FoundBody::default();
    body.push(&FoundHead { queue, offset, epoch, position: from, store_time, record_length, flags }, &record);
    let found = Found { topic, name: "orders", shard: SHARD, messages: body.parts(), next: None };
    let requests = [
        Request::Hello(Hello { client: "fuzz", software: "fuzz 1", shard: Some(SHARD), ..Hello::default() }),
        Request::Ping,
        Request::Metadata(Metadata::of(&["orders", "payments"])),
        Request::CreateTopic(CreateTopic { name: "orders", queues: 8, retention: TopicRetention::default() }),
        Request::Fetch(Fetch { topic, queue, epoch, offset, max_messages: 10, max_bytes: 1 << 16 }),
        Request::Subscribe(Subscribe {
            topic,
            queue,
            mode: Mode::Reader,
            start,
            credit_messages: 1,
            credit_bytes: 4096,
        }),
        Request::GetMessage(GetMessage { message: MessageLocator { id: MessageId(9), check: 8 } }),
        Request::FindMessages(FindMessages { topic, key: b"key", begin: Nanos(1), end: Nanos(9), from, limit: 5 }),
        Request::Credit(Credit { subscription, messages: 1, bytes: 4096 }),
        Request::Ack(Ack { subscription, epoch, offset }),
        Request::Stats(Stats::Latency),
        Request::CreateGroup(CreateGroup { name: "billing", topics: topics[..].into() }),
        Request::JoinGroup(JoinGroup { group, member: "one", topics: ids[..].into(), client: "fuzz" }),
        Request::Heartbeat(Heartbeat { group, member, number: 4 }),
        Request::Subscribe(Subscribe {
            topic,
            queue,
            mode: Mode::Group { group, member },
            start,
            credit_messages: 1,
            credit_bytes: 4096,
        }),
    ];
    let answers = [
        Answer::Error(ErrorAnswer::new(ErrorCode::Malformed)),
        Answer::Stats(StatsAnswer { what: Stats::Shards, json: b"{}" }),
        Answer::GetMessage(found),
        Answer::FindMessages(Found { next: Some(from), ..found }),
        Answer::Revoke(Revoke { subscription }),
        Answer::Assignment(Assignment { group, member, number: 4, queues: queues[..].into() }),
        Answer::ListGroups(ListGroupsAnswer { groups: rows[..].into(), more: true }),
        Answer::DescribeGroup(DescribeGroupAnswer {
            group: row,
            home: SHARD,
            number: 4,
            settling: false,
            members: members[..].into(),
            more: false,
        }),
        Answer::GroupLag(GroupLagAnswer { shard: SHARD, rows: lags[..].into(), now: Nanos(9), more: true }),
    ];
    let mut samples = Vec::new();
    for request in &requests {
        let mut bytes = Vec::new();
        request.encode(Correlation(1), &mut bytes);
        samples.push(bytes);
    }
    for answer in &answers {
        let mut bytes = Vec::new();
        answer.encode(Correlation(1), &mut bytes);
        samples.push(bytes);
    }
    samples
}
