//! The journal that the agent keeps, over fakes.

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::world::{self, ID, World};
use super::{Record, Taken, replay, sink};
use crate::agent::{Agent, Backends};
use crate::dcs::{
    Capabilities, Dcs, DcsError, DcsErrorKind, Expect, Key, Lease, LeaseSecret, RawSnapshot,
};
use crate::decide::Rule;
use crate::guard::{Deadline, Guard, GuardError, GuardStatus};
use crate::history::History;
use crate::ids::{MemberName, Revision, SystemId};
use crate::machine::{Exit, GuardRequest, LeaseAnswer, LeaseRequest, Order};
use crate::peer::{ConsentRequest, PeerError, PeerStatus, Peers};
use crate::pg::{PgError, PgOp, PgStatus, Postgres, Progress, Server, Upstream};
use crate::store::Conflict;
use crate::time::{Clock, NodeTime};
use crate::wal::{Lsn, Timeline};

#[tokio::test(start_paused = true)]
async fn what_the_agent_records_replays_to_the_same_decisions() {
    let (lines, take) = sink(|_| Taken::Kept);
    let fake = Arc::new(Fake {
        world: Mutex::new(World::new()),
        begun: Instant::now(),
    });
    let (agent, mut handle) = Agent::new(world::identity(), fake.backends());
    let mut running = tokio::task::JoinSet::new();
    running.spawn(agent.with_journal(take).run());
    while handle.status().decision.0 != "Lead" {
        assert!(handle.changed().await);
    }
    handle.order(Order::Shutdown).await;
    let exit = running.join_next().await.unwrap().unwrap();
    assert_eq!(exit, Exit::Stopped);

    let lines = lines.lock().unwrap();
    let records = replay(&lines).unwrap();
    let rules: Vec<Rule> = records
        .iter()
        .filter_map(|record| match record {
            Record::Begin(_) => None,
            Record::Turn(turn) => Some(turn.step.decision.rule),
        })
        .collect();
    for rule in [Rule::Bootstrap, Rule::Lead, Rule::StopServer, Rule::Stopped] {
        assert!(rules.contains(&rule), "{rule} is not among {rules:?}");
    }
    assert_eq!(lines.len(), rules.len() + 1);
}

/// A world behind the traits.
struct Fake {
    world: Mutex<World>,
    begun: Instant,
}

impl Fake {
    fn backends(self: &Arc<Self>) -> Backends {
        Backends {
            dcs: Arc::clone(self) as _,
            postgres: Arc::clone(self) as _,
            guard: Arc::clone(self) as _,
            peers: Arc::clone(self) as _,
            clock: Arc::clone(self) as _,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn lease(&self, request: LeaseRequest) -> Result<LeaseAnswer, DcsError> {
        let now = self.now();
        self.world().lease(now, request).map_err(conflict)
    }

    fn held(&self, request: LeaseRequest) -> Result<Lease, DcsError> {
        match self.lease(request)? {
            LeaseAnswer::Held(lease) => Ok(lease),
            LeaseAnswer::Done => panic!("no lease came of it"),
        }
    }
}

#[async_trait]
impl Clock for Fake {
    fn now(&self) -> NodeTime {
        NodeTime(1_000) + self.begun.elapsed()
    }

    async fn sleep_until(&self, at: NodeTime) {
        tokio::time::sleep(at.since(self.now())).await;
    }
}

#[async_trait]
impl Dcs for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("fake")
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        let now = self.now();
        Ok(self.world().store.snapshot(now))
    }

    async fn acquire(&self, _: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        self.held(LeaseRequest::Acquire(ttl))
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        _: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        self.held(LeaseRequest::Succeed(old.clone(), ttl))
    }

    async fn settle(&self) -> Result<(), DcsError> {
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        self.lease(LeaseRequest::Renew(lease.clone())).map(drop)
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let request = LeaseRequest::Release(lease.clone(), record);
        self.lease(request).map(drop)
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        self.lease(LeaseRequest::Claim(lease.clone())).map(drop)
    }

    async fn announce(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        let now = self.now();
        self.world().store.announce(now, me, record, ttl);
        Ok(())
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        let now = self.now();
        let put = self.world().store.put(now, key, value, expect);
        put.map_err(conflict)
    }

    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let now = self.now();
        let delete = self.world().store.delete(now, key, expect);
        delete.map_err(conflict)
    }
}

#[async_trait]
impl Postgres for Fake {
    async fn observe(&self) -> Result<PgStatus, PgError> {
        Ok(self.world().server.clone())
    }

    async fn run(&self, op: PgOp, _: Progress) -> Result<(), PgError> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.world().operate(op);
        Ok(())
    }

    async fn fence(&self) -> Result<(), PgError> {
        self.world().server.server = Server::Down;
        Ok(())
    }

    async fn history(&self) -> Result<History, PgError> {
        Ok(History::root(Timeline(1)))
    }

    async fn history_of(&self, _: &Upstream) -> Result<(SystemId, History), PgError> {
        Ok((ID, History::root(Timeline(1))))
    }
}

#[async_trait]
impl Guard for Fake {
    async fn arm(&self, deadline: Deadline) -> Result<GuardStatus, GuardError> {
        Ok(self.world().guarded(GuardRequest::Arm(deadline)))
    }

    async fn disarm(&self) -> Result<GuardStatus, GuardError> {
        Ok(self.world().guarded(GuardRequest::Disarm))
    }

    async fn status(&self) -> Result<GuardStatus, GuardError> {
        Ok(self.world().guarded(GuardRequest::Look))
    }

    async fn changed(&self) -> Result<(), GuardError> {
        pending().await
    }
}

#[async_trait]
impl Peers for Fake {
    async fn ask(&self, url: &str) -> Result<PeerStatus, PeerError> {
        Err(PeerError::new(url, "there is none"))
    }

    async fn ask_consent(&self, url: &str, _: &ConsentRequest) -> Result<Option<Lsn>, PeerError> {
        Err(PeerError::new(url, "there is none"))
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

fn conflict(conflict: Conflict) -> DcsError {
    DcsError::new(
        "fake",
        DcsErrorKind::Conflict,
        "do it",
        conflict.to_string(),
    )
}
