//! What a cluster costs while nothing happens.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::time::sleep;

use crate::clock::as_ms;
use crate::cluster::Cluster;
use crate::node::Node;

/// The cost of three idle nodes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// The resident memory of the greatest node's agent and guard, without the server, in KiB;
    /// what the two share is counted twice.
    pub memory_kib: u64,
    /// The processor time of the busiest node's agent and guard, in microseconds a second.
    pub cpu_us_per_s: u64,
    /// Requests to etcd a minute, all nodes together; each keep-alive message counts. `None` where
    /// the store is another.
    pub etcd_calls_per_minute: Option<u64>,
    /// The processor time of one wake-up of a thread that sleeps and does nothing else, measured
    /// in the same minute, in microseconds: what the machine takes for waking, whoever wakes.
    pub empty_wake_us: u64,
}

impl Idle {
    /// Lets a cluster settle, and looks at it for a while.
    ///
    /// # Errors
    ///
    /// Fails where an agent is not running or etcd does not show its counters.
    pub async fn measure(cluster: &Cluster, span: Duration) -> Result<Self> {
        // What a cluster does in its first moments is not what it costs.
        sleep(SETTLING).await;
        let calls_before = etcd_calls(cluster).await?;
        let started = Instant::now();
        let before: Vec<u64> = cluster.nodes().iter().map(cpu_us).collect();
        let yardstick = std::thread::spawn(move || empty_wake_us(span));
        sleep(span).await;
        let elapsed_ms = as_ms(started.elapsed()).max(1);
        let after: Vec<u64> = cluster.nodes().iter().map(cpu_us).collect();
        let calls = match (calls_before, etcd_calls(cluster).await?) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before)),
            _ => None,
        };
        let empty_wake_us = yardstick
            .join()
            .map_err(|_| anyhow!("the thread that does nothing failed"))??;
        let spent = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after.saturating_sub(*before));
        Ok(Self {
            memory_kib: cluster.nodes().iter().map(memory_kib).max().unwrap_or(0),
            cpu_us_per_s: spent.max().unwrap_or(0) * 1000 / elapsed_ms,
            etcd_calls_per_minute: calls.map(|calls| calls * 60_000 / elapsed_ms),
            empty_wake_us,
        })
    }
}

fn processes(node: &Node) -> impl Iterator<Item = i32> {
    [node.agent_pid(), node.guard_pid()].into_iter().flatten()
}

fn memory_kib(node: &Node) -> u64 {
    let of_process = |pid: i32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    processes(node).filter_map(of_process).sum()
}

/// Returns the processor time so far, to the nanosecond and with that of threads that ended.
fn cpu_us(node: &Node) -> u64 {
    let of_process = |pid: i32| -> Option<u64> {
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        let spent = Duration::from(clock.now().ok()?);
        u64::try_from(spent.as_micros()).ok()
    };
    processes(node).filter_map(of_process).sum()
}

/// Sleeps and wakes until the span is over; returns what a wake-up took of the processor.
fn empty_wake_us(span: Duration) -> Result<u64> {
    let started = Instant::now();
    let of_thread = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let before = Duration::from(of_thread.now()?);
    let mut wakes = 0;
    while started.elapsed() + BETWEEN_WAKES <= span {
        std::thread::sleep(BETWEEN_WAKES);
        wakes += 1;
    }
    let spent = Duration::from(of_thread.now()?).saturating_sub(before);
    Ok(u64::try_from(spent.as_micros())? / u64::max(wakes, 1))
}

async fn etcd_calls(cluster: &Cluster) -> Result<Option<u64>> {
    let Some(etcd) = cluster.store().etcd() else {
        return Ok(None);
    };
    let mut calls = 0.0;
    for member in etcd.client_targets()? {
        let metrics = member.get("/metrics", Duration::from_secs(5)).await?;
        let counters = metrics
            .body
            .lines()
            .filter(|line| line.starts_with(COUNTER));
        for line in counters {
            let value = line
                .rsplit(' ')
                .next()
                .context("a counter without a value")?;
            calls += value.parse::<f64>()?;
        }
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of requests, which Prometheus writes as a float"
    )]
    Ok(Some(calls as u64))
}

/// Counts every message that came in, be it a request of its own or one in a stream.
const COUNTER: &str = "grpc_server_msg_received_total";

/// About as often as an idle agent wakes.
const BETWEEN_WAKES: Duration = Duration::from_millis(500);

const SETTLING: Duration = Duration::from_secs(30);
