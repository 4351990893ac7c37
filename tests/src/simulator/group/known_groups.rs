//! What clients know of the groups: a change that was answered stays, whatever crashes; one that was not may have happened.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::engine::{Engine, Group, GroupState, TopicState};
use peregrine_protocol::ids::{GroupId, TopicId};

use crate::simulator::violation::{Violation, promise};

/// The oracle of the groups in the catalogue.
#[derive(Debug, Default)]
pub struct KnownGroups {
    live: BTreeMap<GroupId, Group>,
    deleted: BTreeSet<GroupId>,
    /// Names whose deletion was asked for since the last start, perhaps in vain.
    deleting: BTreeSet<String>,
}

impl KnownGroups {
    pub fn live(&self) -> impl Iterator<Item = &Group> {
        self.live.values()
    }

    pub fn get(&self, id: GroupId) -> Option<&Group> {
        self.live.get(&id)
    }

    pub fn asks_to_delete(&mut self, name: &str) {
        self.deleting.insert(name.to_owned());
    }

    /// A change took effect at shard 0.
    pub fn effect(&mut self, state: &GroupState) -> Result<(), Violation> {
        match state {
            GroupState::Live(group) => {
                promise!(!self.deleted.contains(&group.id), "group {} lives again", group.id);
                if let Some(before) = self.live.get(&group.id) {
                    check_kept(before, group, |_| true)?;
                }
                self.live.insert(group.id, group.clone());
            }
            GroupState::Deleted(id) => {
                self.live.remove(id);
                self.deleted.insert(*id);
            }
            GroupState::Unknown(id) => return Err(Violation(format!("group {id} became unknown"))),
        }
        Ok(())
    }

    /// A topic is gone, for every group.
    pub fn topic_deleted(&mut self, topic: TopicId) {
        for group in self.live.values_mut() {
            group.topics.retain(|(known, _)| *known != topic);
        }
    }

    /// A start came up: what was answered must stand; what was only asked for is now decided either way.
    pub fn recovered(&mut self, home: &Engine) -> Result<(), Violation> {
        let lives = |topic| matches!(home.topic(topic), TopicState::Live(_));
        for group in self.live.values() {
            match home.group(group.id) {
                GroupState::Live(found) => check_kept(group, &found, lives)?,
                GroupState::Deleted(id) => {
                    promise!(self.deleting.contains(&*group.name), "group {id} is deleted, though nobody asked for it");
                }
                GroupState::Unknown(id) => return Err(Violation(format!("group {id} was created and is unknown"))),
            }
        }
        for id in &self.deleted {
            let state = home.group(*id);
            promise!(matches!(state, GroupState::Deleted(_)), "group {id} was deleted and came back as {state:?}");
        }
        let gone = self.live.keys().filter(|id| matches!(home.group(**id), GroupState::Deleted(_)));
        self.deleted.extend(gone);
        self.live = home.groups_after(None).map(|group| (group.id, group.clone())).collect();
        self.deleting.clear();
        for group in self.live.values() {
            let stray = group.topics.iter().find(|(topic, _)| !lives(*topic));
            promise!(stray.is_none(), "group {} consumes {stray:?}, which is gone", group.id);
        }
        Ok(())
    }
}

/// A group keeps its name and its topics with their starts, but for those that are gone.
fn check_kept(before: &Group, now: &Group, lives: impl Fn(TopicId) -> bool) -> Result<(), Violation> {
    let lost = before.topics.iter().find(|(topic, start)| lives(*topic) && now.start_in(*topic) != Some(*start));
    promise!(before.name == now.name, "group {} was named {} and is {}", now.id, before.name, now.name);
    promise!(lost.is_none(), "group {} has lost topic and start {lost:?}", now.id);
    Ok(())
}
