//! The simulated machine: its clock, its devices, what is in flight, and the ways in which it fails.
//!
//! A crash is armed ahead and strikes at a step; [`Machine::survive`] runs a process's code and returns the crash that ended
//! it. The caller then drops all that the process held and calls [`Machine::crash`], which decides what the world keeps.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::directory::Directory;
use super::disk::SimulatedDisk;
use super::file::{Block, FileContents, Tear};
use super::operation::{Answer, Pending, Request};
use super::random::Random;
use super::ring::{RingFile, SimulatedRings};
use super::tasks::Woken;
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
    pub disk_full_one_in: u64,
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
        }
    }
}

/// How long after its process's end a write may still land, nanoseconds.
const ORPHAN_DELAY_MAX: u64 = 30_000_000;
/// A wait that takes more completions than this is a loop without end.
const WAIT_COMPLETIONS_MAX: u64 = 1_000_000;

/// A write that the log promises not to make, whether or not a crash punishes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A durable write hit a block that an earlier one had filled.
    Rewritten { shard: usize, file: String, block: usize },
    /// A process wrote into a file that an earlier one had made.
    Inherited { shard: usize, file: String },
}

struct CrashSignal(Crash);

struct Waiting {
    waker: Option<Waker>,
    answer: Option<io::Result<Answer>>,
}

pub(super) struct State {
    pub random: Random,
    pub conditions: Conditions,
    pub directories: Vec<Directory>,
    pub rings: BTreeMap<String, RingFile>,
    pub zero: Rc<Block>,
    now: u64,
    boot: u64,
    next_id: u64,
    serial: u64,
    next_inode: u64,
    steps: u64,
    armed: Option<(u64, Crash)>,
    pending: BTreeMap<(u64, u64), Pending>,
    waiting: BTreeMap<u64, Waiting>,
    processes: u64,
    breaches: Vec<Breach>,
    trace: DefaultHasher,
    verbose: bool,
}

/// A handle on the machine; clones share it.
#[derive(Clone)]
pub struct Machine {
    state: Rc<RefCell<State>>,
}

impl Machine {
    pub fn new(seed: u64, shards: usize, conditions: Conditions) -> Self {
        let state = State {
            random: Random::new(seed),
            conditions,
            directories: (0..shards).map(|_| Directory::default()).collect(),
            rings: BTreeMap::new(),
            zero: Rc::new([0; BLOCK]),
            now: 1_000_000_000,
            boot: 1,
            next_id: 0,
            serial: 0,
            next_inode: 0,
            steps: 0,
            armed: None,
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            processes: 0,
            breaches: Vec::new(),
            trace: DefaultHasher::new(),
            verbose: false,
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    pub fn disk(&self, shard: usize) -> SimulatedDisk {
        SimulatedDisk::new(self.clone(), shard)
    }

    pub fn rings(&self) -> SimulatedRings {
        SimulatedRings::new(self.clone())
    }

    pub fn set_conditions(&self, conditions: Conditions) {
        self.state().conditions = conditions;
    }

    /// Simulated time, nanoseconds; it goes on through crashes.
    pub fn now(&self) -> u64 {
        self.state().now
    }

    /// Changes with every loss of power.
    pub fn boot_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.state().boot.to_le_bytes());
        id[8] = 0xB0;
        id
    }

    /// The steps taken so far: the instants at which a crash could have struck.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Lets a crash strike after `steps` more steps.
    pub fn arm(&self, steps: u64, crash: Crash) {
        self.state().armed = Some((steps, crash));
    }

    pub fn disarm(&self) {
        self.state().armed = None;
    }

    /// Notes an event of the simulation: into the trace's digest, and to stderr where asked.
    pub fn note(&self, event: &(impl Debug + Hash)) {
        self.state().note(event);
    }

    pub fn set_verbose(&self, verbose: bool) {
        self.state().verbose = verbose;
    }

    /// A digest of all that has happened; equal for equal seeds.
    pub fn trace(&self) -> u64 {
        self.state().trace.finish()
    }

    /// Takes the breaches since the last call.
    pub fn take_breaches(&self) -> Vec<Breach> {
        std::mem::take(&mut self.state().breaches)
    }

    /// The names in a shard's directory, sorted.
    pub fn file_names(&self, shard: usize) -> Vec<String> {
        self.state().directories[shard].names()
    }

