//! The agent's side of the guard.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::guard::{Deadline, Guard, GuardError, GuardErrorKind, GuardStatus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::protocol::{self, Launch, Reply, Request, Role, ServerSignal, StatusText};
use super::{GUARD_NAME, SERVE, argument};

/// The agent's handle on one living guard.
///
/// # Contract
/// It speaks to the guard that it connected to and to no other: once that one has died, every
/// method fails with [`GuardErrorKind::Gone`], also when another guard has taken its place. While
/// the handle lives, an idle guard does not exit.
///
/// # Cancellation
/// Every method may be dropped; a request that had left may still be carried out.
#[derive(Debug)]
pub struct GuardClient {
    run_dir: PathBuf,
    /// The guard's own name, of this one incarnation.
    name: String,
    pid: u32,
    adopted: bool,
    /// How many changes of the server's processes this handle has heard of.
    changes: AtomicU64,
    /// An open connection is what tells the guard that an agent is alive.
    _presence: UnixStream,
    /// The connection of the last of the requests that come all the time. Taken out while it is in
    /// use: a request that is dropped half-way takes it along, so that no answer can be taken for
    /// that of another request.
    kept: Mutex<Option<UnixStream>>,
}

/// Where the guard lives and what program it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuardOptions {
    /// The directory of the guard's socket and lock, created with mode 0700. One guard per
    /// directory, and one server per guard.
    pub run_dir: PathBuf,
    /// The program that is started as the guard: one whose `main` begins with
    /// [`run_if_guard`](super::run_if_guard). None for the running program itself.
    pub program: Option<PathBuf>,
    /// How long a guard without server and without agent stays.
    pub idle: Duration,
}

/// What a guard says of itself and its server, beyond the core's [`GuardStatus`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuardReport {
    /// What the core wants to know.
    pub status: GuardStatus,
    /// The process id of the guard.
    pub guard_pid: u32,
    /// The data directory of the server that it runs or ran last.
    pub data_dir: Option<PathBuf>,
    /// What that server was started as; a standby may have been promoted since.
    pub role: Option<Role>,
    /// How the last postmaster ended, for people.
    pub last_exit: Option<String>,
}

impl GuardOptions {
    /// Creates the options of a guard that lives in `run_dir` and is this program itself.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            program: None,
            idle: IDLE,
        }
    }
}

impl GuardClient {
    /// Connects to the guard that lives in the directory, or starts one there.
    ///
    /// # Errors
    /// `Silent` when a guard holds the directory and does not answer within a second: see
    /// [`end_silent`](Self::end_silent). `Gone` when none could be started. `Refused` when the
    /// directory or the guard belongs to somebody else.
    pub async fn connect_or_spawn(options: &GuardOptions) -> Result<Self, GuardError> {
        prepare(&options.run_dir)?;
        match Self::connect(&options.run_dir).await {
            Err(error) if error.kind() == GuardErrorKind::Gone => {}
            result => return result,
        }
        let mut child = spawn(options)?;
        let limit = Instant::now() + START_LIMIT;
        loop {
            match Self::connect(&options.run_dir).await {
                Ok(client) => {
                    return Ok(Self {
                        adopted: client.pid != id(&child),
                        ..client
                    });
                }
                Err(error) if error.kind() != GuardErrorKind::Gone => return Err(error),
                Err(error) if Instant::now() >= limit => return Err(error),
                Err(_) => {}
            }
            // A guard that found another one in its place ends with success: that one answers.
            if let Ok(Some(status)) = child.try_wait()
                && !status.success()
            {
                let said = std::fs::read_to_string(options.run_dir.join(LOG)).unwrap_or_default();
                let problem = format!("{status}: {}", said.trim());
                return Err(GuardError::new(
                    GuardErrorKind::Gone,
                    "start the guard",
                    problem,
                ));
            }
            sleep(START_POLL).await;
        }
    }

