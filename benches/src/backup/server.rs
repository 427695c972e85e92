//! The server that has the data, and the log that it wrote.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::site::Owner;

/// A server on a socket in its own directory. It ends with its sandbox.
#[derive(Debug)]
pub(crate) struct Server {
    home: PathBuf,
    bin: PathBuf,
    owner: Owner,
    postmaster: Child,
}

impl Server {
    /// Makes a server in `home`, which archives its log with the script
    /// [`archive_script`](Self::archive_script): that does nothing yet, and succeeds.
    ///
    /// # Errors
    ///
    /// Fails where a program of PostgreSQL does.
    pub(crate) fn create(home: &Path, bin: &Path, owner: Owner) -> Result<Self> {
        owner.make(home)?;
        owner.make(&home.join("socket"))?;
        let data = home.join("data");
        let mut initdb = owner.command(&bin.join("initdb"));
        initdb
            .args(["-k", "-N", "-E", "UTF8", "--locale=C", "-U", "postgres"])
            .args(["-A", "trust", "-D"])
            .arg(&data);
        finished(&mut initdb)?;
        let path = data.join("postgresql.conf");
        let mut settings = fs::read_to_string(&path)?;
        settings.push_str(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\n{SETTINGS}\
             archive_command = '{} %p # for pgbackrest, which looks for its name here'\n",
            home.join("socket").display(),
            home.join("archive").display(),
        ));
        fs::write(&path, settings)?;
        write_script(&home.join("archive"), "exit 0")?;
        let log = File::create(home.join("log"))?;
        let postmaster = owner
            .command(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start postgres")?;
        let mut server = Self {
            home: home.to_owned(),
            bin: bin.to_owned(),
            owner,
            postmaster,
        };
        server.wait_up()?;
        Ok(server)
    }

    /// Returns the data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Returns the directory of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("socket")
    }

    /// Returns the directory of PostgreSQL's programs.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Has it archive with other commands; `$1` is the path of the file.
    ///
    /// # Errors
    ///
    /// Fails where the script cannot be written.
    pub(crate) fn archive_with(&self, commands: &str) -> Result<()> {
        write_script(&self.home.join("archive"), commands)
    }

    /// Runs SQL as a superuser, and returns what it prints.
    ///
    /// # Errors
    ///
    /// Fails where the server does not accept it.
    pub(crate) fn sql(&self, query: &str) -> Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
        let text = finished(psql.args(["-c", query, "postgres"]))?;
        Ok(text.trim().to_owned())
    }

    /// Runs `pgbench` on the server.
    ///
    /// # Errors
    ///
    /// Fails where it does.
    pub(crate) fn pgbench(&self, arguments: &[&str]) -> Result<String> {
        let mut pgbench = self.client("pgbench");
        finished(pgbench.args(arguments).arg("postgres"))
    }

    /// Returns how many files of the log wait to be archived.
    pub(crate) fn waiting(&self) -> usize {
        let folder = self.data().join("pg_wal/archive_status");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let ready = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            Path::new(&name)
                .extension()
                .is_some_and(|end| end == "ready")
        };
        entries.filter(ready).count()
    }

    /// Stops it and waits until it has ended.
    ///
    /// # Errors
    ///
    /// Fails where it does not end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut stop = self.owner.command(&self.bin.join("pg_ctl"));
        stop.args(["stop", "-m", "immediate", "-D"])
            .arg(self.data());
        finished(&mut stop)?;
        self.postmaster.wait()?;
        Ok(())
    }

    fn client(&self, program: &str) -> Command {
        let mut client = self.owner.command(&self.bin.join(program));
        client.arg("-h").arg(self.socket()).args(["-U", "postgres"]);
        client
    }

    fn wait_up(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.sql("SELECT 1").is_err() {
            let ended = self.postmaster.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
                bail!("the server does not start: {}", log.trim());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Runs a program to its end, and returns what it printed.
///
/// # Errors
///
/// Fails where it does, with what it said.
pub(crate) fn finished(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Puts a script into place at once, because it may be about to be run.
fn write_script(path: &Path, commands: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let draft = path.with_extension("new");
    fs::write(&draft, format!("#!/bin/sh\n{commands}\n"))?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Nothing may change while it is idle, or what a tool brings back could not be compared; and the
/// log is to be full of whole pages, as it is after every checkpoint.
const SETTINGS: &str = "\
fsync = off
autovacuum = off
shared_buffers = 128MB
max_wal_size = 128MB
checkpoint_timeout = 1h
max_connections = 50
wal_level = replica
max_wal_senders = 4
archive_mode = on
";
