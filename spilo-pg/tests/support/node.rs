//! One node for tests: a data directory, a guard and the handle under test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "../../../spilo-dcs/tests/ports/ports.rs"]
mod ports;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use spilo_core::dcs::LeaseSecret;
use spilo_core::guard::{Deadline, Guard as _};
use spilo_core::ids::{Epoch, MemberName, Scope};
use spilo_core::pg::{
    Control, DataDir, PgError, PgOp, PgStatus, Postgres as _, Progress, Role, Running, Server,
    StartRole, Upstream,
};
use spilo_core::{DynamicConfig, Revision};
use spilo_pg::guard::{boot_time, fence_without_guard};
use spilo_pg::{BootClock, Credentials, GuardClient, GuardOptions, LocalOptions, LocalPostgres};
use tempfile::TempDir;
use tokio_postgres::NoTls;

use ports::free_ports;

/// The programs of one version of PostgreSQL.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) bin_dir: PathBuf,
}

impl Version {
    /// Returns the programs of a version; `None` only for one that this machine need not have.
    ///
    /// Version 15 is always needed; the others when `SPILO_PG_ALL` or `CI` is set.
    pub(crate) fn find(name: &'static str) -> Option<Self> {
        let variable = format!("SPILO_PG{name}_BIN");
        let bin_dir = std::env::var_os(&variable).map_or_else(
            || PathBuf::from(format!("/usr/lib/postgresql/{name}/bin")),
            PathBuf::from,
        );
        if bin_dir.join("postgres").is_file() {
            return Some(Self { bin_dir });
        }
        let wanted = ["SPILO_PG_ALL", "CI"]
            .iter()
            .any(|name| std::env::var_os(name).is_some());
        assert!(
            name != "15" && !wanted,
            "PostgreSQL {name} is not in {}; install it or set {variable}",
            bin_dir.display()
        );
        eprintln!(
            "NOT RUN: PostgreSQL {name} is not in {} (set {variable})",
            bin_dir.display()
        );
        None
    }
}

/// A directory for the nodes of one test.
pub(crate) fn sandbox() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("spilo-pg-")
        .tempdir()
        .unwrap();
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
    }
    dir
}

