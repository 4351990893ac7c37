//! The topics that clients know of, as the broker's answers said.

use std::rc::Rc;

use peregrine_protocol::ids::TopicId;

/// A topic that was made.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: Rc<str>,
    pub id: TopicId,
    pub queues: u32,
}

/// All that were made and not asked to be deleted.
#[derive(Debug, Default)]
pub struct Catalogue {
    topics: Vec<Topic>,
    changes: u64,
}

impl Catalogue {
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// How often it has changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn find(&self, id: TopicId) -> Option<&Topic> {
        self.topics.iter().find(|topic| topic.id == id)
    }

    /// Notes a topic, or that it has more queues now.
    pub fn note(&mut self, topic: Topic) {
        self.changes += 1;
        match self.topics.iter_mut().find(|known| known.id == topic.id) {
            Some(known) => known.queues = known.queues.max(topic.queues),
            None => self.topics.push(topic),
        }
    }

    pub fn forget(&mut self, id: TopicId) {
        self.changes += 1;
        self.topics.retain(|topic| topic.id != id);
    }
}
