//! A segment's file on its way out of the log: it gets a name that no start reads and waits to become the next spare, or is unlinked.
//!
//! ```text
//!   segment ─► its index is unlinked ─┬─► renamed, directory synced ═► waits as it is ─► zeros, synced ─► identity ─► segment
//!                                     └─► unlinked, directory synced
//! ```
//!
//! **Invariant**: not a byte of the file changes before its new name is durable. Until then a crash may leave the segment in the log, and
//! behind that it leaves a spare of an earlier process, which a start unlinks.
//!
//! No write is in flight on such a file: the log was durable to its end, so that each of them had returned, and where one failed the log
//! is poisoned and retires nothing.

use std::io;

use super::disk::{Access, Disk};
use super::files;
use super::segment::SegmentName;
use super::task::zero;

/// The file of a segment that has left the log durably. It holds what it held.
#[derive(Debug)]
pub(super) struct RetiredFile {
    pub name: String,
    pub size: u64,
}

/// Takes a segment out of the log, durably.
pub(super) struct Retirement<D: Disk> {
    pub disk: D,
    pub name: SegmentName,
    /// Where its file is to be kept, if there is room for that.
    pub keeping: Option<Keeping>,
}

/// How a file is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping {
    /// Bytes of the file.
    pub size: u64,
    /// What must be free on the file system beside the file.
    pub keep_free: u64,
    /// A planted fault.
    pub clears_at_once: bool,
}

impl<D: Disk> Retirement<D> {
    /// Where it fails, the same without `keeping` takes up what was begun.
    pub async fn run(self) -> io::Result<Option<RetiredFile>> {
        let Self { disk, name, keeping } = self;
        let (segment, kept) = (name.to_string(), files::retired_name(name));
        // An index of no segment is nothing.
        remove_if_there(&disk, &files::index_name(name)).await?;
        if let Some(keeping) = keeping
            && keeping.has_room(&disk).await
        {
            if keeping.clears_at_once {
                let file = disk.open(&segment, Access::Prepare).await?;
                zero(&disk, &file, 0, keeping.size, None).await?;
            }
            // It may have failed and happened all the same: then it is unlinked under the new name.
            if disk.rename(&segment, &kept).await.is_ok() {
                disk.sync_directory().await?;
                return Ok(Some(RetiredFile { name: kept, size: keeping.size }));
            }
        }
        remove_if_there(&disk, &segment).await?;
        remove_if_there(&disk, &kept).await?;
        disk.sync_directory().await?;
        Ok(None)
    }
}

impl Keeping {
    /// A file that waits is in nobody's way while one as large could be made beside it.
    async fn has_room<D: Disk>(&self, disk: &D) -> bool {
        disk.free_bytes().await.is_ok_and(|free| free >= self.keep_free.saturating_add(self.size))
    }
}

async fn remove_if_there<D: Disk>(disk: &D, name: &str) -> io::Result<()> {
    match disk.remove(name).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
