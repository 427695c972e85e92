//! Clients that write: one per node, paced, and loops inside a server that need no client.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::clock::{boot_ms, wall_us};
use crate::cluster::Cluster;
use crate::node::{Door, Node};

/// An insert that a server acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ack {
    /// The node whose server took it.
    pub node: String,
    /// The writer's count, unique together with the node.
    pub seq: u64,
    /// When the answer came, on the boot clock.
    pub at_ms: u64,
}

/// An insert, or a connection for one, that did not succeed, other than a standby's refusal to
/// write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The node that was asked.
    pub node: String,
    /// When it failed, on the boot clock.
    pub at_ms: u64,
    /// What was said.
    pub reason: String,
}

/// What the writers saw.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The acknowledged inserts, in the order of their answers.
    pub acks: Vec<Ack>,
    /// The failures, in order.
    pub failures: Vec<Failure>,
}

/// One writer per node, each inserting a row every 10 ms where its node lets it.
///
/// Every writer talks to its own node only, so that two primaries would both be seen to accept
/// rows.
#[derive(Debug)]
pub struct Writers {
    first_seq: u64,
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<Written>>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Creates the table on the primary and starts the writers.
    ///
    /// # Errors
    ///
    /// Fails where the primary refuses the table.
    pub async fn start(cluster: &Cluster, primary: &Node) -> Result<Self> {
        Self::start_paced(cluster, primary, PACE).await
    }

    /// The same, with a pace of their own for writers whose node is a standby: where it is not asked
    /// to the millisecond when a node takes its first row, refusing a hundred a second is most of
    /// what it does.
    ///
    /// # Errors
    ///
    /// Fails where the primary refuses the table.
    pub async fn start_paced(
        cluster: &Cluster,
        primary: &Node,
        on_standbys: Duration,
    ) -> Result<Self> {
        primary
            .query_texts(CREATE_TABLE)
            .await
            .context("cannot create the writers' table")?;
        let first_seq = wall_us();
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(Written::default()));
        let mut tasks = JoinSet::new();
        for node in cluster.nodes() {
            let writer = Writer {
                node: node.name().to_owned(),
                door: node.door(),
                stop: Arc::clone(&stop),
                written: Arc::clone(&written),
                on_standbys,
            };
            tasks.spawn(writer.run(first_seq));
        }
        Ok(Self {
            first_seq,
            stop,
            written,
            tasks,
        })
    }

    /// Returns what has been written until now.
    pub fn so_far(&self) -> Written {
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns when a node other than `old` first acknowledged a row after a moment, if it did.
    pub fn first_ack_elsewhere(&self, old: &str, after_ms: u64) -> Option<u64> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written
            .acks
            .iter()
            .find(|ack| ack.at_ms > after_ms && ack.node != old)
            .map(|ack| ack.at_ms)
    }

    /// Waits until a node has acknowledged a row after a moment, and returns when.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_ack(
        &self,
        after_ms: u64,
        limit: Duration,
        wanted: impl Fn(&str) -> bool + Send,
    ) -> Result<u64> {
        let end = boot_ms() + crate::clock::as_ms(limit);
        while boot_ms() < end {
            {
                let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                let late = written
                    .acks
                    .iter()
                    .rev()
                    .take_while(|ack| ack.at_ms > after_ms);
                if let Some(ack) = late.filter(|ack| wanted(&ack.node)).last() {
                    return Ok(ack.at_ms);
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("no acknowledged write within {limit:?}")
    }

    /// Stops the writers, waits for their last answers, and returns all they saw.
    pub async fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.so_far()
    }

    /// Returns the rows of these writers that a server holds, as node and count.
    ///
    /// # Errors
    ///
    /// Fails where the server does not answer.
    pub async fn surviving(&self, node: &Node) -> Result<HashSet<(String, u64)>> {
        surviving(node, self.first_seq).await
    }

    /// Returns the first count of these writers, for [`surviving`].
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }
}

/// Returns the rows from a count on that a server holds, as node and count.
///
/// # Errors
///
/// Fails where the server does not answer.
pub async fn surviving(node: &Node, first_seq: u64) -> Result<HashSet<(String, u64)>> {
    let query = format!("SELECT node || ' ' || seq FROM writes WHERE seq >= {first_seq}");
    let rows = node.query_texts(&query).await?;
    rows.iter()
        .map(|row| {
            let (node, seq) = row.split_once(' ').context("a row without a count")?;
            Ok((node.to_owned(), seq.parse()?))
        })
        .collect()
}

