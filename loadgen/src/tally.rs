//! What a generator thread saw: every message of the run accounted for, once.
//!
//! Two bits per message of the run, *acknowledged* and *delivered*, found by the index that acknowledgements and bodies
//! carry. They make the counts exact: a second delivery finds its bit set, and what has the first bit and not the second
//! when the run is over is lost. Bitmaps of several threads are merged by OR, counts by adding. All of it is allocated
//! before the first message.

use crate::clock::Ns;
use crate::latency::Latencies;
use crate::schedule::Schedule;
use crate::stamp::Stamp;

/// One bit per message of a run.
#[derive(Clone, Debug)]
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn new(bits: u64) -> Self {
        // Touched once, so that no page is faulted in while the load runs.
        let mut words = vec![u64::MAX; bits.div_ceil(64) as usize];
        std::hint::black_box(&mut words).fill(0);
        Self { words }
    }

    /// Sets bit `index`; whether it was clear.
    fn set(&mut self, index: u64) -> bool {
        let word = &mut self.words[(index / 64) as usize];
        let mask = 1 << (index % 64);
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    fn get(&self, index: u64) -> bool {
        self.words[(index / 64) as usize] & (1 << (index % 64)) != 0
    }

    fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn merge(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }
}

/// The account of a run, or of one thread of it.
#[derive(Clone, Debug)]
pub struct Tally {
    run: u64,
    schedule: Schedule,
    acknowledged: Bits,
    delivered: Bits,
    /// Per lane (producer · queues + queue): one more than the highest sequence delivered.
    highest: Vec<u64>,
    /// Messages that were handed to the transport for the first time.
    pub sent: u64,
    /// Deliveries of a message that had been delivered.
    pub duplicate: u64,
    /// First deliveries of a message behind a later one of its lane.
    pub reordered: u64,
    /// Deliveries that are not a whole message of this run in its own queue.
    pub corrupt: u64,
    /// Times a message was offered again after a retriable refusal.
    pub retried: u64,
    /// Messages that the broker refused for good.
    pub rejected: u64,
    /// Answers to messages that were not on their way.
    pub stray: u64,
    /// Messages that had to wait because their lane's window or their connection's buffer was full.
    pub held_back: u64,
    /// Acknowledgements that came within the measured span, whatever message they were for: the achieved rate.
    pub acknowledged_in_span: u64,
    /// Likewise first deliveries.
    pub delivered_in_span: u64,
    /// Due instant → acknowledgement, of measured messages.
    pub acknowledgement: Latencies,
    /// Due instant → delivery, of measured messages.
    pub end_to_end: Latencies,
    /// Due instant → the generator comes to the message.
    pub schedule_lag: Latencies,
}

impl Tally {
    /// An empty account of run `run`.
    pub fn new(run: u64, schedule: &Schedule) -> Self {
        let messages = schedule.messages();
        Self {
            run,
            schedule: schedule.clone(),
            acknowledged: Bits::new(messages),
            delivered: Bits::new(messages),
            highest: vec![0; schedule.producers as usize * schedule.queues as usize],
            sent: 0,
            duplicate: 0,
            reordered: 0,
            corrupt: 0,
            retried: 0,
            rejected: 0,
            stray: 0,
            held_back: 0,
            acknowledged_in_span: 0,
            delivered_in_span: 0,
            acknowledgement: Latencies::new(),
            end_to_end: Latencies::new(),
            schedule_lag: Latencies::new(),
        }
    }

    /// The generator came to message `index` at `now`.
    pub fn came_to(&mut self, index: u64, now: Ns) {
        if self.schedule.is_measured(index) {
            self.schedule_lag.record(now.saturating_sub(self.schedule.due(index)));
        }
    }

    /// Message `index` was acknowledged at `now`; whether for the first time.
    pub fn acknowledge(&mut self, index: u64, now: Ns) -> bool {
        let fresh = self.acknowledged.set(index);
        if fresh {
            self.acknowledged_in_span += u64::from(self.is_in_span(now));
            if self.schedule.is_measured(index) {
                self.acknowledgement.record(now.saturating_sub(self.schedule.due(index)));
            }
        }
        fresh
    }

    /// `body` was delivered from `queue` at `now`; whether it is a message's first delivery.
    pub fn deliver(&mut self, queue: u32, body: &[u8], now: Ns) -> bool {
        let stamp = match Stamp::verify(self.run, &self.schedule, body) {
            Ok(stamp) if stamp.place.queue == queue => stamp,
            _ => {
                self.corrupt += 1;
                return false;
            }
        };
        if !self.delivered.set(stamp.index) {
            self.duplicate += 1;
            return false;
        }
        let lane = stamp.place.producer as usize * self.schedule.queues as usize + queue as usize;
        let highest = &mut self.highest[lane];
        if stamp.place.sequence < *highest {
            self.reordered += 1;
        } else {
            *highest = stamp.place.sequence + 1;
        }
        self.delivered_in_span += u64::from(self.is_in_span(now));
        if self.schedule.is_measured(stamp.index) {
            self.end_to_end.record(now.saturating_sub(stamp.due));
        }
        true
    }

