//! How operations fail: which of them, with what error, and what they leave behind. An error says little of what was done: a failed
//! write may have landed in part or land later, a failed sync may have covered something, and a failed rename may have happened.

use std::io;

use super::file::Tear;
use super::operation::{Answer, Pending, Request};
use super::random::Random;
use super::world::World;
use crate::log::files::FileKind;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// EIO.
    Io,
    /// ENOSPC.
    Full,
    /// A write of which only the first blocks arrive.
    ShortWrite,
    /// A read that brings only the first blocks, and says so: no error.
    ShortRead,
}

/// Kinds of operations that fail.
const KINDS: usize = 11;
const RINGS: usize = KINDS - 1;

/// Operations that have failed, or brought less than they were asked for, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Lists, opens, makes, renames, removes, syncs of directories, reads, extensions, writes, syncs, operations on ring files.
    pub failed: [u64; KINDS],
    /// For want of room.
    pub full: u64,
    pub short_reads: u64,
    pub short_writes: u64,
    /// Of those that failed, the ones that happened all the same.
    pub happened: u64,
}

impl Failures {
    /// Operations that ended with an error.
    pub fn errors(&self) -> u64 {
        self.failed.iter().sum()
    }
}

impl World {
    pub fn choose_failure(&mut self, request: &Request) -> Option<Failure> {
        let conditions = self.conditions;
        let random = &mut self.random;
        match request {
            Request::Pause { .. } => None,
            Request::Read { .. } if random.one_in(conditions.short_read_one_in) => Some(Failure::ShortRead),
            Request::Read { .. } => random.one_in(conditions.fail_read_one_in).then_some(Failure::Io),
            Request::Write { .. } => random
                .one_in(conditions.fail_write_one_in)
                .then(|| *random.pick(&[Failure::Io, Failure::Io, Failure::ShortWrite, Failure::Full])),
            Request::Sync { .. } | Request::SyncDirectory { .. } => {
                random.one_in(conditions.fail_sync_one_in).then(|| io_or_full(random))
            }
            // A new name may need another block of the directory.
            Request::Make { .. } | Request::Extend { .. } | Request::Rename { .. }
                if random.one_in(conditions.disk_full_one_in) =>
            {
                Some(Failure::Full)
            }
            _ => random.one_in(conditions.fail_name_one_in).then(|| io_or_full(random)),
        }
    }

    /// Ends an operation as it was to fail.
    pub fn fail(&mut self, id: u64, pending: Pending, failure: Failure) -> io::Result<Answer> {
        let Pending { shard, .. } = pending;
        if failure == Failure::ShortRead {
            self.failures.short_reads += 1;
            let answer = self.carry_out(shard, pending.request)?;
            let Answer::Bytes(mut bytes) = answer else { return Ok(answer) };
            // The kernel cuts at sectors as well as at blocks.
            let sectors = bytes.len().div_ceil(512) as u64;
            bytes.truncate(self.random.below(sectors.max(1)) as usize * 512);
            return Ok(Answer::Bytes(bytes));
        }
        self.failures.failed[kind_of(&pending.request)] += 1;
        self.failures.full += u64::from(failure == Failure::Full);
        match &pending.request {
            Request::Write { inode, durable, .. } => {
                let is_flush =
                    *durable && matches!(FileKind::of(self.directories[shard].name_of(*inode)), FileKind::Segment(_));
                if is_flush && !pending.orphan {
                    self.flush_failed.insert(shard);
                }
                self.fail_write(id, pending, failure);
            }
            // What it was to make durable may be, or not.
            Request::Sync { .. } | Request::SyncDirectory { .. } | Request::Rename { .. } | Request::Remove { .. }
                if self.random.one_in(3) =>
            {
                self.failures.happened += 1;
                let _answer_is_lost = self.carry_out(shard, pending.request);
            }
            Request::Make { .. } | Request::Extend { .. } if failure == Failure::Io && self.random.coin() => {
                self.failures.happened += 1;
                let _answer_is_lost = self.carry_out(shard, pending.request);
            }
            _ => {}
        }
        Err(failure.error())
    }

    fn fail_write(&mut self, id: u64, mut pending: Pending, failure: Failure) {
        if failure == Failure::ShortWrite
            && let Request::Write { blocks, .. } = &mut pending.request
        {
            self.failures.short_writes += 1;
            blocks.truncate(self.random.below(blocks.len() as u64) as usize);
            return self.land_torn(&pending, Tear { by_sector: false, survival: 16 });
        }
        let tear = Tear::random(&mut self.random);
        self.land_torn(&pending, tear);
        if self.random.coin() {
            self.land_later(id, pending);
        }
    }

    /// Whether an operation on a ring file fails.
    pub fn ring_fails(&mut self) -> io::Result<()> {
        if !self.random.one_in(self.conditions.fail_ring_one_in) {
            return Ok(());
        }
        self.failures.failed[RINGS] += 1;
        Err(io_or_full(&mut self.random).error())
    }
}

impl Failure {
    fn error(self) -> io::Error {
        let kind = match self {
            Self::Io | Self::ShortRead => io::ErrorKind::Other,
            Self::Full => io::ErrorKind::StorageFull,
            Self::ShortWrite => io::ErrorKind::WriteZero,
        };
        io::Error::new(kind, "injected by the simulation")
    }
}

fn io_or_full(random: &mut Random) -> Failure {
    *random.pick(&[Failure::Io, Failure::Io, Failure::Full])
}

fn kind_of(request: &Request) -> usize {
    match request {
        Request::List => 0,
        Request::Open { .. } => 1,
        Request::Make { .. } => 2,
        Request::Rename { .. } => 3,
        Request::Remove { .. } => 4,
        Request::SyncDirectory { .. } => 5,
        Request::Read { .. } => 6,
        Request::Extend { .. } => 7,
        Request::Write { .. } => 8,
        Request::Sync { .. } => 9,
        Request::Pause { .. } => unreachable!("a pause has no way to fail"),
    }
}
