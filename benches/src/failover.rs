//! The side-by-side measurement: one fault at a time, the same for every kind of agent.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::analysis::{longest_gap_ms, lost, rows_of_two_primaries};
use crate::chance::Chance;
use crate::clock::{as_ms, boot_ms};
use crate::cluster::{Cluster, ClusterBuilder, Kind};
use crate::node::Node;
use crate::store::StoreKind;
use crate::writers::{Ack, Writers, surviving};

mod targets;

pub use targets::Measured;

/// What is done to the primary.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `POST /switchover` to a named candidate.
    Switchover,
    /// The postmaster is killed with -9; its agent lives.
    Postmaster,
    /// Agent, guard and every process of the server are killed with -9, and started again once
    /// another node has taken over.
    Node,
    /// Every packet to and from the node is dropped in silence, until another node has taken over.
    Packets,
    /// The agent is killed with -9 and started again 8 s after another node took its first write.
    AgentKilled,
    /// The agent is stopped with SIGSTOP and continued 8 s after another node took its first write.
    AgentFrozen,
}

/// Who is measured, and how it is configured.
#[derive(Clone, Debug)]
pub struct Contender {
    /// The column's name.
    pub label: String,
    /// Which agent.
    pub kind: Kind,
    /// The lease in seconds.
    pub ttl: u64,
    /// Patroni's `loop_wait` and `retry_timeout`; none where they follow from the ttl.
    pub pace: Option<(u64, u64)>,
    /// The store that its cluster agrees through.
    pub store: StoreKind,
}

/// What one run of one fault showed.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// The longest time without an acknowledged write; with packets dropped, for clients on the
    /// other side of the cut.
    pub gap_ms: u64,
    /// Rows that the old primary acknowledged within 8 s after the new one had acknowledged its
    /// first.
    pub two_primaries: usize,
    /// Acknowledged rows that the final primary does not hold.
    pub lost: usize,
    /// The time until the old node streams (or leads) again: from the end of the fault, or from the
    /// fault where that has no end.
    pub back_ms: u64,
}

impl Contender {
    /// Returns spilo with a ttl.
    pub fn spilo(ttl: u64) -> Self {
        Self {
            label: format!("spilo, ttl {ttl}"),
            kind: Kind::Spilo,
            ttl,
            pace: None,
            store: StoreKind::Etcd,
        }
    }

    /// Returns Patroni with its defaults.
    pub fn patroni() -> Self {
        Self {
            label: "Patroni, ttl 30".to_owned(),
            kind: Kind::Patroni,
            ttl: 30,
            pace: Some((10, 10)),
            store: StoreKind::Etcd,
        }
    }

    /// Returns Patroni with the shortest times that it accepts.
    pub fn patroni_floor() -> Self {
        Self {
            label: "Patroni, ttl 20".to_owned(),
            kind: Kind::Patroni,
            ttl: 20,
            pace: Some((1, 3)),
            store: StoreKind::Etcd,
        }
    }

    /// Has it agree through another store than etcd, and says so in its name.
    #[must_use]
    pub fn on(mut self, store: StoreKind) -> Self {
        if store != StoreKind::Etcd {
            self.label = format!("{}, {store}", self.label);
        }
        self.store = store;
        self
    }

    /// Returns the cluster that this contender runs.
    pub fn cluster(&self, namespaces: bool) -> ClusterBuilder {
        let builder = Cluster::builder()
            .kind(self.kind)
            .store(self.store)
            .namespaces(namespaces);
        match self.pace {
            None => builder.ttl(self.ttl),
            Some((loop_wait, retry_timeout)) => builder.timing(self.ttl, loop_wait, retry_timeout),
        }
    }

    /// Starts a cluster from nothing and returns it with the time until both standbys streamed.
    ///
    /// # Errors
    ///
    /// Fails where that takes longer than two minutes.
    pub async fn start(&self, namespaces: bool) -> Result<(Cluster, u64)> {
        let cluster = self.cluster(namespaces).without_starting().start().await?;
        let started = Instant::now();
        cluster.start_agents()?;
        cluster.wait_streaming(2, Duration::from_secs(120)).await?;
        Ok((cluster, as_ms(started.elapsed())))
    }
}

impl Fault {
    /// Reports whether the fault needs a network namespace per node.
    pub fn needs_namespaces(self) -> bool {
        matches!(self, Self::Packets)
    }

    /// Runs the fault once against a whole cluster, and leaves it whole again.
    ///
    /// # Errors
    ///
    /// Fails where the cluster is not whole before, nobody takes over, or the old node does not
    /// come back; the logs are then kept.
    pub async fn measure(
        self,
        cluster: &Cluster,
        contender: &Contender,
        chance: &mut Chance,
    ) -> Result<Measure> {
        let measure = self.measure_once(cluster, contender, chance).await;
        measure.with_context(|| format!("{self}; logs in {}", cluster.keep().display()))
    }

