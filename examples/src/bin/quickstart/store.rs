//! The store that the agents agree through.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use spilo_core::{Dcs, Scope};
use spilo_dcs::{Etcd, EtcdOptions, MemoryStore};
use spilo_pg::BootClock;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::http;
use crate::ports::Port;

/// The embedded store, or an etcd of our own.
#[derive(Debug)]
pub(crate) enum Store {
    Memory(MemoryStore),
    Etcd(EtcdServer),
}

/// An etcd of one member that ends with this value.
#[derive(Debug)]
pub(crate) struct EtcdServer {
    ports: [Port; 2],
    _process: Child,
}

impl Store {
    /// Creates the store of a process.
    pub(crate) fn memory() -> Self {
        Self::Memory(MemoryStore::new(Arc::new(BootClock::default())))
    }

    /// Starts etcd in a directory, and waits until it answers.
    pub(crate) async fn etcd(dir: &Path) -> Result<Self> {
        let ports = [Port::reserve()?, Port::reserve()?];
        let [client, peer] = ports
            .each_ref()
            .map(|port| format!("http://127.0.0.1:{}", port.number()));
        let program = program();
        let log = std::fs::File::create(dir.join("etcd.log")).context("cannot write etcd.log")?;
        let mut process = Command::new(&program)
            .arg(format!("--data-dir={}", dir.join("etcd").display()))
            .args([
                "--name=demo".to_owned(),
                format!("--initial-cluster=demo={peer}"),
            ])
            .args([
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
            ])
            .args([
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let end = Instant::now() + ETCD_START;
        while !matches!(
            http::ask(ports[0].number(), "GET", "/health").await,
            Ok((200, _))
        ) {
            if let Some(status) = process.try_wait()? {
                let log = std::fs::read_to_string(dir.join("etcd.log")).unwrap_or_default();
                bail!(
                    "etcd ended, {status}: {}",
                    log.lines().last().unwrap_or_default()
                );
            }
            if Instant::now() > end {
                bail!("etcd does not answer after {ETCD_START:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Self::Etcd(EtcdServer {
            ports,
            _process: process,
        }))
    }

    /// Returns an agent's handle of a cluster.
    pub(crate) fn cluster(&self, scope: &Scope) -> Result<Arc<dyn Dcs>> {
        Ok(match self {
            Self::Memory(store) => Arc::new(store.cluster(scope.clone())),
            Self::Etcd(_) => Arc::new(Etcd::new(EtcdOptions::new(scope.clone(), self.endpoint()))?),
        })
    }

    /// Returns what the store is, in a few words.
    pub(crate) fn described(&self) -> String {
        match self.endpoint() {
            None => "the embedded store".to_owned(),
            Some(endpoint) => format!("etcd at {endpoint}"),
        }
    }

    /// Returns where etcd listens, if it is one.
    pub(crate) fn endpoint(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Etcd(server) => Some(format!("127.0.0.1:{}", server.ports[0].number())),
        }
    }
}

fn program() -> PathBuf {
    let given = std::env::var_os("SPILO_ETCD").filter(|path| !path.is_empty());
    given.map_or_else(|| PathBuf::from("etcd"), PathBuf::from)
}

const ETCD_START: Duration = Duration::from_secs(20);
