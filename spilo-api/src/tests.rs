//! Tests of the server and the client, and the fake node that they share.

mod access;
mod client;
mod documents;
mod health;
mod orders;
mod sockets;
#[cfg(feature = "tls")]
mod tls;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};
use spilo_core::cluster::NodeState;
use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Entry, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::machine::{Identity, Machine};
use spilo_core::peer::{ConsentAnswer, ConsentRequest, PeerError, PeerStatus};
use spilo_core::pg::{Control, ControlState, DataDir, Role, Running, Server};
use spilo_core::status::{Leadership, PermittedBy, Status};
use spilo_core::{
    Cluster, Dcs, DcsError, DynamicConfig, Epoch, Lsn, MemberName, NodeTime, Peers, PgStatus,
    Revision, Scope, SystemId, Timeline, WalPosition,
};
use tower::ServiceExt as _;

use crate::{Api, ApiOptions, Node};

/// When the fake's status was taken.
const NOW: NodeTime = NodeTime(1_000_000);

/// A node whose every part a test can set.
#[derive(Debug)]
struct Fake {
    status: Mutex<Arc<Status>>,
    now: Mutex<NodeTime>,
    dcs: Arc<FakeDcs>,
    peers: Arc<FakePeers>,
    /// `None` never answers.
    consent: Mutex<Option<ConsentAnswer>>,
    consents: Mutex<Vec<ConsentRequest>>,
    woken: AtomicUsize,
    detached: AtomicUsize,
    /// Whether it takes no orders.
    busy: Mutex<bool>,
}

#[derive(Debug, Default)]
struct FakeDcs {
    raw: Mutex<RawSnapshot>,
    mood: Mutex<Mood>,
    reads: AtomicUsize,
    /// A write of somebody else that comes between a read and the next write.
    meddler: Mutex<Option<Key>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Answers,
    Fails,
    Hangs,
    RefusesWrites,
}

#[derive(Debug, Default)]
struct FakePeers(Mutex<BTreeMap<String, PeerStatus>>);

/// What came back.
#[derive(Debug)]
struct Answer {
    code: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Fake {
    fn new(status: Status) -> Arc<Self> {
        let raw = snapshot();
        let mut status = status;
        status.cluster = Some(Arc::new(Cluster::read(&raw, None)));
        Arc::new(Self {
            status: Mutex::new(Arc::new(status)),
            now: Mutex::new(NOW),
            dcs: Arc::new(FakeDcs {
                raw: Mutex::new(raw),
                ..FakeDcs::default()
            }),
            peers: Arc::default(),
            consent: Mutex::new(Some(ConsentAnswer::Accepted(Some(Lsn(77))))),
            consents: Mutex::default(),
            woken: AtomicUsize::new(0),
            detached: AtomicUsize::new(0),
            busy: Mutex::new(false),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.status.lock().unwrap();
        change(Arc::make_mut(&mut status));
    }

    /// Lets the agent see what is in the store.
    fn look(&self) {
        let cluster = Cluster::read(&self.dcs.raw.lock().unwrap(), None);
        self.change(|status| status.cluster = Some(Arc::new(cluster)));
    }

    fn api(self: &Arc<Self>) -> Api {
        Api::new(self.clone(), ApiOptions::default()).unwrap()
    }
}

#[async_trait]
impl Node for Fake {
    fn status(&self) -> Arc<Status> {
        self.status.lock().unwrap().clone()
    }

    fn now(&self) -> NodeTime {
        *self.now.lock().unwrap()
    }

    async fn consent(&self, request: ConsentRequest) -> ConsentAnswer {
        self.consents.lock().unwrap().push(request);
        let answer = *self.consent.lock().unwrap();
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::SeqCst);
    }

    fn detach(&self) -> bool {
        let busy = *self.busy.lock().unwrap();
        if !busy {
            self.detached.fetch_add(1, Ordering::SeqCst);
        }
        !busy
    }

    fn dcs(&self) -> Arc<dyn Dcs> {
        self.dcs.clone()
    }

    fn peers(&self) -> Arc<dyn Peers> {
        self.peers.clone()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }
}

impl FakeDcs {
    fn document(&self, key: Key) -> Option<Value> {
        let raw = self.raw.lock().unwrap();
        raw.documents
            .get(&key)
            .map(|entry| serde_json::from_slice(&entry.value).unwrap())
    }

    fn write(&self, key: Key, value: impl Into<Bytes>) -> Revision {
        let mut raw = self.raw.lock().unwrap();
        raw.revision.0 += 1;
        let revision = raw.revision;
        raw.documents.insert(
            key,
            Entry {
                value: value.into(),
                revision,
            },
        );
        revision
    }

    fn error(kind: DcsErrorKind) -> DcsError {
        DcsError::new("fake", kind, "do it", "the test says so")
    }
}

#[async_trait]
impl Dcs for FakeDcs {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("fake")
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Answers | Mood::RefusesWrites => Ok(self.raw.lock().unwrap().clone()),
            Mood::Fails => Err(Self::error(DcsErrorKind::Unavailable)),
            Mood::Hangs => std::future::pending().await,
        }
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        if *self.mood.lock().unwrap() == Mood::RefusesWrites {
            return Err(Self::error(DcsErrorKind::Indeterminate));
        }
        let meddler = self.meddler.lock().unwrap().take();
        if let Some(key) = meddler {
            self.write(key, "{\"ttl\":99}");
        }
        let at = self
            .raw
            .lock()
            .unwrap()
            .documents
            .get(&key)
            .map(|entry| entry.revision);
        let fits = match expect {
            Expect::Anything => true,
            Expect::Absent => at.is_none(),
            Expect::Revision(revision) => at == Some(revision),
            Expect::Leader(_) => panic!("the API has no epoch"),
        };
        if fits {
            Ok(self.write(key, value))
        } else {
            Err(Self::error(DcsErrorKind::Conflict))
        }
    }

