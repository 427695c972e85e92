//! An archive through the command `spilo-backup`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::backup::{
    BackupError, BackupErrorKind, BackupInfo, BackupName, BackupSource, BackupStore,
};
use spilo_core::local::Secret;
use spilo_core::pg::Progress;

use crate::command::{CommandOptions, Program};

/// The archive that the command `spilo-backup` reaches, in processes of their own.
///
/// What an agent holds that shall stay small and go on, whatever a store does: the client of S3,
/// the codecs and their memory are in the command.
#[derive(Clone, Debug)]
pub struct Separate {
    program: Program,
    resident: Option<PathBuf>,
}

impl Separate {
    /// Takes how the command is run, with what says where the archive is among its arguments, and
    /// the working directory of the resident archiver that the server's commands ask, if there is
    /// one.
    pub fn new(options: CommandOptions, resident: Option<PathBuf>) -> Self {
        let program = Program::new("spilo-backup", options);
        Self { program, resident }
    }

    /// Runs the resident archiver of a server, and starts it again when it has ended: it pushes the
    /// log several files at a time, and fetches it ahead. While there is none, the server's commands
    /// do without.
    ///
    /// # Cancellation
    /// Dropping the future ends it. Returns at once where this archive has none.
    pub async fn archive(&self, data_dir: &Path) {
        let Some(resident) = &self.resident else {
            return;
        };
        let (data_dir, resident) = (data_dir.to_string_lossy(), resident.to_string_lossy());
        let arguments = ["archiver", "--data-dir", &data_dir, "--work-dir", &resident];
        let progress = Progress::to(|line| tracing::info!("archiver: {line}"));
        // Where an operation works it would be taken for what an interrupted one has left.
        let mut program = self.program.clone();
        program.options.working_dir = None;
        let log = Path::new(&*data_dir).join("pg_wal");
        loop {
            // Before there is a server, and while one is made anew, there is nothing to archive.
            while !log.is_dir() {
                tokio::time::sleep(PAUSE).await;
            }
            match program.run("archive", &arguments, &progress).await {
                Ok(_) => tracing::warn!("the archiver has ended, and is started again"),
                Err(error) => tracing::warn!(%error, "the archiver is started again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn line(&self, command: &str, words: &[&str]) -> String {
        let resident = self.resident.as_deref().map(Path::to_string_lossy);
        let mut all = vec![command];
        if let Some(resident) = &resident {
            all.extend(["--resident", resident]);
        }
        all.extend(words);
        self.program.line(&all)
    }
}

#[async_trait]
impl BackupStore for Separate {
    async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError> {
        let action = "list the backups";
        let silent = Progress::default();
        let printed = self
            .program
            .run(action, &["--json", "backup-list"], &silent);
        let printed = printed.await?;
        serde_json::from_str(&printed).map_err(|error| {
            let problem = format!("it printed no list of backups: {error}");
            let kind = BackupErrorKind::Damaged;
            self.program.error(kind, action, problem).because(error)
        })
    }

    async fn restore(
        &self,
        backup: &BackupName,
        into: &Path,
        progress: Progress,
    ) -> Result<(), BackupError> {
        let action = format!("restore {backup}");
        let into = into.to_string_lossy();
        let arguments = ["backup-fetch", &backup.0, &into];
        let ran = self.program.run(&action, &arguments, &progress).await;
        ran.map(drop)
    }

    async fn push(
        &self,
        source: &BackupSource,
        progress: Progress,
    ) -> Result<BackupName, BackupError> {
        let action = format!("back up {}", source.data_dir.display());
        let data_dir = source.data_dir.to_string_lossy();
        // Everybody may read what a command is given; its environment only the same user.
        let mut program = self.program.clone();
        let mut say = |name, conninfo: &Secret| program.variables.push((name, conninfo.clone()));
        say("SPILO_CONNINFO", &source.conninfo);
        if let Some(primary) = &source.primary {
            say("SPILO_PRIMARY_CONNINFO", primary);
        }
        let arguments = ["backup-push", &*data_dir];
        let printed = program.run(&action, &arguments, &progress).await?;
        match printed.lines().last().map(str::trim) {
            Some(name) if !name.is_empty() => Ok(BackupName(name.to_owned())),
            _ => {
                let kind = BackupErrorKind::Damaged;
                Err(program.error(kind, &action, "it printed no name"))
            }
        }
    }

    async fn retain(&self, count: usize, progress: Progress) -> Result<(), BackupError> {
        let count = count.max(1).to_string();
        let action = format!("keep {count} backups");
        let arguments = ["delete", "--retain", &count];
        let printed = self.program.run(&action, &arguments, &progress).await?;
        for line in printed.lines() {
            progress.say(line);
        }
        Ok(())
    }

    fn archive_command(&self) -> Option<String> {
        Some(self.line("wal-push", &["%p"]))
    }

    fn keeps_what_is_there(&self) -> bool {
        true
    }

    fn restore_command(&self) -> Option<String> {
        Some(self.line("wal-fetch", &["%f", "%p"]))
    }
}

/// How long one that has ended is left alone.
const PAUSE: Duration = Duration::from_secs(1);
