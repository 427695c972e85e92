//! Reading each key, with Patroni's tolerance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    ConfigDocument, FailoverDocument, HistoryEntry, Initialize, Leader, Malformed, Member,
    MemberRole, ReleaseDocument, StatusDocument, SyncDocument,
};
use crate::config::{DynamicConfig, TTL_CEILING};
use crate::dcs::{Entry, LeaderRecord};
use crate::ids::{Epoch, MemberName, SystemId};
use crate::wal::{Lsn, Timeline};

pub(super) type Bad = Vec<Malformed>;

pub(super) fn leader(record: &LeaderRecord, bad: &mut Bad) -> Leader {
    let name = std::str::from_utf8(&record.name)
        .ok()
        .and_then(|n| MemberName::new(n).ok());
    if name.is_none() {
        note(
            bad,
            "leader",
            "is no member name; the lock counts as held by somebody unknown",
        );
    }
    Leader {
        name,
        record: record.clone(),
    }
}

pub(super) fn initialize(entry: Option<&Entry>, bad: &mut Bad) -> Initialize {
    let Some(entry) = entry else {
        return Initialize::Absent;
    };
    if entry.value.is_empty() {
        return Initialize::Claimed;
    }
    match std::str::from_utf8(&entry.value)
        .ok()
        .and_then(SystemId::parse)
    {
        Some(id) => Initialize::Known(id),
        None => {
            note(bad, "initialize", "is no system identifier");
            Initialize::Invalid
        }
    }
}

pub(super) fn config(entry: Option<&Entry>, bad: &mut Bad) -> Option<ConfigDocument> {
    let entry = entry?;
    let config = match object(entry) {
        Ok(map) => DynamicConfig::parse(map),
        Err(problem) => Err(problem),
    };
    match config {
        Ok(config) => Some(ConfigDocument {
            config: Arc::new(config),
            revision: entry.revision,
        }),
        Err(problem) => {
            note(bad, "config", &problem);
            None
        }
    }
}

pub(super) fn member(name: &str, entry: &Entry, bad: &mut Bad) -> Option<Member> {
    let path = || format!("members/{name}");
    let name = match MemberName::new(name) {
        Ok(name) => name,
        Err(error) => {
            note(bad, &path(), &error.to_string());
            return None;
        }
    };
    let raw = object(entry).unwrap_or_else(|problem| {
        legacy_member(entry).unwrap_or_else(|| {
            note(bad, &path(), &problem);
            Map::new()
        })
    });
    let text = |key: &str| raw.get(key).and_then(Value::as_str).map(str::to_owned);
    let lsn = |key: &str| raw.get(key).and_then(integer).map(Lsn);
    let timeline = raw
        .get("timeline")
        .and_then(integer)
        .and_then(|n| u32::try_from(n).ok());
    Some(Member {
        name,
        conn_url: text("conn_url").or_else(|| conn_kwargs(&raw)),
        api_url: text("api_url"),
        state: text("state").unwrap_or_else(|| "unknown".to_owned()),
        role: MemberRole::parse(text("role").unwrap_or_default().as_str()),
        xlog_location: lsn("xlog_location"),
        receive_lsn: lsn("receive_lsn"),
        replay_lsn: lsn("replay_lsn"),
        replication_state: text("replication_state"),
        timeline: timeline.map(Timeline),
        checkpoint_pending: raw.get("checkpoint_after_promote") == Some(&Value::Bool(false)),
        tags: raw
            .get("tags")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
        raw,
        revision: entry.revision,
    })
}

