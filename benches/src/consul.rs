//! A real Consul, of one server or three.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cluster::merge;
use crate::exec;
use crate::http::Target;
use crate::net::Place;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::service::Service;

/// A running Consul of one or three servers on free ports, in a directory of its own; all ends when
/// it is dropped.
#[derive(Debug)]
pub struct Consul {
    servers: Vec<Server>,
    /// The agents beside the nodes, where the nodes do not ask the servers themselves.
    agents: Vec<Server>,
    _sandbox: Arc<Sandbox>,
}

#[derive(Debug)]
struct Server {
    endpoint: String,
    service: Service,
    _ports: [Port; 4],
}

impl Consul {
    /// Starts a server in each place; with a host of the nodes, an agent there for each node.
    pub(crate) async fn start_in(
        sandbox: Arc<Sandbox>,
        places: &[Place],
        nodes: Option<(IpAddr, usize)>,
    ) -> Result<Self> {
        let mut ports = Vec::new();
        for _ in places {
            ports.push(reserve()?);
        }
        let join = |(place, ports): (&Place, &[Port; 4])| {
            format!("{}:{}", place.address, ports[1].number())
        };
        let join: Vec<String> = places.iter().zip(&ports).map(join).collect();
        let mut servers = Vec::new();
        for (number, (place, ports)) in places.iter().zip(ports).enumerate() {
            let name = format!("c{number}");
            let role = json!({
                "server": true,
                "bootstrap_expect": places.len(),
                // As production does: elections within seconds.
                "performance": { "raft_multiplier": 1 },
            });
            servers.push(start(&sandbox, &name, place, ports, &join, role)?);
        }
        let mut agents = Vec::new();
        if let Some((host, count)) = nodes {
            for number in 0..count {
                let (name, place) = (format!("a{number}"), Place::from(host));
                let ports = reserve()?;
                agents.push(start(&sandbox, &name, &place, ports, &join, json!({}))?);
            }
        }
        let consul = Self {
            servers,
            agents,
            _sandbox: sandbox,
        };
        consul.wait_healthy(Duration::from_secs(120)).await?;
        Ok(consul)
    }

    /// Returns the address of the HTTP API that a node asks, as Patroni's `consul.host` wants it.
    pub fn endpoint(&self, node: usize) -> &str {
        let asked = if self.agents.is_empty() {
            &self.servers
        } else {
            &self.agents
        };
        &asked[node % asked.len()].endpoint
    }

    pub(crate) fn processes(&self) -> Vec<&Service> {
        self.servers.iter().map(|server| &server.service).collect()
    }

    /// Waits until every server is in the catalogue and the first one takes writes.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let problem = match self.is_healthy().await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if Instant::now() > end {
                return Err(problem.context(format!("Consul is not healthy after {limit:?}")));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn is_healthy(&self) -> Result<()> {
        let nodes = self.cli(&["catalog", "nodes"]).await?;
        for (letter, expected) in [("c", &self.servers), ("a", &self.agents)] {
            for number in 0..expected.len() {
                if !nodes.contains(&format!("{letter}{number} ")) {
                    anyhow::bail!("{letter}{number} is not in the catalogue");
                }
            }
        }
        self.cli(&["kv", "put", "health", "1"]).await.map(drop)
    }

    /// Ends the session that holds a key, as an operator could, or an agent that leaves.
    ///
    /// # Errors
    ///
    /// Fails where no session holds it, or Consul does not answer within 5 s.
    pub async fn destroy_session_of(&self, key: &str) -> Result<()> {
        let api = Target {
            address: self.endpoint(0).parse()?,
            namespace: None,
        };
        let limit = Duration::from_secs(5);
        let found = api.get(&format!("/v1/kv/{key}"), limit).await?.json();
        let session = found[0]["Session"].as_str();
        let session = session.with_context(|| format!("no session holds {key}: {found}"))?;
        let path = format!("/v1/session/destroy/{session}");
        let answer = api.request("PUT", &path, None, limit).await?;
        anyhow::ensure!(answer.status == 200, "{}", answer.body);
        Ok(())
    }

    /// Returns the place of the server that leads the others.
    ///
    /// # Errors
    ///
    /// Fails where none does.
    pub async fn leader(&self) -> Result<usize> {
        let peers = self.cli(&["operator", "raft", "list-peers"]).await?;
        let leads = |number: &usize| {
            let name = format!("c{number}");
            peers.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(&name) && words.any(|word| word == "leader")
            })
        };
        let leader = (0..self.servers.len()).find(leads);
        leader.with_context(|| format!("no server leads: {peers}"))
    }

    /// Runs `consul` against what the first node asks and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails where it exits with another status than 0.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let program = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
        let mut command = tokio::process::Command::new(program);
        command
            .env("CONSUL_HTTP_ADDR", self.endpoint(0))
            .args(arguments);
        exec::run(&mut command, Duration::from_secs(6)).await
    }
}

fn reserve() -> Result<[Port; 4]> {
    Ok([
        Port::reserve()?,
        Port::reserve()?,
        Port::reserve()?,
        Port::reserve()?,
    ])
}

/// Starts one agent of Consul, a server or not.
fn start(
    sandbox: &Sandbox,
    name: &str,
    place: &Place,
    ports: [Port; 4],
    join: &[String],
    role: Value,
) -> Result<Server> {
    let host = place.address;
    let [http, serf_lan, serf_wan, rpc] = [0, 1, 2, 3].map(|i: usize| ports[i].number());
    let mut config = json!({
        "node_name": name,
        "data_dir": sandbox.dir().join(name),
        "bind_addr": host,
        "client_addr": host,
        "retry_join": join,
        "retry_interval": "1s",
        "disable_update_check": true,
        "log_level": "info",
        "ports": {
            "http": http, "dns": -1, "grpc": -1,
            "serf_lan": serf_lan, "serf_wan": serf_wan, "server": rpc,
        },
    });
    merge(&mut config, &role);
    let file = sandbox.dir().join(format!("{name}.json"));
    std::fs::write(&file, config.to_string())?;
    let program = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
    let program = exec::find_program([program]).context("Consul is not installed")?;
    let arguments = ["agent", "-config-file"].map(str::to_owned);
    let arguments = arguments.into_iter().chain([file.display().to_string()]);
    let log = sandbox.dir().join(format!("{name}.log"));
    let service = Service::new(program, arguments.collect(), log).inside(place);
    service.spawn()?;
    Ok(Server {
        endpoint: format!("{host}:{http}"),
        service,
        _ports: ports,
    })
}
