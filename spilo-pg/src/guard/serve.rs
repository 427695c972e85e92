//! The guard process: one thread, one loop, and the deadline checked on every turn of it.
//!
//! It ends by itself when there is no server, no agent and no deadline ahead for a while. SIGTERM
//! (a machine that shuts down sends it to everybody) stops the server fast and ends the guard
//! when the server is gone; until then the deadline holds.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use spilo_core::guard::Deadline;

use super::client::SOCKET;
use super::connection::{Connection, Waiting};
use super::deadline::{Due, InForce};
use super::harden;
use super::proc::boot_time;
use super::protocol::{self, Failure, Reply, Request, StatusText, VERSION};
use super::server::{Proof, Server, micros};

/// Everything the guard keeps, all of it in memory: a disk that hangs must not hold it up.
struct Guard {
    name: String,
    server: Server,
    force: InForce,
    weaknesses: Vec<String>,
    signals: SignalFd,
    timer: OwnedFd,
    listener: UnixListener,
    socket: PathBuf,
    connections: Vec<Connection>,
    /// The launcher that has not become the postmaster yet.
    starting: Option<Starting>,
    /// Whether it is to end when the server is gone.
    ending: bool,
    idle: Duration,
    idle_since: Instant,
    /// Held as long as the process lives: one guard per directory.
    _lock: File,
}

struct Starting {
    pid: u32,
    report: ChildStdout,
    problem: Vec<u8>,
    since: Instant,
}

/// What comes of a request.
enum Answer {
    Now(Reply),
    Later(Waiting),
}

/// Runs the guard until it ends; returns its exit status.
pub(super) fn main(args: Vec<OsString>) -> i32 {
    match Guard::start(args) {
        Ok(Some(mut guard)) => {
            guard.run();
            0
        }
        // Another guard holds the directory, and is the one to talk to.
        Ok(None) => 0,
        Err(problem) => {
            let _nobody_reads_it = writeln!(io::stderr(), "{problem}");
            1
        }
    }
}

