//! One run of one fault of the guard.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{Fault, Run};
use crate::analysis::{failed_writes, longest_gap_ms, lost};
use crate::chance::Chance;
use crate::clock::{ClockPair, boot_ms};
use crate::cluster::{Cluster, Kind};
use crate::deaf::start_deaf_loop;
use crate::failover::wait_back;
use crate::node::Node;
use crate::procs;
use crate::watch::{LeaseSeen, LeaseWatch, ServerWatch, lease_now};
use crate::witness::{Commit, WalSaver, commits, save_wal, two_writers};
use crate::writers::{Ack, Writers, Written, loop_pids, start_loops, stop_loops};

/// What is remembered of the moment of the fault.
struct Scene<'a> {
    fault: Fault,
    ttl: u64,
    cluster: &'a Cluster,
    old: &'a Node,
    timeline: u32,
    fault_ms: u64,
    observed_ms: u64,
    lease: Option<LeaseSeen>,
    postmaster: Option<i32>,
    guard: Option<i32>,
}

/// Runs a fault once against a whole cluster and leaves it whole again.
pub(super) async fn once(
    fault: Fault,
    ttl: u64,
    cluster: &Cluster,
    chance: &mut Chance,
    number: usize,
) -> Result<Run> {
    let old = cluster
        .wait_streaming(cluster.nodes().len() - 1, Duration::from_secs(120))
        .await?;
    let started = SystemTime::now();
    let timeline = timeline(old).await?;
    let writers = Writers::start_paced(cluster, old, ON_STANDBYS).await?;
    let leases = LeaseWatch::start(cluster);
    prepare(fault, old, cluster.dir()).await?;
    let server = ServerWatch::start(old);
    let copies = cluster
        .dir()
        .join(format!("wal-{fault}-{number}").replace(' ', "-"));
    let saver = WalSaver::start(&old.data_dir(), copies.join("live"));
    sleep(Duration::from_millis(700)).await;
    let lease = wait_for_moment(cluster, old, ttl, chance).await?;
    let mut scene = Scene {
        fault,
        ttl,
        cluster,
        old,
        timeline,
        fault_ms: boot_ms(),
        observed_ms: 0,
        lease,
        postmaster: old.postmaster_pid(),
        guard: old.guard_pid(),
    };
    scene.inject()?;
    scene.fault_ms = boot_ms();
    scene.observe(&writers, &server).await?;
    scene.observed_ms = boot_ms();
    let gone_ms = server.gone_ms();
    let mut directories = saver.finish()?;
    for node in cluster.nodes() {
        let into = copies.join(node.name());
        save_wal(&node.data_dir().join("pg_wal"), &into, started).ok();
        directories.push(into);
    }
    let adopted = scene.postmaster == old.postmaster_pid();
    scene.clear().await?;
    let primary = wait_back(cluster, old).await?;
    stop_loops(primary).await?;
    let end_ms = boot_ms();
    let first_seq = writers.first_seq();
    let written = writers.stop().await;
    let surviving = crate::writers::surviving(primary, first_seq).await?;
    let commits = commits(old.pg_bin(), &directories).await?;
    let mut run = scene.judge(&commits, &written, &leases, gone_ms, adopted);
    run.gap_ms = longest_gap_ms(&written.acks, scene.fault_ms.saturating_sub(500), end_ms);
    run.lost = lost(&written.acks, &surviving);
    run.worst_fence_ms = leases.worst_fence_ms();
    if run.worst_fence_ms > FENCE_LIMIT_MS {
        run.violations
            .push(format!("a fence took {} ms", run.worst_fence_ms));
    }
    if run.violations.is_empty() {
        std::fs::remove_dir_all(&copies).ok();
    }
    Ok(run)
}

