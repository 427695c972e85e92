//! A cluster of agents and servers on one machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::etcd::Etcd;
use crate::exec;
use crate::net::{Bridge, Place};
use crate::node::Node;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::store::{Store, StoreKind};

mod config;

pub(crate) use config::merge;

/// The agent that runs the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// `spilo-agent`, found through `SPILO_AGENT`, or beside this workspace's other binaries.
    Spilo,
    /// Stock Patroni, found through `SPILO_PATRONI_BIN`, the directory with `patroni` and
    /// `patronictl`.
    Patroni,
}

/// What a cluster is made of; see [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    kind: Kind,
    node_kinds: Vec<(usize, Kind)>,
    scope: String,
    nodes: usize,
    store: StoreKind,
    store_members: usize,
    dcs: Map<String, Value>,
    parameters: Map<String, Value>,
    overlay: Value,
    node_overlays: Vec<(usize, Value)>,
    pg_bin: Option<PathBuf>,
    initdb: Vec<Value>,
    namespaces: bool,
    agents_wait: bool,
}

/// A running store and a few nodes, each an agent with its server; everything ends when this is
/// dropped.
#[derive(Debug)]
pub struct Cluster {
    kind: Kind,
    scope: String,
    nodes: Vec<Node>,
    store: Store,
    sandbox: Arc<Sandbox>,
    _bridge: Option<Bridge>,
}

impl Cluster {
    /// Returns a builder: three nodes of `spilo-agent`, one etcd, ttl 10.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            kind: Kind::Spilo,
            node_kinds: Vec::new(),
            scope: "bench".to_owned(),
            nodes: 3,
            store: StoreKind::Etcd,
            store_members: 1,
            dcs: Map::new(),
            parameters: Map::new(),
            overlay: Value::Null,
            node_overlays: Vec::new(),
            pg_bin: None,
            initdb: Vec::new(),
            namespaces: false,
            agents_wait: false,
        }
        .ttl(10)
    }

    /// Returns which agent runs here.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the cluster's name, its keys' second part: `/service/SCOPE/`.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the etcd of a cluster that has one.
    ///
    /// # Panics
    ///
    /// If it has another store.
    pub fn etcd(&self) -> &Etcd {
        self.store.etcd().expect("this cluster has etcd")
    }

    /// Returns all nodes, in the order of their names.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the node of a name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name() == name)
    }

    /// Returns the directory with the nodes' directories and logs.
    pub fn dir(&self) -> &std::path::Path {
        self.sandbox.dir()
    }

    /// Keeps logs and data after the end, and returns where they are.
    pub fn keep(&self) -> &std::path::Path {
        self.sandbox.keep();
        self.sandbox.dir()
    }

    /// Starts every agent that is not running.
    ///
    /// # Errors
    ///
    /// Fails where a program cannot be started.
    pub fn start_agents(&self) -> Result<()> {
        self.nodes
            .iter()
            .filter(|node| node.agent_pid().is_none())
            .try_for_each(Node::start_agent)
    }

    /// Returns the node that says so over REST (`GET /primary` is 200) and whose server takes
    /// writes; none where there is no such node at this moment.
    pub async fn primary(&self) -> Option<&Node> {
        for node in &self.nodes {
            let said = node
                .rest()
                .get("/primary", Duration::from_millis(700))
                .await;
            if said.is_ok_and(|answer| answer.status == 200) && node.takes_writes().await {
                return Some(node);
            }
        }
        None
    }

    /// Waits for a primary and returns it.
    ///
    /// # Errors
    ///
    /// Fails after `limit`; the message says where the logs are, and they are kept.
    pub async fn wait_primary(&self, limit: Duration) -> Result<&Node> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(node) = self.primary().await {
                return Ok(node);
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "no primary within {limit:?}; logs in {}",
            self.keep().display()
        )
    }

    /// Waits until there is a primary with exactly `standbys` nodes streaming from it, and returns
    /// it.
    ///
    /// # Errors
    ///
    /// Fails after `limit`; the message says where the logs are, and they are kept.
    pub async fn wait_streaming(&self, standbys: usize, limit: Duration) -> Result<&Node> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        while Instant::now() < end {
            if let Some(primary) = self.primary().await {
                seen = self.streaming_from(primary).await;
                if seen.len() == standbys {
                    return Ok(primary);
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "not {standbys} standbys streaming within {limit:?}, the last seen were {seen:?}; \
             logs in {}",
            self.keep().display()
        )
    }

    /// Returns the names of the nodes that stream from a primary, as both sides see it.
    ///
    /// The primary alone cannot tell: the WAL of a base backup is streamed too, under a name that
    /// the agent chose.
    pub async fn streaming_from(&self, primary: &Node) -> Vec<String> {
        const SENDERS: &str = "SELECT DISTINCT application_name FROM pg_stat_replication \
             WHERE state = 'streaming'";
        let mut names = Vec::new();
        for name in primary.query_texts(SENDERS).await.unwrap_or_default() {
            if let Some(node) = self.node(&name)
                && node.receives().await
            {
                names.push(name);
            }
        }
        names
    }

    /// Runs stock `patronictl` against this cluster and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails where `SPILO_PATRONI_BIN` is not set, or the command exits with another status than 0.
    pub async fn patronictl(&self, arguments: &[&str]) -> Result<String> {
        let bin = std::env::var_os("SPILO_PATRONI_BIN").context("SPILO_PATRONI_BIN is not set")?;
        let mut command = tokio::process::Command::new(PathBuf::from(bin).join("patronictl"));
        command
            .arg("-c")
            .arg(self.nodes[0].config_file())
            .args(arguments);
        exec::run(&mut command, Duration::from_secs(60)).await
    }
}

