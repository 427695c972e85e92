//! A guard that is replaced when it dies or hangs.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::guard::{Deadline, Guard, GuardError, GuardErrorKind, GuardStatus};
use spilo_core::{Clock, NodeTime};

use crate::guard::{GuardClient, GuardOptions, fence_without_guard};
use crate::{LocalOptions, LocalServer};

/// The guard of this node, whichever process it is at the moment.
///
/// The request that finds a guard dead or silent fails, so that the agent learns of it and fences
/// the server itself; the next one puts a new guard in its place.
#[derive(Debug)]
pub struct GuardKeeper {
    options: GuardOptions,
    data_dir: PathBuf,
    current: RwLock<Arc<GuardClient>>,
    server: Arc<LocalServer>,
    clock: Arc<dyn Clock>,
    trouble: Mutex<Option<Trouble>>,
    /// Held by whoever replaces the guard.
    mending: tokio::sync::Mutex<()>,
}

/// What is wrong with the current guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Gone,
    SilentSince(NodeTime),
}

impl GuardKeeper {
    /// Finds the guard that runs already, or starts one, and creates the server that runs under
    /// it; touches no server, unless a guard is found that does not answer.
    ///
    /// # Errors
    /// The directory of the guard, or a guard in it, cannot be used.
    pub async fn start(
        options: GuardOptions,
        local: LocalOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Self>, Arc<LocalServer>), GuardError> {
        let data_dir = local.data_dir.clone();
        let client = match GuardClient::connect_or_spawn(&options).await {
            // Left behind frozen. Nothing is known of its server, so nothing of it may live.
            Err(error) if error.kind() == GuardErrorKind::Silent => {
                tracing::warn!(%error, "a guard does not answer; it is ended, and its server with it");
                replace(&options, &data_dir).await?
            }
            result => result?,
        };
        let client = Arc::new(client);
        let tether = options
            .program
            .clone()
            .unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let server = LocalServer::new(local, tether, Arc::clone(&client), Arc::clone(&clock));
        let server = Arc::new(server);
        let keeper = Self {
            options,
            data_dir,
            clock,
            current: RwLock::new(client),
            server: Arc::clone(&server),
            trouble: Mutex::default(),
            mending: tokio::sync::Mutex::default(),
        };
        Ok((Arc::new(keeper), server))
    }

    /// Returns the current guard.
    pub fn client(&self) -> Arc<GuardClient> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask<T, F>(&self, request: impl FnOnce(Arc<GuardClient>) -> F) -> Result<T, GuardError>
    where
        F: Future<Output = Result<T, GuardError>>,
    {
        self.mend().await?;
        let asked = self.client();
        let result = request(Arc::clone(&asked)).await;
        let mut trouble = self.trouble();
        // An answer of a guard that has been replaced since says nothing of the new one.
        if !Arc::ptr_eq(&asked, &self.client()) {
            return result;
        }
        match &result {
            Ok(_) => *trouble = None,
            Err(error) => match error.kind() {
                GuardErrorKind::Gone => *trouble = Some(Trouble::Gone),
                GuardErrorKind::Silent if trouble.is_none() => {
                    *trouble = Some(Trouble::SilentSince(self.clock.now()));
                }
                GuardErrorKind::Silent | GuardErrorKind::Refused => {}
            },
        }
        result
    }

    /// Puts a new guard in the place of a dead one, and of one that has been silent for long.
    async fn mend(&self) -> Result<(), GuardError> {
        let found = *self.trouble();
        let Some(trouble) = found else { return Ok(()) };
        if let Trouble::SilentSince(since) = trouble
            && self.clock.now().since(since) < PATIENCE
        {
            return Ok(());
        }
        let Ok(_mending) = self.mending.try_lock() else {
            let problem = "the guard is being replaced";
            return Err(GuardError::new(
                GuardErrorKind::Gone,
                "reach the guard",
                problem,
            ));
        };
        if self.trouble().is_none() {
            return Ok(());
        }
        let client = match trouble {
            Trouble::SilentSince(_) => {
                tracing::warn!("the guard is silent; it is ended, and its server with it");
                replace(&self.options, &self.data_dir).await?
            }
            Trouble::Gone => GuardClient::connect_or_spawn(&self.options).await?,
        };
        tracing::info!(
            pid = client.pid(),
            "a new guard has taken the place of the old one"
        );
        let client = Arc::new(client);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&client);
        self.server.replace_guard(client);
        *self.trouble() = None;
        Ok(())
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Guard for GuardKeeper {
    async fn arm(&self, deadline: Deadline) -> Result<GuardStatus, GuardError> {
        self.ask(|guard| async move { guard.arm(deadline).await })
            .await
    }

    async fn disarm(&self) -> Result<GuardStatus, GuardError> {
        self.ask(|guard| async move { guard.disarm().await }).await
    }

    async fn status(&self) -> Result<GuardStatus, GuardError> {
        self.ask(|guard| async move { guard.status().await }).await
    }

    async fn changed(&self) -> Result<(), GuardError> {
        // Without `ask`: it waits for long, and `status` finds the same trouble.
        self.client().changed().await
    }
}

/// Ends a silent guard with everything of its server, and starts another.
async fn replace(options: &GuardOptions, data_dir: &Path) -> Result<GuardClient, GuardError> {
    // Before: PostgreSQL must not outlive the guard's end as a writer. After: what the guard
    // started in between.
    fence(data_dir.to_owned()).await?;
    GuardClient::end_silent(&options.run_dir).await?;
    fence(data_dir.to_owned()).await?;
    GuardClient::connect_or_spawn(options).await
}

async fn fence(data_dir: PathBuf) -> Result<(), GuardError> {
    let failed = |error: io::Error| {
        GuardError::new(
            GuardErrorKind::Silent,
            "fence without the guard",
            error.to_string(),
        )
    };
    let fenced = tokio::task::spawn_blocking(move || fence_without_guard(&data_dir));
    match fenced
        .await
        .map_err(io::Error::other)
        .and_then(|result| result)
    {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Longer than the agent's own patience with a guard, so that a primary has fenced already.
const PATIENCE: Duration = Duration::from_secs(3);
