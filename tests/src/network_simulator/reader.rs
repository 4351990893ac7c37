//! A reader of one queue: subscribes with credit, goes on at (epoch, offset) over lost connections, and takes its time. Between two
//! places it is told of, nothing may be missing.

use peregrine_client::error::Refusal;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, Nanos, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, BatchHead, Credit, Mode, Request, Start, Subscribe};
use peregrine_protocol::placement::TopicHash;

use super::catalogue::Topic;
use super::ledger::Queue;
use super::link::{Link, Said};
use super::world::World;
use crate::simulator::{Violation, promise};

/// After a refusal that may pass.
const RETRY: u64 = 20_000_000;

/// A subscription, and the credit that was given and not used.
#[derive(Clone, Copy, Debug)]
struct Subscription {
    id: SubscriptionId,
    messages: i64,
    bytes: i64,
}

pub struct Reader {
    name: String,
    queue: Queue,
    link: Link<()>,
    /// What to subscribe from, and the offset that comes next where that is known.
    start: Start,
    next: Option<QueueOffset>,
    subscription: Option<Subscription>,
    asked: bool,
    credit: (u32, u64),
    /// One batch in so many is followed by a pause of its taking.
    deaf_one_in: u64,
    retry_at: u64,
    newest_store_time: Nanos,
    is_over: bool,
}

impl Reader {
    pub fn new(world: &mut World, number: u64, topic: &Topic, queue: Queue, start: Start) -> Self {
        let (name, seed) = (format!("reader-{number}"), world.random.next_u64());
        let shard = match world.random.below(4) {
            // What it reads comes through another executor.
            0 => Some(ShardId(world.pick_shard())),
            1 => None,
            _ => Some(TopicHash::of(&topic.name).shard_of(queue.1, world.shards)),
        };
        Self {
            link: Link::new(name.clone(), shard, seed),
            name,
            queue,
            start,
            next: None,
            subscription: None,
            asked: false,
            credit: (world.random.between(1, 100) as u32, *world.random.pick(&[1, 5_000, 100_000])),
            deaf_one_in: *world.random.pick(&[0, 0, 3, 20]),
            retry_at: 0,
            newest_store_time: Nanos::ZERO,
            is_over: false,
        }
    }

    pub fn queue(&self) -> Queue {
        self.queue
    }

    /// What comes next, as far as it knows; `None` where its topic is gone.
    pub fn next(&self) -> Option<QueueOffset> {
        if self.is_over { None } else { Some(self.next.unwrap_or_default()) }
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        match self.is_over {
            true => u64::MAX,
            false if self.retry_at > now => self.retry_at.min(self.link.next_wake(now)),
            false => self.link.next_wake(now),
        }
    }

