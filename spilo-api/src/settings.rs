//! `PATCH` and `PUT /config`: changes of the dynamic configuration.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value};
use spilo_core::DynamicConfig;
use spilo_core::cluster::encode;
use spilo_core::config::patch as merge;
use spilo_core::dcs::{DcsErrorKind, Expect, Key, RawSnapshot};

use crate::node::Node;
use crate::reply::{self, Refusal};
use crate::view::View;

/// Merges `change` into the configuration, if nobody else changes it at the same moment.
///
/// # Errors
/// The store has none, has another by now, or did not answer; or nobody could work with it.
pub(crate) async fn patch(
    node: &dyn Node,
    view: &View,
    change: &Map<String, Value>,
) -> Result<Response, Refusal> {
    let unavailable = |problem: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem);
    let snapshot = view.read(node).await.map_err(unavailable)?;
    let Some(entry) = snapshot.raw.documents.get(&Key::Config) else {
        return Err(unavailable(
            "the store has no configuration to change".to_owned(),
        ));
    };
    let old = stored(&snapshot.raw).map_err(unavailable)?;
    let mut new = old.clone();
    merge(&mut new, change);
    check(&new, &old)?;
    if new != old {
        let value = encode(&Value::Object(new.clone()));
        let written = node
            .dcs()
            .put(Key::Config, value, Expect::Revision(entry.revision))
            .await;
        view.forget();
        written.map_err(|error| {
            let code = match error.kind() {
                DcsErrorKind::Conflict => StatusCode::CONFLICT,
                DcsErrorKind::Unavailable | DcsErrorKind::Indeterminate | DcsErrorKind::Refused => {
                    StatusCode::BAD_GATEWAY
                }
            };
            Refusal::new(code, error.to_string())
        })?;
    }
    node.wake();
    Ok(reply::document(StatusCode::OK, &Value::Object(new)))
}

/// Replaces the configuration.
///
/// # Errors
/// The store did not answer, or nobody could work with it.
pub(crate) async fn put(
    node: &dyn Node,
    view: &View,
    new: Map<String, Value>,
) -> Result<Response, Refusal> {
    let failed = |problem: String| Refusal::new(StatusCode::BAD_GATEWAY, problem);
    // What is in force now is only needed to tell which settings are new.
    let snapshot = view.read(node).await.map_err(failed)?;
    let old = stored(&snapshot.raw).unwrap_or_default();
    check(&new, &old)?;
    let value = encode(&Value::Object(new.clone()));
    let written = node.dcs().put(Key::Config, value, Expect::Anything).await;
    view.forget();
    written.map_err(|error| failed(error.to_string()))?;
    node.wake();
    Ok(reply::document(StatusCode::OK, &Value::Object(new)))
}

/// Refuses a configuration that no node could work with, before any node has to.
fn check(new: &Map<String, Value>, old: &Map<String, Value>) -> Result<(), Refusal> {
    let parsed = DynamicConfig::parse(new.clone()).map_err(Refusal::bad_request)?;
    // One that is in force already may stay, so that it can be removed bit by bit.
    let before = DynamicConfig::parse(old.clone())
        .map(|c| c.unsupported)
        .unwrap_or_default();
    let added: Vec<String> = parsed
        .unsupported
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    if added.is_empty() {
        return Ok(());
    }
    let names = added.join(", ");
    Err(Refusal::bad_request(format!(
        "{names}: not supported by this version; no node would take the lock with it"
    )))
}

fn stored(raw: &RawSnapshot) -> Result<Map<String, Value>, String> {
    let Some(entry) = raw.documents.get(&Key::Config) else {
        return Ok(Map::new());
    };
    match serde_json::from_slice(&entry.value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(format!("{UNREADABLE}: it is not an object")),
        Err(error) => Err(format!("{UNREADABLE}: {error}")),
    }
}

const UNREADABLE: &str = "the configuration in the store is malformed, PUT replaces it";
