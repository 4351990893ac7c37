//! A reader of one queue: it goes on where it was after each loss of its connection, and is slow at times.

use peregrine_broker::log::disk::simulated::Random;
use peregrine_broker::simulated::Network;
use peregrine_client::session::Event;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{
    Correlation, DurableLevel, Epoch, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId,
};
use peregrine_protocol::message::{Answer, Credit, Deliver, ErrorAnswer, Mode, Request, Start, Subscribe};

use super::archive::Archive;
use super::link::{Link, Speaker};
use super::message::numbers_of;
use super::statistics::Statistics;
use crate::simulator::{Violation, promise};

/// After a lost connection, or a no that may become a yes.
const BACK_OFF: u64 = 2_000_000;
const CREDIT_MESSAGES: u32 = 30;
const CREDIT_BYTES: u64 = 60_000;

enum Subscription {
    None,
    Asked(Correlation),
    Open(SubscriptionId),
}

pub struct Reader {
    topic: TopicId,
    queue: QueueId,
    /// The shard that it names; that of its queue, or another, from where its requests are sent on.
    shard: ShardId,
    link: Option<Link>,
    again_at: u64,
    subscription: Subscription,
    /// Where it goes on; none before it was told where its queue begins.
    next: Option<(Epoch, QueueOffset)>,
    /// While it is slow it looks at nothing.
    busy_until: Option<u64>,
    slow_one_in: u64,
    /// Losses of power before its connection was opened.
    power_cuts: u64,
}

impl Reader {
    pub fn new(topic: TopicId, queue: QueueId, shard: ShardId, slow_one_in: u64) -> Self {
        Self {
            topic,
            queue,
            shard,
            link: None,
            again_at: 0,
            subscription: Subscription::None,
            next: None,
            busy_until: None,
            slow_one_in,
            power_cuts: 0,
        }
    }

    pub fn next_wake(&self) -> u64 {
        let waits = self.link.is_none() || matches!(self.subscription, Subscription::None);
        self.busy_until.unwrap_or(if waits { self.again_at } else { u64::MAX })
    }

    pub fn act(
        &mut self,
        network: &Network,
        now: u64,
        archive: &mut Archive,
        random: &mut Random,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        if self.busy_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.busy_until = None;
        let Some(mut link) = self.link.take() else {
            if now >= self.again_at {
                self.link = Some(Link::open(network, "reader", Some(self.shard), archive.power_cuts()));
                self.again_at = u64::MAX;
                statistics.connections += 1;
            }
            return Ok(());
        };
        let was_ready = link.is_ready();
        self.power_cuts = link.power_cuts;
        let is_up = link.pump(|speaker, event| self.hear(speaker, event, now, archive, statistics))?;
        if !is_up {
            statistics.disconnections += 1;
            self.subscription = Subscription::None;
            self.again_at = now + BACK_OFF;
            return Ok(());
        }
        let may_ask = link.is_ready() && matches!(self.subscription, Subscription::None);
        if may_ask && (!was_ready || now >= self.again_at) {
            self.subscribe(&mut link.speaker);
            self.again_at = u64::MAX;
            link.flush();
        }
        self.link = Some(link);
        self.busy_until = random.one_in(self.slow_one_in).then(|| now + random.below(30_000_000));
        Ok(())
    }

    fn subscribe(&mut self, speaker: &mut Speaker) {
        let start = self.next.map_or(Start::Earliest, |(epoch, offset)| Start::Offset { epoch, offset });
        let subscribe = Subscribe {
            topic: self.topic,
            queue: self.queue,
            mode: Mode::Reader,
            start,
            credit_messages: CREDIT_MESSAGES,
            credit_bytes: CREDIT_BYTES,
        };
        self.subscription = Subscription::Asked(speaker.ask(&Request::Subscribe(subscribe)));
    }

