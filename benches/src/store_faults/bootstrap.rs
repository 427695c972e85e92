//! The node that bootstraps a new cluster dies, and the cluster comes to be all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::StoreRun;
use crate::cluster::Cluster;
use crate::node::{Door, Node};
use crate::witness::{ClusterLog, Commit, by_system, commits, reigns, two_writers};

/// When the bootstrapping node is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    /// So long after the start of the agents.
    After(Duration),
    /// As soon as a step is seen to be done.
    At(Step),
}

/// What can be seen of a bootstrap, in the order of its steps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// A node has the lock.
    Leader,
    /// The key `initialize` is there, and empty.
    Claim,
    /// A data directory has its `PG_VERSION`.
    DataDirectory,
    /// The key `initialize` names the new cluster.
    SystemId,
}

/// Starts three nodes from nothing, kills the bootstrapping one at another moment with each run,
/// and starts it again.
pub(super) async fn once(ttl: u64, number: usize) -> Result<StoreRun> {
    let builder = Cluster::builder()
        .ttl(ttl)
        .initdb(json!({ "wal-segsize": "1" }));
    let cluster = builder.without_starting().start().await?;
    let log = ClusterLog::start(&cluster, "wal");
    let mut writers = JoinSet::new();
    for node in cluster.nodes() {
        writers.spawn(write_to(node.door()));
    }
    cluster.start_agents()?;
    let moment = Moment::of_run(number);
    moment.wait(&cluster).await?;
    let victim = bootstrapper(&cluster)
        .await
        .context("a cluster has nodes")?;
    victim.kill_everything();
    sleep(Duration::from_secs(1)).await;
    victim.start_agent()?;
    let primary = cluster.wait_streaming(2, Duration::from_secs(120)).await;
    let primary = primary.with_context(|| format!("killed {} {moment}", victim.name()))?;
    // What the last one to write does is seen, too.
    sleep(Duration::from_millis(500)).await;
    let mut run = StoreRun::default();
    judge_nodes(&cluster, &mut run).await?;
    writers.shutdown().await;
    let directories = log.finish(&cluster)?;
    let sorted = cluster.dir().join("wal-by-system");
    let mut logs = BTreeMap::new();
    for (system, directories) in by_system(&directories, &sorted)? {
        logs.insert(system, commits(primary.pg_bin(), &directories).await?);
    }
    let own = primary
        .query_texts("SELECT system_identifier FROM pg_control_system()")
        .await?;
    let own = own.first().context("no answer")?.parse()?;
    run.violations.extend(wrong_writers(&logs, own));
    let (all, mine) = (logs.len(), logs.get(&own).map_or(0, Vec::len));
    eprintln!(
        "killed {} {moment}; {all} logs, {mine} commits in that of the cluster",
        victim.name()
    );
    if !run.violations.is_empty() {
        eprintln!("  logs are kept in {}", cluster.keep().display());
    }
    Ok(run)
}

/// Adds what is wrong with the cluster that came to be.
async fn judge_nodes(cluster: &Cluster, run: &mut StoreRun) -> Result<()> {
    let mut identifiers = BTreeSet::new();
    let mut writable = 0;
    for node in cluster.nodes() {
        identifiers.extend(
            node.query_texts("SELECT system_identifier FROM pg_control_system()")
                .await?,
        );
        writable += usize::from(node.takes_writes().await);
    }
    if identifiers.len() != 1 {
        run.violations.push(format!(
            "{} clusters came to be: {identifiers:?}",
            identifiers.len()
        ));
    }
    if writable != 1 {
        run.violations.push(format!("{writable} nodes take writes"));
    }
    Ok(())
}

/// Returns what is wrong with the commits of all servers that there were, by system identifier:
/// two writers in one cluster, or two clusters at once.
///
/// A bootstrap that was broken off leaves a log of its own, from its initdb on, which must have
/// ended before the next one begins.
fn wrong_writers(logs: &BTreeMap<u64, Vec<Commit>>, own: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    if logs.get(&own).is_none_or(Vec::is_empty) {
        wrong.push("the log holds no commit: the witness saw nothing".to_owned());
    }
    let mut spans = Vec::new();
    for (system, commits) in logs {
        wrong.extend(two_writers(commits));
        let reigns = reigns(commits);
        let first = reigns.iter().map(|reign| reign.first_us).min();
        let last = reigns.iter().map(|reign| reign.last_us).max();
        spans.extend(first.zip(last).map(|(first, last)| (first, last, system)));
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let ((_, last, before), (first, _, after)) = (pair[0], pair[1]);
        if first <= last {
            let ms = (last - first) / 1000;
            wrong.push(format!(
                "{before} was written to {ms} ms into the life of {after}"
            ));
        }
    }
    wrong
}

