//! A real Consul, of one server or three.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use crate::exec;
use crate::http::Target;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::service::Service;

/// A running Consul of one or three servers on free ports, in a directory of its own; all ends when
/// it is dropped.
#[derive(Debug)]
pub struct Consul {
    servers: Vec<Server>,
    _sandbox: Arc<Sandbox>,
}

#[derive(Debug)]
struct Server {
    endpoint: String,
    service: Service,
    _ports: [Port; 4],
}

impl Consul {
    pub(crate) async fn start_in(
        sandbox: Arc<Sandbox>,
        count: usize,
        host: IpAddr,
    ) -> Result<Self> {
        let mut ports = Vec::new();
        for _ in 0..count {
            let of_server = [
                Port::reserve()?,
                Port::reserve()?,
                Port::reserve()?,
                Port::reserve()?,
            ];
            ports.push(of_server);
        }
        let join: Vec<String> = ports
            .iter()
            .map(|ports| format!("{host}:{}", ports[1].number()))
            .collect();
        let program = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
        let program = exec::find_program([program]).context("Consul is not installed")?;
        let mut servers = Vec::new();
        for (number, ports) in ports.into_iter().enumerate() {
            let name = format!("c{number}");
            let [http, serf_lan, serf_wan, rpc] = [0, 1, 2, 3].map(|i: usize| ports[i].number());
            let config = json!({
                "server": true,
                "bootstrap_expect": count,
                "node_name": name,
                "data_dir": sandbox.dir().join(&name),
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
                // As production does: elections within seconds.
                "performance": { "raft_multiplier": 1 },
            });
            let file = sandbox.dir().join(format!("{name}.json"));
            std::fs::write(&file, config.to_string())?;
            let arguments = ["agent", "-config-file"].map(str::to_owned);
            let arguments = arguments.into_iter().chain([file.display().to_string()]);
            let log = sandbox.dir().join(format!("{name}.log"));
            let service = Service::new(program.clone(), arguments.collect(), log);
            service.spawn()?;
            servers.push(Server {
                endpoint: format!("{host}:{http}"),
                service,
                _ports: ports,
            });
        }
        let consul = Self {
            servers,
            _sandbox: sandbox,
        };
        consul.wait_healthy(Duration::from_secs(30)).await?;
        Ok(consul)
    }

    /// Returns how many servers there are, running or not.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Returns the address of a server's HTTP API, as Patroni's `consul.host` wants it.
    pub fn endpoint(&self, server: usize) -> &str {
        &self.servers[server].endpoint
    }

    /// Stops a server the polite way (SIGTERM) and waits for its end.
    pub async fn stop(&self, server: usize) {
        self.servers[server].service.signal(Signal::SIGTERM);
        self.servers[server].service.reap().await;
    }

    /// Kills a server with -9.
    pub async fn kill(&self, server: usize) {
        self.servers[server].service.signal(Signal::SIGKILL);
        self.servers[server].service.reap().await;
    }

    /// Stops a server's processor time (SIGSTOP); it keeps its connections and answers nothing.
    pub fn freeze(&self, server: usize) {
        self.servers[server].service.signal(Signal::SIGSTOP);
    }

    /// Lets a frozen server run again.
    pub fn thaw(&self, server: usize) {
        self.servers[server].service.signal(Signal::SIGCONT);
    }

    /// Starts a server that was killed, on its old data, and does not wait for it.
    ///
    /// # Errors
    ///
    /// Fails where the program cannot be started.
    pub fn restart(&self, server: usize) -> Result<()> {
        self.servers[server].service.spawn()
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
        for number in 0..self.servers.len() {
            if !nodes.contains(&format!("c{number}")) {
                anyhow::bail!("c{number} is not in the catalogue");
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
            address: self.servers[0].endpoint.parse()?,
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
        let leader = (0..self.servers()).find(leads);
        leader.with_context(|| format!("no server leads: {peers}"))
    }

    /// Runs `consul` against the first server and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails where it exits with another status than 0.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let program = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
        let mut command = tokio::process::Command::new(program);
        command
            .env("CONSUL_HTTP_ADDR", &self.servers[0].endpoint)
            .args(arguments);
        exec::run(&mut command, Duration::from_secs(6)).await
    }
}
