//! What a [`MemberCore`] does for one of its queues: subscribes, acknowledges, gives credit, unsubscribes, and tries again.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Nanos, QueueOffset, ShardId};
use peregrine_protocol::message::{Mode, Start, Subscribe};

use super::action::{Action, Notice, QueueKey, Ticket};
use super::claim::{Asked, Claim, CreditWindow, Slot};
use super::core::MemberCore;
use super::membership::Standing;
use crate::error::Refusal;

impl<M> MemberCore<M> {
    /// Does for a queue what is to be done now.
    pub(super) fn settle(&mut self, key: QueueKey, now: Nanos) {
        let share = self.share();
        let Some(claim) = self.claims.get_mut(&key) else { return };
        // A member that closes still wants what it takes to acknowledge what is done.
        let goes_on = self.membership.standing != Standing::Gone && (!self.is_closing || claim.owes_ack());
        let is_wanted = claim.is_assigned && goes_on;
        let is_revoked = matches!(&claim.slot, Slot::Open(open) if open.is_revoked);
        let is_before_hole = matches!(&claim.slot, Slot::Open(open) if open.is_before_hole);
        if !is_wanted || is_revoked {
            claim.drop_line();
        }
        match &claim.slot {
            Slot::Idle if !is_wanted && self.awaits_assignment && goes_on => return,
            Slot::Idle if !is_wanted => {
                self.claims.remove(&key);
                self.leave_if_settled();
                return;
            }
            Slot::Idle => return self.subscribe(key, now),
            Slot::Asked(_) | Slot::Closing(_) => return,
            Slot::Open(_) => {}
        }
        let (shard, stays) = (claim.shard, is_wanted && !is_revoked);
        if let Some((ticket, ack)) = claim.next_ack(now) {
            self.actions.push_back(Action::Ack(shard, ticket, ack));
        }
        if (!stays || is_before_hole) && claim.is_settled() {
            self.unsubscribe(key);
            return;
        }
        if !stays {
            return;
        }
        if !is_before_hole && let Some(credit) = claim.next_credit(share) {
            self.actions.push_back(Action::Credit(shard, credit));
        }
        if !claim.is_listed && claim.has_line() {
            claim.is_listed = true;
            self.ready.push_back(key);
        }
    }

    pub(super) fn subscribe(&mut self, key: QueueKey, now: Nanos) {
        let share = self.share();
        let ticket = Ticket(self.next_ticket);
        let (Some(claim), Some(member)) = (self.claims.get_mut(&key), self.membership.member) else { return };
        // Until the home says so, it may not be that member any more.
        let is_member = self.membership.standing == Standing::Joined;
        if !is_member || !self.connected.contains(&claim.shard) || claim.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.next_ticket += 1;
        claim.slot = Slot::Asked(Asked { ticket, member, share });
        self.tickets.insert(ticket, key);
        let subscribe = Subscribe {
            topic: key.topic,
            queue: key.queue,
            mode: Mode::Group { group: self.options.group, member },
            start: Start::Earliest,
            credit_messages: share.wire_messages(),
            credit_bytes: share.bytes,
        };
        self.actions.push_back(Action::Subscribe(claim.shard, ticket, subscribe));
    }

    pub(super) fn unsubscribe(&mut self, key: QueueKey) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        if let Slot::Open(open) = &claim.slot {
            let (ticket, subscription) = (open.ticket, open.subscription);
            claim.slot = Slot::Closing(ticket);
            self.actions.push_back(Action::Unsubscribe(claim.shard, ticket, subscription));
        }
    }

    /// The broker would not subscribe, or has ended the subscription.
    pub(super) fn closed_by_broker(&mut self, key: QueueKey, refusal: Refusal, now: Nanos) {
        self.set_slot(key, Slot::Idle);
        let Some(claim) = self.claims.get_mut(&key) else { return };
        match refusal.code() {
            // Where messages are no longer kept, the group goes on at the first that are.
            Some(
                ErrorCode::NotHolder
                | ErrorCode::UnknownSubscription
                | ErrorCode::OffsetReset
                | ErrorCode::OffsetTooOld,
            ) => claim.lose(),
            Some(ErrorCode::UnknownMember) => claim.wait(None, now),
            Some(ErrorCode::TopicDeleted | ErrorCode::UnknownTopic | ErrorCode::UnknownQueue) => {
                // The home will say so too; until then nothing is asked for.
                self.assigned -= usize::from(claim.is_assigned);
                claim.is_assigned = false;
                claim.lose();
                if refusal.code() == Some(ErrorCode::TopicDeleted) {
                    self.forget_topic(key.topic);
                }
                self.notices.push_back(Notice::Refused { key, refusal });
            }
            // More queues than a connection may have subscriptions: another member may get this one, or this one others' place.
            Some(ErrorCode::Damaged | ErrorCode::LimitReached) => {
                claim.wait(None, now);
                let notice = Notice::Refused { key, refusal };
                // Told once while the trouble lasts.
                if claim.told.as_ref() != Some(&notice) {
                    claim.told = Some(notice.clone());
                    self.notices.push_back(notice);
                }
            }
            Some(ErrorCode::Truncated) => {
                claim.lose();
                let at = QueueOffset(refusal.detail.offset.unwrap_or(0));
                self.notices.push_back(Notice::Truncated { key, at });
            }
            _ if refusal.retriable => claim.wait(refusal.detail.retry_after_ns, now),
            _ => return self.fail(refusal),
        }
        self.note_retry(key);
        self.settle(key, now);
    }

    pub(super) fn settle_all(&mut self, now: Nanos) {
        for key in self.claims.keys().copied().collect::<Vec<_>>() {
            self.settle(key, now);
        }
    }

    pub(super) fn note_retry(&mut self, key: QueueKey) {
        if let Some(at) = self.claims.get(&key).and_then(|claim| claim.retry_at) {
            self.retries.insert((at, key));
        }
    }

    pub(super) fn set_slot(&mut self, key: QueueKey, slot: Slot) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        match &claim.slot {
            Slot::Idle => {}
            Slot::Asked(asked) => drop(self.tickets.remove(&asked.ticket)),
            Slot::Closing(ticket) => drop(self.tickets.remove(ticket)),
            Slot::Open(open) => drop(self.tickets.remove(&open.ticket)),
        }
        claim.slot = slot;
    }

    pub(super) fn claim(&mut self, ticket: Ticket) -> Option<(QueueKey, &mut Claim<M>)> {
        let key = *self.tickets.get(&ticket)?;
        let claim = self.claims.get_mut(&key).filter(|claim| claim.is_ticket(ticket))?;
        Some((key, claim))
    }

    pub(super) fn keys_of(&self, shard: ShardId) -> Vec<QueueKey> {
        self.claims.iter().filter(|(_, claim)| claim.shard == shard).map(|(key, _)| *key).collect()
    }

    pub(super) fn share(&self) -> CreditWindow {
        let whole = CreditWindow { messages: self.options.credit_messages, bytes: self.options.credit_bytes };
        whole.share(self.assigned)
    }
}
