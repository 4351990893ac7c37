//! Reads what no longer stands in the ring, by direct reads from the segments of the log. A reader is a handle that the shard
//! may clone; a read owns what it needs and holds no part of the log while it waits for the device.
//!
//! Files are opened on first use, and a bounded number stays open. What consumers read goes through the shard's [block cache](super::cache),
//! so that those who stand at the same spot cost the device one read, and one block is read at a time: a write of the flusher never
//! finds more than one read before it. While the log is being written, the device rests in between, and reads begin in the
//! [gaps](super::gaps) between flushes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::rc::Rc;

use peregrine_protocol::ids::LogPosition;

use super::cache::{BlockCache, Pinned, Space};
use super::disk::{Access, BLOCK, Disk, DiskFile};
use super::error::ReadError;
use super::gaps::Gaps;
use super::segment::SegmentName;
use super::turns::Turns;
use crate::limits::COLD_REST;

/// Files kept open for reading, for one shard.
const OPEN_FILES_MAX: usize = 64;
/// One direct read; larger ones have hung on some kernels.
const READ_MAX: usize = 1 << 20;

/// A segment of the log and the positions that it contributes.
pub(super) struct ReadableSegment<D: Disk> {
    pub name: SegmentName,
    pub base: LogPosition,
    /// Where the log goes on in the next segment: at or below the end of the file.
    pub end: LogPosition,
    pub file: Option<Rc<D::File>>,
}

struct Segments<D: Disk> {
    disk: D,
    /// By position, without overlap.
    by_base: Vec<ReadableSegment<D>>,
    /// Bases of the segments whose files were opened here, the oldest first.
    opened: VecDeque<LogPosition>,
}

/// Reads from a shard's segments.
pub struct LogReader<D: Disk> {
    segments: Rc<RefCell<Segments<D>>>,
    cache: BlockCache,
    turns: Rc<Turns>,
    /// What was durable when a block was last read from the device.
    durable_then: Rc<Cell<LogPosition>>,
    gaps: Gaps,
}

impl<D: Disk> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        Self {
            segments: Rc::clone(&self.segments),
            cache: self.cache.clone(),
            turns: Rc::clone(&self.turns),
            durable_then: Rc::clone(&self.durable_then),
            gaps: self.gaps.clone(),
        }
    }
}

/// Bytes read from the disk.
pub struct DiskBytes<D: Disk>(Read<D>);

enum Read<D: Disk> {
    /// Part of one aligned read.
    Part(<D::File as DiskFile>::Bytes, Range<usize>),
    Joined(Vec<u8>),
}

impl<D: Disk> Deref for DiskBytes<D> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Read::Part(bytes, range) => &bytes[range.clone()],
            Read::Joined(bytes) => bytes,
        }
    }
}

impl<D: Disk> LogReader<D> {
    pub(super) fn new(disk: D, by_base: Vec<ReadableSegment<D>>, block_cache: usize) -> Self {
        debug_assert!(by_base.is_sorted_by(|a, b| a.end <= b.base), "segments of the log do not overlap");
        Self {
            segments: Rc::new(RefCell::new(Segments { disk, by_base, opened: VecDeque::new() })),
            cache: BlockCache::new(block_cache),
            turns: Rc::default(),
            durable_then: Rc::default(),
            gaps: Gaps::default(),
        }
    }

    /// A segment was added behind the last one.
    pub(super) fn push(&self, segment: ReadableSegment<D>) {
        self.segments.borrow_mut().by_base.push(segment);
    }

    /// To be told of flushes.
    pub(super) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// The shard's block cache, for whoever reads other files of the shard.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Bytes from `position` on through the block cache: at least `need`, and as many more of `wish` as lie in the same segment and below
    /// `durable`. What is needed must be durable and lie in one segment, as every entry does.
    pub async fn read_shared(
        self,
        position: LogPosition,
        need: usize,
        wish: usize,
        durable: LogPosition,
    ) -> Result<Pinned, ReadError> {
        let segment_end = self.segments.borrow().at(position).map_or(position, |segment| segment.end);
        let left = segment_end.min(durable).0.saturating_sub(position.0) as usize;
        let (file, offset) = self.locate(position, need).await?;
        let first = offset / BLOCK as u64 * BLOCK as u64;
        let needed = position.0..position.0 + need as u64;
        let block = position.0 - (offset - first)..position.0 + wish.min(left).max(need) as u64;
        let read = async |end: u64| {
            let len = (end - block.start) as usize;
            let read = file.read_at(first, len.next_multiple_of(BLOCK)).await;
            let bytes = read.map_err(|source| ReadError::Io { position, source })?;
            bytes.get(..len).map(Rc::from).ok_or(ReadError::NotInLog(position))
        };
        let (cache, disk) = (self.cache.clone(), self.segments.borrow().disk.clone());
        let on_device = async || {
            let _turn = self.turns.take().await;
            if self.durable_then.replace(durable) != durable {
                disk.pause(COLD_REST).await;
                self.gaps.next().await;
            }
            match read(block.end).await {
                // Of what was only wished for, some may be unreadable.
                Err(_) if block.end > needed.end => read(needed.end).await,
                outcome => outcome,
            }
        };
        cache.get(Space::Log, needed.clone(), block.clone(), on_device).await
    }

