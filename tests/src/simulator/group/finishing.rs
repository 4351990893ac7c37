//! How groups end: new members of a broker that nothing disturbs take all that is left, and each message of it once.

use peregrine_protocol::ids::{QueueId, ShardId};

use super::group_ledger::Share;
use super::member::Manner;
use crate::simulator::process::Shard;
use crate::simulator::simulation::{Process, Simulation};
use crate::simulator::violation::{Violation, promise};

/// Simulated time that it may take, nanoseconds, and how often one looks.
const FINISH_MAX: u64 = 120_000_000_000;
const FINISH_STEP: u64 = 100_000_000;

impl Simulation {
    /// Every group consumes all of its topics' queues.
    pub fn groups_consume_everything(&mut self, process: &mut Process) -> Result<(), Violation> {
        let groups: Vec<_> = self.consumers.known.live().filter(|group| !group.topics.is_empty()).cloned().collect();
        for group in &groups {
            for _ in 0..self.random.between(1, 3) {
                let topics = group.topics.iter().map(|(topic, _)| *topic).collect();
                let (name, client) = (self.next_name("last"), self.next_name("client"));
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
