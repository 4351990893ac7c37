//! What a generator thread saw: every message of the run accounted for, once.
//!
//! A bit per message of the run says *acknowledged*, one more per [`Audience`] says *delivered*, found by the index that
//! acknowledgements and bodies carry. They make the counts exact: a second delivery finds its bit set, and what has the first
//! bit and not the second when the run is over is lost. Bitmaps of several threads are merged by OR, counts by adding. All of
//! it is allocated before the first message.

use crate::audience::{Audience, Listening};
use crate::bits::Bits;
use crate::clock::Ns;
use crate::latency::Latencies;
use crate::schedule::Schedule;
use crate::stamp::Stamp;
use crate::transport::Origin;

/// The account of a run, or of one thread of it.
#[derive(Clone, Debug)]
pub struct Tally {
    run: u64,
    schedule: Schedule,
    acknowledged: Bits,
    /// The readers, or group by group.
    audiences: Vec<Audience>,
    /// Messages that were handed to the transport for the first time.
    pub sent: u64,
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
    /// An empty account of run `run`, of one that listens so.
    pub fn new(run: u64, schedule: &Schedule, listening: &Listening) -> Self {
        Self {
            run,
            schedule: schedule.clone(),
            acknowledged: Bits::new(schedule.messages()),
            audiences: listening.audiences(schedule),
            sent: 0,
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

    /// `body` was delivered at `now`; whether it is a message's first delivery to its audience.
    pub fn deliver(&mut self, origin: &Origin, body: &[u8], now: Ns) -> bool {
        let audience = &mut self.audiences[origin.audience as usize];
        let stamp = match Stamp::verify(self.run, &self.schedule, body) {
            Ok(stamp) if stamp.place.queue == origin.queue => stamp,
            _ => {
                audience.corrupt += 1;
                return false;
            }
        };
        let lane = stamp.place.producer as usize * self.schedule.queues as usize + origin.queue as usize;
        if !audience.deliver(&stamp, lane, origin.attempt) {
            return false;
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
        for (audience, more) in self.audiences.iter_mut().zip(&other.audiences) {
            audience.merge(more);
        }
        self.sent += other.sent;
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

    /// Closes the merged account: what was due and never came counts as infinite. `read` says whether anybody read; a message
    /// is a sample of each group.
    pub fn close(&mut self, read: bool) {
        let measured = self.schedule.measured();
        self.acknowledgement.record_infinite(measured - self.acknowledgement.count());
        self.schedule_lag.record_infinite(measured - self.schedule_lag.count());
        if read {
            let awaited = measured * self.audiences.len() as u64;
            self.end_to_end.record_infinite(awaited - self.end_to_end.count());
        }
    }

    /// Messages acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.count()
    }

    /// The accounts of the readers together, or of each group.
    pub fn audiences(&self) -> &[Audience] {
        &self.audiences
    }

    /// Messages delivered at least once, added up over all audiences.
    pub fn delivered(&self) -> u64 {
        self.sum(Audience::delivered)
    }

    /// Messages that were acknowledged and not delivered: lost, once the run has waited for its last deliveries. Added up
    /// over all audiences.
    pub fn lost(&self) -> u64 {
        self.sum(|audience| self.lost_to(audience))
    }

    /// Messages that were acknowledged and not delivered to one audience.
    pub fn lost_to(&self, audience: &Audience) -> u64 {
        audience.lost(&self.acknowledged)
    }

    /// A count, added up over all audiences.
    pub fn sum(&self, of: impl Fn(&Audience) -> u64) -> u64 {
        self.audiences.iter().map(of).sum()
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

    fn readers(schedule: &Schedule) -> Tally {
        Tally::new(RUN, schedule, &Listening::Readers(vec![0, 1]))
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
        let mut tally = readers(&schedule());
        assert!(tally.deliver(&Origin::reader(0), &body(0, 0, 0), 1));
        assert!(!tally.deliver(&Origin::reader(0), &body(0, 0, 0), 2));
        assert!(tally.deliver(&Origin::reader(0), &body(0, 0, 2), 3));
        assert!(tally.deliver(&Origin::reader(0), &body(0, 0, 1), 4));
        assert!(!tally.deliver(&Origin::reader(1), &body(0, 0, 3), 5), "right message, wrong queue");
        let mut damaged = body(1, 0, 0);
        damaged[60] ^= 1;
        assert!(!tally.deliver(&Origin::reader(0), &damaged, 6));
        let seen = &tally.audiences()[0];
        assert_eq!((seen.duplicate, seen.reordered, seen.corrupt, seen.delivered()), (1, 1, 2, 3));
        let index = schedule().index(Place { producer: 1, queue: 0, sequence: 0 });
        assert!(tally.acknowledge(index, 7));
        assert!(!tally.acknowledge(index, 8));
        assert_eq!((tally.lost(), tally.acknowledged()), (1, 1));
    }

    #[test]
    fn only_what_is_due_after_the_warm_up_is_measured_and_what_is_missing_is_infinite() {
        let schedule = schedule();
        let (mut one, mut other) = (readers(&schedule), readers(&schedule));
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

    #[test]
    fn each_group_is_to_see_everything_and_what_a_hand_over_brings_again_is_told_apart() {
        let listening = |mine| Listening::Groups { mine, all: 2 };
        let schedule = schedule();
        let (mut one, mut other) =
            (Tally::new(RUN, &schedule, &listening(vec![0])), Tally::new(RUN, &schedule, &listening(vec![1])));
        let origin = |audience, attempt| Origin { audience, attempt, ..Origin::reader(0) };
        for sequence in 0..3 {
            assert!(one.deliver(&origin(0, 1), &body(0, 0, sequence), 1));
            one.acknowledge(schedule.index(Place { producer: 0, queue: 0, sequence }), 1);
        }
        assert!(!one.deliver(&origin(0, 2), &body(0, 0, 1), 2), "again, as the broker says");
        assert!(!one.deliver(&origin(0, 1), &body(0, 0, 1), 3), "the first attempt, read late");
        assert!(!one.deliver(&origin(0, 1), &body(0, 0, 2), 4), "again, and nobody said so");
        assert!(other.deliver(&origin(1, 2), &body(0, 0, 0), 5), "the first attempt was never read");
        assert!(other.deliver(&origin(1, 2), &body(0, 0, 1), 6));
        let mut whole = Tally::new(RUN, &schedule, &listening(vec![]));
        whole.merge(&one);
        whole.merge(&other);
        let seen = |group: usize| {
            let seen = &whole.audiences()[group];
            (seen.delivered(), whole.lost_to(seen), seen.duplicate, seen.redelivered, seen.reordered)
        };
        assert_eq!((seen(0), seen(1)), ((3, 0, 1, 2, 0), (2, 1, 0, 0, 0)));
        assert_eq!((whole.delivered(), whole.lost()), (5, 1));
        whole.close(true);
        assert_eq!(whole.end_to_end.count(), 2 * schedule.measured());
    }
}
