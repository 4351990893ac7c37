//! A segment as a list of what stands in it, and as a file.

use std::collections::HashMap;

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{
    Codec, DirectoryId, DirectorySecret, EntryDraft, EntryFlags, EntryHeader, EntryKind, PadHeader,
};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, ShardId,
    TopicId,
};
use peregrine_protocol::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN, PAD_HEADER_LEN};
use peregrine_protocol::record::{Batch, RecordDraft};

use crate::log::damage::Extent;
use crate::log::disk::simulated::{Conditions, Machine, SimulatedDisk};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::index::builder::{Bounds, build_bounded};
use crate::log::index::{IndexError, IndexReport, IndexedBatch, SealedSegment, SegmentIndex, Stop};
use crate::log::options::{BootId, Directory, LogOptions, RunId};
use crate::log::segment::Identity;

pub const BASE: LogPosition = LogPosition(1 << 20);
pub const FIRST_TIME: u64 = 1_700_000_000_000_000_000;

pub fn options() -> LogOptions {
    let directory = Directory { id: DirectoryId(1), secret: DirectorySecret([2; 16]), device: 3, inode: 4 };
    LogOptions::new(ShardId(5), directory, BootId(0), RunId(6), None)
}

/// Trees of a few rows, so that a small segment has many.
pub(in crate::log::index) fn small_bounds() -> Bounds {
    Bounds { tree_batches: 20, tree_keys: 30, run: 7, ..Bounds::default() }
}

/// A segment in the making, and what it holds.
pub struct Draft {
    pub options: LogOptions,
    pub epoch: Epoch,
    /// What stands from the base on.
    pub bytes: Vec<u8>,
    pub time: Nanos,
    pub batches: Vec<(TopicId, QueueId, IndexedBatch)>,
    pub ends: HashMap<(TopicId, QueueId), QueueOffset>,
    /// Topic, key, and where the record starts.
    pub keys: Vec<(TopicId, Vec<u8>, LogPosition)>,
    /// Where entries and pads start and end.
    pub entries: Vec<(LogPosition, LogPosition)>,
}

impl Draft {
    pub fn new() -> Self {
        Self {
            options: options(),
            epoch: Epoch(7),
            bytes: Vec::new(),
            time: Nanos(FIRST_TIME),
            batches: Vec::new(),
            ends: HashMap::new(),
            keys: Vec::new(),
            entries: Vec::new(),
        }
    }

    pub fn end(&self) -> LogPosition {
        BASE + self.bytes.len() as u64
    }

    pub fn push(&mut self, draft: &EntryDraft, payload: &[u8]) -> EntryHeader {
        let header = draft.at(self.end(), self.epoch);
        let mut bytes = [0; ENTRY_HEADER_LEN];
        header.encode(self.options.seal(), &mut bytes);
        self.entries.push((header.position, header.end()));
        self.bytes.extend_from_slice(&bytes);
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(ENTRY_ALIGN as usize), 0);
        header
    }

    /// An entry that is no batch.
    pub fn push_other(&mut self, kind: EntryKind, payload: &[u8]) {
        self.push(&EntryDraft::without_records(kind, payload, self.time), payload);
    }

    pub fn push_pad(&mut self, len: u64) {
        let (from, to) = (self.end(), self.end() + len);
        let mut bytes = [0; PAD_HEADER_LEN];
        PadHeader::filling(from, to, self.epoch, from, 0).encode(self.options.seal(), &mut bytes);
        self.entries.push((from, to));
        self.bytes.extend_from_slice(&bytes);
        // What a pad holds is not looked at.
        self.bytes.resize((to - BASE) as usize, 0xEE);
    }

    /// A batch of records with these keys; it goes on where the queue ends, behind a hole.
    pub fn push_batch(
        &mut self,
        topic: u64,
        queue: u32,
        hole: u64,
        codec: Codec,
        keys: &[Option<Vec<u8>>],
        body: usize,
    ) {
        let body = vec![7; body];
        let mut payload = Vec::new();
        for key in keys {
            let draft = RecordDraft { key: key.as_deref(), body: &body, tag: Some("t"), ..RecordDraft::default() };
            draft.append_to(&mut payload);
        }
        self.push_payload(topic, queue, hole, codec, keys.len() as u32, &payload);
    }

    pub fn push_payload(&mut self, topic: u64, queue: u32, hole: u64, codec: Codec, records: u32, payload: &[u8]) {
        let (topic, queue) = (TopicId(topic), QueueId(queue));
        let end = self.ends.get(&(topic, queue)).copied().unwrap_or_default();
        let draft = EntryDraft {
            kind: EntryKind::Batch,
            flags: EntryFlags::for_level(DurableLevel::Synced).with_codec(codec),
            payload_crc: crc32(payload),
            length: payload.len() as u32,
            record_count: records,
            topic,
            queue,
            producer_epoch: ProducerEpoch(0),
            base_offset: end + hole,
            store_time: self.time,
            producer_id: ProducerId::NONE,
            sequence: Sequence(0),
        };
        let header = self.push(&draft, payload);
        self.batches.push((topic, queue, indexed(&header)));
        self.ends.insert((topic, queue), header.end_offset());
        if codec == Codec::None
            && let Ok(batch) = Batch::new(payload, records)
        {
            for record in batch.records().map(Result::unwrap) {
                let position = header.payload_position() + u64::from(record.payload_offset());
                self.keys.extend(record.key().map(|key| (topic, key.to_vec(), position)));
            }
        }
    }

    pub fn identity(&self) -> Identity {
        // Behind what it holds stands what the log never came to.
        let size = self.bytes.len().next_multiple_of(BLOCK) + 3 * BLOCK;
        Identity::of_run(&self.options, RunId(1), self.epoch, BASE, size as u64, BASE, BASE)
    }

    /// The segment, sealed at its end.
    pub fn sealed(&self) -> SealedSegment {
        self.sealed_without(&[])
    }

    /// The segment, sealed at its end; these extents were given up.
    pub fn sealed_without(&self, given_up: &[Extent]) -> SealedSegment {
        SealedSegment::new(&self.identity(), self.end(), given_up)
    }

    /// Makes the segment's file.
    pub async fn write<D: Disk>(&self, disk: &D) {
        let identity = self.identity();
        let file = disk.create(&identity.name().to_string(), identity.size).await.unwrap();
        let mut block = disk.buffer(BLOCK);
        identity.encode(&mut block);
        file.write_at(block, 0).await.unwrap();
        let mut offset = BLOCK as u64;
        for part in self.bytes.chunks(256 << 10) {
            let mut buffer = disk.buffer(part.len().next_multiple_of(BLOCK));
            buffer.fill(0);
            buffer[..part.len()].copy_from_slice(part);
            let len = buffer.len() as u64;
            file.write_at(buffer, offset).await.unwrap();
            offset += len;
        }
        file.sync().await.unwrap();
        disk.sync_directory().await.unwrap();
    }
}

