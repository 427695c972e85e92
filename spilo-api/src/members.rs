//! The document of `GET /cluster`.

use serde_json::{Map, Value, json};
use spilo_core::Scope;
use spilo_core::cluster::{Cluster, HistoryEntry, Member};
use spilo_core::config::boolean;

use crate::report::is_quorum;

/// Returns the cluster as Patroni shows it.
pub(crate) fn cluster(cluster: &Cluster, scope: &Scope) -> Value {
    let mut map = Map::new();
    // The members come in order of their names.
    map.insert(
        "members".to_owned(),
        cluster
            .members
            .values()
            .map(|m| member(m, cluster))
            .collect(),
    );
    if setting(cluster, "pause").and_then(boolean) == Some(true) {
        map.insert("pause".to_owned(), true.into());
    }
    if let Some(failover) = &cluster.failover
        && let Some(at) = &failover.scheduled_at
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".to_owned(), at.clone().into());
        for (key, name) in [("from", &failover.leader), ("to", &failover.candidate)] {
            if let Some(name) = name {
                scheduled.insert(key.to_owned(), name.clone().into());
            }
        }
        map.insert("scheduled_switchover".to_owned(), scheduled.into());
    }
    map.insert("scope".to_owned(), scope.as_str().into());
    Value::Object(map)
}

/// Returns the history as Patroni shows it: the array that is stored.
pub(crate) fn history(entries: &[HistoryEntry]) -> Value {
    let bytes = HistoryEntry::list_to_bytes(entries);
    serde_json::from_slice(&bytes).unwrap_or_else(|_| json!([]))
}

fn member(member: &Member, cluster: &Cluster) -> Value {
    let leads = cluster
        .leader
        .as_ref()
        .is_some_and(|l| l.name.as_ref() == Some(&member.name));
    let streaming = member
        .replication_state
        .as_deref()
        .filter(|s| !leads && !s.is_empty());
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    put("name", member.name.as_str().into());
    put("role", role(member, cluster, leads).into());
    put("state", streaming.unwrap_or(&member.state).into());
    put("api_url", member.api_url.clone().into());
    if let Some((host, port)) = member.host_port() {
        put("host", host.into());
        put("port", port.into());
    }
    for key in [
        "timeline",
        "pending_restart",
        "pending_restart_reason",
        "scheduled_restart",
        "tags",
    ] {
        if let Some(value) = member.raw.get(key) {
            put(key, value.clone());
        }
    }
    if !leads {
        let end = cluster
            .status
            .as_ref()
            .and_then(|s| s.optime)
            .unwrap_or_default();
        for (prefix, at) in [
            ("receive_", member.receive_lsn),
            ("replay_", member.replay_lsn),
            ("", member.position()),
        ] {
            let known = at.map(|at| (at.to_string().into(), end.bytes_past(at).into()));
            let (lsn, lag): (Value, Value) =
                known.unwrap_or_else(|| ("unknown".into(), "unknown".into()));
            put(&format!("{prefix}lsn"), lsn);
            put(&format!("{prefix}lag"), lag);
        }
    }
    Value::Object(map)
}

fn role(member: &Member, cluster: &Cluster, leads: bool) -> &'static str {
    let name = member.name.as_str();
    let synchronous = cluster
        .sync
        .as_ref()
        .is_some_and(|sync| sync.standbys.iter().any(|s| s.eq_ignore_ascii_case(name)));
    let standby_cluster =
        matches!(setting(cluster, "standby_cluster"), Some(Value::Object(m)) if !m.is_empty());
    let quorum = cluster
        .config
        .as_ref()
        .is_some_and(|c| is_quorum(&c.config.raw));
    match (leads, synchronous) {
        (true, _) if standby_cluster => "standby_leader",
        (true, _) => "leader",
        (false, true) if quorum => "quorum_standby",
        (false, true) => "sync_standby",
        (false, false) => "replica",
    }
}

fn setting<'a>(cluster: &'a Cluster, name: &str) -> Option<&'a Value> {
    cluster.config.as_ref()?.config.raw.get(name)
}
