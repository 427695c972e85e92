//! Clusters on Consul: faults of the store, and a mixed cluster.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

use std::time::Duration;

use spilo_benches::store_faults::{StoreFault, StorePlan};
use spilo_benches::{Cluster, Kind, StoreKind};

async fn without_violation(fault: StoreFault) {
    let report = StorePlan::new(fault, 10)
        .store(StoreKind::Consul)
        .run()
        .await
        .expect("the plan runs to its end");
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_consul_killed_and_restarted_goes_unnoticed() {
    without_violation(StoreFault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_one_of_three_consul_servers_killed_goes_unnoticed() {
    without_violation(StoreFault::OneOfThree).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_consul_server_cut_off_from_everybody_goes_unnoticed() {
    without_violation(StoreFault::MinorityCut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_consul_frozen_for_half_a_ttl_goes_unnoticed() {
    without_violation(StoreFault::FrozenBriefly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_consul_frozen_for_three_ttls_goes_unnoticed() {
    without_violation(StoreFault::FrozenLong).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f12_a_destroyed_session_makes_no_second_writer() {
    without_violation(StoreFault::SessionDestroyed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_deleted_leader_key_in_consul_makes_no_second_writer() {
    without_violation(StoreFault::LeaderKeyDeleted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_two_spilo_agents_and_a_patroni_are_one_cluster_on_consul() {
    mixed(StoreKind::Consul).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_two_spilo_agents_and_a_patroni_are_one_cluster_on_etcd() {
    mixed(StoreKind::Etcd).await;
}

/// Elects, fails over to Patroni and back, and looks the same to `patronictl` all the time.
async fn mixed(store: StoreKind) {
    let cluster = Cluster::builder()
        .store(store)
        .node_kind(2, Kind::Patroni)
        .timing(20, 2, 3)
        .without_starting()
        .start()
        .await
        .unwrap();
    // The first one decides how the cluster is made.
    cluster.nodes()[0].start_agent().unwrap();
    cluster.wait_primary(MINUTE).await.unwrap();
    cluster.start_agents().unwrap();
    let first = cluster.wait_streaming(2, MINUTE).await.unwrap();
    assert_eq!(first.name(), "n1");
    listed(&cluster, "n1").await;

    let switched = cluster
        .patronictl(&["switchover", "bench", "--candidate", "n3", "--force"])
        .await
        .unwrap();
    assert!(
        switched.contains("Successfully switched over"),
        "{switched}"
    );
    let patroni = cluster.wait_streaming(2, MINUTE).await.unwrap();
    assert_eq!(patroni.name(), "n3");
    listed(&cluster, "n3").await;

    // Its lease outlives it: on Consul by twice its time and the lock delay.
    patroni.kill_everything();
    let next = cluster.wait_streaming(1, 3 * MINUTE).await.unwrap();
    assert_ne!(next.name(), "n3");
    cluster.start_agents().unwrap();
    let leader = cluster.wait_streaming(2, MINUTE).await.unwrap().name();
    listed(&cluster, leader).await;
}

/// Waits until `patronictl list` shows three healthy members and the leader.
async fn listed(cluster: &Cluster, leader: &str) {
    let mut shown = String::new();
    for _ in 0..100 {
        shown = cluster
            .patronictl(&["list", "bench", "--format", "json"])
            .await
            .unwrap();
        let members: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
        let is_leader = |member: &&serde_json::Value| {
            member["Role"] == "Leader" && member["State"] == "running" && member["Member"] == leader
        };
        let is_standby = |member: &&serde_json::Value| {
            member["Role"] == "Replica" && member["State"] == "streaming"
        };
        if members.iter().filter(is_leader).count() == 1
            && members.iter().filter(is_standby).count() == 2
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{shown}");
}

const MINUTE: Duration = Duration::from_secs(60);
