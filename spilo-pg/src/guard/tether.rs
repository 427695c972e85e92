//! What ties PostgreSQL's programs to the agent: a parent that kills them when the agent dies.
//!
//! A copy that goes on after its agent was killed writes into a data directory that the next
//! agent works on. The signal at the parent's death is not enough: it reaches one process, and
//! `pg_basebackup` is two.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::{ExitStatusExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, kill_process_group, pidfd_open};

use super::{LAUNCHER_NAME, TETHER, argument};

/// Returns what to run so that a program ends with this process: the tether, what it is called, and
/// its first arguments, behind which the program and its own arguments come. It must be started as
/// the leader of a process group of its own. The tether is a program whose `main` begins with
/// [`run_if_guard`](super::run_if_guard).
pub fn tethered(tether: &Path) -> (PathBuf, &'static OsStr, Vec<OsString>) {
    let args = [
        argument(TETHER).to_owned(),
        std::process::id().to_string().into(),
    ];
    (tether.to_owned(), argument(LAUNCHER_NAME), args.into())
}

/// Runs the program in the arguments, and kills its process group when the agent is gone.
pub(super) fn main(args: Vec<OsString>) -> i32 {
    match run(&args) {
        Ok(status) => status,
        Err(problem) => {
            eprintln!("{problem}");
            NOT_STARTED
        }
    }
}

fn run(args: &[OsString]) -> Result<i32, String> {
    let [agent, program, rest @ ..] = args else {
        return Err("the tether wants the agent's process id and a program".to_owned());
    };
    let agent: i32 = agent
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or("the agent's process id is no number")?;
    let pid = Pid::from_raw(agent).ok_or("the agent's process id is zero")?;
    let watched = pidfd_open(pid, PidfdFlags::empty());
    // An agent that died before it was watched is not this process's parent any more.
    if u32::try_from(agent) != Ok(parent_id()) {
        return Err("the agent has died".to_owned());
    }
    let watched = watched.map_err(|error| format!("watch the agent: {error}"))?;
    let mut child = Command::new(program)
        .args(rest)
        .spawn()
        .map_err(|error| format!("execute {}: {error}", Path::new(program).display()))?;
    let ended = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("the program has no process id")?;
    let ended = pidfd_open(ended, PidfdFlags::empty())
        .map_err(|error| format!("watch the program: {error}"))?;
    loop {
        let mut seen = [
            PollFd::new(&watched, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        match poll(&mut seen, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("wait for the program: {error}")),
        }
        if !seen[0].revents().is_empty() {
            // This process is of the group as well, and ends here.
            kill_process_group(getpgrp(), Signal::KILL)
                .map_err(|error| format!("end the program: {error}"))?;
        }
        if !seen[1].revents().is_empty() {
            let status = child
                .wait()
                .map_err(|error| format!("wait for the program: {error}"))?;
            let by_signal = status.signal().map(|signal| 128 + signal);
            return Ok(status.code().or(by_signal).unwrap_or(NOT_STARTED));
        }
    }
}

/// What a shell answers for a program that it cannot run.
const NOT_STARTED: i32 = 127;
