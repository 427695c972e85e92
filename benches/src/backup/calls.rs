//! How each tool is called.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::certificate::HOST;
use super::contender::{Contender, FloorCodec, Row};
use super::server::{Server, finished};
use super::site::{Site, wal_e_program};
use super::store::BUCKET;

/// The commands of one tool, for one place in the store. `%f` and `%p` are the server's.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) wal_push: String,
    pub(crate) wal_fetch: String,
    pub(crate) backup_push: String,
    pub(crate) backup_fetch: String,
    /// What stays resident while log is pushed or fetched, if anything does.
    pub(crate) resident: Option<Resident>,
}

/// A process that a tool keeps.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// The directory that it has something in once it is there.
    pub(crate) work_dir: PathBuf,
}

/// Whose log or data a call is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The server, for base backups and for its `archive_command`.
    pub(crate) server: &'a Server,
    /// The data directory whose log is pushed.
    pub(crate) pushed: &'a Path,
    /// The directory that is fetched into.
    pub(crate) fetched: &'a Path,
}

impl Calls {
    /// Returns the calls of a tool, and prepares what it wants to be prepared.
    ///
    /// # Errors
    ///
    /// Fails where that fails.
    pub(crate) fn of(
        contender: Contender,
        site: &Site,
        subject: Subject<'_>,
        prefix: &str,
    ) -> Result<Self> {
        let work = site.dir().join("work");
        super::site::remove(&work)?;
        site.owner.make(&work)?;
        match contender {
            Contender::Floor(codec) => Ok(floor(codec, site, subject, prefix)),
            Contender::Spilo(codec) => Ok(spilo(codec, site, subject, prefix, &work)),
            Contender::WalE => wal_e(site, subject, prefix, &work),
            Contender::PgBackRest => pgbackrest(site, subject, prefix, &work),
        }
    }

    /// Returns the archiving of a file as a script that a server can run, `$1` its path.
    pub(crate) fn archive_script(&self) -> String {
        let variables = self.variables.iter();
        let exports = variables.map(|(name, value)| format!("export {name}='{value}'\n"));
        let exports: String = exports.collect();
        format!("{exports}exec {}", self.wal_push.replace("%p", "\"$1\""))
    }

    /// Puts the variables into the environment of a command.
    pub(crate) fn export<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)))
    }
}

fn floor(codec: FloorCodec, site: &Site, subject: Subject<'_>, prefix: &str) -> Calls {
    let call = |row: Row, dir: &Path| {
        let name = clap::ValueEnum::to_possible_value(&row);
        format!(
            "{} floor --row {} --port {} --authority {} --prefix {prefix} --codec {codec} \
             --parallel {} --dir {} --plan {}",
            site.dir().join("bench").display(),
            name.as_ref()
                .map_or("", clap::builder::PossibleValue::get_name),
            site.store.tls_port(),
            site.store.authority().display(),
            site.options.parallel,
            dir.display(),
            site.dir().join(prefix).display(),
        )
    };
    Calls {
        variables: Vec::new(),
        wal_push: call(Row::WalPush, &subject.pushed.join("pg_wal")),
        wal_fetch: call(Row::WalFetch, &subject.fetched.join("pg_wal")),
        backup_push: call(Row::BackupPush, &subject.server.data()),
        backup_fetch: call(Row::BackupFetch, subject.fetched),
        resident: None,
    }
}

fn spilo(codec: FloorCodec, site: &Site, subject: Subject<'_>, prefix: &str, work: &Path) -> Calls {
    let program = site.dir().join("spilo-backup");
    let options = format!(
        "--path-style --ca-file {} --codec {codec} --level 1 --parallel {}",
        site.store.authority().display(),
        site.options.parallel
    );
    let call = |command: &str| format!("{} {options} {command}", program.display());
    let resident = site.resident.then(|| Resident {
        program: program.clone(),
        arguments: options
            .split(' ')
            .map(str::to_owned)
            .chain(["archiver", "--data-dir"].map(str::to_owned))
            .chain([subject.pushed.display().to_string()])
            .chain(["--work-dir".to_owned(), work.display().to_string()])
            .collect(),
        work_dir: work.to_owned(),
    });
    let asks = match &resident {
        Some(resident) => format!("--resident {} ", resident.work_dir.display()),
        None => String::new(),
    };
    let socket = subject.server.socket();
    let conninfo = format!("host={} user=postgres dbname=postgres", socket.display());
    Calls {
        variables: aws(site, &format!("s3://{BUCKET}/{prefix}")),
        wal_push: call(&format!("wal-push {asks}%p")),
        wal_fetch: call(&format!("wal-fetch {asks}%f %p")),
        backup_push: call(&format!(
            "backup-push {} --conninfo \"{conninfo}\"",
            subject.server.data().display()
        )),
        backup_fetch: call(&format!(
            "backup-fetch LATEST {}",
            subject.fetched.display()
        )),
        resident,
    }
}

