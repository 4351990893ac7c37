//! A reader that remembers all it has seen, so that nothing it saw can change or vanish behind its back.

use peregrine_broker::engine::{BatchPlace, Refusal, StartAt};
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::{DurableLevel, Epoch, LogPosition, QueueId, QueueOffset, SubscriptionId, TopicId};

use super::ledger::Ledger;
use super::violation::{Violation, promise};

#[derive(Clone, Copy, Debug)]
struct Seen {
    position: LogPosition,
    header: EntryHeader,
}

/// One reader of one queue.
#[derive(Debug)]
pub struct Reader {
    pub topic: TopicId,
    pub queue: QueueId,
    /// While it is connected.
    pub subscription: Option<SubscriptionId>,
    start: StartAt,
    /// The epoch of the last message seen, and the offset it reads next; None before a first answer.
    next: Option<(Epoch, QueueOffset)>,
    seen: Vec<Seen>,
    /// The shard's cuts when it last looked.
    cuts: u64,
    pub ended: bool,
}

impl Reader {
    pub fn new(topic: TopicId, queue: QueueId, start: StartAt) -> Self {
        Self { topic, queue, subscription: None, start, next: None, seen: Vec::new(), cuts: 0, ended: false }
    }

    /// Where it wants to go on.
    pub fn start(&self) -> StartAt {
        self.next.map_or(self.start, |(epoch, offset)| StartAt::Offset { epoch, offset })
    }

    pub fn subscribed(
        &mut self,
        id: SubscriptionId,
        epoch: Epoch,
        offset: QueueOffset,
        ledger: &Ledger,
    ) -> Result<(), Violation> {
        if let Some((_, next)) = self.next {
            promise!(next == offset, "a reader asked for offset {next} and was put at {offset}");
        }
        for seen in &self.seen {
            self.check_stands(seen, ledger, "the place of a reader who saw it is still accepted")?;
        }
        self.subscription = Some(id);
        // A place that names any epoch is one that was never seen.
        let epoch = self.next.map_or(epoch, |(kept, _)| if kept == Epoch::ANY { epoch } else { kept });
        self.next = Some((epoch, offset));
        self.cuts = ledger.cuts();
        Ok(())
    }

    /// The broker refused the place: what was seen from there on is gone, and only that.
    pub fn refused(&mut self, refusal: &Refusal, ledger: &Ledger) -> Result<(), Violation> {
        let at = match refusal {
            Refusal::Truncated { at } => *at,
            Refusal::TopicDeleted | Refusal::UnknownTopic => {
                self.ended = true;
                return Ok(());
            }
            Refusal::OffsetTooOld { first } => {
                let next = self.next.map_or(QueueOffset(0), |(_, next)| next);
                let start = ledger.start_of(self.topic, self.queue);
                promise!(
                    next < *first && *first == start,
                    "a reader at offset {next} was told that {first} is the first that is kept, and {start} is"
                );
                self.next = Some((Epoch::ANY, *first));
                return Ok(());
            }
            // It comes again.
            Refusal::UnknownQueue | Refusal::Busy { .. } => return Ok(()),
            other => return Err(Violation(format!("a reader was refused: {other}"))),
        };
        promise!(
            ledger.cuts() > self.cuts,
            "a reader at {:?} was told that the queue was cut at {at}, but no start took anything back",
            self.next
        );
        for seen in &self.seen {
            if seen.header.end_offset() <= at {
                self.check_stands(seen, ledger, "the queue was cut behind it")?;
                continue;
            }
            promise!(
                ledger.record(seen.position).is_none_or(|record| record.header != seen.header),
                "a reader was told that offset {} is cut, but its batch stands at {}",
                seen.header.base_offset,
                seen.position
            );
            let level = seen.header.flags.level();
            promise!(
                level == Some(DurableLevel::Memory),
                "offset {} was seen, stored at {level:?}, and was cut",
                seen.header.base_offset
            );
        }
        self.seen.retain(|seen| seen.header.end_offset() <= at);
        self.next = Some((Epoch::ANY, at));
        Ok(())
    }

    /// A batch came; `header` is what stands at its position.
    pub fn received(&mut self, batch: &BatchPlace, header: &EntryHeader, ledger: &Ledger) -> Result<(), Violation> {
        let Some((_, next)) = self.next else { return Err(Violation("a delivery before the answer".to_owned())) };
        promise!(batch.first_wanted == next, "a reader at offset {next} was given offset {}", batch.first_wanted);
        let Some(record) = ledger.record(batch.position) else {
            return Err(Violation(format!("a reader was given position {}, which holds no entry", batch.position)));
        };
        promise!(record.header == *header, "the entry at position {} is not the one that was appended", batch.position);
        promise!(
            header.base_offset == batch.base_offset && header.record_count == batch.records,
            "the batch at position {} is not the one that its reader was promised",
            batch.position
        );
        check_visible(header, ledger)?;
        self.next = Some((header.epoch, header.end_offset()));
        self.seen.push(Seen { position: batch.position, header: *header });
        Ok(())
    }

    /// The place that it would acknowledge.
    pub fn place(&self) -> Option<(Epoch, QueueOffset)> {
        self.next
    }

    pub fn disconnected(&mut self) {
        self.subscription = None;
    }

    fn check_stands(&self, seen: &Seen, ledger: &Ledger, why: &str) -> Result<(), Violation> {
        promise!(
            ledger.record(seen.position).is_some_and(|record| record.header == seen.header),
            "offset {} of queue {}/{} was seen at position {} and is gone, yet {why}",
            seen.header.base_offset,
            self.topic,
            self.queue,
            seen.position
        );
        Ok(())
    }
}

/// Every message up to its end has reached the level asked for; those before were checked when they were seen.
pub fn check_visible(header: &EntryHeader, ledger: &Ledger) -> Result<(), Violation> {
    let memory = header.flags.level() == Some(DurableLevel::Memory);
    let reached = if memory { ledger.published() } else { ledger.durable() };
    promise!(
        header.end() <= reached,
        "offset {} was seen before position {} reached {:?}",
        header.base_offset,
        header.position,
        header.flags.level()
    );
    Ok(())
}
