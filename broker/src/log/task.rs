//! What the log wants done on the disk, as values: the shard runs a [`LogTask`] wherever it likes and hands the [`Completion`]
//! back. A task owns all it needs, so that the log is not borrowed while it runs; dropping one that has begun leaves its
//! outcome unknown, which only the end of the process may do.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::poll_once;
use peregrine_protocol::ids::LogPosition;

use super::disk::{Access, BLOCK, Disk, DiskFile, is_full};
use super::files;
use super::index::{IndexMade, IndexWork};
use super::mark::{MARK_FILE_LEN, Mark};
use super::retirement::{RetiredFile, Retirement};
use super::scrub::{ScrubWork, Scrubbed};
use super::segment::Identity;

/// Something to carry out. Several may run at once.
#[must_use = "a task that is not run stops the log"]
pub struct LogTask<D: Disk>(pub(super) Work<D>);

pub(super) enum Work<D: Disk> {
    Write { number: u64, file: Rc<D::File>, buffer: D::Buffer, offset: u64, fails: bool, early: bool },
    Spare { disk: D, name: String, order: SpareOrder, pace: Rc<SparePace> },
    Name { disk: D, spare: Spare },
    Retire(Retirement<D>),
    Mark { disk: D, file: Option<Rc<D::File>>, mark: Mark },
    Index(IndexWork<D>),
    Scrub(ScrubWork<D>),
}

/// The outcome of a task, for [`super::Log::complete`].
#[must_use = "the log waits for it"]
pub struct Completion<D: Disk>(pub(super) Outcome<D>);

pub(super) enum Outcome<D: Disk> {
    Written {
        number: u64,
        result: io::Result<()>,
    },
    /// `None`: given up because the log is being stopped.
    SpareMade(io::Result<Option<Spare>>),
    Named(Result<OpenSegment<D>, NotNamed>),
    /// With its file, where that is kept.
    Retired(io::Result<Option<RetiredFile>>),
    Marked(io::Result<Rc<D::File>>),
    /// `None`: given up because the log is being stopped.
    Indexed(Option<IndexMade<D>>),
    /// The same.
    Scrubbed(Option<Scrubbed>),
}

/// What spare is wanted.
#[derive(Debug)]
pub(super) struct SpareOrder {
    pub size: u64,
    /// What must stay free on the file system.
    pub keep_free: u64,
    /// Where that cannot be had: the size of one that takes no batches, which may leave half as much.
    pub reserve: Option<u64>,
    /// A file that is to be used again in the place of a new one.
    pub retired: Option<RetiredFile>,
}

/// A file of zeros, synced, waiting for an identity and a name.
#[derive(Debug)]
pub(super) struct Spare {
    pub name: String,
    pub size: u64,
    /// Made of what is kept free: not for batches.
    pub is_reserve: bool,
    /// It was a segment before.
    pub is_recycled: bool,
    /// Who it is to be.
    pub identity: SpareIdentity,
}

#[derive(Debug)]
pub(super) enum SpareIdentity {
    Open,
    Chosen(Identity),
    /// It stands in the file, durably; only the name could not be given.
    Written(Identity),
}

/// Why a spare has not become a segment.
#[derive(Debug)]
pub(super) enum NotNamed {
    /// The directory had no room for the name. Nothing has changed: it may be tried again.
    NoSpace(Box<Spare>),
    /// Nobody knows what the device holds.
    Failed(io::Error),
}

/// A segment that is ready for appends.
pub(super) struct OpenSegment<D: Disk> {
    pub identity: Identity,
    pub file: Rc<D::File>,
}

impl<D: Disk> OpenSegment<D> {
    pub fn end(&self) -> LogPosition {
        self.identity.end()
    }

    /// Where a position of this segment stands in its file.
    pub fn offset(&self, position: LogPosition) -> u64 {
        position - self.identity.base + BLOCK as u64
    }
}

/// How hard the zeroing of a spare presses on, which the log changes while it runs: it must be done before appends have used
/// the room that is left in front of it, however fast they come and however small the segments before it are.
#[derive(Debug, Default)]
pub(super) struct SparePace {
    /// Bytes of appends that there was room for when the spare was begun.
    pub room: Cell<u64>,
    /// How many of them have been used since.
    pub used: Cell<u64>,
    pub stop: Cell<bool>,
}

impl SparePace {
    /// At leisure: 128 KiB every 2 ms, 64 MB/s, which hardly shows in the latency of flushes.
    const STEP: u64 = 128 << 10;
    const REST: Duration = Duration::from_millis(2);
    /// In a hurry: the longest step that a reactor's turn bears (it fills the buffer), without rest.
    const HURRY_STEP: u64 = 512 << 10;

