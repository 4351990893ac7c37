//! The payload of a `GroupOffsets` entry: places that groups reached in queues of the entry's shard, little endian.
//!
//! ```text
//!  0              4               8
//! ┌──────────────┬───────────────┐
//! │ version  u32 │ rows      u32 │
//! ├──────────────┴┬──────────────┼───────────┬───────────┬───────────┬────────────┐
//! │ group id  u64 │ topic id u64 │ queue u32 │ flags u32 │ epoch u64 │ offset u64 │ × rows
//! └───────────────┴──────────────┴───────────┴───────────┴───────────┴────────────┘
//! ```
//!
//! A row says that the group has done with all below (epoch, offset). Flags: bit 0, the place was reset and may lie anywhere;
//! without it a place never goes back. Rows ascend by (group, topic, queue), so that no two of an entry move one place. The
//! entry's header names topic and queue of the first row.

use peregrine_protocol::entry::{EntryDraft, EntryFlags, EntryKind};
use peregrine_protocol::ids::{DurableLevel, Epoch, GroupId, Nanos, QueueId, QueueOffset, TopicId};

use crate::engine::QueueKey;

const VERSION: u32 = 1;
const HEAD: usize = 8;
const ROW: usize = 40;
const RESET: u32 = 1;

/// Bytes of a payload with one row.
const ONE: usize = HEAD + ROW;

/// One place, as an entry says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRow {
    pub group: GroupId,
    pub queue: QueueKey,
    /// Somebody put the group there: the place may lie before the one it had.
    pub reset: bool,
    pub epoch: Epoch,
    /// All below it is done.
    pub offset: QueueOffset,
}

/// The entry that moves one place: append `draft` with `payload` and apply it in the same turn, or drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    pub draft: EntryDraft,
    pub payload: [u8; ONE],
    /// The place that the group has then.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    /// The level to wait for before anybody is told.
    pub level: DurableLevel,
}

/// Why a `GroupOffsets` entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffsetsError {
    #[error("group offsets of version {0}, this program knows {VERSION}: a newer program wrote them")]
    Version(u32),
    #[error("unknown flags {0:#x} of a group's offset: a newer program wrote it")]
    Flags(u32),
    #[error("{0} bytes of group offsets do not hold what they announce")]
    Length(usize),
    #[error("the rows of group offsets do not ascend")]
    Order,
}

impl OffsetEntry {
    /// Bytes of its payload.
    pub const PAYLOAD: usize = ONE;
}

impl OffsetRow {
    /// The entry of this row alone.
    pub fn entry(&self, level: DurableLevel, store_time: Nanos) -> OffsetEntry {
        let mut payload = [0; ONE];
        encode(&[*self], &mut payload);
        let draft = EntryDraft {
            flags: EntryFlags::for_level(level),
            topic: self.queue.topic,
            queue: self.queue.queue,
            ..EntryDraft::without_records(EntryKind::GroupOffsets, &payload, store_time)
        };
        OffsetEntry { draft, payload, epoch: self.epoch, offset: self.offset, level }
    }

    /// A row whose flags are known.
    fn decode(row: &[u8; ROW]) -> Self {
        Self {
            group: GroupId(u64_at(row, 0)),
            queue: QueueKey { topic: TopicId(u64_at(row, 8)), queue: QueueId(u32_at(row, 16)) },
            reset: flags_of(row) & RESET != 0,
            epoch: Epoch(u64_at(row, 24)),
            offset: QueueOffset(u64_at(row, 32)),
        }
    }

    fn key(&self) -> (GroupId, QueueKey) {
        (self.group, self.queue)
    }
}

/// The rows of a payload that was checked whole.
#[derive(Clone, Copy, Debug)]
pub struct OffsetRows<'a>(&'a [[u8; ROW]]);

impl<'a> OffsetRows<'a> {
    pub fn check(payload: &'a [u8]) -> Result<Self, OffsetsError> {
        let length = || OffsetsError::Length(payload.len());
        let (head, rest) = payload.split_first_chunk::<HEAD>().ok_or_else(length)?;
        let (version, count) = (u32_at(head, 0), u32_at(head, 4));
        if version != VERSION {
            return Err(OffsetsError::Version(version));
        }
        let (rows, remainder) = rest.as_chunks::<ROW>();
        if !remainder.is_empty() || rows.len() != count as usize || count == 0 {
            return Err(length());
        }
        let mut last = None;
        for row in rows {
            if flags_of(row) & !RESET != 0 {
                return Err(OffsetsError::Flags(flags_of(row)));
            }
            let key = OffsetRow::decode(row).key();
            if last.is_some_and(|last| last >= key) {
                return Err(OffsetsError::Order);
            }
            last = Some(key);
        }
        Ok(Self(rows))
    }

