//! What goes wrong: connections, members that are given up, queues that are taken away, the process, the power.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{QueueId, ShardId};

use super::{HOME, QUEUES, SHARDS, Sent, World, owner, refusal};
use crate::group::Action;

impl World {
    pub fn disconnect(&mut self, client: usize, shard: ShardId) {
        let Some(connection) = self.members[client].connections.remove(&shard) else { return };
        let leaves = |action: &Action| matches!(action, Action::Leave(..));
        self.members[client].lost_leave |= connection.to_broker.iter().any(leaves);
        if shard == HOME {
            self.lost.insert(client);
        }
        for queue in (0..QUEUES).map(QueueId).filter(|&queue| owner(queue) == shard) {
            let member = &mut self.members[client];
            if !member.core.assigned_queues().any(|key| key.queue == queue) {
                member.had.remove(&queue);
            }
            let state = &mut self.queues[queue.0 as usize];
            let was_active = state.subscriptions.iter().any(|it| it.client == client && it.next.is_some());
            state.subscriptions.retain(|it| it.client != client);
            if was_active && let Some(next) = state.next_holder.take() {
                self.hand_over(queue, next);
            }
        }
        self.members[client].core.disconnected(shard, self.now);
        self.collect(client);
    }

    /// The home does not wait for a member any longer.
    pub fn end_grace(&mut self, client: usize) {
        if self.lost.contains(&client) && self.joined.remove(&client).is_some() {
            self.assign(client as u64);
        }
    }

    /// The time for draining is over.
    pub fn fence(&mut self, queue: u32) {
        if let Some(next) = self.queues[queue as usize].next_holder.take() {
            self.hand_over(QueueId(queue), next);
        }
    }

    pub fn reset(&mut self, queue: u32, to: u64) {
        let state = &mut self.queues[queue as usize];
        state.committed = to % (state.log.len() as u64 + 1);
        state.durable = state.committed;
        for member in &mut self.members {
            *member.set_back.entry(QueueId(queue)).or_default() += 1;
        }
        let state = &mut self.queues[queue as usize];
        let active: Vec<_> = state.subscriptions.extract_if(.., |it| it.next.is_some()).collect();
        let next = state.next_holder.take();
        for it in active {
            self.send(it.client, owner(QueueId(queue)), Sent::Ended(it.ticket, refusal(ErrorCode::OffsetReset)));
        }
        if let Some(next) = next {
            self.hand_over(QueueId(queue), next);
        }
    }

    /// The broker is killed and started again.
    pub fn kill(&mut self) {
        for client in 0..self.members.len() {
            for shard in 0..SHARDS {
                self.disconnect(client, ShardId(shard));
            }
        }
        self.joined.clear();
        self.epoch += 1;
        for queue in &mut self.queues {
            (queue.holder, queue.next_holder) = (None, None);
        }
    }

    /// The power fails: what was not synced is gone, `keep` says how much of it is not.
    pub fn lose_power(&mut self, keep: u64) {
        self.kill();
        for queue in &mut self.queues {
            queue.committed = queue.durable + keep % (queue.committed - queue.durable + 1);
            let least = queue.committed.max(queue.durable);
            queue.log.truncate((least + keep % (queue.log.len() as u64 - least + 1)) as usize);
        }
        for member in &mut self.members {
            (0..QUEUES).for_each(|queue| *member.set_back.entry(QueueId(queue)).or_default() += 1);
        }
    }

    /// The next requests are answered so.
    pub fn be_busy(&mut self, requests: u32) {
        self.busy = requests;
    }
}
