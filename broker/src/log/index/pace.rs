//! Keeps the steps of a long piece of work short. The work counts what it does in nanoseconds as they were measured once, since
//! there is no clock here; between steps of [`limits::INDEX_STEP`] it rests, which is a real turn of the reactor.

use crate::limits;
use crate::log::disk::Disk;

/// Decoding an entry's header, with its checksum.
pub(super) const ENTRY: u64 = 100;
/// Finding a record's key and hashing its first bytes.
pub(super) const RECORD: u64 = 50;
/// Adding a row to a sorter.
pub(super) const ROW: u64 = 20;
/// Sorting one run of rows.
pub(super) const RUN: u64 = 25_000;
/// Taking a row out of a merge and putting it into a leaf.
pub(super) const MERGED_ROW: u64 = 250;
/// Finishing a block, with its checksum.
pub(super) const BLOCK: u64 = 1_500;

/// Bytes that are summed or hashed in a nanosecond.
const BYTES_PER_NANO: u64 = 5;

/// The step that is under way.
pub(super) struct Pace<D: Disk> {
    disk: D,
    spent: u64,
}

impl<D: Disk> Pace<D> {
    pub fn new(disk: D) -> Self {
        Self { disk, spent: 0 }
    }

    /// Before so much is done: rests if it would make the step too long.
    pub async fn spend(&mut self, nanos: u64) {
        if self.spent > 0 && self.spent + nanos > limits::INDEX_STEP.0 {
            self.disk.pause(limits::INDEX_REST).await;
            self.spent = 0;
        }
        self.spent += nanos;
    }

    /// So many bytes are summed or hashed.
    pub async fn spend_bytes(&mut self, bytes: usize) {
        self.spend(bytes as u64 / BYTES_PER_NANO).await;
    }
}
