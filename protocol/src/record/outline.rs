//! The heads of a record and of its sections, for whoever goes through a batch whose bytes are not all at hand. What lies between
//! them is not looked at; the entry's own CRC says that it is what its producer sent.

use super::RecordError;
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_LEN, SECTION_HEADER_LEN};

/// The first bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOutline {
    /// Bytes of header and sections.
    pub length: u32,
    pub sections: u16,
}

impl RecordOutline {
    pub fn decode(bytes: &[u8; RECORD_HEADER_LEN]) -> Result<Self, RecordError> {
        let [l0, l1, l2, l3, _, _, _, _, _, _, s0, s1] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if (length as usize) < RECORD_HEADER_LEN {
            return Err(RecordError::Length);
        }
        Ok(Self { length, sections: u16::from_le_bytes([s0, s1]) })
    }

    /// Bytes up to the next record.
    pub fn filled_length(&self) -> u64 {
        u64::from(self.length).next_multiple_of(RECORD_ALIGN as u64)
    }
}

/// The first bytes of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionOutline {
    /// A [`super::SectionNumber`], or one of a later version.
    pub number: u16,
    /// Bytes behind the header.
    pub length: u32,
}

impl SectionOutline {
    pub fn decode(bytes: &[u8; SECTION_HEADER_LEN]) -> Self {
        let [n0, n1, _, _, l0, l1, l2, l3] = *bytes;
        Self { number: u16::from_le_bytes([n0, n1]), length: u32::from_le_bytes([l0, l1, l2, l3]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{RecordDraft, SectionNumber};

    #[test]
    fn outlines_lead_from_record_to_record_and_section_to_section() {
        let mut batch = Vec::new();
        RecordDraft { key: Some(b"seven"), body: b"eleven", ..RecordDraft::default() }.append_to(&mut batch);
        let first = RecordOutline::decode(batch.first_chunk().unwrap()).unwrap();
        assert_eq!((first.length, first.sections), (12 + 8 + 5 + 8 + 6, 2));
        assert_eq!(first.filled_length(), batch.len() as u64);
        let key = SectionOutline::decode(batch[12..].first_chunk().unwrap());
        assert_eq!(key, SectionOutline { number: SectionNumber::Key as u16, length: 5 });
        let body = SectionOutline::decode(batch[12 + 8 + 5..].first_chunk().unwrap());
        assert_eq!(body, SectionOutline { number: SectionNumber::Body as u16, length: 6 });
        assert_eq!(RecordOutline::decode(&[11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(RecordError::Length));
    }
}
