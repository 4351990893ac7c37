//! How groups end: new members of a broker that nothing disturbs take all that is left, and each message of it once.

use peregrine_broker::engine::TopicState;
use peregrine_protocol::ids::{QueueId, ShardId};

use super::group_ledger::Share;
use super::member::Manner;
use crate::simulator::process::Shard;
use crate::simulator::simulation::{Process, Simulation};
use crate::simulator::violation::{Violation, promise};

/// Simulated time that it may take, nanoseconds, and how often one looks.
const FINISH_MAX: u64 = 120_000_000_000;
const FINISH_STEP: u64 = 100_000_000;
/// How long a calm lasts: silence, grace time, drain and settling, and heartbeats enough for what is left.
const CALM: u64 = 30_000_000_000;

impl Simulation {
    /// Every group consumes all of its topics' queues.
    pub fn groups_consume_everything(&mut self, process: &mut Process) -> Result<(), Violation> {
        let groups: Vec<_> = self.consumers.known.live().filter(|group| !group.topics.is_empty()).cloned().collect();
        for group in &groups {
            for _ in 0..self.random.between(1, 3) {
                let topics = group.topics.iter().map(|(topic, _)| *topic).collect();
                let (name, client) = (self.next_name("last"), self.new_client());
                self.add(name, client, group, topics, Manner::Diligent);
            }
        }
        let mut shares = Vec::new();
        for shard in 0..self.configuration.shards {
            let queues: Vec<(_, QueueId)> =
                self.catalogue.queues(&process.shards[0].engine, ShardId(shard), self.configuration.shards);
            for (topic, queue) in queues {
                let consumers = groups.iter().filter(|group| group.start_in(topic).is_some());
                let of_groups = consumers.map(|group| Share { group: group.id, topic, queue });
                shares.extend(of_groups.map(|share| (usize::from(shard), share)));
            }
        }
        let until = self.machine.now() + FINISH_MAX;
        loop {
            self.pass_time(process, self.machine.now() + FINISH_STEP)?;
            let ledgers = &self.ledgers;
            if shares.iter().all(|(shard, share)| self.consumers.ledger.is_at_end(*share, &ledgers[*shard])) {
                break;
            }
            if self.machine.now() >= until {
                break;
            }
        }
        for (shard, share) in &shares {
            self.consumers.ledger.check_consumed(*share, &self.ledgers[*shard])?;
        }
        self.statistics.finished += shares.len() as u64;
        self.part(process)
    }

    /// In the middle of a life everybody who is a member, whatever befell it before, works as it should for a while: all that is
    /// wanted is consumed. Where the device fails nothing of that is promised.
    pub(super) fn calm_down(&mut self, process: &mut Process) -> Result<(), Violation> {
        if self.devices_fail() {
            return Ok(());
        }
        for member in &mut self.consumers.members {
            (member.manner, member.asleep_until) = (Manner::Diligent, 0);
        }
        // Who slept has something to do at once.
        self.turn(process)?;
        let until = self.machine.now() + CALM;
        self.pass_time(process, until)?;
        let mut shares = Vec::new();
        for member in self.consumers.members.iter().filter(|member| !member.is_gone) {
            for &topic in &member.topics {
                let TopicState::Live(found) = process.shards[0].engine.topic(topic) else { continue };
                for queue in (0..found.queues).map(QueueId) {
                    let shard = usize::from(found.shard_of(queue, self.configuration.shards).0);
                    shares.push((shard, Share { group: member.group, topic, queue }));
                }
            }
        }
        for (shard, share) in shares {
            let is_live = self.consumers.known.get(share.group).is_some();
            promise!(
                !is_live || self.consumers.ledger.is_at_end(share, &self.ledgers[shard]),
                "{share:?} of shard {shard} stands still though it has members that work"
            );
        }
        self.statistics.calms += 1;
        for index in 0..self.consumers.members.len() {
            self.consumers.members[index].manner = self.some_manner();
        }
        Ok(())
    }

    /// Members leave, and everything comes to rest.
    fn part(&mut self, process: &mut Process) -> Result<(), Violation> {
        for index in 0..self.consumers.members.len() {
            self.consumers.members[index].leave();
            self.send_requests(index);
        }
        for _ in 0..600 {
            self.pass_time(process, self.machine.now() + FINISH_STEP)?;
            if self.consumers.wire.is_empty() && process.shards.iter().all(Shard::is_quiet) {
                return Ok(());
            }
        }
        promise!(false, "members have left, and there is no rest");
        Ok(())
    }
}
