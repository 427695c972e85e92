//! The harness against the real things that it starts, so that what it says of spilo can be
//! believed.

use std::time::Duration;

use spilo_benches::chaos::{Fault, Plan};
use spilo_benches::{Cluster, Kind, Store, StoreKind};

#[tokio::test]
async fn real_etcd_keeps_its_keys_when_one_member_of_three_is_killed() {
    let store = Store::start(StoreKind::Etcd, 3).await.unwrap();
    let etcd = store.etcd().unwrap();
    etcd.put("/a", "1").await.unwrap();
    store.kill(0).await;
    etcd.wait_healthy(Duration::from_secs(20)).await.unwrap();
    assert_eq!(etcd.get("/a").await.unwrap().as_deref(), Some("1"));
    store.restart(0).unwrap();
    etcd.delete_prefix("/").await.unwrap();
    assert_eq!(etcd.keys("/").await.unwrap(), Vec::<String>::new());
}

/// Patroni has no guard: a harness that finds nothing wrong here would find nothing anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_witness_objects_to_a_server_that_outlives_its_agent() {
    let plan = Plan::new(Fault::AgentKilled, 10)
        .kind(Kind::Patroni)
        .repeat(1);
    let report = plan.run().await.unwrap();
    let violations = report.violations();
    assert!(
        violations
            .iter()
            .any(|what| what.contains("at or after the first on timeline")),
        "{violations:?}"
    );
}

#[tokio::test]
async fn real_cluster_leaves_no_process_and_no_file_behind() {
    let builder = Cluster::builder()
        .kind(Kind::Patroni)
        .nodes(1)
        .timing(20, 1, 3);
    let cluster = builder.start().await.unwrap();
    let primary = cluster.wait_primary(Duration::from_secs(60)).await.unwrap();
    let (dir, agent) = (cluster.dir().to_path_buf(), primary.agent_pid().unwrap());
    let servers = primary.server_pids();
    assert!(
        servers.len() > 3,
        "a server is more than its postmaster: {servers:?}"
    );
    drop(cluster);
    assert!(!dir.exists());
    let mut gone = servers.into_iter().chain([agent]);
    assert!(gone.all(|pid| !spilo_benches::procs::is_alive(pid)));
}
