//! Clusters that archive their log, and replicas that are made from backups.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

mod archive;
mod killed;
#[path = "../../../spilo-backup/tests/s3/s3.rs"]
mod s3;
mod wal_e;

use std::time::{Duration, Instant};

use archive::{Archive, builder};
use serde_json::json;
use spilo_benches::node::Node;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_replica_comes_from_the_backup_while_that_is_better() {
    let archive = Archive::new();
    // A copy is better for the last node, which is told so, and the one before has a way of its own.
    let own_way = format!(
        "{{ echo asked for \"$@\" >&2; exit 3; }} # {}",
        archive.place()
    );
    let cluster = builder(&archive)
        .nodes(4)
        .node_overlay(
            2,
            json!({"postgresql": {
                "create_replica_methods": ["mine", "backup"],
                "mine": {"command": own_way, "level": 7},
            }}),
        )
        .node_overlay(3, json!({"backup": {"threshold_megabytes": 1}}))
        .without_starting()
        .start()
        .await
        .unwrap();
    let [first, second, third, fourth] = cluster.nodes() else {
        unreachable!("four nodes were asked for");
    };
    first.start_agent().unwrap();
    let primary = cluster.wait_streaming(0, LIMIT).await.unwrap();
    fill(primary, "t").await;
    let name = archive.back_up(primary).await;
    // Of a bootstrap nothing is archived before the cluster knows of it, and then all that waited.
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;
    assert!(archive.path().join("wal_005").is_dir());

    second.start_agent().unwrap();
    cluster.wait_streaming(1, LIMIT).await.unwrap();
    let said = log(second);
    assert!(
        said.contains(&format!("clone: from the backup {name}: ")),
        "{said}"
    );
    assert!(said.contains("of log since"), "{said}");

    third.start_agent().unwrap();
    cluster.wait_streaming(2, LIMIT).await.unwrap();
    let said = log(third);
    let asked = "asked for --level=7 --scope=bench --role=replica --datadir=";
    assert!(said.contains(asked), "{said}");
    assert!(said.contains("method=mine"), "{said}");
    assert!(said.contains(&format!("from the backup {name}")), "{said}");

    fill(primary, "u").await;
    fourth.start_agent().unwrap();
    let primary = cluster.wait_streaming(3, LIMIT).await.unwrap();
    let said = log(fourth);
    assert!(said.contains("clone: not from a backup: "), "{said}");
    assert!(
        said.contains("not less than the limit of 1.0 MiB"),
        "{said}"
    );

    let count = "SELECT (SELECT count(*) FROM t) || ' ' || (SELECT count(*) FROM u)";
    for node in [second, third, fourth] {
        caught_up(node, primary).await;
        assert_eq!(node.query_texts(count).await.unwrap(), ["20000 20000"]);
    }
    let setting =
        "SELECT current_setting('archive_mode') || ' ' || current_setting('restore_command')";
    let setting = second.query_texts(setting).await.unwrap().remove(0);
    assert!(setting.starts_with("always "), "{setting}");
    assert!(setting.contains("wal-fetch"), "{setting}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_store_that_is_away_or_spoilt_keeps_no_replica_from_being_made() {
    let archive = Archive::new();
    let cluster = builder(&archive)
        .nodes(3)
        .without_starting()
        .start()
        .await
        .unwrap();
    let [first, second, third] = cluster.nodes() else {
        unreachable!("three nodes were asked for");
    };
    first.start_agent().unwrap();
    let primary = cluster.wait_streaming(0, LIMIT).await.unwrap();
    let name = archive.back_up(primary).await;
    archive.spoil(&name);
    second.start_agent().unwrap();
    cluster.wait_streaming(1, LIMIT).await.unwrap();
    let said = log(second);
    assert!(said.contains("this way to make a replica failed"), "{said}");
    assert!(said.contains(&name), "{said}");

    let away = archive.dir.path().join("away");
    std::fs::rename(archive.path(), &away).unwrap();
    third.start_agent().unwrap();
    let primary = cluster.wait_streaming(2, LIMIT).await.unwrap();
    let said = log(third);
    assert!(said.contains("this way to make a replica failed"), "{said}");
    assert!(said.contains(&archive.place()), "{said}");

    // The server goes on, keeps its log, and archives it once there is a store again.
    primary
        .query_texts("CREATE TABLE t (n int); SELECT pg_switch_wal()")
        .await
        .unwrap();
    until(async || primary.query_texts(WAITING).await.unwrap() != ["0"]).await;
    std::fs::rename(&away, archive.path()).unwrap();
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f39_archive_is_whole_again_after_the_primary_was_lost_far_behind() {
    let archive = Archive::new();
    let cluster = builder(&archive).nodes(3).start().await.unwrap();
    let primary = cluster.wait_streaming(2, LIMIT).await.unwrap();
    archive.back_up(primary).await;
    let away = archive.dir.path().join("away");
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;
    std::fs::rename(archive.path(), &away).unwrap();
    primary
        .query_texts(
            "CREATE TABLE t AS SELECT n, md5(n::text) AS m FROM generate_series(1, 1000) n",
        )
        .await
        .unwrap();
    for _ in 0..22 {
        let more = "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 3000) n";
        primary.query_texts(more).await.unwrap();
        primary.query_texts("SELECT pg_switch_wal()").await.unwrap();
    }
    primary.query_texts("CHECKPOINT").await.unwrap();
    let waiting = primary.query_texts(WAITING).await.unwrap().remove(0);
    assert!(waiting.parse::<u32>().unwrap() >= 20, "only {waiting} wait");
    for node in cluster.nodes() {
        if node.name() == primary.name() {
            continue;
        }
        caught_up(node, primary).await;
        // A restartpoint throws away whatever log a standby does not hold on to.
        node.query_texts("CHECKPOINT").await.unwrap();
    }
    let lost = primary.name().to_owned();
    primary.kill_everything();
    std::fs::remove_dir_all(primary.data_dir().join("pg_wal")).unwrap();
    std::fs::rename(&away, archive.path()).unwrap();

    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    assert_ne!(primary.name(), lost);
    primary
        .query_texts("INSERT INTO t VALUES (0, 'after'); SELECT pg_switch_wal()")
        .await
        .unwrap();
    // The standby is level as well: it was told to archive the file in which the timelines part.
    for node in cluster.nodes() {
        if node.name() != lost {
            until(async || node.query_texts(WAITING).await.unwrap() == ["0"]).await;
        }
    }
    let place = format!("--archive={}", archive.place());
    let verified = primary.spilo_backup(&[&place, "wal-verify"], LIMIT).await;
    // Its exit status says whether anything is missing.
    let verified = verified.unwrap();
    assert!(verified.contains('2'), "no second timeline: {verified}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_new_cluster_is_a_copy_of_another_at_a_named_moment() {
    let archive = Archive::new();
    let first = builder(&archive).nodes(1).start().await.unwrap();
    let primary = first.wait_streaming(0, LIMIT).await.unwrap();
    archive.back_up(primary).await;
    fill(primary, "t").await;
    primary
        .query_texts("SELECT pg_create_restore_point('before the accident')")
        .await
        .unwrap();
    primary.query_texts("DROP TABLE t").await.unwrap();
    primary.query_texts("SELECT pg_switch_wal()").await.unwrap();
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;

    let own = Archive::new();
    let copy = builder(&own)
        .scope("copy")
        .nodes(2)
        .overlay(&json!({"bootstrap": {"method": "backup", "backup": {
            "archive": archive.place(),
            "target_name": "before the accident",
        }}}))
        .start()
        .await
        .unwrap();
    let copied = copy.wait_streaming(1, LIMIT).await.unwrap();
    let rows = copied.query_texts("SELECT count(*) FROM t").await.unwrap();
    assert_eq!(rows, ["20000"]);
    // It lives: takes writes on a timeline of its own, and archives to its own archive.
    copied
        .query_texts("INSERT INTO t VALUES (0, 'new')")
        .await
        .unwrap();
    copied.query_texts("SELECT pg_switch_wal()").await.unwrap();
    until(async || copied.query_texts(WAITING).await.unwrap() == ["0"]).await;
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    assert_eq!(copied.query_texts(timeline).await.unwrap(), ["2"]);
    own.back_up(copied).await;
    let place = format!("--archive={}", own.place());
    copied
        .spilo_backup(&[&place, "wal-verify"], LIMIT)
        .await
        .unwrap();
    assert!(!archive.path().join("wal_005/00000002.history.zst").exists());
    assert!(own.path().join("wal_005/00000002.history.zst").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_recovery_that_does_not_reach_its_target_makes_no_cluster() {
    let archive = Archive::new();
    let first = builder(&archive).nodes(1).start().await.unwrap();
    let primary = first.wait_streaming(0, LIMIT).await.unwrap();
    archive.back_up(primary).await;
    let copy = builder(&Archive::new())
        .scope("copy")
        .nodes(1)
        .overlay(&json!({"bootstrap": {"method": "backup", "backup": {
            "archive": archive.place(),
            "target_name": "a point that nobody has made",
        }}}))
        .start()
        .await
        .unwrap();
    let node = &copy.nodes()[0];
    let problem = "recovery ended before configured recovery target was reached";
    let remedy = "name one that ended before the target";
    until(async || log(node).contains(problem) && log(node).contains(remedy)).await;
    assert!(!node.takes_writes().await);
    let key = "/service/copy/initialize";
    let made = copy.etcd().get(key).await.unwrap();
    assert!(
        made.is_none_or(|made| made.is_empty()),
        "there is a cluster"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_backups_are_made_by_a_replica_at_their_times_and_the_older_ones_deleted() {
    let archive = Archive::new();
    let cluster = builder(&archive)
        .nodes(2)
        .overlay(&json!({"backup": {
            "archive": archive.place(),
            "schedule": "* * * * *",
            "retain": 1,
        }}))
        .start()
        .await
        .unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let replica = cluster
        .nodes()
        .iter()
        .find(|node| node.name() != primary.name())
        .unwrap();
    // A cluster without one gets one at once, whoever makes it.
    until(async || archive.backups() != [""; 0]).await;
    primary
        .query_texts("CREATE TABLE t (n int); SELECT pg_switch_wal()")
        .await
        .unwrap();
    // A minute may pass until the next one is due, and what was deleted is said once it is done.
    until_within(3 * LIMIT, async || log(replica).contains("deleted base_")).await;
    let (there, said) = (archive.backups(), log(replica));
    let is_made = |name: &String| said.contains(&format!("the base backup {name} is made"));
    let is_deleted = |name: &String| said.contains(&format!("deleted {name}"));
    assert!(there.iter().any(is_made), "{there:?}: {said}");
    assert!(!there.iter().any(is_deleted), "{there:?}: {said}");
    let last = said.rsplit_once("makes the base backup that is due");
    // The primary was asked to begin a new file: nobody waited for `archive_timeout`.
    assert!(!last.unwrap().1.contains("begins no new file"), "{said}");
    let place = format!("--archive={}", archive.place());
    let verified = primary.spilo_backup(&[&place, "wal-verify"], LIMIT).await;
    verified.unwrap();
    let passwords = ["password=", "PGPASSWORD"];
    assert!(passwords.iter().all(|word| !log(replica).contains(word)));
}

/// Makes a table of some two megabytes.
async fn fill(primary: &Node, table: &str) {
    let rows = "SELECT n, md5(n::text) AS m FROM generate_series(1, 20000) n";
    let statement = format!("CREATE TABLE {table} AS {rows}");
    primary.query_texts(&statement).await.unwrap();
}

/// Waits until a node has replayed everything that the primary has written.
async fn caught_up(node: &Node, primary: &Node) {
    let end = primary.query_texts("SELECT pg_current_wal_lsn()").await;
    let end = end.unwrap().remove(0);
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until(async || node.query_texts(&there).await.unwrap() == ["t"]).await;
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.log_file()).unwrap_or_default()
}

async fn until(done: impl AsyncFn() -> bool) {
    until_within(LIMIT, done).await;
}

async fn until_within(span: Duration, done: impl AsyncFn() -> bool) {
    let limit = Instant::now() + span;
    while !done().await {
        assert!(Instant::now() < limit, "not within {span:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many files of the log wait to be archived.
const WAITING: &str = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

/// Far more than a healthy machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(90);
