//! The process that clears up: waits until the program has ended, then ends what it started.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Clears the directory that the arguments name and never returns, if this process was started
/// for it; else returns at once.
pub(crate) fn run_if_reaper() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(REAP)) {
        return;
    }
    let Some(dir) = arguments.next().map(PathBuf::from) else {
        return;
    };
    // Ends when the other end of the pipe is closed, however that came about.
    let mut nothing = Vec::new();
    std::io::stdin()
        .read_to_end(&mut nothing)
        .unwrap_or_default();
    std::process::exit(i32::from(!clear(&dir)));
}

/// The first argument of a process that clears up.
pub(crate) const REAP: &str = "--clear-up";

fn clear(dir: &Path) -> bool {
    let servers = servers(dir);
    // Guards first, or they would hold on to their servers. The servers get SIGQUIT by that.
    for process in found(dir).iter().filter(|process| process.is_guard) {
        signal(process.pid, Signal::SIGKILL);
    }
    // SIGQUIT, after which PostgreSQL frees its shared memory itself.
    let running = found(dir);
    for server in &servers {
        if running
            .iter()
            .any(|process| process.pid == server.postmaster)
        {
            signal(server.postmaster, Signal::SIGQUIT);
        }
    }
    let polite = Instant::now() + POLITE;
    while !found(dir).is_empty() && Instant::now() < polite {
        thread::sleep(PAUSE);
    }
    let patient = Instant::now() + PATIENCE;
    while Instant::now() < patient {
        let left = found(dir);
        if left.is_empty() {
            break;
        }
        for process in left {
            signal(process.pid, Signal::SIGKILL);
        }
        thread::sleep(PAUSE);
    }
    servers
        .iter()
        .filter_map(|server| server.segment)
        .for_each(free);
    remove(dir)
}

/// A server, as its lock file tells.
struct Server {
    postmaster: i32,
    /// The key and the id of its shared memory.
    segment: Option<(i64, i64)>,
}

fn servers(dir: &Path) -> Vec<Server> {
    let nodes = fs::read_dir(dir).into_iter().flatten().flatten();
    nodes
        .filter_map(|node| {
            let text = fs::read_to_string(node.path().join("data/postmaster.pid")).ok()?;
            let lines: Vec<&str> = text.lines().collect();
            let segment = lines.get(6).and_then(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
            });
            Some(Server {
                postmaster: lines.first()?.trim().parse().ok()?,
                segment,
            })
        })
        .collect()
}

/// Frees the shared memory of a server that was killed. One that is in use, or has another key, is
/// somebody else's by now.
fn free((key, id): (i64, i64)) {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let is_ours = table.lines().skip(1).any(|line| {
        let fields: Vec<i64> = line
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(-1))
            .collect();
        matches!(fields[..], [k, i, _, _, _, _, attached, ..] if (k, i, attached) == (key, id, 0))
    });
    if is_ours {
        let freed = Command::new("ipcrm").arg("-m").arg(id.to_string()).status();
        if !freed.is_ok_and(|status| status.success()) {
            eprintln!("quickstart: cannot free the shared memory {id}: `ipcrm -m {id}` does");
        }
    }
}

fn remove(dir: &Path) -> bool {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("quickstart: cannot remove {}: {error}", dir.display());
            false
        }
        _ => true,
    }
}

struct Process {
    pid: i32,
    is_guard: bool,
}

/// Returns the living processes that we started in the directory: programs of the kinds that we
/// start, that work in it or name it. Somebody's shell or `psql` that stands there is not ours.
fn found(dir: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let proc = entry.path();
            let line = fs::read(proc.join("cmdline")).ok()?;
            let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
            let is_guard = name.starts_with(GUARD);
            let program = fs::read_link(proc.join("exe")).ok()?;
            let is_kind = PROGRAMS
                .iter()
                .any(|name| program.file_name() == Some(OsStr::new(name)));
            let works_here =
                || fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let names_it = || {
                let dir = dir.as_os_str().as_bytes();
                line.windows(dir.len()).any(|part| part == dir)
            };
            let ours = (is_guard || is_kind) && (works_here() || names_it());
            ours.then_some(Process { pid, is_guard })
        })
        .collect()
}

fn signal(pid: i32, signal: Signal) {
    // One that has gone by itself is as good.
    kill(Pid::from_raw(pid), signal).unwrap_or_default();
}

/// How the library names its guards, and the steps between a guard and its server.
const GUARD: &[u8] = b"spilo-guard";

const PROGRAMS: [&str; 6] = [
    "postgres",
    "initdb",
    "pg_basebackup",
    "pg_rewind",
    "pg_controldata",
    "etcd",
];

/// PostgreSQL itself kills its processes 5 s after SIGQUIT; on our way nothing takes so long.
const POLITE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);
