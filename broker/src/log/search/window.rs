//! Bytes of the log where they are looked for, and what they are: entries, and the records of a batch.

use super::{SearchError, SearchedLog};
use crate::limits::{COLD_READ, SEARCH_BACK, SEARCH_STEP, STEP};
use crate::log::error::ReadError;
use peregrine_protocol::checksum::{Crc32, crc32};
use peregrine_protocol::entry::{ENTRY_MAGIC, Entry, EntryHeader};
use peregrine_protocol::ids::{LogPosition, Nanos};
use peregrine_protocol::limits::{
    ENTRY_ALIGN, ENTRY_HEADER_LEN, ENTRY_PAYLOAD_MAX, PAD_HEADER_LEN, RECORD_HEADER_LEN, SECTION_HEADER_LEN,
};
use peregrine_protocol::record::{RecordOutline, SectionNumber, SectionOutline};
use std::ops::Deref;

/// What looking at one header, record or section is counted as.
const LOOK: Nanos = Nanos(60);
/// Bytes that are copied or summed in a nanosecond, as far as steps are counted.
const BYTES_PER_NANO: u64 = 8;

/// What is held of a log in one place.
pub struct SearchWindow<L> {
    log: L,
    from: LogPosition,
    held: Option<Box<dyn Deref<Target = [u8]>>>,
    looked: u64,
    spent: Nanos,
}

/// A record of a batch, in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRecord {
    pub position: LogPosition,
    /// Its place among the records of its batch.
    pub index: u32,
    /// Its length, and how many sections it has.
    pub outline: RecordOutline,
}

impl FoundRecord {
    fn end(&self) -> LogPosition {
        self.position + u64::from(self.outline.length)
    }
}

/// A walk over the records of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    at: LogPosition,
    end: LogPosition,
    index: u32,
}

impl Records {
    pub fn of(batch: &EntryHeader) -> Self {
        let at = batch.payload_position();
        Self { at, end: at + u64::from(batch.length), index: 0 }
    }
}

impl<L: SearchedLog> SearchWindow<L> {
    pub fn new(log: L) -> Self {
        Self { log, from: LogPosition(0), held: None, looked: 0, spent: Nanos::ZERO }
    }

    pub fn log(&self) -> &L {
        &self.log
    }

    /// Bytes that were looked at so far, those that were looked at twice counted twice.
    pub fn looked(&self) -> u64 {
        self.looked
    }

    /// The entry that begins at `at`, if one does; its payload is not looked at.
    pub async fn entry(&mut self, at: LogPosition) -> Result<Option<Entry>, SearchError> {
        let Some(stretch) = self.log.stretch(at).filter(|stretch| stretch.contains(&at)) else { return Ok(None) };
        let mut need = ENTRY_HEADER_LEN.min((stretch.end - at) as usize);
        if need < PAD_HEADER_LEN || !at.0.is_multiple_of(ENTRY_ALIGN) {
            return Ok(None);
        }
        // A pad may be shorter than other headers, and what follows it may stand elsewhere: it is the last thing in a ring.
        if let Err(SearchError::Read(ReadError::NotInLog(_))) = self.bytes(at, need, COLD_READ).await {
            need = PAD_HEADER_LEN;
        }
        let seal = self.log.seal();
        let entry = Entry::decode(self.bytes(at, need, COLD_READ).await?, seal);
        Ok(entry.ok().filter(|entry| entry.position() == at && entry.end() <= stretch.end))
    }