    /// Connects to the guard that lives in the directory.
    ///
    /// # Errors
    /// `Gone` when there is none. Otherwise as [`connect_or_spawn`](Self::connect_or_spawn).
    pub async fn connect(run_dir: &Path) -> Result<Self, GuardError> {
        let limit = Instant::now() + ANSWER_LIMIT;
        let presence = open(run_dir, "connect").await?;
        let pid = presence
            .peer_cred()
            .ok()
            .and_then(|peer| peer.pid())
            .unwrap_or(0);
        let mut stream = presence;
        let line = encode(&Request::Hello, None, "connect")?;
        let reply = timeout_at(limit, exchange(&mut stream, &line, "connect"))
            .await
            .map_err(|_| silent("connect"))??;
        Ok(Self {
            run_dir: run_dir.to_owned(),
            name: reply.guard,
            pid: pid.unsigned_abs(),
            adopted: true,
            changes: AtomicU64::new(reply.changes),
            _presence: stream,
            kept: Mutex::default(),
        })
    }

    /// Kills a guard that lives in the directory and does not answer, so that another one can be
    /// started. Returns whether there was one.
    ///
    /// # Contract
    /// PostgreSQL gets SIGQUIT when its guard dies, which a frozen postmaster ignores: call
    /// [`fence_without_guard`](super::fence_without_guard) before and after.
    ///
    /// # Errors
    /// `Refused` when the kernel does not permit it.
    pub async fn end_silent(run_dir: &Path) -> Result<bool, GuardError> {
        let action = "end a silent guard";
        let refused = |problem: String| GuardError::new(GuardErrorKind::Refused, action, problem);
        // The kernel answers a connection in the place of a process that hangs, and knows its pid.
        let stream = match open(run_dir, action).await {
            Err(error) if error.kind() == GuardErrorKind::Gone => return Ok(false),
            result => result?,
        };
        let peer = stream
            .peer_cred()
            .map_err(|error| refused(error.to_string()))?;
        let pid = peer.pid().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else {
            return Err(refused("its process id is unknown".to_owned()));
        };
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(true),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// Returns whether the guard was there before, and with it perhaps a running server and the
    /// secret of a lease.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Returns the guard's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Starts PostgreSQL under the guard and returns the postmaster's process id, once the
    /// program runs; that it accepts connections is another matter.
    ///
    /// # Errors
    /// `Refused` while any process of a server is alive (under the guard or in the data
    /// directory), for a primary without a deadline ahead, for a standby without a signal file,
    /// and when the program or the log file cannot be opened.
    pub async fn launch(&self, launch: Launch) -> Result<u32, GuardError> {
        let action = format!("start {}", launch.program.display());
        let reply = self.request(&Request::Launch(launch), &action).await?;
        reply
            .pid
            .ok_or_else(|| refused(&action, "the answer bears no process id"))
    }

    /// Sends a signal to the postmaster.
    ///
    /// # Errors
    /// `Refused` when there is no postmaster, and for [`ServerSignal::Promote`] without a
    /// deadline ahead.
    pub async fn signal(&self, signal: ServerSignal) -> Result<(), GuardError> {
        let action = format!("signal the server ({signal:?})");
        self.request(&Request::Signal { signal }, &action)
            .await
            .map(drop)
    }

    /// Kills every process of the server and returns how long that took, once no process is left;
    /// or, when the kernel holds one up, once SIGKILL has been delivered to all of them, after
    /// which none of them commits or acknowledges anything.
    ///
    /// # Errors
    /// `Silent` when the proof takes longer than a second. The guard goes on all the same.
    pub async fn fence(&self) -> Result<Duration, GuardError> {
        let reply = self.request(&Request::Fence, "fence").await?;
        Ok(Duration::from_micros(reply.took_micros.unwrap_or_default()))
    }

    /// Returns all that the guard says of itself.
    ///
    /// # Errors
    /// `Gone` and `Silent`.
    pub async fn report(&self) -> Result<GuardReport, GuardError> {
        let text = self.look(&Request::Status, "read the status").await?;
        let StatusText {
            guard_pid, role, ..
        } = text;
        let (data_dir, last_exit) = (text.data_dir.clone(), text.last_exit.clone());
        Ok(GuardReport {
            status: text.into_status(),
            guard_pid,
            data_dir,
            role,
            last_exit,
        })
    }

    /// Ends the guard, which has no server any more.
    ///
    /// # Errors
    /// `Refused` while a process of the server is alive.
    pub async fn quit(&self) -> Result<(), GuardError> {
        self.request(&Request::Quit, "end the guard")
            .await
            .map(drop)
    }

    /// Sends a request that may be sent twice and returns the status that answers it.
    async fn look(&self, request: &Request, action: &str) -> Result<StatusText, GuardError> {
        let whole = async {
            let line = encode(request, Some(&self.name), action)?;
            let kept = held(&self.kept).take();
            if let Some(mut stream) = kept
                && let Ok(reply) = exchange(&mut stream, &line, action).await
            {
                *held(&self.kept) = Some(stream);
                return Ok(reply);
            }
            let mut stream = open(&self.run_dir, action).await?;
            let reply = exchange(&mut stream, &line, action).await?;
            *held(&self.kept) = Some(stream);
            Ok(reply)
        };
        let reply = timeout(ANSWER_LIMIT, whole)
            .await
            .map_err(|_| silent(action))??;
        let status = reply.status.map(|status| *status);
        status.ok_or_else(|| refused(action, "the answer bears no status"))
    }

    /// Sends one request on a connection of its own and returns the answer.
    async fn request(&self, request: &Request, action: &str) -> Result<Reply, GuardError> {
        timeout(ANSWER_LIMIT, self.patient_request(request, action))
            .await
            .map_err(|_| silent(action))?
    }

    async fn patient_request(&self, request: &Request, action: &str) -> Result<Reply, GuardError> {
        let line = encode(request, Some(&self.name), action)?;
        let mut stream = open(&self.run_dir, action).await?;
        exchange(&mut stream, &line, action).await
    }
}

#[async_trait]
impl Guard for GuardClient {
    async fn arm(&self, deadline: Deadline) -> Result<GuardStatus, GuardError> {
        self.look(&Request::Arm(deadline.into()), "move the deadline")
            .await
            .map(StatusText::into_status)
    }

