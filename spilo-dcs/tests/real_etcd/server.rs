//! etcd servers of a test's own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use spilo_core::conformance::dcs::Laboratory;
use spilo_core::{Dcs, Scope};
use spilo_dcs::{Etcd, EtcdOptions};
use tempfile::TempDir;

use crate::ports::free_ports;
use crate::signal::send;

/// One etcd cluster on ports and directories of its own, gone when it is dropped.
#[derive(Debug)]
pub(crate) struct EtcdCluster {
    members: Vec<Member>,
    directory: TempDir,
    started: Instant,
}

#[derive(Debug)]
struct Member {
    arguments: Vec<String>,
    client: String,
    process: Option<Child>,
}

impl EtcdCluster {
    /// Starts `size` members and waits until they answer.
    pub(crate) async fn start(size: usize) -> Self {
        let mut cluster = Self::prepare(size, "http", &[]);
        cluster.start_all();
        cluster.until_ready(&cluster.etcd()).await;
        cluster
    }

    /// Makes the command lines of `size` members, all with the extra arguments.
    pub(crate) fn prepare(size: usize, scheme: &str, extra: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * size);
        let peers: Vec<_> = (0..size)
            .map(|i| format!("m{i}=http://127.0.0.1:{}", ports[2 * i]))
            .collect();
        let members = (0..size).map(|i| {
            let client = format!("{scheme}://127.0.0.1:{}", ports[2 * i + 1]);
            let peer = format!("http://127.0.0.1:{}", ports[2 * i]);
            let data = directory.path().join(format!("m{i}"));
            let mut arguments: Vec<String> = [
                ("name", format!("m{i}").as_str()),
                ("data-dir", data.to_str().unwrap()),
                ("listen-client-urls", &client),
                ("advertise-client-urls", &client),
                ("listen-peer-urls", &peer),
                ("initial-advertise-peer-urls", &peer),
                ("initial-cluster", &peers.join(",")),
                ("log-level", "error"),
            ]
            .iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .collect();
            arguments.extend_from_slice(extra);
            Member {
                arguments,
                client,
                process: None,
            }
        });
        Self {
            members: members.collect(),
            directory,
            started: Instant::now(),
        }
    }

    pub(crate) fn start_all(&mut self) {
        (0..self.members.len()).for_each(|i| self.start_member(i));
    }

    pub(crate) fn start_member(&mut self, i: usize) {
        let binary = std::env::var_os("SPILO_ETCD").unwrap_or_else(|| "etcd".into());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("m{i}.log")))
            .unwrap();
        let process = Command::new(&binary)
            .args(&self.members[i].arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run {}: {error}; `cargo xtask setup` installs etcd",
                    binary.display()
                )
            });
        self.members[i].process = Some(process);
    }

    /// Kills a member with SIGKILL.
    pub(crate) fn kill(&mut self, i: usize) {
        let mut process = self.members[i].process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Sends a member a signal, as in `kill -STOP`.
    pub(crate) fn signal(&self, i: usize, signal: &str) {
        send(self.members[i].process.as_ref().expect("it runs"), signal);
    }

    /// Throws a killed member's data away.
    pub(crate) fn wipe(&self, i: usize) {
        std::fs::remove_dir_all(self.directory.path().join(format!("m{i}"))).unwrap();
    }

    /// Starts a wiped member of what counts as another cluster.
    pub(crate) fn start_anew(&mut self, i: usize) {
        self.members[i]
            .arguments
            .push("--initial-cluster-token=another".to_owned());
        self.start_member(i);
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client.clone())
            .collect()
    }

    /// Returns where its members speak to each other.
    #[cfg(feature = "srv")]
    pub(crate) fn peers(&self) -> Vec<String> {
        let peer = "--listen-peer-urls=";
        let arguments = self.members.iter().flat_map(|member| &member.arguments);
        arguments
            .filter_map(|argument| argument.strip_prefix(peer))
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions::new(Scope::new("demo").unwrap(), self.endpoints())
    }

    pub(crate) fn etcd(&self) -> Etcd {
        Etcd::new(self.options()).unwrap()
    }

    /// Waits until every member answers and the cluster takes writes.
    pub(crate) async fn until_ready(&self, etcd: &Etcd) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match etcd.read().await {
                Ok(_) => return,
                Err(error) => {
                    assert!(Instant::now() < deadline, "{error}\n{}", self.logs());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Runs etcdctl against all members and returns what it prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(Self::etcdctl())
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(arguments)
            .output()
            .expect("etcdctl runs; `cargo xtask setup` installs it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs etcdctl with a value that is too long for an argument.
    #[cfg(feature = "discovery")]
    pub(crate) fn ctl_with_input(&self, arguments: &[&str], input: &str) {
        let mut child = Command::new(Self::etcdctl())
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl runs; `cargo xtask setup` installs it");
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, input.as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success(), "etcdctl {arguments:?}");
    }

    fn etcdctl() -> PathBuf {
        std::env::var_os("SPILO_ETCD").map_or_else(
            || "etcdctl".into(),
            |etcd| PathBuf::from(etcd).with_file_name("etcdctl"),
        )
    }

    fn logs(&self) -> String {
        let log = |i| std::fs::read_to_string(self.directory.path().join(format!("m{i}.log")));
        (0..self.members.len())
            .filter_map(|i| log(i).ok())
            .collect()
    }
}

#[async_trait]
impl Laboratory for EtcdCluster {
    async fn node(&self) -> Arc<dyn Dcs> {
        Arc::new(self.etcd())
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        self.ctl(&["del", "/service/demo/leader"]);
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for process in self
            .members
            .iter_mut()
            .filter_map(|member| member.process.as_mut())
        {
            // Best effort: a test may have ended it already.
            process.kill().ok();
            process.wait().ok();
        }
    }
}
