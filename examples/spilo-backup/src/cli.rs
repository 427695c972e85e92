//! The command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use spilo_backup::Codec;
use spilo_core::backup::BackupSource;
use spilo_core::local::Secret;

/// Archives the log of a PostgreSQL server and makes base backups of it, in S3 or in a directory,
/// and brings them back.
#[derive(Debug, Parser)]
#[command(name = "spilo-backup", after_help = MANUAL)]
pub(crate) struct Arguments {
    /// The archive: `s3://BUCKET/PREFIX`, or a directory. Without it, `SPILO_ARCHIVE` says.
    #[arg(long, global = true, value_name = "URL")]
    archive: Option<String>,
    /// How what is written is compressed: zstd, lz4, lzo (which WAL-E reads) or none. What is read
    /// may be compressed otherwise.
    #[arg(long, global = true, default_value_t = Codec::Zstd)]
    pub(crate) codec: Codec,
    /// How thoroughly, for zstd: 1 to 19.
    #[arg(long, global = true, default_value_t = 1)]
    pub(crate) level: i32,
    /// How many parts of a base backup are on their way at the same time.
    #[arg(long, global = true, default_value_t = 4)]
    pub(crate) parallel: usize,
    /// Prints JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The region of the bucket, instead of the environment's.
    #[arg(long, global = true)]
    pub(crate) region: Option<String>,
    /// Puts the bucket into the path of requests instead of the host name.
    #[arg(long, global = true)]
    pub(crate) path_style: bool,
    /// Trusts the authorities in this file (PEM) instead of the system's.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The storage class of what is written, if it is not the bucket's.
    #[arg(long, global = true, value_name = "CLASS")]
    pub(crate) storage_class: Option<String>,
    /// How the server encrypts what it stores, if it is not the bucket's way: `AES256`, `kms`, or
    /// the name of a key of the key management service.
    #[arg(long, global = true, value_name = "HOW")]
    pub(crate) encrypt: Option<String>,
    /// Encrypts everything before it leaves this machine, with the first key in this file, and
    /// decrypts with any of them: lines of what `openssl rand -hex 32` prints. SPILO_KEY_FILE if not
    /// given. Keep it elsewhere as well: without it nothing comes back.
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Archives a file of the log: `archive_command = 'spilo-backup wal-push %p'`.
    WalPush {
        /// The file, whose name says what it is.
        path: PathBuf,
        /// Asks the archiver that works in this directory, and does it oneself only where none
        /// does.
        #[arg(long, value_name = "DIR")]
        resident: Option<PathBuf>,
    },
    /// Fetches a file of the log: `restore_command = 'spilo-backup wal-fetch %f %p'`.
    WalFetch {
        /// The name of the file.
        name: String,
        /// Where it is wanted.
        path: PathBuf,
        /// Asks the archiver that works in this directory, and does it oneself only where none
        /// does.
        #[arg(long, value_name = "DIR")]
        resident: Option<PathBuf>,
    },
    /// Stays beside one server and does what `wal-push` and `wal-fetch` ask it: pushes several files
    /// at once, and fetches before the server asks. Ends with SIGTERM.
    Archiver(Resident),
    /// Makes a base backup of a running server, primary or standby.
    BackupPush(Push),
    /// Unpacks a base backup into an empty directory.
    BackupFetch {
        /// The name of the backup, or `LATEST`.
        name: String,
        /// The directory.
        data_dir: PathBuf,
    },
    /// Lists the base backups, the newest last.
    BackupList,
    /// Looks for holes in the archived log, and for backups that lack some. Exits with 3 if there
    /// are any.
    WalVerify,
    /// Deletes base backups that are not to be kept, and the log that only they needed.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The data directory of the server.
    data_dir: PathBuf,
    /// How the server is reached, as for psql; SPILO_CONNINFO if not given, and without that by
    /// its socket in /var/run/postgresql, as postgres.
    #[arg(long)]
    conninfo: Option<String>,
    /// How its primary is reached, if it is a standby: it is asked to begin a new file of the log,
    /// which the backup otherwise waits for. SPILO_PRIMARY_CONNINFO if not given.
    #[arg(long, value_name = "CONNINFO")]
    primary: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Resident {
    /// The data directory of the server.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// A directory of its own, outside the data directory, best on the file system of `pg_wal`. It
    /// is made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub(crate) work_dir: PathBuf,
    /// How many files are pushed before PostgreSQL asks for them.
    #[arg(long, default_value_t = 8, value_name = "NUMBER")]
    pub(crate) ahead: usize,
    /// How many files are fetched before PostgreSQL asks for them.
    #[arg(long, default_value_t = 8, value_name = "NUMBER")]
    pub(crate) prefetch: usize,
}

#[derive(Debug, Args)]
#[group(id = "kept", required = true, multiple = false, args = ["retain", "before"])]
pub(crate) struct Delete {
    /// Keeps so many backups, the newest.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) retain: Option<usize>,
    /// Keeps this backup and those after it.
    #[arg(long, value_name = "NAME")]
    pub(crate) before: Option<String>,
    /// Only says what would be deleted.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Where an archive is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(PathBuf),
    S3 { bucket: String, prefix: String },
}

impl Push {
    /// Returns the server.
    pub(crate) fn source(&self) -> BackupSource {
        let or_variable = |given: &Option<String>, name| {
            let given = given.clone();
            given.or_else(|| std::env::var(name).ok())
        };
        let conninfo = or_variable(&self.conninfo, "SPILO_CONNINFO");
        let conninfo = conninfo.unwrap_or_else(|| USUAL.to_owned());
        let mut source = BackupSource::new(&self.data_dir, conninfo);
        source.primary = or_variable(&self.primary, "SPILO_PRIMARY_CONNINFO").map(Secret::new);
        source
    }
}

impl Arguments {
    /// Returns the file of the keys that objects are sealed with.
    pub(crate) fn key_file(&self) -> Option<PathBuf> {
        let given = self.key_file.clone();
        given.or_else(|| std::env::var_os("SPILO_KEY_FILE").map(PathBuf::from))
    }

