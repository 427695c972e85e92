//! Looking at the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use spilo_core::guard::GuardErrorKind;
use spilo_core::pg::{PgError, PgErrorKind, PgStatus, Role, Running, Server};
use spilo_core::time::{Clock, NodeTime};
use spilo_core::wal::{Lsn, Timeline};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::LocalOptions;
use crate::guard::{GuardClient, server_processes};

use super::controldata::ControlData;
use super::disk::{Disk, Seen};
use super::query::{self, Answer};
use super::remote::replayed_timeline;
use super::sql::{self, Purpose, Session, SqlError};

/// What the observer needs to look, and what it remembers between looks.
#[derive(Debug)]
pub(crate) struct Eye {
    options: Arc<LocalOptions>,
    clock: Arc<dyn Clock>,
    disk: Disk,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    session: Option<Session>,
    /// When a new connection last succeeded.
    connected: Option<NodeTime>,
    /// When the server last took one, be it only to knock.
    knocked: Option<NodeTime>,
    /// Whether it is better not knocked at.
    speaks_tls: bool,
    /// Whether a new connection failed in a way that makes the old one's answers worthless: a
    /// stopped postmaster's backends answer as if nothing was.
    doubt: bool,
    /// Why the last new connection was turned away, if it was.
    shut: Option<String>,
    last: Option<Running>,
    /// The latest timeline that the server which started then was seen to receive.
    received: Option<(String, Timeline)>,
    /// The timeline of a replay position, as the server told it; asked where nothing was received.
    replayed: Option<(String, Lsn, Timeline)>,
    guarded: bool,
}

/// What the server is asked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// The connection of before.
    Kept,
    /// The same, and the server takes new ones.
    Knocked,
    /// A new one.
    New,
}

/// Whose processes are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alive {
    /// None.
    Nobody,
    /// A server's, under the guard or not.
    Somebody {
        /// Whether the guard is its parent.
        guarded: bool,
    },
}

impl Eye {
    /// Creates an observer that has seen nothing.
    pub(crate) fn new(options: Arc<LocalOptions>, clock: Arc<dyn Clock>) -> Self {
        Self {
            options,
            clock,
            disk: Disk::default(),
            memory: Mutex::default(),
        }
    }

    /// Looks at everything, within [`LIMIT`].
    ///
    /// # Errors
    /// When not even the data directory could be looked at.
    pub(crate) async fn observe(&self, guard: &GuardClient) -> Result<PgStatus, PgError> {
        let until = Instant::now() + LIMIT;
        let (seen, server) = tokio::join!(self.look_at_disk(), self.look_at_server(guard, until));
        let (seen, server) = (seen?, server?);
        if let (Server::Running(running), Some(control)) = (&server, &seen.control)
            && matches!(running.role, Role::Standby { paused: true, .. })
        {
            self.end_if_short(control, until).await;
        }
        Ok(PgStatus {
            data: seen.data,
            server,
            configured: None,
            archive: None,
        })
    }

    /// Ends the pause of a standby that waits, from version 14 on, for higher parameters: only a
    /// restart can give them, and until then it replays nothing and cannot be promoted. Going on it
    /// ends, as an earlier version does at once, and is started with what its control file demands.
    async fn end_if_short(&self, control: &ControlData, until: Instant) {
        let work = async {
            let memory = self.memory.lock().await;
            let session = memory.session.as_ref()?;
            let rows = session.rows(query::FLOORED, SHORT_ANSWER).await.ok()?;
            let short = rows.iter().find_map(|row| {
                let (name, now) = (row.get(0)?, row.get(1)?.parse::<u64>().ok()?);
                let floor = control.floor(name).filter(|floor| now < *floor)?;
                Some(format!("{name} is {now} here, and was raised to {floor}"))
            })?;
            tracing::warn!("the standby has paused and is restarted: {short}");
            session
                .rows("SELECT pg_wal_replay_resume()", SHORT_ANSWER)
                .await
                .err()
        };
        // A server that ends meanwhile is what was wanted; anything else is seen again.
        if let Ok(Some(error)) = timeout_at(until, work).await {
            tracing::debug!(%error, "replay may not go on");
        }
    }

