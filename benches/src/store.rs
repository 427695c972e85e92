//! The store that a cluster agrees through.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::consul::Consul;
use crate::dns::Dns;
use crate::etcd::{Etcd, Front};
use crate::net::{Namespace, Place};
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::zookeeper::ZooKeeper;

/// Which store a cluster has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum StoreKind {
    /// etcd.
    Etcd,
    /// etcd, behind `etcd gateway`.
    EtcdGateway,
    /// etcd, behind `etcd grpc-proxy`.
    EtcdProxy,
    /// etcd, whose members DNS names.
    EtcdDns,
    /// Consul.
    Consul,
    /// ZooKeeper.
    #[value(name = "zookeeper")]
    ZooKeeper,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::EtcdGateway => "etcd behind its gateway",
            Self::EtcdProxy => "etcd behind its proxy",
            Self::EtcdDns => "etcd in DNS",
            Self::Consul => "Consul",
            Self::ZooKeeper => "ZooKeeper",
        })
    }
}

/// A running store.
#[derive(Debug)]
pub struct Store {
    servers: Servers,
    places: Vec<Place>,
    /// Who names the members, where they are not named in the configuration.
    dns: Option<Dns>,
}

/// Its members or servers.
#[derive(Debug)]
enum Servers {
    Etcd(Etcd),
    Consul(Consul),
    ZooKeeper(ZooKeeper),
}

impl Store {
    /// Starts one on the loopback interface, of one member or three, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Fails where it is not installed, or does not become healthy within a minute.
    pub async fn start(kind: StoreKind, members: usize) -> Result<Self> {
        let host = IpAddr::from(Ipv4Addr::LOCALHOST);
        let sandbox = Arc::new(Sandbox::new()?);
        Self::start_in(kind, sandbox, vec![Place::from(host); members], host, None).await
    }

    /// Returns etcd, if that is what it is.
    pub fn etcd(&self) -> Option<&Etcd> {
        match &self.servers {
            Servers::Etcd(etcd) => Some(etcd),
            _ => None,
        }
    }

    /// Returns Consul, if that is what it is.
    pub fn consul(&self) -> Option<&Consul> {
        match &self.servers {
            Servers::Consul(consul) => Some(consul),
            _ => None,
        }
    }

    /// Returns how many members or servers it has, running or not.
    pub fn members(&self) -> usize {
        self.processes().len()
    }

    fn processes(&self) -> Vec<&Service> {
        match &self.servers {
            Servers::Etcd(etcd) => etcd.processes(),
            Servers::Consul(consul) => consul.processes(),
            Servers::ZooKeeper(zookeeper) => zookeeper.processes(),
        }
    }

    /// Stops a member the polite way (SIGTERM) and waits for its end.
    pub async fn stop(&self, member: usize) {
        self.end(member, Signal::SIGTERM).await;
    }

    /// Kills a member with -9.
    pub async fn kill(&self, member: usize) {
        self.end(member, Signal::SIGKILL).await;
    }

    async fn end(&self, member: usize, signal: Signal) {
        let process = self.processes()[member];
        process.signal(signal);
        process.reap().await;
    }

