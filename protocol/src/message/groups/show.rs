//! Which groups there are, and who a group's members are.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, WIPOffset};

use super::row::{GroupRow, check_topics};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, MemberId, Nanos, ShardId};
use crate::limits::{CLIENT_TEXT_MAX, GROUPS_PAGE_MAX, MEMBERS_PAGE_MAX, NAME_MAX};
use crate::message::DecodeError;
use crate::message::list::{ListIn, list};
use crate::message::table::{self, Envelope};
use crate::name::check_name;

list!(
    /// At most [`GROUPS_PAGE_MAX`] groups.
    GroupRows,
    GroupRow<'a>,
    ForwardsUOffset<wire::Group<'a>>,
    GroupRow::from_wire
);

/// A page of the groups whose names start with `prefix`, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListGroups<'a> {
    pub prefix: &'a str,
    /// Only names above this one. Empty: from the first.
    pub after: &'a str,
    /// 1 to [`GROUPS_PAGE_MAX`].
    pub limit: u32,
}

impl<'a> ListGroups<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ListGroups<'a>>(header)?;
        Ok(Self {
            prefix: table::bounded(table.prefix(), NAME_MAX, "prefix")?,
            after: table::bounded(table.after(), NAME_MAX, "after")?,
            limit: table::page_limit(table.limit(), GROUPS_PAGE_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::ListGroups, correlation).write(out, |builder| {
            let args = wire::ListGroupsArgs {
                prefix: Some(builder.create_string(self.prefix)),
                after: Some(builder.create_string(self.after)),
                limit: self.limit,
            };
            wire::ListGroups::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ListGroupsAnswer<'a> {
    pub groups: GroupRows<'a>,
    /// More follow behind the last name.
    pub more: bool,
}

impl<'a> ListGroupsAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ListGroupsAnswer<'a>>(header)?;
        table.groups().iter().try_for_each(|group| check_topics(group.topics()))?;
        Ok(Self { groups: GroupRows::from_wire(table.groups()), more: table.more() })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::ListGroups, correlation).write(out, |builder| {
            let rows: Vec<_> = self.groups.iter().map(|row| row.build(builder)).collect();
            let groups = Some(builder.create_vector(&rows));
            wire::ListGroupsAnswer::create(builder, &wire::ListGroupsAnswerArgs { groups, more: self.more })
        });
    }
}

/// A member of a group as a description shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberRow<'a> {
    pub name: &'a str,
    pub id: MemberId,
    /// The client instance.
    pub client: &'a str,
    pub joined: Nanos,
    /// False: its connection is lost, and its queues wait for it until the grace time is over.
    pub connected: bool,
    /// How many queues are assigned to it.
    pub queues: u32,
}

impl<'a> MemberRow<'a> {
    fn from_wire(member: wire::Member<'a>) -> Self {
        Self {
            name: member.name(),
            id: MemberId(member.id()),
            client: member.client().unwrap_or_default(),
            joined: Nanos(member.joined()),
            connected: member.connected(),
            queues: member.queues(),
        }
    }

    fn build<'b>(&self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<wire::Member<'b>> {
        let args = wire::MemberArgs {
            name: Some(builder.create_string(self.name)),
            id: self.id.0,
            client: Some(builder.create_string(self.client)),
            joined: self.joined.0,
            connected: self.connected,
            queues: self.queues,
        };
        wire::Member::create(builder, &args)
    }
}

list!(
    /// At most [`MEMBERS_PAGE_MAX`] members.
    MemberRows,
    MemberRow<'a>,
    ForwardsUOffset<wire::Member<'a>>,
    MemberRow::from_wire
);
/// A group and a page of its members; asked of its home shard ([`crate::placement::group_home`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeGroup<'a> {
    pub name: &'a str,
    /// Only members whose names are above this one. Empty: from the first.
    pub after: &'a str,
    /// 1 to [`MEMBERS_PAGE_MAX`].
    pub limit: u32,
}

impl<'a> DescribeGroup<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DescribeGroup<'a>>(header)?;
        check_name(table.name())?;
        Ok(Self {
            name: table.name(),
            after: table::bounded(table.after(), NAME_MAX, "after")?,
            limit: table::page_limit(table.limit(), MEMBERS_PAGE_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::DescribeGroup, correlation).write(out, |builder| {
            let args = wire::DescribeGroupArgs {
                name: Some(builder.create_string(self.name)),
                after: Some(builder.create_string(self.after)),
                limit: self.limit,
            };
            wire::DescribeGroup::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug)]
pub struct DescribeGroupAnswer<'a> {
    pub group: GroupRow<'a>,
    /// The shard that sees the members.
    pub home: ShardId,
    /// Of the last assignment; 0: none since the home's start.
    pub number: u64,
    /// The next assignment waits for more members to join.
    pub settling: bool,
    /// In the order of their names.
    pub members: MemberRows<'a>,
    /// More follow behind the last name.
    pub more: bool,
}

impl<'a> DescribeGroupAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::DescribeGroupAnswer<'a>>(header)?;
        for member in table.members() {
            table::bounded(member.client(), CLIENT_TEXT_MAX, "client")?;
        }
        Ok(Self {
            group: GroupRow::check(table.group())?,
            home: ShardId(table.home()),
            number: table.number(),
            settling: table.settling(),
            members: MemberRows::from_wire(table.members()),
            more: table.more(),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::DescribeGroup, correlation).write(out, |builder| {
            let members: Vec<_> = self.members.iter().map(|row| row.build(builder)).collect();
            let args = wire::DescribeGroupAnswerArgs {
                group: Some(self.group.build(builder)),
                home: self.home.0,
                number: self.number,
                settling: self.settling,
                members: Some(builder.create_vector(&members)),
                more: self.more,
            };
            wire::DescribeGroupAnswer::create(builder, &args)
        });
    }
}
