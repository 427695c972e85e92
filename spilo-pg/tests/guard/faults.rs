//! What ends the writes, fault by fault. The server's own log is the witness.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use spilo_core::guard::{Guard as _, GuardErrorKind};
use spilo_pg::guard::{GuardClient, boot_time, fence_without_guard};
use tokio::time::{sleep, timeout};

use crate::fixture::{MARGIN, Node, deadline_in, pid, secs};

#[tokio::test]
async fn lease_that_passes_stops_the_server_cleanly_at_the_soft_deadline() {
    let (node, deadline) = Node::primary(secs(1.5), secs(8.0)).await;
    let (last, count) = node.write_paced().await;
    assert!(
        count > 10 && last < deadline.soft + MARGIN,
        "{count} rows, last at {last}"
    );
    let gone = node.wait_until_gone(deadline.hard).await;
    println!(
        "soft {}, gone {gone}, hard {}",
        deadline.soft, deadline.hard
    );
    node.assert_nothing_was_written_after(deadline.soft, "soft deadline");
    assert!(
        node.control().contains("state:               shut down\n"),
        "{}",
        node.control()
    );
    let report = node.client().report().await.unwrap();
    assert_eq!(report.status.last_fence.as_deref(), Some("soft deadline"));
    assert_eq!((report.status.fences, report.status.alive), (1, false));
    assert_eq!(report.last_exit.as_deref(), Some("exit status 0"));
}

#[tokio::test]
async fn lease_that_passes_ends_a_loop_inside_the_server_whose_client_is_gone() {
    let (node, deadline) = Node::primary(secs(2.0), secs(2.0)).await;
    node.leave_loop().await;
    assert!(
        boot_time() < deadline.soft,
        "the loop began too late to show anything"
    );
    node.wait_until_gone(deadline.hard + MARGIN).await;
    node.assert_nothing_was_written_after(deadline.hard, "loop at the hard deadline");
    // It was the deadline that ended it, and not something before.
    assert!(node.last_commit() >= deadline.soft.before(secs(0.1)));
}

#[tokio::test]
async fn lease_that_passes_ends_a_paced_client_at_the_hard_deadline() {
    let (node, deadline) = Node::primary(secs(1.5), secs(1.5)).await;
    let (last, count) = node.write_paced().await;
    assert!(
        count > 10 && last < deadline.hard + MARGIN,
        "{count} rows, last at {last}"
    );
    node.wait_until_gone(deadline.hard + MARGIN).await;
    node.assert_nothing_was_written_after(deadline.hard, "paced client");
}

#[tokio::test]
async fn deadline_holds_when_no_agent_is_left() {
    let (mut node, deadline) = Node::primary(secs(2.0), secs(2.0)).await;
    node.leave_loop().await;
    node.lose_agent();
    node.wait_until_gone(deadline.hard + MARGIN).await;
    node.assert_nothing_was_written_after(deadline.hard, "no agent");
}

#[tokio::test]
async fn postmaster_frozen_at_the_deadline_writes_nothing_later() {
    let (node, deadline) = Node::primary(secs(2.0), secs(2.5)).await;
    node.leave_loop().await;
    kill(node.postmaster().await, Signal::SIGSTOP).unwrap();
    sleep(deadline.soft - boot_time() + secs(0.2)).await;
    assert!(
        !node.processes().is_empty(),
        "a frozen postmaster obeyed the fast stop"
    );
    node.wait_until_gone(deadline.hard + MARGIN).await;
    node.assert_nothing_was_written_after(deadline.hard, "frozen postmaster");
    let status = node.client().status().await.unwrap();
    assert_eq!(
        (status.fences, status.last_fence.as_deref()),
        (2, Some("hard deadline"))
    );
}

#[tokio::test]
async fn backend_that_ignores_the_fast_stop_is_killed_at_the_hard_deadline() {
    let (node, deadline) = Node::primary(secs(1.5), secs(2.0)).await;
    let client = node.sql().await;
    let row = client
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap();
    let backend = pid(row.get::<_, i32>(0).unsigned_abs());
    // Deaf to SIGTERM, and as long as it lives the postmaster waits for it.
    kill(backend, Signal::SIGSTOP).unwrap();
    sleep(deadline.soft - boot_time() + secs(0.3)).await;
    assert!(
        !node.processes().is_empty(),
        "a deaf backend obeyed the fast stop"
    );
    node.wait_until_gone(deadline.hard + MARGIN).await;
    node.assert_nothing_was_written_after(deadline.hard, "deaf backend");
}

#[tokio::test]
async fn orphans_of_a_killed_postmaster_are_killed_at_once() {
    let (node, _) = Node::primary(secs(30.0), secs(31.0)).await;
    node.leave_loop().await;
    let postmaster = node.postmaster().await;
    while timeout(secs(0.05), node.client().changed()).await.is_ok() {}
    let killed = boot_time();
    kill(postmaster, Signal::SIGKILL).unwrap();
    timeout(HINT, node.client().changed())
        .await
        .expect("a hint in time")
        .unwrap();
    let seen = boot_time();
    let gone = node.wait_until_gone(killed + MARGIN).await;
    println!(
        "postmaster killed: heard after {:?}, gone after {:?}",
        seen - killed,
        gone - killed
    );
    node.assert_nothing_was_written_after(killed, "killed postmaster");
    let status = node.client().status().await.unwrap();
    assert_eq!((status.postmaster, status.alive), (None, false));
    assert_eq!(status.last_fence.as_deref(), Some("postmaster died"));
    assert_eq!(
        node.client().report().await.unwrap().last_exit.as_deref(),
        Some("signal 9")
    );
}