    async fn disarm(&self) -> Result<GuardStatus, GuardError> {
        self.look(&Request::Disarm, "take the deadline away")
            .await
            .map(StatusText::into_status)
    }

    async fn status(&self) -> Result<GuardStatus, GuardError> {
        self.report().await.map(|report| report.status)
    }

    async fn changed(&self) -> Result<(), GuardError> {
        let since = self.changes.load(Ordering::Relaxed);
        let reply = self
            .patient_request(&Request::Changed { since }, "wait for a change")
            .await?;
        self.changes.store(reply.changes, Ordering::Relaxed);
        Ok(())
    }
}

/// Creates the directory of the guard, or checks that nobody else can enter it.
fn prepare(run_dir: &Path) -> Result<(), GuardError> {
    let action = format!("use the directory {}", run_dir.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .and_then(|()| run_dir.symlink_metadata())
        .and_then(|metadata| is_private(&metadata))
        .map_err(|error| refused(&action, error.to_string()))
}

fn is_private(metadata: &Metadata) -> io::Result<()> {
    let me = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if metadata.uid() != me && metadata.uid() != 0 {
        return Err(io::Error::other("it belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "others may enter it; its mode must be 0700",
        ));
    }
    Ok(())
}

/// Starts a guard. It makes itself the leader of a session, so it survives this process; nothing
/// kills it when the handle is dropped.
fn spawn(options: &GuardOptions) -> Result<Child, GuardError> {
    let program = options
        .program
        .clone()
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let action = format!("start the guard {}", program.display());
    let failed =
        |error: io::Error| GuardError::new(GuardErrorKind::Gone, &action, error.to_string());
    let log = File::create(options.run_dir.join(LOG)).map_err(failed)?;
    Command::new(&program)
        .arg0(argument(GUARD_NAME))
        .arg(argument(SERVE))
        .arg(std::path::absolute(&options.run_dir).map_err(failed)?)
        .arg(options.idle.as_millis().to_string())
        .env_clear()
        .envs(loader_environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(false)
        .spawn()
        .map_err(failed)
}

/// Returns what the guard inherits: what the dynamic loader needs, and none of the secrets that
/// an agent's environment may have.
fn loader_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LD_"))
}

/// Opens a connection to the guard and checks whose it is. A shortage of descriptors may pass.
async fn open(run_dir: &Path, action: &str) -> Result<UnixStream, GuardError> {
    let end = Instant::now() + SHORTAGE;
    loop {
        match open_once(run_dir, action).await {
            Err(error) if error.kind() == GuardErrorKind::Silent && Instant::now() < end => {
                sleep(START_POLL).await;
            }
            result => return result,
        }
    }
}

async fn open_once(run_dir: &Path, action: &str) -> Result<UnixStream, GuardError> {
    let gone = |error: io::Error| match error.kind() {
        // The queue of the socket is full: the guard has stopped taking connections.
        io::ErrorKind::WouldBlock => silent(action),
        _ => broken(action, &error),
    };
    // Through the directory's descriptor, because a socket's path is limited to 107 bytes.
    let directory = File::open(run_dir).map_err(gone)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    let stream = UnixStream::connect(&path).await.map_err(gone)?;
    let peer = stream.peer_cred().map_err(gone)?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(refused(
            action,
            format!("the socket belongs to user {peer}"),
        ));
    }
    Ok(stream)
}

fn encode(request: &Request, to: Option<&str>, action: &str) -> Result<Vec<u8>, GuardError> {
    let line = protocol::write(request, to).map_err(|error| refused(action, error.to_string()))?;
    if line.len() > protocol::MAX_LINE {
        return Err(refused(
            action,
            format!("the request is {} bytes long", line.len()),
        ));
    }
    Ok(line)
}

/// Sends one line and reads one.
async fn exchange(stream: &mut UnixStream, line: &[u8], action: &str) -> Result<Reply, GuardError> {
    let gone = |problem: String| GuardError::new(GuardErrorKind::Gone, action, problem);
    stream
        .write_all(line)
        .await
        .map_err(|error| broken(action, &error))?;
    let mut answer = Vec::with_capacity(USUAL);
    while answer.last() != Some(&b'\n') {
        if answer.len() > protocol::MAX_LINE {
            return Err(refused(action, "the answer has no end"));
        }
        let count = stream
            .read_buf(&mut answer)
            .await
            .map_err(|error| broken(action, &error))?;
        if count == 0 {
            return Err(gone("it closed the connection".to_owned()));
        }
    }
    let reply: Reply = serde_json::from_slice(&answer)
        .map_err(|error| refused(action, format!("bad answer: {error}")))?;
    match reply.error {
        Some(failure) if failure.other_guard => Err(gone(failure.problem)),
        Some(failure) => Err(refused(action, failure.problem)),
        None => Ok(reply),
    }
}

fn held<T>(cell: &Mutex<T>) -> MutexGuard<'_, T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id(child: &Child) -> u32 {
    child.id().unwrap_or_default()
}