    pub fn iter(&self) -> impl Iterator<Item = OffsetRow> + 'a {
        self.0.iter().map(OffsetRow::decode)
    }
}

/// Writes `rows`, which ascend, into `bytes`, which have the length of their payload.
fn encode(rows: &[OffsetRow], bytes: &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(HEAD);
    head[..4].copy_from_slice(&VERSION.to_le_bytes());
    head[4..].copy_from_slice(&(rows.len() as u32).to_le_bytes());
    let (places, remainder) = rest.as_chunks_mut::<ROW>();
    assert!(places.len() == rows.len() && remainder.is_empty(), "the payload has the length of its rows");
    for (row, place) in rows.iter().zip(places) {
        place[0..8].copy_from_slice(&row.group.0.to_le_bytes());
        place[8..16].copy_from_slice(&row.queue.topic.0.to_le_bytes());
        place[16..20].copy_from_slice(&row.queue.queue.0.to_le_bytes());
        place[20..24].copy_from_slice(&(if row.reset { RESET } else { 0 }).to_le_bytes());
        place[24..32].copy_from_slice(&row.epoch.0.to_le_bytes());
        place[32..40].copy_from_slice(&row.offset.0.to_le_bytes());
    }
}

fn flags_of(row: &[u8; ROW]) -> u32 {
    u32_at(row, 20)
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(rows: &[OffsetRow]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD + rows.len() * ROW];
        encode(rows, &mut bytes);
        bytes
    }

    fn row(group: u64, topic: u64, queue: u32) -> OffsetRow {
        let queue = QueueKey { topic: TopicId(topic), queue: QueueId(queue) };
        OffsetRow { group: GroupId(group), queue, reset: false, epoch: Epoch(5), offset: QueueOffset(6) }
    }

    /// The bytes of version 1. If this fails, old logs can no longer be read: raise [`VERSION`] instead.
    #[test]
    fn golden_bytes_of_version_1() {
        let first = OffsetRow { epoch: Epoch(0x44), offset: QueueOffset(0x0155), ..row(0x0111, 0x22, 0x33) };
        let second = OffsetRow { reset: true, ..row(0x0111, 0x22, 0x34) };
        let expected = [
            &[1, 0, 0, 0, 2, 0, 0, 0][..],
            &[0x11, 1, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0],
            &[0x44, 0, 0, 0, 0, 0, 0, 0, 0x55, 1, 0, 0, 0, 0, 0, 0],
            &[0x11, 1, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0x34, 0, 0, 0, 1, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(payload(&[first, second]), expected.concat());
        let entry = first.entry(DurableLevel::Memory, Nanos(9));
        assert_eq!(entry.payload[..], payload(&[first])[..]);
        assert_eq!((entry.draft.kind, entry.draft.kind as u8), (EntryKind::GroupOffsets, 5));
    }

    proptest! {
        #[test]
        fn rows_lead_back(
            keys in prop::collection::btree_set((1u64..5, 1u64..5, 0u32..5), 1..20),
            reset in any::<bool>(), epoch in any::<u64>(), offset in any::<u64>(),
        ) {
            let rows: Vec<OffsetRow> = keys
                .into_iter()
                .map(|(group, topic, queue)| OffsetRow {
                    reset,
                    epoch: Epoch(epoch),
                    offset: QueueOffset(offset),
                    ..row(group, topic, queue)
                })
                .collect();
            let bytes = payload(&rows);
            prop_assert_eq!(OffsetRows::check(&bytes).expect("it was encoded").iter().collect::<Vec<_>>(), rows);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(rows) = OffsetRows::check(&bytes) {
                prop_assert_eq!(rows.iter().count() * ROW + HEAD, bytes.len());
            }
        }
    }

    #[test]
    fn what_is_cut_unknown_or_out_of_order_is_refused() {
        let good = payload(&[row(1, 1, 0), row(1, 1, 1)]);
        for end in 0..good.len() {
            assert_eq!(OffsetRows::check(&good[..end]).err(), Some(OffsetsError::Length(end)));
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            OffsetRows::check(&bytes).err()
        };
        assert_eq!(changed(0, 2), Some(OffsetsError::Version(2)));
        assert_eq!(changed(4, 1), Some(OffsetsError::Length(good.len())));
        assert_eq!(changed(HEAD + 20, 2), Some(OffsetsError::Flags(2)));
        assert_eq!(changed(HEAD + 16, 1), Some(OffsetsError::Order), "the same queue twice");
        assert_eq!(OffsetRows::check(&payload(&[])).err(), Some(OffsetsError::Length(HEAD)));
    }
}