    /// Looks at the data directory.
    pub(crate) async fn look_at_disk(&self) -> Result<Seen, PgError> {
        self.disk.look(&self.options, LIMIT).await
    }

    /// Tells whose processes are alive, without asking the server.
    ///
    /// # Errors
    /// When neither the guard nor `/proc` tells.
    pub(crate) async fn alive(&self, guard: &GuardClient) -> Result<Alive, PgError> {
        match guard.report().await {
            Ok(report) if report.status.alive => {
                return Ok(Alive::Somebody { guarded: true });
            }
            Err(error) if error.kind() == GuardErrorKind::Silent => {
                // A guard that hangs is still the parent of the server that it was.
                let was = self.memory.try_lock().is_ok_and(|memory| memory.guarded);
                return Ok(match self.scan().await? {
                    Alive::Somebody { .. } => Alive::Somebody { guarded: was },
                    Alive::Nobody => Alive::Nobody,
                });
            }
            Ok(_) | Err(_) => {}
        }
        self.scan().await
    }

    async fn scan(&self) -> Result<Alive, PgError> {
        Ok(match self.processes().await?.is_empty() {
            true => Alive::Nobody,
            false => Alive::Somebody { guarded: false },
        })
    }

    /// Returns the processes of a server in the data directory, whoever started it.
    pub(crate) async fn processes(&self) -> Result<Vec<u32>, PgError> {
        let data_dir = self.options.data_dir.clone();
        let found = tokio::task::spawn_blocking(move || server_processes(&data_dir)).await;
        match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(pids) => Ok(pids),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => {
                let action = "look for processes of the server";
                Err(PgError::new(PgErrorKind::Retry, action, error.to_string()).because(error))
            }
        }
    }

    async fn look_at_server(&self, guard: &GuardClient, until: Instant) -> Result<Server, PgError> {
        let alive = match timeout_at(until, self.alive(guard)).await {
            Ok(alive) => alive?,
            Err(_) => {
                let action = "look for processes of the server";
                return Err(PgError::new(
                    PgErrorKind::Retry,
                    action,
                    "no answer in time",
                ));
            }
        };
        let Ok(mut memory) = timeout_at(until, self.memory.lock()).await else {
            let problem = "an earlier observation is still under way";
            return Err(PgError::new(
                PgErrorKind::Retry,
                "look at the server",
                problem,
            ));
        };
        let Alive::Somebody { guarded } = alive else {
            *memory = Memory::default();
            return Ok(Server::Down);
        };
        memory.guarded = guarded;
        match timeout_at(until, self.ask(&mut memory, guarded)).await {
            Ok(server) => Ok(server),
            Err(_) => {
                memory.doubt = true;
                memory.session = None;
                Ok(Server::Hung { guarded })
            }
        }
    }

    /// Asks the server; an error of a connection that was kept is asked again on a new one.
    async fn ask(&self, memory: &mut Memory, guarded: bool) -> Server {
        for attempt in 0..2 {
            let link = match self.connect(memory).await {
                Ok(link) => link,
                Err(error) => return silence(memory, error, guarded),
            };
            let Some(session) = &memory.session else {
                continue;
            };
            match self
                .ask_on(
                    session,
                    memory.last.as_ref(),
                    link != Link::Kept || memory.last.is_none(),
                )
                .await
            {
                Ok(heard) => {
                    if let Heard::All(answer) = &heard {
                        self.identify(memory, answer).await;
                    }
                    return self.note(memory, heard, guarded);
                }
                Err(SqlError::Failed(_)) if attempt == 0 => {}
                Err(SqlError::NotNow(_) | SqlError::NobodyListens)
                    if attempt == 0 && link != Link::New =>
                {
                    memory.session = None;
                }
                Err(error) => return silence(memory, error, guarded),
            }
        }
        Server::Hung { guarded }
    }

    /// Makes a new connection where one is due.
    async fn connect(&self, memory: &mut Memory) -> Result<Link, SqlError> {
        let now = self.clock.now();
        let usable = memory
            .session
            .as_ref()
            .is_some_and(|session| !session.is_closed());
        let due = |last: Option<NodeTime>, every| last.is_none_or(|at| now.since(at) >= every);
        if usable && !memory.doubt && !due(memory.connected, CONNECT_EVERY) {
            if !due(memory.knocked, KNOCK_EVERY) {
                return Ok(Link::Kept);
            }
            if !memory.speaks_tls
                && let Ok(speaks_tls) = sql::knock(&self.options, SHORT_ANSWER).await
            {
                (memory.speaks_tls, memory.knocked) = (speaks_tls, Some(now));
                return Ok(Link::Knocked);
            }
            // A connection shows what is wrong.
        }
        match Session::connect(&self.options, Purpose::Look, ANSWER).await {
            Ok(session) => {
                memory.session = Some(session);
                (memory.doubt, memory.shut) = (false, None);
            }
            // The postmaster took the connection and judged it: that is an answer. Somebody changes
            // a password, or the access list, and the server serves on.
            Err(SqlError::Full(why) | SqlError::Denied(why)) if usable => {
                memory.doubt = false;
                if memory.shut.as_ref() != Some(&why) {
                    tracing::warn!(
                        "the server lets the agent not in any more; the connection from before \
                         still answers: {why}"
                    );
                }
                memory.shut = Some(why);
            }
            Err(error) => return Err(error),
        }
        (memory.connected, memory.knocked) = (Some(now), Some(now));
        Ok(Link::New)
    }

    async fn ask_on(
        &self,
        session: &Session,
        last: Option<&Running>,
        with_pending: bool,
    ) -> Result<Heard, SqlError> {
        let odd = |problem: String| SqlError::Failed(problem);
        let rows = match session.rows(&query::text(with_pending), ANSWER).await {
            Err(SqlError::Cancelled(_)) if last.is_some() => {
                let rows = session.rows(query::SHORT, SHORT_ANSWER).await?;
                let row = rows
                    .first()
                    .ok_or_else(|| odd("no row came back".to_owned()))?;
                let last = last.ok_or_else(|| odd("nothing is known from before".to_owned()))?;
                let role = query::short_role(row, &last.role).map_err(odd)?;
                return Ok(Heard::Role(role));
            }
            rows => rows?,
        };
        let row = rows
            .first()
            .ok_or_else(|| odd("no row came back".to_owned()))?;
        Answer::read(row)
            .map(|answer| Heard::All(Box::new(answer)))
            .map_err(odd)
    }

    /// Finds the timeline of a standby that receives nothing and was not seen to.
    async fn identify(&self, memory: &mut Memory, answer: &Answer) {
        let Role::Standby { replayed, .. } = answer.role else {
            return;
        };
        let knows = |started: &str| *started == answer.started;
        let received = memory
            .received
            .as_ref()
            .is_some_and(|(started, _)| knows(started));
        let asked = memory
            .replayed
            .as_ref()
            .is_some_and(|(started, at, _)| knows(started) && *at == replayed);
        if answer.timeline.is_some() || received || asked {
            return;
        }
        let question = timeout(SHORT_ANSWER, replayed_timeline(&self.options)).await;
        let timeline = match question {
            Ok(Ok(timeline)) => timeline,
            // Not asked again before something was replayed: a server that does not let us ask
            // would log each attempt.
            Ok(Err(error)) => {
                tracing::debug!(%error, "the control file has to tell the timeline");
                answer.control_timeline
            }
            Err(_) => return,
        };
        memory.replayed = Some((answer.started.clone(), replayed, timeline));
    }

    fn note(&self, memory: &mut Memory, heard: Heard, guarded: bool) -> Server {
        let running = match heard {
            Heard::Role(role) => {
                let Some(last) = memory.last.clone() else {
                    return Server::Hung { guarded };
                };
                // A promotion's new timeline is not known to the short query.
                if matches!(role, Role::Primary { .. }) != last.is_primary() {
                    return Server::Hung { guarded };
                }
                Running {
                    role,
                    guarded,
                    ..last
                }
            }
            Heard::All(answer) => {
                if !self.is_ours(&answer.data_dir) {
                    let saying = format!("another server answers, of {}", answer.data_dir);
                    memory.session = None;
                    return Server::Busy { saying, guarded };
                }
                compose(memory, *answer, guarded)
            }
        };
        memory.last = Some(running.clone());
        Server::Running(Box::new(running))
    }

    fn is_ours(&self, data_dir: &str) -> bool {
        let ours = &self.options.data_dir;
        let same = |theirs: &std::path::Path| theirs == ours;
        same(data_dir.as_ref())
            || ours.canonicalize().is_ok_and(|real| {
                std::path::Path::new(data_dir)
                    .canonicalize()
                    .is_ok_and(|theirs| theirs == real)
            })
    }
}

