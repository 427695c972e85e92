//! Where everything of a run is.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User};

use super::contender::Contender;
use super::plan::Plan;
use super::server::{Server, finished};
use super::store::Store;
use crate::exec::{SERVER_USER, find_program};
use crate::sandbox::Sandbox;

/// How much there is, and who has to be able to work with it.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// About how large the server's data are, in MB.
    pub data_mb: usize,
    /// How many files of the log there are.
    pub segments: usize,
    /// How many transfers spilo, pgBackRest and the floor have on their way.
    pub parallel: usize,
    /// How long the store waits before it answers.
    pub latency: Duration,
}

/// A server, some of its log, and a store, in a directory that goes with this.
#[derive(Debug)]
pub struct Site {
    // Before the sandbox, whose reaper ends what is left of them.
    pub(crate) server: Server,
    pub(crate) store: Store,
    sandbox: Sandbox,
    pub(crate) owner: Owner,
    pub(crate) options: SiteOptions,
    /// The files of the log, in order.
    pub(crate) segments: Vec<String>,
    /// The bytes that a base backup holds.
    pub(crate) backup_bytes: u64,
    /// Whether spilo has a resident archiver.
    pub(crate) resident: bool,
}

/// The user that tools and servers run as: the servers' user where the bench is root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(Option<(u32, u32)>);

impl Site {
    /// Makes the server with its data and its log, and starts the store.
    ///
    /// # Errors
    ///
    /// Names the tool that is missing and what installs it, or what failed.
    pub fn prepare(options: SiteOptions, contenders: &[Contender]) -> Result<Self> {
        let bin = postgres_bin(13)?;
        check_tools(contenders)?;
        let owner = Owner::find()?;
        let sandbox = Sandbox::new()?;
        let dir = sandbox.dir();
        owner.give(dir)?;
        // Servers and tools run as another user, who may not see where these were built.
        let this = std::env::current_exe().context("cannot find this program")?;
        fs::copy(this, dir.join("bench")).context("cannot copy this program")?;
        fs::copy(spilo_program()?, dir.join("spilo-backup")).context("cannot copy spilo-backup")?;
        let help = finished(Command::new(dir.join("spilo-backup")).args(["wal-push", "--help"]))?;
        let store = Store::start(&dir.join("bench"), &dir.join("tls"), options.latency)?;
        eprintln!("making a server with {} MB of data", options.data_mb);
        let server = Server::create(&dir.join("source"), &bin, owner)?;
        let wal = dir.join("wal");
        fill(&server, &options, &wal, owner)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(wal.join("pg_wal"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            segments.extend((name.len() == 24).then_some(name));
        }
        segments.sort();
        // Any beyond were archived while the last pgbench ran out.
        for more in segments.split_off(options.segments.min(segments.len())) {
            fs::remove_file(wal.join("pg_wal").join(more))?;
        }
        let backup_bytes = Plan::of(&server.data())?.bytes();
        Ok(Self {
            server,
            store,
            owner,
            options,
            segments,
            backup_bytes,
            resident: help.contains("--resident"),
            sandbox,
        })
    }

    /// Does without spilo's resident archiver, should there be one.
    pub fn without_resident(&mut self) {
        self.resident = false;
    }

    /// Returns whether spilo runs with its resident archiver.
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// Returns how many bytes a base backup holds before it is compressed.
    pub fn backup_bytes(&self) -> u64 {
        self.backup_bytes
    }

    /// Returns how many files of the log there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Keeps everything for somebody to look at, and returns where it is.
    pub fn keep(&self) -> PathBuf {
        self.sandbox.keep();
        self.dir().to_owned()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.sandbox.dir()
    }

    /// Returns the directory that looks like a data directory of which log waits to be archived.
    pub(crate) fn wal(&self) -> PathBuf {
        self.dir().join("wal")
    }

    /// Returns the directory that is restored into.
    pub(crate) fn restored(&self) -> PathBuf {
        self.dir().join("restored")
    }

    /// Has every file of the log wait again.
    pub(crate) fn all_ready(&self) -> Result<()> {
        let log = self.wal().join("pg_wal");
        // What WAL-E leaves beside them.
        remove(&log.join(".wal-e"))?;
        let status = log.join("archive_status");
        remove(&status)?;
        self.owner.make(&status)?;
        for name in &self.segments {
            let file = status.join(format!("{name}.ready"));
            fs::write(&file, "")?;
            self.owner.give(&file)?;
        }
        Ok(())
    }

    /// Makes an empty directory to restore a base backup into.
    pub(crate) fn empty_restored(&self) -> Result<PathBuf> {
        let into = self.restored();
        remove(&into)?;
        self.owner.make(&into)?;
        Ok(into)
    }

    /// Makes a directory that looks like the data directory of a server in recovery.
    pub(crate) fn recovering(&self) -> Result<PathBuf> {
        let into = self.empty_restored()?;
        self.owner.make(&into.join("pg_wal"))?;
        like_data_directory(&self.server.data(), &into, self.owner)?;
        Ok(into)
    }
}

impl Owner {
    fn find() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        let user = User::from_name(SERVER_USER)?;
        let user = user.with_context(|| format!("there is no user `{SERVER_USER}`"))?;
        Ok(Self(Some((user.uid.as_raw(), user.gid.as_raw()))))
    }

