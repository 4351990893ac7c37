//! `peregrine group`.

use std::collections::HashMap;
use std::io::{StdoutLock, Write, stdout};

use jiff::{SignedDuration, Timestamp};
use peregrine_client::{Admin, Client, Group, GroupDescription, MemberId, Nanos, QueueLag, QueueReset, Start, TopicId};
use serde_json::{Value, json};

use super::arguments::{GroupCommand, ListOptions, NameOptions, OutputOptions};
use super::failure::Failure;
use super::start;
use super::table::Table;
use super::topic::{COMMAND_TIMEOUT, instant};

pub async fn run(broker: &str, command: GroupCommand) -> Result<(), Failure> {
    let client = Client::builder(broker).timeout(COMMAND_TIMEOUT).connect().await?;
    let admin = client.admin();
    let mut out = stdout().lock();
    match command {
        GroupCommand::List(ListOptions { prefix, output }) => {
            let (groups, names) = (admin.list_groups(&prefix).await?, topic_names(&admin).await?);
            list(&mut out, &groups, &names, output)?;
        }
        GroupCommand::Describe(NameOptions { name, output }) => {
            let description = admin.describe_group(&name).await?;
            describe(&mut out, &description, &topic_names(&admin).await?, output)?;
        }
        GroupCommand::Lag(NameOptions { name, output }) => {
            let lags = admin.group_lag(&name).await?;
            let members = admin.describe_group(&name).await?.members;
            let names = members.into_iter().map(|member| (member.id, member.name)).collect();
            lag(&mut out, &name, &lags, &names, output)?;
        }
        GroupCommand::Reset { name, to, topic, output } => {
            let start = start::parse(&to, Timestamp::now())?;
            let places = admin.reset_group(&name, topic.as_deref(), start).await?;
            reset(&mut out, &name, &places, output)?;
        }
        GroupCommand::Delete { name, force, output } => {
            let group = admin.delete_group(&name, force).await?;
            if output.json {
                writeln!(out, "{}", json!({ "group": as_json(&group, &HashMap::new()), "deleted": true }))?;
            } else {
                writeln!(out, "group {} deleted", group.name)?;
            }
        }
    }
    Ok(())
}

fn list(
    out: &mut StdoutLock<'_>,
    groups: &[Group],
    names: &HashMap<TopicId, String>,
    output: OutputOptions,
) -> Result<(), Failure> {
    if output.json {
        let groups: Vec<Value> = groups.iter().map(|group| as_json(group, names)).collect();
        writeln!(out, "{}", json!({ "groups": groups }))?;
        return Ok(());
    }
    let mut table = Table::new(["GROUP", "TOPICS", "ID", "CREATED"]);
    for group in groups {
        let topics: Vec<_> = group.topics.iter().map(|(topic, _)| topic_name(*topic, names)).collect();
        table.row([group.name.clone(), topics.join(","), group.id.to_string(), instant(group.created)]);
    }
    Ok(table.print(out)?)
}

