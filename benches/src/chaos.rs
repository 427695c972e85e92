//! Faults of the guard: the node loses what holds its deadline, and nothing may be committed when
//! its permission is over.
//!
//! Two kinds of writers run on the primary: one paced by its client on every node, and loops inside
//! the server whose clients are gone. Witnesses are the clients' acknowledgements, the servers' own
//! write-ahead logs, and the list of processes.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use crate::analysis::Spread;
use crate::chance::Chance;
use crate::clock::wall_us;
use crate::cluster::{Cluster, Kind};

pub(crate) mod run;

/// What is done to the primary's node.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The agent is killed, and started again well within the lease: it adopts the running server.
    AgentBack,
    /// The agent is killed with -9.
    AgentKilled,
    /// The agent is stopped with SIGSTOP until the end of the run.
    AgentFrozen,
    /// The agent is stopped with SIGSTOP past its lease, and continued while the next primary
    /// writes.
    AgentThawed,
    /// The guard is killed with -9; the agent lives.
    GuardKilled,
    /// The guard is stopped with SIGSTOP; the agent lives.
    GuardFrozen,
    /// Agent and guard are killed with -9 at once.
    AgentAndGuardKilled,
    /// The postmaster is killed with -9; agent and guard live.
    PostmasterKilled,
    /// The agent is killed and the postmaster stopped with SIGSTOP, so that only signals to every
    /// process end it.
    PostmasterFrozenAtDeadline,
    /// The postmaster is stopped with SIGSTOP, then the guard killed with -9; the agent lives.
    PostmasterFrozenGuardKilled,
    /// The agent is killed while 300 backends commit in loops.
    BusyBackends,
    /// The agent is killed while one backend commits in a loop and ignores SIGTERM, and another is
    /// stopped with SIGSTOP.
    DeafBackend,
}

/// A fault, how often, and against what.
#[derive(Clone, Debug)]
pub struct Plan {
    fault: Fault,
    ttl: u64,
    repeat: usize,
    kind: Kind,
    seed: u64,
}

/// What the runs of a plan showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The fault.
    pub fault: Fault,
    /// The lease in seconds.
    pub ttl: u64,
    /// The runs, in order.
    pub runs: Vec<Run>,
}

/// What one run showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// How many commits of the old primary its log holds, from shortly before the fault on.
    pub commits_of_old: usize,
    /// Commits of the old primary at or after the end of its permission.
    pub commits_too_late: usize,
    /// From the old primary's last commit to the end of its permission; negative where it came
    /// later.
    pub last_commit_before_end_ms: Option<i64>,
    /// From the death of the server's last process to the end of the permission at the fault;
    /// negative where it came later.
    pub gone_before_end_ms: Option<i64>,
    /// From the hard deadline to the death of the server's last process, as seen from outside; 0
    /// where the server was stopped before.
    pub fence_ms: u64,
    /// The slowest fence that a guard has reported, from its first kill to the last death.
    pub worst_fence_ms: u64,
    /// The longest time without an acknowledged write.
    pub gap_ms: u64,
    /// Acknowledged rows that the final primary does not hold.
    pub lost: usize,
    /// Whether the old server had to end by the end of its permission: not where it is adopted, and
    /// of Patroni nobody knows a permission.
    pub must_end: bool,
    /// Whether another node took over.
    pub taken_over: bool,
    /// Everything that must not happen and did.
    pub violations: Vec<String>,
}

impl Plan {
    /// Plans five runs against `spilo-agent`.
    pub fn new(fault: Fault, ttl: u64) -> Self {
        Self {
            fault,
            ttl,
            repeat: 5,
            kind: Kind::Spilo,
            seed: wall_us(),
        }
    }

    /// Sets how often the fault is run.
    #[must_use]
    pub fn repeat(mut self, repeat: usize) -> Self {
        self.repeat = repeat;
        self
    }

