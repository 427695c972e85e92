//! One node: an agent, its server, and what can be asked of either.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::exec;
use crate::http::Target;
use crate::net::Namespace;
use crate::ports::Port;
use crate::procs;
use crate::sandbox::Sandbox;

/// One node of a [`Cluster`](crate::Cluster).
///
/// SQL goes through the server's Unix socket, which works whatever is done to the node's network.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    program: PathBuf,
    pg_bin: PathBuf,
    rest: Target,
    pg_address: SocketAddr,
    namespace: Option<Namespace>,
    agent: Mutex<Option<Child>>,
    _ports: [Port; 2],
}

impl Node {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, with what the builder has just made"
    )]
    pub(crate) fn new(
        name: &str,
        sandbox: &Sandbox,
        program: PathBuf,
        pg_bin: PathBuf,
        rest_address: SocketAddr,
        pg_address: SocketAddr,
        namespace: Option<Namespace>,
        ports: [Port; 2],
    ) -> Result<Self> {
        let dir = sandbox.dir().join(name);
        for path in [dir.clone(), dir.join("s")] {
            std::fs::create_dir(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            exec::give_to_server_user(&path)?;
        }
        let rest = Target {
            address: rest_address,
            namespace: None,
        };
        let agent = Mutex::new(None);
        Ok(Self {
            name: name.to_owned(),
            dir,
            program,
            pg_bin,
            rest,
            pg_address,
            namespace,
            agent,
            _ports: ports,
        })
    }

    /// Returns the member's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the node's directory: configuration, sockets, data directory and the agent's log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Returns the directory of the server's Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// Returns the directory of PostgreSQL's programs.
    pub fn pg_bin(&self) -> &Path {
        &self.pg_bin
    }

    /// Returns the agent's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("agent.yml")
    }

    /// Returns the file with what the agent and its server print.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Returns the REST API as the harness reaches it.
    pub fn rest(&self) -> &Target {
        &self.rest
    }

    /// Returns the REST API as the node itself reaches it, whatever is done to its network.
    pub fn rest_from_within(&self) -> Target {
        Target {
            namespace: self.namespace.as_ref().map(|space| space.name.clone()),
            ..self.rest.clone()
        }
    }

    /// Returns the REST API's address.
    pub fn rest_address(&self) -> SocketAddr {
        self.rest.address
    }

    /// Returns the server's address.
    pub fn pg_address(&self) -> SocketAddr {
        self.pg_address
    }

    pub(crate) fn write_config(&self, config: &Value) -> Result<()> {
        let file = self.config_file();
        std::fs::write(&file, serde_yaml_ng::to_string(config)?)?;
        exec::give_to_server_user(&file)
    }

    /// Starts the agent, as the user `postgres` where the harness is root.
    ///
    /// # Errors
    ///
    /// Fails where the program cannot be started or an agent of this node is alive.
    pub fn start_agent(&self) -> Result<()> {
        let mut slot = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = slot.as_mut()
            && matches!(old.try_wait(), Ok(None))
        {
            bail!("the agent of {} is running", self.name);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let namespace = self.namespace.as_ref().map(|space| space.name.as_str());
        let line = exec::as_server_user(namespace, &self.program);
        let child = Command::new(&line[0])
            .args(&line[1..])
            .arg(self.config_file())
            .current_dir(&self.dir)
            // Found by the reaper even where a command line is changed and the directory left.
            .env("SPILO_HARNESS", &self.dir)
            .env("HOME", &self.dir)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the harness's group; agents end by the reaper, or by a fault.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        *slot = Some(child);
        Ok(())
    }

    /// Returns the agent's process id while it is alive.
    pub fn agent_pid(&self) -> Option<i32> {
        let mut slot = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let child = slot.as_mut()?;
        matches!(child.try_wait(), Ok(None))
            .then(|| i32::try_from(child.id()).expect("process ids are small"))
    }

    /// Returns how the agent that was started last has ended, if it has.
    pub fn agent_status(&self) -> Option<ExitStatus> {
        let mut slot = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_mut()?.try_wait().ok().flatten()
    }

    /// Returns the guard's process id while it is alive; Patroni has none.
    pub fn guard_pid(&self) -> Option<i32> {
        procs::guard(&self.dir, &self.data_dir())
    }

    /// Returns the postmaster's process id while it is alive.
    pub fn postmaster_pid(&self) -> Option<i32> {
        procs::postmaster(&self.data_dir())
    }

    /// Returns every process of the server that is alive, with or without its postmaster.
    pub fn server_pids(&self) -> Vec<i32> {
        procs::of_server(&self.data_dir())
    }

    /// Runs the program of backups that lies beside the agent, as the server's user and in the data
    /// directory, and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails where the program fails or takes longer than `limit`.
    pub async fn spilo_backup(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        self.spilo_backup_with(&[], arguments, limit).await
    }

    /// As [`spilo_backup`](Self::spilo_backup), with more in its environment.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn spilo_backup_with(
        &self,
        variables: &[(&str, String)],
        arguments: &[&str],
        limit: Duration,
    ) -> Result<String> {
        let program = self.program.with_file_name("spilo-backup");
        let line = exec::as_server_user(None, &program);
        let mut command = tokio::process::Command::new(&line[0]);
        command.args(&line[1..]).args(arguments);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.data_dir());
        exec::run(&mut command, limit).await
    }

    /// Sends a signal to the agent.
    ///
    /// # Errors
    ///
    /// Fails where it is not running.
    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        procs::signal(
            self.agent_pid()
                .with_context(|| format!("the agent of {} is not running", self.name))?,
            signal,
        );
        Ok(())
    }

    /// Sends a signal to the guard.
    ///
    /// # Errors
    ///
    /// Fails where there is none.
    pub fn signal_guard(&self, signal: Signal) -> Result<()> {
        procs::signal(
            self.guard_pid()
                .with_context(|| format!("{} has no guard", self.name))?,
            signal,
        );
        Ok(())
    }

    /// Sends a signal to the postmaster.
    ///
    /// # Errors
    ///
    /// Fails where it is not running.
    pub fn signal_postmaster(&self, signal: Signal) -> Result<()> {
        let pid = self
            .postmaster_pid()
            .with_context(|| format!("the server of {} is not running", self.name))?;
        procs::signal(pid, signal);
        Ok(())
    }

    /// Kills agent, guard and every process of the server with -9, as the loss of the machine
    /// would, and returns when none of them is left.
    pub fn kill_everything(&self) {
        loop {
            let mut pids: Vec<i32> = [self.agent_pid(), self.guard_pid()]
                .into_iter()
                .flatten()
                .collect();
            pids.extend(self.server_pids());
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                procs::signal(pid, Signal::SIGKILL);
            }
        }
    }

    /// Drops every packet to and from the node, without a sign of it to either side.
    ///
    /// # Errors
    ///
    /// Fails where the cluster was built without namespaces.
    pub async fn cut_network(&self) -> Result<()> {
        self.namespace
            .as_ref()
            .context("the cluster was built without namespaces")?
            .cut()
            .await
    }

    /// Undoes [`Self::cut_network`].
    ///
    /// # Errors
    ///
    /// Fails where the cluster was built without namespaces.
    pub async fn heal_network(&self) -> Result<()> {
        self.namespace
            .as_ref()
            .context("the cluster was built without namespaces")?
            .heal()
            .await
    }

    /// Connects to the server as superuser, in the database `postgres`; the connection ends with
    /// the client.
    ///
    /// # Errors
    ///
    /// Fails where the server does not accept it within 1 s.
    pub async fn connect(&self, application: &str) -> Result<tokio_postgres::Client> {
        Ok(self.door().open(application).await?.0)
    }

    /// Returns what is needed to connect, without borrowing the node.
    pub(crate) fn door(&self) -> Door {
        Door {
            socket_dir: self.socket_dir(),
            port: self.pg_address.port(),
        }
    }

    /// Runs a query and returns the first column of its rows, as text.
    ///
    /// # Errors
    ///
    /// Fails where the server is down or refuses, or takes longer than 10 s to accept the connection
    /// or to answer.
    pub async fn query_texts(&self, query: &str) -> Result<Vec<String>> {
        self.ask(query, QUERY_LIMIT).await
    }

    /// Does the same, and waits for the connection no longer than that.
    async fn ask(&self, query: &str, connect: Duration) -> Result<Vec<String>> {
        let (client, _) = self.door().open_within(connect, "spilo-harness").await?;
        let messages = timeout(QUERY_LIMIT, client.simple_query(query)).await??;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Reports whether the server is up and receives a stream of WAL.
    pub async fn receives(&self) -> bool {
        let query = "SELECT status FROM pg_stat_wal_receiver";
        let receiver = self.ask(query, CONNECT_LIMIT).await;
        receiver.is_ok_and(|status| status == ["streaming"])
    }

    /// Reports whether the server is up and out of recovery.
    pub async fn takes_writes(&self) -> bool {
        self.ask("SELECT pg_is_in_recovery()", CONNECT_LIMIT)
            .await
            .is_ok_and(|rows| rows == ["f"])
    }
}

/// The way into a server: its Unix socket.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    socket_dir: PathBuf,
    port: u16,
}

impl Door {
    /// Connects; aborting the task closes the socket, as the death of a client would.
    pub(crate) async fn open(
        &self,
        application: &str,
    ) -> Result<(tokio_postgres::Client, JoinHandle<()>)> {
        self.open_within(CONNECT_LIMIT, application).await
    }

    async fn open_within(
        &self,
        limit: Duration,
        application: &str,
    ) -> Result<(tokio_postgres::Client, JoinHandle<()>)> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user("postgres")
            .dbname("postgres")
            .application_name(application)
            // Writers on standbys are refused a hundred times a second, which is no news for the
            // server's log.
            .options("-c log_min_messages=fatal");
        let (client, connection) = timeout(limit, config.connect(NoTls)).await??;
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok((client, task))
    }
}

/// A frozen postmaster accepts into its backlog and never answers: a writer must not wait for it.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Far more than a busy machine takes for what is asked of a server that lives.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
