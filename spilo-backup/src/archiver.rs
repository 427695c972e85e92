//! The archiver that is resident beside one server.

mod absent;
mod ahead;
mod handover;
mod prefetch;
mod service;
mod workplace;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::segment::ArchiveFile;
use tokio::task::JoinSet;

use crate::archive::Archive;
use crate::archiver::absent::Absent;
use crate::archiver::ahead::Pushes;
use crate::archiver::prefetch::Held;
use crate::archiver::workplace::Workplace;

/// Archives the log of one server, and fetches log for it, without a program that has to start for
/// each file.
///
/// # Contract
/// - A file that is said to be archived is durable in the store.
/// - PostgreSQL asks for one file after the other. While it waits for one, those are pushed that it
///   will ask for next: those with `.ready` beside them, which never change. Nothing is pushed
///   unless it asks.
/// - A file that the archive was found not to have is not asked for again for a second, and all
///   that were are asked for twice in a second at most, however often the server asks.
/// - After a file was fetched, those that follow it are fetched into the working directory, and
///   handed over by renaming. The server never sees a part of a file.
///
/// Two of them exclude each other in one working directory. What a dead one leaves there is deleted
/// and never used.
#[derive(Debug)]
pub struct Archiver {
    inner: Arc<Inner>,
    workplace: Workplace,
}

/// How an archiver works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ArchiverOptions {
    /// The data directory of the server.
    pub data_dir: PathBuf,
    /// A directory of its own, neither in the data directory nor in `pg_wal`, best on the file
    /// system of the latter. It is made where it is not there; nobody else may look into it.
    pub work_dir: PathBuf,
    /// How many files are pushed before PostgreSQL asks for them.
    pub ahead: usize,
    /// How many files are fetched before PostgreSQL asks for them. So many, and those that it asks
    /// for, lie in the working directory at most.
    pub prefetch: usize,
}

/// What an archiver knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ArchiverStatus {
    /// The files that are on their way into the archive.
    pub pushing: Vec<String>,
    /// The file that was archived last; of several at once the one that ended last.
    pub last_archived: Option<String>,
    /// Why the last file was not archived, if it was not.
    pub last_error: Option<String>,
    /// How many files have `.ready` beside them, or `None` where that cannot be found out.
    pub ready: Option<usize>,
    /// The files that were fetched and not asked for.
    pub fetched: Vec<String>,
}

/// What the tasks share.
#[derive(Debug)]
struct Inner {
    archive: Archive,
    options: ArchiverOptions,
    /// Where files lie until they are handed over.
    fetched: PathBuf,
    pushes: Mutex<Pushes>,
    absent: Mutex<Absent>,
    held: Mutex<Held>,
    /// Whatever is done without anybody waiting for it. Ends with the archiver.
    tasks: Mutex<JoinSet<()>>,
}

/// How long one file may take. Stores give up long before; a network file system does not.
pub(crate) const UNDER_WAY: Duration = Duration::from_secs(300);

/// The name of the socket in the working directory.
pub(crate) const SOCKET: &str = "socket";

impl Archiver {
    /// Takes possession of the working directory, and empties it of what another one left.
    ///
    /// # Errors
    /// `Refused` where another archiver has it, others may look into it, or it lies in the data
    /// directory.
    pub fn open(archive: Archive, options: ArchiverOptions) -> Result<Self, BackupError> {
        let workplace = Workplace::open(&options)?;
        let inner = Inner {
            archive,
            fetched: workplace.fetched(),
            pushes: Mutex::default(),
            absent: Mutex::default(),
            held: Mutex::new(Held::new(options.prefetch)),
            tasks: Mutex::default(),
            options,
        };
        Ok(Self {
            inner: Arc::new(inner),
            workplace,
        })
    }

    /// Archives a file of the log by its name. Returns once it is durable in the store.
    ///
    /// # Errors
    /// As [`Archive::push_wal`].
    ///
    /// # Cancellation
    /// It may be archived all the same.
    pub async fn push(&self, name: &str) -> Result<(), BackupError> {
        let pushed = Inner::push(&self.inner, name).await;
        pushed.map_err(|(kind, problem)| {
            BackupError::new("archiver", kind, format!("archive {name}"), problem)
        })
    }

    /// Fetches a file of the log to a path, on which it appears whole or not at all.
    ///
    /// # Errors
    /// As [`Archive::fetch_wal`]. `NotFound` may be as old as a second, or older where more than two
    /// names are asked for all the time.
    ///
    /// # Cancellation
    /// Nothing is at the path, or the file.
    pub async fn fetch(&self, name: &str, into: &Path) -> Result<(), BackupError> {
        Inner::fetch(&self.inner, name, into).await
    }

    /// Returns what it knows.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn status(&self) -> ArchiverStatus {
        self.inner.status().await
    }
}

impl ArchiverOptions {
    /// Takes both directories; everything else is as usual.
    pub fn new(data_dir: impl Into<PathBuf>, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            work_dir: work_dir.into(),
            // A file takes a store some 200 ms, and a busy server a tenth of that to fill.
            ahead: 8,
            prefetch: 8,
        }
    }

    /// Returns where the server keeps its log.
    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }
}

impl Inner {
    /// Starts what nobody waits for.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        let mut tasks = locked(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    /// Reads a name, without which no path is made of it.
    fn file(&self, action: &str, name: &str) -> Result<ArchiveFile, BackupError> {
        name.parse()
            .map_err(|error: spilo_core::segment::BadSegmentName| {
                self.archive
                    .error(BackupErrorKind::Refused, action, error.to_string())
            })
    }

    /// Gives up what takes too long.
    async fn in_time<T>(
        &self,
        action: &str,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        let done = tokio::time::timeout(UNDER_WAY, work).await;
        done.unwrap_or_else(|_| {
            let problem = format!("it took longer than {} s", UNDER_WAY.as_secs());
            Err(self
                .archive
                .error(BackupErrorKind::Unavailable, action, problem))
        })
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        // The tasks share what owns them, which would otherwise live as long as the last of them.
        locked(&self.inner.tasks).abort_all();
    }
}

/// What another task left half done here is whole: nothing that can fail is done under a lock.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
