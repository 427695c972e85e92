//! What the machine knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::duties::FENCE_PATIENCE;
use super::lease::{Consent, Earlier, Holding, Predecessor, Promise};
use super::listed::Listed;
use super::{Failure, LeaseRequest, ReadRequest, Ticket, WriteRequest};
use crate::cluster::{Cluster, MemberRecord};
use crate::config::DynamicConfig;
use crate::dcs::{DcsErrorKind, Key, Lease};
use crate::guard::{Deadline, GuardErrorKind, GuardStatus};
use crate::history::History;
use crate::ids::{Epoch, MemberName, OpId, Revision, SlotName, SystemId};
use crate::mutant::{Mutant, planted};
use crate::peer::PeerStatus;
use crate::pg::{PgErrorKind, PgOp, PgOpKind, PgStatus, Running, Server};
use crate::time::NodeTime;
use crate::wal::Timeline;

/// Observations and obligations, each with its age.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts {
    /// The time of the latest step.
    pub now: NodeTime,
    /// When the agent started.
    pub started: NodeTime,
    /// What the store said last; `at` is when the request left.
    pub cluster: Option<Seen<Arc<Cluster>>>,
    /// Since when the store has not answered a read.
    pub store_failing: Option<(NodeTime, String)>,
    /// The configuration in force.
    pub config: Arc<DynamicConfig>,
    /// The lock, if it is ours.
    pub holding: Option<Holding>,
    /// The greatest epoch that this node gave up.
    pub given_up: Option<Epoch>,
    /// Whether an earlier attempt to take the lock may still take it.
    pub unsettled: bool,
    /// The epoch under which the right to bootstrap was claimed.
    pub claimed: Option<Epoch>,
    /// The consent of the members.
    pub consent: Option<Consent>,
    /// A request to pass the lock to a new lease whose outcome is not known: when it left, and the
    /// ttl of that lease, which may be what the lock hangs on.
    pub succeeding: Option<(NodeTime, Duration)>,
    /// The latest lease that was held, which a consent continues.
    pub last_lease: Option<Lease>,
    /// What this node promised.
    pub promise: Option<Promise>,
    /// Whether this agent ever saw that the cluster has data: what is empty then was lost, and is
    /// not new.
    pub existed: bool,
    /// Whether the store ever had the record of a holding.
    pub record_seen: bool,
    /// The latest epoch that was given up by a release: whoever reads of it may write at once.
    pub released: Option<Epoch>,
    /// Until when somebody may write who held the lock before this node, whether or not it still
    /// holds what it found that out with.
    pub others_until: Option<NodeTime>,
    /// When the holder of the lock was first seen to hold it.
    pub leader_since: NodeTime,
    /// Those who held the lock before the predecessor, unless that one is known to have waited for
    /// them.
    pub earlier: Option<Earlier>,
    /// Who held the lock before.
    pub predecessor: Option<Predecessor>,
    /// What PostgreSQL was when it was looked at last; `at` is when the look began.
    pub pg: Option<Seen<PgStatus>>,
    /// Whether its position was another one at the look before.
    pub moved: bool,
    /// Since when looking at PostgreSQL fails altogether.
    pub pg_failing: Option<(NodeTime, String)>,
    /// Since when the server has been what it is: down, busy, hung or running.
    pub server_since: NodeTime,
    /// That this node holds the lock and its server does not take writes, or took none shortly
    /// before.
    pub outage: Option<Outage>,
    /// Since when a running standby has not been streaming.
    pub not_streaming_since: Option<NodeTime>,
    /// The timeline that this server was last seen to write.
    pub led: Option<Timeline>,
    /// The history of this node's own timeline.
    pub own_history: Option<History>,
    /// The history of another server: whose, and in which epoch of the lock it was asked.
    pub leader_history: Option<LeaderHistory>,
    /// The guard.
    pub guard: Option<Seen<GuardStatus>>,
    /// Since when and why the guard does not answer.
    pub guard_failing: Option<(NodeTime, Failure<GuardErrorKind>)>,
    /// The deadline that the guard acknowledged last and that still stands.
    pub armed: Option<Deadline>,
    /// The operation under way.
    pub op: Option<RunningOp>,
    /// The number of the first request after the latest operation or fence ended. A look that was
    /// asked for before it is out of date; times do not tell, since both fit into a millisecond.
    pub settled: Ticket,
    /// The number of the latest look at PostgreSQL.
    pub looked: Ticket,
    /// Since when a fence is under way.
    pub fencing: Option<NodeTime>,
    /// When a fence last proved that no process of the server is left.
    pub fenced_at: Option<NodeTime>,
    /// Since when a fence is wanted and fails, and why.
    pub fence_failing: Option<(NodeTime, String)>,
    /// Since when a fence has killed all there is, and no look shows that it is gone: the kernel
    /// holds it up.
    pub unburied: Option<NodeTime>,
    /// Operations that failed since they last succeeded.
    pub failures: BTreeMap<PgOpKind, OpFailure>,
    /// A hand-over whose stop was clean: for whom, and since when it waits for the release.
    pub handed_over: Option<HandedOver>,
    /// A primary that was promoted and has not checkpointed since.
    pub checkpoint_pending: bool,
    /// Whether a server was ordered to become a primary, and no look since the operation ended shows
    /// what came of it. One that failed or was stopped stands for as long as the server lives.
    pub promotion_ordered: bool,
    /// When this node last became a primary, and from where: for the `history` key.
    pub promoted: bool,
    /// What peers answered last.
    pub peers: BTreeMap<MemberName, Seen<Option<PeerStatus>>>,
    /// The members whose consent keeps a primary, as the store said last. A list that was deleted
    /// binds on: the primary may live by it and not know.
    pub failsafe: Option<BTreeMap<MemberName, String>>,
    /// Members of the last snapshot that had a leader, with their API URLs: whom a race must ask.
    pub electorate: BTreeMap<MemberName, String>,
    /// When each member's slot was wanted last.
    pub slot_seen: BTreeMap<SlotName, NodeTime>,
    /// When slots were last created and dropped.
    pub slots_at: Option<NodeTime>,
    /// The time to live that a fresh lease was to have, and when it was not granted.
    pub ungranted: Option<Ungranted>,
    /// Which request the latest hand-over was begun for.
    pub handing_over: Option<Revision>,
    /// A switchover that was given up, with why, so that it is not tried again.
    pub refused_failover: Option<(Revision, String)>,
    /// A switchover that this node released the lock for: its revision.
    pub shutdown: bool,
    /// Whether the agent is to leave guard and server running.
    pub detach: Option<NodeTime>,
    /// Whether the exit was commanded.
    pub exiting: bool,
    /// The requests under way.
    pub lanes: Lanes,
    /// What was written last, so that only changes are.
    pub written: Written,
    /// The system identifier, once seen on disk.
    pub system_id: Option<SystemId>,
}

