//! Agents that are killed while they restore.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::json;
use spilo_benches::Cluster;
use spilo_benches::node::Node;

use crate::archive::{Archive, builder};
use crate::{LIMIT, WAITING, caught_up, fill, log, until};

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
