//! A journal in words, for people.

use std::time::Duration;

use super::facts::facts;
use super::read::{Begin, Fault, JournalError, Record, Turn};
use super::replay::Replay;
use crate::machine::{
    Command, Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, Machine, Order, ReadAnswer,
    ReadRequest, WriteRequest,
};
use crate::peer::{ConsentAnswer, PeerStatus};
use crate::pg::{DataDir, PgOp, PgStatus, Role, Server, StartRole, Upstream};
use crate::time::NodeTime;

/// How much of a journal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// A line for each decision that is another one than the last.
    News,
    /// Every step with its event.
    All,
    /// The last step at or before this time since the agent started, with all that the machine
    /// knew.
    At(Duration),
}

/// Replays a journal and tells it line by line to `say`. Secrets of leases are left out.
///
/// Times count from the start of the agent. A header without turns is told with the decision that
/// a step without news would take.
///
/// # Errors
/// The line that cannot be used, or whose replay differs; no line at all. A last line that is cut
/// off is no error where something stands before it: it is told.
pub fn tell<'a, I: Iterator<Item = &'a str>>(
    lines: impl IntoIterator<IntoIter = I>,
    telling: Telling,
    say: &mut dyn FnMut(&str),
) -> Result<(), JournalError> {
    let mut replay = Replay::new(lines);
    let mut part = Part::default();
    let mut begun = false;
    while let Some(record) = replay.next() {
        match record {
            Ok(Record::Begin(begin)) => {
                part.end(telling, say);
                part = Part::default();
                part.begin(&begin, say);
                begun = true;
            }
            Ok(Record::Turn(turn)) => {
                let machine = replay.machine();
                part.turn(&turn, machine, telling, say);
            }
            Err(error) if error.fault == Fault::Cut && begun => say(&error.to_string()),
            Err(error) => {
                part.end(telling, say);
                return Err(error);
            }
        }
    }
    part.end(telling, say);
    if begun {
        return Ok(());
    }
    let (line, fault) = (1, Fault::NoHeader);
    Err(JournalError { line, fault })
}

/// What one header and its turns have come to so far.
#[derive(Default)]
struct Part {
    name: String,
    started: NodeTime,
    /// The machine of the header, until there is a turn.
    alone: Option<Machine>,
    /// The last turn that is not too late, and the machine after it.
    found: Option<(Turn, Machine)>,
}

impl Part {
    fn begin(&mut self, begin: &Begin, say: &mut dyn FnMut(&str)) {
        let (identity, facts) = (begin.machine.identity(), begin.machine.facts());
        self.name = identity.name.to_string();
        self.started = facts.started;
        self.alone = Some((*begin.machine).clone());
        if begin.lost > 0 {
            say(&format!("# {} steps are missing here", begin.lost));
        }
        say(&format!(
            "# line {}: node {} of cluster {}, {} s after its agent started, as spilo {} wrote it",
            begin.line,
            self.name,
            identity.scope,
            since(facts.now, self.started),
            begin.version
        ));
    }

    fn turn(
        &mut self,
        turn: &Turn,
        machine: Option<&Machine>,
        telling: Telling,
        say: &mut dyn FnMut(&str),
    ) {
        self.alone = None;
        match telling {
            Telling::News if !turn.step.news => {}
            Telling::News => say(&self.decided(turn)),
            Telling::All => {
                let at = since(turn.now, self.started);
                let told = event(&turn.event, self.started);
                say(&format!("{at:>10}  {}  < {told}", self.name));
                say(&self.decided(turn));
            }
            Telling::At(at) => {
                if turn.now <= self.started + at
                    && let Some(machine) = machine
                {
                    self.found = Some((turn.clone(), machine.clone()));
                }
            }
        }
    }

    fn end(&mut self, telling: Telling, say: &mut dyn FnMut(&str)) {
        if let Some(mut machine) = self.alone.take() {
            let now = machine.facts().now;
            let step = machine.step(now, Event::Tick);
            say(&format!(
                "a step now decides {}: {}",
                step.decision.rule, step.decision.why
            ));
            if matches!(telling, Telling::At(_) | Telling::All) {
                facts(&machine, say);
            }
        }
        if let Some((turn, machine)) = self.found.take() {
            let at = since(turn.now, self.started);
            say(&format!(
                "line {}, {at} s: told that {}",
                turn.line,
                event(&turn.event, self.started)
            ));
            say(&self.decided(&turn));
            say("after it, and with what it then began:");
            facts(&machine, say);
        }
    }

    fn decided(&self, turn: &Turn) -> String {
        let decision = &turn.step.decision;
        let mut line = format!(
            "{:>10}  {}  {}: {}",
            since(turn.now, self.started),
            self.name,
            decision.rule,
            decision.why
        );
        for (number, given) in turn.step.commands.iter().enumerate() {
            line.push_str(if number == 0 { "  > " } else { "; " });
            line.push_str(&command(given, self.started));
        }
        line
    }
}