    /// The entry in which `position` lies. None where no segment has it.
    pub async fn entry_around(&mut self, position: LogPosition) -> Result<Option<Entry>, SearchError> {
        let Some(stretch) = self.log.stretch(position).filter(|stretch| stretch.contains(&position)) else {
            return Ok(None);
        };
        let furthest = position.0.saturating_sub(ENTRY_HEADER_LEN as u64 + u64::from(ENTRY_PAYLOAD_MAX));
        let lowest = stretch.start.max(LogPosition(furthest / ENTRY_ALIGN * ENTRY_ALIGN));
        // A header begins in front of this.
        let mut high = LogPosition(position.0 / ENTRY_ALIGN * ENTRY_ALIGN) + ENTRY_ALIGN;
        let mut len = SEARCH_BACK;
        while high > lowest {
            let low = self.hold_below(lowest.max(LogPosition(high.0.saturating_sub(len as u64))), high).await?;
            let held = self.bytes(low, (high - low) as usize, 0).await?;
            let magic = ENTRY_MAGIC.to_le_bytes();
            let places = held.chunks(ENTRY_ALIGN as usize).enumerate().filter(|(_, chunk)| chunk.starts_with(&magic));
            let places: Vec<_> = places.map(|(place, _)| low + place as u64 * ENTRY_ALIGN).collect();
            for at in places.into_iter().rev() {
                // A payload may have the same four bytes.
                if let Some(entry) = self.entry(at).await? {
                    return Ok(Some(entry).filter(|entry| entry.end() > position));
                }
            }
            high = low;
            len = (len * 4).min(STEP);
        }
        Ok(None)
    }

    /// Whether a batch's payload is what its producer sent.
    pub async fn check_payload(&mut self, batch: &EntryHeader) -> Result<(), SearchError> {
        let mut crc = Crc32::new();
        let mut at = batch.payload_position();
        let end = at + u64::from(batch.length);
        while at < end {
            let part = self.part(at, end).await?;
            crc.update(part);
            let len = part.len() as u64;
            at += len;
            self.spend(Nanos(len / BYTES_PER_NANO)).await;
        }
        if crc.finish() == batch.payload_crc { Ok(()) } else { Err(SearchError::Damaged(batch.position)) }
    }

    /// The next record of a batch whose payload was checked.
    pub async fn next_record(&mut self, records: &mut Records) -> Result<Option<FoundRecord>, SearchError> {
        let Records { at, end, index } = *records;
        if at == end {
            return Ok(None);
        }
        let damaged = SearchError::Damaged(at);
        let header = self.within::<RECORD_HEADER_LEN>(at, end).await?;
        let outline = match header.map(RecordOutline::decode) {
            Some(Ok(outline)) if outline.filled_length() <= end - at => outline,
            _ => return Err(damaged),
        };
        *records = Records { at: at + outline.filled_length(), end, index: index + 1 };
        Ok(Some(FoundRecord { position: at, index, outline }))
    }

    /// Whether the record has this key.
    pub async fn has_key(&mut self, record: &FoundRecord, key: &[u8]) -> Result<bool, SearchError> {
        let end = record.end();
        let mut at = record.position + RECORD_HEADER_LEN as u64;
        // Sections stand in the order of their numbers, and only one number is lower than a key's.
        for _ in 0..record.outline.sections.min(2) {
            let Some(section) = self.within::<SECTION_HEADER_LEN>(at, end).await?.map(SectionOutline::decode) else {
                return Ok(false);
            };
            let bytes = at + SECTION_HEADER_LEN as u64;
            if section.number == SectionNumber::Key as u16 {
                let fits = u64::from(section.length) <= end - bytes;
                return Ok(fits && section.length as usize == key.len() && self.is_at(bytes, key).await?);
            }
            at = bytes + u64::from(section.length);
            if section.number > SectionNumber::Key as u16 || at >= end {
                break;
            }
        }
        Ok(false)
    }

    /// The record's bytes, without its filling.
    pub async fn copy(&mut self, record: &FoundRecord) -> Result<Vec<u8>, SearchError> {
        let mut copy = Vec::with_capacity(record.outline.length as usize);
        let end = record.end();
        while copy.len() < record.outline.length as usize {
            let part = self.part(record.position + copy.len() as u64, end).await?;
            copy.extend_from_slice(part);
            let len = part.len() as u64;
            self.spend(Nanos(len / BYTES_PER_NANO)).await;
        }
        Ok(copy)
    }

