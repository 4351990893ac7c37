//! One number for all durable state, so that two engines that applied the same entries can be compared.
//!
//! What is not durable does not count: readers, visibility, changes that have not taken effect. Objects are hashed one by one
//! and the hashes added up, so that the order in which a hash table walks them does not matter.

use xxhash_rust::xxh64::Xxh64;

use super::Engine;
use super::queue::Queue;

impl Engine {
    /// Equal for equal durable state; differs otherwise, but for a chance of 2^-64. Looks at everything: for tests.
    pub fn digest(&self) -> u64 {
        self.digest_with(true)
    }

    /// The same, but for where each batch stands: how much of that is held depends on which segments are indexed.
    pub fn digest_beside_index(&self) -> u64 {
        self.digest_with(false)
    }

    fn digest_with(&self, index: bool) -> u64 {
        let queues = self.queues.iter().filter(|queue| !queue.is_blank());
        let queues = queues.map(|queue| self.queue_digest(queue, index));
        let topics = self.catalogue.after(None).map(|topic| {
            let name = Hash::new().number(topic.id.0).number(u64::from(topic.queues)).number(topic.created.0);
            let retention = topic.retention.wanted.age.map_or(0, |age| age.0);
            let name = name.number(retention).number(u64::from(topic.retention.revision));
            name.bytes(topic.name.as_bytes()).finish()
        });
        let groups = self.catalogue.groups_after(None).map(|group| {
            let mut hash = Hash::new().number(group.id.0).number(group.created.0).bytes(group.name.as_bytes());
            for &(topic, start) in &group.topics {
                let (kind, value) = start.numbers();
                hash = hash.number(topic.0).number(u64::from(kind)).number(value);
            }
            hash.finish()
        });
        let deleted =
            self.catalogue.deleted().iter().map(|(first, last)| Hash::new().number(first.0).number(last.0).finish());
        Hash::new()
            .number(self.store_time.0)
            .number(sum(queues))
            .number(sum(topics))
            .number(sum(groups))
            .number(sum(deleted))
            .finish()
    }

    fn queue_digest(&self, queue: &Queue, index: bool) -> u64 {
        let mut hash = Hash::new().number(queue.key.topic.0).number(u64::from(queue.key.queue.0));
        hash = hash.number(queue.start.0).number(queue.end.0);
        for (epoch, first) in queue.epochs.iter() {
            hash = hash.number(epoch.0).number(first.0);
        }
        hash = hash.number(queue.index.last_position().0).number(queue.index.last_time().0);
        for entry in queue.index.iter().filter(|_| index) {
            hash = hash.number(entry.offset.0).number(u64::from(entry.records)).number(entry.position.0);
            hash = hash.number(u64::from(entry.length)).number(entry.store_time.0);
        }
        for place in queue.groups.iter() {
            hash = hash.number(place.group.0).number(place.epoch.0).number(place.offset.0).number(place.entry_end.0);
        }
        let producers = queue.producers.iter().filter(|(_, state)| !state.is_forgotten(self.store_time));
        let producers = producers.map(|(id, state)| {
            let (epoch, next, last_used, recent) = state.parts();
            let mut hash = Hash::new().number(id.0).number(u64::from(epoch.0)).number(next.0).number(last_used.0);
            for batch in recent {
                hash = hash.number(batch.offset.0).number(batch.position.0).number(u64::from(batch.payload_crc));
                hash = hash.number(u64::from(batch.length)).number(u64::from(batch.records));
            }
            hash.finish()
        });
        hash.number(sum(producers)).finish()
    }
}

fn sum(hashes: impl Iterator<Item = u64>) -> u64 {
    hashes.fold(0, u64::wrapping_add)
}

/// XXH64 of a row of numbers.
struct Hash(Xxh64);

impl Hash {
    fn new() -> Self {
        Self(Xxh64::new(0))
    }

    fn number(mut self, number: u64) -> Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }

    fn finish(self) -> u64 {
        self.0.digest()
    }
}
