//! What a node says of itself: the source of every health check, status page and metric.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cluster::{Cluster, NodeState};
use crate::config::DynamicConfig;
use crate::ids::{Epoch, MemberName, Scope};
use crate::peer::PeerStatus;
use crate::pg::{PgStatus, Role, Running};
use crate::time::NodeTime;

/// The state of a node at one moment, with the age of everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// When it was taken.
    pub at: NodeTime,
    /// The cluster.
    pub scope: Scope,
    /// The node.
    pub name: MemberName,
    /// Its permission to write, if it has one.
    pub leadership: Option<Leadership>,
    /// Whether it holds the lock, whatever its server does. Becomes false the moment the lease
    /// runs out on this node's own clock.
    pub holds_lock: bool,
    /// What its server was when it was looked at last.
    pub postgres: Option<PgStatus>,
    /// When that was.
    pub postgres_at: Option<NodeTime>,
    /// Its state in the words of the contract.
    pub state: NodeState,
    /// What the store said last.
    pub cluster: Option<Arc<Cluster>>,
    /// When the request for that left.
    pub cluster_at: Option<NodeTime>,
    /// The dynamic configuration in force.
    pub config: Arc<DynamicConfig>,
    /// Its tags.
    pub tags: Map<String, Value>,
    /// Whether an operation is under way that makes a primary, or nobody has looked since one ended,
    /// or the guard keeps a permission for a server that lives, or does not say whether it does.
    pub may_become_primary: bool,
    /// Whether it stays primary by consent of the members, without the store.
    pub failsafe_active: bool,
    /// Until when it takes no lock, because it promised so to a primary that lives by consent, or
    /// may have done so before it started. Most often past.
    pub waits_until: NodeTime,
    /// Whether it may not take the lock, for a reason that need not pass: nobody waits for it for
    /// ever.
    pub barred: bool,
    /// Whether that is because it did not come through the last fork that the store knows of.
    pub off_branch: bool,
    /// What it decided last: the rule and why.
    pub decision: (&'static str, String),
    /// When the machine last took a step; a node that does not step is not alive.
    pub stepped_at: NodeTime,
    /// What ends its writes if its agent cannot: `guard`.
    pub fence: &'static str,
    /// Protections of the guard that this machine does not permit.
    pub weaknesses: Vec<String>,
    /// How long the guard's slowest fence took, in milliseconds.
    pub worst_fence_ms: u64,
}

/// The permission to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Leadership {
    /// The holding of the lock that it rests on.
    pub epoch: Epoch,
    /// When the guard begins to kill: its hard deadline. The fence is over within its own worst
    /// time, the fence budget, and the lease lasts for longer than that.
    pub until: NodeTime,
    /// Where it comes from.
    pub by: PermittedBy,
}

/// Where the permission to write comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PermittedBy {
    /// The lease on the lock.
    Lease,
    /// The consent of all members while the store is away.
    Consent,
}

impl Status {
    /// Returns whether the node may take writes at `now` *and* its server does.
    ///
    /// This is what makes `/primary` answer 200. `now` is asked for again, because a status that
    /// was true when it was taken must not outlive the permission. A cluster that was bootstrapped
    /// here is none to write to before the store has its identifier: another node may begin anew.
    pub fn is_writable(&self, now: NodeTime) -> bool {
        let control = self.postgres.as_ref().and_then(PgStatus::control);
        let settled = control.is_some_and(|control| !control.provisional);
        self.leadership.is_some_and(|l| now < l.until) && self.is_primary() && settled
    }

    /// Returns whether the node says something else of itself than it did with `last`: another
    /// decision or reason, state, role or hold on the lock.
    #[cfg(feature = "agent")]
    pub(crate) fn is_news_after(&self, last: &Self) -> bool {
        let told = |status: &Self| (status.state, status.holds_lock, status.is_primary());
        told(self) != told(last) || self.decision != last.decision
    }

    /// Returns whether its server answered as a primary when it was looked at last.
    pub fn is_primary(&self) -> bool {
        self.postgres
            .as_ref()
            .and_then(PgStatus::running)
            .is_some_and(|r| r.is_primary())
    }

    /// Returns what the node tells a peer that asks, as [`Peers`](crate::Peers) bring it.
    pub fn as_peer(&self) -> PeerStatus {
        let running = self.postgres.as_ref().and_then(PgStatus::running);
        let streams = |running: &Running| {
            matches!(
                running.role,
                Role::Standby {
                    streaming: true,
                    ..
                }
            )
        };
        PeerStatus {
            name: Some(self.name.clone()),
            scope: Some(self.scope.to_string()),
            primary: running.is_some_and(Running::is_primary),
            position: running.map(|r| r.position().lsn),
            timeline: running.map(|r| r.timeline),
            no_failover: false,
            streaming: running.is_some_and(streams),
            cannot_write: self.cannot_write(),
            waits: self.waits_until.since(self.at),
            barred: self.barred,
            off_branch: self.off_branch,
        }
    }

    /// Returns whether it knows that no server of this node takes writes, nor will before it takes
    /// the lock again: it is down, or answers as a standby, and there is no permission to promote
    /// or start it by, nor anything of a time when there was one.
    pub fn cannot_write(&self) -> bool {
        use crate::pg::Server;
        if self.leadership.is_some() || self.holds_lock || self.may_become_primary {
            return false;
        }
        match self.postgres.as_ref().map(|p| &p.server) {
            Some(Server::Down) => true,
            Some(Server::Running(running)) => !running.is_primary(),
            Some(Server::Busy { .. } | Server::Closed { .. } | Server::Hung { .. }) | None => false,
        }
    }
}
