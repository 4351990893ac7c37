//! The oracle of handing out: one book for each queue of each group.
//!
//! ```text
//!        place                       next
//!  ────────┤  handed to one member   ├   visible, not handed out
//!  done    │  until it acknowledges, │
//!  for good│  or ends for a reason   │
//! ```
//!
//! It hears of entries that move places, of what shards hand out, and of all that may end a turn. From these alone it knows the
//! only message that may be handed out next and the only member that may get it. A queue goes on from one member to the next
//! for a reason: the first gave it up, was done with it, was fenced, did not finish its drain, or the process ended.

use std::collections::BTreeMap;

use peregrine_broker::engine::{BatchPlace, Engine, GroupStart, OffsetEntry, ReaderOwner, Refusal};
use peregrine_broker::limits::{ATTEMPT_STEPS_MAX, GROUP_DRAIN};
use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{
    DurableLevel, Epoch, GroupId, LogPosition, MemberId, Nanos, QueueId, QueueOffset, SubscriptionId, TopicId,
};

use super::wire::Assigned;
use crate::simulator::ledger::Ledger;
use crate::simulator::reader::check_visible;
use crate::simulator::violation::{Violation, promise};

/// A drain's time, and what a shard may take to look at it, nanoseconds.
const DRAINED_WITHIN: u64 = GROUP_DRAIN.0 + 101_000_000;

/// A queue in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    pub group: GroupId,
    pub topic: TopicId,
    pub queue: QueueId,
}

/// Who wants an entry that moves a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// Nobody: the group began.
    Beginning,
    Member(SubscriptionId),
    Reset,
}

/// An entry that says where the group is.
#[derive(Clone, Copy, Debug)]
struct Move {
    position: LogPosition,
    end: LogPosition,
    epoch: Epoch,
    offset: QueueOffset,
}

#[derive(Debug)]
struct Book {
    shard: usize,
    start: GroupStart,
    /// What the log says, in its order.
    moves: Vec<Move>,
    /// Where the first member of this run began, while no entry says so.
    began: Option<QueueOffset>,
    /// How often each message was handed out in this run.
    handed: Vec<u16>,
    /// Turns of this run that ended before their member was done.
    broken: usize,
    /// Group or topic were deleted, as far as the shard knows.
    is_gone: bool,
}

/// A subscription that has not ended, as far as its owner was told.
#[derive(Debug)]
struct Turn {
    share: Share,
    member: MemberId,
    owner: ReaderOwner,
    /// The offset behind what it was handed; `None` before its first message.
    next: Option<QueueOffset>,
    /// When the queue became another member's.
    lost: Option<Nanos>,
    /// It was another's at some time.
    was_lost: bool,
    /// It had something to finish then.
    drains: bool,
    revoked: bool,
    fenced: bool,
    replaced: bool,
    reset: bool,
    /// The queue was its member's at a reset, which ends a turn that has begun and none that waits.
    may_be_reset: bool,
}

/// An entry that is being appended.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    shard: usize,
    share: Share,
    epoch: Epoch,
    offset: QueueOffset,
    payload_crc: u32,
}

/// The newest assignment that a shard was told.
type Newest = (u64, BTreeMap<(TopicId, QueueId), MemberId>);

/// The books of all groups.
#[derive(Debug, Default)]
pub struct GroupLedger {
    books: BTreeMap<Share, Book>,
    /// By shard and subscription.
    turns: BTreeMap<(usize, u64), Turn>,
    newest: BTreeMap<(usize, GroupId), Newest>,
    /// An append that a crash may have struck.
    attempt: Option<Attempt>,
}

impl Book {
    fn place(&self) -> Option<QueueOffset> {
        self.moves.last().map(|last| last.offset).or(self.began)
    }

    fn is_done_by(&self, turn: &Turn) -> bool {
        turn.next.is_none_or(|next| self.place().is_some_and(|place| next <= place))
    }

    fn forget_run(&mut self) {
        (self.began, self.broken) = (None, 0);
        self.handed.clear();
    }
}