    /// Stops every member's processor time (SIGSTOP): it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        for process in self.processes() {
            process.signal(Signal::SIGSTOP);
        }
    }

    /// Lets every frozen member run again.
    pub fn thaw(&self) {
        for process in self.processes() {
            process.signal(Signal::SIGCONT);
        }
    }

    /// Starts a member that was stopped or killed, on its old data, and does not wait for it.
    ///
    /// # Errors
    ///
    /// Fails where the program cannot be started.
    pub fn restart(&self, member: usize) -> Result<()> {
        self.processes()[member].spawn()
    }

    /// Drops every packet to and from a member, in silence.
    ///
    /// # Errors
    ///
    /// Fails where the cluster was built without namespaces, or with one member.
    pub async fn cut(&self, member: usize) -> Result<()> {
        self.namespace(member)?.cut().await
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    ///
    /// As [`Self::cut`].
    pub async fn heal(&self, member: usize) -> Result<()> {
        self.namespace(member)?.heal().await
    }

    /// Drops every packet between a member and all the others before it is sent; clients go on
    /// reaching it.
    ///
    /// # Errors
    ///
    /// As [`Self::cut`].
    pub async fn cut_from_others(&self, member: usize) -> Result<()> {
        for other in (0..self.members()).filter(|other| *other != member) {
            self.namespace(member)?.lose(self.namespace(other)?).await?;
            self.namespace(other)?.lose(self.namespace(member)?).await?;
        }
        Ok(())
    }

    /// Undoes [`Self::cut_from_others`].
    ///
    /// # Errors
    ///
    /// As [`Self::cut`].
    pub async fn heal_to_others(&self, member: usize) -> Result<()> {
        for other in (0..self.members()).filter(|other| *other != member) {
            self.namespace(member)?.find(self.namespace(other)?).await?;
            self.namespace(other)?.find(self.namespace(member)?).await?;
        }
        Ok(())
    }

    fn namespace(&self, member: usize) -> Result<&Namespace> {
        let namespace = self.places[member].namespace.as_ref();
        namespace.context("the store's members have no namespaces")
    }

    /// Returns the member of etcd that everybody asks first who finds it in DNS: the one with the
    /// least port, where all have the same priority and weight.
    ///
    /// # Errors
    ///
    /// Fails where the store is another.
    pub fn first_in_dns(&self) -> Result<usize> {
        let endpoints = self
            .etcd()
            .context("only etcd is found in DNS")?
            .endpoints();
        let port = |member: &usize| {
            let port = endpoints[*member].rsplit(':').next();
            port.and_then(|port| port.parse::<u16>().ok())
        };
        let first = (0..endpoints.len()).min_by_key(port);
        first.context("etcd has no member")
    }

    /// Has DNS name these members and no other, or say that there is no such domain if they are
    /// none.
    ///
    /// # Errors
    ///
    /// Fails where the members are not found in DNS, or its server does not start.
    pub async fn name_members(&self, members: &[usize]) -> Result<()> {
        let dns = self.dns.as_ref().context("DNS does not name the members")?;
        let etcd = self.etcd().context("only etcd is found in DNS")?;
        let endpoints = etcd.endpoints();
        let named = members.iter().map(|member| endpoints[*member].as_str());
        dns.serve(named).await
    }

    /// Returns the place of the member that leads the others.
    ///
    /// # Errors
    ///
    /// Fails where none does.
    pub async fn leader(&self) -> Result<usize> {
        match &self.servers {
            Servers::Etcd(etcd) => etcd.leader().await,
            Servers::Consul(consul) => consul.leader().await,
            Servers::ZooKeeper(zookeeper) => zookeeper.leader().await,
        }
    }

    /// Waits until it takes writes.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        match &self.servers {
            Servers::Etcd(etcd) => etcd.wait_healthy(limit).await,
            Servers::Consul(consul) => consul.wait_healthy(limit).await,
            Servers::ZooKeeper(zookeeper) => zookeeper.wait_healthy(limit).await,
        }
    }

    /// Deletes a key of a cluster, named as below the cluster's own.
    ///
    /// # Errors
    ///
    /// Fails where the store does not answer within 5 s.
    pub async fn delete(&self, scope: &str, key: &str) -> Result<()> {
        match &self.servers {
            Servers::Etcd(etcd) => etcd.delete(&format!("/service/{scope}/{key}")).await,
            Servers::Consul(consul) => {
                let key = format!("service/{scope}/{key}");
                consul.cli(&["kv", "delete", &key]).await.map(drop)
            }
            Servers::ZooKeeper(zookeeper) => {
                zookeeper.delete(&format!("/service/{scope}/{key}")).await
            }
        }
    }

    /// Deletes every key of a cluster.
    ///
    /// # Errors
    ///
    /// Fails where the store does not answer within 5 s.
    pub async fn delete_all(&self, scope: &str) -> Result<()> {
        match &self.servers {
            Servers::Etcd(etcd) => etcd.delete_prefix(&format!("/service/{scope}/")).await,
            Servers::Consul(consul) => {
                let prefix = format!("service/{scope}/");
                consul
                    .cli(&["kv", "delete", "-recurse", &prefix])
                    .await
                    .map(drop)
            }
            Servers::ZooKeeper(zookeeper) => {
                zookeeper.delete_all(&format!("/service/{scope}")).await
            }
        }
    }

    /// Starts a member in each place; `host` is where the nodes reach what is in no namespace, and
    /// `nodes` where Consul has agents of its own beside the nodes, and how many.
    pub(crate) async fn start_in(
        kind: StoreKind,
        sandbox: Arc<Sandbox>,
        places: Vec<Place>,
        host: IpAddr,
        nodes: Option<(IpAddr, usize)>,
    ) -> Result<Self> {
        let mut dns = None;
        let servers = match kind {
            StoreKind::Consul => Servers::Consul(Consul::start_in(sandbox, &places, nodes).await?),
            StoreKind::ZooKeeper => {
                Servers::ZooKeeper(ZooKeeper::start_in(sandbox, &places).await?)
            }
            _ => {
                let etcd = Etcd::start_in(Arc::clone(&sandbox), &places).await?;
                Servers::Etcd(match kind {
                    StoreKind::EtcdGateway => etcd.behind(Front::Gateway, host).await?,
                    StoreKind::EtcdProxy => etcd.behind(Front::Proxy, host).await?,
                    StoreKind::EtcdDns => {
                        let server = Dns::new(&sandbox)?;
                        server
                            .serve(etcd.endpoints().iter().map(String::as_str))
                            .await?;
                        dns = Some(server);
                        etcd
                    }
                    _ => etcd,
                })
            }
        };
        Ok(Self {
            servers,
            places,
            dns,
        })
    }

    /// Returns the section of the configuration that leads a node to it.
    pub(crate) fn config(&self, node: usize) -> (&'static str, Value) {
        match &self.servers {
            Servers::Etcd(etcd) => match &self.dns {
                Some(dns) => ("etcd3", dns.config()),
                None => ("etcd3", json!({ "hosts": etcd.endpoints() })),
            },
            // Each node asks one of the servers, as it would ask the agent on its own machine.
            Servers::Consul(consul) => ("consul", json!({ "host": consul.endpoint(node) })),
            Servers::ZooKeeper(zookeeper) => ("zookeeper", json!({ "hosts": zookeeper.hosts() })),
        }
    }
}
