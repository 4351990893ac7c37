//! How far a group is in each queue, and the same set to another place.

use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, GroupId, MemberId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use crate::limits::PAGE_ITEMS_MAX;
use crate::message::DecodeError;
use crate::message::list::{ListIn, list};
use crate::message::read::Start;
use crate::message::table::{self, Envelope};

/// In a lag row's flags: the offset was acknowledged or set, and is not just where the group would start.
const COMMITTED: u32 = 1;

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
    /// At most [`PAGE_ITEMS_MAX`] queues.
    LagRows,
    LagRow,
    wire::LagRow,
    LagRow::from_wire
);

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
