//! The lanes of one generator thread: how far each (producer, queue) pair has come.
//!
//! The broker takes at most 64 batches in flight per producer and queue, and takes them in sequence. A lane is three
//! numbers on one line, and no message is kept: what was sent and must be sent again is made again from its index.
//!
//! ```text
//!   sequences   0 ─────── next − in flight ─────── next ─────── due ──►
//!               answered     │ on their way          │ waiting    not due yet
//! ```
//!
//! After a retriable refusal of sequence s those behind it are refused too (`OutOfSequence`); the lane waits until all
//! that are on their way are answered, then goes back to s. A final refusal closes the lane: what it still had to send
//! is never acknowledged and counts as infinite.

use crate::clock::Ns;
use crate::schedule::{Place, Schedule};
use crate::transport::Refusal;

/// Batches that a producer may have in flight to one queue (DESIGN.md, idempotent producers).
pub const IN_FLIGHT_MAX: u32 = 64;

#[derive(Clone, Debug, Default)]
struct Lane {
    due: u64,
    next: u64,
    /// One more than the highest sequence sent.
    sent: u64,
    in_flight: u32,
    back_to: Option<u64>,
    not_before: Ns,
    closed: bool,
    held: bool,
}

impl Lane {
    fn waits(&self) -> bool {
        !self.closed && (self.next < self.due || self.back_to.is_some())
    }

    fn may_send(&self, now: Ns) -> bool {
        !self.closed
            && self.next < self.due
            && self.in_flight < IN_FLIGHT_MAX
            && self.back_to.is_none()
            && now >= self.not_before
    }

    /// Goes back to the first refused sequence once nothing is on its way any more.
    fn settle(&mut self) {
        if self.in_flight == 0
            && let Some(sequence) = self.back_to.take()
        {
            self.next = sequence;
        }
    }
}

/// All lanes of the producers of one thread.
#[derive(Debug)]
pub struct Lanes {
    all: Vec<Lane>,
    queues: u32,
    /// The distance between this thread's producers, and the first of them.
    threads: u32,
    thread: u32,
    /// Lanes with messages that are due and could not go; each at most once.
    held: Vec<u32>,
    in_flight: u64,
}

/// What a lane sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The message's place.
    pub place: Place,
    /// Whether it was sent before and refused.
    pub again: bool,
}

impl Lanes {
    /// The lanes of the producers `thread, thread + threads, …`.
    pub fn new(schedule: &Schedule, thread: u32, threads: u32) -> Self {
        let producers = (thread..schedule.producers).step_by(threads as usize).len();
        let count = producers * schedule.queues as usize;
        let held = Vec::with_capacity(count);
        Self { all: vec![Lane::default(); count], queues: schedule.queues, threads, thread, held, in_flight: 0 }
    }

    /// The next message of the lane of `place` has become due.
    pub fn came_due(&mut self, place: Place) {
        let number = self.number(place);
        let lane = &mut self.all[number];
        debug_assert_eq!(lane.due, place.sequence, "messages of a lane become due one after the other");
        lane.due = place.sequence + 1;
    }

    /// What the lane of `place` may send at `now`.
    pub fn ready(&self, place: Place, now: Ns) -> Option<Ready> {
        let lane = &self.all[self.number(place)];
        let place = Place { sequence: lane.next, ..place };
        lane.may_send(now).then_some(Ready { place, again: lane.next < lane.sent })
    }

    /// The message that [`Lanes::ready`] named is on its way.
    pub fn sent(&mut self, place: Place) {
        let number = self.number(place);
        let lane = &mut self.all[number];
        debug_assert_eq!(lane.next, place.sequence, "a lane sends in sequence");
        lane.next += 1;
        lane.sent = lane.sent.max(lane.next);
        lane.in_flight += 1;
        self.in_flight += 1;
    }

    /// Remembers that the lane of `place` has a message that could not go now.
    pub fn hold(&mut self, place: Place) {
        let number = self.number(place);
        if !std::mem::replace(&mut self.all[number].held, true) {
            self.held.push(number as u32);
        }
    }

    /// The lane of a held message, by its place in the list; the caller walks the list from its end.
    pub fn held(&self, at: usize) -> Place {
        let number = self.held[at];
        let producer = number / self.queues * self.threads + self.thread;
        let lane = &self.all[number as usize];
        Place { producer, queue: number % self.queues, sequence: lane.next }
    }