/// What the server said.
enum Heard {
    /// Everything.
    All(Box<Answer>),
    /// Its role and positions; the rest took too long.
    Role(Role),
}

fn compose(memory: &mut Memory, answer: Answer, guarded: bool) -> Running {
    let is_standby = matches!(answer.role, Role::Standby { .. });
    if let Some(timeline) = answer.timeline.filter(|_| is_standby) {
        memory.received = Some((answer.started.clone(), timeline));
    }
    // Without a walreceiver nothing in SQL tells the timeline but the control file, which lags
    // behind. The timelines of one server only grow.
    let received = memory
        .received
        .as_ref()
        .map(|(started, timeline)| (started, *timeline));
    let replayed = memory
        .replayed
        .as_ref()
        .map(|(started, _, timeline)| (started, *timeline));
    let known = [received, replayed]
        .into_iter()
        .flatten()
        .filter(|(started, _)| **started == answer.started)
        .map(|(_, timeline)| timeline);
    let timeline = answer.timeline.unwrap_or_else(|| {
        let latest = known
            .chain([answer.control_timeline])
            .max_by_key(|timeline| timeline.0);
        latest.unwrap_or(answer.control_timeline)
    });
    let before = memory
        .last
        .take()
        .map(|last| last.pending_restart)
        .unwrap_or_default();
    let pending_restart = match answer.pending {
        Some(list) => list
            .into_iter()
            .map(|(name, now)| (name, now, String::new()))
            .collect(),
        None => before,
    };
    Running {
        role: answer.role,
        timeline,
        guarded,
        version: answer.version,
        started: answer.started,
        pending_restart,
        walsenders: answer.walsenders,
        slots: answer.slots,
    }
}

