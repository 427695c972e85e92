//! The local server: what is observed of it and what is done to it.

mod archive;
mod bootstrap;
mod child;
mod clone;
mod configure;
pub(crate) mod conninfo;
mod controldata;
mod disk;
mod files;
mod handover;
mod libraries;
mod log;
mod observe;
mod promote;
mod query;
mod recover;
mod remote;
mod replica;
mod rewind;
mod settings;
mod slots;
mod sql;
mod start;
mod stop;
mod trial;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::guard::{GuardError, GuardErrorKind};
use spilo_core::pg::{PgError, PgErrorKind, PgOp, PgStatus, Postgres, Progress, Server, Upstream};
use spilo_core::time::Clock;
use spilo_core::{DynamicConfig, History, Revision, SystemId};

use crate::LocalOptions;
use crate::guard::{GuardClient, fence_without_guard};

use self::archive::Archive;
use self::files::Marker;
use self::log::Rotation;
use self::observe::Eye;
use self::settings::Settings;
use self::sql::{Purpose, Session, SqlError};

/// One PostgreSQL server on this machine, under a guard.
///
/// # Contract
/// As [`Postgres`]. Beyond it:
/// - one `LocalPostgres` per data directory, in one process at a time;
/// - the position of a server that is down is what its control file proves: of one that was shut
///   down cleanly as a primary the end of the shutdown checkpoint's record, of a standby the
///   greater of checkpoint and minimum recovery point, of a crashed primary its last checkpoint,
///   which its log exceeds;
/// - a parameter that the server's program refuses is left out, or keeps the value that it had,
///   with a warning in the log. When what is left is refused still, [`PgOp::Configure`] fails,
///   says why, and leaves the files as they were; other operations go on with the configuration
///   that the data directory had last. What shows only when the server starts is not found that
///   way: more memory than the machine has, an address that is not its own, a certificate that is
///   not there, a wrong line of `pg_hba.conf`;
/// - what the server says without a logging of its own, in `postmaster.log`, is kept from growing
///   without bound by [`Postgres::observe`], which looks after it once a minute.
#[derive(Debug)]
pub struct LocalPostgres {
    options: Arc<LocalOptions>,
    guard: RwLock<Arc<GuardClient>>,
    eye: Eye,
    rotation: Rotation,
    archive: Archive,
    state: Mutex<State>,
}

/// What was applied last.
#[derive(Debug, Default)]
struct State {
    revision: Option<Revision>,
    config: Option<Arc<DynamicConfig>>,
    /// Settings as they were decided, and what was left of them when the server had checked them.
    checked: Option<(Settings, Settings)>,
}

impl LocalPostgres {
    /// Creates the handle of a server; touches nothing.
    pub fn new(options: LocalOptions, guard: Arc<GuardClient>, clock: Arc<dyn Clock>) -> Self {
        let options = Arc::new(options);
        Self {
            eye: Eye::new(Arc::clone(&options), clock),
            options,
            guard: RwLock::new(guard),
            rotation: Rotation::new(),
            archive: Archive::default(),
            state: Mutex::default(),
        }
    }

    /// Goes on with another guard, after the one before has died.
    pub fn replace_guard(&self, guard: Arc<GuardClient>) {
        *self.guard.write().unwrap_or_else(PoisonError::into_inner) = guard;
    }

    fn guard(&self) -> Arc<GuardClient> {
        Arc::clone(&self.guard.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marker(&self) -> Marker {
        Marker::new(&self.options.state_dir())
    }

    /// Connects for an operation.
    async fn session(&self, action: &str) -> Result<Session, PgError> {
        Session::connect(&self.options, Purpose::Work, CONNECT)
            .await
            .map_err(|error| failed_query(action, error))
    }

    /// Does work on files on a thread where it may block.
    ///
    /// # Cancellation
    /// The work goes on to its end when the future is dropped.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &str,
        work: impl FnOnce(&LocalOptions) -> io::Result<T> + Send + 'static,
    ) -> Result<T, PgError> {
        let options = Arc::clone(&self.options);
        let result = tokio::task::spawn_blocking(move || work(&options)).await;
        result
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| failed_io(action, error))
    }
}

