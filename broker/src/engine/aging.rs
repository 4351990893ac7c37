//! Which messages of a queue are too old for their topic, as far as memory knows; what it dropped, the indexes of sealed segments
//! are asked for. What comes of it is the start of a queue, as in [`super::queue_starts`].

use peregrine_protocol::ids::{Nanos, QueueId, QueueOffset, TopicId};

use super::Engine;
use super::index::{Asked, IndexEntry};
use super::indexed::IndexQuestion;
use super::queue::{Queue, QueueKey};

/// What a queue is to give up of what was stored before some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aged {
    /// Nothing. Its first message was stored then; none where it has none that is visible.
    Keeps(Option<Nanos>),
    /// All in front of that offset, and then its first message will be one that was stored then; none where nobody knows.
    Start(QueueOffset, Option<Nanos>),
    /// Ask the indexes, and tell [`Engine::aged_by_index`].
    Ask(IndexQuestion),
}

impl Engine {
    /// A topic whose retention changed, or that came to be with one of its own, since this was last asked for; at the end of a
    /// start each one that has any.
    pub fn next_retention_news(&mut self) -> Option<TopicId> {
        self.catalogue.next_retention_news()
    }

    /// How long a topic keeps its messages by itself, and how many queues it has; none where it keeps them as its shards do.
    pub fn own_age(&self, topic: TopicId) -> Option<(Nanos, u32)> {
        let topic = self.catalogue.get(topic)?;
        Some((topic.retention.wanted.age?, topic.queues))
    }

    /// Whether a queue of that number would be this shard's.
    pub fn owns(&self, topic: TopicId, queue: QueueId) -> bool {
        self.catalogue.get(topic).is_some_and(|topic| topic.shard_of(queue, self.options.shards) == self.options.shard)
    }

    /// What a queue has that was stored before `time`. What is not visible is kept.
    pub fn aged(&mut self, key: QueueKey, time: Nanos) -> Aged {
        let Some(queue) = self.queues.find(key).and_then(|slot| self.queues.get_mut(slot)) else {
            return Aged::Keeps(None);
        };
        if queue.start >= queue.visible {
            return Aged::Keeps(None);
        }
        if queue.kept_since >= time {
            return Aged::Keeps(Some(queue.kept_since));
        }
        if queue.index.is_held(queue.start)
            && let Ok(Some(first)) = queue.index.time_at(queue.start)
            && first >= time
        {
            queue.kept_since = first;
            return Aged::Keeps(Some(first));
        }
        match queue.index.at_time(time) {
            Ok(found) => start_at(queue, found.unwrap_or(queue.end)),
            Err(_) => Aged::Ask(IndexQuestion::of(queue, Asked::Time(time))),
        }
    }

    /// The same where the indexes were asked, and found that batch or none.
    pub fn aged_by_index(&mut self, question: &IndexQuestion, found: Option<&IndexEntry>) -> Aged {
        let slot = self.queues.find(question.queue);
        let Some(queue) = slot.and_then(|slot| self.queues.get_mut(slot)) else { return Aged::Keeps(None) };
        match found {
            Some(first) if first.offset <= queue.start => {
                queue.kept_since = queue.kept_since.max(first.store_time);
                Aged::Keeps(Some(first.store_time))
            }
            Some(first) if first.offset < queue.visible => Aged::Start(first.offset, Some(first.store_time)),
            Some(first) => start_at(queue, first.offset),
            // All that was dropped is older.
            None => start_at(queue, question.below),
        }
    }

    /// The queue's start was moved to where a message stands that was stored at `time`.
    pub fn keeps_since(&mut self, key: QueueKey, time: Nanos) {
        if let Some(queue) = self.queues.find(key).and_then(|slot| self.queues.get_mut(slot)) {
            queue.kept_since = queue.kept_since.max(time);
        }
    }
}

fn start_at(queue: &Queue, start: QueueOffset) -> Aged {
    let start = start.min(queue.visible);
    let first = || queue.index.is_held(start).then(|| queue.index.time_at(start).ok().flatten()).flatten();
    if start > queue.start { Aged::Start(start, first()) } else { Aged::Keeps(None) }
}
