//! Faults of the store: it goes away, comes back, or loses what it knew.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::analysis::{failed_writes, longest_gap_ms, lost};
use crate::chaos::run::ON_STANDBYS;
use crate::clock::boot_ms;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::store::{Store, StoreKind};
use crate::watch::LeaseWatch;
use crate::witness::{ClusterLog, Commit, commits, two_writers};
use crate::writers::{Writers, Written, start_loops, stop_loops, surviving};

mod bootstrap;
mod fault;
mod judge;

pub use fault::StoreFault;
use fault::shortest;
use judge::Outage;

/// A fault of the store, how often, and how long the outage is.
#[derive(Clone, Debug)]
pub struct StorePlan {
    fault: StoreFault,
    store: StoreKind,
    ttl: u64,
    repeat: usize,
    outage: Duration,
}

/// What the runs of a plan showed.
#[derive(Clone, Debug, Serialize)]
pub struct StoreReport {
    /// The fault.
    pub fault: StoreFault,
    /// The lease in seconds.
    pub ttl: u64,
    /// The runs, in order.
    pub runs: Vec<StoreRun>,
}

/// What one run showed; while a cluster only comes to be, most of it is not measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreRun {
    /// The longest time without an acknowledged write.
    pub gap_ms: Option<u64>,
    /// Writes that failed on the node that was primary at the fault.
    pub failed_writes: Option<usize>,
    /// Acknowledged rows that the final primary does not hold.
    pub lost: Option<usize>,
    /// Whether another node wrote.
    pub failed_over: Option<bool>,
    /// Everything that must not happen and did.
    pub violations: Vec<String>,
}

/// Those who watch a run: writers, leases, and copies of every node's WAL.
struct Watch<'a> {
    cluster: &'a Cluster,
    writers: Writers,
    leases: LeaseWatch,
    log: ClusterLog,
}

/// What they saw.
struct Seen {
    written: Written,
    commits: Vec<Commit>,
    lost: usize,
    end_ms: u64,
}

impl StorePlan {
    /// Plans one run against `spilo-agent`, with an outage of one minute where the fault is all of
    /// the store, which is etcd if the fault is not one of another. The lease is longer where the
    /// store has no shorter ones.
    pub fn new(fault: StoreFault, ttl: u64) -> Self {
        let store = fault.own_store();
        Self {
            fault,
            store,
            ttl: ttl.max(shortest(store)),
            repeat: 1,
            outage: Duration::from_secs(60),
        }
    }

    /// Sets which store it is done to.
    #[must_use]
    pub fn store(mut self, store: StoreKind) -> Self {
        self.store = store;
        self.ttl = self.ttl.max(shortest(store));
        self
    }

    /// Sets how often the fault is run.
    #[must_use]
    pub fn repeat(mut self, repeat: usize) -> Self {
        self.repeat = repeat;
        self
    }

    /// Sets how long all of the store is gone.
    #[must_use]
    pub fn outage(mut self, outage: Duration) -> Self {
        self.outage = outage;
        self
    }

    /// Starts a cluster, runs the fault as often as planned, and makes the cluster whole after each
    /// time.
    ///
    /// # Errors
    ///
    /// Fails where the cluster does not start or does not become whole again; logs are then kept.
    pub async fn run(&self) -> Result<StoreReport> {
        let mut runs = Vec::new();
        if self.fault == StoreFault::BootstrapKilled {
            for number in 1..=self.repeat {
                runs.push(bootstrap::once(self.ttl, number).await?);
                self.report_run(number, runs.last());
            }
            return Ok(StoreReport {
                fault: self.fault,
                ttl: self.ttl,
                runs,
            });
        }
        let members = if self.fault.takes_three() { 3 } else { 1 };
        let builder = Cluster::builder()
            .ttl(self.ttl)
            .store(self.store)
            .store_members(members)
            .namespaces(self.fault.takes_namespaces())
            .initdb(json!({ "wal-segsize": "1" }));
        let cluster = builder.start().await?;
        for number in 1..=self.repeat {
            let run = self.once(&cluster, number).await;
            let run = run
                .with_context(|| format!("{}; logs in {}", self.fault, cluster.keep().display()))?;
            if !run.violations.is_empty() {
                eprintln!("  logs are kept in {}", cluster.keep().display());
            }
            runs.push(run);
            self.report_run(number, runs.last());
        }
        Ok(StoreReport {
            fault: self.fault,
            ttl: self.ttl,
            runs,
        })
    }

