//! Which shard owns a queue, and which queue a key goes to. Part of the format: every process computes it, nothing is
//! looked up, and the golden values below may never change.

use xxhash_rust::xxh64::xxh64;

use crate::ids::{QueueId, ShardId};

const SEED: u64 = 0;

/// XXH64 of a topic's name, the part of placement that can be computed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopicHash(pub u64);

impl TopicHash {
    pub fn of(topic: &str) -> Self {
        Self(xxh64(topic.as_bytes(), SEED))
    }

    /// The shard that owns `queue`: `(XXH64(topic) + queue) mod shards`, the sum modulo 2^64. `shards` > 0.
    pub fn shard_of(self, queue: QueueId, shards: u16) -> ShardId {
        ShardId((self.0.wrapping_add(u64::from(queue.0)) % u64::from(shards)) as u16)
    }
}

/// The shard that owns `queue` of `topic`. `shards` > 0.
pub fn shard_of_queue(topic: &str, queue: QueueId, shards: u16) -> ShardId {
    TopicHash::of(topic).shard_of(queue, shards)
}

/// The queue that messages with `key` go to: `XXH64(key) mod queues`. `queues` > 0.
pub fn queue_of_key(key: &[u8], queues: u32) -> QueueId {
    QueueId((xxh64(key, SEED) % u64::from(queues)) as u32)
}

/// The home shard of a consumer group, which sees its members: `XXH64(group) mod shards`. `shards` > 0.
pub fn group_home(group: &str, shards: u16) -> ShardId {
    ShardId((xxh64(group.as_bytes(), SEED) % u64::from(shards)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_hashes() {
        // Checked against a second implementation, written from the algorithm's description.
        assert_eq!(TopicHash::of("").0, 0xEF46_DB37_51D8_E999);
        assert_eq!(TopicHash::of("a").0, 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(TopicHash::of("orders").0, 0x0F4F_95CF_B44C_A775);
        assert_eq!(TopicHash::of("%RETRY%a-topic-whose-name-is-longer-than-32-bytes").0, 0x636D_00F6_2B2D_9D4B);
    }

    #[test]
    fn golden_placement() {
        let shards = |n: u16| (0..6).map(|q| shard_of_queue("orders", QueueId(q), n).0).collect::<Vec<_>>();
        assert_eq!(shards(1), [0; 6]);
        assert_eq!(shards(2), [1, 0, 1, 0, 1, 0]);
        assert_eq!(shards(4), [1, 2, 3, 0, 1, 2]);
        assert_eq!(shards(1024), [885, 886, 887, 888, 889, 890]);
        let keys = ["", "a", "user-1", "user-2", "Zürich"];
        assert_eq!(keys.map(|key| queue_of_key(key.as_bytes(), 8).0), [1, 3, 0, 1, 1]);
        assert_eq!(keys.map(|key| queue_of_key(key.as_bytes(), 1000).0), [921, 955, 856, 289, 233]);
    }

    #[test]
    fn golden_homes() {
        assert_eq!(group_home("billing", 4), ShardId(1));
        let homes = |shards: u16| ["billing", "orders", "a"].map(|group| group_home(group, shards).0);
        assert_eq!(homes(1), [0; 3]);
        assert_eq!(homes(2), [1, 1, 1]);
        assert_eq!(homes(4), [1, 1, 3]);
        let long = "%RETRY%a-topic-whose-name-is-longer-than-32-bytes";
        assert_eq!(["orders", "a", long].map(|group| group_home(group, 1024).0), [885, 603, 331]);
    }

    #[test]
    fn neighbouring_queues_lie_on_neighbouring_shards_even_where_the_sum_wraps() {
        let hash = TopicHash(u64::MAX);
        assert_eq!(hash.shard_of(QueueId(0), 4), ShardId(3));
        assert_eq!(hash.shard_of(QueueId(1), 4), ShardId(0));
    }
}
