//! Entries that move a group's place: who may have one appended, where to, and what stands behind an answer.

use peregrine_broker::engine::OffsetEntry;
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{DurableLevel, Epoch, QueueOffset, SubscriptionId};

use super::book::{Move, check_start, end_of};
use super::{GroupLedger, Share};
use crate::simulator::ledger::Ledger;
use crate::simulator::violation::{Violation, promise};

/// Who wants an entry that moves a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// Nobody: the group began.
    Beginning,
    Member(SubscriptionId),
    Reset,
}

/// An entry that is being appended.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub shard: usize,
    pub share: Share,
    pub epoch: Epoch,
    pub offset: QueueOffset,
    pub payload_crc: u32,
}

impl GroupLedger {
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

    /// The holder's turn may have been active without having been handed anything; so may that of one who lost the queue, since the owner
    /// follows an assignment in slices.
    fn reset_unserved(&mut self, share: Share) {
        for ((shard, _), turn) in self.turns.iter_mut().filter(|(_, turn)| turn.share == share) {
            let newest = self.newest.get(&(*shard, share.group));
            let holder = newest.and_then(|(_, rows)| rows.get(&(share.topic, share.queue)));
            turn.may_be_reset |= holder == Some(&turn.member) || turn.was_lost;
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
}
