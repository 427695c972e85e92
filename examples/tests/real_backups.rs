//! Clusters that archive their log, and replicas that are made from backups.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

#[path = "../../spilo-backup/tests/s3/s3.rs"]
mod s3;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use spilo_benches::node::Node;
use spilo_benches::{Cluster, ClusterBuilder};
use tempfile::TempDir;

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
    until(async || log(node).contains(problem)).await;
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
    let first = archive.backups().remove(0);
    primary
        .query_texts("CREATE TABLE t (n int); SELECT pg_switch_wal()")
        .await
        .unwrap();
    let before = log(replica).len();
    until(async || {
        let there = archive.backups();
        there.len() == 1 && there[0] > first
    })
    .await;
    let said = log(replica).split_off(before);
    assert!(said.contains("makes the base backup that is due"), "{said}");
    assert!(said.contains(&format!("deleted {first}")), "{said}");
    // The primary was asked to begin a new file: nobody waited for `archive_timeout`.
    assert!(!said.contains("begins no new file"), "{said}");
    let place = format!("--archive={}", archive.place());
    let verified = primary.spilo_backup(&[&place, "wal-verify"], LIMIT).await;
    verified.unwrap();
    let passwords = ["password=", "PGPASSWORD"];
    assert!(passwords.iter().all(|word| !log(replica).contains(word)));
}