    /// Sets the kind of agent; against Patroni, which has no guard, the witnesses can be seen to
    /// object.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the seed that spreads the moments of the fault.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts a cluster, runs the fault against it as often as planned, and makes the cluster whole
    /// after each time.
    ///
    /// # Errors
    ///
    /// Fails where the cluster does not start, nobody takes over, or it does not become whole
    /// again; logs are then kept.
    pub async fn run(&self) -> Result<Report> {
        eprintln!("{}, ttl {}: seed {}", self.fault, self.ttl, self.seed);
        let mut chance = Chance::seeded(self.seed);
        let cluster = self.cluster().await?;
        let mut runs = Vec::new();
        for number in 1..=self.repeat {
            let run = run::once(self.fault, self.ttl, &cluster, &mut chance, number).await;
            let run = run.with_context(|| {
                format!(
                    "{}, run {number} (seed {}); logs in {}",
                    self.fault,
                    self.seed,
                    cluster.keep().display()
                )
            })?;
            eprintln!(
                "{}, ttl {}, run {number}/{}: {run}",
                self.fault, self.ttl, self.repeat
            );
            // Of Patroni violations are expected, and nobody will read its logs.
            if !run.violations.is_empty() && self.kind == Kind::Spilo {
                eprintln!("  logs are kept in {}", cluster.keep().display());
            }
            runs.push(run);
        }
        Ok(Report {
            fault: self.fault,
            ttl: self.ttl,
            runs,
        })
    }

    async fn cluster(&self) -> Result<Cluster> {
        let builder = Cluster::builder()
            .kind(self.kind)
            // Small segments, so that copying the WAL four times a second costs nothing.
            .initdb(json!({ "wal-segsize": "1" }))
            .parameter("max_connections", json!(400));
        let builder = match self.kind {
            Kind::Spilo => builder.ttl(self.ttl),
            Kind::Patroni => builder.timing(20, 1, 3),
        };
        let cluster = builder.start().await?;
        cluster.wait_streaming(2, Duration::from_secs(60)).await?;
        Ok(cluster)
    }
}

impl Fault {
    /// Returns all faults, in the order of the report.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Reports whether nobody but the guard, or the kernel for it, can end the writes.
    fn agent_is_out(self) -> bool {
        match self {
            Self::AgentKilled
            | Self::AgentFrozen
            | Self::AgentThawed
            | Self::AgentAndGuardKilled
            | Self::PostmasterFrozenAtDeadline
            | Self::BusyBackends
            | Self::DeafBackend => true,
            Self::AgentBack
            | Self::GuardKilled
            | Self::GuardFrozen
            | Self::PostmasterKilled
            | Self::PostmasterFrozenGuardKilled => false,
        }
    }

    /// Reports whether the server outlives every order to stop, and ends when it is killed at the
    /// hard deadline.
    fn takes_a_fence(self) -> bool {
        match self {
            Self::PostmasterFrozenAtDeadline | Self::DeafBackend => true,
            Self::AgentBack
            | Self::AgentKilled
            | Self::AgentFrozen
            | Self::AgentThawed
            | Self::GuardKilled
            | Self::GuardFrozen
            | Self::AgentAndGuardKilled
            | Self::PostmasterKilled
            | Self::PostmasterFrozenGuardKilled
            | Self::BusyBackends => false,
        }
    }
}

impl Report {
    /// Returns everything that must not happen and did, with the number of the run.
    pub fn violations(&self) -> Vec<String> {
        let of_run = |(number, run): (usize, &Run)| -> Vec<String> {
            run.violations
                .iter()
                .map(|what| format!("{}, run {}: {what}", self.fault, number + 1))
                .collect()
        };
        self.runs.iter().enumerate().flat_map(of_run).collect()
    }

    /// Returns the report as a row of [`Self::table_head`].
    pub fn table_row(&self) -> String {
        let too_late: usize = self.runs.iter().map(|run| run.commits_too_late).sum();
        let lost: usize = self.runs.iter().map(|run| run.lost).sum();
        let gap = Spread::of(self.runs.iter().map(|run| run.gap_ms));
        format!(
            "| {} | {} | {too_late} | {} | {} | {} | {} | {lost} | {} |",
            self.fault,
            self.runs.len(),
            self.least(|run| run.last_commit_before_end_ms),
            self.least(|run| run.gone_before_end_ms),
            self.runs
                .iter()
                .map(|run| run.worst_fence_ms.max(run.fence_ms))
                .max()
                .unwrap_or(0),
            gap.map_or_else(|| "-".to_owned(), |gap| gap.to_string()),
            self.violations().len(),
        )
    }

    /// Returns the least of a measure; `never` if a run that had to show one did not.
    fn least(&self, of: fn(&Run) -> Option<i64>) -> String {
        if self
            .runs
            .iter()
            .any(|run| run.must_end && of(run).is_none())
        {
            return "never".to_owned();
        }
        let least = self.runs.iter().filter_map(of).min();
        least.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }

