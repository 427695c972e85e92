//! One PostgreSQL server and its data directory.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::config::DynamicConfig;
use crate::history::History;
use crate::ids::{MemberName, Revision, SlotName, SystemId};
use crate::wal::{Lsn, Timeline, WalPosition};

/// Control of the one PostgreSQL server of this node.
///
/// # Contract
/// - [`observe`](Self::observe) looks and touches nothing; it answers in bounded time on a server
///   that is down, hung or half made, and while an operation runs.
/// - [`run`](Self::run) does one operation, however long. Dropping its future stops the
///   operation and every process it started. A data directory that is half made carries a marker
///   that was written first and is removed last, which `observe` reports.
/// - [`fence`](Self::fence) may be called at any time, also while `run` is under way; it returns
///   once no process of the server is alive.
/// - No operation makes a server that takes writes unless the [`Guard`](crate::Guard) is armed
///   at that moment.
#[async_trait]
pub trait Postgres: Send + Sync + fmt::Debug {
    /// Looks at the server and the data directory.
    ///
    /// # Errors
    /// Only when not even the data directory could be looked at; the machine keeps the last
    /// observation and lets it age.
    async fn observe(&self) -> Result<PgStatus, PgError>;

    /// Does one operation.
    ///
    /// # Errors
    /// What went wrong, and in [`PgError::kind`] what may be tried next.
    ///
    /// # Cancellation
    /// Dropping the future ends the operation and its processes.
    async fn run(&self, op: PgOp, progress: Progress) -> Result<(), PgError>;

    /// Ends the server: kills every process of it and returns once none is alive.
    async fn fence(&self) -> Result<(), PgError>;

    /// Reads the history of the timeline that the data directory is on, oldest first.
    ///
    /// Reads the history file from the data directory; an empty history for timeline 1.
    async fn history(&self) -> Result<History, PgError>;

    /// Asks another server for its system identifier and the history of its current timeline.
    ///
    /// # Errors
    /// `Retry` when it did not answer in time, or is itself in recovery.
    async fn history_of(&self, upstream: &Upstream) -> Result<(SystemId, History), PgError>;
}

/// One operation on PostgreSQL. At most one runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgOp {
    /// Makes a new database cluster and leaves its server running as a primary, with the roles
    /// created. The data directory must be empty, or hold an unfinished bootstrap or clone; the
    /// guard must be armed. The result is [`Control::provisional`] until [`PgOp::Confirm`].
    Bootstrap {
        /// The configuration it starts with.
        config: Arc<DynamicConfig>,
    },
    /// Ends a bootstrap, once the store has the system identifier: what is in the data directory
    /// is the cluster from now on, and is not thrown away again.
    Confirm,
    /// Replaces the data directory by a copy of `from`, ready to start as a standby of it.
    ///
    /// Refuses a directory that is not empty unless `replace` names what may be thrown away; so it
    /// does with what an interrupted rewind left, but not with an unfinished clone or bootstrap. It
    /// throws that away only once `from` has answered as a primary of the same database cluster.
    Clone {
        /// The server to copy.
        from: Upstream,
        /// The system identifier of the data directory that may be thrown away, if there is one.
        replace: Option<SystemId>,
    },
    /// Starts the server that is down.
    Start {
        /// As what.
        role: StartRole,
    },
    /// Points the running standby at another server, or at none.
    Follow {
        /// The server to stream from.
        upstream: Option<Upstream>,
    },
    /// Makes the running standby a primary. The guard must be armed.
    Promote,
    /// Stops the server cleanly, all clients disconnected; ends when no process is left.
    Stop,
    /// Checkpoints while serving, waits until `candidate` is level, then stops cleanly so that the
    /// candidate has the last record; see [`PgErrorKind::NotLevel`].
    HandOver {
        /// The standby that is to take over, if one was named; any level one otherwise.
        candidate: Option<MemberName>,
    },
    /// Makes the stopped data directory a prefix of `from`'s history again, with pg_rewind. On a
    /// directory in which it was interrupted it goes on, or fails with
    /// [`PgErrorKind::CannotRewind`] where that could leave a mixture behind. One that is on the
    /// timeline of `from` already has nothing to be rewound, and fails with [`PgErrorKind::Retry`].
    Rewind {
        /// The primary to return to.
        from: Upstream,
    },
    /// Applies the dynamic configuration: writes the files and reloads a running server.
    Configure {
        /// The revision of the configuration, reported back in [`PgStatus::configured`].
        revision: Revision,
        /// The configuration.
        config: Arc<DynamicConfig>,
    },
    /// Makes the member slots on the server exactly these, but drops no active slot.
    Slots {
        /// The slots that must exist.
        wanted: BTreeSet<SlotName>,
    },
    /// Checkpoints the primary, so that `pg_rewind` on others sees the new timeline.
    Checkpoint,
}

