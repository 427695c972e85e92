//! Input that nobody should have made, to daemons that run: it is named, and nothing is lost.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use spilo_benches::clock::boot_ms;
use spilo_benches::witness::{ClusterLog, commits, reigns, two_writers};
use spilo_benches::writers::Writers;
use spilo_benches::{Cluster, node::Node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_garbage_in_any_key_is_named_and_the_primary_stays() {
    let cluster = Cluster::builder().nodes(2).ttl(10).start().await.unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let standby = cluster.nodes().iter().find(|n| n.name() != primary.name());
    let postmaster = primary.postmaster_pid();
    let of_primary = format!("members/{}", primary.name());
    let of_standby = format!("members/{}", standby.unwrap().name());
    let own = [
        (of_primary.as_str(), Fate::WrittenAgain),
        (of_standby.as_str(), Fate::WrittenAgain),
    ];
    for (name, fate) in KEYS.into_iter().chain(own) {
        let key = format!("/service/{}/{name}", cluster.scope());
        let before = cluster.etcd().get(&key).await.unwrap();
        for garbage in GARBAGE {
            cluster.etcd().put(&key, garbage).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let ended = format!("{name}: {garbage} ended the primary");
            assert_eq!(primary.postmaster_pid(), postmaster, "{ended}");
            wait_writable(primary, &ended).await;
        }
        let named = format!("the store's key {name} ");
        if matches!(fate, Fate::Unread) {
            assert!(!log(primary).contains(&named), "{name} is named");
        } else {
            wait_named(&cluster, primary, &key, &named).await;
        }
        if matches!(fate, Fate::WrittenAgain) {
            // A position that has moved is news for `status`.
            let moves = "SELECT pg_logical_emit_message(true, 'spilo', 'news')";
            primary.query_texts(moves).await.unwrap();
            wait_written_again(&cluster, &key).await;
            continue;
        }
        let left = cluster.etcd().get(&key).await.unwrap();
        assert_eq!(left.as_deref(), GARBAGE.last().copied(), "{name}");
        match before {
            Some(value) => cluster.etcd().put(&key, &value).await.unwrap(),
            None => cluster.etcd().delete(&key).await.unwrap(),
        }
    }
    assert_eq!(
        primary.postmaster_pid(),
        postmaster,
        "the server was restarted"
    );
    let now = cluster.wait_streaming(1, LIMIT).await.unwrap();
    assert_eq!(now.name(), primary.name());
}

/// A setting that the API refuses may get into the store in another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_setting_that_is_not_built_is_named_by_every_node_and_the_primary_stays() {
    let cluster = Cluster::builder().nodes(2).ttl(10).start().await.unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let key = format!("/service/{}/config", cluster.scope());
    let text = cluster.etcd().get(&key).await.unwrap().unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["synchronous_mode"] = json!(true);
    cluster.etcd().put(&key, &config.to_string()).await.unwrap();
    let said =
        "WARNING: the cluster's configuration has synchronous_mode, which this version does not";
    let limit = Instant::now() + LIMIT;
    while !cluster.nodes().iter().all(|node| log(node).contains(said)) {
        assert!(Instant::now() < limit, "{}", log(primary));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for node in cluster.nodes() {
        let status = node.rest().get("/patroni", LIMIT).await.unwrap().json();
        assert_eq!(status["spilo"]["unsupported"], json!(["synchronous_mode"]));
    }
    wait_writable(primary, "the primary was ended").await;
    cluster.etcd().put(&key, &text).await.unwrap();
    let limit = Instant::now() + LIMIT;
    loop {
        let status = primary.rest().get("/patroni", LIMIT).await.unwrap().json();
        if status["spilo"]["unsupported"] == json!([]) {
            return;
        }
        assert!(Instant::now() < limit, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a server takes writes: a busy one leaves a look unanswered now and then.
async fn wait_writable(node: &Node, problem: &str) {
    let limit = Instant::now() + LIMIT;
    while !node.takes_writes().await {
        assert!(Instant::now() < limit, "{problem}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a node has named a key in its log. A new position of the leader may take the place of
/// garbage that nobody has read yet, so it is written again.
async fn wait_named(cluster: &Cluster, node: &Node, key: &str, named: &str) {
    let limit = Instant::now() + LIMIT;
    while !log(node).contains(named) {
        let said = || format!("{named:?} is not in the log:\n{}", log(node));
        assert!(Instant::now() < limit, "{}", said());
        // No document is that.
        cluster.etcd().put(key, GARBAGE[0]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let last = GARBAGE.last().expect("there is garbage");
        cluster.etcd().put(key, last).await.unwrap();
    }
}

/// Waits until the node that a key belongs to has put something sensible in the place of the last
/// garbage.
async fn wait_written_again(cluster: &Cluster, key: &str) {
    let limit = Instant::now() + LIMIT;
    loop {
        let text = cluster.etcd().get(key).await.unwrap().unwrap_or_default();
        let is_sound = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        if is_sound && GARBAGE.last() != Some(&text.as_str()) {
            return;
        }
        assert!(Instant::now() < limit, "{key} is still {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whoever overwrites the lock may be another primary: the old one gives way to it, and nobody takes
/// it away from somebody unknown, until it is deleted by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_garbage_in_the_leader_key_ends_the_primary_until_it_is_deleted() {
    let cluster = Cluster::builder()
        .ttl(3)
        .initdb(json!({ "wal-segsize": "1" }));
    let cluster = cluster.start().await.unwrap();
    let first = cluster.wait_streaming(2, LIMIT).await.unwrap();
    let witness = ClusterLog::start(&cluster, "wal");
    let writers = Writers::start(&cluster, first).await.unwrap();
    let key = format!("/service/{}/leader", cluster.scope());
    let garbage = "{\"no\": \"name/at all\"}";
    writers.wait_ack(boot_ms(), LIMIT, |_| true).await.unwrap();
    cluster.etcd().put(&key, garbage).await.unwrap();
    let limit = Instant::now() + LIMIT;
    // A busy primary leaves a look unanswered now and then, and not three in a row.
    let mut quiet = 0;
    while quiet < 3 {
        assert!(Instant::now() < limit, "{garbage} did not end the primary");
        let is_quiet = writable(&cluster).await == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
    }
    // Longer than every lease.
    let end = Instant::now() + Duration::from_secs(7);
    while Instant::now() < end {
        assert_eq!(writable(&cluster).await, 0, "a primary beside {garbage}");
    }
    let kept = cluster.etcd().get(&key).await.unwrap();
    assert_eq!(kept.as_deref(), Some(garbage));
    cluster.etcd().delete(&key).await.unwrap();
    let primary = cluster.wait_streaming(2, LIMIT).await.unwrap();
    for node in cluster.nodes() {
        let said = log(node);
        let named = said.contains("key leader is no member name");
        assert!(named, "the log does not name the key:\n{said}");
    }
    writers.wait_ack(boot_ms(), LIMIT, |_| true).await.unwrap();
    drop(writers.stop().await);
    let directories = witness.finish(&cluster).unwrap();
    let commits = commits(primary.pg_bin(), &directories).await.unwrap();
    assert!(reigns(&commits).len() >= 2, "the witness saw one primary");
    assert_eq!(two_writers(&commits), Vec::<String>::new());
}

/// Returns how many nodes take writes.
async fn writable(cluster: &Cluster) -> usize {
    let mut writable = 0;
    for node in cluster.nodes() {
        writable += usize::from(node.takes_writes().await);
    }
    writable
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_data_directory_of_another_cluster_is_refused_and_left_alone() {
    let cluster = stopped().await;
    let key = format!("/service/{}/initialize", cluster.scope());
    let theirs = "7000000000000000001";
    cluster.etcd().put(&key, theirs).await.unwrap();
    let named = refused(&cluster, "is of another cluster").await;
    assert!(named.contains(theirs), "{named}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_data_directory_of_another_version_is_refused_and_left_alone() {
    let cluster = stopped().await;
    let version = cluster.nodes()[0].data_dir().join("PG_VERSION");
    std::fs::write(version, "9.6\n").unwrap();
    refused(&cluster, "9.6").await;
}

/// Makes a cluster of one node and ends its agent and server.
async fn stopped() -> Cluster {
    let cluster = Cluster::builder().nodes(1).ttl(3).start().await.unwrap();
    let node = cluster.wait_streaming(0, LIMIT).await.unwrap();
    node.signal_agent(Signal::SIGTERM).unwrap();
    until(|| node.agent_pid().is_none() && node.server_pids().is_empty()).await;
    // It would end with its lease, which is no write of anybody's.
    let record = format!("/service/{}/members/{}", cluster.scope(), node.name());
    cluster.etcd().delete(&record).await.unwrap();
    cluster
}

/// Starts the only node and returns the one line in which it says why it cannot go on. Nothing else
/// may come of it: neither in its data directory nor in the store.
async fn refused(cluster: &Cluster, problem: &str) -> String {
    let node = &cluster.nodes()[0];
    let prefix = format!("/service/{}/", cluster.scope());
    let files = files(&node.data_dir());
    let entries = cluster.etcd().entries(&prefix).await.unwrap();
    assert!(!entries.is_empty(), "the store has lost the cluster");
    let said_before = log(node).len();
    node.start_agent().unwrap();
    until(|| node.agent_status().is_some()).await;
    let said = log(node).split_off(said_before);
    let status = node.agent_status().unwrap();
    assert!(!status.success(), "{status}:\n{said}");
    assert_eq!(node.server_pids(), Vec::<i32>::new());
    let after = cluster.etcd().entries(&prefix).await.unwrap();
    assert_eq!(after, entries, "the store was written to");
    let after = self::files(&node.data_dir());
    let changed: Vec<_> = after.symmetric_difference(&files).collect();
    assert!(changed.is_empty(), "files were changed: {changed:?}");
    // What it decides is told as news, and that it ends for it as an error.
    let errors = said.lines().filter(|line| !line.contains(" INFO: "));
    let named: Vec<&str> = errors.filter(|line| line.contains(problem)).collect();
    assert_eq!(named.len(), 1, "{problem:?} is not named once:\n{said}");
    named[0].to_owned()
}

/// What becomes of garbage in a key.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is named in the log and left as it is: nobody knows better what to write there.
    Named,
    /// It is left as it is, and nobody reads it.
    Unread,
    /// It is named in the log, and the node that the key belongs to, which knows what to write,
    /// writes it again: the leader, or the member that it is of.
    WrittenAgain,
}

/// Every key that others may write into while a cluster runs, but those of its members, and
/// `leader`, which has a test of its own.
const KEYS: [(&str, Fate); 10] = [
    ("config", Fate::Named),
    ("failover", Fate::Named),
    ("sync", Fate::Named),
    ("history", Fate::WrittenAgain),
    ("failsafe", Fate::WrittenAgain),
    ("status", Fate::WrittenAgain),
    ("initialize", Fate::WrittenAgain),
    ("members/stranger", Fate::Named),
    ("release", Fate::Named),
    ("optime/leader", Fate::Unread),
];

const GARBAGE: [&str; 5] = [
    "{{garbage",
    "[]",
    "\"\u{fe0f}\"",
    "-1",
    "{\"ttl\": \"soon\", \"x\": [[[[[[]]]]]]}",
];

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.log_file()).unwrap_or_default()
}

/// Returns what is in a directory, with lengths and the moments of the last change.
fn files(dir: &Path) -> BTreeSet<(PathBuf, u64, SystemTime)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is = path.symlink_metadata().unwrap();
        if is.is_dir() {
            found.extend(files(&path));
        }
        found.insert((path, is.len(), is.modified().unwrap()));
    }
    found
}

async fn until(done: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < limit, "not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Far more than a healthy machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(60);
