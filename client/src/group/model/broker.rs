//! What the broker does by itself and with requests: it assigns, answers, delivers, and hands queues over.

use std::collections::BTreeSet;

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{Epoch, MemberId, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId};
use peregrine_protocol::message::{AckAnswer, AssignedQueue, HeartbeatAnswer, JoinGroupAnswer, Mode, SubscribeAnswer};

use super::{CREDIT, HOME, QUEUES, Queue, Sent, Subscription, TOPIC, World, head, owner, refusal};
use crate::error::Refusal;
use crate::group::Action;

impl World {
    /// Gives each queue to whichever member `seed` says.
    pub fn assign(&mut self, seed: u64) {
        let clients: Vec<usize> = self.joined.keys().copied().collect();
        self.number += 1;
        for (_, queues) in self.joined.values_mut() {
            queues.clear();
        }
        for queue in (0..QUEUES).map(QueueId) {
            let draw = seed >> (queue.0 * 4);
            let to = clients.get(draw as usize % clients.len().max(1)).map(|client| {
                let (member, queues) = self.joined.get_mut(client).expect("joined");
                queues.insert(queue);
                *member
            });
            let state = &mut self.queues[queue.0 as usize];
            let active = state.subscriptions.iter_mut().find(|it| it.next.is_some() && Some(it.member) == state.holder);
            match active {
                Some(active) if Some(active.member) != to => {
                    state.next_holder = Some(to);
                    if !std::mem::replace(&mut active.is_revoked, true) {
                        let (client, ticket) = (active.client, active.ticket);
                        self.send(client, owner(queue), Sent::Revoked(ticket));
                    }
                }
                // It was revoked once: it gets the queue back when it subscribes again.
                Some(active) if active.is_revoked => state.next_holder = Some(to),
                Some(_) => {}
                None => self.hand_over(queue, to),
            }
        }
        for client in clients {
            self.push_assignment(client);
        }
    }

    pub fn sync(&mut self, queue: u32) {
        let queue = &mut self.queues[queue as usize];
        queue.durable = queue.committed;
    }

    /// The broker takes requests of one connection.
    pub fn process(&mut self, client: usize, shard: ShardId, count: usize) {
        for _ in 0..count {
            let connection = self.members[client].connections.get_mut(&shard);
            let Some(action) = connection.and_then(|connection| connection.to_broker.pop_front()) else { return };
            self.answer(client, action);
        }
    }

    /// The owner sends a batch to whoever has the queue, as its credit allows.
    pub fn deliver(&mut self, queue: u32, count: usize) {
        let state = &mut self.queues[queue as usize];
        let Some(it) = state.subscriptions.iter_mut().find(|it| it.next.is_some() && !it.is_revoked) else { return };
        assert_eq!(Some(it.member), state.holder, "one member alone has a queue");
        let next = it.next.expect("active");
        let Some(&(epoch, _)) = state.log.get(next as usize).filter(|_| it.credit > 0) else { return };
        let messages: Vec<u64> = state.log[next as usize..]
            .iter()
            .take(count)
            .take_while(|(other, _)| *other == epoch)
            .map(|(_, message)| *message)
            .collect();
        it.credit -= messages.len() as i64;
        it.next = Some(next + messages.len() as u64);
        let (client, sent) = (it.client, Sent::Delivered(it.ticket, head(next, messages.len(), epoch), messages));
        self.send(client, owner(QueueId(queue)), sent);
    }