    async fn acquire(&self, _: &MemberName, _: Duration) -> Result<Lease, DcsError> {
        panic!("the API takes no lock")
    }

    async fn succeed(
        &self,
        _: &LeaseSecret,
        _: &MemberName,
        _: Duration,
    ) -> Result<Lease, DcsError> {
        panic!("the API takes no lock")
    }

    async fn settle(&self) -> Result<(), DcsError> {
        panic!("the API takes no lock")
    }

    async fn renew(&self, _: &Lease) -> Result<(), DcsError> {
        panic!("the API takes no lock")
    }

    async fn release(&self, _: &Lease, _: Bytes) -> Result<(), DcsError> {
        panic!("the API takes no lock")
    }

    async fn claim_initialize(&self, _: &Lease) -> Result<(), DcsError> {
        panic!("the API takes no lock")
    }

    async fn announce(&self, _: &MemberName, _: Bytes, _: Duration) -> Result<(), DcsError> {
        panic!("the API announces nobody")
    }

    async fn delete(&self, _: Key, _: Expect) -> Result<(), DcsError> {
        panic!("the API deletes nothing")
    }
}

#[async_trait]
impl Peers for FakePeers {
    async fn ask(&self, api_url: &str) -> Result<PeerStatus, PeerError> {
        let known = self.0.lock().unwrap().get(api_url).cloned();
        known.ok_or_else(|| PeerError::new(api_url, "connection refused"))
    }

    async fn ask_consent(&self, _: &str, _: &ConsentRequest) -> Result<Option<Lsn>, PeerError> {
        panic!("the API asks for no consent")
    }
}

/// Sends a request to the router without a socket.
async fn send(node: &Arc<Fake>, method: &str, path: &str, body: &str) -> Answer {
    send_to(&node.api(), request(method, path, body)).await
}

async fn get(node: &Arc<Fake>, path: &str) -> Answer {
    send(node, "GET", path, "").await
}

async fn send_to(api: &Api, request: Request) -> Answer {
    let response = api.router().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer {
        code: head.status,
        headers: head.headers,
        body,
    }
}

fn request(method: &str, path: &str, body: &str) -> Request {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-length", body.len())
        .body(Body::from(body.to_owned()))
        .unwrap()
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn parts(&self) -> (u16, &str) {
        (self.code.as_u16(), &self.body)
    }
}

fn name(name: &str) -> MemberName {
    MemberName::new(name).unwrap()
}

/// A primary that holds the lock for five seconds more.
fn primary() -> Status {
    let mut status = status(Role::Primary {
        written: Lsn(0x300_0000),
    });
    status.leadership = Some(Leadership {
        epoch: Epoch(7),
        until: NOW + Duration::from_secs(5),
        by: PermittedBy::Lease,
    });
    status.holds_lock = true;
    status
}

/// A standby that streams, a thousand bytes behind.
fn standby() -> Status {
    status(Role::Standby {
        received: Lsn(0x300_0000),
        replayed: Lsn(0x300_0000 - 1000),
        replayed_at: None,
        paused: false,
        streaming: true,
        upstream_end: Some(Lsn(0x300_0000)),
        upstream: None,
    })
}

