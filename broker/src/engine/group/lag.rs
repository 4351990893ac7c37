//! What is left for a group to read, queue by queue.

use peregrine_protocol::ids::{Epoch, GroupId, Nanos, QueueId, QueueOffset, TopicId};

use super::commit::place_of;
use crate::engine::index::NotHeld;
use crate::engine::queue::Queue;
use crate::engine::{Asked, CatalogueId, Engine, IndexQuestion, QueueKey, Refusal};

/// A group in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LagRow {
    pub queue: QueueId,
    /// The group's place; where it has none, the one at which it would begin now.
    pub epoch: Epoch,
    pub offset: QueueOffset,
    pub is_committed: bool,
    /// The end of what members see: `end` - `offset` messages are left, none where somebody reset the group beyond it.
    pub end: QueueOffset,
    /// Store time of the oldest batch that holds a message that is left; [`Nanos::ZERO`] where none is.
    pub oldest_unread: Nanos,
}

impl Engine {
    /// Adds a row for each queue of the topic that is this shard's, from `first` on, until there are `limit`. True when more
    /// would come.
    pub fn group_lag(
        &self,
        group: GroupId,
        topic: TopicId,
        first: QueueId,
        limit: usize,
        rows: &mut Vec<LagRow>,
    ) -> Result<bool, Refusal> {
        let start = self.check_group(group)?.start_in(topic);
        let known = self.check_topic(topic)?;
        let Some(start) = start else {
            let refusal = Refusal::InvalidArgument("the group does not consume that topic");
            return Err(self.unknown(CatalogueId::Group(group), refusal));
        };
        for queue in (first.0..known.queues).map(QueueId) {
            if known.shard_of(queue, self.options.shards) != self.options.shard {
                continue;
            }
            if rows.len() >= limit {
                return Ok(true);
            }
            rows.push(self.with_queue(QueueKey { topic, queue }, |found| {
                let place = place_of(found, group, start)?;
                Ok(LagRow {
                    queue,
                    epoch: place.epoch,
                    offset: place.offset,
                    is_committed: place.is_committed,
                    end: found.visible,
                    oldest_unread: oldest_from(found, place.offset)?,
                })
            })?);
        }
        Ok(false)
    }
}

fn oldest_from(queue: &Queue, offset: QueueOffset) -> Result<Nanos, Refusal> {
    if offset >= queue.visible {
        return Ok(Nanos::ZERO);
    }
    let time = queue.index.time_at(offset);
    let time = time.map_err(|NotHeld| Refusal::LookUp(IndexQuestion::of(queue, Asked::Offset(offset))))?;
    Ok(time.unwrap_or(Nanos::ZERO))
}
