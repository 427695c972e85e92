//! The environment, laid over the file.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{ConfigErrorKind, Problems};
use super::flow;
use super::keys::{KEYS, Key, Kind, nearest_of};

/// Writes what `PATRONI_*` variables say into `document`, over what the file said.
///
/// Empty variables say nothing. One that no key goes by is warned of and not refused: unlike a
/// file, an environment is shared, with `patronictl` and with what starts the agent.
pub(super) fn overlay(
    document: &mut Map<String, Value>,
    env: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    let names: BTreeMap<String, &Key> = KEYS
        .iter()
        .filter_map(|key| variable(key.path).map(|name| (name, key)))
        .collect();
    let ours = env
        .iter()
        .filter(|(name, text)| name.starts_with(PREFIX) && !text.is_empty());
    for (name, text) in ours {
        if name == CONFIGURATION {
            continue;
        }
        if let Some(key) = names.get(name) {
            match read(key.kind, text) {
                Ok(value) => {
                    problems.variables.insert(key.path.to_owned(), name.clone());
                    set(document, key.path, value);
                }
                Err(problem) => problems.error(name, ConfigErrorKind::WrongType, problem),
            }
        } else if let Some(store) = other_store(name) {
            // Any variable of a store selects that store, which is what has to be refused.
            problems.variables.insert(store.to_owned(), name.clone());
            set(document, store, Value::Object(Map::new()));
        } else {
            let meant = nearest_of(name, names.keys().map(String::as_str));
            problems.warn(
                name,
                &format!("unknown variable, ignored; did you mean `{meant}`?"),
            );
        }
    }
}

