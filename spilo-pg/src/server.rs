//! One local server, whose settings and guard can change while the agent runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use spilo_core::pg::{PgError, PgOp, PgStatus, Postgres, Progress, Upstream};
use spilo_core::{Clock, History, SystemId};

use crate::guard::GuardClient;
use crate::{LocalOptions, LocalPostgres};

/// One server, by whichever handle has the settings in force.
///
/// A handle that has just been made has applied no configuration yet, and says so in its status,
/// which is what makes the agent write the files again and reload the server.
#[derive(Debug)]
pub struct LocalServer {
    tether: PathBuf,
    clock: Arc<dyn Clock>,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    handle: Arc<LocalPostgres>,
    guard: Arc<GuardClient>,
}

impl LocalServer {
    pub(crate) fn new(
        options: LocalOptions,
        tether: PathBuf,
        guard: Arc<GuardClient>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let handle = handle(options, &tether, &guard, &clock);
        Self {
            tether,
            clock,
            current: RwLock::new(Current { handle, guard }),
        }
    }

    /// Goes on with these settings. An operation under way ends with those it began with.
    pub fn configure(&self, options: LocalOptions) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.handle = handle(options, &self.tether, &current.guard, &self.clock);
    }

    /// Goes on with another guard.
    pub(crate) fn replace_guard(&self, guard: Arc<GuardClient>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.handle.replace_guard(Arc::clone(&guard));
        current.guard = guard;
    }

    fn handle(&self) -> Arc<LocalPostgres> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.handle)
    }
}

#[async_trait]
impl Postgres for LocalServer {
    async fn observe(&self) -> Result<PgStatus, PgError> {
        self.handle().observe().await
    }

    async fn run(&self, op: PgOp, progress: Progress) -> Result<(), PgError> {
        self.handle().run(op, progress).await
    }

    async fn fence(&self) -> Result<(), PgError> {
        self.handle().fence().await
    }

    async fn history(&self) -> Result<History, PgError> {
        self.handle().history().await
    }

    async fn history_of(&self, upstream: &Upstream) -> Result<(SystemId, History), PgError> {
        self.handle().history_of(upstream).await
    }
}

fn handle(
    mut options: LocalOptions,
    tether: &Path,
    guard: &Arc<GuardClient>,
    clock: &Arc<dyn Clock>,
) -> Arc<LocalPostgres> {
    options.tether.get_or_insert_with(|| tether.to_owned());
    Arc::new(LocalPostgres::new(
        options,
        Arc::clone(guard),
        Arc::clone(clock),
    ))
}
