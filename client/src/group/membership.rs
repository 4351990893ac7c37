//! Being a member: joined or not, as which number, and when the home hears of it next.

use peregrine_protocol::ids::{MemberId, Nanos};
use peregrine_protocol::message::JoinGroupAnswer;

use crate::idempotence::back_off::BackOff;

/// First delay after a join that was refused and may succeed later.
const FIRST_DELAY: Nanos = Nanos::from_millis(20);
/// Longest delay between such tries.
const LONGEST_DELAY: Nanos = Nanos::from_millis(1_000);
/// Where a home asks for none, so that its answer cannot make this client spin.
const SHORTEST_HEARTBEAT: Nanos = Nanos::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not joined, or the home is out of reach; what is held stays.
    Out,
    Joining,
    Joined,
    Leaving,
    /// For good.
    Gone,
}

#[derive(Debug)]
pub(super) struct Membership {
    pub standing: Standing,
    /// Of the last join; kept while the home is out of reach.
    pub member: Option<MemberId>,
    /// Of the last assignment.
    pub number: u64,
    heartbeat: Nanos,
    next_heartbeat: Nanos,
    /// No join is tried before.
    pub retry_at: Option<Nanos>,
    back_off: BackOff,
}

impl Membership {
    pub fn new(seed: u64) -> Self {
        Self {
            standing: Standing::Out,
            member: None,
            number: 0,
            heartbeat: Nanos::ZERO,
            next_heartbeat: Nanos::ZERO,
            retry_at: None,
            back_off: BackOff::new(FIRST_DELAY, LONGEST_DELAY, seed),
        }
    }

    /// Whether it is another member than before.
    pub fn joined(&mut self, answer: &JoinGroupAnswer, now: Nanos) -> bool {
        self.back_off.reset();
        self.standing = Standing::Joined;
        self.heartbeat = answer.heartbeat.max(SHORTEST_HEARTBEAT);
        self.next_heartbeat = Nanos(now.0.saturating_add(self.heartbeat.0));
        let is_new = self.member.replace(answer.member) != Some(answer.member);
        if is_new {
            self.number = 0;
        }
        is_new
    }

    pub fn wait(&mut self, hint_ns: Option<u64>, now: Nanos) {
        let delay = self.back_off.next_delay().0.max(hint_ns.unwrap_or(0));
        self.retry_at = Some(Nanos(now.0.saturating_add(delay)));
    }

    /// Whether the home is to hear of it now.
    pub fn takes_heartbeat(&mut self, now: Nanos) -> bool {
        let is_due = self.standing == Standing::Joined && self.next_heartbeat <= now;
        if is_due {
            self.next_heartbeat = Nanos(now.0.saturating_add(self.heartbeat.0));
        }
        is_due
    }

    pub fn next_wake(&self) -> Option<Nanos> {
        match self.standing {
            Standing::Joined => Some(self.next_heartbeat),
            Standing::Out => self.retry_at,
            _ => None,
        }
    }
}
