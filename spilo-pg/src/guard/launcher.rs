//! The step between the guard and PostgreSQL: what has to happen in the new process before it
//! becomes the postmaster.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::harden::{self, Ordinary};
use super::protocol::Launch;
use super::{LAUNCH, LAUNCHER_NAME, REHEARSE, argument};

/// What the guard tells its launcher.
#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) guard: u32,
    pub(super) ordinary: Ordinary,
    pub(super) launch: Launch,
}

/// Starts the launcher. What it writes to its standard output is why it failed; when that ends
/// without a word, the program runs.
pub(super) fn start(orders: &Orders) -> io::Result<Child> {
    // A file in memory and not a pipe: writing it cannot block the guard, and the environment is
    // on no command line.
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("orders", flags)?);
    file.write_all(&serde_json::to_vec(orders)?)?;
    file.rewind()?;
    command()
        .arg(argument(LAUNCH))
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Starts a process that only waits to be killed.
pub(super) fn start_rehearsal() -> io::Result<Child> {
    let null = || Stdio::null();
    command()
        .arg(argument(REHEARSE))
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn()
}

fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(argument(LAUNCHER_NAME));
    command
}

/// Runs the launcher; returns its exit status only if PostgreSQL could not be started.
pub(super) fn main(_args: Vec<OsString>) -> i32 {
    // Closed by the exec that succeeds.
    let report = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3).map(File::from);
    let Err(problem) = become_postmaster();
    if let Ok(mut report) = report {
        let _nobody_left_to_tell = report.write_all(problem.as_bytes());
    }
    1
}

/// Waits to be killed by the guard that rehearses its fence.
pub(super) fn rehearse(_args: Vec<OsString>) -> i32 {
    let _dies_anyway = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    thread::sleep(Duration::from_secs(10));
    0
}

fn become_postmaster() -> Result<std::convert::Infallible, String> {
    let mut text = Vec::new();
    io::stdin()
        .read_to_end(&mut text)
        .map_err(|error| format!("read the orders: {error}"))?;
    let Orders {
        guard,
        ordinary,
        launch,
    } = serde_json::from_slice(&text).map_err(|error| format!("read the orders: {error}"))?;
    // A session of its own, as `pg_ctl` gives it one: signals to a group stay in it.
    rustix::process::setsid().map_err(|error| format!("create a session: {error}"))?;
    harden::lower(ordinary).map_err(|error| format!("lower the priority: {error}"))?;
    if let Some((uid, gid)) = launch.uid_gid {
        drop_to(Uid::from_raw(uid), Gid::from_raw(gid))
            .map_err(|error| format!("become user {uid}, group {gid}: {error}"))?;
    }
    // In this order: a change of user clears the signal, and a guard that died before the signal
    // was set sends none. SIGQUIT and never SIGKILL, after which the backends write on.
    rustix::process::set_parent_process_death_signal(Some(Signal::QUIT))
        .map_err(|error| format!("set the parent-death signal: {error}"))?;
    if std::os::unix::process::parent_id() != guard {
        return Err("the guard has died".to_owned());
    }
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let log = open_log(&launch)?;
    let error_log = log
        .try_clone()
        .map_err(|error| format!("open the log: {error}"))?;
    let error = Command::new(&launch.program)
        .args(&launch.args)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(log))
        .stderr(OwnedFd::from(error_log))
        // Also empties the signal mask and resets SIGPIPE; the other signals that somebody may
        // have left ignored get handlers of the postmaster's own.
        .exec();
    Err(format!("execute {}: {error}", launch.program.display()))
}

/// Opens the log as the server's user, so that it can be rotated and read by that user.
fn open_log(launch: &Launch) -> Result<File, String> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&launch.log_file)
        .map_err(|error| format!("open the log {}: {error}", launch.log_file.display()))
}

fn drop_to(uid: Uid, gid: Gid) -> nix::Result<()> {
    if Uid::effective() == uid {
        return Ok(());
    }
    // The user's other groups matter: on Debian the key of the TLS certificate belongs to one.
    match User::from_uid(uid)?.and_then(|user| std::ffi::CString::new(user.name).ok()) {
        Some(name) => nix::unistd::initgroups(&name, gid)?,
        None => nix::unistd::setgroups(&[gid])?,
    }
    nix::unistd::setgid(gid)?;
    nix::unistd::setuid(uid)
}
