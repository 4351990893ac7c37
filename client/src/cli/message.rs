//! `peregrine message`: messages looked up by id, by place and by key.

use std::io::{self, Write, stdout};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use peregrine_client::{Client, Delivery, Nanos};
use serde_json::{Value, json};

use super::arguments::{FindOptions, MessageCommand, Which};
use super::consume::as_json;
use super::failure::Failure;
use super::start;
use super::table::Table;
use super::topic::{COMMAND_TIMEOUT, instant};

/// Characters of a value in a listing.
const SHORT_VALUE: usize = 60;

pub async fn run(broker: &str, command: MessageCommand) -> Result<(), Failure> {
    let client = Client::builder(broker).timeout(COMMAND_TIMEOUT).connect().await?;
    match command {
        MessageCommand::Get { message, output } => {
            let message = match message {
                Which::Id(id) => client.get_message(id).await?,
                Which::Place { topic, queue, offset } => client.get_message_at(&topic, queue, offset).await?,
            };
            let mut out = stdout().lock();
            if output.json { writeln!(out, "{}", as_json(&message))? } else { print(&message, &mut out)? }
        }
        MessageCommand::Find(options) => find(&client, &options).await?,
    }
    Ok(())
}

async fn find(client: &Client, options: &FindOptions) -> Result<(), Failure> {
    let now = Timestamp::now();
    let time = |text: &Option<String>, otherwise| text.as_deref().map_or(Ok(otherwise), |text| start::time(text, now));
    let (begin, end) = (time(&options.begin, Nanos::ZERO)?, time(&options.end, Nanos::MAX)?);
    // One more tells whether there are more.
    let wanted = options.limit as usize + 1;
    let find = client.find(&options.topic, options.key.clone().into_bytes());
    let mut found = find.between(begin, end).page(wanted as u32).start().await?;
    let mut messages = Vec::new();
    while messages.len() < wanted
        && let Some(message) = found.next().await
    {
        messages.push(message?);
    }
    let more = messages.len() == wanted;
    messages.truncate(options.limit as usize);
    let mut out = stdout().lock();
    if options.output.json {
        let messages: Vec<Value> = messages.iter().map(as_json).collect();
        writeln!(out, "{}", json!({ "messages": messages, "more": more }))?;
        return Ok(());
    }
    let mut table = Table::new(["ID", "QUEUE", "OFFSET", "STORED", "SIZE", "VALUE"]);
    for message in &messages {
        table.row([
            message.id.to_string(),
            message.queue.to_string(),
            message.offset.to_string(),
            instant(message.store_time),
            message.body.len().to_string(),
            short(message),
        ]);
    }
    table.print(&mut out)?;
    if more {
        eprintln!("peregrine: there are more; --limit {} was reached, --begin goes on from a time", options.limit);
    }
    Ok(())
}

/// A line for each thing that is known of it, the value last.
fn print(message: &Delivery, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<9} {value}");
    line("id", &message.id.to_string())?;
    line("topic", &message.topic)?;
    line("queue", &message.queue.to_string())?;
    line("offset", &message.offset.to_string())?;
    line("epoch", &message.epoch.to_string())?;
    line("stored", &instant(message.store_time))?;
    if let Some(born) = message.born_time {
        line("born", &instant(born))?;
    }
    if let Some(key) = &message.key {
        line("key", &text(key))?;
    }
    if let Some(tag) = &message.tag {
        line("tag", tag)?;
    }
    for (name, value) in &message.properties {
        line("property", &format!("{name}={value}"))?;
    }
    line("size", &message.body.len().to_string())?;
    line("value", &text(&message.body))
}

/// What is no text is shown as base64.
fn text(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("(base64) {}", BASE64_STANDARD.encode(bytes)),
    }
}

/// The beginning of a value, on one line.
fn short(message: &Delivery) -> String {
    let Some(text) = message.text() else { return "(no text)".to_owned() };
    let visible = |character: char| if character.is_control() { ' ' } else { character };
    let mut short: String = text.chars().take(SHORT_VALUE).map(visible).collect();
    if text.chars().nth(SHORT_VALUE).is_some() {
        short.push('…');
    }
    short
}
