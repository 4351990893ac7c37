//! Where groups are, in the logs of their queues: acknowledgements, resets and beginnings, each decided, appended and applied in one
//! turn, and answered when the log has reached it.

use std::rc::Rc;

use peregrine_broker::engine::{AckChecked, AckDecision, OffsetEntry, ReaderOwner, Refusal, StartAt};
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{DurableLevel, Epoch, GroupId, LogPosition, QueueOffset, SubscriptionId};

use super::group_ledger::{Mover, Share};
use super::wire::{ConnectionId, Push};
use crate::simulator::fault::Fault;
use crate::simulator::process::{Append, Waiting};
use crate::simulator::simulation::{Process, Simulation};
use crate::simulator::violation::{Violation, promise};

/// Who waits for a place to be as safe as its level promises.
#[derive(Clone, Copy, Debug)]
pub struct PlaceWaiting {
    pub share: Share,
    pub offset: QueueOffset,
    pub level: DurableLevel,
    /// The member that acknowledged; none for a reset.
    pub asker: Option<(ConnectionId, SubscriptionId)>,
}

impl Simulation {
    pub(super) fn acknowledged_by_member(
        &mut self,
        process: &mut Process,
        (shard, from): (usize, ConnectionId),
        subscription: SubscriptionId,
        (epoch, offset): (Epoch, QueueOffset),
    ) -> Result<(), Violation> {
        let wall = self.wall();
        let share = self.consumers.ledger.share_of(shard, subscription);
        let engine = &mut process.shards[shard].engine;
        let decided = match engine.ack_checked(ReaderOwner(from.0), subscription, epoch, offset) {
            Ok(AckChecked::Reader) => return Err(Violation("a member's subscription is a reader's".to_owned())),
            Ok(AckChecked::Group(ack)) => engine.decide_ack(&ack, wall),
            Err(refusal) => Err(refusal),
        };
        let (end, level) = match decided {
            Ok(AckDecision::Done { end, level, .. }) => (end, level),
            Ok(AckDecision::Append(entry)) => {
                let Some(share) = share else {
                    return Err(Violation("an acknowledgement of a turn that has ended was accepted".to_owned()));
                };
                match self.append_place(process, shard, share, &entry, Mover::Member(subscription))? {
                    Some(header) => {
                        self.statistics.group_acks += 1;
                        (header.end(), entry.level)
                    }
                    None => return Ok(()),
                }
            }
            Err(refusal) => {
                self.statistics.acks_refused += 1;
                self.machine.note(&("ack refused", shard, subscription, offset, refusal.code().number()));
                // Its turn may be over, a beginning may wait for room, its topic or its group may be gone.
                let sensible = matches!(
                    refusal,
                    Refusal::NotHolder
                        | Refusal::Busy { .. }
                        | Refusal::Poisoned
                        | Refusal::TopicDeleted
                        | Refusal::GroupDeleted
                );
                promise!(sensible, "an acknowledgement of {offset} in {share:?} was refused: {refusal}");
                return Ok(());
            }
        };
        let Some(share) = share else {
            return Err(Violation("an acknowledgement of a turn that has ended was accepted".to_owned()));
        };
        let waiting = PlaceWaiting { share, offset, level, asker: Some((from, subscription)) };
        if self.fault == Some(Fault::AnswerAcksEarly) {
            return self.place_is_safe(shard, &waiting);
        }
        process.shards[shard].waiting.wait(level, end, Waiting::Place(waiting));
        Ok(())
    }

    /// The log has reached an entry that somebody waits for.
    pub fn place_is_safe(&mut self, shard: usize, waiting: &PlaceWaiting) -> Result<(), Violation> {
        let PlaceWaiting { share, offset, level, asker } = *waiting;
        self.machine.note(&("place is safe", shard, share, offset, level));
        self.consumers.ledger.answered(share, offset, level, &self.ledgers[shard])?;
        if let Some((to, subscription)) = asker {
            self.push_to(ReaderOwner(to.0), Push::Acknowledged { subscription, offset });
        }
        Ok(())
    }

    /// Writes down where groups began in queues that their members are served from.
    pub(super) fn write_beginnings(&mut self, process: &mut Process, shard: usize) -> Result<(), Violation> {
        let wall = self.wall();
        while let Some((entry, share)) = process.shards[shard].engine.next_beginning(wall).map(|entry| {
            let share = share_of(&entry);
            (entry, share)
        }) {
            if self.append_place(process, shard, share, &entry, Mover::Beginning)?.is_none() {
                return Ok(());
            }
            self.statistics.beginnings += 1;
        }
        Ok(())
    }

    pub(super) fn reset(
        &mut self,
        process: &mut Process,
        shard: usize,
        share: Share,
        start: StartAt,
    ) -> Result<(), Violation> {
        let wall = self.wall();
        let Share { group, topic, queue } = share;
        match self.asking(process, shard, |engine| engine.decide_reset(group, topic, queue, start, wall)) {
            Ok(entry) => {
                if let Some(header) = self.append_place(process, shard, share, &entry, Mover::Reset)? {
                    self.statistics.resets += 1;
                    let waiting = PlaceWaiting { share, offset: entry.offset, level: entry.level, asker: None };
                    process.shards[shard].waiting.wait(entry.level, header.end(), Waiting::Place(waiting));
                }
                Ok(())
            }
            Err(refusal) => {
                promise!(!matches!(refusal, Refusal::WrongShard(_)), "a reset of {share:?} was refused: {refusal}");
                Ok(())
            }
        }
    }

    /// Appends an entry that moves a place and applies it; `None` where the log did not take it.
    fn append_place(
        &mut self,
        process: &mut Process,
        shard: usize,
        share: Share,
        entry: &OffsetEntry,
        mover: Mover,
    ) -> Result<Option<EntryHeader>, Violation> {
        let now = self.now();
        if let Some(group) = self.consumers.known.get(share.group)
            && let Some(start) = group.start_in(share.topic)
        {
            self.consumers.ledger.open(shard, share, start);
        }
        self.consumers.ledger.attempts(shard, share, entry);
        self.machine.note(&("moves", shard, share, entry.offset, format!("{mover:?}")));
        let running = &mut process.shards[shard];
        if self.fault == Some(Fault::ApplyAcksFirst) && mover != Mover::Beginning {
            let header = entry.draft.at(LogPosition(running.log.published().0), running.log.epoch());
            let applied = running.engine.apply(&header, &entry.payload);
            promise!(applied.is_ok(), "what was decided does not apply: {applied:?}");
        }
        let payload: Rc<[u8]> = entry.payload.as_slice().into();
        match running.append(&entry.draft, &payload, &mut self.ledgers[shard], now)? {
            Append::Done(header) => {
                self.consumers.ledger.appended(&header, mover, &self.ledgers[shard])?;
                Ok(Some(header))
            }
            Append::Refused(refused) => {
                self.consumers.ledger.refused();
                self.not_appended(refused)?;
                Ok(None)
            }
        }
    }
}

/// The queue and the group that an entry of one row names.
fn share_of(entry: &OffsetEntry) -> Share {
    let at =
        |from: usize| entry.payload[from..from + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Share { group: GroupId(at(8)), topic: entry.draft.topic, queue: entry.draft.queue }
}
