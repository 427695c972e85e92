//! The conformance suite on each version, and what only a real server has to show.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use spilo_core::conformance::postgres::{self as suite, Laboratory};
use spilo_core::pg::{PgErrorKind, PgOp, Postgres, Role, StartRole, Upstream};
use spilo_core::{DynamicConfig, Guard, NodeTime};
use tempfile::TempDir;

use node::{Node, Version, config, sandbox};

macro_rules! on_each {
    ($($module:ident = $version:literal,)*) => {
        $(
            mod $module {
                spilo_core::postgres_conformance!(super::laboratory($version));

                #[tokio::test]
                async fn what_only_a_real_server_shows() {
                    super::is_wired_and_records_what_diverges($version).await;
                }
            }
        )*
    };
}

on_each! {
    postgresql_13 = "13",
    postgresql_15 = "15",
    postgresql_16 = "16",
    postgresql_18 = "18",
}

async fn laboratory(version: &'static str) -> Option<Box<dyn Laboratory>> {
    let version = Version::find(version)?;
    let dir = Arc::new(sandbox());
    Some(Box::new(Real { version, dir }))
}

async fn is_wired_and_records_what_diverges(version: &'static str) {
    let Some(version) = Version::find(version) else {
        return;
    };
    let dir = sandbox();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    is_wired(&a, &b).await;
    records_what_diverged(&a, &b).await;
    for node in [&b, &a] {
        node.postgres.fence().await.unwrap();
        assert!(node.processes().is_empty());
    }
    drop((a, b));
    dir.close().unwrap();
}

/// The names and addresses that the node was given are those that the server goes by.
async fn is_wired(a: &Node, b: &Node) {
    assert_eq!(a.sql("SHOW cluster_name").await, "conformance");
    let control = a.control().await;
    assert!(control.rewindable, "{control:?}");
    let standby = b.running().await;
    let Role::Standby { upstream, .. } = &standby.role else {
        panic!("{standby:?}")
    };
    assert_eq!(*upstream, Some(("127.0.0.1".to_owned(), a.port)));
    let primary = a.running().await;
    let [walsender] = &primary.walsenders[..] else {
        panic!("{primary:?}")
    };
    assert_eq!(walsender.user, "replicator");
    let role = StartRole::Standby { upstream: None };
    let error = b.try_run(PgOp::Start { role }).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Retry, "{error}");
}

/// What a rewind throws away is written down first.
async fn records_what_diverged(a: &Node, b: &Node) {
    b.run(PgOp::Follow { upstream: None }).await;
    let alone = |role: &Role| {
        matches!(
            role,
            Role::Standby {
                streaming: false,
                ..
            }
        )
    };
    b.until("it has stopped streaming", |status| {
        status.running().is_some_and(|r| alone(&r.role))
    })
    .await;
    a.sql("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    a.postgres.fence().await.unwrap();
    b.arm(2).await;
    b.run(PgOp::Promote).await;
    b.run(PgOp::Checkpoint).await;
    b.run(PgOp::Slots {
        wanted: [a.name().slot()].into(),
    })
    .await;
    a.run(PgOp::Rewind { from: b.upstream() }).await;
    let record = std::fs::read_to_string(a.state_dir().join("diverged.log")).unwrap();
    assert!(
        record.contains("on timeline 1") && !record.contains("bytes=? "),
        "{record}"
    );
}

#[derive(Debug)]
struct Real {
    version: Version,
    dir: Arc<TempDir>,
}

/// A node, and the directory that it needs for as long as it lives.
struct Server {
    node: Node,
    _dir: Arc<TempDir>,
}

#[async_trait]
impl Laboratory for Real {
    async fn node(&self, name: &str) -> Box<dyn suite::Node> {
        Box::new(Server {
            node: Node::new(&self.version, self.dir.path(), name).await,
            _dir: Arc::clone(&self.dir),
        })
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

#[async_trait]
impl suite::Node for Server {
    fn postgres(&self) -> &dyn Postgres {
        &self.node.postgres
    }

    fn guard(&self) -> &dyn Guard {
        &*self.node.guard
    }

    fn now(&self) -> NodeTime {
        spilo_pg::guard::boot_time()
    }

    fn upstream(&self) -> Upstream {
        self.node.upstream()
    }

    fn config(&self) -> Arc<DynamicConfig> {
        Arc::new(config(json!({})))
    }

    async fn write(&self, row: u64) -> bool {
        let commit = format!(
            "SET client_min_messages = warning; \
             CREATE TABLE IF NOT EXISTS rows (n bigint); INSERT INTO rows VALUES ({row})"
        );
        self.node.try_sql(&commit).await.is_ok()
    }

    async fn rows(&self) -> BTreeSet<u64> {
        let read = "SELECT coalesce(string_agg(n::text, ','), '') FROM rows";
        let rows = self.node.try_sql(read).await.unwrap_or_default();
        let rows = rows.split(',').filter(|row| !row.is_empty());
        rows.map(|row| row.parse().unwrap()).collect()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.node.name())
    }
}