    /// Whether zeroing may rest: it is ahead of what would have it done when half the room is used.
    fn is_ahead(&self, zeroed: u64, size: u64) -> bool {
        let (room, used) = (u128::from(self.room.get()), u128::from(self.used.get()));
        u128::from(zeroed) * room >= 2 * used * u128::from(size)
    }
}

impl<D: Disk> LogTask<D> {
    /// Whether it may wait behind everything else: all but the writes of a flush.
    pub fn is_background(&self) -> bool {
        !matches!(self.0, Work::Write { .. })
    }

    /// Carries the task out. The future owns what it needs and may be spawned.
    pub async fn run(self) -> Completion<D> {
        Completion(match self.0 {
            Work::Write { number, fails: true, .. } => {
                Outcome::Written { number, result: Err(io::Error::other("failed by a test switch")) }
            }
            Work::Write { number, file, buffer, offset, early: true, .. } => {
                // A planted fault: the write is begun and its outcome not awaited.
                let begun = poll_once(file.write_at(buffer, offset)).await;
                Outcome::Written { number, result: begun.unwrap_or(Ok(())) }
            }
            Work::Write { number, file, buffer, offset, .. } => {
                Outcome::Written { number, result: file.write_at(buffer, offset).await }
            }
            Work::Spare { disk, name, order, pace } => Outcome::SpareMade(make_spare(&disk, name, order, &pace).await),
            Work::Name { disk, spare } => Outcome::Named(name_segment(&disk, spare).await),
            Work::Retire(retirement) => Outcome::Retired(retirement.run().await),
            Work::Mark { disk, file, mark } => Outcome::Marked(write_mark(&disk, file, mark).await),
            Work::Index(work) => Outcome::Indexed(work.run().await),
            Work::Scrub(work) => Outcome::Scrubbed(work.run().await),
        })
    }
}

/// Makes a spare as it is ordered or, where there is no space for that, as a reserve.
async fn make_spare<D: Disk>(disk: &D, name: String, order: SpareOrder, pace: &SparePace) -> io::Result<Option<Spare>> {
    if let Some(RetiredFile { name, size }) = order.retired {
        match clear(disk, &name, size, order.keep_free, pace).await {
            // It was given back, so that it can be told what may be made of what is free.
            Err(error) if is_full(&error) => {}
            cleared => {
                let identity = SpareIdentity::Open;
                return Ok(cleared?.then_some(Spare { name, size, is_reserve: false, is_recycled: true, identity }));
            }
        }
    }
    let spare = |size, is_reserve| {
        let (name, identity) = (name.clone(), SpareIdentity::Open);
        Spare { name, size, is_reserve, is_recycled: false, identity }
    };
    match (make_zeros(disk, &name, order.size, order.keep_free, pace).await, order.reserve) {
        (Err(error), Some(reserve)) if is_full(&error) => {
            // Why there is nothing better is what counts, where this cannot be had either.
            let made = make_zeros(disk, &name, reserve, order.keep_free / 2, pace).await.map_err(|_| error)?;
            Ok(made.then(|| spare(reserve, true)))
        }
        (made, _) => Ok(made?.then(|| spare(order.size, false))),
    }
}