/// The user that servers run as, when the test runs as root.
pub(crate) fn owner() -> Option<(u32, u32)> {
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("a user postgres");
    let fields: Vec<_> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

pub(crate) struct Node {
    pub(crate) postgres: LocalPostgres,
    pub(crate) guard: Arc<GuardClient>,
    pub(crate) data_dir: PathBuf,
    pub(crate) port: u16,
    name: MemberName,
}

impl Node {
    pub(crate) async fn new(version: &Version, dir: &Path, name: &str) -> Self {
        Self::with(version, dir, name, |_| {}).await
    }

    pub(crate) async fn with(
        version: &Version,
        dir: &Path,
        name: &str,
        change: impl FnOnce(&mut LocalOptions),
    ) -> Self {
        let run_dir = dir.join(format!("{name}.run"));
        let mut guard_options = GuardOptions::new(&run_dir);
        guard_options.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_spilo-guard")));
        let guard = Arc::new(GuardClient::connect_or_spawn(&guard_options).await.unwrap());
        let port = free_ports(1)[0];
        let member = MemberName::new(name).unwrap();
        let data_dir = dir.join(name);
        let mut options = LocalOptions::new(
            Scope::new("conformance").unwrap(),
            member.clone(),
            &data_dir,
            port,
        );
        options.bin_dir = Some(version.bin_dir.clone());
        options.uid_gid = owner();
        options.superuser = Credentials::new("postgres", Some("super:secret".to_owned()));
        options.replication = Credentials::new("replicator", Some(r"repl\secret".to_owned()));
        options.rewind = Some(Credentials::new(
            "rewinder",
            Some("rewind secret".to_owned()),
        ));
        options.pg_ctl_timeout = Duration::from_secs(30);
        change(&mut options);
        let postgres =
            LocalPostgres::new(options, Arc::clone(&guard), Arc::new(BootClock::default()));
        Self {
            postgres,
            guard,
            data_dir,
            port,
            name: member,
        }
    }

    pub(crate) fn upstream(&self) -> Upstream {
        let conn_url = format!("postgres://127.0.0.1:{}/postgres", self.port);
        Upstream {
            name: self.name.clone(),
            conn_url,
        }
    }

    pub(crate) fn name(&self) -> MemberName {
        self.name.clone()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.data_dir.with_file_name(format!("{}.spilo", self.name))
    }

    pub(crate) async fn arm(&self, epoch: u64) {
        let now = boot_time();
        let deadline = Deadline {
            epoch: Epoch(epoch),
            secret: LeaseSecret("secret".to_owned()),
            soft: now + Duration::from_secs(100),
            hard: now + Duration::from_secs(110),
        };
        self.guard.arm(deadline).await.unwrap();
    }

    pub(crate) async fn run(&self, op: PgOp) {
        let what = format!("{op:?}");
        self.try_run(op)
            .await
            .unwrap_or_else(|error| panic!("{}: {what}: {error}\n{}", self.name, self.log()));
    }

    /// Returns the last lines of the server's log.
    fn log(&self) -> String {
        let path = self.state_dir().join("postmaster.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    pub(crate) async fn try_run(&self, op: PgOp) -> Result<(), PgError> {
        self.postgres.run(op, Progress::default()).await
    }

    /// Makes a new cluster, with slots for `members`.
    pub(crate) async fn bootstrap(&self, members: &[&str]) {
        self.bootstrap_with(json!({}), members).await;
    }

    /// The same, with parameters of the server.
    pub(crate) async fn bootstrap_with(&self, parameters: Value, members: &[&str]) {
        self.arm(1).await;
        self.run(PgOp::Bootstrap {
            config: Arc::new(config(parameters)),
        })
        .await;
        self.run(PgOp::Confirm).await;
        let wanted: BTreeSet<_> = members
            .iter()
            .map(|name| MemberName::new(*name).unwrap().slot())
            .collect();
        self.run(PgOp::Slots { wanted }).await;
    }

    /// Makes a copy of `from` and starts it.
    pub(crate) async fn join(&self, from: &Self) {
        let config = Arc::new(config(json!({})));
        self.run(PgOp::Configure {
            revision: Revision(1),
            config,
        })
        .await;
        self.run(PgOp::Clone {
            from: from.upstream(),
            replace: None,
        })
        .await;
        self.follow_from_start(from).await;
    }

    pub(crate) async fn follow_from_start(&self, from: &Self) {
        let role = StartRole::Standby {
            upstream: Some(from.upstream()),
        };
        self.run(PgOp::Start { role }).await;
        self.until_streaming().await;
    }

    pub(crate) async fn until_streaming(&self) {
        self.until("it streams", |status| {
            match status.running().map(|r| &r.role) {
                Some(Role::Standby { streaming, .. }) => *streaming,
                _ => false,
            }
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&PgStatus) -> bool) -> PgStatus {
        let mut last = None;
        for _ in 0..1000 {
            let status = self.postgres.observe().await.unwrap();
            if holds(&status) {
                return status;
            }
            last = Some(status);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{}: waited in vain until {what}: {last:#?}\n{}",
            self.name,
            self.log()
        );
    }

    pub(crate) async fn running(&self) -> Running {
        match self.postgres.observe().await.unwrap().server {
            Server::Running(running) => *running,
            other => panic!("{} does not run: {other:?}", self.name),
        }
    }

    pub(crate) async fn control(&self) -> Control {
        match self.postgres.observe().await.unwrap().data {
            DataDir::Ready(control) => control,
            other => panic!("{} has no data: {other:?}", self.name),
        }
    }

    /// Runs statements as a client would, and returns the last value that comes back.
    pub(crate) async fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).await.unwrap()
    }

    /// Runs statements as a client would that may find the server gone.
    pub(crate) async fn try_sql(&self, statements: &str) -> Result<String, tokio_postgres::Error> {
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres password=super:secret dbname=postgres",
            self.port
        );
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
        let driver = tokio::spawn(connection);
        let messages = client.simple_query(statements).await;
        driver.abort();
        let mut value = String::new();
        for message in messages? {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                value = row.get(0).unwrap_or_default().to_owned();
            }
        }
        Ok(value)
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        spilo_pg::guard::server_processes(&self.data_dir).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever the test came to, nothing stays: neither the server nor its guard.
        let pid = i32::try_from(self.guard.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if self.data_dir.exists() {
            fence_without_guard(&self.data_dir).expect("the server of a test could not be ended");
        }
    }
}

/// A dynamic configuration with fast retries and with `postgresql.parameters`.
pub(crate) fn config(parameters: Value) -> DynamicConfig {
    let mut bootstrap = Map::new();
    let postgresql = json!({
        "parameters": { "wal_retrieve_retry_interval": "100ms", "unix_socket_directories": "" },
        "pg_hba": [
            "host all all 127.0.0.1/32 scram-sha-256",
            "host replication replicator 127.0.0.1/32 scram-sha-256",
        ],
    });
    bootstrap.insert("postgresql".to_owned(), postgresql);
    let Value::Object(change) = json!({ "postgresql": { "parameters": parameters } }) else {
        unreachable!()
    };
    spilo_core::config::patch(&mut bootstrap, &change);
    DynamicConfig::seed(&bootstrap).unwrap()
}
