//! Consumer groups: made, listed, described, how far they are, set to another place, deleted.

use std::collections::HashMap;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, GroupId, MemberId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::limits::{GROUPS_PAGE_MAX, MEMBERS_PAGE_MAX, PAGE_ITEMS_MAX};
use peregrine_protocol::message::{
    Answer, CreateGroup, DeleteGroup, DescribeGroup, GroupLag, GroupRow, GroupTopic, GroupTopics, LagRow, ListGroups,
    MemberRow, Request, ResetOffset, Start,
};
use peregrine_protocol::name::check_name;
use peregrine_protocol::placement::{TopicHash, group_home};

use super::{Admin, HOME, Send};
use crate::client::{Topic, unexpected};
use crate::error::{Error, Result};

/// A consumer group as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its id, never given to another group.
    pub id: GroupId,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub created: Nanos,
    /// Its topics, each with where the group starts in a queue in which nothing was acknowledged yet.
    pub topics: Vec<(TopicId, Start)>,
}

/// A group and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// The group.
    pub group: Group,
    /// The shard that sees its members.
    pub home: ShardId,
    /// Of the last assignment; 0: none since the broker's start.
    pub number: u64,
    /// The next assignment waits for more members to join.
    pub settling: bool,
    /// In the order of their names.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its name, unique in the group.
    pub name: String,
    /// Its number.
    pub id: MemberId,
    /// The client instance.
    pub client: String,
    /// When it joined, in nanoseconds since the Unix epoch.
    pub joined: Nanos,
    /// False: its connection is lost, and its queues wait for it until the grace time is over.
    pub connected: bool,
    /// How many queues are assigned to it.
    pub queues: u32,
}

/// How far a group is in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLag {
    /// The topic's name.
    pub topic: String,
    /// The queue.
    pub queue: QueueId,
    /// The shard that owns it.
    pub shard: ShardId,
    /// All below is done. Where nothing was acknowledged or set yet, the place where the group would start.
    pub offset: QueueOffset,
    /// Of that place.
    pub epoch: Epoch,
    /// Whether that place was acknowledged or set.
    pub committed: bool,
    /// The offset behind the last visible message.
    pub end: QueueOffset,
    /// How long the oldest message that is not done has been there; `None`: all is done.
    pub oldest: Option<Nanos>,
    /// The member that the queue's messages go to.
    pub holder: Option<MemberId>,
}

/// Where a group goes on in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueReset {
    /// The topic's name.
    pub topic: String,
    /// The queue.
    pub queue: QueueId,
    /// The first offset to be delivered.
    pub offset: QueueOffset,
    /// Of that place.
    pub epoch: Epoch,
}

impl QueueLag {
    /// Messages that are not done.
    pub fn messages(&self) -> u64 {
        self.end.0.saturating_sub(self.offset.0)
    }
}

impl Admin {
    /// Makes a group, or adds topics to one; the flag says whether anything is new. Each topic comes with where the group starts in it;
    /// a topic that the group has keeps its start, an offset holds for every queue.
    pub async fn create_group(&self, name: &str, topics: &[(&str, Start)]) -> Result<(Group, bool)> {
        let mut wanted = Vec::new();
        for (topic, start) in topics {
            wanted.push((self.client.topic(topic).await?.id, *start));
        }
        self.create_group_of(name, wanted).await
    }

