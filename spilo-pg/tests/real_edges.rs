//! What goes wrong around a real server, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use spilo_core::Revision;
use spilo_core::ids::SystemId;
use spilo_core::pg::{
    DataDir, PgErrorKind, PgOp, PgOpKind, PgStatus, Postgres as _, Progress, Role, Server,
    StartRole,
};
use spilo_core::time::{Clock, NodeTime};
use spilo_pg::{BootClock, LocalPostgres};

use node::{Node, Version, config, sandbox};

fn version() -> Version {
    Version::find("15").expect("version 15 is always there")
}

/// A boot clock that can be put forward.
#[derive(Debug, Default)]
struct Ahead(BootClock, AtomicU64);

#[async_trait::async_trait]
impl Clock for Ahead {
    fn now(&self) -> NodeTime {
        self.0.now() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }

    async fn sleep_until(&self, at: NodeTime) {
        self.0.sleep_until(at).await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_let_the_agent_in_any_more_is_none_that_does_not_start() {
    let dir = sandbox();
    let mut options = None;
    let a = Node::with(&version(), dir.path(), "pg-a", |own| {
        options = Some(own.clone());
    })
    .await;
    a.bootstrap(&[]).await;
    let clock = Arc::new(Ahead::default());
    let look = |clock: &Arc<Ahead>| {
        let guard = Arc::clone(&a.guard);
        LocalPostgres::new(options.clone().unwrap(), guard, Arc::clone(clock) as _)
    };
    let agent = look(&clock);
    let running = || async { agent.observe().await.unwrap().running().is_some() };
    assert!(running().await);
    a.sql("ALTER ROLE postgres PASSWORD 'another'").await;
    // A new login is due, and fails; the one from before answers.
    for minute in 1..4 {
        clock.1.store(61 * minute, Ordering::Relaxed);
        assert!(running().await, "{minute}");
    }
    // An agent that has no connection from before knows that it runs, and no more.
    let server = look(&clock).observe().await.unwrap().server;
    let Server::Closed { saying, guarded } = server else {
        panic!("{server:?}");
    };
    assert!(guarded && saying.contains("password"), "{saying}");
}

#[tokio::test]
async fn a_standby_that_waits_for_higher_parameters_is_ended_and_comes_back_with_them() {
    let dir = sandbox();
    for name in ["13", "15", "18"] {
        let Some(version) = Version::find(name) else {
            continue;
        };
        let (a, b) = (format!("pg-a{name}"), format!("pg-b{name}"));
        let a = Node::new(&version, dir.path(), &a).await;
        let b = Node::new(&version, dir.path(), &b).await;
        a.bootstrap(&[b.name().as_str()]).await;
        b.join(&a).await;
        a.run(PgOp::Configure {
            revision: Revision(2),
            config: Arc::new(config(json!({ "max_connections": 150 }))),
        })
        .await;
        a.run(PgOp::Stop).await;
        a.arm(2).await;
        let role = StartRole::Primary;
        a.run(PgOp::Start { role }).await;
        b.until("it ends", |status| status.server == Server::Down)
            .await;
        b.follow_from_start(&a).await;
        assert_eq!(b.sql("SHOW max_connections").await, "150", "{name}");
        // What somebody has paused stays so.
        b.sql("SELECT pg_wal_replay_pause()").await;
        for _ in 0..5 {
            assert!(!b.running().await.is_primary());
        }
        assert_eq!(b.sql("SELECT pg_is_wal_replay_paused()").await, "t");
    }
}

#[tokio::test]
async fn a_cancelled_clone_leaves_its_marker_and_no_process() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::with(&version, dir.path(), "pg-b", |options| {
        options.basebackup = vec!["--max-rate=1M".to_owned()];
    })
    .await;
    a.bootstrap(&["pg-b"]).await;
    let (heard, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let progress = Progress::to(move |line| {
        let _closed = heard.send(line.to_owned());
    });
    let clone = b.postgres.run(
        PgOp::Clone {
            from: a.upstream(),
            replace: None,
        },
        progress,
    );
    let underway = async {
        // The data directory has something in it, and it goes on.
        while !b.data_dir.join("PG_VERSION").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The lines before this one say that it waits for the checkpoint.
        while lines
            .recv()
            .await
            .is_some_and(|line| !line.contains(" kB "))
        {}
    };
    tokio::select! {
        result = clone => panic!("it ended before it was cancelled: {result:?}"),
        () = underway => {}
    }
    let status = b.postgres.observe().await.unwrap();
    assert_eq!(
        (status.data, status.server),
        (DataDir::Unfinished(PgOpKind::Clone), Server::Down)
    );
    for _ in 0..100 {
        if copies_into(&b).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(copies_into(&b), [""; 0]);
    let role = StartRole::Standby { upstream: None };
    let error = b.try_run(PgOp::Start { role }).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    a.postgres.fence().await.unwrap();
}

#[tokio::test]
async fn a_frozen_postmaster_is_hung_and_then_runs_again() {
    let dir = sandbox();
    let a = Node::new(&version(), dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    assert!(a.running().await.is_primary());
    let pid = a.guard.report().await.unwrap().status.postmaster.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let mut slowest = Duration::ZERO;
    let frozen = Instant::now();
    loop {
        let begun = Instant::now();
        let status = a.postgres.observe().await.unwrap();
        slowest = slowest.max(begun.elapsed());
        if status.server == (Server::Hung { guarded: true }) {
            break;
        }
        assert!(frozen.elapsed() < Duration::from_secs(30), "{status:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Its backends answer, and nobody can connect: it stays hung until somebody can.
    assert_eq!(
        a.postgres.observe().await.unwrap().server,
        Server::Hung { guarded: true }
    );
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    a.until("it runs again", |status| status.running().is_some())
        .await;
}

#[tokio::test]
async fn f6_a_slow_query_keeps_the_role() {
    let dir = sandbox();
    let a = Node::new(&version(), dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    let before = a.running().await;
    let conninfo = format!(
        "host=127.0.0.1 port={} user=postgres password=super:secret dbname=postgres",
        a.port
    );
    let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    client
        .simple_query("BEGIN; LOCK TABLE pg_catalog.pg_stat_replication")
        .await
        .unwrap();
    let begun = Instant::now();
    let during = a.running().await;
    assert!(
        begun.elapsed() > Duration::from_millis(800),
        "the query was not slow"
    );
    assert!(during.is_primary());
    assert_eq!(during.timeline, before.timeline);
    driver.abort();
}

#[tokio::test]
async fn a_clone_replaces_only_what_it_was_told() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;

    std::fs::create_dir(&b.data_dir).unwrap();
    std::fs::write(b.data_dir.join("photos"), "of the children").unwrap();
    let seen = b.postgres.observe().await.unwrap().data;
    assert!(matches!(seen, DataDir::Unreadable { .. }), "{seen:?}");
    let own = a.control().await.system_id;
    for replace in [None, Some(own)] {
        let error = b
            .try_run(PgOp::Clone {
                from: a.upstream(),
                replace,
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    }
    assert!(b.data_dir.join("photos").exists());

    std::fs::remove_file(b.data_dir.join("photos")).unwrap();
    b.join(&a).await;
    let clone = |replace| PgOp::Clone {
        from: a.upstream(),
        replace,
    };
    let alive = b.try_run(clone(Some(own))).await.unwrap_err();
    assert_eq!(alive.kind(), PgErrorKind::Retry, "{alive}");
    b.run(PgOp::Stop).await;
    for replace in [None, Some(SystemId(own.0 + 1))] {
        let error = b.try_run(clone(replace)).await.unwrap_err();
        assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    }
    b.run(clone(Some(own))).await;
    b.follow_from_start(&a).await;
}

#[tokio::test]
async fn a_server_that_the_guard_did_not_start_is_seen_and_stopped() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    a.run(PgOp::Stop).await;
    let mut start = Command::new(version.bin_dir.join("pg_ctl"));
    start
        .args(["start", "-w", "-s", "-l", "/dev/null", "-D"])
        .arg(&a.data_dir)
        .current_dir("/");
    if let Some((uid, gid)) = node::owner() {
        use std::os::unix::process::CommandExt as _;
        start.uid(uid).gid(gid);
    }
    assert!(start.status().unwrap().success());
    let stranger = a.running().await;
    assert!(stranger.is_primary() && !stranger.guarded, "{stranger:?}");
    let error = a
        .try_run(PgOp::Start {
            role: StartRole::Primary,
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Retry, "{error}");
    a.run(PgOp::Stop).await;
    assert_eq!(a.postgres.observe().await.unwrap().server, Server::Down);
    // The guard has nothing that it could end; the server ends all the same, even a frozen one.
    for frozen in [false, true] {
        assert!(start.status().unwrap().success());
        assert!(!a.running().await.guarded);
        if frozen {
            let pid = std::fs::read_to_string(a.data_dir.join("postmaster.pid")).unwrap();
            let pid = pid.lines().next().unwrap();
            let sent = Command::new("kill").args(["-STOP", pid]).status();
            assert!(sent.unwrap().success());
        }
        a.postgres.fence().await.unwrap();
        assert!(a.processes().is_empty());
        assert_eq!(a.postgres.observe().await.unwrap().server, Server::Down);
        // Whoever adopts orphans on this machine may leave the killed one unburied, and then
        // PostgreSQL takes the lock of its directory for that of a living server.
        std::fs::remove_file(a.data_dir.join("postmaster.pid")).unwrap();
    }
    a.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    assert!(a.running().await.guarded);
}

#[tokio::test]
async fn a_standby_without_anyone_to_follow_knows_its_timeline() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    // The old primary's end and a new timeline, which the other one has only in its log.
    a.run(PgOp::HandOver {
        candidate: Some(b.name()),
    })
    .await;
    b.arm(2).await;
    b.run(PgOp::Promote).await;
    b.run(PgOp::Slots {
        wanted: [a.name().slot()].into(),
    })
    .await;
    a.follow_from_start(&b).await;
    b.sql("CREATE TABLE t ()").await;
    let end = b.running().await.position();
    let has_it = |status: &PgStatus| status.position().is_some_and(|at| at.lsn >= end.lsn);
    a.until("it has it", has_it).await;
    b.postgres.fence().await.unwrap();
    a.postgres.fence().await.unwrap();
    a.run(PgOp::Start {
        role: StartRole::Standby { upstream: None },
    })
    .await;
    let status = a.until("it has replayed it", has_it).await;
    assert_eq!(status.position().unwrap().timeline, end.timeline);
    let Some(Role::Standby { received, .. }) = status.running().map(|r| r.role.clone()) else {
        panic!("{status:?}")
    };
    assert_eq!(received.0, 0, "it streamed");
    assert_eq!(a.postgres.history().await.unwrap().timeline(), end.timeline);
}

#[tokio::test]
async fn a_rewind_that_cannot_begin_leaves_everything_as_it_was() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&[]).await;
    b.bootstrap(&[]).await;
    b.run(PgOp::Stop).await;
    let before = b.control().await;
    let foreign = b
        .try_run(PgOp::Rewind { from: a.upstream() })
        .await
        .unwrap_err();
    assert_eq!(foreign.kind(), PgErrorKind::Refused, "{foreign}");
    a.postgres.fence().await.unwrap();
    let silent = b
        .try_run(PgOp::Rewind { from: a.upstream() })
        .await
        .unwrap_err();
    assert_eq!(silent.kind(), PgErrorKind::Retry, "{silent}");
    assert_eq!(b.control().await, before);
    b.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    assert!(b.running().await.is_primary());
}

#[tokio::test]
async fn a_taken_port_and_a_missing_program_are_named() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    a.run(PgOp::Stop).await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", a.port)).unwrap();
    let error = a
        .try_run(PgOp::Start {
            role: StartRole::Primary,
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("Address already in use"),
        "{error}"
    );
    drop(taken);
    a.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;

    let b = Node::with(&version, dir.path(), "pg-b", |options| {
        options.bin_dir = Some("/nonexistent".into());
    })
    .await;
    let error = b
        .try_run(PgOp::Clone {
            from: a.upstream(),
            replace: None,
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("pg_basebackup"), "{error}");
}

/// Returns the command lines of the programs that copy into a node's data directory.
fn copies_into(node: &Node) -> Vec<String> {
    let target = node.data_dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if line.contains("pg_basebackup") && line.contains(&target) {
            found.push(line);
        }
    }
    found
}
