//! A loop inside the server whose backend ignores SIGTERM, as one would that hangs where nothing
//! interrupts it, and that goes on committing.
//!
//! Nothing in SQL makes a backend deaf. `LOAD` runs a library's constructor before it looks for
//! PostgreSQL's mark in it: a library of one line, built by the linker that Rust needs anyway, is
//! refused for the missing mark and has changed the signal by then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::exec;
use crate::node::Node;
use crate::writers::{LOOP_APPLICATION, loop_body, loop_pids, wait_for_loops};

/// Starts one more loop like those of [`start_loops`](crate::writers::start_loops), deaf to SIGTERM.
///
/// # Errors
///
/// Fails where the library cannot be built, or the server does not run the loop, or hears SIGTERM.
pub(crate) async fn start_deaf_loop(node: &Node, dir: &Path, pause: Duration) -> Result<()> {
    let running = loop_pids(node).await?.len();
    let library = build(dir).await?;
    let (client, connection) = node.door().open(LOOP_APPLICATION).await?;
    let load = format!("LOAD '{}'", library.display());
    match client.batch_execute(&load).await {
        Err(error) if error.as_db_error().is_some() => {}
        Err(error) => return Err(error).context("cannot load the library"),
        Ok(()) => bail!("the server took a library that is none of its own"),
    }
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .await?
        .try_get(0)?;
    ensure!(is_deaf(pid)?, "backend {pid} hears SIGTERM");
    let body = loop_body(node, pause);
    tokio::spawn(async move { drop(client.batch_execute(&body).await) });
    let started = wait_for_loops(node, running + 1).await;
    connection.abort();
    started
}

async fn build(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("deaf.c");
    let library = dir.join("deaf.so");
    if !library.exists() {
        std::fs::write(&source, SOURCE)?;
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-o"]);
        exec::run(command.arg(&library).arg(&source), BUILD_LIMIT)
            .await
            .context("cannot build the library that makes a backend deaf")?;
    }
    Ok(library)
}

/// Reports whether a process ignores SIGTERM.
fn is_deaf(pid: i32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .context("the status names no ignored signals")?;
    let mask = u64::from_str_radix(mask.trim(), 16)?;
    Ok(mask & (1 << (Signal::SIGTERM as u32 - 1)) != 0)
}

const SOURCE: &str = "#include <signal.h>
__attribute__((constructor)) static void deafen(void) { signal(SIGTERM, SIG_IGN); }
";

const BUILD_LIMIT: Duration = Duration::from_secs(60);