impl Scene<'_> {
    fn inject(&self) -> Result<()> {
        let old = self.old;
        match self.fault {
            Fault::AgentBack | Fault::AgentKilled | Fault::BusyBackends | Fault::DeafBackend => {
                old.signal_agent(Signal::SIGKILL)
            }
            Fault::AgentFrozen | Fault::AgentThawed => old.signal_agent(Signal::SIGSTOP),
            Fault::GuardKilled => self.signal_guard(Signal::SIGKILL),
            Fault::GuardFrozen => self.signal_guard(Signal::SIGSTOP),
            Fault::AgentAndGuardKilled => {
                old.signal_agent(Signal::SIGKILL)?;
                self.signal_guard(Signal::SIGKILL)
            }
            Fault::PostmasterKilled => old.signal_postmaster(Signal::SIGKILL),
            Fault::PostmasterFrozenAtDeadline => {
                old.signal_agent(Signal::SIGKILL)?;
                old.signal_postmaster(Signal::SIGSTOP)
            }
            Fault::PostmasterFrozenGuardKilled => {
                old.signal_postmaster(Signal::SIGSTOP)?;
                self.signal_guard(Signal::SIGKILL)
            }
        }
    }

    fn signal_guard(&self, signal: Signal) -> Result<()> {
        procs::signal(
            self.guard
                .with_context(|| format!("{} has no guard", self.old.name()))?,
            signal,
        );
        Ok(())
    }

    /// Watches until writes go on with the fault's effect behind them.
    async fn observe(&self, writers: &Writers, server: &ServerWatch) -> Result<()> {
        let limit = Duration::from_secs(self.ttl + 60);
        if self.fault == Fault::AgentBack {
            sleep(Duration::from_millis(300)).await;
            self.old.start_agent()?;
            // Past the old lease: if the agent had not taken it over, the server would be fenced by
            // now.
            sleep(Duration::from_secs(self.ttl + 2)).await;
            return Ok(());
        }
        if self.fault.agent_is_out() {
            writers
                .wait_ack(self.fault_ms, limit, |node| node != self.old.name())
                .await?;
            if self.fault == Fault::AgentThawed {
                sleep(Duration::from_secs(1)).await;
                self.old.signal_agent(Signal::SIGCONT)?;
            }
            // A server that is not gone yet is late already; give it time to show by how much.
            sleep(Duration::from_millis(1500)).await;
            return Ok(());
        }
        // Well past every permission of the moment of the fault.
        let end = boot_ms() + 1000 * (self.ttl + 5);
        while server.gone_ms().is_none() && boot_ms() < end {
            sleep(Duration::from_millis(20)).await;
        }
        writers
            .wait_ack(boot_ms(), limit, |_| true)
            .await
            .context("nobody writes after the fault")?;
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    /// Takes the fault away, so that the node can come back.
    async fn clear(&self) -> Result<()> {
        for pid in self.postmaster.into_iter().chain(self.guard) {
            procs::signal(pid, Signal::SIGCONT);
        }
        if self.old.agent_pid().is_some() {
            self.old.signal_agent(Signal::SIGCONT)?;
        } else {
            self.old.start_agent()?;
        }
        Ok(())
    }

    /// Compares what the witnesses saw with what was permitted.
    fn judge(
        &self,
        commits: &[Commit],
        written: &Written,
        leases: &LeaseWatch,
        gone_ms: Option<u64>,
        adopted: bool,
    ) -> Run {
        let old = self.old.name();
        let of_old: Vec<&Commit> = commits
            .iter()
            .filter(|commit| commit.timeline == self.timeline)
            .collect();
        let must_end = self.fault != Fault::AgentBack && self.cluster.kind() == Kind::Spilo;
        let mut run = Run {
            commits_of_old: of_old.len(),
            violations: two_writers(commits),
            must_end,
            taken_over: written
                .acks
                .iter()
                .any(|ack| ack.node != old && ack.at_ms > self.fault_ms),
            ..Run::default()
        };
        if of_old.is_empty() {
            run.violations
                .push("the old primary's log holds no commit: the witness saw nothing".to_owned());
        }
        if self.fault == Fault::AgentBack {
            self.judge_adoption(&mut run, written, adopted);
        }
        let Some(hard_ms) = self.last_deadline(leases) else {
            if self.cluster.kind() == Kind::Spilo {
                run.violations
                    .push("the old primary never named the end of its permission".to_owned());
            }
            return run;
        };
        let until_ms = hard_ms + FENCE_LIMIT_MS;
        let until_us = ClockPair::read().wall_us_at(until_ms);
        if self.fault != Fault::AgentBack {
            run.commits_too_late = of_old
                .iter()
                .filter(|commit| commit.at_us >= until_us)
                .count();
            let last = of_old.iter().map(|commit| commit.at_us).max();
            run.last_commit_before_end_ms =
                last.map(|last| difference(until_us / 1000, last / 1000));
        }
        if let Some(at_fault) = self.lease.as_ref().filter(|_| must_end) {
            let until_ms = at_fault.until_ms + FENCE_LIMIT_MS;
            run.gone_before_end_ms = gone_ms.map(|gone| difference(until_ms, gone));
            let due_ms = match self.fault {
                Fault::GuardFrozen => self.fault_ms + 1000 * self.ttl / 4 + SILENCE_NOTICED_MS,
                _ => until_ms,
            };
            let wrong = wrong_end(gone_ms, self.fault_ms, due_ms);
            run.violations.extend(wrong.map(str::to_owned));
        }
        self.judge_fence(&mut run, hard_ms, gone_ms);
        if run.commits_too_late > 0 {
            run.violations.push(format!(
                "{} commits at or after the end of permission",
                run.commits_too_late
            ));
        }
        // An acknowledgement in time may be read late, as the end of a process may be seen late.
        let too_late = until_ms + ONLOOKER_LATENESS_MS..self.observed_ms;
        let late = |ack: &&Ack| ack.node == old && too_late.contains(&ack.at_ms);
        let acks = written.acks.iter().filter(late).count();
        if self.fault.agent_is_out() && acks > 0 {
            run.violations.push(format!(
                "{acks} rows acknowledged by the old primary after its permission"
            ));
        }
        run
    }

    /// Returns the latest hard deadline that the old primary named.
    ///
    /// With the agent out it is that of the epoch of the fault. A living agent may go on in another
    /// epoch; that no one else wrote meanwhile shows in the order of the timelines.
    fn last_deadline(&self, leases: &LeaseWatch) -> Option<u64> {
        let at_fault = self.lease.as_ref()?;
        if self.fault.agent_is_out() {
            return Some(at_fault.until_ms);
        }
        let all = leases.all();
        let named = all
            .iter()
            .filter(|seen| seen.node == self.old.name() && seen.asked_ms <= self.observed_ms);
        named
            .map(|seen| seen.until_ms)
            .chain([at_fault.until_ms])
            .max()
    }

    /// How long a fence took is known by how the guard ends what nothing else does.
    fn judge_fence(&self, run: &mut Run, hard_ms: u64, gone_ms: Option<u64>) {
        if self.fault.agent_is_out() {
            run.fence_ms = gone_ms.map_or(0, |gone| gone.saturating_sub(hard_ms));
        }
        // A guard is not told of a deadline that is better by less than a hundredth of the ttl.
        let untold_ms = 10 * self.ttl;
        if self.fault.takes_a_fence() && gone_ms.is_some_and(|gone| gone + untold_ms < hard_ms) {
            run.violations.push(
                "the old server was gone before its hard deadline: none fenced it".to_owned(),
            );
        }
    }

    /// An agent that is back within the lease takes the running server over, and no write fails.
    fn judge_adoption(&self, run: &mut Run, written: &Written, adopted: bool) {
        if !adopted {
            run.violations
                .push("the server was not adopted: its postmaster is another".to_owned());
        }
        if run.taken_over {
            run.violations.push("another node took over".to_owned());
        }
        let failed = failed_writes(&written.failures, self.old.name(), self.fault_ms, u64::MAX);
        if failed > 0 {
            run.violations.push(format!("{failed} writes failed"));
        }
    }
}

