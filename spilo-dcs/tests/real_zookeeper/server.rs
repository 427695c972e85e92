//! A ZooKeeper server of a test's own.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use spilo_core::conformance::dcs::Laboratory;
use spilo_core::{Dcs, Scope};
use spilo_dcs::{ZooKeeper, ZooKeeperOptions};
use tempfile::TempDir;
use zookeeper_client::Client;

use crate::ports::free_ports;
use crate::signal::send;

/// One server on ports and a directory of its own, gone when it is dropped.
#[derive(Debug)]
pub(crate) struct ZooKeeperServer {
    process: Option<Child>,
    java: &'static [&'static str],
    directory: TempDir,
    port: u16,
    started: Instant,
}

/// Servers that elect a leader among them.
#[derive(Debug)]
pub(crate) struct Ensemble {
    pub(crate) servers: Vec<ZooKeeperServer>,
}

impl ZooKeeperServer {
    /// Starts a server that grants short sessions, and waits until it takes writes.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server whose Java takes further arguments.
    pub(crate) async fn start_with(java: &'static [&'static str]) -> Self {
        let mut server = Self::new(free_ports(1)[0], "");
        server.java = java;
        server.run();
        server.until_ready().await;
        server
    }

    fn new(port: u16, extra: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        // Tests of leases would take minutes with sessions of 4 s and more.
        let config = format!(
            "tickTime={}\ninitLimit=20\nsyncLimit=5\ndataDir={path}/data\nclientPort={port}\n\
             clientPortAddress=127.0.0.1\nmaxSessionTimeout=3600000\nadmin.enableServer=false\n\
             4lw.commands.whitelist=*\n{extra}",
            TICK.as_millis()
        );
        std::fs::create_dir(directory.path().join("data")).unwrap();
        std::fs::write(directory.path().join("zoo.cfg"), config).unwrap();
        Self {
            process: None,
            java: &[],
            directory,
            port,
            started: Instant::now(),
        }
    }

    /// Starts the process.
    pub(crate) fn run(&mut self) {
        let classes = std::env::var_os("SPILO_ZOOKEEPER")
            .unwrap_or_else(|| "/usr/share/java/zookeeper.jar".into());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let process = Command::new("java")
            .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(self.java)
            .arg("-cp")
            .arg(&classes)
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(self.directory.path().join("zoo.cfg"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run java: {error}; `cargo xtask setup --full` installs ZooKeeper")
            });
        self.process = Some(process);
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Sends the process a signal, as in `kill -STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        send(self.process.as_ref().expect("it runs"), signal);
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn options(&self) -> ZooKeeperOptions {
        options([self.host()])
    }

    pub(crate) fn zookeeper(&self) -> ZooKeeper {
        ZooKeeper::new(self.options()).unwrap()
    }

    /// Returns a client of the library's own, to look behind the backend's back.
    pub(crate) async fn client(&self) -> Client {
        let connector = Client::connector().with_fail_eagerly();
        connector.connect(&self.host()).await.unwrap()
    }

    pub(crate) async fn until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let connector = Client::connector().with_fail_eagerly();
            let connected = connector.connect(&self.host()).await;
            if connected.is_ok() {
                return;
            }
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            assert!(Instant::now() < deadline, "{connected:?}\n{log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns what the server is: `leader`, `follower` or `standalone`; none while it is nothing.
    pub(crate) fn mode(&self) -> Option<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"srvr").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let mode = answer
            .lines()
            .find_map(|line| line.strip_prefix("Mode: "))?;
        Some(mode.to_owned())
    }
}

impl Ensemble {
    /// Starts three servers, and waits until each is a leader or follows one.
    pub(crate) async fn start() -> Self {
        let ports = free_ports(9);
        let mut extra = String::new();
        for (n, ports) in ports[3..].chunks(2).enumerate() {
            let (quorum, election) = (ports[0], ports[1]);
            extra += &format!("server.{}=127.0.0.1:{quorum}:{election}\n", n + 1);
        }
        let mut servers = Vec::new();
        for (n, port) in ports.iter().take(3).enumerate() {
            let mut server = ZooKeeperServer::new(*port, &extra);
            let id = server.directory.path().join("data/myid");
            std::fs::write(id, (n + 1).to_string()).unwrap();
            server.run();
            servers.push(server);
        }
        for server in &servers {
            server.until_ready().await;
        }
        Self { servers }
    }

    pub(crate) fn zookeeper(&self) -> ZooKeeper {
        let hosts = self.servers.iter().map(ZooKeeperServer::host);
        ZooKeeper::new(options(hosts)).unwrap()
    }

    /// Returns the place of the leader.
    pub(crate) fn leader(&self) -> usize {
        let is_leader = |server: &ZooKeeperServer| server.mode().as_deref() == Some("leader");
        self.servers.iter().position(is_leader).expect("a leader")
    }
}

#[async_trait]
impl Laboratory for ZooKeeperServer {
    async fn node(&self) -> Arc<dyn Dcs> {
        Arc::new(self.zookeeper())
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        let client = self.client().await;
        client.delete("/service/demo/leader", None).await.unwrap();
    }
}

impl Drop for ZooKeeperServer {
    fn drop(&mut self) {
        if let Some(process) = self.process.as_mut() {
            // Best effort: a test may have ended it already.
            process.kill().ok();
            process.wait().ok();
        }
    }
}

pub(crate) fn options(hosts: impl IntoIterator<Item = String>) -> ZooKeeperOptions {
    let mut options = ZooKeeperOptions::new(Scope::new("demo").unwrap(), hosts);
    options.tick_time = TICK;
    options
}

/// Short, so that sessions of two seconds are granted.
pub(crate) const TICK: Duration = Duration::from_secs(1);
