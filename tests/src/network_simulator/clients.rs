//! Everybody who talks to the broker.

use std::collections::BTreeSet;

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Nanos, QueueId, TopicId};
use peregrine_protocol::message::Start;

use super::administrator::Administrator;
use super::configuration::{Configuration, DIRECTORY};
use super::inquirer::Inquirer;
use super::ledger::Queue;
use super::producer::Producer;
use super::reader::Reader;
use super::stranger::Stranger;
use super::world::World;
use crate::simulator::Violation;

/// Of one queue at once.
const READERS_MAX: usize = 3;

pub struct Clients {
    administrator: Administrator,
    producers: Vec<Producer>,
    readers: Vec<Reader>,
    inquirers: Vec<Inquirer>,
    strangers: Vec<Stranger>,
    /// Topics that have their producers, and queues that have their readers.
    served: BTreeSet<TopicId>,
    read: BTreeSet<Queue>,
    /// Changes of the catalogue that were looked at.
    known: u64,
    stranger_every: Option<u64>,
    next_stranger: u64,
}

impl Clients {
    pub fn new(world: &mut World, configuration: &Configuration) -> Self {
        let Configuration { topics, topic_ages, pause, stranger_every, inquirers, .. } = *configuration;
        let administrator = Administrator::new(world, topics, topic_ages, pause);
        let inquirer = |number| Inquirer::new(world, number, DirectoryId(DIRECTORY), pause);
        let inquirers = (0..inquirers).map(inquirer).collect();
        Self {
            administrator,
            producers: Vec::new(),
            readers: Vec::new(),
            inquirers,
            strangers: Vec::new(),
            served: BTreeSet::new(),
            read: BTreeSet::new(),
            known: 0,
            stranger_every,
            next_stranger: 0,
        }
    }

    /// Who has not had all that it sent acknowledged, or done, if there is anybody.
    pub fn who_waits(&self) -> Option<String> {
        if !self.administrator.is_idle() {
            return Some(self.administrator.to_string());
        }
        self.producers.iter().find(|producer| !producer.is_idle()).map(Producer::to_string)
    }

    /// What producers have not begun to send stays unsent.
    pub fn finish(&mut self) {
        self.producers.iter_mut().for_each(Producer::finish);
    }

    pub fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.readers.iter()
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        let producers = self.producers.iter().map(|client| client.next_wake(now));
        let readers = self.readers.iter().map(|client| client.next_wake(now));
        let inquirers = self.inquirers.iter().map(|client| client.next_wake(now));
        let strangers = self.strangers.iter().map(Stranger::next_wake);
        let next_stranger = self.stranger_every.map_or(u64::MAX, |_| self.next_stranger);
        let all = producers.chain(readers).chain(inquirers).chain(strangers);
        all.chain([self.administrator.next_wake(now), next_stranger]).min().unwrap_or(u64::MAX)
    }

    /// Everybody does what there is to do.
    pub fn act(&mut self, world: &mut World, configuration: &Configuration) -> Result<(), Violation> {
        self.administrator.act(world)?;
        if self.known != world.catalogue.changes() {
            self.serve_new(world, configuration);
        }
        self.come(world);
        for producer in &mut self.producers {
            producer.act(world)?;
        }
        for reader in &mut self.readers {
            reader.act(world)?;
        }
        for inquirer in &mut self.inquirers {
            inquirer.act(world)?;
        }
        for index in (0..self.strangers.len()).rev() {
            if !self.strangers[index].act(world)? {
                self.strangers.remove(index);
            }
        }
        Ok(())
    }

    /// Producers and readers of what is new.
    fn serve_new(&mut self, world: &mut World, configuration: &Configuration) {
        self.known = world.catalogue.changes();
        for topic in world.catalogue.topics().to_vec() {
            if self.served.insert(topic.id) {
                for _ in 0..configuration.producers {
                    let number = self.producers.len();
                    self.producers.push(Producer::new(world, number, &topic, configuration.manner));
                }
            }
            for queue in (0..topic.queues).map(|queue| (topic.id, QueueId(queue))) {
                if self.read.insert(queue) {
                    let number = self.readers.len() as u64;
                    self.readers.push(Reader::new(world, number, &topic, queue, Start::Earliest));
                }
            }
        }
    }

    /// Who comes unasked: readers that come late or lose patience, and strangers.
    fn come(&mut self, world: &mut World) {
        if world.is_calm {
            self.stranger_every = None;
            return;
        }
        if world.random.one_in(400) && !self.readers.is_empty() {
            let index = world.random.below(self.readers.len() as u64) as usize;
            self.readers[index].reset(world);
        }
        if world.random.one_in(400) {
            self.one_comes_late(world);
        }
        if let Some(every) = self.stranger_every
            && world.now() >= self.next_stranger
        {
            self.next_stranger = world.now() + world.random.below(every + 1) + 1;
            let stranger = Stranger::new(world);
            self.strangers.push(stranger);
        }
    }

    fn one_comes_late(&mut self, world: &mut World) {
        let topics = world.catalogue.topics().to_vec();
        if topics.is_empty() {
            return;
        }
        let topic = &topics[world.random.below(topics.len() as u64) as usize];
        let queue = (topic.id, QueueId(world.random.below(u64::from(topic.queues)) as u32));
        if self.readers.iter().filter(|reader| reader.queue() == queue).count() < READERS_MAX {
            let time = Nanos(world.wall() - world.random.below(50_000_000));
            let start = *world.random.pick(&[Start::Earliest, Start::Latest, Start::Time(time)]);
            let number = self.readers.len() as u64;
            self.readers.push(Reader::new(world, number, topic, queue, start));
        }
    }
}
