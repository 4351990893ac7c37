//! How long a topic keeps its messages, as the catalogue knows it. Unlike all else that it knows of a topic, this may be changed back;
//! so each change has a number, and of two that are told in whatever order the higher one counts.

use peregrine_protocol::message::TopicRetention;

/// What was said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionSetting {
    pub wanted: TopicRetention,
    /// How often it was said; 0: never.
    pub revision: u32,
}

impl RetentionSetting {
    /// After a request that wants it so.
    pub fn changed_to(self, wanted: TopicRetention) -> Self {
        if wanted == self.wanted { self } else { Self { wanted, revision: self.revision + 1 } }
    }

    /// The newer of what two say of the same topic.
    pub fn newer(self, other: Self) -> Self {
        if other.revision > self.revision { other } else { self }
    }
}