    pub fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        if self.is_over {
            return Ok(());
        }
        for said in self.link.turn(world)? {
            self.heard(world, said)?;
        }
        if self.link.is_ready() && !self.asked && self.subscription.is_none() && world.now() >= self.retry_at {
            self.subscribe(world);
        }
        Ok(())
    }

    /// Its connection is given up, and made again.
    pub fn reset(&mut self, world: &World) {
        self.link.reset(world);
        self.lost();
    }

    fn lost(&mut self) {
        (self.subscription, self.asked) = (None, false);
    }

    fn subscribe(&mut self, world: &mut World) {
        let subscribe = Subscribe {
            topic: self.queue.0,
            queue: self.queue.1,
            mode: Mode::Reader,
            start: self.start,
            credit_messages: self.credit.0,
            credit_bytes: self.credit.1,
        };
        self.asked = true;
        world.statistics.subscriptions += 1;
        self.link.request(world.now(), &Request::Subscribe(subscribe), ());
    }

    fn heard(&mut self, world: &mut World, said: Said<()>) -> Result<(), Violation> {
        match said {
            Said::Ready => {}
            Said::Lost => self.lost(),
            Said::Answered { answer, .. } => {
                let Some(Answer::Subscribe(answer)) = answer.answer() else {
                    return Err(Violation(format!("{} subscribed and was answered otherwise", self.name)));
                };
                self.asked = false;
                let (messages, bytes) = (i64::from(self.credit.0), self.credit.1 as i64);
                self.subscription = Some(Subscription { id: answer.subscription, messages, bytes });
                if let Start::Offset { offset, .. } = self.start {
                    promise!(answer.start == offset, "{} asked for {offset} and got {}", self.name, answer.start);
                }
                promise!(answer.start <= answer.end, "{} begins at {} behind {}", self.name, answer.start, answer.end);
                if self.start == Start::Earliest {
                    world.ledger.given_up(self.queue, answer.start, world.wall())?;
                }
                self.next = Some(answer.start);
                self.start = Start::Offset { epoch: answer.epoch, offset: answer.start };
            }
            Said::Delivered { subscription, head, payload } => self.takes(world, subscription, &head, &payload)?,
            Said::Refused { refusal, .. } => {
                self.asked = false;
                self.refused(world, &refusal)?;
            }
            Said::Ended { subscription, refusal } => {
                let is_its = self.subscription.is_some_and(|own| own.id == subscription);
                promise!(is_its, "{} was told of the end of {subscription:?}, which it does not have", self.name);
                self.subscription = None;
                self.refused(world, &refusal)?;
            }
            Said::Stored { .. } => return Err(Violation(format!("{} was told what it did not ask", self.name))),
        }
        Ok(())
    }

    fn takes(
        &mut self,
        world: &mut World,
        id: SubscriptionId,
        head: &BatchHead,
        payload: &[u8],
    ) -> Result<(), Violation> {
        let name = &self.name;
        let Some(subscription) = self.subscription.as_mut().filter(|subscription| subscription.id == id) else {
            return Err(Violation(format!("{name} got a batch of {id:?}, which it does not have")));
        };
        promise!(subscription.messages > 0 && subscription.bytes > 0, "{name} got a batch without credit");
        promise!(
            self.next == Some(head.first_wanted),
            "{name} of {:?} waited for {:?} and got {}",
            self.queue,
            self.next,
            head.first_wanted
        );
        promise!(
            head.store_time >= self.newest_store_time,
            "{name} of {:?}: what is at {} was stored before its predecessors",
            self.queue,
            head.base_offset
        );
        let wanted = head.end_offset().0 - head.first_wanted.0;
        subscription.messages -= wanted as i64;
        subscription.bytes -= payload.len() as i64;
        world.statistics.read += wanted;
        world.ledger.seen(self.queue, head, payload, self.link.power_cuts())?;
        self.newest_store_time = head.store_time;
        self.next = Some(head.end_offset());
        self.start = Start::Offset { epoch: head.epoch, offset: head.end_offset() };
        let (full_messages, full_bytes) = (i64::from(self.credit.0), self.credit.1 as i64);
        if subscription.messages <= full_messages / 2 || subscription.bytes <= full_bytes / 2 {
            let (messages, bytes) = (full_messages - subscription.messages, full_bytes - subscription.bytes);
            (subscription.messages, subscription.bytes) = (full_messages, full_bytes);
            let credit = Credit { subscription: id, messages: messages as u32, bytes: bytes as u64 };
            self.link.credit(&credit);
        }
        if !world.is_calm && world.random.one_in(self.deaf_one_in) {
            world.statistics.deaf += 1;
            let until = world.now() + world.random.below(30_000_000);
            self.link.turn_deaf(until);
        }
        Ok(())
    }

    fn refused(&mut self, world: &mut World, refusal: &Refusal) -> Result<(), Violation> {
        let epoch = if let Start::Offset { epoch, .. } = self.start { epoch } else { Epoch::ANY };
        match (refusal.code(), refusal.detail.offset.map(QueueOffset)) {
            (Some(ErrorCode::Truncated), Some(at)) => {
                world.statistics.truncated += 1;
                world.ledger.cut(self.queue, epoch, at)?;
                self.newest_store_time = Nanos::ZERO;
                self.go_on_at(at);
            }
            (Some(ErrorCode::OffsetTooOld), Some(first)) => {
                world.statistics.too_old += 1;
                world.ledger.given_up(self.queue, first, world.wall())?;
                self.go_on_at(first);
            }
            // Of a subscription that ends it tells no offset: subscribing again does.
            (Some(ErrorCode::OffsetTooOld), None) => {
                promise!(!world.ledger.keeps_all(self.queue.0), "{} was too old: {:?}", self.name, self.queue);
            }
            (Some(ErrorCode::TopicDeleted | ErrorCode::UnknownTopic), _) if world.ledger.is_doomed(self.queue.0) => {
                self.is_over = true;
            }
            _ if refusal.retriable => self.retry_at = world.now() + RETRY,
            _ => return Err(Violation(format!("{} of {:?} was refused: {refusal}", self.name, self.queue))),
        }
        Ok(())
    }

    fn go_on_at(&mut self, offset: QueueOffset) {
        self.next = Some(offset);
        self.start = Start::Offset { epoch: Epoch::ANY, offset };
    }
}