/// The kinds of [`PgOp`], for the log and for markers in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PgOpKind {
    /// [`PgOp::Bootstrap`].
    Bootstrap,
    /// [`PgOp::Confirm`].
    Confirm,
    /// [`PgOp::Clone`].
    Clone,
    /// [`PgOp::Start`].
    Start,
    /// [`PgOp::Follow`].
    Follow,
    /// [`PgOp::Promote`].
    Promote,
    /// [`PgOp::Stop`].
    Stop,
    /// [`PgOp::HandOver`].
    HandOver,
    /// [`PgOp::Rewind`].
    Rewind,
    /// [`PgOp::Configure`].
    Configure,
    /// [`PgOp::Slots`].
    Slots,
    /// [`PgOp::Checkpoint`].
    Checkpoint,
}

/// As what a server is started.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StartRole {
    /// As a primary, in place and on its timeline. The guard must be armed.
    Primary,
    /// As a standby that streams from `upstream`, or from nobody yet.
    Standby {
        /// The server to stream from.
        upstream: Option<Upstream>,
    },
}

/// A server to stream from, copy or rewind to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Upstream {
    /// Its member name.
    pub name: MemberName,
    /// Its `conn_url`, as in its member record.
    pub conn_url: String,
}

/// What an observation saw.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PgStatus {
    /// The data directory.
    pub data: DataDir,
    /// The server.
    pub server: Server,
    /// The revision of the dynamic configuration that was applied last, if any was.
    pub configured: Option<Revision>,
    /// How far its archive is, if its log is archived. Nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveStatus>,
}

/// How far the archive of a server's log is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// How many files of the log wait to be archived.
    pub waiting: u64,
    /// The first of them, by its name.
    pub first_waiting: Option<String>,
}

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DataDir {
    /// Missing or empty.
    Empty,
    /// Half made: the marker of this operation is in it.
    Unfinished(PgOpKind),
    /// Has a database cluster.
    Ready(Control),
    /// Has something, but not a database cluster that these programs can read.
    Unreadable {
        /// What is wrong with it.
        problem: String,
    },
}

/// What `pg_controldata` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Control {
    /// The identifier of the database cluster.
    pub system_id: SystemId,
    /// The state at the last write of the control file.
    pub state: ControlState,
    /// The timeline and position of the latest checkpoint record; of the greater of it and the
    /// minimum recovery point for a standby.
    pub position: WalPosition,
    /// Whether it was shut down or crashed as a standby: there is a `standby.signal`.
    pub standby: bool,
    /// Whether `pg_rewind` can work on it: checksums or hint-bit logging are on.
    pub rewindable: bool,
    /// Whether it was bootstrapped here and [`PgOp::Confirm`] was not yet done: no other node can
    /// know of it and no client has been promised anything, so that it may be thrown away.
    pub provisional: bool,
}

/// The state of a database cluster in its control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ControlState {
    /// `starting up`.
    Starting,
    /// `shut down`: a primary, cleanly.
    ShutDown,
    /// `shut down in recovery`: a standby, cleanly.
    ShutDownInRecovery,
    /// `shutting down`.
    ShuttingDown,
    /// `in crash recovery`.
    InCrashRecovery,
    /// `in archive recovery`: a standby.
    InArchiveRecovery,
    /// `in production`: a primary.
    InProduction,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Server {
    /// No process of it is alive.
    Down,
    /// Processes are alive, but it takes no connections (yet): starting, recovering, stopping.
    Busy {
        /// What it says of itself, as in `the database system is starting up`.
        saying: String,
        /// Whether the guard is its parent.
        guarded: bool,
    },
    /// It runs and does not let the agent in, so that nothing more is known of it: its password or
    /// `pg_hba.conf` is another than the agent's, or every connection is taken.
    Closed {
        /// Why, as in `password authentication failed for user "postgres"`.
        saying: String,
        /// Whether the guard is its parent.
        guarded: bool,
    },
    /// Processes are alive and it does not answer within the time allowed.
    Hung {
        /// Whether the guard is its parent.
        guarded: bool,
    },
    /// It answers queries.
    Running(Box<Running>),
}

