//! Whose turn it is: subscriptions, the assignments that move queues between them, what they are handed, and why they end.

use std::collections::BTreeMap;

use peregrine_broker::engine::{BatchPlace, GroupStart, ReaderOwner};
use peregrine_broker::limits::ATTEMPT_STEPS_MAX;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{MemberId, Nanos, QueueId, QueueOffset, SubscriptionId, TopicId};

use super::book::{check_start, start_of};
use super::{GroupLedger, Share};
use crate::simulator::group::GROUP_DRAIN;
use crate::simulator::group::wire::Assigned;
use crate::simulator::ledger::Ledger;
use crate::simulator::reader::check_visible;
use crate::simulator::violation::{Violation, promise};

/// A drain's time, and what a shard may take to look at it, nanoseconds.
const DRAINED_WITHIN: u64 = GROUP_DRAIN.0 + 101_000_000;

/// A subscription that has not ended, as far as its owner was told.
#[derive(Debug)]
pub struct Turn {
    pub share: Share,
    pub member: MemberId,
    pub owner: ReaderOwner,
    /// The offset behind what it was handed; `None` before its first message.
    pub next: Option<QueueOffset>,
    /// When the queue became another member's.
    pub lost: Option<Nanos>,
    /// It was another's at some time.
    pub was_lost: bool,
    /// It had something to finish then.
    pub drains: bool,
    /// It was its member's again before it was told, and goes on unless it is told still.
    pub regained: bool,
    pub revoked: bool,
    pub fenced: bool,
    pub replaced: bool,
    pub reset: bool,
    /// The queue was its member's at a reset, which ends a turn that has begun and none that waits.
    pub may_be_reset: bool,
}

/// What is to be said of a batch that was handed out.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// How often its first message was handed out before.
    pub before: u16,
    /// The queue's start had gone past the group.
    pub skipped: bool,
}

/// The newest assignment that a shard was told.
pub type Newest = (u64, BTreeMap<(TopicId, QueueId), MemberId>);

impl Turn {
    fn is_draining(&self) -> bool {
        self.drains && (self.revoked || !self.regained)
    }
}

impl GroupLedger {
    /// A member subscribed and was told the group's place.
    pub fn subscribed(
        &mut self,
        (shard, id): (usize, SubscriptionId),
        share: Share,
        (member, owner): (MemberId, ReaderOwner),
        start: GroupStart,
        place: QueueOffset,
        ledger: &Ledger,
    ) -> Result<(), Violation> {
        self.open(shard, share, start);
        let book = &self.books[&share];
        if let Some(last) = book.moves.last() {
            let goes_on = last.offset.max(start_of(share, ledger));
            promise!(place == goes_on, "a member of {share:?} was told place {place}, the log says {goes_on}");
        }
        for turn in self.turns.values_mut().filter(|turn| turn.share == share && turn.member == member) {
            turn.replaced = true;
        }
        let turn = Turn {
            share,
            member,
            owner,
            next: None,
            lost: None,
            was_lost: false,
            drains: false,
            regained: false,
            revoked: false,
            fenced: self.fenced.contains(&(shard, member)),
            replaced: false,
            reset: false,
            may_be_reset: false,
        };
        promise!(self.turns.insert((shard, id.0), turn).is_none(), "subscription {id} was given twice");
        Ok(())
    }

