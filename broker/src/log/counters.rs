//! What a shard's log counts, for metrics and tests. Plain integers that the log adds to; the shard reads a copy.

/// Totals of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounters {
    /// Entries appended, pads not counted, and the bytes of their payloads.
    pub entries: u64,
    pub payload_bytes: u64,
    /// Pads and all their bytes, most of which are never written.
    pub pads: u64,
    pub pad_bytes: u64,
    /// Writes of flushes that were issued, and their bytes. Over `payload_bytes`: the bytes written for each byte stored.
    pub writes: u64,
    pub written_bytes: u64,
    /// Times that durable moved.
    pub durable_moves: u64,
    pub marks: u64,
    /// Segments that appends moved on to.
    pub rolls: u64,
    /// Attempts to make a spare segment that failed.
    pub spare_failures: u64,
    /// Segments that left the log, those of them whose files became spares, and attempts to retire one that failed.
    pub retired: u64,
    pub recycled: u64,
    pub retire_failures: u64,
    /// Of the background scrub: segments that it read, their bytes, and rounds over all of them that came to their end.
    pub scrubbed_segments: u64,
    pub scrubbed_bytes: u64,
    pub scrub_rounds: u64,
    /// What it found: indexes that were not what their segments say, segments that could not be read, and damaged ones.
    pub scrub_bad_indexes: u64,
    pub scrub_unread: u64,
    pub scrub_damaged: u64,
    /// Appends refused for want of room.
    pub refused_no_room: u64,
    pub refused_disk_full: u64,
}

impl LogCounters {
    /// Bytes written to the device for each byte of payload; 0 before the first.
    pub fn write_amplification(&self) -> f64 {
        if self.payload_bytes == 0 { 0.0 } else { self.written_bytes as f64 / self.payload_bytes as f64 }
    }
}