/// A time in which the holder of the lock does not take writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outage {
    /// When it began.
    pub since: NodeTime,
    /// How often the server was started as a primary since it last took writes for
    /// [`STEADY`].
    pub starts: u32,
    /// Since when it takes writes again.
    pub back: Option<NodeTime>,
}

impl Facts {
    /// Remembers that the request which the latest hand-over was for is not tried again.
    pub(crate) fn refuse_hand_over(&mut self, why: &str) {
        if let Some(asked) = self.handing_over {
            self.refused_failover = Some((asked, why.to_owned()));
        }
    }
}

impl Facts {
    /// Takes note of whether the holder's server takes writes.
    pub(super) fn see_outage(&mut self, status: &PgStatus) {
        let serves = status.running().is_some_and(Running::is_primary);
        // A standby that nobody can ask is of no use to a holder.
        let closed = matches!(status.server, Server::Closed { .. })
            && status.control().is_some_and(|control| !control.standby);
        let outage = self.outage.take().filter(|_| self.holding.is_some());
        let begun = outage.is_some();
        let held = self.holding.as_ref();
        let lives = held.is_some_and(|held| held.is_alive(self.now));
        self.outage = match (outage, serves) {
            (outage, false) if closed => outage.and_then(Outage::unseen),
            (Some(outage), true) => outage.over(self.now),
            // Without a lease there is nothing to take writes by.
            (Some(outage), false) if !lives => Some(Outage {
                starts: outage.starts,
                ..Outage::new(self.now)
            }),
            (Some(outage), false) => Some(outage.on(self.now)),
            (None, false) if self.holding.is_some() => Some(Outage::new(self.now)),
            (None, _) => None,
        };
        if begun && serves && self.outage.is_none() {
            self.failures.remove(&PgOpKind::Start);
        }
    }
}

