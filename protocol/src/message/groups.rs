//! Consumer groups as objects: made, deleted, listed, described, how far they are in each queue, and set to another place.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};

use super::DecodeError;
use super::list::{ListIn, list};
use super::read::Start;
use super::table::{self, Envelope};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, GroupId, MemberId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use crate::limits::{CLIENT_TEXT_MAX, GROUP_TOPICS_MAX, GROUPS_PAGE_MAX, MEMBERS_PAGE_MAX, NAME_MAX, PAGE_ITEMS_MAX};
use crate::name::check_name;

/// In a lag row's flags: the offset was acknowledged or set, and is not just where the group would start.
const COMMITTED: u32 = 1;

/// A topic of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTopic {
    pub topic: TopicId,
    /// Where the group starts in a queue in which nothing was acknowledged yet. An offset has no epoch here
    /// ([`Epoch::ANY`]). A broker answers `Latest` with the instant at which it was asked for.
    pub start: Start,
}

impl GroupTopic {
    fn check(row: &wire::GroupTopic) -> Result<Self, DecodeError> {
        if (row.reserved_1(), row.reserved_2(), row.reserved_3()) != (0, 0, 0) {
            return Err(DecodeError::Header);
        }
        let start = Start::from_wire(row.start(), Epoch::ANY.0, row.value())?;
        Ok(Self { topic: TopicId(row.topic()), start })
    }

    /// Of a row that was checked when its message was decoded.
    fn from_wire(row: &wire::GroupTopic) -> Self {
        Self::check(row).unwrap_or(Self { topic: TopicId(row.topic()), start: Start::Earliest })
    }

    fn to_wire(self) -> wire::GroupTopic {
        let (start, _, value) = self.start.to_wire();
        wire::GroupTopic::new(self.topic.0, value, start, 0, 0, 0)
    }
}

/// A consumer group as listings and answers show it.
#[derive(Clone, Copy, Debug)]
pub struct GroupRow<'a> {
    pub name: &'a str,
    pub id: GroupId,
    /// The store time of the entry that made it.
    pub created: Nanos,
    /// In the order of their ids.
    pub topics: GroupTopics<'a>,
}

impl<'a> GroupRow<'a> {
    fn check(group: wire::Group<'a>) -> Result<Self, DecodeError> {
        check_topics(group.topics())?;
        Ok(Self::from_wire(group))
    }

    fn from_wire(group: wire::Group<'a>) -> Self {
        Self {
            name: group.name(),
            id: GroupId(group.id()),
            created: Nanos(group.created()),
            topics: GroupTopics::from_wire(group.topics()),
        }
    }

    fn build<'b>(&self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<wire::Group<'b>> {
        let name = Some(builder.create_string(self.name));
        let topics = Some(self.topics.build(builder));
        wire::Group::create(builder, &wire::GroupArgs { name, id: self.id.0, created: self.created.0, topics })
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

/// How far a group is in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LagRow {
    pub queue: QueueId,
    /// All below is done. Where nothing was acknowledged or set yet, the place where the group would start.
    pub offset: QueueOffset,
    /// Of that place.
    pub epoch: Epoch,
    /// Whether that place was acknowledged or set.
    pub committed: bool,
    /// The visible end.
    pub end: QueueOffset,
    /// The store time of the message at `offset`; `None` where that is the end.
    pub oldest_unread: Option<Nanos>,
    /// The member that the queue's messages go to.
    pub holder: Option<MemberId>,
}

impl LagRow {
    fn from_wire(row: &wire::LagRow) -> Self {
        Self {
            queue: QueueId(row.queue()),
            offset: QueueOffset(row.offset()),
            epoch: Epoch(row.epoch()),
            committed: row.flags() & COMMITTED != 0,
            end: QueueOffset(row.end()),
            oldest_unread: Some(Nanos(row.oldest_unread())).filter(|&instant| instant != Nanos::ZERO),
            holder: Some(MemberId(row.holder())).filter(|member| member.0 != 0),
        }
    }