    fn report_run(&self, number: usize, run: Option<&StoreRun>) {
        if let Some(run) = run {
            eprintln!(
                "{}, ttl {}, run {number}/{}: {run}",
                self.fault, self.ttl, self.repeat
            );
        }
    }

    async fn once(&self, cluster: &Cluster, number: usize) -> Result<StoreRun> {
        let old = cluster
            .wait_streaming(cluster.nodes().len() - 1, Duration::from_secs(120))
            .await?;
        let watch = Watch::start(cluster, old, number).await?;
        sleep(Duration::from_secs(1)).await;
        let fault_ms = boot_ms();
        let member = self.inject(cluster, old, number).await?;
        let done_ms = boot_ms();
        sleep(self.lasts()).await;
        let named = watch.leases.all();
        let outage = Outage {
            fault_ms,
            done_ms,
            restored_ms: boot_ms(),
            named: named
                .into_iter()
                .filter(|it| it.node == old.name())
                .collect(),
        };
        self.restore(cluster, old, member).await?;
        let primary = cluster
            .wait_streaming(cluster.nodes().len() - 1, Duration::from_secs(180))
            .await?;
        // Whatever a late lease would still do, it does within another ttl.
        sleep(Duration::from_secs(self.ttl + 1)).await;
        stop_loops(primary).await.ok();
        let seen = watch.finish().await?;
        let elsewhere = seen
            .written
            .acks
            .iter()
            .any(|ack| ack.node != old.name() && ack.at_ms > fault_ms);
        let mut run = StoreRun {
            gap_ms: Some(longest_gap_ms(
                &seen.written.acks,
                fault_ms.saturating_sub(500),
                seen.end_ms,
            )),
            failed_writes: Some(failed_writes(
                &seen.written.failures,
                old.name(),
                fault_ms,
                seen.end_ms,
            )),
            lost: Some(seen.lost),
            failed_over: Some(elsewhere),
            violations: two_writers(&seen.commits),
        };
        if seen.commits.is_empty() {
            run.violations
                .push("the logs hold no commit: the witness saw nothing".to_owned());
        }
        if self.fault == StoreFault::DomainGone && !told_of_denial(cluster)? {
            run.violations
                .push("not every agent was told that the domain is denied".to_owned());
        }
        match self.fault {
            StoreFault::AllGoneStandbyDead => {
                outage.judge_step_down(&mut run, &seen.commits, self.ttl);
            }
            _ => self.judge_continuity(&mut run, outage.is_lived_by_consent()),
        }
        Ok(run)
    }

    /// Does the fault and returns the member of the store that it was done to.
    async fn inject(&self, cluster: &Cluster, old: &Node, number: usize) -> Result<usize> {
        let (store, scope) = (cluster.store(), cluster.scope());
        let mut member = 0;
        match self.fault {
            StoreFault::Stopped | StoreFault::AllGone => store.stop(0).await,
            StoreFault::Killed => store.kill(0).await,
            StoreFault::OneOfThree => {
                let leader = store.leader().await?;
                let other = usize::from(number.is_multiple_of(2));
                member = (leader + other) % store.members();
                store.kill(member).await;
            }
            StoreFault::MinorityCut
            | StoreFault::FollowerCut
            | StoreFault::RecordsChanged
            | StoreFault::DomainGone => member = self.hide(store, number).await?,
            StoreFault::FrozenBriefly | StoreFault::FrozenLong => store.freeze(),
            StoreFault::SessionDestroyed => {
                let leader = format!("service/{scope}/leader");
                let consul = store.consul().context("only Consul has sessions to end")?;
                consul.destroy_session_of(&leader).await?;
            }
            StoreFault::AllGoneStandbyDead => {
                standby(cluster, old)?.signal_agent(Signal::SIGKILL)?;
                store.kill(0).await;
            }
            StoreFault::LeaderKeyDeleted => store.delete(scope, "leader").await?,
            StoreFault::PrefixDeleted => store.delete_all(scope).await?,
            StoreFault::BootstrapKilled => {}
        }
        Ok(member)
    }

