//! A node on a runtime of its own: no tokio, and no feature `agent`.
//!
//! The machine needs a loop that gives it events one by one, and somebody who carries out its
//! commands, each beside the others: here one thread and a channel, and a thread for each effect.
//! The store is the reference store, and PostgreSQL is a toy that is whatever it is told to be.
//! The node makes a new cluster, becomes its leader, stops and ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use spilo_core::dcs::DcsErrorKind;
use spilo_core::decide::Rule;
use spilo_core::guard::GuardStatus;
use spilo_core::machine::{
    Command, Event, Failure, GuardRequest, Identity, LeaseAnswer, LeaseRequest, Machine, Order,
    ReadAnswer, ReadRequest, WriteRequest,
};
use spilo_core::pg::{Control, ControlState, DataDir, PgOp, PgStatus, Role, Running, Server};
use spilo_core::store::{Conflict, Store};
use spilo_core::{
    DynamicConfig, History, Lsn, MemberName, NodeTime, Scope, SystemId, Timeline, WalPosition,
};

/// All that a node has an effect on.
struct World {
    me: MemberName,
    store: Store,
    server: PgStatus,
    guard: GuardStatus,
}

#[expect(clippy::print_stdout, reason = "what it decides is what it shows")]
fn main() -> anyhow::Result<()> {
    let me = MemberName::new("a")?;
    let identity = Identity {
        scope: Scope::new("demo")?,
        name: me.clone(),
        conn_url: "postgres://127.0.0.1:5432/postgres".to_owned(),
        api_url: "http://127.0.0.1:8008/patroni".to_owned(),
        proxy_url: None,
        tags: serde_json::Map::new(),
        bootstrap: Some(Arc::new(DynamicConfig::absent())),
        fence_budget: Duration::from_millis(250),
    };
    let world = Arc::new(Mutex::new(World {
        me,
        store: Store::default(),
        server: PgStatus::empty(),
        guard: GuardStatus::default(),
    }));
    let begun = Instant::now();
    let clock = move || NodeTime::default() + begun.elapsed();
    let mut machine = Machine::new(identity, clock());
    let (sender, events) = mpsc::channel();
    let mut event = Event::Tick;
    loop {
        let step = machine.step(clock(), event);
        if step.news {
            println!("{} {}: {}", clock(), step.decision.rule, step.decision.why);
        }
        for command in step.commands {
            if matches!(command, Command::Exit(_)) {
                return Ok(());
            }
            // The loop waits for nothing: a renewal must not stand behind an operation.
            let (world, sender) = (Arc::clone(&world), sender.clone());
            thread::spawn(move || {
                let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(event) = world.perform(clock(), command) {
                    // Once the loop has ended nobody needs to know.
                    sender.send(event).unwrap_or_default();
                }
            });
        }
        if step.news && step.decision.rule == Rule::Lead {
            sender.send(Event::Order(Order::Shutdown))?;
        }
        let pause = step.wake_at.since(clock()); // A tick, if nothing else has happened by then.
        event = events.recv_timeout(pause).unwrap_or(Event::Tick);
    }
}

impl World {
    /// Carries one command out, and returns what came of it.
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
            Command::Guard(ticket, request) => {
                // It is never a standby, whose deadline would be taken away.
                if let GuardRequest::Arm(deadline) = request {
                    self.guard.deadline = Some(deadline);
                }
                Event::Guard(ticket, Ok(self.guard.clone()))
            }
            // A cluster of one has nobody to ask, and nobody asks it.
            Command::AskPeer(ticket, name, _) => Event::PeerAnswered(ticket, name, None),
            Command::AskConsent(ticket, ..) => Event::ConsentAnswered(ticket, BTreeMap::new()),
            // Operations end at once here, so that none is left to stop.
            Command::CancelOp(_) | Command::AnswerConsent(..) | Command::Exit(_) => return None,
        })
    }

    fn lease(&mut self, now: NodeTime, request: LeaseRequest) -> Result<LeaseAnswer, Conflict> {
        let (store, me) = (&mut self.store, &self.me);
        let (id, done) = (store.new_lease_id(), |()| LeaseAnswer::Done);
        match request {
            LeaseRequest::Acquire(ttl) => store.acquire(now, id, me, ttl).map(LeaseAnswer::Held),
            LeaseRequest::Succeed(old, ttl) => {
                store.succeed(now, id, &old, me, ttl).map(LeaseAnswer::Held)
            }
            // Every request is answered here, so that none is left to settle.
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
                self.store.announce(now, &self.me, record, ttl);
                Ok(())
            }
            WriteRequest::Put(key, value, expect) => {
                self.store.put(now, key, value, expect).map(drop)
            }
        }
    }

    fn operate(&mut self, op: PgOp) {
        let status = &mut self.server;
        match op {
            PgOp::Bootstrap { .. } => (status.data, status.server) = made(true),
            PgOp::Confirm => (status.data, status.server) = made(false),
            PgOp::Configure { revision, .. } => status.configured = Some(revision),
            PgOp::Stop | PgOp::HandOver { .. } => status.server = Server::Down,
            PgOp::Slots { .. } | PgOp::Checkpoint | PgOp::Promote | PgOp::Rewind { .. } => {}
            PgOp::Clone { .. } | PgOp::Start { .. } | PgOp::Follow { .. } => {}
        }
    }
}

fn refused(conflict: Conflict) -> Failure<DcsErrorKind> {
    Failure::new(DcsErrorKind::Conflict, conflict.to_string())
}

fn made(provisional: bool) -> (DataDir, Server) {
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
        started: "now".to_owned(),
        pending_restart: Vec::new(),
        walsenders: Vec::new(),
        slots: Vec::new(),
    };
    (DataDir::Ready(control), Server::Running(Box::new(running)))
}

const ID: SystemId = SystemId(7_000_000_000_000_000_001);