    fn to_wire(self) -> wire::LagRow {
        wire::LagRow::new(
            self.offset.0,
            self.epoch.0,
            self.end.0,
            self.oldest_unread.map_or(0, |instant| instant.0),
            self.holder.map_or(0, |member| member.0),
            self.queue.0,
            if self.committed { COMMITTED } else { 0 },
        )
    }
}

list!(
    /// At most [`GROUP_TOPICS_MAX`] topics.
    GroupTopics,
    GroupTopic,
    wire::GroupTopic,
    GroupTopic::from_wire
);
list!(
    /// At most [`GROUPS_PAGE_MAX`] groups.
    GroupRows,
    GroupRow<'a>,
    ForwardsUOffset<wire::Group<'a>>,
    GroupRow::from_wire
);
list!(
    /// At most [`MEMBERS_PAGE_MAX`] members.
    MemberRows,
    MemberRow<'a>,
    ForwardsUOffset<wire::Member<'a>>,
    MemberRow::from_wire
);
list!(
    /// At most [`PAGE_ITEMS_MAX`] queues.
    LagRows,
    LagRow,
    wire::LagRow,
    LagRow::from_wire
);

impl GroupTopics<'_> {
    fn build<'b>(self, builder: &mut FlatBufferBuilder<'b>) -> WIPOffset<Vector<'b, wire::GroupTopic>> {
        let rows: Vec<_> = self.iter().map(GroupTopic::to_wire).collect();
        builder.create_vector(&rows)
    }
}

/// Refuses too many topics, and a start that this version does not know.
fn check_topics(topics: Vector<'_, wire::GroupTopic>) -> Result<(), DecodeError> {
    if topics.len() > GROUP_TOPICS_MAX {
        return Err(DecodeError::Field("topics"));
    }
    topics.iter().try_for_each(|row| GroupTopic::check(row).map(drop))
}

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

/// How far a group is in a page of a topic's queues: those that live on the shard that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLag {
    pub group: GroupId,
    pub topic: TopicId,
    /// Queues below this one are left out.
    pub first_queue: QueueId,
    /// 1 to [`PAGE_ITEMS_MAX`].
    pub limit: u32,
}

impl GroupLag {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::GroupLag<'_>>(header)?;
        Ok(Self {
            group: GroupId(table.group()),
            topic: TopicId(table.topic()),
            first_queue: QueueId(table.first_queue()),
            limit: table::page_limit(table.limit(), PAGE_ITEMS_MAX)?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::GroupLag, correlation).write(out, |builder| {
            let args = wire::GroupLagArgs {
                group: self.group.0,
                topic: self.topic.0,
                first_queue: self.first_queue.0,
                limit: self.limit,
            };
            wire::GroupLag::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug)]
pub struct GroupLagAnswer<'a> {
    /// The shard that answers, and that owns these queues.
    pub shard: ShardId,
    /// In the order of their queues.
    pub rows: LagRows<'a>,
    /// The shard's clock, to which store times compare.
    pub now: Nanos,
    /// More of this shard's queues follow behind the last.
    pub more: bool,
}

impl<'a> GroupLagAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::GroupLagAnswer<'a>>(header)?;
        Ok(Self {
            shard: ShardId(table.shard()),
            rows: LagRows::from_wire(table.rows()),
            now: Nanos(table.now()),
            more: table.more(),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::GroupLag, correlation).write(out, |builder| {
            let rows: Vec<_> = self.rows.iter().map(LagRow::to_wire).collect();
            let args = wire::GroupLagAnswerArgs {
                shard: self.shard.0,
                rows: Some(builder.create_vector(&rows)),
                now: self.now.0,
                more: self.more,
            };
            wire::GroupLagAnswer::create(builder, &args)
        });
    }
}

/// Sets where a group goes on in a queue; asked of the queue's shard. A subscription that is active ends with `OffsetReset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetOffset {
    pub group: GroupId,
    pub topic: TopicId,
    pub queue: QueueId,
    pub start: Start,
}

impl ResetOffset {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ResetOffset<'_>>(header)?;
        Ok(Self {
            group: GroupId(table.group()),
            topic: TopicId(table.topic()),
            queue: QueueId(table.queue()),
            start: Start::from_wire(table.start(), table.start_epoch(), table.start_value())?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let (start, start_epoch, start_value) = self.start.to_wire();
        Envelope::request(Kind::ResetOffset, correlation).write(out, |builder| {
            let args = wire::ResetOffsetArgs {
                group: self.group.0,
                topic: self.topic.0,
                queue: self.queue.0,
                start,
                start_epoch,
                start_value,
            };
            wire::ResetOffset::create(builder, &args)
        });
    }
}

/// The group's place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetOffsetAnswer {
    pub epoch: Epoch,
    pub offset: QueueOffset,
}

impl ResetOffsetAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::ResetOffsetAnswer<'_>>(header)?;
        Ok(Self { epoch: Epoch(table.epoch()), offset: QueueOffset(table.offset()) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::ResetOffset, correlation).write(out, |builder| {
            let args = wire::ResetOffsetAnswerArgs { epoch: self.epoch.0, offset: self.offset.0 };
            wire::ResetOffsetAnswer::create(builder, &args)
        });
    }
}
