//! One queue of a member: its subscription, its credit, and its [`Window`].
//!
//! ```text
//!          ┌───────────── lost connection, ended ◄──┬────────────┐
//!          ▼                                        │            │
//!        Idle ──subscribe──► Asked ──answer──► Open ──unsubscribe──► Closing
//!          ▲                                                         │ answer
//!          └─────────────────────────────────────────────────────────┘
//! ```
//! The window outlives the subscription, so that what the application holds is still its own when the queue is; it goes when the
//! owner says that the queue is another's, or was set to another place.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{MemberId, Nanos, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::message::{Ack, BatchHead, Credit, SubscribeAnswer};

use super::action::{Notice, QueueKey, Ticket, Token};
use super::window::Window;
use crate::error::Refusal;
use crate::idempotence::back_off::BackOff;

/// First delay after a refusal that may not last.
const FIRST_DELAY: Nanos = Nanos::from_millis(20);
/// Longest delay between such tries.
const LONGEST_DELAY: Nanos = Nanos::from_millis(1_000);

/// How much of one queue may be on its way and in the application's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CreditWindow {
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Claim<M> {
    pub shard: ShardId,
    /// The home says that the queue is this member's.
    pub is_assigned: bool,
    pub slot: Slot,
    window: Option<Window<M>>,
    /// Nothing is tried before.
    pub retry_at: Option<Nanos>,
    back_off: BackOff,
    /// What the application was told last of trouble that lasts.
    pub told: Option<Notice>,
    /// It stands in the core's list of queues with messages for the application.
    pub is_listed: bool,
}

#[derive(Debug)]
pub(super) enum Slot {
    Idle,
    Asked(Asked),
    Open(Open),
    Closing(Ticket),
}

/// What a subscribe said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub ticket: Ticket,
    /// As which member.
    pub member: MemberId,
    /// With how much credit.
    pub share: CreditWindow,
}

/// A subscription.
#[derive(Debug)]
pub(super) struct Open {
    pub ticket: Ticket,
    pub subscription: SubscriptionId,
    /// Nothing more comes; another member waits for the queue.
    pub is_revoked: bool,
    /// What came does not join on to what is here: the queue has a hole. Once all before it is done, the queue is subscribed to
    /// anew, behind the hole.
    pub is_before_hole: bool,
    /// Behind the last message that came under it: nothing above is acknowledged.
    delivered: QueueOffset,
    has_delivered: bool,
    ack_in_flight: bool,
    /// Credit that the broker has; a batch that is larger takes it below zero.
    messages: i64,
    bytes: i64,
}

/// What came of an ack.
pub(super) enum AckOutcome {
    /// Kept, or to be sent again later.
    Fine,
    /// The group goes on there.
    Truncated(QueueOffset),
    /// The queue is another's now.
    Lost,
}

impl<M> Claim<M> {
    pub fn new(shard: ShardId, seed: u64) -> Self {
        Self {
            shard,
            is_assigned: false,
            slot: Slot::Idle,
            window: None,
            retry_at: None,
            back_off: BackOff::new(FIRST_DELAY, LONGEST_DELAY, seed),
            told: None,
            is_listed: false,
        }
    }

    /// The subscription was opened.
    pub fn subscribed(&mut self, asked: Asked, answer: &SubscribeAnswer) {
        let Asked { ticket, share, .. } = asked;
        self.go_on_at(ticket, answer.start);
        self.slot = Slot::Open(Open {
            ticket,
            subscription: answer.subscription,
            is_revoked: false,
            is_before_hole: false,
            delivered: answer.start,
            has_delivered: false,
            ack_in_flight: false,
            messages: i64::from(share.wire_messages()),
            bytes: i64::try_from(share.bytes).unwrap_or(i64::MAX),
        });
    }

    /// A batch came. Answers where it replaced messages that were here.
    pub fn delivered(
        &mut self,
        ticket: Ticket,
        head: &BatchHead,
        messages: impl ExactSizeIterator<Item = M>,
    ) -> Option<QueueOffset> {
        let Slot::Open(open) = &mut self.slot else { return None };
        if open.ticket != ticket {
            return None;
        }
        let bytes = u64::from(head.payload_length);
        open.messages -= (head.end_offset() - head.first_wanted) as i64;
        open.bytes -= bytes as i64;
        let joins_on = self.window.as_ref().is_some_and(|window| window.takes(head.first_wanted));
        if open.is_revoked && !joins_on {
            return None; // it comes behind what was given up
        }
        let is_behind = |window: &Window<M>| window.is_below(head.first_wanted);
        if open.is_before_hole || open.has_delivered && self.window.as_ref().is_some_and(is_behind) {
            open.is_before_hole = true;
            return None;
        }
        // What comes once more is no sign that the trouble is over.
        if self.window.as_ref().is_none_or(|window| window.is_below(head.end_offset())) {
            self.back_off.reset();
            self.told = None;
        }
        let is_first = !std::mem::replace(&mut open.has_delivered, true);
        open.delivered = head.end_offset();
        if is_first || !joins_on {
            // The place where it became this member's may be another than when it subscribed.
            self.go_on_at(ticket, head.first_wanted);
        }
        let window = self.window.as_mut()?;
        window.receive(head.first_wanted, head.epoch, bytes, messages)
    }

    fn go_on_at(&mut self, ticket: Ticket, place: QueueOffset) {
        if !self.window.as_mut().is_some_and(|window| window.go_on_at(place)) {
            self.window = Some(Window::new(ticket.0, place));
        }
    }

