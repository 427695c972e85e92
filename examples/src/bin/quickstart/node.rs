//! One node: its agent, its HTTP API, its guard and its server.

use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use serde_json::{Map, Value, json};
use spilo_api::{Api, ApiOptions, HttpPeers, PeerOptions, serve};
use spilo_core::agent::{Agent, AgentHandle, Backends};
use spilo_core::machine::{Exit, Identity};
use spilo_core::status::Status;
use spilo_core::{DynamicConfig, MemberName, Scope};
use spilo_pg::{
    Backups, BootClock, Credentials, GuardKeeper, GuardOptions, LocalOptions, Recovery,
};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::archive::Archive;
use crate::ports::Port;
use crate::store::Store;

/// What all nodes have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) scope: Scope,
    pub(crate) bin_dir: PathBuf,
    pub(crate) ttl: Duration,
    /// The password of the superuser and of the user that replicas stream as.
    pub(crate) password: String,
    /// Whom PostgreSQL runs as, where we are root, which it refuses to be.
    pub(crate) owner: Option<(u32, u32)>,
    /// Where log and backups go, if anywhere.
    pub(crate) archive: Option<Arc<Archive>>,
}

/// A node, running or dead.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: MemberName,
    dir: PathBuf,
    postgres_port: Port,
    api_port: Port,
    /// The backup that its cluster begins with, if it is new.
    pub(crate) recovery: Option<Recovery>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    handle: AgentHandle,
    /// The agent, which ends with what made it end, and the HTTP API, which does not.
    tasks: JoinSet<Option<Exit>>,
}

impl Common {
    /// Finds out whom PostgreSQL can run as, and invents a password.
    pub(crate) fn new(bin_dir: PathBuf, ttl: Duration) -> Result<Self> {
        let owner = if geteuid().is_root() {
            let user = User::from_name("postgres").context("cannot look up the user postgres")?;
            let user =
                user.context("PostgreSQL refuses to run as root, and there is no user postgres")?;
            Some((user.uid.as_raw(), user.gid.as_raw()))
        } else {
            None
        };
        // Anybody on this machine reaches the ports, and a superuser runs programs.
        let mut random = [0_u8; 12];
        let mut source =
            std::fs::File::open("/dev/urandom").context("cannot make up a password")?;
        std::io::Read::read_exact(&mut source, &mut random).context("cannot make up a password")?;
        let password = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            scope: Scope::new("demo")?,
            bin_dir,
            ttl,
            password,
            owner,
            archive: None,
        })
    }

    /// Returns what the nodes of another cluster have in common, whose log is not archived.
    pub(crate) fn of_scope(&self, scope: Scope) -> Self {
        Self {
            scope,
            bin_dir: self.bin_dir.clone(),
            ttl: self.ttl,
            password: self.password.clone(),
            owner: self.owner,
            archive: None,
        }
    }
}

