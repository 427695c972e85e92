//! Everything that a journal holds comes back from JSON as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::world::{self, ID, World};
use crate::config::DynamicConfig;
use crate::dcs::{DcsErrorKind, Entry, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot};
use crate::guard::{Deadline, GuardErrorKind, GuardStatus};
use crate::history::{Ancestor, History};
use crate::ids::{Epoch, MemberName, OpId, Revision, SystemId};
use crate::machine::{
    Command, Event, Exit, Failure, GuardRequest, LeaseAnswer, LeaseRequest, Machine, Order,
    ReadAnswer, ReadRequest, Ticket, WriteRequest,
};
use crate::peer::{ConsentAnswer, ConsentRequest, PeerStatus};
use crate::pg::{
    ArchiveStatus, DataDir, PgErrorKind, PgOp, PgOpKind, PgStatus, Role, Running, Server,
    StartRole, Upstream, Walsender,
};
use crate::store::Store;
use crate::time::NodeTime;
use crate::wal::{Lsn, Timeline};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let text = serde_json::to_string(value).unwrap();
    let read: T = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(&read, value, "{text}");
}

#[test]
fn a_machine_comes_back_at_every_step_of_its_life() {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let world = world::live(&mut |machine, now, event| {
        let step = machine.step(now, event);
        comes_back(machine);
        comes_back(&step);
        seen.insert(step.decision.rule.to_string());
        step
    });
    comes_back(&world.store);
    assert!(
        seen.contains("Bootstrap") && seen.contains("Lead"),
        "{seen:?}"
    );
}

