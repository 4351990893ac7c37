//! What clients know of the catalogue: a change that was answered stays, whatever crashes; one that was not may have happened.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_broker::engine::{Engine, RetentionSetting, TopicState};
use peregrine_protocol::ids::{QueueId, ShardId, TopicId};

use super::violation::{Violation, promise};

/// A topic that took effect.
#[derive(Clone, Debug)]
pub struct KnownTopic {
    pub id: TopicId,
    pub name: String,
    pub queues: u32,
    pub retention: RetentionSetting,
}

/// The oracle of the catalogue.
#[derive(Debug, Default)]
pub struct KnownCatalogue {
    live: BTreeMap<TopicId, KnownTopic>,
    deleted: BTreeSet<TopicId>,
    /// Names whose deletion was asked for since the last start, perhaps in vain.
    deleting: BTreeSet<String>,
}

impl KnownCatalogue {
    pub fn live(&self) -> impl Iterator<Item = &KnownTopic> {
        self.live.values()
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// The queues of all topics that live on a shard, in a fixed order.
    pub fn queues(&self, engine: &Engine, shard: ShardId, shards: u16) -> Vec<(TopicId, QueueId)> {
        let mut queues = Vec::new();
        for topic in self.live.values() {
            let TopicState::Live(known) = engine.topic(topic.id) else { continue };
            let here = |queue: &QueueId| known.shard_of(*queue, shards) == shard;
            queues.extend((0..topic.queues).map(QueueId).filter(here).map(|queue| (topic.id, queue)));
        }
        queues
    }

    pub fn asks_to_delete(&mut self, name: &str) {
        self.deleting.insert(name.to_owned());
    }

    /// A change took effect and is told to everybody.
    pub fn effect(&mut self, state: &TopicState) -> Result<(), Violation> {
        match state {
            TopicState::Live(topic) => {
                promise!(!self.deleted.contains(&topic.id), "topic {} lives again", topic.id);
                let before = self.live.get(&topic.id).map_or(0, |topic| topic.queues);
                promise!(topic.queues >= before, "topic {} lost queues: {} of {before}", topic.id, topic.queues);
                let before = self.live.get(&topic.id).map(|topic| topic.retention).unwrap_or_default();
                let retention = topic.retention;
                promise!(
                    before == retention || before.revision < retention.revision,
                    "the retention of topic {} was {before:?} and became {retention:?}",
                    topic.id
                );
                let (name, queues) = (topic.name.to_string(), topic.queues);
                let known = KnownTopic { id: topic.id, name, queues, retention };
                self.live.insert(topic.id, known);
            }
            TopicState::Deleted(id) => {
                self.live.remove(id);
                self.deleted.insert(*id);
            }
            TopicState::Unknown(id) => return Err(Violation(format!("topic {id} became unknown"))),
        }
        Ok(())
    }

    /// A start came up: what was answered must stand; what was only asked for is now decided either way.
    pub fn recovered(&mut self, home: &Engine) -> Result<(), Violation> {
        for topic in self.live.values() {
            match home.topic(topic.id) {
                TopicState::Live(found) => {
                    promise!(
                        found.queues >= topic.queues && *found.name == *topic.name,
                        "topic {} had {} queues and came back with {}",
                        topic.id,
                        topic.queues,
                        found.queues
                    );
                }
                TopicState::Deleted(id) => {
                    promise!(self.deleting.contains(&topic.name), "topic {id} is deleted, though nobody asked for it");
                }
                TopicState::Unknown(id) => return Err(Violation(format!("topic {id} was created and is unknown"))),
            }
        }
        for id in &self.deleted {
            let state = home.topic(*id);
            promise!(matches!(state, TopicState::Deleted(_)), "topic {id} was deleted and came back as {state:?}");
        }
        let ids: Vec<TopicId> = self.live.keys().copied().collect();
        for id in ids {
            self.effect(&home.topic(id))?;
        }
        let found: Vec<TopicState> = home.topics_after(None).map(|topic| TopicState::Live(topic.clone())).collect();
        self.deleting.clear();
        found.iter().try_for_each(|state| self.effect(state))
    }
}
