//! The simulated machine: its clock, its devices, what is in flight, and the ways in which it fails.
//!
//! A crash is armed ahead and strikes at a step; [`Machine::survive`] runs a process's code and returns the crash that ended
//! it. The caller then drops all that the process held and calls [`Machine::crash`], which decides what the world keeps.

use std::cell::{BorrowMutError, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::directory::Directory;
use super::disk::SimulatedDisk;
use super::failures::Failures;
use super::file::Tear;
use super::operation::{Pending, Request};
use super::phase::{ArmedIn, Phase};
use super::random::Random;
use super::ring::SimulatedRings;
use super::tasks::Woken;
use super::watch::Breach;
use super::world::{Completion, Waiting, World};
use crate::log::disk::BLOCK;

/// How a process ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Crash {
    /// `kill -9`: rings and the device's cache live on, writes in flight may land at any later time.
    Kill,
    /// The machine stops: rings are gone, and of what was not synced any subset survives.
    Power,
}

/// How the devices behave: delays in nanoseconds of simulated time, failures as one in so many, 0 = never.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    pub delay_min: u64,
    pub delay_max: u64,
    pub slow_one_in: u64,
    pub slow_delay: u64,
    pub fail_write_one_in: u64,
    pub fail_sync_one_in: u64,
    /// Of what takes space: making a file, extending one, giving one another name.
    pub disk_full_one_in: u64,
    /// What the file system says is free; it is not counted.
    pub free_bytes: u64,
    /// Reads fail, and others bring less than was asked for.
    pub fail_read_one_in: u64,
    pub short_read_one_in: u64,
    /// Whatever else is asked of the file system fails: to list, open, make, extend, rename, remove.
    pub fail_name_one_in: u64,
    /// Ring files cannot be opened, made, resized, removed.
    pub fail_ring_one_in: u64,
}

impl Conditions {
    /// Whether anything fails under them.
    pub fn fail(&self) -> bool {
        let Self { fail_write_one_in, fail_sync_one_in, disk_full_one_in, fail_read_one_in, fail_name_one_in, .. } =
            *self;
        let all = [fail_write_one_in, fail_sync_one_in, disk_full_one_in, fail_read_one_in, fail_name_one_in];
        all.iter().any(|one_in| *one_in > 0) || self.fail_ring_one_in > 0
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay_min: 10_000,
            delay_max: 400_000,
            slow_one_in: 0,
            slow_delay: 20_000_000,
            fail_write_one_in: 0,
            fail_sync_one_in: 0,
            disk_full_one_in: 0,
            free_bytes: u64::MAX,
            fail_read_one_in: 0,
            short_read_one_in: 0,
            fail_name_one_in: 0,
            fail_ring_one_in: 0,
        }
    }
}

/// A wait that takes more completions than this is a loop without end.
const WAIT_COMPLETIONS_MAX: u64 = 1_000_000;

struct CrashSignal(Crash);

/// A handle on the machine; clones share it.
#[derive(Clone)]
pub struct Machine {
    world: Rc<RefCell<World>>,
}

impl Machine {
    pub fn new(seed: u64, shards: usize, conditions: Conditions) -> Self {
        let world = World {
            random: Random::new(seed),
            conditions,
            directories: (0..shards).map(|_| Directory::default()).collect(),
            rings: BTreeMap::new(),
            zero: Rc::new([0; BLOCK]),
            now: 1_000_000_000,
            boot: 1,
            runs: 0,
            next_id: 0,
            serial: 0,
            next_inode: 0,
            steps: 0,
            armed: None,
            armed_in: None,
            interrupted: [0; Phase::ALL.len()],
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            processes: 0,
            breaches: Vec::new(),
            rings_in_use: BTreeMap::new(),
            trace: DefaultHasher::new(),
            verbose: false,
            failures: Failures::default(),
            flush_failed: BTreeSet::new(),
        };
        Self { world: Rc::new(RefCell::new(world)) }
    }

    pub fn disk(&self, shard: usize) -> SimulatedDisk {
        SimulatedDisk::new(self.clone(), shard)
    }

