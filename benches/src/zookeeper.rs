//! A real ZooKeeper, of one server or three.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use zookeeper_client::{Client, Error};

use crate::exec;
use crate::net::Place;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::service::Service;

/// A running ZooKeeper of one or three servers on free ports, in a directory of its own; all ends
/// when it is dropped. Its ticks are of 2 s, as where nobody has changed them.
#[derive(Debug)]
pub struct ZooKeeper {
    servers: Vec<Server>,
    _sandbox: Arc<Sandbox>,
}

#[derive(Debug)]
struct Server {
    endpoint: String,
    service: Service,
    _ports: [Port; 3],
}

impl ZooKeeper {
    /// Starts a server in each place.
    pub(crate) async fn start_in(sandbox: Arc<Sandbox>, places: &[Place]) -> Result<Self> {
        let mut ports = Vec::new();
        for _ in places {
            ports.push([Port::reserve()?, Port::reserve()?, Port::reserve()?]);
        }
        let mut others = String::new();
        if places.len() > 1 {
            for (number, [_, quorum, election]) in ports.iter().enumerate() {
                let host = places[number].address;
                let (quorum, election) = (quorum.number(), election.number());
                writeln!(others, "server.{number}={host}:{quorum}:{election}")?;
            }
        }
        let java = exec::find_program(["java"]).context("ZooKeeper's java is not installed")?;
        let classes = std::env::var_os("SPILO_ZOOKEEPER")
            .map_or_else(|| PathBuf::from(CLASSES), PathBuf::from);
        if !classes.exists() {
            bail!(
                "ZooKeeper is not installed: there is no {}",
                classes.display()
            );
        }
        let mut servers = Vec::new();
        for (number, (place, ports)) in places.iter().zip(ports).enumerate() {
            let host = place.address;
            let name = format!("z{number}");
            let directory = sandbox.dir().join(&name);
            std::fs::create_dir(&directory)?;
            std::fs::write(directory.join("myid"), number.to_string())?;
            let client = ports[0].number();
            let config = format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={client}\n\
                 clientPortAddress={host}\nadmin.enableServer=false\n\
                 4lw.commands.whitelist=srvr\n{others}",
                directory.display()
            );
            let file = sandbox.dir().join(format!("{name}.cfg"));
            std::fs::write(&file, config)?;
            let arguments = [
                "-Xmx128m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                &classes.display().to_string(),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                &file.display().to_string(),
            ]
            .map(str::to_owned);
            let log = sandbox.dir().join(format!("{name}.log"));
            let service = Service::new(java.clone(), arguments.into(), log).inside(place);
            service.spawn()?;
            servers.push(Server {
                endpoint: format!("{host}:{client}"),
                service,
                _ports: ports,
            });
        }
        let zookeeper = Self {
            servers,
            _sandbox: sandbox,
        };
        zookeeper.wait_healthy(Duration::from_secs(60)).await?;
        Ok(zookeeper)
    }

    pub(crate) fn processes(&self) -> Vec<&Service> {
        self.servers.iter().map(|server| &server.service).collect()
    }

    /// Returns the addresses of all servers, as Patroni's `zookeeper.hosts` wants them.
    pub fn hosts(&self) -> Vec<String> {
        let hosts = self.servers.iter();
        hosts.map(|server| server.endpoint.clone()).collect()
    }

    /// Waits until every server leads, follows or is the only one.
    ///
    /// # Errors
    ///
    /// Fails after `limit`.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        for number in 0..self.servers.len() {
            while let Err(problem) = self.mode(number).await {
                if Instant::now() > end {
                    return Err(
                        problem.context(format!("z{number} is not healthy after {limit:?}"))
                    );
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Returns what a server is: `leader`, `follower` or `standalone`.
    ///
    /// # Errors
    ///
    /// Fails where it is none of these, or does not answer within a second.
    pub async fn mode(&self, server: usize) -> Result<String> {
        let ask = async {
            let mut stream = TcpStream::connect(&self.servers[server].endpoint).await?;
            stream.write_all(b"srvr").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(Duration::from_secs(1), ask).await??;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.map(str::to_owned).context(answer.clone())
    }

    /// Returns the place of the leader among several servers.
    ///
    /// # Errors
    ///
    /// Fails where none of them leads.
    pub async fn leader(&self) -> Result<usize> {
        for number in 0..self.servers.len() {
            if self.mode(number).await.is_ok_and(|mode| mode == "leader") {
                return Ok(number);
            }
        }
        bail!("no server leads")
    }

    /// Deletes a node; one that is not there is as good.
    ///
    /// # Errors
    ///
    /// Fails where no server answers, or others stand below it.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.client().await?.delete(path, None).await {
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) => Err(error).context(format!("delete {path}")),
        }
    }

    /// Deletes a node and all below it.
    ///
    /// # Errors
    ///
    /// Fails where no server answers.
    pub async fn delete_all(&self, path: &str) -> Result<()> {
        let client = self.client().await?;
        let mut left = vec![path.to_owned()];
        while let Some(at) = left.last().cloned() {
            match client.delete(&at, None).await {
                Ok(()) | Err(Error::NoNode) => drop(left.pop()),
                Err(Error::NotEmpty) => {
                    let names = client.list_children(&at).await?;
                    left.extend(names.into_iter().map(|name| format!("{at}/{name}")));
                }
                Err(error) => return Err(error).context(format!("delete {at}")),
            }
        }
        Ok(())
    }

    async fn client(&self) -> Result<Client> {
        let hosts = self.hosts().join(",");
        let connector = Client::connector().with_fail_eagerly();
        connector.connect(&hosts).await.context(hosts)
    }
}

/// Where Debian has the classes.
const CLASSES: &str = "/usr/share/java/zookeeper.jar";
