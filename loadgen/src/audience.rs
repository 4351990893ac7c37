//! Who is to see every message once: all readers together, or one consumer group.
//!
//! A second delivery is told by its bit. It is *redelivered* where the broker said so (an attempt above the first: the queue had
//! changed hands, and the message was not yet acknowledged), else a *duplicate*. Order is that of first deliveries. A group's
//! members all live on one thread, so that its account is exact wherever its queues move.

use crate::bits::Bits;
use crate::schedule::Schedule;
use crate::stamp::Stamp;

/// What the consumers of one thread listen to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// Readers of these queues, counted over all topics.
    Readers(Vec<u32>),
    /// All members of some groups.
    Groups {
        /// The groups of this thread.
        mine: Vec<u32>,
        /// Groups of the run.
        all: u32,
    },
}

impl Listening {
    /// Nobody listens.
    pub fn nobody() -> Self {
        Self::Readers(Vec::new())
    }

    /// Deliveries that are to come to this thread.
    pub fn awaited(&self, schedule: &Schedule) -> u64 {
        match self {
            Self::Readers(queues) => queues.iter().map(|queue| schedule.messages_of_queue(*queue)).sum(),
            Self::Groups { mine, .. } => mine.len() as u64 * schedule.messages(),
        }
    }

    /// The empty accounts of all audiences; those of other threads have no room.
    pub(crate) fn audiences(&self, schedule: &Schedule) -> Vec<Audience> {
        match self {
            Self::Readers(_) => vec![Audience::new(schedule)],
            Self::Groups { mine, all } => (0..*all)
                .map(|group| if mine.contains(&group) { Audience::new(schedule) } else { Audience::default() })
                .collect(),
        }
    }
}

/// What one audience saw.
#[derive(Clone, Debug, Default)]
pub struct Audience {
    delivered: Bits,
    /// Those of which some delivery was not the first attempt.
    again: Bits,
    /// Per lane (producer · queues + queue): one more than the highest sequence delivered.
    highest: Vec<u64>,
    /// Deliveries of a message that had been delivered, and that the broker did not name as such.
    pub duplicate: u64,
    /// Deliveries of a message that had been delivered, by a later attempt.
    pub redelivered: u64,
    /// First deliveries of a message behind a later one of its lane.
    pub reordered: u64,
    /// Deliveries that are not a whole message of this run in its own queue.
    pub corrupt: u64,
}

impl Audience {
    fn new(schedule: &Schedule) -> Self {
        let messages = schedule.messages();
        let highest = vec![0; schedule.producers as usize * schedule.queues as usize];
        Self { delivered: Bits::new(messages), again: Bits::new(messages), highest, ..Self::default() }
    }

    /// A whole message came, with number `attempt` of its deliveries (0 where nobody counts them); whether it is its first.
    pub(crate) fn deliver(&mut self, stamp: &Stamp, lane: usize, attempt: u16) -> bool {
        if attempt > 1 {
            self.again.set(stamp.index);
        }
        if !self.delivered.set(stamp.index) {
            // The first attempt may be read behind the second: it came on another connection.
            if self.again.get(stamp.index) {
                self.redelivered += 1;
            } else {
                self.duplicate += 1;
            }
            return false;
        }
        let highest = &mut self.highest[lane];
        if stamp.place.sequence < *highest {
            self.reordered += 1;
        } else {
            *highest = stamp.place.sequence + 1;
        }
        true
    }

    /// Adds another thread's account of the same audience.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.delivered.merge(&other.delivered);
        self.again.merge(&other.again);
        if self.highest.len() < other.highest.len() {
            self.highest.resize(other.highest.len(), 0);
        }
        for (highest, more) in self.highest.iter_mut().zip(&other.highest) {
            *highest = (*highest).max(*more);
        }
        self.duplicate += other.duplicate;
        self.redelivered += other.redelivered;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
    }

    /// Messages delivered at least once.
    pub fn delivered(&self) -> u64 {
        self.delivered.count()
    }

    /// Of the `acknowledged`, those that were not delivered.
    pub(crate) fn lost(&self, acknowledged: &Bits) -> u64 {
        acknowledged.count_without(&self.delivered)
    }
}
