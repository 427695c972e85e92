//! Base backups, and the store that has them.

mod turn;

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::SystemId;
use crate::local::Secret;
use crate::pg::Progress;
use crate::segment::SegmentSize;
use crate::wal::{Lsn, WalPosition};

pub use turn::{MadeFrom, NO_BACKUP, turn};

/// Where base backups and archived log are, and how they come back.
///
/// # Contract
/// - [`backups`](Self::backups) names whole backups only: one whose making was interrupted is none.
///   What the store cannot read is left out and logged; one bad record hides no other.
/// - [`restore`](Self::restore) gives the very bytes that were backed up, or an error. It writes
///   nowhere but into the directory; what it leaves there after an error is not to be started.
/// - All of it may be called at the same time, and from several nodes.
#[async_trait]
pub trait BackupStore: Send + Sync + fmt::Debug {
    /// Returns the backups that are whole, in no order.
    ///
    /// # Errors
    /// The store did not answer, or not with a list.
    ///
    /// # Cancellation
    /// Safe.
    async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError>;

    /// Unpacks a backup into an empty directory.
    ///
    /// # Errors
    /// `NotFound` when there is no such backup (any more), `Refused` when the directory is not
    /// empty, `Damaged` when the bytes are not those that were backed up.
    ///
    /// # Cancellation
    /// Dropping the future ends it and whatever it started; the directory is then half full.
    async fn restore(
        &self,
        backup: &BackupName,
        into: &Path,
        progress: Progress,
    ) -> Result<(), BackupError>;

    /// Makes a base backup of a running server, and returns its name once it is whole and all log
    /// that it needs is in the store. The server archives that log itself, and is waited for.
    ///
    /// # Errors
    /// Nothing of it counts as a backup then. `Refused` by a store that makes none.
    ///
    /// # Cancellation
    /// Dropping the future ends it, and the server's backup mode with it.
    async fn push(
        &self,
        source: &BackupSource,
        progress: Progress,
    ) -> Result<BackupName, BackupError> {
        let (action, _) = (format!("back up {}", source.data_dir.display()), progress);
        let problem = "it makes no base backups";
        Err(BackupError::new(
            "store of backups",
            BackupErrorKind::Refused,
            action,
            problem,
        ))
    }

    /// Deletes all base backups but the newest, of which it keeps `count` and at least one, and the
    /// log that none of these needs.
    ///
    /// # Errors
    /// What is kept is whole, with all its log, and it can be repeated. `Refused` by a store that
    /// deletes nothing.
    ///
    /// # Cancellation
    /// As after an error.
    async fn retain(&self, count: usize, progress: Progress) -> Result<(), BackupError> {
        let (action, _) = (format!("keep {count} backups"), progress);
        let problem = "it deletes nothing";
        Err(BackupError::new(
            "store of backups",
            BackupErrorKind::Refused,
            action,
            problem,
        ))
    }

    /// Returns the `archive_command` with which a server archives its log, if the store takes any.
    fn archive_command(&self) -> Option<String> {
        None
    }

    /// Returns whether archiving a file that is there already succeeds if it has the same bytes, and
    /// fails and leaves it as it is if it has others. Then every member may archive.
    fn keeps_what_is_there(&self) -> bool {
        false
    }

    /// Returns the `restore_command` with which a server fetches archived log, if the store has any.
    fn restore_command(&self) -> Option<String>;
}

/// The running server that a base backup is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackupSource {
    /// Its data directory, which has to be readable here.
    pub data_dir: PathBuf,
    /// How it is reached: a URL or `key=value` pairs, as libpq has them. A primary or a standby; the
    /// user may run `pg_backup_start`.
    pub conninfo: Secret,
    /// How its primary is reached if it is a standby, as somebody who may run `pg_switch_wal`.
    /// Without it, the end of a standby's backup waits until the primary has filled a file of the log, or
    /// for `archive_timeout`.
    pub primary: Option<Secret>,
    /// Its `server_version_num`, where it is known.
    pub version: Option<u32>,
}

/// The name of a backup in its store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackupName(pub String);

/// What a store knows of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Its name.
    pub name: BackupName,
    /// The cluster that it is of, where the store says so. Where it does not, the control file of
    /// what was restored does, and is compared before a server is started from it.
    pub system: Option<SystemId>,
    /// Where replay begins.
    pub start: WalPosition,
    /// Where a server made from it may be used first; where its making ended, which may be on a
    /// later timeline if it was made from a standby.
    pub stop: WalPosition,
    /// What it takes unpacked, in bytes, where the store says so.
    pub size: Option<u64>,
    /// When it was made, in seconds since 1970, where the store says so: when its making began by the
    /// clock of the machine that made it, or of WAL-E's when the store had it. No order of backups
    /// rests on it.
    #[serde(default)]
    pub made: Option<u64>,
    /// How large the files of the cluster's log are.
    pub segment_size: SegmentSize,
}

/// Where a recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of the archived log.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// At a moment, as PostgreSQL reads one.
    Time(String),
    /// At a point that `pg_create_restore_point` has named.
    Name(String),
    /// At a transaction.
    Xid(u64),
    /// At a position of the log.
    Lsn(Lsn),
}

/// A request to a backup store that failed.
#[derive(Debug, thiserror::Error)]
#[error("{store}: cannot {action}: {problem}")]
pub struct BackupError {
    store: &'static str,
    action: String,
    problem: String,
    kind: BackupErrorKind,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the caller of a failed request may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BackupErrorKind {
    /// Trying again may help.
    Unavailable,
    /// What was asked for is not there.
    NotFound,
    /// What came back is not what was stored.
    Damaged,
    /// It is there already, with other bytes, and is left as it is.
    Conflict,
    /// Trying again does not help until somebody mends the cause.
    Refused,
}

impl BackupInfo {
    /// Creates what is always known; segments are of 16 MiB.
    pub fn new(name: BackupName, start: WalPosition, stop: WalPosition) -> Self {
        Self {
            name,
            system: None,
            start,
            stop,
            size: None,
            made: None,
            segment_size: SegmentSize::DEFAULT,
        }
    }
}

impl BackupSource {
    /// Takes what has no default.
    pub fn new(data_dir: impl Into<PathBuf>, conninfo: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            conninfo: Secret::new(conninfo),
            primary: None,
            version: None,
        }
    }
}

impl BackupError {
    /// Creates an error of `store`, which was about to `action` (in the infinitive).
    pub fn new(
        store: &'static str,
        kind: BackupErrorKind,
        action: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            store,
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
    pub fn kind(&self) -> BackupErrorKind {
        self.kind
    }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the log"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "the time {time}"),
            Self::Name(name) => write!(f, "the point {name:?}"),
            Self::Xid(xid) => write!(f, "the transaction {xid}"),
            Self::Lsn(lsn) => write!(f, "the position {lsn}"),
        }
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