    fn hear(
        &mut self,
        speaker: &mut Speaker,
        event: Event<'_>,
        now: u64,
        archive: &mut Archive,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        match (event, &self.subscription) {
            (Event::Ready(_), _) => Ok(()),
            (Event::Answered { correlation, answer: Answer::Subscribe(answer) }, Subscription::Asked(asked))
                if *asked == correlation =>
            {
                if let Some((_, next)) = self.next {
                    promise!(answer.start == next, "a reader asked for offset {next} and was put at {}", answer.start);
                }
                let epoch =
                    self.next.map_or(answer.epoch, |(epoch, _)| if epoch == Epoch::ANY { answer.epoch } else { epoch });
                self.next = Some((epoch, answer.start));
                self.subscription = Subscription::Open(answer.subscription);
                Ok(())
            }
            (Event::Delivered(delivery), Subscription::Open(id)) if *id == delivery.subscription => {
                let id = *id;
                self.take(&delivery, archive, statistics)?;
                let credit = Credit {
                    subscription: id,
                    messages: (delivery.batch.end_offset().0 - delivery.batch.first_wanted.0) as u32,
                    bytes: u64::from(delivery.batch.payload_length),
                };
                speaker.session.credit(&credit, &mut speaker.out);
                Ok(())
            }
            (Event::Refused { correlation, error }, Subscription::Asked(asked)) if *asked == correlation => {
                self.ended(&error, now, archive, statistics)
            }
            (Event::Ended { subscription, error }, Subscription::Open(id)) if *id == subscription => {
                self.ended(&error, now, archive, statistics)
            }
            // Its credit crossed the end of its subscription.
            (Event::Refused { error, .. }, _) if error.code == ErrorCode::UnknownSubscription.number() => Ok(()),
            (other, _) => Err(Violation(format!("a reader was told {other:?}"))),
        }
    }

    fn take(
        &mut self,
        delivery: &Deliver<'_>,
        archive: &mut Archive,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        let head = &delivery.batch;
        let Some((_, next)) = self.next else { return Err(Violation("a delivery before the answer".to_owned())) };
        promise!(head.first_wanted == next, "a reader at offset {next} was given offset {}", head.first_wanted);
        let level = head.flags.level().unwrap_or(DurableLevel::Memory);
        for (index, number) in numbers_of(delivery.payload, head.record_count)?.into_iter().enumerate() {
            let offset = head.base_offset + index as u64;
            if offset >= next {
                archive.seen(self.queue, offset, number, level, head.store_time, self.power_cuts)?;
                statistics.seen += 1;
            }
        }
        self.next = Some((head.epoch, head.end_offset()));
        Ok(())
    }

    /// Why it is given nothing more here.
    fn ended(
        &mut self,
        error: &ErrorAnswer<'_>,
        now: u64,
        archive: &Archive,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        self.subscription = Subscription::None;
        self.again_at = now + BACK_OFF;
        let to = error.detail.offset.map(QueueOffset);
        match (ErrorCode::from_number(error.code), to) {
            (Some(ErrorCode::Truncated), Some(at)) => {
                promise!(archive.power_cuts() > 0, "a reader was told of a cut at offset {at}, and no power was");
                statistics.truncated += 1;
                self.next = Some((Epoch::ANY, at));
            }
            (Some(ErrorCode::OffsetTooOld), Some(first)) => {
                promise!(archive.gives_up, "a reader was told that {first} is the first offset that is kept");
                promise!(
                    self.next.is_none_or(|(_, next)| next < first),
                    "a reader at {:?} was told that {first} is the first offset that is kept",
                    self.next
                );
                statistics.too_old += 1;
                self.next = Some((Epoch::ANY, first));
            }
            // One that was open is not told: who subscribes again is.
            (Some(ErrorCode::OffsetTooOld), None) if archive.gives_up => {}
            _ => promise!(error.retriable, "a reader of queue {} was told: {}", self.queue, error.sentence),
        }
        Ok(())
    }
}