    /// Returns the head of a table of reports, in Markdown.
    pub fn table_head() -> String {
        "| fault | runs | commits too late | last commit before the end, least ms | \
         server gone before the end, least ms | worst fence, ms | gap, ms | \
         acknowledged rows lost | violations |\n\
         |---|---|---|---|---|---|---|---|---|"
            .to_owned()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
        write!(
            f,
            "{} commits of the old primary, {} too late, the last {} and its last process {} \
             before the end; gap {} ms, {} rows lost, {}",
            self.commits_of_old,
            self.commits_too_late,
            ms(self.last_commit_before_end_ms),
            ms(self.gone_before_end_ms),
            self.gap_ms,
            self.lost,
            if self.taken_over {
                "taken over"
            } else {
                "not taken over"
            },
        )?;
        self.violations
            .iter()
            .try_for_each(|violation| write!(f, "\n  VIOLATION: {violation}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AgentBack => "agent killed and back within the lease",
            Self::AgentKilled => "agent killed",
            Self::AgentFrozen => "agent frozen",
            Self::AgentThawed => "agent frozen past the lease and thawed",
            Self::GuardKilled => "guard killed",
            Self::GuardFrozen => "guard frozen",
            Self::AgentAndGuardKilled => "agent and guard killed",
            Self::PostmasterKilled => "postmaster killed",
            Self::PostmasterFrozenAtDeadline => "postmaster frozen at the deadline",
            Self::PostmasterFrozenGuardKilled => "postmaster frozen when the guard dies",
            Self::BusyBackends => "300 busy backends at the deadline",
            Self::DeafBackend => "a backend that ignores SIGTERM",
        })
    }
}

/// Plans [`Fault::AgentBack`].
pub fn agent_back(ttl: u64) -> Plan {
    Plan::new(Fault::AgentBack, ttl)
}

/// Plans [`Fault::AgentKilled`].
pub fn agent_killed(ttl: u64) -> Plan {
    Plan::new(Fault::AgentKilled, ttl)
}

/// Plans [`Fault::AgentFrozen`].
pub fn agent_frozen(ttl: u64) -> Plan {
    Plan::new(Fault::AgentFrozen, ttl)
}

/// Plans [`Fault::AgentThawed`].
pub fn agent_thawed(ttl: u64) -> Plan {
    Plan::new(Fault::AgentThawed, ttl)
}

/// Plans [`Fault::GuardKilled`].
pub fn guard_killed(ttl: u64) -> Plan {
    Plan::new(Fault::GuardKilled, ttl)
}

/// Plans [`Fault::GuardFrozen`].
pub fn guard_frozen(ttl: u64) -> Plan {
    Plan::new(Fault::GuardFrozen, ttl)
}

/// Plans [`Fault::AgentAndGuardKilled`].
pub fn agent_and_guard_killed(ttl: u64) -> Plan {
    Plan::new(Fault::AgentAndGuardKilled, ttl)
}

/// Plans [`Fault::PostmasterKilled`].
pub fn postmaster_killed(ttl: u64) -> Plan {
    Plan::new(Fault::PostmasterKilled, ttl)
}

/// Plans [`Fault::PostmasterFrozenAtDeadline`].
pub fn postmaster_frozen_at_deadline(ttl: u64) -> Plan {
    Plan::new(Fault::PostmasterFrozenAtDeadline, ttl)
}

/// Plans [`Fault::PostmasterFrozenGuardKilled`].
pub fn postmaster_frozen_guard_killed(ttl: u64) -> Plan {
    Plan::new(Fault::PostmasterFrozenGuardKilled, ttl)
}

/// Plans [`Fault::BusyBackends`].
pub fn busy_backends(ttl: u64) -> Plan {
    Plan::new(Fault::BusyBackends, ttl)
}

/// Plans [`Fault::DeafBackend`].
pub fn deaf_backend(ttl: u64) -> Plan {
    Plan::new(Fault::DeafBackend, ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_the_end_that_it_had_to_show_is_not_hidden_by_the_others() {
        let run = |must_end, gone_before_end_ms| Run {
            must_end,
            gone_before_end_ms,
            ..Run::default()
        };
        let least = |runs| {
            let (fault, ttl) = (Fault::GuardKilled, 3);
            Report { fault, ttl, runs }.least(|run| run.gone_before_end_ms)
        };
        assert_eq!(least(vec![run(true, Some(70)), run(true, Some(-3))]), "-3");
        assert_eq!(least(vec![run(true, Some(70)), run(true, None)]), "never");
        assert_eq!(least(vec![run(false, None)]), "-");
    }
}
