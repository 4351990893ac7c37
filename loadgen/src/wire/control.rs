//! What a run asks of the broker before and after its load: facts, topics.

use std::path::PathBuf;

use peregrine_client::group::MemberTopic;
use peregrine_protocol::ids::{QueueId, ShardId, TopicId};
use peregrine_protocol::message::{Answer, CreateTopic, DeleteTopic, Request, Stats, TopicRetention};
use peregrine_protocol::placement::TopicHash;

use super::handshake::{Greeting, Link};
use crate::cores;
use crate::transport::TransportError;

/// What the broker says of itself; what it leaves out has a default.
#[derive(Clone, Debug, Default)]
pub struct BrokerFacts {
    /// Its shards.
    pub shards: u32,
    /// The cores of their executors; the first of those that this process may use where it does not say.
    pub cores: Vec<usize>,
    /// Its idle policy; `adaptive`, the default, where it does not say.
    pub idle: String,
    /// Its data directory.
    pub data_dir: Option<PathBuf>,
    /// Flushes of all shards since it started.
    pub flushes: Option<u64>,
    /// Bytes of the largest record.
    pub message_max: u32,
}

impl BrokerFacts {
    fn of(greeting: &Greeting, stats: &serde_json::Value) -> Self {
        let rows = stats["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut cores: Vec<_> = rows.iter().filter_map(|row| Some(row["core"].as_u64()? as usize)).collect();
        cores.sort_unstable();
        cores.dedup();
        if cores.is_empty() {
            cores = cores::presumed_of_shards(usize::from(greeting.shards));
        }
        let flushes: Vec<_> = rows.iter().filter_map(|row| row["flushes"].as_u64()).collect();
        Self {
            shards: u32::from(greeting.shards),
            cores,
            idle: stats["idle"].as_str().unwrap_or("adaptive").to_owned(),
            data_dir: stats["data_dir"].as_str().map(PathBuf::from),
            flushes: (!flushes.is_empty()).then(|| flushes.iter().sum()),
            message_max: greeting.message_max,
        }
    }
}

/// A connection for questions.
#[derive(Debug)]
pub struct Control {
    pub(super) link: Link,
    pub(super) greeting: Greeting,
}

impl Control {
    /// Connects to any shard of the broker at `address`.
    pub fn connect(address: &str) -> Result<Self, TransportError> {
        let (link, greeting) = Link::open(address, None, "loadgen")?;
        Ok(Self { link, greeting })
    }

    /// What the broker says of itself.
    pub fn facts(&mut self) -> Result<BrokerFacts, TransportError> {
        let stats = self.link.ask(&Request::Stats(Stats::Shards), |answer| match answer {
            Answer::Stats(answer) => serde_json::from_slice(answer.json).ok(),
            _ => None,
        })?;
        Ok(BrokerFacts::of(&self.greeting, &stats))
    }
}

/// A queue of a run, by its number over all topics.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueuePlace {
    pub topic: TopicId,
    pub queue: QueueId,
    pub shard: ShardId,
}

/// The topics of a run.
#[derive(Debug)]
pub struct Topics {
    names: Vec<String>,
    pub(super) ids: Vec<MemberTopic>,
    /// By number.
    pub(super) queues: Vec<QueuePlace>,
}

impl Topics {
    /// Makes `topics` topics of `queues` queues each, named after `prefix` and the run.
    pub fn create(
        control: &mut Control,
        prefix: &str,
        run: u64,
        topics: u32,
        queues: u32,
    ) -> Result<Self, TransportError> {
        let mut made = Self { names: Vec::new(), ids: Vec::new(), queues: Vec::new() };
        for number in 0..topics {
            let name = format!("{prefix}-{:08x}-{number}", run >> 32);
            let create = CreateTopic { name: &name, queues, retention: TopicRetention::default() };
            let topic = control.link.ask(&Request::CreateTopic(create), |answer| match answer {
                Answer::CreateTopic(answer) => Some(answer.topic.id),
                _ => None,
            })?;
            let hash = TopicHash::of(&name);
            made.queues.extend((0..queues).map(QueueId).map(|queue| QueuePlace {
                topic,
                queue,
                shard: hash.shard_of(queue, control.greeting.shards),
            }));
            made.ids.push(MemberTopic { id: topic, hash });
            made.names.push(name);
        }
        Ok(made)
    }

    /// Deletes them and all that is in them.
    pub fn delete(&self, control: &mut Control) -> Result<(), TransportError> {
        for name in &self.names {
            control.link.ask(&Request::DeleteTopic(DeleteTopic { name, id: None }), |answer| match answer {
                Answer::DeleteTopic(_) => Some(()),
                _ => None,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_taken_from_the_statistics_as_far_as_they_go() {
        let greeting = Greeting { shards: 2, message_max: 7, frame_max: 9 };
        let stats = serde_json::json!({
            "data_dir": "/d", "idle": "park",
            "shards": [{"shard": 0, "core": 3, "flushes": 5}, {"shard": 1, "core": 3, "flushes": 6}],
        });
        let facts = BrokerFacts::of(&greeting, &stats);
        assert_eq!((facts.shards, facts.cores.as_slice(), facts.flushes), (2, &[3][..], Some(11)));
        assert_eq!((facts.idle.as_str(), facts.data_dir), ("park", Some(PathBuf::from("/d"))));
        let unknown = BrokerFacts::of(&greeting, &serde_json::json!({}));
        assert_eq!((unknown.flushes, unknown.data_dir, unknown.message_max), (None, None, 7));
        assert!(!unknown.cores.is_empty());
    }
}
