//! What nodes ask each other directly.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::MemberName;
use crate::wal::{Lsn, Timeline};

/// Questions to other members, over HTTP in production.
///
/// # Contract
/// One attempt each, bounded by the time the implementation was configured with (2 s or less), no
/// retry. Dropping a future is safe.
#[async_trait]
pub trait Peers: Send + Sync + fmt::Debug {
    /// Asks the member at `api_url` what it is (`GET <api_url>`, the status document).
    ///
    /// # Errors
    /// Any answer that is not a status counts as no answer.
    async fn ask(&self, api_url: &str) -> Result<PeerStatus, PeerError>;

    /// Asks the member at `api_url` to accept that this node stays primary without the store
    /// (`POST /failsafe`).
    ///
    /// # Errors
    /// Anything but an explicit acceptance is a refusal.
    async fn ask_consent(
        &self,
        api_url: &str,
        request: &ConsentRequest,
    ) -> Result<Option<Lsn>, PeerError>;
}

/// What a member answered about itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name, if it said so (`patroni.name`).
    pub name: Option<MemberName>,
    /// Its cluster, if it said so (`patroni.scope`): an address that was used anew may lead to a
    /// member of another one.
    pub scope: Option<String>,
    /// Whether its server takes writes: its role is primary, or it gave a write position.
    pub primary: bool,
    /// How far its log reaches; `None` when it gave no position, which is how a node says that
    /// its server is down.
    pub position: Option<Lsn>,
    /// Its timeline, if it said so.
    pub timeline: Option<Timeline>,
    /// Whether it may not be promoted: its `nofailover` tag, a priority of zero or less, or an
    /// unusable watchdog that it needs.
    pub no_failover: bool,
    /// Whether its server streams from somebody.
    pub streaming: bool,
    /// Whether it says that it holds the lock, and its server is down or a standby, so that it
    /// cannot be writing: the answer of a spilo node (`spilo.write` is false).
    pub cannot_write: bool,
    /// For how long from now on it takes no lock, whatever happens, because it promised so or may
    /// have: the answer of a spilo node (`spilo.waits_ms`). Nothing, if it may take it at once.
    #[serde(default)]
    pub waits: Duration,
    /// Whether it says that it may not take the lock, for a reason that need not pass: the answer of
    /// a spilo node (`spilo.barred`).
    #[serde(default)]
    pub barred: bool,
    /// Whether that is because it did not come through the last fork that the store knows of, so that
    /// what it has beyond is lost already (`spilo.off_branch`).
    #[serde(default)]
    pub off_branch: bool,
}

/// A primary's question for consent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConsentRequest {
    /// The cluster that the question is about; Patroni's nodes do not say.
    pub scope: Option<String>,
    /// Who asks.
    pub name: MemberName,
    /// Its connection URL.
    pub conn_url: String,
    /// Its API URL.
    pub api_url: String,
    /// The positions of its slots.
    pub slots: BTreeMap<String, Lsn>,
}

/// What a node answers to a [`ConsentRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConsentAnswer {
    /// It will not acquire, hold or promote for one ttl. Its position goes with the answer.
    Accepted(Option<Lsn>),
    /// It is a running primary itself.
    RunningAsLeader,
    /// The failsafe mode is off.
    Off,
    /// A request for the lock of its own is under way or unknown.
    Busy,
    /// It is a member of another cluster.
    Stranger,
}

/// A question that got no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot ask {url}: {problem}")]
pub struct PeerError {
    url: String,
    problem: String,
}

impl PeerError {
    /// Creates the error of a question to `url`.
    pub fn new(url: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            problem: problem.into(),
        }
    }
}
