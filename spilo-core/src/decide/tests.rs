//! One row or more for each rule: what is known, and what is decided.

mod named;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Action, Decision, View, decide};
use crate::cluster::{
    Cluster, ConfigDocument, FailoverDocument, Initialize, Leader, Member, MemberRole,
    ReleaseDocument, StatusDocument,
};
use crate::config::DynamicConfig;
use crate::dcs::{LeaderRecord, Lease, LeaseSecret};
use crate::guard::{Deadline, GuardStatus};
use crate::history::History;
use crate::ids::{Epoch, MemberName, OpId, Revision, Scope, SystemId};
use crate::machine::facts::{Facts, LeaderHistory, OpFailure, RunningOp, Seen};
use crate::machine::lease::{Holding, Predecessor, Proof};
use crate::machine::{Identity, LeaseRequest};
use crate::peer::PeerStatus;
use crate::pg::{
    Control, ControlState, DataDir, PgErrorKind, PgOp, PgStatus, Role, Running, Server, Upstream,
};
use crate::time::NodeTime;
use crate::wal::{Lsn, Timeline, WalPosition};

pub(super) const NOW: NodeTime = NodeTime(100_000);
pub(super) const ID: SystemId = SystemId(7_000_000_000_000_000_001);

/// A node, and what it knows: at the beginning that its server is a level standby which runs, and
/// that nobody holds the lock, which is proven.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) me: Identity,
    pub(super) facts: Facts,
}

pub(super) fn node() -> Node {
    let me = Identity {
        scope: Scope::new("demo").unwrap(),
        name: name("a"),
        conn_url: "postgres://10.0.0.1:5432/postgres".to_owned(),
        api_url: "http://10.0.0.1:8008/patroni".to_owned(),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: Some(Arc::new(seed())),
        fence_budget: Duration::from_millis(250),
    };
    let mut facts = Facts::new(NodeTime(0));
    facts.now = NOW;
    facts.config = Arc::new(seed());
    facts.guard = Some(Seen {
        at: NOW,
        value: GuardStatus::idle(),
    });
    facts.own_history = Some(History::root(Timeline(1)));
    facts.predecessor = Some(Predecessor {
        name: Some(name("b")),
        record: Some(record("b", 5)),
        told: None,
        ttl: Some(Duration::from_secs(10)),
        gone: Some(NodeTime(99_000)),
        gone_revision: Some(Revision(9)),
        left: None,
        older_until: None,
        proof: Some(Proof::Released),
    });
    Node { me, facts }
        .cluster(|c| {
            c.revision = Revision(10);
            c.initialize = Initialize::Known(ID);
        })
        .standby(1000)
}

impl Node {
    pub(super) fn decide(&self) -> Decision {
        decide(&View::new(&self.me, &self.facts))
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        change(&mut self.facts);
        self
    }

    pub(super) fn cluster(mut self, change: impl FnOnce(&mut Cluster)) -> Self {
        let mut cluster = match self.facts.cluster.take() {
            Some(seen) => (*seen.value).clone(),
            None => Cluster::default(),
        };
        change(&mut cluster);
        self.facts.cluster = Some(Seen {
            at: NOW,
            value: Arc::new(cluster),
        });
        self
    }

    /// The lock is ours, with nine seconds to come, and the guard knows.
    pub(super) fn holder(self) -> Self {
        self.holder_since(NodeTime(99_000))
    }

    pub(super) fn holder_since(self, renewed: NodeTime) -> Self {
        let mut held = Holding::new(lease(20), renewed);
        held.clear = Some(renewed);
        held.recorded = true;
        let permission = held.leadership(Duration::from_millis(250));
        let deadline = crate::machine::lease::deadline(&permission, &held.lease);
        self.leader("a", 20).with(|f| {
            f.predecessor = None;
            f.holding = Some(held);
            f.armed = Some(deadline);
        })
    }

    /// Somebody holds the lock.
    pub(super) fn leader(self, who: &str, epoch: u64) -> Self {
        let leader = Leader {
            name: Some(name(who)),
            record: record(who, epoch),
        };
        self.cluster(|c| {
            c.revision = Revision(epoch + 1);
            c.leader = Some(leader);
        })
    }

    /// `b` holds the lock and serves.
    pub(super) fn led_by_b(self) -> Self {
        self.leader("b", 20).member("b", |_| {})
    }

    pub(super) fn member(self, who: &str, change: impl FnOnce(&mut Member)) -> Self {
        let mut member = Member {
            name: name(who),
            conn_url: Some("postgres://10.0.0.2:5432/postgres".to_owned()),
            api_url: Some("http://10.0.0.2:8008/patroni".to_owned()),
            state: "running".to_owned(),
            role: MemberRole::Primary,
            xlog_location: Some(Lsn(1000)),
            receive_lsn: None,
            replay_lsn: None,
            replication_state: None,
            timeline: Some(Timeline(1)),
            checkpoint_pending: false,
            tags: Map::new(),
            raw: Map::new(),
            revision: Revision(8),
        };
        change(&mut member);
        self.cluster(|c| {
            c.members.insert(member.name.clone(), member);
        })
    }

    /// `b` is to be asked before a race, and answered this.
    pub(super) fn peer(self, answer: Option<PeerStatus>) -> Self {
        self.with(|f| {
            f.electorate.insert(name("b"), "http://b".to_owned());
            let seen = Seen {
                at: NodeTime(99_500),
                value: answer,
            };
            f.peers.insert(name("b"), seen);
        })
    }

    pub(super) fn pg(self, data: DataDir, server: Server) -> Self {
        self.with(|f| {
            f.pg = Some(Seen {
                at: NOW,
                value: PgStatus {
                    data,
                    server,
                    configured: None,
                    archive: None,
                },
            });
        })
    }

