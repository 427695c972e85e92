//! The store that a cluster agrees through.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::consul::Consul;
use crate::etcd::{Etcd, Front};
use crate::sandbox::Sandbox;
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
            Self::Consul => "Consul",
            Self::ZooKeeper => "ZooKeeper",
        })
    }
}

/// A running store.
#[derive(Debug)]
pub enum Store {
    /// etcd.
    Etcd(Etcd),
    /// Consul.
    Consul(Consul),
    /// ZooKeeper.
    ZooKeeper(ZooKeeper),
}

impl Store {
    /// Returns how many members or servers it has, running or not.
    pub fn members(&self) -> usize {
        match self {
            Self::Etcd(etcd) => etcd.members(),
            Self::Consul(consul) => consul.servers(),
            Self::ZooKeeper(zookeeper) => zookeeper.servers(),
        }
    }

    /// Stops a member the polite way and waits for its end.
    pub async fn stop(&self, member: usize) {
        match self {
            Self::Etcd(etcd) => etcd.stop(member).await,
            Self::Consul(consul) => consul.stop(member).await,
            Self::ZooKeeper(zookeeper) => zookeeper.stop(member).await,
        }
    }

    /// Kills a member with -9.
    pub async fn kill(&self, member: usize) {
        match self {
            Self::Etcd(etcd) => etcd.kill(member).await,
            Self::Consul(consul) => consul.kill(member).await,
            Self::ZooKeeper(zookeeper) => zookeeper.kill(member).await,
        }
    }

    /// Stops every member's processor time.
    pub fn freeze(&self) {
        for member in 0..self.members() {
            match self {
                Self::Etcd(etcd) => etcd.freeze(member),
                Self::Consul(consul) => consul.freeze(member),
                Self::ZooKeeper(zookeeper) => zookeeper.freeze(member),
            }
        }
    }

    /// Lets every frozen member run again.
    pub fn thaw(&self) {
        for member in 0..self.members() {
            match self {
                Self::Etcd(etcd) => etcd.thaw(member),
                Self::Consul(consul) => consul.thaw(member),
                Self::ZooKeeper(zookeeper) => zookeeper.thaw(member),
            }
        }
    }

    /// Starts a member that was stopped or killed, on its old data, and does not wait for it.
    ///
    /// # Errors
    ///
    /// Fails where the program cannot be started.
    pub fn restart(&self, member: usize) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.restart(member),
            Self::Consul(consul) => consul.restart(member),
            Self::ZooKeeper(zookeeper) => zookeeper.restart(member),
        }
    }

    /// Returns the place of the member that leads the others.
    ///
    /// # Errors
    ///
    /// Fails where none does.
    pub async fn leader(&self) -> Result<usize> {
        match self {
            Self::Etcd(etcd) => etcd.leader().await,
            Self::Consul(consul) => consul.leader().await,
            Self::ZooKeeper(zookeeper) => zookeeper.leader().await,
        }
    }

    /// Waits until it takes writes.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.wait_healthy(limit).await,
            Self::Consul(consul) => consul.wait_healthy(limit).await,
            Self::ZooKeeper(zookeeper) => zookeeper.wait_healthy(limit).await,
        }
    }

    /// Deletes a key of a cluster, named as below the cluster's own.
    ///
    /// # Errors
    ///
    /// Fails where the store does not answer within 5 s.
    pub async fn delete(&self, scope: &str, key: &str) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.delete(&format!("/service/{scope}/{key}")).await,
            Self::Consul(consul) => {
                let key = format!("service/{scope}/{key}");
                consul.cli(&["kv", "delete", &key]).await.map(drop)
            }
            Self::ZooKeeper(zookeeper) => {
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
        match self {
            Self::Etcd(etcd) => etcd.delete_prefix(&format!("/service/{scope}/")).await,
            Self::Consul(consul) => {
                let prefix = format!("service/{scope}/");
                consul
                    .cli(&["kv", "delete", "-recurse", &prefix])
                    .await
                    .map(drop)
            }
            Self::ZooKeeper(zookeeper) => zookeeper.delete_all(&format!("/service/{scope}")).await,
        }
    }

    pub(crate) async fn start_in(
        kind: StoreKind,
        sandbox: Arc<Sandbox>,
        members: usize,
        host: IpAddr,
    ) -> Result<Self> {
        let front = match kind {
            StoreKind::EtcdGateway => Some(Front::Gateway),
            StoreKind::EtcdProxy => Some(Front::Proxy),
            StoreKind::Etcd | StoreKind::Consul | StoreKind::ZooKeeper => None,
        };
        Ok(match kind {
            StoreKind::Etcd | StoreKind::EtcdGateway | StoreKind::EtcdProxy => {
                let etcd = Etcd::start_in(sandbox, members, host).await?;
                Self::Etcd(match front {
                    Some(front) => etcd.behind(front, host).await?,
                    None => etcd,
                })
            }
            StoreKind::Consul => Self::Consul(Consul::start_in(sandbox, members, host).await?),
            StoreKind::ZooKeeper => {
                Self::ZooKeeper(ZooKeeper::start_in(sandbox, members, host).await?)
            }
        })
    }

    /// Returns the section of the configuration that leads a node to it.
    pub(crate) fn config(&self, node: usize) -> (&'static str, Value) {
        match self {
            Self::Etcd(etcd) => ("etcd3", json!({ "hosts": etcd.endpoints() })),
            // Each node asks one of the servers, as it would ask the agent on its own machine.
            Self::Consul(consul) => {
                let host = consul.endpoint(node % consul.servers());
                ("consul", json!({ "host": host }))
            }
            Self::ZooKeeper(zookeeper) => ("zookeeper", json!({ "hosts": zookeeper.hosts() })),
        }
    }
}
