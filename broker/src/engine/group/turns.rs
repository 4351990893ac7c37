//! Handing a queue from member to member, at the shard that owns it.
//!
//! ```text
//!   subscribe_group ─┐                         ┌─► activate the holder's subscription at the group's place
//!   assign (`following`)                       │
//!   acknowledged ────┼─► whose turn is it? ────┼─► revoke it: another member is the holder, and not all is acknowledged
//!   unsubscribe, … ──┤   (`holder`)            │
//!   group_tick ──────┘                         └─► end it: drained, fenced, reset, replaced, deleted
//! ```
//!
//! **Invariant**: at most one subscription of a (group, queue) is active, and the next becomes so only after the one before was
//! drained, left, or was fenced. What a fenced one was handed and did not acknowledge comes again, one attempt higher.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, Nanos, QueueId, QueueOffset, SubscriptionId, TopicId};

use super::attempts::Attempts;
use super::commit::{GroupAck, GroupPlace, place_of};
use super::fault::PlantedInGroups;
use super::holder::{Active, Lost, Share};
use super::offsets::{OffsetEntry, OffsetRow};
use super::registry::GroupState;
use crate::engine::queue::QueueKey;
use crate::engine::reader::{Credit, ReaderOwner, Turn, TurnLeft};
use crate::engine::refusal::Refusal;
use crate::engine::{CatalogueState, Engine, IndexQuestion, QueuePlace, TopicState};
use crate::limits;

/// What an acknowledgement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckChecked {
    /// A reader's: it keeps its own place, so that there is nothing to do but to answer.
    Reader,
    /// A group's, from the member whose turn it is: [`Engine::decide_ack`].
    Group(GroupAck),
}

impl Engine {
    /// Begins a subscription of a group's member: it is served while its member is the queue's holder, and waits until then. It
    /// replaces an earlier one of the same member. The place returned is the group's: where it would be served from now.
    pub fn subscribe_group(
        &mut self,
        owner: ReaderOwner,
        group: GroupId,
        member: MemberId,
        topic: TopicId,
        queue: QueueId,
        credit: Credit,
    ) -> Result<(SubscriptionId, QueuePlace), Refusal> {
        let GroupPlace { epoch, offset, .. } = self.group_place(group, topic, queue)?;
        let key = QueueKey { topic, queue };
        let share = Share { group, queue: key };
        let slot = self.queues.find_or_make(key);
        let turn = Turn { group, queue: key, attempts: Attempts::default() };
        let reader = self.readers.add_turn(owner, slot, turn, credit)?;
        let holding = self.holders.find_or_make(share);
        if holding.active.is_some_and(|active| active.member == member) {
            self.end_turn(share, ErrorCode::NotHolder);
        }
        let holding = self.holders.find_or_make(share);
        let replaced =
            holding.waiting.iter().position(|&(other, _)| other == member).map(|at| holding.waiting.remove(at));
        holding.waiting.push((member, reader));
        if let Some((_, reader)) = replaced {
            self.readers.end(reader, ErrorCode::NotHolder, &mut self.queues);
        }
        self.hand_on(share);
        let place = self.with_queue(key, |queue| QueuePlace {
            offset,
            epoch,
            first: queue.start,
            visible_end: queue.visible,
            end: queue.end,
        });
        Ok((reader.id(), place))
    }

    /// Whether this is the member's turn, and what it may acknowledge; for a reader, whether its place is one.
    pub fn ack_checked(
        &self,
        owner: ReaderOwner,
        id: SubscriptionId,
        epoch: Epoch,
        offset: QueueOffset,
    ) -> Result<AckChecked, Refusal> {
        let Ok(found) = self.readers.turn_of(owner, id) else { return Err(Refusal::NotHolder) };
        let Some((turn, reader, delivered_end)) = found else {
            return self.check_read(owner, id, epoch, offset).map(|()| AckChecked::Reader);
        };
        let share = Share { group: turn.group, queue: turn.queue };
        let Some(holding) = self.holders.get(share) else { return Err(Refusal::NotHolder) };
        if holding.active.is_none_or(|active| active.reader != reader || self.holders.is_fenced(share, active.member)) {
            return Err(Refusal::NotHolder);
        }
        if holding.began.is_some() && !self.is_poisoned() {
            // Nothing is acknowledged before the log says where the group began.
            return Err(Refusal::Busy { retry_after: limits::BUSY_RETRY_AFTER.into() });
        }
        let QueueKey { topic, queue } = turn.queue;
        Ok(AckChecked::Group(GroupAck { group: turn.group, topic, queue, epoch, offset, delivered_end }))
    }

