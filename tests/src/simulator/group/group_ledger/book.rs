//! One queue in one group: the places that its log says, and what was handed out in this run of the process.

use peregrine_broker::engine::GroupStart;
use peregrine_protocol::entry::{EntryHeader, EntryKind};
use peregrine_protocol::ids::{Epoch, LogPosition, QueueOffset};

use super::Share;
use super::turns::Turn;
use crate::simulator::ledger::Ledger;
use crate::simulator::violation::{Violation, promise};

/// An entry that says where the group is.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub position: LogPosition,
    pub end: LogPosition,
    pub epoch: Epoch,
    pub offset: QueueOffset,
}

/// What is known of one share.
#[derive(Debug)]
pub struct Book {
    pub shard: usize,
    pub start: GroupStart,
    /// What the log says, in its order.
    pub moves: Vec<Move>,
    /// Where the first member of this run began, while no entry says so.
    pub began: Option<QueueOffset>,
    /// How often each message was handed out in this run.
    pub handed: Vec<u16>,
    /// Turns of this run that ended before their member was done.
    pub broken: usize,
    /// Group or topic were deleted, as far as the shard knows.
    pub is_gone: bool,
}

impl Book {
    /// Where the group goes on in a queue that keeps its messages from `kept` on.
    pub fn goes_on_at(&self, kept: QueueOffset) -> Option<QueueOffset> {
        self.place().map(|place| place.max(kept))
    }

    pub fn place(&self) -> Option<QueueOffset> {
        self.moves.last().map(|last| last.offset).or(self.began)
    }

    /// Whether what its member was handed is acknowledged, or kept no more.
    pub fn is_done_by(&self, turn: &Turn, kept: QueueOffset) -> bool {
        turn.next.is_none_or(|next| next <= kept || self.place().is_some_and(|place| next <= place))
    }

    pub fn forget_run(&mut self) {
        (self.began, self.broken) = (None, 0);
        self.handed.clear();
    }

    pub fn has(&self, position: LogPosition) -> bool {
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

pub fn end_of(share: Share, ledger: &Ledger) -> QueueOffset {
    batches(share, ledger).last().map_or(QueueOffset(0), EntryHeader::end_offset)
}

/// Where the queue's messages begin that are kept.
pub fn start_of(share: Share, ledger: &Ledger) -> QueueOffset {
    ledger.start_of(share.topic, share.queue)
}

/// Where a group may begin: nothing that its start promises, and that is kept, lies below.
pub fn check_start(start: GroupStart, share: Share, first: QueueOffset, ledger: &Ledger) -> Result<(), Violation> {
    let latest = match start {
        GroupStart::Earliest => QueueOffset(0),
        GroupStart::Offset(offset) => offset,
        GroupStart::Time(time) => batches(share, ledger)
            .find(|header| header.store_time >= time)
            .map_or(QueueOffset(u64::MAX), |header| header.base_offset),
    };
    let latest = latest.max(start_of(share, ledger));
    promise!(first <= latest, "{share:?} is to start at {start:?} and began at {first}, above {latest}");
    Ok(())
}