    /// Turns over one bit of a file, as no legal crash does. Panics where there is no such file.
    pub fn flip(&self, shard: usize, file: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        state.note(&("flips a bit", shard, file, offset, bit));
        let directory = &mut state.directories[shard];
        match directory.lookup(file) {
            Ok(inode) => directory.file_mut(inode).flip(offset, bit),
            Err(error) => panic!("no bit of {file} can be turned over: {error}"),
        }
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
    pub(super) fn step(&self) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.state();
        state.steps += 1;
        match &mut state.armed {
            Some((0, crash)) => {
                let crash = *crash;
                state.armed = None;
                drop(state);
                self.strike(crash);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// Completes the next operation that is due by `until`, or moves the clock there. False where nothing was due.
    pub fn advance(&self, until: u64) -> bool {
        self.step();
        let mut state = self.state();
        match state.pending.first_key_value() {
            Some((&(due, id), _)) if due <= until => {
                state.now = state.now.max(due);
                let waker = state.complete(due, id);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                true
            }
            _ => {
                if until != u64::MAX {
                    state.now = state.now.max(until);
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
        let mut state = self.state();
        state.note(&("crash", crash));
        state.armed = None;
        state.processes += 1;
        state.waiting.clear();
        for ((due, id), pending) in std::mem::take(&mut state.pending) {
            state.orphan(due, id, pending, crash);
        }
        if crash == Crash::Power {
            let state = &mut *state;
            for directory in &mut state.directories {
                let tear = Tear::random(&mut state.random);
                directory.lose_power(tear, &mut state.random);
            }
            state.rings.clear();
            state.boot += 1;
        }
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Submits an operation; the future is its completion. Dropping that leaves the operation in flight.
    pub(super) fn submit(&self, shard: usize, request: Request) -> Completion {
        self.step();
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        let due = state.now + state.delay(&request);
        let failure = state.choose_failure(&request);
        state.look_for_inheritance(shard, &request);
        state.pending.insert((due, id), Pending { shard, request, failure, orphan: false });
        state.waiting.insert(id, Waiting { waker: None, answer: None });
        Completion { machine: self.clone(), id }
    }
}

impl State {
    pub fn note(&mut self, event: &(impl Debug + Hash)) {
        self.now.hash(&mut self.trace);
        event.hash(&mut self.trace);
        if self.verbose {
            eprintln!("{:>12} {event:?}", self.now);
        }
    }

    /// Orders completions against the syncs issued between them.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn next_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    fn delay(&mut self, request: &Request) -> u64 {
        if let Request::Pause { nanoseconds } = request {
            return *nanoseconds;
        }
        let conditions = self.conditions;
        if self.random.one_in(conditions.slow_one_in) {
            return self.random.between(conditions.delay_max, conditions.slow_delay);
        }
        self.random.between(conditions.delay_min, conditions.delay_max)
    }

    fn look_for_inheritance(&mut self, shard: usize, request: &Request) {
        let Request::Write { inode, .. } = request else { return };
        if self.directories[shard].file(*inode).made_by() != self.processes {
            let file = self.directories[shard].name_of(*inode).to_owned();
            self.breaches.push(Breach::Inherited { shard, file });
        }
    }

    fn choose_failure(&mut self, request: &Request) -> Option<io::ErrorKind> {
        let conditions = self.conditions;
        let failed = (request.is_write() && self.random.one_in(conditions.fail_write_one_in))
            || (request.is_sync() && self.random.one_in(conditions.fail_sync_one_in));
        if failed {
            return Some(io::ErrorKind::Other);
        }
        let full = matches!(request, Request::Make { .. }) && self.random.one_in(conditions.disk_full_one_in);
        full.then_some(io::ErrorKind::StorageFull)
    }

    fn complete(&mut self, due: u64, id: u64) -> Option<Waker> {
        let pending = self.pending.remove(&(due, id))?;
        self.note(&("completes", pending.shard, id, pending.request.name(), pending.failure, pending.orphan));
        if pending.orphan {
            let tear = Tear::random(&mut self.random);
            self.land_torn(&pending, tear);
            return None;
        }
        let answer = match pending.failure {
            None => self.carry_out(pending.shard, pending.request),
            Some(kind) => {
                if pending.request.is_write() {
                    let tear = Tear::random(&mut self.random);
                    self.land_torn(&pending, tear);
                    if self.random.coin() {
                        self.land_later(id, pending);
                    }
                }
                Err(io::Error::new(kind, "injected by the simulation"))
            }
        };
        let waiting = self.waiting.get_mut(&id)?;
        waiting.answer = Some(answer);
        waiting.waker.take()
    }

    fn carry_out(&mut self, shard: usize, request: Request) -> io::Result<Answer> {
        let serial = self.next_serial();
        match request {
            Request::List => Ok(Answer::Names(self.directories[shard].names())),
            Request::Open { name } => {
                let inode = self.directories[shard].lookup(&name)?;
                Ok(Answer::File { inode, size: self.directories[shard].file(inode).size() })
            }
            Request::Make { name, size } => {
                let inode = self.next_inode();
                let initial = self.stale_blocks(shard, size.div_ceil(BLOCK as u64) as usize);
                let contents = FileContents::new(initial, self.processes);
                self.directories[shard].make(&name, inode, contents, serial)?;
                Ok(Answer::File { inode, size })
            }
            Request::Rename { from, to } => self.directories[shard].rename(&from, &to, serial).map(|()| Answer::Done),
            Request::Remove { name } => self.directories[shard].remove(&name, serial).map(|_| Answer::Done),
            Request::SyncDirectory { serial } => {
                self.directories[shard].sync(serial);
                Ok(Answer::Done)
            }
            Request::Read { inode, offset, len } => {
                Ok(Answer::Bytes(self.directories[shard].file(inode).read(offset, len)))
            }
            Request::Write { inode, first, blocks, durable } => {
                let rewritten = self.directories[shard].file_mut(inode).write(first, &blocks, serial, durable);
                if let Some(block) = rewritten {
                    let file = self.directories[shard].name_of(inode).to_owned();
                    self.breaches.push(Breach::Rewritten { shard, file, block });
                }
                Ok(Answer::Done)
            }
            Request::Sync { inode, serial } => {
                self.directories[shard].file_mut(inode).sync(serial);
                Ok(Answer::Done)
            }
            Request::Pause { .. } => Ok(Answer::Done),
        }
    }

    /// What the disk holds where a new file is laid: zeros, noise, or what another file left there.
    fn stale_blocks(&mut self, shard: usize, count: usize) -> Vec<Rc<Block>> {
        let mut blocks = match self.random.below(3) {
            0 => Vec::new(),
            1 => {
                let mut noise = [0; BLOCK];
                self.random.fill(&mut noise);
                let noise = Rc::new(noise);
                (0..count).map(|_| Rc::clone(&noise)).collect()
            }
            _ => {
                let directory = &self.directories[shard];
                let inodes = directory.inodes();
                if inodes.is_empty() {
                    Vec::new()
                } else {
                    directory.file(*self.random.pick(&inodes)).blocks().to_vec()
                }
            }
        };
        blocks.resize(count, Rc::clone(&self.zero));
        blocks
    }

    /// Settles an operation whose process ended: most kinds happened or did not; a write may land later.
    fn orphan(&mut self, due: u64, id: u64, pending: Pending, crash: Crash) {
        if !pending.request.is_write() {
            if pending.failure.is_none() && self.random.coin() {
                // Nobody reads the answer.
                let _ = self.carry_out(pending.shard, pending.request);
            }
            return;
        }
        if crash == Crash::Power {
            let tear = Tear::random(&mut self.random);
            self.land_torn(&pending, tear);
        } else if pending.orphan {
            self.pending.insert((due, id), pending);
        } else {
            if self.random.coin() {
                let tear = Tear::random(&mut self.random);
                self.land_torn(&pending, tear);
            }
            if self.random.coin() {
                self.land_later(id, pending);
            }
        }
    }

    fn land_later(&mut self, id: u64, mut pending: Pending) {
        pending.orphan = true;
        let due = self.now + self.random.below(ORPHAN_DELAY_MAX);
        self.pending.insert((due, id), pending);
    }

    fn land_torn(&mut self, pending: &Pending, tear: Tear) {
        let Request::Write { inode, first, blocks, .. } = &pending.request else { return };
        let serial = self.next_serial();
        let file = self.directories[pending.shard].file_mut(*inode);
        file.write_torn(*first, blocks, serial, tear, &mut self.random);
    }
}

/// The end of an operation.
pub(super) struct Completion {
    machine: Machine,
    id: u64,
}

impl Future for Completion {
    type Output = io::Result<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.machine.state();
        let Some(waiting) = state.waiting.get_mut(&self.id) else {
            // The process that waited is gone; only a future leaked over its end gets here.
            return Poll::Pending;
        };
        if let Some(answer) = waiting.answer.take() {
            return Poll::Ready(answer);
        }
        waiting.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Ok(mut state) = self.machine.state.try_borrow_mut() {
            state.waiting.remove(&self.id);
        }
    }
}
