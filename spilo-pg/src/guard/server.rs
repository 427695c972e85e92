//! The server under the guard: starting it, seeing it die, and killing it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use super::fence::{Family, Walk};
use super::harden::Ordinary;
use super::launcher::{self, Orders};
use super::leftover::server_processes;
use super::protocol::{Launch, Role, ServerSignal, StatusText};

/// The server, and whatever of it may still be alive.
pub(super) struct Server {
    family: Family,
    ordinary: Ordinary,
    postmaster: Option<Pid>,
    /// Whether any descendant may be alive. Only "no child" from the kernel clears it.
    alive: bool,
    fencing: Option<Fencing>,
    /// What was launched last.
    launched: Option<Launched>,
    last_exit: Option<WaitStatus>,
    /// Counts what an agent wants to hear of.
    changes: u64,
    fences: u64,
    last_fence: Option<&'static str>,
    /// From the first kill to the proof.
    worst_fence: Duration,
}

struct Launched {
    data_dir: PathBuf,
    /// Held open, so that looking for the signal file needs no walk through a path.
    directory: OwnedFd,
    role: Role,
}

/// A fence under way.
struct Fencing {
    start: Instant,
    last_walk: Instant,
    walks: u32,
    /// Walks in a row that found nothing that SIGKILL had not reached before.
    quiet_walks: u32,
    /// How long it took until the proof, once there is one.
    proven: Option<Duration>,
}

/// What is known of a fence that somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Some process may still run.
    Pending,
    /// Nothing is alive that SIGKILL has not been delivered to.
    Proven(Duration),
}

impl Fencing {
    /// Returns how long it took until the proof, or so far.
    fn took(&self) -> Duration {
        self.proven.unwrap_or_else(|| self.start.elapsed())
    }
}

impl Server {
    pub(super) fn new(ordinary: Ordinary) -> io::Result<Self> {
        Ok(Self {
            family: Family::new()?,
            ordinary,
            postmaster: None,
            alive: false,
            fencing: None,
            launched: None,
            last_exit: None,
            changes: 0,
            fences: 0,
            last_fence: None,
            worst_fence: Duration::ZERO,
        })
    }

    /// Starts the launcher, which becomes the postmaster. The stream that comes back ends when
    /// it has, or says why it has not.
    pub(super) fn launch(
        &mut self,
        launch: Launch,
        may_write: bool,
    ) -> Result<(u32, ChildStdout), String> {
        if self.alive {
            return Err("processes of the last server are still alive".to_owned());
        }
        let leftover = server_processes(&launch.data_dir)
            .map_err(|error| format!("{}: {error}", launch.data_dir.display()))?;
        if !leftover.is_empty() {
            return Err(format!(
                "a server that is not this guard's runs there: {leftover:?}"
            ));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&launch.data_dir, flags, Mode::empty())
            .map_err(|error| format!("{}: {error}", launch.data_dir.display()))?;
        match launch.role {
            Role::Primary if !may_write => {
                return Err("a primary needs a deadline that lies ahead".to_owned());
            }
            Role::Standby if !SIGNAL_FILES.iter().any(|name| has(&directory, name)) => {
                return Err("there is neither standby.signal nor recovery.signal".to_owned());
            }
            Role::Primary | Role::Standby => {}
        }
        let launched = Launched {
            data_dir: launch.data_dir.clone(),
            directory,
            role: launch.role,
        };
        let guard = std::process::id();
        let orders = Orders {
            guard,
            ordinary: self.ordinary,
            launch,
        };
        let mut child =
            launcher::start(&orders).map_err(|error| format!("start the launcher: {error}"))?;
        let pid = child.id();
        self.alive = true;
        self.postmaster = i32::try_from(pid).ok().and_then(Pid::from_raw);
        self.launched = Some(launched);
        self.changes += 1;
        let report = child.stdout.take().ok_or("the launcher has no output")?;
        Ok((pid, report))
    }

    /// Adds a child that is no server, to rehearse the fence on.
    pub(super) fn start_rehearsal(&mut self) -> io::Result<()> {
        let child = launcher::start_rehearsal()?;
        self.alive = true;
        self.postmaster = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(())
    }

    /// Sends a signal to the postmaster.
    pub(super) fn signal(&mut self, signal: ServerSignal, may_write: bool) -> Result<(), String> {
        let raw = match signal {
            ServerSignal::Reload => Signal::HUP,
            ServerSignal::SmartStop => Signal::TERM,
            ServerSignal::FastStop => Signal::INT,
            ServerSignal::ImmediateStop => Signal::QUIT,
            ServerSignal::Promote if may_write => Signal::USR1,
            ServerSignal::Promote => {
                return Err("a promotion needs a deadline that lies ahead".to_owned());
            }
        };
        let postmaster = self.postmaster.ok_or("there is no postmaster")?;
        if signal == ServerSignal::Promote
            && let Some(launched) = &mut self.launched
        {
            // The order stands for as long as the server lives, whatever it is at the moment.
            launched.role = Role::Primary;
        }
        kill_process(postmaster, raw).map_err(|error| error.to_string())
    }

    /// Stops the server fast, because `reason`.
    pub(super) fn stop(&mut self, reason: &'static str) {
        if let Some(postmaster) = self.postmaster {
            // A postmaster that just died has been fenced by its death.
            let _died = kill_process(postmaster, Signal::INT);
            self.note_fence(reason);
        }
    }

    /// Begins to kill everything, unless that is under way or nothing is alive.
    pub(super) fn begin_fence(&mut self, reason: &'static str) {
        if self.alive && self.fencing.is_none() {
            let start = Instant::now();
            self.fencing = Some(Fencing {
                start,
                last_walk: start,
                walks: 0,
                quiet_walks: 0,
                proven: None,
            });
            self.note_fence(reason);
        }
    }

