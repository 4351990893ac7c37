//! One connection to the fake broker: what it answers, and what it pushes to readers.

use std::sync::{Arc, Mutex};

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::*;
use peregrine_protocol::limits::{FRAME_MAX_DEFAULT, MESSAGE_MAX_DEFAULT};
use peregrine_protocol::message::TopicRetention;
use peregrine_protocol::message::*;
use peregrine_protocol::placement::shard_of_queue;
use peregrine_protocol::preamble::PREAMBLE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;

use super::queue::Queue;
use super::{Fault, State, groups};

struct Subscription {
    id: SubscriptionId,
    key: (TopicId, QueueId),
    next: u64,
    messages: i64,
    bytes: i64,
}

pub(super) struct Connection {
    stream: TcpStream,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) moved: broadcast::Sender<()>,
    subscriptions: Vec<Subscription>,
    pub(super) group_subscriptions: Vec<groups::GroupSubscription>,
    pub(super) last_subscription: u64,
    /// Of all connections that there were, which one.
    pub(super) number: u64,
    pub(super) shard: u16,
    pub(super) out: Vec<u8>,
}

/// The connection ends here.
struct Dropped;

impl Connection {
    pub(super) fn new(stream: TcpStream, state: Arc<Mutex<State>>, moved: broadcast::Sender<()>) -> Self {
        let number = {
            let mut state = state.lock().unwrap();
            state.connections += 1;
            state.connections
        };
        let (subscriptions, group_subscriptions) = (Vec::new(), Vec::new());
        let (shard, last_subscription, out) = (0, 0, Vec::new());
        Self { stream, state, moved, subscriptions, group_subscriptions, last_subscription, number, shard, out }
    }

    pub(super) async fn serve(mut self) -> Option<()> {
        let mut moved = self.moved.subscribe();
        let mut preamble = [0; PREAMBLE.len()];
        self.stream.read_exact(&mut preamble).await.ok()?;
        assert_eq!(preamble, PREAMBLE);
        let mut incoming = Vec::new();
        loop {
            while let Ok(Received::Frame(frame)) = frame::decode(&incoming, FRAME_MAX_DEFAULT) {
                let (len, correlation) = (frame.len(), frame.head.correlation);
                let request = Request::decode(&frame).expect("the client sends what the protocol allows");
                let result = self.answer(request, correlation);
                incoming.drain(..len);
                if result.is_err() {
                    return None;
                }
            }
            self.deliver();
            self.stream.write_all(&self.out).await.ok()?;
            self.out.clear();
            tokio::select! {
                read = self.stream.read_buf(&mut incoming) => {
                    if read.ok()? == 0 {
                        return None;
                    }
                }
                _ = moved.recv() => {}
            }
        }
    }

