//! The reader's task: keeps one subscription per queue, puts batches in line for the application, and gives credit as it takes them.
//! What stands in the line is bounded by the credit.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::message::{Credit, Mode, Subscribe};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::is_fatal;
use super::place::Place;
use crate::client::Client;
use crate::error::{Error, Refusal};
use crate::idempotence::back_off::{BackOff, random_identity};
use crate::link::{Generation, Happening, Link, LinkEvent, Listener};
use crate::message::ReceivedBatch;

/// First delay after a refused subscription that may succeed later.
const FIRST_DELAY: Nanos = Nanos::from_millis(20);
/// Longest delay between such tries.
const LONGEST_DELAY: Nanos = Nanos::from_millis(1_000);

/// What goes to the application.
#[derive(Debug)]
pub(super) enum Piece {
    Batch { batch: ReceivedBatch, consumed: Consumed },
    Error(Error),
}

/// A batch that the application has taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Consumed {
    queue: QueueId,
    messages: u64,
    bytes: u64,
}

/// How much of one queue may be on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreditWindow {
    pub messages: u64,
    pub bytes: u64,
}

pub(super) struct ReaderTask {
    client: Client,
    topic: TopicId,
    places: BTreeMap<QueueId, Place>,
    window: CreditWindow,
    patience: Option<Duration>,
    pieces: mpsc::UnboundedSender<Piece>,
    consumed: mpsc::UnboundedReceiver<Consumed>,
    listener: Listener,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    links: HashMap<ShardId, (Link, Option<Generation>)>,
    back_off: BackOff,
    retries: BTreeMap<Instant, Vec<QueueId>>,
    /// Since when a shard cannot be reached.
    unreachable_since: BTreeMap<ShardId, Instant>,
}

/// The reader is at its end.
struct Over;

impl ReaderTask {
    pub fn new(
        client: Client,
        topic: TopicId,
        places: Vec<Place>,
        window: CreditWindow,
        patience: Option<Duration>,
        pieces: mpsc::UnboundedSender<Piece>,
        consumed: mpsc::UnboundedReceiver<Consumed>,
    ) -> Self {
        let (listener, events) = mpsc::unbounded_channel();
        Self {
            client,
            topic,
            places: places.into_iter().map(|place| (place.queue, place)).collect(),
            window,
            patience,
            pieces,
            consumed,
            listener,
            events,
            links: HashMap::new(),
            back_off: BackOff::new(FIRST_DELAY, LONGEST_DELAY, random_identity()),
            retries: BTreeMap::new(),
            unreachable_since: BTreeMap::new(),
        }
    }

    /// Ends when every queue is over, after a fatal error, or when the reader is dropped.
    pub async fn run(mut self) {
        for shard in self.places.values().map(|place| place.shard).collect::<Vec<_>>() {
            if !self.links.contains_key(&shard) {
                let link = self.client.link(shard);
                link.listen(self.listener.clone());
                self.links.insert(shard, (link, None));
                self.unreachable_since.insert(shard, Instant::now());
            }
        }
        while self.places.values().any(|place| !place.is_over) && self.turn().await.is_ok() {}
        self.unsubscribe_all();
    }

