//! One generator thread: sends what is due, sees what comes, accounts for both.
//!
//! The loop never waits for anything but time: a message is offered when it is due, whatever became of those before it,
//! and what cannot go (a full window, a full buffer, a refusal) waits in its lane and is charged from its due instant.
//! Nothing here allocates once the loop runs; a test with a counting allocator says so.

use std::sync::Arc;

use crate::audience::Listening;
use crate::clock::{Clock, Ns};
use crate::lanes::{Lanes, Ready};
use crate::schedule::Share;
use crate::tally::Tally;
use crate::transport::{Events, Offer, Origin, Refusal, Transport, TransportError};
use crate::workload::Workload;

/// Messages offered in one turn at most: what comes in is looked at between any two such bursts.
const BURST_MAX: u32 = 64;

/// Where a generator reads the time: the run's clock, or a test's.
pub trait Time {
    /// Nanoseconds on the run's clock.
    fn now(&self) -> Ns;
}

impl Time for Clock {
    fn now(&self) -> Ns {
        Clock::now(self)
    }
}

/// What a thread does while nothing is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Looks again at once: the thread has a core of its own.
    Spin,
    /// Sleeps until the next due instant or until something comes: it shares its core with the broker.
    Sleep,
}

/// One thread's part of a run.
#[derive(Debug)]
pub struct Generator<T, C> {
    transport: T,
    time: C,
    idle: Idle,
    share: Share,
    book: Book,
    /// How long after the schedule's end it waits for answers and deliveries.
    drain: Ns,
}

/// What a thread did and saw.
#[derive(Debug)]
pub struct Outcome {
    /// The account of its messages.
    pub tally: Tally,
    /// Why it ended early, if it did.
    pub failure: Option<TransportError>,
}

/// Lanes and account, which a transport's events change.
#[derive(Debug)]
struct Book {
    workload: Arc<Workload>,
    lanes: Lanes,
    tally: Tally,
    /// First deliveries that are still to come to this thread's consumers.
    awaited: u64,
}

impl<T: Transport, C: Time> Generator<T, C> {
    /// Thread `thread` of `threads`, whose consumers listen so.
    pub fn new(
        transport: T,
        time: C,
        idle: Idle,
        workload: &Arc<Workload>,
        (thread, threads): (u32, u32),
        listening: &Listening,
        drain: Ns,
    ) -> Self {
        let schedule = &workload.schedule;
        let book = Book {
            workload: Arc::clone(workload),
            lanes: Lanes::new(schedule, thread, threads),
            tally: Tally::new(workload.run, schedule, listening),
            awaited: listening.awaited(schedule),
        };
        Self { transport, time, idle, share: Share::new(schedule, thread, threads), book, drain }
    }

    /// Runs the schedule to its end and waits for what is still to come, at most for the drain time.
    pub fn run(mut self) -> Outcome {
        let failure = self.drive().and_then(|()| self.transport.close(&mut self.book)).err();
        Outcome { tally: self.book.tally, failure }
    }

    fn drive(&mut self) -> Result<(), TransportError> {
        let deadline = self.book.workload.schedule.end() + self.drain;
        loop {
            let now = self.time.now();
            self.resume_held(now)?;
            let next_due = self.send_due(now)?;
            if now >= deadline || (next_due.is_none() && self.book.is_done()) {
                return Ok(());
            }
            let wait_until = match self.idle {
                Idle::Spin => None,
                Idle::Sleep => Some(self.next_instant(now, next_due.unwrap_or(deadline))),
            };
            self.transport.turn(wait_until, &mut self.book)?;
        }
    }

    /// Offers what has become due, a burst at most. The due instant of the next message, if there is one.
    fn send_due(&mut self, mut now: Ns) -> Result<Option<Ns>, TransportError> {
        let messages = self.book.workload.schedule.messages();
        for _ in 0..BURST_MAX {
            let Some(index) = self.share.peek().filter(|index| *index < messages) else { return Ok(None) };
            let due = self.book.workload.schedule.due(index);
            if due > now {
                now = self.time.now();
                if due > now {
                    return Ok(Some(due));
                }
            }
            self.share.advance();
            self.book.tally.came_to(index, now);
            let place = self.book.workload.schedule.place(index);
            self.book.lanes.came_due(place);
            match self.book.lanes.ready(place, now) {
                // A lane that holds earlier messages sends those first, in `resume_held`.
                Some(ready) if ready.place == place && self.offer(ready)? => {}
                _ => {
                    self.book.tally.held_back += 1;
                    self.book.lanes.hold(place);
                }
            }
            now = self.time.now();
        }
        Ok(Some(now))
    }

    /// Offers what waits in lanes that may send again.
    fn resume_held(&mut self, now: Ns) -> Result<(), TransportError> {
        let mut budget = BURST_MAX;
        let mut at = self.book.lanes.held_count();
        while at > 0 && budget > 0 {
            at -= 1;
            let lane = self.book.lanes.held(at);
            while budget > 0
                && let Some(ready) = self.book.lanes.ready(lane, now)
                && self.offer(ready)?
            {
                budget -= 1;
            }
            self.book.lanes.release_if_idle(at);
        }
        Ok(())
    }

    /// Whether the transport took the message.
    fn offer(&mut self, Ready { place, again }: Ready) -> Result<bool, TransportError> {
        let index = self.book.workload.schedule.index(place);
        if self.transport.offer(&self.book.workload.message(index))? == Offer::Full {
            return Ok(false);
        }
        self.book.lanes.sent(place);
        if again {
            self.book.tally.retried += 1;
        } else {
            self.book.tally.sent += 1;
        }
        Ok(true)
    }

    /// How long a sleeping thread may sleep: not at all past the next due instant, and only briefly past held lanes,
    /// which wait for an answer (that wakes it) or for an instant within a millisecond.
    fn next_instant(&self, now: Ns, next_due: Ns) -> Ns {
        if self.book.lanes.held_count() == 0 { next_due } else { next_due.min(now + 100 * crate::clock::MICROSECOND) }
    }
}

impl Book {
    fn is_done(&self) -> bool {
        self.lanes.is_idle() && self.awaited == 0
    }
}

impl Events for Book {
    fn acknowledged(&mut self, index: u64, now: Ns) {
        if self.lanes.acknowledged(self.workload.schedule.place(index)) {
            self.tally.acknowledge(index, now);
        } else {
            self.tally.stray += 1;
        }
    }

    fn refused(&mut self, index: u64, refusal: Refusal, now: Ns) {
        if !self.lanes.refused(self.workload.schedule.place(index), refusal, now) {
            self.tally.stray += 1;
        } else if refusal == Refusal::Final {
            self.tally.rejected += 1;
        }
    }

    fn delivered(&mut self, origin: &Origin, body: &[u8], now: Ns) {
        if self.tally.deliver(origin, body, now) {
            self.awaited = self.awaited.saturating_sub(1);
        }
    }
}
