//! The temporary directory that everything lives in, and the process that clears it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::reap;

/// A temporary directory whose processes end with it.
///
/// Clearing is the work of a process of its own, which waits for the end of a pipe that this one
/// holds: so nothing is left behind either when the program panics or is killed with -9.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    reaper: Child,
}

impl Place {
    /// Creates the directory.
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("spilo-demo-")
            .tempdir()
            .context("cannot make a directory")?
            .keep();
        // Servers run as another user where we are root, and must be able to pass through.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let reaper = Command::new(std::env::current_exe()?)
            .args([reap::REAP.as_ref(), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C goes to the whole foreground group; the reaper must outlive it.
            .process_group(0)
            .spawn()
            .context("cannot start the process that clears up")?;
        Ok(Self { dir, reaper })
    }

    /// Returns the directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends every process that runs in the directory and removes it.
    pub(crate) fn clear(self) {}
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        // It says itself what it could not do.
        if let Err(error) = self.reaper.wait() {
            eprintln!("quickstart: cannot wait for the process that clears up: {error}");
        }
    }
}