/// Starts loops inside a server that insert and commit until they are killed, and closes their
/// clients' connections.
///
/// Nothing paces such a loop but itself, and nobody waits for its answers: only it shows a server
/// whose backends outlive their postmaster.
///
/// # Errors
///
/// Fails where the server does not run all loops within 60 s.
pub async fn start_loops(node: &Node, count: usize, pause: Duration) -> Result<()> {
    node.query_texts(CREATE_LOOP_TABLE)
        .await
        .context("cannot create the loops' table")?;
    let running = loop_pids(node).await?.len();
    let body = loop_body(node, pause);
    let mut connections = Vec::new();
    for _ in 0..count {
        let (client, connection) = node.door().open(LOOP_APPLICATION).await?;
        let body = body.clone();
        connections.push(connection);
        tokio::spawn(async move { drop(client.batch_execute(&body).await) });
    }
    let started = wait_for_loops(node, running + count).await;
    connections.iter().for_each(tokio::task::JoinHandle::abort);
    started
}

/// Returns the statement that is such a loop.
pub(crate) fn loop_body(node: &Node, pause: Duration) -> String {
    format!(
        "DO $$ BEGIN LOOP INSERT INTO loop_writes VALUES ('{}'); COMMIT; \
         PERFORM pg_sleep({}); END LOOP; END $$",
        node.name(),
        pause.as_secs_f64()
    )
}

/// Waits until the server runs so many loops.
pub(crate) async fn wait_for_loops(node: &Node, count: usize) -> Result<()> {
    let running = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name = '{LOOP_APPLICATION}' \
         AND query LIKE 'DO %' AND state = 'active'"
    );
    let started = timeout(Duration::from_secs(60), async {
        while node
            .query_texts(&running)
            .await
            .map_or(0, |pids| pids.len())
            < count
        {
            sleep(Duration::from_millis(50)).await;
        }
    });
    started.await.context("the server does not run the loops")
}

/// Ends the loops of [`start_loops`] on a server that is still up.
///
/// # Errors
///
/// Fails where the server does not answer.
pub async fn stop_loops(node: &Node) -> Result<()> {
    let query = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = '{LOOP_APPLICATION}'"
    );
    node.query_texts(&query).await.map(drop)
}

/// Returns the process ids of the backends that run the loops of [`start_loops`].
///
/// # Errors
///
/// Fails where the server does not answer.
pub async fn loop_pids(node: &Node) -> Result<Vec<i32>> {
    let query =
        format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{LOOP_APPLICATION}'");
    node.query_texts(&query)
        .await?
        .iter()
        .map(|pid| Ok(pid.parse()?))
        .collect()
}

struct Writer {
    node: String,
    door: Door,
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<Written>>,
    on_standbys: Duration,
}

impl Writer {
    async fn run(self, mut seq: u64) {
        let mut client = None;
        let mut tick = interval(PACE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stop.load(Ordering::Relaxed) {
            tick.tick().await;
            seq += 1;
            client = match client {
                Some(client) => Some(client),
                None => match self.door.open("spilo-writer").await {
                    Ok((client, _)) => Some(client),
                    Err(error) => {
                        self.failed(format!("{error:#}"));
                        None
                    }
                },
            };
            if let Some(open) = &client
                && !self.insert(open, seq).await
            {
                client = None;
            }
        }
    }

    /// Inserts one row; reports whether the connection is of further use.
    async fn insert(&self, client: &tokio_postgres::Client, seq: u64) -> bool {
        let statement = format!(
            "INSERT INTO writes (node, seq) VALUES ('{}', {seq})",
            self.node
        );
        match timeout(STATEMENT_LIMIT, client.simple_query(&statement)).await {
            Ok(Ok(_)) => {
                let ack = Ack {
                    node: self.node.clone(),
                    seq,
                    at_ms: boot_ms(),
                };
                self.written
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .acks
                    .push(ack);
                true
            }
            Ok(Err(error)) => {
                let state = error.code().map(tokio_postgres::error::SqlState::code);
                // A standby refuses to write, and may not have the table yet: neither is a failure
                // of the cluster.
                if matches!(state, Some("25006" | "42P01")) {
                    sleep(self.on_standbys.saturating_sub(PACE)).await;
                    return true;
                }
                self.failed(
                    error
                        .as_db_error()
                        .map_or_else(|| error.to_string(), ToString::to_string),
                );
                !client.is_closed() && state.is_some_and(|state| !state.starts_with("57"))
            }
            Err(_) => {
                self.failed(format!("no answer to an insert within {STATEMENT_LIMIT:?}"));
                false
            }
        }
    }

    fn failed(&self, reason: String) {
        let failure = Failure {
            node: self.node.clone(),
            at_ms: boot_ms(),
            reason,
        };
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failures
            .push(failure);
    }
}

const PACE: Duration = Duration::from_millis(10);
const STATEMENT_LIMIT: Duration = Duration::from_secs(2);
pub(crate) const LOOP_APPLICATION: &str = "spilo-loop";
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS writes \
    (node text, seq bigint, at timestamptz DEFAULT clock_timestamp())";
const CREATE_LOOP_TABLE: &str = "CREATE TABLE IF NOT EXISTS loop_writes \
    (node text, at timestamptz DEFAULT clock_timestamp())";
