//! A Consul server of a test's own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use spilo_core::conformance::dcs::Laboratory;
use spilo_core::{Dcs, Scope};
use spilo_dcs::{Consul, ConsulOptions};
use tempfile::TempDir;

use crate::ports::free_ports;
use crate::signal::send;

/// One server on ports and a directory of its own, gone when it is dropped.
#[derive(Debug)]
pub(crate) struct ConsulServer {
    process: Option<Child>,
    directory: TempDir,
    port: u16,
    tls_port: u16,
    serf: u16,
    node: String,
    started: Instant,
}

impl ConsulServer {
    /// Starts a server that grants short sessions, and waits until it takes writes.
    pub(crate) async fn start() -> Self {
        // Tests of leases would take minutes with Consul's own shortest session, 10 s.
        Self::with(json!({ "session_ttl_min": "1s" })).await
    }

    /// Starts an agent that is no server and asks this one, as it stands on every node of a
    /// datacenter.
    pub(crate) async fn client(&self) -> Self {
        let join = format!("127.0.0.1:{}", self.serf);
        let extra = json!({
            "server": false,
            "bootstrap_expect": null,
            "node_name": "n1",
            "retry_join": [join],
            "retry_interval": "1s",
            "leave_on_terminate": false,
        });
        Self::with(extra).await
    }

    /// Starts a server with more configuration, and waits until it takes writes.
    pub(crate) async fn with(extra: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(5);
        let mut config = json!({
            "server": true,
            "bootstrap_expect": 1,
            "node_name": "n0",
            "data_dir": directory.path().join("data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": true,
            "log_level": "warn",
            "ports": {
                "http": ports[0], "dns": -1, "grpc": -1,
                "serf_lan": ports[1], "serf_wan": ports[2], "server": ports[3],
            },
            // Elections of a single server need no patience.
            "performance": { "raft_multiplier": 1 },
        });
        for (field, value) in extra.as_object().unwrap().clone() {
            let fields = config.as_object_mut().unwrap();
            match value {
                Value::Null => drop(fields.remove(&field)),
                value => drop(fields.insert(field, value)),
            }
        }
        if config.get("cert_file").is_some() {
            config["ports"]["https"] = json!(ports[4]);
        }
        let node = config["node_name"].as_str().unwrap().to_owned();
        std::fs::write(directory.path().join("consul.json"), config.to_string()).unwrap();
        let mut server = Self {
            process: None,
            directory,
            port: ports[0],
            tls_port: ports[4],
            serf: ports[1],
            node,
            started: Instant::now(),
        };
        server.run();
        server.until_ready().await;
        server
    }

    /// Starts the process.
    pub(crate) fn run(&mut self) {
        let binary = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let process = Command::new(&binary)
            .arg("agent")
            .arg("-config-file")
            .arg(self.directory.path().join("consul.json"))
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run {}: {error}; `cargo xtask setup` installs Consul",
                    binary.display()
                )
            });
        self.process = Some(process);
    }

    /// Stops the process the polite way.
    pub(crate) fn stop(&mut self) {
        self.signal("-TERM");
        let mut process = self.process.take().expect("it runs");
        process.wait().unwrap();
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

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the address with TLS, of a server that was given a certificate.
    #[cfg(feature = "tls")]
    pub(crate) fn tls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port)
    }

    pub(crate) fn options(&self) -> ConsulOptions {
        let mut options = ConsulOptions::new(Scope::new("demo").unwrap(), self.url());
        options.session_ttl_min = Duration::from_secs(1);
        options
    }

    pub(crate) fn consul(&self) -> Consul {
        Consul::new(self.options()).unwrap()
    }

    /// Waits until the server has elected itself and knows its own node: no session is made on one
    /// that is not in the catalogue.
    pub(crate) async fn until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let nodes = self.try_ctl(&["catalog", "nodes"]);
            if nodes.as_ref().is_ok_and(|nodes| nodes.contains(&self.node)) {
                return;
            }
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            assert!(Instant::now() < deadline, "{nodes:?}\n{log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks the HTTP API by hand and returns the status and the body.
    pub(crate) fn api(&self, method: &str, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "{method} /v1/{path} HTTP/1.0\r\nContent-Length: 0\r\nX-Consul-Token: {MASTER}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Returns the session that holds a key below the cluster's own.
    pub(crate) fn session_of(&self, key: &str) -> String {
        let (status, found) = self.api("GET", &format!("kv/service/demo/{key}"));
        assert_eq!(status, 200, "{found}");
        found[0]["Session"].as_str().unwrap().to_owned()
    }

    /// Runs consul's own command and returns what it prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments)
            .unwrap_or_else(|problem| panic!("consul {arguments:?}: {problem}"))
    }

    fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let binary = std::env::var_os("SPILO_CONSUL").unwrap_or_else(|| "consul".into());
        let output = Command::new(binary)
            .env("CONSUL_HTTP_TOKEN", MASTER)
            .env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", self.port))
            .args(arguments)
            .output()
            .expect("consul runs; `cargo xtask setup` installs it");
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[async_trait]
impl Laboratory for ConsulServer {
    async fn node(&self) -> Arc<dyn Dcs> {
        Arc::new(self.consul())
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        self.ctl(&["kv", "delete", "service/demo/leader"]);
    }
}

impl Drop for ConsulServer {
    fn drop(&mut self) {
        if let Some(process) = self.process.as_mut() {
            // Best effort: a test may have ended it already.
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// What may do everything where a test switches the access control list on.
pub(crate) const MASTER: &str = "b19533c4-e7c1-4bd5-9b4c-2d2b3c4d5e6f";
