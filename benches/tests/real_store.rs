//! Faults of etcd: what must go unnoticed does, and what must not never makes a second writer.

use spilo_benches::StoreKind;
use spilo_benches::store_faults::{StoreFault, StorePlan};

async fn without_violation(fault: StoreFault, ttl: u64, times: usize) {
    let report = StorePlan::new(fault, ttl)
        .repeat(times)
        .run()
        .await
        .expect("the plan runs to its end");
    assert_eq!(report.runs.len(), times);
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_etcd_stopped_for_five_seconds_goes_unnoticed() {
    without_violation(StoreFault::Stopped, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_etcd_killed_and_restarted_goes_unnoticed() {
    without_violation(StoreFault::Killed, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_one_of_three_etcd_members_killed_goes_unnoticed() {
    without_violation(StoreFault::OneOfThree, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_one_of_three_etcd_members_killed_behind_a_gateway_goes_unnoticed() {
    behind(StoreKind::EtcdGateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_one_of_three_etcd_members_killed_behind_a_proxy_goes_unnoticed() {
    behind(StoreKind::EtcdProxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_changed_service_records_and_a_member_that_they_leave_out_go_unnoticed() {
    let plan = StorePlan::new(StoreFault::RecordsChanged, 10).store(StoreKind::EtcdDns);
    unnoticed(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_domain_that_is_denied_for_a_minute_goes_unnoticed() {
    let plan = StorePlan::new(StoreFault::DomainGone, 10).store(StoreKind::EtcdDns);
    unnoticed(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_etcd_member_cut_off_from_everybody_goes_unnoticed() {
    unnoticed(StorePlan::new(StoreFault::MinorityCut, 10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_etcd_frozen_for_half_a_ttl_goes_unnoticed() {
    without_violation(StoreFault::FrozenBriefly, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_etcd_frozen_for_three_ttls_goes_unnoticed() {
    without_violation(StoreFault::FrozenLong, 10, 1).await;
}

async fn behind(front: StoreKind) {
    let plan = StorePlan::new(StoreFault::OneOfThree, 10).store(front);
    unnoticed(plan).await;
}

async fn unnoticed(plan: StorePlan) {
    let report = plan.run().await.expect("the plan runs to its end");
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_primary_goes_on_by_consent_while_all_of_etcd_is_gone_for_a_minute() {
    without_violation(StoreFault::AllGone, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_primary_steps_down_in_time_where_a_member_cannot_consent() {
    without_violation(StoreFault::AllGoneStandbyDead, 3, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_deleted_leader_key_makes_no_second_writer() {
    without_violation(StoreFault::LeaderKeyDeleted, 3, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_deleted_prefix_makes_no_second_writer() {
    without_violation(StoreFault::PrefixDeleted, 3, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_bootstrap_killed_at_any_step_still_makes_one_cluster() {
    without_violation(StoreFault::BootstrapKilled, 3, 12).await;
}