impl Node {
    /// Creates a node that has nothing yet.
    pub(crate) fn new(number: u8, place: &Path, common: &Common) -> Result<Self> {
        let name = format!("node-{number}");
        let dir = place.join(&name);
        // The server's user makes the data directory, and nobody else looks into it.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        if let Some((uid, gid)) = common.owner {
            chown(&dir, Some(uid), Some(gid)).context("cannot give a directory to postgres")?;
        }
        let (postgres_port, api_port) = (Port::reserve()?, Port::reserve()?);
        Ok(Self {
            name: MemberName::new(name)?,
            dir,
            postgres_port,
            api_port,
            recovery: None,
            running: None,
        })
    }

    /// Starts the agent, which does the rest: makes or copies the data, starts the server, follows
    /// or leads.
    pub(crate) async fn start(&mut self, common: &Common, store: &Store) -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", self.api_port.number()))
            .with_context(|| format!("{}: cannot listen on {}", self.name, self.api_url()))?;
        let options = self.options(common);
        let guard = GuardOptions::new(options.guard_dir());
        let (keeper, postgres) =
            GuardKeeper::start(guard, options, Arc::new(BootClock::default())).await?;
        let backends = Backends {
            dcs: store.cluster(&common.scope)?,
            postgres,
            guard: keeper,
            peers: Arc::new(HttpPeers::new(PeerOptions::default())?),
            clock: Arc::new(BootClock::default()),
        };
        let (agent, handle) = Agent::new(self.identity(common)?, backends);
        let api = Api::new(Arc::new(handle.clone()), ApiOptions::default())?;
        let mut tasks = JoinSet::new();
        if let Some(archive) = &common.archive {
            let (store, data_dir) = (archive.store(Some(self.archiver())), self.data_dir());
            tasks.spawn(async move {
                store.archive(&data_dir).await;
                None
            });
        }
        // The span tells whose decision it is: all agents log into the same place here.
        let span = tracing::info_span!("agent", node = self.name.as_str());
        tasks.spawn(async move { Some(agent.run().await) }.instrument(span));
        let router = api.router();
        tasks.spawn(async move {
            if let Err(error) = serve(listener, router, None, std::future::pending()).await {
                tracing::error!("the HTTP API has ended: {error}");
            }
            None
        });
        self.running = Some(Running { handle, tasks });
        Ok(())
    }

    /// Kills the server's postmaster with -9, and ends the agent and its API in the same moment.
    /// Returns the postmaster's process id.
    pub(crate) async fn kill(&mut self) -> Result<i32> {
        let pid = self
            .postmaster()
            .with_context(|| format!("{} has no postmaster", self.name))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .with_context(|| format!("cannot kill {pid}, the postmaster of {}", self.name))?;
        self.drop_agent().await;
        Ok(pid)
    }

    /// Ends the agent and its API; touches neither guard nor server.
    pub(crate) async fn drop_agent(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.tasks.shutdown().await;
        }
    }

    /// Returns what the node says of itself; nothing if it is dead.
    pub(crate) fn status(&self) -> Option<Arc<Status>> {
        self.running.as_ref().map(|running| running.handle.status())
    }

    /// Returns how much longer the node may write; nothing if it may not.
    pub(crate) fn permission_left(&self) -> Option<Duration> {
        let handle = &self.running.as_ref()?.handle;
        let left = handle.status().leadership?.until.since(handle.now());
        (!left.is_zero()).then_some(left)
    }

    /// Returns whether the node may take writes, and its server does.
    pub(crate) fn is_writable(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.handle.status().is_writable(running.handle.now()))
    }

    /// Returns why the agent has ended by itself, if it has.
    pub(crate) fn exit(&mut self) -> Option<String> {
        let ended = self.running.as_mut()?.tasks.try_join_next()?;
        Some(match ended {
            Ok(Some(Exit::Fatal(why))) => why,
            Ok(Some(exit)) => format!("{exit:?}"),
            Ok(None) => "its HTTP API has ended".to_owned(),
            Err(error) => error.to_string(),
        })
    }

    /// Returns the port of the server.
    pub(crate) fn postgres_port(&self) -> u16 {
        self.postgres_port.number()
    }

    /// Returns the port of the HTTP API.
    pub(crate) fn api_port(&self) -> u16 {
        self.api_port.number()
    }

    /// Returns the URL of the HTTP API.
    pub(crate) fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port.number())
    }

    /// Returns the data directory of the server.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Returns how the superuser connects to the server.
    pub(crate) fn conninfo(&self, common: &Common) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres password={}",
            self.postgres_port(),
            common.password
        )
    }

    /// Returns where the archiver of the server works.
    fn archiver(&self) -> PathBuf {
        self.dir.join("archiver")
    }

    fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    fn identity(&self, common: &Common) -> Result<Identity> {
        let mut seed = Map::new();
        seed.insert("ttl".to_owned(), common.ttl.as_secs().into());
        let seed = DynamicConfig::seed(&seed).map_err(anyhow::Error::msg)?;
        Ok(Identity {
            scope: common.scope.clone(),
            name: self.name.clone(),
            conn_url: format!(
                "postgres://127.0.0.1:{}/postgres",
                self.postgres_port.number()
            ),
            api_url: format!("{}/patroni", self.api_url()),
            proxy_url: None,
            tags: Map::new(),
            bootstrap: Some(Arc::new(seed)),
            fence_budget: FENCE_BUDGET,
        })
    }

    fn options(&self, common: &Common) -> LocalOptions {
        let data_dir = self.dir.join("data");
        let port = self.postgres_port.number();
        let mut options =
            LocalOptions::new(common.scope.clone(), self.name.clone(), data_dir, port);
        options.bin_dir = Some(common.bin_dir.clone());
        options.uid_gid = common.owner;
        options.superuser = Credentials::new("postgres", Some(common.password.clone()));
        options.replication = Credentials::new("replicator", Some(common.password.clone()));
        options.pg_hba = Some(
            ["all all", "replication replicator"]
                .map(|who| format!("host {who} 127.0.0.1/32 scram-sha-256"))
                .to_vec(),
        );
        options.parameters = parameters();
        if let Some(archive) = &common.archive {
            // Small files of the log, so that what takes hours elsewhere takes seconds here.
            options.initdb = vec!["--wal-segsize=1".to_owned()];
            let store = archive.store(Some(self.archiver()));
            options.backups = Some(Backups::new(Arc::new(store)));
        }
        options.recovery.clone_from(&self.recovery);
        options
    }
}

/// What differs from a server as it comes. Durability is as it comes: every commit is on disk.
fn parameters() -> Map<String, Value> {
    let Value::Object(parameters) = json!({
        // Several servers on one machine, which may be small.
        "shared_buffers": "32MB",
        // The default lies outside the directory that we remove.
        "unix_socket_directories": "",
        // In files of the data directory: a server that is killed leaves it behind otherwise.
        "dynamic_shared_memory_type": "mmap",
    }) else {
        unreachable!("it is an object")
    };
    parameters
}

/// The library's own measure of a fence at its worst; see the documentation of the guard.
const FENCE_BUDGET: Duration = Duration::from_millis(250);
