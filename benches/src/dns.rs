//! A real DNS server, whose records change.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::exec;
use crate::ports::Port;
use crate::sandbox::Sandbox;
use crate::service::Service;

/// A `dnsmasq` on the loopback interface that answers for one domain and for nothing else.
#[derive(Debug)]
pub(crate) struct Dns {
    service: Service,
    /// What it reads when it starts.
    file: std::path::PathBuf,
    port: Port,
}

impl Dns {
    /// Prepares a server.
    pub(crate) fn new(sandbox: &Sandbox) -> Result<Self> {
        let program = std::env::var_os("SPILO_DNSMASQ").unwrap_or_else(|| "dnsmasq".into());
        let program = exec::find_program([program]).context("dnsmasq is not installed")?;
        let file = sandbox.dir().join("dns.conf");
        let arguments = vec![
            "--no-daemon".to_owned(),
            format!("--conf-file={}", file.display()),
        ];
        Ok(Self {
            service: Service::new(program, arguments, sandbox.dir().join("dns.log")),
            file,
            port: Port::reserve()?,
        })
    }

    /// Starts the server anew, with records of these members of etcd, each a `host:port`; without
    /// any it denies that there is such a domain.
    pub(crate) async fn serve(&self, members: impl Iterator<Item = &str>) -> Result<()> {
        let mut config = format!(
            "port={}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\n\
             local=/{DOMAIN}/\nlocal-ttl=1\n",
            self.port.number()
        );
        for member in members {
            let (_, port) = member.rsplit_once(':').context("a member has a port")?;
            config += &format!("srv-host=_etcd-client._tcp.{DOMAIN},{HOST},{port}\n");
            // Which this server alone knows, and not even it when there is no such domain.
            config += &format!("host-record={HOST},127.0.0.1\n");
        }
        std::fs::write(&self.file, config)?;
        self.service.signal(Signal::SIGKILL);
        self.service.reap().await;
        self.service.spawn()?;
        // It takes a moment to listen; whoever asks before that is refused and asks again.
        sleep(Duration::from_millis(100)).await;
        Ok(())
    }

    /// Returns the section of a node's configuration that leads to the members.
    pub(crate) fn config(&self) -> Value {
        json!({ "srv": DOMAIN, "name_servers": [format!("127.0.0.1:{}", self.port.number())] })
    }
}

const DOMAIN: &str = "spilo.test";
const HOST: &str = "etcd.spilo.test";