    /// A home's word has reached a shard; `mine` says which queues are that shard's.
    pub fn assigned(
        &mut self,
        (shard, ledger): (usize, &Ledger),
        assigned: &Assigned,
        mine: impl Fn(TopicId, QueueId) -> bool,
        now: Nanos,
    ) {
        let known = self.newest.get(&(shard, assigned.group));
        if known.is_some_and(|(number, _)| *number >= assigned.number) {
            return;
        }
        let rows = assigned.holders.iter().filter(|(topic, queue, _)| mine(*topic, *queue));
        let rows: BTreeMap<_, _> = rows.map(|(topic, queue, member)| ((*topic, *queue), *member)).collect();
        for ((of, _), turn) in self.turns.iter_mut().filter(|(_, turn)| turn.share.group == assigned.group) {
            if *of != shard {
                continue;
            }
            turn.fenced |= assigned.fenced.contains(&turn.member);
            let Some(book) = self.books.get(&turn.share) else { continue };
            if rows.get(&(turn.share.topic, turn.share.queue)) == Some(&turn.member) {
                turn.lost = turn.lost.filter(|_| turn.drains);
                turn.regained = turn.drains && !turn.revoked;
            } else {
                if std::mem::take(&mut turn.regained) && !turn.revoked {
                    turn.lost = None;
                }
                turn.was_lost = true;
                turn.drains |= !book.is_done_by(turn, start_of(turn.share, ledger));
                turn.lost.get_or_insert(now);
            }
        }
        self.fenced.extend(assigned.fenced.iter().map(|&member| (shard, member)));
        self.newest.insert((shard, assigned.group), (assigned.number, rows));
    }

    /// Whether the shard has taken in that assignment or a newer one, and remembers it.
    pub fn has_taken_in(&self, shard: usize, assigned: &Assigned) -> bool {
        let newest = self.newest.get(&(shard, assigned.group));
        newest.is_some_and(|(number, rows)| !rows.is_empty() && *number >= assigned.number)
    }

    /// A shard hands a batch out.
    pub fn handed(
        &mut self,
        (shard, id): (usize, SubscriptionId),
        batch: &BatchPlace,
        ledger: &Ledger,
    ) -> Result<Handed, Violation> {
        let Some(turn) = self.turns.get(&(shard, id.0)) else {
            return Err(Violation(format!("offset {} was handed to a turn that had ended", batch.first_wanted)));
        };
        let (share, first) = (turn.share, batch.first_wanted);
        let newest = self.newest.get(&(shard, share.group));
        let holder = newest.and_then(|(_, rows)| rows.get(&(share.topic, share.queue))).copied();
        promise!(
            holder == Some(turn.member),
            "offset {first} of {share:?} was handed to member {}, but the queue is {holder:?}'s",
            turn.member
        );
        promise!(
            !turn.revoked && !turn.fenced && !turn.replaced && !turn.is_draining() && !turn.reset,
            "offset {first} of {share:?} was handed to a turn that is over: {turn:?}"
        );
        let others = self.turns.iter().filter(|(key, other)| **key != (shard, id.0) && other.share == share);
        for (_, other) in others {
            promise!(
                other.next.is_none(),
                "offset {first} of {share:?} was handed to member {} while {} has the queue",
                turn.member,
                other.member
            );
        }
        let Some(record) = ledger.record(batch.position) else {
            return Err(Violation(format!("a member was handed position {}, which holds no entry", batch.position)));
        };
        let header = record.header;
        promise!(
            header.topic == share.topic && header.queue == share.queue && header.end_offset() == batch.end_offset(),
            "a member of {share:?} was handed {header:?}"
        );
        check_visible(&header, ledger)?;

        let Some(book) = self.books.get_mut(&share) else { unreachable!("a turn has a book") };
        promise!(!book.is_gone, "offset {first} of {share:?} was handed out though that is deleted");
        // A start that went past the group takes it along.
        let was_at = turn.next.or(book.place());
        let expected = was_at.map(|at| at.max(start_of(share, ledger)));
        match expected {
            Some(expected) if first > expected => {
                return Err(Violation(format!("{share:?} skips from offset {expected} to {first}")));
            }
            Some(expected) => promise!(first == expected, "{share:?} is at {expected} and was handed {first} again"),
            None => check_start(book.start, share, first, ledger)?,
        }
        if book.place().is_none() {
            book.began = Some(first);
        }
        let end = batch.end_offset();
        if book.handed.len() < end.0 as usize {
            book.handed.resize(end.0 as usize, 0);
        }
        let before = book.handed[first.0 as usize];
        let right = if book.broken < ATTEMPT_STEPS_MAX {
            batch.attempt == before + 1
        } else {
            batch.attempt <= before + 1 && (batch.attempt > 1) == (before > 0)
        };
        promise!(
            right,
            "offset {first} of {share:?} was handed out {before} times and comes as attempt {}",
            batch.attempt
        );
        for count in &mut book.handed[first.0 as usize..end.0 as usize] {
            *count += 1;
        }
        if let Some(turn) = self.turns.get_mut(&(shard, id.0)) {
            turn.next = Some(end);
        }
        Ok(Handed { before, skipped: expected != was_at })
    }

