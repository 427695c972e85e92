//! The guard: a small process that holds the write deadline outside the agent.
//!
//! PostgreSQL runs as a child of the guard. The agent moves a deadline there with each renewal of
//! its lease; when the agent is killed, frozen or cut off, nobody moves it, and the guard stops
//! the server fast at the soft deadline and kills every process of it at the hard one.
//!
//! An embedder calls [`run_if_guard`] in the first line of `main`, before any runtime or thread,
//! so that its own program can be started as the guard; or it installs the program `spilo-guard`
//! and names it in [`GuardOptions::program`]. The agent talks to it through [`GuardClient`].
//!
//! # What covers which fault
//! | fault | who ends the writes |
//! |---|---|
//! | agent killed or frozen, store unreachable | the guard, at the deadline |
//! | postmaster killed, its backends write on | the guard, at once |
//! | guard killed | the kernel sends SIGQUIT to the postmaster; a living agent proves the rest with [`fence_without_guard`] |
//! | guard frozen | a living agent, which gets no answer, with [`fence_without_guard`] |
//! | guard killed while the postmaster is frozen | a living agent |
//! | agent and guard killed together | the kernel's SIGQUIT; a frozen postmaster then outlives both: only `/dev/watchdog` |
//! | agent and guard frozen while PostgreSQL runs on | only `/dev/watchdog` |
//!
//! # What counts as gone
//! A server is gone when no process of it is left: backends go on committing after their
//! postmaster was killed. The guard is a child subreaper, so every orphan becomes its child, and
//! "no child is left" is the proof. A process in an uninterruptible wait that SIGKILL has been
//! delivered to counts as fenced (it acknowledges nothing any more) but not as gone.

mod client;
mod connection;
mod deadline;
mod fence;
mod harden;
mod launcher;
mod leftover;
mod proc;
mod protocol;
mod serve;
mod server;
mod tether;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process;

pub use client::{GuardClient, GuardOptions, GuardReport};
pub use leftover::{fence_without_guard, server_processes};
pub use proc::boot_time;
pub use protocol::{Launch, Role, ServerSignal};
pub use tether::tethered;

/// Runs the guard and never returns, if this process was started as one; else returns at once.
///
/// # Contract
/// To be called in the first line of `main`: the guard refuses to run in a process that already
/// has a second thread, because the signal that PostgreSQL gets when its guard dies follows the
/// parent's thread.
pub fn run_if_guard() {
    let mut args = std::env::args_os();
    let Some(program) = args.next() else { return };
    let name = Path::new(&program).file_name().map(OsStr::as_bytes);
    let run = match (name, args.next().as_deref().map(OsStr::as_bytes)) {
        (Some(GUARD_NAME), Some(SERVE)) => serve::main,
        (Some(LAUNCHER_NAME), Some(LAUNCH)) => launcher::main,
        (Some(LAUNCHER_NAME), Some(REHEARSE)) => launcher::rehearse,
        (Some(LAUNCHER_NAME), Some(TETHER)) => tether::main,
        _ => return,
    };
    process::exit(run(args.collect()));
}

/// What the guard is called in the list of processes, and how it is told from its embedder.
const GUARD_NAME: &[u8] = b"spilo-guard";
/// The step between the guard and PostgreSQL.
const LAUNCHER_NAME: &[u8] = b"spilo-guard-launcher";
const SERVE: &[u8] = b"serve";
const LAUNCH: &[u8] = b"launch";
const REHEARSE: &[u8] = b"rehearse";
const TETHER: &[u8] = b"tether";

/// Returns one of the names above as an argument.
fn argument(name: &'static [u8]) -> &'static OsStr {
    OsStr::from_bytes(name)
}