pub(super) fn status(
    entry: Option<&Entry>,
    legacy: Option<&Entry>,
    bad: &mut Bad,
) -> Option<StatusDocument> {
    let Some(entry) = entry else {
        let optime = std::str::from_utf8(&legacy?.value)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        return Some(StatusDocument {
            optime: Some(Lsn(optime)),
            ..StatusDocument::default()
        });
    };
    let value: Value = match serde_json::from_slice(&entry.value) {
        Ok(value) => value,
        Err(error) => {
            note(bad, "status", &error.to_string());
            return None;
        }
    };
    if let Some(optime) = integer(&value) {
        return Some(StatusDocument {
            optime: Some(Lsn(optime)),
            ..StatusDocument::default()
        });
    }
    let Value::Object(mut map) = value else {
        note(bad, "status", "is neither an object nor a number");
        return None;
    };
    let optime = map
        .shift_remove("optime")
        .as_ref()
        .and_then(integer)
        .map(Lsn);
    let slots = map.shift_remove("slots").map(unquoted).unwrap_or_default();
    let retain = map
        .shift_remove("retain_slots")
        .map(unquoted)
        .unwrap_or_default();
    Some(StatusDocument {
        optime,
        slots: slots
            .as_object()
            .map(|m| {
                m.iter()
                    .filter_map(|(k, v)| Some((k.clone(), Lsn(integer(v)?))))
                    .collect()
            })
            .unwrap_or_default(),
        retain_slots: retain
            .as_array()
            .map(|list| {
                list.iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default(),
        other: map,
    })
}

pub(super) fn failover(entry: Option<&Entry>, bad: &mut Bad) -> Option<FailoverDocument> {
    let entry = entry?;
    let text = match std::str::from_utf8(&entry.value) {
        Ok(text) => text.trim(),
        Err(_) => {
            note(bad, "failover", "is not text");
            return None;
        }
    };
    let some = |s: &str| Some(s.trim()).filter(|s| !s.is_empty()).map(str::to_owned);
    let map = match serde_json::from_str(text) {
        Ok(Value::Object(map)) => map,
        Ok(Value::Null) => return None,
        Ok(Value::String(text)) => return legacy_failover(&text, entry),
        Ok(_) => {
            note(bad, "failover", "is not an object");
            return None;
        }
        Err(_) if text.is_empty() => return None,
        Err(_) if text.contains(':') && !text.contains(['{', '[', '"']) => {
            return legacy_failover(text, entry);
        }
        Err(error) => {
            note(bad, "failover", &error.to_string());
            return None;
        }
    };
    let text = |key: &str| map.get(key).and_then(Value::as_str).and_then(some);
    let document = FailoverDocument {
        leader: text("leader"),
        candidate: text("member").or_else(|| text("candidate")),
        scheduled_at: text("scheduled_at"),
        revision: entry.revision,
    };
    let asks = document.leader.is_some() || document.candidate.is_some();
    asks.then_some(document)
}

pub(super) fn sync(entry: Option<&Entry>, bad: &mut Bad) -> Option<SyncDocument> {
    let entry = entry?;
    let map = match object(entry) {
        Ok(map) => map,
        Err(problem) => {
            note(bad, "sync", &problem);
            return None;
        }
    };
    let leader = map
        .get("leader")
        .and_then(Value::as_str)
        .filter(|l| !l.is_empty())?;
    let names = map
        .get("sync_standby")
        .and_then(Value::as_str)
        .unwrap_or_default();
    Some(SyncDocument {
        leader: leader.to_owned(),
        quorum: map
            .get("quorum")
            .and_then(integer)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        standbys: names
            .split(',')
            .map(str::trim)
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
            .collect::<BTreeSet<_>>(),
        revision: entry.revision,
    })
}

pub(super) fn history(entry: Option<&Entry>, bad: &mut Bad) -> Option<Vec<HistoryEntry>> {
    let entry = entry?;
    let parsed = match serde_json::from_slice(&entry.value) {
        Ok(Value::Array(list)) => list.iter().map(history_entry).collect::<Option<Vec<_>>>(),
        Ok(_) | Err(_) => None,
    };
    if parsed.is_none() {
        note(
            bad,
            "history",
            "is not a list of [timeline, position, reason]",
        );
    }
    parsed
}

pub(super) fn failsafe(
    entry: Option<&Entry>,
    bad: &mut Bad,
) -> Option<BTreeMap<MemberName, String>> {
    let entry = entry?;
    let map = match object(entry) {
        Ok(map) => map,
        Err(problem) => {
            note(bad, "failsafe", &problem);
            return None;
        }
    };
    let mut members = BTreeMap::new();
    for (name, url) in map {
        match (MemberName::new(name), url.as_str()) {
            (Ok(name), Some(url)) => {
                members.insert(name, url.to_owned());
            }
            // Half a list would let a primary stay on the consent of too few.
            (Ok(_) | Err(_), _) => {
                note(
                    bad,
                    "failsafe",
                    "has an entry that is not a member name with its URL",
                );
                return None;
            }
        }
    }
    Some(members)
}

pub(super) fn release(entry: Option<&Entry>, bad: &mut Bad) -> Option<ReleaseDocument> {
    let entry = entry?;
    let map = match object(entry) {
        Ok(map) => map,
        Err(problem) => {
            note(bad, "release", &problem);
            return None;
        }
    };
    let number = |key: &str| map.get(key).and_then(integer);
    let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let (Some(epoch), Some(name)) = (number("epoch"), text("name")) else {
        note(bad, "release", "has no epoch or no name");
        return None;
    };
    let timeline = number("timeline")
        .and_then(|n| u32::try_from(n).ok())
        .map(Timeline);
    Some(ReleaseDocument {
        epoch: Epoch(epoch),
        name,
        // No ttl is longer, and a wrong number must not be waited for till the end of days.
        ttl: number("ttl_ms").map(|ms| Duration::from_millis(ms).min(TTL_CEILING)),
        // What cannot be read proves no release.
        taken: !matches!(map.get("taken"), None | Some(Value::Bool(false))),
        position: timeline.zip(number("lsn").map(Lsn)),
        candidate: text("candidate"),
        revision: entry.revision,
    })
}

/// Returns the host and port of a connection URL, port 5432 if it names none.
pub(super) fn host_port(url: &str) -> Option<(String, u16)> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))?;
    let authority = rest.split(['/', '?']).next()?;
    let address = authority
        .rsplit_once('@')
        .map_or(authority, |(_, address)| address);
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (host, rest.strip_prefix(':'))
    } else {
        match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    if host.is_empty() {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => 5432,
    };
    Some((host.to_owned(), port))
}

