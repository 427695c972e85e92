//! A primary that hands over: what it waits for, and what not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use spilo_core::ids::MemberName;
use spilo_core::pg::{ControlState, PgErrorKind, PgOp, Postgres as _, Running};

use node::{Node, Version, sandbox};

fn version() -> Version {
    Version::find("15").expect("version 15 is always there")
}

#[tokio::test]
async fn a_hand_over_without_a_level_standby_goes_on_serving() {
    let dir = sandbox();
    let a = Node::new(&version(), dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    let candidate = Some(MemberName::new("pg-x").unwrap());
    let error = a.try_run(PgOp::HandOver { candidate }).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::NotLevel, "{error}");
    assert!(a.running().await.is_primary());
    a.sql("CREATE TABLE still_writes ()").await;
}

#[tokio::test]
async fn a_stuck_receiver_does_not_hold_a_hand_over() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    let target = dir.path().join("archive");
    std::fs::create_dir(&target).unwrap();
    let receiver = Command::new(version.bin_dir.join("pg_receivewal"))
        .args(["--no-password", "--no-loop", "-D"])
        .arg(&target)
        .arg("-d")
        .arg(format!("host=127.0.0.1 port={} user=replicator", a.port))
        .env("PGPASSFILE", a.state_dir().join("pgpass"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let receiver = Killed(receiver);
    a.until("two receivers stream", |status| {
        let streaming = |r: &Running| {
            r.walsenders
                .iter()
                .filter(|w| w.state == "streaming")
                .count()
        };
        status.running().map(streaming) == Some(2)
    })
    .await;
    receiver.signal(Signal::STOP);
    // More than sockets hold: its walsender waits with something half sent.
    let message = "pg_logical_emit_message(false, 'x', repeat('x', 1000000))";
    a.sql(&format!("SELECT {message} FROM generate_series(1, 30)"))
        .await;
    let begun = Instant::now();
    a.run(PgOp::HandOver {
        candidate: Some(b.name()),
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    let end = a.postgres.observe().await.unwrap().position().unwrap();
    assert_eq!(b.running().await.position(), end);
}

/// A stopped server archives what there is, however long that takes.
#[tokio::test]
async fn a_hand_over_does_not_wait_for_an_archive_that_hangs() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    let archiving = json!({"archive_mode": "on", "archive_command": "sleep 300"});
    a.bootstrap_with(archiving, &["pg-b"]).await;
    b.join(&a).await;
    a.sql("SELECT pg_switch_wal()").await;
    let begun = Instant::now();
    a.run(PgOp::HandOver {
        candidate: Some(b.name()),
    })
    .await;
    let spent = begun.elapsed();
    assert!(spent < Duration::from_secs(20), "{spent:?}");
    assert_eq!(a.control().await.state, ControlState::ShutDown);
    assert_eq!(a.processes(), [0; 0]);
    let end = a.postgres.observe().await.unwrap().position().unwrap();
    b.until("it has everything", |status| status.position() == Some(end))
        .await;
}

#[tokio::test]
async fn a_hand_over_does_not_wait_for_a_level_standby_that_answers_no_more() {
    hands_over_beside_a_silent_one(false).await;
}

#[tokio::test]
async fn a_hand_over_does_not_wait_for_a_candidate_that_answers_no_more() {
    hands_over_beside_a_silent_one(true).await;
}

/// A standby whose machine is gone looks level until the server misses it, which is a minute by
/// default.
async fn hands_over_beside_a_silent_one(as_candidate: bool) {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    let c = Node::new(&version, dir.path(), "pg-c").await;
    a.bootstrap(&["pg-b", "pg-c"]).await;
    b.join(&a).await;
    c.join(&a).await;
    a.until("both are level", |status| {
        let end = status.position().map(|position| position.lsn);
        let level = |r: &Running| r.walsenders.iter().filter(|w| w.flushed >= end).count();
        status.running().map(level) == Some(2)
    })
    .await;
    let _frozen = Frozen::all_of(&c);
    let begun = Instant::now();
    let candidate = as_candidate.then(|| c.name());
    a.run(PgOp::HandOver { candidate }).await;
    let spent = begun.elapsed();
    assert!(spent < Duration::from_secs(10), "{spent:?}");
    assert_eq!(a.control().await.state, ControlState::ShutDown);
    if !as_candidate {
        let end = a.postgres.observe().await.unwrap().position().unwrap();
        b.until("it has everything", |status| status.position() == Some(end))
            .await;
    }
}

/// Processes that do nothing until this is dropped.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn all_of(node: &Node) -> Self {
        let pids = node.processes().into_iter();
        let pids = pids.map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
        let frozen = Self(pids.collect());
        for pid in &frozen.0 {
            kill_process(*pid, Signal::STOP).unwrap();
        }
        assert!(!frozen.0.is_empty());
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            kill_process(*pid, Signal::CONT).unwrap();
        }
    }
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().expect("the child was ours to kill");
        self.0.wait().expect("the child was ours to wait for");
    }
}
