//! What the catalogue holds: topics and consumer groups. One counter gives ids to both, so that an id means one thing for ever.

use std::fmt;

use peregrine_protocol::ids::{GroupId, TopicId};

use super::TopicState;
use crate::engine::group::GroupState;

/// A topic's or a group's id, where it does not matter which. 0 is neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

impl From<TopicId> for ObjectId {
    fn from(id: TopicId) -> Self {
        Self(id.0)
    }
}

impl From<GroupId> for ObjectId {
    fn from(id: GroupId) -> Self {
        Self(id.0)
    }
}

/// Whom a question to the catalogue is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CatalogueId {
    Topic(TopicId),
    Group(GroupId),
}

impl fmt::Display for CatalogueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(id) => write!(f, "topic {id}"),
            Self::Group(id) => write!(f, "group {id}"),
        }
    }
}

/// What the catalogue says of an id, and what one shard tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueState {
    Topic(TopicState),
    Group(GroupState),
}

impl From<TopicState> for CatalogueState {
    fn from(state: TopicState) -> Self {
        Self::Topic(state)
    }
}

impl From<GroupState> for CatalogueState {
    fn from(state: GroupState) -> Self {
        Self::Group(state)
    }
}