fn status(role: Role) -> Status {
    let control = Control {
        system_id: SystemId(7_710_822_623_212_245_678),
        state: ControlState::InProduction,
        position: WalPosition {
            timeline: Timeline(3),
            lsn: Lsn(0x200_0000),
        },
        standby: matches!(role, Role::Standby { .. }),
        rewindable: true,
        provisional: false,
    };
    let running = Running {
        role,
        timeline: Timeline(3),
        guarded: true,
        version: 150_018,
        started: "2000-01-01 00:00:00+00".to_owned(),
        pending_restart: Vec::new(),
        walsenders: Vec::new(),
        slots: Vec::new(),
    };
    let config = object(json!({"ttl": 10, "loop_wait": 10, "maximum_lag_on_failover": 5000}));
    // Only the machine makes a status.
    let identity = Identity {
        scope: Scope::new("demo").unwrap(),
        name: name("a"),
        conn_url: "postgres://127.0.0.1:5001/postgres".to_owned(),
        api_url: "http://127.0.0.1:6001/patroni".to_owned(),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: None,
        fence_budget: Duration::from_millis(250),
    };
    let mut status = Machine::new(identity, NOW).status();
    status.postgres = Some(PgStatus {
        data: DataDir::Ready(control),
        server: Server::Running(Box::new(running)),
        configured: None,
        archive: None,
    });
    status.postgres_at = Some(NOW);
    status.may_become_primary = false;
    status.state = NodeState::Running;
    status.cluster_at = Some(NOW);
    status.config = Arc::new(DynamicConfig::parse(config).unwrap());
    status.decision = ("KeepLock", "all is well".to_owned());
    status.stepped_at = NOW;
    status.fence = "guard";
    status.weaknesses = Vec::new();
    status.worst_fence_ms = 12;
    (status.waits_until, status.barred) = (NOW, false);
    status
}

fn set_server(status: &mut Status, server: Server, state: NodeState) {
    status.postgres.as_mut().unwrap().server = server;
    status.state = state;
}

fn set_tags(status: &mut Status, tags: Value) {
    status.tags = object(tags);
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// A cluster of `a`, which leads, `b` and `c`.
fn snapshot() -> RawSnapshot {
    let entry = |value: Value, revision: u64| Entry {
        value: Bytes::from(value.to_string()),
        revision: Revision(revision),
    };
    let member = |port: u16, state: &str, role: &str, lsn: u64| {
        json!({
            "conn_url": format!("postgres://127.0.0.1:{port}/postgres"),
            "api_url": format!("http://127.0.0.1:{}/patroni", port + 1000),
            "state": state, "role": role, "version": "4.1.4", "xlog_location": lsn, "timeline": 3,
        })
    };
    let mut b = member(5002, "running", "replica", 0x2FF_FF00);
    b["replication_state"] = "streaming".into();
    b["receive_lsn"] = 0x2FF_FF00_u64.into();
    b["replay_lsn"] = 0x2FF_FE00_u64.into();
    b["tags"] = json!({"clonefrom": true});
    let mut c = member(5003, "stopped", "replica", 1);
    c.as_object_mut().unwrap().shift_remove("xlog_location");
    RawSnapshot {
        revision: Revision(20),
        leader: Some(LeaderRecord {
            name: "a".into(),
            epoch: Epoch(7),
            lease_id: Some(1),
        }),
        members: [
            (
                "a".to_owned(),
                entry(member(5001, "running", "primary", 0x300_0000), 10),
            ),
            ("b".to_owned(), entry(b, 11)),
            ("c".to_owned(), entry(c, 12)),
        ]
        .into(),
        documents: [
            (
                Key::Initialize,
                entry(json!(7_710_822_623_212_245_678_u64), 5),
            ),
            (
                Key::Config,
                entry(json!({"ttl": 10, "postgresql": {"use_slots": true}}), 6),
            ),
            (Key::Status, entry(json!({"optime": 0x300_0000}), 13)),
            (
                Key::Failsafe,
                entry(json!({"a": "http://127.0.0.1:6001/patroni"}), 14),
            ),
            (
                Key::History,
                entry(
                    json!([
                        [1, 100, "no recovery target specified"],
                        [2, 200, "x", "then", "a"]
                    ]),
                    15,
                ),
            ),
        ]
        .into(),
    }
}
