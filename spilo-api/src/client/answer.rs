//! Reading another member's status document.

use std::time::Duration;

use serde_json::{Map, Value};
use spilo_core::config::{boolean, whole};
use spilo_core::peer::PeerStatus;
use spilo_core::{Lsn, MemberName, Timeline};

/// Reads the status document of a Patroni or spilo node.
///
/// # Errors
/// A body that is no JSON object, or one without any field of a status.
pub(super) fn read(body: &[u8]) -> Result<PeerStatus, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("its answer is not JSON: {error}"))?;
    let Value::Object(map) = value else {
        return Err("its answer is not a JSON object".to_owned());
    };
    let Some(role) = map.get("role").and_then(Value::as_str) else {
        return Err("its answer is not the status of a member: it has no role".to_owned());
    };
    let wal = ["wal", "xlog"]
        .iter()
        .find_map(|key| map.get(*key)?.as_object());
    let at = |key: &str| wal.and_then(|wal| whole(wal.get(key)?));
    let location = at("location").filter(|lsn| *lsn != 0);
    let says = |what: &str| {
        let own = object(&map, "spilo");
        own.and_then(|own| own.get(what)?.as_bool()) == Some(true)
    };
    // A write position says the opposite, and the doubt counts against the claim.
    let cannot_write = says("cannot_write") && location.is_none();
    let state = map.get("state").and_then(Value::as_str).unwrap_or_default();
    let named_primary = matches!(role, "primary" | "master" | "promoted");
    let down = wal.is_none() && DOWN.contains(&state);
    Ok(PeerStatus {
        name: object(&map, "patroni")
            .and_then(|p| p.get("name")?.as_str())
            .and_then(|name| MemberName::new(name).ok()),
        scope: object(&map, "patroni")
            .and_then(|p| p.get("scope")?.as_str())
            .map(str::to_owned),
        primary: location.is_some() || (named_primary && !down && !cannot_write),
        position: wal.map(|_| {
            let replica = at("received_location").max(at("replayed_location"));
            Lsn(location.or(replica).unwrap_or(0))
        }),
        timeline: map
            .get("timeline")
            .and_then(whole)
            .and_then(|timeline| u32::try_from(timeline).ok())
            .filter(|timeline| *timeline != 0)
            .map(Timeline),
        no_failover: no_failover(&map),
        streaming: map.get("replication_state").and_then(Value::as_str) == Some("streaming"),
        cannot_write,
        waits: object(&map, "spilo")
            .and_then(|own| own.get("waits_ms")?.as_u64())
            .map(Duration::from_millis)
            .unwrap_or_default(),
        barred: says("barred"),
        off_branch: says("off_branch"),
    })
}

/// A tag that is there but cannot be read counts against promoting.
fn no_failover(map: &Map<String, Value>) -> bool {
    let is_on = |value: &Value| boolean(value).unwrap_or_else(|| !value.is_null());
    if map.get("watchdog_failed").is_some_and(is_on) {
        return true;
    }
    let Some(tags) = object(map, "tags") else {
        return false;
    };
    match tags.get("nofailover").filter(|value| !value.is_null()) {
        Some(value) => is_on(value),
        None => match tags.get("failover_priority") {
            None | Some(Value::Null) => false,
            Some(Value::Number(number)) => number.as_f64().is_none_or(|priority| priority <= 0.0),
            Some(Value::String(text)) => text
                .trim()
                .parse::<i64>()
                .ok()
                .is_none_or(|priority| priority <= 0),
            Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => true,
        },
    }
}

fn object<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    map.get(key)?.as_object()
}

/// The states in which a node without a position has no server, whatever role it remembers.
const DOWN: &[&str] = &[
    "stopped",
    "crashed",
    "start failed",
    "initdb failed",
    "initializing new cluster",
    "creating replica",
];
