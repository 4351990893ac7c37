//! A member and the application behind it: what they hear, take, finish and send.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::ids::{ShardId, TopicId};
use peregrine_protocol::message::{AssignedQueues, Assignment};
use peregrine_protocol::placement::TopicHash;

use super::{CREDIT, Connection, GROUP, HOME, Member, SHARDS, Sent, TOPIC, World};
use crate::group::{Action, MemberCore, MemberOptions, MemberTopic, Notice};

impl Member {
    pub(super) fn new(number: usize) -> Self {
        let (core, connections, wanted) = (new_core(number), BTreeMap::new(), BTreeSet::new());
        let (hands, had, set_back) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { core, connections, wanted, hands, lost_leave: false, had, set_back }
    }
}

impl World {
    pub fn connect(&mut self, client: usize, shard: ShardId) {
        let member = &mut self.members[client];
        if member.wanted.contains(&shard) && !member.connections.contains_key(&shard) {
            member.connections.insert(shard, Connection::default());
            member.core.connected(shard, self.now);
            self.collect(client);
        }
    }

    /// The member takes what has come on one connection.
    pub fn receive(&mut self, client: usize, shard: ShardId, count: usize) {
        for _ in 0..count {
            let connection = self.members[client].connections.get_mut(&shard);
            let Some(sent) = connection.and_then(|connection| connection.to_client.pop_front()) else { return };
            self.heard(client, sent);
            self.collect(client);
        }
    }

    /// The application takes a message.
    pub fn take(&mut self, client: usize) {
        let member = &mut self.members[client];
        let Some((token, message)) = member.core.next_message(|_| false) else { return };
        if let Some(last) = member.had.insert(token.key.queue, message).filter(|last| *last >= message) {
            let allowed = member.set_back.entry(token.key.queue).or_default();
            assert!(*allowed > 0, "{client} got {message} after {last}");
            *allowed -= 1;
        }
        member.hands.push((token, message));
    }

    /// The application is done with one of those that it has.
    pub fn finish(&mut self, client: usize, pick: usize) {
        let member = &mut self.members[client];
        if member.hands.is_empty() {
            return;
        }
        let (token, message) = member.hands.swap_remove(pick % member.hands.len());
        if member.core.done(&token, self.now) {
            self.done.insert(message);
        }
        assert!(!member.core.done(&token, self.now), "done twice");
        self.collect(client);
    }

    pub fn close(&mut self, client: usize) {
        self.members[client].core.close(self.now);
        self.collect(client);
    }

    pub(super) fn heard(&mut self, client: usize, sent: Sent) {
        let now = self.now;
        let member = &mut self.members[client];
        let core = &mut member.core;
        match sent {
            Sent::Joined(answer) => {
                if core.member() != Some(answer.member) {
                    member.had.clear();
                }
                core.joined(Ok(answer), now);
            }
            Sent::Heartbeat(answer) => core.heartbeat_answered(answer, now),
            Sent::Left => core.left(),
            Sent::Assigned { member: id, number, queues } => {
                member.had.retain(|queue, _| queues.iter().any(|row| row.queue == *queue));
                let queues = AssignedQueues::from(&queues[..]);
                core.assigned(&Assignment { group: GROUP, member: id, number, queues }, now);
            }
            Sent::Subscribed(ticket, answer) => core.subscribed(ticket, answer, now),
            Sent::Delivered(ticket, head, messages) => core.delivered(ticket, &head, messages, now),
            Sent::Revoked(ticket) => core.revoked(ticket, now),
            Sent::Ended(ticket, refusal) => {
                member.had.clear();
                core.ended(ticket, refusal, now);
            }
            Sent::Acked(ticket, answer) => {
                if answer.as_ref().is_err_and(|refusal| !refusal.retriable) {
                    member.had.clear();
                }
                core.acked(ticket, answer, now);
            }
            Sent::Unsubscribed(ticket) => core.unsubscribed(ticket, now),
        }
    }

    pub(super) fn collect(&mut self, client: usize) {
        let member = &mut self.members[client];
        while let Some(action) = member.core.next_action() {
            let shard = match action {
                Action::Connect(shard) => {
                    member.wanted.insert(shard);
                    continue;
                }
                Action::Join(shard)
                | Action::Heartbeat(shard, _)
                | Action::Leave(shard, _)
                | Action::Subscribe(shard, ..)
                | Action::Ack(shard, ..)
                | Action::Credit(shard, _)
                | Action::Unsubscribe(shard, ..) => shard,
            };
            let connection = member.connections.get_mut(&shard).expect("nothing is sent where there is no connection");
            connection.to_broker.push_back(action);
        }
        while let Some(notice) = member.core.next_notice() {
            assert!(matches!(notice, Notice::Truncated { .. }), "{notice:?}");
        }
    }
}

/// A member that has not joined yet.
pub fn new_core(number: usize) -> MemberCore<u64> {
    core_of(number, &[TOPIC])
}

/// The same of so many topics.
pub fn core_of(number: usize, topics: &[TopicId]) -> MemberCore<u64> {
    let options = MemberOptions {
        group: GROUP,
        home: HOME,
        name: format!("member-{number}"),
        client: "client".to_owned(),
        topics: topics.iter().map(|&id| MemberTopic { id, hash: TopicHash(0) }).collect(),
        shards: SHARDS,
        credit_messages: CREDIT,
        credit_bytes: 1 << 20,
        seed: number as u64,
    };
    MemberCore::new(options)
}