/// Returns a time in seconds since the agent started.
pub(super) fn since(at: NodeTime, started: NodeTime) -> String {
    let span = at.since(started);
    format!("{}.{:03}", span.as_secs(), span.subsec_millis())
}

/// Returns a command in short.
fn command(command: &Command, started: NodeTime) -> String {
    match command {
        Command::Lease(_, request) => lease_request(request),
        Command::Read(_, request) => match request {
            ReadRequest::Snapshot => "read the store".to_owned(),
            ReadRequest::LeaseLeft(_) => "ask how long the holder's lease lasts".to_owned(),
            ReadRequest::LeaseEnded(_) => "ask whether the holder's lease ended".to_owned(),
        },
        Command::Write(_, WriteRequest::Announce(..)) => "announce this member".to_owned(),
        Command::Write(_, WriteRequest::Put(key, ..)) => format!("write {}", key.path()),
        Command::Observe(_) => "look at PostgreSQL".to_owned(),
        Command::ReadHistory(_, None) => "read its own history".to_owned(),
        Command::ReadHistory(_, Some(of)) => format!("read the history of {}", of.name),
        Command::StartOp(id, op) => format!("start operation {id}: {}", operation(op)),
        Command::CancelOp(id) => format!("stop operation {id}"),
        Command::Fence => "end the server".to_owned(),
        Command::Guard(_, request) => match request {
            GuardRequest::Arm(deadline) => format!(
                "arm the guard to {} (epoch {})",
                since(deadline.hard, started),
                deadline.epoch
            ),
            GuardRequest::Disarm => "disarm the guard".to_owned(),
            GuardRequest::Look => "ask the guard".to_owned(),
        },
        Command::AskPeer(_, name, _) => format!("ask {name}"),
        Command::AskConsent(_, members, _) => {
            let names: Vec<_> = members.keys().map(ToString::to_string).collect();
            format!("ask {} for consent", names.join(", "))
        }
        Command::AnswerConsent(_, answer) => match answer {
            ConsentAnswer::Accepted(_) => "consent".to_owned(),
            ConsentAnswer::RunningAsLeader
            | ConsentAnswer::Off
            | ConsentAnswer::Busy
            | ConsentAnswer::Stranger => format!("do not consent ({answer:?})"),
        },
        Command::Exit(exit) => format!("exit ({exit:?})"),
    }
}

fn lease_request(request: &LeaseRequest) -> String {
    match request {
        LeaseRequest::Acquire(ttl) => format!("take the lock for {ttl:?}"),
        LeaseRequest::Succeed(_, ttl) => format!("take its own lock over for {ttl:?}"),
        LeaseRequest::Settle => "settle earlier attempts".to_owned(),
        LeaseRequest::Renew(lease) => format!("renew the lease of epoch {}", lease.epoch),
        LeaseRequest::Release(lease, _) => format!("release epoch {}", lease.epoch),
        LeaseRequest::Claim(lease) => format!("claim the bootstrap in epoch {}", lease.epoch),
    }
}

/// Returns an operation in short.
pub(super) fn operation(op: &PgOp) -> String {
    let from = |upstream: Option<&Upstream>| match upstream {
        Some(upstream) => upstream.name.to_string(),
        None => "nobody".to_owned(),
    };
    match op {
        PgOp::Bootstrap { .. } | PgOp::Confirm | PgOp::Promote | PgOp::Stop | PgOp::Checkpoint => {
            op.kind().to_string()
        }
        PgOp::Clone { from, replace } => match replace {
            Some(id) => format!("clone {}, replacing data of cluster {id}", from.name),
            None => format!("clone {}", from.name),
        },
        PgOp::Start { role } => match role {
            StartRole::Primary => "start as primary".to_owned(),
            StartRole::Standby { upstream } => {
                format!("start as standby of {}", from(upstream.as_ref()))
            }
        },
        PgOp::Follow { upstream } => format!("follow {}", from(upstream.as_ref())),
        PgOp::HandOver { candidate } => match candidate {
            Some(name) => format!("hand over to {name}"),
            None => "hand over to a level standby".to_owned(),
        },
        PgOp::Rewind { from } => format!("rewind to {}", from.name),
        PgOp::Configure { revision, .. } => format!("configure as of revision {revision}"),
        PgOp::Slots { wanted } => {
            let names: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            format!("slots [{}]", names.join(", "))
        }
    }
}

