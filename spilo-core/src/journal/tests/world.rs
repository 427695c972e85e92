//! A node with the reference store and a toy of a server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Map;

use crate::config::DynamicConfig;
use crate::dcs::DcsErrorKind;
use crate::decide::Rule;
use crate::guard::GuardStatus;
use crate::history::History;
use crate::ids::{MemberName, Scope, SystemId};
use crate::machine::{
    Command, Event, Failure, GuardRequest, Identity, LeaseAnswer, LeaseRequest, Machine, Order,
    ReadAnswer, ReadRequest, Step, WriteRequest,
};
use crate::pg::{Control, ControlState, DataDir, PgOp, PgStatus, Role, Running, Server};
use crate::store::{Conflict, Store};
use crate::time::NodeTime;
use crate::wal::{Lsn, Timeline, WalPosition};

/// All that the node has an effect on.
#[derive(Debug)]
pub(super) struct World {
    pub(super) store: Store,
    pub(super) server: PgStatus,
    pub(super) guard: GuardStatus,
}

pub(super) fn identity() -> Identity {
    Identity {
        scope: Scope::new("demo").unwrap(),
        name: me(),
        conn_url: "postgres://127.0.0.1:5432/postgres".to_owned(),
        api_url: "http://127.0.0.1:8008/patroni".to_owned(),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: Some(Arc::new(DynamicConfig::seed(&Map::new()).unwrap())),
        fence_budget: Duration::from_millis(250),
    }
}

pub(super) fn machine() -> Machine {
    Machine::new(identity(), NodeTime(1_000))
}

pub(super) fn me() -> MemberName {
    MemberName::new("a").unwrap()
}

