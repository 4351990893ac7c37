//! The state behind a [`Machine`]: what is in flight, what is on the devices, and what a crash leaves of both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::hash::{DefaultHasher, Hash};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::directory::Directory;
use super::failures::Failures;
use super::file::{Block, FileContents, Tear};
use super::machine::{Conditions, Crash, Machine};
use super::operation::{Answer, Pending, Request};
use super::phase::{ArmedIn, Phase};
use super::random::Random;
use super::ring::RingFile;
use super::watch::{Breach, RingsInUse};
use crate::log::disk::BLOCK;
use crate::log::files::FileKind;

/// How long after its process's end a write may still land, nanoseconds.
const ORPHAN_DELAY_MAX: u64 = 30_000_000;

/// Who waits for an operation, and what came of it.
#[derive(Default)]
pub(super) struct Waiting {
    pub waker: Option<Waker>,
    pub answer: Option<io::Result<Answer>>,
}

/// The machine and its world.
pub(super) struct World {
    pub random: Random,
    pub conditions: Conditions,
    pub directories: Vec<Directory>,
    pub rings: BTreeMap<String, RingFile>,
    /// The one block of zeros.
    pub zero: Rc<Block>,
    /// Nanoseconds; goes on through crashes.
    pub now: u64,
    /// Losses of power, from 1.
    pub boot: u64,
    /// Run ids drawn so far.
    pub runs: u64,
    pub next_id: u64,
    /// Of the last completion.
    pub serial: u64,
    pub next_inode: u64,
    /// Instants so far at which a crash could have struck.
    pub steps: u64,
    /// Steps left, and what strikes then.
    pub armed: Option<(u64, Crash)>,
    /// The same, once the work has come to some part.
    pub armed_in: Option<ArmedIn<Crash>>,
    /// By part of the work, crashes that struck in the middle of it.
    pub interrupted: [u64; Phase::ALL.len()],
    /// In flight, by the instant at which each is due.
    pub pending: BTreeMap<(u64, u64), Pending>,
    pub waiting: BTreeMap<u64, Waiting>,
    /// Crashes so far: tells what a process made from what it found.
    pub processes: u64,
    pub breaches: Vec<Breach>,
    pub rings_in_use: RingsInUse,
    pub trace: DefaultHasher,
    pub verbose: bool,
    pub failures: Failures,
    /// Shards of which a flush has failed in this process.
    pub flush_failed: BTreeSet<usize>,
}

impl World {
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

    /// An operation is submitted: one that a crash waits for may be the one.
    pub fn near_crash(&mut self, shard: usize, request: &Request) {
        let Some(armed) = &mut self.armed_in else { return };
        if Phase::of(request, &self.directories[shard]) != Some(armed.phase) {
            return;
        }
        if armed.operations > 0 {
            armed.operations -= 1;
            return;
        }
        self.armed = Some((armed.steps, armed.crash));
        self.armed_in = None;
    }

    /// A crash strikes: in the middle of what?
    pub fn count_interrupted(&mut self) {
        let in_flight = self.pending.values().filter(|pending| !pending.orphan);
        let phases = in_flight.filter_map(|pending| Phase::of(&pending.request, &self.directories[pending.shard]));
        for phase in phases.collect::<BTreeSet<_>>() {
            self.interrupted[phase as usize] += 1;
        }
    }

    pub fn delay(&mut self, request: &Request) -> u64 {
        if let Request::Pause { nanoseconds } = request {
            return *nanoseconds;
        }
        let conditions = self.conditions;
        if self.random.one_in(conditions.slow_one_in) {
            return self.random.between(conditions.delay_max, conditions.slow_delay);
        }
        self.random.between(conditions.delay_min, conditions.delay_max)
    }

    pub fn complete(&mut self, due: u64, id: u64) -> Option<Waker> {
        let pending = self.pending.remove(&(due, id))?;
        self.note(&("completes", pending.shard, id, pending.request.name(), pending.failure, pending.orphan));
        if pending.orphan {
            let tear = Tear::random(&mut self.random);
            self.land_torn(&pending, tear);
            return None;
        }
        let answer = match pending.failure {
            None => self.carry_out(pending.shard, pending.request),
            Some(failure) => self.fail(id, pending, failure),
        };
        let waiting = self.waiting.get_mut(&id)?;
        waiting.answer = Some(answer);
        waiting.waker.take()
    }

    pub(super) fn carry_out(&mut self, shard: usize, request: Request) -> io::Result<Answer> {
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
                self.directories[shard].file(inode).read(offset, len).map(Answer::Bytes)
            }
            Request::Extend { inode, size } => {
                let held = self.directories[shard].file(inode).size();
                let count = size.saturating_sub(held) as usize / BLOCK;
                let initial = self.stale_blocks(shard, count);
                self.directories[shard].file_mut(inode).extend(initial);
                Ok(Answer::Done)
            }
            Request::Write { inode, first, blocks, durable } => {
                let rewritten = self.directories[shard].file_mut(inode).write(first, &blocks, serial, durable);
                let file = self.directories[shard].name_of(inode).to_owned();
                // A mark's two blocks are written in turn.
                if let Some(block) = rewritten
                    && FileKind::of(&file) != FileKind::Mark
                {
                    self.breach(Breach::Rewritten { shard, file, block });
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
    pub fn orphan(&mut self, due: u64, id: u64, pending: Pending, crash: Crash) {
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

    pub(super) fn land_later(&mut self, id: u64, mut pending: Pending) {
        pending.orphan = true;
        let due = self.now + self.random.below(ORPHAN_DELAY_MAX);
        self.pending.insert((due, id), pending);
    }

    pub(super) fn land_torn(&mut self, pending: &Pending, tear: Tear) {
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

impl Completion {
    pub fn new(machine: Machine, id: u64) -> Self {
        Self { machine, id }
    }
}

impl Future for Completion {
    type Output = io::Result<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut world = self.machine.world();
        let Some(waiting) = world.waiting.get_mut(&self.id) else {
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
        if let Ok(mut world) = self.machine.try_world() {
            world.waiting.remove(&self.id);
        }
    }
}
