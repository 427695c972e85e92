//! Traces of steps: the laws of the lease, of consent, and of what came before.

mod consent;
mod fences;
mod laws;
mod proofs;
mod repair;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Map;

use super::{
    Command, Event, Failure, GuardRequest, Identity, LeaseAnswer, LeaseRequest, Machine,
    ReadAnswer, ReadRequest, Step, Ticket, WriteRequest,
};
use crate::config::DynamicConfig;
use crate::dcs::{DcsErrorKind, Entry, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot};
use crate::guard::GuardStatus;
use crate::history::History;
use crate::ids::{Epoch, MemberName, Revision, Scope, SystemId};
use crate::peer::{ConsentAnswer, ConsentRequest, PeerStatus};
use crate::pg::{Control, ControlState, DataDir, PgStatus, Role, Running, Server};
use crate::time::NodeTime;
use crate::wal::{Lsn, Timeline, WalPosition};

const ID: SystemId = SystemId(7_000_000_000_000_000_001);

/// A machine and what it asked for last, answered by hand.
#[derive(Clone)]
struct Trace {
    machine: Machine,
    now: NodeTime,
    /// The last request of each kind that was not answered.
    lease: Option<(Ticket, LeaseRequest)>,
    read: Option<(Ticket, ReadRequest)>,
    observe: Option<Ticket>,
    guard: Option<(Ticket, GuardRequest)>,
    peers: BTreeMap<MemberName, Ticket>,
    consent: Option<Ticket>,
    writes: Vec<(Ticket, WriteRequest)>,
    commands: Vec<Command>,
    last: Option<Step>,
}

/// A node whose agent started at the origin, on a running standby of a cluster of two with
/// `failsafe_mode`, a minute ago.
fn trace() -> Trace {
    trace_from(0)
}

fn trace_from(origin: u64) -> Trace {
    let mut trace = bare(origin);
    trace.step(0, Event::Tick);
    trace.look(standby());
    trace.answer_guard(GuardStatus::idle());
    trace.pass(60_000);
    trace
}

/// A node whose agent starts, and knows nothing yet.
fn bare(origin: u64) -> Trace {
    let identity = Identity {
        scope: Scope::new("demo").unwrap(),
        name: name("a"),
        conn_url: "postgres://10.0.0.1:5432/postgres".to_owned(),
        api_url: "http://10.0.0.1:8008/patroni".to_owned(),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: Some(Arc::new(DynamicConfig::seed(&Map::new()).unwrap())),
        fence_budget: Duration::from_millis(250),
    };
    Trace {
        machine: Machine::new(identity, NodeTime(origin)),
        now: NodeTime(origin),
        lease: None,
        read: None,
        observe: None,
        guard: None,
        peers: BTreeMap::new(),
        consent: None,
        writes: Vec::new(),
        commands: Vec::new(),
        last: None,
    }
}

impl Trace {
    fn step(&mut self, after: u64, event: Event) -> &Step {
        self.now = self.now + Duration::from_millis(after);
        let mut step = self.machine.step(self.now, event);
        let mut commands = std::collections::VecDeque::from(step.commands.clone());
        while let Some(command) = commands.pop_front() {
            self.commands.push(command.clone());
            match command {
                Command::Lease(ticket, request) => {
                    assert_eq!(self.lease, None, "one request for the lease in flight");
                    self.lease = Some((ticket, request));
                }
                Command::Read(ticket, request) => self.read = Some((ticket, request)),
                Command::Observe(ticket) => self.observe = Some(ticket),
                Command::Guard(ticket, request) => self.guard = Some((ticket, request)),
                Command::AskPeer(ticket, peer, _) => {
                    self.peers.insert(peer, ticket);
                }
                Command::AskConsent(ticket, ..) => self.consent = Some(ticket),
                Command::Write(ticket, request) => self.writes.push((ticket, request)),
                Command::ReadHistory(ticket, None) => {
                    let answer = Ok((ID, History::root(Timeline(1))));
                    let event = Event::HistoryRead(ticket, answer);
                    step = self.machine.step(self.now, event);
                    commands.extend(step.commands.iter().cloned());
                }
                Command::ReadHistory(..)
                | Command::StartOp(..)
                | Command::CancelOp(_)
                | Command::Fence
                | Command::AnswerConsent(..)
                | Command::Exit(_) => {}
            }
        }
        self.last.insert(step)
    }