impl GroupLedger {
    /// Somebody looks at a queue of a group for the first time.
    pub fn open(&mut self, shard: usize, share: Share, start: GroupStart) {
        self.books.entry(share).or_insert_with(|| Book {
            shard,
            start,
            moves: Vec::new(),
            began: None,
            handed: Vec::new(),
            broken: 0,
            is_gone: false,
        });
    }

    /// A member subscribed and was told the group's place.
    pub fn subscribed(
        &mut self,
        (shard, id): (usize, SubscriptionId),
        share: Share,
        (member, owner): (MemberId, ReaderOwner),
        start: GroupStart,
        place: QueueOffset,
    ) -> Result<(), Violation> {
        self.open(shard, share, start);
        let book = &self.books[&share];
        if let Some(last) = book.moves.last() {
            promise!(
                place == last.offset,
                "a member of {share:?} was told place {place}, the log says {}",
                last.offset
            );
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
            revoked: false,
            fenced: false,
            replaced: false,
            reset: false,
            may_be_reset: false,
        };
        promise!(self.turns.insert((shard, id.0), turn).is_none(), "subscription {id} was given twice");
        Ok(())
    }

    /// A home's word has reached a shard; `mine` says which queues are that shard's.
    pub fn assigned(&mut self, shard: usize, assigned: &Assigned, mine: impl Fn(TopicId, QueueId) -> bool, now: Nanos) {
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
            } else {
                turn.was_lost = true;
                turn.drains |= !book.is_done_by(turn);
                turn.lost.get_or_insert(now);
            }
        }
        self.newest.insert((shard, assigned.group), (assigned.number, rows));
    }

    /// Whether the shard has taken in that assignment or a newer one, and remembers it.
    pub fn has_taken_in(&self, shard: usize, assigned: &Assigned) -> bool {
        let newest = self.newest.get(&(shard, assigned.group));
        newest.is_some_and(|(number, rows)| !rows.is_empty() && *number >= assigned.number)
    }

    /// A shard hands a batch out. Returns how often its first message was handed out before.
    pub fn handed(
        &mut self,
        (shard, id): (usize, SubscriptionId),
        batch: &BatchPlace,
        ledger: &Ledger,
    ) -> Result<u16, Violation> {
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
            !turn.revoked && !turn.fenced && !turn.replaced && !turn.drains && !turn.reset,
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
        let expected = turn.next.or(book.place());
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
        Ok(before)
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
        shard: usize,
        id: SubscriptionId,
        code: ErrorCode,
        now: Nanos,
    ) -> Result<&'static str, Violation> {
        let Some(turn) = self.turns.remove(&(shard, id.0)) else {
            return Err(Violation(format!("subscription {id} ended twice")));
        };
        let Some(book) = self.books.get_mut(&turn.share) else { unreachable!("a turn has a book") };
        let is_done = book.is_done_by(&turn);
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
        let overdue = |turn: &&Turn| turn.drains && turn.lost.is_some_and(|lost| lost + DRAINED_WITHIN < now);
        let found = self.turns.values().find(overdue);
        promise!(found.is_none(), "a drain has not ended at {now}: {found:?}");
        Ok(())
    }

    /// A member gave its turn up.
    pub fn left(&mut self, shard: usize, id: SubscriptionId) {
        if let Some(turn) = self.turns.remove(&(shard, id.0))
            && let Some(book) = self.books.get_mut(&turn.share)
        {
            book.broken += usize::from(!book.is_done_by(&turn));
        }
    }

    /// A connection is gone, and its turns with it.
    pub fn detached(&mut self, shard: usize, owner: ReaderOwner) {
        let turns = self.turns.iter().filter(|((of, _), turn)| *of == shard && turn.owner == owner);
        for id in turns.map(|((_, id), _)| SubscriptionId(*id)).collect::<Vec<_>>() {
            self.left(shard, id);
        }
    }

    /// The shard knows that these are deleted.
    pub fn deleted(&mut self, shard: usize, is_gone: impl Fn(&Share) -> bool) {
        for (_, book) in self.books.iter_mut().filter(|(share, book)| book.shard == shard && is_gone(share)) {
            book.is_gone = true;
        }
    }

    // Entries.

    /// Before an append: if a crash strikes within it, the entry may be found or not.
    pub fn attempts(&mut self, shard: usize, share: Share, entry: &OffsetEntry) {
        let OffsetEntry { epoch, offset, ref draft, .. } = *entry;
        self.attempt = Some(Attempt { shard, share, epoch, offset, payload_crc: draft.payload_crc });
    }

    pub fn refused(&mut self) {
        self.attempt = None;
    }

    /// The entry was appended and applied.
    pub fn appended(&mut self, header: &EntryHeader, mover: Mover, ledger: &Ledger) -> Result<(), Violation> {
        let Some(Attempt { shard, share, epoch, offset, .. }) = self.attempt.take() else { return Ok(()) };
        let Some(book) = self.books.get_mut(&share) else { return Ok(()) };
        if book.is_gone {
            return Ok(());
        }
        match mover {
            Mover::Beginning => {
                promise!(book.moves.is_empty(), "{share:?} began twice");
                match book.began {
                    Some(began) => promise!(began == offset, "{share:?} began at {began}, and the log says {offset}"),
                    None => check_start(book.start, share, offset, ledger)?,
                }
            }
            Mover::Member(id) => {
                let delivered = self.turns.get(&(shard, id.0)).and_then(|turn| turn.next);
                promise!(
                    delivered.is_some_and(|delivered| offset <= delivered),
                    "{share:?} went to {offset}, but only {delivered:?} was handed out"
                );
                promise!(
                    book.place().is_some_and(|place| place < offset),
                    "{share:?} went back from {:?} to {offset}",
                    book.place()
                );
            }
            Mover::Reset => {
                let end = end_of(share, ledger);
                promise!(offset <= end, "{share:?} was put at {offset}, behind its end {end}");
                (book.broken, book.began) = (0, None);
                book.handed.clear();
                for turn in self.turns.values_mut().filter(|turn| turn.share == share && turn.next.is_some()) {
                    turn.reset = true;
                }
                self.reset_unserved(share);
            }
        }
        let Some(book) = self.books.get_mut(&share) else { unreachable!("it was there above") };
        book.began = None;
        book.moves.push(Move { position: header.position, end: header.end(), epoch, offset });
        Ok(())
    }

    /// The holder's turn may have been active without having been handed anything.
    fn reset_unserved(&mut self, share: Share) {
        for ((shard, _), turn) in self.turns.iter_mut().filter(|(_, turn)| turn.share == share) {
            let newest = self.newest.get(&(*shard, share.group));
            let holder = newest.and_then(|(_, rows)| rows.get(&(share.topic, share.queue)));
            turn.may_be_reset |= holder == Some(&turn.member);
        }
    }

    /// An acknowledgement was answered: an entry says so, and has reached its level.
    pub fn answered(
        &self,
        share: Share,
        offset: QueueOffset,
        level: DurableLevel,
        ledger: &Ledger,
    ) -> Result<(), Violation> {
        let Some(book) = self.books.get(&share).filter(|book| !book.is_gone) else { return Ok(()) };
        let reached = if level == DurableLevel::Memory { ledger.published() } else { ledger.durable() };
        let stands = book.moves.iter().any(|step| step.offset >= offset && step.end <= reached);
        promise!(stands, "{share:?}: offset {offset} was acknowledged at {level:?}, and no entry there says so");
        Ok(())
    }

    // Ends of processes.

    pub fn crashed(&mut self) {
        self.turns.clear();
        self.newest.clear();
        self.books.values_mut().for_each(Book::forget_run);
    }

    /// What is known of a log that lost an entry on purpose is worth nothing.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// A shard's log came up, and `ledger` knows what of it is left.
    pub fn recovered(&mut self, shard: usize, ledger: &Ledger) {
        self.books.retain(|_, book| book.shard != shard || !book.is_gone);
        let attempt = self.attempt.take_if(|attempt| attempt.shard == shard);
        let last = ledger.records().last().map(|record| record.header);
        let unknown = |position| self.books.values().all(|book| book.shard != shard || !book.has(position));
        if let (Some(Attempt { share, epoch, offset, payload_crc, .. }), Some(header)) = (attempt, last)
            && header.kind == EntryKind::GroupOffsets
            && header.payload_crc == payload_crc
            && unknown(header.position)
            && let Some(book) = self.books.get_mut(&share)
        {
            book.moves.push(Move { position: header.position, end: header.end(), epoch, offset });
        }
        for book in self.books.values_mut().filter(|book| book.shard == shard) {
            book.moves.retain(|step| ledger.record(step.position).is_some());
        }
    }

    /// A shard's engine must have come back with the places that its log says.
    pub fn check_places(&mut self, shard: usize, engine: &Engine) -> Result<(), Violation> {
        let mut gone = Vec::new();
        for (share, book) in self.books.iter().filter(|(_, book)| book.shard == shard) {
            let found = match engine.group_place(share.group, share.topic, share.queue) {
                Ok(found) => found,
                Err(Refusal::GroupDeleted | Refusal::TopicDeleted) => {
                    gone.push(*share);
                    continue;
                }
                Err(refusal) => return Err(Violation(format!("{share:?} came back as: {refusal}"))),
            };
            let said = book.moves.last().map(|last| (last.epoch, last.offset));
            let stands = found.is_committed.then_some((found.epoch, found.offset));
            promise!(said == stands, "{share:?} came back at {stands:?}, its log says {said:?}");
        }
        for share in gone {
            self.books.remove(&share);
        }
        Ok(())
    }

    /// The end: all that a share had to get, it got, once.
    pub fn check_consumed(&self, share: Share, ledger: &Ledger) -> Result<(), Violation> {
        let end = end_of(share, ledger);
        let Some(book) = self.books.get(&share) else {
            return Err(Violation(format!("{share:?} was never looked at")));
        };
        promise!(book.place() == Some(end), "{share:?} stands at {:?}, and {end} messages are stored", book.place());
        let first = book.handed.iter().position(|count| *count > 0).unwrap_or(book.handed.len());
        let again = book.handed[first..].iter().position(|count| *count != 1);
        promise!(again.is_none(), "{share:?}: offset {:?} came not once", again.map(|at| first + at));
        Ok(())
    }

    pub fn is_at_end(&self, share: Share, ledger: &Ledger) -> bool {
        self.books.get(&share).is_some_and(|book| book.moves.last().is_some_and(|m| m.offset == end_of(share, ledger)))
    }
}

