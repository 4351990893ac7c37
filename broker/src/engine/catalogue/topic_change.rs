//! The payload of a catalogue entry about a topic, little endian.
//!
//! ```text
//!  0         1       2             4               8               16
//! ┌─────────┬───────┬─────────────┬───────────────┬───────────────┬──────────────┐
//! │ version │ change│ name length │ queues    u32 │ topic id  u64 │ name, UTF-8  │
//! └─────────┴───────┴─────────────┴───────────────┴───────────────┴──────────────┘
//! ```
//!
//! Changes: 1 create, 2 alter (`queues` is the new number), 3 delete (`queues` is 0). That is version 1, for topics of which nobody
//! ever said how long they keep their messages. Version 2 says it, and how often it was said, between id and name:
//!
//! ```text
//!  16                        24             28          32
//! ┌─────────────────────────┬──────────────┬───────────┬──────────────┐
//! │ age, nanoseconds    u64 │ revision u32 │ zero u32  │ name, UTF-8  │      age 0: none; revision > 0
//! └─────────────────────────┴──────────────┴───────────┴──────────────┘
//! ```

use peregrine_protocol::ids::{Nanos, TopicId};
use peregrine_protocol::message::TopicRetention;

use super::change::{CatalogueChangeError, VERSION};
use super::retention_setting::RetentionSetting;

const WITH_RETENTION: u8 = 2;
const FIXED: usize = 16;
const RETENTION: usize = 16;

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
    /// The topic's retention after the change.
    pub retention: RetentionSetting,
}

impl TopicChange {
    pub fn encode(&self) -> Vec<u8> {
        let RetentionSetting { wanted, revision } = self.retention;
        let version = if revision == 0 { VERSION } else { WITH_RETENTION };
        let mut bytes = Vec::with_capacity(FIXED + RETENTION + self.name.len());
        bytes.extend([version, self.kind as u8]);
        bytes.extend((self.name.len() as u16).to_le_bytes());
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(self.topic.0.to_le_bytes());
        if version == WITH_RETENTION {
            bytes.extend(wanted.age.map_or(0, |age| age.0).to_le_bytes());
            bytes.extend(revision.to_le_bytes());
            bytes.extend([0; 4]);
        }
        bytes.extend(self.name.as_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogueChangeError> {
        let length = || CatalogueChangeError::Length(bytes.len());
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>().ok_or_else(length)?;
        let &[version, change, n0, n1, q0, q1, q2, q3, topic @ ..] = fixed;
        let (retention, name) = match version {
            VERSION => (RetentionSetting::default(), rest),
            WITH_RETENTION => {
                let (retention, name) = rest.split_first_chunk::<RETENTION>().ok_or_else(length)?;
                (retention_of(retention).ok_or_else(length)?, name)
            }
            other => return Err(CatalogueChangeError::Version(other)),
        };
        let kind = match change {
            1 => ChangeKind::Create,
            2 => ChangeKind::Alter,
            3 => ChangeKind::Delete,
            other => return Err(CatalogueChangeError::Change(other)),
        };
        if name.len() != usize::from(u16::from_le_bytes([n0, n1])) {
            return Err(length());
        }
        Ok(Self {
            kind,
            topic: TopicId(u64::from_le_bytes(topic)),
            name: std::str::from_utf8(name).map_err(|_| CatalogueChangeError::Name)?.to_owned(),
            queues: u32::from_le_bytes([q0, q1, q2, q3]),
            retention,
        })
    }
}

fn retention_of(bytes: &[u8; RETENTION]) -> Option<RetentionSetting> {
    let &[a0, a1, a2, a3, a4, a5, a6, a7, r0, r1, r2, r3, 0, 0, 0, 0] = bytes else { return None };
    let age = Nanos(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]));
    let revision = u32::from_le_bytes([r0, r1, r2, r3]);
    let wanted = TopicRetention { age: Some(age).filter(|age| *age != Nanos::ZERO) };
    (revision > 0).then_some(RetentionSetting { wanted, revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> TopicChange {
        let (topic, name) = (TopicId(0x0102_0304), "orders".to_owned());
        TopicChange { kind: ChangeKind::Create, topic, name, queues: 8, retention: RetentionSetting::default() }
    }

    fn with_age(age: u64) -> TopicChange {
        let wanted = TopicRetention { age: Some(Nanos(age)).filter(|age| age.0 > 0) };
        TopicChange { retention: RetentionSetting { wanted, revision: 0x0708 }, ..create() }
    }

    /// The bytes of version 1. If this fails, old logs can no longer be read: raise [`VERSION`] instead.
    #[test]
    fn golden_bytes_of_version_1() {
        let expected = [&[1, 1, 6, 0, 8, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0][..], b"orders"].concat();
        assert_eq!(create().encode(), expected);
    }

    /// The same of version 2.
    #[test]
    fn golden_bytes_of_version_2() {
        let fixed = &[2, 1, 6, 0, 8, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0][..];
        let retention = &[0x22, 0x11, 0, 0, 0, 0, 0, 0x80, 8, 7, 0, 0, 0, 0, 0, 0][..];
        assert_eq!(with_age(0x8000_0000_0000_1122).encode(), [fixed, retention, b"orders"].concat());
    }

    #[test]
    fn every_kind_leads_back_and_nothing_else_is_taken() {
        for kind in [ChangeKind::Create, ChangeKind::Alter, ChangeKind::Delete] {
            let change = TopicChange { kind, ..create() };
            assert_eq!(TopicChange::decode(&change.encode()), Ok(change));
        }
        for age in [0, 1, u64::MAX] {
            assert_eq!(TopicChange::decode(&with_age(age).encode()), Ok(with_age(age)));
        }
        for good in [create().encode(), with_age(5).encode()] {
            for end in 0..good.len() {
                assert_eq!(TopicChange::decode(&good[..end]), Err(CatalogueChangeError::Length(end)));
            }
        }
        let unsaid = RetentionSetting { wanted: TopicRetention::default(), revision: 0 };
        let mut unsaid = TopicChange { retention: unsaid, ..create() }.encode();
        unsaid[0] = WITH_RETENTION;
        assert!(TopicChange::decode(&unsaid).is_err(), "version 2 says something of the retention");
        let changed = |at: usize, value: u8| {
            let mut bytes = create().encode();
            bytes[at] = value;
            TopicChange::decode(&bytes)
        };
        assert_eq!(changed(0, 3), Err(CatalogueChangeError::Version(3)));
        assert_eq!(changed(1, 4), Err(CatalogueChangeError::Change(4)));
        assert_eq!(changed(16, 0xff), Err(CatalogueChangeError::Name));
    }
}