    /// Lets time pass in small steps.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis / 50 {
            self.step(50, Event::Tick);
        }
    }

    fn look(&mut self, status: PgStatus) {
        let ticket = match self.observe.take() {
            Some(ticket) => ticket,
            None => {
                self.step(1, Event::ServerChanged);
                self.observe.take().expect("it looks when it is told to")
            }
        };
        self.step(1, Event::Observed(ticket, Ok(status)));
    }

    fn answer_guard(&mut self, mut status: GuardStatus) {
        let (ticket, request) = self.guard.take().expect("the guard was asked");
        if let GuardRequest::Arm(deadline) = request {
            status.deadline = Some(deadline);
        }
        self.step(1, Event::Guard(ticket, Ok(status)));
    }

    /// Reads this from the store.
    fn snapshot(&mut self, raw: RawSnapshot) {
        for _ in 0..3 {
            if self.read.is_none() {
                self.step(1, Event::Changed);
            }
            let (ticket, request) = self.read.take().expect("it reads when it is told to");
            match request {
                ReadRequest::Snapshot => {
                    let answer = ReadAnswer::Snapshot(Box::new(raw));
                    self.step(1, Event::Read(ticket, Ok(answer)));
                    return;
                }
                ReadRequest::LeaseLeft(_) => {
                    self.step(1, Event::Read(ticket, Ok(ReadAnswer::LeaseLeft(None))));
                }
                ReadRequest::LeaseEnded(_) => {
                    self.step(1, Event::Read(ticket, Ok(ReadAnswer::LeaseEnded(false))));
                }
            }
        }
        panic!("no snapshot was asked for");
    }

    fn answer_lease(&mut self, answer: Result<LeaseAnswer, DcsErrorKind>) {
        let (ticket, _) = self
            .lease
            .take()
            .expect("a request for the lease is under way");
        let answer = answer.map_err(|kind| Failure::new(kind, "no"));
        self.step(1, Event::Lease(ticket, answer));
    }

    /// Answers every write with success.
    fn write_all(&mut self) {
        for _ in 0..10 {
            for (ticket, _) in std::mem::take(&mut self.writes) {
                self.step(1, Event::Written(ticket, Ok(())));
            }
        }
    }

    /// Answers writes with success until one to this key is sent, and returns that.
    fn write_until(&mut self, wanted: &Key) -> Option<(Ticket, Bytes)> {
        for _ in 0..10 {
            for (ticket, request) in std::mem::take(&mut self.writes) {
                match request {
                    WriteRequest::Put(key, value, _) if key == *wanted => {
                        return Some((ticket, value));
                    }
                    _ => drop(self.step(1, Event::Written(ticket, Ok(())))),
                }
            }
            self.step(1, Event::Tick);
        }
        None
    }

    /// Makes this node the holder of epoch 30, recorded and with the guard armed.
    fn acquire(&mut self) {
        self.snapshot(led_by("b", 20));
        self.snapshot(free(25, Some(released("b", 20))));
        self.answer_peer("b", Some(peer()));
        assert!(
            matches!(self.lease, Some((_, LeaseRequest::Acquire(_)))),
            "{:?}",
            self.rule()
        );
        self.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
        self.snapshot(led_by("a", 30));
        self.write_all();
        while self.guard.is_some() {
            self.answer_guard(GuardStatus::idle());
        }
    }

    fn answer_peer(&mut self, who: &str, answer: Option<PeerStatus>) {
        let ticket = self.peers.remove(&name(who)).expect("the peer was asked");
        self.step(1, Event::PeerAnswered(ticket, name(who), answer));
    }

    fn ask_consent(&mut self) -> ConsentAnswer {
        let request = ConsentRequest {
            scope: None,
            name: name("b"),
            conn_url: String::new(),
            api_url: String::new(),
            slots: BTreeMap::new(),
        };
        let step = self.step(1, Event::ConsentAsked(Ticket(7), request));
        let answer = step.commands.iter().find_map(|command| match command {
            Command::AnswerConsent(Ticket(7), answer) => Some(*answer),
            _ => None,
        });
        answer.expect("every question is answered")
    }

    /// Answers every look and every question to a peer until it asks for the lock.
    fn until_it_acquires(&mut self, answer: impl Fn(&str) -> Option<PeerStatus>) {
        for _ in 0..1000 {
            if self.lease.is_some() {
                break;
            }
            for (peer, ticket) in std::mem::take(&mut self.peers) {
                let answer = answer(peer.as_str());
                self.step(1, Event::PeerAnswered(ticket, peer, answer));
            }
            if self.observe.is_some() {
                self.look(standby());
            }
            self.step(50, Event::Tick);
        }
        assert!(
            matches!(self.lease, Some((_, LeaseRequest::Acquire(_)))),
            "{}",
            self.rule()
        );
    }

    /// Fails every renewal until it asks for consent; returns when it does.
    fn until_it_asks_for_consent(&mut self) -> NodeTime {
        while self.consent.is_none() {
            assert!(self.until() > Some(self.now.0), "it asks in time");
            if self.lease.is_some() {
                self.answer_lease(Err(DcsErrorKind::Indeterminate));
            }
            self.step(50, Event::Tick);
        }
        self.now
    }

    fn rule(&self) -> crate::decide::Rule {
        self.last.as_ref().unwrap().decision.rule
    }

    fn until(&self) -> Option<u64> {
        self.machine.status().leadership.map(|l| l.until.0)
    }
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn lease(epoch: u64) -> Lease {
    Lease {
        epoch: Epoch(epoch),
        secret: LeaseSecret(format!("{epoch}")),
        ttl: Duration::from_secs(10),
    }
}

