//! Stopping the server.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spilo_core::guard::GuardErrorKind;
use spilo_core::pg::{PgError, Postgres as _};
use tokio::time::{Instant, sleep};

use crate::guard::ServerSignal;

use super::observe::Alive;
use super::{LocalPostgres, failed_guard, retry};

impl LocalPostgres {
    /// Stops the server cleanly; ends when no process of it is left.
    pub(super) async fn stop(&self) -> Result<(), PgError> {
        self.signal_stop().await?;
        self.wait_for_end(|| async {}).await
    }

    /// Asks the server to end its clients, send all log to the standbys, and stop.
    pub(super) async fn signal_stop(&self) -> Result<(), PgError> {
        let action = "stop the server";
        let guard = self.guard();
        match self.eye.alive(&guard).await? {
            Alive::Nobody => Ok(()),
            Alive::Somebody { guarded: true } => match guard.signal(ServerSignal::FastStop).await {
                // Its postmaster is dead and its last processes are about to be.
                Err(error) if error.kind() == GuardErrorKind::Refused => Ok(()),
                result => result.map_err(|error| failed_guard(action, error)),
            },
            Alive::Somebody { guarded: false } => {
                let pid = self
                    .blocking(action, |options| {
                        fs::read_to_string(options.data_dir.join("postmaster.pid"))
                    })
                    .await
                    .ok()
                    .and_then(|text| text.lines().next()?.trim().parse::<i32>().ok())
                    // A negative number stands for a server in single-user mode.
                    .and_then(i32::checked_abs)
                    .and_then(Pid::from_raw);
                let ours = self.eye.processes().await?;
                // A left-over file may name a process of somebody else by now.
                match pid.filter(|pid| ours.contains(&pid.as_raw_nonzero().get().unsigned_abs())) {
                    Some(pid) => kill_process(pid, Signal::INT)
                        .map_err(|error| retry(action, error.to_string())),
                    None => self.fence().await,
                }
            }
        }
    }

    /// Waits until no process of the server is left, and does `meanwhile` now and then. Ends the
    /// server by force when it takes too long.
    pub(super) async fn wait_for_end<F: Future<Output = ()> + Send>(
        &self,
        mut meanwhile: impl FnMut() -> F + Send,
    ) -> Result<(), PgError> {
        let begun = Instant::now();
        let guard = self.guard();
        while begun.elapsed() < self.options.pg_ctl_timeout {
            if self.eye.alive(&guard).await? == Alive::Nobody {
                return Ok(());
            }
            meanwhile().await;
            sleep(POLL).await;
        }
        let waited = self.options.pg_ctl_timeout;
        tracing::warn!(?waited, "the server did not stop and is ended by force");
        self.fence().await
    }
}

const POLL: Duration = Duration::from_millis(10);