impl Book {
    fn has(&self, position: LogPosition) -> bool {
        self.moves.iter().any(|step| step.position == position)
    }
}

/// The batches of a share's queue, in order.
fn batches(share: Share, ledger: &Ledger) -> impl Iterator<Item = &EntryHeader> {
    let is_of = move |header: &&EntryHeader| {
        header.kind == EntryKind::Batch && header.topic == share.topic && header.queue == share.queue
    };
    ledger.records().map(|record| &record.header).filter(is_of)
}

fn end_of(share: Share, ledger: &Ledger) -> QueueOffset {
    batches(share, ledger).last().map_or(QueueOffset(0), EntryHeader::end_offset)
}

/// Where a group may begin: nothing that its start promises lies below.
fn check_start(start: GroupStart, share: Share, first: QueueOffset, ledger: &Ledger) -> Result<(), Violation> {
    let latest = match start {
        GroupStart::Earliest => QueueOffset(0),
        GroupStart::Offset(offset) => offset,
        GroupStart::Time(time) => batches(share, ledger)
            .find(|header| header.store_time >= time)
            .map_or(QueueOffset(u64::MAX), |header| header.base_offset),
    };
    promise!(first <= latest, "{share:?} is to start at {start:?} and began at {first}, above {latest}");
    Ok(())
}
