//! One walk through a server's life on each version: bootstrap, clone, follow, hand over, promote,
//! diverge, rewind, fence.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use spilo_core::pg::{DataDir, PgErrorKind, PgOp, Postgres as _, Role, Server, StartRole};
use spilo_core::wal::Timeline;

use node::{Node, Version, sandbox};

#[tokio::test]
async fn a_life_on_postgresql_13() {
    live("13").await;
}

#[tokio::test]
async fn a_life_on_postgresql_15() {
    live("15").await;
}

#[tokio::test]
async fn a_life_on_postgresql_16() {
    live("16").await;
}

#[tokio::test]
async fn a_life_on_postgresql_18() {
    live("18").await;
}

async fn live(version: &'static str) {
    let Some(version) = Version::find(version) else {
        return;
    };
    let dir = sandbox();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    bootstraps_and_clones(&a, &b).await;
    hands_over_to_a_level_standby(&a, &b).await;
    rewinds_what_diverged(&a, &b).await;
    fences(&b).await;
    drop((a, b));
    dir.close().unwrap();
}

async fn bootstraps_and_clones(a: &Node, b: &Node) {
    let empty = a.postgres.observe().await.unwrap();
    assert_eq!((empty.data, empty.server), (DataDir::Empty, Server::Down));
    a.bootstrap(&["pg-b"]).await;
    let primary = a.running().await;
    assert!(primary.is_primary() && primary.guarded, "{primary:?}");
    assert_eq!(primary.timeline, Timeline(1));
    let control = a.control().await;
    assert!(
        control.rewindable && !control.standby && !control.provisional,
        "{control:?}"
    );
    assert_eq!(a.sql("SHOW cluster_name").await, "conformance");
    a.sql("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 100)")
        .await;

    b.join(a).await;
    let control = b.control().await;
    assert!(control.standby, "{control:?}");
    assert_eq!(control.system_id, a.control().await.system_id);
    let standby = b.running().await;
    let Role::Standby { upstream, .. } = &standby.role else {
        panic!("{standby:?}")
    };
    assert_eq!(*upstream, Some(("127.0.0.1".to_owned(), a.port)));
    assert_eq!(standby.timeline, Timeline(1));
    let seen = a.until("its standby is seen", |status| {
        status
            .running()
            .is_some_and(|r| r.walsenders.iter().any(|w| w.state == "streaming"))
    });
    let seen = seen.await.running().cloned().unwrap();
    assert_eq!(seen.walsenders[0].application, "pg-b");
    assert_eq!(seen.walsenders[0].user, "replicator");
    assert_eq!(seen.slots.len(), 1, "{:?}", seen.slots);
    assert_eq!(b.sql("SELECT count(*) FROM t").await, "100");
}

async fn hands_over_to_a_level_standby(a: &Node, b: &Node) {
    let refused = b.try_run(PgOp::Promote).await.unwrap_err();
    assert_eq!(refused.kind(), PgErrorKind::NotGuarded, "{refused}");
    a.sql("INSERT INTO t SELECT generate_series(101, 200)")
        .await;
    a.run(PgOp::HandOver {
        candidate: Some(b.name()),
    })
    .await;
    let down = a.postgres.observe().await.unwrap();
    assert_eq!(down.server, Server::Down);
    assert!(a.processes().is_empty());
    // What a primary that was shut down says of its end is what a level standby has.
    assert_eq!(b.running().await.position(), down.position().unwrap());

    b.arm(2).await;
    let begun = std::time::Instant::now();
    b.run(PgOp::Promote).await;
    eprintln!("promotion: {:?}", begun.elapsed());
    let primary = b.running().await;
    assert!(primary.is_primary(), "{primary:?}");
    assert_eq!(primary.timeline, Timeline(2));
    assert_eq!(b.postgres.history().await.unwrap().timeline(), Timeline(2));
    let (system, history) = a.postgres.history_of(&b.upstream()).await.unwrap();
    assert_eq!(system, a.control().await.system_id);
    assert_eq!(history, b.postgres.history().await.unwrap());
    assert!(history.contains(down.position().unwrap()));
    b.run(PgOp::Checkpoint).await;
    b.run(PgOp::Slots {
        wanted: [a.name().slot()].into(),
    })
    .await;
    a.follow_from_start(b).await;
    b.sql("INSERT INTO t SELECT generate_series(201, 300)")
        .await;
    until_count(a, "300").await;
    assert_eq!(a.running().await.timeline, Timeline(2));
    let in_recovery = b.postgres.history_of(&a.upstream()).await.unwrap_err();
    assert_eq!(in_recovery.kind(), PgErrorKind::Retry, "{in_recovery}");
}

/// Both become primaries; the one with the lesser claim returns.
async fn rewinds_what_diverged(a: &Node, b: &Node) {
    a.run(PgOp::Follow { upstream: None }).await;
    a.until("it has stopped streaming", |status| {
        matches!(
            status.running().map(|r| &r.role),
            Some(Role::Standby {
                streaming: false,
                ..
            })
        )
    })
    .await;
    b.sql("INSERT INTO t SELECT generate_series(1000, 2000)")
        .await;
    a.arm(3).await;
    a.run(PgOp::Promote).await;
    a.run(PgOp::Checkpoint).await;
    a.run(PgOp::Slots {
        wanted: [b.name().slot()].into(),
    })
    .await;
    a.sql("INSERT INTO t VALUES (301)").await;

    // The diverged one crashes, so that only its log knows how far it came.
    b.postgres.fence().await.unwrap();
    assert!(b.processes().is_empty());
    let (_, history) = b.postgres.history_of(&a.upstream()).await.unwrap();
    assert_eq!(history.timeline(), Timeline(3));
    b.run(PgOp::Rewind { from: a.upstream() }).await;
    let control = b.control().await;
    assert!(control.standby, "{control:?}");
    b.follow_from_start(a).await;
    until_count(b, "301").await;
    let record = std::fs::read_to_string(b.state_dir().join("diverged.log")).unwrap();
    assert!(
        record.contains("on timeline 2") && !record.contains("bytes=? "),
        "{record}"
    );
}

async fn fences(b: &Node) {
    b.postgres.fence().await.unwrap();
    assert!(b.processes().is_empty());
    let status = b.postgres.observe().await.unwrap();
    assert_eq!(status.server, Server::Down);
    b.postgres.fence().await.unwrap();
    let role = StartRole::Primary;
    // It takes a deadline to be a primary, and this node's has been for an epoch that is over.
    let again = b
        .try_run(PgOp::Start {
            role: StartRole::Standby { upstream: None },
        })
        .await;
    again.unwrap();
    assert!(!b.running().await.is_primary());
    let running = b.try_run(PgOp::Start { role }).await.unwrap_err();
    assert_eq!(running.kind(), PgErrorKind::Retry, "{running}");
    b.run(PgOp::Stop).await;
    assert!(b.processes().is_empty());
}

async fn until_count(node: &Node, count: &str) {
    for _ in 0..500 {
        if node.sql("SELECT count(*) FROM t").await == count {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!(
        "{} has not {count} rows but {}",
        node.name(),
        node.sql("SELECT count(*) FROM t").await
    );
}
