//! One seed's life: starts of the broker, clients at work, crashes, and what outlives each of them.

use peregrine_broker::log::disk::simulated::{Conditions, Crash, Machine, Phase, Random};
use peregrine_broker::simulated::{Network, NetworkConditions, Process};

use super::catalogue::Catalogue;
use super::clients::Clients;
use super::configuration::{Configuration, Fault};
use super::ledger::Ledger;
use super::statistics::Statistics;
use super::world::World;
use crate::simulator::{Violation, promise};

/// What the broker is given for what must come to an end, nanoseconds of simulated time.
pub const PATIENCE: u64 = 120_000_000_000;
/// Within which a request is answered; where devices fail, what they owe is tried again for a while.
const ANSWERED_WITHIN: u64 = 30_000_000_000;
const ANSWERED_WITHIN_WHERE_DEVICES_FAIL: u64 = 300_000_000_000;

/// How a life ended that no armed crash ended.
pub enum Ending {
    /// The devices did not let it go on.
    Failed,
    Abandoned,
    Stopped,
}

pub struct Simulation {
    pub world: World,
    pub configuration: Configuration,
    pub clients: Clients,
    /// What the clients know of the network's news, and when they want to act again.
    heard: u64,
    wake: u64,
}

impl Simulation {
    pub fn new(seed: u64, planted: Option<Fault>, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let configuration = Configuration::random(&mut random, planted);
        let shards = configuration.settings.shards;
        let machine = Machine::new(random.next_u64(), usize::from(shards), Conditions::default());
        machine.set_verbose(verbose);
        let network = Network::new(&machine, NetworkConditions::default());
        let ledger = Ledger::new(!configuration.gives_up());
        let fails = configuration.conditions.fail();
        let mut world = World {
            machine,
            network,
            random,
            ledger,
            catalogue: Catalogue::default(),
            statistics: Statistics::default(),
            shards,
            executors: configuration.executors,
            life: 0,
            serving_since: None,
            patience: if fails { ANSWERED_WITHIN_WHERE_DEVICES_FAIL } else { ANSWERED_WITHIN },
            is_calm: false,
        };
        let clients = Clients::new(&mut world, &configuration);
        Self { world, configuration, clients, heard: 0, wake: 0 }
    }

    pub fn trace(&self) -> u64 {
        self.world.machine.trace()
    }

    pub fn statistics(&self) -> Statistics {
        Statistics { cuts: self.world.network.cuts(), ..self.world.statistics }
    }

