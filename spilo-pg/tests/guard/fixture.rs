//! A PostgreSQL server under a guard of its own, and what watches it from outside.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use spilo_core::dcs::LeaseSecret;
use spilo_core::guard::{Deadline, Guard as _};
use spilo_core::ids::Epoch;
use spilo_core::time::NodeTime;
use spilo_pg::guard::{
    GuardClient, GuardOptions, Launch, Role, boot_time, fence_without_guard, server_processes,
};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

/// The fence's own worst time that the agent reckons with by default.
pub(crate) const MARGIN: Duration = Duration::from_millis(250);

/// A data directory, the guard for it and a handle on the guard.
pub(crate) struct Node {
    dir: TempDir,
    guard: u32,
    agent: Option<GuardClient>,
}

impl Node {
    /// Makes a new cluster and starts a guard, without starting the server.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let home = dir.path().join("pg");
        fs::create_dir(&home).unwrap();
        if let Some((uid, gid)) = server_user() {
            chown(&home, Some(uid), Some(gid)).unwrap();
        }
        let data = home.join("data");
        run(as_server(&program("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-N", "-D"])
            .arg(&data));
        let conf = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 330\n\
             fsync = off\nautovacuum = off\nshared_buffers = 64MB\nmax_wal_size = 4GB\n",
            home.display()
        );
        fs::write(data.join("postgresql.auto.conf"), conf).unwrap();
        let client = GuardClient::connect_or_spawn(&options(dir.path()))
            .await
            .unwrap();
        assert!(!client.is_adopted());
        Self {
            dir,
            guard: client.pid(),
            agent: Some(client),
        }
    }

    /// Makes a new cluster, starts it as a primary, waits until it takes connections, and lets it
    /// write for so long from then on.
    pub(crate) async fn primary(soft: Duration, hard: Duration) -> (Self, Deadline) {
        let node = Self::new().await;
        let start = deadline_in(0, secs(60.0), secs(60.0));
        node.client().arm(start).await.unwrap();
        node.client()
            .launch(node.launch(Role::Primary))
            .await
            .unwrap();
        let sql = node.sql().await;
        sql.batch_execute("CREATE TABLE t (i bigint)")
            .await
            .unwrap();
        // A greater epoch brings its own times, earlier ones too.
        let deadline = deadline_in(1, soft, hard);
        node.client().arm(deadline.clone()).await.unwrap();
        (node, deadline)
    }

    pub(crate) fn client(&self) -> &GuardClient {
        self.agent.as_ref().expect("the agent has not left")
    }

    /// Takes every connection to the guard away.
    pub(crate) fn lose_agent(&mut self) {
        self.agent = None;
    }

    pub(crate) fn options(&self) -> GuardOptions {
        options(self.dir.path())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.options().run_dir
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("pg/data")
    }

    /// Makes a new cluster and starts it as a standby of nobody.
    pub(crate) async fn standby() -> Self {
        let node = Self::new().await;
        fs::write(node.data().join("standby.signal"), "").unwrap();
        node.client()
            .launch(node.launch(Role::Standby))
            .await
            .unwrap();
        node
    }

    pub(crate) fn launch(&self, role: Role) -> Launch {
        let log = self.dir.path().join("pg/log");
        let mut launch = Launch::new(program("postgres"), self.data(), log, role);
        launch.args = vec!["-D".to_owned(), self.data().display().to_string()];
        launch.env = vec![("LC_ALL".to_owned(), "C".to_owned())];
        launch.uid_gid = server_user();
        launch
    }

    /// Connects, waiting until the server takes connections.
    pub(crate) async fn sql(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.dir.path().join("pg"))
            .user("postgres")
            .dbname("postgres");
        let limit = boot_time() + Duration::from_secs(20);
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    drop(tokio::spawn(connection));
                    return client;
                }
                Err(error) if boot_time() > limit => panic!("{error}: {}", self.log()),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Leaves a loop of commits in the server whose client is gone, and returns once it commits.
    pub(crate) async fn leave_loop(&self) {
        let client = self.sql().await;
        let statement = "DO $$ BEGIN LOOP INSERT INTO t VALUES (1); COMMIT; END LOOP; END $$";
        let request = tokio::spawn(async move { client.batch_execute(statement).await });
        let watcher = self.sql().await;
        let query = "SELECT count(*) FROM (SELECT 1 FROM t LIMIT 20) AS head";
        while watcher
            .query_one(query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            < 20
        {
            sleep(Duration::from_millis(5)).await;
        }
        request.abort();
    }

    /// Writes one row every few milliseconds until it fails; returns when the last one was
    /// acknowledged, and how many were.
    pub(crate) async fn write_paced(&self) -> (NodeTime, u64) {
        let client = self.sql().await;
        let (mut last, mut count) = (NodeTime(0), 0);
        while client
            .execute("INSERT INTO t VALUES (2)", &[])
            .await
            .is_ok()
        {
            (last, count) = (boot_time(), count + 1);
            sleep(Duration::from_millis(5)).await;
        }
        (last, count)
    }

    pub(crate) async fn postmaster(&self) -> Pid {
        pid(self.client().status().await.unwrap().postmaster.unwrap())
    }

    pub(crate) fn guard(&self) -> Pid {
        pid(self.guard)
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        server_processes(&self.data()).unwrap()
    }

    /// Waits until no process of the server is left; returns when that was.
    ///
    /// What is killed takes the kernel up to a second to bury, in which it writes nothing: the
    /// server's own log is the witness of that.
    pub(crate) async fn wait_until_gone(&self, limit: NodeTime) -> NodeTime {
        loop {
            let asked = boot_time();
            let left = self.processes();
            if left.is_empty() {
                return boot_time();
            }
            assert!(
                asked < limit + secs(1.0),
                "still alive at {asked}: {left:?}: {}",
                self.log()
            );
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Returns the time of the last commit in the server's own log, on the node's clock.
    pub(crate) fn last_commit(&self) -> NodeTime {
        let wal = self.data().join("pg_wal");
        let mut command = Command::new(program("pg_waldump"));
        command
            .arg("-p")
            .arg(&wal)
            .args(["-r", "Transaction", "-t", "1", "-s", "0/1000028"]);
        let output = command.env("TZ", "UTC").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text
            .lines()
            .filter_map(|line| line.split_once("COMMIT "))
            .next_back();
        let (_, stamp) = last.unwrap_or_else(|| panic!("no commit: {output:?}"));
        let committed = micros_of(stamp);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ago = u64::try_from(wall.as_micros()).unwrap() - committed;
        boot_time().before(Duration::from_micros(ago))
    }

    /// Asserts what a deadline promises, from the server's own log, and prints by how much.
    pub(crate) fn assert_nothing_was_written_after(&self, hard: NodeTime, what: &str) {
        assert_eq!(self.processes(), [0_u32; 0]);
        let last = self.last_commit();
        println!("{what}: last commit at {last}, hard deadline {hard}");
        assert!(
            last < hard + MARGIN,
            "{what}: commit at {last}, hard deadline {hard}"
        );
    }

    pub(crate) fn control(&self) -> String {
        let output = Command::new(program("pg_controldata"))
            .arg(self.data())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("pg/log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            let said = fs::read_to_string(self.run_dir().join("guard.log"));
            println!("the guard {} said: {said:?}", self.guard);
        }
        let _frozen = kill(self.guard(), Signal::SIGCONT);
        let _gone = kill(self.guard(), Signal::SIGKILL);
        let _gone = fence_without_guard(&self.data());
    }
}

pub(crate) fn deadline_in(epoch: u64, soft: Duration, hard: Duration) -> Deadline {
    let (now, secret) = (boot_time(), LeaseSecret(format!("secret of {epoch}")));
    Deadline {
        epoch: Epoch(epoch),
        secret,
        soft: now + soft,
        hard: now + hard,
    }
}

pub(crate) fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(crate) fn pid(raw: u32) -> Pid {
    Pid::from_raw(i32::try_from(raw).unwrap())
}

/// Returns the path of one of PostgreSQL's programs.
pub(crate) fn program(name: &str) -> PathBuf {
    let bin = std::env::var("SPILO_PG15_BIN");
    let path = Path::new(bin.as_deref().unwrap_or("/usr/lib/postgresql/15/bin")).join(name);
    assert!(
        path.exists(),
        "{} is missing: name PostgreSQL in SPILO_PG15_BIN",
        path.display()
    );
    path
}

/// Returns a command that runs as the server's user.
pub(crate) fn as_server(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// PostgreSQL refuses to run as root, so it runs as `postgres` then; else as whoever tests.
fn server_user() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let user = User::from_name("postgres")
        .unwrap()
        .expect("root tests with the user postgres");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn options(dir: &Path) -> GuardOptions {
    let mut options = GuardOptions::new(dir.join("run"));
    options.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_spilo-guard")));
    options.idle = Duration::from_secs(1);
    options
}

/// Reads `2026-01-31 23:59:59.123456 UTC` as microseconds since 1970.
fn micros_of(stamp: &str) -> u64 {
    let numbers: Vec<u64> = stamp
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .take(7)
        .map(|digits| digits.parse().unwrap())
        .collect();
    let [year, month, day, hour, minute, second, micros] = numbers[..] else {
        panic!("not a time: {stamp}")
    };
    // Days since 0000-03-01, where leap days come last in the year.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros
}

#[test]
fn times_in_the_log_are_read() {
    assert_eq!(micros_of("1970-01-01 00:00:00.000000 UTC"), 0);
    assert_eq!(
        micros_of("2024-02-29 12:30:15.250000 UTC"),
        1_709_209_815_250_000
    );
}
