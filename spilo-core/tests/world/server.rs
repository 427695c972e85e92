//! A server made of numbers, with its guard's deadline.

use spilo_core::guard::Deadline;
use spilo_core::history::History;
use spilo_core::ids::{Revision, SlotName, SystemId};
use spilo_core::machine::Failure;
use spilo_core::pg::{
    Control, ControlState, DataDir, PgErrorKind, PgOp, PgOpKind, PgStatus, Role, Running, Server,
    StartRole, Upstream, Walsender,
};
use spilo_core::wal::{Lsn, Timeline, WalPosition};

#[derive(Clone, Debug)]
pub(crate) struct FakeServer {
    data: Data,
    state: State,
    slots: Vec<SlotName>,
    configured: Option<Revision>,
    pub(crate) deadline: Option<Deadline>,
    seed: u64,
    pending: Option<(u64, Pending)>,
    /// When it was last stopped cleanly: streaming standbys get all of it.
    stopped_at: Option<u64>,
    /// Who streams from it.
    pub(crate) followers: Vec<String>,
}

#[derive(Clone, Debug)]
enum Data {
    Empty,
    Unfinished(PgOpKind),
    Ready {
        id: SystemId,
        history: History,
        /// What history is in truth: each branch has an identity of its own, which PostgreSQL's
        /// timelines do not have. Each with its end; the last one is open.
        branches: Vec<(u64, u64)>,
        lsn: u64,
        standby: bool,
        clean: bool,
        provisional: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Down,
    Primary,
    Standby {
        upstream: Option<(String, u16)>,
        streaming: bool,
    },
}

/// What an operation does at its end.
#[derive(Clone, Debug)]
enum Pending {
    Bootstrap,
    Clone(Box<FakeServer>),
    Start(StartRole),
    Promote,
    Stop,
    Rewind(Box<FakeServer>),
}

pub(crate) fn source(op: &PgOp) -> Option<&Upstream> {
    match op {
        PgOp::Clone { from, .. } | PgOp::Rewind { from } => Some(from),
        _ => None,
    }
}

impl FakeServer {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            data: Data::Empty,
            state: State::Down,
            slots: Vec::new(),
            configured: None,
            deadline: None,
            seed,
            pending: None,
            stopped_at: None,
            followers: Vec::new(),
        }
    }

    pub(crate) fn takes_writes(&self) -> bool {
        self.state == State::Primary
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(
            self.state,
            State::Standby {
                streaming: true,
                ..
            }
        )
    }

    /// Returns whether it has data that others may have been promised.
    pub(crate) fn has_data(&self) -> bool {
        matches!(
            self.data,
            Data::Ready {
                provisional: false,
                ..
            }
        )
    }

    fn has_cluster(&self) -> bool {
        matches!(self.data, Data::Ready { .. })
    }

    /// Returns whether there is something that only a copy that is told so may replace.
    fn has_own_data(&self) -> bool {
        matches!(
            self.data,
            Data::Ready { .. } | Data::Unfinished(PgOpKind::Rewind)
        )
    }

    pub(crate) fn position(&self) -> Option<WalPosition> {
        match &self.data {
            Data::Ready { history, lsn, .. } => Some(WalPosition {
                timeline: history.timeline(),
                lsn: Lsn(*lsn),
            }),
            Data::Empty | Data::Unfinished(_) => None,
        }
    }

    pub(crate) fn identity(&self) -> Option<(SystemId, History)> {
        match &self.data {
            Data::Ready { id, history, .. } => Some((*id, history.clone())),
            Data::Empty | Data::Unfinished(_) => None,
        }
    }

    /// Returns whether everything that `other` has is here as well.
    pub(crate) fn has_all_of(&self, other: &Self) -> bool {
        match (&other.data, &self.data) {
            (
                Data::Ready {
                    branches: a,
                    lsn: at,
                    ..
                },
                Data::Ready {
                    branches: b,
                    lsn: end,
                    ..
                },
            ) => is_prefix(a, *at, b, *end),
            (Data::Ready { .. }, Data::Empty | Data::Unfinished(_)) => false,
            (Data::Empty | Data::Unfinished(_), _) => true,
        }
    }

    /// Returns the address that it streams from, or tries to.
    pub(crate) fn upstream(&self) -> Option<&(String, u16)> {
        match &self.state {
            State::Standby { upstream, .. } => upstream.as_ref(),
            State::Down | State::Primary => None,
        }
    }

    pub(crate) fn write(&mut self, bytes: u64) {
        if let Data::Ready { lsn, .. } = &mut self.data {
            *lsn += bytes;
        }
    }

    pub(crate) fn crash(&mut self) {
        if self.state != State::Down
            && let Data::Ready { clean, .. } = &mut self.data
        {
            *clean = false;
        }
        self.state = State::Down;
        self.deadline = None;
        match self.pending.take() {
            Some((_, Pending::Bootstrap)) => self.data = Data::Unfinished(PgOpKind::Bootstrap),
            Some((_, Pending::Clone(_))) => self.data = Data::Unfinished(PgOpKind::Clone),
            Some((_, Pending::Rewind(_))) => self.data = Data::Unfinished(PgOpKind::Rewind),
            Some(_) | None => {}
        }
    }

    /// Ends the operation under way as far as it can be ended: its programs die, but a server that
    /// was told to start, to stop or to promote goes on doing it.
    pub(crate) fn cancel(&mut self) {
        match self.pending.take() {
            Some((_, Pending::Bootstrap)) => self.data = Data::Unfinished(PgOpKind::Bootstrap),
            Some((_, Pending::Clone(_))) => self.data = Data::Unfinished(PgOpKind::Clone),
            Some((_, Pending::Rewind(_))) => self.data = Data::Unfinished(PgOpKind::Rewind),
            None => {}
            Some((at, other)) => self.pending = Some((at, other)),
        }
    }

    /// Returns whether something happened that the agent is told of.
    pub(crate) fn pass_time(&mut self, now: u64) -> bool {
        if let Some((_, what)) = self.pending.take_if(|(at, _)| *at <= now) {
            self.finish(now, what);
        }
        let Some(deadline) = &self.deadline else {
            return false;
        };
        if deadline.hard.0 <= now {
            let lived = self.state != State::Down;
            self.crash();
            return lived;
        }
        if deadline.soft.0 <= now && self.state != State::Down {
            self.stop(now);
            return true;
        }
        false
    }

    fn stop(&mut self, now: u64) {
        if self.state == State::Down {
            return;
        }
        self.state = State::Down;
        self.deadline = None;
        self.pending = None;
        self.stopped_at = Some(now);
        if let Data::Ready { clean, .. } = &mut self.data {
            *clean = true;
        }
    }

    /// Returns whether it takes a walreceiver at `now`.
    pub(crate) fn sends(&self, now: u64) -> bool {
        self.state != State::Down || self.stopped_at == Some(now)
    }

    /// Streams from `source`, as a walreceiver does: it knows timelines, and not what is true.
    ///
    /// # Errors
    /// It would go on with a log that is not its own.
    pub(crate) fn stream(&mut self, source: Option<&Self>) -> Result<(), String> {
        let State::Standby { streaming, .. } = &mut self.state else {
            return Ok(());
        };
        let Data::Ready {
            history,
            branches,
            lsn,
            id,
            ..
        } = &mut self.data
        else {
            return Ok(());
        };
        *streaming = false;
        let Some(Data::Ready {
            history: line,
            branches: truth,
            lsn: end,
            id: theirs,
            ..
        }) = source.map(|s| &s.data)
        else {
            return Ok(());
        };
        let position = WalPosition {
            timeline: history.timeline(),
            lsn: Lsn(*lsn),
        };
        if theirs == id && line.contains(position) && *end >= *lsn {
            if !is_prefix(branches, *lsn, truth, *end) {
                return Err(format!("{branches:?} at {lsn} follows {truth:?}"));
            }
            *streaming = true;
            *lsn = *end;
            if history != line {
                history.clone_from(line);
            }
            if branches != truth {
                branches.clone_from(truth);
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing that may be")]
    pub(crate) fn status(&self) -> PgStatus {
        let data = match &self.data {
            Data::Empty => DataDir::Empty,
            Data::Unfinished(kind) => DataDir::Unfinished(*kind),
            Data::Ready {
                id,
                standby,
                clean,
                provisional,
                ..
            } => DataDir::Ready(Control {
                system_id: *id,
                state: match (standby, clean) {
                    (false, true) => ControlState::ShutDown,
                    (true, true) => ControlState::ShutDownInRecovery,
                    (false, false) => ControlState::InProduction,
                    (true, false) => ControlState::InArchiveRecovery,
                },
                position: self.position().unwrap(),
                standby: *standby,
                rewindable: true,
                provisional: *provisional,
            }),
        };
        let starting = matches!(self.pending, Some((_, Pending::Start(_))));
        if self.state == State::Down && starting {
            let server = Server::Busy {
                saying: "the database system is starting up".to_owned(),
                guarded: true,
            };
            return PgStatus {
                data,
                server,
                configured: self.configured,
            };
        }
        let role = match (&self.state, self.position()) {
            (State::Down, _) | (_, None) => {
                return PgStatus {
                    data,
                    server: Server::Down,
                    configured: self.configured,
                };
            }
            (State::Primary, Some(at)) => Role::Primary { written: at.lsn },
            (
                State::Standby {
                    upstream,
                    streaming,
                },
                Some(at),
            ) => Role::Standby {
                received: at.lsn,
                replayed: at.lsn,
                replayed_at: None,
                paused: false,
                streaming: *streaming,
                upstream_end: None,
                upstream: upstream.clone(),
            },
        };
        let running = Running {
            role,
            timeline: self.position().unwrap().timeline,
            guarded: true,
            version: 150_000,
            started: String::new(),
            pending_restart: Vec::new(),
            walsenders: self.followers.iter().map(|name| walsender(name)).collect(),
            slots: self.slots.iter().map(|s| (s.clone(), None)).collect(),
        };
        PgStatus {
            data,
            server: Server::Running(Box::new(running)),
            configured: self.configured,
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing that may be")]
    pub(crate) fn run(
        &mut self,
        now: u64,
        op: &PgOp,
        source: Option<(Self, bool)>,
    ) -> (u64, Result<(), Failure<PgErrorKind>>) {
        let armed = self.deadline.as_ref().is_some_and(|d| now < d.soft.0);
        let refuse = |why: &str| (5, Err(Failure::new(PgErrorKind::NotGuarded, why)));
        let again = |why: &str| (5, Err(Failure::new(PgErrorKind::Retry, why)));
        let source = match source {
            Some((server, false)) if server.takes_writes() => Some(Box::new(server)),
            Some(_) => return (200, Err(Failure::new(PgErrorKind::Retry, "no source"))),
            None => None,
        };
        let (delay, pending) = match op {
            PgOp::Clone { .. } | PgOp::Rewind { .. } | PgOp::Bootstrap { .. }
                if self.state != State::Down =>
            {
                return again("its server runs");
            }
            PgOp::Bootstrap { .. } if !armed => return refuse("bootstrap"),
            PgOp::Promote
            | PgOp::Start {
                role: StartRole::Primary,
            } if !armed => return refuse("primary"),
            PgOp::Bootstrap { .. } => {
                self.data = Data::Unfinished(PgOpKind::Bootstrap);
                (800, Pending::Bootstrap)
            }
            PgOp::Confirm => {
                if let Data::Ready { provisional, .. } = &mut self.data {
                    *provisional = false;
                }
                return (5, Ok(()));
            }
            PgOp::Clone { replace: None, .. } if self.has_own_data() => {
                let failure = Failure::new(PgErrorKind::Refused, "it may not be thrown away");
                return (5, Err(failure));
            }
            PgOp::Clone { .. } => {
                self.data = Data::Unfinished(PgOpKind::Clone);
                (700, Pending::Clone(source.unwrap()))
            }
            PgOp::Start { .. } if self.state != State::Down || !self.has_cluster() => {
                return again("it runs already, or there is nothing to start");
            }
            PgOp::Start { role } => {
                // The signal file is written first, and the server started then.
                if let Data::Ready { standby, .. } = &mut self.data {
                    *standby = *role != StartRole::Primary;
                }
                (150, Pending::Start(role.clone()))
            }
            PgOp::Follow { .. } if !matches!(self.state, State::Standby { .. }) => {
                return again("it is no standby");
            }
            PgOp::Follow { upstream } => {
                self.state = State::Standby {
                    upstream: upstream.as_ref().map(address),
                    streaming: false,
                };
                return (20, Ok(()));
            }
            PgOp::Promote => (60, Pending::Promote),
            PgOp::Stop => (100, Pending::Stop),
            PgOp::HandOver { candidate } => {
                let named = |f: &String| candidate.as_ref().is_none_or(|c| c.as_str() == f);
                if !self.followers.iter().any(named) {
                    let failure = Failure::new(PgErrorKind::NotLevel, "nobody is level");
                    return (2000, Err(failure));
                }
                (120, Pending::Stop)
            }
            // What the copying broke may be what pg_rewind needs to begin again.
            PgOp::Rewind { .. } if !self.has_cluster() && (now / 10).is_multiple_of(2) => {
                let failure = Failure::new(PgErrorKind::CannotRewind, "its log is gone");
                return (100, Err(failure));
            }
            PgOp::Rewind { .. } => (400, Pending::Rewind(source.unwrap())),
            PgOp::Configure { revision, .. } => {
                self.configured = Some(*revision);
                return (10, Ok(()));
            }
            PgOp::Slots { wanted } => {
                self.slots = wanted.iter().cloned().collect();
                return (10, Ok(()));
            }
            PgOp::Checkpoint => return (50, Ok(())),
        };
        self.pending = Some((now + delay - 1, pending));
        (delay, Ok(()))
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing that may be")]
    fn finish(&mut self, now: u64, what: Pending) {
        match what {
            Pending::Bootstrap => {
                self.data = Data::Ready {
                    id: SystemId(7_000_000_000_000_000_000 + self.seed + now),
                    history: History::root(Timeline(1)),
                    branches: vec![(now * 10 + self.seed, u64::MAX)],
                    lsn: 0x100_0000,
                    standby: false,
                    clean: false,
                    provisional: true,
                };
                self.state = State::Primary;
            }
            Pending::Clone(from) => {
                self.data = from.data;
                if let Data::Ready {
                    standby,
                    provisional,
                    clean,
                    ..
                } = &mut self.data
                {
                    (*standby, *provisional, *clean) = (true, false, true);
                }
            }
            Pending::Start(role) => {
                let Data::Ready { standby, clean, .. } = &mut self.data else {
                    return;
                };
                *clean = false;
                (*standby, self.state) = match role {
                    StartRole::Primary => (false, State::Primary),
                    StartRole::Standby { upstream } => (
                        true,
                        State::Standby {
                            upstream: upstream.as_ref().map(address),
                            streaming: false,
                        },
                    ),
                };
            }
            Pending::Promote => {
                let Data::Ready {
                    history,
                    branches,
                    lsn,
                    standby,
                    ..
                } = &mut self.data
                else {
                    return;
                };
                if matches!(self.state, State::Standby { .. }) {
                    // No two nodes leave a timeline at the same position: what forks there twice
                    // cannot be told apart by what PostgreSQL says.
                    *lsn = *lsn / 32 * 32 + 32 + self.seed;
                    *history = history.promoted(Timeline(history.timeline().0 + 1), Lsn(*lsn));
                    if let Some(last) = branches.last_mut() {
                        last.1 = *lsn;
                    }
                    branches.push((now * 10 + self.seed, u64::MAX));
                    *lsn += 100;
                    *standby = false;
                    self.state = State::Primary;
                }
            }
            Pending::Stop => self.stop(now),
            Pending::Rewind(from) => {
                // pg_rewind compares the numbers of timelines, and finds nothing to do.
                let same =
                    self.position().map(|p| p.timeline) == from.position().map(|p| p.timeline);
                if !same {
                    self.data = from.data;
                }
                if let Data::Ready {
                    standby,
                    clean,
                    provisional,
                    ..
                } = &mut self.data
                {
                    (*standby, *clean, *provisional) = (true, true, false);
                }
            }
        }
    }
}

/// Whether the log `mine` up to `lsn` is the beginning of `theirs` up to `end`.
fn is_prefix(mine: &[(u64, u64)], lsn: u64, theirs: &[(u64, u64)], end: u64) -> bool {
    for (n, (id, left)) in mine.iter().enumerate() {
        let Some((other, other_left)) = theirs.get(n) else {
            return false;
        };
        if id != other {
            return false;
        }
        if n + 1 == mine.len() {
            return lsn <= (*other_left).min(end);
        }
        if left != other_left {
            return false;
        }
    }
    true
}

fn walsender(name: &str) -> Walsender {
    Walsender {
        user: "replicator".to_owned(),
        application: name.to_owned(),
        client: None,
        state: "streaming".to_owned(),
        sync_state: "async".to_owned(),
        sync_priority: 0,
        flushed: None,
    }
}

fn address(upstream: &Upstream) -> (String, u16) {
    let host = upstream.conn_url.strip_prefix("postgres://").unwrap();
    (host.split(':').next().unwrap().to_owned(), 5432)
}