/// A server that answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Running {
    /// What it is, with what only that kind of server has.
    pub role: Role,
    /// The timeline it writes or receives.
    pub timeline: Timeline,
    /// Whether the guard is its parent.
    pub guarded: bool,
    /// `server_version_num`.
    pub version: u32,
    /// `pg_postmaster_start_time()`, as text.
    pub started: String,
    /// Settings that wait for a restart: name, value now, value wanted.
    pub pending_restart: Vec<(String, String, String)>,
    /// The standbys that stream from it.
    pub walsenders: Vec<Walsender>,
    /// The physical slots on it.
    pub slots: Vec<(SlotName, Option<Lsn>)>,
}

/// What a running server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Takes writes.
    Primary {
        /// Its flushed position.
        written: Lsn,
    },
    /// In recovery.
    Standby {
        /// The end of what it has received; zero if it never streamed since its start.
        received: Lsn,
        /// The end of what it has applied.
        replayed: Lsn,
        /// When the last applied transaction was committed, as text.
        replayed_at: Option<String>,
        /// Whether replay is paused.
        paused: bool,
        /// Whether its walreceiver is streaming.
        streaming: bool,
        /// The end of the upstream's log as the upstream last told it.
        upstream_end: Option<Lsn>,
        /// Where `primary_conninfo` points: the name of the member followed, if it names one.
        upstream: Option<(String, u16)>,
    },
}

/// A connection that streams the log to a standby.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Walsender {
    /// The role it logged in as.
    pub user: String,
    /// Its `application_name`, which for members is the member name.
    pub application: String,
    /// The address it comes from, if over TCP.
    pub client: Option<String>,
    /// `streaming`, `catchup`, `backup`, …
    pub state: String,
    /// `async`, `sync`, `quorum`, `potential`.
    pub sync_state: String,
    /// `sync_priority`.
    pub sync_priority: i32,
    /// What the standby has flushed.
    pub flushed: Option<Lsn>,
}

/// Where an operation reports how far it is, for people to see.
#[derive(Clone, Default)]
#[expect(
    clippy::type_complexity,
    reason = "a name for it would only be used here"
)]
pub struct Progress(Option<Arc<dyn Fn(&str) + Send + Sync>>);

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("postgres: cannot {action}: {problem}")]
pub struct PgError {
    action: String,
    problem: String,
    kind: PgErrorKind,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the caller of a failed operation may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PgErrorKind {
    /// Try again later; nothing is broken.
    Retry,
    /// pg_rewind says that it cannot mend this directory: only a new copy can.
    CannotRewind,
    /// No standby got level in time; the server was not stopped and goes on serving.
    NotLevel,
    /// The guard was not armed, or refused: the operation would have made an unguarded writer.
    NotGuarded,
    /// Trying again does not help until somebody mends the cause (a missing program, a wrong
    /// password, a version that does not fit).
    Refused,
}

impl PgOp {
    /// Returns whether a server takes writes once it is done.
    pub fn makes_primary(&self) -> bool {
        match self {
            Self::Bootstrap { .. }
            | Self::Promote
            | Self::Start {
                role: StartRole::Primary,
            } => true,
            Self::Start {
                role: StartRole::Standby { .. },
            }
            | Self::Confirm
            | Self::Clone { .. }
            | Self::Follow { .. }
            | Self::Stop
            | Self::HandOver { .. }
            | Self::Rewind { .. }
            | Self::Configure { .. }
            | Self::Slots { .. }
            | Self::Checkpoint => false,
        }
    }

