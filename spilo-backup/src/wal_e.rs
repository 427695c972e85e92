//! An archive through the stock command `wal-e`.

use std::fs;
use std::io;
use std::path::Path;

use async_trait::async_trait;
use spilo_core::backup::{
    BackupError, BackupErrorKind, BackupInfo, BackupName, BackupSource, BackupStore,
};
use spilo_core::local::Secret;
use spilo_core::pg::Progress;
use spilo_core::segment::{SegmentName, SegmentSize};
use spilo_core::wal::{Lsn, WalPosition};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::blocking;
use crate::command::{CommandOptions, Program};

/// The archive of a stock WAL-E 1.1, for people who already run it.
///
/// It does what `wal-e` does: `backup-list --detail`, `backup-push`, `backup-fetch`, `wal-push` and
/// `wal-fetch`. It deletes nothing: to WAL-E the newest backup is the one with the greatest segment,
/// whatever its timeline, which after a failover may be one of what was given up.
/// Files of the log are of 16 MiB, the only size that it knows, and it says of no backup which
/// cluster it is of.
#[derive(Clone, Debug)]
pub struct WalE {
    program: Program,
}

impl WalE {
    /// Takes how `wal-e` is run; its environment says where the archive is.
    pub fn new(options: CommandOptions) -> Self {
        Self {
            program: Program::new("wal-e", options),
        }
    }
}

#[async_trait]
impl BackupStore for WalE {
    async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError> {
        let action = "list the backups";
        let silent = Progress::default();
        let arguments = ["backup-list", "--detail"];
        let printed = self.program.run(action, &arguments, &silent).await?;
        read_list(&printed).map_err(|problem| {
            let kind = BackupErrorKind::Damaged;
            self.program.error(kind, action, problem)
        })
    }

    async fn restore(
        &self,
        backup: &BackupName,
        into: &Path,
        progress: Progress,
    ) -> Result<(), BackupError> {
        let action = format!("restore {backup}");
        let directory = into.to_owned();
        let empty = blocking(move || Ok(fs::read_dir(directory)?.next().is_none()));
        // WAL-E unpacks over whatever is there.
        if !empty.await.unwrap_or(false) {
            let problem = format!("{} is no empty directory", into.display());
            return Err(self
                .program
                .error(BackupErrorKind::Refused, &action, problem));
        }
        let directory = into.to_string_lossy();
        let arguments = ["backup-fetch", &*directory, &backup.0];
        self.program.run(&action, &arguments, &progress).await?;
        let log = into.join("pg_wal");
        let mended = blocking(move || mend_log(&log)).await;
        mended.map_err(|error| {
            let problem = format!("cannot make pg_wal: {error}");
            let kind = BackupErrorKind::Unavailable;
            self.program.error(kind, &action, problem).because(error)
        })
    }

    /// Makes a base backup as WAL-E does, which neither waits for the log nor says the backup's name:
    /// it is found in the list. It can be made of a primary only, and where `wal-e` is killed the server
    /// stays in backup mode until somebody calls `pg_stop_backup`.
    ///
    /// `Refused` for PostgreSQL 15 and later: WAL-E calls functions that these no longer have.
    async fn push(
        &self,
        source: &BackupSource,
        progress: Progress,
    ) -> Result<BackupName, BackupError> {
        let action = format!("back up {}", source.data_dir.display());
        let refuse = |problem: String| {
            let kind = BackupErrorKind::Refused;
            self.program.error(kind, &action, problem)
        };
        if let Some(version) = source.version.filter(|version| *version >= 150_000) {
            let problem = format!(
                "WAL-E 1.1 calls pg_start_backup and pg_stop_backup, which PostgreSQL {} does not \
                 have: let `spilo-backup backup-push` make the backup, with `--codec lzo` if WAL-E \
                 is to restore it",
                version / 10_000
            );
            return Err(refuse(problem));
        }
        let mut program = self.program.clone();
        program.variables = libpq(source.conninfo.expose()).map_err(refuse)?;
        let before = self.backups().await?;
        let data_dir = source.data_dir.to_string_lossy();
        let arguments = ["backup-push", &*data_dir];
        program.run(&action, &arguments, &progress).await?;
        let made = self.backups().await?.into_iter();
        let mut made = made.filter(|backup| before.iter().all(|old| old.name != backup.name));
        made.next().map(|backup| backup.name).ok_or_else(|| {
            let problem = "it lists no backup that it did not list before";
            self.program
                .error(BackupErrorKind::Damaged, &action, problem)
        })
    }

    fn archive_command(&self) -> Option<String> {
        Some(self.program.line(&["wal-push", "%p"]))
    }

    fn restore_command(&self) -> Option<String> {
        Some(self.program.line(&["wal-fetch", "%f", "%p"]))
    }
}

/// Returns the environment by which psql reaches a server.
fn libpq(conninfo: &str) -> Result<Vec<(&'static str, Secret)>, String> {
    let config: Config = conninfo.parse().map_err(|error| format!("{error}"))?;
    let host = config.get_hosts().first().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(directory) => directory.to_string_lossy().into_owned(),
    });
    let password = config.get_password();
    let said = [
        ("PGHOST", host),
        ("PGPORT", config.get_ports().first().map(u16::to_string)),
        ("PGUSER", config.get_user().map(str::to_owned)),
        ("PGDATABASE", config.get_dbname().map(str::to_owned)),
        (
            "PGPASSWORD",
            password.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        ),
    ];
    let known = said.into_iter();
    Ok(known
        .filter_map(|(name, value)| Some((name, Secret::new(value?))))
        .collect())
}

