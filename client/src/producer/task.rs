//! The producer's task: brings messages, answers, connections and time to the core, and its batches to the links.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peregrine_protocol::entry::{DirectoryId, EntryFlags};
use peregrine_protocol::ids::{LogPosition, MessageId, Nanos, ProducerId, QueueId, ShardId, TopicId};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::ProduceHead;
use peregrine_protocol::placement::TopicHash;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::builder::OnLoss;
use super::{Completion, Input, Receipt};
use crate::client::{Client, Topic};
use crate::error::{Error, Result};
use crate::idempotence::back_off::random_identity;
use crate::idempotence::{Acknowledgement, BatchLimits, BatchToSend, CoreOptions, Outcome, ProducerCore, RecordPlace};
use crate::link::{Generation, Happening, Link, LinkEvent, Listener};

/// Messages and answers taken in one turn, so that neither starves the other.
const TURN_MAX: usize = 1_024;

pub(super) struct ProducerTask {
    core: ProducerCore<Completion>,
    client: Client,
    directory: DirectoryId,
    topic: TopicId,
    producer_id: ProducerId,
    inbox: mpsc::UnboundedReceiver<Input>,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    listener: Listener,
    links: HashMap<ShardId, (Link, Generation)>,
    flushes: Vec<oneshot::Sender<()>>,
    lost: Arc<AtomicU64>,
    on_loss: Option<OnLoss>,
    failed: Option<Error>,
    started: Instant,
}

impl ProducerTask {
    pub fn new(
        client: Client,
        topic: &Topic,
        limits: BatchLimits,
        timeout: Duration,
        inbox: mpsc::UnboundedReceiver<Input>,
        lost: Arc<AtomicU64>,
        on_loss: Option<OnLoss>,
    ) -> Result<Self> {
        let producer_id = random_identity();
        let broker = client.broker()?;
        let options = CoreOptions {
            topic: TopicHash::of(&topic.name),
            shards: broker.shards,
            limits,
            timeout: Nanos::from(timeout),
            seed: producer_id,
        };
        let (listener, events) = mpsc::unbounded_channel();
        Ok(Self {
            core: ProducerCore::new(options),
            client,
            directory: broker.directory,
            topic: topic.id,
            producer_id: ProducerId(producer_id),
            inbox,
            events,
            listener,
            links: HashMap::new(),
            flushes: Vec::new(),
            lost,
            on_loss,
            failed: None,
            started: Instant::now(),
        })
    }

    /// Ends when no handle is left and nothing is on its way.
    pub async fn run(mut self) {
        let mut is_closing = false;
        while !(is_closing && self.core.is_idle()) {
            let wake = self.core.next_wake().map(|at| self.started + at.to_duration());
            tokio::select! {
                input = self.inbox.recv(), if !is_closing => match input {
                    None => is_closing = true,
                    Some(input) => {
                        self.take(input);
                        for _ in 1..TURN_MAX {
                            let Ok(input) = self.inbox.try_recv() else { break };
                            self.take(input);
                        }
                    }
                },
                event = self.events.recv() => {
                    let mut next = event;
                    for _ in 0..TURN_MAX {
                        let Some(event) = next else { break };
                        self.heard(event);
                        next = self.events.try_recv().ok();
                    }
                    if let Some(event) = next {
                        self.heard(event);
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    let now = self.now();
                    self.core.wake(now);
                }
            }
            self.send();
            self.report();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Push { queue, level, record, completion } => {
                if let Some(error) = &self.failed {
                    completion.complete(Err(error.clone()));
                    return;
                }
                self.need_link(queue);
                let now = self.now();
                self.core.push(queue, level, &record, completion, now);
            }
            Input::Flush(waiter) => self.flushes.push(waiter),
        }
    }

    fn heard(&mut self, event: LinkEvent) {
        let now = self.now();
        match event.what {
            Happening::Connected => {
                if let Some((_, generation)) = self.links.get_mut(&event.shard) {
                    *generation = event.generation;
                }
                self.core.connected(event.shard, now);
            }
            Happening::Disconnected => self.core.disconnected(event.shard, now),
            Happening::Failed(error) => {
                self.core.close(&error);
                self.failed = Some(error);
            }
            Happening::Produced { ticket, answer } => {
                let answer = answer.map(|answer| Acknowledgement {
                    base_offset: answer.base_offset,
                    epoch: answer.epoch,
                    position: answer.position,
                    level: answer.level,
                    duplicate: answer.duplicate,
                });
                self.core.answered(ticket, answer, now);
            }
            Happening::Subscribed { .. }
            | Happening::Delivered { .. }
            | Happening::Ended { .. }
            | Happening::Member(_) => {}
        }
    }

    fn send(&mut self) {
        let now = self.now();
        while let Some((shard, batch)) = self.core.next_batch(now) {
            if let Some((link, generation)) = self.links.get(&shard) {
                let BatchToSend { ticket, .. } = batch;
                let head = ProduceHead {
                    topic: self.topic,
                    queue: ticket.queue,
                    producer_id: self.producer_id,
                    producer_epoch: batch.epoch,
                    sequence: batch.sequence,
                    payload_crc: batch.payload_crc,
                    record_count: batch.records,
                    flags: EntryFlags::for_level(batch.level),
                };
                link.produce(*generation, head, batch.payload, ticket, self.listener.clone());
            }
        }
    }

    fn report(&mut self) {
        while let Some(outcome) = self.core.next_outcome() {
            match outcome {
                Outcome::Acknowledged { token, queue, index, record, acknowledgement } => {
                    let shard = self.core.shard_of(queue);
                    let id = acknowledgement.position.and_then(|entry| record_id(shard, entry, record));
                    token.complete(Ok(Receipt {
                        queue,
                        offset: acknowledgement.base_offset + u64::from(index),
                        id: id.map(|id| MessageLocator::new(self.directory, id, record.checksum)),
                        epoch: acknowledgement.epoch,
                        level: acknowledgement.level,
                        duplicate: acknowledgement.duplicate,
                    }));
                }
                Outcome::Failed { token, error, .. } => token.complete(Err(error)),
                Outcome::Lost(loss) => {
                    self.lost.fetch_add(loss.messages, Ordering::Relaxed);
                    if let Some(call) = &self.on_loss {
                        call(loss);
                    }
                }
            }
        }
        if !self.flushes.is_empty() && self.core.is_idle() {
            for waiter in self.flushes.drain(..) {
                let _ = waiter.send(()); // nobody may wait any more
            }
        }
    }

    /// The first message to a shard's queues asks for its link.
    fn need_link(&mut self, queue: QueueId) {
        let shard = self.core.shard_of(queue);
        if !self.links.contains_key(&shard) {
            let link = self.client.link(shard);
            link.listen(self.listener.clone());
            self.links.insert(shard, (link, 0));
        }
    }

    fn now(&self) -> Nanos {
        Nanos::from(self.started.elapsed())
    }
}

/// The id of a record in the entry at that position; none where a broker says what cannot be.
fn record_id(shard: ShardId, entry: LogPosition, record: RecordPlace) -> Option<MessageId> {
    let start = entry.0.checked_add(ENTRY_HEADER_LEN as u64 + u64::from(record.start))?;
    MessageId::checked(shard, LogPosition(start))
}
