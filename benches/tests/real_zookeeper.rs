//! Clusters on ZooKeeper: faults of the store.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

use spilo_benches::StoreKind;
use spilo_benches::store_faults::{StoreFault, StorePlan};

async fn without_violation(fault: StoreFault) {
    let report = StorePlan::new(fault, 10)
        .store(StoreKind::ZooKeeper)
        .run()
        .await
        .unwrap();
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_zookeeper_killed_and_restarted_goes_unnoticed() {
    without_violation(StoreFault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_zookeeper_leader_cut_off_from_everybody_goes_unnoticed() {
    without_violation(StoreFault::MinorityCut).await;
}

/// Each of the two followers once: nobody knows which one the primary asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_zookeeper_follower_cut_off_from_its_leader_goes_unnoticed() {
    let plan = StorePlan::new(StoreFault::FollowerCut, 10).repeat(2);
    let report = plan.run().await.unwrap();
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_leader_of_three_zookeeper_servers_killed_goes_unnoticed() {
    without_violation(StoreFault::OneOfThree).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_zookeeper_frozen_for_half_a_ttl_goes_unnoticed() {
    without_violation(StoreFault::FrozenBriefly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_zookeeper_frozen_for_three_ttls_goes_unnoticed() {
    without_violation(StoreFault::FrozenLong).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_deleted_leader_node_in_zookeeper_makes_no_second_writer() {
    without_violation(StoreFault::LeaderKeyDeleted).await;
}
