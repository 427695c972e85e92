//! The server while a base backup of it is made.

use std::path::PathBuf;

use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::ids::SystemId;
use spilo_core::segment::SegmentSize;
use spilo_core::wal::{Lsn, Timeline, WalPosition};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A connection as a superuser, or as somebody who may run `pg_backup_start`.
///
/// The backup belongs to it: when it ends, for whatever reason, so does the backup, and nothing is
/// left on the server.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    store: &'static str,
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// `server_version_num`.
    pub(crate) version: u32,
    /// All that `version()` says.
    pub(crate) version_text: String,
    pub(crate) system: SystemId,
    pub(crate) segment_size: SegmentSize,
    pub(crate) data_directory: PathBuf,
}

/// What `pg_backup_stop` gives.
#[derive(Clone, Debug)]
pub(crate) struct Stopped {
    pub(crate) at: WalPosition,
    /// What becomes `backup_label`.
    pub(crate) label: String,
    /// What becomes `tablespace_map`; empty without tablespaces.
    pub(crate) map: String,
}

impl Stopped {
    /// Returns whether the backup was made of a standby.
    pub(crate) fn is_of_standby(&self) -> bool {
        self.label.contains("BACKUP FROM: standby\n")
    }
}

impl Session {
    /// Connects, and returns with it what is done once the connection has ended, and why it has.
    pub(crate) async fn connect(
        store: &'static str,
        conninfo: &str,
    ) -> Result<(Self, impl Future<Output = String> + Send), BackupError> {
        let failed = |problem: String| {
            let action = "connect to the server that is backed up";
            BackupError::new(store, BackupErrorKind::Unavailable, action, problem)
        };
        let mut config: Config = conninfo
            .parse()
            .map_err(|error: tokio_postgres::Error| failed(told(&error)))?;
        config.application_name("spilo backup").options(
            "-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
             -c client_min_messages=error",
        );
        let connected = config.connect(NoTls).await;
        let (client, connection) = connected.map_err(|error| failed(told(&error)))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            match connection.await {
                Ok(()) => "it was closed".to_owned(),
                Err(error) => told(&error),
            }
        });
        let ended = async move {
            let ended = driver.join_next().await;
            ended.and_then(Result::ok).unwrap_or_default()
        };
        Ok((Self { client, store }, ended))
    }

    pub(crate) async fn facts(&self) -> Result<Facts, BackupError> {
        let row = self
            .row(
                "ask the server what it is",
                "SELECT current_setting('server_version_num'), version(), system_identifier, \
                 (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'), \
                 current_setting('data_directory') FROM pg_control_system()",
            )
            .await?;
        let bad = |what: &str| self.error("ask the server what it is", what);
        let [version, version_text, system, segment_size, data_directory] =
            <[String; 5]>::try_from(row).map_err(|_| bad("it gave another number of columns"))?;
        let segment_size = segment_size.parse().ok();
        Ok(Facts {
            version: version.parse().map_err(|_| bad(&version))?,
            version_text,
            system: SystemId::parse(&system).ok_or_else(|| bad(&system))?,
            segment_size: segment_size
                .and_then(|bytes| SegmentSize::new(bytes).ok())
                .ok_or_else(|| bad("it has an odd wal_segment_size"))?,
            data_directory: PathBuf::from(data_directory),
        })
    }

    /// Begins a backup, after a checkpoint at once.
    pub(crate) async fn start(
        &self,
        label: &str,
        version: u32,
    ) -> Result<WalPosition, BackupError> {
        if version >= 140_000 {
            // It waits while everything is copied.
            let set = self.client.simple_query("SET idle_session_timeout = 0");
            set.await
                .map_err(|error| self.error("prepare the backup", &told(&error)))?;
        }
        let label = label.replace('\'', "''");
        let start = if version >= 150_000 {
            format!("pg_backup_start('{label}', true)")
        } else {
            format!("pg_start_backup('{label}', true, false)")
        };
        let action = "begin the backup";
        let row = self.row(action, &format!("SELECT {start}")).await?;
        let lsn = self.lsn(action, row.first())?;
        // On a standby there is no other way to the timeline of the checkpoint that it begins at.
        let query = "SELECT timeline_id FROM pg_control_checkpoint()";
        let row = self.row(action, query).await?;
        let timeline = row.first().and_then(|text| text.parse().ok());
        let timeline = timeline.ok_or_else(|| self.error(action, "its timeline is no number"))?;
        Ok(WalPosition {
            timeline: Timeline(timeline),
            lsn,
        })
    }

    /// Ends the backup. Does not wait for the archive.
    pub(crate) async fn stop(&self, version: u32) -> Result<Stopped, BackupError> {
        let stop = if version >= 150_000 {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let action = "end the backup";
        let query = format!(
            "SELECT lsn, labelfile, coalesce(spcmapfile, ''), CASE WHEN pg_is_in_recovery() \
             THEN (pg_control_recovery()).min_recovery_end_timeline \
             ELSE (pg_control_checkpoint()).timeline_id END FROM {stop}"
        );
        let row = self.row(action, &query).await?;
        let lsn = self.lsn(action, row.first())?;
        let [_, label, map, timeline] = <[String; 4]>::try_from(row)
            .map_err(|_| self.error(action, "it gave another number of columns"))?;
        let timeline = timeline.parse();
        let timeline = timeline.map_err(|_| self.error(action, "its timeline is no number"))?;
        Ok(Stopped {
            at: WalPosition {
                timeline: Timeline(timeline),
                lsn,
            },
            label,
            map,
        })
    }

    /// Makes a checkpoint on a primary, and returns where its record begins.
    pub(crate) async fn checkpoint(&self) -> Result<Lsn, BackupError> {
        let action = "make a checkpoint";
        let made = self.client.simple_query("CHECKPOINT").await;
        made.map_err(|error| self.error(action, &told(&error)))?;
        let row = self
            .row(action, "SELECT pg_current_wal_insert_lsn()")
            .await?;
        self.lsn(action, row.first())
    }

    /// Returns how far a standby has replayed; nothing of a primary.
    pub(crate) async fn replayed(&self) -> Result<Option<Lsn>, BackupError> {
        let query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END";
        let row = self.row("ask how far it has replayed", query).await?;
        Ok(row.first().and_then(|text| text.parse().ok()))
    }

    /// Ends the file of the log that a primary writes, if there is anything in it.
    pub(crate) async fn switch_wal(&self) -> Result<(), BackupError> {
        let action = "begin a new file of the log";
        self.row(action, "SELECT pg_switch_wal()").await.map(drop)
    }

    fn lsn(&self, action: &str, text: Option<&String>) -> Result<Lsn, BackupError> {
        let lsn = text.and_then(|text| text.parse().ok());
        lsn.ok_or_else(|| self.error(action, "it gave no position"))
    }

    /// Returns the only row of a query, as text.
    async fn row(&self, action: &str, query: &str) -> Result<Vec<String>, BackupError> {
        let answer = self.client.simple_query(query).await;
        let answer = answer.map_err(|error| self.error(action, &told(&error)))?;
        let row = answer.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.ok_or_else(|| self.error(action, "it gave no row"))?;
        let column = |n| row.get(n).unwrap_or_default().to_owned();
        Ok((0..row.len()).map(column).collect())
    }

    fn error(&self, action: &str, problem: &str) -> BackupError {
        BackupError::new(self.store, BackupErrorKind::Unavailable, action, problem)
    }
}

/// What the server said, or else what happened.
fn told(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    if let Some(said) = error.as_db_error() {
        let hint = said.hint().map(|hint| format!(" ({hint})"));
        return format!("{}{}", said.message(), hint.unwrap_or_default());
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
