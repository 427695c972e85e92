//! Options that are passed through to a program of PostgreSQL.

use serde_json::{Map, Value};

use super::judge::{expected, found};
use super::scalar::setting;

/// One long option of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ToolOption {
    /// Its name, without the dashes.
    pub name: String,
    /// Its value; `None` for a switch.
    pub value: Option<String>,
}

impl ToolOption {
    /// Returns it as one argument, which no shell and no second option can take apart.
    pub fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// Reads a list of switches and one-key maps, or a map.
pub(super) fn parse(value: &Value) -> Result<Vec<ToolOption>, String> {
    let mut options = Vec::new();
    match value {
        Value::Null => {}
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(switch) => options.push(named(switch, None)?),
                    Value::Object(map) if map.len() == 1 => add(map, &mut options)?,
                    other => {
                        let what = "a list of switches and of maps with one key";
                        return Err(format!("must be {what}, found {} in it", found(other)));
                    }
                }
            }
        }
        Value::Object(map) => add(map, &mut options)?,
        other => return Err(expected("a list or a map of options", other)),
    }
    Ok(options)
}

fn add(map: &Map<String, Value>, options: &mut Vec<ToolOption>) -> Result<(), String> {
    for (name, value) in map {
        match value {
            Value::Bool(false) => {}
            Value::Bool(true) | Value::Null => options.push(named(name, None)?),
            value => {
                let text = setting(value).ok_or_else(|| {
                    format!(
                        "`{name}` must have a scalar for a value, found {}",
                        found(value)
                    )
                })?;
                options.push(named(name, Some(text))?);
            }
        }
    }
    Ok(())
}

fn named(name: &str, value: Option<String>) -> Result<ToolOption, String> {
    let name = name.trim_start_matches('-');
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(fine) {
        return Err(format!("{name:?} is not the name of an option"));
    }
    Ok(ToolOption {
        name: name.to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_come_as_a_list_or_as_a_map() {
        for value in [
            json!([{"encoding": "UTF8"}, "data-checksums", {"wal-segsize": 16}]),
            json!({"encoding": "UTF8", "data-checksums": true, "wal-segsize": "16", "debug": false}),
        ] {
            let arguments: Vec<_> = parse(&value)
                .unwrap()
                .iter()
                .map(ToolOption::argument)
                .collect();
            assert_eq!(
                arguments,
                ["--encoding=UTF8", "--data-checksums", "--wal-segsize=16"]
            );
        }
    }

    #[test]
    fn what_is_no_option_is_named() {
        for (value, problem) in [
            (
                json!("x"),
                "must be a list or a map of options, found \"x\"",
            ),
            (
                json!([1]),
                "must be a list of switches and of maps with one key, found the number 1 in it",
            ),
            (
                json!([{"a": 1, "b": 2}]),
                "must be a list of switches and of maps with one key, found a map in it",
            ),
            (
                json!({"a": []}),
                "`a` must have a scalar for a value, found a list",
            ),
            (json!(["a b"]), "\"a b\" is not the name of an option"),
        ] {
            assert_eq!(parse(&value).unwrap_err(), problem, "{value}");
        }
    }
}
