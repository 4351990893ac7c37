//! The schedule: which message is due when, who sends it, and where it goes; all of it in closed form.
//!
//! Message `i` of a run is due at `start + i / rate`, whatever happened to the messages before it (open loop). It belongs
//! to producer `i mod P`, and a producer visits the Q queues of all topics in turn, each producer beginning at another
//! queue, so that load is even over queues, shards and connections at every instant:
//!
//! ```text
//!   i  ──►  producer p = i mod P,  j = i div P,  queue q = (j + p) mod Q,  sequence = j div Q   of lane (p, q)
//! ```
//!
//! A *lane* is a pair (producer, queue): the broker's unit of idempotent order. Because an index determines everything
//! that is in a message, nothing needs to be kept for one in flight: it can be made again, byte for byte.

use crate::clock::{Ns, SECOND};

/// The largest number of messages in a run: `index · 1e9` must fit a u64.
pub const MESSAGES_MAX: u64 = u64::MAX / SECOND;

/// What a run is to do; see the module's text for the arithmetic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Messages a second, all producers together.
    pub rate: u64,
    /// How long messages are due that are not measured.
    pub warmup: Ns,
    /// How long messages are due that are measured.
    pub duration: Ns,
    /// Producers.
    pub producers: u32,
    /// Queues of all topics together.
    pub queues: u32,
    /// The instant at which message 0 is due.
    pub start: Ns,
}

/// Where a message comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The producer that sends it.
    pub producer: u32,
    /// The queue, counted over all topics of the run.
    pub queue: u32,
    /// Its number in the lane (producer, queue), from 0 without gaps.
    pub sequence: u64,
}

impl Schedule {
    /// Messages of the whole run, warm-up included.
    pub fn messages(&self) -> u64 {
        let span = u128::from(self.warmup) + u128::from(self.duration);
        (span * u128::from(self.rate) / u128::from(SECOND)) as u64
    }

    /// The instant at which message `index` is due.
    pub fn due(&self, index: u64) -> Ns {
        self.start + index * SECOND / self.rate
    }

    /// Where message `index` comes from and goes to.
    pub fn place(&self, index: u64) -> Place {
        let producer = (index % u64::from(self.producers)) as u32;
        let turn = index / u64::from(self.producers);
        let queue = ((turn + u64::from(producer)) % u64::from(self.queues)) as u32;
        Place { producer, queue, sequence: turn / u64::from(self.queues) }
    }

    /// The index of the message at `place`: the inverse of [`Schedule::place`].
    pub fn index(&self, place: Place) -> u64 {
        let queues = u64::from(self.queues);
        let first = (u64::from(place.queue) + queues - u64::from(place.producer) % queues) % queues;
        (place.sequence * queues + first) * u64::from(self.producers) + u64::from(place.producer)
    }

    /// Messages that queue `queue` gets in the whole run.
    pub fn messages_of_queue(&self, queue: u32) -> u64 {
        (0..self.producers).map(|producer| self.messages_of_lane(producer, queue)).sum()
    }

    /// Messages of lane (`producer`, `queue`) in the whole run.
    pub fn messages_of_lane(&self, producer: u32, queue: u32) -> u64 {
        let first = self.index(Place { producer, queue, sequence: 0 });
        let total = self.messages();
        if first >= total {
            return 0;
        }
        (total - 1 - first) / (u64::from(self.queues) * u64::from(self.producers)) + 1
    }

    /// The first instant that is measured: what was due earlier is warm-up.
    pub fn measured_from(&self) -> Ns {
        self.start + self.warmup
    }

    /// The end of the schedule: no message is due at or after it.
    pub fn end(&self) -> Ns {
        self.start + self.warmup + self.duration
    }

    /// Whether message `index` counts in the latencies.
    pub fn is_measured(&self, index: u64) -> bool {
        self.due(index) >= self.measured_from()
    }

    /// How many messages are measured.
    pub fn measured(&self) -> u64 {
        // The first measured index: the smallest i with i · 1e9 / rate (rounded down) ≥ warm-up.
        let first = (u128::from(self.warmup) * u128::from(self.rate)).div_ceil(u128::from(SECOND)) as u64;
        self.messages() - first.min(self.messages())
    }
}

/// The messages that one generator thread sends, in the order in which they are due: those of the producers
/// `thread, thread + threads, …`.
#[derive(Clone, Debug)]
pub struct Share {
    producers: Vec<u32>,
    of: u64,
    next: u64,
}

impl Share {
    /// The share of `thread` among `threads`.
    pub fn new(schedule: &Schedule, thread: u32, threads: u32) -> Self {
        let producers = (thread..schedule.producers).step_by(threads as usize).collect();
        Self { producers, of: u64::from(schedule.producers), next: 0 }
    }

    /// The producers whose messages these are, ascending.
    pub fn producers(&self) -> &[u32] {
        &self.producers
    }

    /// The index of the next message; `None` where the thread has no producer.
    pub fn peek(&self) -> Option<u64> {
        let producers = self.producers.len() as u64;
        if producers == 0 {
            return None;
        }
        let producer = self.producers[(self.next % producers) as usize];
        Some(self.next / producers * self.of + u64::from(producer))
    }

    /// Goes on to the message after.
    pub fn advance(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64, producers: u32, queues: u32) -> Schedule {
        Schedule { rate, warmup: SECOND / 2, duration: SECOND, producers, queues, start: 77 }
    }

    #[test]
    fn an_index_and_its_place_are_each_others_inverse() {
        for (producers, queues) in [(1, 1), (3, 2), (4, 8), (5, 7), (7, 3)] {
            let schedule = schedule(1_000, producers, queues);
            let mut lanes = vec![0_u64; (producers * queues) as usize];
            for index in 0..schedule.messages() {
                let place = schedule.place(index);
                assert_eq!(schedule.index(place), index);
                let lane = &mut lanes[(place.producer * queues + place.queue) as usize];
                assert_eq!(place.sequence, *lane, "sequences of a lane are dense, in due order");
                *lane += 1;
            }
            for producer in 0..producers {
                for queue in 0..queues {
                    assert_eq!(schedule.messages_of_lane(producer, queue), lanes[(producer * queues + queue) as usize]);
                }
            }
            let over_queues: u64 = (0..queues).map(|queue| schedule.messages_of_queue(queue)).sum();
            assert_eq!(over_queues, schedule.messages());
        }
    }

    #[test]
    fn due_instants_do_not_drift_and_warm_up_is_told_by_due_time() {
        let schedule = schedule(3, 1, 1);
        assert_eq!(schedule.due(0), 77);
        assert_eq!(schedule.due(3), 77 + SECOND);
        let schedule = self::schedule(20_011, 2, 2);
        let measured = (0..schedule.messages()).filter(|index| schedule.is_measured(*index)).count() as u64;
        assert_eq!(measured, schedule.measured());
        assert!(schedule.due(schedule.messages() - 1) < schedule.end());
    }

    #[test]
    fn the_shares_of_all_threads_are_the_whole_schedule() {
        let schedule = schedule(1_000, 5, 3);
        let mut seen = vec![0; schedule.messages() as usize];
        for thread in 0..2 {
            let mut share = Share::new(&schedule, thread, 2);
            let mut last_due = 0;
            while let Some(index) = share.peek().filter(|index| *index < schedule.messages()) {
                assert!(schedule.due(index) >= last_due);
                last_due = schedule.due(index);
                seen[index as usize] += 1;
                share.advance();
            }
        }
        assert!(seen.iter().all(|count| *count == 1));
        assert_eq!(Share::new(&schedule, 5, 6).peek(), None);
    }
}
