//! The records of a checkpoint, little endian. Sections are rows of whole records.
//!
//! ```text
//!  0      1         2          4            8
//! ┌──────┬─────────┬──────────┬────────────┬──────────────────────┐
//! │ kind │ version │ zero u16 │ length u32 │ body, `length` bytes │
//! └──────┴─────────┴──────────┴────────────┴──────────────────────┘
//!
//!  1 begin     shard u32 · shards u32 · begin u64 · store time u64
//!  2 object    store time u64 · payload of the catalogue entry that would make the topic or group what it is
//!  3 queue     QUEUE · epochs u32 · start u64 · end u64 · last position u64 · last store time u64
//!              · [ epoch u64 · first offset u64 ] × epochs · the index's last CHUNK, where it has one
//!  4 chunk     QUEUE · zero u32 · CHUNK, before the last one, in order
//!  5 places    QUEUE · zero u32 · [ group u64 · epoch u64 · offset u64 · end of entry u64 ] × n, ascending
//!  6 producer  QUEUE · producer epoch u32 · producer u64 · next sequence u64 · last used u64
//!              · [ offset u64 · position u64 · payload crc u32 · length u32 · records u32 · zero u32 ] × n, oldest first
//!  7 deleted   [ first id u64 · last id u64 ] × n, ascending
//!  8 end       end u64 · indexed to u64 · highest id u64 · lossy u64
//!
//!  QUEUE       topic u64 · queue u32
//!  CHUNK       first offset u64 · first position u64 · first store time u64 · end offset u64 · batches u32 · zero u32
//!              · the batches as `index` encodes them
//! ```
//!
//! A record comes first of kind 1, last of kind 8. Kinds 2 and 7 are shard 0's alone. A kind or a version that this program does
//! not know ends the restore: a newer program wrote it, and going on would lose what it means.

use peregrine_protocol::ids::{QueueId, TopicId};

use super::restore::RestoreError;
use crate::engine::QueueKey;
use crate::engine::index::Chunk;

/// The version of every kind of record.
pub const VERSION: u8 = 1;
const HEAD: usize = 8;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    Begin = 1,
    Object = 2,
    Queue = 3,
    Chunk = 4,
    Places = 5,
    Producer = 6,
    Deleted = 7,
    End = 8,
}

impl RecordKind {
    const ALL: [Self; 8] =
        [Self::Begin, Self::Object, Self::Queue, Self::Chunk, Self::Places, Self::Producer, Self::Deleted, Self::End];
}

/// A record that is being written: its numbers go behind each other, its length is put in at the end.
pub struct RecordWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> RecordWriter<'a> {
    pub fn begin(out: &'a mut Vec<u8>, kind: RecordKind) -> Self {
        let start = out.len();
        out.extend([kind as u8, VERSION, 0, 0, 0, 0, 0, 0]);
        Self { out, start }
    }

    pub fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    pub fn u64(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub fn queue(self, key: QueueKey) -> Self {
        self.u64(key.topic.0).u32(key.queue.0)
    }

    pub fn chunk(self, chunk: &Chunk) -> Self {
        let head = self.u64(chunk.first_offset).u64(chunk.first_position).u64(chunk.first_time).u64(chunk.end_offset);
        head.u32(chunk.batches).u32(0).bytes(&chunk.encoded)
    }

    pub fn each<T>(self, rows: impl IntoIterator<Item = T>, row: impl Fn(Self, T) -> Self) -> Self {
        rows.into_iter().fold(self, row)
    }

    pub fn end(self) {
        let length = (self.out.len() - self.start - HEAD) as u32;
        self.out[self.start + 4..self.start + HEAD].copy_from_slice(&length.to_le_bytes());
    }
}

/// What is left of a section, or of a record's body.
#[derive(Clone, Copy, Debug)]
pub struct RecordReader<'a>(&'a [u8]);

impl<'a> RecordReader<'a> {
    pub fn new(section: &'a [u8]) -> Self {
        Self(section)
    }

    /// The next record of a section; `None` at its end.
    pub fn next_record(&mut self) -> Result<Option<(RecordKind, RecordReader<'a>)>, RestoreError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let Some(([kind, version, zero @ .., l0, l1, l2, l3], rest)) = self.0.split_first_chunk::<HEAD>() else {
            return Err(RestoreError::Cut);
        };
        let known = RecordKind::ALL.into_iter().find(|&known| known as u8 == *kind);
        let (Some(known), VERSION, [0, 0]) = (known, *version, zero) else {
            return Err(RestoreError::Newer { kind: *kind, version: *version });
        };
        let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        let (body, rest) = rest.split_at_checked(length).ok_or(RestoreError::Cut)?;
        self.0 = rest;
        Ok(Some((known, RecordReader(body))))
    }

    pub fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    pub fn u64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    /// A number that says nothing yet.
    pub fn zero(&mut self) -> Option<()> {
        self.u32().filter(|&zero| zero == 0).map(drop)
    }

    pub fn queue(&mut self) -> Option<QueueKey> {
        Some(QueueKey { topic: TopicId(self.u64()?), queue: QueueId(self.u32()?) })
    }

    /// The chunk that fills the rest.
    pub fn chunk(&mut self) -> Option<Chunk> {
        let (first_offset, first_position, first_time) = (self.u64()?, self.u64()?, self.u64()?);
        let (end_offset, batches) = (self.u64()?, self.u32()?);
        self.zero()?;
        let encoded = self.rest().to_vec();
        Some(Chunk { first_offset, first_position, first_time, end_offset, batches, encoded })
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