    /// Returns how long the effect of a fault that is done takes, or is watched.
    fn lasts(&self) -> Duration {
        match self.fault {
            StoreFault::Stopped => Duration::from_secs(5),
            StoreFault::OneOfThree | StoreFault::RecordsChanged => {
                Duration::from_secs(self.ttl + 3)
            }
            StoreFault::MinorityCut
            | StoreFault::FollowerCut
            | StoreFault::SessionDestroyed
            | StoreFault::LeaderKeyDeleted
            | StoreFault::PrefixDeleted => Duration::from_secs(2 * self.ttl),
            StoreFault::DomainGone => self.outage / 2,
            StoreFault::FrozenBriefly => Duration::from_millis(self.ttl * 500),
            StoreFault::FrozenLong => Duration::from_secs(self.ttl * 3),
            StoreFault::AllGone => self.outage,
            StoreFault::AllGoneStandbyDead => Duration::from_secs(2 * self.ttl + 3),
            StoreFault::Killed | StoreFault::BootstrapKilled => Duration::ZERO,
        }
    }

    /// Takes one of three members away from others that go on, and returns it.
    async fn hide(&self, store: &Store, number: usize) -> Result<usize> {
        let leader = store.leader().await?;
        let nth = |nth: usize| (leader + nth) % store.members();
        let is_even = usize::from(number.is_multiple_of(2));
        Ok(match self.fault {
            StoreFault::FollowerCut => {
                let member = nth(1 + is_even);
                store.cut_from_others(member).await?;
                member
            }
            StoreFault::RecordsChanged => {
                let member = (store.first_in_dns()? + number - 1) % store.members();
                let named = (0..store.members()).filter(|named| *named != member);
                store.name_members(&named.collect::<Vec<_>>()).await?;
                // Whoever learns of the records before the member is gone does not notice its end.
                sleep(Duration::from_secs(2)).await;
                store.kill(member).await;
                member
            }
            StoreFault::DomainGone => {
                store.name_members(&[]).await?;
                sleep(self.outage / 2).await;
                let member = store.first_in_dns()?;
                store.kill(member).await;
                member
            }
            _ => {
                let member = nth(is_even);
                store.cut(member).await?;
                member
            }
        })
    }

    async fn restore(&self, cluster: &Cluster, old: &Node, member: usize) -> Result<()> {
        let store = cluster.store();
        match self.fault {
            StoreFault::Stopped
            | StoreFault::Killed
            | StoreFault::OneOfThree
            | StoreFault::AllGone => store.restart(member)?,
            StoreFault::MinorityCut => store.heal(member).await?,
            StoreFault::FollowerCut => store.heal_to_others(member).await?,
            StoreFault::RecordsChanged | StoreFault::DomainGone => {
                store.restart(member)?;
                let all: Vec<usize> = (0..store.members()).collect();
                store.name_members(&all).await?;
            }
            StoreFault::FrozenBriefly | StoreFault::FrozenLong => store.thaw(),
            StoreFault::AllGoneStandbyDead => {
                store.restart(0)?;
                standby(cluster, old)?.start_agent()?;
            }
            StoreFault::SessionDestroyed
            | StoreFault::LeaderKeyDeleted
            | StoreFault::PrefixDeleted
            | StoreFault::BootstrapKilled => {}
        }
        // Consul asks one that was lost every half a minute, by chance, whether it is back.
        store.wait_healthy(Duration::from_secs(120)).await
    }

    /// Adds what a fault that must go unnoticed has done.
    fn judge_continuity(&self, run: &mut StoreRun, by_consent: bool) {
        let unnoticed = match self.fault {
            StoreFault::Stopped
            | StoreFault::Killed
            | StoreFault::OneOfThree
            | StoreFault::MinorityCut
            | StoreFault::FollowerCut
            | StoreFault::RecordsChanged
            | StoreFault::DomainGone
            | StoreFault::FrozenBriefly
            | StoreFault::FrozenLong
            | StoreFault::AllGone => true,
            StoreFault::SessionDestroyed
            | StoreFault::AllGoneStandbyDead
            | StoreFault::LeaderKeyDeleted
            | StoreFault::PrefixDeleted
            | StoreFault::BootstrapKilled => false,
        };
        if unnoticed && run.failed_over != Some(false) {
            run.violations.push("another node took over".to_owned());
        }
        if unnoticed && run.failed_writes != Some(0) {
            run.violations
                .push(format!("{} writes failed", shown(run.failed_writes)));
        }
        if self.fault == StoreFault::AllGone && !by_consent {
            run.violations
                .push("the primary was never seen to go on by consent".to_owned());
        }
    }
}