    /// Returns where the archive is.
    pub(crate) fn place(&self) -> Result<Place> {
        let url = match &self.archive {
            Some(url) => url.clone(),
            None => std::env::var("SPILO_ARCHIVE")
                .context("say where the archive is: --archive URL, or SPILO_ARCHIVE")?,
        };
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                bail!("{url:?} names no bucket: it is s3://BUCKET/PREFIX");
            }
            return Ok(Place::S3 {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
            });
        }
        let path = url.strip_prefix("file://").unwrap_or(&url);
        if !path.starts_with('/') {
            bail!("{url:?} is neither s3://BUCKET/PREFIX nor the absolute path of a directory");
        }
        Ok(Place::Directory(PathBuf::from(path)))
    }
}

const USUAL: &str = "host=/var/run/postgresql user=postgres dbname=postgres";

const MANUAL: &str = "\
Credentials for S3 come from where the AWS programs take them (AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, a profile, the role of the machine), and AWS_ENDPOINT_URL names a server that
is not Amazon's. The layout is that of WAL-E.

    export SPILO_ARCHIVE=s3://backups/main
    spilo-backup backup-push /var/lib/postgresql/15/main
    spilo-backup backup-list
    spilo-backup backup-fetch LATEST /var/lib/postgresql/15/copy
    spilo-backup delete --retain 7

In postgresql.conf:

    archive_mode = on
    archive_command = 'spilo-backup wal-push %p'
    restore_command = 'spilo-backup wal-fetch %f %p'

PostgreSQL starts a command for each file, one after the other. Where that is too slow, an archiver
stays beside the server, as the same user; where it does not run, the commands do the work:

    spilo-backup archiver --data-dir /var/lib/postgresql/15/main --work-dir /var/lib/postgresql/wal
    archive_command = 'spilo-backup wal-push %p --resident /var/lib/postgresql/wal'
    restore_command = 'spilo-backup wal-fetch %f %p --resident /var/lib/postgresql/wal'

A server whose timeline was left for a later one archives nothing of it past that point: wal-push
fails and says so until the server is rewound.

Exit status: 0 done; 1 failed, and of wal-fetch that there is no such file; 2 wrong arguments; 3 of
wal-verify that something is missing; 255 of wal-fetch during a recovery that must not end early.";

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<Place> {
        Arguments::parse_from(["spilo-backup", "--archive", url, "backup-list"]).place()
    }

    #[test]
    fn an_archive_is_a_bucket_or_a_directory() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(place("s3://b/some/where/").unwrap(), s3("b", "some/where"));
        assert_eq!(place("s3://b").unwrap(), s3("b", ""));
        let directory = Place::Directory(PathBuf::from("/srv/backups"));
        assert_eq!(place("file:///srv/backups").unwrap(), directory);
        assert_eq!(place("/srv/backups").unwrap(), directory);
        for url in ["s3://", "s3:///x", "srv/backups", "gs://b/x"] {
            assert!(place(url).is_err(), "{url}");
        }
    }
}
