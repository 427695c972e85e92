//! What a real server gets of its configuration, and what it is spared.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use spilo_core::Revision;
use spilo_core::pg::{PgErrorKind, PgOp, Postgres as _, StartRole};

use node::{Node, Version, config, sandbox};

fn version() -> Version {
    Version::find("15").expect("version 15 is always there")
}

#[tokio::test]
async fn settings_that_the_server_refuses_are_left_out() {
    let dir = sandbox();
    let a = Node::new(&version(), dir.path(), "pg-a").await;
    a.bootstrap(&[]).await;
    let parameters = json!({
        "no_such_parameter": 1,
        "work_mem": "banana",
        "random_page_cost": -5,
        "maintenance_work_mem": "17MB",
        "max_connections": 50,
        "max_wal_senders": 1,
        "max_worker_processes": 999_999,
        "superuser_reserved_connections": 50,
        "shared_preload_libraries": "plpgsql, no_such_library",
        "include": "no_such_file",
        "too.many.dots": 1,
    });
    let config = Arc::new(config(parameters));
    a.run(PgOp::Configure {
        revision: Revision(7),
        config,
    })
    .await;
    let status = a.postgres.observe().await.unwrap();
    assert_eq!(status.configured, Some(Revision(7)));
    for (name, value) in [("maintenance_work_mem", "17MB"), ("work_mem", "4MB")] {
        let mut now = String::new();
        for _ in 0..100 {
            now = a.sql(&format!("SHOW {name}")).await;
            if now == value {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(now, value, "{name}");
    }
    let running = || async { a.running().await.pending_restart };
    let mut pending = running().await;
    for _ in 0..150 {
        if !pending.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        pending = running().await;
    }
    let wanted = [
        ("max_connections", "100", "50"),
        ("shared_preload_libraries", "", "plpgsql"),
    ]
    .map(|(name, now, wanted)| (name.to_owned(), now.to_owned(), wanted.to_owned()));
    assert_eq!(pending, wanted);
    a.run(PgOp::Stop).await;
    a.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    assert_eq!(a.sql("SHOW max_connections").await, "50");
    assert_eq!(a.sql("SHOW max_wal_senders").await, "10");
    assert_eq!(a.sql("SHOW max_worker_processes").await, "8");
}

#[tokio::test]
async fn a_configuration_that_is_refused_as_a_whole_changes_nothing() {
    let dir = sandbox();
    let custom = dir.path().join("custom.conf");
    std::fs::write(&custom, "work_mem = '5MB'\n").unwrap();
    let a = Node::with(&version(), dir.path(), "pg-a", |options| {
        options.custom_conf = Some(custom.clone());
    })
    .await;
    a.bootstrap(&[]).await;
    let conf = a.data_dir.join("postgresql.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&custom, "= what\n").unwrap();
    let configure = |size: &str| PgOp::Configure {
        revision: Revision(7),
        config: Arc::new(config(json!({ "maintenance_work_mem": size }))),
    };
    let error = a.try_run(configure("17MB")).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("syntax error in file") && text.contains("custom.conf"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&conf).unwrap(), before);
    assert!(!a.data_dir.join("postgresql.conf.spilo-trial").exists());
    assert!(a.running().await.is_primary());
    assert_eq!(a.postgres.observe().await.unwrap().configured, None);

    std::fs::write(&custom, "work_mem = '6MB'\n").unwrap();
    a.run(configure("18MB")).await;
    assert_eq!(
        a.postgres.observe().await.unwrap().configured,
        Some(Revision(7))
    );
    a.run(PgOp::Stop).await;
    a.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    assert_eq!(a.sql("SHOW maintenance_work_mem").await, "18MB");
}

#[tokio::test]
async fn a_configuration_that_is_refused_keeps_no_standby_from_following() {
    let dir = sandbox();
    let version = version();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;
    // What is said against it names no parameter, and nobody can tell before there is data.
    let configure = || PgOp::Configure {
        revision: Revision(7),
        config: Arc::new(config(json!({ "bonjour": true, "work_mem": "7MB" }))),
    };
    b.run(configure()).await;
    b.run(PgOp::Clone {
        from: a.upstream(),
        replace: None,
    })
    .await;
    b.follow_from_start(&a).await;
    assert_eq!(b.sql("SHOW work_mem").await, "4MB");
    let error = b.try_run(configure()).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("Bonjour is not supported"),
        "{error}"
    );
    b.run(PgOp::Follow {
        upstream: Some(a.upstream()),
    })
    .await;
    assert!(!b.running().await.is_primary());
}

#[tokio::test]
async fn configuration_files_may_have_a_directory_of_their_own() {
    let dir = sandbox();
    let version = version();
    let node = async |name: &str| {
        let config_dir = dir.path().join(format!("{name}.conf.d"));
        Node::with(&version, dir.path(), name, |options| {
            options.config_dir = Some(config_dir);
        })
        .await
    };
    let (a, b) = (node("pg-a").await, node("pg-b").await);
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    let file = b.sql("SHOW config_file").await;
    assert!(file.ends_with("pg-b.conf.d/postgresql.conf"), "{file}");
    // A diverged standby comes back with its own files, not with its source's.
    b.arm(2).await;
    b.run(PgOp::Promote).await;
    b.sql("CREATE TABLE t ()").await;
    a.sql("CREATE TABLE u ()").await;
    b.run(PgOp::Checkpoint).await;
    b.run(PgOp::Slots {
        wanted: [a.name().slot()].into(),
    })
    .await;
    a.postgres.fence().await.unwrap();
    a.run(PgOp::Rewind { from: b.upstream() }).await;
    a.follow_from_start(&b).await;
    assert!(
        a.sql("SHOW config_file")
            .await
            .ends_with("pg-a.conf.d/postgresql.conf")
    );
}
