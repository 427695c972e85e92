//! A real etcd, of one member or three.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use crate::exec;
use crate::http::Target;
use crate::net::Place;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::service::Service;

/// A running etcd of one or three members on free ports, in a directory of its own; all ends when
/// it is dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// What stands before the members, where something does: its address and its process.
    front: Option<(String, Service, Port)>,
    sandbox: Arc<Sandbox>,
}

/// What of etcd's own may stand between clients and members.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    /// `etcd gateway`: passes connections on.
    Gateway,
    /// `etcd grpc-proxy`: speaks the protocol, and gathers watches and leases.
    Proxy,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_url: String,
    endpoint: String,
    service: Service,
    ports: [Port; 2],
}

impl Etcd {
    /// Starts a member in each place.
    pub(crate) async fn start_in(sandbox: Arc<Sandbox>, places: &[Place]) -> Result<Self> {
        let mut members = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let host = place.address;
            let ports = [Port::reserve()?, Port::reserve()?];
            let endpoint = format!("{host}:{}", ports[0].number());
            let name = format!("e{number}");
            members.push(Member {
                service: Service::new(
                    exec::find_program(["etcd"]).context("etcd is not installed")?,
                    vec![
                        format!("--name={name}"),
                        format!("--data-dir={}", sandbox.dir().join(&name).display()),
                        format!("--listen-client-urls=http://{endpoint}"),
                        format!("--advertise-client-urls=http://{endpoint}"),
                        format!("--listen-peer-urls=http://{host}:{}", ports[1].number()),
                        format!(
                            "--initial-advertise-peer-urls=http://{host}:{}",
                            ports[1].number()
                        ),
                    ],
                    sandbox.dir().join(format!("{name}.log")),
                )
                .inside(place),
                client_url: format!("http://{endpoint}"),
                name,
                endpoint,
                ports,
            });
        }
        let peer = |(member, place): (&Member, &Place)| {
            let (host, port) = (place.address, member.ports[1].number());
            format!("{}=http://{host}:{port}", member.name)
        };
        let peers: Vec<String> = members.iter().zip(places).map(peer).collect();
        for member in &mut members {
            let service = &mut member.service;
            service.argument(format!("--initial-cluster={}", peers.join(",")));
            service.spawn()?;
        }
        let etcd = Self {
            members,
            front: None,
            sandbox,
        };
        etcd.wait_healthy(Duration::from_secs(20)).await?;
        Ok(etcd)
    }

    /// Puts something between the clients and the members, and waits until it listens.
    pub(crate) async fn behind(mut self, front: Front, host: IpAddr) -> Result<Self> {
        let port = Port::reserve()?;
        let endpoint = format!("{host}:{}", port.number());
        let (name, scheme) = match front {
            Front::Gateway => ("gateway", ""),
            Front::Proxy => ("grpc-proxy", "http://"),
        };
        let members: Vec<String> = self.endpoints();
        let members: Vec<String> = members.iter().map(|at| format!("{scheme}{at}")).collect();
        let arguments = vec![
            name.to_owned(),
            "start".to_owned(),
            format!("--endpoints={}", members.join(",")),
            format!("--listen-addr={endpoint}"),
        ];
        let log = self.sandbox.dir().join(format!("{name}.log"));
        let program = exec::find_program(["etcd"]).context("etcd is not installed")?;
        let service = Service::new(program, arguments, log);
        service.spawn()?;
        let end = Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect(&endpoint).await.is_err() {
            anyhow::ensure!(
                Instant::now() < end,
                "etcd {name} does not listen on {endpoint}"
            );
            sleep(Duration::from_millis(50)).await;
        }
        self.front = Some((endpoint, service, port));
        Ok(self)
    }

    pub(crate) fn processes(&self) -> Vec<&Service> {
        self.members.iter().map(|member| &member.service).collect()
    }

    /// Returns the addresses for clients, `host:port` each, as Patroni's `etcd3.hosts` wants them:
    /// those of the members, or the one of what stands before them.
    pub fn endpoints(&self) -> Vec<String> {
        if let Some((endpoint, ..)) = &self.front {
            return vec![endpoint.clone()];
        }
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    /// Returns the members' client addresses, for plain HTTP.
    pub(crate) fn client_targets(&self) -> Result<Vec<Target>> {
        let target = |member: &Member| {
            Ok(Target {
                address: member.endpoint.parse()?,
                namespace: None,
            })
        };
        self.members.iter().map(target).collect()
    }

    /// Waits until etcd answers a linearisable read.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            match self.etcdctl(&["get", "health"]).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("etcd is not healthy after {limit:?}")));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Returns a key's value, if there is one.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.etcdctl(&["get", "--print-value-only", key]).await?;
        Ok(answer.strip_suffix('\n').map(ToOwned::to_owned))
    }

    /// Returns the keys under a prefix.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let answer = self
            .etcdctl(&["get", "--prefix", "--keys-only", prefix])
            .await?;
        Ok(answer
            .lines()
            .filter(|line| !line.is_empty())
            .map(ToOwned::to_owned)
            .collect())
    }

    /// Returns all that is known of the keys under a prefix, as lines: their values, leases and
    /// revisions, which tell of a write that has changed nothing.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn entries(&self, prefix: &str) -> Result<Vec<String>> {
        let answer = self
            .etcdctl(&["get", "--prefix", "-w", "fields", prefix])
            .await?;
        Ok(answer
            .lines()
            // Around the keys stands what changes with every write to any of them.
            .skip_while(|line| !line.starts_with("\"Key\""))
            .take_while(|line| !line.starts_with("\"More\""))
            .filter(|line| !line.is_empty())
            .map(ToOwned::to_owned)
            .collect())
    }

    /// Writes a key.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        self.etcdctl(&["put", "--", key, value]).await.map(drop)
    }

    /// Deletes a key.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.etcdctl(&["del", key]).await.map(drop)
    }

    /// Deletes every key under a prefix.
    ///
    /// # Errors
    ///
    /// Fails where etcd does not answer within 5 s.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<()> {
        self.etcdctl(&["del", "--prefix", prefix]).await.map(drop)
    }

    /// Returns the place of the member that leads the others.
    ///
    /// # Errors
    ///
    /// Fails where none does.
    pub async fn leader(&self) -> Result<usize> {
        let text = self.etcdctl(&["endpoint", "status", "-w", "json"]).await?;
        let found: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        let leads = |member: &Member| {
            found.iter().any(|at| {
                let status = &at["Status"];
                at["Endpoint"] == member.client_url
                    && status["leader"] == status["header"]["member_id"]
            })
        };
        let leader = self.members.iter().position(leads);
        leader.with_context(|| format!("no member leads: {text}"))
    }

    /// Runs `etcdctl` (API 3) against all members and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails where it exits with another status than 0.
    pub async fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let urls: Vec<&str> = self
            .members
            .iter()
            .map(|member| member.client_url.as_str())
            .collect();
        let mut command = tokio::process::Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", urls.join(",")))
            .args(arguments);
        exec::run(&mut command, Duration::from_secs(6)).await
    }
}