    async fn is_at(&mut self, at: LogPosition, bytes: &[u8]) -> Result<bool, SearchError> {
        let end = at + bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let part = self.part(end_minus(end, rest.len()), end).await?;
            if !rest.starts_with(part) {
                return Ok(false);
            }
            rest = &rest[part.len()..];
        }
        Ok(true)
    }

    /// The `N` bytes at `at`, unless they reach beyond `end`.
    async fn within<const N: usize>(
        &mut self,
        at: LogPosition,
        end: LogPosition,
    ) -> Result<Option<&[u8; N]>, SearchError> {
        if at + N as u64 > end {
            return Ok(None);
        }
        Ok(self.bytes(at, N, to_read(at, end)).await?.first_chunk())
    }

    /// What is at hand of the bytes from `at` to `end`, one step of them at the most, or a step that is read.
    async fn part(&mut self, at: LogPosition, end: LogPosition) -> Result<&[u8], SearchError> {
        let left = ((end - at) as usize).min(STEP);
        let held = self.held_from(at).map_or(0, <[u8]>::len);
        let len = if held == 0 { left } else { left.min(held) };
        self.bytes(at, len, to_read(at, end)).await
    }

    /// Makes sure that what stands in front of `high` is held, from `low` on if it can be had together, and says from where on it is.
    async fn hold_below(&mut self, low: LogPosition, high: LogPosition) -> Result<LogPosition, SearchError> {
        let mut low = low;
        loop {
            let outcome = self.bytes(low, (high - low) as usize, 0).await.map(drop);
            match outcome {
                Ok(()) => return Ok(low),
                // The ring may have only the end of it, while the rest is on the disk: less of it is in one place.
                Err(SearchError::Read(ReadError::NotInLog(_))) if high - low > ENTRY_ALIGN => {
                    low = end_minus(
                        high,
                        ((high - low) / 2).next_multiple_of(ENTRY_ALIGN).min(high - low - ENTRY_ALIGN) as usize,
                    );
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `need` bytes from `at` on; where they are not held, `wish` are read.
    async fn bytes(&mut self, at: LogPosition, need: usize, wish: usize) -> Result<&[u8], SearchError> {
        self.spend(LOOK).await;
        if self.held_from(at).is_none_or(|held| held.len() < need) {
            let read = self.log.read(at, need, wish.max(need)).await?;
            self.looked += read.len() as u64;
            let cost = Nanos(read.len() as u64 / BYTES_PER_NANO);
            (self.from, self.held) = (at, Some(read));
            self.spend(cost).await;
        }
        self.held_from(at).and_then(|held| held.get(..need)).ok_or(SearchError::Read(ReadError::NotInLog(at)))
    }

    fn held_from(&self, at: LogPosition) -> Option<&[u8]> {
        let skip = at.0.checked_sub(self.from.0)?;
        self.held.as_ref()?.get(skip as usize..)
    }

    /// Counts work, and rests when a step of it is done.
    async fn spend(&mut self, cost: Nanos) {
        self.spent += cost.0;
        if self.spent >= SEARCH_STEP {
            self.spent = Nanos::ZERO;
            self.log.rest().await;
        }
    }
}

/// The checksum that a record carries, if its bytes are what it was computed of.
pub fn record_checksum(record: &[u8]) -> Option<u32> {
    let carried = u32::from_le_bytes(*record.get(4..)?.first_chunk()?);
    (crc32(record.get(8..)?) == carried).then_some(carried)
}

/// Behind `end` stands what may not be wanted.
fn to_read(at: LogPosition, end: LogPosition) -> usize {
    (end - at).min(COLD_READ as u64) as usize
}

fn end_minus(end: LogPosition, len: usize) -> LogPosition {
    LogPosition(end.0 - len as u64)
}