/// Returns the variable that sets the key at `path`, if one does.
fn variable(path: &str) -> Option<String> {
    let (section, rest) = path.split_once('.').unwrap_or(("", path));
    let rest = match section {
        "" if path.contains('*') || STORES.contains(&path) || path == "citus" => return None,
        "" | "log" | "etcd3" | "consul" | "zookeeper" => path,
        "restapi" | "ctl" => return Some(shout(&path.replace("authentication.", ""))),
        "postgresql" => match rest.split_once('.') {
            None if FROM_VARIABLES.contains(&rest) => path,
            Some(("authentication", role)) => role,
            Some(("bin_name", program)) => {
                return Some(shout(&format!("postgresql.bin.{program}")));
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(shout(rest))
}

fn shout(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

fn read(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::List | Kind::Lines => flow::list(text).map(Value::Array),
        Kind::Map => flow::map(text).map(Value::Object),
        _ => Ok(Value::String(text.to_owned())),
    }
}

/// Puts `value` at `path`, making the sections on the way.
fn set(document: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            document.insert(path.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = document.entry(section).or_insert(Value::Null);
            if inner.is_null() {
                *inner = Value::Object(Map::new());
            }
            // A section of the wrong type is left alone: the check of the document names it.
            if let Value::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn other_store(name: &str) -> Option<&'static str> {
    let rest = name.strip_prefix(PREFIX)?;
    let named = |store: &&&str| {
        rest.strip_prefix(&store.to_ascii_uppercase())
            .is_some_and(|rest| rest.starts_with('_'))
    };
    STORES.iter().chain(&["citus"]).find(named).copied()
}

const PREFIX: &str = "PATRONI_";

/// Holds a whole configuration, and is read by the program, which has the parser.
const CONFIGURATION: &str = "PATRONI_CONFIGURATION";

/// The sections that choose another store.
const STORES: [&str; 4] = ["etcd", "exhibitor", "kubernetes", "raft"];

/// The keys of `postgresql` itself that variables set; the others are the file's alone.
const FROM_VARIABLES: [&str; 7] = [
    "listen",
    "connect_address",
    "proxy_address",
    "config_dir",
    "data_dir",
    "pgpass",
    "bin_dir",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn overlaid(file: Value, env: &[(&str, &str)]) -> (Value, Problems) {
        let Value::Object(mut document) = file else {
            panic!("{file} is no map")
        };
        let env = env
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let mut problems = Problems::default();
        overlay(&mut document, &env.collect(), &mut problems);
        (Value::Object(document), problems)
    }

    #[test]
    fn every_kind_of_variable_finds_its_key() {
        for (name, text, expected) in [
            ("PATRONI_NAME", "a", json!({"name": "a"})),
            (
                "PATRONI_LOG_LEVEL",
                "DEBUG",
                json!({"log": {"level": "DEBUG"}}),
            ),
            (
                "PATRONI_LOG_LOGGERS",
                "a: INFO",
                json!({"log": {"loggers": {"a": "INFO"}}}),
            ),
            (
                "PATRONI_RESTAPI_LISTEN",
                ":1",
                json!({"restapi": {"listen": ":1"}}),
            ),
            (
                "PATRONI_RESTAPI_USERNAME",
                "u",
                json!({"restapi": {"authentication": {"username": "u"}}}),
            ),
            (
                "PATRONI_CTL_PASSWORD",
                "p",
                json!({"ctl": {"authentication": {"password": "p"}}}),
            ),
            (
                "PATRONI_ETCD3_HOSTS",
                "'a:1','b:2'",
                json!({"etcd3": {"hosts": ["a:1", "b:2"]}}),
            ),
            (
                "PATRONI_POSTGRESQL_DATA_DIR",
                "/d",
                json!({"postgresql": {"data_dir": "/d"}}),
            ),
            (
                "PATRONI_POSTGRESQL_BIN_PG_CTL",
                "x",
                json!({"postgresql": {"bin_name": {"pg_ctl": "x"}}}),
            ),
            (
                "PATRONI_SUPERUSER_SSLMODE",
                "require",
                json!({"postgresql": {"authentication": {"superuser": {"sslmode": "require"}}}}),
            ),
            ("PATRONI_CONSUL_HOST", "h", json!({"consul": {"host": "h"}})),
            (
                "PATRONI_ZOOKEEPER_HOSTS",
                "h",
                json!({"zookeeper": {"hosts": ["h"]}}),
            ),
            ("PATRONI_EXHIBITOR_HOSTS", "h", json!({"exhibitor": {}})),
            ("PATRONI_ETCD_HOST", "h", json!({"etcd": {}})),
        ] {
            let (document, problems) = overlaid(json!({}), &[(name, text)]);
            assert_eq!(document, expected, "{name}");
            assert!(
                problems.errors.is_empty() && problems.warnings.is_empty(),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn variables_win_over_the_file_and_empty_ones_say_nothing() {
        let (document, _) = overlaid(
            json!({"name": "file", "scope": "file", "log": null}),
            &[
                ("PATRONI_NAME", "env"),
                ("PATRONI_SCOPE", ""),
                ("PATRONI_LOG_DIR", "/l"),
            ],
        );
        assert_eq!(
            document,
            json!({"name": "env", "scope": "file", "log": {"dir": "/l"}})
        );
    }

    #[test]
    fn an_unknown_variable_is_warned_of_with_the_nearest() {
        let (_, problems) = overlaid(
            json!({}),
            &[
                ("PATRONI_POSTGRESQL_LISTN", "x"),
                ("PATRONI_CONFIGURATION", "x"),
                ("PATH", "x"),
            ],
        );
        assert_eq!(
            problems.warnings,
            [
                "PATRONI_POSTGRESQL_LISTN: unknown variable, ignored; did you mean \
              `PATRONI_POSTGRESQL_LISTEN`?"
            ]
        );
    }

    #[test]
    fn broken_flow_text_names_the_variable() {
        let (_, problems) = overlaid(json!({}), &[("PATRONI_ETCD3_HOSTS", "['a:1'")]);
        assert_eq!(
            problems.errors[0].to_string(),
            "PATRONI_ETCD3_HOSTS: has [ without ]"
        );
    }
}
