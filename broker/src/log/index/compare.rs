//! Whether an index says what its segment says: it is made again, as ever, over a disk that compares what would be written with what
//! stands there. An index is a pure function of its segment, so the two agree byte by byte or the file is bad.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::builder::{Bounds, build_bounded};
use super::error::BadIndex;
use super::{IndexError, SealedSegment, SegmentIndex, Stop};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::files;
use crate::log::options::LogOptions;

/// Bytes of one direct read of the segment: nobody else wants the disk.
const READ: usize = 1 << 20;

/// How the two are read.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// Nobody else wants the disk, or the core.
    AtOnce,
    /// Beside a running broker: at most so many bytes in a second, and in short steps.
    Paced { rate: u64 },
}

/// Verifies the index of a segment against the segment, and changes nothing. An error of which [`IndexError::is_bad_index`] does not
/// hold is of the segment, or of the device. Once it is asked to `stop` it never ends, and may be dropped.
pub async fn compare_index<D: Disk>(
    disk: &D,
    options: &LogOptions,
    segment: &SealedSegment,
    reading: Reading,
    stop: Stop,
) -> Result<(), IndexError> {
    // Says more precisely what is wrong than a block that differs.
    drop(SegmentIndex::open(disk, options, segment).await?);
    let index = files::index_name(segment.name);
    let comparing = Comparing { disk: disk.clone(), index: Rc::from(index), reading, differs: Rc::default() };
    let bounds = match reading {
        Reading::AtOnce => Bounds { read: READ, ..Bounds::default() },
        Reading::Paced { .. } => Bounds::default(),
    };
    build_bounded(&comparing, options, segment, bounds, stop).await?;
    match comparing.differs.get() {
        Some(block) => Err(IndexError::Bad { segment: segment.name, reason: BadIndex::Differs(block) }),
        None => Ok(()),
    }
}

/// A disk on which the file that is made is the one that stands there.
#[derive(Clone)]
struct Comparing<D: Disk> {
    disk: D,
    index: Rc<str>,
    reading: Reading,
    differs: Differs,
}

/// The first block that is not what it should be.
type Differs = Rc<Cell<Option<u32>>>;

impl<D: Disk> Disk for Comparing<D> {
    type File = ComparedFile<D>;
    type Buffer = D::Buffer;

    fn buffer(&self, len: usize) -> D::Buffer {
        self.disk.buffer(len)
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list().await
    }

    async fn open(&self, name: &str, access: Access) -> io::Result<Self::File> {
        assert!(access == Access::Read, "a comparison writes nothing");
        Ok(ComparedFile { file: self.disk.open(name, access).await?, disk: self.clone(), is_index: false })
    }

    async fn create(&self, _name: &str, _size: u64) -> io::Result<Self::File> {
        let file = self.disk.open(&self.index, Access::Read).await?;
        Ok(ComparedFile { file, disk: self.clone(), is_index: true })
    }

    async fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }

    async fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes().await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    async fn pause(&self, rest: Duration) {
        match self.reading {
            Reading::AtOnce => {}
            Reading::Paced { .. } => self.disk.pause(rest).await,
        }
    }
}

/// A file that is read or, where it is the index, compared.
struct ComparedFile<D: Disk> {
    file: D::File,
    disk: Comparing<D>,
    is_index: bool,
}

impl<D: Disk> DiskFile for ComparedFile<D> {
    type Buffer = D::Buffer;
    type Bytes = <D::File as DiskFile>::Bytes;

    fn size(&self) -> u64 {
        self.file.size()
    }

    async fn extend(&self, _size: u64) -> io::Result<()> {
        Ok(())
    }

    async fn write_at(&self, buffer: D::Buffer, offset: u64) -> io::Result<()> {
        let differs = &self.disk.differs;
        if !self.is_index || differs.get().is_some() {
            return Ok(());
        }
        let unread =
            |error: io::Error| io::Error::new(error.kind(), format!("what stands there cannot be read: {error}"));
        let stands = self.read_at(offset, buffer.len()).await.map_err(unread)?;
        let same = |(made, stands): (&[u8], &[u8])| made == stands;
        let blocks = buffer.chunks(BLOCK).zip(stands.chunks(BLOCK).chain(std::iter::repeat(&[][..])));
        if let Some(block) = blocks.into_iter().position(|pair| !same(pair)) {
            differs.set(Some((offset / BLOCK as u64) as u32 + block as u32));
        }
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Self::Bytes> {
        if let Reading::Paced { rate } = self.disk.reading {
            let nanos = len as u128 * 1_000_000_000 / u128::from(rate.max(1));
            self.disk.pause(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))).await;
        }
        self.file.read_at(offset, len).await
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