impl Outage {
    /// Begins one.
    pub(crate) fn new(now: NodeTime) -> Self {
        Self {
            since: now,
            starts: 0,
            back: None,
        }
    }

    /// Returns it where nobody can tell. A server that was not started anew, or that took writes
    /// since, may well serve its clients.
    pub(crate) fn unseen(self) -> Option<Self> {
        (self.starts > 0 && self.back.is_none()).then_some(self)
    }

    /// Returns it where the server takes no writes now.
    pub(crate) fn on(self, now: NodeTime) -> Self {
        match self.back {
            None => self,
            Some(_) => Self {
                starts: self.starts,
                ..Self::new(now)
            },
        }
    }

    /// Returns what is left of it where the server takes writes now.
    pub(crate) fn over(self, now: NodeTime) -> Option<Self> {
        let back = self.back.unwrap_or(now);
        let back_for = now.since(back);
        (back_for < STEADY).then_some(Self {
            back: Some(back),
            ..self
        })
    }
}

/// A server that takes writes for as long as this has not just been started to end again.
pub const STEADY: Duration = Duration::from_secs(30);

/// Something seen, and when the look at it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen<T> {
    /// When the look began.
    pub at: NodeTime,
    /// What was seen.
    pub value: T,
}

/// The history of another server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaderHistory {
    /// Whose it is.
    pub name: MemberName,
    /// The epoch that this one held when the question left.
    pub epoch: Option<Epoch>,
    /// When the question left.
    pub at: NodeTime,
    /// Its system identifier and history, or why there is no answer.
    pub answer: Result<(SystemId, History), String>,
}

/// The operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunningOp {
    /// Its number.
    pub id: OpId,
    /// The operation.
    pub op: PgOp,
    /// When it was started.
    pub since: NodeTime,
    /// Whether it was told to stop.
    pub cancelled: bool,
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpFailure {
    /// When it failed last.
    pub at: NodeTime,
    /// How often in a row, and in this way.
    pub times: u32,
    /// What that means.
    pub kind: PgErrorKind,
    /// What was wrong.
    pub text: String,
}

/// A fresh lease that the store did not grant to the holder of an old one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ungranted {
    /// The time to live that it was to have.
    pub ttl: Duration,
    /// When that was known.
    pub at: NodeTime,
    /// Whether the store refuses that time to live: it is not tried again.
    pub refused: bool,
}

/// A server that was stopped for a successor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HandedOver {
    /// The successor, if one was named.
    pub candidate: Option<MemberName>,
    /// When the stop was done.
    pub at: NodeTime,
}

/// The requests under way, at most one a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lanes {
    /// The last ticket that was given out.
    pub ticket: Ticket,
    /// The last operation number that was given out.
    pub op: OpId,
    /// On the lease lane.
    pub lease: Option<Sent<LeaseRequest>>,
    /// On the read lane.
    pub read: Option<Sent<ReadRequest>>,
    /// On the write lane.
    pub write: Option<Sent<WriteRequest>>,
    /// A look at PostgreSQL.
    pub observe: Option<Sent<()>>,
    /// A question for a history.
    pub history: Option<Sent<Option<MemberName>>>,
    /// A request to the guard, with the deadline if it sets one.
    pub guard: Option<Sent<Option<Deadline>>>,
    /// Questions to peers.
    pub peers: BTreeMap<MemberName, Sent<()>>,
    /// A round of questions for consent, with the members asked.
    pub consent: Option<Sent<BTreeSet<MemberName>>>,
    /// Whether the store hinted at a change since the last read left.
    pub read_wanted: bool,
    /// Whether something about the server may have changed since the last look began.
    pub observe_wanted: bool,
    /// When the last snapshot read left.
    pub read_at: Option<NodeTime>,
    /// When the last write that failed ended, so that the next one waits a little.
    pub write_failed: Option<NodeTime>,
    /// When the last lease request that failed ended.
    pub lease_failed: Option<NodeTime>,
    /// When the last request to the guard that failed ended; the next would fail as fast.
    pub guard_failed: Option<NodeTime>,
    /// When the last fence that failed ended.
    pub fence_failed: Option<NodeTime>,
    /// When the last look at PostgreSQL that failed ended.
    pub observe_failed: Option<NodeTime>,
    /// When reading this node's own history failed last.
    pub history_failed: Option<NodeTime>,
    /// When the last consent round ended.
    pub consent_at: Option<NodeTime>,
    /// When the lease of the holder was asked for last.
    pub left_at: Option<NodeTime>,
}