    /// Prepares a program to run as this user.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").current_dir("/");
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes a directory that belongs to this user.
    pub(crate) fn make(self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        self.give(path)
    }

    /// Gives a path to this user.
    pub(crate) fn give(self, path: &Path) -> Result<()> {
        let Some((user, group)) = self.0 else {
            return Ok(());
        };
        chown(path, Some(user), Some(group))
            .with_context(|| format!("cannot chown {}", path.display()))
    }
}

/// Returns where the programs of a version of PostgreSQL are.
pub(crate) fn postgres_bin(major: u32) -> Result<PathBuf> {
    let variable = format!("SPILO_PG{major}_BIN");
    let bin = std::env::var_os(&variable).map_or_else(
        || PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        PathBuf::from,
    );
    if !bin.join("pgbench").is_file() {
        bail!(
            "PostgreSQL {major} with pgbench is not in {}: `cargo xtask setup --full` installs it, \
             and {variable} names another place",
            bin.display()
        );
    }
    Ok(bin)
}

/// Returns where WAL-E is.
pub(crate) fn wal_e_program() -> Result<PathBuf> {
    let bin = std::env::var_os("SPILO_WAL_E_BIN").map(PathBuf::from);
    bin.map(|bin| bin.join("wal-e"))
        .filter(|program| program.is_file())
        .context("WAL-E is not there: `cargo xtask setup --full` installs it, and SPILO_WAL_E_BIN names its directory")
}

fn spilo_program() -> Result<PathBuf> {
    let named = std::env::var_os("SPILO_BACKUP").map(PathBuf::from);
    let beside = std::env::current_exe()?.with_file_name("spilo-backup");
    let program = named.unwrap_or(beside);
    if !program.is_file() {
        bail!(
            "spilo-backup is not in {}: `cargo xtask bench backup` builds it, and SPILO_BACKUP \
             names another place",
            program.display()
        );
    }
    Ok(program)
}

fn check_tools(contenders: &[Contender]) -> Result<()> {
    for contender in contenders {
        let needed: &[&str] = match contender {
            Contender::WalE => {
                wal_e_program()?;
                &["lzop", "pv"]
            }
            Contender::Floor(super::FloorCodec::Lzo) => &["lzop"],
            Contender::PgBackRest => &["pgbackrest"],
            Contender::Floor(super::FloorCodec::Zstd) | Contender::Spilo(_) => &[],
        };
        for program in needed {
            if find_program([program]).is_none() {
                bail!("{program} is not there: `cargo xtask setup --full` installs it");
            }
        }
    }
    Ok(())
}

/// Fills the server, and keeps the log that it then writes.
fn fill(server: &Server, options: &SiteOptions, wal: &Path, owner: Owner) -> Result<()> {
    // A unit of scale is fifteen megabytes of table and index.
    let scale = options.data_mb.div_ceil(15).max(1).to_string();
    server.pgbench(&["-i", "-q", "-s", &scale])?;
    server.sql("CHECKPOINT")?;
    owner.make(wal)?;
    let log = wal.join("pg_wal");
    owner.make(&log)?;
    // Under another name first: a file that is being copied must not be taken for one that is there.
    server.archive_with(&format!(
        "set -e\nto={}/$(basename \"$1\")\ncp \"$1\" \"$to.new\"\nmv \"$to.new\" \"$to\"",
        log.display()
    ))?;
    eprintln!("writing {} files of the log", options.segments);
    for _ in 0..TRIES {
        let there = fs::read_dir(&log)?.count();
        if there >= options.segments {
            break;
        }
        server.pgbench(&["-c", "4", "-j", "2", "-T", "4", "-n"])?;
    }
    server.archive_with("exit 0")?;
    server.sql("CHECKPOINT")?;
    // What is archived late must not come into the middle of a trial.
    std::thread::sleep(Duration::from_secs(2));
    let there = fs::read_dir(&log)?.count();
    if there < options.segments {
        bail!(
            "pgbench wrote only {there} files of the log; ask for fewer with --segments, or for \
             more data to write to with --data-mb"
        );
    }
    like_data_directory(&server.data(), wal, owner)
}

/// Copies what tools look at to know whose log it is.
fn like_data_directory(data: &Path, into: &Path, owner: Owner) -> Result<()> {
    owner.make(&into.join("global"))?;
    for file in ["PG_VERSION", "global/pg_control"] {
        let copy = into.join(file);
        fs::copy(data.join(file), &copy).with_context(|| format!("cannot copy {file}"))?;
        owner.give(&copy)?;
    }
    Ok(())
}

pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Four seconds each.
const TRIES: usize = 60;