/// Reads the lack of an answer.
fn silence(memory: &mut Memory, error: SqlError, guarded: bool) -> Server {
    memory.session = None;
    match error {
        SqlError::Silent(_) | SqlError::Cancelled(_) => {
            memory.doubt = true;
            Server::Hung { guarded }
        }
        SqlError::NobodyListens => Server::Busy {
            saying: "nobody listens yet".to_owned(),
            guarded,
        },
        SqlError::Full(saying) | SqlError::Denied(saying) => Server::Closed { saying, guarded },
        SqlError::NotNow(saying) | SqlError::Failed(saying) => Server::Busy { saying, guarded },
    }
}

/// Asks a server whether it takes writes; for an operation that waits for it.
pub(crate) async fn is_primary(session: &Session) -> Result<bool, SqlError> {
    session
        .value("SELECT pg_is_in_recovery()", ANSWER)
        .await
        .map(|text| text == "f")
}

/// How long an observation may take.
const LIMIT: Duration = Duration::from_millis(1450);
/// How long one answer of the server may take; its own statement timeout is just below.
pub(crate) const ANSWER: Duration = Duration::from_millis(1000);
const SHORT_ANSWER: Duration = Duration::from_millis(300);
/// A connection that was made once says nothing of whether clients can still connect, and goes on
/// answering when the postmaster is frozen: this bounds how long that goes unseen.
const KNOCK_EVERY: Duration = Duration::from_secs(20);
/// Nor whether they can still log in, which costs thousands of hashes to find out.
const CONNECT_EVERY: Duration = Duration::from_secs(120);