    pub fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.configuration.lives {
            self.world.machine.set_conditions(self.configuration.conditions);
            self.world.network.set_conditions(self.configuration.network);
            self.arm();
            self.live(Self::work)?;
        }
        self.finale()
    }

    fn arm(&mut self) {
        let (machine, random) = (&self.world.machine, &mut self.world.random);
        let crash = if random.coin() { Crash::Kill } else { Crash::Power };
        machine.disarm();
        match random.below(5) {
            0 => {}
            1 => machine.arm(random.below(2_000), crash),
            2 => {
                let phase = *random.pick(&Phase::ALL);
                machine.arm_in(phase, random.below(8), random.below(4), crash);
            }
            _ => machine.arm(random.below(30_000), crash),
        }
    }

    /// One life of the broker: `work` is what it is there for.
    pub fn live(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Process) -> Result<Ending, Violation>,
    ) -> Result<(), Violation> {
        self.world.life += 1;
        self.world.statistics.lives += 1;
        let machine = self.world.machine.clone();
        let mut is_up = false;
        let ended = machine.survive(|| -> Result<Ending, Violation> {
            let options = self.configuration.process_options();
            let identity = self.configuration.identity(&machine);
            let settings = &self.configuration.settings;
            let mut process = Process::start(&machine, &self.world.network, settings, &identity, &options);
            if !self.start(&mut process)? {
                return Ok(Ending::Failed);
            }
            is_up = true;
            work(self, &mut process)
        });
        self.world.serving_since = None;
        let statistics = &mut self.world.statistics;
        let crash = match ended {
            Err(crash) => {
                statistics.crashed_starts += u64::from(!is_up);
                crash
            }
            Ok(Err(violation)) => return Err(violation),
            Ok(Ok(Ending::Failed)) => {
                statistics.failed += 1;
                Crash::Kill
            }
            Ok(Ok(Ending::Abandoned)) => Crash::Kill,
            // What was stopped cleanly bears anything.
            Ok(Ok(Ending::Stopped)) => {
                statistics.clean_stops += 1;
                self.world.ledger.was_stopped();
                if self.world.random.coin() { Crash::Kill } else { Crash::Power }
            }
        };
        self.end_of_process(crash)
    }

    fn end_of_process(&mut self, crash: Crash) -> Result<(), Violation> {
        let world = &mut self.world;
        world.machine.crash(crash);
        match crash {
            Crash::Kill => world.statistics.kills += 1,
            Crash::Power => {
                world.statistics.power_cuts += 1;
                world.ledger.power_was_cut();
            }
        }
        let breaches = world.machine.take_breaches();
        promise!(breaches.is_empty(), "the log broke a promise to the disk: {breaches:?}");
        let again = world.machine.now() + world.random.below(20_000_000);
        while world.machine.advance(again) {}
        Ok(())
    }

    /// Until every shard serves. False where the devices do not let it.
    fn start(&mut self, process: &mut Process) -> Result<bool, Violation> {
        let until = self.world.now() + PATIENCE;
        loop {
            if let Some(messages) = process.ready() {
                self.world.statistics.restored_from_rings += messages;
                self.world.serving_since = Some(self.world.now());
                return Ok(true);
            }
            if let Some(failures) = process.ended() {
                promise!(self.devices_fail(), "a start failed on sound devices: {failures:?}");
                return Ok(false);
            }
            promise!(self.world.now() < until, "a start does not come to its end");
            self.turn(process, until)?;
        }
    }

    fn work(&mut self, process: &mut Process) -> Result<Ending, Violation> {
        let until = self.world.now() + self.configuration.life;
        while self.world.now() < until {
            if let Some(failures) = process.ended() {
                promise!(self.devices_fail(), "the broker ended by itself: {failures:?}");
                return Ok(Ending::Failed);
            }
            self.turn(process, until)?;
        }
        if self.world.random.coin() { Ok(Ending::Abandoned) } else { self.stop(process) }
    }

    /// As SIGTERM does; the clients do not know of it.
    pub fn stop(&mut self, process: &mut Process) -> Result<Ending, Violation> {
        process.stop();
        self.world.serving_since = None;
        let until = self.world.now() + PATIENCE;
        loop {
            if let Some(failures) = process.ended() {
                promise!(failures.is_empty() || self.devices_fail(), "a stop failed on sound devices: {failures:?}");
                return Ok(if failures.is_empty() { Ending::Stopped } else { Ending::Failed });
            }
            promise!(self.world.now() < until, "a stop does not come to its end");
            self.turn(process, until)?;
        }
    }

    fn devices_fail(&self) -> bool {
        self.configuration.conditions.fail() && !self.world.is_calm
    }

    /// The clients act where there is something new for them, and then the broker does one thing.
    pub fn turn(&mut self, process: &mut Process, until: u64) -> Result<(), Violation> {
        let news = self.world.network.news();
        if news != self.heard || self.world.now() >= self.wake {
            self.heard = news;
            self.clients.act(&mut self.world, &self.configuration)?;
            self.wake = self.clients.next_wake(self.world.now());
        }
        self.world.statistics.turns += 1;
        // Whoever was late at its last look finds the time to have passed at its next.
        process.turn(self.wake.max(self.world.now() + 1_000).min(until));
        Ok(())
    }
}