/// Wherever the agent is killed while it makes a replica from a backup or a cluster from one: what it
/// started ends with it, nobody starts what is half made, and the next agent makes it whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f40_an_agent_that_is_killed_while_it_restores_leaves_nothing_half_done() {
    let archive = Archive::new();
    let cluster = builder(&archive)
        .nodes(2)
        .without_starting()
        .start()
        .await
        .unwrap();
    let [first, second] = cluster.nodes() else {
        unreachable!("two nodes were asked for");
    };
    first.start_agent().unwrap();
    let primary = cluster.wait_streaming(0, LIMIT).await.unwrap();
    fill(primary, "t").await;
    let name = archive.back_up(primary).await;
    let nothing = async || {};
    killed_everywhere(second, nothing, async || {
        cluster.wait_streaming(1, LIMIT).await.unwrap();
        let said = log(second);
        assert!(
            said.contains(&format!("from the backup {name}: ")),
            "{said}"
        );
        caught_up(second, primary).await;
        let rows = second.query_texts("SELECT count(*) FROM t").await.unwrap();
        assert_eq!(rows, ["20000"]);
    })
    .await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    assert_eq!(primary.query_texts(slots).await.unwrap(), ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f40_an_agent_that_is_killed_while_it_recovers_a_cluster_leaves_nothing_half_done() {
    let archive = Archive::new();
    let first = builder(&archive).nodes(1).start().await.unwrap();
    let primary = first.wait_streaming(0, LIMIT).await.unwrap();
    archive.back_up(primary).await;
    fill(primary, "t").await;
    primary.query_texts("SELECT pg_switch_wal()").await.unwrap();
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;
    let copy = Cluster::builder()
        .ttl(3)
        .scope("copy")
        .nodes(1)
        .overlay(&json!({"bootstrap": {"method": "backup", "backup": {
            "archive": archive.place(),
        }}}))
        .without_starting()
        .start()
        .await
        .unwrap();
    let node = &copy.nodes()[0];
    let forget = async || copy.etcd().delete_prefix("/service/copy/").await.unwrap();
    killed_everywhere(node, forget, async || {
        let primary = copy.wait_streaming(0, LIMIT).await.unwrap();
        let rows = primary.query_texts("SELECT count(*) FROM t").await.unwrap();
        assert_eq!(rows, ["20000"]);
    })
    .await;
}

/// People who run WAL-E go on doing so: the agent archives with it, and makes a replica from what it
/// finds. The base backup is spilo's, as WAL-E has had none since PostgreSQL 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_wal_e_archives_and_replicas_are_made_with_it() {
    let store = s3::S3Server::start().await;
    let bin = std::env::var_os("SPILO_WAL_E_BIN").expect("SPILO_WAL_E_BIN: cargo xtask setup");
    let scratch = tempfile::tempdir().unwrap();
    let env_dir = scratch.path().join("env");
    std::fs::create_dir(&env_dir).unwrap();
    let prefix = format!("s3://{}/main", s3::BUCKET);
    let variables = [
        ("WALE_S3_PREFIX", prefix.clone()),
        (
            "WALE_S3_ENDPOINT",
            format!("http+path://{}", store.address()),
        ),
        ("WALE_LOG_DESTINATION", "stderr".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT_URL", store.url()),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY.to_owned()),
        ("PATH", "/usr/bin:/bin".to_owned()),
    ];
    for (name, value) in &variables {
        std::fs::write(env_dir.join(name), value).unwrap();
        spilo_benches::give_to_server_user(&env_dir.join(name)).unwrap();
    }
    for path in [scratch.path(), &env_dir] {
        spilo_benches::give_to_server_user(path).unwrap();
    }
    let cluster = Cluster::builder()
        .ttl(3)
        .nodes(2)
        .overlay(&json!({"backup": {
            "store": "wal-e",
            "command": Path::new(&bin).join("wal-e"),
            "env_dir": env_dir,
            // Its files of the log are as long as the whole server.
            "threshold_backup_size_percentage": 1000,
        }}))
        .without_starting()
        .start()
        .await
        .unwrap();
    let [first, second] = cluster.nodes() else {
        unreachable!("two nodes were asked for");
    };
    first.start_agent().unwrap();
    let primary = cluster.wait_streaming(0, LIMIT).await.unwrap();
    fill(primary, "t").await;
    let place = format!("--archive={prefix}");
    let options = [&*place, "--path-style", "--codec=lzo"];
    let name = back_up(primary, &variables, &options).await;
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;

    second.start_agent().unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let said = log(second);
    assert!(
        said.contains(&format!("clone: from the backup {name}: ")),
        "{said}"
    );
    caught_up(second, primary).await;
    let rows = second.query_texts("SELECT count(*) FROM t").await.unwrap();
    assert_eq!(rows, ["20000"]);
    // It replaces what is there: only the primary archives.
    let setting =
        "SELECT current_setting('archive_mode') || ' ' || current_setting('archive_command')";
    let setting = primary.query_texts(setting).await.unwrap().remove(0);
    assert!(
        setting.starts_with("on ") && setting.contains("wal-e"),
        "{setting}"
    );
}

/// Lets a node be made from nothing to learn how long that takes, and then kills its agent at twenty
/// moments that are spread over that time. After every fifth, another agent has to end it.
async fn killed_everywhere(node: &Node, forget: impl AsyncFn(), made: impl AsyncFn()) {
    let begun = Instant::now();
    node.start_agent().unwrap();
    made().await;
    let took = begun.elapsed();
    for n in 1..=20_u32 {
        node.kill_everything();
        std::fs::remove_dir_all(node.data_dir()).unwrap_or_default();
        forget().await;
        node.start_agent().unwrap();
        tokio::time::sleep(took.mul_f64(f64::from(n) / 21.0)).await;
        node.signal_agent(Signal::SIGKILL).unwrap();
        until(async || node.agent_pid().is_none() && restores(node.dir()) == 0).await;
        // A data directory becomes one at the very end of its making.
        let half = node.data_dir();
        if half.join("global/pg_control").exists() {
            let made = ["base/1", "pg_wal", "PG_VERSION"];
            assert!(made.iter().all(|part| half.join(part).exists()), "kill {n}");
        }
        if n.is_multiple_of(5) {
            node.start_agent().unwrap();
            made().await;
        }
    }
}

/// Counts the processes that restore something into a node's directory.
fn restores(dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let is_one = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("backup-fetch") && line.contains(dir.as_ref())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(is_one).count()
}

/// An archive in a directory of the servers' user.
struct Archive {
    dir: TempDir,
}

impl Archive {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Self { dir };
        std::fs::create_dir(archive.path()).unwrap();
        for path in [archive.dir.path(), &archive.path()] {
            spilo_benches::give_to_server_user(path).unwrap();
        }
        archive
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }

    /// Makes a base backup, and returns its name.
    async fn back_up(&self, node: &Node) -> String {
        let place = format!("--archive={}", self.place());
        back_up(node, &[], &[&place]).await
    }

    /// Returns the names of the backups that are whole.
    fn backups(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.path().join("basebackups_005"));
        let names = listed.into_iter().flatten().filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix("_backup_stop_sentinel.json")?.to_owned())
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Damages a part of a backup.
    fn spoil(&self, name: &str) {
        let parts = self.path().join("basebackups_005").join(name);
        let part = first_file(&parts.join("tar_partitions"));
        let mut bytes = std::fs::read(&part).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        std::fs::write(&part, bytes).unwrap();
    }
}

/// Makes a base backup of a node, and returns its name.
async fn back_up(node: &Node, variables: &[(&str, String)], options: &[&str]) -> String {
    let data_dir = node.data_dir().display().to_string();
    let conninfo = format!(
        "--conninfo=host={} port={} user=postgres dbname=postgres",
        node.socket_dir().display(),
        node.pg_address().port()
    );
    let arguments = [options, &["backup-push", &data_dir, &conninfo]].concat();
    let pushed = node.spilo_backup_with(variables, &arguments, LIMIT).await;
    pushed.unwrap().trim().to_owned()
}

fn first_file(directory: &Path) -> PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.remove(0)
}

/// Files of the log are small, so that a backup of little has little log since it.
fn builder(archive: &Archive) -> ClusterBuilder {
    Cluster::builder()
        .ttl(3)
        .initdb(json!({"wal-segsize": 1}))
        .overlay(&json!({"backup": {
            "archive": archive.place(),
            "threshold_backup_size_percentage": 50,
        }}))
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
    let limit = Instant::now() + LIMIT;
    while !done().await {
        assert!(Instant::now() < limit, "not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many files of the log wait to be archived.
const WAITING: &str = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

/// Far more than a healthy machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(90);
