//! A server that no guard holds: finding it and ending it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::proc::{Proc, Stat};

/// Returns the living processes of a server in `data_dir`, whoever started it, the postmaster
/// first if it is there.
///
/// PostgreSQL's processes have the data directory as their working directory, belong to its
/// owner, and except for the postmaster have no terminal (which tells them from the shell of an
/// administrator who stands there). Their descendants count too.
///
/// # Errors
/// When the directory or `/proc` cannot be read.
pub fn server_processes(data_dir: &Path) -> io::Result<Vec<u32>> {
    let found = Scan::new(data_dir)?.run()?;
    Ok(found.into_iter().map(i32::unsigned_abs).collect())
}

/// Kills every process of a server in `data_dir` without the help of a guard, and returns how
/// long that took.
///
/// For an agent whose guard is gone or silent. Two scans in a row that find nothing alive are the
/// proof. It blocks its thread, for milliseconds as a rule and for ten seconds at most.
///
/// # Errors
/// `TimedOut` when processes are left after ten seconds; any error of [`server_processes`]; the
/// error of a kill that is not permitted.
pub fn fence_without_guard(data_dir: &Path) -> io::Result<Duration> {
    let start = Instant::now();
    let scan = Scan::new(data_dir)?;
    let mut quiet_scans = 0;
    while quiet_scans < 2 {
        let found = scan.run()?;
        // The postmaster comes first, so that no process is started behind the scan.
        for &pid in &found {
            let Some(pid) = Pid::from_raw(pid) else {
                continue;
            };
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if start.elapsed() > LIMIT {
            let problem = format!("{} processes are still alive", found.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        quiet_scans = if found.is_empty() { quiet_scans + 1 } else { 0 };
        if !found.is_empty() {
            thread::sleep(PAUSE);
        }
    }
    Ok(start.elapsed())
}

/// A search for the processes of one data directory.
struct Scan<'a> {
    proc: Proc,
    data_dir: &'a Path,
    directory: Metadata,
}

impl<'a> Scan<'a> {
    fn new(data_dir: &'a Path) -> io::Result<Self> {
        Ok(Self {
            proc: Proc::open()?,
            data_dir,
            directory: fs::metadata(data_dir)?,
        })
    }

    /// Returns the living processes by their ids, the postmaster first.
    fn run(&self) -> io::Result<Vec<i32>> {
        let postmaster = self.postmaster();
        let mut parents = BTreeMap::new();
        let mut found = BTreeSet::new();
        for raw in everybody()? {
            let stat = Pid::from_raw(raw).and_then(|pid| self.proc.stat(pid));
            let Some(stat) = stat.filter(|stat| !stat.dead) else {
                continue;
            };
            parents.insert(raw, stat.parent);
            if self.is_of_server(raw, stat, postmaster) {
                found.insert(raw);
            }
        }
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut all: Vec<i32> = parents
            .keys()
            .copied()
            .filter(|&pid| pid != me && descends(pid, &parents, &found))
            .collect();
        // Without a lock file that names it, the postmaster is the one whose parent is a stranger.
        all.sort_by_key(|&pid| {
            let has_parent = parents
                .get(&pid)
                .is_some_and(|parent| found.contains(parent));
            (Some(pid) != postmaster, has_parent, pid)
        });
        Ok(all)
    }

    /// Returns the process that the lock file in the data directory names.
    fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        // A negative number stands for a server in single-user mode.
        text.lines()
            .next()?
            .trim()
            .parse::<i32>()
            .ok()?
            .checked_abs()
    }

    fn is_of_server(&self, pid: i32, stat: Stat, postmaster: Option<i32>) -> bool {
        // The directory is compared by identity: its name may have changed, or have several.
        let stands_here = fs::metadata(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| {
            (cwd.dev(), cwd.ino()) == (self.directory.dev(), self.directory.ino())
        });
        let belongs_here = || {
            fs::metadata(format!("/proc/{pid}")).is_ok_and(|it| it.uid() == self.directory.uid())
        };
        stands_here && belongs_here() && (stat.terminal == 0 || Some(pid) == postmaster)
    }
}

fn everybody() -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        all.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(all)
}

/// Returns whether `pid` or one of its ancestors is among `found`.
fn descends(pid: i32, parents: &BTreeMap<i32, i32>, found: &BTreeSet<i32>) -> bool {
    let mut at = pid;
    // Processes come and go during a scan, so the parents need not be a tree: hence the limit.
    for _ in 0..DEPTH {
        if found.contains(&at) {
            return true;
        }
        match parents.get(&at) {
            Some(&above) => at = above,
            None => return false,
        }
    }
    false
}

/// Killed processes are gone within milliseconds unless the kernel holds them.
const PAUSE: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(10);
/// Deeper than any family of processes.
const DEPTH: usize = 64;
