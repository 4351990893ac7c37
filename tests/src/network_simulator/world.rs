//! What clients share: the machine's clock, the network, chance, the oracle, and what they know of the broker's process.

use peregrine_broker::log::disk::simulated::{Machine, Random};
use peregrine_broker::shard::executor::Layout;
use peregrine_broker::simulated::Network;
use peregrine_protocol::ids::ShardId;

use super::catalogue::Catalogue;
use super::ledger::Ledger;
use super::statistics::Statistics;

/// The wall clock is so far ahead of the machine's.
const WALL_AHEAD: u64 = 1_700_000_000_000_000_000;

pub struct World {
    pub machine: Machine,
    pub network: Network,
    pub random: Random,
    pub ledger: Ledger,
    pub catalogue: Catalogue,
    pub statistics: Statistics,
    pub shards: u16,
    pub executors: usize,
    /// Lives of the broker that have begun.
    pub life: u64,
    /// Since when all shards serve; `None` while it starts, stops or is not there.
    pub serving_since: Option<u64>,
    /// Within which a broker that serves answers.
    pub patience: u64,
    /// The last life: nothing disturbs, and no new work comes.
    pub is_calm: bool,
}

impl World {
    pub fn now(&self) -> u64 {
        self.machine.now()
    }

    pub fn wall(&self) -> u64 {
        self.machine.now() + WALL_AHEAD
    }

    pub fn pick_shard(&mut self) -> u16 {
        self.random.below(u64::from(self.shards)) as u16
    }

    /// Whether two shards are served by different executors.
    fn are_apart(&self, one: ShardId, other: ShardId) -> bool {
        let layout = Layout { shards: self.shards, executors: self.executors };
        layout.executor_of(one) != layout.executor_of(other)
    }

    /// A request for a queue of `shard` goes out on a connection that `at` serves.
    pub fn count_request(&mut self, at: ShardId, shard: ShardId) {
        self.statistics.forwarded += u64::from(self.are_apart(at, shard));
    }

    /// A connection is served by `at`; all are accepted by the executor of the first shard.
    pub fn count_connection(&mut self, at: ShardId) {
        self.statistics.handed_over += u64::from(self.are_apart(ShardId(0), at));
    }
}
