//! Starting, adopting and ending: the guard's life and its server's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use spilo_core::guard::{Guard as _, GuardErrorKind};
use spilo_pg::guard::{GuardClient, GuardOptions, Role, ServerSignal, boot_time};
use tokio::time::sleep;

use crate::fixture::{MARGIN, Node, as_server, deadline_in, program, secs};

#[tokio::test]
async fn next_agent_adopts_the_server_and_gets_the_secret() {
    let (mut node, deadline) = Node::primary(secs(20.0), secs(21.0)).await;
    let sql = node.sql().await;
    let (guard, postmaster) = (node.guard(), node.postmaster().await);
    node.lose_agent();
    let next = GuardClient::connect_or_spawn(&node.options())
        .await
        .unwrap();
    assert!(next.is_adopted());
    assert_eq!(next.pid(), guard.as_raw().unsigned_abs());
    let report = next.report().await.unwrap();
    assert_eq!(report.status.deadline, Some(deadline));
    assert_eq!(
        report.status.postmaster,
        Some(postmaster.as_raw().unsigned_abs())
    );
    assert_eq!(
        (report.data_dir, report.role),
        (Some(node.data()), Some(Role::Primary))
    );
    assert_eq!(report.guard_pid, next.pid());
    sql.batch_execute("INSERT INTO t VALUES (1)")
        .await
        .expect("a connection that stayed open");
    let moved = deadline_in(2, secs(30.0), secs(31.0));
    next.arm(moved.clone()).await.unwrap();
    assert_eq!(next.status().await.unwrap().deadline, Some(moved));
    next.fence().await.unwrap();
}

#[tokio::test]
async fn renewed_deadline_keeps_the_server_writing() {
    let (node, first) = Node::primary(secs(1.0), secs(1.5)).await;
    let sql = node.sql().await;
    while boot_time() < first.hard + secs(1.0) {
        node.client()
            .arm(deadline_in(1, secs(1.0), secs(1.5)))
            .await
            .unwrap();
        sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        sleep(secs(0.1)).await;
    }
    assert_eq!(node.client().status().await.unwrap().fences, 0);
}

#[tokio::test]
async fn signals_meant_for_the_agent_leave_guard_and_server_alone() {
    let (node, deadline) = Node::primary(secs(20.0), secs(21.0)).await;
    let sql = node.sql().await;
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP] {
        kill(node.guard(), signal).unwrap();
    }
    let status = node.client().status().await.expect("the guard lives");
    assert_eq!(status.deadline, Some(deadline));
    sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
}

