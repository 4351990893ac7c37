//! The payload of a catalogue entry about a topic, little endian.
//!
//! ```text
//!  0         1       2             4               8               16
//! ┌─────────┬───────┬─────────────┬───────────────┬───────────────┬──────────────┐
//! │ version │ change│ name length │ queues    u32 │ topic id  u64 │ name, UTF-8  │
//! └─────────┴───────┴─────────────┴───────────────┴───────────────┴──────────────┘
//! ```
//!
//! Changes: 1 create, 2 alter (`queues` is the new number), 3 delete (`queues` is 0).

use peregrine_protocol::ids::TopicId;

use super::change::{CatalogueChangeError, VERSION};

const FIXED: usize = 16;

/// What happened to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    Create = 1,
    Alter = 2,
    Delete = 3,
}

/// One change of a topic, as its entry says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicChange {
    pub kind: ChangeKind,
    pub topic: TopicId,
    pub name: String,
    /// The topic's queues after the change; 0 after deletion.
    pub queues: u32,
}

impl TopicChange {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.name.len());
        bytes.extend([VERSION, self.kind as u8]);
        bytes.extend((self.name.len() as u16).to_le_bytes());
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(self.topic.0.to_le_bytes());
        bytes.extend(self.name.as_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogueChangeError> {
        let Some((fixed, name)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(CatalogueChangeError::Length(bytes.len()));
        };
        let &[version, change, n0, n1, q0, q1, q2, q3, topic @ ..] = fixed;
        if version != VERSION {
            return Err(CatalogueChangeError::Version(version));
        }
        let kind = match change {
            1 => ChangeKind::Create,
            2 => ChangeKind::Alter,
            3 => ChangeKind::Delete,
            other => return Err(CatalogueChangeError::Change(other)),
        };
        if name.len() != usize::from(u16::from_le_bytes([n0, n1])) {
            return Err(CatalogueChangeError::Length(bytes.len()));
        }
        Ok(Self {
            kind,
            topic: TopicId(u64::from_le_bytes(topic)),
            name: std::str::from_utf8(name).map_err(|_| CatalogueChangeError::Name)?.to_owned(),
            queues: u32::from_le_bytes([q0, q1, q2, q3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> TopicChange {
        TopicChange { kind: ChangeKind::Create, topic: TopicId(0x0102_0304), name: "orders".to_owned(), queues: 8 }
    }

    /// The bytes of version 1. If this fails, old logs can no longer be read: raise [`VERSION`] instead.
    #[test]
    fn golden_bytes_of_version_1() {
        let expected = [&[1, 1, 6, 0, 8, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0][..], b"orders"].concat();
        assert_eq!(create().encode(), expected);
    }

    #[test]
    fn every_kind_leads_back_and_nothing_else_is_taken() {
        for kind in [ChangeKind::Create, ChangeKind::Alter, ChangeKind::Delete] {
            let change = TopicChange { kind, ..create() };
            assert_eq!(TopicChange::decode(&change.encode()), Ok(change));
        }
        let good = create().encode();
        for end in 0..good.len() {
            assert_eq!(TopicChange::decode(&good[..end]), Err(CatalogueChangeError::Length(end)));
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = create().encode();
            bytes[at] = value;
            TopicChange::decode(&bytes)
        };
        assert_eq!(changed(0, 2), Err(CatalogueChangeError::Version(2)));
        assert_eq!(changed(1, 4), Err(CatalogueChangeError::Change(4)));
        assert_eq!(changed(16, 0xff), Err(CatalogueChangeError::Name));
    }
}
