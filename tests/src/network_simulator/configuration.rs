//! What a seed chooses: the broker's settings, how devices and network behave, and who its clients are.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use peregrine_broker::control::settings::{CheckpointTimes, Flush, GroupTimes, Identity, Idle, Settings, WithoutTmpfs};
use peregrine_broker::log::disk::simulated::{Conditions, Machine, Random};
use peregrine_broker::log::fault::{Faults, Planted};
use peregrine_broker::log::{LogOptions, ScrubOptions, Smallest};
use peregrine_broker::retaining::RetentionBounds;
use peregrine_broker::shard::seams::PlantedInShards;
use peregrine_broker::simulated::{NetworkConditions, ProcessOptions};
use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::ids::Nanos;

use super::producer::Manner;

/// The id of the data directory.
pub const DIRECTORY: u128 = 7;

/// A defect that is planted to prove that the oracle would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Log(Planted),
    Shards(PlantedInShards),
}

impl Fault {
    /// Those that clients can tell.
    pub fn all() -> impl Iterator<Item = Self> {
        let log = [Planted::AcknowledgeBeforeWrite, Planted::ForgetIndexRow, Planted::GiveUpTooYoung]
            .into_iter()
            .map(Self::Log);
        log.chain(PlantedInShards::ALL.into_iter().map(Self::Shards))
    }

    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Log(planted) => planted.word(),
            Self::Shards(planted) => planted.word(),
        }
    }
}

pub struct Configuration {
    pub settings: Settings,
    pub executors: usize,
    planted: Option<Fault>,
    /// While lives last; the last start of a seed is undisturbed.
    pub conditions: Conditions,
    pub network: NetworkConditions,
    /// Starts of the broker before the last one.
    pub lives: u64,
    /// How long a life lasts where no crash ends it, nanoseconds.
    pub life: u64,
    /// Topics to begin with; they may have ages of their own.
    pub topics: u64,
    pub topic_ages: bool,
    /// Producers of each topic, and how they send.
    pub producers: u64,
    pub manner: Manner,
    pub inquirers: u64,
    /// Between two questions, and between two orders of the administrator, nanoseconds at most.
    pub pause: u64,
    /// A stranger comes once in so many nanoseconds.
    pub stranger_every: Option<u64>,
}

impl Configuration {
    pub fn random(random: &mut Random, planted: Option<Fault>) -> Self {
        let shards = *random.pick(&[1, 2, 2, 3]);
        let failing = random.one_in(4);
        let settings = settings(shards, random);
        let batch_max = u64::from(settings.batch_max) & !7;
        let batch_bytes = random.pick(&[2_000, 16_000, batch_max]).min(&batch_max).to_owned();
        Self {
            settings,
            executors: random.between(1, u64::from(shards)) as usize,
            planted,
            conditions: Conditions {
                delay_min: *random.pick(&[1_000, 20_000]),
                delay_max: *random.pick(&[50_000, 500_000, 3_000_000]),
                slow_one_in: *random.pick(&[0, 20, 100]),
                fail_write_one_in: if failing { *random.pick(&[0, 200]) } else { 0 },
                fail_sync_one_in: if failing { *random.pick(&[0, 100]) } else { 0 },
                disk_full_one_in: if failing { *random.pick(&[0, 5, 20]) } else { 0 },
                short_read_one_in: if random.one_in(4) { *random.pick(&[8, 40]) } else { 0 },
                ..Conditions::default()
            },
            network: NetworkConditions {
                delay_min: 2_000,
                delay_max: *random.pick(&[10_000, 200_000, 2_000_000]),
                cut_one_in: *random.pick(&[0, 0, 100, 1_000]),
                piece_max: *random.pick(&[150, 1_500, 16_384]),
                window: *random.pick(&[4 << 10, 64 << 10]),
            },
            lives: random.between(1, 4),
            life: random.between(5, 60) * 1_000_000,
            topics: random.between(1, 2),
            topic_ages: random.one_in(3),
            producers: random.between(1, 2),
            manner: Manner {
                usual_bytes: *random.pick(&[30, 200, 3_000]),
                batch_bytes,
                burst: *random.pick(&[1, 8, 30]),
                pause: *random.pick(&[50_000, 400_000, 4_000_000]),
                messages: *random.pick(&[10, 30, 80]),
            },
            inquirers: random.below(3),
            pause: *random.pick(&[500_000, 2_000_000, 10_000_000]),
            stranger_every: random.coin().then(|| *random.pick(&[1_000_000, 20_000_000])),
        }
    }

    /// Whether messages are given up.
    pub fn gives_up(&self) -> bool {
        self.settings.retention != RetentionBounds::default()
    }

    pub fn process_options(&self) -> ProcessOptions {
        let faults = Faults::default();
        let mut planted = None;
        match self.planted {
            Some(Fault::Log(fault)) => faults.plant(Some(fault)),
            Some(Fault::Shards(fault)) => planted = Some(fault),
            None => {}
        }
        let smallest = Smallest { ring: 64 << 10, segment: 64 << 10 };
        ProcessOptions { executors: self.executors, faults, planted, smallest }
    }

    pub fn identity(&self, machine: &Machine) -> Identity {
        Identity {
            id: DirectoryId(DIRECTORY),
            secret: DirectorySecret([9; 16]),
            shards: self.settings.shards,
            device: 1,
            inode: 2,
            boot: u128::from_le_bytes(machine.boot_id()),
            run: machine.draw_run_id(),
        }
    }
}

fn settings(shards: u16, random: &mut Random) -> Settings {
    let ring_bytes = *random.pick(&[64 << 10, 128 << 10, 512 << 10]);
    let segment_bytes = *random.pick(&[64 << 10, 128 << 10, 256 << 10, 512 << 10]);
    let largest_entry = LogOptions::entry_bound(ring_bytes, segment_bytes);
    let times = |millis| Nanos::from_millis(millis);
    Settings {
        data: "data".into(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        shards,
        idle: Idle::Park,
        adaptive_spin: Duration::ZERO,
        ring_directory: Some("rings".into()),
        without_tmpfs: WithoutTmpfs::Refuse,
        ring_bytes,
        segment_bytes,
        block_cache: *random.pick(&[0, 64 << 10, 1 << 20]),
        keep_free: 0,
        message_max: (largest_entry - 4096) as u32,
        frame_max: 256 << 10,
        batch_max: (largest_entry - 4096) as u32,
        largest_entry,
        flush: Flush {
            depth: random.between(1, 3) as usize,
            age: Nanos::from_micros(50),
            max_bytes: *random.pick(&[4 << 10, 64 << 10]),
            memory_wait: times(1),
            memory_bytes: 32 << 10,
        },
        retention: match random.below(4) {
            0 => RetentionBounds { age: None, bytes: Some(*random.pick(&[600 << 10, 1 << 20])) },
            1 => RetentionBounds { age: Some(times(random.between(10, 300))), bytes: None },
            _ => RetentionBounds::default(),
        },
        scrub: ScrubOptions {
            rate: if random.coin() { Some(256 << 20) } else { None },
            every: times(*random.pick(&[10, 1_000])),
        },
        checkpoint: CheckpointTimes {
            bytes: *random.pick(&[16 << 10, 128 << 10]),
            age: times(*random.pick(&[3, 50, 1_000])),
        },
        groups: GroupTimes { silence: times(10_000), grace: times(10_000), drain: times(5_000) },
        accept_loss: false,
        discard_rings: Vec::new(),
        test_faults: Vec::new(),
    }
}