    fn answer(&mut self, request: Request<'_>, correlation: Correlation) -> Result<(), Dropped> {
        let shared = self.state.clone();
        let mut state = shared.lock().unwrap();
        let out = &mut self.out;
        let error = |code: ErrorCode, out: &mut Vec<u8>| ErrorAnswer::new(code).encode(correlation, out);
        match request {
            Request::Hello(hello) => {
                self.shard = hello.shard.map_or(0, |shard| shard.0);
                Answer::Hello(HelloAnswer {
                    challenge: None,
                    directory: DirectoryId(state.directory),
                    capabilities: 0,
                    shards: state.shards,
                    shard: ShardId(self.shard),
                    message_max: MESSAGE_MAX_DEFAULT,
                    frame_max: FRAME_MAX_DEFAULT,
                    software: "fake",
                })
                .encode(correlation, out);
            }
            Request::Ping => Answer::Ping.encode(correlation, out),
            Request::CreateTopic(request) => {
                let id = TopicId(state.topics.len() as u64 + 1);
                let (id, queues) = *state.topics.entry(request.name.to_owned()).or_insert((id, request.queues));
                if queues != request.queues {
                    error(ErrorCode::TopicExists, out);
                    return Ok(());
                }
                let topic = TopicRow {
                    name: request.name,
                    id,
                    queues,
                    created: Nanos(1),
                    retention: TopicRetention::default(),
                };
                Answer::CreateTopic(TopicAnswer { topic, changed: true }).encode(correlation, out);
            }
            Request::DeleteTopic(request) => match state.topics.remove(request.name) {
                Some((id, queues)) => {
                    let topic = TopicRow {
                        name: request.name,
                        id,
                        queues,
                        created: Nanos(1),
                        retention: TopicRetention::default(),
                    };
                    Answer::DeleteTopic(TopicAnswer { topic, changed: true }).encode(correlation, out);
                }
                None => error(ErrorCode::UnknownTopic, out),
            },
            Request::Metadata(request) => {
                let names: Vec<&str> = request.names.iter().collect();
                let found: Vec<TopicRow<'_>> = names
                    .iter()
                    .filter_map(|name| state.topics.get_key_value(*name))
                    .map(|(name, (id, queues))| TopicRow {
                        name,
                        id: *id,
                        queues: *queues,
                        created: Nanos(1),
                        retention: TopicRetention::default(),
                    })
                    .collect();
                let topics = TopicRows::from(&found[..]);
                let directory = DirectoryId(state.directory);
                Answer::Metadata(MetadataAnswer { topics, more: false, shards: state.shards, directory })
                    .encode(correlation, out);
            }
            Request::ListTopics(request) => {
                // Pages of two, so that paging is seen.
                let mut found: Vec<TopicRow<'_>> = state
                    .topics
                    .iter()
                    .filter(|(name, _)| name.starts_with(request.prefix) && name.as_str() > request.after)
                    .map(|(name, (id, queues))| TopicRow {
                        name,
                        id: *id,
                        queues: *queues,
                        created: Nanos(1),
                        retention: TopicRetention::default(),
                    })
                    .collect();
                let more = found.len() > 2;
                found.truncate(2);
                Answer::ListTopics(ListTopicsAnswer { topics: TopicRows::from(&found[..]), more })
                    .encode(correlation, out);
            }
            Request::DescribeTopic(request) => match state.topics.get(request.name) {
                Some(&(id, queues)) => {
                    let rows: Vec<QueueRow> = (request.first_queue.0..queues)
                        .map(QueueId)
                        .filter(|&queue| shard_of_queue(request.name, queue, state.shards).0 == self.shard)
                        .map(|queue| QueueRow {
                            queue,
                            epoch: Epoch(state.epoch),
                            start: QueueOffset(0),
                            end: QueueOffset(state.queues.get(&(id, queue)).map_or(0, Queue::end)),
                        })
                        .collect();
                    let more = rows.len() > 2;
                    let topic = TopicRow {
                        name: request.name,
                        id,
                        queues,
                        created: Nanos(1),
                        retention: TopicRetention::default(),
                    };
                    let queues = QueueRows::from(&rows[..rows.len().min(2)]);
                    Answer::DescribeTopic(DescribeTopicAnswer { topic, shard: ShardId(self.shard), queues, more })
                        .encode(correlation, out);
                }
                None => error(ErrorCode::UnknownTopic, out),
            },
            Request::Produce(produce) => {
                let fault = state.faults.pop_front();
                match fault {
                    Some(Fault::DropBefore) => return Err(Dropped),
                    Some(Fault::Refuse(code)) => {
                        error(code, out);
                        return Ok(());
                    }
                    _ => {}
                }
                let refused = state.produce(&produce).map(|answer| answer.encode(correlation, out));
                if let Err((code, detail)) = refused {
                    ErrorAnswer::new(code).with(detail).encode(correlation, out);
                }
                let _ = self.moved.send(());
                if let Some(Fault::DropAfter) = fault {
                    return Err(Dropped);
                }
            }
            Request::LookUp(request) => {
                let end = state.queues.get(&(request.topic, request.queue)).map_or(0, Queue::end);
                let offset = if request.start == Start::Latest { end } else { 0 };
                let (offset, start, end) = (QueueOffset(offset), QueueOffset(0), QueueOffset(end));
                let epoch = Epoch(state.epoch);
                Answer::LookUp(LookUpAnswer { offset, epoch, start, end }).encode(correlation, out);
            }
            Request::Subscribe(request) if request.mode != Mode::Reader => {
                self.subscribe_member(&mut state, &request, correlation);
            }
            Request::Subscribe(request) => {
                let key = (request.topic, request.queue);
                let epoch = Epoch(state.epoch);
                let queue = state.queues.entry(key).or_default();
                let start = match request.start {
                    Start::Earliest | Start::Time(_) => 0,
                    Start::Latest => queue.end(),
                    Start::Offset { epoch, offset } => match queue.valid_up_to(epoch) {
                        valid if offset.0 > valid => {
                            let detail = ErrorDetail { offset: Some(valid), ..ErrorDetail::default() };
                            ErrorAnswer::new(ErrorCode::Truncated).with(detail).encode(correlation, out);
                            return Ok(());
                        }
                        _ => offset.0,
                    },
                };
                let end = queue.end();
                let id = SubscriptionId(self.subscriptions.len() as u64 + 1);
                self.subscriptions.push(Subscription {
                    id,
                    key,
                    next: start,
                    messages: request.credit_messages.into(),
                    bytes: request.credit_bytes as i64,
                });
                let (start, end) = (QueueOffset(start), QueueOffset(end));
                Answer::Subscribe(SubscribeAnswer { subscription: id, epoch, start, end }).encode(correlation, out);
            }
            Request::Ack(ack) => self.ack_member(&mut state, &ack, correlation),
            Request::Credit(credit) => {
                self.credit_member(&credit);
                if let Some(it) = self.subscriptions.iter_mut().find(|it| it.id == credit.subscription) {
                    it.messages += i64::from(credit.messages);
                    it.bytes += credit.bytes as i64;
                }
            }
            Request::Unsubscribe(request) => {
                self.unsubscribe_member(&mut state, request.subscription);
                self.subscriptions.retain(|it| it.id != request.subscription);
                let out = &mut self.out;
                Answer::Unsubscribe(request).encode(correlation, out);
            }
            Request::AlterTopic(_) | Request::Fetch(_) | Request::Stats(_) => {
                panic!("the tests' client does not send {request:?}")
            }
            of_groups => self.answer_group(&mut state, of_groups, correlation),
        }
        Ok(())
    }

    fn deliver(&mut self) {
        let shared = self.state.clone();
        let mut state = shared.lock().unwrap();
        self.deliver_to_members(&mut state);
        for it in &mut self.subscriptions {
            let Some(queue) = state.queues.get(&it.key) else { continue };
            for batch in &queue.batches {
                let end = batch.base + u64::from(batch.records);
                if end <= it.next || it.messages <= 0 || it.bytes <= 0 {
                    continue;
                }
                let head = batch.head(it.next, 0);
                it.messages -= (end - head.first_wanted.0) as i64;
                it.bytes -= batch.payload.len() as i64;
                it.next = end;
                Deliver { subscription: it.id, batch: head, payload: &batch.payload }.encode(&mut self.out);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.lose_members();
    }
}
