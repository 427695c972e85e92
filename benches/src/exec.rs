//! Running other programs, as root or as the database's user.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User};
use tokio::process::Command;
use tokio::time::timeout;

/// The user that servers run as where the harness itself is root, which PostgreSQL refuses to be.
pub(crate) const SERVER_USER: &str = "postgres";

/// Runs a program to its end and returns what it wrote to standard output.
///
/// # Errors
///
/// Fails where the program cannot be started, exits with another status than 0, or takes too long;
/// it is then killed.
pub(crate) async fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit).await?;
    if !output.status.success() {
        bail!(
            "{:?} ended with {}: {}",
            command.as_std(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, whatever its exit status.
pub(crate) async fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    command
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    timeout(limit, command.output())
        .await
        .with_context(|| format!("{:?} took longer than {limit:?}", command.as_std()))?
        .with_context(|| format!("cannot run {:?}", command.as_std()))
}

/// Returns the argument list that runs a program as the servers' user, in a network namespace if
/// one is named.
pub(crate) fn as_server_user(namespace: Option<&str>, program: &Path) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    if let Some(namespace) = namespace {
        line.extend(["ip", "netns", "exec", namespace].map(String::from));
    }
    if Uid::effective().is_root() {
        line.push("setpriv".to_owned());
        line.extend(["reuid", "regid"].map(|id| format!("--{id}={SERVER_USER}")));
        line.extend(["--clear-groups", "--inh-caps=-all"].map(String::from));
    }
    line.push(program.display().to_string());
    line
}

/// Gives a path to the servers' user, where the harness is root.
///
/// # Errors
///
/// Fails where that user does not exist or the path cannot be given away.
pub fn give_to_server_user(path: &Path) -> Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let user = User::from_name(SERVER_USER)?
        .with_context(|| format!("there is no user `{SERVER_USER}`"))?;
    std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .with_context(|| format!("cannot chown {}", path.display()))
}

/// Returns the first of some programs that exists, searching `PATH` for bare names.
pub(crate) fn find_program<I, S>(candidates: I) -> Option<PathBuf>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates.into_iter().find_map(|candidate| {
        let candidate = Path::new(candidate.as_ref());
        if candidate.components().count() > 1 {
            return candidate.is_file().then(|| candidate.to_path_buf());
        }
        std::env::split_paths(&path)
            .map(|dir| dir.join(candidate))
            .find(|file| file.is_file())
    })
}
