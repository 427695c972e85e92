//! What happens, act by act.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::stage::{Stage, reason};
use crate::store::Store;
use crate::told::Decision;
use crate::writer::{Ledger, Survivors, Writer, survivors};

/// Plays it all; with `--hold` it does not end by itself.
pub(crate) async fn play(stage: &mut Stage<'_>) -> Result<()> {
    begin(stage).await?;
    let failover = fail_over(stage).await?;
    let back = bring_back(stage, &failover).await?;
    stage.watch(seconds(stage.arguments.seconds)).await?;
    count(stage, &failover, back).await?;
    if stage.arguments.hold {
        hold(stage).await
    } else {
        Ok(())
    }
}

/// What the kill came to.
struct Failover {
    /// The node that was killed.
    old: usize,
    /// The node that took over.
    new: usize,
    /// The decision by which it took the lock.
    decision: Decision,
    /// When the old one was killed.
    killed: Instant,
    /// How much of the old one's permission to write was left at the kill.
    lease_left: Duration,
}

async fn begin(stage: &mut Stage<'_>) -> Result<()> {
    if stage.arguments.etcd {
        stage.tell("starting etcd");
        stage.store = Store::etcd(stage.dir).await?;
    }
    let text = format!(
        "starting {} nodes with PostgreSQL of {} on {}, in {}; the lease lasts {} s",
        stage.nodes.len(),
        stage.common.bin_dir.display(),
        stage.store.described(),
        stage.dir.display(),
        stage.arguments.ttl
    );
    stage.tell(&text);
    for index in 0..stage.nodes.len() {
        stage.start(index).await?;
    }
    let replicas = stage.nodes.len() - 1;
    stage
        .until(
            "one primary and streaming replicas",
            limit(stage, START),
            |stage| stage.primary().is_some() && stage.streaming() == replicas,
        )
        .await?;
    stage.tell("the cluster is complete; a client begins to write a row every 10 ms");
    stage.writer = Some(Writer::start(
        stage.targets(),
        stage.common.password.clone(),
    ));
    stage
        .until("a first row", limit(stage, START), |stage| {
            last_writer(stage).is_some()
        })
        .await?;
    stage.watch(seconds(stage.arguments.seconds)).await
}

async fn fail_over(stage: &mut Stage<'_>) -> Result<Failover> {
    let old = stage.primary().context("there is no primary to kill")?;
    let lease_left = stage.nodes[old].permission_left().unwrap_or_default();
    let name = stage.nodes[old].name.clone();
    let told = stage.told.since(0).len();
    let killed = Instant::now();
    let pid = stage.nodes[old].kill().await?;
    let text = format!(
        "KILLED {name}: its postmaster (process {pid}) with -9, and its agent with it. Its \
         permission to write lasts {:.1} s more, and nobody could know that it is gone: the others \
         wait until the lease of {} s has ended. That bounds the gap",
        lease_left.as_secs_f64(),
        stage.arguments.ttl
    );
    stage.tell(&text);
    stage
        .until(
            "another primary that takes rows",
            limit(stage, FAILOVER),
            |stage| {
                last_writer(stage).is_some_and(|(at, node)| {
                    at > killed
                        && stage
                            .primary()
                            .is_some_and(|new| stage.nodes[new].name.as_str() == node)
                })
            },
        )
        .await?;
    let new = stage.primary().context("the new primary is gone again")?;
    let winner = stage.nodes[new].name.to_string();
    let decision = stage
        .told
        .since(told)
        .into_iter()
        .rfind(|decision| decision.node == winner && decision.rule == ACQUIRE)
        .with_context(|| format!("{winner} leads and never decided to take the lock"))?;
    let text = format!("{winner} has taken over from {name}: the client writes again");
    stage.tell(&text);
    Ok(Failover {
        old,
        new,
        decision,
        killed,
        lease_left,
    })
}

async fn bring_back(stage: &mut Stage<'_>, failover: &Failover) -> Result<Duration> {
    stage.watch(seconds(stage.arguments.seconds)).await?;
    let name = stage.nodes[failover.old].name.clone();
    stage.tell(&format!(
        "a new agent starts for {name}, on the data that the kill left behind"
    ));
    let started = Instant::now();
    stage.start(failover.old).await?;
    let replicas = stage.nodes.len() - 1;
    let old = failover.old;
    stage
        .until(
            "every replica streaming, the old primary among them",
            limit(stage, REJOIN),
            |stage| stage.is_streaming(old) && stage.streaming() == replicas,
        )
        .await?;
    Ok(started.elapsed())
}

