//! What happens to groups and their members, one random step after the other.

use std::rc::Rc;

use peregrine_broker::engine::{Group, GroupState, Refusal, StartAt, TopicState};
use peregrine_protocol::ids::{Epoch, Nanos, QueueId, QueueOffset, TopicId};

use super::group_ledger::Share;
use super::member::{Manner, Member};
use super::wire::{ConnectionId, Link, Message};
use crate::simulator::simulation::{Process, Simulation};
use crate::simulator::violation::{Violation, promise};

/// A drain and the grace time pass within a few of these, nanoseconds.
const LONG: u64 = 4_000_000_000;

impl Simulation {
    pub fn act_on_groups(&mut self, process: &mut Process) -> Result<(), Violation> {
        match self.random.below(100) {
            0..8 => return self.change_groups(process),
            8..22 => self.add_member(),
            22..42 => self.somebody_acknowledges(),
            42..48 => self.somebody(|simulation, index| {
                simulation.consumers.members[index].leave();
                simulation.send_requests(index);
            }),
            48..58 => self.somebody(Self::loses_connections),
            58..64 => self.somebody(|simulation, index| {
                let settings = simulation.consumers.settings;
                let longest = 2 * (settings.silence.0 + settings.grace.0);
                let until = simulation.machine.now() + simulation.random.below(longest);
                simulation.consumers.members[index].asleep_until = until;
            }),
            64..68 => self.somebody(Self::is_replaced),
            68..71 => self.somebody(Self::changes_its_mind),
            71..77 => return self.reset_somewhere(process),
            77..80 => self.repeat_an_assignment(process),
            80 => return self.calm_down(process),
            81..90 => {
                let target = self.machine.now() + self.random.below(600_000_000);
                return self.pass_time(process, target);
            }
            _ => {
                let target = self.machine.now() + self.random.below(LONG);
                return self.pass_time(process, target);
            }
        }
        Ok(())
    }

    fn somebody(&mut self, mut act: impl FnMut(&mut Self, usize)) {
        let there: Vec<usize> = self.members_there();
        if !there.is_empty() {
            let index = *self.random.pick(&there);
            act(self, index);
        }
    }

    fn members_there(&self) -> Vec<usize> {
        let members = self.consumers.members.iter().enumerate();
        members.filter(|(_, member)| !member.is_gone).map(|(index, _)| index).collect()
    }

    fn somebody_acknowledges(&mut self) {
        self.somebody(|simulation, index| {
            simulation.consumers.members[index].acknowledge_some(&mut simulation.random);
            simulation.send_requests(index);
        });
    }

    /// One connection breaks, or all; the shard learns of it when everything sent before has come, or lost its way.
    fn loses_connections(&mut self, index: usize) {
        let shards = usize::from(self.configuration.shards);
        let only = self.random.coin().then(|| self.random.below(shards as u64) as usize);
        for shard in (0..shards).filter(|shard| only.is_none_or(|only| only == *shard)) {
            let client = self.consumers.members[index].speaks_for;
            for member in self.consumers.members.iter_mut().filter(|member| member.speaks_for == client) {
                member.disconnected(shard);
            }
            if let Some(connection) = self.consumers.clients[client][shard].take() {
                self.breaks(connection);
            }
        }
        if self.random.coin() {
            // It comes back at once, perhaps before anybody has noticed.
            self.consumers.members[index].next_beat = self.machine.now();
        }
    }

    fn breaks(&mut self, connection: ConnectionId) {
        if self.random.coin() {
            self.consumers.wire.lose_requests(connection);
        }
        let delay = self.random.between(1_000, self.consumers.settings.delay_max);
        let message = Message::Closed { from: connection };
        self.consumers.wire.send(Link::Up(connection), self.machine.now(), delay, message);
    }

    /// Another client, or another process of the same, joins under its name.
    fn is_replaced(&mut self, index: usize) {
        let old = &self.consumers.members[index];
        let Some(group) = self.consumers.known.get(old.group).cloned() else { return };
        let (name, client, topics) = (old.name.clone(), old.client.clone(), old.topics.clone());
        let (other, connections) = self.new_client();
        let client = (if self.random.one_in(3) { client } else { other }, connections);
        let manner = self.some_manner();
        self.add(name, client, &group, topics, manner);
    }

    fn changes_its_mind(&mut self, index: usize) {
        let Some(group) = self.consumers.known.get(self.consumers.members[index].group).cloned() else { return };
        let topics = self.some_topics(&group);
        if !topics.is_empty() {
            self.consumers.members[index].topics = topics;
            self.consumers.members[index].rejoin();
            self.send_requests(index);
        }
    }