    async fn measure_once(
        self,
        cluster: &Cluster,
        contender: &Contender,
        chance: &mut Chance,
    ) -> Result<Measure> {
        let standbys = cluster.nodes().len() - 1;
        let old = cluster
            .wait_streaming(standbys, Duration::from_secs(120))
            .await?;
        let writers = Writers::start(cluster, old).await?;
        // Steady first; then anywhere in the agent's rhythm.
        sleep(Duration::from_secs(2) + chance.span(Duration::from_secs(contender.ttl) / 2)).await;
        let fault_ms = boot_ms();
        self.inject(cluster, old)
            .await
            .with_context(|| format!("cannot do {self} to {}", old.name()))?;
        let taken_over = self
            .wait_taken_over(contender, &writers, old, fault_ms)
            .await;
        taken_over.with_context(|| format!("{self} of {}", old.name()))?;
        let ended_ms = self.end(old).await?.unwrap_or(fault_ms);
        let primary = wait_back(cluster, old).await?;
        let back_ms = boot_ms().saturating_sub(ended_ms);
        let end_ms = boot_ms();
        let first_seq = writers.first_seq();
        let written = writers.stop().await;
        let surviving = surviving(primary, first_seq).await?;
        // Those behind the cut may write on for a while; the gap is what everybody else sees.
        let cut_off =
            |ack: &Ack| self == Self::Packets && ack.node == old.name() && ack.at_ms > fault_ms;
        let seen: Vec<Ack> = written
            .acks
            .iter()
            .filter(|ack| !cut_off(ack))
            .cloned()
            .collect();
        Ok(Measure {
            gap_ms: longest_gap_ms(&seen, fault_ms.saturating_sub(500), end_ms),
            two_primaries: rows_of_two_primaries(
                &written.acks,
                old.name(),
                fault_ms,
                as_ms(TWO_PRIMARIES_WINDOW),
            ),
            lost: lost(&written.acks, &surviving),
            back_ms,
        })
    }

    async fn inject(self, cluster: &Cluster, old: &Node) -> Result<()> {
        match self {
            Self::Switchover => switch_over(cluster, old).await,
            Self::Postmaster => old.signal_postmaster(Signal::SIGKILL),
            Self::Node => {
                old.kill_everything();
                Ok(())
            }
            Self::Packets => old.cut_network().await,
            Self::AgentKilled => old.signal_agent(Signal::SIGKILL),
            Self::AgentFrozen => old.signal_agent(Signal::SIGSTOP),
        }
    }

    /// Waits until the fault has had its effect and been watched for long enough.
    async fn wait_taken_over(
        self,
        contender: &Contender,
        writers: &Writers,
        old: &Node,
        fault_ms: u64,
    ) -> Result<()> {
        let limit = Duration::from_secs(contender.ttl + 60);
        let elsewhere = |node: &str| node != old.name();
        match self {
            // The old primary may come back in place, so there is no other node to wait for.
            Self::Postmaster => sleep(Duration::from_secs(2)).await,
            Self::Switchover => drop(writers.wait_ack(fault_ms, limit, elsewhere).await?),
            Self::Node | Self::Packets => {
                writers.wait_ack(fault_ms, limit, elsewhere).await?;
                sleep(Duration::from_secs(2)).await;
            }
            Self::AgentKilled | Self::AgentFrozen => {
                writers.wait_ack(fault_ms, limit, elsewhere).await?;
                sleep(TWO_PRIMARIES_WINDOW).await;
            }
        }
        Ok(())
    }

    /// Ends the fault, and returns when, where it does not end by itself.
    async fn end(self, old: &Node) -> Result<Option<u64>> {
        match self {
            Self::Switchover | Self::Postmaster => return Ok(None),
            Self::Node | Self::AgentKilled => old.start_agent()?,
            Self::Packets => old.heal_network().await?,
            Self::AgentFrozen => old.signal_agent(Signal::SIGCONT)?,
        }
        Ok(Some(boot_ms()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switchover => "switchover",
            Self::Postmaster => "postmaster killed",
            Self::Node => "node lost",
            Self::Packets => "packets dropped",
            Self::AgentKilled => "agent killed",
            Self::AgentFrozen => "agent frozen",
        })
    }
}

/// Asks the leader to hand over to the first other node, and does not wait for the answer, which
/// Patroni gives late.
pub(crate) async fn switch_over(cluster: &Cluster, leader: &Node) -> Result<()> {
    let candidate = cluster
        .nodes()
        .iter()
        .find(|node| node.name() != leader.name())
        .context("there is no candidate")?;
    let body = json!({ "leader": leader.name(), "candidate": candidate.name() });
    let mut refusals = 0;
    loop {
        let (rest, body) = (leader.rest().clone(), body.clone());
        let answer = tokio::spawn(async move {
            let limit = Duration::from_secs(60);
            rest.request("POST", "/switchover", Some(&body), limit)
                .await
        });
        // A refusal comes at once; no answer yet means that it is under way.
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(500), answer).await else {
            return Ok(());
        };
        let answer = answer??;
        if answer.status < 300 {
            return Ok(());
        }
        // Nothing is interrupted by a refusal: what a candidate lacks may come in a moment.
        refusals += 1;
        eprintln!(
            "the switchover was refused with {}: {}",
            answer.status, answer.body
        );
        if refusals == 10 {
            bail!(
                "the switchover was refused {refusals} times, at last: {}",
                answer.body
            );
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until a node streams from the primary, or leads with everyone else streaming; returns the
/// primary.
pub(crate) async fn wait_back<'a>(cluster: &'a Cluster, old: &Node) -> Result<&'a Node> {
    let end = Instant::now() + Duration::from_secs(180);
    while Instant::now() < end {
        if let Some(primary) = cluster.primary().await {
            let streaming = cluster.streaming_from(primary).await;
            let whole = streaming.len() + 1 == cluster.nodes().len();
            if streaming.iter().any(|name| name == old.name())
                || (primary.name() == old.name() && whole)
            {
                return Ok(primary);
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    bail!(
        "{} does not stream again within 180 s; logs in {}",
        old.name(),
        cluster.keep().display()
    )
}

/// How long two primaries are watched once the new one has taken its first write.
const TWO_PRIMARIES_WINDOW: Duration = Duration::from_secs(8);
