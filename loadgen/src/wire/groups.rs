//! The consumer groups of a run, as objects of the broker.

use peregrine_client::group::MemberTopic;
use peregrine_protocol::ids::{GroupId, ShardId};
use peregrine_protocol::message::{Answer, CreateGroup, DeleteGroup, GroupTopic, GroupTopics, Request, Start};
use peregrine_protocol::placement::group_home;

use super::control::{Control, Topics};
use crate::transport::TransportError;

/// A group of a run.
#[derive(Clone, Debug)]
pub(super) struct GroupPlace {
    pub name: String,
    pub id: GroupId,
    /// Who sees its members.
    pub home: ShardId,
}

/// The groups of a run: each takes all of its topics.
#[derive(Clone, Debug)]
pub struct Groups {
    pub(super) all: Vec<GroupPlace>,
    pub(super) topics: Vec<MemberTopic>,
    pub(super) shards: u16,
}

impl Groups {
    /// Makes `count` groups that start behind what is there now, named after `prefix` and the run.
    pub fn create(
        control: &mut Control,
        prefix: &str,
        run: u64,
        count: u32,
        topics: &Topics,
    ) -> Result<Self, TransportError> {
        let shards = control.greeting.shards;
        let rows: Vec<_> =
            topics.ids.iter().map(|topic| GroupTopic { topic: topic.id, start: Start::Latest }).collect();
        let mut made = Self { all: Vec::new(), topics: topics.ids.clone(), shards };
        for number in 0..count {
            let name = format!("{prefix}-{:08x}-g{number}", run >> 32);
            let create = CreateGroup { name: &name, topics: GroupTopics::of(&rows) };
            let id = control.link.ask(&Request::CreateGroup(create), |answer| match answer {
                Answer::CreateGroup(answer) => Some(answer.group.id),
                _ => None,
            })?;
            made.all.push(GroupPlace { home: group_home(&name, shards), name, id });
        }
        Ok(made)
    }

    /// Their names, by number.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|group| group.name.as_str())
    }

    /// Deletes them with their places in the queues.
    pub fn delete(&self, control: &mut Control) -> Result<(), TransportError> {
        for group in &self.all {
            let delete = DeleteGroup { name: &group.name, id: Some(group.id) };
            control.link.ask(&Request::DeleteGroup(delete), |answer| match answer {
                Answer::DeleteGroup(_) => Some(()),
                _ => None,
            })?;
        }
        Ok(())
    }
}
