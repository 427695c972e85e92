//! The embedding program of the README, as a real node on a real etcd.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is a test: only functions marked so are exempt"
)]

use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use spilo_benches::http::Target;
use spilo_benches::ports::Port;
use spilo_benches::sandbox::Sandbox;
use spilo_benches::{Store, StoreKind, give_to_server_user, procs};
use tokio::time::sleep;
use tokio_postgres::{Config, NoTls};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_embedding_program_becomes_a_primary_and_ends_when_it_is_interrupted() {
    let store = Store::start(StoreKind::Etcd, 1).await.unwrap();
    let etcd = store.etcd().unwrap();
    let mut node = Embedded::start(&etcd.endpoints()[0]);
    node.wait_primary().await;
    let rows = node.write().await.unwrap();
    assert_eq!(rows, 3, "{}", node.log());
    let leader = etcd.get("/service/demo/leader").await.unwrap();
    assert_eq!(leader.as_deref(), Some("n1"));
    // Something runs that could stay: else the rest would show nothing.
    assert_ne!(node.processes(), Vec::<String>::new());

    procs::signal(node.pid(), Signal::SIGINT);
    let status = node.wait_end().await;
    assert!(status.success(), "{status}:\n{}", node.log());
    let leader = etcd.get("/service/demo/leader").await.unwrap();
    assert_eq!(leader, None, "the lock was not handed over");
    // A guard without an agent waits a while for another.
    let limit = Instant::now() + LIMIT;
    while !node.processes().is_empty() {
        assert!(Instant::now() < limit, "left: {:?}", node.processes());
        sleep(PAUSE).await;
    }
    assert!(!node.data_dir().join("postmaster.pid").exists());
}

/// The program, running with its server in a directory that ends with it.
struct Embedded {
    sandbox: Sandbox,
    child: Child,
    sql: Port,
    rest: Port,
}

impl Embedded {
    fn start(etcd: &str) -> Self {
        let sandbox = Sandbox::new().unwrap();
        // Where PostgreSQL's user can reach it.
        let program = sandbox.dir().join("embed");
        fs::copy(env!("CARGO_BIN_EXE_embed"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let home = sandbox.dir().join("n1");
        fs::create_dir(&home).unwrap();
        give_to_server_user(&home).unwrap();
        let (sql, rest) = (Port::reserve().unwrap(), Port::reserve().unwrap());
        let log = File::create(sandbox.dir().join("log")).unwrap();
        let mut command = if Uid::effective().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            command.args(["--inh-caps=-all"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let child = command
            .arg("n1")
            .arg(home.join("data"))
            .args([sql.number(), rest.number()].map(|port| port.to_string()))
            .arg(etcd)
            .env("PATH", format!("{}:{path}", pg_bin().display()))
            .env("PGPASSWORD", PASSWORD)
            .env("HOME", &home)
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            sandbox,
            child,
            sql,
            rest,
        }
    }

    async fn wait_primary(&mut self) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.rest.number()));
        let rest = Target::from(address);
        let limit = Instant::now() + LIMIT;
        loop {
            let answer = rest.get("/primary", Duration::from_secs(1)).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "it has ended:\n{}", self.log());
            assert!(Instant::now() < limit, "no primary:\n{}", self.log());
            sleep(PAUSE).await;
        }
    }

    /// Writes a few rows as the superuser over TCP, and returns how many are there then.
    async fn write(&self) -> Result<i64, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.sql.number());
        config.user("postgres").password(PASSWORD);
        config.connect_timeout(LIMIT);
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        client
            .batch_execute("CREATE TABLE rows (n int); INSERT INTO rows VALUES (1), (2), (3)")
            .await?;
        let count = client.query_one("SELECT count(*) FROM rows", &[]).await?;
        drop(client);
        connection.await.unwrap()?;
        Ok(count.get(0))
    }

    async fn wait_end(&mut self) -> ExitStatus {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < limit, "it goes on:\n{}", self.log());
            sleep(PAUSE).await;
        }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn data_dir(&self) -> PathBuf {
        self.sandbox.dir().join("n1/data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sandbox.dir().join("log")).unwrap_or_default()
    }

    /// Returns the command lines of the program, its guard and its server.
    fn processes(&self) -> Vec<String> {
        let dir = self.sandbox.dir();
        let all = procs::all().into_iter();
        all.filter(|it| {
            let works_there = it
                .directory
                .as_deref()
                .is_some_and(|at| at.starts_with(dir));
            works_there || it.command.contains(&dir.display().to_string())
        })
        .map(|it| it.command)
        .collect()
    }
}

/// Returns the directory of PostgreSQL's programs.
fn pg_bin() -> PathBuf {
    let named = std::env::var_os("SPILO_PG15_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"))
}

const PASSWORD: &str = "harness-super";

/// Far more than a healthy machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