    fn some_topics(&mut self, group: &Group) -> Vec<TopicId> {
        let mut topics: Vec<TopicId> = group.topics.iter().map(|(topic, _)| *topic).collect();
        if topics.len() > 1 && self.random.one_in(3) {
            topics.swap_remove(self.random.below(topics.len() as u64) as usize);
            topics.sort_unstable();
        }
        topics
    }

    fn add_member(&mut self) {
        let groups: Vec<Group> =
            self.consumers.known.live().filter(|group| !group.topics.is_empty()).cloned().collect();
        if groups.is_empty() || self.members_there().len() >= self.consumers.settings.members_max {
            return;
        }
        let group = self.random.pick(&groups).clone();
        let topics = self.some_topics(&group);
        let name = self.next_name("member");
        let there = self.members_there();
        let client = if !there.is_empty() && self.random.one_in(3) {
            let other = &self.consumers.members[*self.random.pick(&there)];
            (other.client.clone(), other.speaks_for)
        } else {
            self.new_client()
        };
        let manner = self.some_manner();
        self.add(name, client, &group, topics, manner);
    }

    pub(super) fn some_manner(&mut self) -> Manner {
        if self.random.one_in(3) { Manner::Slow } else { Manner::Usual }
    }

    pub(super) fn add(
        &mut self,
        name: String,
        client: (String, usize),
        group: &Group,
        topics: Vec<TopicId>,
        manner: Manner,
    ) {
        let member = Member::new(name, client, group, topics, self.configuration.shards, manner);
        self.consumers.members.push(member);
    }

    /// A client with connections of its own.
    pub(super) fn new_client(&mut self) -> (String, usize) {
        let shards = usize::from(self.configuration.shards);
        self.consumers.clients.push(vec![None; shards]);
        (self.next_name("client"), self.consumers.clients.len() - 1)
    }

    pub(super) fn next_name(&mut self, what: &str) -> String {
        self.consumers.names += 1;
        format!("{what}-{}", self.consumers.names)
    }

    // Groups.

    fn change_groups(&mut self, process: &mut Process) -> Result<(), Violation> {
        let name = format!("group-{}", self.random.below(self.consumers.settings.groups_max as u64));
        let wall = self.wall();
        let topics: Vec<TopicId> = self.catalogue.live().map(|topic| topic.id).collect();
        let delete = self.random.one_in(6);
        let mut asked: Vec<(TopicId, StartAt)> = Vec::new();
        for topic in topics {
            if self.random.coin() {
                asked.push((topic, self.some_start()));
            }
        }
        let home = &mut process.shards[0];
        let decision = if delete {
            self.consumers.known.asks_to_delete(&name);
            home.engine.decide_delete_group(&name, None, wall)
        } else {
            home.engine.decide_create_group(&name, &asked, wall)
        };
        match decision {
            Ok(decided) => self.append_change(home, name, decided),
            Err(refusal) => {
                let sensible = matches!(
                    refusal,
                    Refusal::Poisoned | Refusal::UnknownGroup | Refusal::TopicDeleted | Refusal::UnknownTopic
                );
                promise!(sensible, "a change of a group was refused: {refusal}");
                Ok(())
            }
        }
    }

    fn some_start(&mut self) -> StartAt {
        match self.random.below(6) {
            0 => StartAt::Latest,
            1 => StartAt::Time(Nanos(self.wall().0.saturating_sub(self.random.below(10_000_000)))),
            2 => StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(self.random.below(60)) },
            _ => StartAt::Earliest,
        }
    }

    // Places.

    fn reset_somewhere(&mut self, process: &mut Process) -> Result<(), Violation> {
        let consumed: Vec<_> = self
            .consumers
            .known
            .live()
            .flat_map(|group| group.topics.iter().map(|(topic, _)| (group.id, *topic)))
            .collect();
        if consumed.is_empty() {
            return Ok(());
        }
        let (group, topic) = *self.random.pick(&consumed);
        let TopicState::Live(found) = process.shards[0].engine.topic(topic) else { return Ok(()) };
        let GroupState::Live(_) = process.shards[0].engine.group(group) else { return Ok(()) };
        let queue = QueueId(self.random.below(u64::from(found.queues)) as u32);
        let shard = usize::from(found.shard_of(queue, self.configuration.shards).0);
        let start = self.some_start();
        self.reset(process, shard, Share { group, topic, queue }, start)
    }

    /// A word that a shard has had already, or that was overtaken, says nothing.
    fn repeat_an_assignment(&mut self, process: &mut Process) {
        if self.consumers.assigned.is_empty() {
            return;
        }
        let assigned = Rc::clone(self.random.pick(&self.consumers.assigned));
        let shard = self.random.below(process.shards.len() as u64) as usize;
        // A shard that owns nothing of the group has forgotten its number: there the mesh's order must do.
        if self.consumers.ledger.has_taken_in(shard, &assigned) {
            self.statistics.repeated += 1;
            self.assign(process, shard, &assigned);
        }
    }
}