    pub fn is_alive(&self, shard: usize, id: SubscriptionId) -> bool {
        self.turns.contains_key(&(shard, id.0))
    }

    pub fn share_of(&self, shard: usize, id: SubscriptionId) -> Option<Share> {
        self.turns.get(&(shard, id.0)).map(|turn| turn.share)
    }

    pub fn revoked(&mut self, shard: usize, id: SubscriptionId) -> Result<(), Violation> {
        let turn = self.turns.get_mut(&(shard, id.0));
        promise!(turn.as_ref().is_some_and(|turn| turn.was_lost), "a queue was revoked from its holder: {turn:?}");
        if let Some(turn) = turn {
            turn.revoked = true;
        }
        Ok(())
    }

    /// A shard ended a turn. Returns why.
    pub fn ended(
        &mut self,
        (shard, ledger): (usize, &Ledger),
        id: SubscriptionId,
        code: ErrorCode,
        now: Nanos,
    ) -> Result<&'static str, Violation> {
        let Some(turn) = self.turns.remove(&(shard, id.0)) else {
            return Err(Violation(format!("subscription {id} ended twice")));
        };
        let Some(book) = self.books.get_mut(&turn.share) else { unreachable!("a turn has a book") };
        let is_done = book.is_done_by(&turn, start_of(turn.share, ledger));
        book.broken += usize::from(!is_done);
        let drained = turn.drains && turn.lost.is_some_and(|lost| lost + GROUP_DRAIN.0 <= now);
        let reason = match code {
            ErrorCode::GroupDeleted | ErrorCode::TopicDeleted if book.is_gone => "deleted",
            ErrorCode::OffsetReset if turn.reset || turn.may_be_reset => "reset",
            ErrorCode::NotHolder if turn.fenced => "fenced",
            ErrorCode::NotHolder if turn.replaced => "subscribed again",
            ErrorCode::NotHolder if turn.reset => "reset",
            ErrorCode::NotHolder if is_done && turn.was_lost => "done",
            ErrorCode::NotHolder if drained => "not done within the drain",
            _ => return Err(Violation(format!("{turn:?} of place {:?} ended with {code:?} at {now}", book.place()))),
        };
        Ok(reason)
    }

    /// No drain goes on for longer than it may.
    pub fn check_drains(&self, now: Nanos) -> Result<(), Violation> {
        let overdue = |turn: &&Turn| turn.is_draining() && turn.lost.is_some_and(|lost| lost + DRAINED_WITHIN < now);
        let found = self.turns.values().find(overdue);
        promise!(found.is_none(), "a drain has not ended at {now}: {found:?}");
        Ok(())
    }

    /// A member gave its turn up.
    pub fn left(&mut self, shard: usize, id: SubscriptionId) {
        if let Some(turn) = self.turns.remove(&(shard, id.0))
            && let Some(book) = self.books.get_mut(&turn.share)
        {
            book.broken += usize::from(!book.is_done_by(&turn, QueueOffset(0)));
        }
    }

    /// A connection is gone, and its turns with it.
    pub fn detached(&mut self, shard: usize, owner: ReaderOwner) {
        let turns = self.turns.iter().filter(|((of, _), turn)| *of == shard && turn.owner == owner);
        for id in turns.map(|((_, id), _)| SubscriptionId(*id)).collect::<Vec<_>>() {
            self.left(shard, id);
        }
    }
}