/// Writes a file of zeros and syncs it. Where that fails, the file is removed again, so that it holds no space.
async fn make_zeros<D: Disk>(disk: &D, name: &str, size: u64, keep_free: u64, pace: &SparePace) -> io::Result<bool> {
    if !leaves(disk, size.saturating_add(keep_free), keep_free).await {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let made = match disk.create(name, size).await {
        // Others may have taken space meanwhile, another shard for example, for as good a reason.
        Ok(_) if !leaves(disk, keep_free, keep_free).await => Err(io::ErrorKind::StorageFull.into()),
        Ok(file) => zero(disk, &file, 0, size, Some(pace)).await,
        Err(error) => Err(error),
    };
    if made.is_err() {
        // Whether it exists and can be removed or not, the next start unlinks what is left.
        let _ = disk.remove(name).await;
    }
    made
}

/// The same with the file of a retired segment in the place of a new one.
async fn clear<D: Disk>(disk: &D, name: &str, size: u64, keep_free: u64, pace: &SparePace) -> io::Result<bool> {
    let cleared = match disk.open(name, Access::Prepare).await {
        Ok(_) if !leaves(disk, keep_free, keep_free).await => Err(io::ErrorKind::StorageFull.into()),
        Ok(file) => zero(disk, &file, 0, size, Some(pace)).await,
        Err(error) => Err(error),
    };
    if cleared.is_err() {
        // The same.
        let _ = disk.remove(name).await;
    }
    cleared
}

/// Whether so much is free, if any of it is to be kept free. Where it cannot be told, it shows.
async fn leaves<D: Disk>(disk: &D, left: u64, keep_free: u64) -> bool {
    keep_free == 0 || disk.free_bytes().await.map_or(true, |free| free >= left)
}

/// Zeros `[from, size)` and syncs the file; with a pace in steps that leave room for others. False: stopped on the way.
pub(super) async fn zero<D: Disk>(
    disk: &D,
    file: &D::File,
    from: u64,
    size: u64,
    pace: Option<&SparePace>,
) -> io::Result<bool> {
    let mut offset = from;
    while offset < size {
        let at_leisure = pace.is_some_and(|pace| pace.is_ahead(offset - from, size - from));
        let len = (size - offset).min(if at_leisure { SparePace::STEP } else { SparePace::HURRY_STEP });
        let mut buffer = disk.buffer(len as usize);
        buffer.fill(0);
        file.write_at(buffer, offset).await?;
        offset += len;
        if pace.is_some_and(|pace| pace.stop.get()) {
            return Ok(false);
        }
        if at_leisure {
            disk.pause(SparePace::REST).await;
        }
    }
    file.sync().await?;
    Ok(true)
}

/// Gives a spare its identity and its name, each durable, and opens it for appends.
async fn name_segment<D: Disk>(disk: &D, spare: Spare) -> Result<OpenSegment<D>, NotNamed> {
    let identity = match &spare.identity {
        SpareIdentity::Written(identity) => identity.clone(),
        SpareIdentity::Chosen(identity) => {
            write_identity(disk, &spare.name, identity).await.map_err(NotNamed::Failed)?;
            identity.clone()
        }
        SpareIdentity::Open => unreachable!("it is chosen before"),
    };
    let name = identity.name().to_string();
    match disk.rename(&spare.name, &name).await {
        Err(error) if is_full(&error) => {
            let identity = SpareIdentity::Written(identity);
            return Err(NotNamed::NoSpace(Box::new(Spare { identity, ..spare })));
        }
        renamed => renamed.map_err(NotNamed::Failed)?,
    }
    disk.sync_directory().await.map_err(NotNamed::Failed)?;
    let file = Rc::new(disk.open(&name, Access::Append).await.map_err(NotNamed::Failed)?);
    Ok(OpenSegment { identity, file })
}

async fn write_identity<D: Disk>(disk: &D, file_name: &str, identity: &Identity) -> io::Result<()> {
    let file = disk.open(file_name, Access::Prepare).await?;
    let mut block = disk.buffer(BLOCK);
    identity.encode(&mut block);
    file.write_at(block, 0).await?;
    file.sync().await
}

/// Writes a mark, making its file first where it is the run's first one.
async fn write_mark<D: Disk>(disk: &D, file: Option<Rc<D::File>>, mark: Mark) -> io::Result<Rc<D::File>> {
    let mut block = disk.buffer(BLOCK);
    mark.encode(&mut block);
    if let Some(file) = file {
        file.write_at(block, mark.offset()).await?;
        return Ok(file);
    }
    let (temporary, name) = (files::temporary_mark_name(mark.epoch), files::mark_name(mark.epoch));
    // Left by an attempt that failed: a mark under its name too, if only the sync of the directory did. A mark may lag.
    let _ = disk.remove(&temporary).await;
    let _ = disk.remove(&name).await;
    let file = disk.create(&temporary, MARK_FILE_LEN).await?;
    zero(disk, &file, 0, MARK_FILE_LEN, None).await?;
    file.write_at(block, mark.offset()).await?;
    file.sync().await?;
    drop(file);
    disk.rename(&temporary, &name).await?;
    disk.sync_directory().await?;
    Ok(Rc::new(disk.open(&name, Access::Append).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroing_is_done_before_the_room_before_it_is_used() {
        let (size, room) = (256 << 20, 80 << 20);
        let pace = SparePace::default();
        pace.room.set(room);
        assert!(pace.is_ahead(0, size), "while nothing is appended there is time");
        pace.used.set(room / 4);
        assert!(!pace.is_ahead(size / 2 - 1, size) && pace.is_ahead(size / 2, size));
        pace.used.set(room / 2 + 1);
        assert!(!pace.is_ahead(size - 1, size), "from half the room on it does not rest");
    }
}