    pub(super) fn answer(&mut self, client: usize, action: Action) {
        let is_busy = self.busy > 0 && matches!(action, Action::Subscribe(..) | Action::Ack(..));
        self.busy -= u32::from(is_busy);
        let busy = refusal(ErrorCode::Busy);
        match action {
            Action::Join(_) => self.join(client),
            Action::Heartbeat(_, heartbeat) => match self.joined.get(&client) {
                Some((member, _)) if *member == heartbeat.member => {
                    self.send(client, HOME, Sent::Heartbeat(Ok(HeartbeatAnswer { number: self.number })));
                    if heartbeat.number != self.number {
                        self.push_assignment(client);
                    }
                }
                _ => self.send(client, HOME, Sent::Heartbeat(Err(refusal(ErrorCode::UnknownMember)))),
            },
            Action::Leave(..) => {
                if !self.lost.contains(&client) && self.joined.remove(&client).is_some() {
                    self.assign(self.next_message);
                }
                self.send(client, HOME, Sent::Left);
            }
            Action::Subscribe(shard, ticket, _) if is_busy => {
                self.send(client, shard, Sent::Subscribed(ticket, Err(busy)));
            }
            Action::Subscribe(shard, ticket, asked) => {
                let Mode::Group { member, .. } = asked.mode else { panic!("a member subscribes as one") };
                let id = SubscriptionId(self.number());
                let state = &mut self.queues[asked.queue.0 as usize];
                let credit = i64::from(asked.credit_messages);
                assert!(!state.subscriptions.iter().any(|it| it.client == client), "subscribed twice");
                state.subscriptions.push(Subscription {
                    id,
                    ticket,
                    client,
                    member,
                    credit,
                    next: None,
                    is_revoked: false,
                });
                let (start, end) = (QueueOffset(state.committed), QueueOffset(state.log.len() as u64));
                let answer = SubscribeAnswer { subscription: id, epoch: Epoch(1), start, end };
                self.send(client, shard, Sent::Subscribed(ticket, Ok(answer)));
                self.activate(asked.queue);
            }
            Action::Ack(shard, ticket, _) if is_busy => self.send(client, shard, Sent::Acked(ticket, Err(busy))),
            Action::Ack(shard, ticket, ack) => {
                let answer = self.ack(ack.subscription, ack.epoch.0, ack.offset.0);
                let answer = answer.map(|()| AckAnswer { subscription: ack.subscription, offset: ack.offset });
                self.send(client, shard, Sent::Acked(ticket, answer));
            }
            Action::Credit(_, credit) => {
                let all = self.queues.iter_mut().flat_map(|queue| &mut queue.subscriptions);
                if let Some(it) = all.into_iter().find(|it| it.id == credit.subscription) {
                    it.credit += i64::from(credit.messages);
                    assert!(it.credit <= CREDIT as i64, "more credit than the member has");
                }
            }
            Action::Unsubscribe(shard, ticket, id) => {
                for queue in (0..QUEUES).map(QueueId) {
                    let state = &mut self.queues[queue.0 as usize];
                    let was_active = state.subscriptions.iter().any(|it| it.id == id && it.next.is_some());
                    state.subscriptions.retain(|it| it.id != id);
                    if was_active && let Some(next) = state.next_holder.take() {
                        self.hand_over(queue, next);
                    }
                }
                self.send(client, shard, Sent::Unsubscribed(ticket));
            }
            Action::Connect(_) => unreachable!("taken by the client"),
        }
    }

    pub(super) fn join(&mut self, client: usize) {
        self.lost.remove(&client);
        let next = MemberId(self.epoch << 32 | self.number());
        let (member, _) = self.joined.entry(client).or_insert((next, BTreeSet::new()));
        let answer = JoinGroupAnswer {
            member: *member,
            number: self.number,
            heartbeat: Nanos::from_secs(1),
            silence: Nanos::from_secs(10),
            grace: Nanos::from_secs(10),
        };
        self.send(client, HOME, Sent::Joined(answer));
        self.push_assignment(client);
    }

    pub(super) fn ack(&mut self, id: SubscriptionId, epoch: u64, offset: u64) -> Result<(), Refusal> {
        let find = |queue: &&mut Queue| queue.subscriptions.iter().any(|it| it.id == id);
        let Some(queue) = self.queues.iter_mut().find(find) else { return Err(refusal(ErrorCode::NotHolder)) };
        let it = queue.subscriptions.iter().find(|it| it.id == id).expect("found");
        let Some(next) = it.next.filter(|_| Some(it.member) == queue.holder) else {
            return Err(refusal(ErrorCode::NotHolder));
        };
        let valid = queue.log.iter().position(|(of, _)| *of > epoch).unwrap_or(queue.log.len()) as u64;
        if offset > valid {
            let detail = ErrorDetail { offset: Some(valid), ..ErrorDetail::default() };
            return Err(Refusal { detail, ..refusal(ErrorCode::Truncated) });
        }
        assert!(offset <= next, "acknowledged {offset}, delivered up to {next}");
        for (_, message) in queue.log.get(queue.committed as usize..offset as usize).unwrap_or_default() {
            assert!(self.done.contains(message), "message {message} is acknowledged and not done");
        }
        queue.committed = queue.committed.max(offset);
        Ok(())
    }

    pub(super) fn push_assignment(&mut self, client: usize) {
        let Some((member, queues)) = self.joined.get(&client) else { return };
        let queues = queues.iter().map(|&queue| AssignedQueue { topic: TOPIC, queue }).collect();
        let sent = Sent::Assigned { member: *member, number: self.number, queues };
        self.send(client, HOME, sent);
    }

    pub(super) fn hand_over(&mut self, queue: QueueId, to: Option<MemberId>) {
        let state = &mut self.queues[queue.0 as usize];
        let lost: Vec<_> = state.subscriptions.extract_if(.., |it| it.next.is_some()).collect();
        state.holder = to;
        for it in lost {
            self.send(it.client, owner(queue), Sent::Ended(it.ticket, refusal(ErrorCode::NotHolder)));
        }
        self.activate(queue);
    }

    pub(super) fn activate(&mut self, queue: QueueId) {
        let state = &mut self.queues[queue.0 as usize];
        if state.subscriptions.iter().all(|it| it.next.is_none())
            && let Some(it) = state.subscriptions.iter_mut().find(|it| Some(it.member) == state.holder)
        {
            it.next = Some(state.committed);
        }
    }

    pub(super) fn send(&mut self, client: usize, shard: ShardId, sent: Sent) {
        if let Some(connection) = self.members[client].connections.get_mut(&shard) {
            connection.to_client.push_back(sent);
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