/// Returns an event in short.
fn event(event: &Event, started: NodeTime) -> String {
    match event {
        Event::Tick => "time passed".to_owned(),
        Event::Changed => "the store hints at a change".to_owned(),
        Event::ServerChanged => "the guard hints at a change of the server".to_owned(),
        Event::Lease(_, Ok(LeaseAnswer::Held(lease))) => {
            format!("the lock is ours: epoch {}, {:?}", lease.epoch, lease.ttl)
        }
        Event::Lease(_, Ok(LeaseAnswer::Done)) => "the request of the lease is done".to_owned(),
        Event::Lease(_, Err(failure)) => failed("the request of the lease", failure),
        Event::Read(_, Ok(answer)) => read_answer(answer),
        Event::Read(_, Err(failure)) => failed("reading the store", failure),
        Event::Written(_, Ok(())) => "the write is done".to_owned(),
        Event::Written(_, Err(failure)) => failed("the write", failure),
        Event::Observed(_, Ok(status)) => format!("PostgreSQL is {}", server(status)),
        Event::Observed(_, Err(failure)) => failed("looking at PostgreSQL", failure),
        Event::HistoryRead(_, Ok((_, history))) => format!(
            "the history reaches timeline {} through {} others",
            history.timeline(),
            history.ancestors().len()
        ),
        Event::HistoryRead(_, Err(failure)) => failed("reading the history", failure),
        Event::OpEnded(id, Ok(())) => format!("operation {id} is done"),
        Event::OpEnded(id, Err(failure)) => failed(&format!("operation {id}"), failure),
        Event::Fenced(Ok(())) => "no process of the server is left".to_owned(),
        Event::Fenced(Err(failure)) => failed("the fence", failure),
        Event::Guard(_, Ok(status)) => match &status.deadline {
            Some(deadline) => format!(
                "the guard is armed to {} (epoch {})",
                since(deadline.hard, started),
                deadline.epoch
            ),
            None => "the guard is not armed".to_owned(),
        },
        Event::Guard(_, Err(failure)) => failed("asking the guard", failure),
        Event::PeerAnswered(_, name, answer) => format!("{name} {}", peer(answer.as_ref())),
        Event::ConsentAnswered(_, accepted) => {
            let names: Vec<_> = accepted.keys().map(ToString::to_string).collect();
            format!("consent came from [{}]", names.join(", "))
        }
        Event::ConsentAsked(_, request) => format!("{} asks for consent", request.name),
        Event::Order(Order::Shutdown) => "somebody orders to stop".to_owned(),
        Event::Order(Order::Detach) => "somebody orders to leave the server running".to_owned(),
        Event::Order(Order::Tags(tags)) => format!("the tags are {tags:?}"),
    }
}

fn read_answer(answer: &ReadAnswer) -> String {
    match answer {
        ReadAnswer::Snapshot(raw) => {
            let leader = raw.leader.as_ref().map_or_else(
                || "free".to_owned(),
                |leader| {
                    let name = String::from_utf8_lossy(&leader.name);
                    format!("held by {name} in epoch {}", leader.epoch)
                },
            );
            let members: Vec<_> = raw.members.keys().map(String::as_str).collect();
            format!(
                "the store is at revision {}: the lock is {leader}, members [{}]",
                raw.revision,
                members.join(", ")
            )
        }
        ReadAnswer::LeaseLeft(Some(left)) => format!("the holder's lease lasts for {left:?}"),
        ReadAnswer::LeaseLeft(None) => "the store does not know the holder's lease".to_owned(),
        ReadAnswer::LeaseEnded(true) => "the holder's lease has ended".to_owned(),
        ReadAnswer::LeaseEnded(false) => "the holder's lease has not provably ended".to_owned(),
    }
}

/// Returns what PostgreSQL is, in short.
pub(super) fn server(status: &PgStatus) -> String {
    match &status.server {
        Server::Down => match &status.data {
            DataDir::Empty => "down, its data directory empty".to_owned(),
            DataDir::Unfinished(kind) => format!("down, its data directory left by a {kind}"),
            DataDir::Ready(control) => {
                format!("down at {} ({:?})", control.position, control.state)
            }
            DataDir::Unreadable { problem } => format!("down, its data unreadable: {problem}"),
        },
        Server::Busy { saying, .. } => format!("busy: {saying}"),
        Server::Closed { saying, .. } => format!("closed to the agent: {saying}"),
        Server::Hung { .. } => "hung".to_owned(),
        Server::Running(running) => {
            let what = match &running.role {
                Role::Primary { .. } => "a primary",
                Role::Standby {
                    streaming: true, ..
                } => "a streaming standby",
                Role::Standby { .. } => "a standby that does not stream",
            };
            let unguarded = if running.guarded { "" } else { ", unguarded" };
            format!("{what} at {}{unguarded}", running.position())
        }
    }
}

/// Returns what a peer said of itself, in short.
pub(super) fn peer(answer: Option<&PeerStatus>) -> String {
    let Some(status) = answer else {
        return "does not answer".to_owned();
    };
    let what = if status.primary {
        "is a primary"
    } else if status.streaming {
        "is a streaming standby"
    } else {
        "is no primary"
    };
    let at = match (status.position, status.timeline) {
        (Some(lsn), Some(timeline)) => format!(" at {lsn} on timeline {timeline}"),
        (Some(lsn), None) => format!(" at {lsn}"),
        (None, _) => ", its server down".to_owned(),
    };
    let barred = if status.no_failover {
        ", not to be promoted"
    } else {
        ""
    };
    format!("{what}{at}{barred}")
}

fn failed<K: std::fmt::Debug>(what: &str, failure: &Failure<K>) -> String {
    format!("{what} failed ({:?}): {}", failure.kind, failure.text)
}