/// Lets a node make a cluster, lead it for a minute, and stop; `step` takes each step.
pub(super) fn live(step: &mut dyn FnMut(&mut Machine, NodeTime, Event) -> Step) -> World {
    let (mut world, mut machine) = (World::new(), machine());
    let mut now = NodeTime(1_000);
    let mut led = None;
    let mut events = VecDeque::from([Event::Tick]);
    for _ in 0..10_000 {
        let event = events.pop_front().unwrap_or(Event::Tick);
        let taken = step(&mut machine, now, event);
        for command in taken.commands {
            if let Command::Exit(_) = command {
                assert!(led.is_some(), "it ends before it has led");
                return world;
            }
            events.extend(world.perform(now, command));
        }
        if taken.decision.rule == Rule::Lead && led.is_none() {
            led = Some(now);
        }
        if events.is_empty() {
            now = now.max(taken.wake_at) + Duration::from_millis(1);
        }
        if led.is_some_and(|led| now.since(led) > Duration::from_secs(60)) {
            led = Some(NodeTime(u64::MAX));
            events.push_back(Event::Order(Order::Shutdown));
        }
    }
    panic!("it has not ended: {:?}", machine.decision());
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            store: Store::default(),
            server: PgStatus::empty(),
            guard: GuardStatus::idle(),
        }
    }

    fn perform(&mut self, now: NodeTime, command: Command) -> Option<Event> {
        Some(match command {
            Command::Lease(ticket, request) => {
                Event::Lease(ticket, self.lease(now, request).map_err(refused))
            }
            Command::Read(ticket, request) => Event::Read(ticket, Ok(self.read(now, &request))),
            Command::Write(ticket, request) => {
                Event::Written(ticket, self.write(now, request).map_err(refused))
            }
            Command::Observe(ticket) => Event::Observed(ticket, Ok(self.server.clone())),
            Command::ReadHistory(ticket, _) => {
                Event::HistoryRead(ticket, Ok((ID, History::root(Timeline(1)))))
            }
            Command::StartOp(id, op) => {
                self.operate(op);
                Event::OpEnded(id, Ok(()))
            }
            Command::Fence => {
                self.server.server = Server::Down;
                Event::Fenced(Ok(()))
            }
            Command::Guard(ticket, request) => Event::Guard(ticket, Ok(self.guarded(request))),
            Command::AskPeer(ticket, name, _) => Event::PeerAnswered(ticket, name, None),
            Command::AskConsent(ticket, ..) => Event::ConsentAnswered(ticket, BTreeMap::new()),
            Command::CancelOp(_) | Command::AnswerConsent(..) | Command::Exit(_) => return None,
        })
    }

    pub(super) fn lease(
        &mut self,
        now: NodeTime,
        request: LeaseRequest,
    ) -> Result<LeaseAnswer, Conflict> {
        let (store, done) = (&mut self.store, |()| LeaseAnswer::Done);
        let id = store.new_lease_id();
        match request {
            LeaseRequest::Acquire(ttl) => store.acquire(now, id, &me(), ttl).map(LeaseAnswer::Held),
            LeaseRequest::Succeed(old, ttl) => store
                .succeed(now, id, &old, &me(), ttl)
                .map(LeaseAnswer::Held),
            LeaseRequest::Settle => Ok(LeaseAnswer::Done),
            LeaseRequest::Renew(lease) => store.renew(now, &lease).map(done),
            LeaseRequest::Release(lease, record) => store.release(now, &lease, record).map(done),
            LeaseRequest::Claim(lease) => store.claim_initialize(now, &lease).map(done),
        }
    }

    fn read(&mut self, now: NodeTime, request: &ReadRequest) -> ReadAnswer {
        match request {
            ReadRequest::Snapshot => ReadAnswer::Snapshot(Box::new(self.store.snapshot(now))),
            ReadRequest::LeaseLeft(of) => ReadAnswer::LeaseLeft(self.store.lease_left(now, of)),
            ReadRequest::LeaseEnded(of) => ReadAnswer::LeaseEnded(self.store.lease_ended(now, of)),
        }
    }

    fn write(&mut self, now: NodeTime, request: WriteRequest) -> Result<(), Conflict> {
        match request {
            WriteRequest::Announce(record, ttl) => {
                self.store.announce(now, &me(), record, ttl);
                Ok(())
            }
            WriteRequest::Put(key, value, expect) => {
                self.store.put(now, key, value, expect).map(drop)
            }
        }
    }

    pub(super) fn guarded(&mut self, request: GuardRequest) -> GuardStatus {
        match request {
            GuardRequest::Arm(deadline) => self.guard.deadline = Some(deadline),
            GuardRequest::Disarm => self.guard.deadline = None,
            GuardRequest::Look => {}
        }
        self.guard.clone()
    }

    pub(super) fn operate(&mut self, op: PgOp) {
        match op {
            PgOp::Bootstrap { .. } => (self.server.data, self.server.server) = made(true),
            PgOp::Confirm => (self.server.data, self.server.server) = made(false),
            PgOp::Configure { revision, .. } => self.server.configured = Some(revision),
            PgOp::Stop | PgOp::HandOver { .. } => self.server.server = Server::Down,
            PgOp::Slots { .. } | PgOp::Checkpoint => {}
            PgOp::Clone { .. }
            | PgOp::Start { .. }
            | PgOp::Follow { .. }
            | PgOp::Promote
            | PgOp::Rewind { .. } => panic!("{op:?} in the life of a lone leader"),
        }
    }
}

pub(super) fn made(provisional: bool) -> (DataDir, Server) {
    let (timeline, lsn) = (Timeline(1), Lsn(0x300_0028));
    let control = Control {
        system_id: ID,
        state: ControlState::InProduction,
        position: WalPosition { timeline, lsn },
        standby: false,
        rewindable: true,
        provisional,
    };
    let running = Running {
        role: Role::Primary { written: lsn },
        timeline,
        guarded: true,
        version: 170_000,
        started: "2026-01-01 00:00:00+00".to_owned(),
        pending_restart: Vec::new(),
        walsenders: Vec::new(),
        slots: Vec::new(),
    };
    (DataDir::Ready(control), Server::Running(Box::new(running)))
}

fn refused(conflict: Conflict) -> Failure<DcsErrorKind> {
    Failure::new(DcsErrorKind::Conflict, conflict.to_string())
}

pub(super) const ID: SystemId = SystemId(7_000_000_000_000_000_001);
