//! A PostgreSQL server of which nothing is left but what it is: down, a standby or a primary, and
//! the history of its log. Its position never moves; who may write does not depend on it.

use spilo_core::history::History;
use spilo_core::ids::{OpId, Revision, SystemId};
use spilo_core::machine::Failure;
use spilo_core::pg::{
    Control, ControlState, DataDir, PgErrorKind, PgOp, PgStatus, Role, Running, Server, StartRole,
};
use spilo_core::wal::{Lsn, Timeline, WalPosition};

use super::address;
use super::canon::Canon;

/// A server with its data directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FakeServer {
    pub(crate) state: State,
    pub(crate) history: History,
    /// Whether there is a `standby.signal`.
    standby: bool,
    /// Whether it was shut down.
    clean: bool,
    configured: Option<Revision>,
    /// What was ordered that makes it a primary, and is not done.
    pub(crate) order: Option<Order>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Down,
    /// It is being started as a primary.
    Starting,
    /// Streams from this node, or wants to.
    Standby(Option<usize>),
    Primary,
}

/// A server is told to become a primary, and does so some time later or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    pub(crate) op: OpId,
    /// Whether the operation still runs. One that was told to stop, or whose agent died, does not;
    /// the server may do it nevertheless.
    pub(crate) awaited: bool,
    /// For how many quanta it has not been done.
    pub(crate) waited: u8,
}

/// What a server streams from, or copies, as far as it concerns the one that does.
pub(crate) struct Source {
    pub(crate) node: usize,
    /// The history of a source that serves as a primary.
    pub(crate) history: Option<History>,
}

impl FakeServer {
    /// Creates the stopped server of a cluster that exists.
    pub(crate) fn stopped(standby: bool) -> Self {
        Self {
            state: State::Down,
            history: History::root(Timeline(1)),
            standby,
            clean: true,
            configured: None,
            order: None,
        }
    }

    pub(crate) fn takes_writes(&self) -> bool {
        self.state == State::Primary
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state != State::Down
    }

    /// Ends every process at once; returns the order that ends with them.
    pub(crate) fn crash(&mut self) -> Option<Order> {
        if self.is_up() {
            self.clean = false;
        }
        self.state = State::Down;
        self.order.take()
    }

    /// Becomes a primary, as it was told to, on a timeline that no server had before.
    pub(crate) fn become_primary(&mut self, unused: Timeline) -> Option<Order> {
        let order = self.order.take()?;
        if self.standby {
            self.history = self.history.promoted(unused, POSITION);
        }
        self.standby = false;
        self.clean = false;
        self.state = State::Primary;
        Some(order)
    }

    /// Begins an operation. Returns what came of it, or nothing if that is still to come.
    pub(crate) fn run(
        &mut self,
        id: OpId,
        op: &PgOp,
        armed: bool,
        source: Option<Source>,
    ) -> Option<Result<(), Failure<PgErrorKind>>> {
        let refuse = |kind, why: &str| Some(Err(Failure::new(kind, why)));
        if op.makes_primary() && !armed {
            return refuse(PgErrorKind::NotGuarded, "the guard is not armed");
        }
        match op {
            PgOp::Promote if matches!(self.state, State::Standby(_)) => {
                self.order = Some(Order {
                    op: id,
                    awaited: true,
                    waited: 0,
                });
                return None;
            }
            PgOp::Start { .. } if self.is_up() => return refuse(PgErrorKind::Retry, "it runs"),
            PgOp::Start {
                role: StartRole::Primary,
            } => {
                self.state = State::Starting;
                self.standby = false;
                self.clean = false;
                self.order = Some(Order {
                    op: id,
                    awaited: true,
                    waited: 0,
                });
                return None;
            }
            PgOp::Start {
                role: StartRole::Standby { .. },
            } => {
                self.standby = true;
                self.clean = false;
                self.state = State::Standby(source.map(|s| s.node));
            }
            PgOp::Follow { .. } => match &mut self.state {
                State::Standby(upstream) => *upstream = source.map(|s| s.node),
                State::Down | State::Starting | State::Primary => {
                    return refuse(PgErrorKind::Retry, "it is no standby");
                }
            },
            PgOp::Stop => {
                self.state = State::Down;
                self.clean = true;
                self.order = None;
            }
            PgOp::Rewind { .. } => match source.and_then(|s| s.history) {
                Some(history) if !self.is_up() => {
                    self.history = history;
                    self.standby = true;
                    self.clean = true;
                }
                Some(_) | None => return refuse(PgErrorKind::Retry, "the source does not answer"),
            },
            PgOp::Configure { revision, .. } => self.configured = Some(*revision),
            PgOp::Confirm | PgOp::Slots { .. } | PgOp::Checkpoint => {}
            PgOp::Promote | PgOp::Bootstrap { .. } | PgOp::Clone { .. } | PgOp::HandOver { .. } => {
                return refuse(PgErrorKind::Retry, "not in this state");
            }
        }
        Some(Ok(()))
    }

    /// Goes on along the log of the server that it streams from; returns whether it does stream.
    pub(crate) fn receive(&mut self, source: Option<&History>) -> bool {
        let Some(theirs) = source.filter(|theirs| theirs.contains(self.position())) else {
            return false;
        };
        self.history = theirs.clone();
        true
    }

    pub(crate) fn status(&self, streaming: bool) -> PgStatus {
        let state = match (self.standby, self.clean) {
            (false, true) => ControlState::ShutDown,
            (true, true) => ControlState::ShutDownInRecovery,
            (false, false) => ControlState::InProduction,
            (true, false) => ControlState::InArchiveRecovery,
        };
        let role = match &self.state {
            State::Down | State::Starting => None,
            State::Primary => Some(Role::Primary { written: POSITION }),
            State::Standby(upstream) => Some(Role::Standby {
                received: POSITION,
                replayed: POSITION,
                replayed_at: None,
                paused: false,
                streaming,
                upstream_end: None,
                upstream: upstream.map(|node| (address(node), 5432)),
            }),
        };
        let running = |role| {
            Server::Running(Box::new(Running {
                role,
                timeline: self.history.timeline(),
                guarded: true,
                version: 150_000,
                started: String::new(),
                pending_restart: Vec::new(),
                walsenders: Vec::new(),
                slots: Vec::new(),
            }))
        };
        let busy = || Server::Busy {
            saying: "starting".to_owned(),
            guarded: true,
        };
        let idle = || if self.is_up() { busy() } else { Server::Down };
        PgStatus {
            data: DataDir::Ready(Control {
                system_id: SYSTEM,
                state,
                position: self.position(),
                standby: self.standby,
                rewindable: true,
                provisional: false,
            }),
            server: role.map_or_else(idle, running),
            configured: self.configured,
            archive: None,
        }
    }

    pub(crate) fn canonical(&self, canon: &mut Canon) {
        let (state, upstream) = match self.state {
            State::Down => (0, None),
            State::Starting => (1, None),
            State::Standby(upstream) => (2, upstream),
            State::Primary => (3, None),
        };
        canon.number(state);
        canon.put(&upstream);
        canon.put(&self.history);
        canon.put(&(self.standby, self.clean, self.configured));
        canon.put(
            &self
                .order
                .as_ref()
                .map(|order| (order.op, order.awaited, order.waited)),
        );
    }

    fn position(&self) -> WalPosition {
        WalPosition {
            timeline: self.history.timeline(),
            lsn: POSITION,
        }
    }
}

/// The identifier of the cluster.
pub(crate) const SYSTEM: SystemId = SystemId(7_710_822_623_212_245_678);

/// Where every log ends, always.
const POSITION: Lsn = Lsn(0x0300_0000);
