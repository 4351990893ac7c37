//! Looking messages up by id and by key.

use super::*;
use crate::limits::{FIND_KEY_MAX, FOUND_MAX, RECORD_HEADER_LEN};
use crate::locator::MessageLocator;
use crate::record::RecordDraft;

fn find(key: &[u8], limit: u32) -> Request<'_> {
    let (begin, end, from) = (Nanos(5), Nanos(u64::MAX), LogPosition(64));
    Request::FindMessages(FindMessages { topic: TopicId(7), key, begin, end, from, limit })
}

fn head(record: &[u8]) -> FoundHead {
    FoundHead {
        queue: QueueId(3),
        offset: QueueOffset(17),
        epoch: Epoch(2),
        position: LogPosition(4192),
        store_time: Nanos(9),
        record_length: record.len() as u32,
        flags: EntryFlags::for_level(DurableLevel::Memory),
    }
}

/// Without its filling.
fn record(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let draft = RecordDraft { key: Some(b"k"), body, ..RecordDraft::default() };
    draft.append_to(&mut bytes);
    bytes.truncate(draft.len() as usize);
    bytes
}

fn found(body: &FoundBody, next: Option<u64>) -> Found<'_> {
    let (name, shard, next) = ("orders", ShardId(1), next.map(LogPosition));
    Found { topic: TopicId(7), name, shard, messages: body.parts(), next }
}

#[test]
fn look_ups_come_back_as_they_were_sent() {
    let message = MessageLocator { id: MessageId(u64::MAX), check: 7 };
    check_request(&Request::GetMessage(GetMessage { message }));
    for key in [&b""[..], b"ann", &vec![0xFF; FIND_KEY_MAX]] {
        check_request(&find(key, FOUND_MAX));
    }
    let mut body = FoundBody::default();
    for next in [None, Some(0), Some(u64::MAX)] {
        check_answer(&Answer::GetMessage(found(&body, next)));
        let record = record(b"12345");
        let len = body.len_with(record.len());
        body.push(&head(&record), &record);
        check_answer(&Answer::FindMessages(found(&body, next)));
        assert_eq!(body.parts().iter_filled().map(|(_, record)| FoundHead::LEN + record.len()).sum::<usize>(), len);
    }
    assert_eq!(body.parts().len(), 3);
    let all: Vec<_> = body.parts().iter().collect();
    assert!(all.iter().all(|(head, bytes)| bytes.starts_with(&record(b"12345")) && head.offset.0 == 17));
}

#[test]
fn a_look_up_out_of_range_is_an_error_of_the_request_alone() {
    for request in [find(&vec![0; FIND_KEY_MAX + 1], 1), find(b"ann", FOUND_MAX + 1)] {
        let bytes = encoded_request(&request);
        let error = Request::decode(&frame_of(&bytes)).unwrap_err();
        assert!(matches!(error, DecodeError::Field(_)), "{error}");
    }
}

#[test]
fn answers_do_not_lie_about_their_messages() {
    let record = record(b"123");
    let mut body = FoundBody::default();
    body.push(&head(&record), &record);
    let sound = encoded_answer(&Answer::GetMessage(found(&body, None)));
    let body_at = sound.len() - body.len_with(0) + FoundHead::LEN;
    let decode = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[body_at + at] = value;
        Answer::decode(&frame_of(&bytes)).map(|_| ())
    };
    assert_eq!(decode(0, sound[body_at]), Ok(()));
    // The queue stands at 32, the record's length at 36, flags at 40, zeros behind them.
    assert_eq!(decode(36, record.len() as u8 + 64), Err(DecodeError::Body));
    assert_eq!(decode(36, RECORD_HEADER_LEN as u8 - 1), Err(DecodeError::Header));
    assert_eq!(decode(36, record.len() as u8 - 3), Err(DecodeError::Body), "what fills up is zero");
    assert_eq!(decode(44, 1), Err(DecodeError::Header));
    assert_eq!(decode(16, 1), Err(DecodeError::Field("position")));
    assert_eq!(decode(23, 0xFF), Err(DecodeError::Field("position")));
    for cut in (8..sound.len() - body_at).step_by(8) {
        let whole = frame_of(&sound);
        let mut bytes = Vec::new();
        let body = &whole.body[..whole.body.len() - cut];
        frame::encode(Kind::GetMessage, Sender::Broker, Correlation(1), whole.header, body, &mut bytes);
        assert_eq!(Answer::decode(&frame_of(&bytes)).map(|_| ()), Err(DecodeError::Body));
    }
    let named = encoded_answer(&Answer::GetMessage(Found { name: "a/b", ..found(&body, None) }));
    assert_eq!(Answer::decode(&frame_of(&named)).unwrap_err().code(), ErrorCode::InvalidName);
}
