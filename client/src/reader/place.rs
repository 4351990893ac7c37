//! Where a reader stands in one queue, and what a broken connection, a cut queue or the end that it was to reach make of it. Sans-IO.

use peregrine_protocol::ids::{Epoch, QueueId, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::message::{BatchHead, Start, SubscribeAnswer};

use crate::link::Generation;

/// One queue of a reader.
#[derive(Debug)]
pub(super) struct Place {
    pub queue: QueueId,
    pub shard: ShardId,
    /// What to ask for when subscribing (again).
    start: Start,
    /// The offset behind the last message received; known from the first answer on.
    next: Option<QueueOffset>,
    /// With `until_end`: the visible end at the first answer.
    end: Option<QueueOffset>,
    stops_at_end: bool,
    pub subscription: Option<(Generation, SubscriptionId)>,
    /// Received and not yet taken by the application.
    pub held_messages: u64,
    pub held_bytes: u64,
    /// Taken by the application and not yet given back as credit.
    pub owed_messages: u64,
    pub owed_bytes: u64,
    /// No more is wanted, or can be had.
    pub is_over: bool,
}

impl Place {
    pub fn new(queue: QueueId, shard: ShardId, start: Start, stops_at_end: bool) -> Self {
        Self {
            queue,
            shard,
            start,
            next: None,
            end: None,
            stops_at_end,
            subscription: None,
            held_messages: 0,
            held_bytes: 0,
            owed_messages: 0,
            owed_bytes: 0,
            is_over: false,
        }
    }

    /// What to subscribe from.
    pub fn start(&self) -> Start {
        self.start
    }

    /// The subscription is there.
    pub fn subscribed(&mut self, generation: Generation, answer: &SubscribeAnswer) {
        self.subscription = Some((generation, answer.subscription));
        // It may have been told before that what it asked for is gone.
        if self.end.is_none() && self.stops_at_end {
            self.end = Some(answer.end);
        }
        self.next = Some(answer.start);
        self.start = Start::Offset { epoch: answer.epoch, offset: answer.start };
        self.check_end();
    }

    /// A batch came. `false`: it is of no use, as all of it was had before.
    pub fn received(&mut self, head: &BatchHead) -> bool {
        if self.is_over || self.next.is_some_and(|next| head.end_offset() <= next) {
            return false;
        }
        self.next = Some(head.end_offset());
        self.start = Start::Offset { epoch: head.epoch, offset: head.end_offset() };
        self.check_end();
        true
    }

    /// The broker says that the queue was cut at `at`, below what this reader asked for. It goes on there, whatever the epoch.
    pub fn truncated(&mut self, at: QueueOffset) {
        self.go_on_at(at);
        // What was the end is gone, and what stands there now came later.
        self.end = self.end.map(|end| end.min(at));
        self.check_end();
    }

    /// What stood before is no longer kept.
    pub fn is_too_old(&mut self, first: QueueOffset) {
        self.go_on_at(first);
        self.check_end();
    }

    fn go_on_at(&mut self, offset: QueueOffset) {
        self.subscription = None;
        self.next = Some(offset);
        self.start = Start::Offset { epoch: Epoch::ANY, offset };
    }

    /// The first offset of a batch that is wanted: what the end cuts off is not.
    pub fn end(&self) -> Option<QueueOffset> {
        self.end
    }

    fn check_end(&mut self) {
        if let (Some(next), Some(end)) = (self.next, self.end) {
            self.is_over |= next >= end;
        }
    }
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::entry::EntryFlags;
    use peregrine_protocol::ids::{DurableLevel, LogPosition, Nanos};

    use super::*;

    fn batch(base: u64, count: u32, epoch: u64) -> BatchHead {
        BatchHead {
            base_offset: QueueOffset(base),
            first_wanted: QueueOffset(base),
            record_count: count,
            epoch: Epoch(epoch),
            position: LogPosition(0),
            store_time: Nanos(0),
            payload_crc: 0,
            payload_length: 0,
            flags: EntryFlags::for_level(DurableLevel::Memory),
            attempt: 0,
        }
    }

    fn answer(start: u64, end: u64) -> SubscribeAnswer {
        SubscribeAnswer {
            subscription: SubscriptionId(1),
            epoch: Epoch(1),
            start: QueueOffset(start),
            end: QueueOffset(end),
        }
    }

    fn at(epoch: u64, offset: u64) -> Start {
        Start::Offset { epoch: Epoch(epoch), offset: QueueOffset(offset) }
    }

    /// It read for ever, as it took the end from its first answer alone, and that was an error.
    #[test]
    fn has_an_end_though_what_it_asked_for_first_was_gone() {
        for (first, is_over) in [(7, false), (10, true)] {
            let mut place = Place::new(QueueId(0), ShardId(0), at(1, 0), true);
            place.is_too_old(QueueOffset(first));
            assert!(!place.is_over, "nobody knows the end yet");
            place.subscribed(1, &answer(first, 10));
            assert_eq!((place.end(), place.is_over), (Some(QueueOffset(10)), is_over));
        }
    }

    #[test]
    fn goes_on_behind_the_last_batch_with_its_epoch() {
        let mut place = Place::new(QueueId(0), ShardId(0), Start::Latest, false);
        assert_eq!(place.start(), Start::Latest);
        place.subscribed(1, &answer(10, 10));
        assert_eq!(place.start(), at(1, 10), "what was the latest stays it");
        assert!(place.received(&batch(10, 5, 3)));
        assert_eq!(place.start(), at(3, 15));
        assert!(!place.received(&batch(10, 5, 3)), "nothing twice");
    }

    #[test]
    fn ends_at_what_was_the_end_first() {
        let mut place = Place::new(QueueId(0), ShardId(0), Start::Earliest, true);
        place.subscribed(1, &answer(0, 7));
        assert!(place.received(&batch(0, 5, 1)) && !place.is_over);
        place.subscribed(2, &answer(5, 100));
        assert_eq!(place.end(), Some(QueueOffset(7)));
        assert!(place.received(&batch(5, 5, 1)) && place.is_over);
        let mut empty = Place::new(QueueId(0), ShardId(0), Start::Earliest, true);
        empty.subscribed(1, &answer(0, 0));
        assert!(empty.is_over);
    }

    #[test]
    fn a_cut_below_the_end_moves_the_end() {
        let mut place = Place::new(QueueId(0), ShardId(0), Start::Earliest, true);
        place.subscribed(1, &answer(0, 20));
        assert!(place.received(&batch(0, 10, 1)));
        place.truncated(QueueOffset(8));
        assert_eq!(place.start(), Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(8) });
        assert!(place.is_over);
    }
}