pub fn indexed(header: &EntryHeader) -> IndexedBatch {
    IndexedBatch {
        offset: header.base_offset,
        records: header.record_count,
        position: header.position,
        length: header.length,
        store_time: header.store_time,
    }
}

/// A machine whose only directory holds the segment of a draft.
pub struct Bench {
    pub machine: Machine,
    pub disk: SimulatedDisk,
    pub options: LogOptions,
    pub segment: SealedSegment,
}

impl Bench {
    pub fn of(draft: &Draft) -> Self {
        Self::seeded(1, draft, draft.sealed())
    }

    pub fn seeded(seed: u64, draft: &Draft, segment: SealedSegment) -> Self {
        let machine = Machine::new(seed, 1, Conditions::default());
        let disk = machine.disk(0);
        machine.block_on(draft.write(&disk));
        Self { machine, disk, options: draft.options.clone(), segment }
    }

    pub(in crate::log::index) fn build(&self, bounds: Bounds) -> Result<IndexReport, IndexError> {
        self.machine.block_on(build_bounded(&self.disk, &self.options, &self.segment, bounds, Stop::default()))
    }

    pub fn open(&self) -> Result<SegmentIndex<SimulatedDisk>, IndexError> {
        self.machine.block_on(SegmentIndex::open(&self.disk, &self.options, &self.segment))
    }

    pub fn index_name(&self) -> String {
        format!("index-{}", self.segment.name())
    }

    pub fn names(&self) -> Vec<String> {
        self.machine.file_names(0)
    }

    /// All bytes of the index.
    pub fn read_index(&self) -> Vec<u8> {
        self.machine.block_on(async {
            let file = self.disk.open(&self.index_name(), Access::Read).await.unwrap();
            file.read_at(0, file.size() as usize).await.unwrap()
        })
    }

    /// Puts a file of these bytes in the index's place.
    pub fn replace_index(&self, bytes: &[u8]) {
        self.machine.block_on(async {
            self.disk.remove(&self.index_name()).await.unwrap();
            let file = self.disk.create(&self.index_name(), bytes.len() as u64).await.unwrap();
            if !bytes.is_empty() {
                file.write_at(bytes.to_vec(), 0).await.unwrap();
            }
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.machine.take_breaches(), []);
        }
    }
}

/// A few entries of each kind, in some queues of some topics; two of its blocks are one long batch.
pub fn mixed() -> Draft {
    let mut draft = Draft::new();
    draft.push_other(EntryKind::Catalogue, b"a topic");
    for n in 0..40_u64 {
        draft.time = Nanos(FIRST_TIME + n * 1_000_000);
        let keys = [Some(vec![b'k', n as u8 % 5]), None, Some(Vec::new())];
        draft.push_batch(1 + n % 2, n as u32 % 3, n / 39, Codec::None, &keys, 10 * n as usize);
        if n == 20 {
            draft.push_batch(1, 0, 0, Codec::None, &[Some(b"long".to_vec()), Some(vec![5; 150_000])], 100_000);
        }
    }
    draft.push_other(EntryKind::GroupOffsets, &[3; 100]);
    draft.push_pad(1024);
    draft
}