#[tokio::test]
async fn killed_guard_takes_the_server_with_it() {
    let (node, _) = Node::primary(secs(30.0), secs(31.0)).await;
    node.leave_loop().await;
    let killed = boot_time();
    kill(node.guard(), Signal::SIGKILL).unwrap();
    let error = timeout(HINT, node.client().changed())
        .await
        .expect("news in time")
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Gone);
    let gone = node.wait_until_gone(killed + secs(5.0)).await;
    println!("guard killed: server gone after {:?}", gone - killed);
    let error = node
        .client()
        .arm(deadline_in(1, secs(9.0), secs(9.0)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Gone);
    assert!(node.log().contains("immediate shutdown"), "{}", node.log());
}

#[tokio::test]
async fn killed_guard_and_frozen_postmaster_are_ended_by_the_agent() {
    let (node, _) = Node::primary(secs(30.0), secs(31.0)).await;
    node.leave_loop().await;
    kill(node.postmaster().await, Signal::SIGSTOP).unwrap();
    kill(node.guard(), Signal::SIGKILL).unwrap();
    sleep(secs(0.3)).await;
    assert!(
        node.processes().len() > 1,
        "a frozen postmaster ended by itself"
    );
    let before = boot_time();
    let took = fence_without_guard(&node.data()).unwrap();
    println!("fence without guard took {took:?}");
    // The agent has the priority of anybody, so a busy machine makes it wait; the guard does not.
    assert!(took < secs(2.0), "took {took:?}");
    node.assert_nothing_was_written_after(before, "fence without guard");
    fence_without_guard(&node.data()).expect("nothing is left, which is no error");
}

#[tokio::test]
async fn frozen_guard_is_silent_and_can_be_replaced() {
    let (node, _) = Node::primary(secs(30.0), secs(31.0)).await;
    kill(node.guard(), Signal::SIGSTOP).unwrap();
    let before = boot_time();
    assert_eq!(
        node.client().status().await.unwrap_err().kind(),
        GuardErrorKind::Silent
    );
    assert!(boot_time() - before < secs(1.5));
    let error = GuardClient::connect_or_spawn(&node.options())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Silent);
    fence_without_guard(&node.data()).unwrap();
    assert!(GuardClient::end_silent(&node.run_dir()).await.unwrap());
    fence_without_guard(&node.data()).unwrap();
    let next = GuardClient::connect_or_spawn(&node.options())
        .await
        .unwrap();
    assert!(!next.is_adopted());
    assert_eq!(
        node.client().status().await.unwrap_err().kind(),
        GuardErrorKind::Gone
    );
    next.quit().await.unwrap();
}

#[tokio::test]
async fn guard_frozen_past_the_deadline_fences_when_it_thaws() {
    let (node, deadline) = Node::primary(secs(1.5), secs(1.5)).await;
    node.leave_loop().await;
    kill(node.guard(), Signal::SIGSTOP).unwrap();
    sleep(deadline.hard - boot_time() + secs(0.3)).await;
    let thawed = boot_time();
    kill(node.guard(), Signal::SIGCONT).unwrap();
    node.wait_until_gone(thawed + MARGIN).await;
    node.assert_nothing_was_written_after(thawed, "thawed guard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_busy_backends_are_fenced_in_time() {
    let (node, _) = Node::primary(secs(60.0), secs(60.0)).await;
    for _ in 0..300 {
        let client = node.sql().await;
        let busy = "DO $$ BEGIN PERFORM pg_sleep(5); \
                    LOOP INSERT INTO t VALUES (3); COMMIT; END LOOP; END $$";
        drop(tokio::spawn(
            async move { client.batch_execute(busy).await },
        ));
    }
    // A greater epoch brings its own, earlier deadline.
    let deadline = deadline_in(2, secs(9.0), secs(9.0));
    node.client().arm(deadline.clone()).await.unwrap();
    sleep(secs(8.0)).await;
    assert!(node.processes().len() > 300);
    sleep(deadline.hard - boot_time()).await;
    let gone = node.wait_until_gone(deadline.hard + secs(5.0)).await;
    let status = node.client().status().await.unwrap();
    println!(
        "300 busy backends: worst fence {:?}, last death after {:?}",
        status.worst_fence,
        gone - deadline.hard
    );
    assert!(status.worst_fence > Duration::ZERO && status.worst_fence < MARGIN);
    node.assert_nothing_was_written_after(deadline.hard, "300 busy backends");
}

/// In what time a hint is read: the agent has the priority of anybody, so a busy machine makes it
/// wait.
const HINT: Duration = Duration::from_secs(2);
