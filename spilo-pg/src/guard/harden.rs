//! What keeps the guard running when the machine is short of memory or of processor time.

use std::fs;
use std::io;

use rustix::mm::MlockAllFlags;
use serde::{Deserialize, Serialize};

/// What PostgreSQL is given back, so that it does not inherit the guard's privileges.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Ordinary {
    pub(super) nice: i32,
    pub(super) oom_score_adj: i32,
}

/// Raises this process above the others, as far as the machine permits, and returns what it was
/// before and which protections it does without.
pub(super) fn raise() -> (Ordinary, Vec<String>) {
    let ordinary = Ordinary {
        nice: rustix::process::getpriority_process(None).unwrap_or(0),
        oom_score_adj: oom_score_adj().unwrap_or(0),
    };
    let mut weaknesses = Vec::new();
    // Pages are locked as they are touched: the fence is rehearsed, so its own are resident,
    // and the rest of a big program stays on disk.
    let locked = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(locked) {
        weaknesses.push(format!("memory is not locked: {error}"));
    }
    if let Err(error) = rustix::process::setpriority_process(None, HIGHEST) {
        weaknesses.push(format!("priority is not raised: {error}"));
    }
    // Where sessions are scheduled as groups, the priority counts within the session only.
    let groups = fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    if groups.is_ok_and(|enabled| enabled.trim() == "1")
        && let Err(error) = fs::write("/proc/self/autogroup", HIGHEST.to_string())
    {
        weaknesses.push(format!("priority of the session is not raised: {error}"));
    }
    if let Err(error) = set_oom_score_adj(NEVER) {
        weaknesses.push(format!("not exempt from the out-of-memory killer: {error}"));
    }
    (ordinary, weaknesses)
}

/// Makes this process an ordinary one again.
pub(super) fn lower(ordinary: Ordinary) -> io::Result<()> {
    rustix::process::setpriority_process(None, ordinary.nice)?;
    if oom_score_adj()? == ordinary.oom_score_adj {
        return Ok(());
    }
    set_oom_score_adj(ordinary.oom_score_adj)
}

fn oom_score_adj() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(io::Error::other)
}

fn set_oom_score_adj(score: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

const HIGHEST: i32 = -20;
/// The score of a process that the kernel does not kill for lack of memory.
const NEVER: i32 = -1000;
