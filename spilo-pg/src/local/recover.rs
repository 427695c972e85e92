//! A new database cluster out of a backup, recovered to a moment.

use std::time::Duration;

use spilo_core::backup::{BackupInfo, BackupName, RecoveryTarget};
use spilo_core::pg::{PgError, Progress};
use tokio::time::{Instant, sleep};

use crate::guard::{GuardClient, Role};
use crate::options::Recovery;

use super::log::Log;
use super::observe::is_primary;
use super::settings::Wiring;
use super::sql::{Purpose, Session, SqlError};
use super::{LocalPostgres, disk, failed_guard, files, refused, retry};

impl LocalPostgres {
    /// Restores the backup into the emptied data directory.
    pub(super) async fn unpack(
        &self,
        action: &str,
        recovery: &Recovery,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let listed = recovery.store.backups().await;
        let listed = listed.map_err(|error| retry(action, error.to_string()).because(error))?;
        let name = chosen(&listed, recovery).map_err(|problem| refused(action, problem))?;
        progress.say(&format!("restoring {name}"));
        let into = &self.options.data_dir;
        let restored = recovery.store.restore(&name, into, progress.clone());
        let restored = restored.await;
        restored.map_err(|error| retry(action, error.to_string()).because(error))
    }

    /// Starts the server on it, and waits until it has recovered to where it should and takes writes.
    ///
    /// However long that takes: there may be days of log to replay.
    pub(super) async fn recover(
        &self,
        action: &str,
        guard: &GuardClient,
        recovery: &Recovery,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let read = self.blocking(action, |options| Ok(disk::read_control(options)));
        let control = read.await?;
        let control = control.map_err(|problem| retry(action, problem.to_string()))?;
        let wiring = Wiring::Recovery(settings(recovery));
        Box::pin(self.write_files(&wiring, Some(&control))).await?;
        self.blocking(action, |options| {
            files::remove(&options.data_dir.join("standby.signal"))?;
            let signal = options.data_dir.join("recovery.signal");
            files::create(&signal, options.uid_gid)?.sync_all()?;
            files::sync_directory_of(&signal)
        })
        .await?;
        let settings = self.checked_settings().unwrap_or_default();
        let log = self.blocking(action, Log::open).await?;
        self.order_launch(guard, &settings, Role::Primary, &log)
            .await?;
        progress.say(&format!("recovering to {}", recovery.target));
        let remedy = remedy(recovery);
        self.wait_for_recovery(action, guard, &log, progress, remedy)
            .await?;
        Box::pin(self.write_files(&Wiring::Primary, Some(&control))).await?;
        self.reload().await
    }

    async fn wait_for_recovery(
        &self,
        action: &str,
        guard: &GuardClient,
        log: &Log,
        progress: &Progress,
        remedy: &str,
    ) -> Result<(), PgError> {
        let mut told = Instant::now();
        let mut heard = Instant::now();
        loop {
            let report = match guard.report().await {
                Ok(report) => report,
                // Days of replay are not thrown away for one answer.
                Err(error) if heard.elapsed() < PATIENCE => {
                    tracing::warn!(%error, "the guard does not answer");
                    sleep(POLL).await;
                    continue;
                }
                Err(error) => return Err(failed_guard(action, error)),
            };
            heard = Instant::now();
            if !report.status.alive {
                let problem = log.problem().or(report.last_exit).unwrap_or_default();
                let problem = format!("the recovery ended: {problem}{remedy}");
                return Err(refused(action, problem));
            }
            match Session::connect(&self.options, Purpose::Look, Duration::from_secs(1)).await {
                Ok(session) => match is_primary(&session).await {
                    Ok(true) => return Ok(()),
                    Ok(false) if told.elapsed() > TELL_EVERY => {
                        told = Instant::now();
                        let asked = session.value(REPLAYED, Duration::from_secs(1)).await;
                        if let Ok(at) = asked {
                            progress.say(&format!("recovered to {at}"));
                        }
                    }
                    Ok(false) | Err(_) => {}
                },
                // The password may be another one at the end of the recovery.
                Err(SqlError::Denied(problem)) if !self.recovers(action).await? => {
                    return Err(refused("connect to the recovered server", problem));
                }
                Err(_) => {}
            }
            sleep(POLL).await;
        }
    }
}

impl LocalPostgres {
    /// Returns whether the server has not come to the end of its recovery.
    async fn recovers(&self, action: &str) -> Result<bool, PgError> {
        let looked = self.blocking(action, |options| {
            Ok(options.data_dir.join("recovery.signal").exists())
        });
        looked.await
    }
}

/// Returns what to try where a recovery ends without its target. Of a target that is no position it
/// cannot be said beforehand which backup ended before it.
fn remedy(recovery: &Recovery) -> &'static str {
    match (&recovery.backup, &recovery.target) {
        (None, RecoveryTarget::Time(_) | RecoveryTarget::Name(_) | RecoveryTarget::Xid(_)) => {
            "; if there is such a target, it may be older than the newest backup, which this began \
             with: name one that ended before the target"
        }
        _ => "",
    }
}