#[test]
fn bytes_are_text_where_they_can_be_and_always_come_back() {
    let entry = |value: Bytes| Entry {
        value,
        revision: Revision(3),
    };
    let json = serde_json::to_string(&entry(Bytes::from_static(b"{\"a\":\"\xc3\xa9\"}"))).unwrap();
    assert_eq!(json, r#"{"value":"{\"a\":\"é\"}","revision":3}"#);
    let json = serde_json::to_string(&entry(Bytes::from_static(b"\xff\x00"))).unwrap();
    assert_eq!(json, r#"{"value":[255,0],"revision":3}"#);
    for first in 0..=255_u8 {
        comes_back(&entry(Bytes::from(vec![first])));
        for second in [0, b'"', b'\\', b'\n', 0x7f, 0x80, 0xbf, 0xc3, 0xff] {
            comes_back(&entry(Bytes::from(vec![first, second])));
        }
    }
    comes_back(&entry(Bytes::new()));
}

#[test]
fn documents_of_any_depth_and_numbers_of_any_size_come_back() {
    let mut tags = Map::new();
    for (at, number) in [
        0.1,
        1.0 / 3.0,
        5e-324,
        f64::MAX,
        2.225_073_858_507_201e-308,
        123_456_789.123_456_78,
    ]
    .into_iter()
    .enumerate()
    {
        tags.insert(format!("f{at}"), json!(number));
    }
    tags.insert("greatest".to_owned(), json!(u64::MAX));
    tags.insert("least".to_owned(), json!(i64::MIN));
    comes_back(&Event::Order(Order::Tags(tags.clone())));
    for depth in [10, 63, 64, 65, 66, 67, 100, 120] {
        let mut deep = Value::Null;
        for _ in 0..depth {
            deep = json!([deep]);
        }
        tags.insert("deep".to_owned(), deep);
        let mut identity = world::identity();
        identity.tags = tags.clone();
        comes_back(&Machine::new(identity, NodeTime(1)));
    }
}

#[test]
fn numbers_with_a_name_are_plain_numbers() {
    let value = serde_json::to_value((
        NodeTime(1),
        Ticket(2),
        OpId(3),
        Revision(4),
        Epoch(5),
        Lsn(6),
        SystemId(u64::MAX),
    ));
    assert_eq!(value.unwrap(), json!([1, 2, 3, 4, 5, 6, u64::MAX]));
}

#[test]
fn every_event_comes_back() {
    let failure = || Failure::new(DcsErrorKind::Indeterminate, "no answer\nin time");
    let pg = || Failure::new(PgErrorKind::CannotRewind, "\"diverged\"");
    let ticket = Ticket(9);
    let history = History::new(Timeline(3), vec![ancestor(1, 10), ancestor(2, 20)]).unwrap();
    for event in [
        Event::Tick,
        Event::Changed,
        Event::ServerChanged,
        Event::Lease(ticket, Ok(LeaseAnswer::Held(lease()))),
        Event::Lease(ticket, Ok(LeaseAnswer::Done)),
        Event::Lease(ticket, Err(failure())),
        Event::Read(ticket, Ok(ReadAnswer::Snapshot(Box::new(snapshot())))),
        Event::Read(ticket, Ok(ReadAnswer::LeaseLeft(None))),
        Event::Read(ticket, Ok(ReadAnswer::LeaseLeft(Some(Duration::MAX)))),
        Event::Read(ticket, Ok(ReadAnswer::LeaseEnded(true))),
        Event::Read(ticket, Err(failure())),
        Event::Written(ticket, Ok(())),
        Event::Written(ticket, Err(failure())),
        Event::Observed(ticket, Ok(status(standby()))),
        Event::Observed(ticket, Ok(PgStatus::empty())),
        Event::Observed(ticket, Ok(unfinished())),
        Event::Observed(ticket, Err(pg())),
        Event::HistoryRead(ticket, Ok((ID, history))),
        Event::HistoryRead(ticket, Err(pg())),
        Event::OpEnded(OpId(4), Ok(())),
        Event::OpEnded(OpId(4), Err(pg())),
        Event::Fenced(Ok(())),
        Event::Fenced(Err(pg())),
        Event::Guard(ticket, Ok(guard())),
        Event::Guard(ticket, Err(Failure::new(GuardErrorKind::Silent, "hung"))),
        Event::PeerAnswered(ticket, name("b"), None),
        Event::PeerAnswered(ticket, name("é b"), Some(peer())),
        Event::ConsentAnswered(
            ticket,
            [(name("b"), None), (name("c"), Some(Lsn(1)))].into(),
        ),
        Event::ConsentAsked(ticket, consent()),
        Event::Order(Order::Shutdown),
        Event::Order(Order::Detach),
        Event::Order(Order::Tags(Map::from_iter([(
            "a".to_owned(),
            json!({"b": [1, null]}),
        )]))),
    ] {
        comes_back(&event);
    }
}

#[test]
fn every_command_comes_back() {
    let ticket = Ticket(9);
    let bytes = Bytes::from_static(b"{\"a\":1}");
    let ttl = Duration::from_millis(10_500);
    let urls = BTreeMap::from([(name("b"), "http://b".to_owned())]);
    let commands = [
        Command::Lease(ticket, LeaseRequest::Acquire(ttl)),
        Command::Lease(
            ticket,
            LeaseRequest::Succeed(LeaseSecret("s\"".to_owned()), ttl),
        ),
        Command::Lease(ticket, LeaseRequest::Settle),
        Command::Lease(ticket, LeaseRequest::Renew(lease())),
        Command::Lease(ticket, LeaseRequest::Release(lease(), bytes.clone())),
        Command::Lease(ticket, LeaseRequest::Claim(lease())),
        Command::Read(ticket, ReadRequest::Snapshot),
        Command::Read(ticket, ReadRequest::LeaseLeft(leader())),
        Command::Read(ticket, ReadRequest::LeaseEnded(leader())),
        Command::Write(ticket, WriteRequest::Announce(bytes.clone(), ttl)),
        Command::Write(
            ticket,
            WriteRequest::Put(Key::Config, bytes.clone(), Expect::Anything),
        ),
        Command::Write(
            ticket,
            WriteRequest::Put(Key::Status, bytes.clone(), Expect::Absent),
        ),
        Command::Write(
            ticket,
            WriteRequest::Put(
                Key::Sync,
                Bytes::from_static(b"\xfe"),
                Expect::Leader(Epoch(4)),
            ),
        ),
        Command::Write(
            ticket,
            WriteRequest::Put(Key::LegacyOptime, bytes, Expect::Revision(Revision(4))),
        ),
        Command::Observe(ticket),
        Command::ReadHistory(ticket, None),
        Command::ReadHistory(ticket, Some(upstream())),
        Command::CancelOp(OpId(3)),
        Command::Fence,
        Command::Guard(ticket, GuardRequest::Arm(deadline())),
        Command::Guard(ticket, GuardRequest::Disarm),
        Command::Guard(ticket, GuardRequest::Look),
        Command::AskPeer(ticket, name("b"), "http://b".to_owned()),
        Command::AskConsent(ticket, urls, consent()),
        Command::AnswerConsent(ticket, ConsentAnswer::Accepted(None)),
        Command::AnswerConsent(ticket, ConsentAnswer::Accepted(Some(Lsn(4)))),
        Command::AnswerConsent(ticket, ConsentAnswer::Stranger),
        Command::Exit(Exit::Stopped),
        Command::Exit(Exit::Detached),
        Command::Exit(Exit::Fatal("why".to_owned())),
    ];
    let operations = operations().map(|op| Command::StartOp(OpId(3), op));
    for command in commands.into_iter().chain(operations) {
        comes_back(&command);
    }
}

fn operations() -> impl Iterator<Item = PgOp> {
    let mut raw = Map::new();
    raw.insert("ttl".to_owned(), json!(7.5));
    raw.insert("synchronous_mode".to_owned(), json!(true));
    let config = Arc::new(DynamicConfig::parse(raw).unwrap());
    let wanted = [name("a-b"), name("é")]
        .iter()
        .map(MemberName::slot)
        .collect();
    [
        PgOp::Bootstrap {
            config: Arc::clone(&config),
        },
        PgOp::Confirm,
        PgOp::Clone {
            from: upstream(),
            replace: Some(ID),
        },
        PgOp::Clone {
            from: upstream(),
            replace: None,
        },
        PgOp::Start {
            role: StartRole::Primary,
        },
        PgOp::Start {
            role: StartRole::Standby { upstream: None },
        },
        PgOp::Start {
            role: StartRole::Standby {
                upstream: Some(upstream()),
            },
        },
        PgOp::Follow { upstream: None },
        PgOp::Follow {
            upstream: Some(upstream()),
        },
        PgOp::Promote,
        PgOp::Stop,
        PgOp::HandOver { candidate: None },
        PgOp::HandOver {
            candidate: Some(name("b")),
        },
        PgOp::Rewind { from: upstream() },
        PgOp::Configure {
            revision: Revision(4),
            config,
        },
        PgOp::Slots { wanted },
        PgOp::Checkpoint,
    ]
    .into_iter()
}

#[test]
fn a_store_comes_back() {
    let mut world = World::new();
    let now = NodeTime(5);
    let ttl = Duration::from_secs(10);
    let held = world.lease(now, LeaseRequest::Acquire(ttl)).unwrap();
    if let LeaseAnswer::Held(lease) = held {
        world.store.claim_initialize(now, &lease).unwrap();
    }
    world
        .store
        .announce(now, &name("b"), Bytes::from_static(b"\xff"), ttl);
    let id = world.store.new_lease_id();
    world.store.revoke(now, id);
    let value = Bytes::from_static(b"{}");
    world
        .store
        .put(now, Key::Config, value, Expect::Absent)
        .unwrap();
    comes_back(&world.store);
    comes_back(&Store::default());
}

fn snapshot() -> RawSnapshot {
    let entry = |value: &'static [u8]| Entry {
        value: Bytes::from_static(value),
        revision: Revision(7),
    };
    RawSnapshot {
        revision: Revision(u64::MAX),
        leader: Some(leader()),
        members: [
            ("b".to_owned(), entry(b"{}")),
            (String::new(), entry(b"\x80")),
        ]
        .into(),
        documents: Key::ALL.map(|key| (key, entry(b"null"))).into(),
    }
}

fn status(role: Role) -> PgStatus {
    let (data, server) = world::made(false);
    let Server::Running(running) = server else {
        panic!("the toy is made running");
    };
    let running = Running {
        role,
        pending_restart: vec![("a".to_owned(), "1".to_owned(), "2".to_owned())],
        walsenders: vec![Walsender {
            user: "replicator".to_owned(),
            application: "b".to_owned(),
            client: None,
            state: "streaming".to_owned(),
            sync_state: "async".to_owned(),
            sync_priority: -1,
            flushed: Some(Lsn(3)),
        }],
        slots: vec![(name("b").slot(), None), (name("c").slot(), Some(Lsn(9)))],
        ..*running
    };
    PgStatus {
        data,
        server: Server::Running(Box::new(running)),
        configured: Some(Revision(2)),
        archive: Some(ArchiveStatus {
            waiting: 3,
            first_waiting: Some("000000010000000000000002".to_owned()),
        }),
    }
}

fn standby() -> Role {
    Role::Standby {
        received: Lsn(1),
        replayed: Lsn(2),
        replayed_at: Some("then".to_owned()),
        paused: true,
        streaming: false,
        upstream_end: Some(Lsn(3)),
        upstream: Some(("b".to_owned(), 5432)),
    }
}

fn unfinished() -> PgStatus {
    PgStatus {
        data: DataDir::Unfinished(PgOpKind::HandOver),
        server: Server::Busy {
            saying: "starting up".to_owned(),
            guarded: false,
        },
        configured: None,
        archive: None,
    }
}

fn guard() -> GuardStatus {
    GuardStatus {
        postmaster: Some(7),
        alive: true,
        deadline: Some(deadline()),
        worst_fence: Duration::from_micros(1_234_567),
        fences: 3,
        last_fence: Some("asked".to_owned()),
        weaknesses: vec!["memory".to_owned()],
    }
}

fn peer() -> PeerStatus {
    PeerStatus {
        name: Some(name("b")),
        scope: None,
        primary: false,
        position: Some(Lsn(1)),
        timeline: Some(Timeline(2)),
        no_failover: true,
        streaming: true,
        cannot_write: false,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    }
}

fn consent() -> ConsentRequest {
    ConsentRequest {
        scope: Some("demo".to_owned()),
        name: name("b"),
        conn_url: "postgres://b".to_owned(),
        api_url: "http://b".to_owned(),
        slots: [("b".to_owned(), Lsn(2))].into(),
    }
}

fn deadline() -> Deadline {
    Deadline {
        epoch: Epoch(4),
        secret: LeaseSecret("1@4".to_owned()),
        soft: NodeTime(1),
        hard: NodeTime(2),
    }
}

fn leader() -> LeaderRecord {
    LeaderRecord {
        name: Bytes::from_static(b"a\xffb"),
        epoch: Epoch(4),
        lease_id: Some(u64::MAX),
    }
}

fn lease() -> Lease {
    Lease {
        epoch: Epoch(4),
        secret: LeaseSecret("1@4".to_owned()),
        ttl: Duration::from_secs(10),
    }
}

fn upstream() -> Upstream {
    Upstream {
        name: name("b"),
        conn_url: "postgres://b".to_owned(),
    }
}

fn ancestor(timeline: u32, end: u64) -> Ancestor {
    Ancestor {
        timeline: Timeline(timeline),
        end: Lsn(end),
    }
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}
