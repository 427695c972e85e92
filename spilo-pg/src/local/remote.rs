//! Histories: of this server, and of another one over the replication protocol.

use std::fs;
use std::io;
use std::time::Duration;

use spilo_core::pg::{PgError, PgErrorKind, Upstream};
use spilo_core::wal::{Lsn, Timeline, WalPosition};
use spilo_core::{History, SystemId};

use crate::LocalOptions;

use super::child::Program;
use super::configure::replication_conninfo;
use super::conninfo::Endpoint;
use super::{LocalPostgres, failed_io, refused, retry};

impl LocalPostgres {
    /// Reads the history of the timeline that this server is on.
    pub(super) async fn local_history(&self) -> Result<History, PgError> {
        let action = "read the history of the local timeline";
        let status = self.eye.observe(&self.guard()).await?;
        let position = status
            .position()
            .ok_or_else(|| retry(action, "there is no data"))?;
        self.history_at(position).await
    }

    /// Reads the history that leads to a position of this server.
    pub(super) async fn history_at(&self, position: WalPosition) -> Result<History, PgError> {
        let action = "read the history of the local timeline";
        let timeline = position.timeline;
        let text = self.blocking(action, move |options| {
            let path = options.data_dir.join("pg_wal").join(file_name(timeline));
            match fs::read_to_string(&path) {
                // The first timeline has no ancestors, and no file.
                Err(error) if error.kind() == io::ErrorKind::NotFound && timeline.0 == 1 => {
                    Ok(String::new())
                }
                Err(error) => Err(io::Error::other(format!("{}: {error}", path.display()))),
                Ok(text) => Ok(text),
            }
        });
        History::parse(timeline, &text.await?)
            .map_err(|error| refused(action, error.to_string()).because(error))
    }

    /// Asks another server for its system identifier and its history.
    pub(super) async fn remote_history(
        &self,
        upstream: &Upstream,
    ) -> Result<(SystemId, History), PgError> {
        let found = self.remote_state(upstream).await?;
        Ok((found.system, found.history))
    }

    /// Asks another server, which is a primary, what it is and how far it is.
    pub(super) async fn remote_state(&self, upstream: &Upstream) -> Result<Remote, PgError> {
        let action = format!("read the history of {}", upstream.name);
        let endpoint =
            Endpoint::parse(&upstream.conn_url).map_err(|problem| refused(&action, problem))?;
        self.prepare().await?;
        let commands = ["IDENTIFY_SYSTEM", "SHOW transaction_read_only"];
        let text = replication_commands(&self.options, &action, &endpoint, &commands).await?;
        let odd = |what: &str| retry(&action, format!("cannot read the {what} in {text:?}"));
        let mut lines = text.lines();
        let mut fields = lines.next().unwrap_or_default().split('|');
        let system = fields.next().and_then(SystemId::parse);
        let system = system.ok_or_else(|| odd("system identifier"))?;
        let timeline: Option<u32> = fields.next().and_then(|field| field.parse().ok());
        let timeline = timeline.ok_or_else(|| odd("timeline"))?;
        let flushed: Option<Lsn> = fields.next().and_then(|field| field.parse().ok());
        let flushed = flushed.ok_or_else(|| odd("position"))?;
        match lines.next() {
            Some("off") => {}
            Some("on") => return Err(retry(&action, "it is in recovery, not a primary")),
            _ => return Err(odd("role")),
        }
        if timeline == 1 {
            return Ok(Remote {
                system,
                history: History::root(Timeline(1)),
                flushed,
            });
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let text = replication_commands(&self.options, &action, &endpoint, &[&command]).await?;
        // The name of the file, a bar, and the text of the file as it is.
        let (_, history) = text.split_once('|').unwrap_or_default();
        let history = History::parse(Timeline(timeline), history)
            .map_err(|error| retry(&action, error.to_string()).because(error))?;
        Ok(Remote {
            system,
            history,
            flushed,
        })
    }
}

/// What another server is.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) system: SystemId,
    pub(super) history: History,
    pub(super) flushed: Lsn,
}

/// Asks a server for the timeline that it is on by its replay; of a standby without a walreceiver
/// nothing in SQL tells it.
pub(super) async fn replayed_timeline(options: &LocalOptions) -> Result<Timeline, PgError> {
    let action = "read the local timeline";
    let endpoint = Endpoint {
        host: options.own_host(),
        port: options.port,
    };
    let text = replication_commands(options, action, &endpoint, &["IDENTIFY_SYSTEM"]).await?;
    let field = text.split('|').nth(1).and_then(|field| field.parse().ok());
    field
        .map(Timeline)
        .ok_or_else(|| retry(action, format!("cannot read {text:?}")))
}

/// Runs commands of the replication protocol, through psql: the SQL client does not speak it, and
/// psql knows every way of authentication and encryption that the walreceiver knows.
async fn replication_commands(
    options: &LocalOptions,
    action: &str,
    endpoint: &Endpoint,
    commands: &[&str],
) -> Result<String, PgError> {
    let conninfo = replication_conninfo(options, endpoint);
    let mut program = Program::new(options, "psql")
        .args(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d"])
        .arg(format!("{conninfo} replication=true connect_timeout=2"))
        // So that a transaction is read-only for one reason only, which is recovery.
        .env(
            "PGOPTIONS",
            "-c default_transaction_read_only=off -c statement_timeout=3000",
        )
        .within(LIMIT);
    for command in commands {
        program = program.args(["-c", command]);
    }
    let ended = program
        .run(|_| {})
        .await
        .map_err(|error| failed_io(action, error))?;
    ended.success().map_err(|problem| {
        let denied = [
            "password authentication failed",
            "no pg_hba.conf entry",
            "no password",
        ];
        let kind = match denied.iter().any(|sign| problem.contains(sign)) {
            true => PgErrorKind::Refused,
            false => PgErrorKind::Retry,
        };
        PgError::new(kind, action, problem)
    })
}

fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

const LIMIT: Duration = Duration::from_secs(3);