async fn count(stage: &mut Stage<'_>, failover: &Failover, back: Duration) -> Result<()> {
    let writer = stage.writer.take().context("nobody has written")?;
    let ledger = writer.stop().await;
    let survivors = survivors(&stage.targets(), &stage.common.password).await?;
    stage.screen.leave();
    let (gap, resumed) = ledger
        .longest
        .context("fewer than two rows were acknowledged")?;
    let [old, new] = [failover.old, failover.new].map(|index| stage.nodes[index].name.clone());
    let lost = lost(&ledger, &survivors);
    let acknowledged = ledger.acknowledged.len();
    let survive = acknowledged - lost.len();
    let there = ledger.in_doubt.intersection(&survivors.rows).count();
    stage.screen.say("");
    let mut state = |name, fact: String| stage.screen.state(name, &fact);
    state("who took over", format!("{new}, from {old}"));
    state("why", reason(&failover.decision));
    state("the gap", gap_told(gap, resumed, failover, new.as_str()));
    let bound = format!(
        "the lease of {} s, of which {:.1} s of permission to write were left at the kill; then \
         PostgreSQL's promotion",
        stage.arguments.ttl,
        failover.lease_left.as_secs_f64()
    );
    state("what bounds it", bound);
    let back = back.as_secs_f64();
    state(
        "the old one",
        format!("{old} streamed again {back:.1} s after its agent was started"),
    );
    let (last, in_doubt) = (&survivors.node, ledger.in_doubt.len());
    state(
        "rows",
        format!("{acknowledged} acknowledged; {survive} of them on {last} in the end"),
    );
    state(
        "in doubt",
        format!("{in_doubt} sent and never answered; {there} of them there"),
    );
    if !lost.is_empty() {
        state("lost", explained(&lost));
    }
    stage.screen.say(&format!(
        "done: {acknowledged} rows acknowledged, {survive} survived, {} lost; {} ms without a write; \
         {new} took over from {old}",
        lost.len(),
        gap.as_millis()
    ));
    Ok(())
}

/// Says how long the gap was, and of what it is made if it is the one that the kill made.
fn gap_told(gap: Duration, resumed: Instant, failover: &Failover, new: &str) -> String {
    let told = format!("{} ms without an acknowledged row", gap.as_millis());
    let acquired = failover.decision.at;
    if resumed < acquired {
        return format!("{told}, and not by the kill: this machine was busy");
    }
    format!(
        "{told}: {} ms until {new} took the lock, {} ms until it was promoted and acknowledged a row",
        (acquired - failover.killed).as_millis(),
        (resumed - acquired).as_millis()
    )
}

/// Returns the acknowledged rows that are not there.
fn lost(ledger: &Ledger, survivors: &Survivors) -> BTreeSet<i64> {
    ledger
        .acknowledged
        .difference(&survivors.rows)
        .copied()
        .collect()
}

fn explained(lost: &BTreeSet<i64>) -> String {
    let shown: Vec<String> = lost.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if lost.len() > SHOWN { ", …" } else { "" };
    format!(
        "rows {}{more}. Replication is asynchronous here: the primary acknowledges a row before a \
         replica has it, and what it had not sent yet died with it",
        shown.join(", ")
    )
}

pub(crate) async fn hold(stage: &mut Stage<'_>) -> Result<()> {
    let password = stage.common.password.clone();
    let ports: Vec<String> = stage
        .nodes
        .iter()
        .map(|node| node.postgres_port().to_string())
        .collect();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let mut lines = vec![
        String::new(),
        "The cluster stays until Ctrl-C. To look at it:".to_owned(),
        format!("  export PGPASSWORD={password}"),
        format!(
            "  psql 'host={hosts} port={} user=postgres target_session_attrs=read-write'",
            ports.join(",")
        ),
    ];
    for node in &stage.nodes {
        let (name, port) = (&node.name, node.postgres_port());
        lines.push(format!(
            "  psql -h 127.0.0.1 -p {port} -U postgres postgres    # {name}"
        ));
    }
    for node in &stage.nodes {
        lines.push(format!(
            "  curl -s {}/patroni    # {}",
            node.api_url(),
            node.name
        ));
    }
    let Some(primary) = stage.primary() else {
        bail!("the primary is gone")
    };
    let (url, name) = (
        stage.nodes[primary].api_url(),
        stage.nodes[primary].name.clone(),
    );
    lines.push(format!("  curl -s {url}/cluster"));
    lines.push(format!(
        "  curl -s {url}/switchover -d '{{\"leader\": \"{name}\"}}'"
    ));
    if let Some(endpoint) = stage.store.endpoint() {
        lines.push(format!(
            "  ETCDCTL_API=3 etcdctl --endpoints={endpoint} get --prefix /service/demo"
        ));
    }
    stage.screen.say(&lines.join("\n"));
    stage.hold();
    loop {
        stage.watch(Duration::from_secs(3600)).await?;
    }
}

/// Returns when the last row was acknowledged, and by whom.
fn last_writer(stage: &Stage<'_>) -> Option<(Instant, String)> {
    stage
        .writer
        .as_ref()
        .and_then(|writer| writer.ledger().last.clone())
}

/// Returns how long a step may take: some of them wait for leases to end.
pub(crate) fn limit(stage: &Stage<'_>, work: Duration) -> Duration {
    work + 3 * seconds(stage.arguments.ttl)
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

/// The rule by which a node takes a lock that nobody holds.
const ACQUIRE: &str = "Acquire";

/// How many of the lost rows are named.
const SHOWN: usize = 20;

/// Several times what it takes on a small machine with a slow disk.
const START: Duration = Duration::from_secs(90);
const FAILOVER: Duration = Duration::from_secs(60);
const REJOIN: Duration = Duration::from_secs(90);