impl Guard {
    fn start(args: Vec<OsString>) -> Result<Option<Self>, String> {
        let mut args = args.into_iter();
        let run_dir = PathBuf::from(args.next().ok_or("no directory was named")?);
        let idle = args
            .next()
            .and_then(|text| text.to_str()?.parse().ok())
            .unwrap_or(5000);
        let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if threads != 1 {
            return Err(format!(
                "{threads} threads instead of one: call it first in main"
            ));
        }
        let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        let Some(lock) = lock(&run_dir).map_err(say("lock"))? else {
            return Ok(None);
        };
        // Fails in a process that leads its group already, which is as good.
        let _leads_already = rustix::process::setsid();
        let _cosmetic = rustix::thread::set_name(c"spilo-guard");
        rustix::process::chdir("/").map_err(|error| format!("change directory: {error}"))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| format!("become reaper: {e}"))?;
        let signals = take_signals().map_err(|error| format!("take signals: {error}"))?;
        let (ordinary, weaknesses) = harden::raise();
        rehearse(Server::new(ordinary).map_err(say("open /proc"))?, &signals)?;
        let server = Server::new(ordinary).map_err(say("open /proc"))?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)
            .map_err(|error| format!("create a timer: {error}"))?;
        let listener = listen(&run_dir).map_err(say("listen"))?;
        Ok(Some(Self {
            name: format!("{}-{}", std::process::id(), boot_time().0),
            server,
            force: InForce::default(),
            weaknesses,
            signals,
            timer,
            listener,
            socket: run_dir.join(SOCKET),
            connections: Vec::new(),
            starting: None,
            ending: false,
            idle: Duration::from_millis(idle),
            idle_since: Instant::now(),
            _lock: lock,
        }))
    }

    fn run(&mut self) {
        loop {
            self.enforce();
            self.answer_those_who_wait();
            if self.may_end() {
                break;
            }
            self.set_timer();
            self.sleep();
            self.enforce();
            self.accept();
            self.serve();
        }
        // The lock is still held, so this is no other guard's socket.
        let _gone_already = fs::remove_file(&self.socket);
    }

    /// Does what the time and the children's deaths ask for. Nothing here allocates, and nothing
    /// here is skipped, whatever arrives on the socket.
    fn enforce(&mut self) {
        self.read_signals();
        self.server.reap();
        match self.force.due(boot_time()) {
            Due::Nothing => {}
            Due::Stop => {
                self.server.stop("soft deadline");
                self.force.stop_was_sent();
            }
            Due::Kill => self.server.begin_fence("hard deadline"),
        }
        self.server.continue_fence();
        while self.server.is_urgent() {
            wait_for_child(&self.signals);
            self.read_signals();
            self.server.continue_fence();
        }
        if !self.server.is_alive() {
            self.force.server_is_gone(boot_time());
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let is = |signal: Signal| i64::from(info.ssi_signo) == i64::from(signal as i32);
            if is(Signal::SIGTERM) || is(Signal::SIGINT) {
                self.ending = true;
                self.server.stop("guard was told to end");
            }
        }
    }

    fn may_end(&mut self) -> bool {
        if self.server.is_alive() || self.starting.is_some() {
            self.idle_since = Instant::now();
            return false;
        }
        if self.ending {
            return true;
        }
        if !self.connections.is_empty() || self.force.deadline().is_some() {
            self.idle_since = Instant::now();
        }
        self.idle_since.elapsed() >= self.idle
    }

    /// Sets the timer to what falls due next. What is due already is under way.
    fn set_timer(&self) {
        let at = self
            .force
            .next()
            .filter(|&at| at > boot_time())
            .map_or(0, |at| at.0);
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let it_value = Timespec {
            tv_sec: i64::try_from(at / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at % 1000 * 1_000_000).unwrap_or(0),
        };
        let time = Itimerspec {
            it_interval: zero,
            it_value,
        };
        // It cannot fail with these arguments, and the loop wakes by itself if it did.
        let _cannot_fail =
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time);
    }

    /// Waits until something happens.
    fn sleep(&mut self) {
        let mut fds = Vec::with_capacity(MAX_CONNECTIONS + 4);
        fds.push(PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        ));
        fds.push(PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN));
        if self.connections.len() < MAX_CONNECTIONS {
            fds.push(PollFd::from_borrowed_fd(
                self.listener.as_fd(),
                PollFlags::IN,
            ));
        }
        if let Some(starting) = &self.starting {
            fds.push(PollFd::from_borrowed_fd(
                starting.report.as_fd(),
                PollFlags::IN,
            ));
        }
        for it in &self.connections {
            let mut wants = PollFlags::empty();
            wants.set(PollFlags::IN, it.wants_to_read());
            wants.set(PollFlags::OUT, it.wants_to_write());
            fds.push(PollFd::from_borrowed_fd(it.stream.as_fd(), wants));
        }
        let busy = self.connections.iter().any(Connection::has_line);
        let span = if busy {
            Duration::ZERO
        } else if self.server.is_fencing() {
            FENCE_TICK
        } else if !self.server.is_alive() {
            TICK
        } else {
            // The timer is what ends the wait in time, on a machine that slept as well; this is
            // for the case that it fails.
            let due = self.force.next().map(|at| at.since(boot_time()));
            due.map_or(LONG_TICK, |due| (due + LATE).min(LONG_TICK))
        };
        let span = Timespec {
            tv_sec: span.as_secs().cast_signed(),
            tv_nsec: span.subsec_nanos().into(),
        };
        // An interrupted wait is a short one.
        let _woken = poll(&mut fds, Some(&span));
        let mut expirations = [0; 8];
        let _nothing_expired = rustix::io::read(&self.timer, &mut expirations);
    }

    fn accept(&mut self) {
        self.connections
            .retain(|it| !it.is_closed() && !it.is_stale());
        for _ in 0..ACCEPTS_PER_TURN {
            // The others wait in the socket's queue, which to them is silence, not death.
            if self.connections.len() >= MAX_CONNECTIONS {
                return;
            }
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            let peer = rustix::net::sockopt::socket_peercred(&stream);
            let me = rustix::process::geteuid();
            if peer.is_ok_and(|peer| peer.uid == me || peer.uid.is_root()) {
                self.connections.extend(Connection::new(stream).ok());
            }
        }
    }

    /// Serves one request of each connection, with a look at the deadline after each.
    fn serve(&mut self) {
        let mut connections = std::mem::take(&mut self.connections);
        for connection in &mut connections {
            if connection.wants_to_read() {
                connection.read();
            }
            connection.flush();
            let Some(line) = connection.next_line() else {
                continue;
            };
            let answer = match protocol::parse(&line, &self.name) {
                Ok(request) => {
                    // It may be silent from now on: whoever knows this guard's name means well.
                    connection.is_presence = true;
                    // Who has left does without by now, and may have decided that nothing came of it.
                    if !matches!(request, Request::Fence) && !connection.is_attended() {
                        continue;
                    }
                    self.handle(request)
                }
                Err(failure) => {
                    connection.note_bad_line();
                    Err(failure)
                }
            };
            match answer {
                Ok(Answer::Later(waiting)) => connection.waiting = waiting,
                Ok(Answer::Now(reply)) => connection.answer(&self.signed(reply)),
                Err(failure) => connection.answer(&self.signed(Reply::failed(failure))),
            }
            self.enforce();
        }
        self.connections = connections;
    }

    fn handle(&mut self, request: Request) -> Result<Answer, Failure> {
        if matches!(
            request,
            Request::Launch(_) | Request::Disarm | Request::Quit
        ) {
            self.await_burial();
        }
        let now = boot_time();
        let may_write = self.force.permits_writes(now);
        let refused = Failure::refused;
        match request {
            Request::Hello => {}
            Request::Status => return Ok(Answer::Now(self.status())),
            Request::Arm(deadline) => {
                self.force
                    .arm(Deadline::from(deadline), now)
                    .map_err(refused)?;
                return Ok(Answer::Now(self.status()));
            }
            Request::Disarm if self.server.takes_no_writes() => {
                self.force.disarm();
                return Ok(Answer::Now(self.status()));
            }
            Request::Disarm => return Err(refused("the server may be a primary".to_owned())),
            Request::Launch(_) if self.ending => return Err(refused("the guard ends".to_owned())),
            Request::Launch(launch) => {
                let (pid, report) = self.server.launch(launch, may_write).map_err(refused)?;
                let _reads_may_block_then = rustix::io::ioctl_fionbio(&report, true);
                let (problem, since) = (Vec::new(), Instant::now());
                self.starting = Some(Starting {
                    pid,
                    report,
                    problem,
                    since,
                });
                return Ok(Answer::Later(Waiting::Launch(pid)));
            }
            Request::Signal { signal } => self.server.signal(signal, may_write).map_err(refused)?,
            Request::Fence => {
                let since = Instant::now();
                self.server.begin_fence("asked");
                return Ok(Answer::Later(Waiting::Fence(since)));
            }
            Request::Changed { since } => return Ok(Answer::Later(Waiting::Change(since))),
            Request::Quit if self.server.is_alive() => {
                return Err(refused("processes of the server are alive".to_owned()));
            }
            Request::Quit => self.ending = true,
        }
        Ok(Answer::Now(Reply::default()))
    }

    /// Waits a moment for processes that are dying, since whoever asks may have seen them die.
    fn await_burial(&mut self) {
        let start = Instant::now();
        while self.server.is_dying() && start.elapsed() < BURIAL_LIMIT {
            wait_for_child(&self.signals);
            self.read_signals();
            self.server.reap();
        }
    }

    fn status(&self) -> Reply {
        let deadline = self.force.deadline().cloned().map(Into::into);
        let weaknesses = self.weaknesses.clone();
        let status = StatusText {
            deadline,
            weaknesses,
            ..self.server.status()
        };
        Reply {
            status: Some(Box::new(status)),
            ..Reply::default()
        }
    }

    fn answer_those_who_wait(&mut self) {
        let started = self.poll_starting();
        let mut connections = std::mem::take(&mut self.connections);
        for connection in &mut connections {
            let reply = match connection.waiting {
                Waiting::Nothing => continue,
                Waiting::Change(since) if self.server.changes() == since => continue,
                Waiting::Change(_) => Reply::default(),
                Waiting::Fence(since) => match self.server.proof(since) {
                    Proof::Pending => continue,
                    Proof::Proven(took) => Reply {
                        took_micros: Some(micros(took)),
                        ..Reply::default()
                    },
                },
                Waiting::Launch(pid) => match &started {
                    Some((started, result)) if *started == pid => match result {
                        Ok(()) => Reply {
                            pid: Some(pid),
                            ..Reply::default()
                        },
                        Err(problem) => Reply::failed(Failure::refused(problem.clone())),
                    },
                    _ => continue,
                },
            };
            connection.answer(&self.signed(reply));
        }
        self.connections = connections;
    }

    /// Returns what became of the launcher, once that is known.
    fn poll_starting(&mut self) -> Option<(u32, Result<(), String>)> {
        let starting = self.starting.as_mut()?;
        let mut chunk = [0; 512];
        let running = match starting.report.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                starting
                    .problem
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        // A launcher that failed is waited for, so that the next launch finds nothing alive.
        let unfinished = running || (!starting.problem.is_empty() && self.server.is_alive());
        if unfinished && starting.since.elapsed() < LAUNCH_LIMIT {
            return None;
        }
        let Starting { pid, problem, .. } = self.starting.take()?;
        let problem = String::from_utf8_lossy(&problem).into_owned();
        Some((
            pid,
            if problem.is_empty() {
                Ok(())
            } else {
                Err(problem)
            },
        ))
    }

    fn signed(&self, reply: Reply) -> Reply {
        let (v, guard, changes) = (VERSION, self.name.clone(), self.server.changes());
        Reply {
            v,
            guard,
            changes,
            ..reply
        }
    }
}

