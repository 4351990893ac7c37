//! The numbered sections of a record.

use super::RecordError;
use crate::ids::Nanos;
use crate::limits::SECTION_HEADER_LEN;

/// The sections that this version knows. Numbers are part of the format; a record's sections stand in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum SectionNumber {
    /// Chooses the queue, and is what compaction and look-up go by.
    Key = 1,
    /// One word for filters.
    Tag = 2,
    /// See [`super::Properties`].
    Properties = 3,
    /// What the producer's application sent.
    Body = 4,
    /// u64: when the producer made it, ns since the Unix epoch.
    BornTime = 5,
    /// u64: not to be delivered before, ns since the Unix epoch.
    DeliverAt = 6,
    /// u64: of no use after, ns since the Unix epoch.
    ExpiresAt = 7,
    /// u8: 0 to 9, as in JMS; 4 where absent.
    Priority = 8,
    /// Where an answer is to be sent.
    ReplyTo = 9,
    /// The id of the transaction it belongs to.
    Transaction = 10,
    /// A W3C trace context.
    TraceContext = 11,
}

impl SectionNumber {
    /// The exact length that the section must have, where it has one.
    pub(super) const fn fixed_len(number: u16) -> Option<usize> {
        match number {
            5..=7 => Some(8),
            8 => Some(1),
            _ => None,
        }
    }
}

/// One section of a record, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// A [`SectionNumber`], or one of a later version.
    pub number: u16,
    pub bytes: &'a [u8],
}

impl Section<'_> {
    /// The instant in a section of 8 bytes.
    pub fn instant(&self) -> Option<Nanos> {
        self.bytes.try_into().ok().map(|bytes| Nanos(u64::from_le_bytes(bytes)))
    }
}

/// The sections of a record that was checked whole: iteration cannot fail.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    /// Checks `count` sections that fill `bytes` exactly.
    pub(super) fn check(bytes: &'a [u8], count: u16) -> Result<Self, RecordError> {
        let mut rest = bytes;
        let mut last = None;
        for _ in 0..count {
            let (section, reserved, after) = split(rest).ok_or(RecordError::Length)?;
            if reserved != 0 {
                return Err(RecordError::Reserved);
            }
            if last.is_some_and(|last| last >= section.number) {
                return Err(RecordError::SectionOrder);
            }
            if SectionNumber::fixed_len(section.number).is_some_and(|len| len != section.bytes.len()) {
                return Err(RecordError::SectionLength(section.number));
            }
            last = Some(section.number);
            rest = after;
        }
        if rest.is_empty() { Ok(Self { rest: bytes }) } else { Err(RecordError::Length) }
    }

    /// The section of that number.
    pub fn get(&self, number: SectionNumber) -> Option<Section<'a>> {
        self.clone().find(|section| section.number == number as u16)
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Section<'a>;

    fn next(&mut self) -> Option<Section<'a>> {
        let (section, _, rest) = split(self.rest)?;
        self.rest = rest;
        Some(section)
    }
}

/// The first section of `bytes`, its reserved field, and what follows.
fn split(bytes: &[u8]) -> Option<(Section<'_>, u16, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<SECTION_HEADER_LEN>()?;
    let [n0, n1, r0, r1, l0, l1, l2, l3] = *header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let (bytes, rest) = rest.split_at_checked(len)?;
    Some((Section { number: u16::from_le_bytes([n0, n1]), bytes }, u16::from_le_bytes([r0, r1]), rest))
}
