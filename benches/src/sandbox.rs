//! A temporary directory whose processes end with it.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

/// A temporary directory, and a reaper that clears up after it.
///
/// The reaper is a shell that reads from a pipe held by this process. When the pipe closes, because
/// the sandbox was dropped, or the harness panicked, was interrupted or killed with -9, the reaper
/// kills every process that names the directory (in its command line, its environment or as its
/// working directory, so that backends and guards are found which left every process group),
/// deletes the network namespaces and links that were registered, frees PostgreSQL's shared memory,
/// and removes the directory.
#[derive(Debug)]
pub struct Sandbox {
    dir: PathBuf,
    reaper: Child,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Sandbox {
    /// Creates the directory and starts its reaper.
    ///
    /// # Errors
    ///
    /// Fails where the directory cannot be made or no shell can be started.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("spilo-")
            .tempdir()
            .context("cannot make a directory")?
            .keep();
        // Servers run as another user and must be able to pass through.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let mut reaper = Command::new("sh")
            .args(["-c", REAPER, "spilo-reaper"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C goes to the whole foreground group; the reaper must outlive it.
            .process_group(0)
            .spawn()
            .context("cannot start the reaper")?;
        let pipe = Mutex::new(reaper.stdin.take());
        let sandbox = Self { dir, reaper, pipe };
        sandbox.tell(&sandbox.dir.display().to_string());
        Ok(sandbox)
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the directory, logs and all, when its processes are killed.
    pub fn keep(&self) {
        self.tell("keep");
    }

    /// Registers a network namespace for deletion.
    pub(crate) fn owns_namespace(&self, name: &str) {
        self.tell(&format!("netns {name}"));
    }

    /// Registers a network link for deletion.
    pub(crate) fn owns_link(&self, name: &str) {
        self.tell(&format!("link {name}"));
    }

    fn tell(&self, line: &str) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = pipe.as_mut() {
            // A reaper that is gone cannot be told anything, and nothing else depends on the line.
            writeln!(pipe, "{line}").ok();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("SPILO_KEEP").is_some() {
            self.keep();
            eprintln!("logs are kept in {}", self.dir.display());
        }
        drop(
            self.pipe
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        self.reaper.wait().ok();
    }
}

/// Agents and guards go first, or they would start servers again; the servers then get SIGQUIT,
/// which frees their shared memory; what is left after a second gets SIGKILL. Stopped processes die
/// of SIGKILL too, but must be continued to obey SIGQUIT.
const REAPER: &str = r#"
IFS= read -r dir || exit 1
keep= spaces= links=
while IFS= read -r line; do
  case $line in
    keep) keep=1 ;;
    netns\ *) spaces="$spaces ${line#netns }" ;;
    link\ *) links="$links ${line#link }" ;;
  esac
done
found() {
  {
    find /proc -maxdepth 2 -name cwd -lname "$dir*"
    grep -lsF -- "$dir" /proc/[0-9]*/cmdline /proc/[0-9]*/environ
  } 2>/dev/null | cut -d/ -f3 | sort -un | grep -vx "$$"
}
servers() { head -qn1 "$dir"/*/data/postmaster.pid 2>/dev/null; }
segments=$(sed -sn 7p "$dir"/*/data/postmaster.pid 2>/dev/null | awk '{print $2}')
for pid in $(found); do
  case $(readlink "/proc/$pid/exe") in
    */postgres) ;;
    *) kill -9 "$pid" ;;
  esac
done
for pid in $(found); do kill -CONT "$pid"; done
for pid in $(servers); do kill -QUIT "$pid"; done
tries=0
while [ -n "$(found)" ] && [ $tries -lt 10 ]; do sleep 0.1; tries=$((tries + 1)); done
tries=0
while [ $tries -lt 100 ]; do
  pids=$(found)
  [ -n "$pids" ] || break
  kill -9 $pids
  sleep 0.05
  tries=$((tries + 1))
done
for segment in $segments; do ipcrm -m "$segment"; done
for space in $spaces; do ip netns del "$space"; done
for link in $links; do ip link del "$link"; done
[ -n "$keep" ] || rm -rf -- "$dir"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_sandbox_kills_what_runs_in_it_and_removes_it() {
        let sandbox = Sandbox::new().unwrap();
        let dir = sandbox.dir().to_path_buf();
        let mut inside = Command::new("sleep")
            .arg("600")
            .current_dir(&dir)
            .process_group(0)
            .spawn()
            .unwrap();
        drop(sandbox);
        assert!(!dir.exists());
        assert!(!inside.wait().unwrap().success());
    }
}