/// Returns the backup to begin with: the one that is named, or else the newest from which the
/// target can be reached.
fn chosen(listed: &[BackupInfo], recovery: &Recovery) -> Result<BackupName, String> {
    if let Some(name) = &recovery.backup {
        let found = listed.iter().any(|backup| backup.name == *name);
        return match found {
            true => Ok(name.clone()),
            false => Err(format!("the store has no backup {name}")),
        };
    }
    let reaches = |backup: &&BackupInfo| match recovery.target {
        RecoveryTarget::Lsn(lsn) => backup.stop.lsn <= lsn,
        _ => true,
    };
    // What a recovery gave up is older than what came after it, whatever the positions.
    let age = |backup: &&BackupInfo| (backup.start.timeline.0, backup.start.lsn, backup.stop.lsn);
    let newest = listed.iter().filter(reaches).max_by_key(age);
    newest
        .map(|backup| backup.name.clone())
        .ok_or_else(|| match listed.len() {
            0 => "the store has no backup".to_owned(),
            _ => format!("no backup in the store ends before {}", recovery.target),
        })
}

/// Returns the settings of the recovery.
fn settings(recovery: &Recovery) -> Vec<(&'static str, String)> {
    let restore = recovery.store.restore_command().unwrap_or_default();
    let mut settings = vec![
        ("restore_command", restore),
        ("recovery_target_action", "promote".to_owned()),
        ("recovery_target_timeline", recovery.timeline.clone()),
        ("recovery_target_inclusive", recovery.inclusive.to_string()),
    ];
    settings.extend(match &recovery.target {
        RecoveryTarget::Latest => None,
        RecoveryTarget::Immediate => Some(("recovery_target", "immediate".to_owned())),
        RecoveryTarget::Time(time) => Some(("recovery_target_time", time.clone())),
        RecoveryTarget::Name(name) => Some(("recovery_target_name", name.clone())),
        RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
    });
    settings
}

const REPLAYED: &str = "SELECT coalesce(pg_last_xact_replay_timestamp()::text || ', ', '') || \
    pg_last_wal_replay_lsn()::text";
/// How long a guard may be silent that has a server which recovers.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use spilo_core::backup::{BackupError, BackupStore};
    use spilo_core::{Lsn, Timeline, WalPosition, async_trait};

    use super::*;

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl BackupStore for Nothing {
        async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError> {
            Ok(Vec::new())
        }

        async fn restore(&self, _: &BackupName, _: &Path, _: Progress) -> Result<(), BackupError> {
            Ok(())
        }

        fn restore_command(&self) -> Option<String> {
            Some("fetch %f %p".to_owned())
        }
    }

    fn backup(name: &str, timeline: u32, start: u64, stop: u64) -> BackupInfo {
        let at = |lsn| WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        };
        BackupInfo::new(BackupName(name.to_owned()), at(start), at(stop))
    }

    #[test]
    fn the_newest_backup_that_reaches_the_target_is_taken() {
        let listed = [
            backup("old", 1, 100, 200),
            backup("given up", 1, 5000, 6000),
            backup("new", 2, 1000, 1100),
        ];
        let mut recovery = Recovery::new(Arc::new(Nothing));
        let name = |recovery: &Recovery| chosen(&listed, recovery).map(|name| name.0);
        assert_eq!(name(&recovery), Ok("new".to_owned()));
        recovery.target = RecoveryTarget::Lsn(Lsn(1099));
        assert_eq!(name(&recovery), Ok("old".to_owned()));
        recovery.target = RecoveryTarget::Lsn(Lsn(10));
        let none = "no backup in the store ends before the position 0/A";
        assert_eq!(name(&recovery), Err(none.to_owned()));
        recovery.backup = Some(BackupName("given up".to_owned()));
        assert_eq!(name(&recovery), Ok("given up".to_owned()));
        recovery.backup = Some(BackupName("gone".to_owned()));
        let gone = "the store has no backup gone";
        assert_eq!(name(&recovery), Err(gone.to_owned()));
        let nothing = chosen(&[], &Recovery::new(Arc::new(Nothing)));
        assert_eq!(nothing, Err("the store has no backup".to_owned()));
    }

    #[test]
    fn the_server_is_told_its_target_once() {
        let mut recovery = Recovery::new(Arc::new(Nothing));
        recovery.target = RecoveryTarget::Name("before the accident".to_owned());
        recovery.inclusive = false;
        assert_eq!(
            settings(&recovery),
            [
                ("restore_command", "fetch %f %p"),
                ("recovery_target_action", "promote"),
                ("recovery_target_timeline", "latest"),
                ("recovery_target_inclusive", "false"),
                ("recovery_target_name", "before the accident"),
            ]
            .map(|(name, value)| (name, value.to_owned()))
        );
    }
}
