//! Writes an index file from its second block to its last, then the header. Until that is there nothing passes for an index; until
//! the rename that follows it has no name.

use std::io;

use super::format::{BlockNumber, BlockSeal, CONTENT, Header, LEAF_HEAD, TREE, Tree};
use super::pace::{self, Pace};
use super::row::Row;
use super::sorter::Merge;
use super::{IndexError, SealedSegment};
use crate::limits;
use crate::log::disk::{BLOCK, Disk, DiskFile};
use crate::log::layout::put;
use crate::log::options::LogOptions;

/// The blocks of a file that is being written.
pub(super) struct BlockWriter<D: Disk> {
    disk: D,
    file: D::File,
    seal: BlockSeal,
    /// Blocks that wait for a write, and how many bytes of them there are.
    buffer: Option<D::Buffer>,
    filled: usize,
    /// Bytes of the file that are written, counting the header.
    written: u64,
}

/// Why a tree was not written.
pub(super) enum TreeError {
    Io(io::Error),
    /// The row at this place, bytes from the segment's base, contradicts the one before it.
    Disorder(u64),
}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<D: Disk> BlockWriter<D> {
    /// Begins behind the header of a file that has room for that alone.
    pub fn new(disk: D, file: D::File, seal: BlockSeal) -> Self {
        Self { disk, file, seal, buffer: None, filled: 0, written: BLOCK as u64 }
    }

    /// The number of the next block.
    pub fn next(&self) -> BlockNumber {
        ((self.written + self.filled as u64) / BLOCK as u64) as BlockNumber
    }

    /// Adds a block; zeros follow what it holds.
    pub async fn push(&mut self, content: &[u8]) -> io::Result<()> {
        assert!(content.len() <= CONTENT, "a block's content leaves room for its checksum");
        let number = self.next();
        let buffer = self.buffer.get_or_insert_with(|| self.disk.buffer(limits::INDEX_WRITE));
        let block = &mut buffer[self.filled..self.filled + BLOCK];
        block[..content.len()].copy_from_slice(content);
        block[content.len()..].fill(0);
        self.seal.put(number, block);
        self.filled += BLOCK;
        if self.filled == limits::INDEX_WRITE { self.flush().await } else { Ok(()) }
    }

    /// Adds a tree of these rows.
    pub async fn push_tree<R: Row>(&mut self, rows: Merge<R>, pace: &mut Pace<D>) -> Result<Tree, TreeError> {
        let (first, count) = (self.next(), rows.len());
        let mut fences = Vec::new();
        let mut leaf = Leaf::new();
        for row in rows {
            pace.spend(pace::MERGED_ROW).await;
            if let Some(before) = leaf.last
                && !row.follows(&before)
            {
                return Err(TreeError::Disorder(row.place()));
            }
            if !leaf.push(row) {
                fences.extend(leaf.first);
                pace.spend(pace::BLOCK).await;
                self.push(leaf.finish()).await?;
                let fits = leaf.push(row);
                assert!(fits, "an empty leaf takes any row");
            }
        }
        fences.extend(leaf.first);
        self.push(leaf.finish()).await?;
        let tree = Tree { kind: R::KIND, first, leaves: fences.len() as u32, rows: count as u32 };
        while fences.len() > 1 {
            let below = std::mem::take(&mut fences);
            for fenced in below.chunks(Tree::fan_out::<R>() as usize) {
                pace.spend(pace::BLOCK).await;
                let mut block = [0; CONTENT];
                for (place, row) in block.chunks_exact_mut(R::FENCE).zip(fenced) {
                    row.put_fence(place);
                }
                fences.extend(fenced.first());
                self.push(&block).await?;
            }
        }
        Ok(tree)
    }

    /// Adds the table of entries.
    pub async fn push_places(&mut self, places: &[u32], pace: &mut Pace<D>) -> io::Result<()> {
        for places in places.chunks(CONTENT / size_of::<u32>()) {
            pace.spend(pace::BLOCK).await;
            let mut block = [0; CONTENT];
            for (at, place) in block.chunks_exact_mut(size_of::<u32>()).zip(places) {
                at.copy_from_slice(&place.to_le_bytes());
            }
            self.push(&block).await?;
        }
        Ok(())
    }

    /// Adds the contents.
    pub async fn push_contents(&mut self, trees: &[Tree]) -> io::Result<()> {
        for trees in trees.chunks(CONTENT / TREE) {
            let mut block = [0; CONTENT];
            for (at, tree) in block.chunks_exact_mut(TREE).zip(trees) {
                tree.encode(at);
            }
            self.push(&block).await?;
        }
        Ok(())
    }

    /// Writes the header and makes the file durable. The bytes that it has.
    pub async fn finish(mut self, header: &Header, options: &LogOptions, segment: &SealedSegment) -> io::Result<u64> {
        self.flush().await?;
        let mut block = self.disk.buffer(BLOCK);
        header.encode(options, segment, &mut block);
        self.seal.put(0, &mut block);
        self.file.write_at(block, 0).await?;
        self.file.sync().await?;
        Ok(self.written)
    }

    async fn flush(&mut self) -> io::Result<()> {
        let Some(mut buffer) = self.buffer.take() else { return Ok(()) };
        if self.filled < limits::INDEX_WRITE {
            let mut shorter = self.disk.buffer(self.filled);
            shorter.copy_from_slice(&buffer[..self.filled]);
            buffer = shorter;
        }
        let end = self.written + self.filled as u64;
        self.file.extend(end).await?;
        self.file.write_at(buffer, self.written).await?;
        (self.written, self.filled) = (end, 0);
        Ok(())
    }
}

/// A leaf in the making.
struct Leaf<R> {
    bytes: Vec<u8>,
    rows: u16,
    first: Option<R>,
    /// The last row of this leaf or, while it is empty, of the one before.
    last: Option<R>,
}

impl<R: Row> Leaf<R> {
    fn new() -> Self {
        // A row that does not fit is taken off again; none has more than 64 bytes.
        Self { bytes: Vec::with_capacity(CONTENT + 64), rows: 0, first: None, last: None }
    }

    /// False where there is no room for it.
    fn push(&mut self, row: R) -> bool {
        if self.first.is_none() {
            self.bytes.clear();
            self.bytes.resize(LEAF_HEAD, 0);
            self.rows = 0;
        }
        let len = self.bytes.len();
        row.encode(self.last.as_ref().filter(|_| self.first.is_some()), &mut self.bytes);
        if self.bytes.len() > CONTENT {
            self.bytes.truncate(len);
            return false;
        }
        self.first.get_or_insert(row);
        self.last = Some(row);
        self.rows += 1;
        true
    }

    /// Its bytes; what is pushed next begins another one.
    fn finish(&mut self) -> &[u8] {
        put(&mut self.bytes, 0, self.rows.to_le_bytes());
        self.first = None;
        &self.bytes
    }
}

/// Says which file an I/O error is about.
pub(super) fn io_error(doing: &'static str, file: &str) -> impl FnOnce(io::Error) -> IndexError {
    let file = file.to_owned();
    move |source| IndexError::Io { doing, file, source }
}