/// Returns what is wrong with the end of the old server, which is due by the end of the permission
/// that was in force at the fault, or when a guard that stands still has been noticed.
///
/// A living agent may be permitted to write for longer, but not through a server that has lost its
/// guard or its postmaster.
fn wrong_end(gone_ms: Option<u64>, fault_ms: u64, due_ms: u64) -> Option<&'static str> {
    match gone_ms {
        None => Some("the old server was never seen to end"),
        // An onlooker that knew no process to follow would say so at once.
        Some(gone) if gone + ONLOOKER_LATENESS_MS < fault_ms => {
            Some("the old server was gone before the fault")
        }
        Some(gone) if gone > due_ms + EXIT_LATENESS_MS => {
            Some("the old server outlived its permission")
        }
        Some(_) => None,
    }
}

/// Starts what the fault needs inside the server.
async fn prepare(fault: Fault, old: &Node, dir: &Path) -> Result<()> {
    let (loops, pause) = match fault {
        Fault::BusyBackends => (300, Duration::from_millis(100)),
        _ => (1, Duration::from_millis(5)),
    };
    start_loops(old, loops, pause).await?;
    if fault == Fault::DeafBackend {
        start_loops(old, 2, Duration::from_millis(50)).await?;
        let frozen = loop_pids(old)
            .await?
            .into_iter()
            .max()
            .context("there is no loop to freeze")?;
        procs::signal(frozen, Signal::SIGSTOP);
        start_deaf_loop(old, dir, Duration::from_millis(5)).await?;
    }
    Ok(())
}

