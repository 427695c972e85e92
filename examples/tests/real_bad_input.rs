//! Input that nobody should have made, to daemons that run: it is named, and nothing is lost.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use spilo_benches::{Cluster, node::Node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_garbage_in_any_key_is_named_and_the_primary_stays() {
    let cluster = Cluster::builder().nodes(2).ttl(10).start().await.unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let postmaster = primary.postmaster_pid();
    let key = |name: &str| format!("/service/{}/{name}", cluster.scope());
    for name in KEYS {
        let before = cluster.etcd().get(&key(name)).await.unwrap();
        for garbage in [
            "{{garbage",
            "[]",
            "\"\u{fe0f}\"",
            "-1",
            "{\"ttl\": \"soon\", \"x\": [[[[[[]]]]]]}",
        ] {
            cluster.etcd().put(&key(name), garbage).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(
                primary.takes_writes().await,
                "{name}: {garbage} ended the primary"
            );
        }
        if name == "config" {
            let said = log(primary);
            assert!(
                said.contains("key config"),
                "the log does not name the key:\n{said}"
            );
            let text = cluster.etcd().get(&key(name)).await.unwrap().unwrap();
            assert!(
                text.contains("soon"),
                "a key that only people write was changed: {text}"
            );
        }
        match before {
            Some(value) => cluster.etcd().put(&key(name), &value).await.unwrap(),
            None => cluster.etcd().delete(&key(name)).await.unwrap(),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_data_directory_of_another_cluster_is_refused_and_left_alone() {
    let cluster = Cluster::builder().nodes(1).ttl(3).start().await.unwrap();
    let node = cluster.wait_streaming(0, LIMIT).await.unwrap();
    node.signal_agent(Signal::SIGTERM).unwrap();
    until(|| node.agent_pid().is_none() && node.server_pids().is_empty()).await;
    let key = format!("/service/{}/initialize", cluster.scope());
    cluster
        .etcd()
        .put(&key, "7000000000000000001")
        .await
        .unwrap();
    let control = fingerprint(&node.data_dir());
    node.start_agent().unwrap();
    until(|| log(node).contains("is of another cluster")).await;
    until(|| node.agent_pid().is_none()).await;
    assert!(log(node).contains("7000000000000000001"), "{}", log(node));
    assert!(node.server_pids().is_empty());
    assert_eq!(
        fingerprint(&node.data_dir()),
        control,
        "the data directory was changed"
    );
    let kept = cluster.etcd().get(&key).await.unwrap();
    assert_eq!(kept.as_deref(), Some("7000000000000000001"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_data_directory_of_another_version_is_refused_and_left_alone() {
    let cluster = Cluster::builder().nodes(1).ttl(3).start().await.unwrap();
    let node = cluster.wait_streaming(0, LIMIT).await.unwrap();
    node.signal_agent(Signal::SIGTERM).unwrap();
    until(|| node.agent_pid().is_none() && node.server_pids().is_empty()).await;
    std::fs::write(node.data_dir().join("PG_VERSION"), "9.6\n").unwrap();
    let control = fingerprint(&node.data_dir());
    node.start_agent().unwrap();
    until(|| log(node).contains("9.6")).await;
    until(|| node.agent_pid().is_none()).await;
    assert_eq!(
        fingerprint(&node.data_dir()),
        control,
        "the data directory was changed"
    );
}

/// Every key that others may write into while a cluster runs. Garbage in `leader` is a lock that
/// somebody unknown holds, and ends the primary.
const KEYS: [&str; 9] = [
    "config",
    "failover",
    "sync",
    "history",
    "failsafe",
    "status",
    "initialize",
    "members/stranger",
    "release",
];

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.log_file()).unwrap_or_default()
}

fn fingerprint(data_dir: &Path) -> Vec<(String, Vec<u8>)> {
    ["global/pg_control", "PG_VERSION", "postgresql.conf"]
        .into_iter()
        .map(|name| (name.to_owned(), std::fs::read(data_dir.join(name)).unwrap()))
        .collect()
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
