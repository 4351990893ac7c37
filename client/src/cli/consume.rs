//! `peregrine consume`: prints messages as they come, those of a queue in order.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write, stdout};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use indicatif::ProgressBar;
use jiff::Timestamp;
use peregrine_client::{Client, Delivery, Error, QueueId, Reader};
use serde_json::{Map, Value, json};

use super::arguments::{ConsumeOptions, Format};
use super::failure::Failure;
use super::topic::instant;
use super::{consume_group, progress, start};

pub async fn run(broker: &str, options: ConsumeOptions) -> Result<(), Failure> {
    if let Some(group) = &options.group {
        return consume_group::run(broker, group, &options).await;
    }
    let start = start::parse(&options.from, Timestamp::now())?;
    let client = Client::builder(broker).timeout(options.timeout).connect().await?;
    let mut builder = client.reader(&options.topic).from(start).patience(options.timeout);
    if let Some(queue) = options.queue {
        builder = builder.queues([QueueId(queue)]);
    }
    if !options.follow {
        builder = builder.until_end();
    }
    let mut reader = builder.build().await?;
    let mut out = BufWriter::with_capacity(64 << 10, stdout());
    let result = print_all(&mut reader, &options, &mut out).await;
    let flushed = out.flush();
    result?;
    Ok(flushed?)
}

async fn print_all(reader: &mut Reader, options: &ConsumeOptions, out: &mut BufWriter<Stdout>) -> Result<(), Failure> {
    let bar = bar();
    let mut left = options.max.unwrap_or(u64::MAX);
    while left > 0 {
        let mut next = reader.try_next();
        if next.is_none() {
            out.flush()?;
            next = reader.next().await;
        }
        match next {
            None => break,
            Some(Ok(message)) => {
                print(&message, options.format, out)?;
                bar.inc(message.body.len() as u64 + 1);
                left -= 1;
            }
            // The reader goes on behind it; who reads must know all the same.
            Some(Err(error @ (Error::Truncated { .. } | Error::TooOld { .. }))) => {
                bar.suspend(|| eprintln!("peregrine: {error}"));
            }
            Some(Err(error)) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Messages on a terminal are progress enough.
pub fn bar() -> ProgressBar {
    if stdout().is_terminal() { ProgressBar::hidden() } else { progress::bar(None) }
}

pub fn print(message: &Delivery, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Value => out.write_all(&message.body)?,
        Format::Json => write!(out, "{}", as_json(message))?,
    }
    out.write_all(b"\n")
}

/// Bytes that are not UTF-8 stand in a field named `…_base64`.
pub fn as_json(message: &Delivery) -> Value {
    let mut fields = Map::new();
    let mut bytes = |name: &str, bytes: &[u8]| match str::from_utf8(bytes) {
        Ok(text) => fields.insert(name.to_owned(), Value::from(text)),
        Err(_) => fields.insert(format!("{name}_base64"), Value::from(BASE64_STANDARD.encode(bytes))),
    };
    bytes("value", &message.body);
    if let Some(key) = &message.key {
        bytes("key", key);
    }
    fields.insert("topic".to_owned(), json!(*message.topic));
    fields.insert("queue".to_owned(), json!(message.queue.0));
    fields.insert("offset".to_owned(), json!(message.offset.0));
    fields.insert("epoch".to_owned(), json!(message.epoch.0));
    fields.insert("id".to_owned(), json!(message.id.to_string()));
    fields.insert("stored".to_owned(), json!(instant(message.store_time)));
    if message.attempt > 0 {
        fields.insert("attempt".to_owned(), json!(message.attempt));
    }
    if let Some(born) = message.born_time {
        fields.insert("born".to_owned(), json!(instant(born)));
    }
    if let Some(tag) = &message.tag {
        fields.insert("tag".to_owned(), json!(tag));
    }
    if !message.properties.is_empty() {
        let properties = message.properties.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        fields.insert("properties".to_owned(), Value::Object(properties.collect()));
    }
    Value::Object(fields)
}