    pub(super) fn running(self, role: Role, standby: bool) -> Self {
        let running = Running {
            role,
            timeline: Timeline(1),
            guarded: true,
            version: 150_000,
            started: String::new(),
            pending_restart: Vec::new(),
            walsenders: Vec::new(),
            slots: Vec::new(),
        };
        let data = DataDir::Ready(control(standby, ControlState::InProduction));
        self.pg(data, Server::Running(Box::new(running)))
    }

    pub(super) fn standby(self, received: u64) -> Self {
        self.standby_of(received, None, false)
    }

    pub(super) fn standby_of(
        self,
        received: u64,
        upstream: Option<(&str, u16)>,
        streaming: bool,
    ) -> Self {
        let role = Role::Standby {
            received: Lsn(received),
            replayed: Lsn(received),
            replayed_at: None,
            paused: false,
            streaming,
            upstream_end: None,
            upstream: upstream.map(|(host, port)| (host.to_owned(), port)),
        };
        self.running(role, true)
    }

    pub(super) fn primary(self) -> Self {
        self.running(Role::Primary { written: Lsn(1000) }, false)
    }

    pub(super) fn down(self, standby: bool, state: ControlState) -> Self {
        self.pg(DataDir::Ready(control(standby, state)), Server::Down)
    }

    pub(super) fn op(self, op: PgOp) -> Self {
        self.with(|f| {
            f.op = Some(RunningOp {
                id: OpId(1),
                op,
                since: NodeTime(99_000),
                cancelled: false,
            });
        })
    }

    pub(super) fn failed(self, kind: crate::pg::PgOpKind, times: u32, ago: u64) -> Self {
        self.with(|f| {
            let failure = OpFailure {
                at: NodeTime(NOW.0 - ago),
                times,
                kind: PgErrorKind::Retry,
                text: "it broke".to_owned(),
            };
            f.failures.insert(kind, failure);
        })
    }

    /// The leader `b` was asked for its history in this epoch, and says that it is on it.
    pub(super) fn history_of_b(self, history: History) -> Self {
        let timeline = history.timeline();
        let told = self.cluster(|c| {
            if let Some(member) = c.members.get_mut(&name("b")) {
                member.timeline = Some(timeline);
            }
        });
        told.with(|f| {
            f.leader_history = Some(LeaderHistory {
                name: name("b"),
                epoch: Some(Epoch(20)),
                at: NOW,
                answer: Ok((ID, history)),
            });
        })
    }
}

pub(super) fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

pub(super) fn seed() -> DynamicConfig {
    config(json!({}))
}

pub(super) fn config(change: Value) -> DynamicConfig {
    let Value::Object(change) = change else {
        panic!("{change} is no object")
    };
    DynamicConfig::seed(&change).unwrap()
}

pub(super) fn record(who: &str, epoch: u64) -> LeaderRecord {
    LeaderRecord {
        name: who.to_owned().into(),
        epoch: Epoch(epoch),
        lease_id: Some(epoch),
    }
}

pub(super) fn lease(epoch: u64) -> Lease {
    Lease {
        epoch: Epoch(epoch),
        secret: LeaseSecret(format!("{epoch}")),
        ttl: Duration::from_secs(10),
    }
}

pub(super) fn control(standby: bool, state: ControlState) -> Control {
    Control {
        system_id: ID,
        state,
        position: at(1, 1000),
        standby,
        rewindable: true,
        provisional: false,
    }
}

pub(super) fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition {
        timeline: Timeline(timeline),
        lsn: Lsn(lsn),
    }
}

pub(super) fn upstream_b() -> Upstream {
    Upstream {
        name: name("b"),
        conn_url: "postgres://10.0.0.2:5432/postgres".to_owned(),
    }
}

pub(super) fn peer_at(lsn: u64) -> PeerStatus {
    PeerStatus {
        scope: None,
        name: Some(name("b")),
        primary: false,
        position: Some(Lsn(lsn)),
        timeline: Some(Timeline(1)),
        no_failover: false,
        streaming: false,
        cannot_write: false,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    }
}

pub(super) fn released(epoch: u64, position: Option<(Timeline, Lsn)>) -> Action {
    let record = ReleaseDocument {
        epoch: Epoch(epoch),
        name: "a".to_owned(),
        ttl: Some(Duration::from_secs(10)),
        taken: false,
        position,
        candidate: None,
        revision: Revision(0),
    };
    Action::Lease(LeaseRequest::Release(lease(epoch), record.to_bytes()))
}

pub(super) fn failover(leader: Option<&str>, candidate: Option<&str>) -> FailoverDocument {
    FailoverDocument {
        leader: leader.map(str::to_owned),
        candidate: candidate.map(str::to_owned),
        scheduled_at: None,
        revision: Revision(7),
    }
}

pub(super) fn document(revision: u64) -> ConfigDocument {
    ConfigDocument {
        config: Arc::new(seed()),
        revision: Revision(revision),
    }
}

pub(super) fn optime(lsn: u64) -> StatusDocument {
    StatusDocument {
        optime: Some(Lsn(lsn)),
        ..StatusDocument::default()
    }
}

pub(super) fn others(names: &[&str]) -> BTreeMap<MemberName, String> {
    let pair = |n: &&str| (name(n), format!("http://{n}"));
    names.iter().map(pair).collect()
}

pub(super) fn kept(epoch: u64, soft: u64, hard: u64) -> Deadline {
    Deadline {
        epoch: Epoch(epoch),
        secret: LeaseSecret(format!("{epoch}")),
        soft: NodeTime(soft),
        hard: NodeTime(hard),
    }
}