    pub(crate) async fn create_group_of(&self, name: &str, topics: Vec<(TopicId, Start)>) -> Result<(Group, bool)> {
        check_name(name).map_err(|error| Error::invalid(error.to_string()))?;
        let name = name.to_owned();
        let topics: Vec<_> = topics.into_iter().map(|(topic, start)| GroupTopic { topic, start }).collect();
        let encode = move |send: Send<'_>| {
            send(&Request::CreateGroup(CreateGroup { name: &name, topics: GroupTopics::of(&topics) }))
        };
        self.client.call(HOME, encode, changed_group).await
    }

    /// All groups whose names start with `prefix`, in the order of their names.
    pub async fn list_groups(&self, prefix: &str) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        loop {
            let after = groups.last().map_or_else(String::new, |group| group.name.clone());
            let (page, more) = self.groups_page(prefix, after, GROUPS_PAGE_MAX).await?;
            let is_empty = page.is_empty();
            groups.extend(page);
            if !more || is_empty {
                return Ok(groups);
            }
        }
    }

    /// A group; `UnknownGroup` where there is none of that name.
    pub async fn group(&self, name: &str) -> Result<Group> {
        // Of all names that start so, the name itself is the first.
        let (page, _) = self.groups_page(name, String::new(), 1).await?;
        page.into_iter().find(|group| group.name == name).ok_or_else(|| Error::unknown_group(name))
    }

    /// A group and its members, asked of its home shard.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription> {
        check_name(name).map_err(|error| Error::invalid(error.to_string()))?;
        let home = group_home(name, self.client.broker()?.shards);
        let mut members: Vec<Member> = Vec::new();
        loop {
            let after = members.last().map_or_else(String::new, |member| member.name.clone());
            let asked = name.to_owned();
            let encode = move |send: Send<'_>| {
                send(&Request::DescribeGroup(DescribeGroup { name: &asked, after: &after, limit: MEMBERS_PAGE_MAX }))
            };
            let convert = |answer: Answer<'_>| match answer {
                Answer::DescribeGroup(it) => {
                    let description = GroupDescription {
                        group: Group::from(it.group),
                        home: it.home,
                        number: it.number,
                        settling: it.settling,
                        members: it.members.iter().map(Member::from).collect(),
                    };
                    Ok((description, it.more))
                }
                other => Err(unexpected(&other)),
            };
            let (page, more) = self.client.call(home, encode, convert).await?;
            let is_empty = page.members.is_empty();
            members.extend(page.members);
            if !more || is_empty {
                return Ok(GroupDescription { members, ..page });
            }
        }
    }

    /// How far a group is in each queue of its topics, asked of every shard that has one; in the order of topics and queues.
    pub async fn group_lag(&self, name: &str) -> Result<Vec<QueueLag>> {
        let group = self.group(name).await?;
        let mut lags = Vec::new();
        for topic in self.topics_of(&group).await? {
            for shard in self.shards_of(&topic)? {
                let mut first_queue = QueueId(0);
                loop {
                    let (page, more) = self.lag_page(group.id, &topic, shard, first_queue).await?;
                    let last = page.last().map(|row| row.queue);
                    lags.extend(page);
                    match last {
                        Some(last) if more => first_queue = QueueId(last.0 + 1),
                        _ => break,
                    }
                }
            }
        }
        lags.sort_by(|a, b| (&a.topic, a.queue).cmp(&(&b.topic, b.queue)));
        Ok(lags)
    }

    /// Sets where a group goes on, in one topic or in all of its topics, whether it is consuming or not. Answers the place in each queue.
    pub async fn reset_group(&self, name: &str, topic: Option<&str>, start: Start) -> Result<Vec<QueueReset>> {
        let group = self.group(name).await?;
        let mut topics = self.topics_of(&group).await?;
        if let Some(wanted) = topic {
            topics.retain(|topic| topic.name == wanted);
            if topics.is_empty() {
                return Err(Error::invalid(format!("the group \"{name}\" does not consume the topic \"{wanted}\"")));
            }
        }
        let mut places = Vec::new();
        for topic in &topics {
            for queue in (0..topic.queues).map(QueueId) {
                let (shard, _) = self.client.link_of(TopicHash::of(&topic.name), queue)?;
                let request = ResetOffset { group: group.id, topic: topic.id, queue, start };
                let convert = |answer: Answer<'_>| match answer {
                    Answer::ResetOffset(place) => Ok(place),
                    other => Err(unexpected(&other)),
                };
                let encode = move |send: Send<'_>| send(&Request::ResetOffset(request));
                let place = self.client.call(shard, encode, convert).await?;
                let topic = topic.name.clone();
                places.push(QueueReset { topic, queue, offset: place.offset, epoch: place.epoch });
            }
        }
        Ok(places)
    }

    /// Deletes a group and its offsets, for ever. One that has members is `GroupInUse`, unless `force` is set; then they end with
    /// `GroupDeleted`.
    pub async fn delete_group(&self, name: &str, force: bool) -> Result<Group> {
        let group = self.group(name).await?;
        if !force {
            let members = self.describe_group(name).await?.members.len();
            if members > 0 {
                let sentence = format!("the consumer group \"{name}\" has members: {members}");
                return Err(Error::said_here(ErrorCode::GroupInUse, sentence));
            }
        }
        let (name, id) = (name.to_owned(), group.id);
        let encode = move |send: Send<'_>| send(&Request::DeleteGroup(DeleteGroup { name: &name, id: Some(id) }));
        match self.client.call(HOME, encode, changed_group).await {
            // A first try that lost its answer has done it: the group was there a moment ago, and no other has its id.
            Err(error) if matches!(error.code(), Some(ErrorCode::UnknownGroup | ErrorCode::GroupDeleted)) => Ok(group),
            result => result.map(|(group, _)| group),
        }
    }

    /// The topics of a group, with their names; one that was deleted meanwhile is left out.
    pub async fn topics_of(&self, group: &Group) -> Result<Vec<Topic>> {
        let mut all: HashMap<TopicId, Topic> =
            self.list_topics("").await?.into_iter().map(|topic| (topic.id, topic)).collect();
        Ok(group.topics.iter().filter_map(|(topic, _)| all.remove(topic)).collect())
    }

    async fn groups_page(&self, prefix: &str, after: String, limit: u32) -> Result<(Vec<Group>, bool)> {
        let prefix = prefix.to_owned();
        let encode =
            move |send: Send<'_>| send(&Request::ListGroups(ListGroups { prefix: &prefix, after: &after, limit }));
        let convert = |answer: Answer<'_>| match answer {
            Answer::ListGroups(page) => Ok((page.groups.iter().map(Group::from).collect(), page.more)),
            other => Err(unexpected(&other)),
        };
        self.client.call(HOME, encode, convert).await
    }

    async fn lag_page(
        &self,
        group: GroupId,
        topic: &Topic,
        shard: ShardId,
        first_queue: QueueId,
    ) -> Result<(Vec<QueueLag>, bool)> {
        let request = GroupLag { group, topic: topic.id, first_queue, limit: PAGE_ITEMS_MAX };
        let name = topic.name.clone();
        let convert = move |answer: Answer<'_>| match answer {
            Answer::GroupLag(page) => {
                let (shard, now) = (page.shard, page.now);
                let lag = |row: LagRow| QueueLag {
                    topic: name.clone(),
                    queue: row.queue,
                    shard,
                    offset: row.offset,
                    epoch: row.epoch,
                    committed: row.committed,
                    end: row.end,
                    oldest: row.oldest_unread.map(|stored| Nanos(now.saturating_sub(stored))),
                    holder: row.holder,
                };
                Ok((page.rows.iter().map(lag).collect(), page.more))
            }
            other => Err(unexpected(&other)),
        };
        self.client.call(shard, move |send: Send<'_>| send(&Request::GroupLag(request)), convert).await
    }
}

impl From<GroupRow<'_>> for Group {
    fn from(row: GroupRow<'_>) -> Self {
        let topics = row.topics.iter().map(|topic| (topic.topic, topic.start)).collect();
        Self { name: row.name.to_owned(), id: row.id, created: row.created, topics }
    }
}

impl From<MemberRow<'_>> for Member {
    fn from(row: MemberRow<'_>) -> Self {
        Self {
            name: row.name.to_owned(),
            id: row.id,
            client: row.client.to_owned(),
            joined: row.joined,
            connected: row.connected,
            queues: row.queues,
        }
    }
}

fn changed_group(answer: Answer<'_>) -> Result<(Group, bool)> {
    match answer {
        Answer::CreateGroup(it) | Answer::DeleteGroup(it) => Ok((Group::from(it.group), it.changed)),
        other => Err(unexpected(&other)),
    }
}
