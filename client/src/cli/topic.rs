//! `peregrine topic`.

use std::io::{Write, stdout};
use std::time::Duration;

use jiff::Timestamp;
use peregrine_client::{Client, Nanos, Topic};
use serde_json::{Value, json};

use super::arguments::{ListOptions, NameOptions, TopicCommand};
use super::failure::Failure;
use super::group::span;
use super::table::Table;

/// For commands that a person waits for: a broker that is just being started again is waited for, one that is not there is not.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn run(broker: &str, command: TopicCommand) -> Result<(), Failure> {
    let client = Client::builder(broker).timeout(COMMAND_TIMEOUT).connect().await?;
    let admin = client.admin();
    let mut out = stdout().lock();
    match command {
        TopicCommand::Create { name, queues, retention_age, output } => {
            let (topic, is_new) = admin.create_topic_with(&name, queues, retention_age.unwrap_or_default()).await?;
            if output.json {
                writeln!(out, "{}", json!({ "topic": as_json(&topic), "created": is_new }))?;
            } else {
                let done = if is_new { "created" } else { "is there already" };
                writeln!(out, "topic {} {done}, queues: {}{}", topic.name, topic.queues, kept(&topic))?;
            }
        }
        TopicCommand::Alter { name, queues, retention_age, output } => {
            let (topic, changed) = admin.alter_topic_with(&name, queues, retention_age).await?;
            if output.json {
                writeln!(out, "{}", json!({ "topic": as_json(&topic), "altered": changed }))?;
            } else {
                let done = if changed { "altered" } else { "is so already" };
                writeln!(out, "topic {} {done}, queues: {}{}", topic.name, topic.queues, kept(&topic))?;
            }
        }
        TopicCommand::List(ListOptions { prefix, output }) => {
            let topics = admin.list_topics(&prefix).await?;
            if output.json {
                let topics: Vec<Value> = topics.iter().map(as_json).collect();
                writeln!(out, "{}", json!({ "topics": topics }))?;
            } else {
                let mut table = Table::new(["TOPIC", "QUEUES", "ID", "CREATED"]);
                for topic in topics {
                    let created = instant(topic.created);
                    table.row([topic.name, topic.queues.to_string(), topic.id.to_string(), created]);
                }
                table.print(&mut out)?;
            }
        }
        TopicCommand::Describe(NameOptions { name, output }) => {
            let description = admin.describe_topic(&name).await?;
            if output.json {
                let queues: Vec<Value> = description
                    .queues
                    .iter()
                    .map(|state| {
                        json!({
                            "queue": state.queue.0,
                            "shard": state.shard.0,
                            "start": state.start.0,
                            "end": state.end.0,
                            "messages": state.end.0.saturating_sub(state.start.0),
                            "epoch": state.epoch.0,
                        })
                    })
                    .collect();
                writeln!(out, "{}", json!({ "topic": as_json(&description.topic), "queues": queues }))?;
            } else {
                let mut table = Table::new(["QUEUE", "SHARD", "START", "END", "MESSAGES", "EPOCH"]);
                let mut messages = 0;
                for state in description.queues {
                    let held = state.end.0.saturating_sub(state.start.0);
                    messages += held;
                    table.row([
                        state.queue.to_string(),
                        state.shard.to_string(),
                        state.start.to_string(),
                        state.end.to_string(),
                        held.to_string(),
                        state.epoch.to_string(),
                    ]);
                }
                let topic = description.topic;
                let created = instant(topic.created);
                let (name, kept) = (&topic.name, kept(&topic));
                writeln!(out, "topic {name}, id {}, created {created}, {messages} messages{kept}", topic.id)?;
                table.print(&mut out)?;
            }
        }
        TopicCommand::Delete(NameOptions { name, output }) => {
            let topic = admin.delete_topic(&name).await?;
            if output.json {
                writeln!(out, "{}", json!({ "topic": as_json(&topic), "deleted": true }))?;
            } else {
                writeln!(out, "topic {} deleted", topic.name)?;
            }
        }
    }
    Ok(())
}

fn as_json(topic: &Topic) -> Value {
    json!({
        "name": topic.name,
        "id": topic.id.0,
        "queues": topic.queues,
        "created": instant(topic.created),
        "retention_age_ms": topic.retention.age.map(|age| age.0 / 1_000_000),
    })
}

/// What is said of a topic with a retention of its own.
fn kept(topic: &Topic) -> String {
    topic.retention.age.map_or_else(String::new, |age| format!(", retention age: {}", span(age)))
}

/// RFC 3339.
pub fn instant(nanos: Nanos) -> String {
    Timestamp::from_nanosecond(nanos.0.into()).map_or_else(|_| nanos.to_string(), |instant| instant.to_string())
}
