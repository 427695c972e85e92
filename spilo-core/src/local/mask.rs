//! The configuration as it may be shown.

use serde_json::{Map, Value};

use super::keys::{self, Kind};
use super::secret::MASK;

/// Returns `document` with everything that is or may be a secret masked.
pub(super) fn document(document: &Map<String, Value>) -> Map<String, Value> {
    section("", document)
}

fn section(path: &str, map: &Map<String, Value>) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, value) in map {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let secret = matches!(keys::find(&path).map(|key| key.kind), Some(Kind::Secret));
        let value = match value {
            Value::Null => Value::Null,
            _ if secret || sounds_secret(name) => Value::String(MASK.to_owned()),
            Value::Object(inner) => Value::Object(section(&path, inner)),
            Value::String(text) => Value::String(without_passwords(text)),
            other => other.clone(),
        };
        shown.insert(name.clone(), value);
    }
    shown
}

/// Sections that are not looked into (`bootstrap.dcs`, extra headers) have secrets as well.
fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passphrase", "secret", "token", "authorization"]
        .iter()
        .any(|word| name.contains(word))
        && name != "server_tokens"
        && name != "password_encryption"
}

/// Masks the password in `password=…` of a connection string and in a URL.
fn without_passwords(text: &str) -> String {
    let mut shown = text.to_owned();
    if let Some(at) = shown.find("password=") {
        let start = at + "password=".len();
        let rest = &shown[start..];
        let end = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.find('\'').map_or(rest.len(), |end| end + 2),
            None => rest.find([' ', '&']).unwrap_or(rest.len()),
        };
        shown.replace_range(start..start + end, MASK);
    }
    if let Some((scheme, rest)) = shown.split_once("://")
        && let Some((user, host)) = rest.split_once('@')
        && let Some((name, _)) = user.split_once(':')
    {
        shown = format!("{scheme}://{name}:{MASK}@{host}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let Value::Object(map) = json!({
            "restapi": {"listen": "a:1", "authentication": {"username": "u", "password": "s3"}},
            "postgresql": {
                "authentication": {"superuser": {"password": 53, "sslpassword": "s3"}},
                "parameters": {"primary_conninfo": "host=a password='s 3' port=1",
                               "password_encryption": "scram-sha-256"},
            },
            "etcd3": {"url": "http://u:s3@a:1", "password": "s3"},
            "bootstrap": {"dcs": {"standby_cluster": {"password": "s3"}}},
        }) else {
            panic!("not a map")
        };
        assert_eq!(
            Value::Object(document(&map)),
            json!({
                "restapi":
                    {"listen": "a:1", "authentication": {"username": "u", "password": "***"}},
                "postgresql": {
                    "authentication": {"superuser": {"password": "***", "sslpassword": "***"}},
                    "parameters": {"primary_conninfo": "host=a password=*** port=1",
                                   "password_encryption": "scram-sha-256"},
                },
                "etcd3": {"url": "http://u:***@a:1", "password": "***"},
                "bootstrap": {"dcs": {"standby_cluster": {"password": "***"}}},
            })
        );
    }
}
