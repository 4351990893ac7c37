//! What exists, as answers show it: metadata, pages of topics, and the queues of one.

use crate::engine::{HOME, StartAt, Topic};
use crate::shard::catalogue::row;
use crate::shard::executor::Executor;
use crate::shard::router::{Asker, Wait};
use crate::shard::state::Shard;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, QueueId};
use peregrine_protocol::message::{
    DescribeTopic, DescribeTopicAnswer, ListTopics, ListTopicsAnswer, Metadata, MetadataAnswer, QueueRow, TopicRow,
};

/// Resolves names, or lists a page of all topics. A copy of the catalogue that misses a name leaves the answer to shard 0.
pub fn metadata(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &Metadata<'_>,
) -> Result<(), Wait> {
    let core = shard.core.borrow();
    let engine = &core.engine;
    let (topics, more) = if asked.names.is_empty() {
        page(engine.topics_with_prefix("", asked.after), asked.limit)
    } else {
        let found: Vec<&Topic> = asked.names.iter().filter_map(|name| engine.topic_named(name)).collect();
        if found.len() < asked.names.len() && shard.id != HOME && matches!(asker, Asker::Here(_)) {
            return Err(Wait::Elsewhere(HOME));
        }
        (found, false)
    };
    let rows: Vec<TopicRow<'_>> = topics.into_iter().map(row).collect();
    let answer = MetadataAnswer {
        topics: rows[..].into(),
        more,
        shards: executor.layout.shards,
        directory: executor.facts.directory,
    };
    executor.answer(asker, |out| answer.encode(correlation, out));
    Ok(())
}

pub fn list(executor: &Executor, shard: &Shard, asker: Asker, correlation: Correlation, asked: &ListTopics<'_>) {
    let core = shard.core.borrow();
    let (topics, more) = page(core.engine.topics_with_prefix(asked.prefix, asked.after), asked.limit);
    let rows: Vec<TopicRow<'_>> = topics.into_iter().map(row).collect();
    let answer = ListTopicsAnswer { topics: rows[..].into(), more };
    executor.answer(asker, |out| answer.encode(correlation, out));
}

/// The first `limit` topics, and whether there are more.
fn page<'a>(topics: impl Iterator<Item = &'a Topic>, limit: u32) -> (Vec<&'a Topic>, bool) {
    let mut page: Vec<&Topic> = topics.take(limit as usize + 1).collect();
    let more = page.len() > limit as usize;
    page.truncate(limit as usize);
    (page, more)
}

/// The queues of a topic that live on this shard.
pub fn describe(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &DescribeTopic<'_>,
) -> Result<(), Wait> {
    let core = shard.core.borrow();
    let Some(topic) = core.engine.topic_named(asked.name) else {
        if shard.id != HOME {
            return Err(Wait::Named);
        }
        executor.refuse(asker, correlation, ErrorCode::UnknownTopic);
        return Ok(());
    };
    let shards = executor.layout.shards;
    let mut mine =
        (asked.first_queue.0..topic.queues).map(QueueId).filter(|&queue| topic.shard_of(queue, shards) == shard.id);
    let mut rows = Vec::new();
    for queue in mine.by_ref().take(asked.limit as usize) {
        if let Ok(place) = core.engine.look_up(topic.id, queue, StartAt::Latest) {
            rows.push(QueueRow { queue, epoch: place.epoch, start: place.first, end: place.visible_end });
        }
    }
    let answer = DescribeTopicAnswer {
        topic: row(topic),
        shard: shard.id,
        queues: rows[..].into(),
        more: mine.next().is_some(),
    };
    executor.answer(asker, |out| answer.encode(correlation, out));
    Ok(())
}