/// A request that left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sent<T> {
    /// Its number.
    pub ticket: Ticket,
    /// When it left.
    pub at: NodeTime,
    /// What it asks.
    pub what: T,
}

/// What was written last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Written {
    /// When the member record was; `None` if the last attempt failed.
    pub member: Option<NodeTime>,
    /// What the member record says that was sent last.
    pub record: Option<MemberRecord>,
    /// The documents, and when.
    #[serde(with = "crate::journal::form::dated_documents")]
    pub documents: BTreeMap<Key, (NodeTime, Bytes)>,
    /// Whom this holding may have put into the failsafe list, although no snapshot shows it.
    pub listed: Listed,
}

impl Facts {
    /// Creates the facts of an agent that starts at `now` and knows nothing.
    pub fn new(now: NodeTime) -> Self {
        Self {
            now,
            started: now,
            cluster: None,
            store_failing: None,
            config: Arc::new(DynamicConfig::absent()),
            holding: None,
            given_up: None,
            unsettled: false,
            claimed: None,
            consent: None,
            succeeding: None,
            last_lease: None,
            promise: None,
            existed: false,
            record_seen: false,
            released: None,
            others_until: None,
            leader_since: NodeTime::default(),
            earlier: None,
            predecessor: None,
            pg: None,
            moved: false,
            pg_failing: None,
            server_since: now,
            outage: None,
            not_streaming_since: None,
            led: None,
            own_history: None,
            leader_history: None,
            guard: None,
            guard_failing: None,
            armed: None,
            promotion_ordered: false,
            op: None,
            settled: Ticket::default(),
            looked: Ticket::default(),
            fencing: None,
            fenced_at: None,
            fence_failing: None,
            unburied: None,
            failures: BTreeMap::new(),
            handed_over: None,
            checkpoint_pending: false,
            promoted: false,
            peers: BTreeMap::new(),
            failsafe: None,
            electorate: BTreeMap::new(),
            slot_seen: BTreeMap::new(),
            slots_at: None,
            ungranted: None,
            handing_over: None,
            refused_failover: None,
            shutdown: false,
            detach: None,
            exiting: false,
            lanes: Lanes::default(),
            written: Written::default(),
            system_id: None,
        }
    }

    /// Notes that a request for a lease failed.
    pub(super) fn not_granted(&mut self, what: &LeaseRequest, kind: DcsErrorKind) {
        self.lanes.read_wanted = true;
        if let LeaseRequest::Succeed(_, ttl) = what {
            self.ungranted = Some(Ungranted {
                ttl: *ttl,
                at: self.now,
                refused: kind == DcsErrorKind::Refused,
            });
        }
        match kind {
            DcsErrorKind::Indeterminate => {
                self.unsettled = !planted(Mutant::IndeterminateIsRefusal);
            }
            DcsErrorKind::Unavailable | DcsErrorKind::Conflict | DcsErrorKind::Refused => {
                self.succeeding = None;
            }
        }
    }

    /// Returns the time to live by which this node has to be quick: a configuration with a longer
    /// one does not prolong a lease that was granted before it.
    pub(super) fn ttl_in_force(&self) -> Duration {
        let held = self.holding.as_ref().map(|held| held.lease.ttl);
        held.map_or(self.config.ttl, |ttl| ttl.min(self.config.ttl))
    }

