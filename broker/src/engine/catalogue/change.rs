//! A change of the catalogue as its entry says it: of a topic or of a group.
//!
//! Every payload begins with a version and a number that says what changed: 1 to 3 are `topic_change`'s, 4 and 5 are
//! `group::change`'s. A version or a change that this program does not know stops the start: a newer program wrote it, and
//! going on would lose what it means. Changes of topics know a second version. The entry's header carries the object's id where that of a topic stands in a batch.

use peregrine_protocol::entry::{EntryDraft, EntryKind};
use peregrine_protocol::ids::{Nanos, TopicId};

use super::object::{CatalogueId, ObjectId};
use super::topic_change::TopicChange;
use crate::engine::group::GroupChange;

/// The version of every change's payload, but of a topic with a retention of its own.
pub const VERSION: u8 = 1;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueChange {
    Topic(TopicChange),
    Group(GroupChange),
}

/// Why a catalogue entry cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueChangeError {
    #[error("catalogue entry version {0}: a newer program wrote it")]
    Version(u8),
    #[error("unknown catalogue change {0}: a newer program wrote it")]
    Change(u8),
    #[error("a catalogue entry of {0} bytes does not hold what it announces")]
    Length(usize),
    #[error("a name in the catalogue is not UTF-8")]
    Name,
    #[error("unknown start {0} of a group: a newer program wrote it")]
    Start(u64),
    #[error("the topics of a group do not ascend")]
    Order,
}

impl CatalogueChange {
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogueChangeError> {
        match bytes {
            [_, 1..=3, ..] => TopicChange::decode(bytes).map(Self::Topic),
            [version, _, ..] if *version != VERSION => Err(CatalogueChangeError::Version(*version)),
            [_, 4..=5, ..] => GroupChange::decode(bytes).map(Self::Group),
            [_, change, ..] => Err(CatalogueChangeError::Change(*change)),
            _ => Err(CatalogueChangeError::Length(bytes.len())),
        }
    }

    /// What it is about.
    pub fn id(&self) -> CatalogueId {
        match self {
            Self::Topic(change) => CatalogueId::Topic(change.topic),
            Self::Group(change) => CatalogueId::Group(change.group()),
        }
    }

    pub fn object(&self) -> ObjectId {
        match self.id() {
            CatalogueId::Topic(id) => id.into(),
            CatalogueId::Group(id) => id.into(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Topic(change) => change.encode(),
            Self::Group(change) => change.encode(),
        }
    }

    /// The entry that makes this change, and its payload.
    pub fn draft(&self, store_time: Nanos) -> (EntryDraft, Vec<u8>) {
        let payload = self.encode();
        let draft = EntryDraft {
            topic: TopicId(self.object().0),
            ..EntryDraft::without_records(EntryKind::Catalogue, &payload, store_time)
        };
        (draft, payload)
    }
}
