//! Faults of agent, guard and server, five times each at the shortest lease: nothing is committed
//! once the permission to write is over.

use spilo_benches::chaos::{self, Plan};

async fn five_times_without_violation(plan: Plan) {
    let report = plan
        .repeat(5)
        .run()
        .await
        .expect("the plan runs to its end");
    assert_eq!(report.runs.len(), 5);
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_agent_back_within_its_lease_adopts_the_server_and_no_write_fails() {
    five_times_without_violation(chaos::agent_back(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_killed_agent_leaves_no_late_commit() {
    five_times_without_violation(chaos::agent_killed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_frozen_agent_leaves_no_late_commit() {
    five_times_without_violation(chaos::agent_frozen(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_agent_thawed_past_its_lease_writes_nothing() {
    five_times_without_violation(chaos::agent_thawed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_killed_guard_takes_its_server_along() {
    five_times_without_violation(chaos::guard_killed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_frozen_guard_is_noticed_by_its_agent() {
    five_times_without_violation(chaos::guard_frozen(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_agent_and_guard_killed_together_leave_no_late_commit() {
    five_times_without_violation(chaos::agent_and_guard_killed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_backends_do_not_outlive_a_killed_postmaster() {
    five_times_without_violation(chaos::postmaster_killed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_postmaster_frozen_at_the_deadline_ends_in_time() {
    five_times_without_violation(chaos::postmaster_frozen_at_deadline(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_postmaster_frozen_when_its_guard_dies_ends_in_time() {
    five_times_without_violation(chaos::postmaster_frozen_guard_killed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_alone_three_hundred_busy_backends_end_in_time() {
    five_times_without_violation(chaos::busy_backends(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_backend_that_ignores_sigterm_ends_in_time() {
    five_times_without_violation(chaos::deaf_backend(3)).await;
}
