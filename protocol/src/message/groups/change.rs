//! A group made, given more topics, or deleted.

use super::row::{GroupRow, GroupTopics, check_topics};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, GroupId};
use crate::message::DecodeError;
use crate::message::table::{self, Envelope};
use crate::name::check_name;

/// Makes a group, or adds topics to one; a topic that it has keeps its start.
#[derive(Clone, Copy, Debug)]
pub struct CreateGroup<'a> {
    pub name: &'a str,
    pub topics: GroupTopics<'a>,
}

impl<'a> CreateGroup<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::CreateGroup<'a>>(header)?;
        check_name(table.name())?;
        check_topics(table.topics())?;
        Ok(Self { name: table.name(), topics: GroupTopics::from_wire(table.topics()) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::CreateGroup, correlation).write(out, |builder| {
            let name = Some(builder.create_string(self.name));
            let topics = Some(self.topics.build(builder));
            wire::CreateGroup::create(builder, &wire::CreateGroupArgs { name, topics })
        });
    }
}

/// Deletes a group and its offsets; its members end with `GroupDeleted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteGroup<'a> {
    pub name: &'a str,
    /// Only if the group has this id; so that a deletion sent twice does not take a namesake made between.
    pub id: Option<GroupId>,
}

impl<'a> DeleteGroup<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DeleteGroup<'a>>(header)?;
        check_name(table.name())?;
        Ok(Self { name: table.name(), id: Some(GroupId(table.id())).filter(|id| id.0 != 0) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::DeleteGroup, correlation).write(out, |builder| {
            let name = Some(builder.create_string(self.name));
            wire::DeleteGroup::create(builder, &wire::DeleteGroupArgs { name, id: self.id.map_or(0, |id| id.0) })
        });
    }
}

/// Answers create and delete: the group as it is now, or was when it was deleted.
#[derive(Clone, Copy, Debug)]
pub struct GroupAnswer<'a> {
    pub group: GroupRow<'a>,
    /// False: it was so before.
    pub changed: bool,
}

impl<'a> GroupAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::GroupAnswer<'a>>(header)?;
        Ok(Self { group: GroupRow::check(table.group())?, changed: table.changed() })
    }

    pub fn encode(&self, kind: Kind, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(kind, correlation).write(out, |builder| {
            let group = Some(self.group.build(builder));
            wire::GroupAnswer::create(builder, &wire::GroupAnswerArgs { group, changed: self.changed })
        });
    }
}