    pub fn rings(&self) -> SimulatedRings {
        SimulatedRings::new(self.clone())
    }

    pub fn set_conditions(&self, conditions: Conditions) {
        self.world().conditions = conditions;
    }

    /// What has failed so far.
    pub fn failures(&self) -> Failures {
        self.world().failures
    }

    /// Whether a write of that shard's log has failed in this process.
    pub fn flush_failed(&self, shard: usize) -> bool {
        self.world().flush_failed.contains(&shard)
    }

    /// Chance of its own for another part of the simulation.
    pub fn fork_random(&self) -> Random {
        self.world().random.fork()
    }

    /// When the next operation is due.
    pub fn next_due(&self) -> Option<u64> {
        self.world().pending.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Simulated time, nanoseconds; it goes on through crashes.
    pub fn now(&self) -> u64 {
        self.world().now
    }

    /// Changes with every loss of power.
    pub fn boot_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.world().boot.to_le_bytes());
        id[8] = 0xB0;
        id
    }

    /// Another one for each start.
    pub fn draw_run_id(&self) -> u64 {
        let mut world = self.world();
        world.runs += 1;
        world.runs
    }

    /// The steps taken so far: the instants at which a crash could have struck.
    pub fn steps(&self) -> u64 {
        self.world().steps
    }

    /// Lets a crash strike after `steps` more steps.
    pub fn arm(&self, steps: u64, crash: Crash) {
        self.world().armed = Some((steps, crash));
    }

    /// Lets a crash strike within a part of the work: `steps` behind the submission of an operation of it, having let `operations`
    /// pass.
    pub fn arm_in(&self, phase: Phase, operations: u64, steps: u64, crash: Crash) {
        self.world().armed_in = Some(ArmedIn { phase, operations, steps, crash });
    }

    pub fn disarm(&self) {
        let mut world = self.world();
        (world.armed, world.armed_in) = (None, None);
    }

    /// How many crashes struck while operations of each part of the work were in flight, in the order of [`Phase::ALL`].
    pub fn interrupted(&self) -> [u64; Phase::ALL.len()] {
        self.world().interrupted
    }

    /// Notes an event of the simulation: into the trace's digest, and to stderr where asked.
    pub fn note(&self, event: &(impl Debug + Hash)) {
        self.world().note(event);
    }

    pub fn set_verbose(&self, verbose: bool) {
        self.world().verbose = verbose;
    }

    /// A digest of all that has happened; equal for equal seeds.
    pub fn trace(&self) -> u64 {
        self.world().trace.finish()
    }

    /// Takes the breaches since the last call.
    pub fn take_breaches(&self) -> Vec<Breach> {
        std::mem::take(&mut self.world().breaches)
    }

    /// The names in a shard's directory, sorted.
    pub fn file_names(&self, shard: usize) -> Vec<String> {
        self.world().directories[shard].names()
    }

    /// The number of a file, which it keeps whatever its name. Panics where there is no such file.
    pub fn file_number(&self, shard: usize, file: &str) -> u64 {
        match self.world().directories[shard].lookup(file) {
            Ok(inode) => inode,
            Err(error) => panic!("{file} has no number: {error}"),
        }
    }

    /// How many files were made so far.
    pub fn files_made(&self) -> u64 {
        self.world().next_inode
    }

    /// Turns over one bit of a file, as no legal crash does. Panics where there is no such file.
    pub fn flip(&self, shard: usize, file: &str, offset: u64, bit: u8) {
        let mut world = self.world();
        world.note(&("flips a bit", shard, file, offset, bit));
        let directory = &mut world.directories[shard];
        match directory.lookup(file) {
            Ok(inode) => directory.file_mut(inode).flip(offset, bit),
            Err(error) => panic!("no bit of {file} can be turned over: {error}"),
        }
    }

    /// Makes a block of a file unreadable, or readable again. Panics where there is no such file.
    pub fn set_readable(&self, shard: usize, file: &str, block: usize, readable: bool) {
        let mut world = self.world();
        world.note(&("a block's readability", shard, file, block, readable));
        let directory = &mut world.directories[shard];
        match directory.lookup(file) {
            Ok(inode) => directory.file_mut(inode).set_readable(block, readable),
            Err(error) => panic!("{file} has no block: {error}"),
        }
    }

    /// Takes all files of a shard's directory away, while no process runs.
    pub fn move_away(&self, shard: usize) {
        let mut world = self.world();
        world.note(&("moved away", shard));
        world.directories[shard].move_away();
    }

    /// Puts them back, in the place of what was made there meanwhile.
    pub fn bring_back(&self, shard: usize) {
        let mut world = self.world();
        world.note(&("brought back", shard));
        world.directories[shard].bring_back();
    }

    /// Runs a process's code; `Err` is the crash that ended it.
    pub fn survive<T>(&self, process: impl FnOnce() -> T) -> Result<T, Crash> {
        catch_unwind(AssertUnwindSafe(process)).map_err(|payload| match payload.downcast::<CrashSignal>() {
            Ok(signal) => signal.0,
            Err(other) => resume_unwind(other),
        })
    }

    /// Ends the process here and now: unwinds into [`Machine::survive`].
    pub fn strike(&self, crash: Crash) -> ! {
        resume_unwind(Box::new(CrashSignal(crash)))
    }

    /// An instant at which an armed crash may strike; it unwinds into [`Machine::survive`].
    pub(crate) fn step(&self) {
        if std::thread::panicking() {
            return;
        }
        let mut world = self.world();
        world.steps += 1;
        match &mut world.armed {
            Some((0, crash)) => {
                let crash = *crash;
                world.armed = None;
                drop(world);
                self.strike(crash);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// Completes the next operation that is due by `until`, or moves the clock there. False where nothing was due.
    pub fn advance(&self, until: u64) -> bool {
        self.step();
        let mut world = self.world();
        world.watch_rings();
        match world.pending.first_key_value() {
            Some((&(due, id), _)) if due <= until => {
                world.now = world.now.max(due);
                let waker = world.complete(due, id);
                drop(world);
                if let Some(waker) = waker {
                    waker.wake();
                }
                true
            }
            _ => {
                if until != u64::MAX {
                    world.now = world.now.max(until);
                }
                false
            }
        }
    }

    /// Drives one future to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        for _ in 0..WAIT_COMPLETIONS_MAX {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            while !woken.take() {
                assert!(self.advance(u64::MAX), "a future waits for something that never comes");
            }
        }
        panic!("a future does not end");
    }

    /// The world's share of a crash. All that the process held must have been dropped before.
    pub fn crash(&self, crash: Crash) {
        let mut world = self.world();
        world.note(&("crash", crash));
        (world.armed, world.armed_in) = (None, None);
        world.count_interrupted();
        world.processes += 1;
        world.flush_failed.clear();
        world.waiting.clear();
        for ((due, id), pending) in std::mem::take(&mut world.pending) {
            world.orphan(due, id, pending, crash);
        }
        if crash == Crash::Power {
            let world = &mut *world;
            for directory in &mut world.directories {
                let tear = Tear::random(&mut world.random);
                directory.lose_power(tear, &mut world.random);
            }
            world.rings.clear();
            world.boot += 1;
        }
    }

    pub(super) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// For what may run while a crash unwinds through the machine's own code.
    pub(super) fn try_world(&self) -> Result<RefMut<'_, World>, BorrowMutError> {
        self.world.try_borrow_mut()
    }

    /// Submits an operation; the future is its completion. Dropping that leaves the operation in flight.
    pub(super) fn submit(&self, shard: usize, request: Request) -> Completion {
        self.step();
        let mut world = self.world();
        let id = world.next_id;
        world.next_id += 1;
        let due = world.now + world.delay(&request);
        let failure = world.choose_failure(&request);
        world.watch(shard, &request);
        world.near_crash(shard, &request);
        world.pending.insert((due, id), Pending { shard, request, failure, orphan: false });
        world.waiting.insert(id, Waiting::default());
        Completion::new(self.clone(), id)
    }
}
