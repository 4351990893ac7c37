//! All members of one generator thread.

use peregrine_client::group::MemberOptions;
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::message::Answer;

use super::control::QueuePlace;
use super::groups::Groups;
use super::member::Member;
use crate::clock::{Ns, SECOND};
use crate::connection::Connections;
use crate::transport::{Events, TransportError};

/// Messages that a member lets the broker send ahead, over all its queues, and how many each of them has at least.
const CREDIT_MESSAGES: u64 = 4_096;
/// With nobody to wake, the list of members is looked through this often.
const LOOK_AFTER: Ns = SECOND;

/// The members of one thread.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: Vec<Member>,
    /// Those with actions to carry out, each at most once.
    touched: Vec<usize>,
    /// Nobody is to be woken before.
    wake_at: Ns,
    /// A frame in the making.
    frame: Vec<u8>,
}

impl Members {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes in member `name` of group number `group`; the number that it has here.
    pub fn add(
        &mut self,
        (groups, group): (&Groups, u32),
        name: String,
        credit: (usize, u64),
        connections: Vec<Option<usize>>,
    ) -> usize {
        let place = &groups.all[group as usize];
        let (queues, bytes_each) = credit;
        let options = MemberOptions {
            group: place.id,
            home: place.home,
            client: format!("loadgen {name}"),
            seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), &name),
            name,
            topics: groups.topics.clone(),
            shards: groups.shards,
            credit_messages: CREDIT_MESSAGES * queues.max(1) as u64,
            credit_bytes: bytes_each * queues.max(1) as u64,
        };
        let number = self.all.len();
        self.all.push(Member::new(group, options, connections));
        self.touched.reserve(number + 1);
        self.touch(number);
        number
    }

    /// The broker sent `answer` on the connection of member `number` to `shard`.
    pub fn take(
        &mut self,
        (number, shard): (usize, ShardId),
        correlation: Correlation,
        answer: Answer<'_>,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        self.touch(number);
        self.all[number].take(shard, correlation, answer, now, events)
    }

    /// When [`Self::turn`] has something to do although nothing came.
    pub fn wake_at(&self) -> Ns {
        self.wake_at
    }

    /// Wakes those whose time has come and sends what members want sent. What finds no room is tried again next time.
    pub fn turn(
        &mut self,
        queues: &[QueuePlace],
        connections: &mut Connections,
        now: Ns,
    ) -> Result<(), TransportError> {
        if now >= self.wake_at {
            self.wake_at = now + LOOK_AFTER;
            for number in 0..self.all.len() {
                let member = &mut self.all[number];
                if member.next_wake().is_some_and(|at| at <= now) {
                    member.wake(now);
                    self.touch(number);
                } else if let Some(at) = member.next_wake() {
                    self.wake_at = self.wake_at.min(at);
                }
            }
        }
        let mut at = self.touched.len();
        while at > 0 {
            at -= 1;
            let member = &mut self.all[self.touched[at]];
            let send = |connection, frame: &[u8]| connections.output(connection).push(frame);
            if member.pump(queues, &mut self.frame, now, send)? {
                member.is_touched = false;
                self.touched.swap_remove(at);
            }
            if let Some(failure) = member.failure() {
                return Err(failure);
            }
            self.wake_at = member.next_wake().map_or(self.wake_at, |at| at.min(self.wake_at));
        }
        Ok(())
    }

    /// Whether each group here has handed each of `queues` queues to one of its members, and all have joined.
    pub fn are_settled(&self, groups: &[u32], queues: usize) -> bool {
        let settled = |group: &u32| {
            let members = self.all.iter().filter(|member| member.group == *group);
            members.map(Member::settled_queues).sum::<Option<usize>>() == Some(queues)
        };
        groups.iter().all(settled)
    }

    /// All leave; what they hold is acknowledged first.
    pub fn leave(&mut self, now: Ns) {
        for number in 0..self.all.len() {
            self.all[number].leave(now);
            self.touch(number);
        }
    }

    /// All have left.
    pub fn have_left(&self) -> bool {
        self.all.iter().all(Member::is_over)
    }

    fn touch(&mut self, number: usize) {
        if !std::mem::replace(&mut self.all[number].is_touched, true) {
            self.touched.push(number);
        }
    }
}
