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

mod book;
mod moves;
mod turns;

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::engine::{Engine, GroupStart, Refusal};
use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::{GroupId, MemberId, QueueId, TopicId};

use self::book::{Book, Move, end_of, start_of};
use self::moves::Attempt;
pub use self::moves::Mover;
use self::turns::{Newest, Turn};
use crate::simulator::ledger::Ledger;
use crate::simulator::violation::{Violation, promise};

/// A queue in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    pub group: GroupId,
    pub topic: TopicId,
    pub queue: QueueId,
}

/// The books of all groups.
#[derive(Debug, Default)]
pub struct GroupLedger {
    books: BTreeMap<Share, Book>,
    /// By shard and subscription.
    turns: BTreeMap<(usize, u64), Turn>,
    newest: BTreeMap<(usize, GroupId), Newest>,
    /// Members that a shard was told are gone.
    fenced: BTreeSet<(usize, MemberId)>,
    /// An append that a crash may have struck.
    attempt: Option<Attempt>,
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

    /// The shard knows that these are deleted.
    pub fn deleted(&mut self, shard: usize, is_gone: impl Fn(&Share) -> bool) {
        for (_, book) in self.books.iter_mut().filter(|(share, book)| book.shard == shard && is_gone(share)) {
            book.is_gone = true;
        }
    }

    // Ends of processes.

    pub fn crashed(&mut self) {
        self.turns.clear();
        self.newest.clear();
        self.fenced.clear();
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
    pub fn check_places(&mut self, shard: usize, engine: &Engine, ledger: &Ledger) -> Result<(), Violation> {
        let mut gone = Vec::new();
        for (share, book) in self.books.iter().filter(|(_, book)| book.shard == shard) {
            let found = match engine.group_place(share.group, share.topic, share.queue) {
                Ok(found) => found,
                Err(Refusal::GroupDeleted | Refusal::TopicDeleted) => {
                    gone.push(*share);
                    continue;
                }
                // It has no place, and where it would begin has to be looked up.
                Err(Refusal::LookUp(_)) => {
                    promise!(book.moves.is_empty(), "{share:?} came back without the place that its log says");
                    continue;
                }
                Err(refusal) => return Err(Violation(format!("{share:?} came back as: {refusal}"))),
            };
            let kept = start_of(*share, ledger);
            let said = book.moves.last().map(|last| (last.epoch, last.offset.max(kept)));
            let stands = found.is_committed.then_some((found.epoch, found.offset));
            let is_overtaken = book.moves.last().is_some_and(|last| last.offset < kept);
            let agree = if is_overtaken { said.map(|(_, at)| at) == stands.map(|(_, at)| at) } else { said == stands };
            promise!(agree, "{share:?} came back at {stands:?}, its log says {said:?}");
        }
        for share in gone {
            self.books.remove(&share);
        }
        Ok(())
    }

    /// The end: all that a share had to get, it got, once.
    pub fn check_consumed(&self, share: Share, ledger: &Ledger) -> Result<(), Violation> {
        let end = end_of(share, ledger);
        let kept = start_of(share, ledger);
        let Some(book) = self.books.get(&share) else {
            promise!(kept == end, "{share:?} was never looked at");
            return Ok(());
        };
        let place = book.goes_on_at(kept);
        promise!(place == Some(end) || kept == end, "{share:?} stands at {place:?}, and {end} messages are stored");
        // What was given up while it was on its way need not have come.
        let first = book.handed.iter().position(|count| *count > 0).unwrap_or(book.handed.len());
        let is_wrong = |(at, count): (usize, &u16)| *count > 1 || *count == 0 && at as u64 >= kept.0;
        let again = (first..).zip(&book.handed[first..]).find(|&of| is_wrong(of));
        promise!(again.is_none(), "{share:?}: offset and times that it came, not once: {again:?}");
        Ok(())
    }

    pub fn is_at_end(&self, share: Share, ledger: &Ledger) -> bool {
        let (kept, end) = (start_of(share, ledger), end_of(share, ledger));
        let last = self.books.get(&share).and_then(|book| book.moves.last());
        last.map_or(kept == end && end.0 > 0, |last| last.offset.max(kept) == end)
    }
}