#[async_trait]
impl Postgres for LocalPostgres {
    async fn observe(&self) -> Result<PgStatus, PgError> {
        self.rotation.tend(&self.options);
        let mut status = self.eye.observe(&self.guard()).await?;
        status.archive = self.archive.look(&self.options);
        let state = self.state();
        status.configured = state.revision;
        if let (Server::Running(running), Some((_, wanted))) = (&mut status.server, &state.checked)
        {
            for (name, _, value) in &mut running.pending_restart {
                *value = wanted.value(name).unwrap_or_default().to_owned();
            }
        }
        Ok(status)
    }

    async fn run(&self, op: PgOp, progress: Progress) -> Result<(), PgError> {
        match op {
            PgOp::Bootstrap { config } => Box::pin(self.bootstrap(config, &progress)).await,
            PgOp::Confirm => self.confirm().await,
            PgOp::Clone { from, replace } => {
                Box::pin(self.clone_from(&from, replace, &progress)).await
            }
            PgOp::Start { role } => Box::pin(self.start(&role)).await,
            PgOp::Follow { upstream } => Box::pin(self.follow(upstream.as_ref())).await,
            PgOp::Promote => Box::pin(self.promote()).await,
            PgOp::Stop => Box::pin(self.stop()).await,
            PgOp::HandOver { candidate } => {
                Box::pin(self.hand_over(candidate.as_ref(), &progress)).await
            }
            PgOp::Rewind { from } => Box::pin(self.rewind(&from, &progress)).await,
            PgOp::Configure { revision, config } => {
                Box::pin(self.configure(revision, config)).await
            }
            PgOp::Slots { wanted } => Box::pin(self.slots(&wanted)).await,
            PgOp::Checkpoint => Box::pin(self.checkpoint()).await,
        }
    }

    async fn fence(&self) -> Result<(), PgError> {
        let guard = self.guard();
        // A guard proves what is its own. Under one that has nothing, a server may run that somebody
        // else started.
        let has_it = guard.report().await.map(|report| report.status.alive);
        let fenced = match has_it {
            Ok(true) => guard.fence().await.map(|_| true),
            other => other,
        };
        match fenced {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the guard did not fence; fencing without it"),
        }
        let fenced = self.blocking("fence", |options| {
            match fence_without_guard(&options.data_dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Duration::ZERO),
                result => result,
            }
        });
        fenced.await.map(drop)
    }

    async fn history(&self) -> Result<History, PgError> {
        Box::pin(self.local_history()).await
    }

    async fn history_of(&self, upstream: &Upstream) -> Result<(SystemId, History), PgError> {
        Box::pin(self.remote_history(upstream)).await
    }
}

/// Words the failure of something that may work later.
fn retry(action: &str, problem: impl Into<String>) -> PgError {
    PgError::new(PgErrorKind::Retry, action, problem)
}

/// Words the failure of something that somebody has to mend.
fn refused(action: &str, problem: impl Into<String>) -> PgError {
    PgError::new(PgErrorKind::Refused, action, problem)
}

fn failed_io(action: &str, error: io::Error) -> PgError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory => PgErrorKind::Refused,
        _ => PgErrorKind::Retry,
    };
    PgError::new(kind, action, error.to_string()).because(error)
}

fn failed_query(action: &str, error: SqlError) -> PgError {
    let kind = match error {
        SqlError::Denied(_) => PgErrorKind::Refused,
        SqlError::NobodyListens
        | SqlError::NotNow(_)
        | SqlError::Full(_)
        | SqlError::Silent(_)
        | SqlError::Cancelled(_)
        | SqlError::Failed(_) => PgErrorKind::Retry,
    };
    PgError::new(kind, action, error.to_string()).because(error)
}

fn failed_guard(action: &str, error: GuardError) -> PgError {
    let kind = match error.kind() {
        GuardErrorKind::Refused => PgErrorKind::NotGuarded,
        GuardErrorKind::Gone | GuardErrorKind::Silent => PgErrorKind::Retry,
    };
    PgError::new(kind, action, error.to_string()).because(error)
}

/// How long an operation waits for a connection to the local server.
const CONNECT: Duration = Duration::from_secs(5);
