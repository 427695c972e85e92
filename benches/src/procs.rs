//! Processes as `/proc` shows them.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One living process. Zombies are not listed: nothing of them runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its command line, arguments separated by spaces.
    pub command: String,
    /// Its working directory, where this user may know it.
    pub directory: Option<PathBuf>,
}

/// Returns every living process of the machine.
pub fn all() -> Vec<Process> {
    pids().filter_map(read).collect()
}

/// Returns the processes of the server in a data directory: postmaster, backends and what these
/// started.
///
/// A server's processes leave every process group and change their command lines, but their working
/// directory stays.
pub fn of_server(data_dir: &Path) -> Vec<i32> {
    of_server_with_parents(data_dir)
        .into_iter()
        .map(|(pid, _)| pid)
        .collect()
}

/// Does the same, and tells each process's parent.
pub(crate) fn of_server_with_parents(data_dir: &Path) -> Vec<(i32, i32)> {
    pids()
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|dir| dir == data_dir)
        })
        .filter_map(|pid| Some((pid, read_stat(pid)?)))
        .collect()
}

/// Returns the postmaster's process id as its pid file tells it, if that process is alive.
pub fn postmaster(data_dir: &Path) -> Option<i32> {
    let file = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid = file.lines().next()?.trim().parse().ok()?;
    of_server(data_dir).contains(&pid).then_some(pid)
}

/// Returns the guard of a node: an ancestor of its postmaster, or else any process that works in
/// the node's directory, whose command line says `spilo-guard`.
pub fn guard(node_dir: &Path, data_dir: &Path) -> Option<i32> {
    let all = all();
    let is_guard = |process: &Process| process.command.contains("spilo-guard");
    let mut pid = postmaster(data_dir);
    while let Some(process) = pid.and_then(|pid| all.iter().find(|process| process.pid == pid)) {
        if is_guard(process) {
            return Some(process.pid);
        }
        pid = Some(process.parent);
    }
    let here = |process: &&Process| {
        process
            .directory
            .as_deref()
            .is_some_and(|dir| dir.starts_with(node_dir))
            || process.command.contains(&node_dir.display().to_string())
    };
    all.iter()
        .filter(here)
        .find(|process| is_guard(process))
        .map(|process| process.pid)
}

/// Reports whether a process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    read_stat(pid).is_some()
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok();
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn read(pid: i32) -> Option<Process> {
    let parent = read_stat(pid)?;
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned();
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    Some(Process {
        pid,
        parent,
        command,
        directory,
    })
}

/// Returns the parent of a process that is neither gone nor a zombie nor dying.
fn read_stat(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything, brackets included: the fields begin behind the
    // last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(parent)
}
