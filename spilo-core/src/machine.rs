//! The machine: events in, a decision and commands out.
//!
//! [`Machine::step`] does three things, in this order: it absorbs the event into [`Facts`]; it
//! asks [`decide`] what to do, which looks at the facts alone and never
//! at the event; it emits what was decided, and what goes on regardless: renew the lease, look
//! around, keep the guard's deadline, publish what others must know.
//!
//! The facts hold observations and obligations and never plans: "operation 12 is running" is one,
//! "I am going to promote" is not, and is decided anew at every step.

mod absorb;
mod consent;
pub(crate) mod duties;
pub mod facts;
pub mod lease;
mod limits;
pub mod listed;
mod lock;
mod looks;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::DynamicConfig;
use crate::dcs::{DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot};
use crate::decide::{Action, Decision, View, decide};
use crate::guard::{Deadline, GuardErrorKind, GuardStatus};
use crate::history::History;
use crate::ids::{MemberName, OpId, Scope, SystemId};
use crate::mutant::{Mutant, planted};
use crate::peer::{ConsentAnswer, ConsentRequest, PeerStatus};
use crate::pg::{PgErrorKind, PgOp, PgStatus, Upstream};
use crate::status::Status;
use crate::time::NodeTime;
use crate::wal::Lsn;

pub use facts::Facts;
pub use limits::Limits;

/// One node's mind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    identity: Arc<Identity>,
    facts: Facts,
    last: Option<Decision>,
    /// What the cluster among the facts was read from.
    raw: Option<Box<RawSnapshot>>,
}

/// Who this node is; does not change while it runs, but for its tags.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub scope: Scope,
    /// The node.
    pub name: MemberName,
    /// Where its PostgreSQL listens, as others reach it.
    pub conn_url: String,
    /// Where its agent answers, as others reach it, the path `/patroni` included.
    pub api_url: String,
    /// Where a pooler of it listens.
    pub proxy_url: Option<String>,
    /// Its tags, published as they are.
    #[serde(with = "crate::journal::form::object")]
    pub tags: Map<String, Value>,
    /// What a new cluster starts with; `None` if this node must not start one.
    pub bootstrap: Option<Arc<DynamicConfig>>,
    /// How long before the end of the lease the guard begins to kill: the fence's own worst time.
    pub fence_budget: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Time passed, and nothing else.
    Tick,
    /// The store hinted that something of the cluster changed.
    Changed,
    /// The guard hinted that something of the server changed.
    ServerChanged,
    /// A request for the lease was answered.
    Lease(Ticket, Result<LeaseAnswer, Failure<DcsErrorKind>>),
    /// A look at the store was answered.
    Read(Ticket, Result<ReadAnswer, Failure<DcsErrorKind>>),
    /// A write was answered.
    Written(Ticket, Result<(), Failure<DcsErrorKind>>),
    /// A look at PostgreSQL was answered.
    Observed(Ticket, Result<PgStatus, Failure<PgErrorKind>>),
    /// A question for a history was answered.
    HistoryRead(Ticket, Result<(SystemId, History), Failure<PgErrorKind>>),
    /// An operation ended.
    OpEnded(OpId, Result<(), Failure<PgErrorKind>>),
    /// A fence ended.
    Fenced(Result<(), Failure<PgErrorKind>>),
    /// A request to the guard was answered.
    Guard(Ticket, Result<GuardStatus, Failure<GuardErrorKind>>),
    /// A peer was asked and answered, or did not (`None`).
    PeerAnswered(Ticket, MemberName, Option<PeerStatus>),
    /// A round of questions for consent is over: who accepted, with its position.
    ConsentAnswered(Ticket, BTreeMap<MemberName, Option<Lsn>>),
    /// A peer asks for this node's consent.
    ConsentAsked(Ticket, ConsentRequest),
    /// Somebody wants something of this node.
    Order(Order),
}

/// What somebody wants of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Hand over, stop the server and exit.
    Shutdown,
    /// Leave guard and server running and exit.
    Detach,
    /// Publish these tags from now on.
    Tags(#[serde(with = "crate::journal::form::object")] Map<String, Value>),
}

/// The number of a request, to know its answer by. An answer to an older one is no news.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Ticket(pub u64);

/// Why something failed: what it means, and the text for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failure<K> {
    /// What may be concluded.
    pub kind: K,
    /// What happened.
    pub text: String,
}

/// What to do. The driver carries out each at once and beside the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Send a request on the lease lane.
    Lease(Ticket, LeaseRequest),
    /// Send a request on the read lane.
    Read(Ticket, ReadRequest),
    /// Send a request on the write lane.
    Write(Ticket, WriteRequest),
    /// Look at PostgreSQL.
    Observe(Ticket),
    /// Read the history of another server, or of this one.
    ReadHistory(Ticket, Option<Upstream>),
    /// Start an operation.
    StartOp(OpId, PgOp),
    /// Stop the operation under way; it ends with an error of kind `Retry`.
    CancelOp(OpId),
    /// End the server.
    Fence,
    /// Ask the guard.
    Guard(Ticket, GuardRequest),
    /// Ask a peer what it is.
    AskPeer(Ticket, MemberName, String),
    /// Ask all of these for consent, by API URL, and report once all answered or the time is over.
    AskConsent(Ticket, BTreeMap<MemberName, String>, ConsentRequest),
    /// Answer a peer that asked for consent.
    AnswerConsent(Ticket, ConsentAnswer),
    /// End the agent.
    Exit(Exit),
}

