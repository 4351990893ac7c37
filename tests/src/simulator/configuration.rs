//! What a seed decides before it begins: how many shards, how small, how the devices behave, how long it lives.

use peregrine_broker::engine::MemoryLevel;
use peregrine_broker::log::disk::simulated::{Conditions, Machine, Random};
use peregrine_broker::log::fault::{Faults, Planted};
use peregrine_broker::log::{
    BootId, CheckpointOptions, Directory, FlushOptions, LogOptions, RunId, ScrubOptions, Smallest,
};
use peregrine_broker::retaining::RetentionBounds;
use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::ids::{Nanos, ShardId};

/// Where a run may have its rings: two directories on the tmpfs, or none.
pub const RING_DIRECTORIES: [&str; 2] = ["/ring-a", "/ring-b"];

/// One seed's broker, as far as restarts leave it alone.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub shards: u16,
    ring_bytes: u64,
    segment_bytes: u64,
    flush: FlushOptions,
    checkpoint: CheckpointOptions,
    scrub: ScrubOptions,
    pub retention: RetentionBounds,
    /// Whether topics have retentions of their own.
    pub topic_ages: bool,
    /// Bytes of the engine that are saved between two actions.
    pub checkpoint_slice: usize,
    /// While lives last; the last start of a seed is undisturbed.
    pub conditions: Conditions,
    /// Starts of the broker before the last one.
    pub lives: u64,
    /// What clients do in one life, at most.
    pub actions: u64,
    /// Bytes of a usual batch, at most.
    pub batch_bytes: u64,
    /// One start in so many has its rings elsewhere than the one before.
    pub move_rings_one_in: u64,
    /// One pause between two lives in so many has an incident; 0 = none.
    pub incidents_one_in: u64,
    planted: Option<Planted>,
}

impl Configuration {
    pub fn random(random: &mut Random, planted: Option<Planted>) -> Self {
        let ring_bytes = *random.pick(&[64 << 10, 64 << 10, 128 << 10, 256 << 10]);
        let segment_bytes = *random.pick(&[64 << 10, 128 << 10, 256 << 10, 512 << 10]);
        let failing = random.one_in(3);
        let conditions = Conditions {
            delay_min: *random.pick(&[1_000, 20_000]),
            delay_max: *random.pick(&[50_000, 500_000, 3_000_000]),
            slow_one_in: *random.pick(&[0, 20, 100]),
            fail_write_one_in: if failing { *random.pick(&[0, 40, 200]) } else { 0 },
            fail_sync_one_in: if failing { *random.pick(&[0, 20, 100]) } else { 0 },
            disk_full_one_in: if failing { *random.pick(&[0, 5, 20]) } else { 0 },
            fail_read_one_in: if failing { *random.pick(&[0, 10, 100]) } else { 0 },
            short_read_one_in: if random.one_in(4) { *random.pick(&[8, 40]) } else { 0 },
            fail_name_one_in: if failing { *random.pick(&[0, 30, 200]) } else { 0 },
            fail_ring_one_in: if failing { *random.pick(&[0, 10]) } else { 0 },
            ..Conditions::default()
        };
        Self {
            shards: *random.pick(&[1, 1, 1, 1, 2, 2, 3]),
            ring_bytes,
            segment_bytes,
            flush: FlushOptions {
                depth: random.between(1, 4) as usize,
                age: Nanos::from_micros(50),
                memory_wait: Nanos::from_micros(random.between(50, 2_000)),
                memory_bytes: *random.pick(&[4 << 10, 32 << 10, 256 << 10]),
                flush_bytes: *random.pick(&[4 << 10, 16 << 10, 256 << 10]),
            },
            checkpoint: CheckpointOptions {
                bytes: *random.pick(&[8 << 10, 64 << 10, 1 << 20]),
                age: Nanos::from_micros(*random.pick(&[100, 3_000, 1_000_000])),
            },
            retention: match random.below(4) {
                0 => RetentionBounds { age: None, bytes: Some(*random.pick(&[300 << 10, 1 << 20])) },
                1 => RetentionBounds { age: Some(Nanos::from_millis(random.between(1, 3_000))), bytes: None },
                _ => RetentionBounds::default(),
            },
            topic_ages: random.one_in(3),
            scrub: ScrubOptions {
                rate: if random.one_in(3) { Some(*random.pick(&[4 << 20, 256 << 20])) } else { None },
                every: Nanos::from_millis(*random.pick(&[10, 1_000])),
            },
            checkpoint_slice: *random.pick(&[128, 1 << 10, 32 << 10]),
            conditions,
            lives: random.between(2, 8),
            actions: *random.pick(&[10, 60, 150, 250]),
            batch_bytes: *random.pick(&[100, 1_000, 6_000]),
            move_rings_one_in: *random.pick(&[0, 1, 2, 4]),
            incidents_one_in: *random.pick(&[0, 0, 2, 3]),
            planted,
        }
    }

    /// Whether messages are given up.
    pub fn gives_up(&self) -> bool {
        self.retention != RetentionBounds::default()
    }

    /// Another place for the rings; `None` is anonymous memory.
    pub fn ring_directory(random: &mut Random) -> Option<&'static str> {
        if random.one_in(6) { None } else { Some(*random.pick(&RING_DIRECTORIES)) }
    }

    pub fn memory_level(ring_directory: Option<&str>) -> MemoryLevel {
        if ring_directory.is_some() { MemoryLevel::Kept } else { MemoryLevel::Raised }
    }

    /// A shard's ring file in that directory.
    pub fn ring_file(directory: &str, shard: u16) -> String {
        format!("{directory}/7-{shard}")
    }

    /// The largest payload that fits an entry.
    pub fn payload_max(&self) -> u64 {
        LogOptions::entry_bound(self.ring_bytes, self.segment_bytes) - 64 - 96
    }

    /// The options of one start. `grown` says which sizes are twice the least for this life: ring, segments.
    pub fn log_options(
        &self,
        shard: u16,
        machine: &Machine,
        ring_directory: Option<&str>,
        grown: (bool, bool),
    ) -> LogOptions {
        let directory = Directory { id: DirectoryId(7), secret: DirectorySecret([9; 16]), device: 1, inode: 2 };
        let boot = BootId(u128::from_le_bytes(machine.boot_id()));
        let ring = ring_directory.map(|directory| Self::ring_file(directory, shard));
        let faults = Faults::default();
        faults.plant(self.planted);
        LogOptions {
            ring_bytes: self.ring_bytes << u32::from(grown.0),
            segment_bytes: self.segment_bytes << u32::from(grown.1),
            largest_entry: LogOptions::entry_bound(self.ring_bytes, self.segment_bytes),
            flush: self.flush,
            checkpoint: self.checkpoint,
            scrub: self.scrub,
            smallest: Smallest { ring: 64 << 10, segment: 64 << 10 },
            faults,
            ..LogOptions::new(ShardId(shard), directory, boot, RunId(machine.draw_run_id()), ring)
        }
    }
}