fn entry(value: impl Into<Bytes>, revision: u64) -> Entry {
    Entry {
        value: value.into(),
        revision: Revision(revision),
    }
}

fn free(revision: u64, release: Option<Bytes>) -> RawSnapshot {
    let mut raw = RawSnapshot {
        revision: Revision(revision),
        ..RawSnapshot::default()
    };
    let seed = DynamicConfig::seed(&Map::new()).unwrap();
    let config = serde_json::to_vec(&seed.raw).unwrap();
    raw.documents.insert(Key::Config, entry(config, 2));
    raw.documents
        .insert(Key::Initialize, entry(ID.to_string(), 1));
    let failsafe = r#"{"a":"http://a","b":"http://b"}"#;
    raw.documents.insert(Key::Failsafe, entry(failsafe, 3));
    if let Some(release) = release {
        raw.documents.insert(Key::Release, entry(release, revision));
    }
    let member = r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://b",
        "state":"running","role":"primary","spilo_version":"0","timeline":1}"#;
    raw.members.insert("b".to_owned(), entry(member, 4));
    raw
}

fn led_by(who: &str, epoch: u64) -> RawSnapshot {
    let mut raw = free(epoch + 1, Some(taken(who, epoch)));
    raw.leader = Some(LeaderRecord {
        name: who.to_owned().into(),
        epoch: Epoch(epoch),
        lease_id: Some(epoch),
    });
    raw
}

fn taken(who: &str, epoch: u64) -> Bytes {
    Bytes::from(format!(
        r#"{{"epoch":{epoch},"name":"{who}","ttl_ms":10000,"taken":true}}"#
    ))
}

fn released(who: &str, epoch: u64) -> Bytes {
    Bytes::from(format!(r#"{{"epoch":{epoch},"name":"{who}"}}"#))
}

fn peer() -> PeerStatus {
    PeerStatus {
        scope: None,
        name: Some(name("b")),
        primary: false,
        position: Some(Lsn(1000)),
        timeline: Some(Timeline(1)),
        no_failover: false,
        streaming: false,
        cannot_write: true,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    }
}

fn standby() -> PgStatus {
    running(
        Role::Standby {
            received: Lsn(1000),
            replayed: Lsn(1000),
            replayed_at: None,
            paused: false,
            streaming: false,
            upstream_end: None,
            upstream: None,
        },
        true,
    )
}

fn primary() -> PgStatus {
    running(Role::Primary { written: Lsn(1000) }, false)
}

fn running(role: Role, standby: bool) -> PgStatus {
    PgStatus {
        data: DataDir::Ready(Control {
            system_id: ID,
            state: ControlState::InProduction,
            position: WalPosition {
                timeline: Timeline(1),
                lsn: Lsn(1000),
            },
            standby,
            rewindable: true,
            provisional: false,
        }),
        server: Server::Running(Box::new(Running {
            role,
            timeline: Timeline(1),
            guarded: true,
            version: 150_000,
            started: String::new(),
            pending_restart: Vec::new(),
            walsenders: Vec::new(),
            slots: Vec::new(),
        })),
        configured: Some(Revision(2)),
        archive: None,
    }
}
