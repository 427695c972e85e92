//! This node's own member record.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::MemberRole;
use crate::wal::{Lsn, Timeline};

/// What a node announces about itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Where its PostgreSQL listens.
    pub conn_url: String,
    /// Where its agent answers, the path `/patroni` included.
    pub api_url: String,
    /// Where a pooler of it listens.
    pub proxy_url: Option<String>,
    /// Its state.
    pub state: NodeState,
    /// Its role.
    pub role: MemberRole,
    /// Whether it is a primary whose checkpoint after the promotion is still to come.
    pub checkpoint_pending: bool,
    /// Its tags.
    #[serde(with = "crate::journal::form::object")]
    pub tags: Map<String, Value>,
    /// Settings that wait for a restart: name, value now, value wanted.
    pub pending_restart: Vec<(String, String, String)>,
    /// How far its log reaches.
    pub xlog_location: Option<Lsn>,
    /// The end of what it applied, for a replica.
    pub replay_lsn: Option<Lsn>,
    /// The end of what it received, for a replica.
    pub receive_lsn: Option<Lsn>,
    /// Whether it is a replica that receives the log from a server at this moment.
    pub streaming: bool,
    /// Its timeline.
    pub timeline: Option<Timeline>,
}

/// The state of a node, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// A bootstrap runs.
    Initializing,
    /// The last bootstrap failed.
    InitdbFailed,
    /// A copy is being made.
    CreatingReplica,
    /// The server answers.
    Running,
    /// The server does not answer yet.
    Starting,
    /// The last start failed.
    StartFailed,
    /// The server is being stopped.
    Stopping,
    /// The server is down after a clean stop.
    Stopped,
    /// The last stop failed.
    StopFailed,
    /// The server is down and was not stopped.
    Crashed,
    /// The server should run, and does not answer.
    Unknown,
}

impl MemberRecord {
    /// Returns the bytes to store.
    pub fn to_bytes(&self) -> Bytes {
        encode(&Value::Object(self.to_map()))
    }

    /// Whether the two say the same but for positions, whose change alone is no news.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self == other || {
            let moved = Self {
                xlog_location: other.xlog_location,
                replay_lsn: other.replay_lsn,
                receive_lsn: other.receive_lsn,
                ..self.clone()
            };
            moved == *other
        }
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| {
            map.insert(key.to_owned(), value);
        };
        put("conn_url", self.conn_url.clone().into());
        put("api_url", self.api_url.clone().into());
        put("state", self.state.as_str().into());
        put("role", self.role.as_str().into());
        put("version", COMPATIBLE_VERSION.into());
        put("spilo_version", env!("CARGO_PKG_VERSION").into());
        if let Some(url) = &self.proxy_url {
            put("proxy_url", url.clone().into());
        }
        if self.checkpoint_pending {
            put("checkpoint_after_promote", false.into());
        }
        if !self.tags.is_empty() {
            put("tags", self.tags.clone().into());
        }
        if !self.pending_restart.is_empty() {
            put("pending_restart", true.into());
            put(
                "pending_restart_reason",
                pending_restart(&self.pending_restart),
            );
        }
        for (key, lsn) in [
            ("xlog_location", self.xlog_location),
            ("replay_lsn", self.replay_lsn),
            ("receive_lsn", self.receive_lsn),
        ] {
            if let Some(lsn) = lsn {
                put(key, lsn.0.into());
            }
        }
        if self.streaming {
            put("replication_state", "streaming".into());
        }
        if let Some(timeline) = self.timeline {
            put("timeline", timeline.0.into());
        }
        map
    }
}

impl NodeState {
    /// Returns the text of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing new cluster",
            Self::InitdbFailed => "initdb failed",
            Self::CreatingReplica => "creating replica",
            Self::Running => "running",
            Self::Starting => "starting",
            Self::StartFailed => "start failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::StopFailed => "stop failed",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }
}

/// Returns the object that explains a pending restart, as Patroni writes it.
pub(crate) fn pending_restart(reasons: &[(String, String, String)]) -> Value {
    let entry = |(name, old, new): &(String, String, String)| {
        let mut map = Map::new();
        map.insert("old_value".to_owned(), old.clone().into());
        map.insert("new_value".to_owned(), new.clone().into());
        (name.clone(), Value::Object(map))
    };
    Value::Object(reasons.iter().map(entry).collect())
}

/// Whether a member's record says something else than it did `before` but for positions.
///
/// Those move in every record of a busy cluster, Patroni's among them, and nobody waits for them: a
/// backend need not wake its watchers for them ([`Dcs::changed`](crate::Dcs::changed)). What is no
/// record is news whenever it is another one.
pub fn is_news(before: &[u8], record: &[u8]) -> bool {
    let apart = |bytes: &[u8]| {
        let mut map: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
        for position in POSITIONS {
            map.remove(position);
        }
        Some(map)
    };
    before != record && apart(before).is_none_or(|before| Some(before) != apart(record))
}

/// Returns a document as the contract wants it in the store: one line, no white space, and
/// nothing but ASCII.
pub fn encode(value: &Value) -> Bytes {
    let text = value.to_string();
    if text.is_ascii() {
        return Bytes::from(text);
    }
    let mut ascii = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Bytes::from(ascii)
}

/// Where a record says how far its server is.
const POSITIONS: [&str; 3] = ["xlog_location", "receive_lsn", "replay_lsn"];

/// The level of Patroni that peers may take this node for: they compare it to decide which
/// protocol it speaks. spilo's own version stands beside it.
pub(crate) const COMPATIBLE_VERSION: &str = "4.1.4";