    /// Returns the server that it copies, rewinds to or streams from, if it names one.
    pub fn upstream(&self) -> Option<&Upstream> {
        match self {
            Self::Clone { from, .. } | Self::Rewind { from } => Some(from),
            Self::Follow { upstream }
            | Self::Start {
                role: StartRole::Standby { upstream },
            } => upstream.as_ref(),
            Self::Start {
                role: StartRole::Primary,
            }
            | Self::Bootstrap { .. }
            | Self::Confirm
            | Self::Promote
            | Self::Stop
            | Self::HandOver { .. }
            | Self::Configure { .. }
            | Self::Slots { .. }
            | Self::Checkpoint => None,
        }
    }

    /// Returns its kind.
    pub fn kind(&self) -> PgOpKind {
        match self {
            Self::Bootstrap { .. } => PgOpKind::Bootstrap,
            Self::Confirm => PgOpKind::Confirm,
            Self::Clone { .. } => PgOpKind::Clone,
            Self::Start { .. } => PgOpKind::Start,
            Self::Follow { .. } => PgOpKind::Follow,
            Self::Promote => PgOpKind::Promote,
            Self::Stop => PgOpKind::Stop,
            Self::HandOver { .. } => PgOpKind::HandOver,
            Self::Rewind { .. } => PgOpKind::Rewind,
            Self::Configure { .. } => PgOpKind::Configure,
            Self::Slots { .. } => PgOpKind::Slots,
            Self::Checkpoint => PgOpKind::Checkpoint,
        }
    }
}

impl PgOpKind {
    /// Returns its name, as in logs and in the marker file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Confirm => "confirm",
            Self::Clone => "clone",
            Self::Start => "start",
            Self::Follow => "follow",
            Self::Promote => "promote",
            Self::Stop => "stop",
            Self::HandOver => "hand over",
            Self::Rewind => "rewind",
            Self::Configure => "configure",
            Self::Slots => "slots",
            Self::Checkpoint => "checkpoint",
        }
    }
}

impl PgStatus {
    /// Returns the status of a node that has nothing yet.
    pub fn empty() -> Self {
        Self {
            data: DataDir::Empty,
            server: Server::Down,
            configured: None,
            archive: None,
        }
    }

    /// Returns the running server, if one answers.
    pub fn running(&self) -> Option<&Running> {
        match &self.server {
            Server::Running(running) => Some(running),
            Server::Down | Server::Busy { .. } | Server::Closed { .. } | Server::Hung { .. } => {
                None
            }
        }
    }

    /// Returns the control data, if there is a database cluster.
    pub fn control(&self) -> Option<&Control> {
        match &self.data {
            DataDir::Ready(control) => Some(control),
            DataDir::Empty | DataDir::Unfinished(_) | DataDir::Unreadable { .. } => None,
        }
    }

    /// Returns how far this node's log reaches: of a running server what it has written or
    /// received, of one that is down what the control file proves.
    pub fn position(&self) -> Option<WalPosition> {
        match &self.server {
            Server::Running(running) => Some(running.position()),
            Server::Down | Server::Busy { .. } | Server::Closed { .. } | Server::Hung { .. } => {
                self.control().map(|control| control.position)
            }
        }
    }
}

impl Running {
    /// Returns whether it takes writes.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary { .. })
    }

    /// Returns how far its log reaches.
    pub fn position(&self) -> WalPosition {
        let lsn = match self.role {
            Role::Primary { written } => written,
            Role::Standby {
                received, replayed, ..
            } => received.max(replayed),
        };
        WalPosition {
            timeline: self.timeline,
            lsn,
        }
    }
}

impl Progress {
    /// Reports to `sink`, one line at a time.
    pub fn to(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Reports one line.
    pub fn say(&self, line: &str) {
        if let Some(sink) = &self.0 {
            sink(line);
        }
    }
}

impl PgError {
    /// Creates an error of an attempt to `action` (in the infinitive).
    pub fn new(kind: PgErrorKind, action: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            problem: problem.into(),
            kind,
            source: None,
        }
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Returns what the caller may conclude.
    pub fn kind(&self) -> PgErrorKind {
        self.kind
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl fmt::Display for PgOpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
