//! What a broker runs with: the outcome of the configuration, checked, in the units of the code. The shards take it as it is
//! and read nothing else, neither the environment nor a file.

use crate::log::ScrubOptions;
use crate::retaining::RetentionBounds;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::ids::{Epoch, Nanos, ShardId};

/// What an executor does when it has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Never sleeps: the shortest tail, a whole core.
    Spin,
    /// Spins for [`Settings::adaptive_spin`], then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Park,
}

impl Idle {
    /// As in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        }
    }

    /// How long an executor spins before it sleeps. `adaptive` is the configured time.
    pub fn spin(self, adaptive: Duration) -> Duration {
        match self {
            // Long enough to mean always, short enough that no clock arithmetic overflows.
            Self::Spin => Duration::from_secs(365 * 24 * 3600),
            Self::Adaptive => adaptive,
            Self::Park => Duration::ZERO,
        }
    }
}

/// What becomes of a batch that asks for `memory` while the staging rings are no file on a tmpfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutTmpfs {
    /// It is answered `LevelUnavailable`.
    #[default]
    Refuse,
    /// It is stored at `synced`.
    Raise,
}

/// When the flushers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Writes in flight at most.
    pub depth: usize,
    /// A second write opens early when the oldest waiting byte is this old.
    pub age: Nanos,
    /// Bytes of one write at most; a multiple of 4096.
    pub max_bytes: u64,
    /// How long traffic that asks only for `memory` may wait for its flush, and
    pub memory_wait: Nanos,
    /// how many bytes of it.
    pub memory_bytes: u64,
}

/// When checkpoints are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointTimes {
    /// After so many bytes of log, or
    pub bytes: u64,
    /// after so long, if anything came at all.
    pub age: Nanos,
}

/// How consumer groups treat their members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTimes {
    /// A member that is not heard of for so long is treated as if its connection were lost.
    pub silence: Nanos,
    /// How long a lost member keeps its queues; 0: not at all.
    pub grace: Nanos,
    /// How long a member may acknowledge what it was handed of a queue that moves to another; 0: not at all.
    pub drain: Nanos,
}

impl GroupTimes {
    /// How often members are to say that they are there: two may be lost, and the third is in time.
    pub fn heartbeat(self) -> Nanos {
        Nanos(self.silence.0 / 3)
    }
}

/// A way to hold, fail or stop a shard's log or the news between shards, for tests. Each shard's log has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestFault {
    /// No flush is issued: what is acknowledged at `memory` stands in the ring alone.
    HoldFlushes,
    /// The same while the switch is on. For tests in this process.
    HoldFlushesWhile(Switch),
    /// The n-th write of the run (from 1) is not issued and counts as in flight.
    HoldWrite(u64),
    /// The n-th write of the run (from 1) fails.
    FailWrite(u64),
    /// The shard panics where the n-th write of the run (from 1) is about to be issued.
    PanicAtWrite(u64),
    /// The process kills itself (as by kill -9) behind the n-th step of recovery.
    KillAfterStep(u8),
    /// Executors do not hear what shard 0 tells of the catalogue.
    MissNews,
    /// Frames that came over the mesh are not handled while the switch is on. For tests in this process, like those below.
    HoldForwardedWhile(Switch),
    /// Batches that find no room wait for it without end while the switch is on.
    PatientWhile(Switch),
    /// So many acknowledgements of a shard may wait for their level.
    AcknowledgementPlaces(usize),
}

/// A switch in the hands of a test.
#[derive(Clone, Copy, Debug)]
pub struct Switch(pub &'static AtomicBool);

impl PartialEq for Switch {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Switch {}

/// All that the configuration decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory; each shard has a directory of its own in it.
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// How many shards, 1 to 1,024; at most one executor per core serves them.
    pub shards: u16,
    pub idle: Idle,
    pub adaptive_spin: Duration,
    /// Where ring files lie: a directory on a tmpfs. `None`: the rings are anonymous memory, and `without_tmpfs` holds.
    pub ring_directory: Option<PathBuf>,
    pub without_tmpfs: WithoutTmpfs,
    /// Bytes of each shard's staging ring, a power of two.
    pub ring_bytes: u64,
    /// The size that segments grow to, a multiple of 4096.
    pub segment_bytes: u64,
    /// Bytes that messages leave free on the file system of the data directory.
    pub keep_free: u64,
    /// Bytes that each shard keeps of what it read from the disk.
    pub block_cache: usize,
    /// Largest record, its length field; told in the hello answer.
    pub message_max: u32,
    /// Largest frame, head included; told in the hello answer.
    pub frame_max: u32,
    /// Largest payload of a batch: what `frame_max` and [`Self::largest_entry`] both take.
    pub batch_max: u32,
    /// Largest entry, header and filling included: at most a quarter of the ring, and a segment less its identity block.
    pub largest_entry: u64,
    pub flush: Flush,
    pub checkpoint: CheckpointTimes,
    pub retention: RetentionBounds,
    pub scrub: ScrubOptions,
    pub groups: GroupTimes,
    /// `--accept-loss`: go on behind damage, naming what was given up in the log.
    pub accept_loss: bool,
    /// `--discard-ring SHARD:EPOCH`: give up the rings of these runs, and no others.
    pub discard_rings: Vec<(ShardId, Epoch)>,
    pub test_faults: Vec<TestFault>,
}

impl Settings {
    /// The epoch whose ring `shard` may give up.
    pub fn discard_ring(&self, shard: ShardId) -> Option<Epoch> {
        self.discard_rings.iter().find(|(of, _)| *of == shard).map(|(_, epoch)| *epoch)
    }
}

/// The data directory that this process holds locked, and the boot that it runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: DirectoryId,
    pub secret: DirectorySecret,
    /// Of the directory, never to change.
    pub shards: u16,
    /// Device and inode of the data directory: a copy of it has the same id, and so would have the same ring files.
    pub device: u64,
    pub inode: u64,
    /// `/proc/sys/kernel/random/boot_id`: another one means that every tmpfs is gone.
    pub boot: u128,
    /// Drawn at random by this process.
    pub run: u64,
}

/// What the ready line says beside the address: the shards call with it once all of them serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Messages that were found only in staging rings, over all shards.
    pub messages_from_ring: u64,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