/// A request on the lease lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaseRequest {
    /// Take the lock.
    Acquire(Duration),
    /// Pass it from the last incarnation of this node to this one.
    Succeed(LeaseSecret, Duration),
    /// Make sure that no attempt of ours has it.
    Settle,
    /// Renew it.
    Renew(Lease),
    /// Give it up, leaving this record.
    Release(Lease, #[serde(with = "crate::journal::form::bytes")] Bytes),
    /// Claim the right to bootstrap, under the lease.
    Claim(Lease),
}

/// What a request on the lease lane came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaseAnswer {
    /// The lock is ours, with this lease.
    Held(Lease),
    /// Done.
    Done,
}

/// A request on the read lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReadRequest {
    /// Everything about the cluster.
    Snapshot,
    /// How much longer the holder's lease lasts.
    LeaseLeft(LeaderRecord),
    /// Whether the lease of the last holder ended of age.
    LeaseEnded(LeaderRecord),
}

/// What a request on the read lane came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAnswer {
    /// Everything about the cluster.
    Snapshot(Box<RawSnapshot>),
    /// The lease lasts this much longer; `None` when that is not known.
    LeaseLeft(Option<Duration>),
    /// Whether the lease ended.
    LeaseEnded(bool),
}

/// A request on the write lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriteRequest {
    /// Write this node's member record, to last for this long.
    Announce(
        #[serde(with = "crate::journal::form::bytes")] Bytes,
        Duration,
    ),
    /// Write a document.
    Put(
        Key,
        #[serde(with = "crate::journal::form::bytes")] Bytes,
        Expect,
    ),
}

/// A request to the guard. Each is answered with the guard's status after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GuardRequest {
    /// Set or move the deadline.
    Arm(Deadline),
    /// Take it away from a standby.
    Disarm,
    /// Look.
    Look,
}

/// Why the agent ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// It was asked to, and the server is down.
    Stopped,
    /// It was asked to leave guard and server running.
    Detached,
    /// It cannot go on; the text says why and what to do.
    Fatal(String),
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was decided, and why.
    pub decision: Decision,
    /// Whether the last step decided otherwise, so that this one is worth a line in the log.
    pub news: bool,
    /// What to do.
    pub commands: Vec<Command>,
    /// When to step again at the latest, with [`Event::Tick`] if nothing else happens.
    pub wake_at: NodeTime,
}

impl Machine {
    /// Creates the mind of a node whose agent starts at `now`.
    pub fn new(identity: Identity, now: NodeTime) -> Self {
        Self {
            identity: Arc::new(identity),
            facts: Facts::new(now),
            last: None,
            raw: None,
        }
    }

    /// Takes one step.
    ///
    /// `now` must not be before the `now` of any earlier step; if it is, the latest one counts.
    pub fn step(&mut self, now: NodeTime, event: Event) -> Step {
        let now = now.max(self.facts.now);
        self.facts.now = now;
        let mut commands = Vec::new();
        self.absorb(event, &mut commands);
        let decision = decide(&View::new(&self.identity, &self.facts));
        self.act(&decision.action, &mut commands);
        self.keep_up(&decision, &mut commands);
        let news = self
            .last
            .as_ref()
            .is_none_or(|last| last.differs(&decision));
        let wake_at = self.wake_at(&commands);
        self.last = Some(decision.clone());
        Step {
            decision,
            news,
            commands,
            wake_at,
        }
    }

    /// Returns what the machine knows.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns who the machine is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns what was decided last.
    pub fn decision(&self) -> Option<&Decision> {
        self.last.as_ref()
    }

    /// Returns what the node says of itself.
    pub fn status(&self) -> Status {
        report::status(&self.identity, &self.facts, self.last.as_ref())
    }

    fn act(&mut self, action: &Action, commands: &mut Vec<Command>) {
        match action {
            Action::Wait => {}
            Action::Lease(request) => self.send_lease(request.clone(), commands),
            Action::Run(op) => {
                let id = self.facts.start_op(op.clone());
                commands.push(Command::StartOp(id, op.clone()));
            }
            Action::Cancel => {
                let spared = |op: &facts::RunningOp| {
                    op.cancelled
                        || (planted(Mutant::PromotionNotCancelled) && op.op == PgOp::Promote)
                };
                if let Some(op) = self.facts.op.as_mut().filter(|op| !spared(op)) {
                    op.cancelled = true;
                    commands.push(Command::CancelOp(op.id));
                }
            }
            Action::Fence => self.fence(commands),
            Action::CancelAndFence => {
                self.act(&Action::Cancel, commands);
                self.fence(commands);
            }
            Action::ClearFailover(expect) => {
                self.send_write(
                    WriteRequest::Put(Key::Failover, Bytes::from_static(b"{}"), *expect),
                    commands,
                );
            }
            Action::ReadHistory(upstream) => self.ask_history(upstream.clone(), commands),
            Action::AskPeers => self.ask_peers(true, commands),
            Action::Exit(exit) => {
                if !self.facts.exiting {
                    self.facts.exiting = true;
                    commands.push(Command::Exit(exit.clone()));
                }
            }
        }
    }

    fn fence(&mut self, commands: &mut Vec<Command>) {
        if self.facts.fencing.is_none() {
            self.facts.fencing = Some(self.facts.now);
            commands.push(Command::Fence);
        }
    }
}

impl<K> Failure<K> {
    /// Creates a failure.
    pub fn new(kind: K, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}
