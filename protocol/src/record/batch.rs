//! A batch's payload, taken apart in place.

use super::{Properties, RecordError, Section, SectionNumber, Sections};
use crate::checksum::crc32;
use crate::ids::Nanos;
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_LEN, RECORDS_MAX, SECTIONS_MAX};

/// The payload of an uncompressed batch whose records were counted and whose bounds were checked.
///
/// [`Batch::new`] walks the record headers alone: it is what a broker does to know that the records take as many queue
/// offsets as the batch says, at a few nanoseconds a record. Contents are checked by whoever reads a record.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    payload: &'a [u8],
    count: u32,
    largest: u32,
}

impl<'a> Batch<'a> {
    /// Takes `payload` for a batch of `count` records, or says why it is none.
    pub fn new(payload: &'a [u8], count: u32) -> Result<Self, RecordError> {
        let mut rest = payload;
        let (mut held, mut largest) = (0u32, 0);
        while !rest.is_empty() {
            let (record, after) = split(rest)?;
            rest = after;
            largest = largest.max(record.len() as u32);
            held += 1;
            if held > RECORDS_MAX {
                break;
            }
        }
        if held != count || count == 0 || count > RECORDS_MAX {
            return Err(RecordError::Count { said: count, held });
        }
        Ok(Self { payload, count, largest })
    }

    /// Checks every record to the last byte as well.
    pub fn check_contents(&self) -> Result<(), RecordError> {
        self.records().try_for_each(|record| {
            let record = record?;
            record.properties().try_for_each(|pair| pair.map(drop))
        })
    }

    /// The length field of the largest record, which is what the message limit bounds.
    pub fn largest_record(&self) -> u32 {
        self.largest
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The records in order; an item is an error where a record's contents are wrong.
    pub fn records(&self) -> Records<'a> {
        Records { rest: self.payload, offset: 0 }
    }
}

/// Walks the records of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    /// Of `rest` within the payload.
    offset: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split(self.rest) {
            Ok((bytes, rest)) => {
                let offset = self.offset;
                self.offset += (self.rest.len() - rest.len()) as u32;
                self.rest = rest;
                Some(Record::check(bytes, offset))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// One message, in place, checked whole.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    bytes: &'a [u8],
    payload_offset: u32,
    sections: Sections<'a>,
}

impl<'a> Record<'a> {
    fn check(bytes: &'a [u8], payload_offset: u32) -> Result<Self, RecordError> {
        let Some((&[_, _, _, _, c0, c1, c2, c3, a0, a1, s0, s1], sections)) = bytes.split_first_chunk() else {
            return Err(RecordError::Length);
        };
        if crc32(&bytes[8..]) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(RecordError::Checksum);
        }
        let attributes = u16::from_le_bytes([a0, a1]);
        if attributes != 0 {
            return Err(RecordError::Attributes(attributes));
        }
        let count = u16::from_le_bytes([s0, s1]);
        if count > SECTIONS_MAX {
            return Err(RecordError::SectionCount(count));
        }
        Ok(Self { bytes, payload_offset, sections: Sections::check(sections, count)? })
    }

    /// The record's bytes without the filling.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The CRC32 that it carries and matches.
    pub fn checksum(&self) -> u32 {
        self.bytes.get(4..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Where the record starts in its batch's payload; with the entry's position it makes the message id.
    pub fn payload_offset(&self) -> u32 {
        self.payload_offset
    }

    /// All sections, unknown ones included.
    pub fn sections(&self) -> Sections<'a> {
        self.sections.clone()
    }

    pub fn section(&self, number: SectionNumber) -> Option<&'a [u8]> {
        self.sections.get(number).map(|section| section.bytes)
    }

    pub fn instant(&self, number: SectionNumber) -> Option<Nanos> {
        self.sections.get(number).as_ref().and_then(Section::instant)
    }

    pub fn key(&self) -> Option<&'a [u8]> {
        self.section(SectionNumber::Key)
    }

    pub fn tag(&self) -> Option<&'a str> {
        self.section(SectionNumber::Tag).and_then(|bytes| str::from_utf8(bytes).ok())
    }

    /// Empty where there is none.
    pub fn body(&self) -> &'a [u8] {
        self.section(SectionNumber::Body).unwrap_or_default()
    }

    pub fn properties(&self) -> Properties<'a> {
        Properties::new(self.section(SectionNumber::Properties).unwrap_or_default())
    }

    pub fn born_time(&self) -> Option<Nanos> {
        self.instant(SectionNumber::BornTime)
    }
}

/// The first record of `bytes` without its filling, and what follows the filling.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), RecordError> {
    let header = bytes.first_chunk::<RECORD_HEADER_LEN>().ok_or(RecordError::Length)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let filled = length.next_multiple_of(RECORD_ALIGN);
    if length < RECORD_HEADER_LEN || filled > bytes.len() {
        return Err(RecordError::Length);
    }
    let (record, rest) = bytes.split_at(filled);
    let (record, filling) = record.split_at(length);
    if filling.iter().any(|&byte| byte != 0) {
        return Err(RecordError::Filling);
    }
    Ok((record, rest))
}