/// Writes to a node whenever it lets anybody, from the first moment of its server on.
async fn write_to(door: Door) {
    const ROW: &str = "CREATE TABLE IF NOT EXISTS early (at timestamptz); \
         INSERT INTO early VALUES (clock_timestamp())";
    loop {
        if let Ok((client, _)) = door.open("spilo-early").await {
            while client.batch_execute(ROW).await.is_ok() {
                sleep(PACE).await;
            }
        }
        sleep(PACE).await;
    }
}

/// Returns the node that has most of a cluster: first one with a server, then one with files, then
/// the one with the lock, then any.
async fn bootstrapper(cluster: &Cluster) -> Option<&Node> {
    if let Some(primary) = cluster.primary().await {
        return Some(primary);
    }
    let nodes = cluster.nodes();
    let with = |has: &dyn Fn(&&Node) -> bool| nodes.iter().find(has);
    let made = with(&|node| node.postmaster_pid().is_some())
        .or_else(|| with(&|node| node.data_dir().exists()));
    if made.is_some() {
        return made;
    }
    let leader = key(cluster, "leader").await.ok().flatten();
    leader
        .and_then(|name| cluster.node(&name))
        .or_else(|| nodes.first())
}

impl Moment {
    /// Returns the moment of a run, counted from 1: a little later with each odd one, and a step
    /// further with each even one.
    fn of_run(number: usize) -> Self {
        let steps = [
            Step::Leader,
            Step::Claim,
            Step::DataDirectory,
            Step::SystemId,
        ];
        if number.is_multiple_of(2) {
            return Self::At(steps[(number / 2 - 1) % steps.len()]);
        }
        Self::After(LATER * u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Waits for the moment.
    async fn wait(self, cluster: &Cluster) -> Result<()> {
        let step = match self {
            Self::After(delay) => {
                sleep(delay).await;
                return Ok(());
            }
            Self::At(step) => step,
        };
        let end = Instant::now() + Duration::from_secs(30);
        while !step.is_done(cluster).await? {
            if Instant::now() > end {
                bail!(
                    "not {self} within 30 s; logs in {}",
                    cluster.keep().display()
                );
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Step {
    async fn is_done(self, cluster: &Cluster) -> Result<bool> {
        let has_version = |node: &Node| node.data_dir().join("PG_VERSION").exists();
        Ok(match self {
            Self::Leader => key(cluster, "leader").await?.is_some(),
            Self::Claim => key(cluster, "initialize").await?.is_some(),
            Self::DataDirectory => cluster.nodes().iter().any(has_version),
            Self::SystemId => key(cluster, "initialize")
                .await?
                .is_some_and(|system| !system.is_empty()),
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(delay) => write!(f, "after {delay:?}"),
            Self::At(Step::Leader) => f.write_str("when it had the lock"),
            Self::At(Step::Claim) => f.write_str("when it had claimed the bootstrap"),
            Self::At(Step::DataDirectory) => f.write_str("when it had a data directory"),
            Self::At(Step::SystemId) => f.write_str("when the store knew the cluster"),
        }
    }
}

async fn key(cluster: &Cluster, name: &str) -> Result<Option<String>> {
    let path = format!("/service/{}/{name}", cluster.scope());
    cluster.etcd().get(&path).await
}

/// What the kill comes later by, each time: twenty runs cover initdb, the first start, and the
/// clones.
const LATER: Duration = Duration::from_millis(250);
/// Often enough for a row in every state that takes any.
const PACE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn log(moments: &[u64]) -> Vec<Commit> {
        let commit = |(lsn, at_us): (usize, &u64)| Commit {
            timeline: 1,
            lsn: lsn as u64,
            at_us: *at_us,
        };
        moments.iter().enumerate().map(commit).collect()
    }

    #[test]
    fn a_bootstrap_that_was_broken_off_before_the_next_began_is_no_second_writer() {
        let logs = BTreeMap::from([(7, log(&[10, 20])), (5, log(&[30, 40]))]);
        assert_eq!(wrong_writers(&logs, 5), Vec::<String>::new());
    }

    #[test]
    fn two_clusters_at_once_are_two_writers() {
        let logs = BTreeMap::from([(7, log(&[10, 3000])), (5, log(&[1000, 4000]))]);
        let wrong = ["7 was written to 2 ms into the life of 5"];
        assert_eq!(wrong_writers(&logs, 5), wrong);
    }

    #[test]
    fn a_log_without_commits_shows_nothing() {
        let logs = BTreeMap::from([(7, log(&[10]))]);
        let wrong = ["the log holds no commit: the witness saw nothing"];
        assert_eq!(wrong_writers(&logs, 5), wrong);
    }

    #[test]
    fn twenty_runs_take_every_step_and_moments_up_to_five_seconds() {
        let moments: Vec<Moment> = (1..=20).map(Moment::of_run).collect();
        for step in [
            Step::Leader,
            Step::Claim,
            Step::DataDirectory,
            Step::SystemId,
        ] {
            assert!(moments.contains(&Moment::At(step)), "{step:?}");
        }
        assert_eq!(moments[0], Moment::After(LATER));
        assert_eq!(moments[18], Moment::After(LATER * 19));
    }
}
