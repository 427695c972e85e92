//! A server that no guard holds: finding it and ending it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::proc::{Proc, Stat};

/// Returns the living processes of a server in `data_dir`, whoever started it, the postmaster
/// first if it is there.
///
/// PostgreSQL's processes have the data directory as their working directory, belong to its
/// owner, and except for the postmaster have no terminal (which tells them from the shell of an
/// administrator who stands there). Their descendants count too. The calling process does not,
/// nor do its ancestors, wherever they stand: an agent may have been started in the data directory,
/// by a program that was.
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
        let mut refused = None;
        // The postmaster comes first, so that no process is started behind the scan.
        for &pid in &found {
            let Some(pid) = Pid::from_raw(pid) else {
                continue;
            };
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                // Somebody else's, as of a program that runs as another user. The rest dies.
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            return Err(error.into());
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
    /// The calling process.
    me: i32,
    proc: Proc,
    data_dir: &'a Path,
    directory: Place,
    owner: u32,
}

/// Which directory it is, whatever its names.
type Place = (u32, u32, u64);

impl<'a> Scan<'a> {
    fn new(data_dir: &'a Path) -> io::Result<Self> {
        Ok(Self {
            me: rustix::process::getpid().as_raw_nonzero().get(),
            proc: Proc::open()?,
            data_dir,
            directory: place(data_dir)?,
            owner: fs::metadata(data_dir)?.uid(),
        })
    }

    /// Returns the living processes by their ids, the postmaster first.
    fn run(&self) -> io::Result<Vec<i32>> {
        let postmaster = self.postmaster();
        let mut parents = BTreeMap::new();
        let mut found = BTreeSet::new();
        for raw in everybody()? {
            let stat = match Pid::from_raw(raw) {
                Some(pid) => self.proc.stat(pid)?,
                None => None,
            };
            let Some(stat) = stat.filter(|stat| !stat.dead) else {
                continue;
            };
            parents.insert(raw, stat.parent);
            if self.is_of_server(raw, stat, postmaster) {
                found.insert(raw);
            }
        }
        // With them their descendants would count, the guard among these.
        for own in line(self.me, &parents) {
            found.remove(&own);
        }
        let mut all: Vec<i32> = parents
            .keys()
            .copied()
            .filter(|&pid| line(pid, &parents).any(|at| found.contains(&at)))
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
        let has_no_terminal = stat.terminal == 0 || Some(pid) == postmaster;
        let belongs_here =
            || fs::metadata(format!("/proc/{pid}")).is_ok_and(|it| it.uid() == self.owner);
        // The last question, and as modest as can be: a stranger may stand on a file system of a
        // host that is gone.
        let stands_here = || {
            let cwd = format!("/proc/{pid}/cwd");
            place(Path::new(&cwd)).is_ok_and(|cwd| cwd == self.directory)
        };
        has_no_terminal && belongs_here() && stands_here()
    }
}

/// Returns what tells a directory from all others, as the kernel knows it, without asking a server
/// over a network.
fn place(directory: &Path) -> io::Result<Place> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, directory, flags, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
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

/// Returns `pid` and its ancestors.
fn line(pid: i32, parents: &BTreeMap<i32, i32>) -> impl Iterator<Item = i32> {
    // Processes come and go during a scan, so the parents need not be a tree: hence the limit.
    std::iter::successors(Some(pid), |at| parents.get(at).copied()).take(DEPTH)
}

/// Killed processes are gone within milliseconds unless the kernel holds them.
const PAUSE: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(10);
/// Deeper than any family of processes.
const DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A program without a terminal, as PostgreSQL's are, that stands in `dir`.
    fn start(dir: &Path, script: &str) -> Child {
        Command::new("setsid")
            .args(["sh", "-c", script])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn pid(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn agent_that_stands_in_the_data_directory_is_not_of_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = start(dir.path(), "echo up; exec sleep 60");
        // Its guard has left the directory, as every guard does.
        let script = "(cd / && echo up; exec sleep 60) & echo $!; wait";
        let mut agent = start(dir.path(), script);
        let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
        said.next().unwrap().unwrap();
        let said = BufReader::new(agent.stdout.take().unwrap()).lines();
        let said: Vec<String> = said.take(2).map(Result::unwrap).collect();
        let guard: i32 = said.iter().find_map(|line| line.parse().ok()).unwrap();
        let seen_by = |me: i32| {
            let scan = Scan {
                me,
                ..Scan::new(dir.path()).unwrap()
            };
            scan.run().unwrap()
        };
        let mut everybody = [pid(&server), pid(&agent), guard];
        everybody.sort_unstable();
        let mut by_a_stranger = seen_by(rustix::process::getpid().as_raw_nonzero().get());
        by_a_stranger.sort_unstable();
        let (by_agent, by_guard) = (seen_by(pid(&agent)), seen_by(guard));
        kill_process(Pid::from_raw(guard).unwrap(), Signal::KILL).unwrap();
        for child in [&mut server, &mut agent] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(by_a_stranger, everybody);
        assert_eq!(by_agent, [pid(&server)]);
        assert_eq!(by_guard, [pid(&server)]);
    }
}
