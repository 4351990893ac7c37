//! One seed's life: starts of the broker, clients at work, crashes, and what outlives each of them.

use std::collections::BTreeMap;

use peregrine_broker::log::disk::simulated::{Conditions, Crash, Machine, Random};
use peregrine_broker::simulated::{Network, NetworkConditions, Process};
use peregrine_protocol::ids::{DurableLevel, QueueId, ShardId, TopicId};
use peregrine_protocol::placement::TopicHash;

use super::archive::Archive;
use super::configuration::{Configuration, Fault};
use super::looker::Looker;
use super::producer::Producer;
use super::reader::Reader;
use super::statistics::Statistics;
use super::stranger::Stranger;
use crate::simulator::{Violation, promise};

/// The topic of all clients.
pub const TOPIC: &str = "orders";
/// What the broker is given for what must come to an end, nanoseconds of simulated time.
pub const PATIENCE: u64 = 120_000_000_000;

/// How a life ended that no armed crash ended.
enum Ending {
    /// The devices did not let it start, or it is poisoned.
    Failed,
    Abandoned,
    Stopped,
}

/// Everybody who talks to the broker.
pub struct Clients {
    pub producers: Vec<Producer>,
    pub readers: Vec<Reader>,
    lookers: Vec<Looker>,
    strangers: Vec<Stranger>,
}

pub struct Simulation {
    pub machine: Machine,
    pub network: Network,
    pub random: Random,
    pub configuration: Configuration,
    pub archive: Archive,
    /// None before the topic is made.
    pub clients: Option<Clients>,
    pub topic: Option<TopicId>,
    next_number: u64,
    next_push: u64,
    pub statistics: Statistics,
}

impl Simulation {
    pub fn new(seed: u64, planted: Option<Fault>, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let configuration = Configuration::random(&mut random, planted);
        let shards = configuration.settings.shards;
        let machine = Machine::new(random.next_u64(), usize::from(shards), Conditions::default());
        machine.set_verbose(verbose);
        let network = Network::new(&machine, NetworkConditions::default());
        let placement = TopicHash::of(TOPIC);
        let queues = (0..configuration.queues).map(QueueId);
        let queues: BTreeMap<QueueId, ShardId> =
            queues.map(|queue| (queue, placement.shard_of(queue, shards))).collect();
        let archive = Archive::new(queues, configuration.gives_up());
        Self {
            machine,
            network,
            random,
            configuration,
            archive,
            clients: None,
            topic: None,
            next_number: 1,
            next_push: 0,
            statistics: Statistics::default(),
        }
    }

    pub fn trace(&self) -> u64 {
        self.machine.trace()
    }

    pub fn statistics(&self) -> Statistics {
        Statistics { cuts: self.network.cuts(), ..self.statistics }
    }

    pub fn run(&mut self) -> Result<(), Violation> {
        self.live(Self::make_topic)?;
        for _ in 0..self.configuration.lives {
            self.machine.set_conditions(self.configuration.conditions);
            self.network.set_conditions(self.configuration.network);
            self.arm();
            self.live(Self::work)?;
        }
        self.machine.disarm();
        self.machine.set_conditions(Conditions::default());
        self.network.set_conditions(NetworkConditions::default());
        self.live(Self::finish)
    }

    fn arm(&mut self) {
        let crash = if self.random.coin() { Crash::Kill } else { Crash::Power };
        match self.random.below(3) {
            0 => self.machine.disarm(),
            1 => self.machine.arm(self.random.below(3_000), crash),
            _ => self.machine.arm(self.random.below(40_000), crash),
        }
    }

    /// One life of the broker: `work` is what it is there for, and says whether it is still to be stopped.
    fn live(&mut self, work: impl FnOnce(&mut Self, &mut Process) -> Result<(), Violation>) -> Result<(), Violation> {
        self.statistics.lives += 1;
        let machine = self.machine.clone();
        let mut is_up = false;
        let ended = machine.survive(|| -> Result<Ending, Violation> {
            let options = self.configuration.process_options();
            let identity = self.configuration.identity(&self.machine);
            let settings = &self.configuration.settings;
            let mut process = Process::start(&self.machine, &self.network, settings, &identity, &options);
            if !self.start(&mut process)? {
                return Ok(Ending::Failed);
            }
            is_up = true;
            work(self, &mut process)?;
            if process.ended().is_some() {
                return Ok(Ending::Stopped);
            }
            if self.random.coin() {
                return Ok(Ending::Abandoned);
            }
            self.stop(&mut process)
        });
        let crash = match ended {
            Err(crash) => {
                self.statistics.crashed_starts += u64::from(!is_up);
                crash
            }
            Ok(Err(violation)) => return Err(violation),
            Ok(Ok(Ending::Failed)) => {
                self.statistics.failed_starts += 1;
                Crash::Kill
            }
            Ok(Ok(Ending::Abandoned)) => Crash::Kill,
            // What was stopped cleanly bears anything.
            Ok(Ok(Ending::Stopped)) => {
                self.statistics.clean_stops += 1;
                if self.random.coin() { Crash::Kill } else { Crash::Power }
            }
        };
        machine.crash(crash);
        match crash {
            Crash::Kill => self.statistics.kills += 1,
            Crash::Power => {
                self.statistics.power_cuts += 1;
                self.archive.power_was_cut();
            }
        }
        let breaches = machine.take_breaches();
        promise!(breaches.is_empty(), "the log broke a promise to the disk: {breaches:?}");
        Ok(())
    }