/// Waits for a moment at which the next renewal is safely away, and returns the permission that is
/// in force.
///
/// The end of permission that was named last must be the true one: an agent that is killed just
/// after a renewal that nobody has seen would seem to write for too long.
async fn wait_for_moment(
    cluster: &Cluster,
    old: &Node,
    ttl: u64,
    chance: &mut Chance,
) -> Result<Option<LeaseSeen>> {
    let renewal_ms = 1000 * ttl / 4;
    if cluster.kind() == Kind::Patroni {
        sleep(chance.span(Duration::from_secs(1))).await;
        return Ok(None);
    }
    for _ in 0..200 {
        sleep(chance.span(Duration::from_millis(renewal_ms))).await;
        // A busy machine may leave one question unanswered; the fault has not begun yet.
        let Some(lease) = lease_now(old).await else {
            continue;
        };
        let now = boot_ms();
        let left_ms = lease.until_ms.saturating_sub(now);
        let age_ms = (1000 * ttl - ttl * 10 - FENCE_LIMIT_MS).saturating_sub(left_ms);
        if now - lease.asked_ms <= FRESH_MS && age_ms <= renewal_ms * 6 / 10 {
            return Ok(Some(lease));
        }
    }
    bail!("{} is never seen shortly after a renewal", old.name())
}

async fn timeline(primary: &Node) -> Result<u32> {
    let segment = primary
        .query_texts("SELECT pg_walfile_name(pg_current_wal_lsn())")
        .await?;
    let segment = segment.first().context("no answer")?;
    Ok(u32::from_str_radix(
        segment.get(..8).context("no segment name")?,
        16,
    )?)
}

fn difference(later: u64, earlier: u64) -> i64 {
    i64::try_from(later).unwrap_or(i64::MAX) - i64::try_from(earlier).unwrap_or(i64::MAX)
}

/// What the fence itself may take by default. A node names its hard deadline as the end of its
/// permission; its lease outlives that by this much, so that the fence is over before anybody else
/// may write.
pub(crate) const FENCE_LIMIT_MS: u64 = 250;
/// How long an agent that goes on renewing takes to end a server whose guard stands still, from the
/// first question on, which comes with the next renewal at the latest: it waits one second for the
/// answer, is patient for another, and asks the guard to fence for a third before it does so itself.
const SILENCE_NOTICED_MS: u64 = 3000;
/// How often a standby is asked to take a row.
pub(crate) const ON_STANDBYS: Duration = Duration::from_millis(50);
/// How old the last word on the end of permission may be when the fault comes.
const FRESH_MS: u64 = 25;
/// By how much a busy machine makes the onlooker see the end of the last process late. What is
/// committed too late is not excused by it: that, the log tells to the microsecond.
const ONLOOKER_LATENESS_MS: u64 = 100;
/// How long the kernel may take to bury what has been killed: hundreds of processes give their
/// memory back on two processors. From the delivery of SIGKILL on, which the guard proves and whose
/// time is checked against its own limit, none of them commits or answers anything, and for that
/// the log is the witness.
const EXIT_LATENESS_MS: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_never_seen_to_end_or_ends_late_is_wrong() {
        let never = "the old server was never seen to end";
        assert_eq!(wrong_end(None, 1000, 3000), Some(never));
        let outlived = "the old server outlived its permission";
        let late = 3000 + EXIT_LATENESS_MS + 1;
        assert_eq!(wrong_end(Some(late), 1000, 3000), Some(outlived));
        for in_time in [1000, 2999, 3000, late - 1] {
            assert_eq!(wrong_end(Some(in_time), 1000, 3000), None, "{in_time}");
        }
    }

    #[test]
    fn a_server_that_was_gone_before_the_fault_shows_nothing() {
        let before = "the old server was gone before the fault";
        assert_eq!(wrong_end(Some(10), 1000, 3000), Some(before));
    }
}
