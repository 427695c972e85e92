//! A PostgreSQL server made of numbers.
//!
//! What an operation does to the server and what its caller learns are two events: between them the
//! agent may die, the guard may fire, the server may crash.

mod status;

use crate::ids::{OpId, Revision, SlotName, SystemId};
use crate::machine::Failure;
use crate::pg::{PgErrorKind, PgOp, PgOpKind, StartRole};

use super::log::{Log, Place};

/// A server with its data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FakeServer {
    data: Data,
    state: State,
    slots: Vec<SlotName>,
    configured: Option<Revision>,
    /// Tells this server's forks from those of others.
    seed: u64,
    under_way: Option<UnderWay>,
    /// Numbers what was under way, so that its end finds nothing once it was stopped.
    serial: u64,
    disk: Disk,
    /// Whether the processes stand still.
    frozen: bool,
    /// Whether nobody can look at the data directory, or nobody can read what is in it.
    hidden: bool,
    broken: bool,
    /// Whether the guard is its parent.
    guarded: bool,
    /// Whether it was killed while its disk hung: its processes end when the disk answers.
    doomed: bool,
}

/// How a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    Well,
    /// It answers nothing: the server hangs, and not even a kill ends what waits for it.
    Stalled,
    /// Nothing more fits on it: a server that writes dies.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Empty,
    Unfinished(PgOpKind),
    Ready(Box<Ready>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ready {
    log: Log,
    /// The position that the control file names.
    checkpoint: u64,
    standby: bool,
    clean: bool,
    provisional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Down,
    Primary,
    Standby {
        upstream: Option<usize>,
        streaming: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct UnderWay {
    serial: u64,
    what: Pending,
}

/// What an operation does at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Bootstrap,
    Clone(Box<Log>),
    Start(Option<Option<usize>>),
    Promote,
    Stop,
    Rewind(Box<Log>),
}

/// An operation that an agent asks for, with what the simulator found out about it.
pub(super) struct Order<'a> {
    pub(super) op: &'a PgOp,
    /// Whether the guard permits a primary.
    pub(super) armed: bool,
    /// The node that the operation's source is.
    pub(super) upstream: Option<usize>,
    /// The log of the source, if it answers as a primary.
    pub(super) source: Option<Log>,
    /// Whether a standby is level that may take over.
    pub(super) level: bool,
    /// How long it takes, in tenths of the usual.
    pub(super) slowness: u64,
    /// Whether it fails half-way.
    pub(super) fails: bool,
    /// Whether a rewind cannot go on where one was interrupted.
    pub(super) hopeless: bool,
}

/// What came of asking for an operation.
pub(super) enum Begun {
    /// It is done, after so long.
    Ended(u64, Result<(), Failure<PgErrorKind>>),
    /// It takes effect after so long, unless it is stopped before: its serial number.
    UnderWay(u64, u64),
    /// It takes effect as far as it got and fails after so long.
    Breaks(u64, u64),
}

impl FakeServer {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            data: Data::Empty,
            state: State::Down,
            slots: Vec::new(),
            configured: None,
            seed,
            under_way: None,
            serial: 0,
            disk: Disk::Well,
            frozen: false,
            hidden: false,
            broken: false,
            guarded: true,
            doomed: false,
        }
    }

    /// Returns whether it would take a write now.
    pub(super) fn takes_writes(&self) -> bool {
        self.state == State::Primary && self.disk == Disk::Well && !self.doomed && !self.frozen
    }

    /// Returns whether it is out of recovery, whatever its disk does.
    pub(super) fn is_primary(&self) -> bool {
        self.state == State::Primary
    }

    pub(super) fn is_up(&self) -> bool {
        self.state != State::Down
    }

    pub(super) fn is_streaming(&self) -> bool {
        matches!(
            self.state,
            State::Standby {
                streaming: true,
                ..
            }
        )
    }

    /// Returns the node that it streams from, or tries to.
    pub(super) fn upstream(&self) -> Option<usize> {
        match &self.state {
            State::Standby { upstream, .. } => *upstream,
            State::Down | State::Primary => None,
        }
    }

    /// Returns its log, of whatever worth.
    pub(super) fn log(&self) -> Option<&Log> {
        match &self.data {
            Data::Ready(ready) => Some(&ready.log),
            Data::Empty | Data::Unfinished(_) => None,
        }
    }

    /// Returns whether it has data that others may have been promised.
    pub(super) fn has_promised_data(&self) -> bool {
        matches!(&self.data, Data::Ready(ready) if !ready.provisional)
    }

    pub(super) fn set_disk(&mut self, disk: Disk) {
        self.disk = disk;
        if disk == Disk::Full && self.state == State::Primary {
            self.crash();
        }
        if disk == Disk::Well && self.doomed {
            self.doomed = false;
            self.crash();
        }
    }

    /// Commits a row of so many bytes, if it takes writes.
    pub(super) fn write(&mut self, bytes: u64) -> Option<Place> {
        match &mut self.data {
            Data::Ready(ready)
                if self.state == State::Primary && self.disk == Disk::Well && !self.frozen =>
            {
                Some(ready.log.write(bytes))
            }
            Data::Ready(_) | Data::Empty | Data::Unfinished(_) => None,
        }
    }

    /// Receives from `source`, which is `None` if it reaches none.
    pub(super) fn receive(&mut self, source: Option<&Log>) {
        let (State::Standby { streaming, .. }, Data::Ready(ready)) =
            (&mut self.state, &mut self.data)
        else {
            return;
        };
        *streaming = false;
        if let Some(source) = source
            && self.disk == Disk::Well
            && !self.frozen
        {
            *streaming = ready.log.receive(source);
        }
    }

    /// Dies at once, or as soon as its disk lets it.
    pub(super) fn crash(&mut self) {
        if self.disk == Disk::Stalled && self.state != State::Down {
            self.doomed = true;
            return;
        }
        if let (true, Data::Ready(ready)) = (self.is_up(), &mut self.data) {
            ready.clean = false;
        }
        self.state = State::Down;
        (self.frozen, self.guarded) = (false, true);
        let ended = self.under_way.take();
        self.break_off(ended);
    }

    /// Ends the operation under way as far as it can be ended: its programs die, but a server that
    /// was told to start, to stop or to promote goes on doing it.
    pub(super) fn cancel(&mut self) {
        let ended = self.under_way.take_if(|under_way| match under_way.what {
            Pending::Bootstrap | Pending::Clone(_) | Pending::Rewind(_) => true,
            Pending::Start(_) | Pending::Promote | Pending::Stop => false,
        });
        self.break_off(ended);
    }

    fn break_off(&mut self, ended: Option<UnderWay>) {
        let kind = match ended.map(|under_way| under_way.what) {
            Some(Pending::Bootstrap) => PgOpKind::Bootstrap,
            Some(Pending::Clone(_)) => PgOpKind::Clone,
            Some(Pending::Rewind(_)) => PgOpKind::Rewind,
            Some(Pending::Start(_) | Pending::Promote | Pending::Stop) | None => return,
        };
        self.data = Data::Unfinished(kind);
    }

    /// Stops cleanly; whoever streams from it has been sent all of it.
    pub(super) fn stop(&mut self) {
        if !self.is_up() || self.is_stalled() {
            return;
        }
        self.state = State::Down;
        self.guarded = true;
        let ended = self.under_way.take();
        self.break_off(ended);
        if let Data::Ready(ready) = &mut self.data {
            ready.clean = true;
            ready.checkpoint = ready.log.end;
        }
    }

    /// Begins an operation.
    pub(super) fn begin(&mut self, order: Order<'_>) -> Begun {
        let failure = |kind, why: &str| Begun::Ended(5, Err(Failure::new(kind, why)));
        if self.disk == Disk::Stalled {
            return Begun::Ended(
                2000,
                Err(Failure::new(PgErrorKind::Retry, "the disk hangs")),
            );
        }
        if order.op.makes_primary() && !order.armed {
            return failure(PgErrorKind::NotGuarded, "the guard is not armed");
        }
        if let Some(why) = self.refuses(order.op) {
            return failure(PgErrorKind::Retry, why);
        }
        let source = match (order.op, order.source) {
            (PgOp::Clone { .. } | PgOp::Rewind { .. }, None) => {
                let failure = Failure::new(PgErrorKind::Retry, "the source does not answer");
                return Begun::Ended(200, Err(failure));
            }
            (_, source) => source.map(Box::new),
        };
        let usual = match order.op {
            PgOp::Bootstrap { .. } => 800,
            PgOp::Clone { .. } => 700,
            PgOp::Rewind { .. } => 400,
            PgOp::Start { .. } => 150,
            PgOp::HandOver { .. } => 120,
            PgOp::Stop => 100,
            PgOp::Promote => 60,
            PgOp::Confirm
            | PgOp::Follow { .. }
            | PgOp::Configure { .. }
            | PgOp::Slots { .. }
            | PgOp::Checkpoint => return self.at_once(order.op, order.upstream),
        };
        if matches!(order.op, PgOp::HandOver { .. }) && !order.level {
            let failure = Failure::new(PgErrorKind::NotLevel, "nobody is level");
            return Begun::Ended(2000, Err(failure));
        }
        if let PgOp::Clone { replace, .. } = order.op
            && !self.may_be_replaced(*replace)
        {
            return failure(PgErrorKind::Refused, "it may not be thrown away");
        }
        let Some(what) = self.prepare(order.op, order.upstream, source, order.hopeless) else {
            return failure(PgErrorKind::CannotRewind, "its log is gone");
        };
        self.serial += 1;
        self.under_way = Some(UnderWay {
            serial: self.serial,
            what,
        });
        let takes = usual * order.slowness.max(1) / 10;
        if order.fails {
            Begun::Breaks(takes / 2 + 1, self.serial)
        } else {
            Begun::UnderWay(takes, self.serial)
        }
    }

    /// Returns whether a clone may throw the data directory away, which names whose data may go.
    fn may_be_replaced(&self, named: Option<SystemId>) -> bool {
        match &self.data {
            Data::Empty | Data::Unfinished(PgOpKind::Clone | PgOpKind::Bootstrap) => true,
            Data::Unfinished(_) => named.is_some(),
            Data::Ready(ready) => named == Some(ready.log.id),
        }
    }

    fn refuses(&self, op: &PgOp) -> Option<&'static str> {
        match op {
            PgOp::Bootstrap { .. } | PgOp::Clone { .. } | PgOp::Rewind { .. } if self.is_up() => {
                Some("its server runs")
            }
            PgOp::Bootstrap { .. } if self.log().is_some() => Some("there is a database cluster"),
            PgOp::Start { .. } if self.is_up() => Some("it runs already"),
            PgOp::Start { .. } if self.log().is_none() => Some("there is nothing to start"),
            PgOp::Start { .. } if self.disk == Disk::Full => Some("no space left on device"),
            PgOp::Follow { .. } | PgOp::Promote if !matches!(self.state, State::Standby { .. }) => {
                Some("it is no standby")
            }
            PgOp::Bootstrap { .. }
            | PgOp::Confirm
            | PgOp::Clone { .. }
            | PgOp::Start { .. }
            | PgOp::Follow { .. }
            | PgOp::Promote
            | PgOp::Stop
            | PgOp::HandOver { .. }
            | PgOp::Rewind { .. }
            | PgOp::Configure { .. }
            | PgOp::Slots { .. }
            | PgOp::Checkpoint => None,
        }
    }

    /// Does what takes no time worth the name.
    fn at_once(&mut self, op: &PgOp, upstream: Option<usize>) -> Begun {
        match op {
            PgOp::Confirm => {
                if let Data::Ready(ready) = &mut self.data {
                    ready.provisional = false;
                }
            }
            PgOp::Follow { .. } => {
                self.state = State::Standby {
                    upstream,
                    streaming: false,
                };
            }
            PgOp::Configure { revision, .. } => self.configured = Some(*revision),
            PgOp::Slots { wanted } => self.slots = wanted.iter().cloned().collect(),
            PgOp::Checkpoint => self.checkpoint(),
            PgOp::Bootstrap { .. }
            | PgOp::Clone { .. }
            | PgOp::Rewind { .. }
            | PgOp::Start { .. }
            | PgOp::HandOver { .. }
            | PgOp::Stop
            | PgOp::Promote => {}
        }
        Begun::Ended(10, Ok(()))
    }

    fn checkpoint(&mut self) {
        if let Data::Ready(ready) = &mut self.data {
            ready.checkpoint = ready.log.end;
        }
    }

    /// Does what comes first, and returns what comes at the end; nothing if it cannot be done.
    fn prepare(
        &mut self,
        op: &PgOp,
        upstream: Option<usize>,
        source: Option<Box<Log>>,
        hopeless: bool,
    ) -> Option<Pending> {
        Some(match op {
            PgOp::Bootstrap { .. } => {
                self.data = Data::Unfinished(PgOpKind::Bootstrap);
                Pending::Bootstrap
            }
            PgOp::Clone { .. } => {
                self.data = Data::Unfinished(PgOpKind::Clone);
                Pending::Clone(source?)
            }
            // What the copying broke may be what pg_rewind needs to begin again.
            PgOp::Rewind { .. } if self.log().is_none() && hopeless => return None,
            PgOp::Rewind { .. } => Pending::Rewind(source?),
            PgOp::Start { role } => {
                // The signal file is written first, and the server started then.
                if let Data::Ready(ready) = &mut self.data {
                    ready.standby = *role != StartRole::Primary;
                }
                match role {
                    StartRole::Primary => Pending::Start(None),
                    StartRole::Standby { .. } => Pending::Start(Some(upstream)),
                }
            }
            PgOp::Promote => Pending::Promote,
            PgOp::Stop
            | PgOp::HandOver { .. }
            | PgOp::Confirm
            | PgOp::Follow { .. }
            | PgOp::Configure { .. }
            | PgOp::Slots { .. }
            | PgOp::Checkpoint => Pending::Stop,
        })
    }

    /// Returns whether the end of what has this number is a clean stop, before which those who
    /// stream get the rest.
    pub(super) fn is_stopping(&self, serial: u64) -> bool {
        self.under_way
            .as_ref()
            .is_some_and(|u| u.serial == serial && u.what == Pending::Stop)
    }

    /// Returns whether what it was told waits until it can be done.
    pub(super) fn is_stalled(&self) -> bool {
        self.disk == Disk::Stalled || self.frozen
    }

    /// Stops the processes where they are, or lets them go on.
    pub(super) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen && self.is_up();
    }

    /// Returns whether nobody can look at the data directory.
    pub(super) fn is_guarded(&self) -> bool {
        self.guarded
    }

    pub(super) fn is_hidden(&self) -> bool {
        self.hidden || self.disk == Disk::Stalled
    }

    pub(super) fn hide(&mut self, hidden: bool) {
        self.hidden = hidden;
    }

    pub(super) fn break_data(&mut self, broken: bool) {
        self.broken = broken;
    }

    /// Removes everything in the data directory.
    pub(super) fn wipe(&mut self) {
        self.crash();
        self.data = Data::Empty;
    }

    /// Starts a standby without the guard, as somebody with `pg_ctl` would.
    pub(super) fn start_by_hand(&mut self) {
        if let Data::Ready(ready) = &mut self.data
            && ready.standby
            && self.state == State::Down
            && self.under_way.is_none()
        {
            ready.clean = false;
            self.guarded = false;
            self.state = State::Standby {
                upstream: None,
                streaming: false,
            };
        }
    }

    /// Breaks an operation off half-way; returns whether it was still under way.
    pub(super) fn breaks(&mut self, serial: u64) -> bool {
        let ended = self.under_way.take_if(|u| u.serial == serial);
        let there = ended.is_some();
        self.break_off(ended);
        there
    }

    /// Takes the effect of an operation at `now`; returns whether it was still under way.
    pub(super) fn finish(&mut self, now: u64, serial: u64) -> bool {
        let Some(ended) = self.under_way.take_if(|u| u.serial == serial) else {
            return false;
        };
        let writes = match ended.what {
            Pending::Bootstrap | Pending::Promote | Pending::Clone(_) | Pending::Rewind(_) => true,
            Pending::Start(ref role) => role.is_none(),
            Pending::Stop => false,
        };
        if writes && self.disk == Disk::Full {
            let promoting = ended.what == Pending::Promote;
            self.break_off(Some(ended));
            if promoting {
                self.crash();
            }
            return false;
        }
        let branch = now * 16 + self.seed;
        match ended.what {
            Pending::Bootstrap => {
                let id = SystemId(7_000_000_000_000_000_000 + branch);
                self.data = Data::Ready(Box::new(Ready {
                    log: Log::new(id, branch),
                    checkpoint: 0x100_0000,
                    standby: false,
                    clean: false,
                    provisional: true,
                }));
                self.state = State::Primary;
            }
            Pending::Clone(from) => self.copy(*from),
            Pending::Rewind(from) => self.rewind(*from),
            Pending::Start(role) => {
                let Data::Ready(ready) = &mut self.data else {
                    return true;
                };
                ready.clean = false;
                ready.standby = role.is_some();
                self.state = match role {
                    None => State::Primary,
                    Some(upstream) => State::Standby {
                        upstream,
                        streaming: false,
                    },
                };
                if role.is_none() {
                    self.checkpoint();
                }
            }
            Pending::Promote => {
                if let (State::Standby { .. }, Data::Ready(ready)) = (&self.state, &mut self.data) {
                    ready.log.fork(branch, self.seed);
                    ready.standby = false;
                    self.state = State::Primary;
                }
            }
            Pending::Stop => self.stop(),
        }
        true
    }

    fn copy(&mut self, log: Log) {
        self.data = Data::Ready(Box::new(Ready {
            checkpoint: log.end,
            log,
            standby: true,
            clean: true,
            provisional: false,
        }));
    }

    fn rewind(&mut self, from: Log) {
        // pg_rewind compares the numbers of timelines, and finds nothing to do.
        let same = self
            .log()
            .is_some_and(|log| log.history.timeline() == from.history.timeline());
        if same && let Data::Ready(ready) = &mut self.data {
            (ready.standby, ready.clean) = (true, true);
        } else {
            self.copy(from);
        }
    }
}

/// Returns the failure of an operation that was stopped.
pub(super) fn stopped(_: OpId) -> Result<(), Failure<PgErrorKind>> {
    Err(Failure::new(PgErrorKind::Retry, "stopped"))
}