impl<'a> Watch<'a> {
    async fn start(cluster: &'a Cluster, primary: &Node, number: usize) -> Result<Self> {
        let writers = Writers::start_paced(cluster, primary, ON_STANDBYS).await?;
        start_loops(primary, 1, Duration::from_millis(5)).await?;
        Ok(Self {
            cluster,
            writers,
            leases: LeaseWatch::start(cluster),
            log: ClusterLog::start(cluster, &format!("wal-{number}")),
        })
    }

    async fn finish(self) -> Result<Seen> {
        let first_seq = self.writers.first_seq();
        let end_ms = boot_ms();
        let written = self.writers.stop().await;
        let primary = self.cluster.wait_primary(Duration::from_secs(60)).await?;
        let lost = lost(&written.acks, &surviving(primary, first_seq).await?);
        let directories = self.log.finish(self.cluster)?;
        let commits = commits(primary.pg_bin(), &directories).await?;
        for directory in directories {
            std::fs::remove_dir_all(directory).ok();
        }
        Ok(Seen {
            written,
            commits,
            lost,
            end_ms,
        })
    }
}

impl StoreReport {
    /// Returns everything that must not happen and did, with the number of the run.
    pub fn violations(&self) -> Vec<String> {
        let of_run = |(number, run): (usize, &StoreRun)| -> Vec<String> {
            run.violations
                .iter()
                .map(|what| format!("{}, run {}: {what}", self.fault, number + 1))
                .collect()
        };
        self.runs.iter().enumerate().flat_map(of_run).collect()
    }

    /// Returns the report as a row of [`Self::table_head`].
    pub fn table_row(&self) -> String {
        let worst = |of: fn(&StoreRun) -> Option<u64>| shown(self.runs.iter().filter_map(of).max());
        let failovers = self.runs.iter().filter_map(|run| run.failed_over);
        let failovers = failovers.map(u64::from).reduce(|sum, one| sum + one);
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.fault,
            self.runs.len(),
            worst(|run| run.gap_ms),
            worst(|run| run.failed_writes.map(|writes| writes as u64)),
            shown(failovers),
            worst(|run| run.lost.map(|rows| rows as u64)),
            self.violations().len(),
        )
    }

    /// Returns the head of a table of reports, in Markdown.
    pub fn table_head() -> String {
        "| fault of the store | runs | worst gap, ms | failed writes, most | failovers | \
         rows lost, most | violations |\n\
         |---|---|---|---|---|---|---|"
            .to_owned()
    }
}

impl fmt::Display for StoreRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = match self.failed_over {
            Some(true) => "failed over",
            Some(false) => "no failover",
            None => "failover not measured",
        };
        write!(
            f,
            "gap {} ms, {} writes failed, {} rows lost, {over}",
            shown(self.gap_ms),
            shown(self.failed_writes),
            shown(self.lost)
        )?;
        self.violations
            .iter()
            .try_for_each(|violation| write!(f, "\n  VIOLATION: {violation}"))
    }
}

/// Returns a measure, or a dash for what was not measured.
fn shown<T: fmt::Display>(measure: Option<T>) -> String {
    measure.map_or_else(|| "-".to_owned(), |measure| measure.to_string())
}

/// Returns whether every agent said that DNS denied the domain.
fn told_of_denial(cluster: &Cluster) -> Result<bool> {
    for node in cluster.nodes() {
        let log = std::fs::read_to_string(node.log_file())?;
        if !log.contains("DNS names no endpoint") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn standby<'a>(cluster: &'a Cluster, primary: &Node) -> Result<&'a Node> {
    cluster
        .nodes()
        .iter()
        .rfind(|node| node.name() != primary.name())
        .context("there is no standby")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash_and_no_zero() {
        let report = |run| StoreReport {
            fault: StoreFault::BootstrapKilled,
            ttl: 3,
            runs: vec![run],
        };
        let unmeasured = "| bootstrap killed | 1 | - | - | - | - | 0 |";
        assert_eq!(report(StoreRun::default()).table_row(), unmeasured);
        let measured = StoreRun {
            gap_ms: Some(7),
            failed_writes: Some(0),
            lost: Some(0),
            failed_over: Some(false),
            violations: Vec::new(),
        };
        let all = "| bootstrap killed | 1 | 7 | 0 | 0 | 0 | 0 |";
        assert_eq!(report(measured).table_row(), all);
    }
}