    /// Base and end of the first segment that ends behind `position`.
    pub fn segment_behind(&self, position: LogPosition) -> Option<Range<LogPosition>> {
        let segments = self.segments.borrow();
        let place = segments.by_base.partition_point(|segment| segment.end <= position);
        segments.by_base.get(place).map(|segment| segment.base..segment.end)
    }

    /// Base and end of the oldest segment.
    pub(super) fn oldest(&self) -> Option<(LogPosition, LogPosition)> {
        self.segments.borrow().by_base.first().map(|segment| (segment.base, segment.end))
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.borrow().by_base.len()
    }

    /// How many positions the segments have together.
    pub(super) fn positions(&self) -> u64 {
        self.segments.borrow().by_base.iter().map(|segment| segment.end - segment.base).sum()
    }

    /// The oldest segment is no part of the log any more. Reads of it that are under way end as they would have.
    pub(super) fn retire_oldest(&self) -> Option<ReadableSegment<D>> {
        let segments = &mut *self.segments.borrow_mut();
        if segments.by_base.is_empty() {
            return None;
        }
        let retired = segments.by_base.remove(0);
        segments.opened.retain(|base| *base != retired.base);
        self.cache.forget(Space::Log, &(retired.base.0..retired.end.0));
        Some(retired)
    }

    /// Reads `[position, position + len)`, which must be durable and lie in one segment, as every entry does.
    pub async fn read(self, position: LogPosition, len: usize) -> Result<DiskBytes<D>, ReadError> {
        let (file, offset) = self.locate(position, len).await?;
        let block = BLOCK as u64;
        let first = offset / block * block;
        let last = (offset + len as u64).next_multiple_of(block);
        let skip = (offset - first) as usize;
        let read = |offset: u64, len: usize| {
            let file = Rc::clone(&file);
            async move {
                let bytes = file.read_at(offset, len).await.map_err(|source| ReadError::Io { position, source })?;
                if bytes.len() < len { Err(ReadError::NotInLog(position)) } else { Ok(bytes) }
            }
        };
        if last - first <= READ_MAX as u64 {
            let bytes = read(first, (last - first) as usize).await?;
            return Ok(DiskBytes(Read::Part(bytes, skip..skip + len)));
        }
        let mut joined = Vec::with_capacity((last - first) as usize);
        let mut at = first;
        while at < last {
            let len = (last - at).min(READ_MAX as u64) as usize;
            joined.extend_from_slice(&read(at, len).await?);
            at += len as u64;
        }
        joined.drain(..skip);
        joined.truncate(len);
        Ok(DiskBytes(Read::Joined(joined)))
    }

    /// The file that holds these positions, opened, and where in it they start.
    async fn locate(&self, position: LogPosition, len: usize) -> Result<(Rc<D::File>, u64), ReadError> {
        let (disk, name, offset) = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.at(position) else { return Err(ReadError::NotInLog(position)) };
            if segment.end.0.saturating_sub(position.0) < len as u64 {
                return Err(ReadError::NotInLog(position));
            }
            let offset = position - segment.base + BLOCK as u64;
            if let Some(file) = &segment.file {
                return Ok((Rc::clone(file), offset));
            }
            (segments.disk.clone(), segment.name.to_string(), offset)
        };
        let opened = disk.open(&name, Access::Read).await;
        let file = Rc::new(opened.map_err(|source| ReadError::Io { position, source })?);
        self.segments.borrow_mut().keep_open(position, &file);
        Ok((file, offset))
    }
}

impl<D: Disk> Segments<D> {
    fn index(&self, position: LogPosition) -> Option<usize> {
        let index = self.by_base.partition_point(|segment| segment.base <= position).checked_sub(1)?;
        (position < self.by_base[index].end).then_some(index)
    }

    fn at(&self, position: LogPosition) -> Option<&ReadableSegment<D>> {
        self.index(position).map(|index| &self.by_base[index])
    }

    /// Keeps the file for later reads, in place of the one that was opened first where there are too many.
    fn keep_open(&mut self, position: LogPosition, file: &Rc<D::File>) {
        let Some(index) = self.index(position) else { return };
        if self.by_base[index].file.is_some() {
            return;
        }
        if self.opened.len() == OPEN_FILES_MAX
            && let Some(base) = self.opened.pop_front()
            && let Some(oldest) = self.index(base)
        {
            self.by_base[oldest].file = None;
        }
        self.by_base[index].file = Some(Rc::clone(file));
        self.opened.push_back(self.by_base[index].base);
    }
}
