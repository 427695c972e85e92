//! The part of the server: whoever calls `archive_command` and `restore_command`.

use std::fs;
use std::io::{BufRead as _, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// What is to be done. The commands go to a shell, with the placeholders that the server knows.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Job {
    /// Archives every file of the log of a data directory that is `.ready`, the oldest first, and
    /// makes it `.done`.
    Archive { data_dir: PathBuf, command: String },
    /// Restores files of the log into a data directory, one after the other.
    Restore {
        data_dir: PathBuf,
        command: String,
        names: Vec<String>,
    },
    /// Runs a command once.
    Once { command: String },
}

/// What it took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Done {
    /// From before the first command to after the last, in microseconds.
    pub(crate) wall_us: u64,
    /// How many commands were run.
    pub(crate) commands: u64,
    /// The processor time of the commands and of all that they waited for, in microseconds.
    pub(crate) cpu_us: u64,
    /// The memory of the greatest of them, in KiB.
    pub(crate) peak_kib: u64,
}

/// Does the job that comes as a line of JSON on standard input, and prints what it took.
///
/// It waits for that line, so that whoever started it can put it where it will be measured.
///
/// # Errors
///
/// Fails with the first command that fails.
pub fn drive() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line).context("the job cannot be read")?;
    let started = Instant::now();
    let commands = job.work()?;
    let wall = started.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = [usage.user_time(), usage.system_time()].map(|time| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        u64::try_from(micros).unwrap_or(0)
    });
    let done = Done {
        wall_us: u64::try_from(wall.as_micros())?,
        commands,
        cpu_us: cpu[0] + cpu[1],
        peak_kib: u64::try_from(usage.max_rss())?,
    };
    serde_json::to_writer(std::io::stdout(), &done)?;
    Ok(())
}

impl Job {
    fn work(&self) -> Result<u64> {
        match self {
            Self::Archive { data_dir, command } => archive(data_dir, command),
            Self::Restore {
                data_dir,
                command,
                names,
            } => restore(data_dir, command, names),
            Self::Once { command } => run(command, Path::new("/"), 1).map(|()| 1),
        }
    }
}

/// As the server's archiver: it looks for what is ready, and a tool that has been ahead of it has
/// left less to do.
fn archive(data_dir: &Path, command: &str) -> Result<u64> {
    let folder = data_dir.join("pg_wal/archive_status");
    let mut commands = 0;
    let mut ready = Vec::new();
    loop {
        if ready.is_empty() {
            for entry in fs::read_dir(&folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                ready.extend(name.strip_suffix(".ready").map(str::to_owned));
            }
            ready.sort_unstable_by(|one, other| other.cmp(one));
        }
        let Some(name) = ready.pop() else {
            return Ok(commands);
        };
        let status = folder.join(format!("{name}.ready"));
        if !status.exists() {
            continue;
        }
        let path = format!("pg_wal/{name}");
        run(&filled(command, &name, &path), data_dir, ATTEMPTS)?;
        commands += 1;
        match fs::rename(&status, folder.join(format!("{name}.done"))) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot rename {}", status.display()));
            }
            _ => {}
        }
    }
}

/// As a server in recovery, which names the file when it has it.
fn restore(data_dir: &Path, command: &str, names: &[String]) -> Result<u64> {
    for name in names {
        run(&filled(command, name, "pg_wal/RECOVERYXLOG"), data_dir, 1)?;
        let log = data_dir.join("pg_wal");
        fs::rename(log.join("RECOVERYXLOG"), log.join(name))
            .with_context(|| format!("{name} was said to be restored, and is not there"))?;
    }
    Ok(u64::try_from(names.len())?)
}

fn filled(command: &str, name: &str, path: &str) -> String {
    command.replace("%f", name).replace("%p", path)
}

fn run(command: &str, directory: &Path, attempts: u32) -> Result<()> {
    for attempt in 1.. {
        let status = Command::new("/bin/sh")
            .args(["-c", command])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("cannot run a shell")?;
        if status.success() {
            break;
        }
        if attempt >= attempts {
            bail!("`{command}` ended with {status}, at attempt {attempt} of {attempts}");
        }
        // So does the server, and the time counts.
        std::thread::sleep(BETWEEN_ATTEMPTS);
    }
    Ok(())
}

/// As often as the server tries before it waits for a minute.
const ATTEMPTS: u32 = 3;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