    /// Returns the next ticket.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.lanes.ticket.0 += 1;
        self.lanes.ticket
    }

    /// Notes that `op` is under way.
    pub(super) fn start_op(&mut self, op: PgOp) -> OpId {
        assert!(self.op.is_none(), "one operation at a time");
        self.lanes.op.0 += 1;
        let id = self.lanes.op;
        if matches!(op, PgOp::HandOver { .. }) {
            let cluster = self.cluster.as_ref().map(|seen| &seen.value);
            let asked = cluster.and_then(|cluster| cluster.failover.as_ref());
            self.handing_over = asked.map(|asked| asked.revision);
        }
        self.op = Some(RunningOp {
            id,
            op,
            since: self.now,
            cancelled: false,
        });
        id
    }

    /// Forgets what was tried on data that are others now: it tells nothing about these.
    pub(super) fn forget_old_data(&mut self) {
        if planted(Mutant::OldDataRemembered) {
            return;
        }
        self.failures.remove(&PgOpKind::Start);
        self.failures.remove(&PgOpKind::Rewind);
        self.own_history = None;
        self.lanes.history.take_if(|sent| sent.what.is_none());
    }

    /// Gives up the lock, for ever as far as this epoch goes.
    pub(super) fn give_up(&mut self) {
        if let Some(holding) = self.holding.take() {
            self.given_up = self.given_up.max(Some(holding.lease.epoch));
            self.handed_over = None;
        }
    }

    /// Returns the guard's deadline, if the permission that it stands for can be this node's still.
    ///
    /// The guard keeps its deadline when the server has ended. Where none takes writes, one that an
    /// agent before this one left may be that of a lock which was released since.
    pub(crate) fn kept(&self) -> Option<&Deadline> {
        let ended = match &self.pg {
            Some(Seen { value, .. }) => {
                value.server == Server::Down || value.control().is_none_or(|c| c.standby)
            }
            None => !self.has_unseen_writer(),
        };
        let held = self.holding.as_ref().map(|held| held.lease.epoch);
        self.armed.as_ref().filter(|deadline| {
            let epoch = Some(deadline.epoch);
            let own = epoch == held || epoch == self.given_up || !ended;
            epoch > self.released && (own || planted(Mutant::LeftDeadlineTrusted))
        })
    }

    /// Returns whether a server that could never be looked at runs under the guard with a deadline:
    /// one that an agent before this one left, which takes writes for all that is known.
    pub(crate) fn has_unseen_writer(&self) -> bool {
        self.pg.is_none()
            && self.guard.as_ref().is_some_and(|guard| {
                let unfenced = Some(guard.at) >= self.fenced_at;
                guard.value.alive && guard.value.deadline.is_some() && unfenced
            })
    }

    /// Returns for how long the server has had to end and has not, although it writes no more, or the
    /// guard will see to that.
    ///
    /// What waits for a disk that hangs cannot be killed, and serves nobody. A fence that failed says
    /// less: only where the guard answers, and the server is its own, the writes end by its
    /// deadline all the same.
    pub(super) fn unfenced_for(&self) -> Option<Duration> {
        let silent = [GuardErrorKind::Gone, GuardErrorKind::Silent];
        let failure = self.guard_failing.as_ref().map(|(_, failure)| failure.kind);
        let guards = failure.is_none_or(|kind| !silent.contains(&kind))
            && self
                .guard
                .as_ref()
                .is_some_and(|guard| guard.value.alive && guard.value.deadline.is_some());
        // One that is not wanted any more is not tried again.
        let wanted = self.fencing.is_some() || self.ago(self.lanes.fence_failed) < FENCE_PATIENCE;
        let failing = self.fence_failing.as_ref().map(|(since, _)| *since);
        let failing = failing.filter(|_| guards && wanted);
        let since = [failing, self.fencing, self.unburied];
        since
            .into_iter()
            .flatten()
            .min()
            .map(|since| self.now.since(since))
    }

    /// Returns whether the configuration in force is one that the store has.
    pub(crate) fn config_known(&self) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|seen| seen.value.config.is_some())
    }

    /// Returns whether the latest look at PostgreSQL began after the latest operation ended.
    pub fn pg_is_current(&self) -> bool {
        self.pg.is_some() && self.looked >= self.settled
    }

    /// Returns how long ago something happened, or a very long time if it never did.
    pub fn ago(&self, at: Option<NodeTime>) -> Duration {
        at.map_or(Duration::MAX, |at| self.now.since(at))
    }
}