/// Judges an error of the socket. A process, or a machine, that has no descriptor or no memory left
/// for it has learned nothing of the guard.
fn broken(action: &str, error: &io::Error) -> GuardError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => GuardErrorKind::Gone,
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory => GuardErrorKind::Refused,
        _ => GuardErrorKind::Silent,
    };
    GuardError::new(kind, action, error.to_string())
}

fn silent(action: &str) -> GuardError {
    GuardError::new(GuardErrorKind::Silent, action, "no answer within a second")
}

fn refused(action: &str, problem: impl Into<String>) -> GuardError {
    GuardError::new(GuardErrorKind::Refused, action, problem)
}

/// An answer is shorter than this, and read in one go.
const USUAL: usize = 1024;

/// Less than a guard may take for an answer.
const SHORTAGE: Duration = Duration::from_millis(900);

/// The name of the socket in the guard's directory.
pub(super) const SOCKET: &str = "guard.sock";
/// What a guard that cannot start says; nothing is written there afterwards.
const LOG: &str = "guard.log";
/// A guard answers from memory, so one that takes this long hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long a new guard may take until it listens; a cold disk has to read the program first.
const START_LIMIT: Duration = Duration::from_secs(5);
const START_POLL: Duration = Duration::from_millis(5);
/// Long enough for an agent to be restarted without losing its guard.
const IDLE: Duration = Duration::from_secs(5);
