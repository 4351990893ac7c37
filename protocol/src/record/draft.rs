//! A record as a producer puts it together.

use super::SectionNumber;
use crate::checksum::crc32;
use crate::ids::Nanos;
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_LEN, SECTION_HEADER_LEN};

/// The sections of one message, borrowed from the application. What is `None` takes no room; a record without a body is one
/// with no bytes in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordDraft<'a> {
    pub key: Option<&'a [u8]>,
    pub tag: Option<&'a str>,
    /// Pairs made by [`super::push_property`].
    pub properties: Option<&'a [u8]>,
    pub body: &'a [u8],
    pub born_time: Option<Nanos>,
    pub deliver_at: Option<Nanos>,
    pub expires_at: Option<Nanos>,
    pub priority: Option<u8>,
    pub reply_to: Option<&'a [u8]>,
    pub transaction: Option<&'a [u8]>,
    pub trace_context: Option<&'a [u8]>,
}

impl RecordDraft<'_> {
    /// The record's length field: header and sections, without the filling. This is what the message limit counts.
    pub fn len(&self) -> u64 {
        let mut len = RECORD_HEADER_LEN as u64;
        self.each_section(|_, bytes| len += (SECTION_HEADER_LEN + bytes.len()) as u64);
        len
    }

    /// A record is never empty: its header is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends the record and its filling to a batch in the making, whose length is a multiple of 8. The caller has checked
    /// [`Self::len`] against the message limit, which is far below 4 GiB.
    pub fn append_to(&self, batch: &mut Vec<u8>) {
        assert!(batch.len().is_multiple_of(RECORD_ALIGN), "a batch holds whole records");
        let start = batch.len();
        batch.extend_from_slice(&[0; RECORD_HEADER_LEN]);
        let mut sections = 0u16;
        self.each_section(|number, bytes| {
            sections += 1;
            batch.extend_from_slice(&(number as u16).to_le_bytes());
            batch.extend_from_slice(&[0; 2]);
            batch.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            batch.extend_from_slice(bytes);
        });
        let Ok(length) = u32::try_from(batch.len() - start) else { panic!("the message limit was checked") };
        let record = &mut batch[start..];
        record[0..4].copy_from_slice(&length.to_le_bytes());
        record[10..12].copy_from_slice(&sections.to_le_bytes());
        let crc = crc32(&record[8..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        batch.resize(batch.len().next_multiple_of(RECORD_ALIGN), 0);
    }

    /// Calls `visit` for each section there is, in the order of the numbers.
    fn each_section(&self, mut visit: impl FnMut(SectionNumber, &[u8])) {
        let mut optional = |number, bytes: Option<&[u8]>| bytes.into_iter().for_each(|bytes| visit(number, bytes));
        let instant = |time: Option<Nanos>| time.map(|time| time.0.to_le_bytes());
        optional(SectionNumber::Key, self.key);
        optional(SectionNumber::Tag, self.tag.map(str::as_bytes));
        optional(SectionNumber::Properties, self.properties);
        optional(SectionNumber::Body, Some(self.body));
        optional(SectionNumber::BornTime, instant(self.born_time).as_ref().map(|bytes| &bytes[..]));
        optional(SectionNumber::DeliverAt, instant(self.deliver_at).as_ref().map(|bytes| &bytes[..]));
        optional(SectionNumber::ExpiresAt, instant(self.expires_at).as_ref().map(|bytes| &bytes[..]));
        optional(SectionNumber::Priority, self.priority.map(|priority| [priority]).as_ref().map(|bytes| &bytes[..]));
        optional(SectionNumber::ReplyTo, self.reply_to);
        optional(SectionNumber::Transaction, self.transaction);
        optional(SectionNumber::TraceContext, self.trace_context);
    }
}