    /// Adds another thread's account of the same run.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!((self.run, &self.schedule), (other.run, &other.schedule), "accounts of one run are merged");
        self.acknowledged.merge(&other.acknowledged);
        self.delivered.merge(&other.delivered);
        for (highest, more) in self.highest.iter_mut().zip(&other.highest) {
            *highest = (*highest).max(*more);
        }
        self.sent += other.sent;
        self.duplicate += other.duplicate;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.retried += other.retried;
        self.rejected += other.rejected;
        self.stray += other.stray;
        self.held_back += other.held_back;
        self.acknowledged_in_span += other.acknowledged_in_span;
        self.delivered_in_span += other.delivered_in_span;
        self.acknowledgement.add(&other.acknowledgement);
        self.end_to_end.add(&other.end_to_end);
        self.schedule_lag.add(&other.schedule_lag);
    }

    /// Closes the merged account: what was due and never came counts as infinite. `read` says whether anybody read.
    pub fn close(&mut self, read: bool) {
        let measured = self.schedule.measured();
        self.acknowledgement.record_infinite(measured - self.acknowledgement.count());
        self.schedule_lag.record_infinite(measured - self.schedule_lag.count());
        if read {
            self.end_to_end.record_infinite(measured - self.end_to_end.count());
        }
    }

    /// Messages acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.count()
    }

    /// Messages delivered at least once.
    pub fn delivered(&self) -> u64 {
        self.delivered.count()
    }

    /// Messages that were acknowledged and not delivered: lost, once the run has waited for its last deliveries.
    pub fn lost(&self) -> u64 {
        let only_acknowledged =
            |(acknowledged, delivered): (&u64, &u64)| u64::from((acknowledged & !delivered).count_ones());
        self.acknowledged.words.iter().zip(&self.delivered.words).map(only_acknowledged).sum()
    }

    /// Whether message `index` is acknowledged.
    pub fn is_acknowledged(&self, index: u64) -> bool {
        self.acknowledged.get(index)
    }

    fn is_in_span(&self, now: Ns) -> bool {
        (self.schedule.measured_from()..self.schedule.end()).contains(&now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;
    use crate::schedule::Place;

    const RUN: u64 = 3;

    fn schedule() -> Schedule {
        Schedule { rate: 100, warmup: SECOND / 2, duration: SECOND / 2, producers: 2, queues: 2, start: 0 }
    }

    fn body(producer: u32, queue: u32, sequence: u64) -> Vec<u8> {
        let schedule = schedule();
        let index = schedule.index(Place { producer, queue, sequence });
        let mut body = vec![0; 64];
        Stamp::of(RUN, &schedule, index).seal(&mut body);
        body
    }

    #[test]
    fn each_anomaly_is_counted_as_what_it_is() {
        let mut tally = Tally::new(RUN, &schedule());
        assert!(tally.deliver(0, &body(0, 0, 0), 1));
        assert!(!tally.deliver(0, &body(0, 0, 0), 2));
        assert!(tally.deliver(0, &body(0, 0, 2), 3));
        assert!(tally.deliver(0, &body(0, 0, 1), 4));
        assert!(!tally.deliver(1, &body(0, 0, 3), 5), "right message, wrong queue");
        let mut damaged = body(1, 0, 0);
        damaged[60] ^= 1;
        assert!(!tally.deliver(0, &damaged, 6));
        assert_eq!((tally.duplicate, tally.reordered, tally.corrupt, tally.delivered()), (1, 1, 2, 3));
        let index = schedule().index(Place { producer: 1, queue: 0, sequence: 0 });
        assert!(tally.acknowledge(index, 7));
        assert!(!tally.acknowledge(index, 8));
        assert_eq!((tally.lost(), tally.acknowledged()), (1, 1));
    }

    #[test]
    fn only_what_is_due_after_the_warm_up_is_measured_and_what_is_missing_is_infinite() {
        let schedule = schedule();
        let (mut one, mut other) = (Tally::new(RUN, &schedule), Tally::new(RUN, &schedule));
        for index in 0..schedule.messages() {
            let tally = if index % 2 == 0 { &mut one } else { &mut other };
            tally.came_to(index, schedule.due(index) + 5);
            if index < 90 {
                tally.acknowledge(index, schedule.due(index) + 10);
            }
        }
        one.merge(&other);
        one.close(false);
        assert_eq!(one.acknowledgement.count(), 50);
        assert_eq!(one.acknowledgement.infinite(), 10);
        assert_eq!((one.schedule_lag.count(), one.schedule_lag.infinite()), (50, 0));
        assert_eq!(one.end_to_end.count(), 0);
        assert_eq!(one.acknowledged_in_span, 40);
    }
}