/// Makes the directory of the log where the backup has a link to one of another machine.
fn mend_log(log: &Path) -> io::Result<()> {
    if log.is_dir() {
        return Ok(());
    }
    if log.is_symlink() {
        fs::remove_file(log)?;
    }
    fs::create_dir(log)
}

/// Reads what `wal-e backup-list --detail` prints. A line that says nothing usable hides no other.
fn read_list(printed: &str) -> Result<Vec<BackupInfo>, String> {
    let mut lines = printed.lines().filter(|line| !line.trim().is_empty());
    let Some(header) = lines.next() else {
        return Ok(Vec::new());
    };
    let columns: Vec<&str> = header.split('\t').map(str::trim).collect();
    let column = |name: &str| {
        let found = columns.iter().position(|column| *column == name);
        found.ok_or_else(|| format!("it printed no column {name}, but {header:?}"))
    };
    let columns = Columns {
        name: column("name")?,
        made: column("last_modified")?,
        size: column("expanded_size_bytes")?,
        start: column("wal_segment_backup_start")?,
        start_offset: column("wal_segment_offset_backup_start")?,
        stop: column("wal_segment_backup_stop")?,
        stop_offset: column("wal_segment_offset_backup_stop")?,
    };
    let mut backups = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
        match columns.read(&fields) {
            Some(backup) => backups.push(backup),
            None => tracing::warn!("wal-e lists {line:?}, which is no backup; it is left out"),
        }
    }
    Ok(backups)
}

/// Where in a line a thing is said.
struct Columns {
    name: usize,
    made: usize,
    size: usize,
    start: usize,
    start_offset: usize,
    stop: usize,
    stop_offset: usize,
}

impl Columns {
    fn read(&self, fields: &[&str]) -> Option<BackupInfo> {
        let position = |segment: usize, offset: usize| {
            let name: SegmentName = fields.get(segment)?.parse().ok()?;
            let offset: u64 = fields.get(offset)?.parse().ok()?;
            let begin = name.begin(SegmentSize::DEFAULT)?;
            let within = offset < SegmentSize::DEFAULT.bytes();
            within.then(|| WalPosition {
                timeline: name.timeline(),
                lsn: Lsn(begin.0 + offset),
            })
        };
        let name = fields.get(self.name).filter(|name| !name.is_empty())?;
        let start = position(self.start, self.start_offset)?;
        let stop = position(self.stop, self.stop_offset)?;
        let mut backup = BackupInfo::new(BackupName((*name).to_owned()), start, stop);
        let made = chrono::DateTime::parse_from_rfc3339(fields.get(self.made)?).ok();
        backup.made = made.and_then(|made| u64::try_from(made.timestamp()).ok());
        backup.size = fields.get(self.size)?.parse().ok();
        Some(backup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "name\tlast_modified\texpanded_size_bytes\twal_segment_backup_start\t\
        wal_segment_offset_backup_start\twal_segment_backup_stop\twal_segment_offset_backup_stop";

    #[test]
    fn what_wal_e_prints_is_a_list_of_backups() {
        let text = format!(
            "{HEADER}\n\
             base_000000020000000100000003_00000040\t2026-11-30T01:02:03.000Z\t36012345\t\
             000000020000000100000003\t00000040\t000000020000000100000004\t00000256\n\
             base_garbage\tx\ty\tz\t1\t2\t3\n"
        );
        let backups = read_list(&text).unwrap();
        let at = |lsn| WalPosition {
            timeline: spilo_core::wal::Timeline(2),
            lsn: Lsn(lsn),
        };
        let name = BackupName("base_000000020000000100000003_00000040".to_owned());
        let mut wanted = BackupInfo::new(name, at(0x1_0300_0028), at(0x1_0400_0100));
        wanted.size = Some(36_012_345);
        wanted.made = Some(1_796_000_523);
        assert_eq!(backups, [wanted]);
        assert_eq!(read_list("").unwrap(), []);
        assert_eq!(read_list(HEADER).unwrap(), []);
    }

    #[test]
    fn another_list_is_an_error_and_not_an_empty_one() {
        let error = read_list("backup_name\tmodified\nx\ty\n").unwrap_err();
        assert_eq!(
            error,
            "it printed no column name, but \"backup_name\\tmodified\""
        );
    }

    #[tokio::test]
    async fn a_base_backup_of_a_later_server_is_refused_with_the_reason() {
        let store = WalE::new(CommandOptions::new("/no/such/wal-e"));
        let mut source = BackupSource::new("/srv/pg", "host=/run user=postgres");
        source.version = Some(150_006);
        let error = store.push(&source, Progress::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused);
        assert!(error.to_string().contains("pg_start_backup"), "{error}");
        source.version = Some(130_020);
        let push = store.push(&source, Progress::default());
        let error = push.await.unwrap_err().to_string();
        assert!(error.contains("cannot start /no/such/wal-e"), "{error}");
    }
}
