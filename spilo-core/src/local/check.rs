//! The walk over the whole document: every key known, every value of its kind.

use serde_json::{Map, Value};

use super::error::Problems;
use super::judge::{expected, found};
use super::keys::{self, Fate, Key, Kind, Verdict};
use super::scalar::{integer, text};
use crate::config::boolean;

/// Looks at every key of `document` and notes what is wrong with it.
pub(super) fn document(document: &Map<String, Value>, problems: &mut Problems) {
    section("", document, problems);
}

fn section(path: &str, map: &Map<String, Value>, problems: &mut Problems) {
    for (name, value) in map {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        // `key:` with nothing behind it says nothing.
        if let Some(key) = keys::find(&path) {
            if !value.is_null() {
                known(&path, key, value, problems);
            }
        } else if keys::is_section(&path) {
            match value {
                Value::Object(inner) => section(&path, inner, problems),
                Value::Null => {}
                other => problems.error(&path, Is::WrongType, expected("a section", other)),
            }
        } else if is_replica_method(&path, map) {
            // Whatever is in it is passed on to the command.
        } else if is_custom_method(&path, value) {
            problems.warn(&path, "has no effect: nothing names this method");
        } else {
            let meant = keys::nearest(&path);
            let problem = format!("unknown key; did you mean `{meant}`?");
            problems.error(&path, Is::Unknown, problem);
        }
    }
}

fn known(path: &str, key: &Key, value: &Value, problems: &mut Problems) {
    match key.fate {
        // Whatever it holds: it must go.
        Fate::Refused(why) => return problems.error(path, Is::Refused, why.to_owned()),
        Fate::Ignored(_) | Fate::Built | Fate::Judged(_) => {}
    }
    if let Err(problem) = kind(key.kind, value) {
        return problems.error(path, Is::WrongType, problem);
    }
    match key.fate {
        Fate::Built | Fate::Refused(_) => {}
        Fate::Ignored(why) => problems.warn(path, &format!("has no effect: {why}")),
        Fate::Judged(judge) => match judge(value) {
            Verdict::Fine => {}
            Verdict::Warn(why) => problems.warn(path, &why),
            Verdict::Refuse(why) => problems.error(path, Is::Refused, why),
        },
    }
}

fn kind(kind: Kind, value: &Value) -> Result<(), String> {
    let wanted = match kind {
        Kind::Any | Kind::Options => return Ok(()),
        Kind::Text => match text(value) {
            Some(line) if line.contains(['\n', '\0']) => {
                return Err("must be one line of text, found several".to_owned());
            }
            Some(_) => return Ok(()),
            None => "text (in quotes, if YAML takes it for something else)".to_owned(),
        },
        // The value must not be in the message.
        Kind::Secret => match text(value) {
            Some(_) => return Ok(()),
            None => return Err("must be text, in quotes".to_owned()),
        },
        Kind::Flag => match boolean(value) {
            Some(_) => return Ok(()),
            None => "a boolean (on or off, true or false, yes or no)".to_owned(),
        },
        Kind::Integer(least, most) => match integer(value) {
            Some(number) if (least..=most).contains(&number) => return Ok(()),
            _ => format!("an integer from {least} to {most}"),
        },
        Kind::Choice(words) => match text(value) {
            Some(word) if words.contains(&word.to_ascii_lowercase().as_str()) => return Ok(()),
            _ => format!("one of `{}`", words.join("`, `")),
        },
        Kind::List => match value {
            Value::Array(items) => return items.iter().try_for_each(item),
            Value::String(_) => return Ok(()),
            _ => "a list, or text with commas".to_owned(),
        },
        Kind::Lines => match value {
            Value::Array(items) => return items.iter().try_for_each(item),
            _ => "a list of lines".to_owned(),
        },
        Kind::Map => match value {
            Value::Object(_) => return Ok(()),
            _ => "a map".to_owned(),
        },
    };
    Err(expected(&wanted, value))
}

fn item(value: &Value) -> Result<(), String> {
    match text(value) {
        Some(line) if !line.contains(['\n', '\0']) => Ok(()),
        Some(_) => Err("must be a list of single lines, found several in one".to_owned()),
        None => Err(format!(
            "must be a list of text, found {} in it",
            found(value)
        )),
    }
}

/// Returns whether it is the section of a method by which replicas are to be made.
fn is_replica_method(path: &str, siblings: &Map<String, Value>) -> bool {
    let Some(name) = path.strip_prefix("postgresql.") else {
        return false;
    };
    ["create_replica_methods", "create_replica_method"]
        .iter()
        .filter_map(|key| siblings.get(*key))
        .any(|methods| match methods {
            Value::Array(items) => items.iter().any(|item| item.as_str() == Some(name)),
            Value::String(text) => text.split(',').any(|item| item.trim() == name),
            _ => false,
        })
}

/// A section of a bootstrap or replica method is named by the operator. Where the method is not
/// chosen Patroni never looks at it; where one of bootstrap is, the key that chooses it is refused.
fn is_custom_method(path: &str, value: &Value) -> bool {
    let owner = path.rsplit_once('.').map(|(owner, _)| owner);
    let inner = value.as_object().is_some_and(|map| {
        ["command", "no_params", "no_leader", "keep_data"]
            .iter()
            .any(|key| map.contains_key(*key))
    });
    matches!(owner, Some("bootstrap" | "postgresql")) && inner
}

use super::error::ConfigErrorKind as Is;
