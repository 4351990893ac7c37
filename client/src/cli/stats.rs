//! `peregrine stats`: the broker's own JSON, or a table of it. Figures that a later broker adds are shown without being known here.

use std::io::{Write, stdout};

use peregrine_client::Client;
use serde_json::{Map, Value};

use super::arguments::{StatsOptions, What};
use super::failure::Failure;
use super::table::Table;
use super::topic::COMMAND_TIMEOUT;

pub async fn run(broker: &str, options: StatsOptions) -> Result<(), Failure> {
    let client = Client::builder(broker).timeout(COMMAND_TIMEOUT).connect().await?;
    let json = client.admin().stats(options.what.into()).await?;
    let mut out = stdout().lock();
    if options.output.json {
        writeln!(out, "{json}")?;
        return Ok(());
    }
    let value: Value =
        serde_json::from_str(&json).map_err(|error| format!("the broker's statistics are no JSON: {error}"))?;
    match options.what {
        What::Latency => latency(&value).print(&mut out)?,
        What::Shards => shards(&value).print(&mut out)?,
    }
    Ok(())
}

/// One row per stage, over all shards; times in microseconds.
fn latency(value: &Value) -> Table {
    let rows = objects(value, "stages");
    let mut names: Vec<&String> = rows.first().map(|row| row.keys().collect()).unwrap_or_default();
    names.sort_by_key(|name| (latency_rank(name), name.len(), (*name).clone()));
    let heading = |name: &&String| match name.strip_suffix("_us") {
        Some(figure) => format!("{} µs", figure.to_uppercase()),
        None => name.to_uppercase(),
    };
    let mut table = Table::new(names.iter().map(heading));
    for row in &rows {
        table.row(names.iter().map(|name| row.get(*name).map_or_else(String::new, cell)));
    }
    table
}

/// `stage`, `count`, the percentiles from low to high, `max`.
fn latency_rank(name: &str) -> u8 {
    match name {
        "stage" => 0,
        "count" => 1,
        "max_us" => 4,
        _ if name.starts_with('p') => 2,
        _ => 3,
    }
}

/// One row per figure, one column per shard.
fn shards(value: &Value) -> Table {
    let shards: Vec<Vec<(String, String)>> = objects(value, "shards")
        .into_iter()
        .map(|shard| {
            let mut figures = Vec::new();
            flatten("", shard, &mut figures);
            figures
        })
        .collect();
    let name = |shard: &Vec<(String, String)>| {
        let number = shard.iter().find(|(name, _)| name == "shard").map_or("", |(_, number)| number);
        format!("SHARD {number}")
    };
    let mut table = Table::new(std::iter::once("FIGURE".to_owned()).chain(shards.iter().map(name)));
    let names = shards.first().into_iter().flatten().map(|(name, _)| name).filter(|name| *name != "shard");
    for name in names {
        let of = |shard: &Vec<(String, String)>| {
            shard.iter().find(|(figure, _)| figure == name).map_or_else(String::new, |(_, figure)| figure.clone())
        };
        table.row(std::iter::once(name.clone()).chain(shards.iter().map(of)));
    }
    table
}

fn objects<'a>(value: &'a Value, field: &str) -> Vec<&'a Map<String, Value>> {
    value.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).collect()
}

/// Figures first, then those of the groups, named `group.figure`.
fn flatten(prefix: &str, group: &Map<String, Value>, into: &mut Vec<(String, String)>) {
    for (name, value) in group.iter().filter(|(_, value)| !value.is_object()) {
        into.push((format!("{prefix}{name}"), cell(value)));
    }
    for (name, value) in group {
        if let Some(inner) = value.as_object() {
            flatten(&format!("{prefix}{name}."), inner, into);
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => format!("{float:.1}"),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn print(table: &Table) -> String {
        let mut out = Vec::new();
        table.print(&mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn latency_has_a_row_per_stage_and_percentiles_in_order() {
        let value = json!({ "stages": [
            { "stage": "appended", "count": 10, "p99_us": 2.5, "p50_us": 1.0, "p99.99_us": 9.0, "max_us": 12.0 },
        ]});
        assert_eq!(
            print(&latency(&value)),
            "STAGE     COUNT  P50 µs  P99 µs  P99.99 µs  MAX µs\n\
             appended     10     1.0     2.5        9.0    12.0\n"
        );
    }

    #[test]
    fn shards_stand_side_by_side() {
        let value = json!({ "shards": [
            { "shard": 0, "epoch": 3, "log": { "writes": 5 } }, { "shard": 1, "epoch": 4, "log": { "writes": 7 } },
        ]});
        assert_eq!(
            print(&shards(&value)),
            "FIGURE      SHARD 0  SHARD 1\nepoch             3        4\nlog.writes        5        7\n"
        );
    }
}
