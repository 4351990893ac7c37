//! The configuration file: TOML, flat, each key a row of the table.

use std::path::Path;

use toml::{Table, Value};

use super::table::{Row, TABLE};

/// The file's values as texts, each with its row; a sentence where the file cannot be used.
pub(super) fn read(file: &Path) -> Result<Vec<(&'static Row, Vec<String>)>, String> {
    let name = file.display();
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read the configuration {name}: {error}"))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| format!("{name}: {}", first_line(&error)))?;
    table
        .into_iter()
        .map(|(key, value)| entry(&key, &value).map_err(|sentence| format!("{name}: {sentence}")))
        .collect()
}

fn entry(key: &str, value: &Value) -> Result<(&'static Row, Vec<String>), String> {
    let row = TABLE.iter().find(|row| row.key == key).ok_or_else(|| format!("there is no setting \"{key}\""))?;
    let values = match value {
        Value::Array(values) if row.repeats => values.iter().map(|value| text(key, value)).collect::<Result<_, _>>()?,
        value => vec![text(key, value)?],
    };
    Ok((row, values))
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(switch) => Ok(switch.to_string()),
        _ => Err(format!("{key} must be a text, a whole number, true or false")),
    }
}

fn first_line(error: &toml::de::Error) -> String {
    error.message().lines().next().unwrap_or("not TOML").to_owned()
}
