//! What a flush of one block costs in the ways that a log can write it, and what the file system makes of each: its journal, its
//! metadata and the device's cache are seen in the device's own counters.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock::{Clock, Ns, SECOND};
use crate::floor::flush::{BLOCK, Blocks, zero};
use crate::latency::Latencies;

/// Blocks of a file that is made before it is written: 32 MiB.
const FILE_BLOCKS: u64 = 8192;

/// A way to make one block durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the broker does: into bytes that were written and synced before.
    Zeroed,
    /// Into bytes that are allocated, and not yet written.
    Reserved,
    /// Behind the end of the file.
    Growing,
    /// As [`Way::Zeroed`], through the page cache.
    ZeroedThenSync,
    /// As [`Way::Growing`], through the page cache.
    GrowingThenSync,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Zeroed, "O_DIRECT + O_DSYNC into zeroed bytes (the broker)"),
    (Way::Reserved, "O_DIRECT + O_DSYNC into reserved bytes"),
    (Way::Growing, "O_DIRECT + O_DSYNC, the file grows"),
    (Way::ZeroedThenSync, "write, fdatasync into zeroed bytes"),
    (Way::GrowingThenSync, "write, fdatasync, the file grows"),
];

/// How the ways are compared.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Flushes a second, at the most.
    pub rate: u64,
    /// How long each way is measured in each round.
    pub span: Ns,
    /// Each round measures all ways, in turn.
    pub rounds: u32,
}

/// Requests that a device completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Requests {
    writes: u64,
    flushes: u64,
}

#[derive(Debug, Default)]
struct Cost {
    latencies: Latencies,
    requests: Requests,
}

/// Compares the ways in `directory`, and says so as a Markdown table. What else writes to the device meanwhile is counted too.
pub fn compare(directory: &Path, comparison: Comparison, clock: Clock) -> io::Result<String> {
    let mut costs: [Cost; WAYS.len()] = std::array::from_fn(|_| Cost::default());
    for _ in 0..comparison.rounds {
        for ((way, _), cost) in WAYS.iter().zip(&mut costs) {
            let trial = Trial::prepare(directory, *way)?;
            let before = Requests::of(&trial.file)?;
            trial.measure(clock, comparison, &mut cost.latencies)?;
            let after = Requests::of(&trial.file)?;
            cost.requests.writes += after.writes - before.writes;
            cost.requests.flushes += after.flushes - before.flushes;
        }
    }
    Ok(table(&costs))
}

fn table(costs: &[Cost]) -> String {
    let mut out = String::from(
        "| one block of 4 KiB | p50 | p99 | p99.9, µs | device writes a flush | cache flushes a flush |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for ((_, name), cost) in WAYS.iter().zip(costs) {
        let count = cost.latencies.count().max(1) as f64;
        let _ = write!(out, "| {name} |");
        for percentile in ["p50", "p99", "p99.9"] {
            let us = cost.latencies.percentile_ns(percentile).map_or(f64::INFINITY, |ns| ns as f64 / 1e3);
            let _ = write!(out, " {us:.0} |");
        }
        let Requests { writes, flushes } = cost.requests;
        let _ = writeln!(out, " {:.2} | {:.2} |", writes as f64 / count, flushes as f64 / count);
    }
    out
}

/// A file that is written one way. Dropping it unlinks the file.
#[derive(Debug)]
struct Trial {
    way: Way,
    path: PathBuf,
    file: File,
}

impl Trial {
    fn prepare(directory: &Path, way: Way) -> io::Result<Self> {
        let path = directory.join(format!("loadgen-flush-ways-{}.tmp", std::process::id()));
        let direct = !matches!(way, Way::ZeroedThenSync | Way::GrowingThenSync);
        let made = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
        match way {
            Way::Zeroed | Way::ZeroedThenSync => zero(&made, FILE_BLOCKS)?,
            Way::Reserved => reserve(&made, FILE_BLOCKS * BLOCK as u64)?,
            Way::Growing | Way::GrowingThenSync => {}
        }
        made.sync_all()?;
        File::open(directory)?.sync_all()?;
        let flags = if direct { libc::O_DIRECT | libc::O_DSYNC } else { 0 };
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
        Ok(Self { way, path, file })
    }

    fn measure(&self, clock: Clock, comparison: Comparison, latencies: &mut Latencies) -> io::Result<()> {
        let mut blocks = Blocks::new(1);
        let block = blocks.get(1);
        let start = clock.now();
        // A file that was made whole is never written twice at one place: only the first write to reserved bytes is that.
        for index in 0..FILE_BLOCKS {
            clock.sleep_until(start + index * SECOND / comparison.rate.max(1));
            let before = clock.now();
            if before >= start + comparison.span {
                break;
            }
            block[..8].copy_from_slice(&(index + 1).to_le_bytes());
            self.file.write_all_at(block, index * BLOCK as u64)?;
            if matches!(self.way, Way::ZeroedThenSync | Way::GrowingThenSync) {
                self.file.sync_data()?;
            }
            latencies.record(clock.now() - before);
        }
        Ok(())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Nothing depends on it: a file left behind has a name that says whose it is.
        let _ = fs::remove_file(&self.path);
    }
}

fn reserve(file: &File, len: u64) -> io::Result<()> {
    let Ok(len) = libc::off_t::try_from(len) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: the descriptor is open for the length of the call, which touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Requests {
    /// Of the device that the file lies on.
    fn of(file: &File) -> io::Result<Self> {
        let device = file.metadata()?.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::other(format!("the counters of {major}:{minor} have another shape")))
    }

    /// The kernel's Documentation/block/stat.rst: the fifth number counts writes, the sixteenth flushes.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
        let writes = numbers.nth(4)??;
        let flushes = numbers.nth(10)??;
        Some(Self { writes, flushes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;

    #[test]
    fn counters_are_those_of_writes_and_flushes() {
        let text = "  1  2  3  4  50  6  7  8  9 10 11 12 13 14 15  160  17\n";
        assert_eq!(Requests::parse(text), Some(Requests { writes: 50, flushes: 160 }));
        assert_eq!(Requests::parse("1 2 3 4 5 6 7 8 9 10 11"), None, "a kernel that does not count flushes");
        assert_eq!(Requests::parse("1 2 3 4 x 6 7 8 9 10 11 12 13 14 15 16"), None);
    }

    #[test]
    fn every_way_writes_and_leaves_nothing_behind() {
        // Beside the test's own executable: /tmp may be a tmpfs, which takes no direct writes.
        let executable = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(executable.parent().unwrap()).unwrap();
        for (way, _) in WAYS {
            let trial = Trial::prepare(directory.path(), way).unwrap();
            let mut latencies = Latencies::new();
            let comparison = Comparison { rate: 1000, span: 20 * MILLISECOND, rounds: 1 };
            trial.measure(Clock::start(), comparison, &mut latencies).unwrap();
            assert!((1..=20).contains(&latencies.count()), "{way:?}: {} writes", latencies.count());
            let first = fs::read(&trial.path).unwrap();
            assert_eq!(first[..8], 1_u64.to_le_bytes(), "{way:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
