//! Starting the server under the guard.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use spilo_core::pg::{DataDir, PgError, PgErrorKind, StartRole};
use tokio::time::{Instant, sleep};

use crate::LocalOptions;
use crate::guard::{GuardClient, Launch, Role};

use super::child::server_environment;
use super::configure::conf_file;
use super::files;
use super::log::Log;
use super::observe::{Alive, is_primary};
use super::settings::{Settings, Wiring};
use super::sql::{Purpose, Session, SqlError};
use super::{LocalPostgres, failed_guard, refused, retry};

impl LocalPostgres {
    /// Starts the server that is down, and waits until it answers as wanted.
    pub(super) async fn start(&self, role: &StartRole) -> Result<(), PgError> {
        let action = "start the server";
        let guard = self.guard();
        if let Alive::Somebody { guarded } = self.eye.alive(&guard).await? {
            let whose = if guarded {
                "under the guard"
            } else {
                "that the guard did not start"
            };
            return Err(retry(
                action,
                format!("processes of a server {whose} are alive"),
            ));
        }
        let seen = self.eye.look_at_disk().await?;
        let control = match (seen.data, seen.control) {
            (DataDir::Ready(_), Some(control)) => control,
            (DataDir::Unfinished(kind), _) => {
                return Err(refused(
                    action,
                    format!("the data directory is half made by {kind}"),
                ));
            }
            (DataDir::Unreadable { problem }, _) => return Err(refused(action, problem)),
            (DataDir::Empty | DataDir::Ready(_), _) => {
                return Err(refused(action, "the data directory is empty"));
            }
        };
        self.prepare().await?;
        // The configuration is read before the wiring, which depends on it.
        let config = self.config().await?;
        self.state().config.get_or_insert(config);
        let (wiring, wanted) = match role {
            StartRole::Primary => (Wiring::Primary, Role::Primary),
            StartRole::Standby { upstream } => (self.standby_of(upstream.as_ref())?, Role::Standby),
        };
        Box::pin(self.write_files(&wiring, Some(&control))).await?;
        self.blocking(action, move |options| write_signal(options, wanted))
            .await?;
        let settings = self.checked_settings().unwrap_or_default();
        Box::pin(self.launch(&guard, &settings, wanted)).await
    }

    /// Starts the program and waits until it answers as wanted.
    pub(super) async fn launch(
        &self,
        guard: &GuardClient,
        settings: &Settings,
        wanted: Role,
    ) -> Result<(), PgError> {
        let action = "start the server";
        let log = self.blocking(action, Log::open).await?;
        self.order_launch(guard, settings, wanted, &log).await?;
        self.wait_for_start(guard, &log, wanted).await
    }

    /// Makes the guard start the program.
    pub(super) async fn order_launch(
        &self,
        guard: &GuardClient,
        settings: &Settings,
        wanted: Role,
        log: &Log,
    ) -> Result<(), PgError> {
        let launch = Launch {
            program: program(&self.options),
            args: arguments(&self.options, settings),
            env: server_environment(),
            data_dir: self.options.data_dir.clone(),
            log_file: log.path().to_owned(),
            uid_gid: self.options.uid_gid,
            role: wanted,
        };
        guard
            .launch(launch)
            .await
            .map_err(|error| failed_guard("start the server", error))
            .map(drop)
    }

    async fn wait_for_start(
        &self,
        guard: &GuardClient,
        log: &Log,
        wanted: Role,
    ) -> Result<(), PgError> {
        let action = "start the server";
        let begun = Instant::now();
        let mut said = "nothing".to_owned();
        while begun.elapsed() < self.options.pg_ctl_timeout {
            let report = guard
                .report()
                .await
                .map_err(|error| failed_guard(action, error))?;
            if !report.status.alive {
                let problem = log
                    .problem()
                    .unwrap_or_else(|| report.last_exit.unwrap_or_default());
                let kind = match problem.contains("incompatible with") || problem.contains("in use")
                {
                    true => PgErrorKind::Refused,
                    false => PgErrorKind::Retry,
                };
                return Err(PgError::new(kind, action, format!("it ended: {problem}")));
            }
            match Session::connect(&self.options, Purpose::Look, Duration::from_secs(1)).await {
                Ok(session) => return self.is_as_wanted(&session, wanted).await,
                Err(SqlError::Denied(problem)) => {
                    tracing::warn!(%problem, "the server runs and does not let the agent in");
                    return Err(refused("connect to the server", problem));
                }
                Err(SqlError::Full(_)) => return Ok(()),
                Err(error) => said = error.to_string(),
            }
            // A standby that lacks log of its upstream is not ready before it gets that log, and
            // whoever decides has to be able to point it elsewhere.
            if wanted == Role::Standby && begun.elapsed() > STANDBY_PATIENCE {
                tracing::info!(%said, "the standby is up and takes no connections yet");
                return Ok(());
            }
            sleep(POLL).await;
        }
        let waited = self.options.pg_ctl_timeout;
        Err(retry(
            action,
            format!("it is not ready after {waited:?}; it says: {said}"),
        ))
    }

    async fn is_as_wanted(&self, session: &Session, wanted: Role) -> Result<(), PgError> {
        let action = "start the server";
        let primary = is_primary(session)
            .await
            .map_err(|error| super::failed_query(action, error))?;
        match (wanted, primary) {
            (Role::Primary, true) | (Role::Standby, false) => Ok(()),
            (Role::Primary, false) => Err(retry(action, "it is in recovery, not a primary")),
            (Role::Standby, true) => {
                use spilo_core::pg::Postgres as _;
                self.fence().await?;
                Err(refused(
                    action,
                    "it came up as a primary, not as a standby, and was ended",
                ))
            }
        }
    }
}

/// Returns the arguments of the server's program, in Patroni's form and order.
pub(super) fn arguments(options: &LocalOptions, settings: &Settings) -> Vec<String> {
    let mut arguments = vec![
        "-D".to_owned(),
        options.data_dir.display().to_string(),
        format!("--config-file={}", conf_file(options).display()),
    ];
    for (name, value) in &settings.controlled {
        arguments.push(format!("--{name}={value}"));
    }
    arguments
}

/// Writes or removes the files by which the server knows what it is.
pub(super) fn write_signal(options: &LocalOptions, role: Role) -> io::Result<()> {
    let standby = options.data_dir.join("standby.signal");
    files::remove(&options.data_dir.join("recovery.signal"))?;
    match role {
        Role::Primary => files::remove(&standby),
        Role::Standby if standby.exists() => Ok(()),
        Role::Standby => {
            files::create(&standby, options.uid_gid)?.sync_all()?;
            files::sync_directory_of(&standby)
        }
    }
}

/// Returns the server's program, with a path: the guard looks none up.
pub(super) fn program(options: &LocalOptions) -> PathBuf {
    let program = options.program("postgres");
    if program.components().count() > 1 {
        return program;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(&program))
        .find(|candidate| candidate.is_file())
        .unwrap_or(program)
}

const POLL: Duration = Duration::from_millis(15);
/// How long a standby is waited for that says all the time that it is starting.
const STANDBY_PATIENCE: Duration = Duration::from_secs(5);