fn aws(site: &Site, archive: &str) -> Vec<(&'static str, String)> {
    let endpoint = format!("https://{HOST}:{}", site.store.tls_port());
    vec![
        ("SPILO_ARCHIVE", archive.to_owned()),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "spilo".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "not-a-secret".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// As it is installed: its own numbers of transfers, which are 32 for pushing log, 8 ahead for
/// fetching it, and 4 for base backups.
fn wal_e(site: &Site, subject: Subject<'_>, prefix: &str, work: &Path) -> Result<Calls> {
    let program = wal_e_program()?;
    let mut variables = aws(site, "");
    let bin = subject.server.bin().display();
    variables.extend([
        ("WALE_S3_PREFIX", format!("s3://{BUCKET}/{prefix}")),
        (
            "WALE_S3_ENDPOINT",
            format!("https+path://{HOST}:{}", site.store.tls_port()),
        ),
        ("WALE_LOG_DESTINATION", "stderr".to_owned()),
        // Its library verifies with the authorities that OpenSSL trusts.
        (
            "SSL_CERT_FILE",
            site.store.authority().display().to_string(),
        ),
        ("PATH", format!("{bin}:/usr/local/bin:/usr/bin:/bin")),
        ("HOME", work.display().to_string()),
        ("PGHOST", subject.server.socket().display().to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("PGDATABASE", "postgres".to_owned()),
    ]);
    let call = |command: &str| format!("{} --terse {command}", program.display());
    Ok(Calls {
        variables,
        wal_push: call("wal-push %p"),
        wal_fetch: call("wal-fetch %f %p"),
        backup_push: call(&format!("backup-push {}", subject.server.data().display())),
        backup_fetch: call(&format!(
            "backup-fetch --blind-restore {} LATEST",
            subject.fetched.display()
        )),
        resident: None,
    })
}

/// Asynchronous both ways, with as many processes as spilo has transfers. With the usual queue, of
/// 128 MiB, it fetches log at a quarter of this rate, because it starts anew for every few files.
fn pgbackrest(site: &Site, subject: Subject<'_>, prefix: &str, work: &Path) -> Result<Calls> {
    let file = work.join("pgbackrest.conf");
    let (port, work) = (site.store.tls_port(), work.display());
    fs::write(
        &file,
        format!(
            "[global]\n\
             repo1-type=s3\nrepo1-path=/{prefix}\nrepo1-s3-bucket={BUCKET}\n\
             repo1-s3-endpoint={HOST}\nrepo1-storage-port={port}\nrepo1-s3-uri-style=path\n\
             repo1-storage-ca-file={}\nrepo1-s3-region=us-east-1\nrepo1-s3-key=spilo\n\
             repo1-s3-key-secret=not-a-secret\nrepo1-retention-full=100\n\
             compress-type=zst\ncompress-level=1\narchive-async=y\narchive-get-queue-max=1GiB\nprocess-max={}\n\
             start-fast=y\nspool-path={work}/spool\nlock-path={work}/lock\n\
             log-path={work}/log\nlog-level-file=off\nlog-level-console=warn\n\
             [main]\npg1-socket-path={}\npg1-user=postgres\npg1-database=postgres\n",
            site.store.authority().display(),
            site.options.parallel,
            subject.server.socket().display(),
        ),
    )
    .with_context(|| format!("cannot write {}", file.display()))?;
    for directory in ["spool", "lock", "log"] {
        site.owner.make(&site.dir().join("work").join(directory))?;
    }
    let call = |data_dir: &Path, command: &str| {
        format!(
            "pgbackrest --config={} --stanza=main --pg1-path={} {command}",
            file.display(),
            data_dir.display()
        )
    };
    let data = subject.server.data();
    let create = call(&data, "stanza-create");
    let mut shell = site.owner.command(Path::new("/bin/sh"));
    finished(shell.args(["-c", &create])).context("pgBackRest cannot make its stanza")?;
    Ok(Calls {
        variables: Vec::new(),
        wal_push: call(subject.pushed, "archive-push %p"),
        wal_fetch: call(subject.fetched, "archive-get %f %p"),
        backup_push: call(&data, "--type=full backup"),
        backup_fetch: call(subject.fetched, "restore"),
        resident: None,
    })
}