impl ClusterBuilder {
    /// Sets which agent runs the nodes.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the cluster's name.
    #[must_use]
    pub fn scope(mut self, scope: &str) -> Self {
        scope.clone_into(&mut self.scope);
        self
    }

    /// Sets how many nodes there are; they are named `n1`, `n2`, and so on.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets which agent runs one node, counted from 0, where that is another than the others'.
    #[must_use]
    pub fn node_kind(mut self, node: usize, kind: Kind) -> Self {
        self.node_kinds.push((node, kind));
        self
    }

    /// Sets which store the cluster agrees through.
    #[must_use]
    pub fn store(mut self, store: StoreKind) -> Self {
        self.store = store;
        self
    }

    /// Sets how many members the store has, one or three.
    #[must_use]
    pub fn store_members(mut self, members: usize) -> Self {
        self.store_members = members;
        self
    }

    /// Sets the lease's length in seconds; `loop_wait` and `retry_timeout` stay what they are by
    /// default.
    #[must_use]
    pub fn ttl(self, seconds: u64) -> Self {
        self.dcs("ttl", json!(seconds))
    }

    /// Sets `ttl`, `loop_wait` and `retry_timeout`, in seconds.
    #[must_use]
    pub fn timing(self, ttl: u64, loop_wait: u64, retry_timeout: u64) -> Self {
        self.dcs("ttl", json!(ttl))
            .dcs("loop_wait", json!(loop_wait))
            .dcs("retry_timeout", json!(retry_timeout))
    }

    /// Sets one key of `bootstrap.dcs`.
    #[must_use]
    pub fn dcs(mut self, key: &str, value: Value) -> Self {
        self.dcs.insert(key.to_owned(), value);
        self
    }

    /// Sets one PostgreSQL parameter in `bootstrap.dcs`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: Value) -> Self {
        self.parameters.insert(name.to_owned(), value);
        self
    }

    /// Adds an option of `initdb`, such as `{"wal-segsize": "1"}`.
    #[must_use]
    pub fn initdb(mut self, option: Value) -> Self {
        self.initdb.push(option);
        self
    }

    /// Lays values over every node's configuration; objects are merged, everything else is
    /// replaced.
    #[must_use]
    pub fn overlay(mut self, values: &Value) -> Self {
        merge(&mut self.overlay, values);
        self
    }

    /// Lays values over the configuration of one node, counted from 0, after [`Self::overlay`].
    #[must_use]
    pub fn node_overlay(mut self, node: usize, values: Value) -> Self {
        self.node_overlays.push((node, values));
        self
    }

    /// Sets the directory of PostgreSQL's programs instead of `SPILO_PG15_BIN` or Debian's
    /// directory of version 15.
    #[must_use]
    pub fn pg_bin(mut self, dir: impl Into<PathBuf>) -> Self {
        self.pg_bin = Some(dir.into());
        self
    }

    /// Gives every node a network namespace of its own, and each member of a store that has
    /// several, so that its packets can be dropped. Needs root.
    #[must_use]
    pub fn namespaces(mut self, namespaces: bool) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Leaves the agents for [`Cluster::start_agents`] or [`Node::start_agent`] to start.
    #[must_use]
    pub fn without_starting(mut self) -> Self {
        self.agents_wait = true;
        self
    }

    /// Starts the store, writes the configurations, starts the agents, and waits for nothing else.
    ///
    /// # Errors
    ///
    /// Fails where a program is missing or does not start.
    pub async fn start(self) -> Result<Cluster> {
        let sandbox = Arc::new(Sandbox::new()?);
        let bridge = if self.namespaces {
            Some(Bridge::create(&sandbox).await?)
        } else {
            None
        };
        let host: IpAddr = bridge
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST, Bridge::address)
            .into();
        let mut places = vec![Place::from(host); self.store_members];
        if let Some(bridge) = bridge.as_ref().filter(|_| self.store_members > 1) {
            for place in &mut places {
                *place = bridge.namespace(&sandbox).await?.into();
            }
        }
        let nodes_host = bridge.is_some().then_some((host, self.nodes));
        let store =
            Store::start_in(self.store, Arc::clone(&sandbox), places, host, nodes_host).await?;
        let (mut nodes, mut agents) = (Vec::new(), Vec::new());
        for index in 0..self.nodes {
            let namespace = match &bridge {
                Some(bridge) => Some(bridge.namespace(&sandbox).await?),
                None => None,
            };
            let host = namespace
                .as_ref()
                .map_or(Ipv4Addr::LOCALHOST, |namespace| namespace.address);
            let ports = [Port::reserve()?, Port::reserve()?];
            let kind = self.kind_of(index);
            // Copied once: an agent that runs cannot be written over.
            let found = agents.iter().find(|(of, _)| *of == kind);
            let agent = match found {
                Some((_, program)) => PathBuf::clone(program),
                None => {
                    let backups = self.overlay.get("backup").is_some();
                    config::agent_program(kind, &sandbox, backups)?
                }
            };
            agents.push((kind, agent.clone()));
            let node = Node::new(
                &format!("n{}", index + 1),
                &sandbox,
                agent,
                self.pg_programs(),
                SocketAddr::from((host, ports[0].number())),
                SocketAddr::from((host, ports[1].number())),
                namespace,
                ports,
            )?;
            node.write_config(&self.node_config(index, &node, &store))?;
            nodes.push(node);
        }
        let cluster = Cluster {
            kind: self.kind,
            scope: self.scope,
            nodes,
            store,
            sandbox,
            _bridge: bridge,
        };
        if !self.agents_wait {
            cluster.start_agents()?;
        }
        Ok(cluster)
    }

    fn kind_of(&self, node: usize) -> Kind {
        let own = self.node_kinds.iter().find(|(of, _)| *of == node);
        own.map_or(self.kind, |(_, kind)| *kind)
    }
}
