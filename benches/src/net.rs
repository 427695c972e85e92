//! Network namespaces: one per node, joined by a bridge whose ports can be shut.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;
use tokio::process::Command;

use crate::clock::wall_us;
use crate::exec::run;
use crate::sandbox::Sandbox;

/// A bridge in the harness's own namespace, and the subnet behind it.
#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    subnet: [u8; 3],
    tag: String,
    next_host: AtomicU8,
}

/// The network namespace of a node, or of a member of the store.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    port: String,
}

/// Where a process of the store runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    /// The harness's own if `None`.
    pub(crate) namespace: Option<Namespace>,
}

impl From<IpAddr> for Place {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            namespace: None,
        }
    }
}

impl From<Namespace> for Place {
    fn from(namespace: Namespace) -> Self {
        Self {
            address: namespace.address.into(),
            namespace: Some(namespace),
        }
    }
}

impl Bridge {
    /// Creates a bridge with the subnet's first address.
    pub(crate) async fn create(sandbox: &Sandbox) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("network namespaces need root");
        }
        let mut last = anyhow!("no subnet was tried");
        for attempt in 0..16_u64 {
            let draw = wall_us() / 7 + attempt * 7919 + u64::from(std::process::id());
            // 198.18.0.0/15 is set aside for measuring, so no route of this machine is shadowed.
            let subnet = [
                198,
                18 + u8::try_from(draw & 1)?,
                u8::try_from((draw >> 1) & 0xff)?,
            ];
            let tag = format!("{:02x}{:02x}", subnet[1], subnet[2]);
            let name = format!("spbr{tag}");
            // The name carries the subnet, so a bridge that exists already stands for a subnet in
            // use.
            match ip(&["link", "add", &name, "type", "bridge"]).await {
                Err(error) => last = error,
                Ok(()) => {
                    sandbox.owns_link(&name);
                    let address = format!("{}.{}.{}.1/24", subnet[0], subnet[1], subnet[2]);
                    ip(&["addr", "add", &address, "dev", &name]).await?;
                    ip(&["link", "set", &name, "up"]).await?;
                    return Ok(Self {
                        name,
                        subnet,
                        tag,
                        next_host: AtomicU8::new(10),
                    });
                }
            }
        }
        Err(last.context("no subnet is free for a bridge"))
    }

    /// Returns the bridge's own address, where etcd listens.
    pub(crate) fn address(&self) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 1)
    }

    /// Creates a namespace whose only way out is a port of this bridge.
    pub(crate) async fn namespace(&self, sandbox: &Sandbox) -> Result<Namespace> {
        let host = self.next_host.fetch_add(1, Ordering::Relaxed);
        let [a, b, c] = self.subnet;
        let address = Ipv4Addr::new(a, b, c, host);
        let name = format!("spilo-{}-{host}", self.tag);
        let port = format!("spv{}{host}", self.tag);
        ip(&["netns", "add", &name]).await?;
        sandbox.owns_namespace(&name);
        ip(&[
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name,
        ])
        .await?;
        sandbox.owns_link(&port);
        ip(&["link", "set", &port, "master", &self.name, "up"]).await?;
        ip(&[
            "-n",
            &name,
            "addr",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ])
        .await?;
        ip(&["-n", &name, "link", "set", "eth0", "up"]).await?;
        ip(&["-n", &name, "link", "set", "lo", "up"]).await?;
        Ok(Namespace {
            name,
            address,
            port,
        })
    }
}

impl Namespace {
    /// Drops every packet to and from the node, in silence: the link stays up, the bridge forwards
    /// nothing.
    pub(crate) async fn cut(&self) -> Result<()> {
        self.port_state(PORT_DISABLED).await
    }

    /// Lets packets through again.
    pub(crate) async fn heal(&self) -> Result<()> {
        self.port_state(PORT_FORWARDING).await
    }

    /// Drops every packet to another one.
    pub(crate) async fn lose(&self, other: &Self) -> Result<()> {
        self.route("add", other).await
    }

    /// Undoes [`Self::lose`].
    pub(crate) async fn find(&self, other: &Self) -> Result<()> {
        self.route("del", other).await
    }

    async fn route(&self, change: &str, other: &Self) -> Result<()> {
        let to = format!("{}/32", other.address);
        ip(&["-n", &self.name, "route", change, "blackhole", &to]).await
    }

    async fn port_state(&self, state: &str) -> Result<()> {
        run(
            Command::new("bridge").args(["link", "set", "dev", &self.port, "state", state]),
            LIMIT,
        )
        .await
        .map(drop)
    }
}

/// Runs a function on a thread that has entered a network namespace; sockets made there belong to
/// it for good.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file =
        File::open(format!("/run/netns/{namespace}")).context("the network namespace is gone")?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            Ok(work())
        });
        thread
            .join()
            .map_err(|_| anyhow!("the thread in the network namespace panicked"))?
    })
}

async fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments), LIMIT)
        .await
        .map(drop)
}

const LIMIT: Duration = Duration::from_secs(10);
const PORT_DISABLED: &str = "0";
const PORT_FORWARDING: &str = "3";