    /// Goes on with the fence, if one is under way.
    pub(super) fn continue_fence(&mut self) {
        let Some(fencing) = &mut self.fencing else {
            return;
        };
        // The next walks follow at once, for what the first one turned into orphans, and for the
        // proof. The rest is left to the reaper, and the processor to those that are dying.
        if fencing.walks < 3 || fencing.last_walk.elapsed() >= WALK_PAUSE {
            let walk = self
                .family
                .kill(self.postmaster, fencing.walks > 0)
                .unwrap_or(UNKNOWN);
            fencing.walks += 1;
            fencing.last_walk = Instant::now();
            let quiet = walk.fresh == 0 && walk.missed == 0;
            fencing.quiet_walks = if quiet { fencing.quiet_walks + 1 } else { 0 };
            if fencing.quiet_walks >= 2 && fencing.proven.is_none() {
                fencing.proven = Some(fencing.start.elapsed());
            }
        }
        self.reap();
    }

    /// Takes in every child that has died, and fences the orphans of a postmaster that has.
    pub(super) fn reap(&mut self) {
        if !self.alive {
            return;
        }
        // No more at a time than a fence leaves behind; the signal for the rest is pending still.
        for _ in 0..REAP_LIMIT {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if Some(pid) == self.postmaster {
                        self.postmaster = None;
                        self.last_exit = Some(status);
                        self.changes += 1;
                    }
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_no_child_is_left) => {
                    self.is_gone();
                    return;
                }
            }
        }
        if self.postmaster.is_none() {
            self.begin_fence("postmaster died");
        }
    }

    fn is_gone(&mut self) {
        self.alive = false;
        self.postmaster = None;
        self.changes += 1;
        if let Some(fencing) = self.fencing.take() {
            self.worst_fence = self.worst_fence.max(fencing.took());
        }
    }

    fn note_fence(&mut self, reason: &'static str) {
        self.fences += 1;
        self.last_fence = Some(reason);
        self.changes += 1;
    }

    /// Returns whether any process of the server may be alive.
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Returns how many processes of the server live; a walk that failed has found one.
    pub(super) fn count(&mut self) -> u32 {
        self.family.count().unwrap_or(UNKNOWN).alive
    }

    /// Returns whether all that is left of the server is dead and waits to be reaped.
    pub(super) fn is_dying(&mut self) -> bool {
        self.alive
            && self
                .family
                .count()
                .is_ok_and(|walk| walk.alive == 0 && walk.missed == 0)
    }

    pub(super) fn is_fencing(&self) -> bool {
        self.fencing.is_some()
    }

    /// Returns whether the fence still needs this thread's whole attention.
    pub(super) fn is_urgent(&self) -> bool {
        self.fencing
            .as_ref()
            .is_some_and(|it| it.proven.is_none() && it.start.elapsed() < URGENT)
    }

    /// Returns how far the fence is that began at `since`.
    pub(super) fn proof(&self, since: Instant) -> Proof {
        match &self.fencing {
            // The last deaths follow within milliseconds as a rule, and whoever asked wants to
            // start the server again; but not for as long as the kernel may hold one of them.
            Some(Fencing {
                proven: Some(took),
                start,
                ..
            }) if start.elapsed() > BURIAL => Proof::Proven(*took),
            Some(_) => Proof::Pending,
            None if self.alive => Proof::Pending,
            None => Proof::Proven(since.elapsed()),
        }
    }

    /// Returns whether the server is surely a standby, or there is none.
    pub(super) fn takes_no_writes(&self) -> bool {
        let standby = |it: &Launched| {
            it.role == Role::Standby
                && has(&it.directory, "standby.signal")
                // Whoever wrote it: any signal may be the one that the server takes it for.
                && !has(&it.directory, "promote")
        };
        !self.alive || self.launched.as_ref().is_some_and(standby)
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns the status, but for what the server does not know.
    pub(super) fn status(&self) -> StatusText {
        let under_way = self.fencing.as_ref().map(Fencing::took);
        let number = |pid: Pid| pid.as_raw_nonzero().get().unsigned_abs();
        StatusText {
            guard_pid: std::process::id(),
            postmaster: self.postmaster.map(number),
            alive: self.alive,
            worst_fence_micros: micros(self.worst_fence.max(under_way.unwrap_or_default())),
            fences: self.fences,
            last_fence: self.last_fence.map(str::to_owned),
            data_dir: self.launched.as_ref().map(|it| it.data_dir.clone()),
            role: self.launched.as_ref().map(|it| it.role),
            last_exit: self.last_exit.map(describe),
            ..StatusText::default()
        }
    }
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Returns whether the directory has the file, asking no server over a network.
fn has(directory: &OwnedFd, name: &str) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(directory, name, flags, StatxFlags::TYPE).is_ok()
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// What makes a server start as a standby, or as one that recovers from an archive.
const SIGNAL_FILES: [&str; 2] = ["standby.signal", "recovery.signal"];
/// A walk that failed proves nothing.
const UNKNOWN: Walk = Walk {
    alive: 1,
    fresh: 1,
    missed: 1,
};
/// Between two walks of one fence; a walk costs microseconds per process.
const WALK_PAUSE: Duration = Duration::from_millis(10);
/// How long a fence keeps the guard from its socket; an answer is due within a second.
const URGENT: Duration = Duration::from_millis(300);
/// How long an answer waits for the last death after the proof.
const BURIAL: Duration = Duration::from_millis(500);
const REAP_LIMIT: usize = 4096;