    /// The next entry that writes down where a group begins in a queue that a member is served from. Append and apply it, or
    /// ask again later; it comes until it was applied.
    pub fn next_beginning(&mut self, now: Nanos) -> Option<OffsetEntry> {
        if self.is_poisoned() {
            return None;
        }
        let (share, offset) = self.holders.first_beginning()?;
        let Share { group, queue } = share;
        let epoch = self.with_queue(queue, |queue| queue.epochs.before(offset));
        let row = OffsetRow { group, queue, reset: false, epoch, offset };
        Some(row.entry(self.offset_level(), self.store_time_at(now)))
    }

    /// The member that is to have the queue, whether or not it is served already. None of a topic that is deleted.
    pub fn holder(&self, group: GroupId, topic: TopicId, queue: QueueId) -> Option<MemberId> {
        let share = Share { group, queue: QueueKey { topic, queue } };
        self.holders.following.holder(share).filter(|_| !self.catalogue.is_deleted(topic))
    }

    // What the rest of the engine tells.

    /// Somebody puts the group elsewhere. A turn that an assignment ended before that ends with that, by the place that it had then.
    pub(in crate::engine) fn before_reset(&mut self, group: GroupId, queue: QueueKey) {
        let share = Share { group, queue };
        if self.holders.is_behind(share) {
            self.follow_in(share);
        }
    }

    /// The group's place was put into the log: by an acknowledgement, or where somebody wanted it.
    pub(in crate::engine) fn place_moved(&mut self, group: GroupId, queue: QueueKey, offset: QueueOffset, reset: bool) {
        let share = Share { group, queue };
        let Some(holding) = self.holders.get_mut(share) else { return };
        holding.began = None;
        let active = holding.active;
        if reset {
            self.end_turn(share, ErrorCode::OffsetReset);
            self.holders.forget_lost(share);
            if let Some(holding) = self.holders.get_mut(share) {
                holding.attempts.clear();
            }
        } else {
            holding.attempts.acknowledge(offset);
            if let Some(Active { reader, drained_by: Some(_), .. }) = active
                && self.readers.delivered_end(reader) <= offset
            {
                self.end_turn(share, ErrorCode::NotHolder);
            }
        }
        self.hand_on(share);
    }

    /// Subscriptions of members are gone. All are out before it is anybody's turn: the next may be among them, where one
    /// connection speaks for several members. `lost`: with their connection, so that their members may still work on what they were
    /// handed; else their members gave them up.
    pub(in crate::engine) fn turns_left(&mut self, gone: &[TurnLeft], lost: bool) {
        for left in gone {
            let share = Share { group: left.group, queue: left.queue };
            let Some(holding) = self.holders.get_mut(share) else { continue };
            holding.waiting.retain(|&(_, reader)| reader != left.key);
            if holding.active.is_some_and(|active| active.reader == left.key)
                && let Some(Active { member, drained_by, .. }) = self.holders.take_active(share)
            {
                self.count_attempt(share, left.delivered_end);
                if lost && left.delivered_end > self.place_in(share) {
                    self.holders.note_lost(share, Lost { member, until: drained_by });
                }
            }
        }
        for left in gone {
            self.hand_on(Share { group: left.group, queue: left.queue });
        }
    }

    /// Ends drains that took too long.
    pub(in crate::engine) fn end_drains(&mut self, now: Nanos) {
        if self.holders.planted == Some(PlantedInGroups::DrainForever) {
            return;
        }
        while let Some(share) = self.holders.overdue(now) {
            self.end_turn(share, ErrorCode::NotHolder);
            self.holders.forget_lost(share);
            self.hand_on(share);
        }
    }

    /// A change of the catalogue took effect here; what the log and the readers hold of it has followed.
    pub(in crate::engine) fn groups_follow(&mut self, state: &CatalogueState) {
        let topic = match state {
            CatalogueState::Topic(TopicState::Live(topic)) => topic.id,
            &CatalogueState::Topic(TopicState::Deleted(topic)) => {
                self.holders.forget_topic(topic);
                topic
            }
            &CatalogueState::Group(GroupState::Deleted(group)) => return self.end_group(group),
            _ => return,
        };
        if let Some(membership) = &mut self.membership {
            membership.topic_changed(topic);
        }
    }

