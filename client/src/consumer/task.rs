//! The consumer's task: brings what the links say to the core, in order, and wakes it when it wants to be woken.

use std::sync::Arc;
use std::time::Duration;

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::message::{AssignedQueues, Assignment};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::shared::{Shared, State};
use crate::group::Ticket;
use crate::link::{Happening, LinkEvent, MemberEvent};
use crate::message::ReceivedBatch;
use peregrine_protocol::ids::{Nanos, ShardId};

pub(super) struct ConsumerTask {
    pub shared: Arc<Shared>,
    /// The broker's.
    pub directory: DirectoryId,
    pub events: mpsc::UnboundedReceiver<LinkEvent>,
    /// Gives up when a shard cannot be reached for so long.
    pub patience: Option<Duration>,
    /// After it was closed: how long to try to leave properly.
    pub leaving_max: Duration,
}

impl ConsumerTask {
    /// Ends when the member has left or failed, or when nobody waits for that any longer.
    pub async fn run(mut self) {
        let mut closed_since = None;
        loop {
            let (wake, unreachable) = {
                let state = self.shared.lock();
                if state.core.is_over() || state.failure().is_some() {
                    break;
                }
                if state.is_over {
                    closed_since.get_or_insert_with(Instant::now);
                }
                (
                    state.next_wake(),
                    state.unreachable_since.iter().min_by_key(|(_, since)| **since).map(|(&a, &b)| (a, b)),
                )
            };
            let give_up = match (closed_since, self.patience, unreachable) {
                (Some(since), ..) => Some(since + self.leaving_max),
                (None, Some(patience), Some((_, since))) => Some(since + patience),
                _ => None,
            };
            let next = [wake, give_up].into_iter().flatten().min();
            tokio::select! {
                event = self.events.recv() => {
                    let Some(event) = event else { break };
                    self.heard(event);
                    while let Ok(event) = self.events.try_recv() {
                        self.heard(event);
                    }
                    self.shared.news.notify_one();
                }
                () = self.shared.changed.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.shared.with(|state, now| state.core.wake(now));
                    if give_up.is_some_and(|at| at <= Instant::now()) {
                        let shard = unreachable.map_or(ShardId(0), |(shard, _)| shard);
                        let mut state = self.shared.lock();
                        let error = state.timed_out(shard);
                        state.fail(error);
                    }
                }
            }
        }
        self.shared.news.notify_one();
    }

    fn heard(&self, event: LinkEvent) {
        let LinkEvent { shard, generation, what } = event;
        match what {
            Happening::Connected => self.shared.with(|state, now| {
                state.unreachable_since.remove(&shard);
                if let Some((_, current)) = state.links.get_mut(&shard) {
                    *current = Some(generation);
                }
                state.core.connected(shard, now);
            }),
            Happening::Disconnected => self.shared.with(|state, now| {
                state.unreachable_since.insert(shard, Instant::now());
                if let Some((_, current)) = state.links.get_mut(&shard) {
                    *current = None;
                }
                state.core.disconnected(shard, now);
            }),
            Happening::Failed(error) => self.shared.lock().fail(error),
            Happening::Member(MemberEvent::Delivered { ticket, batch }) => self.delivered(ticket, &batch),
            Happening::Member(event) => self.shared.with(|state, now| hear(state, event, now)),
            Happening::Produced { .. }
            | Happening::Subscribed { .. }
            | Happening::Delivered { .. }
            | Happening::Ended { .. } => {}
        }
    }

    /// Checksums are checked outside of the lock.
    fn delivered(&self, ticket: Ticket, batch: &ReceivedBatch) {
        let topic = batch.topic.and_then(|topic| self.shared.lock().topics.get(&topic).cloned()).unwrap_or_default();
        match batch.messages(&topic, self.directory) {
            Ok(messages) => self.shared.with(|state, now| state.core.delivered(ticket, &batch.head, messages, now)),
            Err(error) => self.shared.with(|state, now| {
                state.tell(error);
                state.core.unreadable(ticket, now);
            }),
        }
    }
}

fn hear(state: &mut State, event: MemberEvent, now: Nanos) {
    let core = &mut state.core;
    match event {
        MemberEvent::Joined(answer) => core.joined(answer, now),
        MemberEvent::Heartbeat(answer) => core.heartbeat_answered(answer, now),
        MemberEvent::Left => core.left(),
        MemberEvent::Assigned { group, member, number, queues } => {
            let queues = AssignedQueues::from(&queues[..]);
            core.assigned(&Assignment { group, member, number, queues }, now);
        }
        MemberEvent::Dismissed { member, refusal } => core.member_ended(member, refusal),
        MemberEvent::Subscribed { ticket, answer } => core.subscribed(ticket, answer, now),
        MemberEvent::Revoked { ticket } => core.revoked(ticket, now),
        MemberEvent::Ended { ticket, refusal } => core.ended(ticket, refusal, now),
        MemberEvent::Acked { ticket, answer } => core.acked(ticket, answer, now),
        MemberEvent::Unsubscribed { ticket } => core.unsubscribed(ticket, now),
        MemberEvent::Delivered { .. } => {} // taken apart before
    }
}