impl Reply {
    fn failed(failure: Failure) -> Self {
        Self {
            error: Some(failure),
            ..Self::default()
        }
    }
}

/// Takes the lock of the directory; none if another guard has it.
fn lock(run_dir: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(run_dir.join("guard.lock"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(run_dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Through the directory's descriptor, because a socket's path is limited to 107 bytes.
    let directory = File::open(run_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        // The agent's own, which reach its guard where somebody signals both by their name.
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Fences a process that is there for it, so that every page that the fence needs is in memory
/// (and locked there), and a machine on which it cannot work is found out now.
fn rehearse(mut server: Server, signals: &SignalFd) -> Result<(), String> {
    server
        .start_rehearsal()
        .map_err(|error| format!("rehearse the fence: {error}"))?;
    let alive = server.count();
    server.begin_fence("rehearsal");
    server.continue_fence();
    let start = Instant::now();
    while server.is_alive() && start.elapsed() < REHEARSAL_LIMIT {
        wait_for_child(signals);
        while let Ok(Some(_)) = signals.read_signal() {}
        server.continue_fence();
    }
    if server.is_alive() || alive == 0 {
        return Err("rehearse the fence: a child cannot be found or killed".to_owned());
    }
    Ok(())
}

fn wait_for_child(signals: &SignalFd) {
    let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    let _woken = poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        }),
    );
}

/// An agent needs three; the rest is for people and for those who misbehave.
const MAX_CONNECTIONS: usize = 32;
const ACCEPTS_PER_TURN: usize = 4;
/// How often a fence is looked after that the kernel holds up.
const FENCE_TICK: Duration = Duration::from_millis(10);
/// How often a guard without a server looks whether it has been idle for long enough to end.
const TICK: Duration = Duration::from_secs(1);
/// How often the loop turns by itself in any case.
const LONG_TICK: Duration = Duration::from_secs(60);
/// By how much a deadline may be late whose timer has failed.
const LATE: Duration = Duration::from_millis(5);
const LAUNCH_LIMIT: Duration = Duration::from_millis(800);
/// Nothing is alive meanwhile, so nothing is missed.
const BURIAL_LIMIT: Duration = Duration::from_millis(200);
const REHEARSAL_LIMIT: Duration = Duration::from_secs(2);
