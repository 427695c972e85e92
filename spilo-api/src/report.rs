//! The status document: the body of `GET /patroni` and of every health check.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use spilo_core::NodeTime;
use spilo_core::cluster::{Cluster, NodeState};
use spilo_core::pg::{DataDir, Role, Running, Walsender};
use spilo_core::status::Status;

use crate::node::Node;

/// A status and the moment at which it is looked at.
///
/// The time is read after the status, so that nothing in it can be newer than `now`.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) status: std::sync::Arc<Status>,
    pub(crate) now: NodeTime,
}

impl Report {
    /// Takes the node's status and then the time.
    pub(crate) fn of(node: &dyn Node) -> Self {
        let status = node.status();
        Self {
            now: node.now(),
            status,
        }
    }

    /// Returns whether this node may take writes now, and its server did when it was looked at not
    /// long ago.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_fresh() && self.status.is_writable(self.now)
    }

    /// Returns whether no server of this node takes writes, nor can begin to.
    ///
    /// More than the last observation: another node skips the wait for this one's lease on the
    /// word of it. A node that still has a permission could start or promote its server right
    /// after the answer, and an old observation proves nothing of the present.
    pub(crate) fn cannot_write(&self) -> bool {
        let permitted = self.status.leadership.is_some_and(|l| self.now < l.until);
        self.status.cannot_write() && self.is_fresh() && !permitted && !self.status.holds_lock
    }

    /// Returns the state in the words of the contract; `unknown` if nobody looked for too long.
    pub(crate) fn state(&self) -> &'static str {
        if self.status.postgres_at.is_some() && !self.is_fresh() {
            return NodeState::Unknown.as_str();
        }
        self.status.state.as_str()
    }

    /// Returns the server, if it answered when it was looked at and that was not long ago.
    pub(crate) fn running(&self) -> Option<&Running> {
        self.status
            .postgres
            .as_ref()
            .filter(|_| self.is_fresh())?
            .running()
    }

    /// Returns the role in the words of the contract.
    pub(crate) fn role(&self) -> &'static str {
        if let Some(running) = self.running() {
            return if running.is_primary() {
                "primary"
            } else {
                "replica"
            };
        }
        match self.status.postgres.as_ref().map(|p| &p.data) {
            _ if self.status.leadership.is_some_and(|l| self.now < l.until) => "primary",
            Some(DataDir::Ready(control)) if control.standby => "replica",
            Some(DataDir::Ready(_)) => "demoted",
            Some(DataDir::Empty | DataDir::Unfinished(_) | DataDir::Unreadable { .. }) | None => {
                "uninitialized"
            }
        }
    }

    /// Returns the view of the store, if it is younger than `ttl`.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        let at = self.status.cluster_at?;
        let fresh = self.now.since(at) < self.status.config.ttl;
        self.status.cluster.as_deref().filter(|_| fresh)
    }

    /// Returns whether the store lists this node as a synchronous standby.
    pub(crate) fn is_named_standby(&self) -> bool {
        let name = self.status.name.as_str();
        self.cluster()
            .and_then(|c| c.sync.as_ref())
            .is_some_and(|sync| sync.standbys.iter().any(|s| s.eq_ignore_ascii_case(name)))
    }

    /// Returns whether the synchronous standbys form a quorum.
    pub(crate) fn is_quorum(&self) -> bool {
        is_quorum(&self.status.config.raw)
    }

    /// Returns the status document.
    pub(crate) fn to_json(&self, node: &dyn Node) -> Value {
        let mut map = Map::new();
        map.insert("state".to_owned(), self.state().into());
        self.server(&mut map);
        let unlocked = self.cluster().is_none_or(|c| c.leader.is_none());
        if unlocked {
            map.insert("cluster_unlocked".to_owned(), true.into());
        }
        if self.status.failsafe_active {
            map.insert("failsafe_mode_is_active".to_owned(), true.into());
        }
        map.insert("dcs_last_seen".to_owned(), self.dcs_last_seen(node).into());
        if !self.status.tags.is_empty() {
            map.insert("tags".to_owned(), self.status.tags.clone().into());
        }
        if let Some(control) = self.status.postgres.as_ref().and_then(|p| p.control()) {
            let id = control.system_id.0.to_string();
            map.insert("database_system_identifier".to_owned(), id.into());
        }
        if let Some(running) = self.running().filter(|r| !r.pending_restart.is_empty()) {
            map.insert("pending_restart".to_owned(), true.into());
            map.insert(
                "pending_restart_reason".to_owned(),
                pending_restart(running),
            );
        }
        let archive = self.status.postgres.as_ref();
        if let Some(archive) = archive.and_then(|p| p.archive.as_ref()) {
            map.insert(
                "archive".to_owned(),
                json!({"waiting": archive.waiting, "first_waiting": archive.first_waiting}),
            );
        }
        let patroni = json!({
            "version": COMPATIBLE_VERSION,
            "scope": self.status.scope.as_str(),
            "name": self.status.name.as_str(),
        });
        map.insert("patroni".to_owned(), patroni);
        map.insert("spilo".to_owned(), self.own());
        Value::Object(map)
    }

    /// Adds what only a query can tell, and the role.
    fn server(&self, map: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| {
            map.insert(key.to_owned(), value);
        };
        let Some(running) = self.running() else {
            put("role", self.role().into());
            return;
        };
        put("postmaster_start_time", running.started.clone().into());
        put("role", self.role().into());
        put("server_version", running.version.into());
        match &running.role {
            Role::Primary { written } => put("xlog", json!({"location": written.0})),
            Role::Standby {
                received,
                replayed,
                replayed_at,
                paused,
                streaming,
                ..
            } => {
                put(
                    "xlog",
                    json!({
                        "received_location": received.0,
                        "replayed_location": replayed.0,
                        "replayed_timestamp": replayed_at,
                        "paused": paused,
                    }),
                );
                if self.is_named_standby() {
                    let key = if self.is_quorum() {
                        "quorum_standby"
                    } else {
                        "sync_standby"
                    };
                    put(key, true.into());
                }
                if *streaming {
                    put("replication_state", "streaming".into());
                }
            }
        }
        put("timeline", running.timeline.0.into());
        if !running.walsenders.is_empty() {
            put(
                "replication",
                running.walsenders.iter().map(walsender).collect(),
            );
        }
    }

    fn own(&self) -> Value {
        let status = &self.status;
        let ago = |at: Option<NodeTime>| at.map(|at| millis(self.now.since(at)));
        let lease = status.leadership.filter(|l| self.now < l.until).map(|l| {
            json!({
                "epoch": l.epoch.0,
                "until_ms": l.until.0,
                "left_ms": millis(l.until.since(self.now)),
                "by": l.by,
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "rule": status.decision.0,
            "reason": status.decision.1,
            "write": self.is_writable(),
            "cannot_write": self.cannot_write(),
            "waits_ms": millis(status.waits_until.since(self.now)),
            "barred": status.barred,
            "off_branch": status.off_branch,
            "unsupported": status.config.unsupported,
            "adjusted": status.config.adjusted,
            "lease": lease,
            "fence": status.fence,
            "weaknesses": status.weaknesses,
            "worst_fence_ms": status.worst_fence_ms,
            "stepped_ms_ago": millis(self.now.since(status.stepped_at)),
            "postgres_seen_ms_ago": ago(status.postgres_at),
            "dcs_seen_ms_ago": ago(status.cluster_at),
        })
    }

    pub(crate) fn dcs_last_seen(&self, node: &dyn Node) -> u64 {
        let Some(at) = self.status.cluster_at else {
            return 0;
        };
        let wall = node
            .wall_clock()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        wall.saturating_sub(self.now.since(at)).as_secs()
    }

    fn is_fresh(&self) -> bool {
        let allowed = self.status.config.loop_wait + OBSERVATION_SLACK;
        self.status
            .postgres_at
            .is_some_and(|at| self.now.since(at) <= allowed)
    }
}

/// Returns whether the dynamic configuration asks for quorum commit.
pub(crate) fn is_quorum(config: &Map<String, Value>) -> bool {
    config
        .get("synchronous_mode")
        .and_then(Value::as_str)
        .is_some_and(|mode| mode.eq_ignore_ascii_case("quorum"))
}

fn walsender(sender: &Walsender) -> Value {
    json!({
        "usename": sender.user,
        "application_name": sender.application,
        "client_addr": sender.client,
        "state": sender.state,
        "sync_state": sender.sync_state,
        "sync_priority": sender.sync_priority,
    })
}

fn pending_restart(running: &Running) -> Value {
    let reason = |(name, old, new): &(String, String, String)| {
        (name.clone(), json!({"old_value": old, "new_value": new}))
    };
    Value::Object(running.pending_restart.iter().map(reason).collect())
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The level of Patroni that readers may take this node for; they derive from it what it
/// understands. The same as in the member record.
pub(crate) const COMPATIBLE_VERSION: &str = "4.1.4";

/// How much older than `loop_wait` an observation may be. The agent looks at least that often,
/// and a look at a server that hangs is bounded by less than this.
const OBSERVATION_SLACK: Duration = Duration::from_secs(5);
