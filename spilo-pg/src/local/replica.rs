//! The ways in which a replica's data directory is made.

use spilo_core::SystemId;
use spilo_core::backup::BackupName;
use spilo_core::pg::{PgError, PgErrorKind, Progress, Upstream};
use spilo_core::replica::{Choice, Method, ReplicaCommand, ReplicaMethod, Source, choose_method};

use crate::options::Backups;

use super::child::Program;
use super::configure::replication_conninfo;
use super::conninfo::Endpoint;
use super::{LocalPostgres, disk, failed_io, files, retry};

/// What came of one way.
enum Outcome {
    Made,
    /// It is not the way to go now, for a reason that was told.
    PassedOver(String),
}

impl LocalPostgres {
    /// Makes the data directory a replica's, in the first of the ways that works.
    ///
    /// # Errors
    /// That of the last way that failed; all of them are logged.
    pub(super) async fn make_replica(
        &self,
        action: &str,
        from: &Upstream,
        endpoint: &Endpoint,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let mut problem = retry(action, "there is no way to make a replica");
        for method in &self.options.replica_methods {
            let (name, tried) = match (method, &self.options.backups) {
                (ReplicaMethod::Backup, None) => continue,
                (ReplicaMethod::Backup, Some(backups)) => {
                    let tried = Box::pin(self.restore(action, from, backups, progress)).await;
                    ("backup", tried)
                }
                (ReplicaMethod::Basebackup, _) => {
                    let tried = Box::pin(self.basebackup(action, endpoint, progress)).await;
                    ("basebackup", tried.map(|()| Outcome::Made))
                }
                (ReplicaMethod::Command(command), _) => {
                    let tried = Box::pin(self.by_command(action, endpoint, command, progress));
                    (&*command.name, tried.await.map(|()| Outcome::Made))
                }
            };
            match tried {
                Ok(Outcome::Made) => return Ok(()),
                Ok(Outcome::PassedOver(why)) => problem = retry(action, why),
                Err(error) => {
                    tracing::warn!(%error, method = name, "this way to make a replica failed");
                    problem = error;
                }
            }
        }
        Err(problem)
    }

    /// Makes it from the newest backup that fits, if the strategy says so.
    async fn restore(
        &self,
        action: &str,
        from: &Upstream,
        backups: &Backups,
        progress: &Progress,
    ) -> Result<Outcome, PgError> {
        let listed = tokio::time::timeout(LIST, backups.store.backups()).await;
        let late = || {
            retry(
                action,
                format!("the store of backups does not answer within {LIST:?}"),
            )
        };
        let listed = listed.map_err(|_| late())?;
        let listed = listed.map_err(|error| retry(action, error.to_string()).because(error))?;
        let source = self.remote_state(from).await?;
        let system = source.system;
        let source = Source {
            system,
            history: &source.history,
            position: source.flushed,
        };
        let Choice { method, reason } = choose_method(&listed, source, &*backups.strategy);
        let name = match method {
            Method::Clone => {
                progress.say(&format!("not from a backup: {reason}"));
                return Ok(Outcome::PassedOver(format!("not from a backup: {reason}")));
            }
            Method::Restore(name) => name,
        };
        progress.say(&format!("from the backup {name}: {reason}"));
        self.empty_data(action).await?;
        let into = &self.options.data_dir;
        let restored = backups.store.restore(&name, into, progress.clone()).await;
        restored.map_err(|error| retry(action, error.to_string()).because(error))?;
        self.check_restored(action, &name, system).await?;
        Ok(Outcome::Made)
    }

    /// Checks that what was restored is of the cluster: not every store says of which a backup is.
    async fn check_restored(
        &self,
        action: &str,
        name: &BackupName,
        system: SystemId,
    ) -> Result<(), PgError> {
        let read = self.blocking(action, |options| Ok(disk::read_control(options)));
        let control = read.await?;
        let control = control.map_err(|problem| retry(action, problem.to_string()))?;
        if control.system_id == system {
            return Ok(());
        }
        let other = control.system_id;
        let problem = format!("{name} is of the database cluster {other}, and not of {system}");
        Err(retry(action, problem))
    }

    /// Makes it by a command of the configuration.
    async fn by_command(
        &self,
        action: &str,
        endpoint: &Endpoint,
        command: &ReplicaCommand,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let options = &self.options;
        if !command.keep_data {
            self.empty_data(action).await?;
        }
        let mut program = Program::shell(options, &command.command);
        for (key, value) in &command.arguments {
            program = program.arg(format!("--{key}={value}"));
        }
        if !command.no_params {
            let conninfo = replication_conninfo(options, endpoint);
            program = program
                .arg(format!("--scope={}", options.scope))
                .arg("--role=replica")
                .arg(format!("--datadir={}", options.data_dir.display()))
                .arg(format!("--connstring={conninfo}"));
        }
        let ran = program.run(|line| progress.say(line)).await;
        let ended = ran.map_err(|error| failed_io(action, error))?;
        let succeeded = ended.success().map(drop);
        succeeded.map_err(|problem| retry(action, format!("{}: {problem}", command.name)))
    }

    /// Makes it as a copy of the running server.
    async fn basebackup(
        &self,
        action: &str,
        endpoint: &Endpoint,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let slot = self
            .state()
            .config
            .as_ref()
            .is_none_or(|config| config.use_slots);
        if let Err(problem) = self.copy(action, endpoint, slot, progress).await? {
            if !(slot && problem.contains("replication slot")) {
                return Err(judge(action, problem));
            }
            tracing::warn!(%problem, "the slot of this member cannot be used; cloning without it");
            if let Err(problem) = self.copy(action, endpoint, false, progress).await? {
                return Err(judge(action, problem));
            }
        }
        Ok(())
    }

    async fn empty_data(&self, action: &str) -> Result<(), PgError> {
        self.blocking(action, |options| {
            files::empty(&options.data_dir)?;
            files::private_directory(&options.data_dir, options.uid_gid)
        })
        .await
    }

    /// Runs pg_basebackup into the emptied directory. Returns what it says when it fails.
    async fn copy(
        &self,
        action: &str,
        endpoint: &Endpoint,
        slot: bool,
        progress: &Progress,
    ) -> Result<Result<(), String>, PgError> {
        self.empty_data(action).await?;
        let conninfo = replication_conninfo(&self.options, endpoint);
        let mut program = Program::new(&self.options, "pg_basebackup")
            .arg("--pgdata")
            .arg(&self.options.data_dir)
            .args([
                "--wal-method=stream",
                "--checkpoint=fast",
                "--progress",
                "--no-password",
            ])
            .arg(format!("--dbname={conninfo}"))
            .args(self.options.basebackup.clone());
        if slot {
            program = program.arg(format!("--slot={}", self.options.name.slot()));
        }
        let ended = program
            .run(|line| progress.say(line))
            .await
            .map_err(|error| failed_io(action, error))?;
        Ok(ended.success().map(drop))
    }
}

/// Tells whether trying again can help.
fn judge(action: &str, problem: String) -> PgError {
    let hopeless = [
        "password authentication failed",
        "no pg_hba.conf entry",
        "incompatible server version",
        "no password supplied",
        "invalid option",
        "unrecognized option",
    ];
    let kind = match hopeless.iter().any(|sign| problem.contains(sign)) {
        true => PgErrorKind::Refused,
        false => PgErrorKind::Retry,
    };
    PgError::new(kind, action, problem)
}

/// How long a store may take to list its backups, before a copy is made instead.
const LIST: std::time::Duration = std::time::Duration::from_secs(120);
