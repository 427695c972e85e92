//! Whole clusters of `spilo-agent`s on a real etcd and real PostgreSQL: what an operator does.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking, and says what it measured"
)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use spilo_benches::analysis::lost;
use spilo_benches::clock::{ClockPair, boot_ms};
use spilo_benches::witness::{ClusterLog, Commit, commits, reigns};
use spilo_benches::writers::{Ack, Writers, surviving};
use spilo_benches::{Cluster, node::Node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_alone_three_agents_make_a_new_cluster_in_less_than_six_seconds() {
    let cluster = Cluster::builder().ttl(10).without_starting();
    let cluster = cluster.start().await.unwrap();
    let begun = Instant::now();
    cluster.start_agents().unwrap();
    cluster.wait_streaming(2, LIMIT).await.unwrap();
    let took = begun.elapsed();
    println!("three nodes stream after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_three_agents_are_up_and_stock_patronictl_works_on_them() {
    let begun = Instant::now();
    let cluster = Cluster::builder().ttl(10).start().await.unwrap();
    let primary = cluster
        .wait_streaming(2, LIMIT)
        .await
        .unwrap()
        .name()
        .to_owned();
    // Beside other tests it takes what they leave it; alone it has a test of its own.
    let took = begun.elapsed();
    println!("three nodes stream after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(30), "{took:?}");

    let listed = told_by_patronictl(&cluster, "list", |listed| {
        listed.matches("streaming").count() == 2
    })
    .await;
    assert!(listed.contains(&format!("| {primary} ")), "{listed}");
    assert_eq!(listed.matches("Leader").count(), 1, "{listed}");

    let candidate = cluster
        .nodes()
        .iter()
        .map(|n| n.name())
        .find(|n| *n != primary)
        .unwrap();
    let arguments = [
        "switchover",
        cluster.scope(),
        "--leader",
        &primary,
        "--candidate",
        candidate,
        "--force",
    ];
    let said = cluster.patronictl(&arguments).await.unwrap();
    assert!(
        said.contains(&format!("Successfully switched over to \"{candidate}\"")),
        "{said}"
    );
    let now = cluster.wait_streaming(2, LIMIT).await.unwrap();
    assert_eq!(now.name(), candidate);

    told_by_patronictl(&cluster, "history", |history| {
        history.contains("no recovery target specified")
    })
    .await;
    let config = cluster.patronictl(&["show-config"]).await.unwrap();
    assert!(config.contains("failsafe_mode: true"), "{config}");
    let edited = ["edit-config", "--force", "-p", "work_mem=7MB"];
    cluster.patronictl(&edited).await.unwrap();
    for node in cluster.nodes() {
        until(|| async {
            node.query_texts("SHOW work_mem")
                .await
                .is_ok_and(|t| t == ["7MB"])
        })
        .await;
    }
}

/// Waits until the store tells something: it learns later than the servers do.
async fn told_by_patronictl(
    cluster: &Cluster,
    command: &str,
    holds: impl Fn(&str) -> bool,
) -> String {
    let limit = Instant::now() + LIMIT;
    loop {
        let said = cluster.patronictl(&[command]).await.unwrap();
        if holds(&said) {
            return said;
        }
        assert!(Instant::now() < limit, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f1_a_primary_that_is_cut_off_commits_nothing_past_its_lease() {
    let report = spilo_benches::chaos::agent_frozen(3)
        .repeat(1)
        .run()
        .await
        .unwrap();
    assert_eq!(report.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f7_a_node_frozen_past_its_lease_never_writes_again_and_rejoins() {
    let cluster = Cluster::builder()
        .ttl(3)
        .initdb(json!({ "wal-segsize": "1" }));
    let cluster = cluster.start().await.unwrap();
    let old = cluster.wait_streaming(2, LIMIT).await.unwrap();
    let log = ClusterLog::start(&cluster, "wal");
    let writers = Writers::start(&cluster, old).await.unwrap();
    // Some rows have to be older than those that may be on their way.
    let first = writers.wait_ack(boot_ms(), LIMIT, |_| true).await.unwrap();
    let older = first + ON_THEIR_WAY_MS + 500;
    writers.wait_ack(older, LIMIT, |_| true).await.unwrap();
    // The whole node, its guard included: this is what a paused machine looks like.
    let frozen: Vec<i32> = [old.agent_pid(), old.guard_pid()]
        .into_iter()
        .flatten()
        .chain(old.server_pids())
        .collect();
    let frozen_ms = boot_ms();
    for pid in &frozen {
        signal(*pid, Signal::SIGSTOP);
    }
    until(|| async {
        cluster
            .primary()
            .await
            .is_some_and(|p| p.name() != old.name())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let thawed_ms = boot_ms();
    for pid in &frozen {
        signal(*pid, Signal::SIGCONT);
    }
    let new = cluster.wait_streaming(2, LIMIT).await.unwrap();
    assert_ne!(new.name(), old.name());
    let first_seq = writers.first_seq();
    let written = writers.stop().await;
    let surviving = surviving(new, first_seq).await.unwrap();

    // Nothing makes the guard wake before the server, so that a commit or two may come between the
    // thaw and its kill. The server's own log tells to the microsecond that nothing comes later.
    let directories = log.finish(&cluster).unwrap();
    let commits = commits(new.pg_bin(), &directories).await.unwrap();
    let reigns = reigns(&commits);
    assert!(reigns.len() >= 2, "the witness saw one primary: {reigns:?}");
    let clocks = ClockPair::read();
    let of_old_from = |ms| {
        let from_us = clocks.wall_us_at(ms);
        let is_late = |c: &&Commit| c.timeline == reigns[0].timeline && c.at_us >= from_us;
        commits.iter().filter(is_late).count()
    };
    println!("{} commits after the thaw", of_old_from(thawed_ms));
    assert_eq!(of_old_from(thawed_ms + FENCE_LIMIT_MS), 0);
    let by_old = written.acks.iter().filter(|ack| ack.node == old.name());
    let late: Vec<_> = by_old
        .filter(|ack| ack.at_ms > thawed_ms + FENCE_LIMIT_MS + READ_LATE_MS)
        .collect();
    assert_eq!(late, Vec::<&Ack>::new());
    // Rows that were on their way to the standbys at the freeze may be lost, older ones not.
    let lost_until = |ms| {
        let before = |ack: &&Ack| ack.at_ms < ms;
        let acks: Vec<Ack> = written.acks.iter().filter(before).cloned().collect();
        lost(&acks, &surviving)
    };
    let (at_freeze, all) = (lost_until(thawed_ms), lost(&written.acks, &surviving));
    println!("{all} acknowledged rows lost, {at_freeze} of them of the freeze");
    assert_eq!(lost_until(frozen_ms - ON_THEIR_WAY_MS), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_sigterm_on_the_primary_hands_over_and_loses_nothing() {
    let cluster = Cluster::builder().ttl(10).start().await.unwrap();
    let old = cluster.wait_streaming(2, LIMIT).await.unwrap();
    let writers = Writers::start(&cluster, old).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    old.signal_agent(Signal::SIGTERM).unwrap();
    until(|| async {
        cluster
            .primary()
            .await
            .is_some_and(|p| p.name() != old.name())
    })
    .await;
    until(|| async { old.agent_pid().is_none() && old.server_pids().is_empty() }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let new = cluster.wait_primary(LIMIT).await.unwrap();
    let first = writers.first_seq();
    let written = writers.stop().await;
    let surviving = surviving(new, first).await.unwrap();
    let lost = lost(&written.acks, &surviving);
    assert_eq!(lost, 0, "acknowledged rows were lost in a hand-over");
    old.start_agent().unwrap();
    cluster.wait_streaming(2, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_detach_and_restart_leave_the_server_running_and_no_write_fails() {
    let cluster = Cluster::builder().ttl(10).start().await.unwrap();
    let primary = cluster.wait_streaming(2, LIMIT).await.unwrap();
    let postmaster = primary.postmaster_pid();
    let writers = Writers::start(&cluster, primary).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = boot_ms();
    primary.signal_agent(Signal::SIGUSR1).unwrap();
    until(|| async { primary.agent_pid().is_none() }).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    primary.start_agent().unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let ended = boot_ms();
    let written = writers.stop().await;
    let failed =
        spilo_benches::analysis::failed_writes(&written.failures, primary.name(), begun, ended);
    assert_eq!(failed, 0);
    assert_eq!(
        primary.postmaster_pid(),
        postmaster,
        "the server was restarted"
    );
    let now = cluster.wait_primary(LIMIT).await.unwrap();
    assert_eq!(now.name(), primary.name());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_journal_of_a_failover_replays_and_is_explained() {
    let cluster = Cluster::builder().nodes(2).ttl(3).start().await.unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let other = |node: &&Node| node.name() != primary.name();
    let standby = cluster.nodes().iter().find(other).unwrap();
    let program = PathBuf::from(format!("/proc/{}/exe", standby.agent_pid().unwrap()));
    let program = program.read_link().unwrap();
    standby.signal_agent(Signal::SIGUSR1).unwrap();
    until(|| async { standby.agent_pid().is_none() }).await;

    let journal = standby.dir().join("journal");
    let owner = std::fs::metadata(standby.data_dir()).unwrap();
    let mut agent = Command::new(program)
        .arg("--journal")
        .arg(&journal)
        .arg(standby.config_file())
        .uid(owner.uid())
        .gid(owner.gid())
        .env("SPILO_HARNESS", standby.dir())
        .env("HOME", standby.dir())
        .stderr(std::fs::File::create(standby.dir().join("journaling.log")).unwrap())
        .spawn()
        .unwrap();
    until(|| async { told(&journal, "  Following: ") }).await;
    primary.kill_everything();
    until(|| async { standby.takes_writes().await }).await;
    until(|| async { told(&journal, "  Lead: ") }).await;
    signal(agent.id().cast_signed(), Signal::SIGTERM);
    let ended = tokio::task::spawn_blocking(move || agent.wait());
    assert!(ended.await.unwrap().unwrap().success());

    let said = explain(&journal, &[]);
    println!("{said}");
    for rule in ["Following", "Acquire", "Promote", "Lead", "Stopped"] {
        assert!(
            said.contains(&format!("  {rule}: ")),
            "{rule} is not in\n{said}"
        );
    }
    let followed = said.lines().find(|line| line.contains("  Following: "));
    let at = followed.unwrap().split_whitespace().next().unwrap();
    let facts = explain(&journal, &["--at", at]);
    assert!(
        facts.contains("\n  server        a streaming standby at "),
        "{facts}"
    );
    assert!(explain(&journal, &["--all"]).contains("  < PostgreSQL is a primary at "));
    let mode = std::fs::metadata(&journal).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Returns whether a journal that is being written tells of something yet.
fn told(journal: &Path, what: &str) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_explain"))
        .arg(journal)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).contains(what)
}

/// Has a journal explained, which must replay.
fn explain(journal: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_explain"))
        .args(arguments)
        .arg(journal)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let erred = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{erred}{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f32_a_rewind_whose_source_dies_ends_in_a_healthy_replica() {
    // What the standbys do not have may be known of when the primary dies: that is not at issue.
    let lag = json!(1_u32 << 30);
    let cluster = Cluster::builder().ttl(3);
    let cluster = cluster.dcs("maximum_lag_on_failover", lag).start().await;
    let cluster = cluster.unwrap();
    let old = cluster.wait_streaming(2, LIMIT).await.unwrap();
    // Blocks of which every one is changed where no standby sees it: so much to copy that the source
    // can be caught at it.
    let fill = "CREATE TABLE diverged AS \
         SELECT n, repeat('x', 500) AS t FROM generate_series(1, 100000) n";
    old.query_texts(fill).await.unwrap();
    cluster.wait_streaming(2, LIMIT).await.unwrap();
    // Rows that no standby has: the standbys are frozen while they are written.
    for node in cluster.nodes().iter().filter(|n| n.name() != old.name()) {
        for pid in node.server_pids() {
            signal(pid, Signal::SIGSTOP);
        }
    }
    old.query_texts("UPDATE diverged SET n = -n").await.unwrap();
    old.kill_everything();
    for node in cluster.nodes().iter().filter(|n| n.name() != old.name()) {
        for pid in node.server_pids() {
            signal(pid, Signal::SIGCONT);
        }
    }
    until(|| async {
        cluster
            .primary()
            .await
            .is_some_and(|p| p.name() != old.name())
    })
    .await;
    let source = cluster.wait_primary(LIMIT).await.unwrap();
    let client = source.connect("spilo-harness").await.unwrap();
    old.start_agent().unwrap();
    let end = Instant::now() + LIMIT;
    while client.query(COPYING, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < end, "nothing was copied within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rewinds = running("pg_rewind", old.dir());
    source.kill_everything();
    assert!(rewinds > 0, "nothing is rewound");
    until(|| async {
        cluster
            .primary()
            .await
            .is_some_and(|p| p.name() != source.name())
    })
    .await;
    source.start_agent().unwrap();
    cluster.wait_streaming(2, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_f40_an_agent_killed_while_it_clones_leaves_no_orphan() {
    let cluster = Cluster::builder().ttl(3).start().await.unwrap();
    let primary = cluster.wait_streaming(2, LIMIT).await.unwrap();
    // Enough to copy that the copy is under way for a while.
    let table = "CREATE TABLE bulk (t text)";
    primary.query_texts(table).await.unwrap();
    // By parts, each of which a busy machine writes within the time of one query.
    for _ in 0..6 {
        let fill =
            "INSERT INTO bulk SELECT repeat(md5(n::text), 40) FROM generate_series(1, 50000) n";
        primary.query_texts(fill).await.unwrap();
    }
    let node = cluster
        .nodes()
        .iter()
        .find(|n| n.name() != primary.name())
        .unwrap();
    for pause in [150_u64, 450, 900] {
        node.kill_everything();
        std::fs::remove_dir_all(node.data_dir()).unwrap();
        node.start_agent().unwrap();
        until(|| async { node.data_dir().exists() && running("pg_basebackup", node.dir()) > 0 })
            .await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        node.signal_agent(Signal::SIGKILL).unwrap();
        until(|| async { running("pg_basebackup", node.dir()) == 0 }).await;
        let slots = "SELECT slot_name FROM pg_replication_slots WHERE temporary AND active";
        until(|| async { primary.query_texts(slots).await.is_ok_and(|s| s.is_empty()) }).await;
        node.start_agent().unwrap();
        cluster
            .wait_streaming(2, Duration::from_secs(60))
            .await
            .unwrap();
    }
}

/// Counts the processes of a program that work for a node.
fn running(program: &str, dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let processes = spilo_benches::procs::all();
    let lines = processes.iter().map(|process| &process.command);
    lines
        .filter(|line| line.contains(program) && line.contains(dir.as_ref()))
        .count()
}

fn signal(pid: i32, signal: Signal) {
    // A process that has ended in the meantime needs no signal.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap_or_default();
}

async fn until<F: Future<Output = bool>>(done: impl Fn() -> F) {
    let limit = Instant::now() + LIMIT;
    while !done().await {
        assert!(Instant::now() < limit, "not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Finds the session in which pg_rewind reads its source's blocks.
const COPYING: &str = "SELECT pid FROM pg_stat_activity \
     WHERE usename = 'rewinder' AND query LIKE '%pg_read_binary_file(path%'";
/// How long a fence may take by default.
const FENCE_LIMIT_MS: u64 = 250;
/// How long after the commit a writer on a busy machine reads the acknowledgement, at most.
const READ_LATE_MS: u64 = 1000;
/// By how much a standby is behind on a busy machine, at most.
const ON_THEIR_WAY_MS: u64 = 3000;
/// Far more than a healthy machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(90);
