//! Groups as answers show them: pages of all, one with its members at its home, and how far one is in the queues of this shard.

use crate::engine::{HOME, Refusal};
use crate::shard::catalogue::{group_row, group_topics};
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::requests::refuse;
use crate::shard::router::{Asker, Wait};
use crate::shard::state::Shard;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, Nanos};
use peregrine_protocol::message::groups::LagRow;
use peregrine_protocol::message::{
    DescribeGroup, DescribeGroupAnswer, GroupLag, GroupLagAnswer, GroupRow, ListGroups, ListGroupsAnswer, MemberRow,
};

pub fn list(executor: &Executor, shard: &Shard, asker: Asker, correlation: Correlation, asked: &ListGroups<'_>) {
    let core = shard.core.borrow();
    let limit = asked.limit as usize;
    let mut page: Vec<_> = core
        .engine
        .groups_with_prefix(asked.prefix, asked.after)
        .take(limit + 1)
        .map(|group| (group, group_topics(group)))
        .collect();
    let more = page.len() > limit;
    page.truncate(limit);
    let rows: Vec<GroupRow<'_>> = page.iter().map(|(group, topics)| group_row(group, topics)).collect();
    let answer = ListGroupsAnswer { groups: rows[..].into(), more };
    executor.answer(asker, |out| answer.encode(correlation, out));
}

/// A group and a page of its members. Its home alone knows them.
pub fn describe(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &DescribeGroup<'_>,
) -> Result<(), Wait> {
    let core = shard.core.borrow();
    let Some(group) = core.engine.group_named(asked.name) else {
        if shard.id != HOME {
            return Err(Wait::Named);
        }
        executor.refuse(asker, correlation, ErrorCode::UnknownGroup);
        return Ok(());
    };
    let home = group.home_shard(executor.layout.shards);
    if home != shard.id {
        return refuse(executor, shard, asker, correlation, &Refusal::WrongShard(home));
    }
    let mut members = core.engine.members_after(group.id, asked.after);
    let rows: Vec<MemberRow<'_>> = members
        .by_ref()
        .take(asked.limit as usize)
        .map(|member| MemberRow {
            name: member.name,
            id: member.id,
            client: member.client,
            joined: member.joined,
            connected: member.connected,
            queues: member.queues,
        })
        .collect();
    let (view, topics) = (core.engine.group_home(group.id), group_topics(group));
    let answer = DescribeGroupAnswer {
        group: group_row(group, &topics),
        home,
        number: view.number,
        settling: view.settling,
        members: rows[..].into(),
        more: members.next().is_some(),
    };
    executor.answer(asker, |out| answer.encode(correlation, out));
    Ok(())
}

pub fn lag(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &GroupLag,
) -> Result<(), Wait> {
    let core = shard.core.borrow();
    let GroupLag { group, topic, first_queue, limit } = *asked;
    let mut found = Vec::new();
    let more = match core.engine.group_lag(group, topic, first_queue, limit as usize, &mut found) {
        Ok(more) => more,
        Err(refusal) => return refuse(executor, shard, asker, correlation, &refusal),
    };
    let rows: Vec<LagRow> = found
        .into_iter()
        .map(|row| LagRow {
            queue: row.queue,
            offset: row.offset,
            epoch: row.epoch,
            committed: row.is_committed,
            end: row.end,
            oldest_unread: Some(row.oldest_unread).filter(|&time| time != Nanos::ZERO),
            holder: core.engine.holder(group, topic, row.queue),
        })
        .collect();
    let answer = GroupLagAnswer { shard: shard.id, rows: rows[..].into(), now: clock::wall(), more };
    executor.answer(asker, |out| answer.encode(correlation, out));
    Ok(())
}
