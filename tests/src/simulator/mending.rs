//! A device that failed now and then stops failing while the broker runs: whatever could wait was only put off. Marks, indexes,
//! checkpoints, segments made ahead and retirements are tried again, and a disk that was full takes messages again.

use peregrine_broker::log::disk::simulated::Conditions;
use peregrine_protocol::ids::{LogPosition, ProducerId};

use super::damage::base_and_epoch;
use super::producer::Producer;
use super::simulation::{Process, Simulation};
use super::violation::{Violation, promise};

/// Nanoseconds within which everything is tried again: the longest wait is an index's, 10 s, and a look-up may find that one bad.
const TRIED_AGAIN_WITHIN: u64 = 25_000_000_000;

impl Simulation {
    /// Now and then, in a life that nothing has poisoned.
    pub(super) fn devices_recover(&mut self, process: &mut Process) -> Result<(), Violation> {
        let poisoned = process.shards.iter().any(|shard| shard.log.is_poisoned());
        if !self.devices_fail() || poisoned || !self.random.one_in(4) {
            return Ok(());
        }
        let failing = self.configuration.conditions;
        self.machine.note(&"the devices recover");
        self.machine.set_conditions(Conditions { slow_one_in: failing.slow_one_in, ..Conditions::default() });
        // What was begun before may fail still, and poison a log.
        self.pass_time(process, self.machine.now() + 100_000_000)?;
        let before: Vec<u64> = process.shards.iter().map(|shard| shard.checkpoints_taken).collect();
        let mut appended = vec![false; process.shards.len()];
        if let Some((topic, queue)) = self.any_queue()
            && let Some(shard) = self.shard_of(process, topic, queue)
        {
            self.producers.push(Producer::new(topic, queue, ProducerId(self.random.next_u64() | 1)));
            let producer = self.producers.len() - 1;
            self.make_batch(producer);
            self.pass_time(process, self.machine.now() + 2_000_000_000)?;
            appended[shard] = self.send(process, producer)?;
            let is_refused = !appended[shard] && !self.producers[producer].is_idle();
            promise!(
                !is_refused || process.shards[shard].log.is_poisoned(),
                "shard {shard} takes nothing though the device has recovered"
            );
        }
        self.turn(process)?;
        self.pass_time(process, self.machine.now() + TRIED_AGAIN_WITHIN)?;
        for (index, shard) in process.shards.iter().enumerate().filter(|(_, shard)| !shard.log.is_poisoned()) {
            let log = &shard.log;
            let (sealed, made) = log.indexes().counts();
            promise!(
                sealed == made,
                "shard {index}: {made} of {sealed} segments have an index, long after the device failed"
            );
            promise!(!log.is_disk_full(), "shard {index}: the disk is full, long after it was");
            promise!(
                log.marked() >= log.durable(),
                "shard {index}: marked {}, durable {}, long after the device failed",
                log.marked(),
                log.durable()
            );
            promise!(
                !appended[index] || shard.checkpoints_taken > before[index],
                "shard {index}: no checkpoint was taken, long after the device failed"
            );
            let begins_at = log.begins_at();
            let is_left = |base: LogPosition| base < begins_at;
            let names = self.machine.file_names(index);
            let left = names.iter().find(|name| base_and_epoch(name).is_some_and(|(base, _)| is_left(base)));
            promise!(
                left.is_none(),
                "shard {index}: {left:?} is retired and still there, long after the device failed"
            );
        }
        self.statistics.mended += 1;
        self.machine.set_conditions(failing);
        Ok(())
    }
}
