//! Killing every process of the server, without allocating and without a disk.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::proc::{OwnChildren, Proc, is_of_the_dead};

/// All that descends from this process, which must be a child subreaper.
pub(super) struct Family {
    proc: Proc,
    me: Pid,
    /// Where everybody is to be found whose parent was killed before.
    own: OwnChildren,
    /// One list of children at a time.
    text: Box<[u8]>,
    /// What is yet to be visited.
    stack: Box<[Option<Pid>]>,
}

/// What one walk through the family found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Walk {
    /// Processes that are not dead yet.
    pub(super) alive: u32,
    /// Those among them that SIGKILL had not reached before this walk.
    pub(super) fresh: u32,
    /// Those that could not be killed, or not be looked at because there were too many.
    pub(super) missed: u32,
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Count,
    /// To kill as fast as can be.
    Kill,
    /// To kill what is found, and to find nothing that had not been killed before.
    Prove,
}

impl Family {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let proc = Proc::open()?;
        Ok(Self {
            me: rustix::process::getpid(),
            own: OwnChildren::open(&proc)?,
            proc,
            // Written, not just reserved: a page that the fence touches first would have to be
            // found when the machine may have none.
            text: vec![b' '; TEXT].into_boxed_slice(),
            stack: vec![Some(Pid::INIT); STACK].into_boxed_slice(),
        })
    }

    /// Counts the descendants.
    pub(super) fn count(&mut self) -> rustix::io::Result<Walk> {
        self.walk(Purpose::Count)
    }

    /// Sends SIGKILL to `first` and then to every descendant; with a look at each before it, if
    /// `proving`.
    ///
    /// A process is killed before its children are looked up: it cannot fork any more once the
    /// signal is on its way, so the list is complete. What dies during the walk hands its
    /// children to this process, where the next walk finds them.
    pub(super) fn kill(&mut self, first: Option<Pid>, proving: bool) -> rustix::io::Result<Walk> {
        if let Some(first) = first {
            // The walk reports what it could not kill; here only the order matters.
            let _found_again = kill(first);
        }
        self.walk(if proving {
            Purpose::Prove
        } else {
            Purpose::Kill
        })
    }

    fn walk(&mut self, purpose: Purpose) -> rustix::io::Result<Walk> {
        let mut walk = Walk::default();
        let mut depth = self.push_children(self.me, 0, purpose, &mut walk)?;
        let mut visits = 0;
        while let Some(pid) = depth
            .checked_sub(1)
            .and_then(|top| self.stack.get(top).copied())
        {
            depth -= 1;
            visits += 1;
            let Some(pid) = pid else { continue };
            if visits > STACK {
                walk.missed += 1;
                break;
            }
            self.visit(pid, purpose, &mut walk);
            match self.push_children(pid, depth, purpose, &mut walk) {
                Ok(deeper) => depth = deeper,
                // It died meanwhile, and its children are ours now.
                Err(error) if is_of_the_dead(error) => {}
                Err(_) => walk.missed += 1,
            }
        }
        Ok(walk)
    }

    /// Looks at one process, as far as the purpose asks for it, and kills it after that.
    fn visit(&self, pid: Pid, purpose: Purpose, walk: &mut Walk) {
        if purpose == Purpose::Kill {
            walk.alive += 1;
            walk.fresh += 1;
        } else {
            match self.proc.stat(pid) {
                Ok(Some(stat)) => {
                    walk.alive += u32::from(!stat.dead);
                    walk.fresh += u32::from(!stat.doomed && !self.proc.is_killed(pid));
                }
                Ok(None) => {}
                // What cannot be looked at proves nothing.
                Err(_) => {
                    walk.alive += 1;
                    walk.fresh += 1;
                }
            }
        }
        if purpose == Purpose::Prove {
            walk.missed += u32::from(!kill(pid));
        }
    }

    fn push_children(
        &mut self,
        of: Pid,
        mut depth: usize,
        purpose: Purpose,
        walk: &mut Walk,
    ) -> rustix::io::Result<usize> {
        let children = if of == self.me {
            self.own.read(&mut self.text)?
        } else {
            self.proc.children(of, &mut self.text)?
        };
        for child in children {
            // At once, and its own children later: looking them up takes most of the time.
            if purpose == Purpose::Kill {
                walk.missed += u32::from(!kill(child));
            }
            match self.stack.get_mut(depth) {
                Some(slot) => {
                    *slot = Some(child);
                    depth += 1;
                }
                None => walk.missed += 1,
            }
        }
        Ok(depth)
    }
}

/// Kills a process; false if that is not permitted.
///
/// Process ids are not reused behind our back: a child of ours stays a zombie until it is reaped
/// here, and a grandchild until its own parent, just killed, is gone.
fn kill(pid: Pid) -> bool {
    matches!(kill_process(pid, Signal::KILL), Ok(()) | Err(Errno::SRCH))
}

/// More processes than PostgreSQL's `max_connections` reaches in practice; what does not fit is
/// found by the next walk, when the others are dead.
const STACK: usize = 32 * 1024;
/// Room for as many process ids of seven digits.
const TEXT: usize = 256 * 1024;
