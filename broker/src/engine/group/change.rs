//! The payload of a catalogue entry about a group, little endian. It says in full what the group is, so that it counts by
//! itself where an accepted loss took what came before it.
//!
//! ```text
//!  0         1        2             4               8               16               24
//! ┌─────────┬────────┬─────────────┬───────────────┬───────────────┬────────────────┐
//! │ version │ change │ name length │ topics    u32 │ group id  u64 │ created ns u64 │
//! ├─────────┴────────┴─────────────┴───────────────┴───────────────┴────────────────┘
//! │ topic id u64 │ start u32 │ zero u32 │ value u64 │ × topics, ascending
//! ├──────────────┴───────────┴──────────┴───────────┘
//! │ name, UTF-8
//! ```
//!
//! Changes: 4 the group is, from now on, as the payload says; 5 it is deleted (`topics` and `created` are 0). Starts:
//! 1 earliest, 2 time (`value` in ns), 3 offset (`value`).

use peregrine_protocol::ids::{GroupId, Nanos, TopicId};

use super::registry::{Group, GroupStart};
use crate::engine::catalogue::{CatalogueChangeError as Error, VERSION};

const IS: u8 = 4;
const DELETED: u8 = 5;
const FIXED: usize = 24;
const ROW: usize = 24;

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// It was made, or took up topics: what it is from now on.
    Is(Group),
    Deleted {
        group: GroupId,
        name: String,
    },
}

impl GroupChange {
    pub fn group(&self) -> GroupId {
        match self {
            Self::Is(group) => group.id,
            Self::Deleted { group, .. } => *group,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Is(group) => &group.name,
            Self::Deleted { name, .. } => name,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let (change, created, topics) = match self {
            Self::Is(group) => (IS, group.created, group.topics.as_slice()),
            Self::Deleted { .. } => (DELETED, Nanos::ZERO, &[][..]),
        };
        let name = self.name();
        let mut bytes = Vec::with_capacity(FIXED + topics.len() * ROW + name.len());
        bytes.extend([VERSION, change]);
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend((topics.len() as u32).to_le_bytes());
        bytes.extend(self.group().0.to_le_bytes());
        bytes.extend(created.0.to_le_bytes());
        for &(topic, start) in topics {
            let (kind, value) = start.numbers();
            bytes.extend(topic.0.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(name.as_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let length = || Error::Length(bytes.len());
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>().ok_or_else(length)?;
        let &[version, change, n0, n1, t0, t1, t2, t3, ref ids @ ..] = fixed;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let topics = u32::from_le_bytes([t0, t1, t2, t3]) as usize;
        let (rows, name) = rest.split_at_checked(topics.saturating_mul(ROW)).ok_or_else(length)?;
        if name.len() != usize::from(u16::from_le_bytes([n0, n1])) {
            return Err(length());
        }
        let name = std::str::from_utf8(name).map_err(|_| Error::Name)?;
        let (group, created) = (GroupId(u64_at(ids, 0)), Nanos(u64_at(ids, 8)));
        match change {
            IS => Ok(Self::Is(Group { id: group, name: name.into(), created, topics: topics_of(rows)? })),
            DELETED if topics == 0 => Ok(Self::Deleted { group, name: name.to_owned() }),
            DELETED => Err(length()),
            other => Err(Error::Change(other)),
        }
    }
}

fn topics_of(rows: &[u8]) -> Result<Vec<(TopicId, GroupStart)>, Error> {
    let mut topics = Vec::with_capacity(rows.len() / ROW);
    for row in rows.chunks_exact(ROW) {
        let (topic, kind, value) = (TopicId(u64_at(row, 0)), u64_at(row, 8), u64_at(row, 16));
        let start = GroupStart::from_numbers(kind, value).ok_or(Error::Start(kind))?;
        if topics.last().is_some_and(|&(last, _)| last >= topic) {
            return Err(Error::Order);
        }
        topics.push((topic, start));
    }
    Ok(topics)
}

/// The number at `at` of a slice whose length was checked.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    match bytes[at..].first_chunk() {
        Some(number) => u64::from_le_bytes(*number),
        None => unreachable!("rows and the fixed part are cut to their lengths"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peregrine_protocol::ids::QueueOffset;

    fn billing() -> Group {
        let topics = vec![
            (TopicId(0x0102_0304), GroupStart::Earliest),
            (TopicId(0x0102_0305), GroupStart::Time(Nanos(0x0A0B))),
            (TopicId(0x0102_0306), GroupStart::Offset(QueueOffset(77))),
        ];
        Group { id: GroupId(0x1122), name: "billing".into(), created: Nanos(0x3344), topics }
    }

    /// The bytes of version 1. If this fails, old logs can no longer be read: raise [`VERSION`] instead.
    #[test]
    fn golden_bytes_of_version_1() {
        let expected = [
            &[1, 4, 7, 0, 3, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0x44, 0x33, 0, 0, 0, 0, 0, 0][..],
            &[4, 3, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[5, 3, 2, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x0B, 0x0A, 0, 0, 0, 0, 0, 0],
            &[6, 3, 2, 1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0],
            b"billing",
        ];
        assert_eq!(GroupChange::Is(billing()).encode(), expected.concat());
        let deleted = GroupChange::Deleted { group: GroupId(0x1122), name: "billing".to_owned() };
        let expected = [1, 5, 7, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(deleted.encode(), [&expected[..], b"billing"].concat());
    }

    #[test]
    fn every_change_leads_back_and_nothing_else_is_taken() {
        let deleted = GroupChange::Deleted { group: GroupId(7), name: "a".to_owned() };
        let empty = GroupChange::Is(Group { topics: Vec::new(), ..billing() });
        for change in [GroupChange::Is(billing()), empty, deleted] {
            assert_eq!(GroupChange::decode(&change.encode()), Ok(change));
        }
        let good = GroupChange::Is(billing()).encode();
        for end in 0..good.len() {
            assert_eq!(GroupChange::decode(&good[..end]), Err(Error::Length(end)));
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            GroupChange::decode(&bytes)
        };
        assert_eq!(changed(0, 2), Err(Error::Version(2)));
        assert_eq!(changed(1, 6), Err(Error::Change(6)));
        assert_eq!(changed(1, 5), Err(Error::Length(good.len())), "a deletion names no topics");
        assert_eq!(changed(4, 200), Err(Error::Length(good.len())));
        assert_eq!(changed(7, 0xFF), Err(Error::Length(good.len())));
        assert_eq!(changed(24, 6), Err(Error::Order));
        assert_eq!(changed(32, 9), Err(Error::Start(9)));
        assert_eq!(changed(96, 0xFF), Err(Error::Name));
    }
}