    /// Until every shard serves. False where the devices do not let it.
    fn start(&mut self, process: &mut Process) -> Result<bool, Violation> {
        let until = self.machine.now() + PATIENCE;
        while process.ready().is_none() {
            if let Some(failures) = process.ended() {
                promise!(self.devices_fail(), "a start failed on sound devices: {failures:?}");
                return Ok(false);
            }
            promise!(process.turn(until), "a start does not come to its end");
        }
        Ok(true)
    }

    fn stop(&mut self, process: &mut Process) -> Result<Ending, Violation> {
        process.stop();
        let until = self.machine.now() + PATIENCE;
        loop {
            if let Some(failures) = process.ended() {
                promise!(failures.is_empty() || self.devices_fail(), "a stop failed on sound devices: {failures:?}");
                return Ok(if failures.is_empty() { Ending::Stopped } else { Ending::Abandoned });
            }
            self.act()?;
            promise!(process.turn(until.min(self.next_wake())) || self.machine.now() < until, "a stop has no end");
        }
    }

    fn devices_fail(&self) -> bool {
        self.configuration.conditions.fail() && self.clients.is_some()
    }

    /// Everybody does what there is to do.
    pub fn act(&mut self) -> Result<(), Violation> {
        let now = self.machine.now();
        let Some(clients) = &mut self.clients else { return Ok(()) };
        let (network, archive, random, statistics) =
            (&self.network, &mut self.archive, &mut self.random, &mut self.statistics);
        for producer in &mut clients.producers {
            producer.act(network, now, archive, statistics)?;
        }
        for reader in &mut clients.readers {
            reader.act(network, now, archive, random, statistics)?;
        }
        for looker in &mut clients.lookers {
            looker.act(network, now, archive, random, statistics)?;
        }
        for stranger in &mut clients.strangers {
            stranger.act(network, now, random, statistics);
        }
        Ok(())
    }

    pub fn next_wake(&self) -> u64 {
        let Some(clients) = &self.clients else { return u64::MAX };
        let producers = clients.producers.iter().map(Producer::next_wake);
        let readers = clients.readers.iter().map(Reader::next_wake);
        let lookers = clients.lookers.iter().map(Looker::next_wake);
        let strangers = clients.strangers.iter().map(Stranger::next_wake);
        // Who is late was told so and does it when something else happens.
        let now = self.machine.now();
        producers.chain(readers).chain(lookers).chain(strangers).filter(|&at| at > now).min().unwrap_or(u64::MAX)
    }

    /// Clients talk to the broker until the life's time is over.
    fn work(&mut self, process: &mut Process) -> Result<(), Violation> {
        let until = self.machine.now() + self.configuration.life;
        let mut heard = None;
        let mut wake = 0;
        while self.machine.now() < until {
            let now = self.machine.now();
            if heard != Some(self.network.news()) || now >= wake {
                self.push(now);
                self.act()?;
                heard = Some(self.network.news());
                wake = self.next_wake().min(self.next_push.max(now + 1)).min(until);
            }
            process.turn(wake);
            promise!(process.ended().is_none(), "the broker ended by itself: {:?}", process.ended());
        }
        Ok(())
    }

    /// Producers get something to send.
    fn push(&mut self, now: u64) {
        if now < self.next_push {
            return;
        }
        self.next_push = now + self.random.below(2 * self.configuration.every);
        let Some(clients) = &mut self.clients else { return };
        let index = self.random.below(clients.producers.len() as u64) as usize;
        let producer = &mut clients.producers[index];
        if producer.has_room() {
            let level = if self.random.coin() { DurableLevel::Memory } else { DurableLevel::Synced };
            producer.push(self.next_number, level, now, &mut self.random);
            self.next_number += 1;
        }
    }

    /// Who talks to the broker from now on.
    pub fn meet(&mut self, topic: TopicId) {
        let queues = self.archive.queues();
        let (random, configuration) = (&mut self.random, &self.configuration);
        let shards = configuration.settings.shards;
        let any_shard = |random: &mut Random| ShardId(random.below(u64::from(shards)) as u16);
        // A queue has one producer, so that the order of what it sends is the order of what it stores.
        let producers = (0..configuration.producers.min(queues.len() as u64)).map(|index| {
            let owned = queues.iter().filter(|queue| u64::from(queue.0) % configuration.producers == index);
            let is_aware = random.coin();
            Producer::new(index + 1, topic, TOPIC, owned.copied().collect(), shards, is_aware, random)
        });
        let producers = producers.collect();
        let readers = queues.iter().map(|&queue| {
            let shard = if random.coin() { self.archive.shard_of(queue) } else { any_shard(random) };
            Reader::new(topic, queue, shard, configuration.slow_one_in)
        });
        let readers = readers.collect();
        let lookers = (0..configuration.lookers).map(|_| Looker::new(topic, any_shard(random))).collect();
        let strangers = if configuration.has_stranger { vec![Stranger::new()] } else { Vec::new() };
        self.clients = Some(Clients { producers, readers, lookers, strangers });
        self.topic = Some(topic);
    }
}
