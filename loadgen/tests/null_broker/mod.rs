//! The least that a generator takes for a broker: it keeps nothing, acknowledges each message at once and pushes it to the
//! subscribers of its queue, with a blocking thread per connection. It can refuse a message as `Busy` once.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use peregrine_protocol::entry::{DirectoryId, EntryFlags};
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{
    Correlation, DurableLevel, Epoch, LogPosition, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::limits::{FRAME_MAX_DEFAULT, MESSAGE_MAX_DEFAULT, PREAMBLE_LEN};
use peregrine_protocol::message::topics::TopicRow;
use peregrine_protocol::message::{
    Answer, BatchHead, Deliver, ErrorAnswer, HelloAnswer, Produce, ProduceAnswer, Request, StatsAnswer,
    SubscribeAnswer, TopicAnswer, TopicRetention, Unsubscribe,
};

#[derive(Default)]
struct Queue {
    next_offset: u64,
    expected: HashMap<u64, u64>,
    reader: Option<(SubscriptionId, TcpStream)>,
}

struct State {
    shards: u16,
    topics: Vec<String>,
    queues: HashMap<(u64, u32), Queue>,
    subscriptions: u64,
    /// Refuse the batch with this sequence, once per queue and producer.
    busy_at: Option<u64>,
}

/// Starts it on a free port; it ends with the process.
pub fn start(shards: u16, busy_at: Option<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let state = State { shards, topics: vec![], queues: HashMap::new(), subscriptions: 0, busy_at };
    let state = Arc::new(Mutex::new(state));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(stream, &state));
        }
    });
    address
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    stream.set_nodelay(true).unwrap();
    stream.read_exact(&mut [0; PREAMBLE_LEN]).unwrap();
    let mut received = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let bytes = stream.read(&mut chunk).unwrap_or(0);
        if bytes == 0 {
            return;
        }
        received.extend_from_slice(&chunk[..bytes]);
        while let Received::Frame(frame) = frame::decode(&received, FRAME_MAX_DEFAULT).unwrap() {
            let request = Request::decode(&frame).unwrap();
            let mut out = Vec::new();
            state.lock().unwrap().answer(&request, frame.head.correlation, &stream, &mut out);
            if stream.write_all(&out).is_err() {
                return;
            }
            let used = frame.len();
            received.drain(..used);
        }
    }
}

impl State {
    fn answer(&mut self, request: &Request<'_>, correlation: Correlation, stream: &TcpStream, out: &mut Vec<u8>) {
        match request {
            Request::Hello(hello) => Answer::Hello(HelloAnswer {
                challenge: None,
                directory: DirectoryId(1),
                capabilities: 0,
                shards: self.shards,
                shard: hello.shard.unwrap_or(ShardId(0)),
                message_max: MESSAGE_MAX_DEFAULT,
                frame_max: FRAME_MAX_DEFAULT,
                software: "null",
            })
            .encode(correlation, out),
            Request::Stats(what) => {
                Answer::Stats(StatsAnswer { what: *what, json: br#"{"idle":"park"}"# }).encode(correlation, out);
            }
            Request::CreateTopic(create) => {
                self.topics.push(create.name.to_owned());
                let id = TopicId(self.topics.len() as u64);
                let topic = TopicRow {
                    name: create.name,
                    id,
                    queues: create.queues,
                    created: Nanos(0),
                    retention: TopicRetention::default(),
                };
                Answer::CreateTopic(TopicAnswer { topic, changed: true }).encode(correlation, out);
            }
            Request::DeleteTopic(delete) => {
                let topic = TopicRow {
                    name: delete.name,
                    id: TopicId(1),
                    queues: 1,
                    created: Nanos(0),
                    retention: TopicRetention::default(),
                };
                Answer::DeleteTopic(TopicAnswer { topic, changed: true }).encode(correlation, out);
            }
            Request::Subscribe(subscribe) => {
                self.subscriptions += 1;
                let subscription = SubscriptionId(self.subscriptions);
                let queue = self.queues.entry((subscribe.topic.0, subscribe.queue.0)).or_default();
                queue.reader = Some((subscription, stream.try_clone().unwrap()));
                let (start, end) = (QueueOffset(0), QueueOffset(0));
                Answer::Subscribe(SubscribeAnswer { subscription, epoch: Epoch(1), start, end })
                    .encode(correlation, out);
            }
            Request::Unsubscribe(_) => {
                Answer::Unsubscribe(Unsubscribe { subscription: SubscriptionId(0) }).encode(correlation, out);
            }
            Request::Produce(produce) => self.produce(produce, correlation, out),
            Request::Credit(_) => {}
            other => panic!("a generator does not ask for {other:?}"),
        }
    }

    fn produce(&mut self, produce: &Produce<'_>, correlation: Correlation, out: &mut Vec<u8>) {
        let queue = self.queues.entry((produce.head.topic.0, produce.head.queue.0)).or_default();
        let expected = queue.expected.entry(produce.head.producer_id.0).or_default();
        let sequence = produce.head.sequence.0;
        let busy_bit = 1 << 63;
        if self.busy_at == Some(sequence) && *expected & busy_bit == 0 {
            *expected |= busy_bit;
            let detail = ErrorDetail { retry_after_ns: Some(100_000), ..ErrorDetail::default() };
            Answer::Error(ErrorAnswer::new(ErrorCode::Busy).with(detail)).encode(correlation, out);
            return;
        }
        if sequence != *expected & !busy_bit {
            Answer::Error(ErrorAnswer::new(ErrorCode::OutOfSequence)).encode(correlation, out);
            return;
        }
        *expected += 1;
        let base_offset = QueueOffset(queue.next_offset);
        queue.next_offset += 1;
        Answer::Produce(ProduceAnswer {
            queue: QueueId(produce.head.queue.0),
            base_offset,
            record_count: 1,
            epoch: Epoch(1),
            shard: ShardId(0),
            position: None,
            level: DurableLevel::Synced,
            duplicate: false,
        })
        .encode(correlation, out);
        let Some((subscription, reader)) = &mut queue.reader else { return };
        let batch = BatchHead {
            base_offset,
            first_wanted: base_offset,
            record_count: 1,
            epoch: Epoch(1),
            position: LogPosition(0),
            store_time: Nanos(0),
            payload_crc: produce.head.payload_crc,
            payload_length: produce.payload.len() as u32,
            flags: EntryFlags::for_level(DurableLevel::Synced),
            attempt: 0,
        };
        let mut pushed = Vec::new();
        Deliver { subscription: *subscription, batch, payload: produce.payload }.encode(&mut pushed);
        // A reader that has gone is none of its business.
        let _ = reader.write_all(&pushed);
    }
}