    async fn turn(&mut self) -> Result<(), Over> {
        let retry = self.retries.first_key_value().map(|(at, _)| *at);
        let give_up = self.patience.and_then(|patience| self.unreachable_since.values().min().map(|at| *at + patience));
        let wake = [retry, give_up].into_iter().flatten().min();
        tokio::select! {
            event = self.events.recv() => self.heard(event.ok_or(Over)?)?,
            consumed = self.consumed.recv() => {
                self.taken(consumed.ok_or(Over)?);
                while let Ok(consumed) = self.consumed.try_recv() {
                    self.taken(consumed);
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.woken(give_up)?,
        }
        Ok(())
    }

    fn heard(&mut self, event: LinkEvent) -> Result<(), Over> {
        let LinkEvent { shard, generation, what } = event;
        match what {
            Happening::Connected => {
                self.unreachable_since.remove(&shard);
                if let Some((_, current)) = self.links.get_mut(&shard) {
                    *current = Some(generation);
                }
                let here = |place: &&Place| place.shard == shard;
                for queue in self.places.values().filter(here).map(|place| place.queue).collect::<Vec<_>>() {
                    self.subscribe(queue);
                }
            }
            Happening::Disconnected => {
                self.unreachable_since.insert(shard, Instant::now());
                if let Some((_, current)) = self.links.get_mut(&shard) {
                    *current = None;
                }
                for place in self.places.values_mut().filter(|place| place.shard == shard) {
                    place.subscription = None;
                }
            }
            Happening::Failed(error) => return self.fail(error),
            Happening::Subscribed { queue, answer: Ok(answer) } => {
                self.back_off.reset();
                if let Some(place) = self.places.get_mut(&queue) {
                    place.subscribed(generation, &answer);
                }
                self.give_credit(queue);
                self.close_if_over(queue);
            }
            Happening::Subscribed { queue, answer: Err(refusal) } => self.refused(queue, refusal)?,
            Happening::Ended { queue, subscription, refusal } => {
                let is_current = |place: &Place| place.subscription == Some((generation, subscription));
                if self.places.get(&queue).is_some_and(is_current) {
                    self.refused(queue, refusal)?;
                }
            }
            Happening::Delivered { subscription, batch } => {
                let queue = batch.queue;
                if let Some(place) = self.places.get_mut(&queue)
                    && place.subscription == Some((generation, subscription))
                {
                    self.deliver(batch)?;
                    self.close_if_over(queue);
                }
            }
            Happening::Produced { .. } | Happening::Member(_) => {}
        }
        Ok(())
    }

    fn deliver(&mut self, batch: ReceivedBatch) -> Result<(), Over> {
        let Some(place) = self.places.get_mut(&batch.queue) else { return Ok(()) };
        let (messages, bytes) = (batch.wanted(), u64::from(batch.head.payload_length));
        if !place.received(&batch.head) {
            return Ok(());
        }
        place.held_messages += messages;
        place.held_bytes += bytes;
        let consumed = Consumed { queue: batch.queue, messages, bytes };
        let batch = match place.end() {
            Some(end) => batch.until(end),
            None => batch,
        };
        self.pieces.send(Piece::Batch { batch, consumed }).map_err(|_| Over)
    }

    /// The broker would not subscribe, or ended the subscription.
    fn refused(&mut self, queue: QueueId, refusal: Refusal) -> Result<(), Over> {
        let Some(place) = self.places.get_mut(&queue) else { return Ok(()) };
        place.subscription = None;
        match (refusal.code(), refusal.detail.offset) {
            (Some(ErrorCode::Truncated), Some(at)) => {
                let at = QueueOffset(at);
                place.truncated(at);
                self.pieces.send(Piece::Error(Error::Truncated { queue, at })).map_err(|_| Over)?;
                self.subscribe(queue);
                Ok(())
            }
            // Of a subscription that ends it tells no offset: subscribing again does.
            (Some(ErrorCode::OffsetTooOld), _) => {
                if let Some(first) = refusal.detail.offset.map(QueueOffset) {
                    place.is_too_old(first);
                    self.pieces.send(Piece::Error(Error::TooOld { queue, first })).map_err(|_| Over)?;
                }
                self.subscribe(queue);
                Ok(())
            }
            _ if refusal.retriable => {
                let delay = self.back_off.next_delay().to_duration();
                let hint = Duration::from_nanos(refusal.detail.retry_after_ns.unwrap_or(0));
                self.retries.entry(Instant::now() + delay.max(hint)).or_default().push(queue);
                Ok(())
            }
            _ => self.fail(refusal.into()),
        }
    }

    fn subscribe(&mut self, queue: QueueId) {
        let Some(place) = self.places.get(&queue).filter(|place| !place.is_over && place.subscription.is_none()) else {
            return;
        };
        let Some((link, Some(generation))) = self.links.get(&place.shard) else { return };
        let subscribe = Subscribe {
            topic: self.topic,
            queue,
            mode: Mode::Reader,
            start: place.start(),
            credit_messages: u32::try_from(self.window.messages.saturating_sub(place.held_messages))
                .unwrap_or(u32::MAX),
            credit_bytes: self.window.bytes.saturating_sub(place.held_bytes),
        };
        link.subscribe(*generation, subscribe, self.listener.clone());
        if let Some(place) = self.places.get_mut(&queue) {
            (place.owed_messages, place.owed_bytes) = (0, 0);
        }
    }

    fn taken(&mut self, consumed: Consumed) {
        let Some(place) = self.places.get_mut(&consumed.queue) else { return };
        place.held_messages = place.held_messages.saturating_sub(consumed.messages);
        place.held_bytes = place.held_bytes.saturating_sub(consumed.bytes);
        // Before the answer to a subscribe the credit waits: it belongs to a subscription that has no number yet.
        place.owed_messages += consumed.messages;
        place.owed_bytes += consumed.bytes;
        self.give_credit(consumed.queue);
    }

    /// Gives what is owed once it is a quarter of the window.
    fn give_credit(&mut self, queue: QueueId) {
        let Some(place) = self.places.get_mut(&queue) else { return };
        let is_due = place.owed_messages * 4 >= self.window.messages || place.owed_bytes * 4 >= self.window.bytes;
        let Some((generation, subscription)) = place.subscription.filter(|_| is_due) else { return };
        if let Some((link, _)) = self.links.get(&place.shard) {
            let messages = u32::try_from(place.owed_messages).unwrap_or(u32::MAX);
            link.credit(generation, Credit { subscription, messages, bytes: place.owed_bytes });
            (place.owed_messages, place.owed_bytes) = (0, 0);
        }
    }

    fn woken(&mut self, give_up: Option<Instant>) -> Result<(), Over> {
        let now = Instant::now();
        if give_up.is_some_and(|at| at <= now) {
            let shard = self.unreachable_since.keys().next().copied().unwrap_or_default();
            let error = self.client.timed_out(&self.client.link(shard));
            return self.fail(error);
        }
        while let Some(entry) = self.retries.first_entry()
            && *entry.key() <= now
        {
            for queue in entry.remove() {
                self.subscribe(queue);
            }
        }
        Ok(())
    }

    fn close_if_over(&mut self, queue: QueueId) {
        let Some(place) = self.places.get_mut(&queue).filter(|place| place.is_over) else { return };
        if let Some((generation, subscription)) = place.subscription.take()
            && let Some((link, _)) = self.links.get(&place.shard)
        {
            link.unsubscribe(generation, subscription);
        }
    }

    fn unsubscribe_all(&mut self) {
        for place in self.places.values_mut() {
            place.is_over = true;
        }
        for queue in self.places.keys().copied().collect::<Vec<_>>() {
            self.close_if_over(queue);
        }
    }

    fn fail(&mut self, error: Error) -> Result<(), Over> {
        assert!(is_fatal(&error), "the reader goes on after the others");
        let _ = self.pieces.send(Piece::Error(error)); // nobody may wait any more
        Err(Over)
    }
}