#[tokio::test]
async fn launch_that_is_not_safe_is_refused() {
    let node = Node::new().await;
    let launch = |role| node.client().launch(node.launch(role));
    let refused = |result: Result<u32, spilo_core::GuardError>, why: &str| {
        let error = result.expect_err(why);
        assert_eq!(error.kind(), GuardErrorKind::Refused);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(launch(Role::Primary).await, "deadline");
    refused(launch(Role::Standby).await, "standby.signal");
    node.client()
        .arm(deadline_in(1, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    let mut missing = node.launch(Role::Primary);
    missing.program = "/nonexistent/postgres".into();
    refused(
        node.client().launch(missing).await,
        "execute /nonexistent/postgres",
    );
    let mut unlogged = node.launch(Role::Primary);
    unlogged.log_file = "/nonexistent/log".into();
    refused(node.client().launch(unlogged).await, "open the log");
    let mut lost = node.launch(Role::Primary);
    lost.data_dir = "/nonexistent/data".into();
    refused(node.client().launch(lost).await, "/nonexistent/data");
    launch(Role::Primary).await.unwrap();
    refused(launch(Role::Primary).await, "still alive");
}

#[tokio::test]
async fn server_that_is_not_the_guards_is_seen_and_not_launched_over() {
    let node = Node::new().await;
    let mut stray = as_server(&program("postgres"))
        .arg("-D")
        .arg(node.data())
        .spawn()
        .unwrap();
    drop(node.sql().await);
    let found = node.processes();
    assert_eq!(found.first(), Some(&stray.id()));
    assert!(found.len() > 3, "{found:?}");
    node.client()
        .arm(deadline_in(1, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    let error = node
        .client()
        .launch(node.launch(Role::Primary))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not this guard's"), "{error}");
    spilo_pg::guard::fence_without_guard(&node.data()).unwrap();
    stray.wait().unwrap();
    assert_eq!(node.processes(), [0_u32; 0]);
}

#[tokio::test]
async fn standby_is_disarmed_and_promoted_only_under_a_deadline() {
    let node = Node::standby().await;
    let sql = node.sql().await;
    node.client()
        .arm(deadline_in(1, secs(1.0), secs(1.0)))
        .await
        .unwrap();
    node.client().disarm().await.unwrap();
    sleep(secs(1.3)).await;
    assert_eq!(node.client().status().await.unwrap().fences, 0);
    let error = node
        .client()
        .signal(ServerSignal::Promote)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
    node.client()
        .arm(deadline_in(2, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    fs::write(node.data().join("promote"), "").unwrap();
    node.client().signal(ServerSignal::Promote).await.unwrap();
    let limit = boot_time() + secs(10.0);
    while sql
        .query_one("SELECT pg_is_in_recovery()", &[])
        .await
        .unwrap()
        .get(0)
    {
        assert!(boot_time() < limit, "not promoted: {}", node.log());
        sleep(secs(0.02)).await;
    }
    let error = node.client().disarm().await.unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
}

#[tokio::test]
async fn standby_that_was_told_to_become_a_primary_is_never_disarmed_while_it_lives() {
    let node = Node::standby().await;
    node.sql().await;
    node.client()
        .arm(deadline_in(1, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    node.client().disarm().await.unwrap();
    node.client()
        .arm(deadline_in(2, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    // Without the file that goes with the order it stays a standby: as one that replays for long.
    node.client().signal(ServerSignal::Promote).await.unwrap();
    assert!(node.data().join("standby.signal").exists());
    let error = node.client().disarm().await.unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
}

#[tokio::test]
async fn standby_with_an_order_to_promote_is_never_disarmed_whoever_wrote_it() {
    let node = Node::standby().await;
    node.sql().await;
    let deadline = deadline_in(1, secs(20.0), secs(20.0));
    node.client().arm(deadline.clone()).await.unwrap();
    fs::write(node.data().join("promote"), "").unwrap();
    let error = node.client().disarm().await.unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
    fs::remove_file(node.data().join("promote")).unwrap();
    node.client().disarm().await.unwrap();
}

#[tokio::test]
async fn what_a_guard_that_hung_was_asked_by_those_who_left_is_not_done() {
    let mut server = Node::standby().await;
    server.client().fence().await.unwrap();
    let deadline = deadline_in(1, secs(20.0), secs(25.0));
    let guard = server.guard();
    kill(guard, Signal::SIGSTOP).unwrap();
    let armed = server.client().arm(deadline).await.unwrap_err();
    let launched = server.client().launch(server.launch(Role::Standby)).await;
    assert_eq!(armed.kind(), GuardErrorKind::Silent);
    assert_eq!(launched.unwrap_err().kind(), GuardErrorKind::Silent);
    kill(guard, Signal::SIGCONT).unwrap();
    for _ in 0..20 {
        let status = server.client().status().await.unwrap();
        assert!(!status.alive, "{status:?}");
        assert_eq!(status.deadline, None);
        sleep(secs(0.05)).await;
    }
    server.lose_agent();
}

#[tokio::test]
async fn primary_is_never_disarmed_while_it_lives() {
    let (node, deadline) = Node::primary(secs(20.0), secs(20.0)).await;
    fs::write(node.data().join("standby.signal"), "").unwrap();
    let error = node.client().disarm().await.unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
    assert_eq!(
        node.client().status().await.unwrap().deadline,
        Some(deadline)
    );
    node.client().fence().await.unwrap();
    // Without the burial by the kernel, for which the answer may have waited.
    let took = node.client().status().await.unwrap().worst_fence;
    assert!(took > Duration::ZERO && took < MARGIN, "took {took:?}");
    assert_eq!(node.processes(), [0_u32; 0]);
    node.client().disarm().await.unwrap();
    assert_eq!(node.client().status().await.unwrap().deadline, None);
}

#[tokio::test]
async fn server_is_started_again_after_its_end() {
    let (node, _) = Node::primary(secs(20.0), secs(20.0)).await;
    node.client().signal(ServerSignal::FastStop).await.unwrap();
    node.wait_until_gone(boot_time() + secs(10.0)).await;
    node.client()
        .launch(node.launch(Role::Primary))
        .await
        .unwrap();
    node.sql()
        .await
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    node.client().signal(ServerSignal::Reload).await.unwrap();
    let limit = boot_time() + secs(5.0);
    while !node.log().contains("received SIGHUP") {
        assert!(boot_time() < limit, "no reload: {}", node.log());
        sleep(secs(0.02)).await;
    }
}

#[tokio::test]
async fn server_inherits_nothing_of_the_guard() {
    let (node, _) = Node::primary(secs(20.0), secs(20.0)).await;
    let postmaster = node.postmaster().await;
    let read = |name: &str| fs::read(format!("/proc/{postmaster}/{name}")).unwrap();
    assert_eq!(read("environ"), b"LC_ALL=C\0");
    let own = fs::read("/proc/self/oom_score_adj").unwrap();
    assert_eq!(read("oom_score_adj"), own);
    let stat = String::from_utf8(read("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (session, nice) = (fields[3], fields[16]);
    assert_eq!(session, postmaster.to_string());
    assert_eq!(nice, "0");
    for entry in fs::read_dir(format!("/proc/{postmaster}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert!(
            !target.to_string_lossy().contains("guard"),
            "{}",
            target.display()
        );
    }
    if geteuid().is_root() {
        let status = String::from_utf8(read("status")).unwrap();
        let uids = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
        let weaknesses = node.client().status().await.unwrap().weaknesses;
        println!("weaknesses as root: {weaknesses:?}");
    }
}

#[tokio::test]
async fn guard_told_to_end_stops_the_server_fast_first() {
    let (node, deadline) = Node::primary(secs(20.0), secs(20.0)).await;
    kill(node.guard(), Signal::SIGTERM).unwrap();
    node.wait_until_gone(deadline.soft).await;
    assert!(
        node.control().contains("state:               shut down\n"),
        "{}",
        node.control()
    );
    let limit = boot_time() + secs(2.0);
    while node.client().status().await.is_ok() {
        assert!(boot_time() < limit, "the guard stays");
        sleep(secs(0.01)).await;
    }
    assert!(!node.run_dir().join("guard.sock").exists());
}

#[tokio::test]
async fn guard_with_nothing_to_guard_ends_by_itself() {
    let mut node = Node::new().await;
    let run_dir = node.run_dir();
    sleep(secs(1.5)).await;
    node.client()
        .status()
        .await
        .expect("a guard stays while its agent lives");
    node.lose_agent();
    let limit = boot_time() + secs(3.0);
    while GuardClient::connect(&run_dir).await.is_ok() {
        assert!(boot_time() < limit, "the guard stays");
        // Each look is an agent that comes and goes, so they are further apart than its patience.
        sleep(secs(1.4)).await;
    }
}

#[tokio::test]
async fn guard_with_a_secret_waits_for_the_next_agent() {
    let mut node = Node::new().await;
    let deadline = deadline_in(7, secs(4.0), secs(4.0));
    node.client().arm(deadline.clone()).await.unwrap();
    node.lose_agent();
    sleep(secs(2.0)).await;
    let next = GuardClient::connect_or_spawn(&node.options())
        .await
        .unwrap();
    assert!(next.is_adopted());
    assert_eq!(next.status().await.unwrap().deadline, Some(deadline));
}

#[tokio::test]
async fn two_agents_at_once_get_one_guard() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = GuardOptions::new(dir.path().join("a/long/name/".repeat(12)));
    options.program = Some(env!("CARGO_BIN_EXE_spilo-guard").into());
    let (one, two) = tokio::join!(
        GuardClient::connect_or_spawn(&options),
        GuardClient::connect_or_spawn(&options)
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.pid(), two.pid());
    assert_ne!(one.is_adopted(), two.is_adopted());
    one.quit().await.unwrap();
}

#[tokio::test]
async fn directory_that_others_may_enter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = GuardClient::connect_or_spawn(&GuardOptions::new(dir.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
    assert!(error.to_string().contains("0700"), "{error}");
}

#[tokio::test]
async fn program_that_is_no_guard_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = GuardOptions::new(dir.path().join("run"));
    options.program = Some("/bin/false".into());
    let error = GuardClient::connect_or_spawn(&options).await.unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Gone);
    assert!(error.to_string().contains("exit status: 1"), "{error}");
}