    /// Lanes in the list of held ones.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Takes the lane at `at` off the list if nothing of it waits any more.
    pub fn release_if_idle(&mut self, at: usize) {
        let number = self.held[at] as usize;
        if !self.all[number].waits() {
            self.all[number].held = false;
            self.held.swap_remove(at);
        }
    }

    /// The message at `place` was acknowledged. `false` where its lane has nothing on its way: the answer is a stray.
    pub fn acknowledged(&mut self, place: Place) -> bool {
        if !self.answered(place) {
            return false;
        }
        let number = self.number(place);
        self.all[number].settle();
        true
    }

    /// The message at `place` was refused at `now`. `false` where its lane has nothing on its way.
    pub fn refused(&mut self, place: Place, refusal: Refusal, now: Ns) -> bool {
        if !self.answered(place) {
            return false;
        }
        let number = self.number(place);
        let lane = &mut self.all[number];
        match refusal {
            Refusal::Final => lane.closed = true,
            Refusal::Retry { after } => {
                lane.back_to = Some(lane.back_to.map_or(place.sequence, |sequence| sequence.min(place.sequence)));
                lane.not_before = lane.not_before.max(now + after);
            }
        }
        lane.settle();
        self.hold(place);
        true
    }

    /// Whether nothing is on its way and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.held.is_empty()
    }

    /// One message of the lane of `place` is no longer on its way; `false` where none was.
    fn answered(&mut self, place: Place) -> bool {
        if place.producer % self.threads != self.thread {
            return false;
        }
        let number = self.number(place);
        let lane = &mut self.all[number];
        if lane.in_flight == 0 {
            return false;
        }
        lane.in_flight -= 1;
        self.in_flight -= 1;
        true
    }

    fn number(&self, place: Place) -> usize {
        debug_assert_eq!(place.producer % self.threads, self.thread, "the producer is this thread's");
        (place.producer / self.threads * self.queues + place.queue) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn lanes() -> Lanes {
        let schedule = Schedule { rate: 1, warmup: 0, duration: SECOND, producers: 4, queues: 3, start: 0 };
        Lanes::new(&schedule, 1, 2)
    }

    fn place(sequence: u64) -> Place {
        Place { producer: 3, queue: 2, sequence }
    }

    #[test]
    fn a_lane_sends_in_sequence_up_to_its_window() {
        let mut lanes = lanes();
        for sequence in 0..100 {
            lanes.came_due(place(sequence));
        }
        for sequence in 0..u64::from(IN_FLIGHT_MAX) {
            assert_eq!(lanes.ready(place(0), 0), Some(Ready { place: place(sequence), again: false }));
            lanes.sent(place(sequence));
        }
        assert_eq!(lanes.ready(place(0), 0), None);
        lanes.hold(place(0));
        lanes.hold(place(0));
        assert_eq!((lanes.held_count(), lanes.held(0)), (1, place(64)));
        lanes.acknowledged(place(0));
        assert_eq!(lanes.ready(place(0), 0).map(|ready| ready.place), Some(place(64)));
        lanes.release_if_idle(0);
        assert_eq!(lanes.held_count(), 1, "36 still wait");
    }

    #[test]
    fn after_a_refusal_the_lane_goes_back_when_all_is_answered() {
        let mut lanes = lanes();
        for sequence in 0..4 {
            lanes.came_due(place(sequence));
            lanes.sent(place(sequence));
        }
        lanes.acknowledged(place(0));
        lanes.refused(place(1), Refusal::Retry { after: 10 }, 100);
        lanes.refused(place(3), Refusal::Retry { after: 0 }, 100);
        assert_eq!(lanes.ready(place(0), 200), None, "2 is still on its way");
        lanes.refused(place(2), Refusal::Retry { after: 0 }, 101);
        assert_eq!(lanes.ready(place(0), 109), None, "not before the hint");
        assert_eq!(lanes.ready(place(0), 110), Some(Ready { place: place(1), again: true }));
        assert!(!lanes.is_idle());
        for sequence in 1..4 {
            lanes.sent(place(sequence));
            lanes.acknowledged(place(sequence));
        }
        lanes.release_if_idle(0);
        assert!(lanes.is_idle());
    }

    #[test]
    fn a_final_refusal_closes_the_lane() {
        let mut lanes = lanes();
        lanes.came_due(place(0));
        lanes.sent(place(0));
        lanes.refused(place(0), Refusal::Final, 0);
        lanes.came_due(place(1));
        assert_eq!(lanes.ready(place(0), 0), None);
        lanes.release_if_idle(0);
        assert!(lanes.is_idle());
    }
}