fn describe(
    out: &mut StdoutLock<'_>,
    description: &GroupDescription,
    names: &HashMap<TopicId, String>,
    output: OutputOptions,
) -> Result<(), Failure> {
    let GroupDescription { group, home, number, settling, members, .. } = description;
    if output.json {
        let members: Vec<Value> = members
            .iter()
            .map(|member| {
                json!({
                    "name": member.name,
                    "id": member.id.0,
                    "client": member.client,
                    "joined": instant(member.joined),
                    "connected": member.connected,
                    "queues": member.queues,
                })
            })
            .collect();
        let all = json!({
            "group": as_json(group, names),
            "home_shard": home.0,
            "assignment": number,
            "settling": settling,
            "members": members,
        });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    let state = if *settling { "settling" } else { "settled" };
    writeln!(
        out,
        "group {}, id {}, created {}, home shard {home}, assignment {number}, {state}",
        group.name,
        group.id,
        instant(group.created)
    )?;
    for (topic, start) in &group.topics {
        writeln!(out, "topic {}, from {}", topic_name(*topic, names), said(*start))?;
    }
    let mut table = Table::new(["MEMBER", "QUEUES", "STATE", "JOINED", "CLIENT"]);
    for member in members {
        let state = if member.connected { "connected" } else { "lost" };
        let joined = instant(member.joined);
        table.row([member.name.clone(), member.queues.to_string(), state.to_owned(), joined, member.client.clone()]);
    }
    Ok(table.print(out)?)
}

fn lag(
    out: &mut StdoutLock<'_>,
    group: &str,
    lags: &[QueueLag],
    names: &HashMap<MemberId, String>,
    output: OutputOptions,
) -> Result<(), Failure> {
    let holder = |lag: &QueueLag| lag.holder.map(|id| names.get(&id).cloned().unwrap_or_else(|| id.to_string()));
    let messages: u64 = lags.iter().map(QueueLag::messages).sum();
    let oldest = lags.iter().filter_map(|lag| lag.oldest).max();
    if output.json {
        let queues: Vec<Value> = lags
            .iter()
            .map(|lag| {
                json!({
                    "topic": lag.topic,
                    "queue": lag.queue.0,
                    "shard": lag.shard.0,
                    "offset": lag.offset.0,
                    "epoch": lag.epoch.0,
                    "committed": lag.committed,
                    "end": lag.end.0,
                    "lag": lag.messages(),
                    "lag_ns": lag.oldest.map_or(0, |oldest| oldest.0),
                    "member": holder(lag),
                })
            })
            .collect();
        let lag_ns = oldest.map_or(0, |oldest| oldest.0);
        writeln!(out, "{}", json!({ "group": group, "lag": messages, "lag_ns": lag_ns, "queues": queues }))?;
        return Ok(());
    }
    let time = oldest.map_or_else(String::new, |oldest| format!(", the oldest for {}", span(oldest)));
    writeln!(out, "group {group}, {messages} messages to go{time}")?;
    let mut table = Table::new(["TOPIC", "QUEUE", "SHARD", "OFFSET", "END", "LAG", "OLDEST", "MEMBER"]);
    for lag in lags {
        table.row([
            lag.topic.clone(),
            lag.queue.to_string(),
            lag.shard.to_string(),
            if lag.committed { lag.offset.to_string() } else { "-".to_owned() },
            lag.end.to_string(),
            lag.messages().to_string(),
            lag.oldest.map_or_else(|| "-".to_owned(), span),
            holder(lag).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    Ok(table.print(out)?)
}

fn reset(out: &mut StdoutLock<'_>, group: &str, places: &[QueueReset], output: OutputOptions) -> Result<(), Failure> {
    if output.json {
        let queues: Vec<Value> = places
            .iter()
            .map(|place| {
                json!({
                    "topic": place.topic,
                    "queue": place.queue.0,
                    "offset": place.offset.0,
                    "epoch": place.epoch.0,
                })
            })
            .collect();
        writeln!(out, "{}", json!({ "group": group, "queues": queues }))?;
        return Ok(());
    }
    let mut table = Table::new(["TOPIC", "QUEUE", "OFFSET", "EPOCH"]);
    for place in places {
        let (queue, offset) = (place.queue.to_string(), place.offset.to_string());
        table.row([place.topic.clone(), queue, offset, place.epoch.to_string()]);
    }
    Ok(table.print(out)?)
}

async fn topic_names(admin: &Admin) -> Result<HashMap<TopicId, String>, Failure> {
    Ok(admin.list_topics("").await?.into_iter().map(|topic| (topic.id, topic.name)).collect())
}

/// Its id, where it was deleted a moment ago.
fn topic_name(topic: TopicId, names: &HashMap<TopicId, String>) -> String {
    names.get(&topic).cloned().unwrap_or_else(|| topic.to_string())
}

fn as_json(group: &Group, names: &HashMap<TopicId, String>) -> Value {
    let topics: Vec<Value> = group
        .topics
        .iter()
        .map(|(topic, start)| json!({ "id": topic.0, "name": names.get(topic), "from": said(*start) }))
        .collect();
    json!({ "name": group.name, "id": group.id.0, "created": instant(group.created), "topics": topics })
}

/// As `--from` and `--to` take it.
fn said(start: Start) -> String {
    match start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::Offset { offset, .. } => offset.to_string(),
        Start::Time(at) => instant(at),
    }
}

/// `1h 2m 3s`, milliseconds only where there is no more.
pub fn span(nanos: Nanos) -> String {
    let whole = SignedDuration::try_from(nanos.to_duration()).unwrap_or(SignedDuration::MAX);
    if whole.as_secs() == 0 {
        return format!("{} ms", whole.as_millis());
    }
    format!("{:#}", SignedDuration::from_secs(whole.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_anybody_wants_to_know() {
        assert_eq!(span(Nanos::from_millis(7)), "7 ms");
        assert_eq!(span(Nanos::from_millis(62_500)), "1m 2s");
        assert_eq!(span(Nanos::from_secs(3_600 * 30)), "30h");
    }

    #[test]
    fn starts_are_said_as_they_are_given() {
        let now = Timestamp::UNIX_EPOCH;
        for text in ["earliest", "latest", "42", "2026-08-01T12:00:00Z"] {
            assert_eq!(start::parse(text, now).map(said), Ok(text.to_owned()));
        }
    }
}
