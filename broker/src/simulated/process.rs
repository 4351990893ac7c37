//! One life of a broker's process: the executors of production, each on a scheduler.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::network::Network;
use super::scheduler::Scheduler;
use crate::control::settings::{Identity, Settings};
use crate::engine::HOME;
use crate::log::Smallest;
use crate::log::disk::simulated::{Machine, Random};
use crate::log::fault::Faults;
use crate::shard::executor::Layout;
use crate::shard::listener::Listener;
use crate::shard::mesh;
use crate::shard::run::{self, RunError, Task};
use crate::shard::seams::PlantedInShards;
use crate::shard::startup::Startup;
use crate::shard::watchdog::Watchdog;

/// What a process is made of beyond its settings.
#[derive(Clone, Default)]
pub struct ProcessOptions {
    pub executors: usize,
    /// What the logs do wrong on purpose.
    pub faults: Faults,
    /// What the executors do wrong on purpose.
    pub planted: Option<PlantedInShards>,
    /// Rings and segments that a few entries fill.
    pub smallest: Smallest,
}

/// See the module.
pub struct Process {
    machine: Machine,
    network: Network,
    schedulers: Vec<Rc<Scheduler>>,
    startup: Arc<Startup>,
    stop: Arc<AtomicBool>,
    random: Random,
    ended: RefCell<Option<Vec<String>>>,
}

/// Time goes on although a task could run, once in so many turns: cores are slow at times.
const TIME_FIRST_ONE_IN: u64 = 16;

impl Process {
    pub fn start(
        machine: &Machine,
        network: &Network,
        settings: &Settings,
        identity: &Identity,
        options: &ProcessOptions,
    ) -> Self {
        let executors = options.executors.clamp(1, usize::from(settings.shards));
        let layout = Layout { shards: settings.shards, executors };
        let startup = Arc::new(Startup::new(settings.shards, executors));
        let stop = Arc::new(AtomicBool::new(false));
        let watchdog = Arc::new(Watchdog::asleep(executors));
        let schedulers: Vec<_> = (0..executors).map(|_| Scheduler::new(machine, network, options)).collect();
        let shards_each = usize::from(settings.shards).div_ceil(executors);
        let ends = schedulers[0].enter(|| mesh::full(executors, shards_each));
        for (index, (scheduler, ends)) in schedulers.iter().zip(ends).enumerate() {
            let task = Task {
                index,
                core: index,
                layout,
                settings: settings.clone(),
                identity: *identity,
                ends,
                listener: (index == layout.executor_of(HOME)).then_some(Listener::Simulated),
                startup: startup.clone(),
                watchdog: watchdog.clone(),
                stop: stop.clone(),
            };
            scheduler.spawn(run::serve(task), false).detach();
        }
        // The kernel takes connections as soon as the socket listens, before they are accepted.
        network.listen();
        Self {
            machine: machine.clone(),
            network: network.clone(),
            schedulers,
            startup,
            stop,
            random: machine.fork_random(),
            ended: RefCell::new(None),
        }
    }

    /// Once every shard serves: the messages that stood only in rings.
    pub fn ready(&self) -> Option<u64> {
        self.startup.is_recovered()
    }

    /// Once it has stopped or could not start: what went wrong, which is nothing for a clean stop.
    pub fn ended(&self) -> Option<Vec<String>> {
        let mut ended = self.ended.borrow_mut();
        if ended.is_none() {
            *ended = self.startup.is_ended().map(|failures| failures.iter().map(RunError::to_string).collect());
        }
        ended.clone()
    }

    /// Asks it to stop, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Runs one task, or lets come what is due next and moves the clock there, at most to `until`. False where nothing is left to
    /// happen before that: the clock stands there now.
    pub fn turn(&mut self, until: u64) -> bool {
        self.machine.step();
        let ready: Vec<usize> =
            (0..self.schedulers.len()).filter(|&index| self.schedulers[index].has_ready()).collect();
        if !ready.is_empty() && !self.random.one_in(TIME_FIRST_ONE_IN) {
            self.schedulers[*self.random.pick(&ready)].run_one();
            return true;
        }
        let timers = self.schedulers.iter().filter_map(|scheduler| scheduler.next_due());
        let next = timers.chain(self.machine.next_due()).chain(self.network.next_due()).min();
        match next {
            Some(at) if at <= until => {
                self.machine.advance(at);
                for scheduler in &self.schedulers {
                    scheduler.fire_timers();
                }
                self.network.deliver();
                true
            }
            _ if !ready.is_empty() => {
                self.schedulers[*self.random.pick(&ready)].run_one();
                true
            }
            _ => {
                self.machine.advance(until);
                false
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for scheduler in &self.schedulers {
            scheduler.end();
        }
        self.network.process_ended();
    }
}
