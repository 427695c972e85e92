//! A rewind that was interrupted, on a real server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/node.rs"]
mod node;

use spilo_core::pg::{
    DataDir, PgErrorKind, PgOp, PgOpKind, Postgres as _, Progress, Server, StartRole,
};

use node::{Node, Version, sandbox};

#[tokio::test]
async fn an_interrupted_rewind_is_gone_on_with_and_throws_nothing_away() {
    let version = Version::find("15").expect("version 15 is always there");
    let dir = sandbox();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    diverge(&a, &b).await;
    let own = a.control().await.system_id;
    interrupt(&a, &b, "connected to server").await;
    let label = a.data_dir.join("backup_label");
    assert!(!label.exists());

    // It is no server to start, and no directory to throw away unasked.
    let rewind = PgOp::Rewind { from: b.upstream() };
    let start = PgOp::Start {
        role: StartRole::Standby { upstream: None },
    };
    let clone = |replace| PgOp::Clone {
        from: b.upstream(),
        replace,
    };
    for op in [start, clone(None)] {
        let error = a.try_run(op).await.unwrap_err();
        assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    }
    assert!(a.data_dir.join("PG_VERSION").exists());
    // Had it come further, nobody could tell what of it is on disk.
    std::fs::write(&label, "").unwrap();
    let error = a.try_run(rewind.clone()).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::CannotRewind, "{error}");
    std::fs::remove_file(&label).unwrap();

    a.run(rewind.clone()).await;
    // Once more would fork the log: the recovery that pg_rewind begins with writes to the timeline
    // that both have now, and pg_rewind sees no difference.
    let control = a.control().await;
    let error = a.try_run(rewind).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Retry, "{error}");
    assert_eq!(a.control().await, control);
    a.follow_from_start(&b).await;
    a.sql("TABLE of_b").await;

    // The other way out: a copy, once it is allowed to replace these data.
    b.run(PgOp::Stop).await;
    a.arm(3).await;
    a.run(PgOp::Promote).await;
    a.run(PgOp::Checkpoint).await;
    a.postgres.fence().await.unwrap();
    b.arm(4).await;
    b.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    interrupt(&a, &b, "need to copy").await;
    a.run(clone(Some(own))).await;
    a.follow_from_start(&b).await;
    a.sql("TABLE of_b").await;
}

#[tokio::test]
async fn data_give_way_only_to_a_copy_of_a_server_that_is_there_and_of_their_cluster() {
    let version = Version::find("15").expect("version 15 is always there");
    let dir = sandbox();
    let a = Node::new(&version, dir.path(), "pg-a").await;
    let b = Node::new(&version, dir.path(), "pg-b").await;
    let stranger = Node::new(&version, dir.path(), "pg-c").await;
    a.bootstrap(&["pg-b"]).await;
    b.join(&a).await;
    diverge(&a, &b).await;
    stranger.bootstrap(&[]).await;
    let control = a.control().await;
    let copy = |from: &Node, replace| PgOp::Clone {
        from: from.upstream(),
        replace,
    };
    let own = Some(control.system_id);
    let error = a.try_run(copy(&stranger, own)).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    assert_eq!(a.control().await, control);
    // Its record says for a while yet that it is a primary.
    b.run(PgOp::Stop).await;
    let error = a.try_run(copy(&b, own)).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Retry, "{error}");
    assert_eq!(a.control().await, control);

    b.arm(3).await;
    b.run(PgOp::Start {
        role: StartRole::Primary,
    })
    .await;
    interrupt(&a, &b, "connected to server").await;
    // Somebody wants it copied anew; or its volume is not there.
    std::fs::rename(&a.data_dir, dir.path().join("moved-away")).unwrap();
    let rewind = PgOp::Rewind { from: b.upstream() };
    let error = a.try_run(rewind).await.unwrap_err();
    assert_eq!(error.kind(), PgErrorKind::Refused, "{error}");
    let text = error.to_string();
    let (_, rest) = text.split_once("remove ").expect("it names the remedy");
    std::fs::remove_file(rest.split_once(',').unwrap().0).unwrap();
    let data = a.postgres.observe().await.unwrap().data;
    assert_eq!(data, DataDir::Empty);
    a.run(copy(&b, None)).await;
    a.follow_from_start(&b).await;
    a.sql("TABLE of_b").await;
}

#[tokio::test]
async fn a_rewind_fetches_the_log_that_it_lacks() {
    let dir = sandbox();
    let archive = dir.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    for name in ["13", "15"] {
        let Some(version) = Version::find(name) else {
            continue;
        };
        let command = format!("cp {}/%f %p", archive.display());
        let (a, b) = (format!("pg-a{name}"), format!("pg-b{name}"));
        let a = Node::with(&version, dir.path(), &a, |options| {
            options
                .recovery_conf
                .insert("restore_command".to_owned(), command.into());
        })
        .await;
        let b = Node::new(&version, dir.path(), &b).await;
        a.bootstrap(&[b.name().as_str()]).await;
        b.join(&a).await;
        diverge(&a, &b).await;
        a.run(PgOp::Rewind { from: b.upstream() }).await;
        a.follow_from_start(&b).await;
        a.sql("TABLE of_b").await;
    }
}

/// Makes `b` the primary of a new timeline while `a` goes on with the old one, and crashes `a`.
async fn diverge(a: &Node, b: &Node) {
    b.arm(2).await;
    b.run(PgOp::Promote).await;
    b.sql("CREATE TABLE of_b ()").await;
    a.sql("CREATE TABLE of_a ()").await;
    b.run(PgOp::Checkpoint).await;
    b.run(PgOp::Slots {
        wanted: [a.name().slot()].into(),
    })
    .await;
    a.postgres.fence().await.unwrap();
}

/// Breaks a rewind of `a` off once pg_rewind has said this.
async fn interrupt(a: &Node, b: &Node, said: &'static str) {
    let (heard, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let progress = Progress::to(move |line| {
        let _closed = heard.send(line.to_owned());
    });
    let rewind = a
        .postgres
        .run(PgOp::Rewind { from: b.upstream() }, progress);
    let underway = async {
        while !lines
            .recv()
            .await
            .expect("it says how far it is")
            .contains(said)
        {}
    };
    tokio::select! {
        result = rewind => panic!("it ended before it was interrupted: {result:?}"),
        () = underway => {}
    }
    let status = a.postgres.observe().await.unwrap();
    assert_eq!(
        (status.data, status.server),
        (DataDir::Unfinished(PgOpKind::Rewind), Server::Down)
    );
}