    fn end_group(&mut self, group: GroupId) {
        if let Some(membership) = &mut self.membership {
            membership.group_deleted(group);
        }
        for reader in self.holders.forget_group(group) {
            self.readers.end(reader, ErrorCode::GroupDeleted, &mut self.queues);
        }
    }

    // Turns.

    /// The active subscription ends with `code`.
    pub(super) fn end_turn(&mut self, share: Share, code: ErrorCode) {
        let Some(active) = self.holders.take_active(share) else { return };
        self.count_attempt(share, self.readers.delivered_end(active.reader));
        self.readers.end(active.reader, code, &mut self.queues);
    }

    /// What was handed out up to `delivered_end` and not acknowledged comes again.
    fn count_attempt(&mut self, share: Share, delivered_end: QueueOffset) {
        let place = self.place_in(share);
        if self.holders.planted == Some(PlantedInGroups::ForgetAttempts) {
            return;
        }
        if let Some(holding) = self.holders.get_mut(share) {
            holding.attempts.add(place, delivered_end);
        }
    }

    /// Whether the queue stays with nobody for a while: the member that was lost with its connection may come back, or still works
    /// on what it was handed. It is waited for as one that drains.
    fn waits_for_lost(&mut self, share: Share) -> bool {
        let Some(Lost { member, until }) = self.holders.get(share).and_then(|holding| holding.lost) else {
            return false;
        };
        let holder = self.holders.following.holder(share);
        if self.holders.is_fenced(share, member) {
            // For good: when the next member subscribes, nobody knows any more who was fenced.
            self.holders.forget_lost(share);
            return false;
        }
        if holder == Some(member) {
            return false;
        }
        if until.is_none()
            && holder.is_some()
            && let Some(since) = self.holders.following.since(share.group)
        {
            self.holders.note_lost(share, Lost { member, until: Some(since + self.options.group_drain.0) });
        }
        true
    }

    /// Where nobody is served and the holder waits, it is its turn.
    pub(super) fn hand_on(&mut self, share: Share) {
        if self.waits_for_lost(share) {
            return;
        }
        let holder = self.holders.following.holder(share);
        let Some(holding) = self.holders.get(share).filter(|holding| holding.active.is_none()) else { return };
        if holder.is_some_and(|holder| holding.waiting.iter().any(|&(member, _)| member == holder))
            && let Err(Refusal::LookUp(question)) = self.known_place_in(share)
        {
            return self.holders.note_unplaced(share, question);
        }
        let Some(holding) = self.holders.get_mut(share) else { return };
        if let Some((member, reader)) = holder.and_then(|holder| holding.take_next(holder)) {
            holding.active = Some(Active { member, reader, drained_by: None });
            let attempts = holding.attempts.clone();
            self.holders.forget_lost(share);
            let place = self.place_in(share);
            self.readers.activate(reader, place, attempts, &mut self.queues);
            let is_committed =
                self.queues.by_key(share.queue).is_some_and(|queue| queue.groups.get(share.group).is_some());
            if !is_committed {
                self.holders.note_beginning(share, place);
            }
        }
        self.holders.tidy(share);
    }

    /// It was looked up where groups begin that wait for that: it is their turn.
    pub(in crate::engine) fn place_found(&mut self, question: &IndexQuestion) {
        while let Some(share) = self.holders.take_unplaced(question) {
            self.hand_on(share);
        }
    }

    /// All below it is done, is no longer kept, or was never the group's. Of a queue that is somebody's turn, or was: it is known.
    pub(super) fn place_in(&self, share: Share) -> QueueOffset {
        let start = self.with_queue(share.queue, |queue| queue.start);
        self.known_place_in(share).unwrap_or(QueueOffset(0)).max(start)
    }

    fn known_place_in(&self, share: Share) -> Result<QueueOffset, Refusal> {
        let Share { group, queue } = share;
        if let Some(place) = self.queues.by_key(queue).and_then(|queue| queue.groups.get(group)) {
            return Ok(place.offset);
        }
        if let Some(began) = self.holders.get(share).and_then(|holding| holding.began) {
            return Ok(began);
        }
        let start = self.catalogue.group(group).and_then(|group| group.start_in(queue.topic));
        // A group that lost the topic is on its way to lose the subscription.
        let Some(start) = start else { return Ok(QueueOffset(0)) };
        self.with_queue(queue, |queue| place_of(queue, group, start)).map(|place| place.offset)
    }
}