    /// The next message, if there is one and it is still to go out.
    pub fn hand_out(&mut self, key: QueueKey) -> Option<(Token, M)> {
        let window = self.window.as_mut()?;
        let tenure = window.tenure();
        let (offset, epoch, message) = window.hand_out()?;
        Some((Token { key, offset, epoch, tenure }, message))
    }

    pub fn has_line(&self) -> bool {
        self.window.as_ref().is_some_and(Window::has_line)
    }

    /// The application is done with a message. `false`: it is not this member's any more, or was done before.
    pub fn complete(&mut self, token: &Token) -> bool {
        let window = self.window.as_mut().filter(|window| window.tenure() == token.tenure);
        window.is_some_and(|window| window.complete(token.offset, token.epoch))
    }

    /// What is to be acknowledged now: one ack is on its way at a time.
    pub fn next_ack(&mut self, now: Nanos) -> Option<(Ticket, Ack)> {
        let Slot::Open(open) = &mut self.slot else { return None };
        if open.ack_in_flight || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        let (epoch, offset) = self.window.as_ref()?.to_ack(open.delivered)?;
        open.ack_in_flight = true;
        Some((open.ticket, Ack { subscription: open.subscription, epoch, offset }))
    }

    pub fn acked(&mut self, answer: Result<QueueOffset, &Refusal>, now: Nanos) -> AckOutcome {
        let Slot::Open(open) = &mut self.slot else { return AckOutcome::Fine };
        open.ack_in_flight = false;
        let refusal = match answer {
            Ok(offset) => {
                self.back_off.reset();
                if let Some(window) = &mut self.window {
                    window.acknowledged(offset);
                }
                return AckOutcome::Fine;
            }
            Err(refusal) => refusal,
        };
        match (refusal.code(), refusal.detail.offset) {
            (Some(ErrorCode::Truncated), Some(at)) => {
                let at = QueueOffset(at);
                open.delivered = open.delivered.min(at);
                if let Some(window) = &mut self.window {
                    window.cut(at);
                }
                AckOutcome::Truncated(at)
            }
            _ if refusal.retriable && refusal.code() != Some(ErrorCode::OffsetReset) => {
                self.wait(refusal.detail.retry_after_ns, now);
                AckOutcome::Fine
            }
            _ => AckOutcome::Lost,
        }
    }

    /// Something is done that the broker does not know of.
    pub fn owes_ack(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.to_ack(QueueOffset(u64::MAX)).is_some())
    }

    /// Everything that can be acknowledged is, the application holds nothing, and no answer is missing.
    pub fn is_settled(&self) -> bool {
        let Slot::Open(open) = &self.slot else { return true };
        let is_empty =
            |window: &Window<M>| window.is_all_done() && !window.has_line() && window.to_ack(open.delivered).is_none();
        !open.ack_in_flight && self.window.as_ref().is_none_or(is_empty)
    }

    /// Credit to give, once it is a quarter of what the queue may have.
    pub fn next_credit(&mut self, share: CreditWindow) -> Option<Credit> {
        let Slot::Open(open) = &mut self.slot else { return None };
        let (messages, bytes) = self.window.as_ref().map_or((0, 0), Window::open);
        let room = |share: u64, held: u64, given: i64| {
            (i64::try_from(share).unwrap_or(i64::MAX) - held as i64).saturating_sub(given).max(0) as u64
        };
        let messages = room(share.wire_messages().into(), messages, open.messages);
        let bytes = room(share.bytes, bytes, open.bytes);
        // Either at zero stops the broker, so both are given together.
        if messages.saturating_mul(4) < share.messages && bytes.saturating_mul(4) < share.bytes {
            return None;
        }
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        open.messages += i64::from(messages);
        open.bytes = open.bytes.saturating_add(bytes as i64);
        Some(Credit { subscription: open.subscription, messages, bytes })
    }

    /// The queue is not this member's, or goes on elsewhere: nothing that is held means anything any more.
    pub fn lose(&mut self) {
        self.window = None;
    }

    /// What the application has not got yet goes to others, and nothing more is taken from the broker.
    pub fn drop_line(&mut self) {
        if let Slot::Open(open) = &mut self.slot {
            // What it would send next does not join on to what is left.
            open.is_revoked = true;
        }
        if let Some(window) = &mut self.window {
            window.drop_line();
        }
    }

    pub fn drop_held(&mut self) {
        if let Some(window) = &mut self.window {
            window.drop_held();
        }
    }

    /// Nothing is tried for a growing while, or for as long as the broker says.
    pub fn wait(&mut self, hint_ns: Option<u64>, now: Nanos) {
        let delay = self.back_off.next_delay().0.max(hint_ns.unwrap_or(0));
        self.retry_at = Some(Nanos(now.0.saturating_add(delay)));
    }

    pub fn is_ticket(&self, ticket: Ticket) -> bool {
        match &self.slot {
            Slot::Idle => false,
            Slot::Asked(asked) => asked.ticket == ticket,
            Slot::Closing(current) => *current == ticket,
            Slot::Open(open) => open.ticket == ticket,
        }
    }
}

impl CreditWindow {
    /// This much of each of `queues` queues.
    pub fn share(self, queues: usize) -> Self {
        let queues = queues.max(1) as u64;
        Self { messages: (self.messages / queues).max(1), bytes: (self.bytes / queues).max(1) }
    }

    /// As much as a subscription can carry.
    pub fn wire_messages(self) -> u32 {
        u32::try_from(self.messages).unwrap_or(u32::MAX)
    }
}
