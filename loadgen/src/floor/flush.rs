//! What one flush of one block costs: O_DIRECT + O_DSYNC appends of 4 KiB, one at a time, into a file that was zeroed
//! and fdatasync'ed before, which is how the broker writes its log, without the broker.
//!
//! The file lies in the data directory's file system and is removed at the end. A write's latency counts from when it
//! was issued: the rate only spaces the writes, so that the device is as busy as under the run.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock::{Clock, Ns, SECOND};
use crate::latency::Latencies;

pub(super) const BLOCK: usize = 4096;
/// The file: 32 MiB, written from its beginning again when its end is reached.
const FILE_BLOCKS: u64 = 8192;
/// Blocks zeroed by one write.
const ZERO_BLOCKS: u64 = 256;

/// A zeroed, synced file. Dropping it unlinks the file.
#[derive(Debug)]
pub struct FlushFloor {
    path: PathBuf,
    file: File,
}

/// Bytes that begin on a block boundary in memory, as direct writes ask.
#[derive(Debug)]
pub(super) struct Blocks {
    bytes: Vec<u8>,
    start: usize,
}

impl Blocks {
    pub fn new(count: usize) -> Self {
        let bytes = vec![0_u8; (count + 1) * BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start }
    }

    pub fn get(&mut self, count: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + count * BLOCK]
    }
}

/// Writes zeros to the first blocks of a file that is open for direct writes.
pub(super) fn zero(file: &File, count: u64) -> io::Result<()> {
    let mut blocks = Blocks::new(ZERO_BLOCKS as usize);
    for at in (0..count).step_by(ZERO_BLOCKS as usize) {
        file.write_all_at(blocks.get(ZERO_BLOCKS as usize), at * BLOCK as u64)?;
    }
    Ok(())
}

impl FlushFloor {
    /// Makes the file in `directory`.
    pub fn prepare(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!("loadgen-flush-floor-{}.tmp", std::process::id()));
        let open = |flags| OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(&path);
        let zeroed = open(libc::O_DIRECT)?;
        zero(&zeroed, FILE_BLOCKS)?;
        zeroed.sync_data()?;
        File::open(directory)?.sync_all()?;
        let file = open(libc::O_DIRECT | libc::O_DSYNC)?;
        Ok(Self { path, file })
    }

    /// Writes blocks for `span`, at most `rate` a second.
    pub fn measure(&self, clock: Clock, rate: u64, span: Ns) -> io::Result<Latencies> {
        let mut latencies = Latencies::new();
        let start = clock.now();
        let mut blocks = Blocks::new(1);
        let block = blocks.get(1);
        for index in 0..u64::MAX {
            let due = start + index * SECOND / rate.max(1);
            clock.sleep_until(due);
            let before = clock.now();
            if before >= start + span {
                break;
            }
            block[..8].copy_from_slice(&index.to_le_bytes());
            self.file.write_all_at(block, index % FILE_BLOCKS * BLOCK as u64)?;
            latencies.record(clock.now() - before);
        }
        Ok(latencies)
    }
}

impl Drop for FlushFloor {
    fn drop(&mut self) {
        // Nothing depends on it: a file left behind is 32 MiB with a name that says whose it is.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;

    #[test]
    fn blocks_are_written_at_the_rate_and_the_file_goes() {
        // Beside the test's own executable: /tmp may be a tmpfs, which takes no direct writes.
        let executable = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(executable.parent().unwrap()).unwrap();
        let floor = FlushFloor::prepare(directory.path()).unwrap();
        let latencies = floor.measure(Clock::start(), 200, 100 * MILLISECOND).unwrap();
        assert!((1..=20).contains(&latencies.count()), "{} writes", latencies.count());
        drop(floor);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