fn legacy_failover(text: &str, entry: &Entry) -> Option<FailoverDocument> {
    let (leader, candidate) = text.split_once(':').unwrap_or((text, ""));
    let some = |s: &str| Some(s.trim()).filter(|s| !s.is_empty()).map(str::to_owned);
    let (leader, candidate) = (some(leader), some(candidate));
    (leader.is_some() || candidate.is_some()).then_some(FailoverDocument {
        leader,
        candidate,
        scheduled_at: None,
        revision: entry.revision,
    })
}

fn legacy_member(entry: &Entry) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(&entry.value).ok()?;
    if !text.starts_with("postgres") {
        return None;
    }
    let (conn_url, query) = text.split_once('?').unwrap_or((text, ""));
    let mut map = Map::new();
    map.insert("conn_url".to_owned(), conn_url.into());
    if let Some(api_url) = query
        .split('&')
        .find_map(|q| q.strip_prefix("application_name="))
    {
        map.insert("api_url".to_owned(), api_url.into());
    }
    Some(map)
}

fn conn_kwargs(raw: &Map<String, Value>) -> Option<String> {
    let kwargs = raw.get("conn_kwargs")?.as_object()?;
    let text = |key: &str| {
        kwargs
            .get(key)
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let host = text("host")?;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let port = text("port").unwrap_or_else(|| "5432".to_owned());
    let database = text("dbname")
        .or_else(|| text("database"))
        .unwrap_or_else(|| "postgres".into());
    Some(format!("postgres://{host}:{port}/{database}"))
}

fn history_entry(value: &Value) -> Option<HistoryEntry> {
    let item = value.as_array()?;
    let text = |n: usize| item.get(n).and_then(Value::as_str).map(str::to_owned);
    Some(HistoryEntry {
        timeline: Timeline(u32::try_from(integer(item.first()?)?).ok()?),
        end: Lsn(integer(item.get(1)?)?),
        reason: text(2)?,
        at: text(3),
        new_leader: text(4),
    })
}

fn object(entry: &Entry) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(&entry.value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("is not a JSON object".to_owned()),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

/// Kubernetes keeps these as JSON inside a JSON string.
fn unquoted(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        other => other,
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn note(bad: &mut Bad, path: &str, problem: &str) {
    bad.push(Malformed {
        path: path.to_owned(),
        problem: problem.to_owned(),
    });
}
